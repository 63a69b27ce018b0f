//! Whole runs: settings in, a run directory and a summary out.
//!
//! [`run`](run()) does what `mixdistill train` does: it reads and mixes the data ([`Prepared`]), trains the
//! student, grades it, and fills the [`RunDirectory`]. It takes a [`RunConfig`] and returns a [`Summary`].
//! [`compare`](compare()) trains on long answers, short answers, and the mixture; [`Plan`] computes memory
//! and time in advance; [`Preview`] shows rows before training; [`propose_share`] finds a share with pilots;
//! [`write_scores`] and [`write_teacher_logits`] score answers and store a teacher's logits.
//!
//! ```
//! use mixdistill::prelude::*;
//!
//! # fn main() -> Result<()> {
//! let folder = tempfile::tempdir().unwrap();
//! let mut config = RunConfig { out: folder.path().join("run"), ..RunConfig::toy() };
//! // A tiny run: 20 problems, one layer, three steps.
//! (config.data.toy_problems, config.data.toy_test_problems) = (20, 2);
//! (config.model.hidden_size, config.model.num_hidden_layers) = (16, 1);
//! config.model.intermediate_size = 32;
//! config.train.steps = Some(3);
//! config.evaluation.questions = 0;
//! config.set_share(0.2)?;
//!
//! let summary = run(&config, RunMode::New, &Context::default())?;
//! assert_eq!(summary.outcome.step, 3);
//! assert_eq!(summary.mixture.sources[0].rows, 4);
//! assert!(config.out.join("model/config.json").is_file());
//! # Ok(())
//! # }
//! ```
//!
//! Programs with their own data or models use the stages directly: [`crate::data`], [`crate::model`],
//! [`crate::train`], and [`crate::eval`].

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
