//! The work of a training, in floating-point operations, and the time that it takes.

use super::batches::Batches;
use super::linear::flops_of_rule;
use super::tensors::Tensors;
use crate::model::DecoderConfig;
use serde::Serialize;

/// How long a training takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimePlan {
    /// Optimizer steps, where the data say how many.
    pub steps: Option<usize>,
    /// Seconds of a step, on average.
    pub seconds_per_step: f64,
    /// Seconds of all of them; held-out losses, answers and checkpoints come on top.
    pub seconds: Option<f64>,
    /// Floating-point operations of a step, on average.
    pub flops_per_step: f64,
    /// Floating-point operations in a second.
    pub flops_per_second: f64,
    /// Whether that was measured; else it is assumed.
    pub is_measured: bool,
}

/// Floating-point operations of micro-batches.
///
/// A product of a weight with a token is two for each of its elements, forward. Backwards the gradient
/// of the input is as many, and that of the weight again, where it is trained. Attention takes two
/// products of each query with the half of the keys that it sees, on average, and backwards five.
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
    // Backwards it goes forward once more, and takes about three times as much beside.
    let of_rules: f64 = linear_layers.iter().map(flops_of_rule).sum::<f64>() * (5.0 + once_more);
    // A product is `2 * width * keys / 2` for a query.
    let of_squares = attention * (2.0 + 5.0 + 2.0 * once_more);
    batches.positions * (linear + of_rules)
        + batches.trained * of_head
        + batches.squares * of_squares
}

/// What a backend is assumed to compute in a second, in floating-point operations. For the CPU it is a
/// round figure below what a step of SmolLM2-135M has on two cores of an EPYC (Zen 4); for a GPU nothing
/// is known of it but that it is one.
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
