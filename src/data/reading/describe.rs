//! Descriptions of values, columns, and locations for messages.

use super::row_at::{FileColumn, RowAt};
use crate::error::{Error, Place};
use serde_json::{Map, Value};

/// The location of a record, for errors.
pub(super) struct At<'a> {
    pub(super) row: RowAt<'a>,
    /// The file's columns, if a record has only some of them.
    pub(super) columns: Option<&'a [FileColumn]>,
}

impl At<'_> {
    /// Returns an error about the record, or about one column of it.
    pub(super) fn error(
        &self,
        column: Option<&str>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Error {
        let mut place = Place::line(self.row.path, self.row.number);
        if let Some(column) = column {
            place = place.with_column(shortened(column));
        }
        Error::data(place, self.row.what(what), hint)
    }

    /// Returns the record's columns, as a readable list.
    pub(super) fn columns_of(&self, record: &Map<String, Value>) -> String {
        let mut names: Vec<&str> = match self.columns {
            Some(columns) => columns.iter().map(|column| column.name.as_str()).collect(),
            None => record.keys().map(String::as_str).collect(),
        };
        // The map's order depends on a feature that any crate in the build can enable.
        names.sort_unstable();
        if names.is_empty() { "none".to_owned() } else { quoted(names.into_iter()) }
    }
}

/// Returns whether a value contains text.
pub(super) fn holds_text(value: &Value, depth: usize) -> bool {
    match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) if depth > 0 => list.iter().any(|value| holds_text(value, depth - 1)),
        Value::Object(map) if depth > 0 => map.values().any(|value| holds_text(value, depth - 1)),
        _ => false,
    }
}

/// Describes a value: `the number 12`, `a list of 3`.
pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {:?}", shortened(text)),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(object) if object.is_empty() => "an empty object".to_owned(),
        Value::Object(object) => {
            format!("an object with {}", quoted(object.keys().map(String::as_str)))
        }
    }
}

/// Formats names as `` `a`, `b` and 3 more ``.
pub(crate) fn quoted<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 16;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<_> = names.take(SHOWN).map(|name| format!("`{}`", shortened(name))).collect();
    let mut text = shown.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Returns the beginning of a text, which may be a whole solution, on one line.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
