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
    /// Mean loss of the step's trained tokens: the cross-entropy in nats, with what the objective
    /// adds to it.
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

/// Answers to held-out problems during training, graded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Problems that were asked.
    pub questions: usize,
    /// Right answers.
    pub correct: usize,
    /// Mean tokens of an answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit ended.
    pub hit_limit: f64,
    /// Wall time of answering.
    pub seconds: f64,
}

/// An answer to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The step, counted from 1.
    pub step: usize,
    /// The problem.
    pub problem: String,
    /// What the model wrote.
    pub text: String,
    /// The reference answer.
    pub reference: String,
    /// Whether it was reached.
    pub correct: bool,
}

/// Lets a model answer held-out problems during training. Its random choices, if any, must be its
/// own.
pub trait Grader<M> {
    /// The grade after a step, and some of the answers. `progress` is called with the answers
    /// finished so far, and all; where it returns `false`, the grading is given up and the result
    /// is `None`.
    ///
    /// # Errors
    /// An error ends the training; what is on disk stays.
    fn grade(
        &mut self,
        model: &M,
        step: usize,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(GradedReport, Vec<Sample>)>>;
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
        /// Whether the evaluation of that step is made again.
        evaluation_due: bool,
    },
    /// Something that whoever watches should know.
    Notice(&'a str),
    /// A step was made.
    Step(&'a StepReport),
    /// An evaluation, or a grading, is under way.
    Evaluating {
        /// Rows or answers done.
        done: usize,
        /// Rows or answers in all.
        of: usize,
    },
    /// An evaluation was made.
    Evaluation(&'a EvaluationReport),
    /// Held-out problems were answered.
    Graded(&'a GradedReport),
    /// One of the answers.
    Sample(&'a Sample),
    /// A checkpoint is about to be written.
    Saving {
        /// Its step.
        step: usize,
    },
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
///
/// One of your own, which stops where the loss explodes:
///
/// ```
/// use mixdistill::train::{Event, Observer};
///
/// struct Ceiling(f64);
///
/// impl Observer for Ceiling {
///     fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
///         match event {
///             Event::Step(report) if report.loss > self.0 => Err(mixdistill::Error::Training {
///                 what: format!("the loss of step {} is {:.2}", report.step, report.loss),
///                 hint: "Try a smaller learning rate".into(),
///             }),
///             _ => Ok(()),
///         }
///     }
/// }
///
/// # let step = mixdistill::train::StepReport { step: 3, epoch: 0.1, loss: 12.0, learning_rate: 1.0,
/// #     gradient_norm: 1.0, rows: 1, tokens: 1, trained_tokens: 1, padding: 0, seconds: 0.1 };
/// // Beside the library's own: a Vec of observers is one, too.
/// let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Ceiling(9.0))];
/// assert!(observers.observe(&Event::Step(&step)).is_err());
/// ```
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
