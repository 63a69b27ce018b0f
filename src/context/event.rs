//! Events and observers.

use super::reports::{
    Accuracy, EvaluationReport, GradedReport, Outcome, PairsProgress, SampleAnswer, StepReport,
};
use crate::error::Result;
use std::fmt;
use std::path::Path;

/// A kind of counted work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Task {
    /// Downloading files from the Hugging Face Hub, in bytes.
    Download,
    /// Reading local files to compare them with the Hugging Face Hub, in bytes.
    CheckFiles,
    /// Uploading files to the Hugging Face Hub, in bytes.
    Upload,
    /// Loading a model's weights, in tensors.
    LoadModel,
    /// Writing a model's weights, in tensors.
    WriteModel,
    /// Loading a teacher's weights, in tensors.
    LoadTeacher,
    /// Encoding answers as tokens, in answers.
    Encode,
    /// Computing held-out losses, in rows.
    HeldOutLoss,
    /// Generating answers, in answers.
    Answer,
    /// Computing a teacher's logits, in rows.
    TeacherLogits,
    /// Scoring answers with an untuned student, in answers.
    Score,
    /// Judging answers, in answers.
    Judge,
    /// Reading stored responses of teachers, in bytes.
    ReadResponses,
    /// Grading stored responses, in problems, each counted once per teacher.
    GradeResponses,
    /// Asking teachers, in problems, each counted once per teacher.
    AskTeachers,
    /// Writing rows, in rows.
    WriteRows,
    /// Searching for test problems among the training problems, in problems.
    FindOverlaps,
    /// Searching for near-duplicates, in problems.
    FindNearDuplicates,
    /// Ranking the tokens of answers with the untuned student, in answers.
    RankTokens,
    /// Resampling scores for intervals, in students.
    Resample,
}

impl Task {
    /// Returns a short name, such as `encode`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::CheckFiles => "check",
            Self::Upload => "upload",
            Self::LoadModel => "load",
            Self::WriteModel => "write model",
            Self::LoadTeacher => "load teacher",
            Self::Encode => "encode",
            Self::HeldOutLoss => "evaluate",
            Self::Answer => "answer",
            Self::TeacherLogits => "teach",
            Self::Score => "score",
            Self::Judge => "judge",
            Self::ReadResponses => "read",
            Self::GradeResponses => "grade",
            Self::AskTeachers => "ask",
            Self::WriteRows => "write",
            Self::FindOverlaps => "overlaps",
            Self::FindNearDuplicates => "duplicates",
            Self::RankTokens => "rank",
            Self::Resample => "resample",
        }
    }
}

/// The progress of counted work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units done, including those of earlier processes.
    pub done: u64,
    /// Total units.
    pub total: u64,
    /// Units done before this process.
    pub before: u64,
    /// Tokens that this process has generated or read so far, if the work has tokens.
    pub tokens: u64,
}

/// When held-out problems were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before training.
    Before,
    /// After training.
    After,
}

/// What a run is about to do. The tables adapt to the width in the format, as in `format!("{table:80}")`.
#[derive(Clone, Copy)]
pub struct RunOverview<'a> {
    /// The data files, or the built-in corpus.
    pub data: &'a str,
    /// Counts of what happened to the records.
    pub ledger: &'a (dyn fmt::Display + 'a),
    /// The requested and the actual shares.
    pub mixture: &'a (dyn fmt::Display + 'a),
    /// Further information, one line each: student, training, teacher.
    pub lines: &'a [String],
    /// What differs from the request, one line each. `lines` or the tables mention it too.
    pub warnings: &'a [String],
}

impl fmt::Debug for RunOverview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOverview").field("data", &self.data).finish_non_exhaustive()
    }
}

