//! `config.json` and `generation_config.json`, as Hugging Face's tools read and write them.

use super::architecture::Architecture;
use super::config::DecoderConfig;
use super::rope::RopeScaling;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a configuration asks for in vain, and what to do about it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub what: String,
    pub hint: &'static str,
}

impl From<String> for Refusal {
    /// A value that is none: the family of the model has nothing to do with it.
    fn from(what: String) -> Self {
        Self { what, hint: "Take config.json from the model again, or mend what is named" }
    }
}

/// A setting that means another computation than the one that is done here.
fn unsupported(what: impl Into<String>) -> Refusal {
    let hint = "This build does not compute that; choose a model without it";
    Refusal { what: what.into(), hint }
}

type Read<T> = std::result::Result<T, Refusal>;

/// The decoder that a `config.json` describes. What it asks for and the decoder does not do is
/// refused by name, in words.
pub(super) fn read_config(value: &Value) -> Read<DecoderConfig> {
    if !value.is_object() {
        return Err("it is not a JSON object".to_owned().into());
    }
    let architecture = read_architecture(value)?;
    refuse_unsupported(value)?;
    let heads = size(value, "num_attention_heads")?;
    let or = |key: &str, default: Read<usize>| match value[key].is_null() {
        true => default,
        false => size(value, key),
    };
    let missing = |key: &str| Err(format!("`{key}` is missing").into());
    let properties = architecture.properties();
    let kv_heads = match properties.key_value_heads_follow {
        true => Ok(heads),
        false => missing("num_key_value_heads"),
    };
    let head_dim = match value["head_dim"].is_null() {
        false => Some(size(value, "head_dim")?),
        true => properties.head_dim,
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
        // Of no use to weights that are there.
        initializer_range: value["initializer_range"]
            .as_f64()
            .filter(|range| range.is_finite() && *range > 0.0)
            .unwrap_or(0.02),
    })
}

/// Refuses what changes the computation in training alone; everything else ignores it.
pub(super) fn refuse_in_training(value: &Value) -> Read<()> {
    if number(value, "attention_dropout", 0.0)? > 0.0 {
        return Err(Refusal {
            what: format!(
                "`attention_dropout` is {}; training with it is not supported",
                value["attention_dropout"]
            ),
            hint: "Set it to 0 in config.json to train without it",
        });
    }
    Ok(())
}

fn read_architecture(value: &Value) -> Read<Architecture> {
    let named = |what: &str, name: &str, found: Option<Architecture>| {
        found.ok_or_else(|| {
            let known = Architecture::ALL.map(|family| family.properties().class).join(", ");
            Refusal {
                what: format!("{what} `{name}` is not supported; supported are {known}"),
                hint: "Choose a model of one of these",
            }
        })
    };
    let class = value["architectures"][0].as_str();
    let model_type = value["model_type"].as_str();
    match (class, model_type) {
        (Some(class), _) => named("architecture", class, Architecture::of_class(class)),
        (None, Some(kind)) => named("model type", kind, Architecture::of_model_type(kind)),
        (None, None) => Err("it names neither `architectures` nor `model_type`".to_owned().into()),
    }
}

