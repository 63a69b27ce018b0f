//! Which column of a file is what: named by the user, or recognised by the names that public data
//! sets use.
//!
//! | text | recognised names, the first that the record has |
//! | --- | --- |
//! | problem | `problem`, `question`, `prompt`, `instruction` (with `input` below it) |
//! | solution | `solution`, `answer`, `response`, `output`, `completion` |
//! | both | `messages`, `conversations`, where the record lacks one of the two above |
//! | gold answer | `gold_answer`, `ground_truth`, `final_answer`, `answer`, unless it is the solution |
//! | id | `id`, `problem_id`, `unique_id`, `uuid` |

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::collect::{At, described, quoted};
use super::messages::{self, Speaker};
use super::record::{Columns, CotRecord};
use crate::error::{Error, Result};

const PROBLEM: &[&str] = &["problem", "question", "prompt", "instruction"];
const SOLUTION: &[&str] = &["solution", "answer", "response", "output", "completion"];
const ANSWER: &[&str] = &["gold_answer", "ground_truth", "final_answer", "answer"];
const ID: &[&str] = &["id", "problem_id", "unique_id", "uuid"];
const MESSAGES: &[&str] = &["messages", "conversations"];
const INSTRUCTION: &str = "instruction";
const INPUT: &str = "input";

/// The settings' name in errors, as the command line and the TOML file spell it.
const SETTING: &str = "columns";

