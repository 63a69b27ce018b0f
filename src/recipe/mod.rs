//! The main job, whole: a configuration in, a run directory and a summary out.
//!
//! This is what `examples/train_mix.rs` calls. A program with data or models of its own uses the
//! stages below instead: [`crate::data`], [`crate::model`], [`crate::train`], [`crate::eval`].

mod card;
mod compare;
mod config;
mod directory;
mod prepare;
mod run;

pub use compare::{CompareLine, Comparison, compare};
pub use config::{DataConfig, EvaluationConfig, RunConfig, SaveConfig, SourceConfig};
pub use directory::{RunDirectory, RunMode};
pub use prepare::Prepared;
pub use run::{Summary, run, sentence};
