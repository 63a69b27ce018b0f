//! The learnability-gap experiment: students x mixtures x seeds, with intervals and a report.

mod config;
mod document;
mod pretrained;
mod report;
mod results;
mod run;
mod style;
mod time_left;

pub use config::{Cell, ComparisonConfig, StudentConfig, StudyConfig};
pub use pretrained::PretrainedStudent;
pub use results::{
    Budget, ComparisonResult, MixtureScore, StudentLine, StudentResult, Study, Tested,
    TestedAnswers,
};
pub use run::study;
pub use style::{StyleShift, TokenShift};
