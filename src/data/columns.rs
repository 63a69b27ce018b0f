//! The columns of one file: chosen on its first rows, read from each.
//!
//! | text | recognized names, the first that the rows have |
//! | --- | --- |
//! | problem | `problem`, `question`, `prompt`, `instruction` (with `input` below it), `query` |
//! | solution | `solution`, `answer`, `response`, `output`, `completion`, `generated_solution` |
//! | both | `messages`, `conversations`, where the rows lack one of the two above |
//! | reasoning | `reasoning_content`, `reasoning`, `thinking` |
//! | reasoning and solution | `deepseek_thinking_trajectory` and `deepseek_attempt`, `deepseek_reasoning` and `deepseek_solution`, `thinking_trajectories` and `attempt` |
//! | gold answer | `gold_answer`, `ground_truth`, `final_answer`, `expected_answer`, `answer`, unless it is the solution |
//! | id | `id`, `problem_id`, `unique_id`, `uuid` |
//! | system text | `system`, `system_prompt` |
//! | before the problem | `context` |
//! | below the problem | `options`, `choices` |

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::collect::{At, described, quoted};
use super::column_map::{Choice, ColumnMap};
use super::messages::{self, ReasoningKey};
use super::reasoning::REASONING;
use super::record::{Columns, CotRecord};
use super::rows::{list_hint, list_of_records, records_under};
use crate::error::{Error, Result};

const PROBLEM: &[&str] = &["problem", "question", "prompt", "instruction", "query"];
const SOLUTION: &[&str] =
    &["solution", "answer", "response", "output", "completion", "generated_solution"];
const ANSWER: &[&str] =
    &["gold_answer", "ground_truth", "final_answer", "expected_answer", "answer"];
const ID: &[&str] = &["id", "problem_id", "unique_id", "uuid"];
const MESSAGES: &[&str] = &["messages", "conversations"];
const SYSTEM: &[&str] = &["system", "system_prompt"];
const CONTEXT: &[&str] = &["context"];
const OPTIONS: &[&str] = &["options", "choices"];
const INSTRUCTION: &str = "instruction";
const INPUT: &str = "input";
/// Columns of reasoning and answer that data sets have beside a bare final answer.
const PAIRS: &[[&str; 2]] = &[
    ["deepseek_thinking_trajectory", "deepseek_attempt"],
    ["deepseek_reasoning", "deepseek_solution"],
    ["thinking_trajectories.0", "attempt"],
    ["gemini_thinking_trajectory", "gemini_attempt"],
];

/// Whether a top-level column can matter to a map: all else need not be decoded.
pub(super) fn may_read(map: &ColumnMap, column: &str) -> bool {
    let pairs = PAIRS.iter().flatten().map(|name| name.split('.').next().unwrap_or(name));
    [PROBLEM, SOLUTION, ANSWER, ID, MESSAGES, SYSTEM, CONTEXT, OPTIONS, &REASONING, &[INPUT]]
        .iter()
        .any(|names| names.contains(&column))
        || pairs.into_iter().any(|name| name == column)
        || map.names(column)
}

/// What became of one record.
pub(super) enum Taken {
    Record {
        record: CotRecord,
        /// Whether its reasoning stood beside the answer.
        has_reasoning: bool,
    },
    Wrong,
    /// Nobody said whether its solution is right.
    WithoutVerdict,
}

/// The columns of one file, settled on its first rows.
pub(super) struct Resolved {
    pub(super) texts: Texts,
    pub(super) id: Option<Column>,
    pub(super) answer: Option<Column>,
    pub(super) correct: Option<Column>,
    pub(super) system: Option<Column>,
    /// Whether system texts in conversations are kept.
    pub(super) keeps_system: bool,
    notes: Vec<String>,
}

pub(super) enum Texts {
    Pair {
        problem: Column,
        with_input: bool,
        context: Option<Column>,
        options: Option<Column>,
        solution: Column,
        reasoning: Option<Column>,
        /// Whether reasoning in lists of messages is kept.
        keeps_reasoning: bool,
    },
    Messages {
        column: Column,
        reasoning: TurnKey,
    },
}

/// Where the turns of a file's conversations have their reasoning.
pub(super) enum TurnKey {
    Usual,
    Named(String),
    LeftOut,
}

impl TurnKey {
    fn of(map: &ColumnMap) -> Self {
        match Choice::of(&map.reasoning) {
            Choice::Usual => Self::Usual,
            Choice::Named(name) => Self::Named(name.to_owned()),
            Choice::LeftOut => Self::LeftOut,
        }
    }

