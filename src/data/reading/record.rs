//! One reasoning trace, and what a file of them held.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use crate::data::chat::EarlierTurn;

/// One problem with one worked solution, the unit that every later stage takes.
///
/// The texts stand as they stood in the file: nothing is trimmed or rewritten, but for texts that are
/// put together. Reasoning that stands beside an answer, or before it between `<|begin_of_thought|>` and
/// `<|end_of_thought|>`, comes before it in `<think>` marks; a context comes before its problem, and
/// options below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CotRecord {
    /// The record's own name in its data set. A number in the file is turned to text; a blank or
    /// null one is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The system's text in its conversation, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The exchanges before the problem, in a conversation of several turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem as the model is asked it.
    pub problem: String,
    /// The chain of thought with its final answer: the text that is trained on.
    pub solution: String,
    /// The gold answer, to grade against. A number in the file is turned to text; a blank or null
    /// one is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

impl CotRecord {
    /// All that is asked in the conversation: what tells one problem from another.
    pub(crate) fn asked(&self) -> Cow<'_, str> {
        if self.earlier.is_empty() {
            return Cow::Borrowed(&self.problem);
        }
        let turns = self.earlier.iter().map(|turn| turn.problem.as_str());
        Cow::Owned(turns.chain([self.problem.as_str()]).collect::<Vec<_>>().join("\n\n"))
    }
}

/// What [`read_records`](super::read_records) found in one file.
///
/// Every record of the file is in exactly one place:
/// `read = records.len() + left_out.rows() + wrong + without_verdict`.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    /// The usable records, in the file's order.
    pub records: Vec<CotRecord>,
    /// Where each of `records` stood: its line (JSONL; CSV and TSV, where the row begins), its place in
    /// the list (JSON array) or its row (Parquet), counted from 1. As long as `records`.
    pub lines: Vec<u32>,
    /// The number that each of `records` had in the column of scores. As long as `records`.
    pub scores: Vec<Option<f64>>,
    /// For each of several files the first of `records` that is of it, or of a later one; a single file
    /// begins at 0.
    pub file_starts: Vec<usize>,
    /// Which columns the texts were taken from.
    pub columns: Columns,
    /// Lines between the rows of a text file that hold nothing but white space.
    pub blank_lines: usize,
    /// Records that cannot be used, by reason.
    pub left_out: LeftOut,
    /// Of those, records whose problem is blank or null.
    pub empty_problems: usize,
    /// Of those, records whose solution is blank or null, the problem being there.
    pub empty_solutions: usize,
    /// Records left out because their solution is marked as wrong, or none of several is right and
    /// complete.
    pub wrong: usize,
    /// Records left out because the column that says whether their solution is right says nothing.
    pub without_verdict: usize,
    /// Records whose reasoning stood beside the answer and was put before it.
    pub with_reasoning: usize,
    /// Records with a system text.
    pub with_system: usize,
    /// Escapes of half a character (lone surrogates), read as U+FFFD.
    pub broken_characters: usize,
    /// Records in the file.
    pub read: usize,
}

/// The columns that a file's texts were taken from, named as in the file.
///
/// Displayed as `problem=question, solution=answer`; a pair of columns that are joined as
/// `problem=instruction+input`. Unused columns and notes are not part of the display.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The problem's column; `None` where `messages` holds both texts.
    pub problem: Option<String>,
    /// The column that is put below the problem where it is not blank (Alpaca's `input`).
    pub input: Option<String>,
    /// The solution's column; `None` where `messages` holds both texts.
    pub solution: Option<String>,
    /// The column of conversations.
    pub messages: Option<String>,
    /// The id's column, if the file has one.
    pub id: Option<String>,
    /// The gold answer's column, if the file has one.
    pub answer: Option<String>,
    /// The column that says whether a solution is right, where it was named, or those of a data set that
    /// is known.
    #[serde(default)]
    pub correct: Option<String>,
    /// The column of reasoning that comes before the solution; of conversations, where it was named.
    #[serde(default)]
    pub reasoning: Option<String>,
    /// The column of system texts beside the others.
    #[serde(default)]
    pub system: Option<String>,
    /// The column that stands before the problem.
    #[serde(default)]
    pub context: Option<String>,
    /// The column of options, which stand below the problem.
    #[serde(default)]
    pub options: Option<String>,
    /// The column of scores.
    #[serde(default)]
    pub score: Option<String>,
    /// Columns with text that are not used.
    #[serde(default)]
    pub unused: Vec<String>,
    /// What is worth knowing of the choice.
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
