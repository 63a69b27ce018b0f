//! A product with dropout on the inputs, `(x m) W`. It keeps neither `x m` nor the factors `m` for the
//! backward pass; both are recomputed in blocks of tokens.

use super::backends::{cast, dispatched, for_each_portable_backend};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Receives a token's index and sets its factors.
type WriteFactors = dyn Fn(usize, &mut [f32]) + Send + Sync;

/// The factors of a token's inputs, the same at every call: 0 for dropped inputs, otherwise the factor that
/// preserves the expectation.
#[derive(Clone)]
pub(crate) struct DropoutFactors(Arc<WriteFactors>);

impl DropoutFactors {
    /// Creates factors. `write` receives a token's index and sets its factors.
    pub(crate) fn new(write: impl Fn(usize, &mut [f32]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// Returns all factors, like `x`, `[tokens, width]`. They have no gradient.
    pub(crate) fn tensor(&self, x: &Tensor<2>) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let mut values = vec![0.0; tokens * width];
        self.write_all(0..tokens, width, &mut values);
        let factors = Tensor::from_data(TensorData::new(values, [tokens, width]), &x.device());
        if factors.dtype() == x.dtype() { factors } else { factors.cast(x.dtype()) }
    }

    /// Writes the factors of a range of tokens, `width` per token.
    fn write_all(&self, tokens: Range<usize>, width: usize, factors: &mut [f32]) {
        let rows = factors.par_chunks_mut(width.max(1)).zip(tokens);
        rows.for_each(|(factors, token)| (self.0)(token, factors));
    }

    /// Returns all factors, like `x`.
    fn like<B: Backend>(&self, x: &FloatTensor<B>) -> FloatTensor<B> {
        let [tokens, width] = x.shape().dims();
        let mut values = vec![0.0; tokens * width];
        self.write_all(0..tokens, width, &mut values);
        let factors = B::float_from_data(TensorData::new(values, [tokens, width]), &x.device());
        cast::<B>(factors, x.dtype().into())
    }
}

impl std::fmt::Debug for DropoutFactors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DropoutFactors")
    }
}

/// Forward and backward on plain backend tensors; `x` is `[tokens, input]`, `weight` is
/// `[input, output]`.
pub(crate) trait DropoutLinearKernel: Backend {
    fn dropout_linear_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        factors: DropoutFactors,
    ) -> FloatTensor<Self> {
        portable_forward::<Self>(x, weight, &factors)
    }

    /// Returns the gradients of `x` and `weight`, if requested.
    fn dropout_linear_backward(
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        wants: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        portable_backward::<Self>(grad, saved, wants)
    }
}

/// Input, weight and factors.
type Saved<B> = (FloatTensor<B>, FloatTensor<B>, DropoutFactors);

for_each_portable_backend! { DropoutLinearKernel {} }

fn portable_forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    factors: &DropoutFactors,
) -> FloatTensor<B> {
    let factors = factors.like::<B>(&x);
    B::float_matmul(B::float_mul(x, factors), weight)
}

fn portable_backward<B: Backend>(
    grad: FloatTensor<B>,
    (x, weight, factors): Saved<B>,
    [wants_x, wants_weight]: [bool; 2],
) -> [Option<FloatTensor<B>>; 2] {
    let factors = factors.like::<B>(&x);
    let grad_x = wants_x.then(|| {
        let grad = B::float_matmul(grad.clone(), B::float_transpose(weight));
        B::float_mul(grad, factors.clone())
    });
    let grad_weight =
        wants_weight.then(|| B::float_matmul(B::float_transpose(B::float_mul(x, factors)), grad));
    [grad_x, grad_weight]
}

dispatched! {
    [Autodiff]
    trait DropoutLinearOps {
        fn dropout_linear(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            factors: DropoutFactors,
        ) -> FloatTensor<Self> {
            <Self as DropoutLinearKernel>::dropout_linear_forward(x, weight, factors)
        }
    }
}

impl<B: DropoutLinearKernel, C: CheckpointStrategy> DropoutLinearOps for Autodiff<B, C> {
    fn dropout_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        factors: DropoutFactors,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let out = B::dropout_linear_forward(x.clone(), weight.clone(), factors.clone());
        match DropoutLinearBackward.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, factors), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct DropoutLinearBackward;

impl<B: DropoutLinearKernel> Backward<B, 2> for DropoutLinearBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let wants = ops.parents.each_ref().map(Option::is_some);
        let values = B::dropout_linear_backward(grad, ops.state, wants);
        for (node, value) in ops.parents.into_iter().zip(values) {
            if let (Some(node), Some(value)) = (node, value) {
                grads.register::<B>(node.id, value);
            }
        }
    }
}

