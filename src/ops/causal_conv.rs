//! Causal depthwise convolution with SiLU, over packed sequences. The result for a token and channel depends
//! on that channel of the token and of the few tokens before it in its sequence.
//!
//! Source: the short convolution of Mamba (Gu and Dao, arXiv 2312.00752) and of gated DeltaNet (Yang et al.,
//! arXiv 2412.06464).

use super::backends::{cast, dispatched, for_each_portable_backend, wide, widen};
use super::gated::sigmoid;
use super::sequences::Sequences;
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor, TensorData};

/// Forward and backward on plain backend tensors, with the shapes of [`causal_conv`].
pub(crate) trait CausalConvKernel: Backend {
    fn conv_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        sequences: &Sequences,
    ) -> FloatTensor<Self> {
        portable_forward::<Self>(x, weight, sequences)
    }

    /// Returns the gradients of `x` and `weight`.
    fn conv_backward(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        sequences: &Sequences,
    ) -> [FloatTensor<Self>; 2] {
        portable_backward::<Self>(grad, x, weight, sequences)
    }
}

for_each_portable_backend! { CausalConvKernel {} }

/// Shifts by each tap of the kernel, from the last tap to the first. Tokens before the start of a sequence
/// count as 0.
struct Taps<B: Backend> {
    /// 1 for tokens that have a token `lag` positions before them in their sequence, otherwise 0;
    /// `[tokens, 1]`.
    reaches: Vec<FloatTensor<B>>,
}

impl<B: Backend> Taps<B> {
    fn new(x: &FloatTensor<B>, taps: usize, sequences: &Sequences) -> Self {
        let (device, dtype) = (x.device(), wide(x.dtype()));
        let places = sequences.places();
        let reach = |lag: usize| {
            let reaches =
                places.iter().map(|place| f32::from(place.is_some_and(|place| place >= lag)));
            let data = TensorData::new(reaches.collect::<Vec<f32>>(), [places.len(), 1]);
            cast::<B>(B::float_from_data(data, &device), dtype)
        };
        Self { reaches: (0..taps).map(reach).collect() }
    }

    /// Gives each token the value `lag` positions before it.
    fn earlier(&self, x: &FloatTensor<B>, lag: usize) -> FloatTensor<B> {
        B::float_mul(shifted::<B>(x, lag, true), self.reaches[lag].clone())
    }

    /// Returns the transpose of [`Taps::earlier`].
    fn later(&self, x: FloatTensor<B>, lag: usize) -> FloatTensor<B> {
        shifted::<B>(&B::float_mul(x, self.reaches[lag].clone()), lag, false)
    }
}

/// Moves rows down or up and fills with zeros.
fn shifted<B: Backend>(x: &FloatTensor<B>, by: usize, down: bool) -> FloatTensor<B> {
    let [tokens, width] = x.shape().dims();
    let by = by.min(tokens);
    if by == 0 {
        return x.clone();
    }
    let zeros = B::float_zeros([by, width].into(), &x.device(), x.dtype().into());
    if by == tokens {
        return zeros;
    }
    let kept = if down { 0..tokens - by } else { by..tokens };
    let kept = B::float_slice(x.clone(), &[Slice::from(kept), (0..width).into()]);
    B::float_cat(if down { vec![zeros, kept] } else { vec![kept, zeros] }, 0)
}

/// Returns the weights of a tap, `[1, channels]`. Taps are counted back from the token itself.
fn tap<B: Backend>(weight: &FloatTensor<B>, lag: usize) -> FloatTensor<B> {
    let [channels, taps] = weight.shape().dims();
    let column = taps - 1 - lag;
    let column =
        B::float_slice(weight.clone(), &[(0..channels).into(), Slice::from(column..column + 1)]);
    B::float_reshape(column, [1, channels].into())
}

/// Returns the input of the activation.
fn convolved<B: Backend>(
    x: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    taps: &Taps<B>,
) -> FloatTensor<B> {
    let part = |lag| B::float_mul(taps.earlier(x, lag), tap::<B>(weight, lag));
    (1..taps.reaches.len()).fold(part(0), |sum, lag| B::float_add(sum, part(lag)))
}

fn portable_forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    sequences: &Sequences,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let (x, weight) = (widen::<B>(x), widen::<B>(weight));
    let taps = Taps::<B>::new(&x, weight.shape().dims::<2>()[1], sequences);
    let z = convolved::<B>(&x, &weight, &taps);
    cast::<B>(B::float_mul(sigmoid::<B>(z.clone()), z), dtype.into())
}

