//! Matrices of fewer than 32 bits, decoded where they are used: products decode a panel of rows into a buffer
//! that fits the caches and multiply with it.
//!
//! ```text
//! y = x W^T:   for each panel of W's rows    decode, then compute the columns of y for these rows
//! dx = dy W:   for each panel of W's rows    decode, then add the product of these columns of dy with it
//! ```
//!
//! The result equals that of the decoded matrix, except for the order of sums in `dx`.

use super::blocks::par_blocks;
use super::buffer::Buffer;
use super::decode::{Run, decode_by_table, decode_integers, decode_short_floats};
use super::matrix::{DenseMatrix, Matrix, MatrixMut, Threads};
#[cfg(target_arch = "x86_64")]
use super::stored_rows;
use super::tensors::{all_f32, contiguous};
use crate::ops::dynamic_map::{BLOCK as SCALES_PER_BLOCK, SIGNED};
use crate::ops::encoding::{CodeType, Encoding, ScaleType};
use crate::ops::weight::WeightPrimitive;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType};
use burn_flex::FlexTensor;
use half::bf16;
use std::ops::Range;

/// Elements of a panel: 4 MiB of f32.
const PANEL: usize = 1 << 20;
/// The number of rows in a panel, except the last one, is a multiple of this.
const PANEL_UNIT: usize = 96;

/// The matrix of a linear layer for a kernel.
#[allow(clippy::large_enum_variant, reason = "it lives for one product")]
pub(crate) enum WeightMatrix {
    /// In f32.
    Dense(DenseMatrix),
    /// In fewer bits.
    Stored(StoredMatrix),
}

impl WeightMatrix {
    /// Returns the weight itself if there is no kernel for it with these other tensors.
    #[allow(clippy::result_large_err, reason = "it is no error, and goes on to the portable body")]
    pub(crate) fn new(
        weight: WeightPrimitive<Flex>,
        others: &[&FlexTensor],
    ) -> Result<Self, WeightPrimitive<Flex>> {
        if others.iter().any(|other| !all_f32([other])) {
            return Err(weight);
        }
        match weight {
            WeightPrimitive::Dense(weight) if weight.dtype() == DType::F32 => {
                Ok(Self::Dense(DenseMatrix::new(weight)))
            }
            WeightPrimitive::Dense(weight) if weight.dtype() == DType::BF16 => {
                let [rows, columns] = weight.shape().dims();
                let codes = contiguous(weight.transpose(0, 1));
                Ok(Self::Stored(StoredMatrix { codes, kind: Kind::Bf16, size: [columns, rows] }))
            }
            WeightPrimitive::Dense(weight) => Err(WeightPrimitive::Dense(weight)),
            encoded => match StoredMatrix::encoded(&encoded) {
                Some(stored) => Ok(Self::Stored(stored)),
                None => Err(encoded),
            },
        }
    }

    /// Returns `[input, output]`.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.size(),
            Self::Stored(weight) => weight.sizes(),
        }
    }

    /// Computes `out = x W`
    pub(crate) fn set_product(&self, out: MatrixMut, x: Matrix) {
        match self {
            Self::Dense(weight) => out.set_product(1.0, x, weight.view(), Threads::All),
            Self::Stored(weight) => weight.product(out, false, x),
        }
    }

    /// Computes `out += x W`
    pub(crate) fn add_product(&self, out: MatrixMut, x: Matrix) {
        match self {
            Self::Dense(weight) => out.add_product(x, weight.view(), Threads::All),
            Self::Stored(weight) => weight.product(out, true, x),
        }
    }

    /// Computes `out = grad W^T`
    pub(crate) fn set_input_gradient(&self, out: MatrixMut, grad: Matrix) {
        match self {
            Self::Dense(weight) => {
                out.set_product(1.0, grad, weight.view().transposed(), Threads::All);
            }
            Self::Stored(weight) => weight.input_gradient(out, false, grad),
        }
    }
}

/// Rows of an embedding for a kernel.
#[allow(clippy::large_enum_variant, reason = "it lives for one product")]
pub(crate) enum Rows {
    Dense(FlexTensor, usize),
    Stored(StoredMatrix),
}

