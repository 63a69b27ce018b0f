//! Files of records to train on.

use std::path::Path;

use super::collect::Collector;
use super::column_map::ColumnMap;
use super::data_files::DataFiles;
use super::data_sets::AnswerLength;
use super::left_out::check_share;
use super::record::Records;
use super::rows::read_files;
use crate::error::Result;

/// Reads the records of one file: JSONL, a JSON array, CSV, TSV or (feature `parquet`) Parquet.
///
/// The format is known by the content: `PAR1` begins a Parquet file, `[` a JSON array and anything
/// else in a `.jsonl` or `.ndjson` file, or `{` in any file, JSONL; `.csv` and `.tsv` files are tables
/// with a header, whose values are text. All but Parquet, which compresses within, may be compressed
/// with gzip or Zstandard. A byte order mark, CRLF line ends and blank lines are fine; NaN is read as
/// null, and an integer that no machine number holds as its text.
///
/// The columns are chosen on the first rows, by `columns` and by the usual names, and hold for
/// the whole file; [`Records::columns`] says which they are. Of a data set with long and short answers
/// the long ones are read. Records that cannot be used (no JSON, a
/// column of another type, no problem or no answer, a conversation that is not one exchange) are
/// left out and counted by reason, up to a share of `max_left_out` of the file's records; one is
/// allowed in any file, unless the share is 0. Those whose `correct` column says that they are wrong,
/// or says nothing, are left out and counted as well, in any number.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if the file cannot be opened or read;
/// [`Error::Config`](crate::Error::Config) if `columns` contradicts itself;
/// [`Error::Data`](crate::Error::Data) with file, line and column where too many records cannot be
/// used or no column is recognized, for a JSON array that breaks off, a compressed file that is cut off
/// or damaged, a row above 64 MiB, and a file without records.
///
/// # Panics
///
/// Not on any text. The `parquet` crate itself panics on some damaged files; that is caught and
/// returned as an error, after the process's panic hook has run, and cannot be caught in a build
/// with `panic = "abort"`, nor where such a file has it ask for more memory than there is.
pub fn read_records(
    path: impl AsRef<Path>,
    columns: &ColumnMap,
    max_left_out: f64,
) -> Result<Records> {
    read_record_files(&DataFiles::file(path.as_ref()), columns, AnswerLength::Long, max_left_out)
}

/// As [`read_records`], of all rows of some files as if they stood in one; of a data set with long and short
/// answers those of `length`.
///
/// # Errors
/// As [`read_records`].
pub(crate) fn read_record_files(
    files: &DataFiles,
    columns: &ColumnMap,
    length: AnswerLength,
    max_left_out: f64,
) -> Result<Records> {
    columns.check()?;
    check_share(max_left_out)?;
    let mut collector = Collector::new(files, columns, length);
    let rows = read_files(files.files(), &mut collector)?;
    let records = collector.finish(&rows, max_left_out);
    rows.explain(files.name(), records)
}
