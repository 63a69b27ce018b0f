//! RoPE settings, in their older and newer forms.

use super::super::architecture::{ArchitectureProperties, WindowRule};
use super::super::rope::{RopeScaling, RopeType};
use super::{Read, Refusal, flag, number, size, size_or_usual, unsupported};
use serde_json::Value;
use std::collections::BTreeMap;

/// RoPE settings of a configuration.
pub(super) struct Rope {
    pub theta: f64,
    /// Base in layers with a sliding window, if they have their own.
    pub local_theta: Option<f64>,
    /// Share of each head's values that is rotated.
    pub partial: f64,
    pub scaling: Option<RopeScaling>,
}

/// The keys of the older form, which has `rope_theta` next to it, and of the newer form, which includes all
/// settings.
const ROPE: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Layer types that may have separate settings.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Reads base and scaling of RoPE from either form, or from both if they agree.
pub(super) fn read(value: &Value, properties: &ArchitectureProperties) -> Read<Rope> {
    let (mut value, local) = without_layer_types(value, properties)?;
    if let Some(usual) = properties.rope_parameters
        && ROPE.iter().all(|key| value[*key].is_null())
    {
        value["rope_parameters"] = serde_json::from_str(usual)
            .map_err(|e| format!("the default `rope_parameters` of the class are not JSON: {e}"))?;
    }
    let value = &value;
    for key in ROPE {
        check(value, key)?;
    }
    let given: Vec<&str> = ROPE.into_iter().filter(|key| !value[*key].is_null()).collect();
    if let [old, new] = given[..]
        && plain(&value[old]) != plain(&value[new])
    {
        // transformers silently picks one of them.
        return Err(Refusal {
            what: format!(
                "`{old}` and `{new}` are both set and differ: {} and {}",
                value[old], value[new]
            ),
            hint: "Remove the wrong one from config.json",
        });
    }
    let theta = agreed(value, "rope_theta", properties.rope_theta)?;
    let local_theta = match properties.rope_local_base_freq {
        None => local,
        Some(default) => Some(match local {
            Some(local) => local,
            None => number(value, "rope_local_base_freq", default)?,
        }),
    };
    let usual = properties.partial_rotary;
    let partial = agreed(value, "partial_rotary_factor", usual.unwrap_or(1.0))?;
    if partial != 1.0 && usual.is_none() {
        return Err(unsupported(
            "`partial_rotary_factor` is not 1, which this family does not support",
        ));
    }
    let scaling = match given.last() {
        Some(key) => read_scaling(value, key, properties)?,
        None => None,
    };
    Ok(Rope { theta, local_theta, partial, scaling })
}

/// Replaces settings per layer type by settings for all layers, and returns the base in layers with a sliding
/// window.
fn without_layer_types(
    value: &Value,
    properties: &ArchitectureProperties,
) -> Read<(Value, Option<f64>)> {
    let mut value = value.clone();
    let mut local = None;
    for key in ROPE {
        let Value::Object(rope) = &value[key] else { continue };
        let kinds: Vec<&str> = rope
            .iter()
            .filter(|(_, part)| part.is_object())
            .map(|(kind, _)| kind.as_str())
            .collect();
        if kinds.is_empty() {
            continue;
        }
        let known = kinds.iter().all(|kind| [FULL, SLIDING].contains(kind));
        if !known || matches!(properties.window, WindowRule::Never | WindowRule::All) {
            return Err(unsupported(format!(
                "`{key}` has separate RoPE settings per layer type ({}), which this family does not \
                 support",
                kinds.join(", ")
            )));
        }
        let sliding = rope.get(SLIDING).unwrap_or(&Value::Null);
        if rope_type(sliding) != "default" {
            return Err(unsupported(format!(
                "`{key}.{SLIDING}` scales RoPE ({}), which is not supported",
                rope_type(sliding)
            )));
        }
        if !sliding["rope_theta"].is_null() {
            local = Some(number(sliding, "rope_theta", 0.0)?);
        }
        let full = rope.get(FULL).cloned().unwrap_or(Value::Null);
        value[key] = full;
    }
    Ok((value, local))
}

