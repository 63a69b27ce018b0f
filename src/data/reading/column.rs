//! Columns by name, and what the first rows of a file reveal about them.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::column_map::Choice;
use super::describe::{At, described, holds_text, shortened};
use super::messages;
use crate::error::Result;

/// A column by its name: a key of the record or a dotted path.
pub(super) struct Column {
    pub(super) name: String,
    is_path: bool,
}

impl Column {
    pub(super) fn key(name: &str) -> Self {
        Self { name: name.to_owned(), is_path: false }
    }

    /// Returns a known column, whose name may be a path.
    pub(super) fn path(name: &str) -> Self {
        Self { name: name.to_owned(), is_path: name.contains('.') }
    }

    /// Returns a column named by the user: a key of some row, or else a path.
    pub(super) fn of(name: &str, first: &FirstRows<'_>) -> Self {
        let is_key = first.rows.iter().any(|row| row.contains_key(name));
        Self { name: name.to_owned(), is_path: !is_key && name.contains('.') }
    }

    /// Returns a column that the user named for `key` of a [`ColumnMap`](super::ColumnMap). At least one of
    /// the first rows must have it.
    pub(super) fn named(key: &str, name: &str, first: &FirstRows<'_>, at: &At<'_>) -> Result<Self> {
        let column = Self::of(name, first);
        if first.rows.iter().any(|row| column.find(row).is_ok()) {
            return Ok(column);
        }
        let reason = first.rows.first().and_then(|row| column.find(row).err()).unwrap_or_default();
        let record = first.rows.first().copied();
        let error = at.error(
            Some(&column.name),
            format!(
                "the record lacks it{reason}; its columns are {}",
                record.map_or_else(|| "none".to_owned(), |record| at.columns_of(record))
            ),
            "Check the spelling, or remove the setting to detect the column by its name",
        );
        Err(error.with_key(format!("columns.{key}")))
    }

    /// Returns the column's value in a record. A null along the path makes it null. If the value is missing,
    /// returns the reason.
    pub(super) fn find<'r>(
        &self,
        record: &'r Map<String, Value>,
    ) -> Result<Cow<'r, Value>, String> {
        if !self.is_path {
            return record.get(&self.name).map(Cow::Borrowed).ok_or_else(String::new);
        }
        let mut steps = self.name.split('.');
        let first = steps.next().unwrap_or_default();
        let mut walked = first.len();
        let mut value = record.get(first).map(Cow::Borrowed).ok_or_else(String::new)?;
        for step in steps {
            let missing = || {
                format!(": `{}` is {}, without `{step}`", &self.name[..walked], described(&value))
            };
            let next = match &value {
                Cow::Borrowed(Value::Null) => return Ok(value),
                Cow::Borrowed(value) => match value {
                    // Data frames and CSV files have lists as text.
                    Value::String(text) => messages::list_in(text)
                        .and_then(|list| list.into_iter().nth(step.parse().ok()?))
                        .map(Cow::Owned),
                    value => within(value, step).map(Cow::Borrowed),
                },
                Cow::Owned(value) => within(value, step).cloned().map(Cow::Owned),
            };
            value = next.ok_or_else(missing)?;
            walked += 1 + step.len();
        }
        Ok(value)
    }
}

/// Returns the value of a column in a row, by its key or a dotted path.
pub(crate) fn value_at<'r>(row: &'r Map<String, Value>, name: &str) -> Option<Cow<'r, Value>> {
    let is_path = !row.contains_key(name) && name.contains('.');
    Column { name: name.to_owned(), is_path }.find(row).ok()
}

/// Returns an element of a list or object.
fn within<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Object(object) => object.get(step),
        Value::Array(list) => step.parse().ok().and_then(|index: usize| list.get(index)),
        _ => None,
    }
}

/// An optional column: the named one, or the first of the usual ones that has a value in a row.
#[derive(Default)]
pub(super) struct Optional {
    columns: Vec<Column>,
    is_named: bool,
    /// Which of the columns some row had, one bit each.
    seen: Cell<u32>,
    /// Which of the columns were read.
    read: Cell<u32>,
}

impl Optional {
    pub(super) fn new(
        choice: Choice<'_>,
        usual: &[&str],
        taken: &[&str],
        first: &FirstRows<'_>,
    ) -> Self {
        match choice {
            Choice::LeftOut => Self::default(),
            Choice::Named(name) => {
                let columns = vec![Column::of(name, first)];
                Self { columns, is_named: true, ..Self::default() }
            }
            Choice::Usual => {
                let free = usual.iter().filter(|name| !taken.contains(name));
                let columns = free.map(|name| Column::key(name)).collect();
                Self { columns, ..Self::default() }
            }
        }
    }

    pub(super) fn of(column: Column) -> Self {
        Self { columns: vec![column], ..Self::default() }
    }

