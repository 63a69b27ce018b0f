//! `metrics.jsonl`, with one line per step and evaluation, and `samples.jsonl`, with sample answers.

use super::step_log::{ResumePoint, StepLog, StepRecord, read_lines};
use crate::context::{EvaluationReport, Event, GradedReport, Observer, SampleAnswer, StepReport};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One line of `metrics.jsonl`.
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

/// Reads a metrics file. A last line that a crash cut off is ignored.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::Data`](crate::Error::Data) for a line that is not a metric.
pub fn read_metrics(path: &Path) -> Result<Vec<Metric>> {
    read_lines(path)
}

/// Called if a file was removed during a run.
type Tell<'a> = Box<dyn Fn(&str) -> Result<()> + 'a>;

/// A log that reports its notices.
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

/// Writes `metrics.jsonl`, one line per event.
pub struct MetricsFile<'a>(TellingLog<'a>);

impl<'a> MetricsFile<'a> {
    /// Creates a new file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), also if the file exists.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::create(path)?)))
    }

    /// Opens the file of a resumed run. Lines of steps and evaluations that will be repeated are removed.
    ///
    /// # Errors
    /// See [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: ResumePoint) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::resume::<Metric>(path, reached)?)))
    }

    /// Calls `tell` if the file was removed during the run and a new one begins.
    pub fn telling(mut self, tell: impl Fn(&str) -> Result<()> + 'a) -> Self {
        self.0.tell = Box::new(tell);
        self
    }
}

impl Observer for MetricsFile<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(report) => self.0.write(&Metric::Step((*report).clone())),
            // Everything after the checkpoint is repeated.
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

/// Writes `samples.jsonl`: the sample answers to held-out problems during training.
pub struct SamplesFile<'a>(TellingLog<'a>);

impl<'a> SamplesFile<'a> {
    /// Opens the file of a new or resumed run. Lines that will be repeated are removed.
    ///
    /// # Errors
    /// See [`read_metrics`]; [`Error::Io`](crate::Error::Io).
    pub fn resume(path: &Path, reached: ResumePoint) -> Result<Self> {
        Ok(Self(TellingLog::new(StepLog::resume::<SampleAnswer>(path, reached)?)))
    }

    /// Calls `tell` if the file was removed during the run and a new one begins.
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
