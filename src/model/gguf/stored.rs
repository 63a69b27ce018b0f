//! Blocks of a GGUF file as codes of a frozen base model.

use super::model::{Blocks, GgufModel};
use crate::error::Result;
use crate::gguf::TensorType;
use crate::model::base_weights::BaseType;
use crate::ops::{EncodedValues, Encoding};
use half::f16;

/// A matrix with the codes of its file.
pub(in crate::model) struct StoredBlocks {
    pub values: EncodedValues,
    pub encoding: Encoding,
    /// Rows and columns.
    pub size: [usize; 2],
    /// Values of the first row.
    pub first_row: Vec<f32>,
}

impl GgufModel {
    /// Returns a matrix's codes if its type in the file corresponds to `wanted`: q8_0 to int8, q4_0 to nf4.
    ///
    /// # Errors
    /// See [`GgufModel::read_blocks`]. [`Error::Model`](crate::Error::Model) if a scale is not finite.
    pub fn stored(&self, name: &str, wanted: BaseType) -> Result<Option<StoredBlocks>> {
        let encode: fn(&[u8]) -> EncodedValues = match (wanted, self.tensor_type(name)) {
            (BaseType::Int8, Some(TensorType::Q8_0)) => q8_0,
            (BaseType::Nf4, Some(TensorType::Q4_0)) => q4_0,
            _ => return Ok(None),
        };
        let Some(Blocks { kind, size, bytes }) = self.read_blocks(name)? else { return Ok(None) };
        let encoding = if kind == TensorType::Q8_0 { Encoding::q8_0() } else { Encoding::q4_0() };
        let values = encode(&bytes);
        if values.scales.iter().any(|scale| !scale.is_finite()) {
            return Err(self.not_finite(name));
        }
        let first_row = crate::gguf::dequantize(kind, &bytes[..kind.bytes(size[1])]);
        Ok(Some(StoredBlocks { values, encoding, size, first_row }))
    }
}

/// Returns the scale at the start of a block.
fn scale(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

fn words(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect()
}

fn q8_0(blocks: &[u8]) -> EncodedValues {
    let blocks = blocks.as_chunks::<34>().0;
    let codes = blocks.iter().flat_map(|block| words(&block[2..])).collect();
    let scales = blocks.iter().map(|block| scale(block)).collect();
    EncodedValues { codes, scale_codes: vec![], scales }
}

fn q4_0(blocks: &[u8]) -> EncodedValues {
    let blocks = blocks.as_chunks::<18>().0;
    // The file stores the first half of a block in low nibbles. Here, adjacent values share a byte, the first
    // in the high nibble.
    let paired = |block: &[u8; 18]| {
        let code = |at: usize| if at < 16 { block[2 + at] & 15 } else { block[at - 14] >> 4 };
        let bytes: [u8; 16] = std::array::from_fn(|pair| code(2 * pair) << 4 | code(2 * pair + 1));
        words(&bytes)
    };
    let scales = blocks.iter().map(|block| scale(block)).collect();
    EncodedValues { codes: blocks.iter().flat_map(paired).collect(), scale_codes: vec![], scales }
}
