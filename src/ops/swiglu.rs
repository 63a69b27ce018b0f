//! Gated activation of the feed-forward block: `silu(gate) * up`.
//!
//! Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

use super::backends::{cast, dispatched, for_each_portable_backend, widen};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;

/// Forward and backward on plain backend tensors of equal shape and type.
pub(crate) trait SwigluKernel: Backend {
    /// `silu(gate) * up`
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        portable_forward::<Self>(gate, up)
    }

    /// The gradients of `gate` and `up`.
    fn swiglu_backward(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable_backward::<Self>(grad, gate, up)
    }
}

for_each_portable_backend! { SwigluKernel {} }

/// `1 / (1 + exp(-x))`. Burn's own goes through f32 and a logarithm.
fn sigmoid<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_recip(B::float_add_scalar(B::float_exp(B::float_neg(x)), 1.0.into()))
}

fn portable_forward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let (gate, up) = (widen::<B>(gate), widen::<B>(up));
    let out = B::float_mul(B::float_mul(sigmoid::<B>(gate.clone()), gate), up);
    cast::<B>(out, dtype.into())
}

fn portable_backward<B: Backend>(
    grad: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = gate.dtype();
    let (grad, gate, up) = (widen::<B>(grad), widen::<B>(gate), widen::<B>(up));
    // silu'(g) = s + g s (1 - s) = s + silu(g) - s silu(g)
    let sigmoid = sigmoid::<B>(gate.clone());
    let silu = B::float_mul(sigmoid.clone(), gate);
    let slope = B::float_sub(
        B::float_add(sigmoid.clone(), silu.clone()),
        B::float_mul(sigmoid, silu.clone()),
    );
    let grad_up = B::float_mul(grad.clone(), silu);
    let grad_gate = B::float_mul(B::float_mul(grad, up), slope);
    (cast::<B>(grad_gate, dtype.into()), cast::<B>(grad_up, dtype.into()))
}

dispatched! {
    [Autodiff]
    trait SwigluOps {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            <Self as SwigluKernel>::swiglu_forward(gate, up)
        }
    }
}

impl<B: SwigluKernel, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, gate_node) = gate.into_parts();
        let (up, up_node) = up.into_parts();
        match SwigluBackward.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::swiglu_forward(gate.clone(), up.clone());
                prep.finish((gate, up), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::swiglu_forward(gate, up)),
        }
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl<B: SwigluKernel> Backward<B, 2> for SwigluBackward {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_node, up_node] = ops.parents;
        let (gate, up) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (grad_gate, grad_up) = B::swiglu_backward(grad, gate, up);
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, grad_gate);
        }
        if let Some(node) = up_node {
            grads.register::<B>(node.id, grad_up);
        }
    }
}

/// `silu(gate) * up`, element by element, where `silu(x) = x / (1 + exp(-x))`.
///
/// Source: arXiv 2002.05202.
///
/// # Shapes
/// `gate`, `up` and the result have one shape.
///
/// # Panics
/// If the shapes or element types of `gate` and `up` differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let (gate_dims, up_dims) = (gate.dims(), up.dims());
    assert_eq!(gate_dims, up_dims, "swiglu: the shapes of gate and up differ");
    assert_eq!(gate.dtype(), up.dtype(), "swiglu: the element types of gate and up differ");
    let out = <Dispatch as SwigluOps>::swiglu(gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(out)
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;

    /// Elements in one parallel task.
    const BLOCK: usize = 16 * 1024;

    impl SwigluKernel for Flex {
        fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            if !kernel::all_f32([&gate, &up]) {
                return portable_forward::<Self>(gate, up);
            }
            let shape = gate.shape();
            let (gate, up) = (kernel::contiguous(gate), kernel::contiguous(up));
            let (gate, up) = (gate.storage::<f32>(), up.storage::<f32>());
            let mut out = Buffer::any(gate.len());
            let out_all = out.shared();
            kernel::par_blocks(gate.len(), BLOCK, |block| {
                // SAFETY: the blocks are disjoint.
                let out = unsafe { out_all.slice(block.clone()) };
                forward_block(&gate[block.clone()], &up[block], out);
            });
            out.into_tensor(shape)
        }

        /// Writes the two gradients over `gate` and `up` where nothing else holds those.
        fn swiglu_backward(
            grad: FloatTensor<Self>,
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !kernel::all_f32([&grad, &gate, &up]) {
                return portable_backward::<Self>(grad, gate, up);
            }
            let grad = kernel::contiguous(grad);
            let grads = grad.storage::<f32>();
            let (mut gate, mut up) = (kernel::contiguous(gate), kernel::contiguous(up));
            let gate_all = SharedMut::new(gate.storage_mut::<f32>());
            let up_all = SharedMut::new(up.storage_mut::<f32>());
            kernel::par_blocks(grads.len(), BLOCK, |block| {
                // SAFETY: the blocks are disjoint.
                let (gate, up) =
                    unsafe { (gate_all.slice(block.clone()), up_all.slice(block.clone())) };
                backward_block(&grads[block], gate, up);
            });
            (gate, up)
        }
    }

    simd_fn! {
        fn forward_block(gate: &[f32], up: &[f32], out: &mut [f32]) {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + kernel::exp(-gate)) * up;
            }
        }
    }

    simd_fn! {
        /// Replaces `gate` and `up` by their gradients.
        fn backward_block(grad: &[f32], gate: &mut [f32], up: &mut [f32]) {
            for ((grad, gate), up) in grad.iter().zip(gate).zip(up) {
                let sigmoid = 1.0 / (1.0 + kernel::exp(-*gate));
                let silu = *gate * sigmoid;
                *gate = grad * *up * (sigmoid + silu * (1.0 - sigmoid));
                *up = grad * silu;
            }
        }
    }
}
