//! Where rows stand in their files, and the columns that files name.

use crate::error::{Error, Place};
use std::path::Path;

/// What a format counts its rows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// JSONL: a row is a line, and [`Place`] says so already.
    Line,
    /// JSON array: a row spreads over lines.
    Item,
    /// Parquet.
    #[cfg(feature = "parquet")]
    Row,
}

/// A column of a file that names its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileColumn {
    pub(crate) name: String,
    pub(crate) is_text: bool,
}

/// Where a row stands: its line, item or row, counted from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowAt<'a> {
    pub(crate) path: &'a Path,
    pub(crate) number: usize,
    pub(crate) unit: Unit,
}

impl RowAt<'_> {
    /// What was found, with the row where [`Place`] does not say it.
    pub(crate) fn what(&self, what: impl Into<String>) -> String {
        let what = what.into();
        match self.unit {
            Unit::Line => what,
            Unit::Item => format!("{what} (record {} of the list)", self.number),
            #[cfg(feature = "parquet")]
            Unit::Row => format!("{what} (row {})", self.number),
        }
    }

    /// An error about the row.
    pub(crate) fn error(&self, what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::data(Place::line(self.path, self.number), self.what(what), hint)
    }
}
