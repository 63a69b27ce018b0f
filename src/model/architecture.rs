//! The families of decoders that there are, each a row of one table.
//!
//! A family is added by a variant of [`Architecture`], its row in [`Architecture::properties`], and a
//! new field of [`ArchitectureProperties`] for whatever no other family has. Everything else asks for
//! properties and never for a name. What differs between two models of one family stands in
//! [`DecoderConfig`](super::DecoderConfig) instead.

use super::blocks::{NormPlacement, QkNorm};
use crate::ops::Activation;
use serde::{Deserialize, Serialize};

/// Which family a decoder belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama, SmolLM2.
    #[default]
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on each head of q and k.
    Qwen3,
    /// Mistral: a sliding window in all layers, where it has one.
    Mistral,
    /// SmolLM3: no RoPE in every fourth layer.
    Smollm3,
    /// Granite 3 without experts: four multipliers.
    Granite,
    /// OLMo 2: norms after attention and feed-forward, and over the whole of q and k.
    Olmo2,
    /// Phi-3, Phi-3.5 and Phi-4-mini: fused projections, LongRoPE.
    Phi3,
    /// The text part of Gemma 3: four norms in a block, five layers with a sliding window to one without.
    Gemma3Text,
    /// The text part of Ministral 3: YaRN, queries scaled by position.
    Ministral3,
    /// The text part of Qwen3.5: three layers of four are linear attention by the gated delta rule, the others'
    /// outputs have gates.
    #[serde(rename = "qwen3_5_text")]
    Qwen35Text,
}

/// Which layers have a sliding window, where `config.json` gives its tokens and no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// None: the family has no window.
    Never,
    /// All of them.
    All,
    /// Those from `max_window_layers` on, where `use_sliding_window` is set.
    FromLayer,
    /// Those without RoPE, where `use_sliding_window` is set.
    WithoutRope,
    /// All but each sixth, or as `sliding_window_pattern` says.
    AllButEachSixth,
}

/// What a family computes, and how its `config.json` says so. Defaults are those of its class in
/// transformers, for what a `config.json` leaves out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArchitectureProperties {
    /// The name of its class in `config.json`.
    pub class: &'static str,
    /// The `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Classes that hold such a decoder as their text part, under `text_config`.
    pub within: &'static [&'static str],
    /// Whether the projections to q, k and v have biases.
    pub attention_bias: bool,
    /// What of q and k is normalized before they are rotated.
    pub qk_norm: QkNorm,
    /// Where a block has its norms.
    pub norm_placement: NormPlacement,
    /// Whether norms scale by 1 and their weight.
    pub norm_weight_plus_one: bool,
    /// Whether q, k and v are one projection, and gate and up another.
    pub fused_projections: bool,
    /// The activation of the feed-forward part.
    pub activation: Activation,
    /// The key of that activation.
    pub activation_key: &'static str,
    /// Whether embeddings are multiplied by the root of their width.
    pub scales_embedding: bool,
    /// How `config.json` gives what scores are multiplied by; `None` is 1 over the root of the heads'
    /// width.
    pub score_scale: Option<ScoreScale>,
    /// Whether `config.json` has Granite's multipliers of embeddings, residuals and logits.
    pub multipliers: bool,
    /// Which share of each head's values is rotated, where `config.json` does not say so; `None` always rotates all.
    pub partial_rotary: Option<f64>,
    /// Whether the projection to queries gives gates of the attention's output too.
    pub output_gate: bool,
    /// Every how many layers one has full attention, where `config.json` does not say which, and the others are
    /// linear attention; `None` has no linear attention.
    pub full_attention_interval: Option<usize>,
    /// Every how many layers one is not rotated; `None` rotates all.
    pub no_rope_interval: Option<usize>,
    /// Which layers have a sliding window.
    pub window: WindowRule,
    /// The keys of that window where `config.json` does not mention it; `None` is no window.
    pub sliding_window: Option<usize>,
    /// Sizes that `config.json` may leave out, and what they are then.
    pub sizes: &'static [(&'static str, usize)],
    /// Whether a `config.json` without `num_key_value_heads` has as many as heads of the queries;
    /// otherwise the number must be there.
    pub key_value_heads_follow: bool,
    /// The width of a head where `config.json` has none; `None` is the width of the model divided by
    /// the heads.
    pub head_dim: Option<usize>,
    /// Whether the head is the embedding where `config.json` does not say so.
    pub tie_word_embeddings: bool,
    /// The same where it is the text part of one of [`ArchitectureProperties::within`].
    pub tie_within: bool,
    /// Added to the mean square in norms where `config.json` does not say it.
    pub rms_norm_eps: f64,
    /// The base of RoPE's frequencies where `config.json` has none.
    pub rope_theta: f64,
    /// RoPE's settings, as JSON, where `config.json` has none at all.
    pub rope_parameters: Option<&'static str>,
    /// The same for layers with a sliding window, where these have a base of their own.
    pub rope_local_base_freq: Option<f64>,
    /// What the family's `config.json` can switch on and is not computed here; written as off.
    pub switches: &'static [&'static str],
    /// What the names of tensors begin with that are of other parts than the decoder: images, several tokens at once.
    pub other_parts: &'static [&'static str],
}

/// How `config.json` gives the scale of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreScale {
    /// `attention_multiplier` is the scale.
    AttentionMultiplier,
    /// The scale is 1 over the root of `query_pre_attn_scalar`; where that is not given, of this.
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
    /// All of them.
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

    /// The family's row in the table.
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

    /// The family whose class in `config.json` this is.
    pub fn of_class(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.properties().class == class)
    }

    /// The family with this `model_type` in `config.json`.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.properties().model_type == model_type)
    }

    /// Whether some family is the text part of models of this class.
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
            // Run directories and checkpoints hold this name.
            let stored = serde_json::to_value(family).unwrap();
            assert_eq!(stored, properties.model_type);
        }
        assert_eq!(Architecture::of_class("MambaForCausalLM"), None);
    }
}
