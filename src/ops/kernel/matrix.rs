//! Matrices in buffers and their products.

use super::buffer::{Buffer, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::few_rows;
use super::narrow;
use super::tensors::contiguous;
use burn::backend::TensorMetadata;
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Asserts that a matrix with this size and these strides lies within `len` elements.
fn check_reach(len: usize, [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(last < len, "matrix outside of the buffer");
    }
}

/// Asserts that a matrix has these rows and columns, and at least one of each.
fn check_block([rows, cols]: [usize; 2], block_rows: &Range<usize>, block_cols: &Range<usize>) {
    for (range, size) in [(block_rows, rows), (block_cols, cols)] {
        assert!(range.start < range.end && range.end <= size, "no such block");
    }
}

/// A matrix for reading.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    size: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Returns a matrix of `size` `[rows, columns]` with row and column `strides` in `data`.
    pub(crate) fn new(data: &'a [f32], size: [usize; 2], strides: [usize; 2]) -> Self {
        check_reach(data.len(), size, strides);
        Self { data, size, strides }
    }

    /// Returns a row-major matrix without gaps.
    pub(crate) fn dense(data: &'a [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, [size[1], 1])
    }

    /// Returns a block of rows and columns.
    fn block(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let [row_stride, col_stride] = self.strides;
        check_block(self.size, &rows, &columns);
        let data = &self.data[rows.start * row_stride + columns.start * col_stride..];
        Self::new(data, [rows.len(), columns.len()], self.strides)
    }

    /// Returns a range of columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        let rows = self.size[0];
        if rows == 0 || columns.is_empty() {
            return Self::new(&[], [rows, columns.len()], self.strides);
        }
        self.block(0..rows, columns)
    }

    /// Returns `[rows, columns]`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn size(self) -> [usize; 2] {
        self.size
    }

    /// Returns the values, if the matrix is row-major without gaps.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn values(self) -> Option<&'a [f32]> {
        (self.strides == [self.size[1], 1]).then(|| &self.data[..self.size[0] * self.size[1]])
    }

    pub(crate) fn transposed(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.size, self.strides);
        Self { size: [cols, rows], strides: [col_stride, row_stride], ..self }
    }
}

/// A dense matrix in row-major or column-major order (a tied embedding arrives transposed).
pub(crate) struct DenseMatrix {
    /// Row-major; the transpose of a column-major matrix.
    data: FlexTensor,
    column_major: bool,
    size: [usize; 2],
}

impl DenseMatrix {
    /// Copies the matrix if it is in neither order.
    pub(crate) fn new(matrix: FlexTensor) -> Self {
        let size @ [rows, _] = matrix.shape().dims();
        let column_major = matrix.layout().strides() == [1, rows as isize];
        let matrix = if column_major { matrix.transpose(0, 1) } else { matrix };
        Self { data: contiguous(matrix), column_major, size }
    }

    /// Returns `[rows, columns]`.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Returns the row and column strides.
    pub(crate) fn strides(&self) -> [usize; 2] {
        let [rows, cols] = self.size;
        if self.column_major { [1, rows] } else { [cols, 1] }
    }

    /// Returns the matrix for reading.
    pub(crate) fn view(&self) -> Matrix<'_> {
        Matrix::new(self.data.storage::<f32>(), self.size, self.strides())
    }

    /// Returns the matrix as a tensor.
    pub(crate) fn into_tensor(self) -> FlexTensor {
        match self.column_major {
            true => self.data.transpose(0, 1),
            false => self.data,
        }
    }

    /// Returns a tensor of the same shape and order that takes over `data`.
    pub(crate) fn like(&self, data: Buffer) -> FlexTensor {
        let layout = Layout::contiguous(self.data.shape());
        let layout = if self.column_major { layout.transpose(0, 1) } else { layout };
        data.laid_out(layout)
    }
}

/// Which threads compute a matrix product.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// Only the calling task.
    One,
    /// Only the calling task, with the loops for few rows, for products too small for the usual preparation;
    /// see [`has_few_rows`].
    OneFewRows,
    /// The thread pool.
    All,
}

