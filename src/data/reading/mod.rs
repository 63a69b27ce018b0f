//! Reading: turns rows of files in several formats into records with a problem and an answer.

pub(crate) mod asked;
mod collect;
mod column;
mod column_map;
mod columns;
mod csv;
mod data_files;
mod data_sets;
pub(crate) mod describe;
mod json_array;
pub(crate) mod left_out;
pub(crate) mod lenient_json;
mod messages;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod problem_text;
mod prompts;
mod read;
pub(crate) mod record;
pub(crate) mod row_at;
pub(crate) mod rows;
mod take_row;
#[cfg(all(feature = "parquet", feature = "teacher"))]
mod text_table;
mod unpacked;

pub(crate) use column::value_at;
pub use column_map::ColumnMap;
pub use data_files::DataFiles;
pub(crate) use data_files::{Datasets, short_name};
#[cfg(feature = "hub")]
pub(crate) use data_files::{FileKind, READABLE};
pub(crate) use data_sets::{AnswerLength, bare_solution};
pub(crate) use describe::{described, quoted};
pub use left_out::{LeftOut, LeftOutReason, MAX_LEFT_OUT};
#[cfg(feature = "teacher")]
pub(crate) use messages::part_text;
pub use prompts::{PromptRow, PromptRows, read_prompt_files, read_prompts};
pub(crate) use read::read_record_files;
pub use read::read_records;
pub use record::{Columns, CotRecord, Records};
#[cfg(all(feature = "parquet", feature = "teacher"))]
pub(crate) use text_table::TextTable;
#[cfg(feature = "hub")]
pub(crate) use unpacked::stem_of_name;
