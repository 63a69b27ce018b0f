//! An input that several products share. Autodiff would compute a gradient for each product and add them in
//! separate passes; here the products add to one sum.
//!
//! ```text
//! x -> shared -> x W1, x W2, ...        backward: each adds its part to the sum, the first also sends
//!                                       a zero as its gradient; then `shared` sends the sum to x
//! ```

use super::backends::dispatched;
use super::linear::{self, linear_add_to, linear_of};
use super::weight::Weight;
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch};
use burn::tensor::Tensor;
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// A gradient that products add to.
#[derive(Clone, Debug, Default)]
pub(crate) struct GradientSum(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl GradientSum {
    /// Replaces the sum, which does not exist at first. Returns whether this was the first part.
    pub(super) fn update<B: Backend>(
        &self,
        add: impl FnOnce(Option<FloatTensor<B>>) -> FloatTensor<B>,
    ) -> bool {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = sum.take().map(|sum| match sum.downcast::<FloatTensor<B>>() {
            Ok(sum) => *sum,
            Err(_) => unreachable!("all products of an input are on its backend"),
        });
        let is_first = before.is_none();
        *sum = Some(Box::new(add(before)));
        is_first
    }

    fn take<B: Backend>(&self) -> Option<FloatTensor<B>> {
        let sum = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        sum.downcast::<FloatTensor<B>>().ok().map(|sum| *sum)
    }
}

dispatched! {
    [Autodiff]
    trait SharedInputOps {
        fn shared_input(x: FloatTensor<Self>, sum: GradientSum) -> FloatTensor<Self> {
            let _ = sum;
            x
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> SharedInputOps for Autodiff<B, C> {
    fn shared_input(x: FloatTensor<Self>, sum: GradientSum) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        match SharedInputBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(sum, x),
            OpsKind::UnTracked(prep) => prep.finish(x),
        }
    }
}

#[derive(Debug)]
struct SharedInputBackward;

impl<B: Backend> Backward<B, 1> for SharedInputBackward {
    type State = GradientSum;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        // The zero from the first product, which has run before.
        grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        if let (Some(node), Some(sum)) = (node, ops.state.take::<B>()) {
            grads.register::<B>(node.id, sum);
        }
    }
}

/// An input of several products.
pub(crate) struct SharedInput {
    x: Tensor<2>,
    /// The same input, whose gradient is the sum.
    shared: Tensor<2>,
    sum: GradientSum,
}

impl SharedInput {
    /// Wraps an input `x`, `[tokens, input]`.
    pub(crate) fn new(x: Tensor<2>) -> Self {
        let sum = GradientSum::default();
        let shared =
            <Dispatch as SharedInputOps>::shared_input(x.clone().into_dispatch(), sum.clone());
        Self { x, shared: Tensor::from_dispatch(shared), sum }
    }

    /// Returns the input itself.
    pub(crate) fn tensor(&self) -> Tensor<2> {
        self.x.clone()
    }

    /// Like [`linear`](super::linear()).
    pub(crate) fn linear(&self, weight: impl Into<Weight>) -> Tensor<2> {
        let weight = weight.into();
        linear::check(&self.shared, &weight);
        linear_of(self.shared.clone(), weight, Some(self.sum.clone()))
    }

    /// Like [`linear_add`](super::linear_add).
    pub(crate) fn linear_add(&self, weight: impl Into<Weight>, residual: Tensor<2>) -> Tensor<2> {
        linear_add_to(self.shared.clone(), weight.into(), residual, Some(self.sum.clone()))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::linear;
    use burn::tensor::{Device, Distribution};

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// Returns the largest difference, relative to the largest value.
    fn difference(a: &[f32], b: &[f32]) -> f32 {
        let largest = b.iter().fold(0f32, |most, b| most.max(b.abs()));
        a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
    }

    #[test]
    fn the_sum_is_the_gradient_of_all_products_whichever_are_used() {
        let device = Device::flex().autodiff();
        let random =
            |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let (rows, width) = (50, 20);
        let (x, frozen) = (random([rows, width]), random([width, 5]));
        let weights = [7, 9, 11].map(|output| random([width, output]));
        let targets = [7, 9, 11, 5].map(|output| random([rows, output]));
        // With all products, with some missing, and with another use of the input.
        for used in [[true, true, true], [true, false, true], [false, false, true]] {
            let gradients = |shared: bool| {
                let x = x.clone().detach().require_grad();
                let weights = weights.clone().map(|weight| weight.detach().require_grad());
                let residual = x.clone().matmul(frozen.clone());
                let input = SharedInput::new(x.clone());
                let product = |weight: &Tensor<2>| match shared {
                    true => input.linear(weight.clone()),
                    false => linear(x.clone(), weight.clone()),
                };
                let last = match shared {
                    true => input.linear_add(frozen.clone(), residual),
                    false => residual + linear(x.clone(), frozen.clone()),
                };
                let outputs = weights.iter().map(product).chain([last]).zip(targets.clone());
                let loss = outputs
                    .enumerate()
                    .filter(|(i, _)| used.get(*i).copied().unwrap_or(true))
                    .map(|(_, (y, target))| (y.tanh() * target).sum())
                    .reduce(|a, b| a + b);
                let grads = (loss.unwrap() + input.tensor().sum()).backward();
                let of_weights = weights.map(|weight| weight.grad(&grads).map(values));
                (values(x.grad(&grads).unwrap()), of_weights)
            };
            let ((found, of_weights), (expected, expected_of_weights)) =
                (gradients(true), gradients(false));
            assert!(difference(&found, &expected) < 1e-5);
            assert_eq!(of_weights, expected_of_weights);
            assert_eq!(of_weights.map(|grad| grad.is_some()), used);
        }
        // Off the graph, this is the plain input.
        let x = x.inner();
        let weight = frozen.inner();
        let product = SharedInput::new(x.clone()).linear(weight.clone());
        assert_eq!(values(product), values(linear(x, weight)));
    }
}
