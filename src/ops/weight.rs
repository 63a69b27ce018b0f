//! The matrix of a linear layer, an embedding or a head: numbers, or codes that stand for them.
//!
//! ```text
//! Weight              as tensors, what operations take
//! WeightPrimitive<B>  the same on a backend
//! ```
//!
//! Codes are decoded where they are used, a part of the matrix at a time on flex and the whole of it
//! elsewhere; what waits for a backward pass is codes.

use super::backends::{cast, widen};
use super::dynamic_map::{BLOCK as SCALES_PER_BLOCK, SIGNED};
use super::encoding::{CodeType, EncodedValues, Encoding, ScaleType};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType, TensorMetadata};
use burn::tensor::{DType, Device, FloatDType, Int, Scalar, Slice, Tensor, TensorData};

/// A matrix on a backend.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum WeightPrimitive<B: Backend> {
    /// Numbers, `[input, output]`; as an embedding `[vocabulary, width]`.
    Dense(FloatTensor<B>),
    /// Codes.
    Encoded {
        /// Words of 32 bits: the codes of `[output, input]` row by row; as an embedding, of
        /// `[vocabulary, width]`.
        codes: IntTensor<B>,
        /// Words with the codes of scales; one without meaning where scales are numbers.
        scale_codes: IntTensor<B>,
        /// Scales, or the scales of scales.
        scales: FloatTensor<B>,
        /// What codes and scales stand for.
        encoding: Encoding,
        /// Rows and columns of what is encoded.
        size: [usize; 2],
    },
}

impl<B: Backend> WeightPrimitive<B> {
    /// `[input, output]` of a linear layer's matrix.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Encoded { size: [output, input], .. } => [*input, *output],
        }
    }

    /// Whether it is numbers of 32 bits.
    #[cfg(feature = "flex")]
    pub(crate) fn is_f32(&self) -> bool {
        matches!(self, Self::Dense(weight) if weight.dtype() == DType::F32)
    }

    /// `[vocabulary, width]` of an embedding.
    #[cfg(feature = "flex")]
    pub(crate) fn row_sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Encoded { size, .. } => *size,
        }
    }

    /// The numbers of a linear layer's matrix, `[input, output]`.
    pub(crate) fn dense(self, dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => cast::<B>(weight, dtype.into()),
            encoded => cast::<B>(B::float_transpose(encoded.decoded()), dtype.into()),
        }
    }

    /// The numbers of these rows of an embedding; those of codes and of 16-bit numbers in f32.
    pub(crate) fn rows(self, ids: IntTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => widen::<B>(B::float_select(weight, 0, ids)),
            Self::Encoded { codes, scales, encoding, size: [rows, columns], .. }
                if encoding.is_by_row(columns) =>
            {
                let codes = B::int_reshape(codes, [rows, columns / 4].into());
                let codes = B::int_select(codes, 0, ids.clone());
                let count = codes.shape()[0];
                let codes = B::int_reshape(codes, [count * columns / 4].into());
                let scales = widen::<B>(B::float_select(scales, 0, ids));
                decode::<B>(codes, scales, encoding, [count, columns])
            }
            encoded => B::float_select(encoded.decoded(), 0, ids),
        }
    }

    /// What is encoded, in f32 and in its own orientation.
    fn decoded(self) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => widen::<B>(weight),
            Self::Encoded { codes, scale_codes, scales, encoding, size } => {
                let blocks = (size[0] * size[1]).div_ceil(encoding.block);
                let scales = decode_scales::<B>(scale_codes, scales, encoding.scales, blocks);
                decode::<B>(codes, scales, encoding, size)
            }
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> WeightPrimitive<Autodiff<B, C>> {
    /// The matrix off the graph, and the tensor that its gradient would be of; codes have none.
    pub(crate) fn split(self) -> (WeightPrimitive<B>, FloatTensor<Autodiff<B, C>>) {
        match self {
            Self::Dense(weight) => {
                (WeightPrimitive::Dense(weight.clone().into_primitive()), weight)
            }
            Self::Encoded { codes, scale_codes, scales, encoding, size } => {
                let off_graph = scales.clone().into_primitive();
                let weight = WeightPrimitive::Encoded {
                    codes,
                    scale_codes,
                    scales: off_graph,
                    encoding,
                    size,
                };
                (weight, scales)
            }
        }
    }
}

