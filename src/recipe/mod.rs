//! The main job, whole: a configuration in, a run directory and a summary out.
//!
//! This is what the program's `train` calls. A program with data or models of its own uses the
//! stages below instead: [`crate::data`], [`crate::model`], [`crate::train`], [`crate::eval`].

mod card;
mod choice;
mod compare;
mod conclusion;
mod config;
mod directory;
mod finished;
mod grader;
mod held_out;
mod layout;
mod merged;
mod overview;
mod pilots;
pub mod plan;
mod prepare;
mod preview;
mod ranks;
mod run;
mod score;
mod student;
mod summary;
mod teacher;
mod teacher_logits;

pub(crate) use choice::score_chart;
pub use compare::{CompareLine, Comparison, compare};
pub use conclusion::Conclusion;
pub use config::{
    DataConfig, EvaluationConfig, LogitTeacherConfig, RunConfig, SaveConfig, SourceConfig,
};
pub use directory::{RunDirectory, RunMode};
pub(crate) use finished::same_settings as same_run_settings;
pub use held_out::{held_out_rows, questions};
pub use merged::{MergedLoss, merged_losses, run_on_stored_base};
pub use pilots::{
    FALLBACK_SHARE, PilotResult, PilotRound, PilotsConfig, ShareProposal, propose_share,
};
pub use plan::Plan;
pub use prepare::{Prepared, SeenOfSource, SourceAnswer};
pub use preview::{Preview, PreviewPart, PreviewRow, PreviewSource};
pub use ranks::{run_on_ranks, run_on_threads};
pub use run::run;
pub(crate) use run::{PartEvents, run_on, run_with_data};
pub use score::{
    LEAST_NLL, LalpConfig, MOST_RANK, NO_TOKENS_RSR, RowScores, ScoreOptions, SourceScores,
    WrittenScores, answer_steps, join_scores, read_scores, score_table, write_scores,
};
pub(crate) use student::student;
pub use summary::Summary;
pub use teacher::load_teacher;
pub use teacher_logits::{
    TeacherLogitsOptions, WrittenLogits, join_teacher_logits, write_teacher_logits,
};