/// Which columns hold the texts; what is not named is recognised by its usual names.
///
/// A name is a key of the record, or a dotted path into it with list indices counted from 0
/// (`generated_responses.0`, `meta.answer`). A key that itself contains the dot wins over the path.
///
/// `messages` names a column of conversations, which hold problem and solution both; it excludes
/// `problem` and `solution`.
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
    /// Whether the solution is right: true or false, or 1 or 0. Wrong ones are left out and counted.
    /// Only looked at where it is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<String>,
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
            let slot = match key {
                "problem" => &mut map.problem,
                "solution" => &mut map.solution,
                "id" => &mut map.id,
                "answer" => &mut map.answer,
                "messages" => &mut map.messages,
                "correct" => &mut map.correct,
                _ => {
                    return Err(Error::config(
                        SETTING,
                        format!("unknown key `{key}`"),
                        "The keys are problem, solution, answer, id, messages and correct",
                    ));
                }
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

    /// Finds what no file could satisfy; a map from TOML has not been through [`Self::parse`].
    pub(super) fn check(&self) -> Result<()> {
        for (key, column) in self.entries() {
            if column.trim().is_empty() {
                return Err(Error::config(
                    SETTING,
                    format!("`{key}` names no column"),
                    format!("Write {key}=<column>, or leave `{key}` out to recognise it by name"),
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

    /// The named columns, each with its key.
    fn entries(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("problem", &self.problem),
            ("solution", &self.solution),
            ("id", &self.id),
            ("answer", &self.answer),
            ("messages", &self.messages),
            ("correct", &self.correct),
        ]
        .into_iter()
        .filter_map(|(key, column)| Some((key, column.as_deref()?)))
    }

    /// Whether a top-level column can matter: all else need not be decoded.
    #[cfg(feature = "parquet")]
    pub(super) fn may_read(&self, column: &str) -> bool {
        [PROBLEM, SOLUTION, ANSWER, ID, MESSAGES, &[INPUT]]
            .iter()
            .any(|names| names.contains(&column))
            || self
                .entries()
                .any(|(_, name)| name == column || name.split('.').next() == Some(column))
    }
}

/// What became of one record.
pub(super) enum Taken {
    Record(CotRecord),
    EmptyProblem,
    EmptySolution,
    Wrong,
}

/// The columns of one file, settled on its first record.
pub(super) struct Resolved {
    texts: Texts,
    id: Option<Column>,
    answer: Option<Column>,
    correct: Option<Column>,
}

enum Texts {
    Pair { problem: TextColumn, with_input: bool, solution: TextColumn },
    Messages(Column),
}

impl Resolved {
    /// Chooses the columns by `map` and by what the first record has.
    pub(super) fn new(map: &ColumnMap, record: &Map<String, Value>, at: &At<'_>) -> Result<Self> {
        let named = |name: &Option<String>| {
            name.as_deref().map(|name| Column::named(name, record, at)).transpose()
        };
        let texts = match named(&map.messages)? {
            Some(column) => Texts::Messages(column),
            None => {
                // Looked for only where neither text is named: who names one means that form.
                let conversation = || match (&map.problem, &map.solution) {
                    (None, None) => Column::recognised(MESSAGES, record, None),
                    _ => None,
                };
                let problem =
                    named(&map.problem)?.or_else(|| Column::recognised(PROBLEM, record, None));
                let taken = problem.as_ref().map(|column| column.name.as_str());
                let solution =
                    named(&map.solution)?.or_else(|| Column::recognised(SOLUTION, record, taken));
                match (problem, solution) {
                    (Some(problem), Some(solution)) => Texts::Pair {
                        with_input: map.problem.is_none()
                            && problem.name == INSTRUCTION
                            && solution.name != INPUT,
                        problem: TextColumn::new(problem, "problem", Speaker::User),
                        solution: TextColumn::new(solution, "solution", Speaker::Assistant),
                    },
                    (problem, _) => match conversation() {
                        Some(column) => Texts::Messages(column),
                        None if problem.is_none() => {
                            return Err(unrecognised("problem", PROBLEM, record, at));
                        }
                        None => return Err(unrecognised("solution", SOLUTION, record, at)),
                    },
                }
            }
        };
        let solution = match &texts {
            Texts::Pair { solution, .. } => Some(solution.column.name.as_str()),
            Texts::Messages(_) => None,
        };
        let answer = named(&map.answer)?.or_else(|| Column::recognised(ANSWER, record, solution));
        let id = named(&map.id)?.or_else(|| Column::recognised(ID, record, None));
        let correct = named(&map.correct)?;
        Ok(Self { texts, id, answer, correct })
    }

    /// The chosen columns for display.
    pub(super) fn columns(&self) -> Columns {
        let name = |column: &Option<Column>| column.as_ref().map(|column| column.name.clone());
        let mut columns = Columns {
            id: name(&self.id),
            answer: name(&self.answer),
            correct: name(&self.correct),
            ..Columns::default()
        };
        match &self.texts {
            Texts::Pair { problem, with_input, solution } => {
                columns.problem = Some(problem.column.name.clone());
                columns.input = with_input.then(|| INPUT.to_owned());
                columns.solution = Some(solution.column.name.clone());
            }
            Texts::Messages(column) => columns.messages = Some(column.name.clone()),
        }
        columns
    }

    /// Takes one record apart; `system_turns` is raised by those that it holds.
    ///
    /// All types are checked before a record is left out as empty, so that a wrong file is not
    /// taken for an empty one.
    pub(super) fn take(
        &mut self,
        record: &Map<String, Value>,
        at: &At<'_>,
        system_turns: &mut usize,
    ) -> Result<Taken> {
        let (problem, solution) = match &mut self.texts {
            Texts::Pair { problem, with_input, solution } => {
                let mut text = problem.read(record, at, system_turns)?;
                if let (true, Some(text)) = (*with_input, &mut text) {
                    add_input(text, record, at)?;
                }
                (text, solution.read(record, at, system_turns)?)
            }
            Texts::Messages(column) => read_conversation(column, record, at, system_turns)?,
        };
        let scalar = |column: &Option<Column>, key| match column {
            Some(column) => read_scalar(column, key, record, at),
            None => Ok(None),
        };
        let id = scalar(&self.id, "id")?;
        let answer = scalar(&self.answer, "answer")?;
        let is_wrong = match &self.correct {
            Some(column) => !read_verdict(column, record, at)?,
            None => false,
        };
        let present = |text: &String| !text.trim().is_empty();
        let Some(problem) = problem.filter(present) else { return Ok(Taken::EmptyProblem) };
        let Some(solution) = solution.filter(present) else { return Ok(Taken::EmptySolution) };
        if is_wrong {
            return Ok(Taken::Wrong);
        }
        Ok(Taken::Record(CotRecord { id, problem, solution, answer }))
    }
}

/// A column by the name it was given: a key of the record or a dotted path.
struct Column {
    name: String,
    is_path: bool,
}

impl Column {
    /// A column that the user named; the first record must have it.
    fn named(name: &str, record: &Map<String, Value>, at: &At<'_>) -> Result<Self> {
        let is_path = !record.contains_key(name) && name.contains('.');
        let column = Self { name: name.to_owned(), is_path };
        column.value(record, at)?;
        Ok(column)
    }

    /// The first of `names` that the record has, `taken` excepted.
    fn recognised(
        names: &[&str],
        record: &Map<String, Value>,
        taken: Option<&str>,
    ) -> Option<Self> {
        let name =
            names.iter().find(|name| taken != Some(**name) && record.contains_key(**name))?;
        Some(Self { name: (*name).to_owned(), is_path: false })
    }

    /// The column's value in one record; a null on the way makes it null.
    fn value<'r>(&self, record: &'r Map<String, Value>, at: &At<'_>) -> Result<&'r Value> {
        let missing = |reason: &str| {
            let also = if at.is_first { "" } else { ", which the first record has" };
            at.error(
                Some(&self.name),
                format!(
                    "the record lacks it{also}{reason}; its columns are {}",
                    at.columns_of(record)
                ),
                if at.is_first {
                    "Check the name's spelling, or leave it out to recognise the column by name"
                } else {
                    "Give every record the same columns; null is fine where there is no value"
                },
            )
        };
        if !self.is_path {
            return record.get(&self.name).ok_or_else(|| missing(""));
        }
        let mut steps = self.name.split('.');
        let first = steps.next().unwrap_or_default();
        let mut walked = first.len();
        let mut value = record.get(first).ok_or_else(|| missing(""))?;
        for step in steps {
            value = match value {
                Value::Null => return Ok(value),
                Value::Object(object) => object.get(step),
                Value::Array(list) => step.parse().ok().and_then(|index: usize| list.get(index)),
                _ => None,
            }
            .ok_or_else(|| {
                missing(&format!(
                    ": `{}` is {}, without `{step}`",
                    &self.name[..walked],
                    described(value)
                ))
            })?;
            walked += 1 + step.len();
        }
        Ok(value)
    }
}

/// In which form a text column comes; one file has one form.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Text,
    Messages,
}

/// A column of the problem or of the solution.
struct TextColumn {
    column: Column,
    key: &'static str,
    speaker: Speaker,
    /// Settled by the first value that is not null.
    form: Option<Form>,
}

impl TextColumn {
    fn new(column: Column, key: &'static str, speaker: Speaker) -> Self {
        Self { column, key, speaker, form: None }
    }

    /// The text; `None` for null.
    fn read(
        &mut self,
        record: &Map<String, Value>,
        at: &At<'_>,
        system_turns: &mut usize,
    ) -> Result<Option<String>> {
        let value = self.column.value(record, at)?;
        match value {
            Value::Null => Ok(None),
            Value::String(text) if self.form != Some(Form::Messages) => {
                self.form = Some(Form::Text);
                Ok(Some(text.clone()))
            }
            Value::Array(turns)
                if self.form == Some(Form::Messages)
                    || (self.form.is_none() && messages::is_conversation(turns)) =>
            {
                self.form = Some(Form::Messages);
                let (text, systems) = messages::lone_turn(turns, self.speaker)
                    .map_err(|fault| at.error(Some(&self.column.name), fault.what, fault.hint))?;
                *system_turns += systems;
                Ok(text)
            }
            _ => {
                let expected = match self.form {
                    None => "text",
                    Some(Form::Text) => "text as in the records before",
                    Some(Form::Messages) => "a list of messages as in the records before",
                };
                Err(wrong_type(&self.column, self.key, value, expected, record, at))
            }
        }
    }
}

/// Puts Alpaca's `input` below its instruction. Unlike the other columns it may come and go:
/// Alpaca files leave it out, or blank, where an instruction needs none.
fn add_input(problem: &mut String, record: &Map<String, Value>, at: &At<'_>) -> Result<()> {
    match record.get(INPUT) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(input)) => {
            // A blank instruction stays blank: its record is left out as one without a problem.
            if !input.trim().is_empty() && !problem.trim().is_empty() {
                problem.push_str("\n\n");
                problem.push_str(input);
            }
            Ok(())
        }
        Some(value) => Err(at.error(
            Some(INPUT),
            format!(
                "found {}, expected text; the record's columns are {}",
                described(value),
                at.columns_of(record)
            ),
            "Write the value as text, or name problem=instruction to read the instruction alone",
        )),
    }
}

/// Problem and solution of a conversation; `None` where one is null.
fn read_conversation(
    column: &Column,
    record: &Map<String, Value>,
    at: &At<'_>,
    system_turns: &mut usize,
) -> Result<(Option<String>, Option<String>)> {
    match column.value(record, at)? {
        Value::Null => Ok((None, None)),
        Value::Array(turns) => {
            let exchange = messages::exchange(turns)
                .map_err(|fault| at.error(Some(&column.name), fault.what, fault.hint))?;
            *system_turns += exchange.system_turns;
            Ok((exchange.problem, exchange.solution))
        }
        value => Err(wrong_type(column, "messages", value, "a list of messages", record, at)),
    }
}

/// Whether a solution is right.
fn read_verdict(column: &Column, record: &Map<String, Value>, at: &At<'_>) -> Result<bool> {
    let value = column.value(record, at)?;
    match (value, value.as_f64()) {
        (Value::Bool(verdict), _) => Ok(*verdict),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => Err(at.error(
            Some(&column.name),
            format!("`correct` is {value}"),
            "Give true or false, or 1 or 0, in every record",
        )),
    }
}

/// An id or a gold answer as text.
fn read_scalar(
    column: &Column,
    key: &'static str,
    record: &Map<String, Value>,
    at: &At<'_>,
) -> Result<Option<String>> {
    match column.value(record, at)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok((!text.trim().is_empty()).then(|| text.clone())),
        Value::Number(number) => Ok(Some(number.to_string())),
        value => Err(wrong_type(column, key, value, "text or a number", record, at)),
    }
}

