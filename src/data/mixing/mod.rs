//! Mixing: answers joined by problem, one of them chosen for each, by exact shares.

mod assign;
mod choice;
mod ledger;
mod lengths;
mod mixture;
mod near_duplicates;
mod overlap;
mod pairs;
mod report;
mod share;

pub use choice::{ChoiceBy, ChoiceConfig, Prefer};
pub use ledger::{Ledger, SourceLedger};
pub use lengths::{Length, Lengths};
pub use mixture::{MixDistillation, MixedRow, MixtureConfig, MixtureOptions, Schedule};
#[cfg(feature = "teacher")]
pub(crate) use near_duplicates::near_duplicates_watched;
pub use near_duplicates::{NearDuplicate, near_duplicates};
pub(crate) use overlap::{TrainingProblems, plain};
pub use overlap::{Overlap, OverlapKind, overlaps};
pub use pairs::{AnswersKept, Join, Pairs, Source, normalized};
pub use report::{MixtureReport, SourceShare};
pub use share::Share;