    /// Returns the first of the columns with a value in a row, and that value.
    pub(super) fn find<'r>(
        &self,
        record: &'r Map<String, Value>,
    ) -> Option<(&Column, Cow<'r, Value>)> {
        for (index, column) in self.columns.iter().enumerate() {
            let Ok(value) = column.find(record) else { continue };
            self.seen.set(self.seen.get() | 1 << index);
            if says_something(&value) {
                self.read.set(self.read.get() | 1 << index);
                return Some((column, value));
            }
        }
        None
    }

    /// Returns the names of the columns that were read. For usual columns, also one that was always null.
    pub(super) fn names(&self) -> Vec<&str> {
        let with = |bits: u32| {
            let columns = self.columns.iter().enumerate();
            columns.filter(move |(index, _)| bits >> index & 1 == 1).map(|(_, c)| c.name.as_str())
        };
        let read: Vec<&str> = with(self.read.get()).collect();
        if read.is_empty() { with(self.seen.get()).take(1).collect() } else { read }
    }

    pub(super) fn shown(&self) -> Option<String> {
        let names = self.names();
        (!names.is_empty()).then(|| names.join("|"))
    }

    /// Returns the named column, if no row has it.
    pub(super) fn missing(&self) -> Option<&str> {
        let column = self.columns.first().filter(|_| self.is_named && self.seen.get() == 0)?;
        Some(&column.name)
    }
}

/// Returns whether a value is neither null nor blank.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        _ => true,
    }
}

/// The first rows of a file, which determine its columns.
pub(super) struct FirstRows<'r> {
    pub(super) rows: Vec<&'r Map<String, Value>>,
    /// Further columns with text, which may not be decoded in these rows.
    pub(super) other_texts: Vec<String>,
}

impl FirstRows<'_> {
    /// Returns the number of rows with a value in a column.
    pub(super) fn values(&self, column: &Column) -> usize {
        let says =
            |row: &&&Map<String, Value>| column.find(row).is_ok_and(|value| says_something(&value));
        self.rows.iter().filter(says).count()
    }

    /// Returns whether at least half of the rows have a value in a column.
    pub(super) fn mostly_have(&self, name: &str) -> bool {
        2 * self.values(&Column::path(name)) >= self.rows.len()
    }

    /// Returns the first of `names` with a value in at least half of the rows; else the first with a value in
    /// any row; else the first that any row has.
    pub(super) fn recognized(&self, names: &[&str], taken: Option<&str>) -> Option<Column> {
        let free =
            || names.iter().filter(|name| taken != Some(**name)).map(|name| Column::key(name));
        free()
            .find(|column| 2 * self.values(column) >= self.rows.len())
            .or_else(|| free().find(|column| self.values(column) > 0))
            .or_else(|| free().find(|column| self.rows.iter().any(|row| column.find(row).is_ok())))
    }

    /// Returns whether most values of a column are bare final answers without working.
    pub(super) fn is_bare(&self, column: &str) -> bool {
        let texts = self.rows.iter().filter_map(|row| match row.get(column)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let (bare, longer): (Vec<String>, Vec<String>) = texts.partition(|text| is_bare(text));
        bare.len() > longer.len()
    }

    /// Returns the top-level columns with text.
    pub(super) fn texts(&self) -> BTreeSet<&str> {
        let mut names: BTreeSet<&str> = self.other_texts.iter().map(String::as_str).collect();
        for row in &self.rows {
            names.extend(
                row.iter().filter(|(_, v)| holds_text(v, 4)).map(|(name, _)| name.as_str()),
            );
        }
        names
    }
}

/// Returns whether a text is a bare final answer without working.
pub(super) fn is_bare(text: &str) -> bool {
    const LONGEST: usize = 32;
    const MOST_WORDS: usize = 3;
    text.chars().count() <= LONGEST && text.split_whitespace().count() <= MOST_WORDS
}

/// Names seen in a file, up to a maximum.
#[derive(Default)]
pub(super) struct Names {
    names: BTreeSet<String>,
    more: usize,
}

impl Names {
    const MOST: usize = 1024;

    pub(super) fn add(&mut self, name: &str) {
        if self.names.contains(name) {
            return;
        }
        match self.names.len() < Self::MOST {
            true => drop(self.names.insert(name.to_owned())),
            false => self.more += 1,
        }
    }

    /// Returns the names that pass `test`, shortened, and the number of the rest.
    pub(super) fn shown(
        &self,
        test: impl Fn(&str) -> bool,
        show: impl Fn(&str) -> String,
    ) -> Vec<String> {
        const SHOWN: usize = 64;
        let names: Vec<&String> = self.names.iter().filter(|name| test(name)).collect();
        let more = names.len().saturating_sub(SHOWN) + self.more;
        let mut shown: Vec<String> =
            names.into_iter().take(SHOWN).map(|name| shortened(&show(name))).collect();
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        shown
    }
}
