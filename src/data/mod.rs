//! From records in files to batches of tokens: read answers, pair them by problem, mix them, and encode them.
//!
//! A [`Source`] has one teacher's answers. [`Pairs`] joins sources by problem, and the [`Ledger`] accounts
//! for every record. [`MixDistillation`] picks one answer per problem with exact shares, which its
//! [`MixtureReport`] shows. [`Encoded`] holds the tokens, and [`MixedRows`] streams them to training as
//! [`Batch`]es. [`TextTokenizer`], [`ChatTemplate`], and [`ChatFormat`] lay out prompts and answers.
//!
//! ```
//! use mixdistill::data::{
//!     CotRecord, Join, MixDistillation, MixtureConfig, MixtureOptions, Pairs, Source,
//! };
//! use std::sync::Arc;
//!
//! // Two teachers' answers to the same problems. `Source::read` reads them from files.
//! let records = |answer: fn(usize) -> String| {
//!     let record = |n: usize| CotRecord {
//!         problem: format!("What is {n} + {n}?"),
//!         solution: answer(n),
//!         ..CotRecord::default()
//!     };
//!     (1..=10).map(record).collect()
//! };
//! let long = Source::new("long", records(|n| format!("Let me double {n}. {n} + {n} = {}.", 2 * n)));
//! let short = Source::new("short", records(|n| (2 * n).to_string()));
//!
//! // Pair them by problem.
//! let (pairs, ledger) = Pairs::join(vec![long, short], Join::Inner)?;
//! assert_eq!((pairs.len(), ledger.adds_up()), (10, true));
//!
//! // Mix them: one answer per problem, exactly a fifth of them long.
//! let options = MixtureOptions { seed: 1, ..MixtureOptions::default() };
//! let mixture = MixDistillation::new(Arc::new(pairs), MixtureConfig::long_short(0.2), options)?;
//! let report = mixture.report();
//! assert_eq!((report.sources[0].rows, report.sources[1].rows), (2, 8));
//! println!("{ledger}\n{report}");
//! # Ok::<(), mixdistill::Error>(())
//! ```
//!
//! The data flow:
//!
//! ```text
//! reading: files -> Source      mixing: Source -> Pairs -> MixDistillation
//! chat:    prompt and answer -> tokens      batching: tokens -> Encoded -> MixedRows -> Batch
//! ```
//!
//! New data formats belong in `reading`, new prompt layouts in `chat`.

pub mod arith;
pub(crate) mod batching;
pub(crate) mod chat;
pub(crate) mod mixing;
pub(crate) mod reading;

pub use batching::{
    Batch, BatchLayout, BatchSize, Encoded, Example, LengthLimit, MixedRows, Packing, Row,
    RowStream, TooLong, TopTokens, TrainedTurns,
};
pub(crate) use chat::TokenizerConfig;
pub use chat::{
    ChatFormat, ChatTemplate, EarlierTurn, Message, PlainTemplate, Prompt, PromptTemplate,
    RowTokens, TextTokenizer,
};
#[cfg(feature = "teacher")]
pub(crate) use mixing::near_duplicates_watched;
pub use mixing::{
    AnswerScores, AnswersKept, ChoiceBy, ChoiceConfig, ChoiceReport, Join, Ledger, Length, Lengths,
    MixDistillation, MixedRow, MixtureConfig, MixtureOptions, MixtureReport, NearDuplicate,
    Overlap, OverlapKind, Pairs, Prefer, Schedule, Share, Source, SourceChoice, SourceLedger,
    SourceShare, near_duplicates, normalized, overlaps,
};
pub(crate) use mixing::{TrainingProblems, plain};
pub use reading::{
    ColumnMap, Columns, CotRecord, DataFiles, LeftOut, LeftOutReason, MAX_LEFT_OUT, PromptRow,
    PromptRows, Records, read_prompt_files, read_prompts, read_records,
};
