//! Collects the records of one or several files of any format, and creates the errors about them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::column::{FirstRows, Names};
use super::column_map::ColumnMap;
use super::columns::{Resolved, Taken, Texts, may_read};
use super::data_files::DataFiles;
use super::data_sets::AnswerLength;
use super::describe::{At, holds_text, shortened};
use super::left_out::{Limit, Tally, Unusable};
use super::messages;
use super::record::{CotRecord, Records};
use super::row_at::{FileColumn, RowAt, Unit};
use super::rows::{RowSink, RowsRead, no_records};
use super::take_row::{NO_ANSWER, NO_PROBLEM, ONLY_REASONING};
use crate::error::{Error, Place, Result};

/// Number of rows that determine the columns.
const FIRST_ROWS: usize = 64;

/// The location of a row: its file, and its number there.
#[derive(Clone, Copy, Default)]
struct Spot {
    file: usize,
    number: usize,
}

/// Collects the records of all files in order.
pub(super) struct Collector<'a> {
    /// The common name of the files.
    path: &'a Path,
    files: &'a [PathBuf],
    /// The index of the current file.
    file: usize,
    map: &'a ColumnMap,
    length: AnswerLength,
    columns: Option<Vec<FileColumn>>,
    /// The first rows, until the columns are determined.
    first: Vec<(Spot, Map<String, Value>)>,
    unit: Unit,
    resolved: Option<Resolved>,
    /// Columns with text.
    texts: Names,
    /// Fields with text in the turns of conversations.
    turn_fields: Names,
    /// The first row's location and columns.
    first_row: Option<(Spot, String)>,
    surrogates: usize,
    with_reasoning: usize,
    /// Records whose reasoning was between markers.
    marked: usize,
    records: Vec<CotRecord>,
    lines: Vec<u32>,
    scores: Vec<Option<f64>>,
    /// The first record of each file.
    file_starts: Vec<usize>,
    tally: Tally,
    wrong: usize,
    without_verdict: usize,
    read: usize,
}

impl RowSink for Collector<'_> {
    fn wants(&self, column: &str) -> bool {
        may_read(self.map, column)
    }

    fn columns(&mut self, columns: Vec<FileColumn>) {
        self.columns = Some(columns);
    }

    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()> {
        self.read += 1;
        self.unit = at.unit;
        let spot = Spot { file: self.file, number: at.number };
        if self.resolved.is_none() {
            self.first.push((spot, row));
            return if self.first.len() < FIRST_ROWS { Ok(()) } else { self.choose() };
        }
        self.take(spot, &row);
        Ok(())
    }

    fn next_file(&mut self) {
        self.file += 1;
    }

    fn is_later_file(&self) -> bool {
        self.file > 0
    }

    fn unusable(&mut self, unusable: Unusable) {
        self.read += 1;
        self.tally.add(unusable);
    }
}

impl<'a> Collector<'a> {
    pub(super) fn new(files: &'a DataFiles, map: &'a ColumnMap, length: AnswerLength) -> Self {
        Self {
            path: files.name(),
            files: files.files(),
            file: 0,
            map,
            length,
            columns: None,
            first: vec![],
            unit: Unit::Line,
            resolved: None,
            texts: Names::default(),
            turn_fields: Names::default(),
            first_row: None,
            surrogates: 0,
            with_reasoning: 0,
            marked: 0,
            records: vec![],
            lines: vec![],
            scores: vec![],
            file_starts: vec![],
            tally: Tally::default(),
            wrong: 0,
            without_verdict: 0,
            read: 0,
        }
    }

