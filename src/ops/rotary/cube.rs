//! GPU kernel: one unit per pair of vectors of a head, and per vector that is not rotated.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubecl, element, in_rows, units, unwritten, vector_of,
};
use super::{RotaryKernel, Rotation, portable_rotate};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

#[cube(launch_unchecked)]
fn rotate_kernel<F: Float, I: Int, N: Size>(
    x: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<f32, N>>,
    sin: &Tensor<Vector<f32, N>>,
    positions: &Tensor<I>,
    out: &mut Tensor<Vector<F, N>>,
    // Heads of all tokens, heads per token, vectors per head, and vectors per half of the rotated part.
    all_heads: usize,
    heads: usize,
    head_vectors: usize,
    half: usize,
    sign: f32,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    let of_head = head_vectors - half;
    let head = ABSOLUTE_POS / of_head;
    if head >= all_heads {
        terminate!();
    }
    let i = ABSOLUTE_POS % of_head;
    let first = head * head_vectors + i;
    if i < half {
        let angle = usize::cast_from(positions[head / heads]) * half + i;
        let cos = cos[angle];
        let sin = sin[angle] * Vector::new(sign);
        let a = Vector::<f32, N>::cast_from(x[first]);
        let b = Vector::<f32, N>::cast_from(x[first + half]);
        out[first] = Vector::cast_from(a * cos - b * sin);
        out[first + half] = Vector::cast_from(b * cos + a * sin);
    } else {
        out[first + half] = x[first + half];
    }
}

impl RotaryKernel for CubeBackend {
    fn rotate(
        x: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        positions: CubeTensor,
        rotation: Rotation,
    ) -> CubeTensor {
        let table_in_f32 = cos.dtype == DType::F32 && sin.dtype == DType::F32;
        if !are_short([&x]) || !table_in_f32 {
            return portable_rotate::<Self>(x, cos, sin, positions, rotation);
        }
        let [x, cos, sin, positions] = in_rows([x, cos, sin, positions]);
        let ([tokens, width], half) = ([x.meta.shape()[0], x.meta.shape()[1]], cos.meta.shape()[1]);
        let (head_dim, heads) = (rotation.head_dim, width / rotation.head_dim);
        let out = unwritten(&x, [tokens, width], x.dtype);
        // A vector must lie within one half or within the part that is not rotated.
        let vector = vector_of(half, [&x, &cos]).min(vector_of(head_dim, [&x]));
        let (head_vectors, half) = (head_dim / vector, half / vector);
        let (cube_count, cube_dim) = units(tokens * heads * (head_vectors - half), &x);
        let elements = [element(&x), element(&positions)];
        // SAFETY: each unit handles its own two vectors, or one vector, of a head. The table is read at the
        // positions, which are within it, as the operation requires.
        unsafe {
            rotate_kernel::launch_unchecked(
                &x.client.clone(),
                cube_count,
                cube_dim,
                vector,
                x.into_tensor_arg(),
                cos.into_tensor_arg(),
                sin.into_tensor_arg(),
                positions.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                tokens * heads,
                heads,
                head_vectors,
                half,
                if rotation.inverse { -1.0 } else { 1.0 },
                elements,
            );
        }
        out
    }
}
