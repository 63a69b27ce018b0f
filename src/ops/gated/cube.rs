//! GPU kernels: one unit per vector of elements.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubecl, element, in_rows, units, unwritten, vector_of,
};
use super::{Activation, GELU_CUBE, GELU_SCALE, GatedKernel, portable_backward, portable_forward};
use burn::backend::TensorMetadata;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Returns `sigmoid(z)` and the slope of `z`, for the activation `x sigmoid(z)`.
#[cube]
fn sigmoid_and_slope<N: Size>(
    x: Vector<f32, N>,
    #[comptime] gelu: bool,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0);
    if comptime!(gelu) {
        let scale = Vector::<f32, N>::new(GELU_SCALE as f32);
        let cube = Vector::<f32, N>::new((GELU_SCALE * GELU_CUBE) as f32);
        let slope_cube = Vector::<f32, N>::new((3.0 * GELU_SCALE * GELU_CUBE) as f32);
        let square = x * x;
        let z = (square * cube + scale) * x;
        (one / (one + (-z).exp()), square * slope_cube + scale)
    } else {
        (one / (one + (-x).exp()), one)
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    vectors: usize,
    #[comptime] gelu: bool,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS >= vectors {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let (sigmoid, _slope) = sigmoid_and_slope(x, gelu);
    out[ABSOLUTE_POS] = Vector::cast_from(sigmoid * x * up);
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    grad_gate: &mut Tensor<Vector<F, N>>,
    grad_up: &mut Tensor<Vector<F, N>>,
    vectors: usize,
    #[comptime] gelu: bool,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS >= vectors {
        terminate!();
    }
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let (sigmoid, slope) = sigmoid_and_slope(x, gelu);
    // (x s(z))' = s + x s (1 - s) z'
    let activated = sigmoid * x;
    let slope = sigmoid + (activated - sigmoid * activated) * slope;
    grad_gate[ABSOLUTE_POS] = Vector::cast_from(grad * up * slope);
    grad_up[ABSOLUTE_POS] = Vector::cast_from(grad * activated);
}

impl GatedKernel for CubeBackend {
    fn gated_forward(gate: CubeTensor, up: CubeTensor, activation: Activation) -> CubeTensor {
        if !are_short([&gate, &up]) {
            return portable_forward::<Self>(gate, up, activation);
        }
        let [gate, up] = in_rows([gate, up]);
        let count = gate.meta.num_elements();
        let out = unwritten(&gate, gate.shape(), gate.dtype);
        let vector = vector_of(count, [&gate]);
        let (cube_count, cube_dim) = units(count / vector, &gate);
        let kind = element(&gate);
        // SAFETY: the tensors have `count` elements each, and each unit handles its own.
        unsafe {
            forward_kernel::launch_unchecked(
                &gate.client.clone(),
                cube_count,
                cube_dim,
                vector,
                gate.into_tensor_arg(),
                up.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                count / vector,
                activation == Activation::GeluPytorchTanh,
                kind,
            );
        }
        out
    }

    fn gated_backward(
        grad: CubeTensor,
        gate: CubeTensor,
        up: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        if !are_short([&grad, &gate, &up]) {
            return portable_backward::<Self>(grad, gate, up, activation);
        }
        let [grad, gate, up] = in_rows([grad, gate, up]);
        let count = gate.meta.num_elements();
        let outputs = [(); 2].map(|()| unwritten(&gate, gate.shape(), gate.dtype));
        let [grad_gate, grad_up] = outputs.clone();
        let vector = vector_of(count, [&gate]);
        let (cube_count, cube_dim) = units(count / vector, &gate);
        let kind = element(&gate);
        // SAFETY: the tensors have `count` elements each, and each unit handles its own.
        unsafe {
            backward_kernel::launch_unchecked(
                &gate.client.clone(),
                cube_count,
                cube_dim,
                vector,
                grad.into_tensor_arg(),
                gate.into_tensor_arg(),
                up.into_tensor_arg(),
                grad_gate.into_tensor_arg(),
                grad_up.into_tensor_arg(),
                count / vector,
                activation == Activation::GeluPytorchTanh,
                kind,
            );
        }
        outputs.into()
    }
}
