//! The supported decoder families, as a table of properties.
//!
//! To add a family, add a variant of [`Architecture`], its row in [`Architecture::properties`], and a field
//! of [`ArchitectureProperties`] for anything that no other family has. All other code reads properties and
//! never matches on the family. Differences between models of one family belong in
//! [`DecoderConfig`](super::DecoderConfig).

use super::blocks::{NormPlacement, QkNorm};
use crate::ops::Activation;
use serde::{Deserialize, Serialize};

/// A decoder family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama and SmolLM2.
    #[default]
    Llama,
    /// Qwen2 and Qwen2.5: biases on the query, key, and value projections.
    Qwen2,
    /// Qwen3: RMSNorm on each query and key head.
    Qwen3,
    /// Mistral: a sliding window in all layers, if `model.sliding_window` is set.
    Mistral,
    /// SmolLM3: no RoPE in every fourth layer.
    Smollm3,
    /// Granite 3, dense: multipliers for embeddings, attention scores, residuals, and logits.
    Granite,
    /// OLMo 2: norms after attention and feed-forward, and over the full width of queries and keys.
    Olmo2,
    /// Phi-3, Phi-3.5, and Phi-4-mini: fused projections and LongRoPE.
    Phi3,
    /// The text part of Gemma 3: four norms per block, and a sliding window in five of six layers.
    Gemma3Text,
    /// The text part of Ministral 3: YaRN, and queries scaled by position.
    Ministral3,
    /// The text part of Qwen3.5: linear attention (the gated delta rule) in three of four layers, and gated
    /// attention in the others.
    #[serde(rename = "qwen3_5_text")]
    Qwen35Text,
}

/// Which layers have a sliding window, if `config.json` sets its size but no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// No layer: the family has no window.
    Never,
    /// All layers.
    All,
    /// Layers from `max_window_layers` on, if `use_sliding_window` is set.
    FromLayer,
    /// Layers without RoPE, if `use_sliding_window` is set.
    WithoutRope,
    /// All but every sixth layer, or as `sliding_window_pattern` specifies.
    AllButEachSixth,
}

/// What a family computes, and how its `config.json` expresses it. Defaults apply to keys that `config.json`
/// omits and are those of the family's class in transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArchitectureProperties {
    /// Class name in `config.json`.
    pub class: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Multimodal classes that have this decoder as their text part, under `text_config`.
    pub within: &'static [&'static str],
    /// Whether the query, key, and value projections have biases.
    pub attention_bias: bool,
    /// Normalization of queries and keys before RoPE.
    pub qk_norm: QkNorm,
    /// Position of the norms in a block.
    pub norm_placement: NormPlacement,
    /// Whether norms scale by `1 + weight`.
    pub norm_weight_plus_one: bool,
    /// Whether queries, keys, and values have one projection, and gate and up another.
    pub fused_projections: bool,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Key of the activation in `config.json`.
    pub activation_key: &'static str,
    /// Whether embeddings are multiplied by the square root of their width.
    pub scales_embedding: bool,
    /// How `config.json` gives the scale of attention scores. `None`: the scale is `1 / sqrt(head_dim)`.
    pub score_scale: Option<ScoreScale>,
    /// Whether `config.json` has Granite's multipliers of embeddings, residuals, and logits.
    pub multipliers: bool,
    /// Default share of each head's values that is rotated. `None`: all values, always.
    pub partial_rotary: Option<f64>,
    /// Whether the query projection also outputs gates of the attention's output.
    pub output_gate: bool,
    /// Default interval of layers with full attention; the others have linear attention. `None`: no linear
    /// attention.
    pub full_attention_interval: Option<usize>,
    /// Interval of layers without RoPE. `None`: all layers have RoPE.
    pub no_rope_interval: Option<usize>,
    /// Layers with a sliding window.
    pub window: WindowRule,
    /// Default size of the window in tokens. `None`: no window.
    pub sliding_window: Option<usize>,
    /// Sizes that `config.json` may omit, and their defaults.
    pub sizes: &'static [(&'static str, usize)],
    /// Whether `num_key_value_heads` defaults to `num_attention_heads`. Otherwise it is required, unless
    /// `sizes` has a default.
    pub key_value_heads_follow: bool,
    /// Default width of a head. `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Default of `tie_word_embeddings`, by which the head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// The same default in a class of [`ArchitectureProperties::within`].
    pub tie_within: bool,
    /// Default epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Default base of RoPE's frequencies.
    pub rope_theta: f64,
    /// RoPE settings, as JSON, if `config.json` has none at all.
    pub rope_parameters: Option<&'static str>,
    /// Default RoPE base of layers with a sliding window, if they have their own.
    pub rope_local_base_freq: Option<f64>,
    /// Switches in `config.json` of features that this crate does not support; written as off.
    pub switches: &'static [&'static str],
    /// Name prefixes of tensors outside the decoder: the vision part and multi-token prediction.
    pub other_parts: &'static [&'static str],
}

