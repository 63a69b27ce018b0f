//! The parts of a decoder. Each has a configuration, a module that the configuration initializes, and the
//! module's `forward`.
//!
//! Activations are `[tokens, width]` with all rows concatenated, so a weight's gradient is one matrix
//! product. [`AttentionMetadata`] holds rows and positions. Module fields have the tensor names of Hugging
//! Face.

mod attention;
mod checks;
mod gated_delta_net;
mod layer;
mod mlp;
mod rms_norm;
mod stream;

pub use attention::{AttentionMetadata, QkNorm, SelfAttention, SelfAttentionConfig};
pub(in crate::model) use attention::{CacheStep, TokenPlaces, VisibleKeys, int_tensor};
pub(in crate::model) use checks::{check_number, check_parameters, check_size, refuse};
pub use gated_delta_net::{ChannelConv, GatedDeltaNet, GatedDeltaNetConfig};
pub(in crate::model) use layer::BlockStep;
pub use layer::{DecoderLayer, DecoderLayerConfig, NormPlacement};
pub use mlp::{Mlp, MlpConfig};
pub use rms_norm::{RmsNorm, RmsNormConfig};
pub(in crate::model) use stream::Stream;
