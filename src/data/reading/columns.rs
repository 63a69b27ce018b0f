//! The columns of a file, determined by its first rows and used for all rows.
//!
//! | content | recognized names, first match |
//! | --- | --- |
//! | problem | `problem`, `question`, `prompt`, `instruction` (with `input` below it), `query` |
//! | solution | `solution`, `answer`, `response`, `output`, `completion`, `generated_solution` |
//! | both | `messages`, `conversations`, if the rows lack one of the two above |
//! | reasoning | `reasoning_content`, `reasoning`, `thinking` |
//! | reasoning and solution | `deepseek_thinking_trajectory` and `deepseek_attempt`, `deepseek_reasoning` and `deepseek_solution`, `thinking_trajectories` and `attempt` |
//! | several answers | `generations`, with verdicts in `correctness_math_verify`, `correctness_llama`, and `is_reasoning_complete` |
//! | reference answer | `gold_answer`, `ground_truth`, `final_answer`, `expected_answer`, `answer`, unless it is the solution; the box in `ground_truth_solution` |
//! | id | `id`, `problem_id`, `unique_id`, `uuid` |
//! | system text | `system`, `system_prompt` |
//! | before the problem | `context` |
//! | below the problem | `options`, `choices` |

use super::column::{Column, FirstRows, Names, Optional};
use super::column_map::{Choice, ColumnMap};
use super::data_sets::{self, AnswerLength, Candidates, HUMAN, PAIRS};
use super::describe::{At, quoted};
use super::messages::{self, ReasoningKey};
use super::record::{Columns, CotRecord};
use crate::data::chat::reasoning::REASONING;
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
/// Returns whether a top-level column may be used. Other columns need not be decoded.
pub(super) fn may_read(map: &ColumnMap, column: &str) -> bool {
    [PROBLEM, SOLUTION, ANSWER, ID, MESSAGES, SYSTEM, CONTEXT, OPTIONS, &REASONING, &[INPUT]]
        .iter()
        .any(|names| names.contains(&column))
        || data_sets::may_read(column)
        || map.names(column)
}

/// The result of reading one record.
pub(super) enum Taken {
    Record {
        record: CotRecord,
        /// Whether it had separate reasoning.
        has_reasoning: bool,
        /// Whether its reasoning was between the markers of [`marked`](crate::data::chat::reasoning::marked).
        is_marked: bool,
        /// The value in the column of scores, if one is named.
        score: Option<f64>,
    },
    Wrong,
    /// There is no verdict on its solution.
    WithoutVerdict,
}

/// The columns of a file, determined by its first rows.
pub(super) struct Resolved {
    pub(super) texts: Texts,
    pub(super) id: Optional,
    pub(super) answer: Optional,
    pub(super) correct: Option<Column>,
    pub(super) score: Optional,
    pub(super) system: Optional,
    /// Whether system texts in conversations are kept.
    pub(super) keeps_system: bool,
    /// Whether the user named the column of system texts.
    pub(super) names_system: bool,
    /// Whether reasoning between markers in an answer is separated.
    pub(super) takes_apart: bool,
    notes: Vec<String>,
}

pub(super) enum Texts {
    Pair {
        problem: Column,
        with_input: bool,
        context: Optional,
        options: Optional,
        solution: Column,
        /// Set if a row has several solutions.
        candidates: Option<&'static Candidates>,
        reasoning: Optional,
        /// Whether reasoning in lists of messages is kept.
        keeps_reasoning: bool,
    },
    Messages {
        column: Column,
        reasoning: TurnKey,
    },
}

/// The field of conversation turns with the reasoning.
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

impl Resolved {
    /// Determines the columns by `map` and the first rows. From a dataset with long and short answers, uses
    /// those of `length`.
    pub(super) fn new(
        map: &ColumnMap,
        length: AnswerLength,
        first: &FirstRows<'_>,
        at: &At<'_>,
    ) -> Result<Self> {
        let mut notes = vec![];
        let named = |key: &str, name: &Option<String>| {
            name.as_deref().map(|name| Column::named(key, name, first, at)).transpose()
        };
        let optional = |name: &Option<String>, usual: &[&str], taken: &[&str]| {
            Optional::new(Choice::of(name), usual, taken, first)
        };
        let mut bare = None;
        let texts = match named("messages", &map.messages)? {
            Some(column) => Found::Conversation(column),
            None => text_columns(map, length, first, at, &mut notes, &mut bare)?,
        };
        let texts = match texts {
            Found::Conversation(column) => {
                map.check_conversation()?;
                Texts::Messages { column, reasoning: TurnKey::of(map) }
            }
            Found::Pair { problem, solution, reasoning, candidates } => {
                let taken = [problem.name.as_str(), solution.name.as_str()];
                let reasoning = match reasoning {
                    Some(column) => Optional::of(column),
                    None => optional(&map.reasoning, &REASONING, &taken),
                };
                Texts::Pair {
                    with_input: map.problem.is_none()
                        && problem.name == INSTRUCTION
                        && solution.name != INPUT,
                    context: optional(&map.context, CONTEXT, &taken),
                    options: optional(&map.options, OPTIONS, &taken),
                    reasoning,
                    keeps_reasoning: Choice::of(&map.reasoning) != Choice::LeftOut,
                    problem,
                    solution,
                    candidates,
                }
            }
        };
        let solution = match &texts {
            Texts::Pair { solution, .. } => solution.name.as_str(),
            Texts::Messages { .. } => "",
        };
        // A column of bare final answers that was mistaken for solutions becomes the reference, if there is
        // no other.
        let usual = || first.recognized(ANSWER, Some(solution)).is_none();
        let answer = match bare.filter(|_| map.answer.is_none() && usual()) {
            Some(name) => Optional::of(Column::key(&name)),
            None if map.answer.is_none()
                && usual()
                && solution != HUMAN
                && first.values(&Column::key(HUMAN)) > 0 =>
            {
                Optional::of(Column::key(HUMAN))
            }
            None => optional(&map.answer, ANSWER, &[solution]),
        };
        let id = optional(&map.id, ID, &[]);
        let correct = named("correct", &map.correct)?;
        let score = optional(&map.score, &[], &[]);
        let system = optional(&map.system, SYSTEM, &[]);
        Ok(Self {
            texts,
            id,
            answer,
            correct,
            score,
            system,
            keeps_system: Choice::of(&map.system) != Choice::LeftOut,
            names_system: map.system.is_some(),
            takes_apart: Choice::of(&map.reasoning) != Choice::LeftOut,
            notes,
        })
    }

