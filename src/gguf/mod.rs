//! GGUF, the file format of llama.cpp: one file with a model's weights, settings and tokenizer.
//!
//! ```text
//! GgufFile     a file's metadata and tensors, read with bounds
//! write_file   a file, tensor by tensor
//! TensorType   how numbers are stored: f32, f16, bf16, and blocks of codes
//! ```
//!
//! This is the format alone; what a model's file holds is in [`model`](crate::model). Sources: the
//! specification in ggml's `docs/gguf.md`, and for blocks of codes ggml's reference functions, which PyPI's
//! package `gguf` has too.

mod blocks;
mod dequantize;
mod file;
mod quantize;
mod super_blocks;
mod tensor_type;
mod value;
mod write;

pub(crate) use dequantize::dequantize;
pub use file::{GgufFile, TensorInfo};
pub(crate) use quantize::quantize;
pub use tensor_type::TensorType;
pub use value::{GgufArray, GgufValue};
pub(crate) use write::{NewTensor, write_file};

/// The first four bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// The version of the format that is written; 2 differs from it only in the order of bytes on machines
/// that have another one.
const VERSION: u32 = 3;

/// Where tensors begin, unless the metadata says otherwise: at multiples of this many bytes.
const ALIGNMENT: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    #[test]
    fn blocks_are_those_of_ggml() {
        // Made by tests/parity/make_gguf.py.
        let path = "tests/parity/fixtures/gguf_blocks.safetensors";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        // The package has no tests/.
        let Ok(file) = std::fs::read(path) else { return };
        let file = SafeTensors::deserialize(&file).unwrap();
        let bytes = |name: &str| file.tensor(name).unwrap().data();
        let values = floats(bytes("values"));
        let mut seen = 0;
        for kind in TensorType::all() {
            let name = kind.name().to_lowercase();
            if let Ok(expected) = file.tensor(&format!("{name}.written")) {
                assert_eq!(quantize(&values, kind).unwrap(), expected.data(), "{name}");
                seen += 1;
            }
            if let Ok(expected) = file.tensor(&format!("{name}.read")) {
                let read = dequantize(kind, bytes(&format!("{name}.bytes")));
                assert_eq!(read, floats(expected.data()), "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, 4 + 13);
    }

    #[test]
    fn numbers_that_a_type_cannot_hold_are_refused() {
        let mut values = vec![0.5f32; 32];
        values[3] = 1e5;
        assert!(quantize(&values, TensorType::F16).unwrap_err().contains("1e5"));
        assert!(quantize(&values, TensorType::Q8_0).is_ok());
        assert!(quantize(&values, TensorType::Q4K).unwrap_err().contains("q4_K"));
        values[3] = f32::MAX;
        assert!(quantize(&values, TensorType::Q8_0).is_err());
        assert!(quantize(&values, TensorType::Bf16).is_err());
        assert!(quantize(&values, TensorType::F32).is_ok());
    }
}
