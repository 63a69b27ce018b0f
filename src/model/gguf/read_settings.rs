//! Reads a model's configuration from GGUF metadata.

use super::families::GgufFamily;
use crate::gguf::{GgufArray, GgufFile, GgufValue};
use crate::model::config::{DecoderConfig, LayerType, MOST_LAYERS};
use crate::model::rope::{RopeScaling, RopeType, yarn_scale};

/// The error describes the invalid metadata.
pub(super) type Read<T> = Result<T, String>;

/// Reads the keys of a family.
struct Keys<'a> {
    file: &'a GgufFile,
    family: &'static GgufFamily,
}

impl<'a> Keys<'a> {
    fn value(&self, key: &str) -> Option<&'a GgufValue> {
        self.file.metadata().get(&format!("{}.{key}", self.family.name))
    }

    fn wrong<T>(&self, key: &str) -> Read<T> {
        Err(format!("`{}.{key}` is invalid", self.family.name))
    }

    fn optional_size(&self, key: &str) -> Read<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        // A list has one value per layer; all must be equal.
        let size = match value.as_array().and_then(GgufArray::integers) {
            Some(list) => {
                let first = list.first().copied().filter(|one| list.iter().all(|x| x == one));
                first.and_then(|size| u64::try_from(size).ok())
            }
            None => value.as_u64(),
        };
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None if value.as_array().is_some() => {
                Err(format!("`{}.{key}` differs between layers", self.family.name))
            }
            None => self.wrong(key),
        }
    }

    fn size(&self, key: &str) -> Read<usize> {
        let missing = || format!("`{}.{key}` is missing", self.family.name);
        self.optional_size(key)?.ok_or_else(missing)
    }

    fn optional_number(&self, key: &str) -> Read<Option<f64>> {
        match self.value(key).map(GgufValue::as_f64) {
            None => Ok(None),
            Some(Some(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => self.wrong(key),
        }
    }

    fn number(&self, key: &str, usual: f64) -> Read<f64> {
        Ok(self.optional_number(key)?.unwrap_or(usual))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.value(key).and_then(GgufValue::as_str)
    }

    /// Returns the values of a tensor, if it exists.
    fn numbers(&self, tensor: &str) -> Read<Option<Vec<f64>>> {
        if !self.file.tensors().contains_key(tensor) {
            return Ok(None);
        }
        let values = self.file.read(tensor).map_err(|e| e.to_string())?;
        Ok(Some(values.into_iter().map(f64::from).collect()))
    }
}

/// Reads the configuration of a file's model.
pub(super) fn read_settings(file: &GgufFile, family: &'static GgufFamily) -> Read<DecoderConfig> {
    let keys = Keys { file, family };
    for key in ["expert_count", "expert_used_count"] {
        if keys.optional_size(key)?.unwrap_or(0) > 0 {
            return Err("it is a mixture of experts".into());
        }
    }
    let embedding = file.tensors().get("token_embd.weight");
    let vocab_size = match embedding.map(|info| info.shape.as_slice()) {
        Some([rows, _]) => *rows,
        _ => return Err("it has no embedding (`token_embd.weight`)".into()),
    };
    let properties = family.architecture.properties();
    // Multi-token prediction blocks follow the decoder's blocks.
    let others = keys.optional_size("nextn_predict_layers")?.unwrap_or(0);
    let layers = keys.size("block_count")?;
    let layers = layers.checked_sub(others).ok_or_else(|| {
        format!("`nextn_predict_layers` is {others}, more than its {layers} blocks")
    })?;
    if layers > MOST_LAYERS {
        return Err(format!("it has {layers} layers; at most {MOST_LAYERS} are supported"));
    }
    let (width, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let usual_head = width / heads.max(1);
    let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(usual_head);
    if keys.optional_size("attention.value_length")?.is_some_and(|value| value != head_dim) {
        return Err("its keys and values have different widths".into());
    }
    let mut config = DecoderConfig {
        architecture: family.architecture,
        vocab_size,
        hidden_size: width,
        intermediate_size: keys.size("feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim: Some(head_dim),
        max_position_embeddings: keys.size("context_length")?,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon", properties.rms_norm_eps)?,
        rope_theta: keys.number("rope.freq_base", 10_000.0)?,
        tie_word_embeddings: is_tied(file, family),
        ..DecoderConfig::default()
    };
    let rotated = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim {
        if properties.partial_rotary.is_none() || rotated > head_dim {
            return Err(format!("it rotates {rotated} of {head_dim} values of a head"));
        }
        config.partial_rotary_factor = rotated as f64 / head_dim as f64;
    }
    windows(&keys, &mut config)?;
    if let Some(interval) = properties.full_attention_interval {
        linear_attention(&keys, &mut config, interval)?;
    }
    if properties.multipliers {
        config.attention_multiplier = keys.optional_number("attention.scale")?;
        config.embedding_multiplier = Some(keys.number("embedding_scale", 1.0)?);
        config.residual_multiplier = keys.number("residual_scale", 1.0)?;
        config.logits_scaling = keys.number("logit_scale", 1.0)?;
    }
    // As in llama.cpp for the deepest Gemma 3 model.
    if family.windows && layers == 62 {
        config.attention_multiplier = Some((usual_head as f64).powf(-0.5));
    }
    if let Some(cap) = keys.optional_number("final_logit_softcapping")?
        && cap != 0.0
    {
        return Err("it uses logit soft-capping".into());
    }
    config.rope_scaling = scaling(&keys, &config, rotated)?;
    Ok(config)
}

/// Returns whether the head is tied: it is missing, or it is required and has the bytes of the embedding.
fn is_tied(file: &GgufFile, family: &GgufFamily) -> bool {
    let tensors = file.tensors();
    let Some(head) = tensors.get("output.weight") else { return true };
    family.needs_head
        && tensors.get("token_embd.weight").is_some_and(|embedding| {
            embedding.kind == head.kind
                && embedding.shape == head.shape
                && matches!(
                    (file.read_bytes("token_embd.weight"), file.read_bytes("output.weight")),
                    (Ok(embedding), Ok(head)) if embedding == head
                )
        })
}

/// Reads sliding windows, and which layers have them.
fn windows(keys: &Keys<'_>, config: &mut DecoderConfig) -> Read<()> {
    let window = keys.optional_size("attention.sliding_window")?.filter(|window| *window > 0);
    let (Some(window), properties) = (window, config.architecture.properties()) else {
        return Ok(());
    };
    if !keys.family.windows {
        // Only Phi-3's files have a window although llama.cpp does not compute it.
        config.sliding_window = properties.fused_projections.then_some(window);
        return Ok(());
    }
    config.sliding_window = Some(window);
    config.rope_local_base_freq = Some(keys.number("rope.freq_base_swa", 10_000.0)?);
    let key = "attention.sliding_window_pattern";
    let layers = config.num_hidden_layers;
    let slides: Vec<bool> = match keys.value(key) {
        None => return Ok(()),
        Some(value) => match value.as_array().map(GgufArray::integers) {
            Some(Some(list)) if list.len() >= layers => {
                list.iter().take(layers).map(|slides| *slides != 0).collect()
            }
            Some(_) => return keys.wrong(key),
            None => {
                let every = keys.size(key)?;
                (0..layers).map(|layer| every == 0 || !(layer + 1).is_multiple_of(every)).collect()
            }
        },
    };
    config.layer_types = slides.into_iter().map(LayerType::of).collect();
    Ok(())
}

/// Reads linear attention, and which layers have it.
fn linear_attention(keys: &Keys<'_>, config: &mut DecoderConfig, usual: usize) -> Read<()> {
    let (width, heads) = (keys.size("ssm.inner_size")?, keys.size("ssm.time_step_rank")?);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!(
            "its {heads} heads of linear attention do not divide the width {width}"
        ));
    }
    config.linear_conv_kernel_dim = Some(keys.size("ssm.conv_kernel")?);
    config.linear_key_head_dim = Some(keys.size("ssm.state_size")?);
    config.linear_value_head_dim = Some(width / heads);
    config.linear_num_key_heads = Some(keys.size("ssm.group_count")?);
    config.linear_num_value_heads = Some(heads);
    let kind = |is_linear: bool| match is_linear {
        true => LayerType::LinearAttention,
        false => LayerType::FullAttention,
    };
    let (key, layers) = ("attention.recurrent_layers", config.num_hidden_layers);
    config.layer_types = match keys.value(key) {
        Some(value) => match value.as_array().map(GgufArray::integers) {
            Some(Some(list)) if list.len() >= layers => {
                list.iter().take(layers).map(|is_linear| kind(*is_linear != 0)).collect()
            }
            _ => return keys.wrong(key),
        },
        None => {
            let every = keys.optional_size("full_attention_interval")?.unwrap_or(usual).max(1);
            (0..layers).map(|layer| kind(!(layer + 1).is_multiple_of(every))).collect()
        }
    };
    Ok(())
}

fn scaling(keys: &Keys<'_>, config: &DecoderConfig, rotated: usize) -> Read<Option<RopeScaling>> {
    let factor = keys.optional_number("rope.scaling.factor")?;
    let original = keys.optional_size("rope.scaling.original_context_length")?;
    let original = original.unwrap_or(config.max_position_embeddings);
    let attention = keys.optional_number("rope.scaling.attn_factor")?;
    let read = RopeScaling { original_max_position_embeddings: original, ..RopeScaling::default() };
    if let Some(divisors) = keys.numbers("rope_freqs.weight")? {
        return llama3(&divisors, rotated, config.rope_theta);
    }
    let factors = ["rope_factors_long.weight", "rope_factors_short.weight"];
    if let [Some(long), Some(short)] = [keys.numbers(factors[0])?, keys.numbers(factors[1])?] {
        let contexts = config.max_position_embeddings as f64 / original.max(1) as f64;
        let mut read = RopeScaling {
            rope_type: RopeType::LongRope,
            factor: contexts.max(1.0),
            long_factor: long,
            short_factor: short,
            ..read
        };
        set_attention(&mut read, attention.unwrap_or(1.0));
        return Ok(Some(read));
    }
    match keys.text("rope.scaling.type").unwrap_or("linear") {
        "none" => Ok(None),
        "linear" => {
            let factor = factor.filter(|factor| ![0.0, 1.0].contains(factor));
            Ok(factor.map(|factor| RopeScaling { rope_type: RopeType::Linear, factor, ..read }))
        }
        "yarn" => {
            let factor = factor.ok_or("its YaRN scaling has no factor")?;
            let mut read = RopeScaling { rope_type: RopeType::Yarn, factor, ..read };
            let mut own = yarn_scale(factor, 1.0);
            if keys.family.reads_betas {
                read.beta_fast = keys.number("rope.scaling.yarn_beta_fast", read.beta_fast)?;
                read.beta_slow = keys.number("rope.scaling.yarn_beta_slow", read.beta_slow)?;
                read.llama_4_scaling_beta = keys.optional_number("attention.temperature_scale")?;
                if let Some(all) = keys.optional_number("rope.scaling.yarn_log_multiplier")?
                    && all != 0.0
                {
                    (read.mscale, read.mscale_all_dim) = (Some(1.0), Some(all));
                    own /= yarn_scale(factor, all);
                }
            }
            set_attention(&mut read, attention.unwrap_or(1.0) * own);
            Ok(Some(read))
        }
        other => Err(format!("it has the RoPE scaling `{other}`")),
    }
}

/// Sets the attention factor if it differs from the default for these settings.
fn set_attention(scaling: &mut RopeScaling, factor: f64) {
    if (scaling.attention_factor() / factor - 1.0).abs() > 1e-6 {
        scaling.attention_factor = Some(factor);
    }
}

/// Recovers Llama 3.1's scaling from the divisors of the frequencies. They determine its three other
/// parameters only up to a common factor, so the low one is set to 1.
fn llama3(divisors: &[f64], rotated: usize, theta: f64) -> Read<Option<RopeScaling>> {
    let wrong = || "`rope_freqs.weight` is not Llama 3.1's scaling of RoPE".to_owned();
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let usual = RopeScaling { factor, ..RopeScaling::default() };
    if divisors.len() != rotated / 2 || divisors.iter().any(|divisor| !divisor.is_finite()) {
        return Err(wrong());
    }
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Ok(None);
    }
    if divisors.iter().any(|divisor| *divisor < 1.0) {
        return Err(wrong());
    }
    let agrees = |scaling: &RopeScaling| {
        let own = scaling.divisors(rotated, theta);
        own.iter().zip(divisors).all(|(own, divisor)| (own / divisor - 1.0).abs() < 1e-5)
    };
    // On the ramp, the kept share of a frequency is linear in the frequency.
    let plain = crate::ops::rotary_frequencies(rotated, theta);
    let between: Vec<(f64, f64)> = (plain.iter().zip(divisors))
        .filter(|(_, divisor)| **divisor > 1.0 + 1e-6 && **divisor < factor * (1.0 - 1e-6))
        .map(|(frequency, divisor)| {
            let kept = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
            (frequency / (2.0 * std::f64::consts::PI), kept)
        })
        .collect();
    if let [first, .., last] = between[..] {
        let slope = (first.1 - last.1) / (first.0 - last.0);
        let low_over_span = slope * first.0 - first.1;
        let high = 1.0 + 1.0 / low_over_span;
        // The fit gives the context; rounding recovers whole numbers.
        let context = slope * (high - 1.0);
        let found = RopeScaling {
            original_max_position_embeddings: context.round().max(1.0) as usize,
            high_freq_factor: high,
            ..usual.clone()
        };
        let rounded = RopeScaling { high_freq_factor: high.round(), ..found.clone() };
        if let Some(scaling) = [usual, rounded, found].into_iter().find(agrees) {
            return Ok(Some(scaling));
        }
        return Err(wrong());
    }
    if agrees(&usual) { Ok(Some(usual)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_s_scaling_is_found_by_its_divisors() {
        for (factor, high, original, theta) in
            [(8.0, 4.0, 8192, 500_000.0), (32.0, 4.0, 8192, 500_000.0), (4.0, 8.0, 2048, 10_000.0)]
        {
            let scaling = RopeScaling {
                factor,
                high_freq_factor: high,
                original_max_position_embeddings: original,
                ..RopeScaling::default()
            };
            // As stored in a file.
            let divisors: Vec<f64> =
                scaling.divisors(64, theta).iter().map(|x| f64::from(*x as f32)).collect();
            assert_eq!(llama3(&divisors, 64, theta).unwrap(), Some(scaling));
        }
        assert_eq!(llama3(&[1.0, 1.0], 4, 10.0).unwrap(), None);
        assert!(llama3(&[1.0, 3.0, 2.0, 4.0], 8, 10_000.0).is_err());
        assert!(llama3(&[f64::NAN, 2.0], 4, 10.0).is_err());
        assert!(llama3(&[0.5, 0.5], 4, 10.0).is_err());
    }
}
