//! Accounting for every record: nothing is dropped, cut, or left unpaired without an entry here.

use crate::data::reading::Columns;
use crate::data::reading::left_out::LeftOut;
use crate::error::{Error, Result};
use crate::text::{DISPLAY_WIDTH, Table, wrapped};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Counts of the records of one source.
///
/// Every record read is counted exactly once in `left_out`, `wrong`, `without_verdict`, `duplicates`,
/// `unmatched`, `too_long`, or `usable`. The other counts give details about these records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLedger {
    /// The source's name.
    pub name: String,
    /// Records read from the file.
    pub read: usize,
    /// The columns in use, and the unused ones with text. `None` for records that were not read from a file.
    #[serde(default)]
    pub columns: Option<Columns>,
    /// Left out as unusable, by reason.
    #[serde(default)]
    pub left_out: LeftOut,
    /// Of these, records with an empty problem.
    pub empty_problems: usize,
    /// Of these, records with an empty solution.
    pub empty_solutions: usize,
    /// Left out because the solution is marked as wrong.
    #[serde(default)]
    pub wrong: usize,
    /// Left out because the column of verdicts has no verdict.
    #[serde(default)]
    pub without_verdict: usize,
    /// Records with separate reasoning, which was placed before the answer.
    #[serde(default)]
    pub with_reasoning: usize,
    /// Records with their own system text.
    #[serde(default)]
    pub with_system: usize,
    /// Lone surrogate escapes, read as U+FFFD.
    #[serde(default)]
    pub broken_characters: usize,
    /// Left out because the source already answers this problem. The first answer is kept.
    pub duplicates: usize,
    /// Left out because another source does not answer this problem, and only complete problems were
    /// requested.
    pub unmatched: usize,
    /// Left out because prompt, answer, and end token exceed the length limit.
    pub too_long: usize,
    /// Tokens in the shortest of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest_too_long: Option<usize>,
    /// Answers available to the mixture.
    pub usable: usize,
    /// Of the usable answers, those cut at the length limit, without their end token.
    pub cut: usize,
    /// Records with the id of an earlier record but a different problem. They are joined by text only.
    pub id_conflicts: usize,
}

impl SourceLedger {
    /// Returns the number of unusable records. Ledgers of earlier versions count only empty ones.
    pub fn unusable(&self) -> usize {
        self.left_out.rows().max(self.empty_problems + self.empty_solutions)
    }

    /// Returns the source's lines below the table.
    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![];
        if let Some(columns) = &self.columns {
            lines.push(format!("columns {columns}"));
            if !columns.unused.is_empty() {
                let unused = columns.unused.join(", ");
                lines.push(format!("columns with text that are not used: {unused}"));
            }
            lines.extend(columns.notes.iter().cloned());
        }
        let counted = |counts: [(usize, &'static str); 3]| {
            let counts = counts.into_iter().filter(|(count, _)| *count > 0);
            counts.map(|(count, what)| format!("{count} {what}"))
        };
        lines.extend(counted([
            (
                self.with_reasoning,
                "rows with separate reasoning, placed before the answer in <think> tags",
            ),
            (self.with_system, "rows with their own system text"),
            (self.broken_characters, "lone surrogates (half a character), read as U+FFFD"),
        ]));
        if !self.left_out.is_empty() {
            lines.push(format!("unusable and left out: {}", self.left_out));
        }
        lines.extend(counted([
            (self.wrong, "marked as wrong and left out"),
            (self.without_verdict, "without a verdict (null) and left out"),
            (self.id_conflicts, "ids that name a different problem elsewhere"),
        ]));
        lines.into_iter().map(|line| format!("{}: {line}", self.name)).collect()
    }

