//! Root-mean-square normalization: `y = x / sqrt(mean(x^2) + eps) * weight`.
//!
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.

#[cfg(feature = "fusion")]
use super::backends::per_row;
use super::backends::{cast, dispatched, for_ndarray, kernel_trait, wide, widen};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Shape, Tensor};

kernel_trait! {
    /// Forward and backward on plain backend tensors; `x` is `[rows, width]`, `weight` is `[width]`.
    trait RmsNormKernel {
        /// The result, in the type of `x`, and the reciprocal root mean square `[rows, 1]`.
        #[fusion(meta = |x, _weight, _eps| (x.clone(), per_row(x)))]
        fn rms_norm_forward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_forward::<Self>(x, weight, eps)
        }

        /// The gradients of `x` and `weight`.
        #[fusion(meta = |_grad, x, weight, _rstd| (x.clone(), weight.clone()))]
        fn rms_norm_backward(
            grad: FloatTensor<Self>,
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            rstd: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_backward::<Self>(grad, x, weight, rstd)
        }
    }
}

for_ndarray! { RmsNormKernel }

fn portable_forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (width, dtype) = (x.shape()[1], x.dtype());
    let x = widen::<B>(x);
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
    let rstd = B::float_recip(B::float_sqrt(B::float_add_scalar(mean, eps.into())));
    let weight = cast::<B>(B::float_reshape(weight, Shape::new([1, width])), wide(dtype));
    let y = B::float_mul(B::float_mul(x, rstd.clone()), weight);
    (cast::<B>(y, dtype.into()), rstd)
}

fn portable_backward<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    rstd: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let width = x.shape()[1];
    let (x_dtype, weight_dtype) = (x.dtype(), weight.dtype());
    let grad = cast::<B>(grad, wide(x_dtype));
    let normed = B::float_mul(widen::<B>(x), rstd.clone());
    let grad_weight = B::float_sum_dim(B::float_mul(grad.clone(), normed.clone()), 0);
    let weight = cast::<B>(B::float_reshape(weight, Shape::new([1, width])), wide(x_dtype));
    let grad = B::float_mul(grad, weight);
    let mean = B::float_mean_dim(B::float_mul(grad.clone(), normed.clone()), 1);
    let grad_x = B::float_mul(B::float_sub(grad, B::float_mul(normed, mean)), rstd);
    let grad_weight = B::float_reshape(grad_weight, Shape::new([width]));
    (cast::<B>(grad_x, x_dtype.into()), cast::<B>(grad_weight, weight_dtype.into()))
}

dispatched! {
    [Autodiff]
    trait RmsNormOps {
        fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
            <Self as RmsNormKernel>::rms_norm_forward(x, weight, eps).0
        }
    }
}

impl<B: RmsNormKernel, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        match RmsNormBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, rstd) = B::rms_norm_forward(x.clone(), weight.clone(), eps);
                prep.finish((x, weight, rstd), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rms_norm_forward(x, weight, eps).0),
        }
    }
}

#[derive(Debug)]
struct RmsNormBackward;

impl<B: RmsNormKernel> Backward<B, 2> for RmsNormBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node] = ops.parents;
        let (x, weight, rstd) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (grad_x, grad_weight) = B::rms_norm_backward(grad, x, weight, rstd);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, grad_x);
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, grad_weight);
        }
    }
}