/// The bytes of words, in order.
pub(super) fn unpack_bytes<B: Backend>(words: IntTensor<B>) -> IntTensor<B> {
    unpack::<B>(words, 8)
}

/// The numbers in words, each of so many bits; the first of two in a byte is in its upper half.
fn unpack<B: Backend>(words: IntTensor<B>, bits: usize) -> IntTensor<B> {
    let count = words.shape()[0];
    let shifts: &[i64] = match bits {
        8 => &[0, 8, 16, 24],
        _ => &[4, 0, 12, 8, 20, 16, 28, 24],
    };
    let mask = Scalar::from((1i64 << bits) - 1);
    let part = |shift: &i64| {
        let part = B::bitwise_right_shift_scalar(words.clone(), Scalar::from(*shift));
        B::int_reshape(B::bitwise_and_scalar(part, mask), [count, 1].into())
    };
    let parts: Vec<IntTensor<B>> = shifts.iter().map(part).collect();
    B::int_reshape(B::int_cat(parts, 1), [count * shifts.len()].into())
}

/// The entries of a table at these places, `[places]`.
fn look_up<B: Backend>(table: &[f32], places: IntTensor<B>) -> FloatTensor<B> {
    let table = TensorData::new(table.to_vec(), [table.len()]);
    B::float_select(B::float_from_data(table, &places.device()), 0, places)
}

/// The values of codes, `size`, by the scales of their blocks.
fn decode<B: Backend>(
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    encoding: Encoding,
    size: [usize; 2],
) -> FloatTensor<B> {
    let Encoding { codes: kind, block, .. } = encoding;
    let count = size[0] * size[1];
    let blocks = count.div_ceil(block);
    let codes = unpack::<B>(codes, encoding.bits());
    let codes = B::int_slice(codes, &[Slice::from(0..blocks * block)]);
    let values = match kind {
        CodeType::Integer8 { unit } => {
            // The sign is the upper bit.
            let flipped = B::bitwise_xor_scalar(codes, Scalar::from(128i64));
            let signed = B::int_sub_scalar(flipped, Scalar::from(128i64));
            B::float_mul_scalar(B::int_into_float(signed, FloatDType::F32), Scalar::from(unit))
        }
        CodeType::Table4(table) => look_up::<B>(table, codes),
    };
    let values = B::float_reshape(values, [blocks, block].into());
    let values = B::float_mul(values, B::float_reshape(scales, [blocks, 1].into()));
    let values = B::float_reshape(values, [blocks * block].into());
    let values = B::float_slice(values, &[Slice::from(0..count)]);
    B::float_reshape(values, size.into())
}

/// The scales of so many blocks, in f32.
fn decode_scales<B: Backend>(
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    kind: ScaleType,
    blocks: usize,
) -> FloatTensor<B> {
    let scales = widen::<B>(scales);
    if kind != ScaleType::Dynamic8 {
        return scales;
    }
    let groups = blocks.div_ceil(SCALES_PER_BLOCK);
    let codes = look_up::<B>(&SIGNED.values, unpack::<B>(codes, 8));
    let codes = B::float_reshape(codes, [groups, SCALES_PER_BLOCK].into());
    let of_groups = B::float_slice(scales.clone(), &[Slice::from(0..groups)]);
    let mean = B::float_slice(scales, &[Slice::from(groups..groups + 1)]);
    let scales = B::float_mul(codes, B::float_reshape(of_groups, [groups, 1].into()));
    let scales = B::float_add(scales, B::float_reshape(mean, [1, 1].into()));
    let scales = B::float_reshape(scales, [groups * SCALES_PER_BLOCK].into());
    B::float_slice(scales, &[Slice::from(0..blocks)])
}

/// A matrix that operations multiply with: numbers, or codes of fewer bits.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "numbers, the larger, are the usual ones")]
pub enum Weight {
    /// Numbers: `[input, output]` of a linear layer, `[vocabulary, width]` of an embedding. Frozen ones
    /// may be bf16 where activations are f32.
    Dense(Tensor<2>),
    /// Codes, which have no gradient.
    Encoded(Box<EncodedWeight>),
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Self::Dense(weight)
    }
}

impl From<EncodedWeight> for Weight {
    fn from(weight: EncodedWeight) -> Self {
        Self::Encoded(Box::new(weight))
    }
}

