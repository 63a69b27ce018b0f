//! Attention of new tokens to cached keys and values, as in generation. Has no gradient.

use super::backends::{cast, dispatched, for_ndarray, kernel_trait, widen};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor};

kernel_trait! {
    /// Attention on plain backend tensors, with the shapes of [`cached_attention`].
    trait CachedAttentionKernel {
        /// Returns the output, like `q`.
        #[fusion(dtype = q, shape = q)]
        fn attend_to_cache(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            mask: FloatTensor<Self>,
            first: usize,
        ) -> FloatTensor<Self> {
            portable::<Self>(q, k, v, mask, first)
        }
    }
}

for_ndarray! { CachedAttentionKernel }

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    new: usize,
    /// Keys that are used; the cache may have others before and after them.
    keys: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Sizes {
    fn of(q: &[usize], k: &[usize], mask: &[usize]) -> Self {
        let (rows, kv_heads, dim) = (k[0], k[1], k[3]);
        Self { rows, new: mask[2], keys: mask[3], heads: q[1] / dim, kv_heads, dim }
    }
}

fn portable<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    mask: FloatTensor<B>,
    first: usize,
) -> FloatTensor<B> {
    let Sizes { rows, new, keys, heads, kv_heads, dim } =
        Sizes::of(&q.shape(), &k.shape(), &mask.shape());
    let (group, dtype) = (heads / kv_heads, q.dtype());
    let seen = [0..rows, 0..kv_heads, first..first + keys, 0..dim].map(Slice::from);
    let [k, v] = [k, v].map(|all| B::float_slice(all, &seen));
    // The heads of a group share keys, so they become rows of one product.
    let q = B::float_reshape(q, [rows, new, kv_heads, group, dim].into());
    let q = B::float_permute(q, &[0, 2, 3, 1, 4]);
    let q = B::float_reshape(q, [rows, kv_heads, group * new, dim].into());
    let scores = widen::<B>(B::float_matmul(q, B::float_transpose(k)));
    let scores = B::float_mul_scalar(scores, (dim as f64).powf(-0.5).into());
    let scores = B::float_reshape(scores, [rows, kv_heads * group, new, keys].into());
    let scores = B::float_add(scores, mask);
    let probs = B::float_exp(B::float_sub(scores.clone(), B::float_max_dim(scores, 3)));
    let probs = B::float_div(probs.clone(), B::float_sum_dim(probs, 3));
    let probs = B::float_reshape(probs, [rows, kv_heads, group * new, keys].into());
    let mixed = B::float_matmul(cast::<B>(probs, dtype.into()), v);
    let mixed = B::float_reshape(mixed, [rows, kv_heads, group, new, dim].into());
    let mixed = B::float_permute(mixed, &[0, 3, 1, 2, 4]);
    B::float_reshape(mixed, [rows * new, heads * dim].into())
}

dispatched! {
    []
    trait CachedAttentionOps {
        fn cached_attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            mask: FloatTensor<Self>,
            first: usize,
        ) -> FloatTensor<Self> {
            <Self as CachedAttentionKernel>::attend_to_cache(q, k, v, mask, first)
        }
    }
}

