//! A teacher's likeliest tokens in files, computed once and read through a memory map.
//!
//! ```text
//! logits/
//!   teacher.json               format, version, top_k, temperature, vocabulary, teacher, fingerprint
//!   part-000000.safetensors    for each row KEY: KEY.tokens     [trained, top_k]      u32
//!   part-000001.safetensors                      KEY.log_probs  [trained, top_k + 1]  f32
//! ```
//!
//! A row's key is the first 32 hexadecimal digits of the SHA-256 of its prompt's length (u64, little
//! endian) and its tokens (u32 each). The logarithms of probabilities are those of the logits over
//! the temperature; the last is that of all other tokens together. A part is written beside its
//! place, flushed and renamed, so that a process that is killed leaves whole parts only, and another
//! goes on where it ended.

use super::teacher::Teacher;
use crate::data::{Row, TopTokens, row_key};
use crate::error::{Error, Result};
use crate::files::flush_folder;
use burn::tensor::DType;
use burn_store::{ModuleStore, SafetensorsStore};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const FORMAT: &str = "mixdistill teacher logits";
const VERSION: u32 = 1;
const HEADER: &str = "teacher.json";

/// What all rows of a folder have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherHeader {
    format: String,
    version: u32,
    /// Tokens kept for each trained token.
    pub top_k: usize,
    /// What the logits were divided by.
    pub temperature: f64,
    /// Tokens that the teacher knows.
    pub vocabulary: usize,
    /// The teacher's name.
    pub teacher: String,
    /// SHA-256 of its weights.
    pub fingerprint: String,
}

impl TeacherHeader {
    /// The header of a teacher's logits.
    ///
    /// # Errors
    /// [`Error::Config`] for a `top_k` or a temperature out of range.
    pub fn new(
        teacher: impl Into<String>,
        fingerprint: impl Into<String>,
        vocabulary: usize,
        top_k: usize,
        temperature: f64,
    ) -> Result<Self> {
        if top_k == 0 || top_k > vocabulary {
            let hint = format!("Give 1 to {vocabulary}, the teacher's vocabulary");
            return Err(Error::config("teacher.top_k", format!("it is {top_k}"), hint));
        }
        if !(1e-2..=1e2).contains(&temperature) {
            let what = format!("it is {temperature}");
            return Err(Error::config("temperature", what, "Give 0.01 to 100"));
        }
        Ok(Self {
            format: FORMAT.into(),
            version: VERSION,
            top_k,
            temperature,
            vocabulary,
            teacher: teacher.into(),
            fingerprint: fingerprint.into(),
        })
    }
}

fn failed(path: &Path, what: impl Into<String>, hint: &str) -> Error {
    Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

/// A folder of teacher's logits, open for reading.
pub struct TeacherLogits {
    path: PathBuf,
    header: TeacherHeader,
    parts: Vec<SafetensorsStore>,
    /// Keys of the rows, and the part of each.
    rows: BTreeMap<String, usize>,
}

impl std::fmt::Debug for TeacherLogits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeacherLogits")
            .field("path", &self.path)
            .field("header", &self.header)
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

impl TeacherLogits {
    /// Whether a folder holds a teacher's logits.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(HEADER).is_file()
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] for what is damaged or of another version.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(HEADER);
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let again = "Write the folder anew with the example `teacher_logits`";
        let header: TeacherHeader = serde_json::from_str(&text)
            .map_err(|e| failed(&path, format!("it is not a teacher's header: {e}"), again))?;
        if header.format != FORMAT || header.version != VERSION {
            let what = format!("it is \"{}\" version {}", header.format, header.version);
            return Err(failed(&path, what, again));
        }
        let mut logits =
            Self { path: folder.to_owned(), header, parts: vec![], rows: BTreeMap::new() };
        for part in part_paths(folder)? {
            let damaged = |what: String| {
                failed(&part, what, "Remove the file and let `teacher_logits` go on")
            };
            let mut store = SafetensorsStore::from_file(&part);
            let tensors = store.get_all_tensors().map_err(|e| damaged(e.to_string()))?;
            let index = logits.parts.len();
            for name in tensors.keys().filter_map(|name| name.strip_suffix(".tokens")) {
                logits.rows.insert(name.to_owned(), index);
            }
            logits.parts.push(store);
        }
        Ok(logits)
    }

    /// What all rows have in common.
    pub fn header(&self) -> &TeacherHeader {
        &self.header
    }

    /// Rows in the folder.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether a row is there.
    pub fn holds(&self, row: &Row) -> bool {
        self.rows.contains_key(&row_key(&row.example()))
    }

    /// What the teacher finds likely at a row's trained tokens.
    ///
    /// # Errors
    /// [`Error::Model`] where the row is not there, or what is there does not fit it.
    pub fn read(&mut self, row: &Row) -> Result<TopTokens> {
        let example = row.example();
        let key = row_key(&example);
        let Some(part) = self.rows.get(&key) else {
            let what = format!("it has nothing for the row {}", row.label);
            let hint = "Let the example `teacher_logits` go on with the settings of this run";
            return Err(failed(&self.path, what, hint));
        };
        let path = &self.path;
        let damaged = |what: String| {
            let hint = "Remove the damaged part and let `teacher_logits` go on";
            failed(path, format!("row {}: {what}", row.label), hint)
        };
        let store = &mut self.parts[*part];
        let mut words = |name: &str, dtype: DType| -> Result<Vec<[u8; 4]>> {
            let name = format!("{key}.{name}");
            let tensor = store.get_tensor(&name).map_err(|e| damaged(e.to_string()))?;
            let tensor = tensor.ok_or_else(|| damaged(format!("{name} is missing")))?;
            if tensor.dtype != dtype {
                return Err(damaged(format!("{name} is {:?}, not {dtype:?}", tensor.dtype)));
            }
            let bytes = tensor.to_bytes().map_err(|e| damaged(e.to_string()))?;
            Ok(bytes.as_chunks::<4>().0.to_vec())
        };
        let tokens = words("tokens", DType::U32)?.into_iter().map(u32::from_le_bytes).collect();
        let log_probs = words("log_probs", DType::F32)?.into_iter().map(f32::from_le_bytes);
        let top = TopTokens { k: self.header.top_k, tokens, log_probs: log_probs.collect() };
        check(&top, example.targets(), self.header.vocabulary).map_err(damaged)?;
        Ok(top)
    }
}

