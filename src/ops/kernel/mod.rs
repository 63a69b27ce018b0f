//! Helpers of the flex kernels: buffers, row-parallel loops, matrix products, and a vectorized `exp`.
//!
//! [`buffer`] manages reusable memory. [`matrix`] has products of any size, [`few_rows`] those of a few rows,
//! as in generation, [`narrow`] those of a few columns, as in adapters, and [`stored`] those with a quantized
//! matrix.
//!
//! Every reduction has a fixed order (lane sums, then row blocks in order), so results do not depend on the
//! number of threads and are bit-identical from run to run.

mod blocks;
mod buffer;
mod decode;
#[cfg(target_arch = "x86_64")]
mod few_rows;
mod matrix;
mod narrow;
mod simd;
mod stored;
#[cfg(target_arch = "x86_64")]
mod stored_rows;
mod tensors;

pub(crate) use blocks::{ROW_BLOCK, add, par_blocks, par_row_blocks, sum_rows};
pub(crate) use buffer::{Buffer, SharedMut};
pub(crate) use matrix::{DenseMatrix, Matrix, MatrixMut, Threads, has_few_rows};
pub(crate) use simd::{dot, exp, exp_sum, max, simd_fn};
pub(crate) use stored::{Rows, WeightMatrix};
pub(crate) use tensors::{all_f32, contiguous, from_vec, in_f32, indices};
