//! Converts a row of a file to a record, using the file's columns.

use std::borrow::Cow;
use std::cell::Cell;

use serde_json::{Map, Value};

use super::column::{Column, Optional};
use super::columns::{Resolved, Taken, Texts};
use super::data_sets::{Candidates, HUMAN, Picked, verdict_of};
use super::describe::{At, described};
use super::left_out::Unusable;
use super::messages::{self, Exchange, Fault, ReasoningKey, Speaker, content};
use super::problem_text::{Options, with_context};
use super::record::CotRecord;
use crate::data::chat::EarlierTurn;
use crate::data::chat::reasoning::{
    Joined, Marked, asks_for_marks, is_only_reasoning, joined, marked,
};

/// Reasons that count as an empty problem or an empty answer.
pub(super) const NO_PROBLEM: &str = "no problem";
pub(super) const NO_ANSWER: &str = "no answer";
pub(super) const ONLY_REASONING: &str = "no answer, only reasoning";

const INPUT: &str = "input";

impl Resolved {
    /// Converts one row.
    ///
    /// Checks all types before leaving a record out as empty, so that a wrong file is not mistaken for an
    /// empty one.
    pub(super) fn take(
        &self,
        record: &Map<String, Value>,
        at: &At<'_>,
        surrogates: &mut usize,
    ) -> Result<Taken, Unusable> {
        let row = RowReader {
            record,
            at,
            takes_apart: self.takes_apart,
            surrogates: Cell::new(0),
            is_marked: Cell::new(false),
        };
        let taken = self.taken(&row);
        *surrogates += row.surrogates.get();
        taken
    }

    fn taken(&self, row: &RowReader<'_>) -> Result<Taken, Unusable> {
        let candidates = match &self.texts {
            Texts::Pair { candidates, .. } => *candidates,
            Texts::Messages { .. } => None,
        };
        let picked = candidates.map(|candidates| row.picked(candidates)).transpose()?;
        let exchange = match &self.texts {
            Texts::Pair { .. } => self.pair(row, picked.as_ref())?,
            Texts::Messages { column, reasoning } => row.conversation(column, reasoning.key())?,
        };
        let id = row.scalar(&self.id, "id")?;
        let answer = row.scalar(&self.answer, "answer")?;
        let beside = row.plain(&self.system, "system")?;
        let score = row.score(&self.score)?;
        let verdict = match &self.correct {
            Some(column) => row.verdict(column)?,
            None => Some(true),
        };
        let present = |text: &String| !text.trim().is_empty();
        let Some(problem) = exchange.problem.filter(present) else {
            return Err(row.empty(NO_PROBLEM, "the problem is empty"));
        };
        match picked {
            Some(Picked::Wrong) => return Ok(Taken::Wrong),
            Some(Picked::WithoutVerdict) => return Ok(Taken::WithoutVerdict),
            Some(Picked::Answer(_) | Picked::Nothing) | None => {}
        }
        let has_reasoning = exchange.reasoning.as_ref().is_some_and(present);
        let solution = row.solution(exchange.solution, exchange.reasoning)?;
        let turn = |turn: Exchange| -> Result<EarlierTurn, Unusable> {
            let problem = turn.problem.filter(present);
            let problem =
                problem.ok_or_else(|| row.empty(NO_PROBLEM, "an earlier user turn is empty"))?;
            Ok(EarlierTurn { problem, solution: row.solution(turn.solution, turn.reasoning)? })
        };
        let earlier = exchange.earlier.into_iter().map(turn).collect::<Result<_, _>>()?;
        let is_marked = row.is_marked.get();
        // A system text that asks for the markers would contradict an answer without them.
        let asks = |system: &String| is_marked && !self.names_system && asks_for_marks(system);
        let system = both_texts(beside, exchange.system).filter(|_| self.keeps_system);
        let system = system.filter(|system| !asks(system));
        Ok(match verdict {
            Some(true) => {
                let record = CotRecord { id, system, earlier, problem, solution, answer };
                Taken::Record { record, has_reasoning, is_marked, score }
            }
            Some(false) => Taken::Wrong,
            None => Taken::WithoutVerdict,
        })
    }

