//! Writes a model's configuration as GGUF metadata.

use super::families::GgufFamily;
use crate::gguf::{GgufArray, GgufValue};
use crate::model::blocks::GatedDeltaNetConfig;
use crate::model::config::{DecoderConfig, LayerType};
use crate::model::rope::{RopeScaling, RopeType, yarn_scale};

/// A model's configuration in GGUF.
pub(super) struct Settings {
    /// Keys and values.
    pub entries: Vec<(String, GgufValue)>,
    /// Tensors that follow from the configuration: names and values.
    pub tensors: Vec<(&'static str, Vec<f32>)>,
    /// Messages about differences in llama.cpp's computation.
    pub notices: Vec<String>,
}

/// Returns the name of a RoPE scaling in files.
pub(super) fn scaling_name(kind: RopeType) -> Option<&'static str> {
    match kind {
        RopeType::Linear => Some("linear"),
        RopeType::Yarn => Some("yarn"),
        RopeType::LongRope => Some("longrope"),
        // Stored as a tensor of divisors instead.
        RopeType::Llama3 => None,
    }
}

/// Returns a model's configuration in GGUF.
///
/// # Errors
/// A message about what llama.cpp does not support.
pub(super) fn settings(config: &DecoderConfig, family: &GgufFamily) -> Result<Settings, String> {
    check(config, family)?;
    let mut settings = Settings { entries: vec![], tensors: vec![], notices: vec![] };
    let mut put = |key: &str, value: GgufValue| {
        settings.entries.push((format!("{}.{key}", family.name), value));
    };
    let size = |size: usize| GgufValue::U32(u32::try_from(size).unwrap_or(u32::MAX));
    let number = |number: f64| GgufValue::F32(number as f32);
    put("block_count", size(config.num_hidden_layers));
    let (context, notice) = context(config, family);
    put("context_length", size(context));
    put("embedding_length", size(config.hidden_size));
    put("feed_forward_length", size(config.intermediate_size));
    put("attention.head_count", size(config.num_attention_heads));
    put("attention.head_count_kv", size(config.num_key_value_heads));
    put("attention.key_length", size(config.head_dim()));
    put("attention.value_length", size(config.head_dim()));
    put("attention.layer_norm_rms_epsilon", number(config.rms_norm_eps));
    put("vocab_size", size(config.vocab_size));
    let rotated = config.attention(0).rotary_dim();
    put("rope.dimension_count", size(rotated));
    put("rope.freq_base", number(config.rope_theta));
    let properties = config.architecture.properties();
    if family.windows
        && let Some(window) = config.sliding_window
    {
        put("attention.sliding_window", size(window));
        put("rope.freq_base_swa", number(config.rope_local_base()));
        let slides: Vec<bool> = (config.all_layer_types().iter())
            .map(|kind| *kind == LayerType::SlidingAttention)
            .collect();
        if slides.iter().enumerate().any(|(layer, slides)| *slides == (layer + 1).is_multiple_of(6))
        {
            put("attention.sliding_window_pattern", GgufValue::Array(GgufArray::Bool(slides)));
        }
    } else if properties.fused_projections {
        // The converter writes it to mark this family; llama.cpp does not compute the window.
        put("attention.sliding_window", size(config.sliding_window.unwrap_or(0)));
    }
    if properties.multipliers {
        put("attention.scale", number(config.score_scale()));
        put("embedding_scale", number(config.embedding_scale()));
        put("residual_scale", number(config.residual_multiplier));
        put("logit_scale", number(config.logits_scaling));
    }
    if let Some(linear) = config.any_linear_attention() {
        linear_attention(config, &linear, &mut put);
    }
    if let Some(scaling) = &config.rope_scaling {
        scale_rope(scaling, family, &mut put);
        let list = |list: &[f64]| list.iter().map(|x| *x as f32).collect::<Vec<f32>>();
        match scaling.rope_type {
            RopeType::Llama3 => {
                let divisors = scaling.divisors(rotated, config.rope_theta);
                settings.tensors.push(("rope_freqs.weight", list(&divisors)));
            }
            RopeType::LongRope => {
                settings.tensors.push(("rope_factors_long.weight", list(&scaling.long_factor)));
                settings.tensors.push(("rope_factors_short.weight", list(&scaling.short_factor)));
            }
            RopeType::Linear | RopeType::Yarn => {}
        }
    }
    settings.notices.extend(notice);
    Ok(settings)
}

