//! Dequantization, as in ggml's reference functions (`dequantize_row_*`).

use super::{TensorType, blocks, super_blocks};
use half::{bf16, f16};
use rayon::prelude::*;

/// Dequantizes whole blocks.
pub(crate) fn dequantize(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
    /// Blocks per task.
    const TASK: usize = 1 << 10;
    let read: fn(&[u8], &mut [f32]) = match kind {
        TensorType::F32 => |bytes, values| values[0] = f32_of(bytes),
        TensorType::F16 => |bytes, values| values[0] = f16_of(bytes),
        TensorType::Bf16 => |bytes, values| values[0] = bf16_of(bytes),
        TensorType::Q4_0 => blocks::q4_0,
        TensorType::Q4_1 => blocks::q4_1,
        TensorType::Q5_0 => blocks::q5_0,
        TensorType::Q5_1 => blocks::q5_1,
        TensorType::Q8_0 => blocks::q8_0,
        TensorType::Iq4Nl => blocks::iq4_nl,
        TensorType::Mxfp4 => blocks::mxfp4,
        TensorType::Q2K => super_blocks::q2_k,
        TensorType::Q3K => super_blocks::q3_k,
        TensorType::Q4K => super_blocks::q4_k,
        TensorType::Q5K => super_blocks::q5_k,
        TensorType::Q6K => super_blocks::q6_k,
        TensorType::Iq4Xs => super_blocks::iq4_xs,
    };
    let (block, block_bytes) = (kind.block(), kind.block_bytes());
    let mut values = vec![0f32; bytes.len() / block_bytes * block];
    let of_task = values.par_chunks_mut(TASK * block).zip(bytes.par_chunks(TASK * block_bytes));
    of_task.for_each(|(values, bytes)| {
        let blocks = values.chunks_exact_mut(block).zip(bytes.chunks_exact(block_bytes));
        blocks.for_each(|(values, bytes)| read(bytes, values));
    });
    values
}

fn f32_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn f16_of(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn bf16_of(bytes: &[u8]) -> f32 {
    bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