    /// Reads problem and solution from separate columns.
    fn pair(&self, row: &RowReader<'_>, picked: Option<&Picked>) -> Result<Exchange, Unusable> {
        let Texts::Pair {
            problem,
            with_input,
            context,
            options,
            solution,
            reasoning,
            keeps_reasoning,
            candidates: _,
        } = &self.texts
        else {
            return Ok(Exchange::default());
        };
        let key = match keeps_reasoning {
            true => ReasoningKey::Usual,
            false => ReasoningKey::LeftOut,
        };
        let asked = row.text(problem, "problem", Speaker::User, key)?;
        let answered = match picked {
            None => row.text(solution, "solution", Speaker::Assistant, key)?,
            Some(Picked::Answer(text)) => {
                Exchange { solution: Some(text.clone()), ..Exchange::default() }
            }
            Some(_) => Exchange::default(),
        };
        let mut text = asked.problem.filter(|text| !text.trim().is_empty());
        if let (true, Some(text)) = (*with_input, &mut text) {
            row.add_input(text)?;
        }
        let context = row.plain(context, "context")?;
        if let (Some(text), Some(context)) = (&mut text, context) {
            *text = with_context(text, &context);
        }
        if let (Some((column, value)), Some(text)) = (options.find(row.record), &mut text) {
            let options = Options::of(Some(&value)).map_err(|what| {
                let hint = "Name another column with options=<column>, or ignore them with \
                            options=none";
                row.unusable("invalid options", column, what, hint)
            })?;
            *text = options.below(std::mem::take(text));
        }
        let beside = row.plain(reasoning, "reasoning")?;
        Ok(Exchange {
            system: both_texts(asked.system, answered.system),
            earlier: asked.earlier,
            problem: text,
            reasoning: beside.or(answered.reasoning),
            solution: answered.solution,
        })
    }
}

fn has_box(text: &str) -> bool {
    text.contains("\\boxed") || text.contains("\\fbox")
}

/// Joins two texts if they differ.
pub(super) fn both_texts(a: Option<String>, b: Option<String>) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) if a.trim() != b.trim() => Some(format!("{a}\n\n{b}")),
        (a, b) => a.or(b),
    }
}

/// A row to convert.
struct RowReader<'r> {
    record: &'r Map<String, Value>,
    at: &'r At<'r>,
    /// Whether reasoning between markers in an answer is separated.
    takes_apart: bool,
    /// Whether it was separated.
    is_marked: Cell<bool>,
    /// Repaired surrogates in lists given as text.
    surrogates: Cell<usize>,
}

impl<'r> RowReader<'r> {
    fn unusable(
        &self,
        reason: impl Into<String>,
        column: &Column,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Unusable {
        Unusable::new(reason, self.at.error(Some(&column.name), what, hint))
    }

    fn empty(&self, reason: &str, what: &str) -> Unusable {
        let columns = self.at.columns_of(self.record);
        let what = format!("{what}; the record's columns are {columns}");
        let hint = "Check that the right columns are read, or remove the record";
        Unusable::new(reason, self.at.error(None, what, hint))
    }

    /// Returns the text to train on, from an answer and its separate reasoning.
    fn solution(
        &self,
        answered: Option<String>,
        reasoning: Option<String>,
    ) -> Result<String, Unusable> {
        let mut answered = answered.unwrap_or_default();
        let mut reasoning = reasoning.filter(|text| !text.trim().is_empty());
        if self.takes_apart && reasoning.is_none() {
            match marked(&answered) {
                Marked::Apart(within, answer) => {
                    self.is_marked.set(true);
                    (reasoning, answered) = (Some(within.to_owned()), answer.to_owned());
                }
                Marked::CutOff => {
                    let what =
                        "the marker that begins the solution is not closed at the end of the text";
                    let hint =
                        "Remove a truncated answer, or keep its text unchanged with reasoning=none";
                    return Err(Unusable::new("solution cut off", self.at.error(None, what, hint)));
                }
                Marked::Otherwise => {}
            }
        }
        let solution = match reasoning {
            None => answered,
            Some(reasoning) => match joined(&reasoning, &answered) {
                Joined::Text(text) => text,
                Joined::OnlyReasoning => {
                    let what = "there is reasoning, but the answer is empty";
                    return Err(self.empty(ONLY_REASONING, what));
                }
                Joined::TwoReasonings => {
                    let what = "the reasoning in the answer differs from the separate reasoning";
                    let hint = "Ignore the separate reasoning with reasoning=none";
                    return Err(Unusable::new(
                        "conflicting reasoning",
                        self.at.error(None, what, hint),
                    ));
                }
            },
        };
        match solution.trim().is_empty() {
            true => Err(self.empty(NO_ANSWER, "the answer is empty")),
            false if is_only_reasoning(&solution) => {
                let what = "the answer is only reasoning, which has no end or nothing after it";
                Err(self.empty(ONLY_REASONING, what))
            }
            false => Ok(solution),
        }
    }

    fn fault(&self, column: &Column, fault: Fault) -> Unusable {
        self.unusable(fault.reason, column, fault.what, fault.hint)
    }

    /// Returns the value of a column that every row must have.
    fn value(&self, column: &Column) -> Result<Cow<'r, Value>, Unusable> {
        column.find(self.record).map_err(|reason| {
            let name = &column.name;
            let columns = self.at.columns_of(self.record);
            self.unusable(
                format!("without the column `{name}`"),
                column,
                format!("the record lacks it, unlike others{reason}; its columns are {columns}"),
                "Give every record the same columns, with null for missing values",
            )
        })
    }

