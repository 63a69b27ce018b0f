//! Helpers shared by the flex kernels: buffers, row-parallel loops, matrix products and an `exp`
//! that vectorises.
//!
//! Every reduction here has a fixed order (lane sums, then row blocks in order), so a result does
//! not depend on the number of threads and is the same, bit for bit, from run to run.

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows in one parallel task. A constant, so that partial sums do not depend on the thread count.
pub(crate) const ROW_BLOCK: usize = 32;

/// Defines a function whose body is compiled twice, with and without AVX2, and chosen at run time.
///
/// Only multiplications and additions are used (no fused multiply-add: without the hardware's own
/// it is a slow library call), so both give the same bits.
macro_rules! simd_fn {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn body_avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was detected on this machine.
                    return unsafe { body_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// `e^x` to about 2 units in the last place, without branches or calls, so that loops vectorise.
///
/// The polynomial is the one of Cephes' `expf`. NaN stays NaN; results below the smallest normal
/// number are flushed to about `1e-38`, and those above the largest to about `2e38`.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the constants as Cephes prints them
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_40e-4; // ln 2 in two parts
    let p = 1.987_569_15e-4 * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_9e-3;
    let p = p * r + 4.166_579_59e-2;
    let p = p * r + 1.666_666_55e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let two_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * two_n
}

/// Partial sums that a reduction keeps, so that it vectorises and its order is fixed.
const LANES: usize = 16;

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = [0.0; LANES / 2];
    for i in 0..LANES / 2 {
        half[i] = lanes[i] + lanes[i + LANES / 2];
    }
    half.iter().sum()
}

/// Sum of `a[i] * b[i]`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_tail, b_tail) = (a.chunks_exact(LANES).remainder(), b.chunks_exact(LANES).remainder());
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    sum_lanes(lanes) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
}

