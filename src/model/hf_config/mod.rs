//! Hugging Face's `config.json` and `generation_config.json`.

mod layers;
mod rope;
mod write;

use super::architecture::{Architecture, ArchitectureProperties, ScoreScale};
use super::config::DecoderConfig;
use crate::ops::Activation;
use serde_json::Value;
use std::borrow::Cow;

pub(super) use write::write_config;

/// An invalid or unsupported part of a configuration, and a hint.
#[derive(Debug)]
pub(super) struct Refusal {
    pub what: String,
    pub hint: &'static str,
}

impl From<String> for Refusal {
    /// Returns an invalid value, independent of the family.
    fn from(what: String) -> Self {
        Self { what, hint: "Fix this setting, or download config.json again" }
    }
}

/// Returns a setting that requires an unsupported computation.
fn unsupported(what: impl Into<String>) -> Refusal {
    let hint = "Choose a model without this setting";
    Refusal { what: what.into(), hint }
}

type Read<T> = std::result::Result<T, Refusal>;

/// Returns the part of a `config.json` that describes the decoder: all of it, or for a vision-language model
/// its text part, in the form of a text-only model.
pub(super) fn text_part(value: &Value) -> Read<Cow<'_, Value>> {
    let class = value["architectures"][0].as_str();
    let Some(class) = class.filter(|class| Architecture::is_within(class)) else {
        return Ok(Cow::Borrowed(value));
    };
    let Value::Object(text) = &value["text_config"] else {
        return Err(format!("`{class}` has no `text_config`").into());
    };
    let mut text = text.clone();
    let family = text.get("model_type").and_then(Value::as_str);
    let family = named("text model", family.unwrap_or_default(), Architecture::of_model_type)?;
    let properties = family.properties();
    if !properties.within.contains(&class) {
        let what =
            format!("`{class}` with a text model `{}` is not supported", properties.model_type);
        return Err(unsupported(what));
    }
    text.insert("architectures".into(), vec![properties.class].into());
    // Only the key of the whole model counts, or the default of its class.
    let tied = match &value["tie_word_embeddings"] {
        Value::Null => properties.tie_within.into(),
        whole => whole.clone(),
    };
    text.insert("tie_word_embeddings".into(), tied);
    // transformers checks its version when it reads tokenizers.
    let whole = [
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "quantization_config",
        "transformers_version",
    ];
    for key in whole {
        if let Some(given) = value.get(key).filter(|given| !given.is_null()) {
            text.entry(key).or_insert_with(|| given.clone());
        }
    }
    Ok(Cow::Owned(Value::Object(text)))
}

/// Reads the decoder that a `config.json` describes. The error names an invalid or unsupported setting.
pub(super) fn read_config(value: &Value) -> Read<DecoderConfig> {
    if !value.is_object() {
        return Err("it is not a JSON object".to_owned().into());
    }
    let architecture = read_architecture(value)?;
    let properties = architecture.properties();
    refuse_unsupported(value, properties)?;
    let size = |key: &str| size_or_usual(value, key, properties);
    let heads = size("num_attention_heads")?;
    let kv_heads = match value["num_key_value_heads"].is_null() && properties.key_value_heads_follow
    {
        true => heads,
        false => size("num_key_value_heads")?,
    };
    let head_dim = match value["head_dim"].is_null() {
        false => Some(size("head_dim")?),
        true => properties.head_dim,
    };
    let num_hidden_layers = size("num_hidden_layers")?;
    let rope = rope::read(value, properties)?;
    let layers = layers::read(value, properties, num_hidden_layers)?;
    let multiplier = |key: &str| match properties.multipliers {
        true => number(value, key, 1.0),
        false => Ok(1.0),
    };
    // Other families do not have these keys.
    let of_linear = |key: &str| match properties.full_attention_interval {
        Some(_) => size(key).map(Some),
        None => Ok(None),
    };
    let embedding_multiplier = match properties.multipliers {
        true => Some(number(value, "embedding_multiplier", 1.0)?),
        false => None,
    };
    Ok(DecoderConfig {
        architecture,
        vocab_size: size("vocab_size")?,
        hidden_size: size("hidden_size")?,
        intermediate_size: size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        hidden_act: Some(read_activation(value, properties)?)
            .filter(|given| *given != properties.activation),
        max_position_embeddings: size("max_position_embeddings")?,
        sliding_window: layers.window,
        layer_types: layers.types,
        linear_conv_kernel_dim: of_linear("linear_conv_kernel_dim")?,
        linear_key_head_dim: of_linear("linear_key_head_dim")?,
        linear_value_head_dim: of_linear("linear_value_head_dim")?,
        linear_num_key_heads: of_linear("linear_num_key_heads")?,
        linear_num_value_heads: of_linear("linear_num_value_heads")?,
        no_rope_layers: layers.no_rope,
        rms_norm_eps: number(value, "rms_norm_eps", properties.rms_norm_eps)?,
        rope_theta: rope.theta,
        rope_local_base_freq: rope.local_theta,
        partial_rotary_factor: rope.partial,
        rope_scaling: rope.scaling,
        embedding_multiplier,
        attention_multiplier: read_score_scale(value, properties)?,
        residual_multiplier: multiplier("residual_multiplier")?,
        logits_scaling: multiplier("logits_scaling")?,
        tie_word_embeddings: flag(value, "tie_word_embeddings", properties.tie_word_embeddings)?,
        // Existing weights do not need it.
        initializer_range: value["initializer_range"]
            .as_f64()
            .filter(|range| range.is_finite() && *range > 0.0)
            .unwrap_or(0.02),
    })
}

