//! From records in files to batches of tokens.

mod collect;
mod columns;
mod messages;
#[cfg(feature = "parquet")]
mod parquet;
mod read;
mod record;

pub use columns::ColumnMap;
pub use read::read_records;
pub use record::{Columns, CotRecord, Records};
