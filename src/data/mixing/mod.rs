//! Mixing: joins answers by problem and selects one per problem, with exact shares.

mod assign;
mod cheapest;
mod choice;
mod chosen;
mod ledger;
mod lengths;
mod mixture;
mod near_duplicates;
mod overlap;
mod pairs;
mod report;
mod scores;
mod share;

pub use choice::{ChoiceBy, ChoiceConfig, Prefer};
pub use chosen::{ChoiceReport, SourceChoice};
pub use ledger::{Ledger, SourceLedger};
pub use lengths::{Length, Lengths};
pub use mixture::{MixDistillation, MixedRow, MixtureConfig, MixtureOptions, Schedule};
#[cfg(feature = "teacher")]
pub(crate) use near_duplicates::near_duplicates_watched;
pub use near_duplicates::{NearDuplicate, near_duplicates};
pub use overlap::{Overlap, OverlapKind, overlaps};
pub(crate) use overlap::{TrainingProblems, plain};
pub use pairs::{AnswersKept, Join, Pairs, Source, normalized};
pub use report::{MixtureReport, SourceShare};
pub use scores::AnswerScores;
pub use share::Share;