/// Returns whether [`Threads::OneFewRows`] is fast on this machine for this number of rows.
pub(crate) fn has_few_rows(rows: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return rows <= few_rows::MOST_ROWS && few_rows::Vectors::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = rows;
        false
    }
}

/// Rows and columns that the innermost loops process together for a row-major result, or divisors of them.
const ROW_UNIT: usize = 6;
const COLUMN_UNIT: usize = 16;

/// How a product is divided: number of blocks down and across.
struct Blocks {
    down: usize,
    across: usize,
}

impl Blocks {
    /// Divides the work into at most one block per thread. Each block must read its rows of `a` and pack its
    /// columns of `b`; the chosen division minimizes both.
    fn new([rows, cols]: [usize; 2], inner: usize, b_is_transposed: bool, threads: usize) -> Self {
        /// Minimum number of multiplications that is worth a thread.
        const LEAST_WORK: usize = 1 << 19;
        /// Minimum rows and columns of a block along a divided side. With 64 or fewer of both, `gemm` would
        /// sum an element in a different order than in the whole product ...
        const LEAST_SIDE: usize = 96;
        /// ... and also with 256 or fewer elements, which a minimum for the other side prevents.
        const LEAST_OTHER_SIDE: usize = 4;
        /// Cost of reading an element of `a`, and of packing one of `b` from a row-major or a transposed
        /// matrix, measured on two CPUs with AVX-512.
        const A: usize = 3;
        const B: usize = 2;
        const TRANSPOSED_B: usize = 6;
        if rows.min(cols) < LEAST_OTHER_SIDE {
            return Self { down: 1, across: 1 };
        }
        let sides = (rows / LEAST_SIDE).max(1).saturating_mul((cols / LEAST_SIDE).max(1));
        let work = rows.saturating_mul(cols).saturating_mul(inner) / LEAST_WORK;
        let most = threads.min(sides).min(work);
        let of_b = if b_is_transposed { TRANSPOSED_B } else { B };
        let fits = |count: usize, size: usize| count == 1 || size / count >= LEAST_SIDE;
        let best = |blocks: usize| {
            (1..=blocks)
                .filter(|down| blocks.is_multiple_of(*down))
                .map(|down| Self { down, across: blocks / down })
                .filter(|it| fits(it.down, rows) && fits(it.across, cols))
                .min_by_key(|it| it.down * of_b * cols + it.across * A * rows)
        };
        (1..=most).rev().find_map(best).unwrap_or(Self { down: 1, across: 1 })
    }
}

/// Returns part `index` of `count` of `size` rows or columns. All parts except the last consist of whole
/// units.
fn part(size: usize, index: usize, count: usize, unit: usize) -> Range<usize> {
    let bound = |index: usize| (size.div_ceil(unit) * index / count * unit).min(size);
    bound(index)..bound(index + 1)
}

