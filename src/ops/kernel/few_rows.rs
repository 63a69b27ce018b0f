//! Products of a few rows with a matrix, `y = x w`, as needed for each generated token. With a large matrix,
//! they are limited by the memory bandwidth of reading it once.
//!
//! ```text
//! w row-major: 32 rows at a time, from left to     w transposed: rows in order, each a dot
//! right, so that each row is read as a stream      product with every row of x
//!
//!      | > > > > > > > > |                             | > > > > > |
//!      | > > > > > > > > |  then the next 32           | > > > > > |
//! ```
//!
//! The sums of an element have the same order for any number of rows (up to [`MOST_ROWS`]) and threads.
//! Requires x86-64 with AVX2 or AVX-512; other CPUs use ordinary products.

use super::buffer::SharedMut;
use rayon::prelude::*;
use std::ops::Range;

/// Maximum number of rows for which these products are faster. With more, arithmetic is the limit.
pub(super) const MOST_ROWS: usize = 32;
/// Minimum number of matrix elements for which these products are faster with all threads. The matrix has at
/// least [`COLUMNS`] columns.
pub(super) const LEAST_ELEMENTS: usize = 16 * 1024;

/// Rows of a row-major `w` that are processed together.
const DEPTH: usize = 32;
/// Columns per tile.
pub(super) const COLUMNS: usize = 32;
/// Rows of a transposed `w` per tile.
pub(super) const LINES: usize = 4;
/// Maximum number of rows of `x` per tile with a transposed `w`.
pub(super) const MOST_TILE_ROWS: usize = 6;
/// The sums of a tile with a transposed `w`.
pub(super) type TileSums = [[f32; LINES]; MOST_TILE_ROWS];

/// A matrix `[inner, columns]`.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub data: &'a [f32],
    /// The distance between rows, or between columns if transposed.
    pub stride: usize,
    /// Whether the layout in memory is `[columns, inner]`.
    pub transposed: bool,
}

/// The vector instructions of the loops.
#[derive(Clone, Copy)]
pub(super) enum Vectors {
    Avx512,
    Avx2,
}

impl Vectors {
    /// Returns the number of rows of `x` per tile with a transposed `w`, whose sums fill most registers.
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Avx512 => MOST_TILE_ROWS,
            Self::Avx2 => 2,
        }
    }

    /// Returns the widest vectors that this CPU supports. Without any, products of few rows are ordinary
    /// ones.
    pub(super) fn detect() -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        match (has!("avx512f"), has!("avx2") && has!("fma")) {
            (true, true) => Some(Self::Avx512),
            (false, true) => Some(Self::Avx2),
            _ => None,
        }
    }
}

/// Computes `y = x w`, with `x` `[rows, inner]` and `y` `[rows, columns]`, both without gaps.
pub(super) fn product(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    w: Weights,
    sizes @ [_, _, columns]: [usize; 3],
) {
    // A few tasks per thread, so that a slow task does not delay the others much.
    let tasks = 4 * rayon::current_num_threads();
    let block = columns.div_ceil(tasks).next_multiple_of(COLUMNS);
    (0..columns.div_ceil(block)).into_par_iter().with_max_len(1).for_each(|index| {
        let range = index * block..((index + 1) * block).min(columns);
        product_of_columns(vectors, y, x, w, sizes, range);
    });
}

/// Computes columns `range` of the product. Nothing else may use them meanwhile.
pub(super) fn product_of_columns(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    w: Weights,
    sizes: [usize; 3],
    range: Range<usize>,
) {
    match w.transposed {
        true => dot_products(vectors, y, x, w, sizes, range),
        false => sums_of_lines(vectors, y, x, w, sizes, range),
    }
}

