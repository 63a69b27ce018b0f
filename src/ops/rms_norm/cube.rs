//! GPU kernels: one cube per row forward, and one cube per group of rows backward.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_sum, cubecl, cubes, element, in_rows, sum_rows,
    units_of, unwritten, vector_of, vector_total, zero_sums,
};
use super::{
    RmsNormKernel, portable_add_forward, portable_backward, portable_backward_add, portable_forward,
};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Rows per cube in the backward pass. The cube sums their contributions to the weight's gradient.
const ROWS: usize = 16;

#[cube(launch_unchecked)]
fn forward_kernel<X: Float, W: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    // Added to `x` first, if there is a sum; otherwise any tensor.
    added: &Tensor<Vector<X, N>>,
    weight: &Tensor<Vector<W, N>>,
    y: &mut Tensor<Vector<X, N>>,
    rstd: &mut Tensor<f32>,
    sum: &mut Tensor<Vector<X, N>>,
    rows: usize,
    vectors: usize,
    eps: f32,
    #[comptime] adds: bool,
    #[comptime] units: usize,
    #[define(X, W)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let first = row * vectors;
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, vectors, units) {
        let x = value(x, added, first + i, adds);
        if comptime!(adds) {
            sum[first + i] = Vector::cast_from(x);
        }
        squares += x * x;
    }
    let total = cube_sum(vector_total(squares), &mut scratch, units);
    let scale = 1.0 / (total / f32::cast_from(vectors * N::value()) + eps).sqrt();
    if UNIT_POS == 0 {
        rstd[row] = scale;
    }
    let scale = Vector::<f32, N>::new(scale);
    for i in range_stepped(UNIT_POS as usize, vectors, units) {
        let x = value(x, added, first + i, adds);
        let weight = Vector::<f32, N>::cast_from(weight[i]);
        y[first + i] = Vector::cast_from(x * scale * weight);
    }
}

/// Returns the value to normalize: the sum, rounded to its type.
#[cube]
fn value<X: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    added: &Tensor<Vector<X, N>>,
    place: usize,
    #[comptime] adds: bool,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::cast_from(x[place]);
    if comptime!(adds) {
        let sum = value + Vector::cast_from(added[place]);
        value = Vector::cast_from(Vector::<X, N>::cast_from(sum));
    }
    value
}

#[cube(launch_unchecked)]
fn backward_kernel<X: Float, W: Float, N: Size>(
    grad: &Tensor<Vector<X, N>>,
    x: &Tensor<Vector<X, N>>,
    weight: &Tensor<Vector<W, N>>,
    rstd: &Tensor<f32>,
    // Added to the gradient of `x`, if there is a sum; otherwise any tensor.
    above: &Tensor<Vector<X, N>>,
    grad_x: &mut Tensor<Vector<X, N>>,
    // Sums over the rows of each cube, `[cubes, width]`.
    partials: &mut Tensor<Vector<f32, N>>,
    rows: usize,
    vectors: usize,
    #[comptime] adds: bool,
    #[comptime] units: usize,
    // Vectors of a row per unit, rounded up.
    #[comptime] columns: usize,
    #[define(X, W)] _elements: [ElemType; 2],
) {
    let first_row = CUBE_POS * ROWS;
    if first_row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut sums = zero_sums::<N>(columns);
    for row in first_row..min(first_row + ROWS, rows) {
        let first = row * vectors;
        let scale = rstd[row];
        let mut products = Vector::<f32, N>::new(0.0);
        for i in range_stepped(UNIT_POS as usize, vectors, units) {
            let grad = Vector::<f32, N>::cast_from(grad[first + i]);
            let weight = Vector::<f32, N>::cast_from(weight[i]);
            products += grad * weight * Vector::cast_from(x[first + i]);
        }
        let dot = cube_sum(vector_total(products), &mut scratch, units);
        let factor = dot * scale * scale / f32::cast_from(vectors * N::value());
        let factor = Vector::<f32, N>::new(factor);
        let scale = Vector::<f32, N>::new(scale);
        for k in 0..columns {
            let i = UNIT_POS as usize + k * units;
            if i < vectors {
                let grad = Vector::<f32, N>::cast_from(grad[first + i]);
                let x = Vector::<f32, N>::cast_from(x[first + i]);
                let weight = Vector::<f32, N>::cast_from(weight[i]);
                let mut of_x = (grad * weight - x * factor) * scale;
                if comptime!(adds) {
                    of_x += Vector::cast_from(above[first + i]);
                }
                grad_x[first + i] = Vector::cast_from(of_x);
                sums[k] += grad * x * scale;
            }
        }
    }
    for k in 0..columns {
        let i = UNIT_POS as usize + k * units;
        if i < vectors {
            partials[CUBE_POS * vectors + i] = sums[k];
        }
    }
}

