//! Matrices in buffers, and their products.

use super::buffer::{Buffer, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::few_rows;
use super::simd::simd_fn;
use super::tensors::contiguous;
use burn::backend::TensorMetadata;
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;
use std::marker::PhantomData;

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
    /// Matrix of `size` `[rows, columns]` whose neighbors are `strides` apart in `data`.
    pub(crate) fn new(data: &'a [f32], size: [usize; 2], strides: [usize; 2]) -> Self {
        check_reach(data.len(), size, strides);
        Self { data, size, strides }
    }

    /// Row-major matrix without gaps.
    pub(crate) fn dense(data: &'a [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, [size[1], 1])
    }

    /// These columns.
    pub(crate) fn columns(self, columns: std::ops::Range<usize>) -> Self {
        let [rows, cols] = self.size;
        assert!(columns.start < columns.end && columns.end <= cols, "no such columns");
        let data = &self.data[columns.start * self.strides[1]..];
        Self::new(data, [rows, columns.len()], self.strides)
    }

    pub(crate) fn transposed(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.size, self.strides);
        Self { size: [cols, rows], strides: [col_stride, row_stride], ..self }
    }
}

/// Dense matrix in row-major or column-major order (a tied embedding arrives transposed).
pub(crate) struct DenseMatrix {
    /// Row-major; the transpose of the matrix if that is column-major.
    data: FlexTensor,
    column_major: bool,
    size: [usize; 2],
}

impl DenseMatrix {
    /// A copy if the matrix is in neither order.
    pub(crate) fn new(matrix: FlexTensor) -> Self {
        let size @ [rows, _] = matrix.shape().dims();
        let column_major = matrix.layout().strides() == [1, rows as isize];
        let matrix = if column_major { matrix.transpose(0, 1) } else { matrix };
        Self { data: contiguous(matrix), column_major, size }
    }

    /// `[rows, columns]`.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// From one row, and from one column, to the next.
    pub(crate) fn strides(&self) -> [usize; 2] {
        let [rows, cols] = self.size;
        if self.column_major { [1, rows] } else { [cols, 1] }
    }

    /// The matrix to read.
    pub(crate) fn view(&self) -> Matrix<'_> {
        Matrix::new(self.data.storage::<f32>(), self.size, self.strides())
    }

    /// Tensor of the same shape and order that takes over `data`.
    pub(crate) fn like(&self, data: Buffer) -> FlexTensor {
        let layout = Layout::contiguous(self.data.shape());
        let layout = if self.column_major { layout.transpose(0, 1) } else { layout };
        data.laid_out(layout)
    }
}

/// Rows from which a transposed matrix is laid out anew for a product.
const LEAST_TURNED: usize = 1024;

simd_fn! {
    /// `out[row][col] = data[col * stride + row]` for all rows that fit in `out`.
    fn turn(data: &[f32], stride: usize, cols: usize, out: &mut [f32]) {
        /// Side of the squares that are turned in registers.
        const SIDE: usize = 16;
        let rows = out.len() / cols;
        for row in (0..rows).step_by(SIDE) {
            for col in (0..cols).step_by(SIDE) {
                if row + SIDE <= rows && col + SIDE <= cols {
                    let mut square = [[0.0; SIDE]; SIDE];
                    for i in 0..SIDE {
                        let line = &data[(col + i) * stride + row..][..SIDE];
                        for j in 0..SIDE {
                            square[j][i] = line[j];
                        }
                    }
                    for (j, line) in square.iter().enumerate() {
                        out[(row + j) * cols + col..][..SIDE].copy_from_slice(line);
                    }
                } else {
                    for row in row..rows.min(row + SIDE) {
                        for col in col..cols.min(col + SIDE) {
                            out[row * cols + col] = data[col * stride + row];
                        }
                    }
                }
            }
        }
    }
}

/// Who computes a matrix product.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The calling task alone.
    One,
    /// The same for few rows, where the product is too small for others' preparations; see
    /// [`has_few_rows`].
    OneFewRows,
    /// The thread pool.
    All,
}

/// Whether [`Threads::OneFewRows`] is fast here with so many rows.
pub(crate) fn has_few_rows(rows: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return rows <= few_rows::MOST_ROWS && few_rows::Vectors::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = rows;
        false
    }
}

