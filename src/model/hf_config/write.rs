//! Writes `config.json` for a decoder that does not come from a folder.

use super::super::architecture::{ScoreScale, WindowRule};
use super::super::blocks::GatedDeltaNetConfig;
use super::super::config::DecoderConfig;
use super::super::rope::{RopeScaling, RopeType};
use serde_json::{Value, json};

/// Returns the `config.json` of a decoder that does not come from a folder.
pub(in crate::model) fn write_config(config: &DecoderConfig) -> Value {
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
        "rope_scaling": config.rope_scaling.as_ref().map(write_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "use_cache": true,
    });
    value[properties.activation_key] = json!(config.activation());
    for switch in properties.switches {
        value[*switch] = false.into();
    }
    let has_window = config.sliding_window.is_some();
    match properties.window {
        WindowRule::Never => {}
        WindowRule::All => value["sliding_window"] = json!(config.sliding_window),
        rule => {
            value["layer_types"] = json!(config.all_layer_types());
            if rule != WindowRule::AllButEachSixth {
                value["use_sliding_window"] = has_window.into();
            }
            if has_window {
                value["sliding_window"] = json!(config.sliding_window);
            }
        }
    }
    if properties.full_attention_interval.is_some() {
        value["layer_types"] = json!(config.all_layer_types());
        let sizes = config.any_linear_attention();
        for (key, size) in sizes.iter().flat_map(GatedDeltaNetConfig::config_json) {
            value[key] = size.into();
        }
    }
    if properties.no_rope_interval.is_some() {
        let rotated = |layer| u8::from(config.is_rotated(layer));
        let rotated: Vec<u8> = (0..config.num_hidden_layers).map(rotated).collect();
        value["no_rope_layers"] = json!(rotated);
    }
    if properties.rope_local_base_freq.is_some() {
        value["rope_local_base_freq"] = json!(config.rope_local_base());
    }
    if properties.partial_rotary.is_some() {
        value["partial_rotary_factor"] = json!(config.partial_rotary_factor);
    }
    if properties.fused_projections
        && let Some(scaling) = &config.rope_scaling
    {
        let context = scaling.original_max_position_embeddings;
        value["original_max_position_embeddings"] = json!(context);
    }
    if properties.multipliers {
        value["embedding_multiplier"] = json!(config.embedding_scale());
        value["residual_multiplier"] = json!(config.residual_multiplier);
        value["logits_scaling"] = json!(config.logits_scaling);
    }
    let scale = config.score_scale();
    match properties.score_scale {
        None => {}
        Some(ScoreScale::AttentionMultiplier) => value["attention_multiplier"] = json!(scale),
        Some(ScoreScale::QueryPreAttnScalar(_)) => {
            // The family's class expects an integer.
            value["query_pre_attn_scalar"] = json!(scale.powi(-2).round() as u64);
        }
    }
    value
}

/// Returns the fields that apply to the type of scaling.
fn write_scaling(scaling: &RopeScaling) -> Value {
    let all = json!(scaling);
    let fields: &[&str] = match scaling.rope_type {
        RopeType::Llama3 => &["low_freq_factor", "high_freq_factor"],
        RopeType::Linear => &[],
        RopeType::Yarn => {
            &["beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"]
        }
        RopeType::LongRope => &["short_factor", "long_factor", "attention_factor"],
    };
    let always = ["rope_type", "factor", "llama_4_scaling_beta"];
    let context = ["original_max_position_embeddings"];
    let context = if scaling.rope_type == RopeType::Linear { &[][..] } else { &context[..] };
    let names = always.iter().chain(context).chain(fields);
    let given = names.map(|name| (*name, &all[*name])).filter(|(_, field)| !field.is_null());
    given
        .map(|(name, field)| (name.to_owned(), field.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
