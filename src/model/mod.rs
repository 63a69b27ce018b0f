//! Decoder-only transformers of eleven families: configuration, training, generation, adapters, and files.
//!
//! - [`DecoderConfig`] describes a model of an [`Architecture`]; [`DecoderLm`] is the model.
//! - Training requires [`CausalLm`] of a model; generation and evaluation require [`Generate`]. Implement
//!   them to use your own model.
//! - [`ModelFolder`] reads and [`DecoderLm::save`] writes Hugging Face folders; [`export_gguf`] writes GGUF
//!   files. [`TextModel`] is a model with its tokenizer, chat template, and end tokens.
//! - [`LoraConfig`] describes adapters, which [`DecoderLm::with_lora`] adds and [`merge_adapter`] merges.
//! - [`BaseWeights`] stores a frozen model in fewer bits; [`Precision`] sets the type of activations.
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use mixdistill::model::{Architecture, DecoderConfig, LoraConfig};
//!
//! # fn main() -> mixdistill::Result<()> {
//! let device = mixdistill::device::by_name("auto")?;
//! let config = DecoderConfig {
//!     architecture: Architecture::Qwen3,
//!     vocab_size: 64,
//!     hidden_size: 32,
//!     num_hidden_layers: 2,
//!     ..DecoderConfig::default()
//! };
//! let model = config.init(1, &device)?;
//!
//! // Logits of two rows of three tokens.
//! let ids = Tensor::<2, Int>::from_data([[1, 2, 3], [4, 5, 6]], &device);
//! let logits = model.logits(ids.clone());
//! assert_eq!(logits.dims(), [2, 3, 64]);
//!
//! // New adapters do not change the output.
//! let adapted = model.with_lora(&LoraConfig { rank: 4, ..LoraConfig::default() }, 1)?;
//! let difference = (adapted.logits(ids) - logits).abs().max().into_scalar::<f32>();
//! assert!(difference < 1e-5);
//! # Ok(())
//! # }
//! ```

// Where to add things: families in `architecture`, parts of layers in `blocks`, objectives in `objective` and
// `loss`.

mod activation_checkpointing;
mod adapter;
mod architecture;
mod base_weights;
mod blocks;
mod cache;
mod causal_lm;
mod config;
mod decoder;
mod fingerprint;
mod folder;
mod generate;
mod gguf;
mod hf_config;
mod linear_cache;
mod location;
mod lora;
mod loss;
mod matrix;
mod merge;
mod objective;
mod precision;
mod rope;
pub(crate) mod tensors;
mod text_model;
mod top_tokens;
mod weight_source;
pub(crate) mod weights;

pub use adapter::SaveAdapter;
pub use architecture::{Architecture, ArchitectureProperties, ScoreScale, WindowRule};
pub use base_weights::{BaseType, BaseWeights};
pub use blocks::{
    AttentionMetadata, ChannelConv, DecoderLayer, DecoderLayerConfig, GatedDeltaNet,
    GatedDeltaNetConfig, Mlp, MlpConfig, NormPlacement, QkNorm, RmsNorm, RmsNormConfig,
    SelfAttention, SelfAttentionConfig,
};
pub use causal_lm::CausalLm;
pub use config::{DecoderConfig, LayerType};
pub use decoder::{Decoder, DecoderLm};
pub use folder::{MAX_SHARD_BYTES, ModelFolder, SaveFolder, check_new_folder, model_folder};
pub(crate) use folder::{folder_without_weights, writing_place};
pub use generate::{
    EndReason, Generate, GenerateConfig, Generation, NewToken, StopConditions, TokenLimits,
    TokenObserver,
};
pub use gguf::{GgufOptions, GgufReport, export_gguf, export_gguf_adapter};
#[cfg(feature = "hub")]
pub(crate) use location::{Pushable, pushable};
pub use lora::{
    FUSED, LINEAR_ATTENTION, LoraConfig, LoraLinear, Magnitude, ModuleNames, PROJECTIONS, Patterns,
};
pub(crate) use lora::{LayerLora, LoraSource, LoraTargets, TEXT_OR_LIST};
pub use matrix::{EncodedMatrix, TokenEmbedding};
pub use merge::{MergeOptions, merge_adapter};
pub use objective::{Objective, StepOptions};
pub use precision::Precision;
pub use rope::{RopeScaling, RopeType};
pub use tensors::{HostTensor, named_tensors, with_named_tensors};
pub(crate) use text_model::BUILT_IN;
pub use text_model::{LoadOptions, TextInterface, TextModel, TextModelFiles};
pub use top_tokens::TargetScore;
pub use weights::FileType;