/// Computes columns `range` of the product with a row-major matrix.
fn sums_of_lines(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    w: Weights,
    [rows, inner, columns]: [usize; 3],
    range: Range<usize>,
) {
    for first in (0..inner).step_by(DEPTH) {
        let depth = DEPTH.min(inner - first);
        // The part of `x` for these rows of `w`: the factors of each row.
        let mut part = [[0.0; MOST_ROWS]; DEPTH];
        for row in 0..rows {
            for (factors, value) in part.iter_mut().zip(&x[row * inner + first..][..depth]) {
                factors[row] = *value;
            }
        }
        let part = &part[..depth];
        for column in range.clone().step_by(COLUMNS) {
            let width = COLUMNS.min(range.end - column);
            let lines = &w.data[first * w.stride + column..];
            // SAFETY: the columns of tasks are disjoint.
            let out = |row: usize| unsafe {
                y.slice(row * columns + column..row * columns + column + width)
            };
            let set = first == 0;
            if width == COLUMNS {
                let mut row = 0;
                while row < rows {
                    row += add_tile(vectors, &out, rows, row, part, lines, w.stride, set);
                }
            } else {
                // A narrower tile is padded with zeros.
                let mut wide = [0.0; DEPTH * COLUMNS];
                for (k, wide) in wide.chunks_exact_mut(COLUMNS).take(depth).enumerate() {
                    wide[..width].copy_from_slice(&lines[k * w.stride..][..width]);
                }
                let mut sums = [0.0; MOST_ROWS * COLUMNS];
                for (row, sums) in sums.chunks_exact_mut(COLUMNS).take(rows).enumerate() {
                    if !set {
                        sums[..width].copy_from_slice(out(row));
                    }
                }
                let all = SharedMut::new(&mut sums);
                // SAFETY: nothing else uses the sums, and each row is borrowed once at a time.
                let tile = |row: usize| unsafe { all.slice(row * COLUMNS..(row + 1) * COLUMNS) };
                let mut row = 0;
                while row < rows {
                    row += add_tile(vectors, &tile, rows, row, part, &wide, COLUMNS, set);
                }
                for row in 0..rows {
                    out(row).copy_from_slice(&tile(row)[..width]);
                }
            }
        }
    }
}

/// Adds to a tile with as many rows as suit the vectors. Returns the number of rows.
#[allow(clippy::too_many_arguments, reason = "the innermost loops, which share no state")]
fn add_tile<'a>(
    vectors: Vectors,
    out: &impl Fn(usize) -> &'a mut [f32],
    rows: usize,
    row: usize,
    part: &[[f32; MOST_ROWS]],
    lines: &[f32],
    stride: usize,
    set: bool,
) -> usize {
    /// Calls the loop for this number of rows.
    macro_rules! call {
        ($module:ident, $count:literal) => {{
            let out: [&mut [f32]; $count] = std::array::from_fn(|i| out(row + i));
            // SAFETY: `Vectors::detect` found these instructions.
            unsafe { $module::add_lines::<$count>(out, part, row, lines, stride, set) };
            $count
        }};
    }
    match (vectors, rows - row) {
        (Vectors::Avx512, 8..) => call!(avx512, 8),
        (Vectors::Avx512, 4..) => call!(avx512, 4),
        (Vectors::Avx512, 3) => call!(avx512, 3),
        (Vectors::Avx512, 2) => call!(avx512, 2),
        (Vectors::Avx512, _) => call!(avx512, 1),
        (Vectors::Avx2, 2..) => call!(avx2, 2),
        (Vectors::Avx2, _) => call!(avx2, 1),
    }
}

/// Lines of a transposed matrix to prefetch. The pointers may be out of bounds.
struct Ahead {
    next: *const f32,
    stride: usize,
    lines: Range<usize>,
}

/// Computes columns `range` of the product with a transposed matrix.
fn dot_products(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    w: Weights,
    [rows, inner, columns]: [usize; 3],
    range: Range<usize>,
) {
    for column in range.clone().step_by(LINES) {
        let width = LINES.min(range.end - column);
        // Past the end, the last line is repeated; its sums are ignored.
        let line = |i: usize| &w.data[(column + i).min(range.end - 1) * w.stride..][..inner];
        // The next lines are prefetched during the multiplication. Each group of rows prefetches a part of
        // them.
        let next = w.data.as_ptr().wrapping_add((column + LINES) * w.stride);
        let ahead = Some((next, w.stride));
        let tile = DotTile { lines: std::array::from_fn(line), column, width, ahead };
        dot_tile(vectors, y, x, tile, [rows, inner, columns]);
    }
}

