//! Products of a few rows with a quantized or 16-bit matrix, as needed for each generated token. Codes are
//! decoded in registers, so only codes are read from memory.
//!
//! ```text
//! tile:  up to six rows of x, and four rows of the matrix, whose codes are read from left to right
//! ```
//!
//! The sums of an element have the same order for any number of rows (up to [`MOST_ROWS`]) and threads.

use super::buffer::{Buffer, SharedMut};
use super::few_rows::{
    COLUMNS, DotTile, LINES, MOST_ROWS, MOST_TILE_ROWS, TileSums, Vectors, dot_tile, sums_of_8,
    sums_of_16,
};
use super::matrix::{Matrix, MatrixMut};
use super::stored::{Codes, Scales, StoredMatrix};
use rayon::prelude::*;

/// Values of a row that are decoded at once, or a multiple of that.
const STEP: usize = 16;
/// Values per scale if codes are indices into a table.
const BLOCK: usize = 64;

/// A row of the matrix.
#[derive(Clone, Copy)]
struct Line<'a> {
    codes: &'a [u8],
    /// The scales of its blocks.
    scales: &'a [f32],
}

/// Computes `y = x W^T`. Returns false if this is not a product of few rows.
pub(super) fn stored_product(y: &mut MatrixMut, x: Matrix, w: &StoredMatrix) -> bool {
    let Some(vectors) = Vectors::detect() else { return false };
    product_with(vectors, y, x, w)
}

/// Like [`stored_product`], with given vectors.
fn product_with(vectors: Vectors, y: &mut MatrixMut, x: Matrix, w: &StoredMatrix) -> bool {
    let ([rows, inner], [_, columns]) = (x.size(), y.size());
    assert!(y.size()[0] == rows && w.sizes() == [inner, columns], "matrix sizes do not match");
    let Some(x) = x.values() else { return false };
    let is_small = (1..=MOST_ROWS).contains(&rows) && inner > 0 && columns > 0;
    let (true, Some(y)) = (is_small, y.values()) else {
        return false;
    };
    let (y, sizes) = (SharedMut::new(y), [rows, inner, columns]);
    let codes = w.codes();
    let fits = inner.is_multiple_of(STEP)
        && match codes {
            Codes::ShortFloats(_) => true,
            Codes::Integers { block, .. } => block == inner,
            Codes::Table { block, .. } => block == BLOCK && inner.is_multiple_of(BLOCK),
        };
    let tasks = 4 * rayon::current_num_threads();
    let block = columns.div_ceil(tasks).next_multiple_of(COLUMNS);
    (0..columns.div_ceil(block)).into_par_iter().with_max_len(1).for_each(|index| {
        let range = index * block..((index + 1) * block).min(columns);
        let mut scratch = Buffer::any(LINES * if fits { inner / BLOCK + 1 } else { inner });
        for column in range.clone().step_by(LINES) {
            let width = LINES.min(range.end - column);
            if fits {
                product_of_lines(vectors, y, x, codes, &mut scratch, [column, width], sizes);
                continue;
            }
            w.decode(column..column + width, &mut scratch[..width * inner]);
            // Past the end, the last row is repeated; its sums are ignored.
            let line = |i: usize| &scratch[i.min(width - 1) * inner..][..inner];
            let lines = std::array::from_fn(line);
            dot_tile(vectors, y, x, DotTile { lines, column, width, ahead: None }, sizes);
        }
    });
    true
}

