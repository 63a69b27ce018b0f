//! The learnability-gap experiment: students x arms x seeds, with confidence intervals and a report.

mod arms;
mod claims;
mod config;
mod differences;
mod document;
mod join;
mod machine;
mod overlap;
mod part;
mod pretrained;
mod report;
mod report_arms;
mod results;
mod run;
mod shared;
mod stored;
mod style;
mod testing;
mod time_left;
mod warnings;

pub use arms::{ArmChoice, ArmKind};
pub use config::{Cell, ComparisonConfig, StudentConfig, StudyConfig};
pub use differences::ArmDifference;
pub use join::{join, settings_of};
pub use machine::Machine;
pub use part::{StudyPart, study_part};
pub use pretrained::PretrainedStudent;
pub use results::{
    Budget, ChoiceScore, ComparisonResult, MixtureScore, RealizedShare, StudentLine, StudentResult,
    Study, Tested, TestedAnswers,
};
pub use run::study;
pub use shared::{Sharing, study_shared};
pub use style::{StyleShift, TokenShift};
