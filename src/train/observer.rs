//! What happens in training, told to whoever wants to show or store it.

use super::selection::Best;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean cross-entropy of the step's trained tokens, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Rows of the step.
    pub rows: usize,
    /// Input tokens of the step, padding left out.
    pub tokens: usize,
    /// Trained tokens of the step.
    pub trained_tokens: usize,
    /// Padding of the step, in positions.
    pub padding: usize,
    /// Wall time of the step.
    pub seconds: f64,
}

/// Held-out loss of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// The source's name.
    pub name: String,
    /// Rows evaluated.
    pub rows: usize,
    /// Trained tokens of those rows.
    pub trained_tokens: usize,
    /// Mean cross-entropy of those tokens, in nats.
    pub loss: f64,
}

/// Held-out losses after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// The step, counted from 1; 0 is before training.
    pub step: usize,
    /// One line for each source.
    pub sources: Vec<SourceLoss>,
    /// Wall time of the evaluation.
    pub seconds: f64,
}

/// How training ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps made in total.
    pub step: usize,
    /// Steps asked for.
    pub total_steps: usize,
    /// Whether it was asked to stop before its end.
    pub stopped: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Steps of this process that were left out because their loss or gradient was not finite.
    pub skipped: Vec<usize>,
    /// The step with the lowest held-out loss.
    pub best: Option<Best>,
    /// Input tokens seen in this process, padding left out.
    pub tokens: u64,
    /// Trained tokens seen in this process.
    pub trained_tokens: u64,
    /// Wall time of training in this process.
    pub seconds: f64,
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Training begins or goes on.
    Start {
        /// Steps made before.
        step: usize,
        /// Steps at the end.
        total_steps: usize,
    },
    /// A step is under way.
    MicroBatch {
        /// The step, counted from 1.
        step: usize,
        /// Micro-batches done.
        done: usize,
        /// Micro-batches in all.
        of: usize,
    },
    /// A step was left out, because its loss or gradient was not finite.
    Skipped {
        /// The step, counted from 1.
        step: usize,
        /// What was not finite.
        what: &'a str,
    },
    /// Training went back to a checkpoint.
    RolledBack {
        /// The step that could not be made.
        from: usize,
        /// The checkpoint's step.
        to: usize,
    },
    /// A step was made.
    Step(&'a StepReport),
    /// An evaluation is under way.
    Evaluating {
        /// Rows done.
        done: usize,
        /// Rows in all.
        of: usize,
    },
    /// An evaluation was made.
    Evaluation(&'a EvaluationReport),
    /// A checkpoint is complete.
    Checkpoint {
        /// Its step.
        step: usize,
        /// Its directory.
        path: &'a Path,
    },
    /// Training ended.
    End(&'a Outcome),
}

/// Sees the events of a training.
pub trait Observer {
    /// Called for each event, in order.
    ///
    /// # Errors
    /// An error ends the training; what is on disk stays.
    fn observe(&mut self, event: &Event<'_>) -> Result<()>;
}

/// Sees nothing.
impl Observer for () {
    fn observe(&mut self, _event: &Event<'_>) -> Result<()> {
        Ok(())
    }
}

/// Several observers, in order.
impl Observer for Vec<Box<dyn Observer + '_>> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.iter_mut().try_for_each(|observer| observer.observe(event))
    }
}
