//! GPU kernel: one unit per word of codes.

use super::super::cube::{
    CubeBackend, CubeTensor, cubecl, element, in_rows, units, unwritten, vector_of,
};
use super::super::encoding::{INTEGERS, NF4};
use super::{CodeType, DecodingKernel, Encoding, portable_decode};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Types of codes.
const INTEGER_8: u32 = 0;
const NORMAL_4: u32 = 1;
const INTEGER_4: u32 = 2;

/// Decodes an NF4 value bit by bit.
#[cube]
fn normal(code: i32) -> f32 {
    let third = (code & 8) != 0;
    let second = (code & 4) != 0;
    let first = (code & 2) != 0;
    let zeroth = (code & 1) != 0;
    let low = select(
        second,
        select(
            first,
            select(zeroth, comptime!(NF4[7]), comptime!(NF4[6])),
            select(zeroth, comptime!(NF4[5]), comptime!(NF4[4])),
        ),
        select(
            first,
            select(zeroth, comptime!(NF4[3]), comptime!(NF4[2])),
            select(zeroth, comptime!(NF4[1]), comptime!(NF4[0])),
        ),
    );
    let high = select(
        second,
        select(
            first,
            select(zeroth, comptime!(NF4[15]), comptime!(NF4[14])),
            select(zeroth, comptime!(NF4[13]), comptime!(NF4[12])),
        ),
        select(
            first,
            select(zeroth, comptime!(NF4[11]), comptime!(NF4[10])),
            select(zeroth, comptime!(NF4[9]), comptime!(NF4[8])),
        ),
    );
    select(third, high, low)
}

#[cube(launch_unchecked)]
fn decode_kernel<F: Float, I: Int, N: Size>(
    codes: &Tensor<I>,
    scales: &Tensor<f32>,
    out: &mut Tensor<Vector<F, N>>,
    words: usize,
    count: usize,
    block: usize,
    unit: f32,
    #[comptime] kind: u32,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if ABSOLUTE_POS >= words {
        terminate!();
    }
    let in_word = comptime!(if kind == INTEGER_8 { 4usize } else { 8usize });
    let word = i32::cast_from(codes[ABSOLUTE_POS]);
    for part in 0..in_word / N::value() {
        let first = ABSOLUTE_POS * in_word + part * N::value();
        if first < count {
            let mut values = Vector::<f32, N>::new(0.0);
            #[unroll]
            for j in 0..N::value() {
                let place = part * N::value() + j;
                if comptime!(kind == INTEGER_8) {
                    // The sign is the top bit.
                    let code = (word >> i32::cast_from(place * 8)) & 255;
                    values.insert(j, f32::cast_from((code ^ 128) - 128) * unit);
                } else {
                    // The first of two codes in a byte is in the upper half.
                    let code = (word >> i32::cast_from((place ^ 1) * 4)) & 15;
                    if comptime!(kind == NORMAL_4) {
                        values.insert(j, normal(code));
                    } else {
                        values.insert(j, f32::cast_from(code - 8));
                    }
                }
            }
            // Blocks consist of whole vectors.
            let scale = Vector::<f32, N>::new(scales[first / block]);
            out[first / N::value()] = Vector::cast_from(values * scale);
        }
    }
}

impl DecodingKernel for CubeBackend {
    fn decode(
        codes: CubeTensor,
        scales: CubeTensor,
        encoding: Encoding,
        size: [usize; 2],
        dtype: FloatDType,
    ) -> CubeTensor {
        let kind = match encoding.codes {
            CodeType::Integer8 { .. } => Some(INTEGER_8),
            CodeType::Table4(table) if *table == NF4 => Some(NORMAL_4),
            CodeType::Table4(table) if *table == INTEGERS => Some(INTEGER_4),
            CodeType::Table4(_) => None,
        };
        let kind = kind.filter(|_| scales.dtype == DType::F32 && dtype != FloatDType::F64);
        let Some(kind) = kind else {
            let decoded = portable_decode::<Self>(codes, scales, encoding, size);
            return Self::float_cast(decoded, dtype);
        };
        let unit = match encoding.codes {
            CodeType::Integer8 { unit } => unit,
            CodeType::Table4(_) => 1.0,
        };
        let [codes, scales] = in_rows([codes, scales]);
        let count = size[0] * size[1];
        let words = (count * encoding.bits()).div_ceil(32).min(codes.shape().num_elements());
        let out = unwritten(&scales, size, dtype.into());
        // A vector must lie within one word and one block.
        let four = [count, encoding.block].iter().all(|length| length.is_multiple_of(4));
        let vector = if four { vector_of(4, [&out]) } else { 1 };
        let (cube_count, cube_dim) = units(words, &scales);
        let elements = [element(&out), element(&codes)];
        // SAFETY: each unit reads its own word and the scales of the blocks of its values, and writes only
        // those of its values that are among the `count` existing ones.
        unsafe {
            decode_kernel::launch_unchecked(
                &scales.client.clone(),
                cube_count,
                cube_dim,
                vector,
                codes.into_tensor_arg(),
                scales.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                words,
                count,
                encoding.block,
                unit,
                kind,
                elements,
            );
        }
        out
    }
}
