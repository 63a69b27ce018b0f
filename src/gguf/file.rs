//! Reads GGUF files. Counts and offsets are checked against the file's length before they are used.

use super::dequantize::dequantize;
use super::{ALIGNMENT, GgufArray, GgufValue, MAGIC, TensorType};
use crate::error::{Error, Result};
use crate::files::{HEAD, stands_in};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of dimensions of a tensor, as in ggml.
const MOST_DIMENSIONS: u32 = 4;
/// Minimum size in bytes of a metadata entry or a tensor description: a length, a type, and a value.
const LEAST_ENTRY: u64 = 13;

/// The shape and storage type of a tensor in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, outermost first, as in PyTorch. The file stores them in reverse order.
    pub shape: Vec<usize>,
    /// Storage type of the elements.
    pub kind: TensorType,
    /// Offset of the data from the start of the file, in bytes.
    pub(crate) start: u64,
}

impl TensorInfo {
    /// Returns the number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A GGUF file. Opening it reads the metadata; tensors are read on request.
#[derive(Clone, Debug)]
pub struct GgufFile {
    path: PathBuf,
    metadata: Arc<BTreeMap<String, GgufValue>>,
    tensors: Arc<BTreeMap<String, TensorInfo>>,
}

fn failed(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    failed(path, what, "Download or copy the file again; it is damaged or incomplete")
}

impl GgufFile {
    /// Returns whether `path` is a GGUF file, judged by its first bytes or by the extension `.gguf`.
    pub fn is_one(path: &Path) -> bool {
        path.is_file()
            && (Self::begins(path) || path.extension().is_some_and(|name| name == "gguf"))
    }

    /// Returns whether a file starts with the GGUF magic bytes.
    pub(crate) fn begins(path: &Path) -> bool {
        let mut head = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        read.is_ok() && head == MAGIC
    }

    /// Opens a file and reads its metadata and tensor descriptions.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read. [`Error::Model`] if it is not a GGUF file, is damaged or
    /// big-endian, or has tensors of an unsupported type (named).
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut head = vec![];
        let mut file = BufReader::new(file);
        let began = (&mut file).take(HEAD as u64).read_to_end(&mut head);
        began.and_then(|_| file.rewind()).map_err(|e| Error::io("read", path, e))?;
        if let Some((what, hint)) = stands_in(&head) {
            return Err(failed(path, what, hint));
        }
        if !head.starts_with(&MAGIC) {
            return Err(failed(path, "it is not a GGUF file", "Pass a model in GGUF format"));
        }
        let mut reader = Reader { file, path, left: length };
        reader.take::<4>("its header")?;
        let version = u32::from_le_bytes(reader.take("its header")?);
        match version {
            2 | 3 => {}
            _ if version != 0 && version.swap_bytes() <= 3 => {
                let what = "it is a big-endian file";
                return Err(failed(path, what, "Use a little-endian file"));
            }
            _ => {
                let what = format!("it is GGUF version {version}; versions 2 and 3 are supported");
                return Err(failed(path, what, "Convert the model again with a current llama.cpp"));
            }
        }
        let tensors = reader.u64("its header")?;
        let entries = reader.u64("its header")?;
        for (count, what) in [(tensors, "tensors"), (entries, "metadata entries")] {
            if count > reader.left / LEAST_ENTRY {
                let what =
                    format!("its header declares {count} {what}, more than the file has room for");
                return Err(damaged(path, what));
            }
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.text("a metadata key")?;
            let value = reader.value(&key)?;
            if metadata.contains_key(&key) {
                return Err(damaged(path, format!("its metadata has `{key}` twice")));
            }
            metadata.insert(key, value);
        }
        let described: Vec<(String, Described)> = (0..tensors)
            .map(|_| Ok((reader.text("a tensor's name")?, reader.described()?)))
            .collect::<Result<_>>()?;
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 20)
                .ok_or_else(|| damaged(path, "`general.alignment` is not a power of 2"))?,
        };
        let start = (length - reader.left).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, described) in described {
            let info = described.placed(start, length, alignment);
            let info = info.map_err(|what| damaged(path, format!("tensor `{name}`: {what}")))?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(damaged(path, format!("it has tensor `{name}` twice")));
            }
        }
        let (metadata, tensors) = (Arc::new(metadata), Arc::new(tensors));
        Ok(Self { path: path.to_owned(), metadata, tensors })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// Returns the tensor descriptions, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Reads the raw bytes of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Model`] if it has no such tensor.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let missing = || damaged(&self.path, format!("tensor `{name}` is missing"));
        let info = self.tensors.get(name).ok_or_else(missing)?;
        // `open` has checked the size against the file's length.
        let mut bytes = vec![0; info.kind.bytes(info.count())];
        let read = || -> std::io::Result<()> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(info.start))?;
            file.read_exact(&mut bytes)
        };
        let mut read = read;
        read().map_err(|e| Error::io("read", &self.path, e))?;
        Ok(bytes)
    }

    /// Reads a tensor and converts its elements to `f32`.
    ///
    /// # Errors
    /// See [`GgufFile::read_bytes`].
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(name)?;
        Ok(self.tensors.get(name).map_or_else(Vec::new, |info| dequantize(info.kind, &bytes)))
    }
}

