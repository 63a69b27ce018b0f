//! The families of decoders that there are, each a row of one table.
//!
//! A family is added by a variant of [`Architecture`], its row in [`Architecture::properties`], and a
//! new field of [`ArchitectureProperties`] for whatever no other family has. Everything else asks for properties
//! and never for a name. What differs between two models of one family stands in
//! [`DecoderConfig`](super::DecoderConfig) instead.

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
}

/// What a family computes, and how its `config.json` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchitectureProperties {
    /// The name of its class in `config.json`.
    pub class: &'static str,
    /// The `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Whether the projections to q, k and v have biases.
    pub attention_bias: bool,
    /// Whether each head of q and k is normalized before it is rotated.
    pub qk_norm: bool,
    /// Whether a `config.json` without `num_key_value_heads` has as many as heads of the queries;
    /// otherwise the number must be there.
    pub key_value_heads_follow: bool,
    /// The width of a head where `config.json` has none; `None` is the width of the model divided by
    /// the heads.
    pub head_dim: Option<usize>,
    /// What the family's `config.json` can switch on and is not computed here; written as off.
    pub switches: &'static [&'static str],
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The family's row in the table. Defaults are those of its class in transformers.
    pub fn properties(self) -> &'static ArchitectureProperties {
        const LLAMA: ArchitectureProperties = ArchitectureProperties {
            class: "LlamaForCausalLM",
            model_type: "llama",
            attention_bias: false,
            qk_norm: false,
            key_value_heads_follow: true,
            head_dim: None,
            switches: &["attention_bias", "mlp_bias"],
        };
        const QWEN2: ArchitectureProperties = ArchitectureProperties {
            class: "Qwen2ForCausalLM",
            model_type: "qwen2",
            attention_bias: true,
            key_value_heads_follow: false,
            switches: &["use_sliding_window"],
            ..LLAMA
        };
        const QWEN3: ArchitectureProperties = ArchitectureProperties {
            class: "Qwen3ForCausalLM",
            model_type: "qwen3",
            qk_norm: true,
            key_value_heads_follow: false,
            head_dim: Some(128),
            switches: &["attention_bias", "use_sliding_window"],
            ..LLAMA
        };
        match self {
            Self::Llama => &LLAMA,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
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