    pub(super) fn key(&self) -> ReasoningKey<'_> {
        match self {
            Self::Usual => ReasoningKey::Usual,
            Self::Named(name) => ReasoningKey::Named(name),
            Self::LeftOut => ReasoningKey::LeftOut,
        }
    }
}

/// The first rows of a file, by which its columns are chosen.
pub(super) struct FirstRows<'r> {
    pub(super) rows: Vec<&'r Map<String, Value>>,
}

impl FirstRows<'_> {
    /// In how many rows a column is there.
    fn with(&self, name: &str) -> usize {
        let column = Column { name: name.to_owned(), is_path: name.contains('.') };
        self.rows.iter().filter(|row| column.find(row).is_ok()).count()
    }

    /// Whether at least half of the rows have a column with a value.
    fn mostly_have(&self, name: &str) -> bool {
        let column = Column { name: name.to_owned(), is_path: name.contains('.') };
        let has = |row: &&&Map<String, Value>| column.find(row).is_ok_and(|value| !value.is_null());
        2 * self.rows.iter().filter(has).count() >= self.rows.len()
    }

    /// The first of `names` that at least half of the rows have, else that any row has.
    fn recognized(&self, names: &[&str], taken: Option<&str>) -> Option<Column> {
        let free = || names.iter().filter(|name| taken != Some(**name));
        let name = free()
            .find(|name| 2 * self.with(name) >= self.rows.len())
            .or_else(|| free().find(|name| self.with(name) > 0))?;
        Some(Column { name: (*name).to_owned(), is_path: false })
    }

    /// Whether a column holds bare final answers and no working.
    fn is_bare(&self, column: &str) -> bool {
        const LONGEST: usize = 32;
        const MOST_WORDS: usize = 3;
        let mut texts = self.rows.iter().filter_map(|row| match row.get(column)? {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let bare = |text: &String| {
            text.chars().count() <= LONGEST && text.split_whitespace().count() <= MOST_WORDS
        };
        let mut any = false;
        texts.all(|text| {
            any |= !text.is_empty();
            bare(&text)
        }) && any
    }

    /// Fields with text of the turns in a column of conversations, in the order of their names.
    fn turn_fields(&self, column: &Column) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for value in self.rows.iter().filter_map(|row| column.find(row).ok()) {
            let list = match &*value {
                Value::Array(list) => list.clone(),
                Value::String(text) => messages::list_in(text).unwrap_or_default(),
                _ => vec![],
            };
            let fields = list.iter().filter_map(Value::as_object).flatten();
            let fields = fields.filter(|(_, value)| holds_text(value, 3));
            names.extend(fields.map(|(name, _)| name.clone()));
        }
        names.into_iter().collect()
    }

    /// Top-level columns with text, in the order of their names.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut names: Vec<String> = vec![];
        for row in &self.rows {
            for (name, _) in row.iter().filter(|(_, value)| holds_text(value, 4)) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        names.sort_unstable();
        names
    }
}

/// Whether there is text in a value.
fn holds_text(value: &Value, depth: usize) -> bool {
    match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) if depth > 0 => list.iter().any(|value| holds_text(value, depth - 1)),
        Value::Object(map) if depth > 0 => map.values().any(|value| holds_text(value, depth - 1)),
        _ => false,
    }
}

impl Resolved {
    /// Fields with text of the turns, where the file holds conversations.
    pub(super) fn turn_fields(&self, first: &FirstRows<'_>) -> Vec<String> {
        match &self.texts {
            Texts::Messages { column, .. } => first.turn_fields(column),
            Texts::Pair { .. } => vec![],
        }
    }

    /// Chooses the columns by `map` and by what the first rows have.
    pub(super) fn new(map: &ColumnMap, first: &FirstRows<'_>, at: &At<'_>) -> Result<Self> {
        let mut notes = vec![];
        let named = |name: &Option<String>| {
            name.as_deref().map(|name| Column::named(name, first, at)).transpose()
        };
        let optional = |name: &Option<String>, usual: &[&str], taken: Option<&str>| {
            Ok::<_, Error>(match Choice::of(name) {
                Choice::LeftOut => None,
                Choice::Named(name) => Some(Column::named(name, first, at)?),
                Choice::Usual => first.recognized(usual, taken),
            })
        };
        let mut bare = None;
        let texts = match named(&map.messages)? {
            Some(column) => Texts::Messages { column, reasoning: TurnKey::of(map) },
            None => match text_columns(map, first, at, &mut notes, &mut bare)? {
                Found::Conversation(column) => {
                    Texts::Messages { column, reasoning: TurnKey::of(map) }
                }
                Found::Pair { problem, solution, reasoning } => Texts::Pair {
                    with_input: map.problem.is_none()
                        && problem.name == INSTRUCTION
                        && solution.name != INPUT,
                    context: optional(&map.context, CONTEXT, Some(&solution.name))?,
                    options: optional(&map.options, OPTIONS, Some(&solution.name))?,
                    problem,
                    solution,
                    reasoning,
                    keeps_reasoning: Choice::of(&map.reasoning) != Choice::LeftOut,
                },
            },
        };
        let solution = match &texts {
            Texts::Pair { solution, .. } => Some(solution.name.as_str()),
            Texts::Messages { .. } => None,
        };
        let mut answer = optional(&map.answer, ANSWER, solution)?;
        if answer.is_none() && map.answer.is_none() {
            // What looked like solutions and is bare final answers.
            answer = bare.map(|name| Column { name, is_path: false });
        }
        let id = optional(&map.id, ID, None)?;
        let correct = named(&map.correct)?;
        let system = optional(&map.system, SYSTEM, None)?;
        let keeps_system = Choice::of(&map.system) != Choice::LeftOut;
        Ok(Self { texts, id, answer, correct, system, keeps_system, notes })
    }

