//! The run directory: its contents, and exclusive access to it.
//!
//! ```text
//! run/
//!   config.toml      settings in effect           metrics.jsonl   every step and evaluation
//!   ledger.json      what happened to records     loss.svg        the same, plotted
//!   mixture.json     the mixture's report         checkpoints/    see CheckpointStore
//!   before.jsonl     answers before training      model/          the student, or
//!   after.jsonl      answers after training       adapter/        its adapters in PEFT's format
//!   samples.jsonl    answers during training      tensorboard/    the metrics as event files
//!   summary.json     every figure that is printed
//!   pilots.json      with mixture.share = "auto"  pilots/         the runs of the pilots
//! ```

use super::config::RunConfig;
use crate::error::{Error, Result};
use crate::files::{WorkDir, WorkDirKind, remove_file, remove_folder};
use crate::model::writing_place;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// How to open a run directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunMode {
    /// Start a run. The directory must not hold one.
    #[default]
    New,
    /// Start a run and remove one that the directory holds. Files that no run writes stay.
    Overwrite,
    /// Resume the run in the directory. Settings and data must be the same.
    Resume,
    /// Resume the run in the directory, even if settings or data have changed.
    ResumeChanged,
}

impl RunMode {
    /// Returns whether a run is resumed.
    pub fn resumes(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeChanged)
    }
}

/// Files that a run writes.
const FILES: [&str; 14] = [
    "config.toml",
    "ledger.json",
    "mixture.json",
    "metrics.jsonl",
    "samples.jsonl",
    "scores.jsonl",
    "scores.jsonl.settings.json",
    "scores.svg",
    "loss.svg",
    "before.jsonl",
    "after.jsonl",
    "summary.json",
    "compare.svg",
    "compare.json",
];
const FOLDERS: [&str; 4] = ["checkpoints", "model", "adapter", "tensorboard"];
/// Folders of a comparison's runs.
pub(super) const VARIANTS: [&str; 3] = ["long", "short", "mix"];
/// The marker file, written before anything else.
const MARK: &str = ".mixdistill-run";
const KIND: WorkDirKind = WorkDirKind::new("a run's", MARK).or_unmarked(holds_unmarked_run);

/// Returns whether a directory holds a run of a version without the marker: readable settings, and a file
/// that only runs write.
fn holds_unmarked_run(path: &Path) -> bool {
    let written = ["ledger.json", "compare.json"].iter().any(|name| path.join(name).is_file());
    written && RunConfig::read(&path.join("config.toml")).is_ok()
}

/// An open run directory, locked by this process.
#[derive(Clone, Debug)]
pub struct RunDirectory(WorkDir);

impl RunDirectory {
    /// Checks whether [`RunDirectory::open`] would succeed, without changing anything.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if it holds a run and the mode is [`RunMode::New`], if it holds none and the
    /// mode resumes, if it holds other files, or if another process uses it.
    pub fn check(path: &Path, mode: RunMode) -> Result<()> {
        let refuse = |what: &str, hint: &str| {
            Err(Error::RunDirectory {
                path: path.to_owned(),
                what: what.to_owned(),
                hint: hint.to_owned(),
            })
        };
        let holds_run = Self::holds_run(path);
        if mode.resumes() && !holds_run {
            return refuse("it holds no run", "Check the path, or start a new run");
        }
        if mode == RunMode::New && holds_run {
            let hint = "Resume it, overwrite it, or choose another directory (out)";
            return refuse("it already holds a run", hint);
        }
        KIND.check(path)
    }

    /// Opens and locks a directory. Creates it if it does not exist.
    ///
    /// # Errors
    /// See [`RunDirectory::check`]; [`Error::Io`] if it is not writable.
    pub fn open(path: &Path, mode: RunMode) -> Result<Self> {
        Self::check(path, mode)?;
        WorkDir::open(path, KIND).map(Self)
    }

    /// Returns whether a directory holds a run or the remains of one: the marker file, or readable settings
    /// together with a file that only runs write.
    pub fn holds_run(path: &Path) -> bool {
        KIND.holds(path)
    }

    /// Prepares for a new run: writes the marker and removes the files of an earlier run, including the
    /// variants of a comparison. Other files stay.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&self) -> Result<()> {
        self.0.set_mark("")?;
        clear(self.0.path())
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes a file if it exists.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    /// Writes a text file atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.0.write(name, text)
    }

    /// Writes a value as JSON, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.0.write_json(name, value)
    }

    /// Writes values as JSONL, atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_jsonl<T: Serialize>(&self, name: &str, values: &[T]) -> Result<()> {
        self.0.write_jsonl(name, values)
    }
}

fn clear(folder: &Path) -> Result<()> {
    let mark = folder.join(MARK);
    fs::write(&mark, b"").map_err(|e| Error::io("write", &mark, e))?;
    for variant in VARIANTS.map(|name| folder.join(name)) {
        if RunDirectory::holds_run(&variant) {
            clear(&variant)?;
        }
    }
    for path in FOLDERS.map(|name| folder.join(name)) {
        remove_folder(&path)?;
        remove_folder(&writing_place(&path))?;
    }
    for path in FILES.map(|name| folder.join(name)) {
        remove_file(&path)?;
    }
    Ok(())
}
