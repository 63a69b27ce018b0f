//! JSON lines that belong to steps, in a file that stays valid through kills, resumes and rollbacks.

use super::progress::print_line;
use crate::error::{Error, Place, Result};
use crate::files::gone;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line that belongs to a step.
pub trait StepLine: Serialize + DeserializeOwned {
    /// The step.
    fn step(&self) -> usize;

    /// Whether it comes of the evaluation after the step, and not of the step.
    fn is_of_evaluation(&self) -> bool;
}

/// How far a run has come whose lines are kept.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// The step.
    pub step: usize,
    /// Whether the evaluation of that step is still to be made, or made again.
    pub evaluation_due: bool,
}

impl Reached {
    fn keeps(self, line: &impl StepLine) -> bool {
        line.step() < self.step
            || (line.step() == self.step && !(self.evaluation_due && line.is_of_evaluation()))
    }
}

/// Reads a file of lines.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that is none of ours. A last line that was cut off by
/// a crash is left out.
pub(super) fn read_lines<T: StepLine>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    // What follows the last line's end was cut off, perhaps in the middle of a character.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end);
    let lines = bytes[..whole].split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|_| whole > 0);
    lines
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|e| {
                let place = Place::line(path, index + 1);
                Error::data(place, e.to_string(), "Remove the line or the file")
            })
        })
        .collect()
}

/// Writes a file of lines, each as soon as there is one.
#[derive(Debug)]
pub(super) struct StepLines {
    path: PathBuf,
    file: File,
}

impl StepLines {
    /// A new file.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The file of a run that goes on: lines of what will be made again are removed.
    ///
    /// # Errors
    /// As [`read_lines`]; [`Error::Io`].
    pub fn resume<T: StepLine>(path: &Path, reached: Reached) -> Result<Self> {
        let kept: Vec<T> = match path.exists() {
            true => read_lines(path)?,
            false => vec![],
        };
        let mut text = String::new();
        for line in kept.iter().filter(|line| reached.keeps(*line)) {
            text.push_str(&to_line(line, path)?);
        }
        let beside = path.with_extension("jsonl.new");
        std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, path).map_err(|e| Error::io("rename", &beside, e))?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes back to what was reached earlier.
    ///
    /// # Errors
    /// As [`StepLines::resume`].
    pub fn roll_back<T: StepLine>(&mut self, reached: Reached) -> Result<()> {
        *self = Self::resume::<T>(&self.path, reached)?;
        Ok(())
    }

    /// Writes a line. A file that was removed meanwhile is begun anew, which is said.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] where its directory was removed.
    pub fn write<T: StepLine>(&mut self, line: &T) -> Result<()> {
        let text = to_line(line, &self.path)?;
        if !self.is_in_place() {
            self.file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path)
                .map_err(|e| self.lost(line.step(), e))?;
            let path = self.path.display();
            print_line(&format!("{path} was removed; a new one begins at step {}", line.step()));
        }
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }

    fn lost(&self, step: usize, error: std::io::Error) -> Error {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match folder.is_dir() {
            true => Error::io("create", &self.path, error),
            false => gone(folder, step),
        }
    }

    /// Whether the path still leads to the file that is written.
    fn is_in_place(&self) -> bool {
        let Ok(there) = std::fs::metadata(&self.path) else { return false };
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let same =
                |own: std::fs::Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
            self.file.metadata().is_ok_and(same)
        }
        #[cfg(not(unix))]
        there.is_file()
    }
}

fn to_line(line: &impl Serialize, path: &Path) -> Result<String> {
    let line = serde_json::to_string(line).map_err(|e| {
        Error::data(Place::file(path), e.to_string(), "This is a defect; please report it")
    })?;
    Ok(line + "\n")
}
