//! Quantization, bit-identical to ggml's reference functions (`quantize_row_*_ref`).

use super::TensorType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Quantizes values. Their number must be a multiple of the type's block size.
///
/// # Errors
/// A message, if a value is too large for the type or the type can only be read.
pub(crate) fn quantize(values: &[f32], kind: TensorType) -> Result<Vec<u8>, String> {
    /// Values per task, a multiple of every block size.
    const TASK: usize = 1 << 16;
    let write: fn(&[f32], &mut Vec<u8>) = match kind {
        TensorType::F32 => {
            |values, bytes| values.iter().for_each(|x| bytes.extend(x.to_le_bytes()))
        }
        TensorType::F16 => |values, bytes| {
            values.iter().for_each(|x| bytes.extend(f16::from_f32(*x).to_le_bytes()));
        },
        TensorType::Bf16 => |values, bytes| {
            values.iter().for_each(|x| bytes.extend(bf16::from_f32(*x).to_le_bytes()));
        },
        TensorType::Q8_0 => |values, bytes| in_blocks(values, bytes, q8_0),
        TensorType::Q4_0 => |values, bytes| in_blocks(values, bytes, q4_0),
        other => return Err(format!("{} can be read but not written", other.name())),
    };
    // The scales of blocks are f16.
    let largest: f32 = match kind {
        TensorType::F16 => 65504.0,
        TensorType::Bf16 => bf16::MAX.to_f32(),
        TensorType::Q8_0 => 65504.0 * 127.0,
        TensorType::Q4_0 => 65504.0 * 8.0,
        _ => f32::INFINITY,
    };
    if let Some(value) = values.iter().find(|value| value.abs() > largest) {
        return Err(format!("it has the value {value:e}, which is too large for {}", kind.name()));
    }
    let parts: Vec<Vec<u8>> = values
        .par_chunks(TASK)
        .map(|values| {
            let mut bytes = Vec::with_capacity(kind.bytes(values.len()));
            write(values, &mut bytes);
            bytes
        })
        .collect();
    Ok(parts.concat())
}

fn in_blocks(values: &[f32], bytes: &mut Vec<u8>, block: fn(&[f32; 32], &mut Vec<u8>)) {
    values.as_chunks::<32>().0.iter().for_each(|values| block(values, bytes));
}

/// Returns `1 / scale`, or 0 if the scale is 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Writes the scale, then a signed byte per value.
fn q8_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let scale = values.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let factor = inverse(scale);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    // `round` rounds half away from zero, as ggml does.
    bytes.extend(values.iter().map(|x| (x * factor).round() as i8 as u8));
}

/// Writes the scale, then 4 bits per value. The low nibbles hold the first half of the block.
fn q4_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    // Ties go to the first value.
    let most = values.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    let scale = most / -8.0;
    let factor = inverse(scale);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    let code = |x: f32| (x * factor + 8.5) as u8;
    bytes.extend((0..16).map(|at| {
        let [low, high] = [values[at], values[at + 16]].map(|x| code(x).min(15));
        low | high << 4
    }));
}
