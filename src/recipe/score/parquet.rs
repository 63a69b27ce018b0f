//! Writes scores as a Parquet file.

use super::RowScores;
use crate::error::{Error, Result};
use crate::files::write_whole;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The columns, named as in JSONL.
const SCHEMA: &str = "message scores {
    required binary row (UTF8);
    required binary source (UTF8);
    optional binary id (UTF8);
    required binary label (UTF8);
    required int64 prompt_tokens;
    required int64 tokens;
    required double nll;
    required double perplexity;
    required double rank;
    required double rsr;
    required double above_100;
    optional double lalp;
    optional int64 steps;
}";

/// Writes a file atomically.
pub(super) fn write(path: &Path, rows: &[RowScores]) -> Result<()> {
    write_whole(path, |file| {
        let failed = |e: ParquetError| Error::io("write", path, std::io::Error::other(e));
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(failed)?);
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).map_err(failed)?;
        let mut group = writer.next_row_group().map_err(failed)?;
        columns(&mut group, rows).map_err(failed)?;
        group.close().map_err(failed)?;
        writer.close().map(drop).map_err(failed)
    })
}

fn columns<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[RowScores],
) -> Result<(), ParquetError> {
    let text = |text: &str| ByteArray::from(text);
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    column::<ByteArrayType, _>(group, rows, |row| Some(text(&row.row)), false)?;
    column::<ByteArrayType, _>(group, rows, |row| Some(text(&row.source)), false)?;
    column::<ByteArrayType, _>(group, rows, |row| row.id.as_deref().map(text), true)?;
    column::<ByteArrayType, _>(group, rows, |row| Some(text(&row.label)), false)?;
    column::<Int64Type, _>(group, rows, |row| Some(whole(row.prompt_tokens)), false)?;
    column::<Int64Type, _>(group, rows, |row| Some(whole(row.tokens)), false)?;
    column::<DoubleType, _>(group, rows, |row| Some(row.nll), false)?;
    column::<DoubleType, _>(group, rows, |row| Some(row.perplexity), false)?;
    column::<DoubleType, _>(group, rows, |row| Some(row.rank), false)?;
    column::<DoubleType, _>(group, rows, |row| Some(row.rsr), false)?;
    column::<DoubleType, _>(group, rows, |row| Some(row.above_100), false)?;
    column::<DoubleType, _>(group, rows, |row| row.lalp, true)?;
    column::<Int64Type, _>(group, rows, |row| row.steps.map(whole), true)
}

/// Writes the next column. Optional values have definition levels.
fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[RowScores],
    of: impl Fn(&RowScores) -> Option<T::T>,
    optional: bool,
) -> Result<(), ParquetError> {
    let values: Vec<Option<T::T>> = rows.iter().map(of).collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("the schema has too few columns".into()));
    };
    let levels = optional.then_some(levels.as_slice());
    column.typed::<T>().write_batch(&values, levels, None)?;
    column.close()
}
