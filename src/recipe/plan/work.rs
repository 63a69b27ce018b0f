//! The floating-point operations of a training run, and the time that they take.

use super::batches::Batches;
use super::linear::flops_of_rule;
use super::tensors::Tensors;
use crate::model::DecoderConfig;
use serde::Serialize;

/// The time that a training run takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimePlan {
    /// Number of optimizer steps, if known.
    pub steps: Option<usize>,
    /// Average seconds per step.
    pub seconds_per_step: f64,
    /// Seconds of all steps, without held-out losses, answers, and checkpoints.
    pub seconds: Option<f64>,
    /// Average floating-point operations per step.
    pub flops_per_step: f64,
    /// Floating-point operations per second.
    pub flops_per_second: f64,
    /// Whether `flops_per_second` was measured. Otherwise, it is assumed.
    pub is_measured: bool,
}

/// Returns the number of floating-point operations of micro-batches.
///
/// The forward pass takes two operations per weight and token. The backward pass takes the same number for
/// the gradient of the input, and again for the gradient of the weight if it is trained. Attention takes two
/// products of each query with the keys that it sees (half of them, on average) in the forward pass, and five
/// in the backward pass.
pub(super) fn flops(
    shape: &DecoderConfig,
    tensors: &Tensors,
    checkpointing: bool,
    batches: &Batches,
) -> f64 {
    let once_more = if checkpointing { 1.0 } else { 0.0 };
    let passes = |trains: bool| 2.0 + once_more + if trains { 1.0 } else { 0.0 };
    let frozen = (tensors.linear - tensors.trained_linear) as f64;
    let trained = (tensors.trained_linear + tensors.adapters) as f64;
    let linear = 2.0 * (frozen * passes(false) + trained * passes(true));
    let head = (shape.vocab_size * shape.hidden_size) as f64;
    let of_head = 2.0 * head * if tensors.trains_head { 3.0 } else { 2.0 };
    let linear_layers: Vec<_> =
        (0..shape.num_hidden_layers).filter_map(|layer| shape.linear_attention(layer)).collect();
    let full = shape.num_hidden_layers - linear_layers.len();
    let attention = (shape.query_width() * full) as f64;
    // The backward pass repeats the forward pass and takes about three times as much in addition.
    let of_rules: f64 = linear_layers.iter().map(flops_of_rule).sum::<f64>() * (5.0 + once_more);
    // One product takes `2 * width * keys / 2` operations per query.
    let of_squares = attention * (2.0 + 5.0 + 2.0 * once_more);
    batches.positions * (linear + of_rules)
        + batches.trained * of_head
        + batches.squares * of_squares
}

/// Returns the assumed number of floating-point operations per second of a backend. For a CPU, a round figure
/// below the speed of a step of SmolLM2-135M on two cores of an EPYC (Zen 4). For a GPU, a guess that does
/// not depend on the model of the GPU.
pub(super) fn assumed_rate(is_cpu: bool, threads: usize) -> f64 {
    if !is_cpu {
        return 10e12;
    }
    #[cfg(target_arch = "x86_64")]
    let of_thread = match () {
        () if std::is_x86_feature_detected!("avx512f") => 70e9,
        () if std::is_x86_feature_detected!("fma") => 35e9,
        () => 8e9,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let of_thread = 20e9;
    of_thread * threads as f64
}
