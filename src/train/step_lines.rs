//! JSON lines that belong to steps, in a file that stays valid through kills, resumes and rollbacks.

use super::progress::print_line;
use crate::error::{Error, Place, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line that belongs to a step.
pub trait StepLine: Serialize + DeserializeOwned {
    /// The step.
    fn step(&self) -> usize;
}

/// Reads a file of lines.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that is none of ours. A last line that was cut off by
/// a crash is left out.
pub(super) fn read_lines<T: StepLine>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let lines: Vec<&str> = text.lines().collect();
    let mut read = vec![];
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(line) => read.push(line),
            Err(_) if index + 1 == lines.len() && !text.ends_with('\n') => {}
            Err(e) => {
                let place = Place::line(path, index + 1);
                return Err(Error::data(place, e.to_string(), "Remove the line or the file"));
            }
        }
    }
    Ok(read)
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

    /// The file of a run that goes on after `step`: lines of later steps, which will be made again,
    /// are removed.
    ///
    /// # Errors
    /// As [`read_lines`]; [`Error::Io`].
    pub fn resume<T: StepLine>(path: &Path, step: usize) -> Result<Self> {
        let kept: Vec<T> = match path.exists() {
            true => read_lines(path)?,
            false => vec![],
        };
        let mut text = String::new();
        for line in kept.iter().filter(|line| line.step() <= step) {
            text.push_str(&to_line(line, path)?);
        }
        let beside = path.with_extension("jsonl.new");
        std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, path).map_err(|e| Error::io("rename", &beside, e))?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes back to the end of `step`.
    ///
    /// # Errors
    /// As [`StepLines::resume`].
    pub fn roll_back<T: StepLine>(&mut self, step: usize) -> Result<()> {
        *self = Self::resume::<T>(&self.path, step)?;
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
        if folder.is_dir() {
            return Error::io("create", &self.path, error);
        }
        Error::RunDirectory {
            path: folder.to_owned(),
            what: format!("it was removed under the run, which had come to step {step}"),
            hint: "Nothing of the run is left on disk; start it anew".into(),
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
