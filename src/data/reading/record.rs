//! A reasoning trace, and the content of a file of them.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use crate::data::chat::EarlierTurn;

/// One problem with one worked solution, the unit that all later stages use.
///
/// Texts are unchanged, neither trimmed nor rewritten, except if several are combined. Reasoning from a
/// column of its own, or between `<|begin_of_thought|>` and `<|end_of_thought|>` before an answer, is placed
/// before the answer in `<think>` tags. A context is placed before its problem, and options below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CotRecord {
    /// The record's id in its dataset. Numbers become text; a blank or null id is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The system text of its conversation, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The earlier turns of a conversation with several turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem, as the model sees it.
    pub problem: String,
    /// The chain of thought with its final answer. This text is trained on.
    pub solution: String,
    /// The reference answer for grading. Numbers become text; a blank or null answer is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl CotRecord {
    /// Returns all user turns of the conversation, which identify the problem.
    pub(crate) fn asked(&self) -> Cow<'_, str> {
        if self.earlier.is_empty() {
            return Cow::Borrowed(&self.problem);
        }
        let turns = self.earlier.iter().map(|turn| turn.problem.as_str());
        Cow::Owned(turns.chain([self.problem.as_str()]).collect::<Vec<_>>().join("\n\n"))
    }
}

/// The records of one file, as read by [`read_records`](super::read_records).
///
/// Every record of the file is counted exactly once:
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    /// The usable records, in file order.
    pub records: Vec<CotRecord>,
    /// The location of each of `records`, counted from 1: its line (JSONL, and the first line of the row in
    /// CSV and TSV), its position in a JSON array, or its row in Parquet. As long as `records`.
    pub lines: Vec<u32>,
    /// The value of each of `records` in the column of scores. As long as `records`.
    pub scores: Vec<Option<f64>>,
    /// For each of several files, the index of the first of `records` that comes from it or from a later
    /// file. A single file starts at 0.
    pub file_starts: Vec<usize>,
    /// The columns that the texts were read from.
    pub columns: Columns,
    /// Blank lines between the rows of a text file.
    pub blank_lines: usize,
    /// Unusable records, by reason.
    pub left_out: LeftOut,
    /// Of these, records whose problem is blank or null.
    pub empty_problems: usize,
    /// Of these, records with a problem whose solution is blank or null.
    pub empty_solutions: usize,
    /// Records left out because their solution is marked as wrong, or because none of several solutions is
    /// right and complete.
    pub wrong: usize,
    /// Records left out because the column of verdicts has no verdict.
    pub without_verdict: usize,
    /// Records with separate reasoning, which was placed before the answer.
    pub with_reasoning: usize,
    /// Records with a system text.
    pub with_system: usize,
    /// Lone surrogate escapes, read as U+FFFD.
    pub broken_characters: usize,
    /// Records in the file.
    pub read: usize,
}

/// The columns that a file's texts were read from, named as in the file.
///
/// Displayed as `problem=question, solution=answer`. Columns that are combined are displayed as
/// `problem=instruction+input`. The display omits unused columns and notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The column of the problem. `None` if `messages` has both texts.
    pub problem: Option<String>,
    /// The column placed below the problem if it is not blank (Alpaca's `input`).
    pub input: Option<String>,
    /// The column of the solution. `None` if `messages` has both texts.
    pub solution: Option<String>,
    /// The column of conversations.
    pub messages: Option<String>,
    /// The column of ids, if the file has one.
    pub id: Option<String>,
    /// The column of reference answers, if the file has one.
    pub answer: Option<String>,
    /// The column of verdicts on solutions, if it was named or the dataset is known.
    #[serde(default)]
    pub correct: Option<String>,
    /// The column of reasoning placed before the solution. For conversations, only if it was named.
    #[serde(default)]
    pub reasoning: Option<String>,
    /// The column of system texts.
    #[serde(default)]
    pub system: Option<String>,
    /// The column placed before the problem.
    #[serde(default)]
    pub context: Option<String>,
    /// The column of options placed below the problem.
    #[serde(default)]
    pub options: Option<String>,
    /// The column of scores.
    #[serde(default)]
    pub score: Option<String>,
    /// Unused columns with text.
    #[serde(default)]
    pub unused: Vec<String>,
    /// Notes about the selected columns.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = [
            ("messages", &self.messages),
            ("system", &self.system),
            ("context", &self.context),
            ("problem", &self.problem),
            ("options", &self.options),
            ("reasoning", &self.reasoning),
            ("solution", &self.solution),
            ("answer", &self.answer),
            ("id", &self.id),
            ("correct", &self.correct),
            ("score", &self.score),
        ];
        let mut separator = "";
        for (key, column) in shown {
            let Some(column) = column else { continue };
            write!(f, "{separator}{key}={column}")?;
            if let ("problem", Some(input)) = (key, &self.input) {
                write!(f, "+{input}")?;
            }
            separator = ", ";
        }
        Ok(())
    }
}
