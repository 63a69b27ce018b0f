//! Matrix products of linear layers, `y = x W`, with an optional residual sum.
//!
//! Compared with Burn's own product: results reuse memory, the residual sum is part of the product, products
//! of a few rows run at memory bandwidth, and nothing is kept for gradients that are not needed (with a
//! frozen `W`, its input is freed at once).

use super::backends::{dispatched, for_each_portable_backend};
use super::decoding::DecodingKernel;
use super::shared_input::GradientSum;
use super::weight::{Weight, WeightPrimitive};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::Tensor;

/// Forward and backward on plain backend tensors; `x` is `[tokens, input]`, `weight` is
/// `[input, output]`.
pub(crate) trait LinearKernel: DecodingKernel {
    /// Computes `x W`.
    fn linear_forward(x: FloatTensor<Self>, weight: WeightPrimitive<Self>) -> FloatTensor<Self> {
        let weight = weight.dense(x.dtype());
        Self::float_matmul(x, weight)
    }

    /// Computes `residual + x W`.
    fn linear_add_forward(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(residual, Self::linear_forward(x, weight))
    }

    /// Returns the gradient of `x`, added to `sum` if given.
    fn linear_grad_input(
        grad: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        sum: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let weight = Self::float_transpose(weight.dense(grad.dtype()));
        let weight = WeightPrimitive::Dense(weight);
        match sum {
            Some(sum) => Self::linear_add_forward(grad, weight, sum),
            None => Self::linear_forward(grad, weight),
        }
    }

    /// Returns the gradient of `weight`.
    fn linear_grad_weight(grad: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::linear_forward(Self::float_transpose(x), WeightPrimitive::Dense(grad))
    }
}

for_each_portable_backend! { LinearKernel {} }

dispatched! {
    [Autodiff]
    trait LinearOps {
        fn linear(
            x: FloatTensor<Self>,
            #[extension_type] weight: WeightPrimitive<Self>,
            sum: Option<GradientSum>,
        ) -> FloatTensor<Self> {
            let _ = sum;
            <Self as LinearKernel>::linear_forward(x, weight)
        }
    }
}

dispatched! {
    [Autodiff]
    trait LinearAddOps {
        fn linear_add(
            x: FloatTensor<Self>,
            #[extension_type] weight: WeightPrimitive<Self>,
            residual: FloatTensor<Self>,
            sum: Option<GradientSum>,
        ) -> FloatTensor<Self> {
            let _ = sum;
            <Self as LinearKernel>::linear_add_forward(x, weight, residual)
        }
    }
}

impl<B: LinearKernel, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        sum: Option<GradientSum>,
    ) -> FloatTensor<Self> {
        let (weight, numbers) = weight.split();
        let [wants_x, wants_weight] = [x.is_tracked(), numbers.is_tracked()];
        let (x, x_node) = x.into_parts();
        let (_, weight_node) = numbers.into_parts();
        match LinearBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::linear_forward(x.clone(), weight.clone());
                prep.finish((wants_weight.then_some(x), wants_x.then_some(weight), sum), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_forward(x, weight)),
        }
    }
}

impl<B: LinearKernel, C: CheckpointStrategy> LinearAddOps for Autodiff<B, C> {
    fn linear_add(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        residual: FloatTensor<Self>,
        sum: Option<GradientSum>,
    ) -> FloatTensor<Self> {
        let (weight, numbers) = weight.split();
        let [wants_x, wants_weight] = [x.is_tracked(), numbers.is_tracked()];
        let (x, x_node) = x.into_parts();
        let (_, weight_node) = numbers.into_parts();
        let (residual, residual_node) = residual.into_parts();
        let nodes = [x_node, weight_node, residual_node];
        match LinearAddBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::linear_add_forward(x.clone(), weight.clone(), residual);
                prep.finish((wants_weight.then_some(x), wants_x.then_some(weight), sum), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_add_forward(x, weight, residual)),
        }
    }
}

/// The input if the weight's gradient is needed, the weight if the input's gradient is needed, and the sum
/// that the input's gradient is added to, if it does not go to the input.
type Saved<B> = (Option<FloatTensor<B>>, Option<WeightPrimitive<B>>, Option<GradientSum>);

/// Returns the gradient of the input. If it goes to a sum, the input gets a zero from the first part of the
/// sum and nothing from the others.
fn grad_input<B: LinearKernel>(
    grad: FloatTensor<B>,
    weight: WeightPrimitive<B>,
    sum: Option<GradientSum>,
) -> Option<FloatTensor<B>> {
    let Some(sum) = sum else { return Some(B::linear_grad_input(grad, weight, None)) };
    let (device, dtype) = (grad.device(), grad.dtype().into());
    let is_first = sum.update::<B>(|before| B::linear_grad_input(grad, weight, before));
    is_first.then(|| B::float_zeros([1, 1].into(), &device, dtype))
}

