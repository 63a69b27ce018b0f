//! Parallel work in blocks of a fixed size.

use crate::ops::pieces;
use rayon::prelude::*;
use std::ops::Range;

/// Rows per parallel task. A constant, so that partial sums do not depend on the thread count.
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

/// Adds the rows of `partials` (each `width` long, one for each [`ROW_BLOCK`] of `rows`), in order within the
/// rows' [`pieces`].
pub(crate) fn sum_rows(partials: &[f32], width: usize, rows: usize) -> Vec<f32> {
    let of_piece = |piece: Range<usize>| {
        let mut sum = vec![0.0; width];
        let blocks = piece.start / ROW_BLOCK * width..piece.end.div_ceil(ROW_BLOCK) * width;
        partials[blocks].chunks_exact(width.max(1)).for_each(|row| add(&mut sum, row));
        sum
    };
    let sum = pieces(rows).map(of_piece).reduce(|mut sum, piece| {
        add(&mut sum, &piece);
        sum
    });
    sum.unwrap_or_default()
}

/// Computes `sum += values`.
pub(crate) fn add(sum: &mut [f32], values: &[f32]) {
    let add = |(sum, x): (&mut f32, &f32)| *sum += x;
    sum.par_iter_mut().with_min_len(64 * 1024).zip(values).for_each(add);
}