    /// Returns the named column or turn field that no row has.
    pub(super) fn missing(&self, with_reasoning: usize) -> Option<String> {
        let mut optional = vec![&self.id, &self.answer, &self.system, &self.score];
        if let Texts::Pair { context, options, reasoning, .. } = &self.texts {
            optional.extend([context, options, reasoning]);
        }
        if let Texts::Messages { column, reasoning: TurnKey::Named(name) } = &self.texts
            && with_reasoning == 0
        {
            return Some(format!("{}.*.{name}", column.name));
        }
        optional.into_iter().find_map(Optional::missing).map(str::to_owned)
    }

    /// Returns the columns for display, with the unused columns of `texts` and turn fields.
    pub(super) fn columns(&self, texts: &Names, turn_fields: &Names) -> Columns {
        let mut columns = Columns {
            id: self.id.shown(),
            answer: self.answer.shown(),
            correct: self.correct.as_ref().map(|column| column.name.clone()),
            score: self.score.shown(),
            system: self.system.shown(),
            notes: self.notes.clone(),
            ..Columns::default()
        };
        let mut used: Vec<&str> = [&self.id, &self.answer, &self.system, &self.score]
            .into_iter()
            .flat_map(Optional::names)
            .chain(self.correct.as_ref().map(|column| column.name.as_str()))
            .collect();
        match &self.texts {
            Texts::Pair {
                problem,
                with_input,
                context,
                options,
                solution,
                candidates,
                reasoning,
                ..
            } => {
                if let Some(candidates) = candidates {
                    columns.correct = Some(candidates.verdicts().join("|"));
                    used.extend(candidates.verdicts());
                }
                columns.problem = Some(problem.name.clone());
                columns.input = with_input.then(|| INPUT.to_owned());
                columns.context = context.shown();
                columns.options = options.shown();
                columns.solution = Some(solution.name.clone());
                columns.reasoning = reasoning.shown();
                used.extend([problem.name.as_str(), solution.name.as_str()]);
                used.extend(with_input.then_some(INPUT));
                used.extend([context, options, reasoning].into_iter().flat_map(Optional::names));
            }
            Texts::Messages { column, reasoning } => {
                columns.messages = Some(column.name.clone());
                if let TurnKey::Named(name) = reasoning {
                    columns.reasoning = Some(format!("{}.*.{name}", column.name));
                }
                used.push(&column.name);
            }
        }
        let is_used = |name: &str| {
            used.iter().any(|used| *used == name || used.split('.').next() == Some(name))
        };
        columns.unused = texts.shown(|name| !is_used(name), |name| name.to_owned());
        if let Texts::Messages { column, reasoning } = &self.texts {
            let key = reasoning.key();
            let unused = |name: &str| !messages::is_read(name, key);
            let shown = |name: &str| format!("{}.*.{name}", column.name);
            columns.unused.extend(turn_fields.shown(unused, shown));
        }
        columns
    }
}

/// The columns of problem and solution.
enum Found {
    Pair {
        problem: Column,
        solution: Column,
        reasoning: Option<Column>,
        candidates: Option<&'static Candidates>,
    },
    Conversation(Column),
}