/// An event in a long call.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Counted work makes progress.
    Task {
        /// The kind of work.
        task: Task,
        /// Its progress.
        progress: Progress,
    },
    /// Counted work has ended or was abandoned.
    TaskEnd(Task),
    /// What a run is about to do: data, mixture, student, training.
    Overview(&'a RunOverview<'a>),
    /// A run resumes from a checkpoint.
    Resuming {
        /// The checkpoint's directory.
        path: &'a Path,
        /// Problems of newer checkpoints.
        skipped: &'a [String],
    },
    /// An earlier process finished the run.
    AlreadyFinished,
    /// Held-out problems were answered before or after training.
    Accuracy {
        /// When.
        moment: Moment,
        /// The number of correct answers.
        accuracy: &'a Accuracy,
    },
    /// One of several runs starts.
    Part {
        /// Its name, such as `long` or the name of a student.
        name: &'a str,
        /// A description.
        about: &'a str,
        /// Its number, from 1, or 0 if runs are not counted.
        number: usize,
        /// Total runs.
        of: usize,
        /// Seconds left for all runs, if known.
        seconds_left: Option<f64>,
    },
    /// A result file or folder was written.
    Written {
        /// A description.
        what: &'a str,
        /// Its path.
        path: &'a Path,
    },
    /// The progress of asking two teachers, emitted along with [`Task::AskTeachers`].
    Pairs(&'a PairsProgress),
    /// Training starts or resumes.
    Start {
        /// Steps already made.
        step: usize,
        /// Total steps.
        total_steps: usize,
    },
    /// A micro-batch of a step is done.
    MicroBatch {
        /// The step, counted from 1.
        step: usize,
        /// Micro-batches done.
        done: usize,
        /// Total micro-batches.
        of: usize,
    },
    /// A step was skipped because its loss or gradient was not finite.
    Skipped {
        /// The step, counted from 1.
        step: usize,
        /// What was not finite.
        what: &'a str,
    },
    /// Training returned to a checkpoint.
    RolledBack {
        /// The step that failed.
        from: usize,
        /// The checkpoint's step.
        to: usize,
        /// Whether the evaluation of that step is repeated.
        evaluation_due: bool,
    },
    /// A message for the user.
    Notice(&'a str),
    /// A step was made.
    Step(&'a StepReport),
    /// An evaluation was made.
    Evaluation(&'a EvaluationReport),
    /// Held-out problems were answered during training.
    Graded(&'a GradedReport),
    /// One of these answers.
    Sample(&'a SampleAnswer),
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

/// Receives the events of a long call.
///
/// This observer stops training if the loss explodes:
///
/// ```
/// use mixdistill::context::{Event, Observer};
///
/// struct Ceiling(f64);
///
/// impl Observer for Ceiling {
///     fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
///         match event {
///             Event::Step(report) if report.loss > self.0 => Err(mixdistill::Error::Training {
///                 what: format!("the loss of step {} is {:.2}", report.step, report.loss),
///                 hint: "Try a lower learning rate".into(),
///             }),
///             _ => Ok(()),
///         }
///     }
/// }
///
/// # let step = mixdistill::context::StepReport { step: 3, epoch: 0.1, loss: 12.0, learning_rate: 1.0,
/// #     gradient_norm: 1.0, rows: 1, tokens: 1, trained_tokens: 1, padding: 0, seconds: 0.1 };
/// // A `Vec` of observers is also an observer, so it can be combined with the library's own.
/// let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Ceiling(9.0))];
/// assert!(observers.observe(&Event::Step(&step)).is_err());
/// ```
pub trait Observer {
    /// Handles an event. Called for each event, in order.
    ///
    /// # Errors
    /// An error ends the work. Files on disk are kept.
    fn observe(&mut self, event: &Event<'_>) -> Result<()>;
}

/// Ignores all events.
impl Observer for () {
    fn observe(&mut self, _event: &Event<'_>) -> Result<()> {
        Ok(())
    }
}

/// Calls several observers in order.
impl Observer for Vec<Box<dyn Observer + '_>> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.iter_mut().try_for_each(|observer| observer.observe(event))
    }
}

/// A borrowed observer.
impl<O: Observer + ?Sized> Observer for &mut O {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        (**self).observe(event)
    }
}
