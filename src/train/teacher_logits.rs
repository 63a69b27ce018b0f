//! A teacher's most likely tokens in files, computed once and read row by row.
//!
//! ```text
//! logits/
//!   teacher.json               format, version, top_k, temperature, vocabulary, teacher, fingerprint
//!   part-000000.safetensors    for each row KEY: KEY.tokens     [trained, top_k]      u32
//!   part-000001.safetensors                      KEY.log_probs  [trained, top_k + 1]  f32
//!   ...                                          KEY.crc32c     [1]                   u32
//!   part.json                  for one part of a divided job: which part, and its keys
//! ```
//!
//! A row's key is the first 32 hexadecimal digits of the SHA-256 of its prompt's length (u64, little endian),
//! the ranges of untrained tokens after the prompt, if any (two u32 each), and its tokens (u32 each). The log
//! probabilities are those of the logits divided by the temperature, over the first `vocabulary` tokens. The
//! last one is for all other tokens together. The checksum covers the bytes of the row's tokens and
//! log_probs. A part is written to a temporary file, flushed, and renamed, so a killed process leaves only
//! complete parts, and the next one continues from there.
//!
//! Headers are read once; rows are then read from their offsets. This leaves the data on disk, as a memory
//! map would, but a file that is truncated meanwhile is an error instead of a crash. Only a few parts are
//! open at a time, because a folder can have more parts than a process can open files.

use super::teacher::LogitTeacher;
use crate::data::batching::row_key;
use crate::data::{Row, TopTokens};
use crate::error::{Error, Result};
use crate::files::{PART, WorkDir, WorkDirKind, check_part, differences};
use crate::part::Part;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const FORMAT: &str = "mixdistill teacher logits";
const VERSION: u32 = 1;
const HEADER: &str = "teacher.json";
const KIND: WorkDirKind = WorkDirKind::new("teacher logits", HEADER);

/// What all rows of a folder share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherLogitsHeader {
    format: String,
    version: u32,
    /// Number of tokens kept per trained token.
    pub top_k: usize,
    /// The temperature that the logits were divided by.
    pub temperature: f64,
    /// Number of tokens of the student's vocabulary. Tokens of the teacher beyond it are ignored.
    pub vocabulary: usize,
    /// The teacher's name.
    pub teacher: String,
    /// SHA-256 of the teacher's weights.
    pub fingerprint: String,
}

impl TeacherLogitsHeader {
    /// Creates a header.
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
        let header = Self {
            format: FORMAT.into(),
            version: VERSION,
            top_k,
            temperature,
            vocabulary,
            teacher: teacher.into(),
            fingerprint: fingerprint.into(),
        };
        header.validate()?;
        Ok(header)
    }

    fn validate(&self) -> Result<()> {
        let Self { top_k, temperature, vocabulary, .. } = self;
        if *vocabulary > u32::MAX as usize || *top_k == 0 || top_k > vocabulary {
            let hint = format!("Use a number from 1 to {vocabulary}, the vocabulary size");
            return Err(Error::config("teacher.top_k", format!("it is {top_k}"), hint));
        }
        if !(1e-2..=1e2).contains(temperature) {
            let what = format!("it is {temperature}");
            return Err(Error::config("temperature", what, "Use a number from 0.01 to 100"));
        }
        Ok(())
    }

    /// Returns what the rows depend on: everything except the teacher's name.
    pub(crate) fn identity(&self) -> serde_json::Value {
        serde_json::json!({
            "top_k": self.top_k,
            "temperature": self.temperature,
            "vocabulary": self.vocabulary,
            "fingerprint": self.fingerprint,
        })
    }
}

