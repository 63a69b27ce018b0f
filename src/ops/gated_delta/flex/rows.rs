//! Loops over the rows of a chunk: scaling, decays, and triangular solves.

use super::super::super::kernel::{self, Matrix, MatrixMut, Threads, simd_fn};

/// Rows that are solved together, between matrix products.
const SOLVED: usize = 16;

/// Returns `exp(logarithm)`, or 0 if it is negligible: products with subnormal numbers take a hundred times
/// as long.
#[inline(always)]
pub(super) fn decay(logarithm: f32) -> f32 {
    /// e^-60 is 9e-27.
    const LEAST: f32 = -60.0;
    if logarithm < LEAST { 0.0 } else { kernel::exp(logarithm) }
}

simd_fn! {
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        kernel::dot(a, b)
    }
}

simd_fn! {
    /// Computes `out = row * factor`
    pub(super) fn scale_row(out: &mut [f32], row: &[f32], factor: f32) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = x * factor;
        }
    }
}

simd_fn! {
    pub(super) fn scale_in_place(values: &mut [f32], factor: f32) {
        for x in values {
            *x *= factor;
        }
    }
}

simd_fn! {
    /// Multiplies each row by its factor.
    pub(super) fn scale_rows(out: &mut [f32], rows: &[f32], factors: &[f32]) {
        let width = (rows.len() / factors.len()).max(1);
        let rows = rows.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((row, out), factor) in rows.zip(factors) {
            for (out, x) in out.iter_mut().zip(row) {
                *out = x * factor;
            }
        }
    }
}

simd_fn! {
    /// Computes `D`, `-A`, and `P` from `q k^T` and `k k^T`; `sums` are `G`.
    pub(super) fn decayed(
        products: [&[f32]; 2],
        sums: &[f64],
        beta: &[f32],
        out: [&mut [f32]; 3],
    ) {
        let [queries_keys, keys_keys] = products;
        let [decays, minus_a, seen] = out;
        let size = sums.len();
        for i in 0..size {
            let row = i * size..(i + 1) * size;
            let (decays, minus_a, seen) =
                (&mut decays[row.clone()], &mut minus_a[row.clone()], &mut seen[row.clone()]);
            let (queries_keys, keys_keys) = (&queries_keys[row.clone()], &keys_keys[row]);
            for j in 0..=i {
                decays[j] = decay((sums[i] - sums[j]) as f32);
                minus_a[j] = -beta[i] * keys_keys[j] * decays[j];
                seen[j] = queries_keys[j] * decays[j];
            }
            minus_a[i] = 0.0;
            for all in [decays, minus_a, seen] {
                all[i + 1..].fill(0.0);
            }
        }
    }
}

simd_fn! {
    /// Computes `v - exp(G) read`, and its product with beta.
    pub(super) fn errors_of(errors: &mut [f32], written: &mut [f32], rows: [&[f32]; 2], factors: [f32; 2]) {
        let ([values, read], [decay, beta]) = (rows, factors);
        for ((errors, written), (value, read)) in
            errors.iter_mut().zip(written).zip(values.iter().zip(read))
        {
            *errors = value - decay * read;
            *written = beta * *errors;
        }
    }
}

simd_fn! {
    /// Processes one token of a head: `values` are `v`, then the decay and beta.
    pub(super) fn step(
        state: &mut [f32],
        units: [&[f32]; 2],
        values: [&[f32]; 2],
        written: &mut [f32],
        out: &mut [f32],
    ) {
        let ([q, k], [values, gates]) = (units, values);
        let (decay, beta) = (gates[0], gates[1]);
        let width = values.len();
        written.fill(0.0);
        out.fill(0.0);
        for (row, k) in state.chunks_exact(width).zip(k) {
            for (written, x) in written.iter_mut().zip(row) {
                *written += k * x;
            }
        }
        for (written, value) in written.iter_mut().zip(values) {
            *written = beta * (value - decay * *written);
        }
        for ((row, k), q) in state.chunks_exact_mut(width).zip(k).zip(q) {
            for ((x, written), out) in row.iter_mut().zip(&*written).zip(&mut *out) {
                *x = decay * *x + k * written;
                *out += q * *x;
            }
        }
    }
}

/// Computes `x <- (1 + A)^-1 x` in place, given `-A`, `[size, size]`.
pub(super) fn solve(minus_a: &[f32], size: usize, x: &mut [f32]) {
    let width = x.len() / size;
    for first in (0..size).step_by(SOLVED) {
        let end = (first + SOLVED).min(size);
        let (above, rest) = x.split_at_mut(first * width);
        let block = &mut rest[..(end - first) * width];
        if first > 0 {
            let a = Matrix::new(&minus_a[first * size..], [end - first, first], [size, 1]);
            let above = Matrix::dense(above, [first, width]);
            let out = MatrixMut::dense(block, [end - first, width]);
            out.add_product(a, above, Threads::One);
        }
        solve_block(&minus_a[first * size + first..], size, block, width);
    }
}

