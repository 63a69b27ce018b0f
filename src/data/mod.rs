//! From records in files to batches of tokens.
//!
//! ```text
//! files --read--> Source --join--> Pairs --encode--> Encoded
//!                                    |                  |
//!                                    +-> MixDistillation +-> MixedRows -> Batch
//! ```

pub mod arith;
pub(crate) mod asked;
mod assign;
mod batch;
mod chat;
mod chat_format;
mod collect;
mod column;
mod column_map;
mod columns;
mod encode;
mod json_array;
mod layout;
mod ledger;
pub(crate) mod left_out;
pub(crate) mod lenient_json;
mod messages;
mod mixture;
mod near_duplicates;
mod overlap;
mod pairs;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod problem_text;
mod prompts;
mod python_json;
mod read;
pub(crate) mod reasoning;
mod record;
mod report;
pub(crate) mod rows;
mod take_row;
mod template;
#[cfg(all(feature = "parquet", feature = "teacher"))]
mod text_table;
pub(crate) mod tokenizer;
mod top_tokens;

pub use batch::{Batch, MixedRows, Row, RowStream};
pub use chat::{ChatTemplate, Message};
pub use chat_format::ChatFormat;
pub(crate) use collect::{described, quoted};
pub(crate) use column::value_at;
pub use column_map::ColumnMap;
pub use encode::{Encoded, Example, Length, Lengths, TooLong};
pub use layout::{Layout, Packing};
pub use ledger::{Ledger, SourceLedger};
pub use left_out::{LeftOut, LeftOutReason, MAX_LEFT_OUT};
#[cfg(feature = "teacher")]
pub(crate) use messages::part_text;
pub use mixture::{MixDistillation, MixedRow, MixtureConfig, Schedule, Share};
pub use near_duplicates::{NearDuplicate, near_duplicates};
pub use overlap::{Overlap, OverlapKind, overlaps};
pub use pairs::{Join, Pairs, Source, normalized};
pub use prompts::{PromptRow, PromptRows, read_prompts};
pub use read::read_records;
pub use record::{Columns, CotRecord, Records};
pub use report::{MixtureReport, SourceShare};
pub use template::{PlainTemplate, Prompt, PromptTemplate, RowTokens};
#[cfg(all(feature = "parquet", feature = "teacher"))]
pub(crate) use text_table::TextTable;
pub use tokenizer::TextTokenizer;
pub use top_tokens::TopTokens;
pub(crate) use top_tokens::row_key;
