//! Storage of a frozen base model's weights in memory.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Storage type of frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseType {
    /// 32-bit floats: 4 bytes per weight.
    #[default]
    F32,
    /// bfloat16, with 8 significant bits: 2 bytes per weight.
    Bf16,
    /// 8-bit integers with one scale per output, as in LLM.int8() of bitsandbytes (arXiv 2208.07339): about 1
    /// byte per weight. Matrices that a GGUF file stores as q8_0 keep the codes of the file.
    Int8,
    /// 4-bit NormalFloat with one scale per block of 64 weights, as in QLoRA (arXiv 2305.14314) and
    /// bitsandbytes: 4.5 bits per weight. Matrices that a GGUF file stores as q4_0 keep the codes of the
    /// file.
    Nf4,
}

impl BaseType {
    /// All types, from largest to smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// Names of the types in settings, in the order of [`BaseType::ALL`].
    pub const NAMES: [&str; 4] = ["f32", "bf16", "int8", "nf4"];

    /// Finds a type by its name in settings.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the name of the type in settings.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// How the weights of a frozen base model are stored in memory. Norms and biases are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseWeights {
    /// Storage type of the linear layers' weights: `f32`, `bf16`, `int8`, or `nf4`. Types smaller than `f32`
    /// save memory and round the weights, which stay frozen: in training, they require adapters (`lora`).
    #[serde(rename = "type")]
    pub base_type: BaseType,
    /// Storage type of the embedding and the head: `f32`, `bf16`, or `int8`. Unset means `f32` if `base.type`
    /// is `f32`, and `bf16` otherwise. Set it to `int8` to save more memory, especially with a large
    /// vocabulary.
    pub embeddings: Option<BaseType>,
    /// Also quantizes the scales of `nf4` weights to 8 bits, in blocks of 256 (QLoRA's double quantization).
    /// Saves 0.37 bits per weight. Requires `base.type = "nf4"`.
    pub double_quantization: bool,
}

impl BaseWeights {
    /// Returns the storage type of the embedding and the head.
    pub fn embedding_type(&self) -> BaseType {
        self.embeddings.unwrap_or(match self.base_type {
            BaseType::F32 => BaseType::F32,
            _ => BaseType::Bf16,
        })
    }

    /// Returns a description such as `nf4, scales in 8 bits; embedding and head in bf16`.
    pub(crate) fn words(&self) -> String {
        let scales = if self.double_quantization { ", scales in 8 bits" } else { "" };
        let (kind, embeddings) = (self.base_type.name(), self.embedding_type().name());
        format!("{kind}{scales}; embedding and head in {embeddings}")
    }

    /// Returns whether all weights are stored as f32.
    pub fn is_f32(&self) -> bool {
        self.base_type == BaseType::F32 && self.embedding_type() == BaseType::F32
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        if self.embedding_type() == BaseType::Nf4 {
            let what = "nf4 is too coarse for the embedding and the head";
            return Err(Error::config("base.embeddings", what, "Use f32, bf16, or int8"));
        }
        if self.double_quantization && self.base_type != BaseType::Nf4 {
            let what =
                format!("it applies to nf4 only, but base.type is {}", self.base_type.name());
            return Err(Error::config("base.double_quantization", what, "Set base.type=nf4"));
        }
        Ok(())
    }
}