/// How `config.json` gives the scale of attention scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreScale {
    /// `attention_multiplier` is the scale.
    AttentionMultiplier,
    /// The scale is `1 / sqrt(query_pre_attn_scalar)`. The value is the key's default.
    QueryPreAttnScalar(f64),
}

const LLAMA: ArchitectureProperties = ArchitectureProperties {
    class: "LlamaForCausalLM",
    model_type: "llama",
    within: &[],
    attention_bias: false,
    qk_norm: QkNorm::None,
    norm_placement: NormPlacement::Before,
    norm_weight_plus_one: false,
    fused_projections: false,
    activation: Activation::Silu,
    activation_key: "hidden_act",
    scales_embedding: false,
    score_scale: None,
    multipliers: false,
    partial_rotary: None,
    output_gate: false,
    full_attention_interval: None,
    no_rope_interval: None,
    window: WindowRule::Never,
    sliding_window: None,
    sizes: &[],
    key_value_heads_follow: true,
    head_dim: None,
    tie_word_embeddings: false,
    tie_within: true,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    rope_parameters: None,
    rope_local_base_freq: None,
    switches: &["attention_bias", "mlp_bias"],
    other_parts: &[],
};

const QWEN2: ArchitectureProperties = ArchitectureProperties {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    attention_bias: true,
    window: WindowRule::FromLayer,
    sliding_window: Some(4096),
    key_value_heads_follow: false,
    switches: &[],
    ..LLAMA
};

const QWEN3: ArchitectureProperties = ArchitectureProperties {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qk_norm: QkNorm::Heads,
    window: WindowRule::FromLayer,
    sliding_window: Some(4096),
    key_value_heads_follow: false,
    head_dim: Some(128),
    switches: &["attention_bias"],
    ..LLAMA
};

const MISTRAL: ArchitectureProperties = ArchitectureProperties {
    class: "MistralForCausalLM",
    model_type: "mistral",
    within: &["Mistral3ForConditionalGeneration"],
    window: WindowRule::All,
    sliding_window: Some(4096),
    sizes: &[
        ("vocab_size", 32_000),
        ("hidden_size", 4096),
        ("intermediate_size", 14_336),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 8),
        ("max_position_embeddings", 131_072),
    ],
    key_value_heads_follow: false,
    switches: &[],
    ..LLAMA
};

const SMOLLM3: ArchitectureProperties = ArchitectureProperties {
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    no_rope_interval: Some(4),
    window: WindowRule::WithoutRope,
    sizes: &[
        ("vocab_size", 128_256),
        ("hidden_size", 2048),
        ("intermediate_size", 11_008),
        ("num_hidden_layers", 36),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 32_768),
    ],
    key_value_heads_follow: false,
    tie_word_embeddings: true,
    rope_theta: 2_000_000.0,
    ..LLAMA
};

const GRANITE: ArchitectureProperties = ArchitectureProperties {
    class: "GraniteForCausalLM",
    model_type: "granite",
    score_scale: Some(ScoreScale::AttentionMultiplier),
    multipliers: true,
    sizes: &[
        ("vocab_size", 32_000),
        ("hidden_size", 4096),
        ("intermediate_size", 11_008),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("max_position_embeddings", 2048),
    ],
    ..LLAMA
};

const OLMO2: ArchitectureProperties = ArchitectureProperties {
    class: "Olmo2ForCausalLM",
    model_type: "olmo2",
    qk_norm: QkNorm::Whole,
    norm_placement: NormPlacement::After,
    sizes: &[
        ("vocab_size", 50_304),
        ("hidden_size", 4096),
        ("intermediate_size", 11_008),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("max_position_embeddings", 2048),
    ],
    rms_norm_eps: 1e-5,
    switches: &["attention_bias"],
    ..LLAMA
};

const PHI3: ArchitectureProperties = ArchitectureProperties {
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    fused_projections: true,
    partial_rotary: Some(1.0),
    window: WindowRule::All,
    sizes: &[
        ("vocab_size", 32_064),
        ("hidden_size", 3072),
        ("intermediate_size", 8192),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("max_position_embeddings", 4096),
        ("original_max_position_embeddings", 4096),
    ],
    rms_norm_eps: 1e-5,
    switches: &[],
    ..LLAMA
};