    /// The chosen columns for display, with the text columns among `texts` that are not used, and
    /// the text fields of turns that are not.
    pub(super) fn columns(&self, texts: &[String], turn_fields: &[String]) -> Columns {
        let name = |column: &Option<Column>| column.as_ref().map(|column| column.name.clone());
        let mut columns = Columns {
            id: name(&self.id),
            answer: name(&self.answer),
            correct: name(&self.correct),
            system: name(&self.system),
            notes: self.notes.clone(),
            ..Columns::default()
        };
        match &self.texts {
            Texts::Pair { problem, with_input, context, options, solution, reasoning, .. } => {
                columns.problem = Some(problem.name.clone());
                columns.input = with_input.then(|| INPUT.to_owned());
                columns.context = name(context);
                columns.options = name(options);
                columns.solution = Some(solution.name.clone());
                columns.reasoning = name(reasoning);
            }
            Texts::Messages { column, reasoning } => {
                columns.messages = Some(column.name.clone());
                if let TurnKey::Named(name) = reasoning {
                    columns.reasoning = Some(format!("{}.{name}", column.name));
                }
            }
        }
        let is_used = |name: &String| {
            columns.used().any(|used| used == name || used.split('.').next() == Some(name))
        };
        columns.unused = texts.iter().filter(|name| !is_used(name)).cloned().collect();
        if let Texts::Messages { column, reasoning } = &self.texts {
            let key = reasoning.key();
            let unused = turn_fields.iter().filter(|name| !messages::is_read(name, key));
            columns.unused.extend(unused.map(|name| format!("{}.*.{name}", column.name)));
        }
        columns
    }
}

/// The columns of the two texts.
enum Found {
    Pair { problem: Column, solution: Column, reasoning: Option<Column> },
    Conversation(Column),
}

/// Looks for the columns of problem and solution, or of conversations. `bare` becomes the column that
/// looks like one of solutions and holds bare final answers, where another is taken.
fn text_columns(
    map: &ColumnMap,
    first: &FirstRows<'_>,
    at: &At<'_>,
    notes: &mut Vec<String>,
    bare: &mut Option<String>,
) -> Result<Found> {
    let named = |name: &Option<String>| {
        name.as_deref().map(|name| Column::named(name, first, at)).transpose()
    };
    let problem = match named(&map.problem)? {
        Some(column) => Some(column),
        None => first.recognized(PROBLEM, map.solution.as_deref()),
    };
    let taken = problem.as_ref().map(|column| column.name.clone());
    let taken = taken.as_deref();
    let reasoning = || match Choice::of(&map.reasoning) {
        Choice::LeftOut => Ok(None),
        Choice::Named(name) => Column::named(name, first, at).map(Some),
        Choice::Usual => Ok(first.recognized(&REASONING, taken)),
    };
    let usual = first.recognized(SOLUTION, taken);
    if map.solution.is_none() && map.reasoning.is_none() {
        let is_bare = usual.as_ref().is_none_or(|column| first.is_bare(&column.name));
        let pair = PAIRS.iter().find(|pair| pair.iter().all(|name| first.mostly_have(name)));
        if let (true, Some([thinking, solution]), Some(_)) = (is_bare, pair, &problem) {
            *bare = usual.map(|column| column.name);
            let column = |name: &str| Column { name: name.to_owned(), is_path: name.contains('.') };
            return Ok(Found::Pair {
                problem: column(taken.unwrap_or_default()),
                solution: column(solution),
                reasoning: Some(column(thinking)),
            });
        }
    }
    let solution = match named(&map.solution)? {
        Some(column) => Some(column),
        None => usual.map(|usual| not_bare(usual, first, taken, notes, bare)),
    };
    match (problem, solution) {
        (Some(problem), Some(solution)) => {
            let reasoning = reasoning()?.filter(|column| column.name != solution.name);
            Ok(Found::Pair { problem, solution, reasoning })
        }
        (problem, solution) => {
            // Looked for only where neither text is named: who names one means that form.
            let conversation = match (&map.problem, &map.solution) {
                (None, None) => first.recognized(MESSAGES, None),
                _ => None,
            };
            match conversation {
                Some(column) => Ok(Found::Conversation(column)),
                None if problem.is_none() => Err(unrecognized("problem", PROBLEM, first, at)),
                None => {
                    debug_assert!(solution.is_none());
                    Err(unrecognized("solution", SOLUTION, first, at))
                }
            }
        }
    }
}