fn failed(path: &Path, what: impl Into<String>, hint: &str) -> Error {
    Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

const DAMAGED: &str = "Remove the file and write the logits again; only missing rows are computed";

/// The place of a row: offsets in a part's file, and the number of trained tokens.
#[derive(Clone, Copy, Debug)]
struct RowPlace {
    part: usize,
    tokens: u64,
    log_probs: u64,
    checksum: u64,
    trained: usize,
}

/// The length and, if available, the modification time of a file.
type Stamp = (u64, Option<SystemTime>);

fn stamp(file: &File) -> io::Result<Stamp> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

/// The parts of a folder, of which only a few are open.
#[derive(Debug, Default)]
struct Parts {
    known: Vec<(PathBuf, Stamp)>,
    /// The most recently used parts by number, newest first.
    open: Vec<(usize, File)>,
}

impl Parts {
    /// Maximum number of open parts. Systems allow a process at least 256 open files.
    const OPEN: usize = 16;

    fn add(&mut self, path: PathBuf, stamp: Stamp, file: File) {
        self.keep(self.known.len(), file);
        self.known.push((path, stamp));
    }

    fn keep(&mut self, number: usize, file: File) {
        self.open.truncate(Self::OPEN - 1);
        self.open.insert(0, (number, file));
    }

    /// Returns a part for reading.
    fn get(&mut self, number: usize) -> Result<(&Path, &mut File)> {
        match self.open.iter().position(|(open, _)| *open == number) {
            Some(at) => self.open[..=at].rotate_right(1),
            None => {
                let (path, known) = &self.known[number];
                let read = |e| Error::io("read", path, e);
                let file = File::open(path).map_err(read)?;
                // A rewritten file may have another row with a valid checksum at the same offset.
                if stamp(&file).map_err(read)? != *known {
                    let hint = "Resume the run to read the header again";
                    return Err(failed(path, "it has changed since its header was read", hint));
                }
                self.keep(number, file);
            }
        }
        Ok((&self.known[number].0, &mut self.open[0].1))
    }
}

/// A folder of teacher's logits, open for reading.
#[derive(Debug)]
pub struct TeacherLogits {
    path: PathBuf,
    header: TeacherLogitsHeader,
    parts: Parts,
    rows: HashMap<String, RowPlace>,
}

impl TeacherLogits {
    /// Returns whether a folder contains teacher logits.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(HEADER).is_file()
    }

    /// Opens a folder and reads the headers of its parts.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if a file is damaged or has another version.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(HEADER);
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let again = "Write the logits to a new folder";
        let header: TeacherLogitsHeader = serde_json::from_str(&text).map_err(|e| {
            failed(&path, format!("it is not a header of teacher logits: {e}"), again)
        })?;
        if header.format != FORMAT || header.version != VERSION {
            let what = format!("its format is \"{}\" version {}", header.format, header.version);
            return Err(failed(&path, what, again));
        }
        header.validate().map_err(|error| failed(&path, error.to_string(), again))?;
        let (path, rows) = (folder.to_owned(), HashMap::new());
        let mut logits = Self { path, header, parts: Parts::default(), rows };
        logits.add_rows_of(folder)?;
        Ok(logits)
    }

    /// Adds the rows of another folder, which must have the same header.
    ///
    /// # Errors
    /// See [`TeacherLogits::open`].
    pub(crate) fn add_rows_of(&mut self, folder: &Path) -> Result<()> {
        part_paths(folder)?.into_iter().try_for_each(|(_, part)| self.index(part))
    }

    /// Indexes the rows in a part's header.
    fn index(&mut self, path: PathBuf) -> Result<()> {
        let damaged = |what: String| failed(&path, what, DAMAGED);
        let read = |e| Error::io("read", &path, e);
        let mut file = File::open(&path).map_err(read)?;
        let stamp = stamp(&file).map_err(read)?;
        let length = stamp.0;
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| damaged("it has no header".into()))?;
        let size = u64::from_le_bytes(size);
        if size > length.saturating_sub(8) {
            return Err(damaged("it is shorter than its header".into()));
        }
        let mut header = vec![];
        (&mut file).take(size).read_to_end(&mut header).map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| damaged(format!("cannot read its header: {e}")))?;
        let tensors = metadata.tensors();
        let data = 8 + size;
        let k = self.header.top_k;
        let place = |name: String, dtype: Dtype| -> Result<(u64, &TensorInfo)> {
            let info = tensors.get(&name).ok_or_else(|| damaged(format!("{name} is missing")))?;
            let (start, end) = info.data_offsets;
            let elements = info.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
            let bytes = elements.and_then(|n| n.checked_mul(4));
            let fits = info.dtype == dtype && bytes == end.checked_sub(start);
            if !fits || (end as u64).checked_add(data).is_none_or(|end| end > length) {
                return Err(damaged(format!(
                    "{name} extends beyond the file or has the wrong type"
                )));
            }
            Ok((data + start as u64, info))
        };
        for name in tensors.keys() {
            let Some(key) = name.strip_suffix(".tokens") else { continue };
            let (tokens, info) = place(name.clone(), Dtype::U32)?;
            let (log_probs, other) = place(format!("{key}.log_probs"), Dtype::F32)?;
            let (checksum, one) = place(format!("{key}.crc32c"), Dtype::U32)?;
            let trained = info.shape.first().copied().unwrap_or(0);
            let shapes = [&info.shape[..], &other.shape[..], &one.shape[..]];
            if shapes != [&[trained, k][..], &[trained, k + 1], &[1]] {
                return Err(damaged(format!(
                    "{key} has shapes {shapes:?}, which do not match top_k {k}"
                )));
            }
            let part = self.parts.known.len();
            let place = RowPlace { part, tokens, log_probs, checksum, trained };
            self.rows.insert(key.to_owned(), place);
        }
        self.parts.add(path, stamp, file);
        Ok(())
    }

    /// Returns the header that all rows share.
    pub fn header(&self) -> &TeacherLogitsHeader {
        &self.header
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns whether a row is stored with the right number of trained tokens.
    pub fn holds(&self, row: &Row) -> bool {
        let example = row.example();
        let place = self.rows.get(&row_key(&example));
        place.is_some_and(|place| place.trained == example.targets())
    }

    /// Reads the teacher's most likely tokens for a row.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if the row is missing, its part has changed since its header was read,
    /// or its data is damaged or does not match the row.
    pub fn read(&mut self, row: &Row) -> Result<TopTokens> {
        let example = row.example();
        let place = self.rows.get(&row_key(&example)).filter(|p| p.trained == example.targets());
        let Some(place) = place.copied() else {
            let what = format!("it has no logits for {}", row.label);
            let hint = "Write the logits with the settings of this run; existing rows are kept";
            return Err(failed(&self.path, what, hint));
        };
        self.read_at(place, &row.label)
    }

    /// Reads the entry with a key, if it exists.
    ///
    /// # Errors
    /// See [`TeacherLogits::read`].
    pub(crate) fn read_key(&mut self, key: &str) -> Result<Option<TopTokens>> {
        let place = self.rows.get(key).copied();
        place.map(|place| self.read_at(place, key)).transpose()
    }

    /// Returns whether an entry with a key exists.
    pub(crate) fn holds_key(&self, key: &str) -> bool {
        self.rows.contains_key(key)
    }

    fn read_at(&mut self, place: RowPlace, label: &str) -> Result<TopTokens> {
        let (path, file) = self.parts.get(place.part)?;
        let mut words = |at: u64, count: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; 4 * count];
            let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(|e| Error::io("read", path, e)).map(|()| bytes)
        };
        let k = self.header.top_k;
        let tokens = words(place.tokens, place.trained * k)?;
        let log_probs = words(place.log_probs, place.trained * (k + 1))?;
        let checksum = words(place.checksum, 1)?;
        let damaged = |what: String| failed(path, format!("row {label}: {what}"), DAMAGED);
        if checksum != checksum_of(&tokens, &log_probs).to_le_bytes() {
            return Err(damaged("its checksum does not match".into()));
        }
        let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
        let top = TopTokens {
            k,
            tokens: words(&tokens).into_iter().map(u32::from_le_bytes).collect(),
            log_probs: words(&log_probs).into_iter().map(f32::from_le_bytes).collect(),
        };
        check(&top, place.trained, self.header.vocabulary).map_err(damaged)?;
        Ok(top)
    }
}