impl Weight {
    /// `[input, output]` of a linear layer's matrix.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Encoded(weight) => {
                let [output, input] = weight.size;
                [input, output]
            }
        }
    }

    /// Where it is.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Encoded(weight) => weight.scales.device(),
        }
    }

    /// Whether products of activations of this type can be made with it.
    pub(crate) fn fits(&self, activations: DType) -> bool {
        match self {
            // The gradient of one in other bits would be in those of the activations.
            Self::Dense(weight) => {
                let is_frozen = !weight.is_require_grad();
                weight.dtype() == activations || (weight.dtype() == DType::BF16 && is_frozen)
            }
            Self::Encoded(_) => true,
        }
    }

    pub(crate) fn into_dispatch(self) -> WeightPrimitive<Dispatch> {
        match self {
            Self::Dense(weight) => WeightPrimitive::Dense(weight.into_dispatch()),
            Self::Encoded(weight) => {
                let EncodedWeight { codes, scale_codes, scales, encoding, size } = *weight;
                WeightPrimitive::Encoded {
                    codes: codes.into_dispatch(),
                    scale_codes: scale_codes.into_dispatch(),
                    scales: scales.into_dispatch(),
                    encoding,
                    size,
                }
            }
        }
    }
}

/// Codes of a matrix, their scales, and what they stand for.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use mixdistill::ops::{EncodedWeight, linear};
///
/// # fn main() -> mixdistill::Result<()> {
/// let device = mixdistill::device::by_name("auto")?;
/// // A linear layer with 64 inputs and two outputs.
/// let values: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
/// let weight = EncodedWeight::nf4(&values, [2, 64], false, &device);
/// let x = Tensor::<2>::random([5, 64], Distribution::Default, &device);
/// assert_eq!(linear(x, weight).dims(), [5, 2]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EncodedWeight {
    pub(crate) codes: Tensor<1, Int>,
    pub(crate) scale_codes: Tensor<1, Int>,
    pub(crate) scales: Tensor<1>,
    pub(crate) encoding: Encoding,
    /// Rows and columns of what is encoded.
    pub(crate) size: [usize; 2],
}

impl EncodedWeight {
    /// A matrix in NF4 as bitsandbytes has it: blocks of 64 values, row by row. `values` are
    /// `[output, input]` of a linear layer, `[vocabulary, width]` of an embedding; `size` is that shape.
    /// With `double_quantization` the scales are in 8 bits.
    ///
    /// Source: QLoRA, arXiv 2305.14314.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn nf4(
        values: &[f32],
        size: [usize; 2],
        double_quantization: bool,
        device: &Device,
    ) -> Self {
        Self::new(values, size, Encoding::nf4(double_quantization), device)
    }

    /// A matrix in integers of 8 bits with one scale for each row, as bitsandbytes' LLM.int8() has it; as
    /// [`EncodedWeight::nf4`].
    ///
    /// Source: arXiv 2208.07339.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn int8(values: &[f32], size: [usize; 2], device: &Device) -> Self {
        Self::new(values, size, Encoding::int8(size[1]), device)
    }

    pub(crate) fn new(
        values: &[f32],
        size: [usize; 2],
        encoding: Encoding,
        device: &Device,
    ) -> Self {
        assert_eq!(values.len(), size[0] * size[1], "values do not fit the size");
        Self::of_codes(EncodedValues::of(values, encoding), size, encoding, device)
    }

    /// A matrix of these codes.
    pub(crate) fn of_codes(
        values: EncodedValues,
        size: [usize; 2],
        encoding: Encoding,
        device: &Device,
    ) -> Self {
        let EncodedValues { codes, scale_codes, scales } = values;
        let scale_codes = if scale_codes.is_empty() { vec![0] } else { scale_codes };
        let words = |words: Vec<i32>| {
            let count = words.len();
            let data = super::resident::words(words, count, device);
            Tensor::from_data(data, (device, DType::I32))
        };
        let count = scales.len();
        Self {
            codes: words(codes),
            scale_codes: words(scale_codes),
            scales: Tensor::from_data(TensorData::new(scales, [count]), device),
            encoding,
            size,
        }
    }

    /// The numbers that the codes stand for, in `values`' order: `size`.
    pub fn decoded(&self) -> Tensor<2> {
        let rows: Vec<i32> = (0..self.size[0] as i32).collect();
        let rows = TensorData::new(rows, [self.size[0]]);
        let rows = Tensor::from_data(rows, &self.scales.device());
        super::embedding(self.clone(), rows)
    }
}
