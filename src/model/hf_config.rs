//! `config.json` and `generation_config.json`, as Hugging Face's tools read and write them.

use super::config::{Architecture, DecoderConfig};
use super::rope::RopeScaling;
use serde_json::{Value, json};

type Read<T> = std::result::Result<T, String>;

/// The decoder that a `config.json` describes. What it asks for and the decoder does not do is
/// refused by name, in words.
pub(super) fn read_config(value: &Value) -> Read<DecoderConfig> {
    if !value.is_object() {
        return Err("it is not a JSON object".into());
    }
    let architecture = read_architecture(value)?;
    refuse_unsupported(value)?;
    let heads = size(value, "num_attention_heads")?;
    let or = |key: &str, default: Read<usize>| match value[key].is_null() {
        true => default,
        false => size(value, key),
    };
    // Defaults are those of the architecture's class in transformers.
    let missing = |key: &str| Err(format!("`{key}` is missing"));
    let kv_heads = match architecture {
        Architecture::Llama => Ok(heads),
        _ => missing("num_key_value_heads"),
    };
    let head_dim = match (value["head_dim"].is_null(), architecture) {
        (false, _) => Some(size(value, "head_dim")?),
        (true, Architecture::Qwen3) => Some(128),
        (true, _) => None,
    };
    let (rope_theta, rope_scaling) = read_rope(value)?;
    Ok(DecoderConfig {
        architecture,
        vocab_size: size(value, "vocab_size")?,
        hidden_size: size(value, "hidden_size")?,
        intermediate_size: size(value, "intermediate_size")?,
        num_hidden_layers: size(value, "num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: or("num_key_value_heads", kv_heads)?,
        head_dim,
        max_position_embeddings: or("max_position_embeddings", missing("max_position_embeddings"))?,
        rms_norm_eps: number(value, "rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: flag(value, "tie_word_embeddings")?,
        initializer_range: number(value, "initializer_range", 0.02)?,
    })
}

fn read_architecture(value: &Value) -> Read<Architecture> {
    let all = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];
    let named = |what: &str, name: &str, found: Option<Architecture>| {
        found.ok_or_else(|| {
            let known = all.map(Architecture::class).join(", ");
            format!("{what} `{name}` is not supported; supported are {known}")
        })
    };
    let class = value["architectures"][0].as_str();
    let model_type = value["model_type"].as_str();
    match (class, model_type) {
        (Some(class), _) => {
            named("architecture", class, all.into_iter().find(|a| a.class() == class))
        }
        (None, Some(kind)) => {
            named("model type", kind, all.into_iter().find(|a| a.model_type() == kind))
        }
        (None, None) => Err("it names neither `architectures` nor `model_type`".into()),
    }
}

/// What changes the computation and is not done here.
fn refuse_unsupported(value: &Value) -> Read<()> {
    match &value["hidden_act"] {
        Value::Null => {}
        Value::String(name) if name == "silu" || name == "swish" => {}
        other => return Err(format!("activation {other} is not supported, only `silu`")),
    }
    for key in ["attention_bias", "mlp_bias"] {
        if flag(value, key)? {
            return Err(format!("`{key}` is true; biases there are not supported"));
        }
    }
    if flag(value, "use_sliding_window")? {
        return Err("`use_sliding_window` is true; sliding windows are not supported".into());
    }
    let layer_types = value["layer_types"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(other) = layer_types.iter().find(|kind| *kind != "full_attention") {
        return Err(format!("`layer_types` has {other}; only `full_attention` is supported"));
    }
    if number(value, "attention_dropout", 0.0)? > 0.0 {
        return Err("`attention_dropout` is above 0; it is not supported (set it to 0)".into());
    }
    if number(value, "partial_rotary_factor", 1.0)? != 1.0 {
        return Err("`partial_rotary_factor` is not 1; it is not supported".into());
    }
    if !value["quantization_config"].is_null() {
        return Err("`quantization_config` is set; quantized weights are not supported".into());
    }
    Ok(())
}

/// Base and scaling of RoPE, in the older form (`rope_theta` and `rope_scaling`) or in the newer
/// one (all of it in `rope_parameters`).
fn read_rope(value: &Value) -> Read<(f64, Option<RopeScaling>)> {
    let [old, new] = ["rope_scaling", "rope_parameters"];
    if !value[old].is_null() && !value[new].is_null() && value[old] != value[new] {
        // transformers takes the older form then; whoever wrote the newer one may not know.
        return Err(format!("`{old}` and `{new}` are both set and differ; remove one of them"));
    }
    let key = if value[new].is_null() { old } else { new };
    let rope = &value[key];
    let theta = match rope["rope_theta"].is_null() {
        true => number(value, "rope_theta", 10_000.0)?,
        false => number(rope, "rope_theta", 10_000.0)?,
    };
    if rope.is_null() {
        return Ok((theta, None));
    }
    if !rope.is_object() {
        return Err(format!("`{key}` is {rope}, not an object"));
    }
    if number(rope, "partial_rotary_factor", 1.0)? != 1.0 {
        return Err(format!("`{key}.partial_rotary_factor` is not 1; it is not supported"));
    }
    let kind = rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default");
    match kind {
        "default" => Ok((theta, None)),
        "llama3" => {
            let field = |name: &str| {
                rope[name].as_f64().ok_or_else(|| format!("`{key}.{name}` is {}", rope[name]))
            };
            let scaling = RopeScaling {
                factor: field("factor")?,
                low_freq_factor: field("low_freq_factor")?,
                high_freq_factor: field("high_freq_factor")?,
                original_max_position_embeddings: size(rope, "original_max_position_embeddings")?,
            };
            Ok((theta, Some(scaling)))
        }
        other => Err(format!(
            "RoPE type `{other}` is not supported; supported are `default` and `llama3`"
        )),
    }
}

fn size(value: &Value, key: &str) -> Read<usize> {
    let number = value[key].as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| match &value[key] {
        Value::Null => format!("`{key}` is missing"),
        other => format!("`{key}` is {other}, not a size"),
    })
}

fn number(value: &Value, key: &str, default: f64) -> Read<f64> {
    match &value[key] {
        Value::Null => Ok(default),
        other => other.as_f64().ok_or_else(|| format!("`{key}` is {other}, not a number")),
    }
}

fn flag(value: &Value, key: &str) -> Read<bool> {
    match &value[key] {
        Value::Null => Ok(false),
        other => other.as_bool().ok_or_else(|| format!("`{key}` is {other}, not true or false")),
    }
}

/// A `config.json` for a decoder that did not come from a folder.
pub(super) fn write_config(config: &DecoderConfig) -> Value {
    let scaling = config.rope_scaling.map(|scaling| {
        let mut value = json!(scaling);
        value["rope_type"] = "llama3".into();
        value
    });
    let mut value = json!({
        "architectures": [config.architecture.class()],
        "model_type": config.architecture.model_type(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim(),
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": true,
    });
    match config.architecture {
        Architecture::Llama => {
            value["attention_bias"] = false.into();
            value["mlp_bias"] = false.into();
        }
        Architecture::Qwen2 => value["use_sliding_window"] = false.into(),
        Architecture::Qwen3 => {
            value["attention_bias"] = false.into();
            value["use_sliding_window"] = false.into();
        }
    }
    value
}

/// The token numbers under a key: a number, or a list of them.
pub(super) fn token_ids(value: &Value, key: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &value[key] {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}