/// Computes the norm, its reciprocal root mean square, and, if something is added, the sum.
fn forward(
    x: CubeTensor,
    added: Option<CubeTensor>,
    weight: CubeTensor,
    eps: f32,
) -> (CubeTensor, CubeTensor, Option<CubeTensor>) {
    let [x, weight] = in_rows([x, weight]);
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    let (y, rstd) = (unwritten(&x, [rows, width], x.dtype), unwritten(&x, [rows, 1], DType::F32));
    let sum = added.as_ref().map(|_| unwritten(&x, [rows, width], x.dtype));
    let vector = vector_of(width, [&x, &weight]);
    let units = units_of(width / vector, &x);
    let (cube_count, cube_dim) = cubes(rows, units, &x);
    let elements = [element(&x), element(&weight)];
    let [added] = in_rows([added.unwrap_or_else(|| x.clone())]);
    let sum_arg = match &sum {
        Some(sum) => sum.clone().into_tensor_arg(),
        None => y.as_tensor_alias(3),
    };
    // SAFETY: each cube stays within its row of `width / vector` vectors; there are `rows` rows.
    unsafe {
        forward_kernel::launch_unchecked(
            &x.client.clone(),
            cube_count,
            cube_dim,
            vector,
            x.into_tensor_arg(),
            added.into_tensor_arg(),
            weight.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            rstd.clone().into_tensor_arg(),
            sum_arg,
            rows,
            width / vector,
            eps,
            sum.is_some(),
            units,
            elements,
        );
    }
    (y, rstd, sum)
}

/// Computes the gradient of `x`, plus `above` if given, and the gradient of the weight.
fn backward(
    [grad, x, weight, rstd]: [CubeTensor; 4],
    above: Option<CubeTensor>,
) -> (CubeTensor, CubeTensor) {
    let [grad, x, weight, rstd] = in_rows([grad, x, weight, rstd]);
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    let count = rows.div_ceil(ROWS);
    let grad_x = unwritten(&x, [rows, width], x.dtype);
    let partials = unwritten(&x, [count, width], DType::F32);
    let vector = vector_of(width, [&x, &weight, &partials]);
    let units = units_of(width / vector, &x);
    let (cube_count, cube_dim) = cubes(count, units, &x);
    let (elements, weight_dtype) = ([element(&x), element(&weight)], weight.dtype);
    let adds = above.is_some();
    let [above] = in_rows([above.unwrap_or_else(|| grad.clone())]);
    // SAFETY: each cube stays within its rows of `width / vector` vectors; there are `rows` rows, and each
    // cube has its own row of `partials`.
    unsafe {
        backward_kernel::launch_unchecked(
            &x.client.clone(),
            cube_count,
            cube_dim,
            vector,
            grad.into_tensor_arg(),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            rstd.into_tensor_arg(),
            above.into_tensor_arg(),
            grad_x.clone().into_tensor_arg(),
            partials.clone().into_tensor_arg(),
            rows,
            width / vector,
            adds,
            units,
            (width / vector).div_ceil(units),
            elements,
        );
    }
    (grad_x, sum_rows(partials, weight_dtype))
}

impl RmsNormKernel for CubeBackend {
    fn rms_norm_forward(x: CubeTensor, weight: CubeTensor, eps: f32) -> (CubeTensor, CubeTensor) {
        if !are_short([&x, &weight]) {
            return portable_forward::<Self>(x, weight, eps);
        }
        let (y, rstd, _) = forward(x, None, weight, eps);
        (y, rstd)
    }

    fn add_rms_norm_forward(
        x: CubeTensor,
        added: CubeTensor,
        weight: CubeTensor,
        eps: f32,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        if !are_short([&x, &added, &weight]) || x.dtype != added.dtype {
            return portable_add_forward::<Self>(x, added, weight, eps);
        }
        let (y, rstd, sum) = forward(x, Some(added), weight, eps);
        (sum.expect("something is added"), y, rstd)
    }

    fn rms_norm_backward(
        grad: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        rstd: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        if !are_short([&grad, &x, &weight]) || grad.dtype != x.dtype {
            return portable_backward::<Self>(grad, x, weight, rstd);
        }
        backward([grad, x, weight, rstd], None)
    }

    fn rms_norm_backward_add(
        grad: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        rstd: CubeTensor,
        above: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let types = [grad.dtype, above.dtype];
        if !are_short([&grad, &x, &weight]) || types.iter().any(|dtype| *dtype != x.dtype) {
            return portable_backward_add::<Self>(grad, x, weight, rstd, above);
        }
        backward([grad, x, weight, rstd], Some(above))
    }
}