impl Rows {
    /// Returns `None` if there is no kernel for this weight.
    pub(crate) fn new(weight: &WeightPrimitive<Flex>) -> Option<Self> {
        match weight {
            WeightPrimitive::Dense(weight) => {
                let size @ [_, columns] = weight.shape().dims();
                let weight = weight.clone();
                match weight.dtype() {
                    DType::F32 => Some(Self::Dense(contiguous(weight), columns)),
                    DType::BF16 => {
                        let codes = contiguous(weight);
                        Some(Self::Stored(StoredMatrix { codes, kind: Kind::Bf16, size }))
                    }
                    _ => None,
                }
            }
            encoded => StoredMatrix::encoded(encoded).map(Self::Stored),
        }
    }

    /// Reads a row.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(weight, columns) => {
                out.copy_from_slice(&weight.storage::<f32>()[row * columns..][..*columns]);
            }
            Self::Stored(weight) => weight.decode(row..row + 1, out),
        }
    }
}

/// A matrix of fewer than 32 bits, `[output, input]` row by row.
pub(crate) struct StoredMatrix {
    codes: FlexTensor,
    kind: Kind,
    /// `[output, input]`.
    size: [usize; 2],
}

#[allow(clippy::large_enum_variant, reason = "it lives for one product")]
enum Kind {
    Bf16,
    Encoded { encoding: Encoding, scale_codes: FlexTensor, scales: FlexTensor },
}

/// Codes for reading, with the scales of their blocks.
#[derive(Clone, Copy)]
pub(super) enum Codes<'a> {
    /// The bytes of bf16 numbers.
    ShortFloats(&'a [u8]),
    Integers {
        codes: &'a [u8],
        scales: Scales<'a>,
        unit: f32,
        block: usize,
    },
    Table {
        codes: &'a [u8],
        scales: Scales<'a>,
        table: &'static [f32; 16],
        block: usize,
    },
}

/// The scales of blocks.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    Numbers(&'a [f32]),
    Dynamic { codes: &'a [u8], of_groups: &'a [f32], mean: f32 },
}

impl Scales<'_> {
    #[inline(always)]
    pub(super) fn of(&self, block: usize) -> f32 {
        match self {
            Self::Numbers(scales) => scales[block],
            Self::Dynamic { codes, of_groups, mean } => {
                let value = SIGNED.values[usize::from(codes[block])];
                value * of_groups[block / SCALES_PER_BLOCK] + mean
            }
        }
    }
}

