//! Attention in backend operations.
//!
//! The query heads of a group are stacked as rows of one matrix,
//! `[batch, kv_heads, group * queries, head_dim]`. One product with the keys
//! `[batch, kv_heads, keys, head_dim]` then serves the whole group, and its transpose sums the group's
//! gradients. A block of queries uses the keys from the earliest that its first query may see to its own end.
//! Matrix products have the type of the inputs; scores, softmax, and sums of gradients over blocks are f32
//! (f64 for f64).

use super::super::backends::{cast, wide, widen};
use super::{AttentionShape, Extent, Saved};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{FloatDType, IntDType, Slice};
use std::ops::Range;

/// Scores per block, in elements (128 MiB in f32).
const SCORES_PER_BLOCK: usize = 32 * 1024 * 1024;
/// Queries per block for short segments.
const SHORT_BLOCK: usize = 256;
/// Fewer queries make matrix products inefficient.
const LEAST_QUERIES: usize = 32;
/// Added to the scores of hidden keys. Finite, because WGSL has no infinity, and large enough that `exp` of
/// its difference from any visible score is 0.
const HIDDEN: f32 = -1e30;

/// Returns the number of queries per block: as many as memory allows, but only a few for short segments,
/// because most scores of a block then belong to other segments. Much smaller blocks would be limited by
/// launch overhead.
pub(super) fn query_block(Extent { shape, longest }: Extent) -> usize {
    let most = if longest < shape.seq { longest.max(SHORT_BLOCK) } else { shape.seq };
    let keys = (most + longest).min(shape.seq);
    let scores_per_query = shape.batch * shape.heads * keys;
    (SCORES_PER_BLOCK / scores_per_query).max(LEAST_QUERIES).min(most).min(shape.seq)
}

fn blocks(seq: usize, block: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    (0..seq.div_ceil(block)).map(move |i| i * block..((i + 1) * block).min(seq))
}

/// Returns the output and the log-sum-exp of the scores, `[batch, kv_heads, group, seq, 1]`.
pub(super) fn forward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    segment_starts: IntTensor<B>,
    extent: Extent,
) -> (FloatTensor<B>, FloatTensor<B>) {
    forward_in_blocks::<B>(q, k, v, segment_starts, extent, query_block(extent))
}

fn forward_in_blocks<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    segment_starts: IntTensor<B>,
    extent: Extent,
    block: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = extent.shape;
    let call = Call::<B>::new(extent, segment_starts, q.dtype().into());
    let (q, k, v) = (call.split_queries(q), call.split_keys(k), call.split_keys(v));
    let (mut outs, mut log_sum_exps) = (vec![], vec![]);
    for queries in blocks(shape.seq, block) {
        let rows = queries.len();
        let seen = call.keys_of(&queries);
        let keys = |x: &FloatTensor<B>| call.slice_keys(x.clone(), &seen);
        let scores = call.scores(&q, keys(&k), &queries);
        let max = B::float_max_dim(scores.clone(), 4);
        let exps = B::float_exp(B::float_sub(scores, max.clone()));
        let sums = B::float_sum_dim(exps.clone(), 4);
        log_sum_exps.push(B::float_add(max, B::float_log(sums.clone())));
        let out = B::float_matmul(call.join_group(exps), keys(&v));
        outs.push(B::float_div(widen::<B>(call.split_group(out, rows)), sums));
    }
    let out = call.merge_queries(B::float_cat(outs, 3));
    (cast::<B>(out, call.dtype), B::float_cat(log_sum_exps, 3))
}

/// Returns the gradients of `q`, `k`, and `v`.
pub(super) fn backward<B: Backend>(
    grad: FloatTensor<B>,
    saved: Saved<B>,
    extent: Extent,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    backward_in_blocks::<B>(grad, saved, extent, query_block(extent)).into()
}

