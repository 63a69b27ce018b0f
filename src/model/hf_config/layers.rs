//! Per-layer settings: sliding windows, linear attention, and layers without RoPE.

use super::super::architecture::{ArchitectureProperties, WindowRule};
use super::super::config::{LayerType, MOST_LAYERS};
use super::{Read, flag, size, unsupported};
use serde_json::{Value, json};

/// Per-layer settings of a configuration.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// Size of the sliding window.
    pub window: Option<usize>,
    /// Attention of each layer. Empty means the family's pattern.
    pub types: Vec<LayerType>,
    /// 0 for layers without RoPE, 1 for the others.
    pub no_rope: Vec<u8>,
}

pub(super) fn read(
    value: &Value,
    properties: &ArchitectureProperties,
    layers: usize,
) -> Read<Layers> {
    if layers > MOST_LAYERS {
        // Validation refuses it; do not build lists of this size.
        return Ok(Layers::default());
    }
    let no_rope = read_no_rope(value, properties, layers)?;
    // Null means no window; a missing key means the default of the class.
    let given_or = |default: Option<usize>| match value.get("sliding_window") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => size(value, "sliding_window").map(Some),
    };
    let switched = || flag(value, "use_sliding_window", false);
    let window = match properties.window {
        WindowRule::Never => {
            if switched()? {
                let what = "`use_sliding_window` is true; this family has no sliding windows";
                return Err(unsupported(what));
            }
            None
        }
        WindowRule::FromLayer | WindowRule::WithoutRope if !switched()? => None,
        _ => given_or(properties.sliding_window)?,
    };
    let given = read_types(value, properties, layers)?;
    if let Some(interval) = properties.full_attention_interval {
        let types = match given {
            Some(types) => types,
            None => by_interval(value, interval, layers)?,
        };
        return Ok(Layers { types, ..Layers::default() });
    }
    let has = |kind| given.as_ref().is_some_and(|types| types.contains(&kind));
    if window.is_none() && has(LayerType::SlidingAttention) {
        let what =
            "`layer_types` has \"sliding_attention\", but there is no window (`sliding_window`)";
        return Err(unsupported(what));
    }
    if window.is_some() && properties.window == WindowRule::All && has(LayerType::FullAttention) {
        let what = "`layer_types` has \"full_attention\" together with `sliding_window`, which applies to all \
                    layers of this family";
        return Err(unsupported(what));
    }
    let types = match (window, properties.window) {
        // The family's rule is sufficient.
        (None, _) | (_, WindowRule::All) => vec![],
        _ => given.unwrap_or_else(|| counted_types(value, properties, layers)),
    };
    Ok(Layers { window, types, no_rope })
}

/// Reads `layer_types`.
fn read_types(
    value: &Value,
    properties: &ArchitectureProperties,
    layers: usize,
) -> Read<Option<Vec<LayerType>>> {
    let given = match &value["layer_types"] {
        Value::Null => return Ok(None),
        Value::Array(given) => given,
        other => return Err(format!("`layer_types` is {other}, not a list").into()),
    };
    let of_family = match properties.full_attention_interval {
        Some(_) => [LayerType::FullAttention, LayerType::LinearAttention],
        None => [LayerType::FullAttention, LayerType::SlidingAttention],
    };
    let types = given.iter().map(|kind| {
        let known = serde_json::from_value(kind.clone()).ok();
        known.filter(|known| of_family.contains(known)).ok_or_else(|| {
            let of_family = of_family.map(|kind| json!(kind).to_string()).join(" and ");
            unsupported(format!("`layer_types` has {kind}; only {of_family} are supported here"))
        })
    });
    let types = types.collect::<Read<Vec<_>>>()?;
    match types.len() == layers {
        true => Ok(Some(types)),
        false => Err(format!("`layer_types` lists {} of {layers} layers", types.len()).into()),
    }
}

/// Returns the types without `layer_types`, if every n-th layer has full attention.
fn by_interval(value: &Value, usual: usize, layers: usize) -> Read<Vec<LayerType>> {
    let interval = match value["full_attention_interval"].is_null() {
        true => usual,
        false => size(value, "full_attention_interval")?,
    };
    if interval == 0 {
        return Err("`full_attention_interval` is 0".to_owned().into());
    }
    let kind = |layer: usize| match (layer + 1).is_multiple_of(interval) {
        true => LayerType::FullAttention,
        false => LayerType::LinearAttention,
    };
    Ok((0..layers).map(kind).collect())
}

/// Returns the types without `layer_types`, if other keys determine them. Empty if the family's rule does.
fn counted_types(
    value: &Value,
    properties: &ArchitectureProperties,
    layers: usize,
) -> Vec<LayerType> {
    let number = |key: &str, default: usize| {
        value[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    };
    let slides = |layer: usize| match properties.window {
        WindowRule::FromLayer => layer >= number("max_window_layers", 28),
        _ => {
            let older = number("_sliding_window_pattern", 6);
            let pattern = number("sliding_window_pattern", older).max(1);
            !(layer + 1).is_multiple_of(pattern)
        }
    };
    match properties.window {
        WindowRule::FromLayer | WindowRule::AllButEachSixth => {
            (0..layers).map(|layer| LayerType::of(slides(layer))).collect()
        }
        WindowRule::Never | WindowRule::All | WindowRule::WithoutRope => vec![],
    }
}

fn read_no_rope(
    value: &Value,
    properties: &ArchitectureProperties,
    layers: usize,
) -> Read<Vec<u8>> {
    let Some(usual) = properties.no_rope_interval else { return Ok(vec![]) };
    match &value["no_rope_layers"] {
        Value::Array(given) => {
            let is_rotated = |part: &Value| match part.as_u64() {
                Some(flag @ (0 | 1)) => Ok(flag as u8),
                _ => Err(format!("`no_rope_layers` has {part}, not 0 or 1").into()),
            };
            let list: Vec<u8> = given.iter().map(is_rotated).collect::<Read<_>>()?;
            match list.len() >= layers {
                true => Ok(list[..layers].to_vec()),
                false => {
                    Err(format!("`no_rope_layers` lists {} of {layers} layers", list.len()).into())
                }
            }
        }
        Value::Null => {
            let interval = match value["no_rope_layer_interval"].is_null() {
                true => usual,
                false => size(value, "no_rope_layer_interval")?,
            };
            if interval == 0 {
                return Err("`no_rope_layer_interval` is 0".to_owned().into());
            }
            let rotated = |layer: usize| u8::from(!(layer + 1).is_multiple_of(interval));
            Ok((0..layers).map(rotated).collect())
        }
        other => Err(format!("`no_rope_layers` is {other}, not a list").into()),
    }
}
