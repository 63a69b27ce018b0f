//! Files of training records.

use std::path::Path;

use super::collect::Collector;
use super::column_map::ColumnMap;
use super::data_files::DataFiles;
use super::data_sets::AnswerLength;
use super::left_out::check_share;
use super::record::Records;
use super::rows::read_files;
use crate::error::Result;

/// Reads the records of one file: JSONL, a JSON array, CSV, TSV, or (feature `parquet`) Parquet.
///
/// The format is detected by content: `PAR1` starts a Parquet file, `[` a JSON array, and `{` JSONL. Other
/// files with the extension `.jsonl` or `.ndjson` are JSONL as well. `.csv` and `.tsv` files are tables with
/// a header, whose values are text. All formats but Parquet, which has its own compression, may be compressed
/// with gzip or Zstandard. Byte order marks, CRLF, and blank lines are allowed. NaN is read as null, and an
/// integer that fits no 64-bit type as text.
///
/// The first rows, `columns`, and the usual names determine the columns for the whole file, which
/// [`Records::columns`] reports. From a dataset with long and short answers, the long ones are read.
/// Unusable records (invalid JSON, a column of another type, no problem or answer, a conversation that is not
/// a sequence of exchanges) are left out and counted by reason, up to a share of `max_left_out` of the file's
/// records. One is always allowed, unless the share is 0. Records whose `correct` column marks them as wrong,
/// or has no verdict, are left out and counted as well, in any number.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if the file cannot be opened or read;
/// [`Error::Config`](crate::Error::Config) if `columns` contradicts itself;
/// [`Error::Data`](crate::Error::Data) with file, line, and column if too many records are unusable or no
/// column is recognized, and for an unterminated JSON array, a truncated or damaged compressed file, a row
/// above 64 MiB, or a file without records.
///
/// # Panics
///
/// Never on text. The `parquet` crate panics on some damaged files; that panic is caught and returned as an
/// error, after the process's panic hook has run. It cannot be caught in a build with `panic = "abort"`, or
/// if such a file requests more memory than is available.
pub fn read_records(
    path: impl AsRef<Path>,
    columns: &ColumnMap,
    max_left_out: f64,
) -> Result<Records> {
    read_record_files(&DataFiles::file(path.as_ref()), columns, AnswerLength::Long, max_left_out)
}

/// Like [`read_records`], for several files that are read as one. From a dataset with long and short
/// answers, reads those of `length`.
///
/// # Errors
/// See [`read_records`].
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
