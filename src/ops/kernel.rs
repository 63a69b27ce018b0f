//! Helpers shared by the flex kernels: buffers, row-parallel loops, matrix products and an `exp`
//! that vectorises.
//!
//! [`buffer`] has memory that is used again, [`matrix`] products of any size, [`few_rows`] those of
//! a few rows, as in generation.
//!
//! Every reduction here has a fixed order (lane sums, then row blocks in order), so a result does
//! not depend on the number of threads and is the same, bit for bit, from run to run.

use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

mod buffer;
#[cfg(target_arch = "x86_64")]
mod few_rows;
mod matrix;

pub(crate) use buffer::{Buffer, SharedMut};
pub(crate) use matrix::{DenseMatrix, Matrix, MatrixMut, Threads, has_few_rows};

/// Rows in one parallel task. A constant, so that partial sums do not depend on the thread count.
pub(crate) const ROW_BLOCK: usize = 32;

/// Defines a function whose body is compiled for AVX-512, for AVX2 and for neither, and chosen at run
/// time.
///
/// Only multiplications and additions are used (no fused multiply-add: without the hardware's own
/// it is a slow library call), so all give the same bits.
macro_rules! simd_fn {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn body_avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx2")]
                fn body_avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    // SAFETY: the feature was detected on this machine; with it comes AVX2.
                    return unsafe { body_avx512($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was detected on this machine.
                    return unsafe { body_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// `e^x` to about 2 units in the last place, without branches or calls, so that loops vectorise.
///
/// The polynomial is the one of Cephes' `expf`. NaN stays NaN; results below the smallest normal
/// number are flushed to about `1e-38`, and those above the largest to about `2e38`.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the constants as Cephes prints them
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_40e-4; // ln 2 in two parts
    let p = 1.987_569_15e-4 * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_9e-3;
    let p = p * r + 4.166_579_59e-2;
    let p = p * r + 1.666_666_55e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let two_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * two_n
}

/// Partial sums that a reduction keeps, so that it vectorises and its order is fixed.
const LANES: usize = 16;

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = [0.0; LANES / 2];
    for i in 0..LANES / 2 {
        half[i] = lanes[i] + lanes[i + LANES / 2];
    }
    half.iter().sum()
}

/// Sum of `a[i] * b[i]`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_tail, b_tail) = (a.chunks_exact(LANES).remainder(), b.chunks_exact(LANES).remainder());
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    sum_lanes(lanes) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
}

/// Largest element. A NaN in the row is not reported here; it comes out of [`exp_sum`].
#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = *x;
    }
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces every element by `exp(x - shift)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *x = exp(*x - shift);
        *lane += *x;
    }
    sum_lanes(lanes)
}

/// Whether all tensors are f32, the one type that the kernels here are written for.
pub(crate) fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Row-major tensor that fills its whole buffer; the handle stays unique if the argument was.
///
/// `storage` ignores offset and strides, so every kernel reads its inputs through this.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    // `to_contiguous` may return a second handle to the same buffer, and a later `storage_mut`
    // would copy as long as the first one lives.
    let view = tensor.to_contiguous();
    drop(tensor);
    view
}

/// Wraps numbers as a row-major `f32` tensor.
pub(crate) fn from_vec(data: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let layout = burn_flex::Layout::contiguous(shape.into());
    FlexTensor::new(burn::tensor::Bytes::from_elems(data), layout, DType::F32)
}

/// The values of an integer tensor, each of which must lie in `0..bound`.
///
/// # Panics
/// Where one does not; `what` names it in the message.
pub(crate) fn indices(tensor: FlexTensor, bound: usize, what: &str) -> Vec<usize> {
    let check = |(at, value): (usize, i64)| match usize::try_from(value) {
        Ok(index) if index < bound => index,
        _ => panic!("{what} {value} of token {at} is outside 0..{bound}"),
    };
    let tensor = contiguous(tensor);
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().copied().enumerate().map(check).collect(),
        DType::I32 => {
            tensor.storage::<i32>().iter().map(|&i| i64::from(i)).enumerate().map(check).collect()
        }
        dtype => panic!("{what}: expected i32 or i64 indices, got {dtype:?}"),
    }
}

/// Runs `f` on every block of [`ROW_BLOCK`] rows in parallel.
pub(crate) fn par_row_blocks(rows: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    par_blocks(rows, ROW_BLOCK, f);
}

/// Runs `f` on every block of `block` elements (the last may be shorter) in parallel.
pub(crate) fn par_blocks(len: usize, block: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    (0..len.div_ceil(block))
        .into_par_iter()
        .for_each(|index| f(index * block..((index + 1) * block).min(len)));
}

/// Adds the rows of `partials` (each `width` long) in order.
pub(crate) fn sum_rows(partials: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in partials.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
    sum
}
