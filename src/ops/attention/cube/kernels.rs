//! The passes between the products.

use crate::ops::cube::{cube_max, cube_sum, cubecl, vector_total};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, since WGSL has no infinity.
const LEAST: f32 = -1e30;

/// Where an element of the layout by heads, `[batch, kv_heads, group, rows, dim]`, lies in `[tokens, heads * dim]`
/// of which it holds the rows from `start`; in vectors.
#[cube]
fn place_in_tokens(
    position: usize,
    seq: usize,
    start: usize,
    rows: usize,
    heads: usize,
    vectors: usize,
) -> usize {
    let i = position % vectors;
    let row = position / vectors % rows;
    let head = position / (vectors * rows);
    ((head / heads * seq + start + row) * heads + head % heads) * vectors + i
}

#[cube(launch_unchecked)]
pub(super) fn gather_kernel<F: Float, N: Size>(
    tokens: &Tensor<Vector<F, N>>,
    by_head: &mut Tensor<Vector<F, N>>,
    count: usize,
    seq: usize,
    start: usize,
    rows: usize,
    heads: usize,
    vectors: usize,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    by_head[ABSOLUTE_POS] = tokens[place_in_tokens(ABSOLUTE_POS, seq, start, rows, heads, vectors)];
}

#[cube(launch_unchecked)]
pub(super) fn scatter_kernel<G: Float, F: Float, N: Size>(
    by_head: &Tensor<Vector<G, N>>,
    tokens: &mut Tensor<Vector<F, N>>,
    count: usize,
    seq: usize,
    start: usize,
    rows: usize,
    heads: usize,
    vectors: usize,
    #[define(G, F)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let place = place_in_tokens(ABSOLUTE_POS, seq, start, rows, heads, vectors);
    tokens[place] = Vector::cast_from(by_head[ABSOLUTE_POS]);
}

/// Adds rows `[matrices, rows, dim]` to those from `start` of `[matrices, seq, dim]`.
#[cube(launch_unchecked)]
pub(super) fn add_kernel<N: Size>(
    part: &Tensor<Vector<f32, N>>,
    sums: &mut Tensor<Vector<f32, N>>,
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
    sums[(matrix * seq + start) * vectors + rest] += part[ABSOLUTE_POS];
}

/// For each query and head, `[batch, heads, seq]`, its log-sum-exp, and the sum over a head's values of the products
/// of two tensors `[tokens, heads * dim]`.
#[cube(launch_unchecked)]
pub(super) fn sums_kernel<F: Float, N: Size>(
    a: &Tensor<Vector<F, N>>,
    b: &Tensor<Vector<F, N>>,
    log_sum_exps: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    count: usize,
    seq: usize,
    heads: usize,
    vectors: usize,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let first = place_in_tokens(ABSOLUTE_POS * vectors, seq, 0, seq, heads, vectors);
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in first..first + vectors {
        sum += Vector::<f32, N>::cast_from(a[i]) * Vector::cast_from(b[i]);
    }
    sums[2 * ABSOLUTE_POS] = log_sum_exps[ABSOLUTE_POS];
    sums[2 * ABSOLUTE_POS + 1] = vector_total(sum);
}