/// Returns a size, or the default of the class if it is missing.
fn size_or_usual(value: &Value, key: &str, properties: &ArchitectureProperties) -> Read<usize> {
    match properties.sizes.iter().find(|(name, _)| *name == key) {
        Some((_, usual)) if value[key].is_null() => Ok(*usual),
        _ => size(value, key),
    }
}

/// Returns the dropouts of a configuration, by key and rate, which training does not apply.
pub(super) fn dropouts(value: &Value) -> Read<Vec<(&'static str, f64)>> {
    let keys = ["attention_dropout", "resid_pdrop", "embd_pdrop"];
    let rates = keys.map(|key| number(value, key, 0.0).map(|rate| (key, rate)));
    let rates: Vec<_> = rates.into_iter().collect::<Read<_>>()?;
    Ok(rates.into_iter().filter(|(_, rate)| *rate > 0.0).collect())
}

/// Finds a family by a name.
fn named(
    what: &str,
    name: &str,
    find: impl FnOnce(&str) -> Option<Architecture>,
) -> Read<Architecture> {
    find(name).ok_or_else(|| {
        let known = Architecture::ALL.map(|family| family.properties().class).join(", ");
        Refusal {
            what: format!("{what} `{name}` is not supported; supported classes are {known}"),
            hint: "Choose a model of one of these classes",
        }
    })
}

fn read_architecture(value: &Value) -> Read<Architecture> {
    let class = value["architectures"][0].as_str();
    let model_type = value["model_type"].as_str();
    match (class, model_type) {
        (Some(class), _) => named("architecture", class, Architecture::of_class),
        (None, Some(kind)) => named("model type", kind, Architecture::of_model_type),
        (None, None) => Err("it has neither `architectures` nor `model_type`".to_owned().into()),
    }
}

fn read_activation(value: &Value, properties: &ArchitectureProperties) -> Read<Activation> {
    let key = properties.activation_key;
    match &value[key] {
        Value::Null => Ok(properties.activation),
        // Another name of the same function.
        Value::String(name) if name == "swish" => Ok(Activation::Silu),
        given => serde_json::from_value(given.clone()).map_err(|_| {
            unsupported(format!(
                "activation {given} is not supported, only `silu` and `gelu_pytorch_tanh` are"
            ))
        }),
    }
}

/// Returns the scale of attention scores. `None`: `1 / sqrt(head_dim)`.
fn read_score_scale(value: &Value, properties: &ArchitectureProperties) -> Read<Option<f64>> {
    match properties.score_scale {
        None => Ok(None),
        Some(ScoreScale::AttentionMultiplier) => {
            number(value, "attention_multiplier", 1.0).map(Some)
        }
        Some(ScoreScale::QueryPreAttnScalar(default)) => {
            let scalar = number(value, "query_pre_attn_scalar", default)?;
            if scalar.is_nan() || scalar <= 0.0 {
                return Err(format!("`query_pre_attn_scalar` is {scalar}").into());
            }
            Ok(Some(scalar.powf(-0.5)))
        }
    }
}

/// Refuses settings that change the computation and are not supported.
fn refuse_unsupported(value: &Value, properties: &ArchitectureProperties) -> Read<()> {
    for key in ["attention_bias", "mlp_bias"] {
        if flag(value, key, false)? {
            let what = format!("`{key}` is true; biases there are not supported");
            return Err(unsupported(what));
        }
    }
    for key in properties.switches {
        if flag(value, key, false)? {
            return Err(unsupported(format!("`{key}` is true, which is not supported")));
        }
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if !value[key].is_null() {
            let what = format!("`{key}` is {}; soft-capping is not supported", value[key]);
            return Err(unsupported(what));
        }
    }
    if !value["quantization_config"].is_null() {
        return Err(Refusal {
            what: "`quantization_config` is set; quantized weights are not supported".into(),
            hint: "Use the model's release in bf16, f16, or f32",
        });
    }
    Ok(())
}

fn size(value: &Value, key: &str) -> Read<usize> {
    let number = value[key].as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| match &value[key] {
        Value::Null => format!("`{key}` is missing").into(),
        other => format!("`{key}` is {other}, not a size").into(),
    })
}

fn number(value: &Value, key: &str, default: f64) -> Read<f64> {
    match &value[key] {
        Value::Null => Ok(default),
        other => other.as_f64().ok_or_else(|| format!("`{key}` is {other}, not a number").into()),
    }
}

fn flag(value: &Value, key: &str, default: bool) -> Read<bool> {
    match &value[key] {
        Value::Null => Ok(default),
        other => {
            other.as_bool().ok_or_else(|| format!("`{key}` is {other}, not true or false").into())
        }
    }
}

/// Returns the token IDs under a key: a number or a list.
pub(super) fn token_ids(value: &Value, key: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &value[key] {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}
