//! Rotary position embedding (RoPE) in the "rotate half" form of Hugging Face's Llama and Qwen: value `i` of
//! a head is rotated together with value `i + head_dim / 2`.
//!
//! Source: Su et al., "RoFormer", arXiv 2104.09864. The paper pairs neighboring values; checkpoints in
//! Hugging Face format have permuted rows to match this form.

use super::backends::{cast, dispatched, for_ndarray, kernel_trait, wide, widen};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Device, Int, Slice, Tensor, TensorData};

/// How to rotate heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// Values per head.
    pub(super) head_dim: usize,
    /// Whether to rotate backward.
    pub(super) inverse: bool,
}

kernel_trait! {
    /// Rotation on plain backend tensors.
    trait RotaryKernel {
        /// Rotates the first values of each head of `x` `[tokens, heads * head_dim]`, twice as many as the
        /// table has columns, by the angles of the token's position.
        ///
        /// `cos` and `sin` are `[positions, rotated / 2]`; `positions` is `[tokens]`. The inverse rotation is
        /// the transpose, also if the table is scaled, so it is the backward pass.
        #[fusion(dtype = x, shape = x)]
        fn rotate(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            positions: IntTensor<Self>,
            rotation: Rotation,
        ) -> FloatTensor<Self> {
            portable_rotate::<Self>(x, cos, sin, positions, rotation)
        }
    }
}

for_ndarray! { RotaryKernel }

fn portable_rotate<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    positions: IntTensor<B>,
    Rotation { head_dim, inverse }: Rotation,
) -> FloatTensor<B> {
    let ([tokens, width], dtype) = (x.shape().dims(), x.dtype());
    let [_, half] = cos.shape().dims::<2>();
    let heads = width / head_dim;
    let [cos, sin] = [cos, sin].map(|table| {
        let angles = B::float_select(table, 0, positions.clone());
        cast::<B>(B::float_reshape(angles, [tokens, 1, half].into()), wide(dtype))
    });
    let sin = if inverse { B::float_neg(sin) } else { sin };
    let x = widen::<B>(B::float_reshape(x, [tokens, heads, head_dim].into()));
    let part = |range| {
        B::float_slice(x.clone(), &[(0..tokens).into(), (0..heads).into(), Slice::from(range)])
    };
    let (a, b) = (part(0..half), part(half..2 * half));
    let first =
        B::float_sub(B::float_mul(a.clone(), cos.clone()), B::float_mul(b.clone(), sin.clone()));
    let second = B::float_add(B::float_mul(b, cos), B::float_mul(a, sin));
    let mut parts = vec![first, second];
    if 2 * half < head_dim {
        parts.push(part(2 * half..head_dim));
    }
    let rotated = B::float_cat(parts, 2);
    cast::<B>(B::float_reshape(rotated, [tokens, width].into()), dtype.into())
}

dispatched! {
    [Autodiff]
    trait RotaryOps {
        fn rotary(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            positions: IntTensor<Self>,
            head_dim: usize,
        ) -> FloatTensor<Self> {
            let rotation = Rotation { head_dim, inverse: false };
            <Self as RotaryKernel>::rotate(x, cos, sin, positions, rotation)
        }
    }
}

impl<B: RotaryKernel, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        head_dim: usize,
    ) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let rotation = Rotation { head_dim, inverse: false };
        let y = B::rotate(x, cos.clone(), sin.clone(), positions.clone(), rotation);
        match RotaryBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin, positions, head_dim), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl<B: RotaryKernel> Backward<B, 1> for RotaryBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, IntTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (cos, sin, positions, head_dim) = ops.state;
        let rotation = Rotation { head_dim, inverse: true };
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::rotate(grad, cos, sin, positions, rotation));
        }
    }
}

/// Returns the angle per position, in radians, for each pair of a head's values: `theta^(-2 i / head_dim)`
/// for `i` in `0..head_dim / 2`. Source: arXiv 2104.09864.
///
/// # Panics
/// If `head_dim` is 0 or odd.
pub fn rotary_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    assert!(
        head_dim > 0 && head_dim.is_multiple_of(2),
        "rotary_frequencies: head_dim {head_dim} is not a positive even number"
    );
    let half = head_dim / 2;
    (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect()
}

