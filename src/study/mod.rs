//! The learnability-gap experiment: students x arms x seeds, with confidence intervals and a report.
//!
//! A [`StudyConfig`] names the students, the comparisons with their arms ([`ArmKind`]: one source alone, a
//! mixture, a choice by score, its random control, or untuned), and the seeds. [`study()`] trains and tests
//! every [`Cell`] that has no result yet and writes `report.html`, `report.md`, and `study.json`.
//! [`study_shared`] lets several processes share one study, [`study_part`] runs a part of it, and [`join`]
//! joins the parts.
//!
//! ```
//! use mixdistill::settings::Layers;
//! use mixdistill::study::StudyConfig;
//!
//! # fn main() -> mixdistill::Result<()> {
//! let mut layers = Layers::<StudyConfig>::new()?;
//! layers.text(
//!     r#"
//!     seeds = [1, 2, 3]
//!     [[comparisons]]
//!     name = "Long"
//!     strong = "long"
//!     weak = "short"
//!     alphas = [0.2]
//!     [[students]]
//!     name = "small"
//!     "#,
//! )?;
//! let config = layers.settings()?;
//! config.validate()?;
//! // Long alone, short alone, and 20% long, with three seeds each.
//! assert_eq!(config.cells().len(), 9);
//! # Ok(())
//! # }
//! ```

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