#[derive(Debug)]
struct LinearBackward;

impl<B: LinearKernel> Backward<B, 2> for LinearBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node] = ops.parents;
        let (x, weight, sum) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let (Some(node), Some(weight)) = (x_node, weight)
            && let Some(grad) = grad_input::<B>(grad.clone(), weight, sum)
        {
            grads.register::<B>(node.id, grad);
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            grads.register::<B>(node.id, B::linear_grad_weight(grad, x));
        }
    }
}

#[derive(Debug)]
struct LinearAddBackward;

impl<B: LinearKernel> Backward<B, 3> for LinearAddBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node, residual_node] = ops.parents;
        let (x, weight, sum) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let (Some(node), Some(weight)) = (x_node, weight)
            && let Some(grad) = grad_input::<B>(grad.clone(), weight, sum)
        {
            grads.register::<B>(node.id, grad);
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            grads.register::<B>(node.id, B::linear_grad_weight(grad.clone(), x));
        }
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// Computes `x @ weight`.
///
/// # Shapes
/// - `x`: `[tokens, input]`
/// - `weight`: `[input, output]`; numbers in the type of `x` or in bf16, or quantized codes
/// - result: `[tokens, output]`, in the type of `x`
///
/// # Panics
/// If the shapes or the element types do not match.
pub fn linear(x: Tensor<2>, weight: impl Into<Weight>) -> Tensor<2> {
    let weight = weight.into();
    check(&x, &weight);
    linear_of(x, weight, None)
}

/// Like [`linear`]; the gradient of `x` goes to `sum`.
pub(super) fn linear_of(x: Tensor<2>, weight: Weight, sum: Option<GradientSum>) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LinearOps>::linear(x, weight, sum))
}

/// Computes `residual + x @ weight`.
///
/// # Shapes
/// See [`linear`]; `residual` is like the result.
///
/// # Panics
/// See [`linear`]; also if `residual` is not like the result.
pub fn linear_add(x: Tensor<2>, weight: impl Into<Weight>, residual: Tensor<2>) -> Tensor<2> {
    linear_add_to(x, weight.into(), residual, None)
}

/// Like [`linear_add`]; the gradient of `x` goes to `sum`.
pub(super) fn linear_add_to(
    x: Tensor<2>,
    weight: Weight,
    residual: Tensor<2>,
    sum: Option<GradientSum>,
) -> Tensor<2> {
    check(&x, &weight);
    let like_result = [x.dims()[0], weight.sizes()[1]];
    assert_eq!(residual.dims(), like_result, "linear_add: the residual is not like the result");
    assert_eq!(x.dtype(), residual.dtype(), "linear_add: the element types differ");
    let out = <Dispatch as LinearAddOps>::linear_add(
        x.into_dispatch(),
        weight.into_dispatch(),
        residual.into_dispatch(),
        sum,
    );
    Tensor::from_dispatch(out)
}