fn portable_backward<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    sequences: &Sequences,
) -> [FloatTensor<B>; 2] {
    let (dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let (grad, x, weight) = (widen::<B>(grad), widen::<B>(x), widen::<B>(weight));
    let [channels, count] = weight.shape().dims();
    let taps = Taps::<B>::new(&x, count, sequences);
    let z = convolved::<B>(&x, &weight, &taps);
    // (z s(z))' = s + z s (1 - s)
    let s = sigmoid::<B>(z.clone());
    let y = B::float_mul(s.clone(), z);
    let slope = B::float_add(s.clone(), B::float_sub(y.clone(), B::float_mul(s, y)));
    let grad = B::float_mul(grad, slope);
    let of_x = |lag| taps.later(B::float_mul(grad.clone(), tap::<B>(&weight, lag)), lag);
    let grad_x = (1..count).fold(of_x(0), |sum, lag| B::float_add(sum, of_x(lag)));
    let of_tap = |lag| {
        let sum = B::float_sum_dim(B::float_mul(grad.clone(), taps.earlier(&x, lag)), 0);
        B::float_reshape(sum, [channels, 1].into())
    };
    let grad_weight = B::float_cat((0..count).rev().map(of_tap).collect(), 1);
    [cast::<B>(grad_x, dtype.into()), cast::<B>(grad_weight, weight_dtype.into())]
}

dispatched! {
    [Autodiff]
    trait CausalConvOps {
        fn causal_conv(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            sequences: Sequences,
        ) -> FloatTensor<Self> {
            <Self as CausalConvKernel>::conv_forward(x, weight, &sequences)
        }
    }
}

impl<B: CausalConvKernel, C: CheckpointStrategy> CausalConvOps for Autodiff<B, C> {
    fn causal_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        sequences: Sequences,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let y = B::conv_forward(x.clone(), weight.clone(), &sequences);
        match CausalConvBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, sequences), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[derive(Debug)]
struct CausalConvBackward;

impl<B: CausalConvKernel> Backward<B, 2> for CausalConvBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Sequences);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, sequences) = ops.state;
        let values = B::conv_backward(grad, x, weight, &sequences);
        for (node, value) in ops.parents.into_iter().zip(values) {
            if let Some(node) = node {
                grads.register::<B>(node.id, value);
            }
        }
    }
}

