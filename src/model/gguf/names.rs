//! Names of tensors in model folders and in GGUF files.

use crate::model::blocks::NormPlacement;
use crate::model::config::DecoderConfig;
use std::collections::BTreeMap;

/// Names of tensors outside layers.
const OUTER: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Names of parts of layers, except for the norms between them.
const PARTS: [(&str, &str); 20] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.conv1d", "ssm_conv1d"),
    ("linear_attn.dt_bias", "ssm_dt.bias"),
    ("linear_attn.A_log", "ssm_a"),
    ("linear_attn.norm", "ssm_norm"),
    ("linear_attn.out_proj", "ssm_out"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    // The fused matrix has the name that exists in every family.
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Returns the names of norms, which depend on their position in a layer.
fn norms(config: &DecoderConfig) -> &'static [(&'static str, &'static str)] {
    let properties = config.architecture.properties();
    if properties.full_attention_interval.is_some() {
        return &[
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
        ];
    }
    match properties.norm_placement {
        NormPlacement::Before => {
            &[("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")]
        }
        NormPlacement::After => &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        NormPlacement::Both => &[
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
    }
}

/// Returns the name in GGUF of a tensor or module of a model folder. `None` if there is none.
pub(super) fn gguf_name(config: &DecoderConfig, name: &str) -> Option<String> {
    let (module, suffix) = match name.strip_suffix(".weight") {
        Some(module) => (module, ".weight"),
        None => name.strip_suffix(".bias").map_or((name, ""), |module| (module, ".bias")),
    };
    if let Some((_, own)) = OUTER.iter().find(|(theirs, _)| *theirs == module) {
        return Some(format!("{own}{suffix}"));
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, own) = PARTS.iter().chain(norms(config)).find(|(theirs, _)| *theirs == part)?;
    Some(format!("blk.{layer}.{own}{suffix}"))
}

/// Returns the name in GGUF of each tensor of a model, by its name in folders.
pub(super) fn gguf_names(config: &DecoderConfig) -> BTreeMap<String, String> {
    let shapes = config.tensor_shapes();
    let named = |name: String| Some((name.clone(), gguf_name(config, &name)?));
    shapes.into_keys().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;
    use std::collections::BTreeSet;

    #[test]
    fn every_tensor_of_every_family_has_a_name_of_its_own() {
        for architecture in Architecture::ALL {
            let config = DecoderConfig {
                architecture,
                vocab_size: 8,
                tie_word_embeddings: false,
                ..DecoderConfig::default()
            };
            let names = gguf_names(&config);
            assert_eq!(names.len(), config.tensor_shapes().len(), "{architecture:?}");
            let different: BTreeSet<&String> = names.values().collect();
            assert_eq!(different.len(), names.len(), "{architecture:?}");
        }
        assert_eq!(gguf_name(&DecoderConfig::default(), "model.layers.x"), None);
        let module = gguf_name(&DecoderConfig::default(), "model.layers.3.mlp.down_proj");
        assert_eq!(module.as_deref(), Some("blk.3.ffn_down"));
    }
}