pub(super) fn check(x: &Tensor<2>, weight: &Weight) {
    let ([_, width], [rows, _]) = (x.dims(), weight.sizes());
    assert_eq!(width, rows, "linear: the width of x differs from the rows of weight");
    assert!(weight.fits(x.dtype()), "linear: the element types of x and weight do not fit");
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{
        self, Buffer, DenseMatrix, Matrix, MatrixMut, Threads, WeightMatrix,
    };
    use super::super::pieces::pieces;
    use super::*;
    use burn::backend::Flex;
    use burn::backend::ops::FloatTensorOps;
    use std::ops::Range;

    impl LinearKernel for Flex {
        fn linear_forward(
            x: FloatTensor<Self>,
            weight: WeightPrimitive<Self>,
        ) -> FloatTensor<Self> {
            let weight = match WeightMatrix::new(weight, &[&x]) {
                Ok(weight) => weight,
                Err(weight) => {
                    let weight = weight.dense(x.dtype());
                    return Self::float_matmul(x, weight);
                }
            };
            let x = DenseMatrix::new(x);
            let size = [x.size()[0], weight.sizes()[1]];
            let mut out = Buffer::any(size[0] * size[1]);
            weight.set_product(MatrixMut::dense(&mut out, size), x.view());
            out.into_tensor(size)
        }

        fn linear_add_forward(
            x: FloatTensor<Self>,
            weight: WeightPrimitive<Self>,
            residual: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            /// Maximum number of rows for which a separate product is faster than one that adds.
            const FEW: usize = 32;
            if x.shape()[0] <= FEW {
                let product = Self::linear_forward(x, weight);
                return Self::float_add(product, residual);
            }
            let weight = match WeightMatrix::new(weight, &[&x, &residual]) {
                Ok(weight) => weight,
                Err(weight) => {
                    let product = Self::linear_forward(x, weight);
                    return Self::float_add(product, residual);
                }
            };
            let x = DenseMatrix::new(x);
            let size = [x.size()[0], weight.sizes()[1]];
            let mut out = writable(residual, size);
            weight.add_product(MatrixMut::dense(out.storage_mut::<f32>(), size), x.view());
            out
        }

        fn linear_grad_input(
            grad: FloatTensor<Self>,
            weight: WeightPrimitive<Self>,
            sum: Option<FloatTensor<Self>>,
        ) -> FloatTensor<Self> {
            let weight = match WeightMatrix::new(weight, &[&grad]) {
                Ok(WeightMatrix::Stored(weight)) => weight,
                Ok(WeightMatrix::Dense(weight)) => {
                    let weight = WeightPrimitive::Dense(weight.into_tensor().transpose(0, 1));
                    return match sum {
                        Some(sum) => Self::linear_add_forward(grad, weight, sum),
                        None => Self::linear_forward(grad, weight),
                    };
                }
                Err(weight) => {
                    let weight = weight.dense(grad.dtype()).transpose(0, 1);
                    let product = Self::float_matmul(grad, weight);
                    return match sum {
                        Some(sum) => Self::float_add(sum, product),
                        None => product,
                    };
                }
            };
            let grad = DenseMatrix::new(grad);
            let size = [grad.size()[0], weight.sizes()[0]];
            let Some(sum) = sum else {
                let mut out = Buffer::any(size[0] * size[1]);
                weight.input_gradient(MatrixMut::dense(&mut out, size), false, grad.view());
                return out.into_tensor(size);
            };
            let mut out = writable(sum, size);
            let out_matrix = MatrixMut::dense(out.storage_mut::<f32>(), size);
            weight.input_gradient(out_matrix, true, grad.view());
            out
        }

        fn linear_grad_weight(grad: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
            let ([tokens, input], [_, output]) = (x.shape().dims(), grad.shape().dims::<2>());
            let pieces = pieces(tokens);
            if pieces.clone().count() == 1 || !kernel::all_f32([&grad, &x]) {
                let x = Self::float_transpose(x);
                return Self::linear_forward(x, WeightPrimitive::Dense(grad));
            }
            let (x, grad) = (kernel::contiguous(x), kernel::contiguous(grad));
            let (x, grad) = (x.storage::<f32>(), grad.storage::<f32>());
            let of_piece = |piece: Range<usize>| {
                let x = &x[piece.start * input..piece.end * input];
                let grad = &grad[piece.start * output..piece.end * output];
                grad_of_piece([x, grad], [piece.len(), input, output])
            };
            let sum = pieces.map(of_piece).reduce(|mut sum, piece| {
                kernel::add(&mut sum, &piece);
                sum
            });
            sum.unwrap_or_else(|| Buffer::zeros(input * output)).into_tensor([input, output])
        }
    }

    /// Returns the weight gradient of one piece of tokens, `[input, output]`.
    fn grad_of_piece([x, grad]: [&[f32]; 2], [tokens, input, output]: [usize; 3]) -> Buffer {
        let mut out = Buffer::any(input * output);
        MatrixMut::dense(&mut out, [input, output]).set_product(
            1.0,
            Matrix::dense(x, [tokens, input]).transposed(),
            Matrix::dense(grad, [tokens, output]),
            Threads::All,
        );
        out
    }

    /// Returns the tensor itself if nothing else holds it, otherwise a copy; row-major.
    fn writable(tensor: FloatTensor<Flex>, size: [usize; 2]) -> FloatTensor<Flex> {
        let tensor = kernel::contiguous(tensor);
        match tensor.can_mut() {
            true => tensor,
            false => Buffer::copy_of(tensor.storage::<f32>()).into_tensor(size),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn a_residual_that_something_else_holds_stays_as_it_is() {
        let device = Device::flex();
        let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
        let values = |tensor: Tensor<2>| tensor.into_data().try_to_vec::<f32>().unwrap();
        let (x, weight, residual) = (random([50, 8]), random([8, 40]), random([50, 40]));
        let before = values(residual.clone());
        let copied = linear_add(x.clone(), weight.clone(), residual.clone());
        assert_eq!(values(residual.clone()), before);
        assert_eq!(values(linear_add(x, weight, residual)), values(copied));
    }
}