/// Returns the bytes of numbers.
fn bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the values are integers or floats, which have no padding, and `u8` needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl StoredMatrix {
    /// Returns a matrix of these values, row by row; bf16 without an encoding.
    #[cfg(test)]
    pub(super) fn of_values(values: &[f32], size: [usize; 2], encoding: Option<Encoding>) -> Self {
        use crate::ops::encoding::EncodedValues;
        use burn::tensor::Bytes;
        use burn_flex::Layout;
        let words = |words: Vec<i32>| {
            let layout = Layout::contiguous([words.len()].into());
            FlexTensor::new(Bytes::from_elems(words), layout, DType::I32)
        };
        let Some(encoding) = encoding else {
            let short: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
            let layout = Layout::contiguous(size.into());
            let codes = FlexTensor::new(Bytes::from_elems(short), layout, DType::BF16);
            return Self { codes, kind: Kind::Bf16, size };
        };
        let EncodedValues { codes, scale_codes, scales } = EncodedValues::of(values, encoding);
        let count = scales.len();
        let scales = super::tensors::from_vec(scales, [count]);
        let kind = Kind::Encoded { encoding, scale_codes: words(scale_codes), scales };
        Self { codes: words(codes), kind, size }
    }

    /// Returns `None` if the words have an unsupported type.
    fn encoded(weight: &WeightPrimitive<Flex>) -> Option<Self> {
        let WeightPrimitive::Encoded { codes, scale_codes, scales, encoding, size } = weight else {
            return None;
        };
        if codes.dtype() != DType::I32 || scale_codes.dtype() != DType::I32 {
            return None;
        }
        let [codes, scale_codes] = [codes, scale_codes].map(|words| contiguous(words.clone()));
        let scales =
            contiguous(crate::ops::backends::cast::<Flex>(scales.clone(), FloatDType::F32));
        let kind = Kind::Encoded { encoding: *encoding, scale_codes, scales };
        Some(Self { codes, kind, size: *size })
    }

    /// Returns `[input, output]`.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        let [output, input] = self.size;
        [input, output]
    }

    /// Returns the codes and their scales.
    pub(super) fn codes(&self) -> Codes<'_> {
        let (encoding, scale_codes, scales) = match &self.kind {
            Kind::Bf16 => return Codes::ShortFloats(bytes(self.codes.storage::<bf16>())),
            Kind::Encoded { encoding, scale_codes, scales } => (encoding, scale_codes, scales),
        };
        let numbers = scales.storage::<f32>();
        let scales = match encoding.scales {
            ScaleType::Numbers => Scales::Numbers(numbers),
            ScaleType::Dynamic8 => {
                let (mean, of_groups) = numbers.split_last().unwrap_or((&0.0, &[]));
                let codes = bytes(scale_codes.storage::<i32>());
                Scales::Dynamic { codes, of_groups, mean: *mean }
            }
        };
        let (codes, block) = (bytes(self.codes.storage::<i32>()), encoding.block);
        match encoding.codes {
            CodeType::Integer8 { unit } => Codes::Integers { codes, scales, unit, block },
            CodeType::Table4(table) => Codes::Table { codes, scales, table, block },
        }
    }

    /// Decodes a range of rows.
    pub(super) fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let [_, columns] = self.size;
        let start = rows.start * columns;
        assert_eq!(out.len(), rows.len() * columns, "rows do not fit their place");
        match self.codes() {
            Codes::ShortFloats(codes) => decode_short_floats(&codes[2 * start..], out),
            Codes::Integers { codes, scales, unit, block } => {
                decode_integers(Run { codes, block, start }, out, |block| scales.of(block) * unit);
            }
            Codes::Table { codes, scales, table, block } => {
                decode_by_table(Run { codes, block, start }, out, table, |block| scales.of(block));
            }
        }
    }

    /// Calls `with` for each panel of rows, with its range and values.
    fn for_panels(&self, mut with: impl FnMut(Range<usize>, Matrix)) {
        let [rows, columns] = self.size;
        let most = (PANEL / columns.max(1) / PANEL_UNIT * PANEL_UNIT).max(PANEL_UNIT).min(rows);
        let mut panel = Buffer::scratch(most * columns);
        for start in (0..rows).step_by(most.max(1)) {
            let range = start..(start + most).min(rows);
            let values = panel.shared();
            // A few tasks per thread for any width.
            let lines = (16 * 1024 / columns.max(1)).max(1);
            par_blocks(range.len(), lines, |part| {
                // SAFETY: the parts are disjoint.
                let out = unsafe { values.slice(part.start * columns..part.end * columns) };
                self.decode(start + part.start..start + part.end, out);
            });
            let size = [range.len(), columns];
            with(range, Matrix::dense(&panel[..size[0] * columns], size));
        }
    }

    /// Computes `out = x W^T`, or added to it, where `W` is `[output, input]`.
    fn product(&self, mut out: MatrixMut, accumulate: bool, x: Matrix) {
        #[cfg(target_arch = "x86_64")]
        if !accumulate && stored_rows::stored_product(&mut out, x, self) {
            return;
        }
        self.for_panels(|range, panel| {
            let part = out.columns(range);
            match accumulate {
                true => part.add_product(x, panel.transposed(), Threads::All),
                false => part.set_product(1.0, x, panel.transposed(), Threads::All),
            }
        });
    }

    /// Computes `out = grad W`, or added to it.
    pub(crate) fn input_gradient(&self, mut out: MatrixMut, accumulate: bool, grad: Matrix) {
        if self.size[0] == 0 && !accumulate {
            out.fill(0.0);
        }
        self.for_panels(|range, panel| {
            let adds = accumulate || range.start > 0;
            let (part, out) = (grad.columns(range), out.whole());
            match adds {
                true => out.add_product(part, panel, Threads::All),
                false => out.set_product(1.0, part, panel, Threads::All),
            }
        });
    }
}
