//! RoPE's settings, in their older and their newer form.

use super::super::architecture::{ArchitectureProperties, WindowRule};
use super::super::rope::{RopeScaling, RopeType};
use super::{Read, Refusal, flag, number, size, size_or_usual, unsupported};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a configuration says of RoPE.
pub(super) struct Rope {
    pub theta: f64,
    /// The base in layers with a sliding window, where these have one of their own.
    pub local_theta: Option<f64>,
    /// Share of a head's values that are rotated.
    pub partial: f64,
    pub scaling: Option<RopeScaling>,
}

/// The two places of RoPE's settings: the older form, beside `rope_theta`, and the newer one, which
/// holds all of them.
const ROPE: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// The types of layers that may have settings of their own.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Base and scaling of RoPE. Either form may hold them, and both where they say the same.
pub(super) fn read(value: &Value, properties: &ArchitectureProperties) -> Read<Rope> {
    let (mut value, local) = without_layer_types(value, properties)?;
    if let Some(usual) = properties.rope_parameters
        && ROPE.iter().all(|key| value[*key].is_null())
    {
        value["rope_parameters"] = serde_json::from_str(usual)
            .map_err(|e| format!("`rope_parameters` of the class are no JSON: {e}"))?;
    }
    let value = &value;
    for key in ROPE {
        check(value, key)?;
    }
    let given: Vec<&str> = ROPE.into_iter().filter(|key| !value[*key].is_null()).collect();
    if let [old, new] = given[..]
        && plain(&value[old]) != plain(&value[new])
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
        return Err(unsupported("`partial_rotary_factor` is not 1; it is not supported"));
    }
    let scaling = match given.last() {
        Some(key) => read_scaling(value, key, properties)?,
        None => None,
    };
    Ok(Rope { theta, local_theta, partial, scaling })
}

/// The configuration with settings for all layers in place of settings by type of layer, and the base
/// in layers with a sliding window.
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
                "`{key}` holds RoPE's settings by type of layer ({}); RoPE by type of layer is not \
                 supported",
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
        // Earlier names of it, in the family that had it first.
        "su" | "yarn" if properties.fused_projections => RopeType::LongRope,
        "yarn" => RopeType::Yarn,
        "longrope" => RopeType::LongRope,
        other => {
            return Err(unsupported(format!(
                "RoPE type `{other}` is not supported; supported are `default`, `linear`, `llama3`, \
                 `longrope` and `yarn`"
            )));
        }
    };
    let field = |name: &str| -> Read<f64> {
        rope[name].as_f64().ok_or_else(|| format!("`{key}.{name}` is {}", rope[name]).into())
    };
    let optional = |name: &str| -> Read<Option<f64>> {
        (!rope[name].is_null()).then(|| field(name)).transpose()
    };
    // Where transformers looks for it: beside RoPE's settings first, then among them.
    let context = "original_max_position_embeddings";
    let of_class = properties.sizes.iter().any(|(name, _)| *name == context);
    let original = match (value[context].is_null(), rope[context].is_null()) {
        // What its class says of it counts more than RoPE's settings, too.
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
            // 0 is none of its own, as in transformers.
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
    list.ok_or_else(|| format!("`{key}.{name}` is no list of numbers").into())
}

/// Refuses settings of RoPE under a key that are of another shape, or of what is not done here.
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
        // Without a name it would be read as if nothing were scaled.
        if let Some(factor) = rope.get("factor").filter(|factor| !factor.is_null()) {
            return Err(format!("`{key}` has a factor ({factor}) and no `rope_type`").into());
        }
    }
    Ok(())
}

/// The name of RoPE's scaling, which has two keys.
fn rope_type(rope: &Value) -> &str {
    rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default")
}

/// What settings of RoPE say but for the base, to compare them: numbers as such, no keys for nothing.
fn plain(rope: &Value) -> (&str, BTreeMap<&str, Value>) {
    let kind = rope_type(rope);
    let said_elsewhere = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    let fields = rope.as_object().into_iter().flatten().filter(|(name, field)| {
        kind != "default" && !field.is_null() && !said_elsewhere.contains(&name.as_str())
    });
    let number = |field: &Value| field.as_f64().map_or_else(|| field.clone(), Value::from);
    (kind, fields.map(|(name, field)| (name.as_str(), number(field))).collect())
}

/// A number of RoPE's that may stand in three places; they must agree.
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
                    hint: "Remove the one that is wrong from config.json",
                });
            }
            _ => found = Some((name, given)),
        }
    }
    Ok(found.map_or(default, |(_, given)| given))
}
