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
use burn::tensor::{Device, Shape, Tensor};

kernel_trait! {
    /// Forward and backward on plain backend tensors; `x` is `[rows, width]`, `weight` is `[width]`.
    trait RmsNormKernel {
        /// Returns the result, in the type of `x`, and the reciprocal root mean square `[rows, 1]`.
        #[fusion(meta = |x, _weight, _eps| (x.clone(), per_row(x)))]
        fn rms_norm_forward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_forward::<Self>(x, weight, eps)
        }

        /// Returns the gradients of `x` and `weight`.
        #[fusion(meta = |_grad, x, weight, _rstd| (x.clone(), weight.clone()))]
        fn rms_norm_backward(
            grad: FloatTensor<Self>,
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            rstd: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_backward::<Self>(grad, x, weight, rstd)
        }

        /// Returns the sum of `x` and `added`, its norm, and the reciprocal root mean square.
        #[fusion(meta = |x, _added, _weight, _eps| (x.clone(), x.clone(), per_row(x)))]
        fn add_rms_norm_forward(
            x: FloatTensor<Self>,
            added: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            portable_add_forward::<Self>(x, added, weight, eps)
        }

        /// Like [`RmsNormKernel::rms_norm_backward`]; adds `above` to the gradient of `x`.
        #[fusion(meta = |_grad, x, weight, _rstd, _above| (x.clone(), weight.clone()))]
        fn rms_norm_backward_add(
            grad: FloatTensor<Self>,
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            rstd: FloatTensor<Self>,
            above: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_backward_add::<Self>(grad, x, weight, rstd, above)
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

fn portable_add_forward<B: RmsNormKernel>(
    x: FloatTensor<B>,
    added: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f32,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let sum = B::float_add(x, added);
    let (y, rstd) = B::rms_norm_forward(sum.clone(), weight, eps);
    (sum, y, rstd)
}

fn portable_backward_add<B: RmsNormKernel>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    rstd: FloatTensor<B>,
    above: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (grad_x, grad_weight) = B::rms_norm_backward(grad, x, weight, rstd);
    (B::float_add(grad_x, above), grad_weight)
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
                prep.finish((x, weight, rstd, false), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rms_norm_forward(x, weight, eps).0),
        }
    }
}

dispatched! {
    [Autodiff]
    trait AddRmsNormOps {
        fn add_rms_norm(
            x: FloatTensor<Self>,
            added: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            eps: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let (sum, y, _) = <Self as RmsNormKernel>::add_rms_norm_forward(x, added, weight, eps);
            (sum, y)
        }
    }
}

/// The sum and its norm are two nodes; the norm's node is a child of the sum's.
impl<B: RmsNormKernel, C: CheckpointStrategy> AddRmsNormOps for Autodiff<B, C> {
    fn add_rms_norm(
        x: FloatTensor<Self>,
        added: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, x_node) = x.into_parts();
        let (added, added_node) = added.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (sum, y, rstd) = B::add_rms_norm_forward(x, added, weight.clone(), eps);
        let sum = SumBackward.prepare::<C>([x_node, added_node]).compute_bound().stateless(sum);
        let (value, node) = sum.clone().into_parts();
        let y = match RmsNormBackward.prepare::<C>([node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((value, weight, rstd, true), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (sum, y)
    }
}

#[derive(Debug)]
struct SumBackward;

impl<B: Backend> Backward<B, 2> for SumBackward {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<B>(node.id, grad.clone());
        }
    }
}

#[derive(Debug)]
struct RmsNormBackward;

impl<B: RmsNormKernel> Backward<B, 2> for RmsNormBackward {
    /// `x`, the weight, the reciprocal root mean square, and whether `x` is a sum that continues in the
    /// residual stream. Everything that uses such a sum also depends on its norm, so the sum's gradient is
    /// complete by now.
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node] = ops.parents;
        let (x, weight, rstd, goes_on) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (grad_x, grad_weight) = match &x_node {
            Some(node) if goes_on => {
                let above = grads.consume::<B>(node);
                B::rms_norm_backward_add(grad, x, weight, rstd, above)
            }
            _ => B::rms_norm_backward(grad, x, weight, rstd),
        };
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
/// If the last dimension of `x` is not the length of `weight`, or `x` has no elements.
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