/// A matrix for writing.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    size: [usize; 2],
    strides: [usize; 2],
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: a shared reference gives access to elements only through `block`, whose callers promise that no two
// tasks access the same element.
unsafe impl Sync for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Returns a matrix of `size` `[rows, columns]` with row and column `strides` in `data`.
    pub(crate) fn new(data: &'a mut [f32], size: [usize; 2], strides: [usize; 2]) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (size, strides);
        // Elements must not overlap, or threads could write the same one.
        assert!(
            (col_stride > 0 && row_stride >= cols * col_stride)
                || (row_stride > 0 && col_stride >= rows * row_stride),
            "the elements of the matrix overlap"
        );
        check_reach(data.len(), size, strides);
        Self { data: data.as_mut_ptr(), size, strides, buffer: PhantomData }
    }

    /// Returns a row-major matrix without gaps.
    pub(crate) fn dense(data: &'a mut [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, [size[1], 1])
    }

    /// Returns a matrix in raw memory of `len` elements.
    ///
    /// # Safety
    /// Nothing else may use the elements of the matrix while it lives.
    unsafe fn from_raw(data: *mut f32, len: usize, size: [usize; 2], strides: [usize; 2]) -> Self {
        check_reach(len, size, strides);
        Self { data, size, strides, buffer: PhantomData }
    }

    /// Returns a block of rows and columns.
    ///
    /// # Safety
    /// Nothing else may use its elements while the block lives.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_> {
        let [row_stride, col_stride] = self.strides;
        check_block(self.size, &rows, &columns);
        // SAFETY: the block is a part of this matrix.
        let data = unsafe { self.data.add(rows.start * row_stride + columns.start * col_stride) };
        let size = [rows.len(), columns.len()];
        MatrixMut { data, size, strides: self.strides, buffer: PhantomData }
    }

    /// Borrows the whole matrix.
    pub(super) fn whole(&mut self) -> MatrixMut<'_> {
        MatrixMut { data: self.data, size: self.size, strides: self.strides, buffer: PhantomData }
    }

    /// Returns a range of columns.
    pub(super) fn columns(&mut self, columns: Range<usize>) -> MatrixMut<'_> {
        let rows = self.size[0];
        if rows == 0 || columns.is_empty() {
            return MatrixMut { size: [rows, columns.len()], ..self.whole() };
        }
        // SAFETY: the matrix is borrowed mutably with the block.
        unsafe { self.block(0..rows, columns) }
    }

    /// Sets all elements to a value.
    pub(super) fn fill(&mut self, value: f32) {
        let ([rows, cols], [row_stride, col_stride]) = (self.size, self.strides);
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            // SAFETY: the index is within this matrix.
            unsafe { *self.data.add(row * row_stride + col * col_stride) = value };
        }
    }

    /// Returns the elements, if the matrix is row-major without gaps.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn values(&mut self) -> Option<&mut [f32]> {
        let [rows, cols] = self.size;
        // SAFETY: without gaps these are its elements, to which it has exclusive access.
        (self.strides == [cols, 1])
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.data, rows * cols) })
    }

    /// Computes `self = alpha * a @ b`
    pub(crate) fn set_product(self, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(false, alpha, a, b, threads);
    }

    /// Computes `self += a @ b`
    pub(crate) fn add_product(self, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(true, 1.0, a, b, threads);
    }

    #[cfg(target_arch = "x86_64")]
    /// Returns the vectors to use if this is a product of few rows for which the special loops are faster.
    fn few_rows(&self, a: &Matrix, b: &Matrix, threads: Threads) -> Option<few_rows::Vectors> {
        let [rows, cols] = self.size;
        let inner = a.size[1];
        let row_major = |strides: [usize; 2], width: usize| strides == [width, 1];
        let pays = match threads {
            Threads::All => inner * cols >= few_rows::LEAST_ELEMENTS && cols >= few_rows::COLUMNS,
            Threads::OneFewRows => true,
            Threads::One => false,
        };
        let takes = pays
            && (1..=few_rows::MOST_ROWS).contains(&rows)
            && row_major(self.strides, cols)
            && row_major(a.strides, inner)
            && inner > 0
            && (b.strides[1] == 1 || (b.strides[0] == 1 && inner > 1));
        if takes { few_rows::Vectors::detect() } else { None }
    }

    fn gemm(mut self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        let [rows, cols] = self.size;
        let inner = a.size[1];
        assert!(
            a.size == [rows, inner] && b.size == [inner, cols],
            "matrix sizes do not match: {:?} = {:?} @ {:?}",
            self.size,
            a.size,
            b.size
        );
        #[cfg(target_arch = "x86_64")]
        if !accumulate
            && alpha == 1.0
            && let Some(vectors) = self.few_rows(&a, &b, threads)
        {
            let transposed = b.strides[1] != 1;
            let stride = if transposed { b.strides[1] } else { b.strides[0] };
            let weights = few_rows::Weights { data: b.data, stride, transposed };
            // SAFETY: the matrix has no gaps, so these are its elements, to which it has exclusive access.
            let y = unsafe { std::slice::from_raw_parts_mut(self.data, rows * cols) };
            let (y, sizes) = (SharedMut::new(y), [rows, inner, cols]);
            match threads {
                Threads::All => few_rows::product(vectors, y, a.data, weights, sizes),
                _ => few_rows::product_of_columns(vectors, y, a.data, weights, sizes, 0..cols),
            }
            return;
        }
        match threads {
            Threads::One | Threads::OneFewRows => self.multiply(accumulate, alpha, a, b),
            Threads::All if (1..=narrow::MOST_COLUMNS).contains(&cols) && cols < rows / 4 => {
                self.multiply_narrow(accumulate, alpha, a, b);
            }
            Threads::All => self.multiply_in_blocks(accumulate, alpha, a, b),
        }
    }

    /// Computes a product with few columns.
    fn multiply_narrow(&mut self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix) {
        let inner = a.size[1];
        if a.strides[0] == 1 && inner > 1 {
            return narrow::transposed_product(self, accumulate, alpha, a, b);
        }
        #[cfg(target_arch = "x86_64")]
        {
            let [rows, cols] = self.size;
            let rows_without_gaps = self.strides == [cols, 1] && a.strides == [inner, 1];
            if !accumulate
                && alpha == 1.0
                && inner > 0
                && rows_without_gaps
                && let Some(vectors) = few_rows::Vectors::detect()
            {
                // SAFETY: the matrix has no gaps, so these are its elements, to which it has exclusive
                // access.
                let y = unsafe { std::slice::from_raw_parts_mut(self.data, rows * cols) };
                let sizes = [rows, inner, cols];
                return narrow::dot_products(vectors, SharedMut::new(y), a.data, b, sizes);
            }
        }
        self.multiply_in_blocks(accumulate, alpha, a, b);
    }

    /// Copies or adds the values of another matrix of the same size.
    pub(super) fn copy_or_add(&mut self, accumulate: bool, values: Matrix) {
        assert_eq!(self.size, values.size, "matrix sizes do not match");
        let ([row_stride, col_stride], [rows, cols]) = (self.strides, self.size);
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            let value = values.data[row * values.strides[0] + col * values.strides[1]];
            // SAFETY: the index is within this matrix.
            let place = unsafe { &mut *self.data.add(row * row_stride + col * col_stride) };
            *place = if accumulate { *place + value } else { value };
        }
    }

    /// Returns `[rows, columns]`.
    pub(super) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Computes the product with one block per thread. Sums have the same order as in the whole product.
    pub(super) fn multiply_in_blocks(
        &mut self,
        accumulate: bool,
        alpha: f32,
        a: Matrix,
        b: Matrix,
    ) {
        let ([rows, cols], inner) = (self.size, a.size[1]);
        let blocks = Blocks::new(self.size, inner, b.strides[1] != 1, rayon::current_num_threads());
        let Blocks { down, across } = blocks;
        if down * across == 1 {
            return self.multiply(accumulate, alpha, a, b);
        }
        let out = &*self;
        (0..down * across).into_par_iter().with_max_len(1).for_each(|index| {
            let rows = part(rows, index / across, down, ROW_UNIT);
            let cols = part(cols, index % across, across, COLUMN_UNIT);
            let (a, b) = (a.block(rows.clone(), 0..inner), b.block(0..inner, cols.clone()));
            // SAFETY: the blocks are disjoint.
            unsafe { out.block(rows, cols) }.multiply(accumulate, alpha, a, b);
        });
    }

    fn multiply(&mut self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix) {
        let [rows, cols] = self.size;
        let inner = a.size[1];
        let stride = |stride: usize| stride as isize;
        // SAFETY: the sizes match, each matrix was checked to lie within its buffer, and `self` has exclusive
        // access to its elements. Without `accumulate` they are not read.
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
                gemm::Parallelism::None,
            );
        }
    }
}

