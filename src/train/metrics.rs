//! `metrics.jsonl`: one line for each step and each evaluation; `samples.jsonl`: answers.

use super::observer::{EvaluationReport, Event, GradedReport, Observer, Sample, StepReport};
use super::step_lines::{Reached, StepLine, StepLines, read_lines};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Metric {
    /// An optimizer step.
    Step(StepReport),
    /// An evaluation.
    Evaluation(EvaluationReport),
    /// Graded answers.
    Graded(GradedReport),
}

impl StepLine for Metric {
    fn step(&self) -> usize {
        match self {
            Self::Step(report) => report.step,
            Self::Evaluation(report) => report.step,
            Self::Graded(report) => report.step,
        }
    }

    fn is_of_evaluation(&self) -> bool {
        !matches!(self, Self::Step(_))
    }
}

impl StepLine for Sample {
    fn step(&self) -> usize {
        self.step
    }

    fn is_of_evaluation(&self) -> bool {
        true
    }
}

/// Reads a metrics file.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::Data`](crate::Error::Data) for a line that is none of
/// ours. A last line that was cut off by a crash is left out.
pub fn read_metrics(path: &Path) -> Result<Vec<Metric>> {
    read_lines(path)
}

/// Writes the file, a line as soon as there is one.
#[derive(Debug)]
pub struct MetricsFile(StepLines);

impl MetricsFile {
    /// A new file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), also where the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        StepLines::create(path).map(Self)
    }

    /// The file of a run that is resumed: lines of later steps, which will be made again, are
    /// removed, and those of an evaluation that is.
    ///
    /// # Errors
    /// As [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: Reached) -> Result<Self> {
        StepLines::resume::<Metric>(path, reached).map(Self)
    }
}

impl Observer for MetricsFile {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(report) => self.0.write(&Metric::Step((*report).clone())),
            // What comes after the checkpoint is made again.
            Event::RolledBack { to, evaluation_due, .. } => {
                let (step, evaluation_due) = (*to, *evaluation_due);
                self.0.roll_back::<Metric>(Reached { step, evaluation_due })
            }
            Event::Evaluation(report) => self.0.write(&Metric::Evaluation((*report).clone())),
            Event::Graded(report) => self.0.write(&Metric::Graded((*report).clone())),
            _ => Ok(()),
        }
    }
}

/// `samples.jsonl`: the answers to held-out problems that are shown during training.
#[derive(Debug)]
pub struct SamplesFile(StepLines);

impl SamplesFile {
    /// The file of a run that begins or goes on; lines of what will be made again are removed.
    ///
    /// # Errors
    /// As [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: Reached) -> Result<Self> {
        StepLines::resume::<Sample>(path, reached).map(Self)
    }
}

impl Observer for SamplesFile {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Sample(sample) => self.0.write(*sample),
            Event::RolledBack { to, evaluation_due, .. } => {
                let (step, evaluation_due) = (*to, *evaluation_due);
                self.0.roll_back::<Sample>(Reached { step, evaluation_due })
            }
            _ => Ok(()),
        }
    }
}