fn linear_attention(
    config: &DecoderConfig,
    linear: &GatedDeltaNetConfig,
    put: &mut impl FnMut(&str, GgufValue),
) {
    for (key, size) in [
        ("ssm.conv_kernel", linear.conv_kernel_dim),
        ("ssm.state_size", linear.key_head_dim),
        ("ssm.group_count", linear.num_key_heads),
        ("ssm.time_step_rank", linear.num_value_heads),
        ("ssm.inner_size", linear.value_width()),
        ("full_attention_interval", 4),
    ] {
        put(key, GgufValue::U32(u32::try_from(size).unwrap_or(u32::MAX)));
    }
    let is_linear = |kind: &LayerType| *kind == LayerType::LinearAttention;
    let layers: Vec<bool> = config.all_layer_types().iter().map(is_linear).collect();
    put("attention.recurrent_layers", GgufValue::Array(GgufArray::Bool(layers)));
    // Rotated pairs per head for time, height, and width; all positions of text are the same.
    let pairs = config.attention(0).rotary_dim() / 2;
    let sections = [pairs + 2, pairs + 1, pairs].map(|pairs| (pairs / 3) as i32);
    let sections = sections.into_iter().chain([0]).collect();
    put("rope.dimension_sections", GgufValue::Array(GgufArray::I32(sections)));
}

fn scale_rope(scaling: &RopeScaling, family: &GgufFamily, put: &mut impl FnMut(&str, GgufValue)) {
    let Some(name) = scaling_name(scaling.rope_type) else { return };
    let number = |number: f64| GgufValue::F32(number as f32);
    put("rope.scaling.type", name.into());
    let attention = scaling.attention_factor();
    let original = scaling.original_max_position_embeddings;
    let original = GgufValue::U32(u32::try_from(original).unwrap_or(u32::MAX));
    match scaling.rope_type {
        RopeType::Linear => put("rope.scaling.factor", number(scaling.factor)),
        RopeType::LongRope => {
            put("rope.scaling.original_context_length", original);
            put("rope.scaling.attn_factor", number(attention));
        }
        RopeType::Yarn => {
            put("rope.scaling.factor", number(scaling.factor));
            put("rope.scaling.original_context_length", original);
            // The factor that llama.cpp applies itself.
            let mut own = yarn_scale(scaling.factor, 1.0);
            if family.reads_betas {
                put("rope.scaling.yarn_beta_fast", number(scaling.beta_fast));
                put("rope.scaling.yarn_beta_slow", number(scaling.beta_slow));
                if let Some(all) = scaling.mscale_all_dim {
                    put("rope.scaling.yarn_log_multiplier", number(all));
                    own /= if all == 0.0 { 1.0 } else { yarn_scale(scaling.factor, all) };
                }
                if let Some(beta) = scaling.llama_4_scaling_beta {
                    put("attention.temperature_scale", number(beta));
                }
            }
            if (attention / own - 1.0).abs() > 1e-9 {
                put("rope.scaling.attn_factor", number(attention / own));
            }
        }
        RopeType::Llama3 => {}
    }
}