/// Computes the columns of the product from `column` on.
fn product_of_lines(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    codes: Codes,
    scratch: &mut [f32],
    [column, width]: [usize; 2],
    [rows, inner, columns]: [usize; 3],
) {
    // Past the end, the last row is repeated; its sums are ignored.
    let row_of = |line: usize| column + line.min(width - 1);
    let of_line = match codes {
        Codes::ShortFloats(_) | Codes::Integers { .. } => 1,
        Codes::Table { .. } => inner / BLOCK,
    };
    for line in 0..LINES {
        let out = &mut scratch[line * of_line..(line + 1) * of_line];
        match codes {
            Codes::ShortFloats(_) => out[0] = 1.0,
            Codes::Integers { scales, unit, .. } => out[0] = scales.of(row_of(line)) * unit,
            // These can be read directly.
            Codes::Table { scales: Scales::Numbers(_), .. } => {}
            Codes::Table { scales, .. } => {
                for (i, scale) in out.iter_mut().enumerate() {
                    *scale = scales.of(row_of(line) * of_line + i);
                }
            }
        }
    }
    let codes_of_matrix = codes;
    let lines: [Line; LINES] = std::array::from_fn(|line| {
        let codes = match codes_of_matrix {
            Codes::ShortFloats(codes) => &codes[row_of(line) * inner * 2..][..inner * 2],
            Codes::Integers { codes, .. } => &codes[row_of(line) * inner..][..inner],
            Codes::Table { codes, .. } => &codes[row_of(line) * inner / 2..][..inner / 2],
        };
        let scales = match codes_of_matrix {
            Codes::Table { scales: Scales::Numbers(all), .. } => &all[row_of(line) * of_line..],
            _ => &scratch[line * of_line..],
        };
        Line { codes, scales: &scales[..of_line] }
    });
    let groups = rows.div_ceil(vectors.rows());
    for group in 0..groups {
        let row = group * rows / groups;
        let count = (group + 1) * rows / groups - row;
        let mut tile: [&[f32]; MOST_TILE_ROWS] = [&[]; MOST_TILE_ROWS];
        for (i, tile) in tile[..count].iter_mut().enumerate() {
            *tile = &x[(row + i) * inner..][..inner];
        }
        let tile = &tile[..count];
        let mut sums = TileSums::default();
        // SAFETY: `Vectors::detect` found these instructions.
        unsafe {
            match codes {
                Codes::ShortFloats(_) => {
                    short_floats::dots(vectors, &mut sums, tile, lines, &[0.0; 16])
                }
                Codes::Integers { .. } => {
                    integers::dots(vectors, &mut sums, tile, lines, &[0.0; 16])
                }
                Codes::Table { table, .. } => {
                    by_table::dots(vectors, &mut sums, tile, lines, table)
                }
            }
        }
        for (i, sums) in sums[..count].iter_mut().enumerate() {
            // A line of integers has only one scale, so it is applied last.
            if let Codes::Integers { .. } = codes {
                sums.iter_mut().zip(lines).for_each(|(sum, line)| *sum *= line.scales[0]);
            }
            let start = (row + i) * columns + column;
            // SAFETY: the tasks' columns are disjoint.
            unsafe { y.slice(start..start + width) }.copy_from_slice(&sums[..width]);
        }
    }
}

/// Dot products of several rows of `x` with four lines. The sums of rows are named variables, so that they
/// stay in registers.
macro_rules! dots_of {
    (
        $name:ident, $features:literal, $vector:ident, $zero:ident, $load:ident, $fma:ident, $sums:ident,
        $bytes:expr, $scales:expr, |$line:ident, $k:ident, $table:ident| $decoded:expr, $table_of:expr,
        $($row:ident $index:literal)*
    ) => {
        #[target_feature(enable = $features)]
        fn $name(sums: &mut TileSums, x: &[&[f32]], lines: [Line; LINES], table: &[f32; 16]) {
            /// Values per vector.
            const LANES: usize = size_of::<$vector>() / size_of::<f32>();
            let inner = x[0].len();
            let bytes: fn(usize) -> usize = $bytes;
            assert!(x.iter().all(|values| values.len() == inner) && inner.is_multiple_of(STEP));
            let scales: fn(usize) -> usize = $scales;
            assert!(lines.iter().all(|line| line.codes.len() == bytes(inner)));
            assert!(lines.iter().all(|line| line.scales.len() == scales(inner)));
            let inputs = [$(x[$index].as_ptr()),*];
            // SAFETY: the table has sixteen values.
            #[allow(unused_unsafe, reason = "not all kinds have a table")]
            let $table = unsafe { $table_of(table.as_ptr()) };
            // Rows are contiguous. Meanwhile, the four rows after the next four are prefetched.
            let ahead = lines[0].codes.as_ptr().wrapping_add(2 * LINES * bytes(inner));
            $(let mut $row = [$zero(); LINES];)*
            for $k in (0..inner).step_by(LANES) {
                // SAFETY: `k + LANES` is at most the length of all lines and rows, and the codes and scales
                // of that many values exist.
                unsafe {
                    for line in (0..LINES * bytes(LANES)).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(
                            ahead.wrapping_add(LINES * bytes($k) + line).cast(),
                        );
                    }
                    let mut w = [$zero(); LINES];
                    for (w, $line) in w.iter_mut().zip(&lines) {
                        *w = $decoded;
                    }
                    $(
                        let value = $load(inputs[$index].add($k));
                        $row[0] = $fma(value, w[0], $row[0]);
                        $row[1] = $fma(value, w[1], $row[1]);
                        $row[2] = $fma(value, w[2], $row[2]);
                        $row[3] = $fma(value, w[3], $row[3]);
                    )*
                }
            }
            $(
                // SAFETY: a row of sums has four values.
                unsafe { _mm_storeu_ps(sums[$index].as_mut_ptr(), $sums($row)) };
            )*
        }
    };
}

