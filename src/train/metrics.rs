//! `metrics.jsonl`: one line for each step and each evaluation; `samples.jsonl`: answers.

use super::step_log::{ResumePoint, StepLog, StepRecord, read_lines};
use crate::context::{EvaluationReport, Event, GradedReport, Observer, SampleAnswer, StepReport};
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

impl StepRecord for Metric {
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

impl StepRecord for SampleAnswer {
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

/// Told where a file was removed under a run.
type Tell<'a> = Box<dyn Fn(&str) -> Result<()> + 'a>;

/// A log whose notices are told.
struct TellingLog<'a> {
    log: StepLog,
    tell: Tell<'a>,
}

impl<'a> TellingLog<'a> {
    fn new(log: StepLog) -> Self {
        Self { log, tell: Box::new(|_| Ok(())) }
    }

    fn write(&mut self, line: &impl StepRecord) -> Result<()> {
        match self.log.write(line)? {
            Some(notice) => (self.tell)(&notice),
            None => Ok(()),
        }
    }
}

/// Writes the file, a line as soon as there is one.
pub struct MetricsFile<'a>(TellingLog<'a>);

impl<'a> MetricsFile<'a> {
    /// A new file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), also where the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::create(path)?)))
    }

    /// The file of a run that is resumed: lines of later steps, which will be made again, are
    /// removed, and those of an evaluation that is.
    ///
    /// # Errors
    /// As [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: ResumePoint) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::resume::<Metric>(path, reached)?)))
    }

    /// Calls `tell` where the file was removed under the run and is begun anew.
    pub fn telling(mut self, tell: impl Fn(&str) -> Result<()> + 'a) -> Self {
        self.0.tell = Box::new(tell);
        self
    }
}

impl Observer for MetricsFile<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(report) => self.0.write(&Metric::Step((*report).clone())),
            // What comes after the checkpoint is made again.
            Event::RolledBack { to, evaluation_due, .. } => {
                let (step, evaluation_due) = (*to, *evaluation_due);
                self.0.log.roll_back::<Metric>(ResumePoint { step, evaluation_due })
            }
            Event::Evaluation(report) => self.0.write(&Metric::Evaluation((*report).clone())),
            Event::Graded(report) => self.0.write(&Metric::Graded((*report).clone())),
            _ => Ok(()),
        }
    }
}

/// `samples.jsonl`: the answers to held-out problems that are shown during training.
pub struct SamplesFile<'a>(TellingLog<'a>);

impl<'a> SamplesFile<'a> {
    /// The file of a run that begins or goes on; lines of what will be made again are removed.
    ///
    /// # Errors
    /// As [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: ResumePoint) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::resume::<SampleAnswer>(path, reached)?)))
    }

    /// Calls `tell` where the file was removed under the run and is begun anew.
    pub fn telling(mut self, tell: impl Fn(&str) -> Result<()> + 'a) -> Self {
        self.0.tell = Box::new(tell);
        self
    }
}

impl Observer for SamplesFile<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Sample(sample) => self.0.write(*sample),
            Event::RolledBack { to, evaluation_due, .. } => {
                let (step, evaluation_due) = (*to, *evaluation_due);
                self.0.log.roll_back::<SampleAnswer>(ResumePoint { step, evaluation_due })
            }
            _ => Ok(()),
        }
    }
}