/// Finds the columns of problem and solution, or of conversations. `bare` receives a column that looks like
/// solutions but has bare final answers, if another one is used.
fn text_columns(
    map: &ColumnMap,
    length: AnswerLength,
    first: &FirstRows<'_>,
    at: &At<'_>,
    notes: &mut Vec<String>,
    bare: &mut Option<String>,
) -> Result<Found> {
    let named = |key: &str, name: &Option<String>| {
        name.as_deref().map(|name| Column::named(key, name, first, at)).transpose()
    };
    let problem = match named("problem", &map.problem)? {
        Some(column) => Some(column),
        None => first.recognized(PROBLEM, map.solution.as_deref()),
    };
    let taken = problem.as_ref().map(|column| column.name.clone());
    let taken = taken.as_deref();
    let usual = first.recognized(SOLUTION, taken);
    if map.solution.is_none() && map.reasoning.is_none() {
        let known = taken.and_then(|problem| {
            let usual = usual.as_ref().filter(|column| first.values(column) > 0);
            known_columns(map, length, problem, usual, first, notes, bare)
        });
        if let Some(known) = known {
            return Ok(known);
        }
    }
    let solution = match named("solution", &map.solution)? {
        Some(column) => Some(column),
        None => usual.map(|usual| not_bare(usual, first, taken, notes, bare)),
    };
    // Only considered if neither text is named, since naming one implies separate columns.
    let conversation = match (&map.problem, &map.solution) {
        (None, None) => first.recognized(MESSAGES, None),
        _ => None,
    };
    let says = |column: &Option<Column>| column.as_ref().is_some_and(|c| first.values(c) > 0);
    let empty = !says(&problem) || !says(&solution);
    match (problem, solution) {
        (Some(problem), Some(solution)) if !(empty && says(&conversation)) => {
            Ok(Found::Pair { problem, solution, reasoning: None, candidates: None })
        }
        (problem, _) => match conversation {
            Some(column) => Ok(Found::Conversation(column)),
            None if problem.is_none() => Err(unrecognized("problem", PROBLEM, first, at)),
            None => Err(unrecognized("solution", SOLUTION, first, at)),
        },
    }
}

/// Returns the columns of a dataset that is recognized by a combination of columns.
fn known_columns(
    map: &ColumnMap,
    length: AnswerLength,
    problem: &str,
    usual: Option<&Column>,
    first: &FirstRows<'_>,
    notes: &mut Vec<String>,
    bare: &mut Option<String>,
) -> Option<Found> {
    let found = |solution: Column, reasoning, candidates| Found::Pair {
        problem: Column::key(problem),
        solution,
        reasoning,
        candidates,
    };
    let reads_other = |usual: &Column| format!("; solution={0} reads `{0}`", usual.name);
    let other = usual.map_or(String::new(), reads_other);
    let candidates = data_sets::candidates(first).filter(|_| map.correct.is_none());
    if let (Some(candidates), AnswerLength::Long) = (candidates, length) {
        let (texts, [right, also]) = (candidates.texts, candidates.right);
        notes.push(format!(
            "of the answers in `{texts}`, the first that is right by `{right}` or `{also}` and complete \
             by `{}` is read{other}",
            candidates.complete
        ));
        return Some(found(Column::key(texts), None, Some(candidates)));
    }
    let [thinking, solution] =
        PAIRS.iter().find(|pair| pair.iter().all(|name| first.mostly_have(name)))?;
    if length == AnswerLength::Short && first.values(&Column::key(HUMAN)) > 0 {
        notes.push(format!(
            "`{HUMAN}` is read as the solution, since the source is named `short`; reasoning={thinking}, \
             solution={solution} reads the long answers"
        ));
        return Some(found(Column::key(HUMAN), None, None));
    }
    if let Some(usual) = usual {
        notes.push(format!(
            "`{thinking}` and `{solution}` are read as reasoning and solution; solution={} reads the \
             other column",
            usual.name
        ));
        *bare = first.is_bare(&usual.name).then(|| usual.name.clone());
    }
    Some(found(Column::path(solution), Some(Column::path(thinking)), None))
}

/// Returns the recognized column of solutions, or another one if it has bare final answers.
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
        return Column::key(other);
    }
    // If nothing else could be a solution, the file is about short answers.
    let longer = |name: &&str| *name != usual.name && taken != Some(*name) && !first.is_bare(name);
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

/// Returns the error if no column of the first rows has a usual name.
fn unrecognized(key: &str, names: &[&str], first: &FirstRows<'_>, at: &At<'_>) -> Error {
    let record = first.rows.first().copied();
    // The rewards in DAPO contain references; they are not decoded in Parquet files.
    let has = |name: &str| match at.columns {
        Some(columns) => columns.iter().any(|column| column.name == name),
        None => record.is_some_and(|record| record.contains_key(name)),
    };
    let references = ANSWER.iter().chain(&["reward_model"]).any(|name| has(name));
    let pairs = match key == "solution" && references {
        true => {
            "; if the file has only problems and references, `mixdistill pairs --problems FILE` creates \
             answers"
        }
        false => "",
    };
    at.error(
        None,
        format!(
            "no column is recognized as the {key}; the record's columns are {}",
            record.map_or_else(|| "none".to_owned(), |record| at.columns_of(record))
        ),
        format!(
            "Name it with {key}=<column>; recognized names are {}, and {} for conversations{pairs}",
            quoted(names.iter().copied()),
            quoted(MESSAGES.iter().copied())
        ),
    )
    .with_key(format!("columns.{key}"))
}
