//! Counts of problems and answers by outcome.

use crate::text::Table;
use serde::{Deserialize, Serialize};

/// Counts of the problems before they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemCounts {
    /// Problems with an answer.
    pub read: usize,
    /// Rows of the file without an answer.
    pub without_answer: usize,
    /// Rows of the file that cannot be used.
    #[serde(default)]
    pub unusable: usize,
    /// Left out: same text as an earlier problem.
    pub duplicates: usize,
    /// Duplicates whose answer differs from that of the earlier problem.
    pub contradictions: usize,
    /// Left out: nearly the same text as an earlier problem, and the same answer.
    pub near_duplicates: usize,
    /// Kept: nearly the same text as an earlier problem, but another answer.
    pub variants: usize,
    /// Left out: also in a benchmark.
    pub in_benchmarks: usize,
    /// Problems to ask: `read` minus those that were left out.
    pub asked: usize,
}

/// Counts of one teacher's problems and answers.
///
/// Each problem is in exactly one of `with_correct`, `without_correct`, `refused`, `not_answered`, and
/// `skipped`. Each answer is in exactly one of `correct`, `wrong`, `unstated`, `cut`, and `empty`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerCounts {
    /// The model.
    pub model: String,
    /// Problems with a correct answer.
    pub with_correct: usize,
    /// Problems with all answers and no correct one.
    pub without_correct: usize,
    /// Problems that the teacher refused, for example because they are too long. The next call asks a server
    /// again.
    pub refused: usize,
    /// Problems that the teacher failed to answer. The next call asks again.
    pub not_answered: usize,
    /// Problems that were dropped early because the other teacher has no correct answer.
    pub skipped: usize,
    /// Requests that were answered in earlier calls.
    pub requests_known: usize,
    /// Requests that were answered in this call.
    pub requests_new: usize,
    /// Answers, including those of earlier calls.
    pub answers: usize,
    /// Correct answers.
    pub correct: usize,
    /// Answers with a wrong final answer.
    pub wrong: usize,
    /// Answers without a final answer.
    pub unstated: usize,
    /// Answers that the length limit truncated. They are never kept.
    pub cut: usize,
    /// Empty answers, and answers that a filter ended.
    pub empty: usize,
    /// Prompt tokens and answer tokens of all calls, if the teacher reports them.
    pub tokens: [u64; 2],
    /// Cost of these tokens.
    pub cost: f64,
    /// The last reason for `refused` or `not_answered`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AnswerCounts {
    /// Problems with a known outcome.
    pub(super) fn done(&self) -> usize {
        self.with_correct + self.without_correct + self.refused + self.not_answered + self.skipped
    }

    /// Returns whether the teacher refused every problem that it was asked.
    pub(super) fn all_refused(&self) -> bool {
        self.refused > 0 && self.refused + self.skipped == self.done()
    }

    /// Adds the counts of other problems.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { tokens, cost, reason, .. } = other;
        for (count, more) in [
            (&mut self.with_correct, other.with_correct),
            (&mut self.without_correct, other.without_correct),
            (&mut self.refused, other.refused),
            (&mut self.not_answered, other.not_answered),
            (&mut self.skipped, other.skipped),
            (&mut self.requests_known, other.requests_known),
            (&mut self.requests_new, other.requests_new),
            (&mut self.answers, other.answers),
            (&mut self.correct, other.correct),
            (&mut self.wrong, other.wrong),
            (&mut self.unstated, other.unstated),
            (&mut self.cut, other.cut),
            (&mut self.empty, other.empty),
        ] {
            *count = count.saturating_add(more);
        }
        for (count, more) in self.tokens.iter_mut().zip(tokens) {
            *count = count.saturating_add(*more);
        }
        self.cost += cost;
        self.reason = reason.clone().or(self.reason.take());
    }
}

/// Lengths of kept texts, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthStatistics {
    /// Number of texts.
    pub count: usize,
    /// Mean length.
    pub mean: f64,
    /// Quantiles: minimum, 25%, 50%, 75%, 90%, and maximum.
    pub quantiles: [usize; 6],
}

impl LengthStatistics {
    /// Statistics of the given lengths.
    pub fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let Some(last) = lengths.len().checked_sub(1) else { return Self::default() };
        // Nearest rank.
        let at = |share: f64| lengths[(share * last as f64).round() as usize];
        Self {
            count: lengths.len(),
            mean: lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
            quantiles: [0.0, 0.25, 0.5, 0.75, 0.9, 1.0].map(at),
        }
    }
}