/// Lines of a transposed matrix and the columns of the product that they yield.
pub(super) struct DotTile<'a> {
    pub lines: [&'a [f32]; LINES],
    pub column: usize,
    pub width: usize,
    /// Where the next lines are, and the distance between them.
    pub ahead: Option<(*const f32, usize)>,
}

/// Computes dot products of all rows of `x` with a few lines.
pub(super) fn dot_tile(
    vectors: Vectors,
    y: SharedMut,
    x: &[f32],
    tile: DotTile,
    [rows, inner, columns]: [usize; 3],
) {
    let DotTile { lines, column, width, ahead } = tile;
    let groups = rows.div_ceil(vectors.rows());
    for group in 0..groups {
        let row = group * rows / groups;
        let count = (group + 1) * rows / groups - row;
        let ahead = match ahead {
            Some((next, stride)) => {
                let lines = group * LINES / groups..(group + 1) * LINES / groups;
                Ahead { next, stride, lines }
            }
            None => Ahead { next: std::ptr::null(), stride: 0, lines: 0..0 },
        };
        let mut sums = TileSums::default();
        let mut tile: [&[f32]; MOST_TILE_ROWS] = [&[]; MOST_TILE_ROWS];
        for (i, tile) in tile[..count].iter_mut().enumerate() {
            *tile = &x[(row + i) * inner..][..inner];
        }
        let dots = match (vectors, count) {
            (Vectors::Avx512, 1) => dots_1_avx512,
            (Vectors::Avx512, 2) => dots_2_avx512,
            (Vectors::Avx512, 3) => dots_3_avx512,
            (Vectors::Avx512, 4) => dots_4_avx512,
            (Vectors::Avx512, 5) => dots_5_avx512,
            (Vectors::Avx512, _) => dots_6_avx512,
            (Vectors::Avx2, 1) => dots_1_avx2,
            (Vectors::Avx2, _) => dots_2_avx2,
        };
        // SAFETY: `Vectors::detect` found these instructions.
        unsafe { dots(&mut sums, &tile[..count], lines, &ahead) };
        for (i, sums) in sums[..count].iter().enumerate() {
            let start = (row + i) * columns + column;
            // SAFETY: the columns of tasks are disjoint.
            unsafe { y.slice(start..start + width) }.copy_from_slice(&sums[..width]);
        }
    }
}