/// The loops for one kind of codes.
macro_rules! kind {
    (
        $module:ident, $bytes:expr, $scales:expr,
        |$line:ident, $k:ident, $table:ident| $wide:expr, $wide_table:expr,
        |$narrow_line:ident, $narrow_k:ident, $narrow_table:ident| $narrow:expr, $narrow_table_of:expr
    ) => {
        mod $module {
            use super::*;
            use std::arch::x86_64::*;

            dots_of! {
                wide_1, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0
            }
            dots_of! {
                wide_2, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0 b 1
            }
            dots_of! {
                wide_3, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0 b 1 c 2
            }
            dots_of! {
                wide_4, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0 b 1 c 2 d 3
            }
            dots_of! {
                wide_5, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0 b 1 c 2 d 3 e 4
            }
            dots_of! {
                wide_6, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
                sums_of_16, $bytes, $scales, |$line, $k, $table| $wide, $wide_table, a 0 b 1 c 2 d 3 e 4 f 5
            }
            dots_of! {
                narrow_1, "avx2,fma", __m256, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_fmadd_ps,
                sums_of_8, $bytes, $scales, |$narrow_line, $narrow_k, $narrow_table| $narrow, $narrow_table_of, a 0
            }
            dots_of! {
                narrow_2, "avx2,fma", __m256, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_fmadd_ps,
                sums_of_8, $bytes, $scales, |$narrow_line, $narrow_k, $narrow_table| $narrow, $narrow_table_of, a 0 b 1
            }

            /// # Safety
            /// The CPU must support these vectors.
            pub(super) unsafe fn dots(
                vectors: Vectors,
                sums: &mut TileSums,
                x: &[&[f32]],
                lines: [Line; LINES],
                table: &[f32; 16],
            ) {
                let dots = match (vectors, x.len()) {
                    (Vectors::Avx512, 1) => wide_1,
                    (Vectors::Avx512, 2) => wide_2,
                    (Vectors::Avx512, 3) => wide_3,
                    (Vectors::Avx512, 4) => wide_4,
                    (Vectors::Avx512, 5) => wide_5,
                    (Vectors::Avx512, _) => wide_6,
                    (Vectors::Avx2, 1) => narrow_1,
                    (Vectors::Avx2, _) => narrow_2,
                };
                // SAFETY: the caller guarantees support for the vectors.
                unsafe { dots(sums, x, lines, table) }
            }
        }
    };
}

kind!(
    short_floats,
    |values| 2 * values,
    |_| 1,
    |line, k, _table| {
        let codes = _mm256_loadu_si256(line.codes.as_ptr().add(2 * k).cast());
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(codes)))
    },
    |_: *const f32| (),
    |line, k, _table| {
        let codes = _mm_loadu_si128(line.codes.as_ptr().add(2 * k).cast());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(codes)))
    },
    |_: *const f32| ()
);

kind!(
    integers,
    |values| values,
    |_| 1,
    |line, k, _table| {
        let codes = _mm_loadu_si128(line.codes.as_ptr().add(k).cast());
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    },
    |_: *const f32| (),
    |line, k, _table| {
        let codes = _mm_loadl_epi64(line.codes.as_ptr().add(k).cast());
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))
    },
    |_: *const f32| ()
);