/// The report of [`make_pairs`](super::make_pairs).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairsReport {
    /// Counts of problems.
    pub problems: ProblemCounts,
    /// Counts of the long teacher.
    pub long: AnswerCounts,
    /// Counts of the short teacher.
    pub short: AnswerCounts,
    /// Problems that both teachers answered correctly.
    pub pairs: usize,
    /// Number of rows in the long and the short file.
    pub rows: [usize; 2],
    /// Lengths of the rows' texts in the long and the short file.
    pub lengths: [LengthStatistics; 2],
}

impl PairsReport {
    /// Returns the report as Markdown tables.
    pub fn to_markdown(&self) -> String {
        let ProblemCounts {
            read,
            without_answer,
            unusable,
            duplicates,
            contradictions,
            near_duplicates,
            variants,
            in_benchmarks,
            asked,
        } = self.problems;
        let mut problems = Table::new(["problems", ""]);
        for (what, count) in [
            ("read", read),
            ("rows without an answer", without_answer),
            ("rows that cannot be used", unusable),
            ("left out: duplicate text", duplicates),
            ("of these, with another answer", contradictions),
            ("left out: nearly the same text and the same answer", near_duplicates),
            ("kept: nearly the same text, but another answer", variants),
            ("left out: in a benchmark", in_benchmarks),
            ("asked", asked),
        ] {
            problems.row([what.to_owned(), count.to_string()]);
        }
        let mut kept =
            Table::new(["kept", "rows", "mean length", "min", "25%", "50%", "75%", "90%", "max"]);
        for (name, LengthStatistics { count, mean, quantiles }) in
            ["long", "short"].iter().zip(self.lengths)
        {
            let figures = [(*name).to_owned(), count.to_string(), format!("{mean:.0}")];
            kept.row(figures.into_iter().chain(quantiles.map(|quantile| quantile.to_string())));
        }
        format!(
            "{}\n{}\n{}\nLengths are in characters.\n",
            problems.to_markdown(),
            self.answers().to_markdown(),
            kept.to_markdown()
        )
    }

    /// Returns the table of both teachers' answers.
    fn answers(&self) -> Table {
        let teachers = [&self.long, &self.short];
        let mut table = Table::new([
            String::new(),
            format!("long: {}", in_table(&self.long.model)),
            format!("short: {}", in_table(&self.short.model)),
        ]);
        let mut line = |what: &str, count: fn(&AnswerCounts) -> String| {
            let [long, short] = teachers.map(count);
            table.row([what.to_owned(), long, short]);
        };
        line("problems with a correct answer", |t| t.with_correct.to_string());
        line("problems without a correct answer", |t| t.without_correct.to_string());
        line("problems refused", |t| t.refused.to_string());
        line("problems not answered yet", |t| t.not_answered.to_string());
        line("problems skipped because the other teacher has no correct answer", |t| {
            t.skipped.to_string()
        });
        line("answers", |t| t.answers.to_string());
        line("correct", |t| t.correct.to_string());
        line("wrong", |t| t.wrong.to_string());
        line("without a final answer", |t| t.unstated.to_string());
        line("truncated by the length limit", |t| t.cut.to_string());
        line("empty or filtered", |t| t.empty.to_string());
        line("prompt tokens", |t| t.tokens[0].to_string());
        line("answer tokens", |t| t.tokens[1].to_string());
        if teachers.iter().any(|teacher| teacher.cost > 0.0) {
            line("cost", |t| format!("{:.2}", t.cost));
        }
        table
    }
}

/// Returns a name that is safe in a table.
pub(super) fn in_table(name: &str) -> String {
    const SHOWN: usize = 100;
    let name = name.chars().map(|c| if c == '|' || c.is_control() { ' ' } else { c });
    name.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted() {
        let lengths = LengthStatistics::of((0..=100).rev().collect());
        assert_eq!(lengths.quantiles, [0, 25, 50, 75, 90, 100]);
        assert_eq!((lengths.count, lengths.mean), (101, 50.0));
        assert_eq!(LengthStatistics::of(vec![]), LengthStatistics::default());
        assert_eq!(LengthStatistics::of(vec![7]).quantiles, [7; 6]);
    }
}