/// The column of solutions that was recognized, or another that may be one where it holds bare final
/// answers.
fn not_bare(
    usual: Column,
    first: &FirstRows<'_>,
    taken: Option<&str>,
    notes: &mut Vec<String>,
    bare: &mut Option<String>,
) -> Column {
    if !first.is_bare(&usual.name) {
        return usual;
    }
    let names: Vec<&str> = SOLUTION.iter().copied().filter(|name| *name != usual.name).collect();
    let mut others = names
        .iter()
        .filter(|name| taken != Some(**name) && first.mostly_have(name) && !first.is_bare(name));
    if let Some(other) = others.next() {
        notes.push(format!(
            "`{}` holds bare final answers, so `{other}` is read as the solution; \
             solution={} reads the other",
            usual.name, usual.name
        ));
        *bare = Some(usual.name);
        return Column { name: (*other).to_owned(), is_path: false };
    }
    // Where nothing else could be a solution, short answers are what the file is about.
    let longer =
        |name: &String| *name != usual.name && taken != Some(name.as_str()) && !first.is_bare(name);
    if first.texts().iter().any(longer) {
        notes.push(format!(
            "warning: the solutions in `{}` are bare final answers, without any working; if another \
             column holds the answers to train on, name it with solution=<column> (and its \
             reasoning with reasoning=<column>)",
            usual.name
        ));
    }
    usual
}

/// A column by the name it was given: a key of the record or a dotted path.
pub(super) struct Column {
    pub(super) name: String,
    is_path: bool,
}

impl Column {
    /// A column that the user named; one of the first rows must have it.
    fn named(name: &str, first: &FirstRows<'_>, at: &At<'_>) -> Result<Self> {
        let is_key = first.rows.iter().any(|row| row.contains_key(name));
        let column = Self { name: name.to_owned(), is_path: !is_key && name.contains('.') };
        if first.rows.iter().any(|row| column.find(row).is_ok()) {
            return Ok(column);
        }
        let reason = first.rows.first().and_then(|row| column.find(row).err()).unwrap_or_default();
        let record = first.rows.first().copied();
        Err(at.error(
            Some(&column.name),
            format!(
                "the record lacks it{reason}; its columns are {}",
                record.map_or_else(|| "none".to_owned(), |record| at.columns_of(record))
            ),
            "Check the name's spelling, or leave it out to recognize the column by name",
        ))
    }

    /// The column's value in one record; a null on the way makes it null. Where it is not there, why.
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
                    // Data frames and CSV files hold lists as their text.
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

/// The value of a column in one row, by its key or a dotted path.
pub(crate) fn value_at<'r>(row: &'r Map<String, Value>, name: &str) -> Option<Cow<'r, Value>> {
    let is_path = !row.contains_key(name) && name.contains('.');
    Column { name: name.to_owned(), is_path }.find(row).ok()
}

/// An element of a list or an object.
fn within<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Object(object) => object.get(step),
        Value::Array(list) => step.parse().ok().and_then(|index: usize| list.get(index)),
        _ => None,
    }
}

/// No column of the first rows bears a usual name.
fn unrecognized(key: &str, names: &[&str], first: &FirstRows<'_>, at: &At<'_>) -> Error {
    let record = first.rows.first().copied();
    let list = record.filter(|_| first.rows.len() == 1).and_then(list_of_records);
    if let Some((list, count)) = list {
        return at.error(None, records_under(list, count), list_hint(list));
    }
    at.error(
        None,
        format!(
            "no column is recognized as the {key}; the record's columns are {}",
            record.map_or_else(|| "none".to_owned(), |record| at.columns_of(record))
        ),
        format!(
            "Name it with {key}=<column>; recognized are {}, and conversations in {}",
            quoted(names.iter().copied()),
            quoted(MESSAGES.iter().copied())
        ),
    )
}