impl<'a> SharedMut<'a> {
    /// Returns a row-major matrix that starts at `offset` and has the stride `row_stride`.
    ///
    /// # Safety
    /// Nothing else may use the elements while the matrix lives.
    pub(crate) unsafe fn matrix(
        self,
        offset: usize,
        size: [usize; 2],
        row_stride: usize,
    ) -> MatrixMut<'a> {
        assert!(offset <= self.len, "matrix outside of the buffer");
        // SAFETY: the offset lies in the buffer, and the caller vouches for the rest.
        unsafe {
            MatrixMut::from_raw(self.data.add(offset), self.len - offset, size, [row_stride, 1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with many digits, whose sums depend on their order.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::random::Stream::new(seed, "matrices", 0);
        (0..count).map(|_| random.unit() as f32 - 0.5).collect()
    }

    #[test]
    fn a_product_in_blocks_has_the_bits_of_the_whole() {
        // Sizes around those of blocks, and sums that are divided.
        for [rows, inner, cols] in [
            [40, 700, 30],
            [70, 1100, 300],
            [300, 600, 100],
            [500, 77, 231],
            [192, 4000, 2],
            [2, 4000, 192],
        ] {
            let (a, b) = (numbers(rows * inner, 1), numbers(inner * cols, 2));
            let before = numbers(rows * cols, 3);
            let a_transposed: Vec<f32> =
                (0..inner * rows).map(|i| a[i % rows * inner + i / rows]).collect();
            let b_transposed: Vec<f32> =
                (0..inner * cols).map(|i| b[i % inner * cols + i / inner]).collect();
            let left = [
                Matrix::dense(&a, [rows, inner]),
                Matrix::dense(&a_transposed, [inner, rows]).transposed(),
            ];
            let right = [
                Matrix::dense(&b, [inner, cols]),
                Matrix::dense(&b_transposed, [cols, inner]).transposed(),
            ];
            for (a, b) in left.into_iter().flat_map(|a| right.map(|b| (a, b))) {
                let product = |accumulate: bool, threads: usize| {
                    let mut out = before.clone();
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                    pool.build().unwrap().install(|| {
                        let mut out = MatrixMut::dense(&mut out, [rows, cols]);
                        out.multiply_in_blocks(accumulate, 0.5, a, b);
                    });
                    out
                };
                for accumulate in [false, true] {
                    let whole = product(accumulate, 1);
                    for threads in [2, 3, 4, 8] {
                        assert!(product(accumulate, threads) == whole, "{rows} x {inner} x {cols}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_few_columns_are_exact() {
        // Small integers, whose products and sums are exact.
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 31) % 7) as f32 - 3.0).collect()
        };
        for [rows, inner, cols] in [[37, 50, 1], [200, 33, 8], [333, 700, 24], [400, 1, 48]] {
            let (a, b) = (values(rows * inner, 1), values(inner * cols, 2));
            let before = values(rows * cols, 3);
            let left =
                [Matrix::dense(&a, [rows, inner]), Matrix::dense(&a, [inner, rows]).transposed()];
            let right =
                [Matrix::dense(&b, [inner, cols]), Matrix::dense(&b, [cols, inner]).transposed()];
            for (a, b) in left.into_iter().flat_map(|a| right.map(|b| (a, b))) {
                let product = |accumulate: bool, alpha: f32, threads: Threads| {
                    let mut out = before.clone();
                    let out_matrix = MatrixMut::dense(&mut out, [rows, cols]);
                    match accumulate {
                        true => out_matrix.add_product(a, b, threads),
                        false => out_matrix.set_product(alpha, a, b, threads),
                    }
                    out
                };
                for (accumulate, alpha) in [(false, 1.0), (false, 2.0), (true, 1.0)] {
                    let expected = product(accumulate, alpha, Threads::One);
                    assert!(product(accumulate, alpha, Threads::All) == expected, "{cols}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_as_many_as_pay_and_cover_all() {
        let blocks = |size, inner, transposed, threads| {
            let Blocks { down, across } = Blocks::new(size, inner, transposed, threads);
            [down, across]
        };
        assert_eq!(blocks([2048, 256], 256, false, 2), [2, 1]);
        assert_eq!(blocks([512, 4096], 256, false, 2), [1, 2]);
        assert_eq!(blocks([512, 576], 576, false, 2), [2, 1]);
        assert_eq!(blocks([512, 576], 576, true, 2), [1, 2]);
        assert_eq!(blocks([2048, 2048], 576, false, 16), [4, 4]);
        // Too little work or too few rows and columns for more blocks.
        assert_eq!(blocks([64, 64], 64, false, 8), [1, 1]);
        assert_eq!(blocks([150, 150], 10_000, false, 8), [1, 1]);
        assert_eq!(blocks([0, 5], 7, false, 8), [1, 1]);
        for (size, count, unit) in [(2400, 2, 6), (577, 3, 16), (100, 1, 16), (96, 7, 6)] {
            let parts: Vec<usize> = (0..count).flat_map(|i| part(size, i, count, unit)).collect();
            assert_eq!(parts, (0..size).collect::<Vec<_>>());
        }
    }
}
