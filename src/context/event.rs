//! Events, and who sees them.

use super::reports::{
    Accuracy, EvaluationReport, GradedReport, Outcome, PairsProgress, SampleAnswer, StepReport,
};
use crate::error::Result;
use std::fmt;
use std::path::Path;

/// Work that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Task {
    /// Files from the Hugging Face Hub, in bytes.
    Download,
    /// Files that are read to tell which of them the Hugging Face Hub has, in bytes.
    CheckFiles,
    /// Files to the Hugging Face Hub, in bytes.
    Upload,
    /// A model's weights, in tensors.
    LoadModel,
    /// A model's tensors that are written.
    WriteModel,
    /// A teacher's weights, in tensors.
    LoadTeacher,
    /// Answers as tokens, in answers.
    Encode,
    /// Held-out losses, in rows.
    HeldOutLoss,
    /// Problems that a model answers, in answers.
    Answer,
    /// Rows that a teacher reads for its logits.
    TeacherLogits,
    /// Answers that an untuned student reads for their scores.
    Score,
    /// Answers that a judge reads.
    Judge,
    /// Stored responses of teachers, in bytes.
    ReadResponses,
    /// Stored responses that are graded, in problems, each once for each teacher.
    GradeResponses,
    /// Problems that teachers are asked, each once for each teacher.
    AskTeachers,
    /// Rows that are written.
    WriteRows,
    /// Problems that are trained on and problems that are tested with, to find those in common.
    FindOverlaps,
    /// Problems that are compared, to find those that are nearly the same.
    FindNearDuplicates,
    /// Answers whose tokens are ranked by the untuned student.
    RankTokens,
    /// Students whose scores are resampled for their intervals.
    Resample,
}

impl Task {
    /// A short name, such as `encode`.
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

/// How far counted work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units done, those of earlier processes included.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// Units that were done before this process.
    pub before: u64,
    /// Tokens of this process so far, where the work is one of tokens.
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

/// What a run will do, before it does it. The tables fit their width to that of the format, as in
/// `format!("{table:80}")`.
#[derive(Clone, Copy)]
pub struct RunOverview<'a> {
    /// The files, or the built-in corpus.
    pub data: &'a str,
    /// What became of every record.
    pub ledger: &'a (dyn fmt::Display + 'a),
    /// The shares that were asked for and what came of them.
    pub mixture: &'a (dyn fmt::Display + 'a),
    /// What else there is to know, a line each: student, training, teacher.
    pub lines: &'a [String],
    /// What is other than it was asked for, a line each; said above, too.
    pub warnings: &'a [String],
}

impl fmt::Debug for RunOverview<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOverview").field("data", &self.data).finish_non_exhaustive()
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Counted work is on its way.
    Task {
        /// Which.
        task: Task,
        /// How far it is.
        progress: Progress,
    },
    /// Counted work has ended, or was given up.
    TaskEnd(Task),
    /// What a run will do: data, mixture, student, training.
    Overview(&'a RunOverview<'a>),
    /// A run goes on from a checkpoint.
    Resuming {
        /// The checkpoint's directory.
        path: &'a Path,
        /// What is wrong with newer ones.
        skipped: &'a [String],
    },
    /// The run was finished by an earlier process.
    AlreadyFinished,
    /// Held-out problems were answered before or after training.
    Accuracy {
        /// When.
        moment: Moment,
        /// How many answers were right.
        accuracy: &'a Accuracy,
    },
    /// One of several runs begins.
    Part {
        /// Its name, such as `long` or a student's.
        name: &'a str,
        /// What it is, in words.
        about: &'a str,
        /// Its number, from 1; 0 where it is not counted.
        number: usize,
        /// Runs in all.
        of: usize,
        /// Seconds left for all runs, where they can be known.
        seconds_left: Option<f64>,
    },
    /// A file or folder of results was written.
    Written {
        /// What it is, in words.
        what: &'a str,
        /// Where it is.
        path: &'a Path,
    },
    /// How far the asking of two teachers is; told beside [`Task::AskTeachers`].
    Pairs(&'a PairsProgress),
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
    /// An evaluation was made.
    Evaluation(&'a EvaluationReport),
    /// Held-out problems were answered.
    Graded(&'a GradedReport),
    /// One of the answers.
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

/// Sees the events of a long call.
///
/// One of your own, which stops where the loss explodes:
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
///                 hint: "Try a smaller learning rate".into(),
///             }),
///             _ => Ok(()),
///         }
///     }
/// }
///
/// # let step = mixdistill::context::StepReport { step: 3, epoch: 0.1, loss: 12.0, learning_rate: 1.0,
/// #     gradient_norm: 1.0, rows: 1, tokens: 1, trained_tokens: 1, padding: 0, seconds: 0.1 };
/// // Beside the library's own: a Vec of observers is one, too.
/// let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Ceiling(9.0))];
/// assert!(observers.observe(&Event::Step(&step)).is_err());
/// ```
pub trait Observer {
    /// Called for each event, in order.
    ///
    /// # Errors
    /// An error ends the work; what is on disk stays.
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

/// An observer that is lent.
impl<O: Observer + ?Sized> Observer for &mut O {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        (**self).observe(event)
    }
}
