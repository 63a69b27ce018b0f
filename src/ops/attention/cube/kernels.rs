//! The passes between the matrix products.

use crate::ops::cube::{cube_max, cube_sum, cubecl, vector_total};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, because WGSL has no infinity.
pub(in super::super) const LEAST: f32 = -1e30;

/// The layout of rows by head: `[batch, heads, rows, dim]` for each block of tokens, one block after the
/// other.
#[derive(CubeType, CubeLaunch, Clone)]
pub(super) struct ByHead {
    /// Total vectors.
    pub count: usize,
    pub seq: usize,
    /// Tokens per block (the last block may have fewer), and vectors per block.
    pub block: usize,
    pub of_block: usize,
    pub heads: usize,
    /// Vectors in a row of a head.
    pub vectors: usize,
}

#[cube]
impl ByHead {
    /// Returns the index in `[tokens, heads * dim]` of a vector of this layout.
    fn place_in_tokens(&self, position: usize) -> usize {
        let first = position / self.of_block * self.block;
        let in_block = position % self.of_block;
        let rows = min(self.block, self.seq - first);
        let i = in_block % self.vectors;
        let row = in_block / self.vectors % rows;
        let head = in_block / (self.vectors * rows);
        let token = head / self.heads * self.seq + first + row;
        (token * self.heads + head % self.heads) * self.vectors + i
    }
}

/// Rearranges one or two tensors of the same shape by head, or back with `to_tokens`.
#[cube(launch_unchecked)]
pub(super) fn lay_out_kernel<F: Float, G: Float, N: Size>(
    first: &Tensor<Vector<F, N>>,
    second: &Tensor<Vector<F, N>>,
    first_out: &mut Tensor<Vector<G, N>>,
    second_out: &mut Tensor<Vector<G, N>>,
    layout: ByHead,
    #[comptime] two: bool,
    #[comptime] to_tokens: bool,
    #[define(F, G)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= layout.count {
        terminate!();
    }
    let in_tokens = layout.place_in_tokens(ABSOLUTE_POS);
    if comptime!(to_tokens) {
        first_out[in_tokens] = Vector::cast_from(first[ABSOLUTE_POS]);
        if comptime!(two) {
            second_out[in_tokens] = Vector::cast_from(second[ABSOLUTE_POS]);
        }
    } else {
        first_out[ABSOLUTE_POS] = Vector::cast_from(first[in_tokens]);
        if comptime!(two) {
            second_out[ABSOLUTE_POS] = Vector::cast_from(second[in_tokens]);
        }
    }
}

/// Adds rows `[matrices, rows, dim]` to the rows from `start` of `[matrices, seq, dim]`, for two sums.
#[cube(launch_unchecked)]
pub(super) fn add_kernel<N: Size>(
    first: &Tensor<Vector<f32, N>>,
    second: &Tensor<Vector<f32, N>>,
    first_sums: &mut Tensor<Vector<f32, N>>,
    second_sums: &mut Tensor<Vector<f32, N>>,
    count: usize,
    seq: usize,
    start: usize,
    rows: usize,
    vectors: usize,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let of_matrix = rows * vectors;
    let (matrix, rest) = (ABSOLUTE_POS / of_matrix, ABSOLUTE_POS % of_matrix);
    let place = (matrix * seq + start) * vectors + rest;
    first_sums[place] += first[ABSOLUTE_POS];
    second_sums[place] += second[ABSOLUTE_POS];
}

/// Computes for each query and head, `[batch, heads, seq]`, its log-sum-exp, and the sum over a head's values
/// of the products of two tensors `[tokens, heads * dim]`.
#[cube(launch_unchecked)]
pub(super) fn sums_kernel<F: Float, N: Size>(
    a: &Tensor<Vector<F, N>>,
    b: &Tensor<Vector<F, N>>,
    log_sum_exps: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    layout: ByHead,
    #[define(F)] _element: ElemType,
) {
    let place = ABSOLUTE_POS * layout.vectors;
    if place >= layout.count {
        terminate!();
    }
    let first = layout.place_in_tokens(place);
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in first..first + layout.vectors {
        sum += Vector::<f32, N>::cast_from(a[i]) * Vector::cast_from(b[i]);
    }
    sums[2 * ABSOLUTE_POS] = log_sum_exps[ABSOLUTE_POS];
    sums[2 * ABSOLUTE_POS + 1] = vector_total(sum);
}

/// The scores `[batch, heads, rows, keys]` of a block of queries.
#[derive(CubeType, CubeLaunch, Clone)]
pub(super) struct Scores {
    pub seq: usize,
    pub heads: usize,
    pub first_query: usize,
    pub rows: usize,
    pub first_key: usize,
    /// Vectors per row.
    pub vectors: usize,
    pub scale: f32,
}

/// What the query of a row of scores sees.
#[derive(CubeType, Clone)]
struct Seen {
    /// The index of the query in `[batch, heads, seq]`.
    place: usize,
    /// The first key and the end of the keys, relative to the block's keys.
    from: usize,
    to: usize,
}

