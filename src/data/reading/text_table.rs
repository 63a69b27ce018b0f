//! Writes Parquet files of text columns, for other programs.

use crate::error::{Error, Result};
use parquet::basic::{
    Compression, ConvertedType, LogicalType, Repetition, Type as Physical, ZstdLevel,
};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of text in a row group.
const GROUP_BYTES: usize = 32 << 20;

/// A file with `N` columns, written row by row.
pub(crate) struct TextTable<W: Write + Send, const N: usize> {
    writer: SerializedFileWriter<W>,
    columns: [Vec<ByteArray>; N],
    bytes: usize,
    path: PathBuf,
}

impl<W: Write + Send, const N: usize> TextTable<W, N> {
    /// Creates a file with these columns. `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn new(file: W, names: [&str; N], path: &Path) -> Result<Self> {
        let failed = |e| Self::failed(path, e);
        let column = |name: &str| {
            Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
                .with_repetition(Repetition::REQUIRED)
                .with_logical_type(Some(LogicalType::String))
                .with_converted_type(ConvertedType::UTF8)
                .build()
                .map(Arc::new)
        };
        let fields = names.iter().map(|name| column(name)).collect::<Result<_, _>>();
        let schema = fields
            .and_then(|fields| Type::group_type_builder("schema").with_fields(fields).build())
            .map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties));
        let writer = writer.map_err(failed)?;
        Ok(Self { writer, columns: std::array::from_fn(|_| vec![]), bytes: 0, path: path.into() })
    }

    fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
        Error::io("write", path, std::io::Error::other(error))
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn row(&mut self, values: [&str; N]) -> Result<()> {
        for (column, value) in self.columns.iter_mut().zip(values) {
            self.bytes += value.len();
            column.push(ByteArray::from(value));
        }
        if self.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<()> {
        let path = &self.path;
        let failed = |e| Self::failed(path, e);
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for values in &mut self.columns {
            let column = group.next_column().map_err(failed)?;
            if let Some(mut column) = column {
                let typed = column.typed::<ByteArrayType>();
                typed.write_batch(values, None, None).map_err(failed)?;
                column.close().map_err(failed)?;
            }
            values.clear();
        }
        group.close().map_err(failed)?;
        self.bytes = 0;
        Ok(())
    }

    /// Finishes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn finish(mut self) -> Result<()> {
        if !self.columns[0].is_empty() {
            self.write_group()?;
        }
        let path = self.path;
        self.writer.close().map(|_| ()).map_err(|e| Self::failed(&path, e))
    }
}