/// Largest element. A NaN in the row is not reported here; it comes out of [`exp_sum`].
#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = *x;
    }
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces every element by `exp(x - shift)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *x = exp(*x - shift);
        *lane += *x;
    }
    sum_lanes(lanes)
}

/// Whether all tensors are f32, the one type that the kernels here are written for.
pub(crate) fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Row-major tensor that fills its whole buffer; the handle stays unique if the argument was.
///
/// `storage` ignores offset and strides, so every kernel reads its inputs through this.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    // `to_contiguous` may return a second handle to the same buffer, and a later `storage_mut`
    // would copy as long as the first one lives.
    let view = tensor.to_contiguous();
    drop(tensor);
    view
}

/// Wraps a buffer as a row-major `f32` tensor.
pub(crate) fn from_vec(data: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(shape.into()), DType::F32)
}

/// The values of an integer tensor, each of which must lie in `0..bound`.
///
/// # Panics
/// Where one does not; `what` names it in the message.
pub(crate) fn indices(tensor: FlexTensor, bound: usize, what: &str) -> Vec<usize> {
    let check = |(at, value): (usize, i64)| match usize::try_from(value) {
        Ok(index) if index < bound => index,
        _ => panic!("{what} {value} of token {at} is outside 0..{bound}"),
    };
    let tensor = contiguous(tensor);
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().copied().enumerate().map(check).collect(),
        DType::I32 => {
            tensor.storage::<i32>().iter().map(|&i| i64::from(i)).enumerate().map(check).collect()
        }
        dtype => panic!("{what}: expected i32 or i64 indices, got {dtype:?}"),
    }
}

/// Runs `f` on every block of [`ROW_BLOCK`] rows in parallel.
pub(crate) fn par_row_blocks(rows: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    par_blocks(rows, ROW_BLOCK, f);
}

/// Runs `f` on every block of `block` elements (the last may be shorter) in parallel.
pub(crate) fn par_blocks(len: usize, block: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    (0..len.div_ceil(block))
        .into_par_iter()
        .for_each(|index| f(index * block..((index + 1) * block).min(len)));
}

/// Adds the rows of `partials` (each `width` long) in order.
pub(crate) fn sum_rows(partials: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in partials.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
    sum
}

/// Output buffer whose elements tasks write once: memory that is not cleared first.
pub(crate) struct Output(Vec<f32>);

impl Output {
    pub(crate) fn new(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    pub(crate) fn shared(&mut self) -> SharedMut<'_> {
        let len = self.0.capacity();
        SharedMut { data: self.0.as_mut_ptr(), len, buffer: PhantomData }
    }

    /// # Safety
    /// Every one of the shape's elements has been written.
    ///
    /// # Panics
    /// If the shape has more elements than the buffer.
    pub(crate) unsafe fn into_tensor(mut self, shape: impl Into<Shape>) -> FlexTensor {
        let shape = shape.into();
        let len = shape.num_elements();
        assert!(len <= self.0.capacity(), "the shape has more elements than the buffer");
        // SAFETY: the capacity suffices, and the caller vouches for the contents.
        unsafe { self.0.set_len(len) };
        from_vec(self.0, shape)
    }
}

/// A buffer that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a> {
    data: *mut f32,
    len: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only ways to the elements are the unsafe methods below, whose callers promise that no
// two tasks reach the same element.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(buffer: &'a mut [f32]) -> Self {
        Self { data: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// # Safety
    /// The elements have been written before, and nothing else uses them while the slice lives.
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside of the buffer");
        // SAFETY: the range lies in the buffer; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }

    /// # Safety
    /// Nothing else uses the elements while the slice lives.
    pub(crate) unsafe fn unwritten(self, range: Range<usize>) -> &'a mut [MaybeUninit<f32>] {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside of the buffer");
        let data = self.data.cast::<MaybeUninit<f32>>();
        // SAFETY: the range lies in the buffer; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(data.add(range.start), range.len()) }
    }

    /// Row-major matrix that starts at `offset` and whose rows are `row_stride` apart.
    ///
    /// # Safety
    /// Nothing else uses the elements while the matrix lives, and if a product is added to it, they
    /// have been written before.
    pub(crate) unsafe fn matrix(
        self,
        offset: usize,
        size: [usize; 2],
        row_stride: usize,
    ) -> MatrixMut<'a> {
        let strides = [row_stride, 1];
        assert!(offset <= self.len, "matrix outside of the buffer");
        check_reach(self.len - offset, size, strides);
        // SAFETY: the offset lies in the buffer.
        let data = unsafe { self.data.add(offset) };
        MatrixMut { data, size, strides, buffer: PhantomData }
    }
}

/// Asserts that a matrix of the size and strides lies within `len` elements.
fn check_reach(len: usize, [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(last < len, "matrix outside of the buffer");
    }
}

/// A matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    size: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Matrix of `size` `[rows, columns]` whose neighbours are `strides` apart in `data`.
    pub(crate) fn new(data: &'a [f32], size: [usize; 2], strides: [usize; 2]) -> Self {
        check_reach(data.len(), size, strides);
        Self { data, size, strides }
    }

    /// Row-major matrix without gaps.
    pub(crate) fn dense(data: &'a [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, [size[1], 1])
    }

    pub(crate) fn transposed(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.size, self.strides);
        Self { size: [cols, rows], strides: [col_stride, row_stride], ..self }
    }
}

/// Who computes a matrix product.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The calling task alone.
    One,
    /// The thread pool.
    All,
}

/// A matrix to write.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    size: [usize; 2],
    strides: [usize; 2],
    buffer: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// Matrix of `size` `[rows, columns]` whose neighbours are `strides` apart in `data`.
    pub(crate) fn new(data: &'a mut [f32], size: [usize; 2], strides: [usize; 2]) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (size, strides);
        // Each element needs a place of its own, or threads would write the same one.
        assert!(
            (col_stride > 0 && row_stride >= cols * col_stride)
                || (row_stride > 0 && col_stride >= rows * row_stride),
            "the elements of the matrix overlap"
        );
        check_reach(data.len(), size, strides);
        Self { data: data.as_mut_ptr(), size, strides, buffer: PhantomData }
    }

    /// Row-major matrix without gaps.
    pub(crate) fn dense(data: &'a mut [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, [size[1], 1])
    }

    /// `self = alpha * a @ b`
    pub(crate) fn set_product(self, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(false, alpha, a, b, threads);
    }

    /// `self += a @ b`
    pub(crate) fn add_product(self, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(true, 1.0, a, b, threads);
    }

    fn gemm(self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        let [rows, cols] = self.size;
        let inner = a.size[1];
        assert!(
            a.size == [rows, inner] && b.size == [inner, cols],
            "matrix sizes do not match: {:?} = {:?} @ {:?}",
            self.size,
            a.size,
            b.size
        );
        let parallelism = match threads {
            Threads::One => gemm::Parallelism::None,
            Threads::All => gemm::Parallelism::Rayon(0),
        };
        let stride = |stride: usize| stride as isize;
        // SAFETY: the sizes match, each matrix was checked to lie in its buffer, and `self` has its
        // elements for itself. Without `accumulate` they are not read.
        unsafe {
            gemm::gemm(
                rows,
                cols,
                inner,
                self.data,
                stride(self.strides[1]),
                stride(self.strides[0]),
                accumulate,
                a.data.as_ptr(),
                stride(a.strides[1]),
                stride(a.strides[0]),
                b.data.as_ptr(),
                stride(b.strides[1]),
                stride(b.strides[0]),
                1.0,
                alpha,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}
