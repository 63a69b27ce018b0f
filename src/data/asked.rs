//! What a row asks: its problem with context, options and the system's text. For files of problems,
//! whose rows may each have other columns.

use super::column_map::ColumnMap;
use super::columns::value_at;
use super::messages::prompt_text;
use super::problem_text::{Options, plain_text, with_context};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The kind of fault, and what was found.
pub(crate) type RowFault = (&'static str, String);

/// A problem and the system's text before it.
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

const PROBLEM: [&str; 7] =
    ["problem", "question", "Question", "input", "prompt", "query", "instruction"];

impl<'a> RowFields<'a> {
    /// The column that is named, or else the first of these that is there and says something.
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

    /// The same as text.
    pub(crate) fn text(&self, named: &Option<String>, names: &[&str]) -> Option<String> {
        self.field(named, names).and_then(|value| plain_text(&value))
    }

    pub(crate) fn id(&self) -> Option<String> {
        self.text(&self.columns.id, &["unique_id", "id", "ID", "idx"])
    }

    pub(crate) fn options(&self) -> Option<Cow<'a, Value>> {
        self.field(&self.columns.options, &["options", "choices"])
    }

    /// The problem without context and options, and the system's text that stands with it.
    fn bare(&self) -> Result<Asked, RowFault> {
        let missing = || ("no problem", "it has no problem".to_owned());
        let named = &self.columns.problem;
        let value = match self.field(named, &PROBLEM) {
            Some(value) => value,
            // A conversation may hold the problem alone.
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

    /// The problem with its context and options, and the system's text.
    pub(crate) fn asked(&self) -> Result<Asked, RowFault> {
        let Asked { system, mut problem } = self.bare()?;
        let beside = self.text(&self.columns.system, &["system", "system_prompt"]);
        let keeps_system = self.columns.system.as_deref() != Some("none");
        let system = beside.or(system).filter(|_| keeps_system);
        // Alpaca's input stands below its instruction.
        let below_instruction = self.row.contains_key("instruction")
            && self.columns.problem.is_none()
            && !PROBLEM[..3].iter().any(|name| self.row.contains_key(*name));
        if below_instruction
            && let Some(instruction) = self.text(&None, &["instruction"])
            && let Some(input) = self.text(&None, &["input"])
        {
            problem = format!("{instruction}\n\n{input}");
        }
        if let Some(context) = self.text(&self.columns.context, &["context", "Body"]) {
            problem = with_context(&problem, &context);
        }
        let written = self.options();
        let options = Options::of(written.as_deref())
            .map_err(|what| ("options that cannot be laid out", what))?;
        Ok(Asked { system, problem: options.below(problem) })
    }
}