/// A matrix to write.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    size: [usize; 2],
    strides: [usize; 2],
    buffer: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// Matrix of `size` `[rows, columns]` whose neighbors are `strides` apart in `data`.
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

    /// Matrix in raw memory of `len` elements.
    ///
    /// # Safety
    /// Nothing else uses the elements of the matrix while it lives.
    unsafe fn from_raw(data: *mut f32, len: usize, size: [usize; 2], strides: [usize; 2]) -> Self {
        check_reach(len, size, strides);
        Self { data, size, strides, buffer: PhantomData }
    }

    /// `self = alpha * a @ b`
    pub(crate) fn set_product(self, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(false, alpha, a, b, threads);
    }

    /// `self += a @ b`
    pub(crate) fn add_product(self, a: Matrix, b: Matrix, threads: Threads) {
        self.gemm(true, 1.0, a, b, threads);
    }

    #[cfg(target_arch = "x86_64")]
    /// How to make a product into this matrix, if it is one of a few rows for which that pays.
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
            // SAFETY: the matrix has no gaps, so these are its elements, which it has for itself.
            let y = unsafe { std::slice::from_raw_parts_mut(self.data, rows * cols) };
            let (y, sizes) = (SharedMut::new(y), [rows, inner, cols]);
            match threads {
                Threads::All => few_rows::product(vectors, y, a.data, weights, sizes),
                _ => few_rows::product_of_columns(vectors, y, a.data, weights, sizes, 0..cols),
            }
            return;
        }
        let is_empty = rows == 0 || cols == 0;
        let turns = matches!(threads, Threads::All) && b.strides[0] == 1 && inner >= LEAST_TURNED;
        if turns && !is_empty {
            self.turned_product(accumulate, alpha, a, b);
        } else {
            self.multiply(accumulate, alpha, a, b, threads);
        }
    }

    /// The product with a transposed matrix of many rows, which is laid out row-major, block by
    /// block, before it is multiplied: its elements, in as many pages as it has columns, would
    /// otherwise be gathered one by one.
    fn turned_product(&mut self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix) {
        /// Most rows of `b`, and most of its elements, that are laid out together.
        const BLOCK: usize = 2048;
        const ELEMENTS: usize = 4 << 20;
        /// Rows of `b` in one parallel task.
        const ROWS: usize = 64;
        let ([inner, cols], stride) = (b.size, b.strides[1]);
        let block = (ELEMENTS / cols).clamp(ROWS, BLOCK).min(inner);
        let mut turned = Buffer::scratch(block * cols);
        for first in (0..inner).step_by(block) {
            let rows = block.min(inner - first);
            let turned = &mut turned[..rows * cols];
            turned.par_chunks_mut(ROWS * cols).enumerate().for_each(|(index, out)| {
                turn(&b.data[first + index * ROWS..], stride, cols, out);
            });
            let part = a.columns(first..first + rows);
            let turned = Matrix::dense(turned, [rows, cols]);
            self.multiply(accumulate || first > 0, alpha, part, turned, Threads::All);
        }
    }

    fn multiply(&mut self, accumulate: bool, alpha: f32, a: Matrix, b: Matrix, threads: Threads) {
        let [rows, cols] = self.size;
        let inner = a.size[1];
        let parallelism = match threads {
            Threads::One | Threads::OneFewRows => gemm::Parallelism::None,
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

impl<'a> SharedMut<'a> {
    /// Row-major matrix that starts at `offset` and whose rows are `row_stride` apart.
    ///
    /// # Safety
    /// Nothing else uses the elements while the matrix lives.
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

    #[test]
    fn a_transposed_matrix_of_many_rows_is_multiplied_as_any_other() {
        // Small integers, whose products and sums are exact; blocks and squares do not fit evenly.
        let [rows, inner, cols] = [35, LEAST_TURNED + 77, 21];
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 31) % 7) as f32 - 3.0).collect()
        };
        let (a, b) = (values(rows * inner, 1), values(cols * inner, 2));
        let a = Matrix::dense(&a, [rows, inner]);
        let b = Matrix::dense(&b, [cols, inner]).transposed();
        let mut expected = values(rows * cols, 3);
        let mut found = expected.clone();
        MatrixMut::dense(&mut expected, [rows, cols]).add_product(a, b, Threads::One);
        MatrixMut::dense(&mut found, [rows, cols]).add_product(a, b, Threads::All);
        assert!(found == expected, "sums differ");
        MatrixMut::dense(&mut expected, [rows, cols]).set_product(2.0, a, b, Threads::One);
        MatrixMut::dense(&mut found, [rows, cols]).set_product(2.0, a, b, Threads::All);
        assert!(found == expected, "products differ");
    }
}
