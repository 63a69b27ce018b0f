//! Writes GGUF files tensor by tensor.

use super::{ALIGNMENT, GgufArray, GgufValue, MAGIC, TensorType, VERSION};
use crate::error::{Error, Result};
use crate::files::write_whole;
use std::io::Write;
use std::path::Path;

/// A tensor to write. Its bytes are computed just before they are written.
pub(crate) struct NewTensor<'a> {
    pub name: String,
    /// Dimensions, outermost first. The file stores them in reverse order.
    pub shape: Vec<usize>,
    pub kind: TensorType,
    /// Computes the bytes in the file.
    #[allow(clippy::type_complexity)]
    pub bytes: Box<dyn FnOnce() -> Result<Vec<u8>> + 'a>,
}

impl NewTensor<'_> {
    fn len(&self) -> u64 {
        self.kind.bytes(self.shape.iter().product()) as u64
    }
}

/// Writes a file atomically and returns its length in bytes. Calls `told` after each tensor with the number
/// written so far.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, and the errors of the tensors and of `told`.
pub(crate) fn write_file(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: Vec<NewTensor<'_>>,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut length = 0;
    write_whole(path, |file| {
        length = fill(file, path, metadata, tensors, told)?;
        Ok(())
    })?;
    Ok(length)
}

fn fill(
    file: &mut impl Write,
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: Vec<NewTensor<'_>>,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let failed = |e| Error::io("write", path, e);
    let header = header(metadata, &tensors);
    file.write_all(&header).map_err(failed)?;
    let mut at = header.len() as u64;
    for (done, tensor) in (1..).zip(tensors) {
        pad(file, &mut at).map_err(failed)?;
        let expected = tensor.len();
        let bytes = (tensor.bytes)()?;
        if bytes.len() as u64 != expected {
            let what = format!("{} has {} bytes, not {expected}", tensor.name, bytes.len());
            return Err(failed(std::io::Error::other(what)));
        }
        file.write_all(&bytes).map_err(failed)?;
        at += expected;
        told(done)?;
    }
    pad(file, &mut at).map_err(failed)?;
    Ok(at)
}

/// Pads to the start of the next tensor.
fn pad(file: &mut impl Write, at: &mut u64) -> std::io::Result<()> {
    let missing = at.next_multiple_of(ALIGNMENT) - *at;
    *at += missing;
    file.write_all(&[0; ALIGNMENT as usize][..missing as usize])
}

/// Returns everything before the tensor data.
fn header(metadata: &[(String, GgufValue)], tensors: &[NewTensor<'_>]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut header, key);
        header.extend(value.type_number().to_le_bytes());
        put(&mut header, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        // The file stores the innermost dimension first.
        tensor.shape.iter().rev().for_each(|size| header.extend((*size as u64).to_le_bytes()));
        header.extend(tensor.kind.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + tensor.len()).next_multiple_of(ALIGNMENT);
    }
    header
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put(bytes: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U8(x) => bytes.push(*x),
        GgufValue::I8(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::U16(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::I16(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::U32(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::I32(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::F32(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::Bool(x) => bytes.push(u8::from(*x)),
        GgufValue::String(text) => put_text(bytes, text),
        GgufValue::U64(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::I64(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::F64(x) => bytes.extend(x.to_le_bytes()),
        GgufValue::Array(list) => put_array(bytes, list),
    }
}

fn put_array(bytes: &mut Vec<u8>, list: &GgufArray) {
    let one = match list {
        GgufArray::String(_) => 8u32,
        GgufArray::F32(_) => 6,
        GgufArray::F64(_) => 12,
        GgufArray::I32(_) => 5,
        GgufArray::U32(_) => 4,
        GgufArray::I64(_) => 11,
        GgufArray::Bool(_) => 7,
    };
    bytes.extend(one.to_le_bytes());
    bytes.extend((list.len() as u64).to_le_bytes());
    match list {
        GgufArray::String(list) => list.iter().for_each(|text| put_text(bytes, text)),
        GgufArray::F32(list) => list.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        GgufArray::F64(list) => list.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        GgufArray::I32(list) => list.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        GgufArray::U32(list) => list.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        GgufArray::I64(list) => list.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        GgufArray::Bool(list) => bytes.extend(list.iter().map(|x| u8::from(*x))),
    }
}
