//! Parquet files, row by row.
//!
//! Only relevant columns are decoded, so a wide file costs no more than its texts, and unused columns may
//! have unsupported types.

use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use parquet::basic::{Compression, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Number, Value};

use super::row_at::{FileColumn, RowAt, Unit};
use super::rows::{RowSink, no_records};
use crate::error::{Error, Place, Result};

/// How to write a file that this reader supports.
const REWRITE: &str = "Download or write the file again, for example with pandas: \
     frame.to_parquet(path, compression=\"snappy\")";

/// Reads a file that starts with Parquet's magic bytes.
pub(super) fn read(file: File, path: &Path, sink: &mut dyn RowSink) -> Result<()> {
    // The crate checks some invariants with `assert!` and `panic!`, which a damaged file can trigger. After
    // an error, the caller discards the sink.
    panic::catch_unwind(AssertUnwindSafe(|| read_rows(file, path, sink))).unwrap_or_else(|_| {
        Err(Error::data(Place::file(path), "the Parquet file is damaged", REWRITE))
    })
}

fn read_rows(file: File, path: &Path, sink: &mut dyn RowSink) -> Result<()> {
    let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, &error, None))?;
    if reader.metadata().file_metadata().num_rows() == 0 {
        return Err(no_records(path));
    }
    let schema = reader.metadata().file_metadata().schema();
    let columns = schema
        .get_fields()
        .iter()
        .map(|field| FileColumn { name: field.name().to_owned(), is_text: is_text(field) });
    sink.columns(columns.collect());
    let fields: Vec<TypePtr> =
        schema.get_fields().iter().filter(|field| sink.wants(field.name())).cloned().collect();
    let at = |number: usize| RowAt { path, number, unit: Unit::Row };
    if fields.is_empty() && sink.is_later_file() {
        let what = "it has none of the columns of the files before it";
        return Err(Error::data(Place::file(path), what, "Give files that belong together"));
    }
    if fields.is_empty() {
        // The sink reports what is missing.
        return sink.row(at(1), Map::new());
    }
    check_compression(&reader, path, sink)?;
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build()
        .map_err(|error| damaged(path, &error, None))?;
    let rows =
        RowIter::from_file(Some(projection), &reader).map_err(|e| damaged(path, &e, None))?;
    for (index, row) in rows.enumerate() {
        let row = row.map_err(|error| damaged(path, &error, Some(index + 1)))?;
        if u32::try_from(index + 1).is_err() {
            return Err(at(index + 1).error("too many records for one file", "Split the file"));
        }
        sink.row(at(index + 1), object(row.into_columns()))?;
    }
    Ok(())
}

/// Returns whether a column contains text, possibly nested.
fn is_text(field: &Type) -> bool {
    match field {
        Type::PrimitiveType { physical_type, .. } => *physical_type == Physical::BYTE_ARRAY,
        Type::GroupType { fields, .. } => fields.iter().any(|field| is_text(field)),
    }
}

/// Refuses unsupported codecs, with a hint.
fn check_compression(
    reader: &SerializedFileReader<File>,
    path: &Path,
    sink: &dyn RowSink,
) -> Result<()> {
    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            let parts = column.column_path().parts();
            if !parts.first().is_some_and(|name| sink.wants(name)) {
                continue;
            }
            match column.compression() {
                Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::ZSTD(_)
                | Compression::GZIP(_)
                | Compression::BROTLI(_)
                | Compression::LZ4
                | Compression::LZ4_RAW => {}
                other => {
                    let name = other.to_string();
                    let codec = name.split('(').next().unwrap_or(&name);
                    return Err(Error::data(
                        Place::file(path).with_column(parts.join(".")),
                        format!(
                            "compressed with {codec}, expected SNAPPY, ZSTD, GZIP, BROTLI, LZ4 or none"
                        ),
                        REWRITE,
                    ));
                }
            }
        }
    }
    Ok(())
}

fn damaged(path: &Path, error: &parquet::errors::ParquetError, row: Option<usize>) -> Error {
    let place = match row {
        Some(row) => Place::line(path, row),
        None => Place::file(path),
    };
    let text = error.to_string();
    // The crate's message includes every byte of the text.
    if text.contains("BYTE_ARRAY as String") {
        return Error::data(place, "a text of the row is not UTF-8", REWRITE);
    }
    let text: String = text.chars().take(160).collect();
    Error::data(place, format!("the Parquet file cannot be read: {text}"), REWRITE)
}

fn object(fields: Vec<(String, Field)>) -> Map<String, Value> {
    fields.into_iter().map(|(name, field)| (name, value(field))).collect()
}

/// Converts a field to JSON. Dates and times become their display text.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float(value.to_f64()),
        // Via its decimal digits, so that 0.1 in 32 bits does not become 0.10000000149011612.
        Field::Float(value) => float(value.to_string().parse().unwrap_or(f64::from(value))),
        Field::Double(value) => float(value),
        Field::Str(text) => text.into(),
        // Older writers do not annotate text as text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bytes.data().to_vec().into(),
        },
        Field::Group(row) => Value::Object(object(row.into_columns())),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(key, entry)| (key_text(key), value(entry.clone())))
                .collect(),
        ),
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    }
}

/// Converts a float. NaN, which data frames write for missing numbers, becomes null.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn key_text(key: &Field) -> String {
    match key {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::data::reading::left_out::Unusable;

    #[derive(Default)]
    struct Rows(Vec<Value>);

    impl RowSink for Rows {
        fn wants(&self, _: &str) -> bool {
            true
        }

        fn columns(&mut self, _: Vec<FileColumn>) {}

        fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()> {
            assert_eq!(at.number, self.0.len() + 1);
            self.0.push(Value::Object(row));
            Ok(())
        }

        fn unusable(&mut self, unusable: Unusable) {
            panic!("{unusable:?}");
        }
    }

    /// Files written by pyarrow with `make_files.py`: every codec, dictionary and other encodings, both page
    /// versions, large strings, string views, lists in lists of objects with nulls at each level, and three
    /// row groups of several pages each.
    #[test]
    fn rows_of_pyarrow_are_read_as_pyarrow_reads_them() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reading/files");
        let expected = std::fs::read_to_string(folder.join("parquet.json")).unwrap();
        let expected: Vec<Value> = serde_json::from_str(&expected).unwrap();
        for name in ["none", "snappy", "gzip", "brotli", "lz4", "zstd", "delta", "old"] {
            let path = folder.join(format!("{name}.parquet"));
            let mut rows = Rows::default();
            read(File::open(&path).unwrap(), &path, &mut rows).unwrap();
            assert_eq!(rows.0.len(), 40);
            for (row, expected) in rows.0.iter().zip(&expected) {
                assert_eq!(row, expected, "{name}");
            }
        }
    }
}
