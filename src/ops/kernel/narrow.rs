//! Products with few columns, as in low-rank adapters. A general product would pack the large matrix and
//! leave most of each vector empty.

use super::buffer::Buffer;
#[cfg(target_arch = "x86_64")]
use super::buffer::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::few_rows::{self, Vectors, Weights};
use super::matrix::{Matrix, MatrixMut};
#[cfg(target_arch = "x86_64")]
use rayon::prelude::*;

/// Maximum number of columns for which these products are faster.
pub(super) const MOST_COLUMNS: usize = 48;

/// Computes `y = x w` by dot products of the rows of `x` with the columns of `w`; `x` is `[rows, inner]` and
/// `y` `[rows, columns]`, both without gaps. The order of a row's sums does not depend on the other rows.
#[cfg(target_arch = "x86_64")]
pub(super) fn dot_products(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    w: Matrix,
    [rows, inner, columns]: [usize; 3],
) {
    /// Rows per parallel task: whole tiles of six, and no more than `few_rows` accepts.
    const ROWS: usize = 30;
    let mut lines = Buffer::any(columns * inner);
    MatrixMut::dense(&mut lines, [columns, inner]).copy_or_add(false, w.transposed());
    let w = Weights { data: &lines, stride: inner, transposed: true };
    (0..rows.div_ceil(ROWS)).into_par_iter().for_each(|index| {
        let range = index * ROWS..((index + 1) * ROWS).min(rows);
        // SAFETY: the tasks' rows are disjoint.
        let y = unsafe { y.slice(range.start * columns..range.end * columns) };
        let x = &x[range.start * inner..range.end * inner];
        let sizes = [range.len(), inner, columns];
        few_rows::product_of_columns(vectors, SharedMut::new(y), x, w, sizes, 0..columns);
    });
}

/// Computes `out = alpha * a @ b`, or added to it, computed as the transposed product.
pub(super) fn transposed_product(
    out: &mut MatrixMut,
    accumulate: bool,
    alpha: f32,
    a: Matrix,
    b: Matrix,
) {
    let [rows, columns] = out.size();
    let mut transposed = Buffer::any(rows * columns);
    MatrixMut::dense(&mut transposed, [columns, rows]).multiply_in_blocks(
        false,
        alpha,
        b.transposed(),
        a.transposed(),
    );
    out.copy_or_add(accumulate, Matrix::dense(&transposed, [columns, rows]).transposed());
}
