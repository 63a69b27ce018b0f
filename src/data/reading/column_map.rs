//! Which column of a file is what, as the user names it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The settings' name in errors, as the command line and the TOML file spell it.
const SETTING: &str = "columns";

/// In place of a column's name: it is left out, even where it would be recognized.
const NONE: &str = "none";

/// Which columns hold the texts; what is not named is recognized by its usual names.
///
/// A name is a key of the record, or a dotted path into it with list indices counted from 0
/// (`generated_responses.0`, `meta.answer`). A key that itself contains the dot wins over the path.
///
/// `messages` names a column of conversations, which hold problem and solution both; it excludes
/// `problem` and `solution`. `none` in place of a name leaves a system text, reasoning, context,
/// options, id or gold answer out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnMap {
    /// The problem: text, or a list of messages with one user turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The solution: text, or a list of messages with one assistant turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    /// The id: text or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The gold answer: text or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The conversation: a list of `{role, content}` or of `{from, value}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Whether the solution is right: true or false, or 1 or 0. Wrong ones, and those with null, are
    /// left out and counted. Only looked at where it is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<String>,
    /// The reasoning that comes before the solution; of conversations, the assistant turn's key for
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The system text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// What stands before the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The options of a multiple-choice problem, which stand below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// A number that answers can be chosen by (`mixture.choice.by = "column"`). Only looked at where
    /// it is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<String>,
}

/// What a map says of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// It is recognized by its usual names.
    Usual,
    Named(&'a str),
    /// It is left out.
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
    /// Reads `"problem=question,solution=generated_responses.0"`; white space around names is
    /// dropped. A column whose name contains a comma can be named in a TOML file only.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the key `columns` for a part without `=`, an unknown key, a key given
    /// twice, an empty name, and for names that exclude each other.
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
                    format!("The keys are {}", names.join(", ")),
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

    /// Finds what no file could satisfy; a map from TOML has not been through [`Self::parse`].
    pub(crate) fn check(&self) -> Result<()> {
        for (key, column) in self.clone().slots() {
            let Some(column) = column else { continue };
            if column.trim().is_empty() {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` names no column"),
                    format!("Write {key}=<column>, or leave `{key}` out to recognize it by name"),
                ));
            }
            if column == NONE
                && matches!(key, "problem" | "solution" | "messages" | "correct" | "score")
            {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` cannot be left out with `{NONE}`"),
                    format!("Name its column, or leave `{key}` out to recognize it by name"),
                ));
            }
        }
        if self.messages.is_some() && (self.problem.is_some() || self.solution.is_some()) {
            return Err(Error::config(
                SETTING,
                "`messages` stands beside `problem` or `solution`",
                "A conversation holds both texts: name either messages, or problem and solution",
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

    /// Refuses what a file of conversations has no place for.
    pub(super) fn check_conversation(&self) -> Result<()> {
        for (key, name) in [("context", &self.context), ("options", &self.options)] {
            if let Choice::Named(_) = Choice::of(name) {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` is named, and the problem is a turn of a conversation"),
                    "A conversation holds the whole problem: leave it out, or name problem and \
                     solution",
                ));
            }
        }
        Ok(())
    }

    /// Refuses keys that files of this kind do not have.
    pub(crate) fn check_keys(&self, files: &str, keys: &[&str]) -> Result<()> {
        self.check()?;
        for (key, column) in self.clone().slots() {
            if column.is_some() && !keys.contains(&key) {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` is no column of {files}"),
                    format!("The keys are {}", keys.join(", ")),
                ));
            }
        }
        Ok(())
    }

    /// The columns that are named, each with its key.
    pub(crate) fn named(&self) -> Vec<(&'static str, String)> {
        let mut map = self.clone();
        let named = map.slots().map(|(key, name)| (key, name.take()));
        let named = named.into_iter().filter_map(|(key, name)| Some((key, name?)));
        named.filter(|(_, name)| name != NONE).collect()
    }

    /// Whether a column, or one within it, is named.
    pub(super) fn names(&self, column: &str) -> bool {
        self.clone().slots().into_iter().any(|(_, name)| {
            name.as_deref().is_some_and(|name| {
                name == column || name.split('.').next().is_some_and(|first| first == column)
            })
        })
    }
}
