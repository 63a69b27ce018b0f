//! The main job, whole: a configuration in, a run directory and a summary out.
//!
//! This is what `examples/train_mix.rs` calls. A program with data or models of its own uses the
//! stages below instead: [`crate::data`], [`crate::model`], [`crate::train`], [`crate::eval`].

mod card;
mod compare;
mod config;
mod directory;
mod finished;
mod grader;
mod prepare;
mod run;
mod teacher;

pub use compare::{CompareLine, Comparison, compare};
pub use config::{
    DataConfig, EvaluationConfig, RunConfig, SaveConfig, SourceConfig, TeacherConfig,
};
pub use directory::{RunDirectory, RunMode};
pub use prepare::Prepared;
pub use run::{Summary, run, sentence};
pub(crate) use run::{run_on, student};
pub use teacher::load_teacher;
