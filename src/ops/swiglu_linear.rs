//! The second half of a SwiGLU feed-forward, `residual + swiglu(gate, up) W`, which keeps no
//! `swiglu(gate, up)` for the backward pass: it costs little to compute again, and it is as large
//! as the gate.

use super::backends::dispatched;
use super::linear::LinearKernel;
use super::swiglu::SwigluKernel;
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
    trait SwigluLinearOps {
        fn swiglu_linear_add(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            residual: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let gated = <Self as SwigluKernel>::swiglu_forward(gate, up);
            <Self as LinearKernel>::linear_add_forward(gated, weight, residual)
        }
    }
}

impl<B: SwigluKernel + LinearKernel, C: CheckpointStrategy> SwigluLinearOps for Autodiff<B, C> {
    fn swiglu_linear_add(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let wants_weight = weight.is_tracked();
        let (gate, gate_node) = gate.into_parts();
        let (up, up_node) = up.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (residual, residual_node) = residual.into_parts();
        let gated = B::swiglu_forward(gate.clone(), up.clone());
        let out = B::linear_add_forward(gated, weight.clone(), residual);
        let nodes = [gate_node, up_node, weight_node, residual_node];
        match SwigluLinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate, up, weight, wants_weight), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct SwigluLinearBackward;

impl<B: SwigluKernel + LinearKernel> Backward<B, 4> for SwigluLinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_node, up_node, weight_node, residual_node] = ops.parents;
        let (gate, up, weight, wants_weight) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = weight_node.filter(|_| wants_weight) {
            let gated = B::swiglu_forward(gate.clone(), up.clone());
            grads.register::<B>(node.id, B::linear_grad_weight(grad.clone(), gated));
        }
        if gate_node.is_some() || up_node.is_some() {
            let grad_gated = B::linear_grad_input(grad.clone(), weight);
            let (grad_gate, grad_up) = B::swiglu_backward(grad_gated, gate, up);
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

/// `residual + swiglu(gate, up) @ weight`; see [`swiglu`](super::swiglu()) and
/// [`linear_add`](super::linear_add).
///
/// # Shapes
/// - `gate`, `up`: `[tokens, inner]`
/// - `weight`: `[inner, output]`
/// - `residual` and the result: `[tokens, output]`
///
/// # Panics
/// If the shapes do not fit together or the element types differ.
pub fn swiglu_linear_add(
    gate: Tensor<2>,
    up: Tensor<2>,
    weight: Tensor<2>,
    residual: Tensor<2>,
) -> Tensor<2> {
    let ([tokens, inner], [rows, output]) = (gate.dims(), weight.dims());
    assert_eq!(gate.dims(), up.dims(), "swiglu_linear_add: the shapes of gate and up differ");
    assert!(
        inner == rows && residual.dims() == [tokens, output],
        "swiglu_linear_add: a weight {:?} and a residual {:?} do not fit a gate {:?}",
        weight.dims(),
        residual.dims(),
        gate.dims()
    );
    let dtype = gate.dtype();
    assert!(
        [up.dtype(), weight.dtype(), residual.dtype()].iter().all(|other| *other == dtype),
        "swiglu_linear_add: the element types differ"
    );
    Tensor::from_dispatch(<Dispatch as SwigluLinearOps>::swiglu_linear_add(
        gate.into_dispatch(),
        up.into_dispatch(),
        weight.into_dispatch(),
        residual.into_dispatch(),
    ))
}