kind!(
    by_table,
    |values| values / 2,
    |values| values / BLOCK,
    |line, k, table| {
        let codes = line.codes.as_ptr().add(k / 2);
        let scale = _mm512_set1_ps(*line.scales.as_ptr().add(k / BLOCK));
        _mm512_mul_ps(super::super::decode::x86::sixteen_values(codes, table), scale)
    },
    |table: *const f32| _mm512_loadu_ps(table),
    |line, k, table| {
        let bytes = line.codes.as_ptr().add(k / 2).cast::<i32>().read_unaligned();
        let codes = super::super::decode::x86::in_order(_mm_cvtsi32_si128(bytes));
        let scale = _mm256_set1_ps(*line.scales.as_ptr().add(k / BLOCK));
        _mm256_mul_ps(super::super::decode::x86::eight_values(codes, table), scale)
    },
    |table: *const f32| [_mm256_loadu_ps(table), _mm256_loadu_ps(table.add(8))]
);

#[cfg(test)]
mod tests {
    use super::super::few_rows;
    use super::super::few_rows::Weights;
    use super::*;
    use crate::ops::encoding::Encoding;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::random::Stream::new(seed, "stored rows", 0);
        (0..count).map(|_| random.unit() as f32 - 0.5).collect()
    }

    #[test]
    fn products_are_those_with_the_decoded_matrix_and_rows_have_the_bits_that_they_have_alone() {
        let mut kinds: Vec<Vectors> = Vectors::detect().into_iter().collect();
        if !kinds.is_empty() {
            kinds.push(Vectors::Avx2);
        }
        for inner in [16, 48, 64, 70, 192, 320] {
            for columns in [1, 3, 65] {
                let values = numbers(columns * inner, 1);
                let x = numbers(MOST_ROWS * inner, 2);
                let encodings = [
                    None,
                    Some(Encoding::int8(inner)),
                    Some(Encoding::nf4(false)),
                    Some(Encoding::nf4(true)),
                ];
                for encoding in encodings {
                    let w = StoredMatrix::of_values(&values, [columns, inner], encoding);
                    let mut decoded = vec![0.0; columns * inner];
                    w.decode(0..columns, &mut decoded);
                    for (vectors, rows) in kinds.iter().flat_map(|kind| {
                        [1, 2, 3, 4, 5, 6, 7, 12, 13, 32].map(|rows| (*kind, rows))
                    }) {
                        let x = &x[..rows * inner];
                        let mut expected = vec![f32::NAN; rows * columns];
                        let weights = Weights { data: &decoded, stride: inner, transposed: true };
                        let out = SharedMut::new(&mut expected);
                        let sizes = [rows, inner, columns];
                        few_rows::product_of_columns(vectors, out, x, weights, sizes, 0..columns);
                        let mut found = vec![f32::NAN; rows * columns];
                        let mut out = MatrixMut::dense(&mut found, [rows, columns]);
                        assert!(product_with(
                            vectors,
                            &mut out,
                            Matrix::dense(x, [rows, inner]),
                            &w
                        ));
                        let what = format!("{rows} x {inner} x {columns}, {encoding:?}");
                        for (found, expected) in found.iter().zip(&expected) {
                            let off = (found - expected).abs();
                            assert!(off <= 1e-5 * (1.0 + expected.abs()), "{what}");
                        }
                        for (x, found) in x.chunks(inner).zip(found.chunks(columns)) {
                            let mut alone = vec![f32::NAN; columns];
                            let mut out = MatrixMut::dense(&mut alone, [1, columns]);
                            product_with(vectors, &mut out, Matrix::dense(x, [1, inner]), &w);
                            assert!(alone == found, "{what}");
                        }
                    }
                }
            }
        }
        // Without columns there is nothing to do.
        let w = StoredMatrix::of_values(&[], [0, 64], Some(Encoding::nf4(false)));
        let x = numbers(64, 1);
        let mut out = MatrixMut::dense(&mut [], [1, 0]);
        assert!(!stored_product(&mut out, Matrix::dense(&x, [1, 64]), &w));
    }
}
