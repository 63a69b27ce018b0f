//! GPU kernel: the cube at an ID's first position adds the gradients of all positions of the ID, in order.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubecl, cubes, element, in_rows, units_of, vector_of,
    zeroed,
};
use super::{EmbeddingKernel, portable_grad};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

#[cube(launch_unchecked)]
fn grad_kernel<G: Float, W: Float, I: Int, N: Size>(
    grad: &Tensor<Vector<G, N>>,
    ids: &Tensor<I>,
    out: &mut Tensor<Vector<W, N>>,
    tokens: usize,
    vocabulary: usize,
    vectors: usize,
    #[comptime] units: usize,
    #[define(G, W, I)] _elements: [ElemType; 3],
) {
    let token = CUBE_POS;
    if token >= tokens {
        terminate!();
    }
    let id = ids[token];
    // The units search for an earlier position together.
    let mut earlier = Shared::<[u32]>::new_slice(units);
    let mut found = 0u32;
    for other in range_stepped(UNIT_POS as usize, token, units) {
        if ids[other] == id {
            found = 1u32;
        }
    }
    earlier[UNIT_POS as usize] = found;
    sync_cube();
    let mut is_first = usize::cast_from(id) < vocabulary;
    for unit in 0..units {
        if earlier[unit] == 1u32 {
            is_first = false;
        }
    }
    if is_first {
        for i in range_stepped(UNIT_POS as usize, vectors, units) {
            let mut sum = Vector::<f32, N>::new(0.0);
            for other in token..tokens {
                if ids[other] == id {
                    sum += Vector::cast_from(grad[other * vectors + i]);
                }
            }
            out[usize::cast_from(id) * vectors + i] = Vector::cast_from(sum);
        }
    }
}

impl EmbeddingKernel for CubeBackend {
    fn embedding_grad(grad: CubeTensor, ids: CubeTensor, weight: CubeTensor) -> CubeTensor {
        if !are_short([&grad, &weight]) {
            return portable_grad::<Self>(grad, ids, weight);
        }
        let [grad, ids] = in_rows([grad, ids]);
        let [vocabulary, width] = [weight.meta.shape()[0], weight.meta.shape()[1]];
        let tokens = ids.meta.num_elements();
        let out = zeroed(&weight, [vocabulary, width], weight.dtype);
        let vector = vector_of(width, [&grad, &out]);
        let units = units_of(width / vector, &grad);
        let (cube_count, cube_dim) = cubes(tokens, units, &grad);
        let elements = [element(&grad), element(&out), element(&ids)];
        // SAFETY: `grad` has one row per token. Each cube writes only the row of its ID, which it checks
        // against the vocabulary, and no other cube writes that row.
        unsafe {
            grad_kernel::launch_unchecked(
                &grad.client.clone(),
                cube_count,
                cube_dim,
                vector,
                grad.into_tensor_arg(),
                ids.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                tokens,
                vocabulary,
                width / vector,
                units,
                elements,
            );
        }
        out
    }
}
