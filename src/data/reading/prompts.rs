//! Files of prompts: problems without answers.

use super::asked::{NamedColumns, RowFields};
use super::column_map::ColumnMap;
use super::data_files::{DataFiles, FileKind};
use super::left_out::{LeftOut, Limit, Tally, Unusable};
use super::open::whole_text;
use super::row_at::{FileColumn, RowAt};
use super::rows::{RowSink, read_files};
use crate::data::chat::Prompt;
use crate::error::{Error, Place, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A prompt in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptRow {
    /// The id, if it has one.
    pub id: Option<String>,
    /// The system text, if it has one.
    pub system: Option<String>,
    /// The problem, with its context and options.
    pub problem: String,
}

impl PromptRow {
    /// Returns the prompt.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), ..(&self.problem).into() }
    }
}

/// The prompts of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptRows {
    /// The prompts, in file order.
    pub prompts: Vec<PromptRow>,
    /// Rows left out, by reason.
    pub left_out: LeftOut,
}

struct Rows<'a> {
    columns: &'a ColumnMap,
    prompts: Vec<PromptRow>,
    named: NamedColumns,
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
        self.named.see(&row);
        let fields = RowFields { columns: self.columns, row: &row };
        match fields.asked() {
            Ok(asked) => self.prompts.push(PromptRow {
                id: fields.id(),
                system: asked.system,
                problem: asked.problem,
            }),
            Err((reason, what)) => {
                let hint = "Give the problem as problem, question, prompt, or instruction, or name \
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

/// Reads the prompts in the rows of some files.
fn rows_of(files: &DataFiles, columns: &ColumnMap) -> Result<PromptRows> {
    let path = files.name();
    let mut rows = Rows {
        columns,
        prompts: vec![],
        named: NamedColumns::new(columns),
        tally: Tally::default(),
        read: 0,
    };
    let read = read_files(files.files(), &mut rows)?;
    let left_out = read.explain(path, rows.tally.finish(path, rows.read, Limit::USUAL))?;
    rows.named.check(path)?;
    Ok(PromptRows { prompts: rows.prompts, left_out })
}

/// Returns whether a text consists of JSON rows, regardless of the file name.
fn is_json(text: &str) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let is_object = serde_json::from_str::<Map<String, Value>>(first).is_ok();
    is_object || serde_json::from_str::<Vec<Map<String, Value>>>(text).is_ok()
}

/// Maximum size of a text file with one prompt per line.
const MAX_TEXT_BYTES: usize = 1 << 30;

/// Reads the prompts of a file. Files with the extension `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, or
/// (feature `parquet`) `.parquet`, and files that contain JSON, have a prompt in each row. Every other file
/// has a prompt on each line that is not blank. All formats but Parquet may be compressed with gzip or
/// Zstandard.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] if more rows have no prompt than [`MAX_LEFT_OUT`](super::MAX_LEFT_OUT)
/// allows, or none has one; [`Error::Config`] for a column key that prompts do not have.
pub fn read_prompts(path: &Path, columns: &ColumnMap) -> Result<PromptRows> {
    read_prompt_files(&DataFiles::file(path), columns)
}

/// Like [`read_prompts`], for several files that are read as one.
///
/// # Errors
/// See [`read_prompts`].
pub fn read_prompt_files(files: &DataFiles, columns: &ColumnMap) -> Result<PromptRows> {
    let path = match files.files() {
        [only] => only,
        _ => files.name(),
    };
    let keys = ["problem", "id", "context", "options", "system", "messages"];
    columns.check_keys("prompts", &keys)?;
    let read = match FileKind::of(&path.to_string_lossy()) {
        Some(_) => rows_of(files, columns)?,
        None if files.files().len() > 1 => rows_of(files, columns)?,
        _ => {
            let text = &whole_text(path, MAX_TEXT_BYTES)?;
            if is_json(text) {
                return rows_of(files, columns);
            }
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
