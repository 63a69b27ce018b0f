//! The file and line in which each key was given.

use super::path::KeyPath;
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Locations of keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(BTreeMap<KeyPath, Place>);

/// A file, if there is one, and a line, counted from 1.
#[derive(Clone, Debug)]
struct Place {
    file: Option<String>,
    line: usize,
    /// Whether the value is a list, which replaces an earlier one.
    is_list: bool,
}

impl Places {
    /// Returns the locations of all keys of a TOML text.
    pub(super) fn of(text: &str, path: Option<&Path>) -> Self {
        let mut places = Self::default();
        let file = path.map(|path| path.display().to_string());
        if let Ok(table) = DeTable::parse(text) {
            let mut finder = Finder { starts: line_starts(text), file, places: &mut places };
            finder.table(table.get_ref(), &KeyPath::default());
        }
        places
    }

    /// Returns the location of a key as a prefix for messages. Empty if it is unknown.
    pub(super) fn before(&self, path: &KeyPath) -> String {
        match self.0.get(path) {
            Some(Place { file: Some(file), line, .. }) => format!("{file}: line {line}: "),
            Some(Place { file: None, line, .. }) => format!("line {line}: "),
            None => String::new(),
        }
    }

    /// Adds the locations of a later layer.
    pub(super) fn add(&mut self, later: &Self) {
        for (path, place) in &later.0 {
            if place.is_list {
                self.forget(path);
            }
            self.0.insert(path.clone(), place.clone());
        }
    }

    /// Moves the locations of keys, and of all keys below them.
    pub(super) fn moved(&mut self, moved: &[(KeyPath, KeyPath)]) {
        for (from, to) in moved {
            let keys: Vec<KeyPath> =
                self.0.keys().filter(|key| key.0.starts_with(&from.0)).cloned().collect();
            for key in keys {
                if let Some(place) = self.0.remove(&key) {
                    let rest = key.0[from.0.len()..].iter();
                    let steps = to.0.iter().chain(rest).cloned().collect();
                    self.0.insert(KeyPath(steps), place);
                }
            }
        }
    }

    /// Removes the locations of a key and of all keys below it.
    pub(super) fn forget(&mut self, path: &KeyPath) {
        self.0.retain(|known, _| !known.0.starts_with(&path.0));
    }
}

/// Returns the line of a byte offset, counted from 1.
pub(super) fn line(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

fn line_starts(text: &str) -> Vec<usize> {
    let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect()
}

struct Finder<'p> {
    starts: Vec<usize>,
    file: Option<String>,
    places: &'p mut Places,
}

impl Finder<'_> {
    fn table(&mut self, table: &DeTable<'_>, at: &KeyPath) {
        for (key, value) in table {
            let at = at.with(key.get_ref().as_ref());
            self.found(&at, key.span().start, value.get_ref());
            self.within(value.get_ref(), &at);
        }
    }

    fn within(&mut self, value: &DeValue<'_>, at: &KeyPath) {
        match value {
            DeValue::Table(table) => self.table(table, at),
            DeValue::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    let at = at.with(index.to_string());
                    self.found(&at, value.span().start, value.get_ref());
                    self.within(value.get_ref(), &at);
                }
            }
            _ => {}
        }
    }

    fn found(&mut self, at: &KeyPath, byte: usize, value: &DeValue<'_>) {
        let line = self.starts.partition_point(|start| *start <= byte);
        let place = Place { file: self.file.clone(), line, is_list: value.is_array() };
        self.places.0.insert(at.clone(), place);
    }
}