/// Returns the sum `x + added` and its [`rms_norm`], for a residual stream: the sum continues and is later
/// added to a result of its norm. On a GPU this takes one pass forward and one backward.
///
/// # Shapes
/// - `x`, `added`: `[tokens, width]`, of one type
/// - `weight`: `[width]`
/// - result: the sum and the norm, both like `x`
///
/// # Panics
/// If the shapes or types do not match, or `x` has no elements. On an autodiff device, when gradients are
/// computed of something that depends on the norm and not on the sum, or on the sum by a path no longer than
/// the norm's own.
pub(crate) fn add_rms_norm(
    x: Tensor<2>,
    added: Tensor<2>,
    weight: Tensor<1>,
    eps: f32,
) -> (Tensor<2>, Tensor<2>) {
    let ([_, width], [weights]) = (x.dims(), weight.dims());
    assert!(
        x.dims() == added.dims() && width == weights && x.dtype() == added.dtype(),
        "add_rms_norm: {:?} and {:?} do not fit each other or a weight of {weights}",
        x.dims(),
        added.dims()
    );
    assert!(x.shape().num_elements() > 0, "add_rms_norm: x {:?} has no element", x.dims());
    let [x, added] = [x, added].map(Tensor::into_dispatch);
    let (sum, y) = <Dispatch as AddRmsNormOps>::add_rms_norm(x, added, weight.into_dispatch(), eps);
    (Tensor::from_dispatch(sum), Tensor::from_dispatch(y))
}

/// Returns whether to fuse a sum with the norm that follows ([`add_rms_norm`]) instead of with the product
/// before it: on GPUs, whose products cannot add.
#[allow(deprecated, reason = "Burn deprecates ndarray in favor of flex")]
pub(crate) fn sums_in_norms(device: &Device) -> bool {
    let processors: &[Device] = &[
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
    ];
    !processors.contains(&device.clone().inner())
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
            // In place if nothing else holds the incoming gradient, otherwise on a copy.
            let grad_all = SharedMut::new(grad.storage_mut::<f32>());
            let mut partials = Buffer::zeros(rows.div_ceil(ROW_BLOCK) * width);
            let partials_all = partials.shared();
            kernel::par_row_blocks(rows, |block| {
                let range = block.start * width..block.end * width;
                let partial = block.start / ROW_BLOCK * width;
                // SAFETY: the blocks of rows are disjoint, and each has its own row of `partials`.
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
        /// Turns the rows of `grads` into the gradient of `x` and adds their contribution to the weight's.
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn a_stream_has_the_gradients_that_its_sums_and_norms_have() {
        let device = Device::flex().autodiff();
        let random = |rows| Tensor::<2>::random([rows, 12], Distribution::Default, &device);
        let inputs = [random(5), random(5), random(5), random(12)].map(Tensor::require_grad);
        let weight = random(1).reshape([12]).require_grad();
        // Two residual branches of a block, each after a norm.
        let gradients = |streamed: bool| {
            let [x, first, last, matrix] = inputs.clone();
            let normed = |x: Tensor<2>, added| match streamed {
                true => add_rms_norm(x, added, weight.clone(), 1e-3),
                false => (x.clone() + added.clone(), rms_norm(x + added, weight.clone(), 1e-3)),
            };
            let (sum, y) = normed(x, first);
            let (sum, y) = normed(sum, y.matmul(matrix) * 0.3);
            let loss = ((sum + y.exp()) * last).powi_scalar(2).sum();
            let gradients = loss.backward();
            let of_inputs = inputs.iter().map(|x| x.grad(&gradients).unwrap());
            let of_weight = weight.grad(&gradients).unwrap().reshape([1, 12]);
            of_inputs.chain([of_weight]).collect::<Vec<_>>()
        };
        for (found, expected) in gradients(true).into_iter().zip(gradients(false)) {
            let scale = expected.clone().abs().max().into_scalar::<f32>();
            let off = (found - expected).abs().max().into_scalar::<f32>() / scale;
            assert!(off < 2e-6, "off by {off:e}");
        }
    }
}
