//! The matrix of a linear layer, an embedding, or a head: numbers or quantized codes.
//!
//! ```text
//! Weight              as tensors, which operations take
//! WeightPrimitive<B>  the same on a backend
//! ```
//!
//! Codes are decoded where they are used: part by part on flex, and as a whole matrix on other backends. Only
//! the codes are kept for the backward pass.

use super::backends::{cast, widen};
use super::decoding::{DecodingKernel, decode_scales};
use super::encoding::{EncodedValues, Encoding};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType, TensorMetadata};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

/// A matrix on a backend.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum WeightPrimitive<B: Backend> {
    /// Numbers, `[input, output]`; for an embedding `[vocabulary, width]`.
    Dense(FloatTensor<B>),
    /// Quantized codes.
    Encoded {
        /// 32-bit words with the codes of `[output, input]` row by row; for an embedding, of
        /// `[vocabulary, width]`.
        codes: IntTensor<B>,
        /// Words with the codes of scales; a placeholder if scales are numbers.
        scale_codes: IntTensor<B>,
        /// The scales, or the scales of scales.
        scales: FloatTensor<B>,
        /// How to decode codes and scales.
        encoding: Encoding,
        /// Rows and columns of the encoded matrix.
        size: [usize; 2],
    },
}

impl<B: Backend> WeightPrimitive<B> {
    /// Returns `[input, output]` of a linear layer.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Encoded { size: [output, input], .. } => [*input, *output],
        }
    }

    /// Returns whether it consists of f32 numbers.
    #[cfg(feature = "flex")]
    pub(crate) fn is_f32(&self) -> bool {
        matches!(self, Self::Dense(weight) if weight.dtype() == DType::F32)
    }

    /// Returns `[vocabulary, width]` of an embedding.
    #[cfg(feature = "flex")]
    pub(crate) fn row_sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Encoded { size, .. } => *size,
        }
    }
}

impl<B: DecodingKernel> WeightPrimitive<B> {
    /// Returns the matrix of a linear layer as numbers, `[input, output]`.
    pub(crate) fn dense(self, dtype: DType) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => cast::<B>(weight, dtype.into()),
            encoded => B::float_transpose(encoded.decoded(dtype.into())),
        }
    }

    /// Returns the rows of an embedding as numbers; f32 for codes and 16-bit numbers.
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
                B::decode(codes, scales, encoding, [count, columns], FloatDType::F32)
            }
            encoded => B::float_select(encoded.decoded(FloatDType::F32), 0, ids),
        }
    }

    /// Returns the encoded matrix as numbers, in its own orientation.
    fn decoded(self, dtype: FloatDType) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => cast::<B>(weight, dtype),
            Self::Encoded { codes, scale_codes, scales, encoding, size } => {
                let blocks = (size[0] * size[1]).div_ceil(encoding.block);
                let scales = decode_scales::<B>(scale_codes, scales, encoding.scales, blocks);
                B::decode(codes, scales, encoding, size, dtype)
            }
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> WeightPrimitive<Autodiff<B, C>> {
    /// Returns the matrix off the graph, and the tensor that its gradient belongs to. Codes have no gradient.
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

/// A matrix that operations multiply with: numbers or quantized codes.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "numbers, the larger, are the usual ones")]
pub enum Weight {
    /// Numbers: `[input, output]` of a linear layer, `[vocabulary, width]` of an embedding. Frozen matrices
    /// may be bf16 if activations are f32.
    Dense(Tensor<2>),
    /// Quantized codes, which have no gradient.
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
    /// Returns `[input, output]` of a linear layer.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Encoded(weight) => {
                let [output, input] = weight.size;
                [input, output]
            }
        }
    }

    /// Returns the device.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Encoded(weight) => weight.scales.device(),
        }
    }

    /// Returns whether activations of this type can be multiplied with it.
    pub(crate) fn fits(&self, activations: DType) -> bool {
        match self {
            // The gradient of a matrix of another type would have the type of the activations.
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

/// A quantized matrix: codes, their scales, and the encoding.
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
    /// Rows and columns of the encoded matrix.
    pub(crate) size: [usize; 2],
}

impl EncodedWeight {
    /// Quantizes a matrix to NF4 like bitsandbytes: in blocks of 64 values, row by row. `values` are
    /// `[output, input]` for a linear layer and `[vocabulary, width]` for an embedding; `size` is that shape.
    /// With `double_quantization`, the scales have 8 bits.
    ///
    /// Source: QLoRA, arXiv 2305.14314.
    ///
    /// # Panics
    /// If the number of values does not match `size`.
    pub fn nf4(
        values: &[f32],
        size: [usize; 2],
        double_quantization: bool,
        device: &Device,
    ) -> Self {
        Self::new(values, size, Encoding::nf4(double_quantization), device)
    }

    /// Quantizes a matrix to 8-bit integers with one scale per row, like LLM.int8() of bitsandbytes. The
    /// arguments are those of [`EncodedWeight::nf4`].
    ///
    /// Source: arXiv 2208.07339.
    ///
    /// # Panics
    /// If the number of values does not match `size`.
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

    /// Returns a matrix of given codes.
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

    /// Decodes the matrix, in the order of the original values: `size`.
    pub fn decoded(&self) -> Tensor<2> {
        let rows: Vec<i32> = (0..self.size[0] as i32).collect();
        let rows = TensorData::new(rows, [self.size[0]]);
        let rows = Tensor::from_data(rows, &self.scales.device());
        super::embedding(self.clone(), rows)
    }
}
