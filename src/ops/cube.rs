//! Shared code of the GPU kernels, which are written in CubeCL once for CUDA, ROCm, Metal, Vulkan, and
//! WebGPU.
//!
//! Sums within a cube use shared memory in an order that depends only on the sizes. There are no atomics and
//! no plane operations, because the width of a plane differs between devices.

#[cfg(all(test, feature = "flex"))]
pub(super) mod testing;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::{
    into_contiguous,
    matmul::{MatmulStrategy, matmul},
};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
pub(super) use burn_cubecl::{CubeBackend, cubecl, tensor::CubeTensor};

/// Returns whether the kernels support tensors of these types, for which f32 sums are accurate enough.
pub(super) fn are_short<const N: usize>(tensors: [&CubeTensor; N]) -> bool {
    let short = [DType::F32, DType::F16, DType::BF16];
    tensors.iter().all(|tensor| short.contains(&tensor.dtype))
}

/// Returns the element type that a kernel is compiled for.
pub(super) fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

/// Makes tensors contiguous.
pub(super) fn in_rows<const N: usize>(tensors: [CubeTensor; N]) -> [CubeTensor; N] {
    tensors.map(into_contiguous)
}

/// Returns an uninitialized tensor on the device of another one.
pub(super) fn unwritten(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Returns a tensor of zeros. Burn's own version has gaps between rows on some devices.
pub(super) fn zeroed(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (shape, client, device) = (shape.into(), like.client.clone(), like.device.clone());
    let flat = zeros_client(client, device, [shape.num_elements()].into(), dtype);
    CubeTensor::new_contiguous(flat.client, flat.device, shape, flat.handle, dtype)
}

/// Returns the maximum number of elements of a type in one allocation of a device.
pub(super) fn most_elements(client: &Client, dtype: DType) -> usize {
    usize::try_from(client.properties().memory.max_page_size).unwrap_or(usize::MAX) / dtype.size()
}

/// Returns the tensor itself if nothing else holds it, otherwise a copy; contiguous.
pub(super) fn writable(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() && tensor.is_nonoverlapping() {
        true => tensor,
        // On some devices, a copy has gaps between rows.
        false => into_contiguous(tensor.copy()),
    }
}

/// Elements that a unit processes together: the most that divide `width` and that the device can read at once
/// in all of the tensors.
pub(super) fn vector_of<const N: usize>(width: usize, tensors: [&CubeTensor; N]) -> usize {
    let of = |tensor: &CubeTensor| {
        let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
        sizes.filter(|size| width.is_multiple_of(*size)).max().unwrap_or(1)
    };
    tensors.map(of).into_iter().min().unwrap_or(1)
}

/// Units of a cube for a row of `vectors` vectors; a power of two.
pub(super) fn units_of(vectors: usize, tensor: &CubeTensor) -> usize {
    // A few vectors per unit, and at least as many units as run together.
    units_within(vectors.div_ceil(4).next_power_of_two().clamp(32, 256), tensor)
}

/// Returns the number of units per cube: `wanted`, a power of two, or the device's maximum.
pub(super) fn units_within(wanted: usize, tensor: &CubeTensor) -> usize {
    let most = tensor.client.properties().hardware.max_units_per_cube.max(1);
    wanted.min(1 << most.ilog2())
}

/// Returns a grid of at least `count` cubes of `units` units. Kernels skip cubes past the last one.
pub(super) fn cubes(count: usize, units: usize, tensor: &CubeTensor) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(units as u32);
    (calculate_cube_count_elemwise(&tensor.client, count * units, dim), dim)
}

/// Returns a grid with one unit for each of `count` elements or vectors.
pub(super) fn units(count: usize, tensor: &CubeTensor) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&tensor.client, count);
    (calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
}

/// Returns the product of matrices `[.., rows, inner]` and `[.., inner, columns]`, summed in f32 and returned
/// in the type `dtype`, contiguous.
pub(super) fn product(a: CubeTensor, b: CubeTensor, dtype: DType) -> CubeTensor {
    let mut shape = a.shape();
    let last = shape.num_dims() - 1;
    shape[last] = b.shape()[last];
    let out = unwritten(&a, shape, dtype);
    product_to(a, b, out.clone());
    out
}

/// Writes a product of matrices to a contiguous tensor.
pub(super) fn product_to(a: CubeTensor, b: CubeTensor, out: CubeTensor) {
    let dtype = out.dtype;
    matmul(a, b, Some(out), MatmulStrategy::default(), dtype).expect("a product of right sizes");
}

/// Returns the sum of the units' values to all units of the cube. `scratch` has one element per unit.
#[cube]
pub(super) fn cube_sum(value: f32, scratch: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    cube_reduced(value, scratch, units, false)
}

/// Returns the largest of the units' values to all units of the cube.
#[cube]
pub(super) fn cube_max(value: f32, scratch: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    cube_reduced(value, scratch, units, true)
}

#[cube]
fn cube_reduced(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: usize,
    #[comptime] largest: bool,
) -> f32 {
    let place = UNIT_POS as usize;
    scratch[place] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if place < half {
            let (own, other) = (scratch[place], scratch[place + half]);
            if comptime!(largest) {
                scratch[place] = max(own, other);
            } else {
                scratch[place] = own + other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let reduced = scratch[0];
    // All units must have read it before it is overwritten.
    sync_cube();
    reduced
}

/// Returns a unit's own sums, initialized to zero.
#[cube]
pub(super) fn zero_sums<N: Size>(#[comptime] count: usize) -> Array<Vector<f32, N>> {
    let mut sums = Array::<Vector<f32, N>>::new(count);
    for i in 0..count {
        sums[i] = Vector::new(0.0);
    }
    sums
}

/// Returns the sum of a vector's elements.
#[cube]
pub(super) fn vector_total<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector.extract(0usize);
    #[unroll]
    for i in 1..N::value() {
        sum += vector.extract(i);
    }
    sum
}

/// Sums the rows of `rows` `[count, width]` in order. One unit per vector of columns.
#[cube(launch_unchecked)]
fn sum_rows_kernel<F: Float, N: Size>(
    rows: &Tensor<Vector<f32, N>>,
    sums: &mut Tensor<Vector<F, N>>,
    count: usize,
    vectors: usize,
    #[define(F)] _element: ElemType,
) {
    if ABSOLUTE_POS >= vectors {
        terminate!();
    }
    let mut sum = Vector::<f32, N>::new(0.0);
    for row in 0..count {
        sum += rows[row * vectors + ABSOLUTE_POS];
    }
    sums[ABSOLUTE_POS] = Vector::cast_from(sum);
}

/// Sums the rows of an f32 tensor `rows` `[count, width]` to `[width]` in the type `dtype`.
pub(super) fn sum_rows(rows: CubeTensor, dtype: DType) -> CubeTensor {
    let [count, width] = [rows.meta.shape()[0], rows.meta.shape()[1]];
    let sums = unwritten(&rows, [width], dtype);
    let vector = vector_of(width, [&rows, &sums]);
    let (cube_count, cube_dim) = units(width / vector, &rows);
    // SAFETY: each unit handles its own column of vectors, in existing rows.
    unsafe {
        sum_rows_kernel::launch_unchecked(
            &rows.client.clone(),
            cube_count,
            cube_dim,
            vector,
            rows.into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            count,
            width / vector,
            element(&sums),
        );
    }
    sums
}
