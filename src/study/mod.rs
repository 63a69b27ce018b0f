//! The learnability-gap experiment: students x arms x seeds, with intervals and a report.

mod arms;
mod config;
mod differences;
mod document;
mod overlap;
mod pretrained;
mod report;
mod report_arms;
mod results;
mod run;
mod stored;
mod style;
mod testing;
mod time_left;
mod warnings;

pub use arms::{ArmChoice, ArmKind};
pub use config::{Cell, ComparisonConfig, StudentConfig, StudyConfig};
pub use differences::ArmDifference;
pub use pretrained::PretrainedStudent;
pub use results::{
    Budget, ChoiceScore, ComparisonResult, MixtureScore, RealizedShare, StudentLine, StudentResult,
    Study, Tested, TestedAnswers,
};
pub use run::study;
pub use style::{StyleShift, TokenShift};