fn checksum_of(tokens: &[u8], log_probs: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(tokens), log_probs)
}

/// Checks that the loss can use the tokens and log probabilities.
fn check(top: &TopTokens, trained: usize, vocabulary: usize) -> Result<(), String> {
    /// Tolerance for the rounding of probabilities in f32 that add up to 1.
    const OFF: f64 = 1e-3;
    if !top.fits(trained) {
        return Err(format!("it does not have {} tokens for each of {trained} positions", top.k));
    }
    let each = top.tokens.chunks(top.k).zip(top.log_probs.chunks(top.k + 1)).enumerate();
    for (token, (chosen, log_probs)) in each {
        let different: BTreeSet<&u32> = chosen.iter().collect();
        if different.len() != top.k || chosen.iter().any(|t| *t as usize >= vocabulary) {
            return Err(format!("the tokens at {token} are repeated or outside the vocabulary"));
        }
        let sum: f64 = log_probs.iter().map(|x| f64::from(*x).exp()).sum();
        let usable = log_probs.iter().all(|x| (-1e4..=1e-3).contains(x));
        if !usable || (sum - 1.0).abs() > OFF {
            return Err(format!("the probabilities at {token} are invalid: they add up to {sum}"));
        }
    }
    Ok(())
}

impl LogitTeacher for TeacherLogits {
    fn top_tokens(&mut self, rows: &[Row]) -> Result<Vec<TopTokens>> {
        rows.iter().map(|row| self.read(row)).collect()
    }
}

