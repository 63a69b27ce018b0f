//! Datasets that are recognized by a combination of columns, because the usual names alone would select the
//! wrong ones. `docs/data.md` documents what is read from each.

use serde_json::{Map, Value};

use super::column::{FirstRows, is_bare};
use super::describe::described;
use super::messages;

/// Which answers to read from a dataset with long and short ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AnswerLength {
    /// The answers of a reasoning model.
    #[default]
    Long,
    /// The answers that people wrote.
    Short,
}

impl AnswerLength {
    /// Returns the kind of answers that a source with this name holds.
    pub(crate) fn of_source(name: &str) -> Self {
        if name == "short" { Self::Short } else { Self::Long }
    }
}

/// Columns of reasoning and answer in datasets that also have a bare final answer.
pub(super) const PAIRS: &[[&str; 2]] = &[
    ["deepseek_thinking_trajectory", "deepseek_attempt"],
    ["deepseek_reasoning", "deepseek_solution"],
    ["thinking_trajectories.0", "attempt"],
    ["gemini_thinking_trajectory", "gemini_attempt"],
];

/// Human solutions, beside the columns of a pair (OpenThoughts metadata).
pub(super) const HUMAN: &str = "ground_truth_solution";

/// Returns the bare final answer in the `solution` column of a row with separate columns of reasoning and
/// answer (s1K).
pub(crate) fn bare_solution(row: &Map<String, Value>) -> Option<String> {
    let mut pairs = PAIRS.iter().filter(|[_, solution]| row.contains_key(*solution));
    let solution = pairs.next().and_then(|_| row.get("solution")?.as_str())?.trim();
    (!solution.is_empty() && is_bare(solution)).then(|| solution.to_owned())
}

/// Several answers in one row, with verdicts on each in parallel lists.
#[derive(Debug)]
pub(super) struct Candidates {
    /// The answers.
    pub(super) texts: &'static str,
    /// Whether each answer is right, according to two judges. One positive verdict suffices.
    pub(super) right: [&'static str; 2],
    /// Whether each answer is complete.
    pub(super) complete: &'static str,
}

/// OpenR1-Math.
const OPEN_R1: Candidates = Candidates {
    texts: "generations",
    right: ["correctness_math_verify", "correctness_llama"],
    complete: "is_reasoning_complete",
};

/// Returns the columns of several answers per row, if the file has them.
pub(super) fn candidates(first: &FirstRows<'_>) -> Option<&'static Candidates> {
    let Candidates { texts, right: [right, _], complete } = OPEN_R1;
    [texts, right, complete].iter().all(|name| first.mostly_have(name)).then_some(&OPEN_R1)
}

/// Returns whether a known dataset may use this column.
pub(super) fn may_read(column: &str) -> bool {
    let pairs = PAIRS.iter().flatten().map(|name| name.split('.').next().unwrap_or(name));
    let Candidates { texts, right: [right, also], complete } = OPEN_R1;
    [texts, right, also, complete, HUMAN].contains(&column)
        || pairs.into_iter().any(|name| name == column)
}

/// The result of selecting one of several answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Picked {
    /// The first answer that is right and complete.
    Answer(String),
    /// There are answers, but none is right and complete.
    Wrong,
    /// No answer has a verdict.
    WithoutVerdict,
    /// There are no answers.
    Nothing,
}

impl Candidates {
    /// Returns the columns of verdicts, for display.
    pub(super) fn verdicts(&self) -> [&'static str; 3] {
        let [right, also] = self.right;
        [right, also, self.complete]
    }

    /// Selects the answer to read from a row.
    ///
    /// # Errors
    /// The column with an unexpected value, and a description of it.
    pub(super) fn pick(&self, row: &Map<String, Value>) -> Result<Picked, (&'static str, String)> {
        let texts = list(row, self.texts)?;
        let right = [list(row, self.right[0])?, list(row, self.right[1])?];
        let complete = list(row, self.complete)?;
        let verdict_at = |list: &[Value], name, index: usize| match list.get(index) {
            None => Ok(None),
            Some(value) => verdict_of(value).ok_or_else(|| {
                (name, format!("found {} in it, expected a verdict", described(value)))
            }),
        };
        let (mut is_judged, mut says) = (false, false);
        for (index, text) in texts.iter().enumerate() {
            let text = match text {
                Value::String(text) if !text.trim().is_empty() => text,
                Value::String(_) | Value::Null => continue,
                other => return Err((self.texts, format!("found {} in it", described(other)))),
            };
            says = true;
            let mut verdicts = [None, None];
            for ((verdict, list), name) in verdicts.iter_mut().zip(&right).zip(self.right) {
                *verdict = verdict_at(list, name, index)?;
            }
            let is_cut_off = verdict_at(&complete, self.complete, index)? == Some(false);
            is_judged |= is_cut_off || verdicts != [None, None];
            if !is_cut_off && verdicts.contains(&Some(true)) {
                return Ok(Picked::Answer(text.clone()));
            }
        }
        Ok(match (says, is_judged) {
            (false, _) => Picked::Nothing,
            (true, true) => Picked::Wrong,
            (true, false) => Picked::WithoutVerdict,
        })
    }
}

/// Returns the list in a column. Empty if the row lacks it.
fn list(
    row: &Map<String, Value>,
    name: &'static str,
) -> Result<Vec<Value>, (&'static str, String)> {
    match row.get(name) {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(vec![]),
        Some(value @ Value::String(text)) => messages::list_in(text)
            .ok_or_else(|| (name, format!("found {}, expected a list", described(value)))),
        Some(value) => Err((name, format!("found {}, expected a list", described(value)))),
    }
}

/// Parses a verdict. `Some(None)` if there is no verdict, `None` if the value is not one. Tables have
/// verdicts as text.
pub(super) fn verdict_of(value: &Value) -> Option<Option<bool>> {
    match (value, value.as_f64()) {
        (Value::Null, _) => Some(None),
        (Value::Bool(verdict), _) => Some(Some(*verdict)),
        (_, Some(1.0)) => Some(Some(true)),
        (_, Some(0.0)) => Some(Some(false)),
        (Value::String(text), _) => match text.trim().to_ascii_lowercase().as_str() {
            "" => Some(None),
            "true" | "yes" | "1" | "1.0" => Some(Some(true)),
            "false" | "no" | "0" | "0.0" => Some(Some(false)),
            _ => None,
        },
        _ => None,
    }
}