/// A column that holds something else than it should.
fn wrong_type(
    column: &Column,
    key: &str,
    value: &Value,
    expected: &str,
    record: &Map<String, Value>,
    at: &At<'_>,
) -> Error {
    let name = &column.name;
    let hint = match value {
        Value::Array(list) if !list.is_empty() && key != "messages" => {
            format!("Name one element of the list, for example {key}={name}.0")
        }
        Value::Object(object) if !object.is_empty() => {
            // A name that would have to be shortened could not be copied.
            let inner = object.keys().find(|name| name.len() <= 40);
            let inner = inner.map_or("<field>", String::as_str);
            format!("Name one field of the object, for example {key}={name}.{inner}")
        }
        _ => format!("Write the value as {expected}, or name another column with {key}=<column>"),
    };
    at.error(
        Some(name),
        format!(
            "found {}, expected {expected}; the record's columns are {}",
            described(value),
            at.columns_of(record)
        ),
        hint,
    )
}

/// No column of the first record bears a usual name.
fn unrecognised(key: &str, names: &[&str], record: &Map<String, Value>, at: &At<'_>) -> Error {
    at.error(
        None,
        format!(
            "no column is recognised as the {key}; the record's columns are {}",
            at.columns_of(record)
        ),
        format!(
            "Name it with {key}=<column>; recognised are {}, and conversations in {}",
            quoted(names.iter().copied()),
            quoted(MESSAGES.iter().copied())
        ),
    )
}