/// Computes `softmax(q k^T / sqrt(head_dim) + mask) v` for each head, with the softmax in f32 (f64 for f64).
/// Query head `h` uses key and value head `h / (heads / kv_heads)`.
///
/// # Shapes
/// - `q`: `[rows * new, heads * head_dim]`
/// - `k`, `v`: `[rows, kv_heads, capacity, head_dim]`. Only as many keys as the mask has are used, starting
///   at `first`; the others cost nothing.
/// - `mask`: `[rows, 1, new, keys]` in f32 (f64 for f64), 0 for visible keys and a large negative number for
///   hidden ones; each query must see at least one key
/// - result: like `q`
///
/// # Panics
/// If the shapes do not match, a size is 0, or a tensor is on an autodiff device.
pub fn cached_attention(
    q: Tensor<2>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Tensor<4>,
    first: usize,
) -> Tensor<2> {
    let ([tokens, width], [rows, kv_heads, capacity, dim]) = (q.dims(), k.dims());
    let [mask_rows, one, new, keys] = mask.dims();
    assert_eq!(k.dims(), v.dims(), "cached_attention: the shapes of k and v differ");
    assert!(
        [tokens, width, kv_heads, dim, keys].iter().all(|size| *size > 0),
        "cached_attention: a size is 0"
    );
    assert!(
        mask_rows == rows
            && one == 1
            && tokens == rows * new
            && first.checked_add(keys).is_some_and(|end| end <= capacity),
        "cached_attention: a mask {:?} from key {first} on does not fit {tokens} tokens and a cache \
         {:?}",
        mask.dims(),
        k.dims()
    );
    assert!(
        width.is_multiple_of(kv_heads * dim),
        "cached_attention: the width {width} of q is not that of a multiple of {kv_heads} heads \
         of {dim}"
    );
    Tensor::from_dispatch(<Dispatch as CachedAttentionOps>::cached_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        mask.into_dispatch(),
        first,
    ))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, Matrix, MatrixMut, Threads, simd_fn};
    use super::*;
    use burn::backend::Flex;
    use rayon::prelude::*;

    impl CachedAttentionKernel for Flex {
        /// A task handles the new tokens of a row and the heads that share keys.
        fn attend_to_cache(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            mask: FloatTensor<Self>,
            first: usize,
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&q, &k, &v, &mask]) {
                return portable::<Self>(q, k, v, mask, first);
            }
            let sizes = Sizes::of(&q.shape(), &k.shape(), &mask.shape());
            let Sizes { rows, new, keys, heads, kv_heads, dim } = sizes;
            let (capacity, width, group) = (k.shape()[2], heads * dim, heads / kv_heads);
            let [q, k, v, mask] = [q, k, v, mask].map(kernel::contiguous);
            let [q, k, v, mask] = [&q, &k, &v, &mask].map(|tensor| tensor.storage::<f32>());
            let scale = (dim as f64).powf(-0.5) as f32;
            let mut out = Buffer::any(q.len());
            let all = out.shared();
            (0..rows * kv_heads).into_par_iter().for_each_init(
                || vec![0.0; group * keys],
                |scores, task| {
                    let (row, kv_head) = (task / kv_heads, task % kv_heads);
                    let cached = ((row * kv_heads + kv_head) * capacity + first) * dim;
                    let (k, v) = (&k[cached..][..keys * dim], &v[cached..][..keys * dim]);
                    for token in row * new..(row + 1) * new {
                        let place = token * width + kv_head * group * dim;
                        let mask = &mask[token * keys..][..keys];
                        // SAFETY: the heads and tokens of tasks are disjoint.
                        let out = unsafe { all.slice(place..place + group * dim) };
                        attend_group(&q[place..][..group * dim], [k, v], mask, scale, scores, out);
                    }
                },
            );
            out.into_tensor([rows * new, width])
        }
    }

    /// Handles the heads of a group for one token; `scores` has room for every head and key.
    fn attend_group(
        q: &[f32],
        [k, v]: [&[f32]; 2],
        mask: &[f32],
        scale: f32,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let (dim, group) = (k.len() / mask.len(), scores.len() / mask.len());
        // Skips hidden keys at the front: they then cost nothing and do not shift any sum.
        let hidden = mask.iter().position(|mask| *mask == 0.0).unwrap_or(0);
        let ([k, v], mask) = ([k, v].map(|all| &all[hidden * dim..]), &mask[hidden..]);
        let keys = mask.len();
        let scores = &mut scores[..group * keys];
        if !kernel::has_few_rows(group) {
            return attend_plainly(q, [k, v], mask, scale, scores, out);
        }
        let [k, v] = [k, v].map(|all| Matrix::dense(all, [keys, dim]));
        let q = Matrix::dense(q, [group, dim]);
        let all = MatrixMut::dense(scores, [group, keys]);
        all.set_product(1.0, q, k.transposed(), Threads::OneFewRows);
        for scores in scores.chunks_exact_mut(keys) {
            softmax(scores, mask, scale);
        }
        let probs = Matrix::dense(scores, [group, keys]);
        MatrixMut::dense(out, [group, dim]).set_product(1.0, probs, v, Threads::OneFewRows);
    }

    simd_fn! {
        /// Computes `softmax(scores * scale + mask)`.
        fn softmax(scores: &mut [f32], mask: &[f32], scale: f32) {
            for (score, mask) in scores.iter_mut().zip(mask) {
                *score = *score * scale + mask;
            }
            let max = kernel::max(scores);
            let factor = 1.0 / kernel::exp_sum(scores, max);
            scores.iter_mut().for_each(|x| *x *= factor);
        }
    }

    simd_fn! {
        /// Like [`attend_group`], for CPUs without products of few rows, and for larger groups.
        fn attend_plainly(
            q: &[f32],
            cached: [&[f32]; 2],
            mask: &[f32],
            scale: f32,
            scores: &mut [f32],
            out: &mut [f32],
        ) {
            let [k, v] = cached;
            let keys = mask.len();
            let (dim, group) = (k.len() / keys, scores.len() / keys);
            for (key, k) in k.chunks_exact(dim).enumerate() {
                for (head, q) in q.chunks_exact(dim).enumerate() {
                    scores[head * keys + key] = kernel::dot(q, k);
                }
            }
            for scores in scores.chunks_exact_mut(keys) {
                softmax(scores, mask, scale);
            }
            out.fill(0.0);
            for (key, v) in v.chunks_exact(dim).enumerate() {
                for head in 0..group {
                    let prob = scores[head * keys + key];
                    let out = &mut out[head * dim..(head + 1) * dim];
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += prob * v);
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn both_ways_attend_as_sums_in_f64_do_and_padding_changes_no_bit() {
            let values = |count: usize, seed: usize| -> Vec<f32> {
                (0..count).map(|i| ((i * 7919 + seed * 31) % 1000) as f32 / 500.0 - 1.0).collect()
            };
            for (dim, keys, group) in
                [(64, 100, 3), (32, 1, 7), (48, 33, 1), (16, 70, 5), (100, 31, 33), (6, 9, 2)]
            {
                let scale = (dim as f32).powf(-0.5);
                let (q, k) = (values(group * dim, 1), values(keys * dim, 2));
                let (v, mask) = (values(keys * dim, 3), vec![0.0; keys]);
                let mut expected = vec![0.0; group * dim];
                for head in 0..group {
                    let dot = |key: usize| {
                        (0..dim)
                            .map(|i| f64::from(q[head * dim + i]) * f64::from(k[key * dim + i]))
                            .sum::<f64>()
                    };
                    let exps: Vec<f64> =
                        (0..keys).map(|key| (dot(key) * f64::from(scale)).exp()).collect();
                    let sum: f64 = exps.iter().sum();
                    for i in 0..dim {
                        expected[head * dim + i] = (0..keys)
                            .map(|key| exps[key] / sum * f64::from(v[key * dim + i]))
                            .sum::<f64>();
                    }
                }
                let close = |out: &[f32]| {
                    let pairs = out.iter().zip(&expected);
                    pairs.into_iter().all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5)
                };
                let mut scores = vec![f32::NAN; group * keys];
                let mut out = vec![f32::NAN; group * dim];
                attend_group(&q, [&k, &v], &mask, scale, &mut scores, &mut out);
                assert!(close(&out), "{dim} {keys} {group}");
                let mut plain = vec![f32::NAN; group * dim];
                attend_plainly(&q, [&k, &v], &mask, scale, &mut scores, &mut plain);
                assert!(close(&plain), "{dim} {keys} {group}");
                // Seven hidden keys at the front.
                let hide = |all: &[f32]| [&vec![9.0; 7 * dim], all].concat();
                let mask = [vec![-1e9; 7], mask].concat();
                let mut scores = vec![f32::NAN; group * (keys + 7)];
                let mut padded = vec![f32::NAN; group * dim];
                attend_group(&q, [&hide(&k), &hide(&v)], &mask, scale, &mut scores, &mut padded);
                assert!(padded == out, "{dim} {keys} {group}");
            }
        }
    }
}
