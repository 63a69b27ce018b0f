//! Batching: rows as tokens, laid out in micro-batches.

mod batch;
mod encode;
mod packing;
mod top_tokens;

pub use batch::{Batch, MixedRows, Row, RowStream};
pub(crate) use encode::row_key;
pub use encode::{Encoded, Example, LengthLimit, TooLong};
pub use packing::{BatchLayout, Packing};
pub use top_tokens::TopTokens;
