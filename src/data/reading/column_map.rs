//! The columns of a file, as named by the user.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The setting's key in errors, as in TOML and on the command line.
const SETTING: &str = "columns";

/// In place of a column's name: ignore the column even if it would be recognized.
const NONE: &str = "none";

/// The columns of a file's texts. Columns that are not set are recognized by their usual names.
///
/// A name is a key of the record or a dotted path into it, with list indices counted from 0
/// (`generated_responses.0`, `meta.answer`). A key that contains the dot takes precedence over the path.
///
/// `messages` names a column of conversations, which contain both problem and solution. It excludes `problem`
/// and `solution`. The name `none` ignores the system text, reasoning, context, options, id, or reference
/// answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnMap {
    /// Column of the problem: text, or a list of messages that ends with a user turn. A name may be a dotted
    /// path with list indices from 0, such as `trace.0`. Like other columns, it is recognized by its usual
    /// names if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Column of the answer to train on: text, or a list with one assistant message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    /// Column of the id, as text or a number. Ids help to pair answers of different sources. `none` ignores
    /// the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Column of the reference answer for grading, as text or a number. `none` ignores the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Column of conversations: a list of `{role, content}` or `{from, value}` objects. It replaces `problem`
    /// and `solution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Column of verdicts on the solution: true or false, 1 or 0, or yes or no. Wrong solutions, and those
    /// without a verdict (null or blank), are left out and counted. Read only if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<String>,
    /// Column of reasoning placed before the solution. For conversations, the field of assistant messages
    /// with the reasoning. `none` ignores separate reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Column of the system text. `none` ignores system texts, including those in conversations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Column of text placed before the problem. `none` ignores the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Column of multiple-choice options, placed below the problem. `none` ignores the column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// Column of numbers to choose answers by (`mixture.choice.by = "column"`). Read only if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<String>,
}

/// The entry of one column in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// Recognize the column by its usual names.
    Usual,
    Named(&'a str),
    /// Ignore the column.
    LeftOut,
}

impl<'a> Choice<'a> {
    pub(super) fn of(name: &'a Option<String>) -> Self {
        match name.as_deref() {
            None => Self::Usual,
            Some(NONE) => Self::LeftOut,
            Some(name) => Self::Named(name),
        }
    }
}

impl ColumnMap {
    /// Parses `"problem=question,solution=generated_responses.0"`. White space around names is removed. A
    /// column whose name contains a comma can only be named in a TOML file.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the key `columns` for a part without `=`, an unknown or repeated key, an empty
    /// name, or names that exclude each other.
    pub fn parse(text: &str) -> Result<Self> {
        let mut map = Self::default();
        for part in text.split(',') {
            let Some((key, column)) = part.split_once('=') else {
                return Err(Error::config(
                    SETTING,
                    format!("`{}` has no `=`", part.trim()),
                    "Write it like problem=question,solution=generated_responses.0",
                ));
            };
            let (key, column) = (key.trim(), column.trim());
            let Some((_, slot)) = map.slots().into_iter().find(|(name, _)| *name == key) else {
                let names: Vec<&str> = Self::default().slots().map(|(name, _)| name).to_vec();
                return Err(Error::config(
                    SETTING,
                    format!("unknown key `{key}`"),
                    format!("Use the keys {}", names.join(", ")),
                ));
            };
            if slot.is_some() {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` is given twice"),
                    "Name one column for each key",
                ));
            }
            *slot = Some(column.to_owned());
        }
        map.check()?;
        Ok(map)
    }

    fn slots(&mut self) -> [(&'static str, &mut Option<String>); 11] {
        [
            ("problem", &mut self.problem),
            ("solution", &mut self.solution),
            ("answer", &mut self.answer),
            ("id", &mut self.id),
            ("messages", &mut self.messages),
            ("correct", &mut self.correct),
            ("reasoning", &mut self.reasoning),
            ("system", &mut self.system),
            ("context", &mut self.context),
            ("options", &mut self.options),
            ("score", &mut self.score),
        ]
    }

    /// Checks for contradictions. Maps from TOML were not checked by [`Self::parse`].
    pub(crate) fn check(&self) -> Result<()> {
        for (key, column) in self.clone().slots() {
            let Some(column) = column else { continue };
            if column.trim().is_empty() {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` names no column"),
                    format!("Write {key}=<column>, or remove `{key}` to detect it by its name"),
                ));
            }
            if column == NONE
                && matches!(key, "problem" | "solution" | "messages" | "correct" | "score")
            {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` cannot be `{NONE}`"),
                    format!("Name its column, or remove `{key}` to detect it by its name"),
                ));
            }
        }
        if self.messages.is_some() && (self.problem.is_some() || self.solution.is_some()) {
            return Err(Error::config(
                SETTING,
                "`messages` is combined with `problem` or `solution`",
                "Name either messages, which has both texts, or problem and solution",
            ));
        }
        if self.problem.is_some() && self.problem == self.solution {
            return Err(Error::config(
                SETTING,
                "problem and solution name the same column",
                "Name a column for each, or messages=<column> for conversations",
            ));
        }
        Ok(())
    }

    /// Refuses keys that conversations do not support.
    pub(super) fn check_conversation(&self) -> Result<()> {
        for (key, name) in [("context", &self.context), ("options", &self.options)] {
            if let Choice::Named(_) = Choice::of(name) {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` is set, but the problem is a turn of a conversation"),
                    "Remove it, since a conversation has the whole problem, or name problem and \
                     solution",
                ));
            }
        }
        Ok(())
    }

    /// Refuses keys that this kind of file does not support.
    pub(crate) fn check_keys(&self, files: &str, keys: &[&str]) -> Result<()> {
        self.check()?;
        for (key, column) in self.clone().slots() {
            if column.is_some() && !keys.contains(&key) {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` is not a column of {files}"),
                    format!("Use the keys {}", keys.join(", ")),
                ));
            }
        }
        Ok(())
    }

    /// Returns the named columns, with their keys.
    pub(crate) fn named(&self) -> Vec<(&'static str, String)> {
        let mut map = self.clone();
        let named = map.slots().map(|(key, name)| (key, name.take()));
        let named = named.into_iter().filter_map(|(key, name)| Some((key, name?)));
        named.filter(|(_, name)| name != NONE).collect()
    }

    /// Returns whether a column, or a path into it, is named.
    pub(super) fn names(&self, column: &str) -> bool {
        self.clone().slots().into_iter().any(|(_, name)| {
            name.as_deref().is_some_and(|name| {
                name == column || name.split('.').next().is_some_and(|first| first == column)
            })
        })
    }
}