#[cube]
impl Scores {
    fn seen<I: Int>(&self, row: usize, starts: &Tensor<I>) -> Seen {
        let head = row / self.rows;
        let query = self.first_query + row % self.rows;
        let start = usize::cast_from(starts[head / self.heads * self.seq + query]);
        Seen {
            place: head * self.seq + query,
            from: max(start, self.first_key) - self.first_key,
            to: query + 1 - self.first_key,
        }
    }
}

#[cube]
impl Seen {
    fn has(&self, key: usize) -> bool {
        key >= self.from && key < self.to
    }

    /// Returns whether a vector of a row contains a visible key.
    fn touches<N: Size>(&self, i: usize) -> bool {
        (i + 1) * N::value() > self.from && i * N::value() < self.to
    }

    /// Replaces the values of hidden keys in a vector by zeros.
    fn only<N: Size>(&self, values: Vector<f32, N>, i: usize) -> Vector<f32, N> {
        let mut only = values;
        #[unroll]
        for j in 0..N::value() {
            if !self.has(i * N::value() + j) {
                only.insert(j, 0.0);
            }
        }
        only
    }
}

/// Turns the scores of a query into probabilities. One cube per query.
#[cube(launch_unchecked)]
pub(super) fn softmax_kernel<P: Float, I: Int, N: Size>(
    scores: &Tensor<Vector<f32, N>>,
    starts: &Tensor<I>,
    probs: &mut Tensor<Vector<P, N>>,
    // `[batch, heads, seq]`
    log_sum_exps: &mut Tensor<f32>,
    all_rows: usize,
    block: Scores,
    #[comptime] units: usize,
    #[define(P, I)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= all_rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let seen = block.seen(row, starts);
    let first = row * block.vectors;
    let scales = Vector::<f32, N>::new(block.scale);
    // Vectors with visible keys.
    let (from, to) = (seen.from / N::value(), (seen.to - 1) / N::value() + 1);

    let mut most = f32::new(LEAST);
    for i in range_stepped(from + UNIT_POS as usize, to, units) {
        let x = scores[first + i] * scales;
        #[unroll]
        for j in 0..N::value() {
            if seen.has(i * N::value() + j) {
                most = max(most, x.extract(j));
            }
        }
    }
    let most = cube_max(most, &mut scratch, units);
    let mut sum = 0.0f32;
    for i in range_stepped(from + UNIT_POS as usize, to, units) {
        let x = (scores[first + i] * scales - Vector::new(most)).exp();
        #[unroll]
        for j in 0..N::value() {
            if seen.has(i * N::value() + j) {
                sum += x.extract(j);
            }
        }
    }
    let sum = cube_sum(sum, &mut scratch, units);
    if UNIT_POS == 0 {
        log_sum_exps[seen.place] = most + sum.ln();
    }
    let factor = Vector::<f32, N>::new(1.0 / sum);
    for i in range_stepped(UNIT_POS as usize, block.vectors, units) {
        let mut prob = Vector::<f32, N>::new(0.0);
        if seen.touches::<N>(i) {
            prob = (scores[first + i] * scales - Vector::new(most)).exp() * factor;
            prob = seen.only(prob, i);
        }
        probs[first + i] = Vector::cast_from(prob);
    }
}

/// Turns the scores of queries and the gradients of their probabilities into the probabilities and the
/// gradients of the products.
#[cube(launch_unchecked)]
pub(super) fn slopes_kernel<P: Float, I: Int, N: Size>(
    scores: &Tensor<Vector<f32, N>>,
    grads: &Tensor<Vector<f32, N>>,
    starts: &Tensor<I>,
    // For each query and head, `[batch, heads, seq]`: its log-sum-exp, and the sum over the keys of each
    // probability times its gradient.
    sums: &Tensor<f32>,
    probs: &mut Tensor<Vector<P, N>>,
    slopes: &mut Tensor<Vector<P, N>>,
    count: usize,
    block: Scores,
    #[define(P, I)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (row, i) = (ABSOLUTE_POS / block.vectors, ABSOLUTE_POS % block.vectors);
    let seen = block.seen(row, starts);
    let mut prob = Vector::<f32, N>::new(0.0);
    let mut slope = Vector::<f32, N>::new(0.0);
    if seen.touches::<N>(i) {
        let scales = Vector::<f32, N>::new(block.scale);
        let log_sum_exp = Vector::<f32, N>::new(sums[2 * seen.place]);
        prob = (scores[ABSOLUTE_POS] * scales - log_sum_exp).exp();
        prob = seen.only(prob, i);
        let mean = Vector::<f32, N>::new(sums[2 * seen.place + 1]);
        slope = prob * (grads[ABSOLUTE_POS] - mean) * scales;
    }
    probs[ABSOLUTE_POS] = Vector::cast_from(prob);
    slopes[ABSOLUTE_POS] = Vector::cast_from(slope);
}