    /// Counts and reasons of readable records that are not used.
    fn unused(&self) -> impl Iterator<Item = (usize, &str)> {
        [
            (self.wrong, "marked as wrong"),
            (self.without_verdict, "without a verdict"),
            (self.duplicates, "duplicate"),
            (self.unmatched, "of problems that another source does not answer"),
            (self.too_long, "longer than data.max_length"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
    }

    /// Returns a line with the number of records left out, by reason. `None` if there are none.
    pub(crate) fn left_out_line(&self) -> Option<String> {
        let reasons = self.left_out.reasons().iter();
        let reasons = reasons.map(|reason| (reason.rows, reason.reason.as_str()));
        let counts: Vec<String> =
            reasons.chain(self.unused()).map(|(count, what)| format!("{count} x {what}")).collect();
        (!counts.is_empty()).then(|| {
            format!("source `{}`: left out of {} rows: {}", self.name, self.read, counts.join(", "))
        })
    }

    /// Explains why none of its records is left.
    pub(crate) fn where_they_went(&self) -> String {
        let unusable = Some((self.unusable(), "unusable")).filter(|(count, _)| *count > 0);
        let counts = unusable.into_iter().chain(self.unused());
        let counts: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
        let shortest = self.shortest_too_long.map_or(String::new(), |tokens| {
            format!(" (the shortest of those has {tokens} tokens)")
        });
        format!("of its {} records, {}{shortest}", self.read, counts.join(", "))
    }

    /// Returns whether every record is counted exactly once.
    pub fn adds_up(&self) -> bool {
        self.read
            == self.unusable()
                + self.wrong
                + self.without_verdict
                + self.duplicates
                + self.unmatched
                + self.too_long
                + self.usable
    }
}

/// Counts of all records and problems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One entry per source.
    pub sources: Vec<SourceLedger>,
    /// Problems after joining the sources.
    pub joined: usize,
    /// Problems left out because none of their answers fits the length limit, or, if complete problems were
    /// requested, because not all of them fit.
    pub without_answer: usize,
    /// Problems held out for evaluation.
    pub held_out: usize,
    /// Problems left out beyond the requested number.
    #[serde(default)]
    pub not_taken: usize,
    /// Problems to train on.
    pub training: usize,
}

impl Ledger {
    /// Refuses sources without any usable record.
    ///
    /// # Errors
    /// [`Error::Pairing`] with the counts of the first such source.
    pub fn check_sources(&self) -> Result<()> {
        match self.sources.iter().find(|source| source.usable == 0) {
            None => Ok(()),
            Some(source) => Err(Error::Pairing {
                what: format!(
                    "source `{}` has no row left: {}",
                    source.name,
                    source.where_they_went()
                ),
                hint: match source.too_long {
                    0 => {
                        "Check that the files answer the same problems and that the right columns \
                          are read, or leave the source out"
                    }
                    _ => {
                        "Raise data.max_length, choose another data.too_long, or leave the source \
                          out"
                    }
                }
                .into(),
            }),
        }
    }

    /// Returns whether every record and every problem is counted exactly once.
    pub fn adds_up(&self) -> bool {
        self.sources.iter().all(SourceLedger::adds_up)
            && self.joined == self.without_answer + self.held_out + self.not_taken + self.training
    }
}

impl Ledger {
    /// Formats the table and remarks in lines of at most `width` columns.
    pub fn to_text(&self, width: usize) -> String {
        let mut table = Table::new([
            "source",
            "read",
            "left out",
            "duplicate",
            "unmatched",
            "too long",
            "usable",
            "(cut)",
        ]);
        for s in &self.sources {
            let left_out = s.unusable() + s.wrong + s.without_verdict;
            let counts = [s.read, left_out, s.duplicates, s.unmatched, s.too_long, s.usable, s.cut];
            let counts = counts.map(|count| count.to_string());
            table.row([s.name.clone()].into_iter().chain(counts));
        }
        let mut lines = vec![table.to_text(width)];
        let remarks = self.sources.iter().flat_map(SourceLedger::remarks);
        lines.extend(remarks.map(|remark| wrapped(&remark, width)));
        let problems = format!(
            "problems: {} joined = {} to train on + {} held out + {} without the answers they need",
            self.joined, self.training, self.held_out, self.without_answer
        );
        let not_taken = match self.not_taken {
            0 => String::new(),
            count => format!(" + {count} beyond data.problems"),
        };
        lines.push(wrapped(&format!("{problems}{not_taken}"), width));
        lines.join("\n")
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(f.width().unwrap_or(DISPLAY_WIDTH)))
    }
}