/// Computes `silu(y)`, where `y[t, c]` is the sum over `i` of `weight[c, i] * x[t + 1 - taps + i, c]`: the
/// last column of the weight belongs to the token itself. Values before a sequence are 0. The result is 0 for
/// tokens outside all sequences.
///
/// Sums are f32 (f64 for f64 input).
///
/// # Shapes
/// - `x`: `[tokens, channels]`
/// - `weight`: `[channels, taps]`
/// - result: like `x`
///
/// # Panics
/// If the shapes do not match or a size is 0.
pub fn causal_conv(x: Tensor<2>, weight: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
    let ([tokens, channels], [of_weight, taps]) = (x.dims(), weight.dims());
    assert!(tokens > 0 && channels > 0 && taps > 0, "causal_conv: a size is 0");
    assert_eq!(channels, of_weight, "causal_conv: x and weight have different numbers of channels");
    let of_sequences = sequences.tokens();
    assert_eq!(tokens, of_sequences, "causal_conv: the sequences are of {of_sequences} tokens");
    Tensor::from_dispatch(<Dispatch as CausalConvOps>::causal_conv(
        x.into_dispatch(),
        weight.into_dispatch(),
        sequences.clone(),
    ))
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::DType;
    use rayon::prelude::*;
    use std::ops::Range;

    /// Channels per task. Sums over tokens have the same order with any number of threads.
    const CHANNELS: usize = 64;

    /// Returns the weights by tap, from the token itself back: `[taps, channels]`.
    fn by_tap(weight: &[f32], taps: usize) -> Vec<f32> {
        let channels = weight.len() / taps;
        (0..taps)
            .flat_map(|lag| {
                (0..channels).map(move |channel| weight[channel * taps + taps - 1 - lag])
            })
            .collect()
    }

    impl CausalConvKernel for Flex {
        fn conv_forward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            sequences: &Sequences,
        ) -> FloatTensor<Self> {
            let dtype = x.dtype();
            if [dtype, weight.dtype()].contains(&DType::F64) {
                return portable_forward::<Self>(x, weight, sequences);
            }
            let ([tokens, channels], [_, taps]) = (x.shape().dims(), weight.shape().dims::<2>());
            let (x, weight) = (kernel::in_f32(x), kernel::in_f32(weight));
            let (x, weight) = (x.storage::<f32>(), by_tap(weight.storage::<f32>(), taps));
            let places = sequences.places();
            let mut out = Buffer::any(tokens * channels);
            let out_all = out.shared();
            kernel::par_row_blocks(tokens, |block| {
                for token in block {
                    // SAFETY: the tokens' rows are disjoint.
                    let out = unsafe { out_all.slice(token * channels..(token + 1) * channels) };
                    out.fill(0.0);
                    let Some(place) = places[token] else { continue };
                    for lag in 0..taps.min(place + 1) {
                        let row = &x[(token - lag) * channels..][..channels];
                        multiply_add(out, &weight[lag * channels..][..channels], row);
                    }
                    silu(out);
                }
            });
            cast::<Self>(out.into_tensor([tokens, channels]), dtype.into())
        }

        fn conv_backward(
            grad: FloatTensor<Self>,
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            sequences: &Sequences,
        ) -> [FloatTensor<Self>; 2] {
            let dtypes = [x.dtype(), weight.dtype()];
            if dtypes.contains(&DType::F64) {
                return portable_backward::<Self>(grad, x, weight, sequences);
            }
            let ([tokens, channels], [_, taps]) = (x.shape().dims(), weight.shape().dims::<2>());
            let [grad, x, weight] = [grad, x, weight].map(kernel::in_f32);
            let weight = by_tap(weight.storage::<f32>(), taps);
            let inputs = [grad.storage::<f32>(), x.storage::<f32>(), &weight];
            let mut grad_x = Buffer::zeros(tokens * channels);
            let mut by_tap = vec![0.0; taps * channels];
            let (of_x, of_taps) = (grad_x.shared(), SharedMut::new(&mut by_tap));
            (0..channels.div_ceil(CHANNELS)).into_par_iter().for_each(|index| {
                let here = index * CHANNELS..((index + 1) * CHANNELS).min(channels);
                backward(inputs, channels, taps, sequences, here, [of_x, of_taps]);
            });
            let mut grad_weight = Buffer::any(channels * taps);
            for (place, value) in grad_weight.iter_mut().enumerate() {
                *value = by_tap[(taps - 1 - place % taps) * channels + place / taps];
            }
            let [of_x, of_weight] = dtypes;
            [
                cast::<Self>(grad_x.into_tensor([tokens, channels]), of_x.into()),
                cast::<Self>(grad_weight.into_tensor([channels, taps]), of_weight.into()),
            ]
        }
    }

    /// Adds to the gradients of some channels; those of `x` must start as zeros.
    fn backward(
        [grad, x, weight]: [&[f32]; 3],
        channels: usize,
        taps: usize,
        sequences: &Sequences,
        here: Range<usize>,
        [grad_x, grad_taps]: [SharedMut; 2],
    ) {
        let of = |row: usize| row * channels + here.start..row * channels + here.end;
        let mut slopes = vec![0.0; here.len()];
        for range in sequences.ranges() {
            for token in range.clone() {
                let lags = 0..taps.min(token - range.start + 1);
                slopes.fill(0.0);
                for lag in lags.clone() {
                    multiply_add(&mut slopes, &weight[of(lag)], &x[of(token - lag)]);
                }
                silu_slope(&mut slopes, &grad[of(token)]);
                for lag in lags {
                    // SAFETY: these channels of all tokens and taps belong to this task only.
                    let (of_x, of_tap) =
                        unsafe { (grad_x.slice(of(token - lag)), grad_taps.slice(of(lag))) };
                    multiply_add(of_x, &weight[of(lag)], &slopes);
                    multiply_add(of_tap, &x[of(token - lag)], &slopes);
                }
            }
        }
    }

    simd_fn! {
        /// Computes `out += a * b`.
        fn multiply_add(out: &mut [f32], a: &[f32], b: &[f32]) {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out += a * b;
            }
        }
    }

    simd_fn! {
        fn silu(values: &mut [f32]) {
            for value in values {
                *value /= 1.0 + kernel::exp(-*value);
            }
        }
    }

    simd_fn! {
        /// Replaces the input of the activation with its gradient.
        fn silu_slope(values: &mut [f32], grad: &[f32]) {
            for (value, grad) in values.iter_mut().zip(grad) {
                let sigmoid = 1.0 / (1.0 + kernel::exp(-*value));
                *value = grad * (sigmoid + *value * sigmoid * (1.0 - sigmoid));
            }
        }
    }
}