/// Returns the numbered parts of a folder in order. Other files are ignored.
fn part_paths(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let read = |e| Error::io("read", folder, e);
    let mut parts = vec![];
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("part-").and_then(|name| name.strip_suffix(".safetensors"));
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            parts.push((number, path));
        }
    }
    parts.sort();
    Ok(parts)
}

/// A row to write.
pub(crate) struct KeyedRow<'a> {
    pub key: String,
    /// Number of trained tokens.
    pub trained: usize,
    /// The row's name in messages.
    pub label: &'a str,
    pub top: &'a TopTokens,
}

/// Writes a folder of teacher logits, or continues one.
#[derive(Debug)]
pub struct TeacherLogitsWriter {
    directory: WorkDir,
    header: TeacherLogitsHeader,
    known: BTreeSet<String>,
    /// Number of the next part.
    next: usize,
}

impl TeacherLogitsWriter {
    /// Makes the checks of [`TeacherLogitsWriter::open`] without changing anything.
    ///
    /// # Errors
    /// See [`WorkDirKind::check`](crate::files::WorkDirKind::check).
    pub fn check(folder: &Path) -> Result<()> {
        KIND.check(folder)
    }

    /// Like [`TeacherLogitsWriter::check`]; also rejects a folder of a different part.
    pub(crate) fn check_for(folder: &Path, part: Option<Part>) -> Result<()> {
        KIND.check(folder)?;
        check_part(folder, &folder.join(PART), part, folder.join(HEADER).is_file())
    }

    /// Creates a folder, or continues one with the same header (the teacher's name may differ).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] if the folder holds something else or another process writes to
    /// it; [`Error::Model`] if it holds other logits.
    pub fn open(folder: &Path, header: TeacherLogitsHeader) -> Result<Self> {
        Self::open_for(folder, header, None)
    }