/// Whether tokens and logarithms are what the loss can take.
fn check(top: &TopTokens, trained: usize, vocabulary: usize) -> Result<(), String> {
    if !top.fits(trained) {
        return Err(format!("it is not {} tokens for each of {trained} trained ones", top.k));
    }
    for (token, chosen) in top.tokens.chunks(top.k).enumerate() {
        let different: BTreeSet<&u32> = chosen.iter().collect();
        if different.len() != top.k || chosen.iter().any(|t| *t as usize >= vocabulary) {
            return Err(format!("the tokens at {token} are not all different and known"));
        }
    }
    if top.log_probs.iter().any(|x| !x.is_finite() || *x > 1e-3) {
        return Err("a logarithm of a probability is above 0 or not a number".into());
    }
    Ok(())
}

impl Teacher for TeacherLogits {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        rows.iter().map(|row| self.read(row)).collect()
    }
}

/// The parts of a folder, in order.
fn part_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = |e| Error::io("read", folder, e);
    let mut parts = vec![];
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("part-") && name.ends_with(".safetensors") {
            parts.push(path);
        }
    }
    parts.sort();
    Ok(parts)
}

/// Writes a folder of teacher's logits, or goes on with one.
#[derive(Debug)]
pub struct TeacherLogitsWriter {
    folder: PathBuf,
    header: TeacherHeader,
    known: BTreeSet<String>,
    parts: usize,
}

impl TeacherLogitsWriter {
    /// A new folder, or one with the same header to go on with.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] where the folder holds something else, or logits of another
    /// teacher, `top_k` or temperature.
    pub fn open(folder: &Path, header: TeacherHeader) -> Result<Self> {
        let mut writer =
            Self { folder: folder.to_owned(), header, known: BTreeSet::new(), parts: 0 };
        if TeacherLogits::is_in(folder) {
            let there = TeacherLogits::open(folder)?;
            if there.header != writer.header {
                let what = format!(
                    "it holds logits of {} with top_k {} at temperature {}",
                    there.header.teacher, there.header.top_k, there.header.temperature
                );
                return Err(failed(folder, what, "Name another folder, or remove this one"));
            }
            let last = part_paths(folder)?.pop();
            let number = last.as_ref().and_then(|path| {
                path.file_stem()?.to_str()?.strip_prefix("part-")?.parse::<usize>().ok()
            });
            writer.parts = number.map_or(0, |number| number + 1);
            writer.known = there.rows.into_keys().collect();
            return Ok(writer);
        }
        let holds = folder.exists()
            && fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?.next().is_some();
        if holds {
            return Err(failed(folder, "it is not empty", "Name a new folder"));
        }
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let text = serde_json::to_vec_pretty(&writer.header).unwrap_or_default();
        writer.put(HEADER, |path| fs::write(path, text))?;
        Ok(writer)
    }

    /// Whether a row is there already.
    pub fn holds(&self, row: &Row) -> bool {
        self.known.contains(&row_key(&row.example()))
    }

    /// Writes rows as one part.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] where a row's tokens do not fit it.
    pub fn write(&mut self, rows: &[(Row, TopTokens)]) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (row, top) in rows {
            let (example, k) = (row.example(), self.header.top_k);
            let trained = example.targets();
            let fits = if top.k == k {
                check(top, trained, self.header.vocabulary)
            } else {
                Err(format!("it has {} tokens, not {k}", top.k))
            };
            fits.map_err(|what| {
                let what = format!("row {}: {what}", row.label);
                failed(&self.folder, what, "This is a defect; please report it")
            })?;
            let key = row_key(&example);
            let tokens: Vec<u8> = top.tokens.iter().flat_map(|x| x.to_le_bytes()).collect();
            let log_probs: Vec<u8> = top.log_probs.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.insert(format!("{key}.tokens"), (Dtype::U32, vec![trained, k], tokens));
            let shape = vec![trained, k + 1];
            tensors.insert(format!("{key}.log_probs"), (Dtype::F32, shape, log_probs));
        }
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, (dtype, shape, bytes))| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
            })
            .collect();
        let other = |e: safetensors::SafeTensorError| std::io::Error::other(e.to_string());
        let name = format!("part-{:06}.safetensors", self.parts);
        self.put(&name, |path| {
            let bytes = safetensors::serialize(views.map_err(other)?, None).map_err(other)?;
            fs::write(path, bytes)
        })?;
        self.parts += 1;
        self.known.extend(rows.iter().map(|(row, _)| row_key(&row.example())));
        Ok(())
    }

    /// Writes a file beside its place, flushes and renames it.
    fn put(&self, name: &str, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
        let (place, beside) = (self.folder.join(name), self.folder.join(format!(".{name}")));
        let put = || {
            write(&beside)?;
            File::options().write(true).open(&beside)?.sync_all()?;
            fs::rename(&beside, &place)
        };
        put().map_err(|e| Error::io("write", &place, e))?;
        flush_folder(&self.folder)
    }
}
