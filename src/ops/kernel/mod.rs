//! Helpers shared by the flex kernels: buffers, row-parallel loops, matrix products and an `exp`
//! that vectorizes.
//!
//! [`buffer`] has memory that is used again, [`matrix`] products of any size, [`few_rows`] those of
//! a few rows, as in generation, [`narrow`] those of a few columns, as in adapters, and [`stored`] those
//! with a matrix in fewer bits.
//!
//! Every reduction here has a fixed order (lane sums, then row blocks in order), so a result does
//! not depend on the number of threads and is the same, bit for bit, from run to run.

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
