//! Kernels for GPUs: the sum of each chunk, then of these sums.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_sum, cubecl, cubes, element, in_rows, unwritten,
    vector_of, vector_total,
};
use super::{SumOfSquaresKernel, portable};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Vectors that one cube sums up at first.
const CHUNK: usize = 16 * 1024;
/// Units of a cube.
const UNITS: usize = 256;

#[cube(launch_unchecked)]
fn sum_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    vectors: usize,
    chunk: usize,
    chunks: usize,
    #[comptime] squared: bool,
    #[comptime] units: usize,
    #[define(F)] _element: ElemType,
) {
    if CUBE_POS >= chunks {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let first = CUBE_POS * chunk;
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in range_stepped(first + UNIT_POS as usize, min(first + chunk, vectors), units) {
        let x = Vector::<f32, N>::cast_from(x[i]);
        if comptime!(squared) {
            sum += x * x;
        } else {
            sum += x;
        }
    }
    let sum = cube_sum(vector_total(sum), &mut scratch, units);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

/// The sums of chunks of so many vectors.
fn sums_of(x: CubeTensor, chunk: usize, squared: bool) -> CubeTensor {
    let count = x.meta.num_elements();
    let vector = vector_of(count, [&x]);
    let vectors = count / vector;
    let chunks = vectors.div_ceil(chunk).max(1);
    let sums = unwritten(&x, [chunks], DType::F32);
    let most = x.client.properties().hardware.max_units_per_cube.max(1) as usize;
    let units = UNITS.min(1 << most.ilog2());
    let (cube_count, cube_dim) = cubes(chunks, units, &x);
    let kind = element(&x);
    // SAFETY: a cube reads its chunk, of what is there, and writes its own sum.
    unsafe {
        sum_kernel::launch_unchecked(
            &x.client.clone(),
            cube_count,
            cube_dim,
            vector,
            x.into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            vectors,
            chunk,
            chunks,
            squared,
            units,
            kind,
        );
    }
    sums
}

impl SumOfSquaresKernel for CubeBackend {
    fn squares(x: CubeTensor) -> CubeTensor {
        if !are_short([&x]) {
            return portable::<Self>(x);
        }
        let [x] = in_rows([x]);
        let sums = sums_of(x, CHUNK, true);
        match sums.meta.num_elements() {
            1 => sums,
            count => sums_of(sums, count, false),
        }
    }
}
