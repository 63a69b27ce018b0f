//! Locations of rows in files, and the columns that files declare.

use crate::error::{Error, Place};
use std::path::Path;

/// The unit in which a format counts rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// JSONL: a row is a line, which [`Place`] shows.
    Line,
    /// JSON array: a row may span lines.
    Item,
    /// Parquet.
    #[cfg(feature = "parquet")]
    Row,
}

/// A column of a file that declares its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileColumn {
    pub(crate) name: String,
    pub(crate) is_text: bool,
}

/// The location of a row: its line, item, or row number, counted from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowAt<'a> {
    pub(crate) path: &'a Path,
    pub(crate) number: usize,
    pub(crate) unit: Unit,
}

impl RowAt<'_> {
    /// Adds the row to a description if [`Place`] does not show it.
    pub(crate) fn what(&self, what: impl Into<String>) -> String {
        let what = what.into();
        match self.unit {
            Unit::Line => what,
            Unit::Item => format!("{what} (record {} of the list)", self.number),
            #[cfg(feature = "parquet")]
            Unit::Row => format!("{what} (row {})", self.number),
        }
    }

    /// Returns an error about the row.
    pub(crate) fn error(&self, what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::data(Place::line(self.path, self.number), self.what(what), hint)
    }
}
