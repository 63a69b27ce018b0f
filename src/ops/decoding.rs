//! Decodes quantized matrices.

use super::backends::{cast, for_each_backend_without_kernels, kernel_trait, widen};
use super::dynamic_map::{BLOCK as SCALES_PER_BLOCK, SIGNED};
use super::encoding::{CodeType, Encoding, ScaleType};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Scalar, Slice, TensorData};

kernel_trait! {
    /// Decoding of plain backend tensors.
    trait DecodingKernel {
        /// Decodes codes to `size` numbers of the type `dtype`. `codes` are words; `scales` has one f32
        /// number per block.
        #[fusion(meta = |_codes, _scales, _encoding, size, dtype| {
            TensorSpec::new((*size).into(), (*dtype).into())
        })]
        fn decode(
            codes: IntTensor<Self>,
            scales: FloatTensor<Self>,
            encoding: Encoding,
            size: [usize; 2],
            dtype: FloatDType,
        ) -> FloatTensor<Self> {
            cast::<Self>(portable_decode::<Self>(codes, scales, encoding, size), dtype)
        }
    }
}

for_each_backend_without_kernels! { DecodingKernel }

#[cfg(feature = "cube")]
mod cube;

/// Unpacks the bytes of words, in order.
pub(super) fn unpack_bytes<B: Backend>(words: IntTensor<B>) -> IntTensor<B> {
    unpack::<B>(words, 8)
}

/// Unpacks the numbers in words, of `bits` bits each. The first of two in a byte is in the upper half.
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

/// Looks up indices `[places]` in a table.
fn look_up<B: Backend>(table: &[f32], places: IntTensor<B>) -> FloatTensor<B> {
    let table = TensorData::new(table.to_vec(), [table.len()]);
    B::float_select(B::float_from_data(table, &places.device()), 0, places)
}

/// Decodes codes with the scales of their blocks, to `size`.
fn portable_decode<B: Backend>(
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
            // The sign is the top bit.
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

/// Returns the scales of a number of blocks, in f32.
pub(super) fn decode_scales<B: Backend>(
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
