//! JSON Lines files with one record per step, which stay valid through kills, resumes, and rollbacks.

use crate::error::{Error, Result};
use crate::files::{JsonlLog, LastLine, gone, read_values, write_whole};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::Path;

/// A line that belongs to a step.
pub trait StepRecord: Serialize + DeserializeOwned {
    /// Returns the step.
    fn step(&self) -> usize;

    /// Returns whether the line belongs to the evaluation after the step rather than to the step itself.
    fn is_of_evaluation(&self) -> bool;
}

/// The point up to which lines are kept when a run resumes.
#[derive(Clone, Copy, Debug)]
pub struct ResumePoint {
    /// The step.
    pub step: usize,
    /// Whether the evaluation of that step is still due, so that its lines are dropped.
    pub evaluation_due: bool,
}

impl ResumePoint {
    fn keeps(self, line: &impl StepRecord) -> bool {
        line.step() < self.step
            || (line.step() == self.step && !(self.evaluation_due && line.is_of_evaluation()))
    }
}

/// Reads a file. A last line that a crash cut off is ignored.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that is not a `T`.
pub(super) fn read_lines<T: StepRecord>(path: &Path) -> Result<Vec<T>> {
    read_values(path, LastLine::MayBeTorn, "Remove the line or the file")
}

/// Appends lines to a file as they arrive.
#[derive(Debug)]
pub(super) struct StepLog {
    log: JsonlLog,
}

impl StepLog {
    /// Creates a new file.
    ///
    /// # Errors
    /// [`Error::Io`], also if the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { log: JsonlLog::create_new(path)? })
    }

    /// Opens the file of a resumed run. Lines that will be repeated are removed.
    ///
    /// # Errors
    /// See [`read_lines`]; [`Error::Io`].
    pub fn resume<T: StepRecord>(path: &Path, reached: ResumePoint) -> Result<Self> {
        let kept: Vec<T> = match path.exists() {
            true => read_lines(path)?,
            false => vec![],
        };
        write_whole(path, |file| {
            kept.iter().filter(|line| reached.keeps(*line)).try_for_each(|line| {
                let failed = |e| Error::io("write", path, e);
                serde_json::to_writer(&mut *file, line).map_err(|e| failed(e.into()))?;
                file.write_all(b"\n").map_err(failed)
            })
        })?;
        let mut log = JsonlLog::open(path, &mut |_| Ok(()))?;
        log.reopen()?;
        Ok(Self { log })
    }

    /// Removes the lines after an earlier point.
    ///
    /// # Errors
    /// See [`StepLog::resume`].
    pub fn roll_back<T: StepRecord>(&mut self, reached: ResumePoint) -> Result<()> {
        *self = Self::resume::<T>(self.log.path(), reached)?;
        Ok(())
    }

    /// Writes a line. If the file was removed, a new one begins, and the result is a notice about it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] if its directory was removed.
    pub fn write<T: StepRecord>(&mut self, line: &T) -> Result<Option<String>> {
        let mut notice = None;
        if !self.log.is_in_place() {
            self.log.reopen().map_err(|error| self.lost(line.step(), error))?;
            let (path, step) = (self.log.path().display(), line.step());
            notice = Some(format!("{path} was removed; a new one begins at step {step}"));
        }
        self.log.append(std::slice::from_ref(line)).map(|_| notice)
    }

    fn lost(&self, step: usize, error: Error) -> Error {
        let folder = self.log.path().parent().unwrap_or(Path::new(""));
        if folder.is_dir() { error } else { gone(folder, step) }
    }
}