/// The innermost loops for one type of vectors.
macro_rules! kernels {
    (
        $module:ident, $features:literal, $vector:ident,
        $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident
    ) => {
        mod $module {
            use super::*;
            use std::arch::x86_64::*;

            /// Values per vector.
            const LANES: usize = size_of::<$vector>() / size_of::<f32>();

            /// Computes `out[r] += factors[k][row + r] * lines[k]` for all `k` in order; starts from 0 if
            /// `set`.
            #[target_feature(enable = $features)]
            pub(super) fn add_lines<const R: usize>(
                out: [&mut [f32]; R],
                part: &[[f32; MOST_ROWS]],
                row: usize,
                lines: &[f32],
                stride: usize,
                set: bool,
            ) {
                const V: usize = COLUMNS / LANES;
                assert!(out.iter().all(|out| out.len() == COLUMNS) && row + R <= MOST_ROWS);
                assert!(part.is_empty() || (part.len() - 1) * stride + COLUMNS <= lines.len());
                let mut sums = [[$zero(); V]; R];
                if !set {
                    for r in 0..R {
                        for v in 0..V {
                            // SAFETY: the slice has `COLUMNS` values.
                            sums[r][v] = unsafe { $load(out[r].as_ptr().add(v * LANES)) };
                        }
                    }
                }
                for (k, factors) in part.iter().enumerate() {
                    let line = lines[k * stride..].as_ptr();
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(8 * COLUMNS).cast());
                    let mut w = [$zero(); V];
                    for v in 0..V {
                        // SAFETY: asserted above: a line has `COLUMNS` values.
                        w[v] = unsafe { $load(line.add(v * LANES)) };
                    }
                    for r in 0..R {
                        let factor = $splat(factors[row + r]);
                        for v in 0..V {
                            sums[r][v] = $fma(factor, w[v], sums[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        // SAFETY: the slice has `COLUMNS` values.
                        unsafe { $store(out[r].as_mut_ptr().add(v * LANES), sums[r][v]) };
                    }
                }
            }
        }
    };
}

/// Dot products of several rows of `x` with four lines of a transposed matrix. The sums of rows are named
/// variables, so that they stay in registers.
macro_rules! dot_products_of {
    (
        $name:ident, $features:literal, $vector:ident,
        $zero:ident, $load:ident, $fma:ident, $sums:ident, $($row:ident $index:literal)*
    ) => {
        #[target_feature(enable = $features)]
        fn $name(sums: &mut TileSums, x: &[&[f32]], lines: [&[f32]; LINES], ahead: &Ahead) {
            use std::arch::x86_64::*;
            /// Values per vector.
            const LANES: usize = size_of::<$vector>() / size_of::<f32>();
            let inner = lines[0].len();
            assert!(x.iter().chain(&lines).all(|values| values.len() == inner));
            let whole = inner - inner % LANES;
            let inputs = [$(x[$index].as_ptr()),*];
            let places = lines.map(<[f32]>::as_ptr);
            $(let mut $row = [$zero(); LINES];)*
            for k in (0..whole).step_by(LANES) {
                for line in ahead.lines.clone() {
                    let place = line.wrapping_mul(ahead.stride).wrapping_add(k);
                    _mm_prefetch::<_MM_HINT_T1>(ahead.next.wrapping_add(place).cast());
                }
                // SAFETY: `k + LANES` is at most the length of all lines and rows.
                let w = unsafe {
                    [
                        $load(places[0].add(k)),
                        $load(places[1].add(k)),
                        $load(places[2].add(k)),
                        $load(places[3].add(k)),
                    ]
                };
                $(
                    // SAFETY: as above.
                    let value = unsafe { $load(inputs[$index].add(k)) };
                    $row[0] = $fma(value, w[0], $row[0]);
                    $row[1] = $fma(value, w[1], $row[1]);
                    $row[2] = $fma(value, w[2], $row[2]);
                    $row[3] = $fma(value, w[3], $row[3]);
                )*
            }
            $(
                // SAFETY: a row of sums has four values.
                unsafe { _mm_storeu_ps(sums[$index].as_mut_ptr(), $sums($row)) };
                for (sum, line) in sums[$index].iter_mut().zip(&lines) {
                    let tail = x[$index][whole..].iter().zip(&line[whole..]);
                    *sum += tail.map(|(x, w)| x * w).sum::<f32>();
                }
            )*
        }
    };
}

macro_rules! avx512_dots {
    ($($name:ident: $($row:ident $index:literal)*;)*) => {
        $(dot_products_of! {
            $name, "avx512f,avx2,fma", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps,
            sums_of_16, $($row $index)*
        })*
    };
}
avx512_dots! {
    dots_1_avx512: a 0;
    dots_2_avx512: a 0 b 1;
    dots_3_avx512: a 0 b 1 c 2;
    dots_4_avx512: a 0 b 1 c 2 d 3;
    dots_5_avx512: a 0 b 1 c 2 d 3 e 4;
    dots_6_avx512: a 0 b 1 c 2 d 3 e 4 f 5;
}
macro_rules! avx2_dots {
    ($($name:ident: $($row:ident $index:literal)*;)*) => {
        $(dot_products_of! {
            $name, "avx2,fma", __m256, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_fmadd_ps,
            sums_of_8, $($row $index)*
        })*
    };
}
avx2_dots! {
    dots_1_avx2: a 0;
    dots_2_avx2: a 0 b 1;
}

/// Returns the sums of four vectors.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn sums_of_16(
    [a, b, c, d]: [std::arch::x86_64::__m512; 4],
) -> std::arch::x86_64::__m128 {
    use std::arch::x86_64::*;
    let pairs = |a, b| {
        let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        _mm512_castps_pd(_mm512_add_ps(low, high))
    };
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    // Each quarter has partial sums of a, b, c, and d.
    let quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters));
    let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm256_castpd_ps(upper));
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