fn read_scaling(
    value: &Value,
    key: &str,
    properties: &ArchitectureProperties,
) -> Read<Option<RopeScaling>> {
    let rope = &value[key];
    let rope_type = match rope_type(rope) {
        "default" => return Ok(None),
        "llama3" => RopeType::Llama3,
        "linear" => RopeType::Linear,
        // Earlier names in Phi-3, the first family with LongRoPE.
        "su" | "yarn" if properties.fused_projections => RopeType::LongRope,
        "yarn" => RopeType::Yarn,
        "longrope" => RopeType::LongRope,
        other => {
            return Err(unsupported(format!(
                "RoPE type `{other}` is not supported; supported types are `default`, `linear`, `llama3`, \
                 `longrope`, and `yarn`"
            )));
        }
    };
    let field = |name: &str| -> Read<f64> {
        rope[name].as_f64().ok_or_else(|| format!("`{key}.{name}` is {}", rope[name]).into())
    };
    let optional = |name: &str| -> Read<Option<f64>> {
        (!rope[name].is_null()).then(|| field(name)).transpose()
    };
    // As in transformers: first next to the RoPE settings, then among them.
    let context = "original_max_position_embeddings";
    let of_class = properties.sizes.iter().any(|(name, _)| *name == context);
    let original = match (value[context].is_null(), rope[context].is_null()) {
        // The default of the class also takes precedence over the RoPE settings.
        _ if of_class => size_or_usual(value, context, properties),
        (false, _) => size(value, context),
        (true, false) => size(rope, context),
        (true, true) => size_or_usual(value, "max_position_embeddings", properties),
    }?;
    let usual = RopeScaling::default();
    let mut scaling = RopeScaling {
        rope_type,
        original_max_position_embeddings: original,
        attention_factor: optional("attention_factor")?,
        llama_4_scaling_beta: optional("llama_4_scaling_beta")?,
        ..usual
    };
    let contexts = || -> Read<f64> {
        let whole = size_or_usual(value, "max_position_embeddings", properties)?;
        Ok(whole as f64 / original.max(1) as f64)
    };
    match rope_type {
        RopeType::Linear => scaling.factor = field("factor")?,
        RopeType::Llama3 => {
            scaling.factor = field("factor")?;
            scaling.low_freq_factor = field("low_freq_factor")?;
            scaling.high_freq_factor = field("high_freq_factor")?;
        }
        RopeType::Yarn => {
            scaling.factor = optional("factor")?.map_or_else(contexts, Ok)?;
            // 0 means the default, as in transformers.
            let beta = |name| optional(name).map(|beta| beta.filter(|beta| *beta != 0.0));
            scaling.beta_fast = beta("beta_fast")?.unwrap_or(scaling.beta_fast);
            scaling.beta_slow = beta("beta_slow")?.unwrap_or(scaling.beta_slow);
            scaling.truncate = flag(rope, "truncate", true)?;
            scaling.mscale = optional("mscale")?;
            scaling.mscale_all_dim = optional("mscale_all_dim")?;
        }
        RopeType::LongRope => {
            scaling.factor = optional("factor")?.map_or_else(contexts, Ok)?.max(1.0);
            scaling.short_factor = numbers(rope, key, "short_factor")?;
            scaling.long_factor = numbers(rope, key, "long_factor")?;
        }
    }
    Ok(Some(scaling))
}

fn numbers(rope: &Value, key: &str, name: &str) -> Read<Vec<f64>> {
    let list = rope[name].as_array();
    let list = list.and_then(|list| list.iter().map(Value::as_f64).collect());
    list.ok_or_else(|| format!("`{key}.{name}` is not a list of numbers").into())
}

/// Refuses malformed RoPE settings under a key.
fn check(value: &Value, key: &str) -> Read<()> {
    let rope = match &value[key] {
        Value::Null => return Ok(()),
        Value::Object(rope) => rope,
        other => return Err(format!("`{key}` is {other}, not an object").into()),
    };
    for name in ["rope_type", "type"] {
        if !value[key][name].is_null() && !value[key][name].is_string() {
            return Err(format!("`{key}.{name}` is {}, not a name", value[key][name]).into());
        }
    }
    if value[key]["rope_type"].is_null() && value[key]["type"].is_null() {
        // Without a type, the factor would be ignored.
        if let Some(factor) = rope.get("factor").filter(|factor| !factor.is_null()) {
            return Err(format!("`{key}` has a factor ({factor}) but no `rope_type`").into());
        }
    }
    Ok(())
}

/// Returns the name of the RoPE scaling, which may have either of two keys.
fn rope_type(rope: &Value) -> &str {
    rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default")
}

/// Returns RoPE settings in a comparable form: without the base and null values, and with all numbers as
/// floats.
fn plain(rope: &Value) -> (&str, BTreeMap<&str, Value>) {
    let kind = rope_type(rope);
    let said_elsewhere = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let fields = rope.as_object().into_iter().flatten().filter(|(name, field)| {
        kind != "default" && !field.is_null() && !said_elsewhere.contains(&name.as_str())
    });
    let number = |field: &Value| field.as_f64().map_or_else(|| field.clone(), Value::from);
    (kind, fields.map(|(name, field)| (name.as_str(), number(field))).collect())
}

/// Returns a RoPE setting that may be in three places, which must agree.
fn agreed(value: &Value, key: &str, default: f64) -> Read<f64> {
    let places = [(key.to_owned(), value)]
        .into_iter()
        .chain(ROPE.map(|of| (format!("{of}.{key}"), &value[of])));
    let mut found: Option<(String, f64)> = None;
    for (name, place) in places.filter(|(_, place)| !place[key].is_null()) {
        let given = number(place, key, 0.0)?;
        match &found {
            Some((first, other)) if *other != given => {
                return Err(Refusal {
                    what: format!("`{first}` is {other}, but `{name}` is {given}"),
                    hint: "Remove the wrong one from config.json",
                });
            }
            _ => found = Some((name, given)),
        }
    }
    Ok(found.map_or(default, |(_, given)| given))
}