/// Computes `(x * factors) @ weight`.
///
/// # Shapes
/// - `x`: `[tokens, input]`
/// - `weight`: `[input, output]`
/// - result: `[tokens, output]`
///
/// # Panics
/// If the shapes do not match or the element types differ.
pub(crate) fn dropout_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    factors: DropoutFactors,
) -> Tensor<2> {
    super::linear::check(&x, &weight.clone().into());
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DropoutLinearOps>::dropout_linear(x, weight, factors))
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, Matrix, MatrixMut, Threads};
    use super::super::pieces::pieces;
    use super::*;
    use burn::backend::Flex;

    /// Tokens whose inputs are multiplied by their factors at a time.
    const BLOCK: usize = 256;

    fn blocks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
        (0..tokens).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(tokens))
    }

    impl DropoutLinearKernel for Flex {
        fn dropout_linear_forward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            factors: DropoutFactors,
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&x, &weight]) {
                return portable_forward::<Self>(x, weight, &factors);
            }
            let ([tokens, input], [_, output]) = (x.shape().dims(), weight.shape().dims::<2>());
            let (x, weight) = (kernel::contiguous(x), kernel::contiguous(weight));
            let x = x.storage::<f32>();
            let mut out = Buffer::any(tokens * output);
            let mut inputs = Buffer::scratch(BLOCK.min(tokens) * input);
            for block in blocks(tokens) {
                let inputs = &mut inputs[..block.len() * input];
                factors.write_all(block.clone(), input, inputs);
                multiply(inputs, &x[block.start * input..block.end * input], input);
                let out = &mut out[block.start * output..block.end * output];
                MatrixMut::dense(out, [block.len(), output]).set_product(
                    1.0,
                    Matrix::dense(inputs, [block.len(), input]),
                    Matrix::dense(weight.storage::<f32>(), [input, output]),
                    Threads::All,
                );
            }
            out.into_tensor([tokens, output])
        }

        fn dropout_linear_backward(
            grad: FloatTensor<Self>,
            (x, weight, factors): Saved<Self>,
            wants @ [wants_x, wants_weight]: [bool; 2],
        ) -> [Option<FloatTensor<Self>>; 2] {
            if !kernel::all_f32([&grad, &x, &weight]) {
                return portable_backward::<Self>(grad, (x, weight, factors), wants);
            }
            let ([tokens, input], [_, output]) = (x.shape().dims(), grad.shape().dims::<2>());
            let [grad, x, weight] = [grad, x, weight].map(kernel::contiguous);
            let (grad, x) = (grad.storage::<f32>(), x.storage::<f32>());
            let weight = Matrix::dense(weight.storage::<f32>(), [input, output]);
            let mut grad_x = Buffer::any(if wants_x { tokens * input } else { 0 });
            let mut grad_weight = Buffer::zeros(if wants_weight { input * output } else { 0 });
            // The gradient of the earlier pieces.
            let mut of_earlier: Option<Buffer> = None;
            let starts: Vec<usize> = pieces(tokens).map(|piece| piece.start).skip(1).collect();
            let mut inputs = Buffer::scratch(BLOCK.min(tokens) * input);
            for block in blocks(tokens) {
                if wants_weight && starts.contains(&block.start) {
                    let of_piece =
                        std::mem::replace(&mut grad_weight, Buffer::zeros(input * output));
                    of_earlier = Some(sum(of_earlier, of_piece));
                }
                let size = [block.len(), output];
                let grad = Matrix::dense(&grad[block.start * output..block.end * output], size);
                let size = [block.len(), input];
                let inputs = &mut inputs[..block.len() * input];
                factors.write_all(block.clone(), input, inputs);
                if wants_x {
                    let grad_x = &mut grad_x[block.start * input..block.end * input];
                    let out = MatrixMut::dense(grad_x, size);
                    out.set_product(1.0, grad, weight.transposed(), Threads::All);
                    multiply(grad_x, inputs, input);
                }
                if wants_weight {
                    let x = &x[block.start * input..block.end * input];
                    multiply(inputs, x, input);
                    let out = MatrixMut::dense(&mut grad_weight, [input, output]);
                    out.add_product(Matrix::dense(inputs, size).transposed(), grad, Threads::All);
                }
            }
            [
                wants_x.then(|| grad_x.into_tensor([tokens, input])),
                wants_weight.then(|| sum(of_earlier, grad_weight).into_tensor([input, output])),
            ]
        }
    }

    /// Adds the gradient of a piece to that of earlier pieces.
    fn sum(earlier: Option<Buffer>, piece: Buffer) -> Buffer {
        match earlier {
            Some(mut sum) => {
                kernel::add(&mut sum, &piece);
                sum
            }
            None => piece,
        }
    }

    /// Computes `values *= factors`, for rows of this width.
    fn multiply(values: &mut [f32], factors: &[f32], width: usize) {
        let width = width.max(1);
        values.par_chunks_mut(width).zip(factors.par_chunks(width)).for_each(
            |(values, factors)| {
                values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn it_is_the_product_of_the_inputs_that_are_left() {
        // More tokens than one block of the kernel.
        let [tokens, width, output] = [600, 20, 8];
        let factor =
            |token: usize, i: usize| if (token * 7 + i * 3).is_multiple_of(5) { 0.0 } else { 1.25 };
        let factors = DropoutFactors::new(move |token, factors| {
            factors.iter_mut().enumerate().for_each(|(i, value)| *value = factor(token, i));
        });
        let all = (0..tokens * width).map(|i| factor(i / width, i % width)).collect::<Vec<f32>>();
        for name in crate::device::compiled() {
            let device = crate::device::by_name(name).unwrap().autodiff();
            let random =
                |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
            let x = random([tokens, width]).require_grad();
            let weight = random([width, output]).require_grad();
            let target = random([tokens, output]);
            let gradients = |y: Tensor<2>| {
                let found = values(y.clone());
                let grads = (y * target.clone()).sum().backward();
                [found, values(x.grad(&grads).unwrap()), values(weight.grad(&grads).unwrap())]
            };
            let found = gradients(dropout_linear(x.clone(), weight.clone(), factors.clone()));
            let all = Tensor::from_data(TensorData::new(all.clone(), [tokens, width]), &device);
            let expected = gradients((x.clone() * all).matmul(weight.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} and {b} on {name}");
                }
            }
        }
    }
}
