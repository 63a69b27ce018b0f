//! A small decoder-only transformer, of one of eleven families: training, generation, adapters, folders.
//!
//! ```text
//! architecture  the families, as a table of properties    folder, hf_config  models as folders
//! blocks        norm, attention, feed-forward, layer      adapter, lora      low-rank adapters
//! config        the shape of a decoder                    text_model         a model with its text side
//! decoder       the model; causal_lm, loss: its training  generate           answers
//! ```
//!
//! A family of models is added in `architecture`, a part of a layer in `blocks`, an objective in
//! `objective` and `loss`.

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
