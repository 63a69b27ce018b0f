//! The second half of a gated feed-forward layer, `residual + gated(gate, up) W`. It recomputes
//! `gated(gate, up)` in the backward pass, because that is cheap and the result is as large as the gate.

use super::backends::dispatched;
use super::gated::{Activation, GatedKernel};
use super::linear::LinearKernel;
use super::weight::{Weight, WeightPrimitive};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

dispatched! {
    [Autodiff]
    trait GatedLinearOps {
        fn gated_linear_add(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            #[extension_type] weight: WeightPrimitive<Self>,
            residual: FloatTensor<Self>,
            activation: Activation,
        ) -> FloatTensor<Self> {
            let gated = <Self as GatedKernel>::gated_forward(gate, up, activation);
            <Self as LinearKernel>::linear_add_forward(gated, weight, residual)
        }
    }
}

impl<B: GatedKernel + LinearKernel, C: CheckpointStrategy> GatedLinearOps for Autodiff<B, C> {
    fn gated_linear_add(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        residual: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (weight, numbers) = weight.split();
        let wants_weight = numbers.is_tracked();
        let (gate, gate_node) = gate.into_parts();
        let (up, up_node) = up.into_parts();
        let (_, weight_node) = numbers.into_parts();
        let (residual, residual_node) = residual.into_parts();
        let gated = B::gated_forward(gate.clone(), up.clone(), activation);
        let out = B::linear_add_forward(gated, weight.clone(), residual);
        let nodes = [gate_node, up_node, weight_node, residual_node];
        match GatedLinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((gate, up, weight, wants_weight, activation), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct GatedLinearBackward;

impl<B: GatedKernel + LinearKernel> Backward<B, 4> for GatedLinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, WeightPrimitive<B>, bool, Activation);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_node, up_node, weight_node, residual_node] = ops.parents;
        let (gate, up, weight, wants_weight, activation) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = weight_node.filter(|_| wants_weight) {
            let gated = B::gated_forward(gate.clone(), up.clone(), activation);
            grads.register::<B>(node.id, B::linear_grad_weight(grad.clone(), gated));
        }
        if gate_node.is_some() || up_node.is_some() {
            let grad_gated = B::linear_grad_input(grad.clone(), weight, None);
            let (grad_gate, grad_up) = B::gated_backward(grad_gated, gate, up, activation);
            for (node, value) in [(gate_node, grad_gate), (up_node, grad_up)] {
                if let Some(node) = node {
                    grads.register::<B>(node.id, value);
                }
            }
        }
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// Computes `residual + gated(gate, up, activation) @ weight`; see [`gated`](super::gated()) and
/// [`linear_add`](super::linear_add).
///
/// # Shapes
/// - `gate`, `up`: `[tokens, inner]`
/// - `weight`: `[inner, output]`
/// - `residual` and the result: `[tokens, output]`
///
/// # Panics
/// If the shapes or the element types do not match.
pub fn gated_linear_add(
    gate: Tensor<2>,
    up: Tensor<2>,
    weight: impl Into<Weight>,
    residual: Tensor<2>,
    activation: Activation,
) -> Tensor<2> {
    let weight = weight.into();
    let ([tokens, inner], [rows, output]) = (gate.dims(), weight.sizes());
    assert_eq!(gate.dims(), up.dims(), "gated_linear_add: the shapes of gate and up differ");
    assert!(
        inner == rows && residual.dims() == [tokens, output],
        "gated_linear_add: a weight {:?} and a residual {:?} do not fit a gate {:?}",
        weight.sizes(),
        residual.dims(),
        gate.dims()
    );
    let dtype = gate.dtype();
    assert!(
        [up.dtype(), residual.dtype()].iter().all(|other| *other == dtype) && weight.fits(dtype),
        "gated_linear_add: the element types do not fit"
    );
    Tensor::from_dispatch(<Dispatch as GatedLinearOps>::gated_linear_add(
        gate.into_dispatch(),
        up.into_dispatch(),
        weight.into_dispatch(),
        residual.into_dispatch(),
        activation,
    ))
}
