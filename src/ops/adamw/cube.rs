//! GPU kernel: one unit per vector of elements, in place.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubecl, element, in_rows, units, vector_of, writable,
};
use super::{AdamWKernel, Factors, Updated, portable_update};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

#[cube(launch_unchecked)]
fn update_kernel<P: Float, G: Float, N: Size>(
    param: &mut Tensor<Vector<P, N>>,
    grad: &Tensor<Vector<G, N>>,
    moment_1: &mut Tensor<Vector<f32, N>>,
    moment_2: &mut Tensor<Vector<f32, N>>,
    vectors: usize,
    beta_1: f32,
    rest_1: f32,
    beta_2: f32,
    rest_2: f32,
    step_size: f32,
    root_correction: f32,
    epsilon: f32,
    decay: f32,
    grad_scale: f32,
    #[define(P, G)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= vectors {
        terminate!();
    }
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]) * Vector::new(grad_scale);
    let m = moment_1[ABSOLUTE_POS] * Vector::new(beta_1) + grad * Vector::new(rest_1);
    let v = moment_2[ABSOLUTE_POS] * Vector::new(beta_2) + grad * grad * Vector::new(rest_2);
    let root = v.sqrt() * Vector::new(root_correction) + Vector::new(epsilon);
    let before = Vector::<f32, N>::cast_from(param[ABSOLUTE_POS]);
    let after = before * Vector::new(decay) - m / root * Vector::new(step_size);
    param[ABSOLUTE_POS] = Vector::cast_from(after);
    moment_1[ABSOLUTE_POS] = m;
    moment_2[ABSOLUTE_POS] = v;
}

impl AdamWKernel for CubeBackend {
    fn adamw_update(
        param: CubeTensor,
        grad: CubeTensor,
        moment_1: CubeTensor,
        moment_2: CubeTensor,
        factors: Factors,
    ) -> Updated<Self> {
        let moments_in_f32 = moment_1.dtype == DType::F32 && moment_2.dtype == DType::F32;
        if !are_short([&param, &grad]) || !moments_in_f32 {
            return portable_update::<Self>(param, grad, moment_1, moment_2, factors);
        }
        let [grad] = in_rows([grad]);
        let [param, moment_1, moment_2] = [param, moment_1, moment_2].map(writable);
        let count = param.meta.num_elements();
        let vector = vector_of(count, [&param, &grad, &moment_1]);
        let (cube_count, cube_dim) = units(count / vector, &param);
        let elements = [element(&param), element(&grad)];
        // SAFETY: all tensors have `count` elements, each unit handles its own, and nothing else holds the
        // tensors that are written.
        unsafe {
            update_kernel::launch_unchecked(
                &param.client.clone(),
                cube_count,
                cube_dim,
                vector,
                param.clone().into_tensor_arg(),
                grad.into_tensor_arg(),
                moment_1.clone().into_tensor_arg(),
                moment_2.clone().into_tensor_arg(),
                count / vector,
                factors.beta_1 as f32,
                (1.0 - factors.beta_1) as f32,
                factors.beta_2 as f32,
                (1.0 - factors.beta_2) as f32,
                factors.step_size as f32,
                factors.root_correction as f32,
                factors.epsilon as f32,
                factors.decay as f32,
                factors.grad_scale as f32,
                elements,
            );
        }
        (param, moment_1, moment_2)
    }
}