const GEMMA3: ArchitectureProperties = ArchitectureProperties {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    within: &["Gemma3ForConditionalGeneration"],
    qk_norm: QkNorm::Heads,
    norm_placement: NormPlacement::Both,
    norm_weight_plus_one: true,
    activation: Activation::GeluPytorchTanh,
    activation_key: "hidden_activation",
    scales_embedding: true,
    score_scale: Some(ScoreScale::QueryPreAttnScalar(256.0)),
    window: WindowRule::AllButEachSixth,
    sliding_window: Some(4096),
    sizes: &[
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 131_072),
    ],
    key_value_heads_follow: false,
    head_dim: Some(256),
    tie_word_embeddings: true,
    rope_theta: 1_000_000.0,
    rope_local_base_freq: Some(10_000.0),
    switches: &["attention_bias", "use_bidirectional_attention"],
    ..LLAMA
};

const MINISTRAL3: ArchitectureProperties = ArchitectureProperties {
    class: "Ministral3ForCausalLM",
    model_type: "ministral3",
    within: &["Mistral3ForConditionalGeneration"],
    window: WindowRule::All,
    key_value_heads_follow: false,
    head_dim: Some(128),
    sizes: &[
        ("vocab_size", 131_072),
        ("hidden_size", 4096),
        ("intermediate_size", 14_336),
        ("num_hidden_layers", 34),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 8),
        ("max_position_embeddings", 262_144),
    ],
    rope_parameters: Some(
        r#"{"type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1}"#,
    ),
    rms_norm_eps: 1e-5,
    switches: &[],
    ..LLAMA
};

const QWEN3_5: ArchitectureProperties = ArchitectureProperties {
    class: "Qwen3_5ForCausalLM",
    model_type: "qwen3_5_text",
    within: &["Qwen3_5ForConditionalGeneration"],
    qk_norm: QkNorm::Heads,
    norm_weight_plus_one: true,
    partial_rotary: Some(0.25),
    output_gate: true,
    full_attention_interval: Some(4),
    sizes: &[
        ("vocab_size", 248_320),
        ("hidden_size", 4096),
        ("intermediate_size", 12_288),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 32_768),
        ("linear_conv_kernel_dim", 4),
        ("linear_key_head_dim", 128),
        ("linear_value_head_dim", 128),
        ("linear_num_key_heads", 16),
        ("linear_num_value_heads", 32),
    ],
    key_value_heads_follow: false,
    head_dim: Some(256),
    tie_within: false,
    switches: &["attention_bias"],
    other_parts: &["mtp.", "model.visual."],
    ..LLAMA
};

impl Architecture {
    /// All families.
    pub const ALL: [Self; 11] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Mistral,
        Self::Smollm3,
        Self::Granite,
        Self::Olmo2,
        Self::Phi3,
        Self::Gemma3Text,
        Self::Ministral3,
        Self::Qwen35Text,
    ];

    /// Returns the properties of the family.
    pub fn properties(self) -> &'static ArchitectureProperties {
        match self {
            Self::Llama => &LLAMA,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::Mistral => &MISTRAL,
            Self::Smollm3 => &SMOLLM3,
            Self::Granite => &GRANITE,
            Self::Olmo2 => &OLMO2,
            Self::Phi3 => &PHI3,
            Self::Gemma3Text => &GEMMA3,
            Self::Ministral3 => &MINISTRAL3,
            Self::Qwen35Text => &QWEN3_5,
        }
    }

    /// Finds the family by its class name in `config.json`.
    pub fn of_class(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.properties().class == class)
    }

    /// Finds the family by its `model_type` in `config.json`.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.properties().model_type == model_type)
    }

    /// Returns whether models of this class have a supported family as their text part.
    pub fn is_within(class: &str) -> bool {
        Self::ALL.into_iter().any(|family| family.properties().within.contains(&class))
    }
}

#[cfg(test)]
mod tests {
    use super::Architecture;

    #[test]
    fn each_family_is_found_by_its_names_and_stored_by_one() {
        for family in Architecture::ALL {
            let properties = family.properties();
            assert_eq!(Architecture::of_class(properties.class), Some(family));
            assert_eq!(Architecture::of_model_type(properties.model_type), Some(family));
            // Run directories and checkpoints store this name.
            let stored = serde_json::to_value(family).unwrap();
            assert_eq!(stored, properties.model_type);
        }
        assert_eq!(Architecture::of_class("MambaForCausalLM"), None);
    }
}
