//! From records in files to batches of tokens.
//!
//! ```text
//! reading: files -> Source      mixing: Source -> Pairs -> MixDistillation
//! chat:    prompt and answer -> tokens      batching: tokens -> Encoded -> MixedRows -> Batch
//! ```
//!
//! A data format is added in `reading` (a row as a record), a layout of prompts in `chat`.

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
