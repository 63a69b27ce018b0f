//! The run directory: what is in it, and who may write there.
//!
//! ```text
//! run/
//!   config.toml      what was asked            metrics.jsonl   every step and evaluation
//!   ledger.json      what became of records    loss.svg        the same, drawn
//!   mixture.json     the mixture's report      checkpoints/    see CheckpointStore
//!   before.jsonl     answers before training   model/          the student, as a folder,
//!   after.jsonl      answers after it          adapter/        or its adapters in PEFT's format
//!   summary.json     every figure that was printed
//!   samples.jsonl    answers during training   tensorboard/    the metrics as event files
//!   pilots.json      the share that was found  pilots/         their runs, where it was
//! ```

use super::config::RunConfig;
use crate::error::{Error, Result};
use crate::files::{WorkDir, WorkDirKind, remove_file, remove_folder};
use crate::model::writing_place;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// How a run directory is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunMode {
    /// It must not hold a run yet.
    #[default]
    New,
    /// A run that it holds is removed first; files that no run writes are left alone.
    Overwrite,
    /// The run that it holds goes on, with the settings and data that it was started with.
    Resume,
    /// The run that it holds goes on, with whatever settings and data there are now.
    ResumeChanged,
}

impl RunMode {
    /// Whether a run goes on.
    pub fn resumes(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeChanged)
    }
}

/// Names that a run writes.
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
/// Set before anything else is written.
const MARK: &str = ".mixdistill-run";
const KIND: WorkDirKind = WorkDirKind::new("a run's", MARK).or_unmarked(holds_unmarked_run);

/// A run of before there was the mark: settings that can be read beside a file that only runs write.
fn holds_unmarked_run(path: &Path) -> bool {
    let written = ["ledger.json", "compare.json"].iter().any(|name| path.join(name).is_file());
    written && RunConfig::read(&path.join("config.toml")).is_ok()
}

/// A run directory that can be written to, by this process alone.
#[derive(Clone, Debug)]
pub struct RunDirectory(WorkDir);

impl RunDirectory {
    /// Looks at a directory as [`RunDirectory::open`] does, and makes and changes nothing.
    ///
    /// # Errors
    /// [`Error::RunDirectory`]: it holds a run and the mode is [`RunMode::New`]; it holds none and
    /// the mode is [`RunMode::Resume`]; it holds other files; another process works on it.
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

    /// Takes a directory, and makes it where it does not exist.
    ///
    /// # Errors
    /// As [`RunDirectory::check`]; [`Error::Io`] where it cannot be written to.
    pub fn open(path: &Path, mode: RunMode) -> Result<Self> {
        Self::check(path, mode)?;
        WorkDir::open(path, KIND).map(Self)
    }

    /// Whether a directory holds a run, or what a crash left of one: the mark that a run sets first,
    /// or settings that can be read beside a file that only runs write.
    pub fn holds_run(path: &Path) -> bool {
        KIND.holds(path)
    }

    /// Makes room for a new run: sets the mark and removes what an earlier run wrote, the variants
    /// of a comparison included. Other files are left alone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&self) -> Result<()> {
        self.0.set_mark("")?;
        clear(self.0.path())
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    /// Writes a text file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.0.write(name, text)
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.0.write_json(name, value)
    }

    /// Writes values as JSONL.
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