/// Returns the sums of four vectors.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums_of_8([a, b, c, d]: [std::arch::x86_64::__m256; 4]) -> std::arch::x86_64::__m128 {
    use std::arch::x86_64::*;
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

kernels!(
    avx512,
    "avx512f,avx2,fma",
    __m512,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps
);
kernels!(
    avx2,
    "avx2,fma",
    __m256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps
);

#[cfg(test)]
mod tests {
    use super::super::{Matrix, MatrixMut, Threads};
    use super::*;

    /// Returns small integers, whose products and sums are exact.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 31) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn products_of_few_rows_are_exact() {
        let mut kinds: Vec<Vectors> = Vectors::detect().into_iter().collect();
        if !kinds.is_empty() {
            kinds.push(Vectors::Avx2);
        }
        for (inner, columns) in [(33, 70), (64, 160), (100, 33), (1, 5), (40, 1)] {
            let (w, all_x) = (values(inner * columns, 1), values(MOST_ROWS * inner, 2));
            let turned: Vec<f32> =
                (0..inner * columns).map(|i| w[i % inner * columns + i / inner]).collect();
            for rows in [1, 2, 3, 5, 8, 15, MOST_ROWS] {
                let x = &all_x[..rows * inner];
                let mut expected = vec![0.0; rows * columns];
                MatrixMut::dense(&mut expected, [rows, columns]).set_product(
                    1.0,
                    Matrix::dense(x, [rows, inner]),
                    Matrix::dense(&w, [inner, columns]),
                    Threads::One,
                );
                let straight = Weights { data: &w, stride: columns, transposed: false };
                let turned = Weights { data: &turned, stride: inner, transposed: true };
                for (vectors, weights) in
                    kinds.iter().flat_map(|kind| [(*kind, straight), (*kind, turned)])
                {
                    let mut y = vec![f32::NAN; rows * columns];
                    let sizes = [rows, inner, columns];
                    product(vectors, SharedMut::new(&mut y), x, weights, sizes);
                    assert!(y == expected, "{rows} x {inner} x {columns}, {}", weights.transposed);
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_rows_are_beside_it() {
        let mut random = crate::random::Stream::new(1, "few rows", 0);
        let mut values =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.unit() as f32 - 0.5).collect() };
        for (inner, columns) in [(75, 70), (32, 33), (7, 20)] {
            let (w, x) = (values(inner * columns), values(MOST_ROWS * inner));
            for vectors in Vectors::detect().into_iter().flat_map(|kind| [kind, Vectors::Avx2]) {
                for transposed in [false, true] {
                    let stride = if transposed { inner } else { columns };
                    let w = Weights { data: &w, stride, transposed };
                    let product = |x: &[f32]| {
                        let rows = x.len() / inner;
                        let mut y = vec![f32::NAN; rows * columns];
                        let out = SharedMut::new(&mut y);
                        let sizes = [rows, inner, columns];
                        product_of_columns(vectors, out, x, w, sizes, 0..columns);
                        y
                    };
                    let alone: Vec<f32> = x.chunks_exact(inner).flat_map(product).collect();
                    for rows in 1..=MOST_ROWS {
                        let together = product(&x[..rows * inner]);
                        assert!(together == alone[..rows * columns], "{rows}, {transposed}");
                    }
                }
            }
        }
    }
}
