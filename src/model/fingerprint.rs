//! Fingerprints of weights.

use super::decoder::DecoderLm;
use super::folder::ModelFolder;
use super::lora::{EMBEDDING, HEAD};
use super::tensors::{PathStack, host};
use crate::error::{Error, Result};
use crate::text::hex;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

impl ModelFolder {
    /// Returns a fingerprint of the weight files, without loading them: SHA-256 over the length of each file,
    /// its first MiB (which has names and shapes), and 4 KiB at each of 1,024 evenly spaced positions. A copy
    /// in another type or in other shards has a different fingerprint.
    ///
    /// # Errors
    /// See [`ModelFolder::load`] if files are missing or do not match; [`Error::Io`].
    pub(crate) fn files_fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for path in self.open_weights()?.file_paths() {
            add_sample(&mut hash, path).map_err(|e| Error::io("read", path, e))?;
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Adds a file's length and samples of its bytes to a hash.
fn add_sample(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    const FIRST: u64 = 1 << 20;
    const PLACES: u64 = 1024;
    const PART: u64 = 4096;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let mut part = vec![];
    let mut add = |start: u64, bytes: u64| -> std::io::Result<()> {
        part.clear();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(bytes).read_to_end(&mut part)?;
        hash.update(&part);
        Ok(())
    };
    if length <= FIRST + PLACES * PART {
        return add(0, length);
    }
    add(0, FIRST)?;
    let last = length - PART;
    // In 128 bits, because a length times 1,024 may not fit into 64.
    let place = |number: u64| u128::from(last) * u128::from(number) / u128::from(PLACES - 1);
    (0..PLACES).try_for_each(|number| add(place(number) as u64, PART))
}

impl DecoderLm {
    /// Returns a fingerprint of the base weights, without adapters and the tensors that adapters replace:
    /// SHA-256 over the name, the shape, and the first values of each tensor, rounded to bf16. A copy in bf16
    /// has the same fingerprint; separately trained models have different ones.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) if the device cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        struct Visitor {
            path: PathStack,
            shapes: BTreeMap<String, Vec<usize>>,
            /// Tensors that are skipped.
            adapted: BTreeSet<String>,
            parts: Vec<(String, Tensor<1>)>,
        }
        impl ModuleVisitor for Visitor {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }

            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }

            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                /// Maximum number of values per tensor, from its first column.
                const COUNTED: usize = 256;
                let name = self.path.name();
                let is_adapted = self.adapted.contains(&name);
                if name.contains(".lora_") || name.ends_with(".encoded.scales") || is_adapted {
                    return;
                }
                let mut part = param.val();
                // A quantized matrix keeps the original first column.
                if let Some(matrix) = name.strip_suffix(".encoded.first") {
                    let name = format!("{matrix}.weight");
                    if self.adapted.contains(&name) {
                        return;
                    }
                    let mut dims = self.shapes.get(&name).cloned().unwrap_or_default();
                    if !name.ends_with("embed_tokens.weight") {
                        dims.reverse();
                    }
                    let [count] = part.shape().dims();
                    self.parts.push((format!("{name} {dims:?}"), part.reshape([count])));
                    return;
                }
                let (dims, rows) = (part.dims(), part.dims()[0].min(COUNTED));
                for other in 1..D {
                    part = part.narrow(other, 0, 1);
                }
                let part = part.narrow(0, 0, rows).reshape([rows]);
                self.parts.push((format!("{name} {dims:?}"), part));
            }
        }
        let shapes = self.config().tensor_shapes();
        let mut adapted = self.adapted().clone();
        // If one of the two belongs to the adapter, they may be tied in the base.
        if adapted.contains(EMBEDDING) || adapted.contains(HEAD) {
            adapted.extend([EMBEDDING.to_owned(), HEAD.to_owned()]);
        }
        let mut visitor = Visitor { path: PathStack::default(), shapes, adapted, parts: vec![] };
        self.visit(&mut visitor);
        let mut hash = Sha256::new();
        for (name, part) in visitor.parts {
            hash.update(name.as_bytes());
            let rounded = host(part)?.values.into_iter().map(half::bf16::from_f32);
            rounded.for_each(|value| hash.update(value.to_le_bytes()));
        }
        Ok(hex(hash.finalize()))
    }
}