/// Turns the scores of a query, `[batch, heads, rows, keys]`, into probabilities; a cube for each.
#[cube(launch_unchecked)]
pub(super) fn softmax_kernel<P: Float, I: Int, N: Size>(
    scores: &Tensor<Vector<f32, N>>,
    starts: &Tensor<I>,
    probs: &mut Tensor<Vector<P, N>>,
    // `[batch, heads, seq]`
    log_sum_exps: &mut Tensor<f32>,
    all_rows: usize,
    seq: usize,
    heads: usize,
    first_query: usize,
    rows: usize,
    first_key: usize,
    vectors: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(P, I)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= all_rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let head = row / rows;
    let query = first_query + row % rows;
    let start = usize::cast_from(starts[head / heads * seq + query]);
    // The keys that the query sees, among those of the block.
    let (from, to) = (max(start, first_key) - first_key, query + 1 - first_key);
    let first = row * vectors;
    let scales = Vector::<f32, N>::new(scale);

    let mut most = f32::new(LEAST);
    for i in range_stepped(from / N::value() + UNIT_POS as usize, (to - 1) / N::value() + 1, units)
    {
        let x = scores[first + i] * scales;
        #[unroll]
        for j in 0..N::value() {
            let key = i * N::value() + j;
            if key >= from && key < to {
                most = max(most, x.extract(j));
            }
        }
    }
    let most = cube_max(most, &mut scratch, units);
    let mut sum = 0.0f32;
    for i in range_stepped(from / N::value() + UNIT_POS as usize, (to - 1) / N::value() + 1, units)
    {
        let x = (scores[first + i] * scales - Vector::new(most)).exp();
        #[unroll]
        for j in 0..N::value() {
            let key = i * N::value() + j;
            if key >= from && key < to {
                sum += x.extract(j);
            }
        }
    }
    let sum = cube_sum(sum, &mut scratch, units);
    if UNIT_POS == 0 {
        log_sum_exps[head * seq + query] = most + sum.ln();
    }
    let factor = Vector::<f32, N>::new(1.0 / sum);
    for i in range_stepped(UNIT_POS as usize, vectors, units) {
        let mut prob = Vector::<f32, N>::new(0.0);
        if (i + 1) * N::value() > from && i * N::value() < to {
            prob = (scores[first + i] * scales - Vector::new(most)).exp() * factor;
            #[unroll]
            for j in 0..N::value() {
                let key = i * N::value() + j;
                if key < from || key >= to {
                    prob.insert(j, 0.0);
                }
            }
        }
        probs[first + i] = Vector::cast_from(prob);
    }
}

/// Turns the scores of queries, and the gradients of their probabilities, into the probabilities and the gradients of
/// what the products gave as scores.
#[cube(launch_unchecked)]
pub(super) fn slopes_kernel<P: Float, I: Int, N: Size>(
    scores: &Tensor<Vector<f32, N>>,
    grads: &Tensor<Vector<f32, N>>,
    starts: &Tensor<I>,
    // For each query and head, `[batch, heads, seq]`, its log-sum-exp, and the sum over the keys of each probability
    // times its gradient.
    sums: &Tensor<f32>,
    probs: &mut Tensor<Vector<P, N>>,
    slopes: &mut Tensor<Vector<P, N>>,
    count: usize,
    seq: usize,
    heads: usize,
    first_query: usize,
    rows: usize,
    first_key: usize,
    vectors: usize,
    scale: f32,
    #[define(P, I)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (row, i) = (ABSOLUTE_POS / vectors, ABSOLUTE_POS % vectors);
    let head = row / rows;
    let query = first_query + row % rows;
    let start = usize::cast_from(starts[head / heads * seq + query]);
    let (from, to) = (max(start, first_key) - first_key, query + 1 - first_key);
    let mut prob = Vector::<f32, N>::new(0.0);
    let mut slope = Vector::<f32, N>::new(0.0);
    if (i + 1) * N::value() > from && i * N::value() < to {
        let scales = Vector::<f32, N>::new(scale);
        let log_sum_exp = Vector::<f32, N>::new(sums[2 * (head * seq + query)]);
        prob = (scores[ABSOLUTE_POS] * scales - log_sum_exp).exp();
        #[unroll]
        for j in 0..N::value() {
            let key = i * N::value() + j;
            if key < from || key >= to {
                prob.insert(j, 0.0);
            }
        }
        let mean = Vector::<f32, N>::new(sums[2 * (head * seq + query) + 1]);
        slope = prob * (grads[ABSOLUTE_POS] - mean) * scales;
    }
    probs[ABSOLUTE_POS] = Vector::cast_from(prob);
    slopes[ABSOLUTE_POS] = Vector::cast_from(slope);
}