    /// Like [`TeacherLogitsWriter::open`], for one part of the rows or for all. The caller writes the record
    /// of the part.
    pub(crate) fn open_for(
        folder: &Path,
        header: TeacherLogitsHeader,
        part: Option<Part>,
    ) -> Result<Self> {
        Self::check_for(folder, part)?;
        let directory = WorkDir::open(folder, KIND)?;
        let mut writer = Self { directory, header, known: BTreeSet::new(), next: 0 };
        if !writer.directory.is_marked() {
            // The header file marks the folder.
            writer.directory.write_json(HEADER, &writer.header)?;
            return Ok(writer);
        }
        let there = TeacherLogits::open(folder)?;
        let changes = differences(&there.header.identity(), &writer.header.identity(), "");
        if !changes.is_empty() {
            let what = format!("it holds other logits: {}", changes.join(", "));
            return Err(failed(folder, what, "Choose another folder, or remove this one"));
        }
        writer.next = part_paths(folder)?.last().map_or(0, |(number, _)| number + 1);
        writer.known = there.rows.into_keys().collect();
        Ok(writer)
    }

    /// Returns whether a row is stored.
    pub fn holds(&self, row: &Row) -> bool {
        self.holds_key(&row_key(&row.example()))
    }

    /// Returns whether a row with this key is stored.
    pub(crate) fn holds_key(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    /// Returns the folder.
    pub(crate) fn directory(&self) -> &WorkDir {
        &self.directory
    }

    /// Writes rows as one part.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if the tokens do not match the row.
    pub fn write(&mut self, rows: &[(Row, TopTokens)]) -> Result<()> {
        let keyed = rows.iter().map(|(row, top)| {
            let example = row.example();
            KeyedRow { key: row_key(&example), trained: example.targets(), label: &row.label, top }
        });
        self.write_keyed(&keyed.collect::<Vec<_>>())
    }

    /// Writes rows, identified by their keys, as one part.
    ///
    /// # Errors
    /// See [`TeacherLogitsWriter::write`].
    pub(crate) fn write_keyed(&mut self, rows: &[KeyedRow<'_>]) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for KeyedRow { key, trained, label, top } in rows {
            let (k, trained) = (self.header.top_k, *trained);
            let fits = if top.k == k {
                check(top, trained, self.header.vocabulary)
            } else {
                Err(format!("it has {} tokens, not {k}", top.k))
            };
            fits.map_err(|what| {
                let what = format!("row {label}: {what}");
                failed(self.directory.path(), what, "This is a bug; please report it")
            })?;
            let tokens: Vec<u8> = top.tokens.iter().flat_map(|x| x.to_le_bytes()).collect();
            let log_probs: Vec<u8> = top.log_probs.iter().flat_map(|x| x.to_le_bytes()).collect();
            let checksum = checksum_of(&tokens, &log_probs).to_le_bytes().to_vec();
            tensors.insert(format!("{key}.crc32c"), (Dtype::U32, vec![1], checksum));
            tensors.insert(format!("{key}.tokens"), (Dtype::U32, vec![trained, k], tokens));
            let shape = vec![trained, k + 1];
            tensors.insert(format!("{key}.log_probs"), (Dtype::F32, shape, log_probs));
        }
        let name = format!("part-{:06}.safetensors", self.next);
        let broken = |e: safetensors::SafeTensorError| {
            Error::io("write", self.directory.join(&name), io::Error::other(e.to_string()))
        };
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(broken)?;
        let bytes = safetensors::serialize(views, None).map_err(broken)?;
        let place = self.directory.join(&name);
        if place.exists() {
            return Err(failed(
                &place,
                "it already exists",
                "Stop the other program that writes here",
            ));
        }
        self.directory.write_with(&name, |file| {
            file.write_all(&bytes).map_err(|e| Error::io("write", &place, e))
        })?;
        self.next += 1;
        self.known.extend(rows.iter().map(|row| row.key.clone()));
        Ok(())
    }
}
