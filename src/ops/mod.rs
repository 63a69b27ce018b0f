//! Differentiable operations of the models that Burn lacks in a fast form.
//!
//! Examples are [`causal_attention`](causal_attention()), [`linear_cross_entropy`](linear_cross_entropy()),
//! [`rms_norm`](rms_norm()), [`rotary`](rotary()), and the optimizer [`AdamW`]. All take Burn tensors on any
//! backend of this crate.
//!
//! ```
//! use burn::tensor::{Tensor, TensorData};
//! use mixdistill::ops::rms_norm;
//!
//! let device = mixdistill::device::by_name("auto")?;
//! let x = Tensor::<2>::from_data(TensorData::new(vec![3.0f32, 4.0], [1, 2]), &device);
//! let weight = Tensor::<1>::from_data(TensorData::new(vec![1.0f32, 2.0], [2]), &device);
//! let y: Vec<f32> = rms_norm(x, weight, 0.0).into_data().iter().collect();
//! // The root mean square of 3 and 4 is 3.5355.
//! assert!((y[0] - 0.8485).abs() < 1e-3 && (y[1] - 2.2627).abs() < 1e-3);
//! # Ok::<(), mixdistill::Error>(())
//! ```
//!
//! # Structure
//!
//! Each file holds one operation, made of the same parts:
//!
//! 1. A *kernel* trait: forward and hand-written backward on plain backend tensors. Its default bodies use
//!    Burn's backend operations and run on every backend.
//! 2. A *dispatched* trait that Burn's run-time `Dispatch` backend routes. Its implementation for
//!    `Autodiff<B, C>` registers the backward step.
//! 3. A function on [`Tensor`](burn::tensor::Tensor), the only part that models use.
//! 4. Kernels for flex in plain Rust and rayon. They support f32 and fall back to the portable bodies for
//!    other types. Their results are bit-identical with any number of threads.
//! 5. For some operations, GPU kernels in CubeCL (`cube.rs`): one source for CUDA, Vulkan, WebGPU, Metal, and
//!    ROCm, with and without fusion, for f32, f16, and bf16.
//!
//! Activations are `[tokens, width]`, so the gradient of a weight is one matrix product rather than a batch
//! of products with a sum.
//!
//! The features of this crate (`flex`, `ndarray`, `cuda`, `vulkan`, `wgpu`, `metal`, `rocm`), not those of
//! Burn, determine which backends an operation supports.

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
mod awake;
mod backends;
pub mod cached_attention;
pub mod causal_conv;
#[cfg(feature = "cube")]
mod cube;
mod decoding;
mod dropout_linear;
mod dynamic_map;
pub mod embedding;
mod encoding;
pub mod gated;
pub mod gated_delta;
pub mod gated_linear;
#[cfg(feature = "flex")]
mod kernel;
pub mod linear;
pub mod linear_cross_entropy;
mod pieces;
mod resident;
pub mod rms_norm;
pub mod rotary;
mod sampling;
pub mod sequences;
mod shared_input;
pub mod sum_of_squares;
pub mod token_loss;
mod weight;
mod wide_product;

pub use adamw::AdamW;
pub use adamw_8bit::{Moments8Bit, StoredMoment};
pub(crate) use attention::parts_of as attention_parts;
pub use attention::{AttentionShape, causal_attention, causal_attention_within};
pub(crate) use awake::keep_awake;
pub use cached_attention::cached_attention;
pub use causal_conv::causal_conv;
pub(crate) use dropout_linear::{DropoutFactors, dropout_linear};
pub use embedding::embedding;
pub(crate) use encoding::{EncodedValues, Encoding};
pub use gated::{Activation, gated, swiglu};
pub(crate) use gated_delta::CHUNK as DELTA_CHUNK;
pub use gated_delta::{DeltaShape, gated_delta_rule, gated_delta_rule_from};
pub use gated_linear::gated_linear_add;
pub use linear::{linear, linear_add};
pub(crate) use linear_cross_entropy::tokens_per_block as loss_block;
pub use linear_cross_entropy::{linear_cross_entropy, linear_token_loss};
pub(crate) use pieces::pieces;
pub(crate) use resident::{resident, resident_bf16};
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::{add_rms_norm, sums_in_norms};
pub use rotary::{rotary, rotary_frequencies, rotary_partial, rotary_table};
pub(crate) use sampling::{Draws, Sampling, draw_tokens};
pub use sequences::Sequences;
pub(crate) use shared_input::SharedInput;
pub use sum_of_squares::{SumsOfSquares, sum_of_squares};
pub use token_loss::{Distillation, Divergence, TeacherTokens, TokenLoss};
pub use weight::{EncodedWeight, Weight};