fn backward_in_blocks<B: Backend>(
    grad: FloatTensor<B>,
    saved: Saved<B>,
    extent: Extent,
    block: usize,
) -> [FloatTensor<B>; 3] {
    let shape = extent.shape;
    let Saved { q, k, v, segment_starts, out, log_sum_exp } = saved;
    let call = Call::<B>::new(extent, segment_starts, q.dtype().into());
    let grad = call.split_queries(grad);
    // For each query, the sum over its keys of each probability times its gradient.
    let product = B::float_mul(widen::<B>(grad.clone()), widen::<B>(call.split_queries(out)));
    let mean = B::float_sum_dim(product, 4);
    let (q, k, v) = (call.split_queries(q), call.split_keys(k), call.split_keys(v));
    let mut grad_q = vec![];
    let (mut grad_k, mut grad_v) = (None, None);
    // Starts with the last block. It may see all keys, so that the sums have their full size from the start.
    for queries in blocks(shape.seq, block).rev() {
        let (rows, seen) = (queries.len(), call.keys_of(&queries));
        let keys = |x: &FloatTensor<B>| call.slice_keys(x.clone(), &seen);
        let of_block = |x: &FloatTensor<B>| call.slice_queries(x.clone(), &queries);
        let scores = call.scores(&q, keys(&k), &queries);
        let probs = B::float_exp(B::float_sub(scores, of_block(&log_sum_exp)));
        let grad_out = call.join_group(of_block(&grad));
        let slopes = B::float_matmul(grad_out.clone(), B::float_transpose(keys(&v)));
        let slopes = B::float_sub(widen::<B>(call.split_group(slopes, rows)), of_block(&mean));
        let slopes = B::float_mul(probs.clone(), slopes);
        let slopes = B::float_mul_scalar(slopes, shape.scale().into());
        let (probs, slopes) = (call.join_group(probs), call.join_group(slopes));
        call.add_keys(&mut grad_v, B::float_matmul(B::float_transpose(probs), grad_out), &seen);
        let queries = call.join_group(of_block(&q));
        let slopes_transposed = B::float_transpose(slopes.clone());
        call.add_keys(&mut grad_k, B::float_matmul(slopes_transposed, queries), &seen);
        grad_q.push(call.split_group(B::float_matmul(slopes, keys(&k)), rows));
    }
    grad_q.reverse();
    let merge_keys = |x: Option<FloatTensor<B>>| {
        cast::<B>(call.merge_keys(x.expect("at least one block")), call.dtype)
    };
    [call.merge_queries(B::float_cat(grad_q, 3)), merge_keys(grad_k), merge_keys(grad_v)]
}

/// Sizes and constants of a call, and its tensor layouts.
struct Call<B: Backend> {
    shape: AttentionShape,
    /// See [`Extent`].
    longest: usize,
    /// `[batch, seq, 1]`
    segment_starts: IntTensor<B>,
    /// Type of the inputs and matrix products.
    dtype: FloatDType,
}

impl<B: Backend> Call<B> {
    fn new(
        Extent { shape, longest }: Extent,
        segment_starts: IntTensor<B>,
        dtype: FloatDType,
    ) -> Self {
        let segment_starts = B::int_reshape(segment_starts, [shape.batch, shape.seq, 1].into());
        Self { shape, longest, segment_starts, dtype }
    }

    /// Rearranges `[tokens, heads * dim]` to `[batch, kv_heads, group, seq, dim]`.
    fn split_queries(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let AttentionShape { batch, seq, kv_heads, head_dim, .. } = self.shape;
        let x = B::float_reshape(x, [batch, seq, kv_heads, self.shape.group(), head_dim].into());
        B::float_permute(x, &[0, 2, 3, 1, 4])
    }

    fn merge_queries(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let x = B::float_permute(x, &[0, 3, 1, 2, 4]);
        B::float_reshape(x, [self.shape.tokens(), self.shape.width()].into())
    }

    /// Rearranges `[tokens, kv_heads * dim]` to `[batch, kv_heads, seq, dim]`.
    fn split_keys(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let AttentionShape { batch, seq, kv_heads, head_dim, .. } = self.shape;
        let x = B::float_reshape(x, [batch, seq, kv_heads, head_dim].into());
        B::float_permute(x, &[0, 2, 1, 3])
    }

