//! How the weights of a base model that is not trained are kept in memory.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The type of stored weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseType {
    /// 32 bits: four bytes a weight.
    #[default]
    F32,
    /// 16 bits with 8 significant ones (bfloat16): two bytes a weight.
    Bf16,
    /// 8-bit integers with one scale for each output, as in bitsandbytes' LLM.int8() (arXiv 2208.07339);
    /// matrices that a GGUF file has in q8_0 stay as they are there.
    Int8,
    /// 4 bits, a value of the NormalFloat table with one scale for each block of 64, as in QLoRA
    /// (arXiv 2305.14314) and bitsandbytes; matrices that a GGUF file has in q4_0 stay as they are there.
    Nf4,
}

impl BaseType {
    /// All types, the largest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// Their names in settings.
    pub const NAMES: [&str; 4] = ["f32", "bf16", "int8", "nf4"];

    /// That of a name in settings.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// How the frozen weights of a base model are kept. Norms and biases are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseWeights {
    /// The matrices of the blocks' linear layers: `f32`, `bf16`, `int8` or `nf4`.
    #[serde(rename = "type")]
    pub base_type: BaseType,
    /// The embedding and the head: `f32`, `bf16` or `int8`; without it f32 where `type` is f32, and
    /// bf16 elsewhere.
    pub embeddings: Option<BaseType>,
    /// NF4: keep the scales themselves in 8 bits, in blocks of 256 (QLoRA's double quantization). Saves
    /// 0.37 bits a weight.
    pub double_quantization: bool,
}

impl BaseWeights {
    /// The type of the embedding and the head.
    pub fn embedding_type(&self) -> BaseType {
        self.embeddings.unwrap_or(match self.base_type {
            BaseType::F32 => BaseType::F32,
            _ => BaseType::Bf16,
        })
    }

    /// In words: `nf4, scales in 8 bits; embedding and head in bf16`.
    pub(crate) fn words(&self) -> String {
        let scales = if self.double_quantization { ", scales in 8 bits" } else { "" };
        let (kind, embeddings) = (self.base_type.name(), self.embedding_type().name());
        format!("{kind}{scales}; embedding and head in {embeddings}")
    }

    /// Whether all is f32.
    pub fn is_f32(&self) -> bool {
        self.base_type == BaseType::F32 && self.embedding_type() == BaseType::F32
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.embedding_type() == BaseType::Nf4 {
            let what = "embeddings and heads are not kept in nf4, which loses too much of them";
            return Err(Error::config("base.embeddings", what, "Choose f32, bf16 or int8"));
        }
        if self.double_quantization && self.base_type != BaseType::Nf4 {
            let what =
                format!("only nf4 has scales for it, and base.type is {}", self.base_type.name());
            return Err(Error::config("base.double_quantization", what, "Set base.type=nf4"));
        }
        Ok(())
    }
}
