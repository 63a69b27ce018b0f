//! Batching: turns rows into tokens and lays them out in micro-batches.

mod batch;
mod encode;
mod packing;
mod top_tokens;
mod turns;

pub use batch::{Batch, MixedRows, Row, RowStream};
pub use encode::{Encoded, Example, LengthLimit, TooLong};
pub(crate) use encode::{hash_ranges, row_key};
pub use packing::{BatchLayout, BatchSize, Packing};
pub use top_tokens::TopTokens;
pub use turns::TrainedTurns;
