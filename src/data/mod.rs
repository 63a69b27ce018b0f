//! From records in files to batches of tokens.
//!
//! ```text
//! files --read--> Source --join--> Pairs --encode--> Encoded
//!                                    |                  |
//!                                    +-> MixDistillation +-> MixedRows -> Batch
//! ```

pub mod arith;
mod assign;
mod batch;
mod encode;
mod ledger;
mod mixture;
mod pairs;
mod report;
mod template;
mod tokenizer;

pub use batch::{Batch, MixedRows, Row, RowStream};
pub use encode::{Encoded, Example, Length, Lengths, TooLong};
pub use ledger::{Ledger, SourceLedger};
pub use mixture::{MixDistillation, MixedRow, MixtureConfig, Schedule, Share};
pub use pairs::{Join, Pairs, Source, normalized};
pub use report::{MixtureReport, SourceShare};
pub use template::{PlainTemplate, PromptTemplate};
pub use tokenizer::TextTokenizer;
