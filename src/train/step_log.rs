//! JSON lines that belong to steps, in a file that stays valid through kills, resumes and rollbacks.

use crate::error::{Error, Result};
use crate::files::{JsonlLog, LastLine, gone, read_values, write_whole};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::Path;

/// A line that belongs to a step.
pub trait StepRecord: Serialize + DeserializeOwned {
    /// The step.
    fn step(&self) -> usize;

    /// Whether it comes of the evaluation after the step, and not of the step.
    fn is_of_evaluation(&self) -> bool;
}

/// How far a run has come whose lines are kept.
#[derive(Clone, Copy, Debug)]
pub struct ResumePoint {
    /// The step.
    pub step: usize,
    /// Whether the evaluation of that step is still to be made, or made again.
    pub evaluation_due: bool,
}

impl ResumePoint {
    fn keeps(self, line: &impl StepRecord) -> bool {
        line.step() < self.step
            || (line.step() == self.step && !(self.evaluation_due && line.is_of_evaluation()))
    }
}

/// Reads a file of lines.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that is none of ours. A last line that was cut off by
/// a crash is left out.
pub(super) fn read_lines<T: StepRecord>(path: &Path) -> Result<Vec<T>> {
    read_values(path, LastLine::MayBeTorn, "Remove the line or the file")
}

/// Writes a file of lines, each as soon as there is one.
#[derive(Debug)]
pub(super) struct StepLog {
    log: JsonlLog,
}

impl StepLog {
    /// A new file.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { log: JsonlLog::create_new(path)? })
    }

    /// The file of a run that goes on: lines of what will be made again are removed.
    ///
    /// # Errors
    /// As [`read_lines`]; [`Error::Io`].
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

    /// Goes back to what was reached earlier.
    ///
    /// # Errors
    /// As [`StepLog::resume`].
    pub fn roll_back<T: StepRecord>(&mut self, reached: ResumePoint) -> Result<()> {
        *self = Self::resume::<T>(self.log.path(), reached)?;
        Ok(())
    }

    /// Writes a line. A file that was removed meanwhile is begun anew, which the result says.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] where its directory was removed.
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