    /// Parses a JSON list in a text.
    fn list_in(&self, text: &str) -> Option<Vec<Value>> {
        let (list, surrogates) = messages::list_with_repairs(text)?;
        self.surrogates.set(self.surrogates.get() + surrogates);
        Some(list)
    }

    /// Returns an optional column of plain text. `None` if it is missing or blank.
    fn plain(&self, optional: &Optional, key: &str) -> Result<Option<String>, Unusable> {
        let Some((column, value)) = optional.find(self.record) else { return Ok(None) };
        let text = match &*value {
            Value::String(text) => Some(text.clone()),
            // The trajectories in s1K are lists with one entry.
            Value::Array(list) => match &list[..] {
                [Value::String(text)] => Some(text.clone()),
                [] => None,
                _ => return Err(self.wrong_type(column, key, &value, "text")),
            },
            _ => return Err(self.wrong_type(column, key, &value, "text")),
        };
        Ok(text.filter(|text| !text.trim().is_empty()))
    }

    /// Returns the text of a problem or solution, or the only message of a list.
    fn text(
        &self,
        column: &Column,
        key: &str,
        speaker: Speaker,
        reasoning: ReasoningKey<'_>,
    ) -> Result<Exchange, Unusable> {
        let value = self.value(column)?;
        let of = |text: Option<String>, reasoning| match speaker {
            Speaker::Assistant => Exchange { solution: text, reasoning, ..Exchange::default() },
            _ => Exchange { problem: text, ..Exchange::default() },
        };
        let lone = |turns: &[Value]| {
            let turns = match speaker {
                Speaker::User => messages::question(turns, reasoning),
                _ => messages::lone_turn(turns, speaker, reasoning),
            };
            turns.map_err(|fault| self.fault(column, fault))
        };
        match &*value {
            Value::Null => Ok(of(None, None)),
            Value::String(text) => match self.list_in(text) {
                Some(turns) if messages::is_conversation(&turns) => lone(&turns),
                _ => Ok(of(Some(text.clone()), None)),
            },
            Value::Array(turns) if messages::is_conversation(turns) => lone(turns),
            Value::Array(parts) if messages::is_parts(parts) => match content(&value) {
                Ok(content) => {
                    let beside = content.reasoning.filter(|_| reasoning != ReasoningKey::LeftOut);
                    Ok(of(content.text, beside))
                }
                Err(what) => {
                    let hint = "Remove parts that are not text";
                    Err(self.unusable("message that is not text", column, what, hint))
                }
            },
            value => Err(self.wrong_type(column, key, value, "text")),
        }
    }

