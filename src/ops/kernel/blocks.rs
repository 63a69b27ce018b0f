//! Parallel work in blocks of a fixed size.

use rayon::prelude::*;
use std::ops::Range;

/// Rows in one parallel task. A constant, so that partial sums do not depend on the thread count.
pub(crate) const ROW_BLOCK: usize = 32;

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