/// Returns the context length of the file, and a notice if it differs from the model's.
fn context(config: &DecoderConfig, family: &GgufFamily) -> (usize, Option<String>) {
    let longest = config.max_position_embeddings;
    let slides = config.all_layer_types().contains(&LayerType::SlidingAttention);
    match config.sliding_window.filter(|window| slides && !family.windows && *window < longest) {
        None => (longest, None),
        Some(window) => {
            let notice = format!(
                "llama.cpp does not support sliding windows for `{}`: the file's context is {window} tokens, \
                 the size of the window, instead of {longest}",
                family.name
            );
            (window, Some(notice))
        }
    }
}

/// Refuses what llama.cpp does not support.
fn check(config: &DecoderConfig, family: &GgufFamily) -> Result<(), String> {
    let name = family.name;
    let refuse =
        |what: String| Err(format!("{what}, which llama.cpp does not support for `{name}`"));
    let properties = config.architecture.properties();
    if config.activation() != properties.activation {
        return refuse("its activation differs from the family's".into());
    }
    if family.heads_fill_width && config.query_width() != config.hidden_size {
        let (heads, width) = (config.query_width(), config.hidden_size);
        return refuse(format!(
            "its heads have a total width of {heads} in a model of width {width}"
        ));
    }
    if config.architecture.properties().full_attention_interval.is_some() {
        match config.any_linear_attention() {
            None => return refuse("it has no linear attention".into()),
            Some(linear) if linear.key_head_dim != linear.value_head_dim => {
                let [keys, values] = [linear.key_head_dim, linear.value_head_dim];
                return refuse(format!(
                    "its linear attention has keys of width {keys} and values of width {values}"
                ));
            }
            Some(_) => {}
        }
    }
    let interval = family.no_rope_interval;
    let usual = |layer: usize| interval.is_none_or(|every| !(layer + 1).is_multiple_of(every));
    if (0..config.num_hidden_layers).any(|layer| config.is_rotated(layer) != usual(layer)) {
        return refuse("it has RoPE in other layers than the family".into());
    }
    let head = config.head_dim() as f64;
    if !properties.multipliers {
        let scales = config.embedding_multiplier.is_some()
            || config.residual_multiplier != 1.0
            || config.logits_scaling != 1.0;
        if scales {
            return refuse("it has multipliers".into());
        }
        // The largest Gemma 3 model divides by another square root.
        let by_width = (config.hidden_size / config.num_attention_heads) as f64;
        let deepest = family.windows && config.num_hidden_layers == 62;
        let expected = if deepest { by_width } else { head }.powf(-0.5);
        if (config.score_scale() / expected - 1.0).abs() > 1e-6 {
            return refuse(format!("its attention scores are scaled by {}", config.score_scale()));
        }
    }
    let local = config.rope_local_base();
    let slides = config.all_layer_types().contains(&LayerType::SlidingAttention);
    if slides && !family.windows && local != config.rope_theta {
        return refuse(format!("its layers with a sliding window have the RoPE base {local}"));
    }
    match &config.rope_scaling {
        Some(scaling) => check_scaling(scaling, family).or_else(refuse),
        None => Ok(()),
    }
}

fn check_scaling(scaling: &RopeScaling, family: &GgufFamily) -> Result<(), String> {
    if !family.scalings.contains(&scaling.rope_type) {
        let name = scaling_name(scaling.rope_type).unwrap_or("llama3");
        return Err(format!("it has the RoPE scaling `{name}`"));
    }
    if scaling.rope_type == RopeType::Yarn {
        let usual = RopeScaling::default();
        let betas = [scaling.beta_fast, scaling.beta_slow];
        if !family.reads_betas && betas != [usual.beta_fast, usual.beta_slow] {
            return Err(format!(
                "its YaRN scaling has beta_fast {} and beta_slow {}",
                betas[0], betas[1]
            ));
        }
        if !scaling.truncate {
            return Err("its YaRN scaling has `truncate` off".into());
        }
    }
    match scaling.llama_4_scaling_beta {
        Some(beta) if beta != 0.0 && !family.reads_betas => {
            Err(format!("its queries are scaled by position (llama_4_scaling_beta {beta})"))
        }
        _ => Ok(()),
    }
}