simd_fn! {
    /// Like [`solve`], for a block of rows; rows of `-A` are `stride` apart.
    fn solve_block(minus_a: &[f32], stride: usize, x: &mut [f32], width: usize) {
        for i in 1..x.len() / width {
            let (above, row) = x.split_at_mut(i * width);
            let row = &mut row[..width];
            for (j, above) in above.chunks_exact(width).enumerate() {
                let a = minus_a[i * stride + j];
                for (x, above) in row.iter_mut().zip(above) {
                    *x += a * above;
                }
            }
        }
    }
}

/// Computes `x <- (1 + A)^-T x` in place.
pub(super) fn solve_transposed(minus_a: &[f32], size: usize, x: &mut [f32]) {
    let width = x.len() / size;
    for first in (0..size).step_by(SOLVED).rev() {
        let end = (first + SOLVED).min(size);
        let (rest, below) = x.split_at_mut(end * width);
        let block = &mut rest[first * width..];
        if end < size {
            let rows = size - end;
            let a = Matrix::new(&minus_a[end * size + first..], [rows, end - first], [size, 1]);
            let below = Matrix::dense(below, [rows, width]);
            let out = MatrixMut::dense(block, [end - first, width]);
            out.add_product(a.transposed(), below, Threads::One);
        }
        solve_block_transposed(&minus_a[first * size + first..], size, block, width);
    }
}

simd_fn! {
    fn solve_block_transposed(minus_a: &[f32], stride: usize, x: &mut [f32], width: usize) {
        for i in (0..x.len() / width).rev() {
            let (row, below) = x.split_at_mut((i + 1) * width);
            let row = &mut row[i * width..];
            for (j, below) in below.chunks_exact(width).enumerate() {
                let a = minus_a[(i + 1 + j) * stride + i];
                for (x, below) in row.iter_mut().zip(below) {
                    *x += a * below;
                }
            }
        }
    }
}

simd_fn! {
    /// Replaces the gradients of `A` and `P` with those of `k k^T` and `q k^T`, and adds to the gradients of
    /// the sums `G` and of beta.
    pub(super) fn pair_gradients(
        gradients: [&mut [f32]; 2],
        gates: [&[f32]; 2],
        terms: [&[f32]; 2],
        out: [&mut [f32]; 2],
    ) {
        let ([of_a, of_seen], [decays, beta]) = (gradients, gates);
        let ([keys_keys, seen], [of_sums, of_beta]) = (terms, out);
        let size = of_sums.len();
        for i in 0..size {
            let row = i * size..(i + 1) * size;
            let (of_a, of_seen) = (&mut of_a[row.clone()], &mut of_seen[row.clone()]);
            let (decays, keys_keys, seen) =
                (&decays[row.clone()], &keys_keys[row.clone()], &seen[row]);
            of_a[i..].fill(0.0);
            of_seen[i + 1..].fill(0.0);
            let (mut sum, mut of_own_beta) = (0.0, 0.0);
            for j in 0..=i {
                let of_decayed = of_a[j] * decays[j];
                let of_overlap = of_decayed * keys_keys[j];
                of_own_beta += of_overlap;
                let of_log = of_overlap * beta[i] + of_seen[j] * seen[j];
                sum += of_log;
                of_sums[j] -= of_log;
                of_a[j] = of_decayed * beta[i];
                of_seen[j] *= decays[j];
            }
            of_sums[i] += sum;
            of_beta[i] = of_own_beta;
        }
    }
}

simd_fn! {
    /// Gradients of rows that were multiplied by factors, the exponentials of sums. `rows[0]` has the
    /// gradients of the products. Adds the gradients of the rows to `rows[1]`, and `sign` times those of the
    /// factors' logarithms to `of_sums`. Returns the sum of the latter without the sign.
    pub(super) fn scaled_gradients(
        rows: [&mut [f32]; 2],
        of: &[f32],
        factors: &[f32],
        of_sums: &mut [f32],
        sign: f32,
    ) -> f32 {
        let [products, out] = rows;
        let width = (products.len() / of_sums.len()).max(1);
        let mut total = 0.0;
        for (((product, out), (x, factor)), of_sum) in products
            .chunks_exact_mut(width)
            .zip(out.chunks_exact_mut(width))
            .zip(of.chunks_exact(width).zip(factors))
            .zip(of_sums)
        {
            for (product, out) in product.iter_mut().zip(out) {
                *product *= factor;
                *out += *product;
            }
            let of_log = kernel::dot(product, x);
            *of_sum += sign * of_log;
            total += of_log;
        }
        total
    }
}

simd_fn! {
    /// Computes the gradient of a row, from that of the row divided by its norm and multiplied by a scale.
    pub(super) fn unit_gradient(out: &mut [f32], units: &[f32], grad: &[f32], factors: [f32; 2]) {
        let [factor, scale] = factors;
        // `units` also include the scale.
        let along = kernel::dot(units, grad) / scale;
        for ((out, unit), grad) in out.iter_mut().zip(units).zip(grad) {
            *out = factor * (grad * scale - unit * along);
        }
    }
}
