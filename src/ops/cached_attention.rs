//! Attention of new tokens to keys and values in a cache, as in generation. No gradient.

use super::backends::{cast, dispatched, for_each_portable_backend, widen};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor};

/// On plain backend tensors, shaped as in [`cached_attention`].
pub(crate) trait CachedAttentionKernel: Backend {
    /// The output, like `q`.
    fn attend_to_cache(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::<Self>(q, k, v, mask)
    }
}

for_each_portable_backend! { CachedAttentionKernel {} }

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    new: usize,
    /// Keys that there are; the cache may have room for more.
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
) -> FloatTensor<B> {
    let Sizes { rows, new, keys, heads, kv_heads, dim } =
        Sizes::of(&q.shape(), &k.shape(), &mask.shape());
    let (group, dtype) = (heads / kv_heads, q.dtype());
    let seen = [0..rows, 0..kv_heads, 0..keys, 0..dim].map(Slice::from);
    let [k, v] = [k, v].map(|all| B::float_slice(all, &seen));
    // The heads of a group share keys, so they are rows of one product.
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
        ) -> FloatTensor<Self> {
            <Self as CachedAttentionKernel>::attend_to_cache(q, k, v, mask)
        }
    }
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v` for each head, with the softmax in f32 (f64 for f64);
/// query head `h` uses key and value head `h / (heads / kv_heads)`.
///
/// # Shapes
/// - `q`: `[rows * new, heads * head_dim]`
/// - `k`, `v`: `[rows, kv_heads, capacity, head_dim]`, of which the first `keys` are there
/// - `mask`: `[rows, 1, new, keys]` in f32 (f64 for f64), 0 where a key is seen and a large negative
///   number where it is not; each query sees one key at least
/// - result: like `q`
///
/// # Panics
/// If the shapes do not fit together, a size is 0, or a tensor is on an autodiff device.
pub fn cached_attention(q: Tensor<2>, k: Tensor<4>, v: Tensor<4>, mask: Tensor<4>) -> Tensor<2> {
    let ([tokens, width], [rows, kv_heads, capacity, dim]) = (q.dims(), k.dims());
    let [mask_rows, one, new, keys] = mask.dims();
    assert_eq!(k.dims(), v.dims(), "cached_attention: the shapes of k and v differ");
    assert!(
        [tokens, width, kv_heads, dim, keys].iter().all(|size| *size > 0),
        "cached_attention: a size is 0"
    );
    assert!(
        mask_rows == rows && one == 1 && tokens == rows * new && keys <= capacity,
        "cached_attention: a mask {:?} does not fit {tokens} tokens and a cache {:?}",
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
    ))
}

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
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&q, &k, &v, &mask]) {
                return portable::<Self>(q, k, v, mask);
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
                    let cached = (row * kv_heads + kv_head) * capacity * dim;
                    let (k, v) = (&k[cached..][..keys * dim], &v[cached..][..keys * dim]);
                    for token in row * new..(row + 1) * new {
                        let place = token * width + kv_head * group * dim;
                        let mask = &mask[token * keys..][..keys];
                        // SAFETY: the tasks' heads and tokens are disjoint.
                        let out = unsafe { all.slice(place..place + group * dim) };
                        attend_group(&q[place..][..group * dim], [k, v], mask, scale, scores, out);
                    }
                },
            );
            out.into_tensor([rows * new, width])
        }
    }

    /// The heads of a group for one token; `scores` has room for each head and key.
    fn attend_group(
        q: &[f32],
        cached: [&[f32]; 2],
        mask: &[f32],
        scale: f32,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let keys = mask.len();
        let (group, dim) = (scores.len() / keys, cached[0].len() / keys);
        let [k, v] = cached.map(|all| Matrix::dense(all, [keys, dim]));
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
        /// `softmax(scores * scale + mask)`
        fn softmax(scores: &mut [f32], mask: &[f32], scale: f32) {
            for (score, mask) in scores.iter_mut().zip(mask) {
                *score = *score * scale + mask;
            }
            let max = kernel::max(scores);
            let factor = 1.0 / kernel::exp_sum(scores, max);
            scores.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
