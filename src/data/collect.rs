//! Gathers the records of one file, whatever its format, and words the errors about them.

use std::path::Path;

use serde_json::{Map, Value};

use super::columns::{ColumnMap, Resolved, Taken};
use super::record::{Columns, CotRecord, Records};
use crate::error::{Error, Place, Result};

/// What a format counts its records by.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// JSONL: a record is a line, and [`Place`] says so already.
    Line,
    /// JSON array: a record spreads over lines.
    Item,
    /// Parquet.
    #[cfg(feature = "parquet")]
    Row,
}

/// Where a record stands, to say so in an error.
pub(super) struct At<'a> {
    path: &'a Path,
    /// Line, item or row, counted from 1.
    number: usize,
    unit: Unit,
    /// The file's columns where a record holds only some of them.
    columns: Option<&'a [String]>,
    /// Whether it is the record that the columns are chosen on.
    pub(super) is_first: bool,
}

impl At<'_> {
    /// An error about the record, or about one column of it.
    pub(super) fn error(
        &self,
        column: Option<&str>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Error {
        let mut place = Place::line(self.path, self.number);
        if let Some(column) = column {
            place = place.with_column(shortened(column));
        }
        let mut what = what.into();
        match self.unit {
            Unit::Line => {}
            Unit::Item => what.push_str(&format!(" (record {} of the list)", self.number)),
            #[cfg(feature = "parquet")]
            Unit::Row => what.push_str(&format!(" (row {})", self.number)),
        }
        Error::data(place, what, hint)
    }

    /// The record's columns as a list for people.
    pub(super) fn columns_of(&self, record: &Map<String, Value>) -> String {
        let mut names: Vec<&str> = match self.columns {
            Some(columns) => columns.iter().map(String::as_str).collect(),
            None => record.keys().map(String::as_str).collect(),
        };
        // The map's own order depends on a feature that any crate of the build can turn on.
        names.sort_unstable();
        if names.is_empty() { "none".to_owned() } else { quoted(names.into_iter()) }
    }
}

/// Takes the records of one file in order.
pub(super) struct Collector<'a> {
    path: &'a Path,
    map: &'a ColumnMap,
    unit: Unit,
    columns: Option<Vec<String>>,
    resolved: Option<Resolved>,
    records: Vec<CotRecord>,
    lines: Vec<u32>,
    empty_problems: usize,
    empty_solutions: usize,
    wrong: usize,
    system_turns: usize,
    read: usize,
    /// Raised by the JSONL reader.
    pub(super) blank_lines: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(path: &'a Path, map: &'a ColumnMap, unit: Unit) -> Self {
        Self {
            path,
            map,
            unit,
            columns: None,
            resolved: None,
            records: Vec::new(),
            lines: Vec::new(),
            empty_problems: 0,
            empty_solutions: 0,
            wrong: 0,
            system_turns: 0,
            read: 0,
            blank_lines: 0,
        }
    }

    /// Names the file's columns where the records that follow hold only some of them.
    #[cfg(feature = "parquet")]
    pub(super) fn set_columns(&mut self, columns: Vec<String>) {
        self.columns = Some(columns);
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Records taken so far.
    pub(super) fn read(&self) -> usize {
        self.read
    }

    /// Takes one record that stands at `number` (line, item or row, counted from 1).
    pub(super) fn push(&mut self, number: usize, value: &Value) -> Result<()> {
        let at = At {
            path: self.path,
            number,
            unit: self.unit,
            columns: self.columns.as_deref(),
            is_first: self.resolved.is_none(),
        };
        let Value::Object(record) = value else {
            return Err(at.error(
                None,
                format!("found {}, expected a record as a JSON object", described(value)),
                "Write each record as {\"problem\": \"...\", \"solution\": \"...\"}",
            ));
        };
        let Ok(line) = u32::try_from(number) else {
            return Err(at.error(None, "too many records for one file", "Split the file"));
        };
        let resolved = match &mut self.resolved {
            Some(resolved) => resolved,
            slot => slot.insert(Resolved::new(self.map, record, &at)?),
        };
        self.read += 1;
        match resolved.take(record, &at, &mut self.system_turns)? {
            Taken::Record(record) => {
                self.records.push(record);
                self.lines.push(line);
            }
            Taken::EmptyProblem => self.empty_problems += 1,
            Taken::EmptySolution => self.empty_solutions += 1,
            Taken::Wrong => self.wrong += 1,
        }
        Ok(())
    }

    /// All that was taken.
    ///
    /// # Errors
    ///
    /// If there was no record at all.
    pub(super) fn finish(self) -> Result<Records> {
        if self.read == 0 {
            return Err(no_records(self.path));
        }
        Ok(Records {
            records: self.records,
            lines: self.lines,
            columns: self.resolved.as_ref().map_or_else(Columns::default, Resolved::columns),
            blank_lines: self.blank_lines,
            empty_problems: self.empty_problems,
            empty_solutions: self.empty_solutions,
            wrong: self.wrong,
            system_turns: self.system_turns,
            read: self.read,
        })
    }
}

/// The error for a file without a single record.
pub(super) fn no_records(path: &Path) -> Error {
    Error::data(
        Place::file(path),
        "the file holds no records",
        "Check that it is the right file and that it was written to its end",
    )
}

/// What a value is, for people: `the number 12`, `a list of 3`.
pub(super) fn described(value: &Value) -> String {
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

/// `` `a`, `b` and 3 more ``.
pub(super) fn quoted<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 16;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<_> = names.take(SHOWN).map(|name| format!("`{}`", shortened(name))).collect();
    let mut text = shown.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// The start of a text that may be a whole solution, on one line.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
