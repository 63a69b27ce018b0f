//! Writes scalars to TensorBoard event files.
//!
//! ```text
//! record   length u64 | masked CRC-32C of it u32 | Event | masked CRC-32C of it u32
//! Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session log
//! ```
//!
//! The format is TFRecord with TensorFlow's `event.proto`. It is implemented here because the existing crates
//! are unmaintained or depend on a whole framework. A resumed or rolled-back run writes a session start at
//! its step, which makes TensorBoard discard later values.

use crate::context::{Event, Observer};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes a new event file in a folder, which may hold files of earlier processes.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Creates a file for training that starts or resumes after `step`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(folder: &Path, step: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let process = std::process::id();
        // TensorBoard expects that later files sort later, even within one second and process.
        let mut number = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{seconds:010}.{process}.{number:04}");
            let path = folder.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 9999 => {
                    number += 1;
                }
                Err(e) => return Err(Error::io("create", &path, e)),
            }
        };
        let mut board = Self { path, file };
        let mut version = vec![];
        put_bytes(&mut version, 3, b"brain.Event:2");
        board.write(0, &version)?;
        if step > 0 {
            board.forget_after(step)?;
        }
        Ok(board)
    }

    /// Tells TensorBoard to discard values after a step, which will be repeated.
    fn forget_after(&mut self, step: usize) -> Result<()> {
        const START: u64 = 1;
        let (mut log, mut body) = (vec![], vec![]);
        put_varint(&mut log, 1, START);
        put_bytes(&mut body, 7, &log);
        self.write(step + 1, &body)
    }

    fn scalars(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let mut summary = vec![];
        for (tag, value) in values {
            let mut scalar = vec![];
            put_bytes(&mut scalar, 1, tag.as_bytes());
            put_key(&mut scalar, 2, 5);
            scalar.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &scalar);
        }
        let mut body = vec![];
        put_bytes(&mut body, 5, &summary);
        self.write(step, &body)
    }

    /// Writes an event as one record.
    fn write(&mut self, step: usize, body: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = vec![];
        put_key(&mut event, 1, 1);
        event.extend(now.as_secs_f64().to_le_bytes());
        put_varint(&mut event, 2, step as u64);
        event.extend(body);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_checksum(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_checksum(&event).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Observer for TensorBoard {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        let named = |name: &str, value: f64| (name.to_owned(), value);
        match event {
            Event::Step(report) => {
                let speed = report.tokens as f64 / report.seconds.max(1e-9);
                let scalars = [
                    named("train/loss", report.loss),
                    named("train/learning_rate", report.learning_rate),
                    named("train/gradient_norm", report.gradient_norm),
                    named("train/tokens_per_second", speed),
                    named("train/epoch", report.epoch),
                ];
                self.scalars(report.step, &scalars)
            }
            Event::Evaluation(report) => {
                let losses = report.sources.iter();
                let losses: Vec<_> = losses
                    .map(|source| (format!("held_out_loss/{}", source.name), source.loss))
                    .collect();
                self.scalars(report.step, &losses)
            }
            Event::Graded(report) => {
                let accuracy = report.correct as f64 / report.questions.max(1) as f64;
                let scalars = [
                    named("graded/accuracy", accuracy),
                    named("graded/mean_tokens", report.mean_tokens),
                    named("graded/hit_limit", report.hit_limit),
                ];
                self.scalars(report.step, &scalars)
            }
            Event::RolledBack { to, .. } => self.forget_after(*to),
            _ => Ok(()),
        }
    }
}

/// Returns the checksum of TFRecord files.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Writes the key of a protocol buffer field.
fn put_key(out: &mut Vec<u8>, field: u8, wire_type: u8) {
    out.push(field << 3 | wire_type);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_varint(out: &mut Vec<u8>, field: u8, number: u64) {
    put_key(out, field, 0);
    put_number(out, number);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    put_key(out, field, 2);
    put_number(out, bytes.len() as u64);
    out.extend(bytes);
}
