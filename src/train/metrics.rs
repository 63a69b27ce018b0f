//! `metrics.jsonl`: one line for each step and each evaluation.

use super::observer::{EvaluationReport, Event, Observer, StepReport};
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Metric {
    /// An optimizer step.
    Step(StepReport),
    /// An evaluation.
    Evaluation(EvaluationReport),
}

impl Metric {
    fn step(&self) -> usize {
        match self {
            Self::Step(report) => report.step,
            Self::Evaluation(report) => report.step,
        }
    }
}

/// Reads a metrics file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that is none of ours. A last line that was cut off by
/// a crash is left out.
pub fn read_metrics(path: &Path) -> Result<Vec<Metric>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let lines: Vec<&str> = text.lines().collect();
    let mut metrics = vec![];
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(metric) => metrics.push(metric),
            Err(_) if index + 1 == lines.len() && !text.ends_with('\n') => {}
            Err(e) => {
                let place = Place::line(path, index + 1);
                return Err(Error::data(place, e.to_string(), "Remove the line or the file"));
            }
        }
    }
    Ok(metrics)
}

/// Writes the file, a line as soon as there is one.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// A new file.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The file of a run that is resumed after `step`: lines of later steps, which will be made
    /// again, are removed.
    ///
    /// # Errors
    /// As [`read_metrics`]; [`Error::Io`].
    pub fn resume(path: &Path, step: usize) -> Result<Self> {
        let kept = match path.exists() {
            true => read_metrics(path)?,
            false => vec![],
        };
        let mut text = String::new();
        for metric in kept.iter().filter(|metric| metric.step() <= step) {
            text.push_str(&to_line(metric, path)?);
        }
        let beside = path.with_extension("jsonl.new");
        std::fs::write(&beside, text).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, path).map_err(|e| Error::io("rename", &beside, e))?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, metric: &Metric) -> Result<()> {
        let line = to_line(metric, &self.path)?;
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

fn to_line(metric: &Metric, path: &Path) -> Result<String> {
    let line = serde_json::to_string(metric).map_err(|e| {
        Error::data(Place::file(path), e.to_string(), "This is a defect; please report it")
    })?;
    Ok(line + "\n")
}

impl Observer for MetricsFile {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(report) => self.write(&Metric::Step((*report).clone())),
            // What comes after the checkpoint is made again.
            Event::RolledBack { to, .. } => {
                let path = self.path.clone();
                *self = Self::resume(&path, *to)?;
                Ok(())
            }
            Event::Evaluation(report) => self.write(&Metric::Evaluation((*report).clone())),
            _ => Ok(()),
        }
    }
}