    fn merge_keys(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let x = B::float_permute(x, &[0, 2, 1, 3]);
        B::float_reshape(x, [self.shape.tokens(), self.shape.kv_width()].into())
    }

    /// Returns a range of queries of `[batch, kv_heads, group, seq, n]`.
    fn slice_queries(&self, x: FloatTensor<B>, queries: &Range<usize>) -> FloatTensor<B> {
        let all = x.shape();
        let slices = [0..all[0], 0..all[1], 0..all[2], queries.clone(), 0..all[4]];
        B::float_slice(x, &slices.map(Slice::from))
    }

    /// Returns the keys that queries may see: none after the last query, and none before the longest segment
    /// that ends with the first query.
    fn keys_of(&self, queries: &Range<usize>) -> Range<usize> {
        (queries.start + 1).saturating_sub(self.longest)..queries.end
    }

    /// Returns a range of keys of `[batch, kv_heads, seq, dim]`.
    fn slice_keys(&self, x: FloatTensor<B>, keys: &Range<usize>) -> FloatTensor<B> {
        B::float_slice(x, &self.key_slices(keys))
    }

    fn key_slices(&self, keys: &Range<usize>) -> [Slice; 4] {
        let AttentionShape { batch, kv_heads, head_dim, .. } = self.shape;
        [0..batch, 0..kv_heads, keys.clone(), 0..head_dim].map(Slice::from)
    }

    /// Adds the gradients of a range of keys to the total.
    fn add_keys(
        &self,
        sum: &mut Option<FloatTensor<B>>,
        part: FloatTensor<B>,
        keys: &Range<usize>,
    ) {
        let part = widen::<B>(part);
        *sum = Some(match sum.take() {
            None if *keys == (0..self.shape.seq) => part,
            earlier => {
                let AttentionShape { batch, seq, kv_heads, head_dim, .. } = self.shape;
                let sum = earlier.unwrap_or_else(|| {
                    let size = [batch, kv_heads, seq, head_dim].into();
                    B::float_zeros(size, &self.segment_starts.device(), wide(self.dtype.into()))
                });
                let part = B::float_add(self.slice_keys(sum.clone(), keys), part);
                B::float_slice_assign(sum, &self.key_slices(keys), part)
            }
        });
    }

    /// Reshapes `[batch, kv_heads, group, queries, n]` to `[batch, kv_heads, group * queries, n]`, in the
    /// type of the matrix products.
    fn join_group(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let all = x.shape();
        let x = B::float_reshape(x, [all[0], all[1], all[2] * all[3], all[4]].into());
        cast::<B>(x, self.dtype)
    }

    fn split_group(&self, x: FloatTensor<B>, queries: usize) -> FloatTensor<B> {
        let all = x.shape();
        B::float_reshape(x, [all[0], all[1], self.shape.group(), queries, all[3]].into())
    }

    /// Scores `[batch, kv_heads, group, queries, keys]` of a range of queries and the keys of
    /// [`Call::keys_of`].
    fn scores(
        &self,
        q: &FloatTensor<B>,
        keys: FloatTensor<B>,
        queries: &Range<usize>,
    ) -> FloatTensor<B> {
        let q = self.join_group(self.slice_queries(q.clone(), queries));
        let scores = widen::<B>(B::float_matmul(q, B::float_transpose(keys)));
        let scores = B::float_mul_scalar(scores, self.shape.scale().into());
        B::float_add(self.split_group(scores, queries.len()), self.mask(queries))
    }

