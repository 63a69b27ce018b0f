//! Gated activations of the feed-forward layer: `silu(gate) * up` (SwiGLU) and `gelu(gate) * up` (GEGLU).
//!
//! Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202; for the `tanh` form of GELU,
//! Hendrycks and Gimpel, arXiv 1606.08415. Both activations are `x sigmoid(z)`: `silu` with `z = x`, and
//! `gelu` with `z = 2 sqrt(2 / pi) (x + 0.044715 x^3)`, since `(1 + tanh(y)) / 2 = sigmoid(2 y)`.

use super::backends::{cast, dispatched, for_ndarray, kernel_trait, widen};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The activation of the gate, by its name in `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// SiLU (swish): `x / (1 + exp(-x))`.
    #[default]
    Silu,
    /// The tanh approximation of GELU: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluPytorchTanh,
}

/// `2 sqrt(2 / pi)`
const GELU_SCALE: f64 = 1.595_769_121_605_730_7;
/// The factor of the cube in the `tanh` form of GELU.
const GELU_CUBE: f64 = 0.044_715;

kernel_trait! {
    /// Forward and backward on plain backend tensors of equal shape and type.
    trait GatedKernel {
        /// `activation(gate) * up`
        #[fusion(dtype = gate, shape = gate)]
        fn gated_forward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            activation: Activation,
        ) -> FloatTensor<Self> {
            portable_forward::<Self>(gate, up, activation)
        }

        /// Returns the gradients of `gate` and `up`.
        #[fusion(meta = |_grad, gate, up, _activation| (gate.clone(), up.clone()))]
        fn gated_backward(
            grad: FloatTensor<Self>,
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            activation: Activation,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable_backward::<Self>(grad, gate, up, activation)
        }
    }
}

for_ndarray! { GatedKernel }

/// Computes `1 / (1 + exp(-x))`. Burn's own version uses f32 and a logarithm.
pub(super) fn sigmoid<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_recip(B::float_add_scalar(B::float_exp(B::float_neg(x)), 1.0.into()))
}

/// Returns the input of the sigmoid, and its slope if that is not 1.
fn inner<B: Backend>(
    gate: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    match activation {
        Activation::Silu => (gate, None),
        Activation::GeluPytorchTanh => {
            let square = B::float_mul(gate.clone(), gate.clone());
            let polynomial = |cube: f64| {
                let part = B::float_mul_scalar(square.clone(), (GELU_SCALE * cube).into());
                B::float_add_scalar(part, GELU_SCALE.into())
            };
            (B::float_mul(polynomial(GELU_CUBE), gate), Some(polynomial(3.0 * GELU_CUBE)))
        }
    }
}

fn portable_forward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let dtype = gate.dtype();
    let (gate, up) = (widen::<B>(gate), widen::<B>(up));
    let sigmoid = sigmoid::<B>(inner::<B>(gate.clone(), activation).0);
    cast::<B>(B::float_mul(B::float_mul(sigmoid, gate), up), dtype.into())
}

fn portable_backward<B: Backend>(
    grad: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = gate.dtype();
    let (grad, gate, up) = (widen::<B>(grad), widen::<B>(gate), widen::<B>(up));
    // (x s(z))' = s + x s (1 - s) z' = s + (y - s y) z'
    let (z, z_slope) = inner::<B>(gate.clone(), activation);
    let sigmoid = sigmoid::<B>(z);
    let activated = B::float_mul(sigmoid.clone(), gate);
    let slope = match z_slope {
        None => B::float_sub(
            B::float_add(sigmoid.clone(), activated.clone()),
            B::float_mul(sigmoid, activated.clone()),
        ),
        Some(z_slope) => {
            let rest =
                B::float_sub(activated.clone(), B::float_mul(sigmoid.clone(), activated.clone()));
            B::float_add(sigmoid, B::float_mul(rest, z_slope))
        }
    };
    let grad_up = B::float_mul(grad.clone(), activated);
    let grad_gate = B::float_mul(B::float_mul(grad, up), slope);
    (cast::<B>(grad_gate, dtype.into()), cast::<B>(grad_up, dtype.into()))
}

dispatched! {
    [Autodiff]
    trait GatedOps {
        fn gated(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            activation: Activation,
        ) -> FloatTensor<Self> {
            <Self as GatedKernel>::gated_forward(gate, up, activation)
        }
    }
}

impl<B: GatedKernel, C: CheckpointStrategy> GatedOps for Autodiff<B, C> {
    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (gate, gate_node) = gate.into_parts();
        let (up, up_node) = up.into_parts();
        match GatedBackward.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::gated_forward(gate.clone(), up.clone(), activation);
                prep.finish((gate, up, activation), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_forward(gate, up, activation)),
        }
    }
}

#[derive(Debug)]
struct GatedBackward;

impl<B: GatedKernel> Backward<B, 2> for GatedBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Activation);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_node, up_node] = ops.parents;
        let (gate, up, activation) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (grad_gate, grad_up) = B::gated_backward(grad, gate, up, activation);
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, grad_gate);
        }
        if let Some(node) = up_node {
            grads.register::<B>(node.id, grad_up);
        }
    }
}

/// Computes `silu(gate) * up`, element by element, where `silu(x) = x / (1 + exp(-x))`.
///
/// Source: arXiv 2002.05202.
///
/// # Shapes
/// `gate`, `up`, and the result have the same shape.
///
/// # Panics
/// If the shapes or element types of `gate` and `up` differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(gate, up, Activation::Silu)
}

/// Computes `activation(gate) * up`, element by element.
///
/// Source: arXiv 2002.05202.
///
/// # Shapes
/// `gate`, `up`, and the result have the same shape.
///
/// # Panics
/// If the shapes or element types of `gate` and `up` differ.
pub fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    let (gate_dims, up_dims) = (gate.dims(), up.dims());
    assert_eq!(gate_dims, up_dims, "gated: the shapes of gate and up differ");
    assert_eq!(gate.dtype(), up.dtype(), "gated: the element types of gate and up differ");
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(<Dispatch as GatedOps>::gated(gate, up, activation))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;

    /// Elements per parallel task.
    const BLOCK: usize = 16 * 1024;

    impl GatedKernel for Flex {
        fn gated_forward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            activation: Activation,
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&gate, &up]) {
                return portable_forward::<Self>(gate, up, activation);
            }
            let shape = gate.shape();
            let (gate, up) = (kernel::contiguous(gate), kernel::contiguous(up));
            let (gate, up) = (gate.storage::<f32>(), up.storage::<f32>());
            let mut out = Buffer::any(gate.len());
            let out_all = out.shared();
            kernel::par_blocks(gate.len(), BLOCK, |block| {
                // SAFETY: the blocks are disjoint.
                let out = unsafe { out_all.slice(block.clone()) };
                let (gate, up) = (&gate[block.clone()], &up[block]);
                match activation {
                    Activation::Silu => silu_block(gate, up, out),
                    Activation::GeluPytorchTanh => gelu_block(gate, up, out),
                }
            });
            out.into_tensor(shape)
        }

        /// Overwrites `gate` and `up` with the two gradients if nothing else holds them.
        fn gated_backward(
            grad: FloatTensor<Self>,
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            activation: Activation,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !kernel::all_f32([&grad, &gate, &up]) {
                return portable_backward::<Self>(grad, gate, up, activation);
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
                match activation {
                    Activation::Silu => silu_backward_block(&grads[block], gate, up),
                    Activation::GeluPytorchTanh => gelu_backward_block(&grads[block], gate, up),
                }
            });
            (gate, up)
        }
    }

    simd_fn! {
        fn silu_block(gate: &[f32], up: &[f32], out: &mut [f32]) {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + kernel::exp(-gate)) * up;
            }
        }
    }

    simd_fn! {
        fn gelu_block(gate: &[f32], up: &[f32], out: &mut [f32]) {
            let (scale, cube) = (GELU_SCALE as f32, GELU_CUBE as f32);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                let z = scale * gate * (1.0 + cube * gate * gate);
                *out = gate / (1.0 + kernel::exp(-z)) * up;
            }
        }
    }

    simd_fn! {
        /// Replaces `gate` and `up` with their gradients.
        fn silu_backward_block(grad: &[f32], gate: &mut [f32], up: &mut [f32]) {
            for ((grad, gate), up) in grad.iter().zip(gate).zip(up) {
                let sigmoid = 1.0 / (1.0 + kernel::exp(-*gate));
                let silu = *gate * sigmoid;
                *gate = grad * *up * (sigmoid + silu * (1.0 - sigmoid));
                *up = grad * silu;
            }
        }
    }

    simd_fn! {
        /// The same for GELU.
        fn gelu_backward_block(grad: &[f32], gate: &mut [f32], up: &mut [f32]) {
            let (scale, cube) = (GELU_SCALE as f32, GELU_CUBE as f32);
            for ((grad, gate), up) in grad.iter().zip(gate).zip(up) {
                let square = *gate * *gate;
                let z = scale * *gate * (1.0 + cube * square);
                let z_slope = scale * (1.0 + 3.0 * cube * square);
                let sigmoid = 1.0 / (1.0 + kernel::exp(-z));
                let gelu = *gate * sigmoid;
                *gate = grad * *up * (sigmoid + gelu * (1.0 - sigmoid) * z_slope);
                *up = grad * gelu;
            }
        }
    }
}
