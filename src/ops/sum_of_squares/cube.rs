//! GPU kernel: one cube per sum.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_sum, cubecl, cubes, element, in_rows, units_within,
    vector_of, vector_total, writable,
};
use super::{OF_SUM, SumOfSquaresKernel, portable, sums_for};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Units per cube.
const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn squares_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    vectors: usize,
    // Vectors per sum, number of sums, and index of the first sum.
    of_sum: usize,
    count: usize,
    at: usize,
    #[comptime] units: usize,
    #[define(F)] _element: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let first = CUBE_POS * of_sum;
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in range_stepped(first + UNIT_POS as usize, min(first + of_sum, vectors), units) {
        let x = Vector::<f32, N>::cast_from(x[i]);
        sum += x * x;
    }
    let sum = cube_sum(vector_total(sum), &mut scratch, units);
    if UNIT_POS == 0 {
        sums[at + CUBE_POS] = sum;
    }
}

impl SumOfSquaresKernel for CubeBackend {
    fn squares(x: CubeTensor, sums: CubeTensor, at: usize) -> CubeTensor {
        if !are_short([&x]) || sums.dtype != DType::F32 {
            return portable::<Self>(x, sums, at);
        }
        let [x] = in_rows([x]);
        let sums = writable(sums);
        let elements = x.meta.num_elements();
        let (vector, count) = (vector_of(elements, [&x]), sums_for(elements));
        let units = units_within(UNITS, &x);
        let (cube_count, cube_dim) = cubes(count, units, &x);
        let kind = element(&x);
        // SAFETY: each cube reads only existing elements of its sum and writes only that sum.
        unsafe {
            squares_kernel::launch_unchecked(
                &x.client.clone(),
                cube_count,
                cube_dim,
                vector,
                x.into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                elements / vector,
                OF_SUM / vector,
                count,
                at,
                units,
                kind,
            );
        }
        sums
    }
}
