//! A small decoder-only transformer of the Llama family: training, generation, adapters, folders.

mod adapter;
mod cache;
mod config;
mod decoder;
mod folder;
mod generate;
mod hf_config;
mod lora;
mod rope;
pub(crate) mod tensors;
pub(crate) mod weights;

pub use adapter::SaveAdapter;
pub use config::{Architecture, DecoderConfig};
pub use decoder::{Decoder, DecoderLayer, DecoderLm, Mlp, Placement, RmsNorm, SelfAttention};
pub(crate) use folder::writing_place;
pub use folder::{MAX_SHARD_BYTES, ModelFolder, SaveFolder, check_new_folder, model_folder};
pub use generate::{EndReason, Endings, GenerateConfig, Generation, NewToken, TokenObserver};
pub use lora::{LoraConfig, LoraLinear, PROJECTIONS};
pub use rope::RopeScaling;
pub use tensors::{HostTensor, named_tensors, with_named_tensors};
pub use weights::FileType;

use crate::data::Batch;
use burn::module::Module;
use burn::tensor::Tensor;

/// All that the [`Learner`](crate::train::Learner) knows of a model.
pub trait CausalLm: Module {
    /// Number of tokens that the model knows.
    fn vocabulary_size(&self) -> usize;

    /// `scale` times the sum of the cross-entropies (in nats) of the trained targets, each times
    /// its weight: `scale * sum_i weights[i] * -log p(targets[i] | ids[..=i])`, in f32.
    ///
    /// # Shapes
    /// Result: `[1]`.
    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1>;
}
