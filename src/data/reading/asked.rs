//! The question of a row: its problem with context, options, and system text. For files of problems, whose
//! rows may have different columns.

use super::column::value_at;
use super::column_map::ColumnMap;
use super::describe::described;
use super::messages::prompt_text;
use super::problem_text::{Options, plain_text, with_context};
use super::take_row::both_texts;
use crate::error::{Error, Place, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::Path;

/// The kind of problem, and what was found.
pub(crate) type RowFault = (&'static str, String);

/// A problem and its system text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) system: Option<String>,
    pub(crate) problem: String,
}

/// The columns of a row.
pub(crate) struct RowFields<'a> {
    pub(crate) columns: &'a ColumnMap,
    pub(crate) row: &'a Map<String, Value>,
}

/// Names of the problem column. The first with a value is used. Alpaca's `input` is not one if there is an
/// `instruction`.
const PROBLEM: [&str; 7] =
    ["problem", "question", "Question", "prompt", "instruction", "query", "input"];
const ID: [&str; 6] = ["unique_id", "id", "problem_id", "uuid", "ID", "idx"];
const WRONG_TYPE: &str = "column that is not text";

impl<'a> RowFields<'a> {
    /// Returns the named column, or the first of `names` with a value.
    pub(crate) fn field(&self, named: &Option<String>, names: &[&str]) -> Option<Cow<'a, Value>> {
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::String(text) => !text.trim().is_empty(),
            _ => true,
        };
        match named.as_deref() {
            Some("none") => None,
            Some(name) => value_at(self.row, name).filter(|value| says(value)),
            None => names.iter().filter_map(|name| value_at(self.row, name)).find(|v| says(v)),
        }
    }

    /// Returns the column as text. `None` for other types.
    pub(crate) fn text(&self, named: &Option<String>, names: &[&str]) -> Option<String> {
        self.field(named, names).and_then(|value| plain_text(&value))
    }

    /// Returns the column as text. Other types are an error.
    fn whole_text(
        &self,
        key: &str,
        named: &Option<String>,
        names: &[&str],
    ) -> Result<Option<String>, RowFault> {
        let Some(value) = self.field(named, names) else { return Ok(None) };
        let wrong = || {
            let what = format!("its {key} is {}, expected text", described(&value));
            (WRONG_TYPE, format!("{what}; {key}=none leaves it out"))
        };
        plain_text(&value).map(Some).ok_or_else(wrong)
    }

    pub(crate) fn id(&self) -> Option<String> {
        self.text(&self.columns.id, &ID)
    }

    pub(crate) fn options(&self) -> Option<Cow<'a, Value>> {
        self.field(&self.columns.options, &["options", "choices"])
    }

    /// Returns the problem without context and options, and its system text.
    fn bare(&self) -> Result<Asked, RowFault> {
        let missing = || ("no problem", "it has no problem".to_owned());
        let named = &self.columns.problem;
        let value = match self.field(named, &PROBLEM) {
            Some(value) => value,
            // A conversation may contain only the problem.
            None if named.is_none() => self
                .field(&self.columns.messages, &["messages", "conversations"])
                .ok_or_else(missing)?,
            None => return Err(missing()),
        };
        match prompt_text(&value).map_err(|what| ("no problem", what))? {
            Some((system, problem)) => Ok(Asked { system, problem }),
            None => {
                let problem = plain_text(&value).ok_or_else(missing)?;
                Ok(Asked { system: None, problem })
            }
        }
    }

    /// Returns the problem with its context and options, and its system text.
    pub(crate) fn asked(&self) -> Result<Asked, RowFault> {
        let Asked { system, mut problem } = self.bare()?;
        let keeps_system = self.columns.system.as_deref() != Some("none");
        let beside =
            self.whole_text("system", &self.columns.system, &["system", "system_prompt"])?;
        let system = both_texts(beside, system).filter(|_| keeps_system);
        // Alpaca's input belongs below its instruction.
        let is_instruction = self.columns.problem.is_none()
            && !PROBLEM[..4].iter().any(|name| self.row.contains_key(*name));
        if is_instruction
            && self.text(&None, &["instruction"]).is_some()
            && let Some(input) = self.whole_text("input", &None, &["input"])?
        {
            problem = format!("{problem}\n\n{input}");
        }
        let context = self.whole_text("context", &self.columns.context, &["context", "Body"])?;
        if let Some(context) = context {
            problem = with_context(&problem, &context);
        }
        let written = self.options();
        let options = Options::of(written.as_deref()).map_err(|what| ("invalid options", what))?;
        Ok(Asked { system, problem: options.below(problem) })
    }
}

/// Which of the named columns occurred in some row.
#[derive(Debug, Default)]
pub(crate) struct NamedColumns {
    /// Key, name, and whether a row had it.
    columns: Vec<(&'static str, String, bool)>,
}

impl NamedColumns {
    pub(crate) fn new(map: &ColumnMap) -> Self {
        let named = map.named().into_iter();
        Self { columns: named.map(|(key, name)| (key, name, false)).collect() }
    }

    /// Checks a row for the columns.
    pub(crate) fn see(&mut self, row: &Map<String, Value>) {
        for (_, name, seen) in self.columns.iter_mut().filter(|(.., seen)| !seen) {
            *seen = value_at(row, name).is_some();
        }
    }

    /// Refuses a name that no row has.
    ///
    /// # Errors
    /// [`Error::Data`] with the name.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let Some((key, name, _)) = self.columns.iter().find(|(.., seen)| !seen) else {
            return Ok(());
        };
        Err(Error::data(
            Place::file(path).with_column(name),
            format!("{key}= names it, but no row has it"),
            "Check the spelling, or remove the setting to detect the column by its name",
        ))
    }
}