/// What changes the computation and is not done here.
fn refuse_unsupported(value: &Value) -> Read<()> {
    match &value["hidden_act"] {
        Value::Null => {}
        Value::String(name) if name == "silu" || name == "swish" => {}
        other => {
            return Err(unsupported(format!("activation {other} is not supported, only `silu`")));
        }
    }
    for key in ["attention_bias", "mlp_bias"] {
        if flag(value, key)? {
            let what = format!("`{key}` is true; biases there are not supported");
            return Err(unsupported(what));
        }
    }
    if flag(value, "use_sliding_window")? {
        let what = "`use_sliding_window` is true; sliding windows are not supported";
        return Err(unsupported(what));
    }
    let layer_types = value["layer_types"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(other) = layer_types.iter().find(|kind| *kind != "full_attention") {
        let what = format!("`layer_types` has {other}; only `full_attention` is supported");
        return Err(unsupported(what));
    }
    if number(value, "partial_rotary_factor", 1.0)? != 1.0 {
        return Err(unsupported("`partial_rotary_factor` is not 1; it is not supported"));
    }
    if !value["quantization_config"].is_null() {
        return Err(Refusal {
            what: "`quantization_config` is set; quantized weights are not supported".into(),
            hint: "Take the model's release in bf16, f16 or f32",
        });
    }
    Ok(())
}

/// The two places of RoPE's settings: the older form, beside `rope_theta`, and the newer one, which
/// holds all of them.
const ROPE: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Base and scaling of RoPE. Either form may hold them, and both where they say the same.
fn read_rope(value: &Value) -> Read<(f64, Option<RopeScaling>)> {
    for key in ROPE {
        check_rope(value, key)?;
    }
    let given: Vec<&str> = ROPE.into_iter().filter(|key| !value[*key].is_null()).collect();
    if let [old, new] = given[..]
        && plain_rope(&value[old]) != plain_rope(&value[new])
    {
        // transformers takes one of them then; whoever wrote the other may not know.
        return Err(Refusal {
            what: format!(
                "`{old}` and `{new}` are both set and differ: {} and {}",
                value[old], value[new]
            ),
            hint: "Remove the one that is wrong from config.json",
        });
    }
    let theta = read_theta(value)?;
    let Some(key) = given.last() else { return Ok((theta, None)) };
    let rope = &value[*key];
    match rope_type(rope) {
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
        other => Err(unsupported(format!(
            "RoPE type `{other}` is not supported; supported are `default` and `llama3`"
        ))),
    }
}

/// Refuses settings of RoPE under a key that are of another shape, or of what is not done here.
fn check_rope(value: &Value, key: &str) -> Read<()> {
    let rope = match &value[key] {
        Value::Null => return Ok(()),
        Value::Object(rope) => rope,
        other => return Err(format!("`{key}` is {other}, not an object").into()),
    };
    let kinds: Vec<&str> =
        rope.iter().filter(|(_, part)| part.is_object()).map(|(kind, _)| kind.as_str()).collect();
    if !kinds.is_empty() {
        return Err(unsupported(format!(
            "`{key}` holds RoPE's settings by type of layer ({}); RoPE by type of layer is not \
             supported",
            kinds.join(", ")
        )));
    }
    for name in ["rope_type", "type"] {
        if !value[key][name].is_null() && !value[key][name].is_string() {
            return Err(format!("`{key}.{name}` is {}, not a name", value[key][name]).into());
        }
    }
    if value[key]["rope_type"].is_null() && value[key]["type"].is_null() {
        // Without a name it would be read as if nothing were scaled.
        if let Some(factor) = rope.get("factor").filter(|factor| !factor.is_null()) {
            return Err(format!("`{key}` has a factor ({factor}) and no `rope_type`").into());
        }
    }
    if number(&value[key], "partial_rotary_factor", 1.0)? != 1.0 {
        let what = format!("`{key}.partial_rotary_factor` is not 1; it is not supported");
        return Err(unsupported(what));
    }
    Ok(())
}

/// The name of RoPE's scaling, which has two keys.
fn rope_type(rope: &Value) -> &str {
    rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default")
}

/// What settings of RoPE say but for the base, to compare them: numbers as such, no keys for nothing.
fn plain_rope(rope: &Value) -> (&str, BTreeMap<&str, Value>) {
    let kind = rope_type(rope);
    let said_elsewhere = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let fields = rope.as_object().into_iter().flatten().filter(|(name, field)| {
        kind != "default" && !field.is_null() && !said_elsewhere.contains(&name.as_str())
    });
    let number = |field: &Value| field.as_f64().map_or_else(|| field.clone(), Value::from);
    (kind, fields.map(|(name, field)| (name.as_str(), number(field))).collect())
}

/// The base of RoPE's frequencies, which may stand in three places; they must agree.
fn read_theta(value: &Value) -> Read<f64> {
    let places = [("rope_theta".to_owned(), value)]
        .into_iter()
        .chain(ROPE.map(|key| (format!("{key}.rope_theta"), &value[key])));
    let mut found: Option<(String, f64)> = None;
    for (name, place) in places.filter(|(_, place)| !place["rope_theta"].is_null()) {
        let theta = number(place, "rope_theta", 0.0)?;
        match &found {
            Some((first, other)) if *other != theta => {
                return Err(Refusal {
                    what: format!("`{first}` is {other}, but `{name}` is {theta}"),
                    hint: "Remove the one that is wrong from config.json",
                });
            }
            _ => found = Some((name, theta)),
        }
    }
    // The default of the architectures' classes in transformers.
    Ok(found.map_or(10_000.0, |(_, theta)| theta))
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

fn flag(value: &Value, key: &str) -> Read<bool> {
    match &value[key] {
        Value::Null => Ok(false),
        other => {
            other.as_bool().ok_or_else(|| format!("`{key}` is {other}, not true or false").into())
        }
    }
}

/// A `config.json` for a decoder that did not come from a folder.
pub(super) fn write_config(config: &DecoderConfig) -> Value {
    let scaling = config.rope_scaling.map(|scaling| {
        let mut value = json!(scaling);
        value["rope_type"] = "llama3".into();
        value
    });
    let properties = config.architecture.properties();
    let mut value = json!({
        "architectures": [properties.class],
        "model_type": properties.model_type,
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
    for switch in properties.switches {
        value[*switch] = false.into();
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