    /// Places Alpaca's `input` below its instruction. Unlike other columns it may be missing from some rows:
    /// Alpaca files omit it, or leave it blank, if an instruction needs none.
    fn add_input(&self, problem: &mut String) -> Result<(), Unusable> {
        match self.record.get(INPUT) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(input)) => {
                if !input.trim().is_empty() {
                    problem.push_str("\n\n");
                    problem.push_str(input);
                }
                Ok(())
            }
            Some(value) => Err(Unusable::new(
                "wrong type in `input`",
                self.at.error(
                    Some(INPUT),
                    format!(
                        "found {}, expected text; the record's columns are {}",
                        described(value),
                        self.at.columns_of(self.record)
                    ),
                    "Write the value as text, or use problem=instruction to read only the \
                     instruction",
                ),
            )),
        }
    }

    /// Returns the problem and solution of a conversation. `None` if one is null.
    fn conversation(&self, column: &Column, key: ReasoningKey<'_>) -> Result<Exchange, Unusable> {
        let value = self.value(column)?;
        let exchange = |turns: &[Value]| {
            messages::exchange(turns, key).map_err(|fault| self.fault(column, fault))
        };
        match &*value {
            Value::Null => Ok(Exchange::default()),
            // A blank cell in a table.
            Value::String(text) if text.trim().is_empty() => Ok(Exchange::default()),
            Value::Array(turns) => exchange(turns),
            Value::String(text) => match self.list_in(text) {
                Some(turns) => exchange(&turns),
                None if text.trim_start().starts_with("[{'") => Err(self.unusable(
                    "list written as text",
                    column,
                    "found a list in Python's notation, expected JSON",
                    "Write the list itself, or its text with json.dumps",
                )),
                None => Err(self.wrong_type(column, "messages", &value, "a list of messages")),
            },
            value => Err(self.wrong_type(column, "messages", value, "a list of messages")),
        }
    }

    /// Returns whether a solution is right. `None` without a verdict.
    fn verdict(&self, column: &Column) -> Result<Option<bool>, Unusable> {
        let value = self.value(column)?;
        verdict_of(&value).ok_or_else(|| {
            self.unusable(
                format!("wrong type in `{}`", column.name),
                column,
                format!("`correct` is {value}"),
                "Use true or false, 1 or 0, or null for no verdict",
            )
        })
    }

    /// Selects one of several answers.
    fn picked(&self, candidates: &Candidates) -> Result<Picked, Unusable> {
        candidates.pick(self.record).map_err(|(name, what)| {
            let hint =
                "Give lists of texts and verdicts, or name one answer with solution=<column>.0";
            let reason = format!("wrong type in `{name}`");
            self.unusable(reason, &Column::key(name), what, hint)
        })
    }

    /// Returns an id or reference answer as text, if the row has one.
    fn scalar(&self, optional: &Optional, key: &str) -> Result<Option<String>, Unusable> {
        let Some((column, value)) = optional.find(self.record) else { return Ok(None) };
        match &*value {
            // A worked solution is a reference if it states its answer.
            Value::String(text) if column.name == HUMAN && !has_box(text) => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(number) => Ok(Some(number.to_string())),
            value => Err(self.wrong_type(column, key, value, "text or a number")),
        }
    }

    /// Returns a number to choose by, if the row has one.
    fn score(&self, optional: &Optional) -> Result<Option<f64>, Unusable> {
        let Some((column, value)) = optional.find(self.record) else { return Ok(None) };
        let number = match &*value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_f64(),
        };
        match number.filter(|number: &f64| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(column, "score", &value, "a number")),
        }
    }

    /// Returns the error for a column with an unexpected type.
    fn wrong_type(&self, column: &Column, key: &str, value: &Value, expected: &str) -> Unusable {
        let name = &column.name;
        let hint = match value {
            Value::Array(list) if !list.is_empty() && key != "messages" => {
                format!("Name one element of the list, for example {key}={name}.0")
            }
            Value::Object(object) if !object.is_empty() => {
                // A shortened name could not be copied.
                let inner = object.keys().find(|name| name.len() <= 40);
                let inner = inner.map_or("<field>", String::as_str);
                format!("Name one field of the object, for example {key}={name}.{inner}")
            }
            _ => {
                format!("Write the value as {expected}, or name another column with {key}=<column>")
            }
        };
        let what = format!(
            "found {}, expected {expected}; the record's columns are {}",
            described(value),
            self.at.columns_of(self.record)
        );
        self.unusable(format!("wrong type in `{name}`"), column, what, hint)
    }
}
