//! Files of prompts: problems to answer, without any answers.

use super::asked::RowFields;
use super::column_map::ColumnMap;
use super::left_out::{LeftOut, Tally, Unusable};
use super::rows::{FileColumn, RowAt, RowSink, read_rows};
use super::template::Prompt;
use crate::error::{Error, Place, Result};
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::path::Path;

/// A prompt in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptRow {
    /// Its id, where it has one.
    pub id: Option<String>,
    /// The system's text, where it has one.
    pub system: Option<String>,
    /// The problem, with context and options where it has them.
    pub problem: String,
}

impl PromptRow {
    /// The prompt.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), problem: &self.problem }
    }
}

/// The prompts of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptRows {
    /// The prompts, in the file's order.
    pub prompts: Vec<PromptRow>,
    /// Rows that are left out, by reason.
    pub left_out: LeftOut,
}

struct Rows<'a> {
    columns: &'a ColumnMap,
    prompts: Vec<PromptRow>,
    tally: Tally,
    read: usize,
}

impl RowSink for Rows<'_> {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn columns(&mut self, _: Vec<FileColumn>) {}

    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()> {
        self.read += 1;
        let fields = RowFields { columns: self.columns, row: &row };
        match fields.asked() {
            Ok(asked) => self.prompts.push(PromptRow {
                id: fields.id(),
                system: asked.system,
                problem: asked.problem,
            }),
            Err((reason, what)) => {
                let hint = "Give the problem as problem, question, prompt or instruction, or name \
                            its column with problem=<column>";
                self.tally.add(Unusable::new(reason, at.error(what, hint)));
            }
        }
        Ok(())
    }

    fn unusable(&mut self, unusable: Unusable) {
        self.read += 1;
        self.tally.add(unusable);
    }
}

/// Reads the prompts of a file: rows of JSONL, a JSON array or (feature `parquet`) Parquet by the
/// ending `.jsonl`, `.ndjson`, `.json` or `.parquet`; of any other file each line that is not blank.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] where a share of more than `max_left_out` of the rows has no prompt,
/// or all of them.
pub fn read_prompts(path: &Path, columns: &ColumnMap, max_left_out: f64) -> Result<PromptRows> {
    columns.check()?;
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or("").to_lowercase();
    let read = match extension.as_str() {
        "jsonl" | "ndjson" | "json" | "parquet" => {
            let mut rows = Rows { columns, prompts: vec![], tally: Tally::default(), read: 0 };
            read_rows(path, &mut rows)?;
            let left_out = rows.tally.finish(path, rows.read, max_left_out)?;
            PromptRows { prompts: rows.prompts, left_out }
        }
        _ => {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            let prompt =
                |line: &str| PromptRow { id: None, system: None, problem: line.to_owned() };
            PromptRows { prompts: lines.map(prompt).collect(), ..PromptRows::default() }
        }
    };
    if read.prompts.is_empty() {
        let hint = "Give a file with at least one prompt";
        return Err(Error::data(Place::file(path), "it has no prompt", hint));
    }
    Ok(read)
}