    /// Returns the mask `[batch, 1, 1, queries, keys]`: 0 for visible keys, a large negative number for
    /// hidden ones. Addition broadcasts it over heads, so no mask of the scores' size is created.
    fn mask(&self, queries: &Range<usize>) -> FloatTensor<B> {
        let seen = self.keys_of(queries);
        let (batch, rows, cols) = (self.shape.batch, queries.len(), seen.len());
        let device = self.segment_starts.device();
        let bool_dtype = get_or_init_device_settings::<B>(&device).bool_dtype;
        let indices = |range: Range<usize>, size: [usize; 3]| {
            let range = range.start as i64..range.end as i64;
            let dtype = IntDType::from(self.segment_starts.dtype());
            B::int_reshape(B::int_arange(range, &device, dtype), size.into())
        };
        let keys = indices(seen, [1, 1, cols]);
        let queries_slice = [0..batch, queries.clone(), 0..1].map(Slice::from);
        let starts = B::int_slice(self.segment_starts.clone(), &queries_slice);
        let own = indices(queries.clone(), [1, rows, 1]);
        let wide = wide(self.dtype.into());
        let later = B::bool_into_float(B::int_greater(keys.clone(), own, bool_dtype), wide);
        let other = B::bool_into_float(B::int_lower(keys, starts, bool_dtype), wide);
        let hidden = B::float_mul_scalar(B::float_add(other, later), HIDDEN.into());
        B::float_reshape(hidden, [batch, 1, 1, rows, cols].into())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;

    const SHAPE: AttentionShape =
        AttentionShape { batch: 2, seq: 11, heads: 4, kv_heads: 2, head_dim: 3 };

    fn tensor(seed: usize, width: usize) -> FlexTensor {
        let values: Vec<f64> =
            (0..22 * width).map(|i| ((i * 37 + seed * 11) % 101) as f64 / 50.0 - 1.0).collect();
        FlexTensor::from_data(TensorData::new(values, [22, width]))
    }

    fn results(block: usize, longest: usize) -> Vec<Vec<f64>> {
        let extent = Extent { shape: SHAPE, longest };
        let starts: Vec<i64> = [0, 0, 0, 0, 4, 4, 4, 7, 7, 9, 9].repeat(2);
        let segment_starts = FlexTensor::from_data(TensorData::new(starts, [22]));
        let (q, k, v) = (tensor(1, 12), tensor(2, 6), tensor(3, 6));
        let starts = segment_starts.clone();
        let (out, log_sum_exp) =
            forward_in_blocks::<Flex>(q.clone(), k.clone(), v.clone(), starts, extent, block);
        let saved = Saved { q, k, v, segment_starts, out: out.clone(), log_sum_exp };
        let grad = tensor(4, 12);
        let [grad_q, grad_k, grad_v] = backward_in_blocks::<Flex>(grad, saved, extent, block);
        [out, grad_q, grad_k, grad_v].map(|t| t.into_data().iter().collect()).to_vec()
    }

    #[test]
    fn blocks_of_queries_do_not_change_the_result() {
        let expected = results(SHAPE.seq, SHAPE.seq);
        // The longest segment has four tokens.
        for (block, longest) in [(1, 11), (4, 11), (10, 11), (1, 4), (3, 4), (4, 5), (11, 4)] {
            for (found, expected) in results(block, longest).iter().zip(&expected) {
                for (found, expected) in found.iter().zip(expected) {
                    // f64 sums differ only in their order.
                    assert!((found - expected).abs() < 1e-12, "block {block}, {longest}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_queries_stay_below_the_limit() {
        let shape = AttentionShape { batch: 8, seq: 2048, heads: 16, ..SHAPE };
        let whole = |shape: AttentionShape| query_block(Extent { shape, longest: shape.seq });
        assert_eq!(whole(shape), 128);
        assert_eq!(whole(AttentionShape { batch: 999, ..shape }), LEAST_QUERIES);
        assert_eq!(whole(SHAPE), SHAPE.seq);
        // Short segments use smaller blocks, which see fewer keys.
        let within = |batch, longest| {
            query_block(Extent { shape: AttentionShape { batch, ..shape }, longest })
        };
        assert_eq!(within(1, 100), SHORT_BLOCK);
        assert_eq!(within(1, 500), 500);
        assert_eq!(within(999, 100), LEAST_QUERIES);
    }
}