    /// Returns the location of a row, for messages.
    fn at(&self, spot: Spot) -> RowAt<'a> {
        RowAt { path: &self.files[spot.file], number: spot.number, unit: self.unit }
    }

    /// Determines the columns by the first rows, and converts these rows.
    fn choose(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.first);
        let texts = self.columns.iter().flatten().filter(|column| column.is_text);
        let other_texts: Vec<String> = texts.map(|column| column.name.clone()).collect();
        other_texts.iter().for_each(|name| self.texts.add(name));
        let first = FirstRows { rows: rows.iter().map(|(_, row)| row).collect(), other_texts };
        let spot = rows.first().map_or(Spot { file: 0, number: 1 }, |(spot, _)| *spot);
        let at = At { row: self.at(spot), columns: self.columns.as_deref() };
        self.resolved = Some(Resolved::new(self.map, self.length, &first, &at)?);
        self.first_row = rows.first().map(|(spot, row)| (*spot, at.columns_of(row)));
        rows.iter().for_each(|(spot, row)| self.take(*spot, row));
        Ok(())
    }

    /// Converts one row.
    fn take(&mut self, spot: Spot, row: &Map<String, Value>) {
        let Some(resolved) = &self.resolved else { return };
        for (name, _) in row.iter().filter(|(_, value)| holds_text(value, 4)) {
            self.texts.add(name);
        }
        if let Texts::Messages { column, .. } = &resolved.texts
            && let Ok(turns) = column.find(row)
        {
            messages::text_fields(&turns, &mut |name| self.turn_fields.add(name));
        }
        let at = At { row: self.at(spot), columns: self.columns.as_deref() };
        match resolved.take(row, &at, &mut self.surrogates) {
            Ok(Taken::Record { record, has_reasoning, is_marked, score }) => {
                self.with_reasoning += usize::from(has_reasoning);
                self.marked += usize::from(is_marked);
                self.file_starts.resize(spot.file + 1, self.records.len());
                self.records.push(record);
                self.scores.push(score);
                // The reader limits row numbers to this.
                self.lines.push(u32::try_from(spot.number).unwrap_or(u32::MAX));
            }
            Ok(Taken::Wrong) => self.wrong += 1,
            Ok(Taken::WithoutVerdict) => self.without_verdict += 1,
            Err(unusable) => self.tally.add(unusable),
        }
    }

    /// Returns the collected records.
    ///
    /// # Errors
    ///
    /// If there are no records, or too many unusable ones.
    pub(super) fn finish(mut self, rows: &RowsRead, max_left_out: f64) -> Result<Records> {
        if self.resolved.is_none() && !self.first.is_empty() {
            self.choose()?;
        }
        if self.read == 0 {
            return Err(no_records(self.path));
        }
        let limit = Limit::of_setting(max_left_out);
        let left_out = self.tally.finish(self.path, self.read, limit)?;
        if let Some(name) = self.resolved.as_ref().and_then(|r| r.missing(self.with_reasoning)) {
            let (spot, columns) = self.first_row.unwrap_or_default();
            let error = Error::data(
                Place::line(&self.files[spot.file], spot.number).with_column(shortened(&name)),
                format!("no record has it; the first record's columns are {columns}"),
                "Check the spelling, or remove the setting to detect the column by its name",
            );
            // A name that is not a column is a turn field, which can only be that of reasoning.
            let named = self.map.named();
            let key = named
                .iter()
                .find(|(_, column)| *column == name)
                .map_or("reasoning", |(key, _)| key);
            return Err(error.with_key(format!("columns.{key}")));
        }
        let columns =
            self.resolved.as_ref().map(|resolved| resolved.columns(&self.texts, &self.turn_fields));
        let mut columns = columns.unwrap_or_default();
        if self.marked > 0 {
            columns.notes.push(format!(
                "{} answers have reasoning between <|begin_of_thought|> and <|end_of_thought|>: it is \
                 read as reasoning, and a system text that asks for these markers is left out; \
                 reasoning=none keeps both unchanged",
                self.marked
            ));
        }
        Ok(Records {
            with_reasoning: self.with_reasoning,
            with_system: self.records.iter().filter(|record| record.system.is_some()).count(),
            records: self.records,
            lines: self.lines,
            scores: self.scores,
            columns,
            file_starts: self.file_starts,
            blank_lines: rows.blank_lines,
            empty_problems: left_out.rows_for(NO_PROBLEM),
            empty_solutions: left_out.rows_for(NO_ANSWER) + left_out.rows_for(ONLY_REASONING),
            left_out,
            wrong: self.wrong,
            without_verdict: self.without_verdict,
            broken_characters: rows.surrogates + self.surrogates,
            read: self.read,
        })
    }
}