/// Divides each row of `x` by its root mean square and multiplies it by `weight`:
/// `x / sqrt(mean(x^2) + eps) * weight`.
///
/// Computed in f32 (f64 for f64 input) and returned in the type of `x`. Source: arXiv 1910.07467.
///
/// # Shapes
/// - `x`: `[..., width]`
/// - `weight`: `[width]`
/// - result: `[..., width]`
///
/// # Panics
/// If the last dimension of `x` is not the length of `weight`, or `x` has no element.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f32) -> Tensor<D> {
    let shape = x.shape();
    let [width] = weight.dims();
    assert!(
        D > 0 && shape[D - 1] == width,
        "rms_norm: the last dimension of x {:?} differs from the weight's length {width}",
        shape.as_slice()
    );
    assert!(shape.num_elements() > 0, "rms_norm: x {:?} has no element", shape.as_slice());
    let x = x.reshape([shape.num_elements() / width, width]);
    let y = <Dispatch as RmsNormOps>::rms_norm(x.into_dispatch(), weight.into_dispatch(), eps);
    Tensor::<2>::from_dispatch(y).reshape(shape)
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, ROW_BLOCK, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;

    impl RmsNormKernel for Flex {
        fn rms_norm_forward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !kernel::all_f32([&x, &weight]) {
                return portable_forward::<Self>(x, weight, eps);
            }
            let [rows, width] = x.shape().dims();
            let (x, weight) = (kernel::contiguous(x), kernel::contiguous(weight));
            let (xs, ws) = (x.storage::<f32>(), weight.storage::<f32>());
            let (mut y, mut rstd) = (Buffer::any(rows * width), Buffer::any(rows));
            let (y_all, rstd_all) = (y.shared(), rstd.shared());
            kernel::par_row_blocks(rows, |block| {
                let range = block.start * width..block.end * width;
                // SAFETY: the blocks of rows are disjoint.
                let (y, rstd) = unsafe { (y_all.slice(range.clone()), rstd_all.slice(block)) };
                forward_rows(&xs[range], ws, eps, y, rstd);
            });
            (y.into_tensor([rows, width]), rstd.into_tensor([rows, 1]))
        }

        fn rms_norm_backward(
            grad: FloatTensor<Self>,
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            rstd: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !kernel::all_f32([&grad, &x, &weight]) {
                return portable_backward::<Self>(grad, x, weight, rstd);
            }
            let [rows, width] = x.shape().dims();
            let (x, weight) = (kernel::contiguous(x), kernel::contiguous(weight));
            let rstd = kernel::contiguous(rstd);
            let (xs, ws, rstd) =
                (x.storage::<f32>(), weight.storage::<f32>(), rstd.storage::<f32>());
            let mut grad = kernel::contiguous(grad);
            // In place if nothing else holds the incoming gradient, on a copy otherwise.
            let grad_all = SharedMut::new(grad.storage_mut::<f32>());
            let mut partials = Buffer::zeros(rows.div_ceil(ROW_BLOCK) * width);
            let partials_all = partials.shared();
            kernel::par_row_blocks(rows, |block| {
                let range = block.start * width..block.end * width;
                let partial = block.start / ROW_BLOCK * width;
                // SAFETY: the blocks of rows are disjoint, and each has its row of `partials`.
                let (grad, partial) = unsafe {
                    (grad_all.slice(range.clone()), partials_all.slice(partial..partial + width))
                };
                backward_rows(grad, &xs[range], ws, &rstd[block], partial);
            });
            (grad, kernel::from_vec(kernel::sum_rows(&partials, width, rows), [width]))
        }
    }

    simd_fn! {
        fn forward_rows(
            xs: &[f32],
            weight: &[f32],
            eps: f32,
            ys: &mut [f32],
            rstds: &mut [f32],
        ) {
            let width = weight.len();
            let rows = xs.chunks_exact(width).zip(ys.chunks_exact_mut(width));
            for ((x, y), rstd) in rows.zip(rstds) {
                let scale = 1.0 / (kernel::dot(x, x) / width as f32 + eps).sqrt();
                *rstd = scale;
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * scale * w;
                }
            }
        }
    }

    simd_fn! {
        /// Turns the rows of `grads` into the gradient of `x` and adds their part of the weight's.
        fn backward_rows(
            grads: &mut [f32],
            xs: &[f32],
            weight: &[f32],
            rstds: &[f32],
            grad_weight: &mut [f32],
        ) {
            let width = weight.len();
            let rows = grads.chunks_exact_mut(width).zip(xs.chunks_exact(width));
            for ((grad, x), rstd) in rows.zip(rstds) {
                let weights = weight.iter().zip(grad_weight.iter_mut());
                for ((grad, x), (w, grad_weight)) in grad.iter_mut().zip(x).zip(weights) {
                    *grad_weight += *grad * x * rstd;
                    *grad *= w;
                }
                let factor = kernel::dot(grad, x) * rstd * rstd / width as f32;
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad = (*grad - x * factor) * rstd;
                }
            }
        }
    }
}