/// The description of a tensor in the header.
struct Described {
    shape: Vec<usize>,
    kind: TensorType,
    /// Offset from the start of the tensor data, in bytes.
    offset: u64,
}

impl Described {
    /// Locates the tensor, if it lies within the file.
    fn placed(self, start: u64, length: u64, alignment: u64) -> Result<TensorInfo, String> {
        let Self { shape, kind, offset } = self;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("its offset {offset} is not aligned to {alignment}"));
        }
        let bytes = kind.bytes(shape.iter().product()) as u64;
        let end = start.checked_add(offset).and_then(|start| start.checked_add(bytes));
        match end {
            Some(end) if end <= length => Ok(TensorInfo { shape, kind, start: start + offset }),
            _ => {
                Err(format!("its {bytes} bytes at offset {offset} extend past the end of the file"))
            }
        }
    }
}

/// Reads everything before the tensor data.
struct Reader<'a> {
    file: BufReader<File>,
    path: &'a Path,
    /// Bytes left in the file.
    left: u64,
}

impl Reader<'_> {
    fn bytes(&mut self, count: u64, of: &str) -> Result<Vec<u8>> {
        if count > self.left {
            let what = format!("it ends within {of} ({count} bytes)");
            return Err(damaged(self.path, what));
        }
        let mut bytes = vec![0; count as usize];
        self.file.read_exact(&mut bytes).map_err(|e| Error::io("read", self.path, e))?;
        self.left -= count;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self, of: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        if self.left < N as u64 {
            return Err(damaged(self.path, format!("it ends within {of}")));
        }
        self.file.read_exact(&mut bytes).map_err(|e| Error::io("read", self.path, e))?;
        self.left -= N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, of: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(of)?))
    }

    fn u64(&mut self, of: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(of)?))
    }

    fn text(&mut self, of: &str) -> Result<String> {
        let length = self.u64(of)?;
        let bytes = self.bytes(length, of)?;
        String::from_utf8(bytes).map_err(|_| damaged(self.path, format!("{of} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<GgufValue> {
        let of = &format!("`{key}`");
        let number = self.u32(of)?;
        Ok(match number {
            0 => GgufValue::U8(u8::from_le_bytes(self.take(of)?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.take(of)?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.take(of)?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.take(of)?)),
            4 => GgufValue::U32(self.u32(of)?),
            5 => GgufValue::I32(i32::from_le_bytes(self.take(of)?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.take(of)?)),
            7 => GgufValue::Bool(self.take::<1>(of)? != [0]),
            8 => GgufValue::String(self.text(of)?),
            9 => GgufValue::Array(self.array(of)?),
            10 => GgufValue::U64(self.u64(of)?),
            11 => GgufValue::I64(i64::from_le_bytes(self.take(of)?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.take(of)?)),
            other => {
                return Err(damaged(self.path, format!("{of} has the unknown type {other}")));
            }
        })
    }

    fn array(&mut self, of: &str) -> Result<GgufArray> {
        let (number, count) = (self.u32(of)?, self.u64(of)?);
        let mut list = |width: u64| {
            let bytes = count.saturating_mul(width);
            self.bytes(bytes, of)
        };
        fn parts<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|part| read(*part)).collect()
        }
        Ok(match number {
            0 => GgufArray::I64(parts(&list(1)?, |x: [u8; 1]| i64::from(x[0]))),
            1 => GgufArray::I64(parts(&list(1)?, |x| i64::from(i8::from_le_bytes(x)))),
            2 => GgufArray::I64(parts(&list(2)?, |x| i64::from(u16::from_le_bytes(x)))),
            3 => GgufArray::I64(parts(&list(2)?, |x| i64::from(i16::from_le_bytes(x)))),
            4 => GgufArray::U32(parts(&list(4)?, u32::from_le_bytes)),
            5 => GgufArray::I32(parts(&list(4)?, i32::from_le_bytes)),
            6 => GgufArray::F32(parts(&list(4)?, f32::from_le_bytes)),
            7 => GgufArray::Bool(parts(&list(1)?, |x: [u8; 1]| x != [0])),
            8 => {
                // Each string takes at least the 8 bytes of its length.
                if count > self.left / 8 {
                    let what =
                        format!("{of} declares {count} strings, more than the file has room for");
                    return Err(damaged(self.path, what));
                }
                GgufArray::String((0..count).map(|_| self.text(of)).collect::<Result<_>>()?)
            }
            11 => GgufArray::I64(parts(&list(8)?, i64::from_le_bytes)),
            12 => GgufArray::F64(parts(&list(8)?, f64::from_le_bytes)),
            10 => {
                let list = parts(&list(8)?, |x| i64::try_from(u64::from_le_bytes(x)).ok());
                let list = list.into_iter().collect::<Option<Vec<i64>>>();
                let large = || damaged(self.path, format!("{of} has integers that are too large"));
                GgufArray::I64(list.ok_or_else(large)?)
            }
            other => {
                let what = format!("{of} is an array of the unknown type {other}");
                return Err(damaged(self.path, what));
            }
        })
    }

    /// Reads the part of a tensor description after the name.
    fn described(&mut self) -> Result<Described> {
        let of = "a tensor's description";
        let dimensions = self.u32(of)?;
        if dimensions > MOST_DIMENSIONS {
            let what = format!("a tensor has {dimensions} dimensions");
            return Err(damaged(self.path, what));
        }
        let mut shape = vec![];
        let mut count = 1usize;
        for _ in 0..dimensions {
            let size = self.u64(of)?;
            let size = usize::try_from(size).ok().filter(|size| *size > 0);
            // This also bounds the size in bytes: at most 4 per element.
            let product = size.and_then(|size| count.checked_mul(size));
            match (size, product.filter(|product| *product <= 1 << 48)) {
                (Some(size), Some(product)) => {
                    shape.push(size);
                    count = product;
                }
                _ => return Err(damaged(self.path, "a tensor's size is out of range")),
            }
        }
        let columns = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let kind = TensorType::of_number(self.u32(of)?).map_err(|name| {
            let hint = "Use a file with a supported type, such as f16, q8_0, or q4_K";
            failed(self.path, format!("it has tensors of the unsupported type {name}"), hint)
        })?;
        if !columns.is_multiple_of(kind.block()) {
            let what = format!(
                "a {} tensor has rows of {columns}, not a multiple of the block size {}",
                kind.name(),
                kind.block()
            );
            return Err(damaged(self.path, what));
        }
        Ok(Described { shape, kind, offset: self.u64(of)? })
    }
}