/// Cosines and sines for every position and frequency: `[cos, sin]`, in f32.
///
/// At position `p`, frequency `f` has the angle `p * f` in radians, computed in f64. The frequencies are
/// those of [`rotary_frequencies`], or a model's own.
///
/// # Shapes
/// Both tensors are `[positions, frequencies]`; there are `head_dim / 2` frequencies.
///
/// # Panics
/// If there are no positions or no frequencies.
pub fn rotary_table(positions: usize, frequencies: &[f64], device: &Device) -> [Tensor<2>; 2] {
    assert!(positions > 0, "rotary_table: no positions");
    assert!(!frequencies.is_empty(), "rotary_table: no frequencies");
    let half = frequencies.len();
    [f64::cos as fn(f64) -> f64, f64::sin].map(|f| {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |w| p as f64 * w));
        let values: Vec<f32> = angles.map(|angle| f(angle) as f32).collect();
        Tensor::from_data(TensorData::new(values, [positions, half]), device)
    })
}

/// Rotates each head of `x` by the angles of its token's position, in the rotate-half form: with halves `a`
/// and `b` of a head, `[a cos - b sin, b cos + a sin]`.
///
/// The table (see [`rotary_table`]) is a constant and gets no gradient. Source: arXiv 2104.09864.
///
/// # Shapes
/// - `x`: `[tokens, heads * head_dim]`
/// - `cos`, `sin`: `[table length, head_dim / 2]`
/// - `positions`: `[tokens]`, each in `0..table length`
/// - result: like `x`
///
/// # Panics
/// If the shapes do not match. On flex also if a position is outside the table; other backends rely on their
/// own indexing checks, because reading values from a GPU would require waiting for it.
pub fn rotary(x: Tensor<2>, table: [Tensor<2>; 2], positions: Tensor<1, Int>) -> Tensor<2> {
    let head_dim = 2 * table[0].dims()[1];
    rotary_partial(x, table, positions, head_dim)
}

/// Like [`rotary`], for the first values of each head, twice as many as the table has columns. The other
/// values are unchanged.
///
/// # Shapes
/// Same as [`rotary`], except that `head_dim` is given and the table is `[table length, rotated / 2]`.
///
/// # Panics
/// See [`rotary`]; also if the table rotates more values than a head has.
pub fn rotary_partial(
    x: Tensor<2>,
    [cos, sin]: [Tensor<2>; 2],
    positions: Tensor<1, Int>,
    head_dim: usize,
) -> Tensor<2> {
    let ([tokens, width], [length, half]) = (x.dims(), cos.dims());
    assert_eq!(cos.dims(), sin.dims(), "rotary: the shapes of cos and sin differ");
    assert!(tokens > 0 && length > 0, "rotary: no tokens or an empty table");
    assert!(
        half > 0 && 2 * half <= head_dim,
        "rotary: a table of {half} columns does not fit a head_dim of {head_dim}"
    );
    assert!(
        width > 0 && width.is_multiple_of(head_dim),
        "rotary: the width {width} of x is not a multiple of head_dim {head_dim}"
    );
    assert_eq!(positions.dims(), [tokens], "rotary: positions are not one per token of x");
    Tensor::from_dispatch(<Dispatch as RotaryOps>::rotary(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
        positions.into_dispatch(),
        head_dim,
    ))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;

    impl RotaryKernel for Flex {
        /// Works in place if nothing else holds `x`, otherwise on a copy.
        fn rotate(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            positions: IntTensor<Self>,
            rotation: Rotation,
        ) -> FloatTensor<Self> {
            let [tokens, width] = x.shape().dims();
            let [length, half] = cos.shape().dims();
            if !kernel::all_f32([&x, &cos, &sin]) {
                kernel::indices(positions.clone(), length, "rotary: position");
                return portable_rotate::<Self>(x, cos, sin, positions, rotation);
            }
            let (cos, sin) = (kernel::contiguous(cos), kernel::contiguous(sin));
            let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
            let positions = kernel::indices(positions, length, "rotary: position");
            let sign = if rotation.inverse { -1.0 } else { 1.0 };
            let mut x = kernel::contiguous(x);
            let x_all = SharedMut::new(x.storage_mut::<f32>());
            kernel::par_row_blocks(tokens, |block| {
                for token in block {
                    let angles = positions[token] * half..(positions[token] + 1) * half;
                    // SAFETY: the tokens' rows are disjoint.
                    let row = unsafe { x_all.slice(token * width..(token + 1) * width) };
                    let table = [&cos[angles.clone()], &sin[angles]];
                    rotate_row(row, rotation.head_dim, table, sign);
                }
            });
            x
        }
    }

    simd_fn! {
        /// Rotates every head of one token; a `sign` of -1 rotates backward.
        fn rotate_row(row: &mut [f32], head_dim: usize, table: [&[f32]; 2], sign: f32) {
            let [cos, sin] = table;
            let half = cos.len();
            for head in row.chunks_exact_mut(head_dim) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let sin = sin * sign;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
