//! What became of every record: nothing is dropped, cut or left unpaired without a line here.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What became of the records of one source.
///
/// Every record read is counted once in `empty_problems`, `empty_solutions`, `wrong`, `duplicates`,
/// `unmatched`, `too_long` or `usable`; `cut` and `id_conflicts` are remarks on records that are
/// counted elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLedger {
    /// The source's name.
    pub name: String,
    /// Records in the file.
    pub read: usize,
    /// Left out: the problem is empty.
    pub empty_problems: usize,
    /// Left out: the solution is empty.
    pub empty_solutions: usize,
    /// Left out: the solution is marked as wrong.
    #[serde(default)]
    pub wrong: usize,
    /// Left out: the source already answers this problem (the first answer is kept).
    pub duplicates: usize,
    /// Left out: another source does not answer this problem, and only problems that all answer
    /// were asked for.
    pub unmatched: usize,
    /// Left out: prompt, answer and end token exceed the length limit.
    pub too_long: usize,
    /// Answers that the mixture can choose.
    pub usable: usize,
    /// Of the usable ones: answers shortened to the limit, which lost their end and end token.
    pub cut: usize,
    /// Records that share an id, but not the problem, with an earlier record; they were joined by
    /// their text alone.
    pub id_conflicts: usize,
}

impl SourceLedger {
    /// Whether every record read is counted exactly once.
    pub fn adds_up(&self) -> bool {
        self.read
            == self.empty_problems
                + self.empty_solutions
                + self.wrong
                + self.duplicates
                + self.unmatched
                + self.too_long
                + self.usable
    }
}

/// What became of all records and problems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One line for each source.
    pub sources: Vec<SourceLedger>,
    /// Problems after joining the sources.
    pub joined: usize,
    /// Problems left out because none of their answers fits the length limit, or not all of them
    /// where all were asked for.
    pub without_answer: usize,
    /// Problems kept for evaluation.
    pub held_out: usize,
    /// Problems to train on.
    pub training: usize,
}

impl Ledger {
    /// Whether every record and every problem is counted exactly once.
    pub fn adds_up(&self) -> bool {
        self.sources.iter().all(SourceLedger::adds_up)
            && self.joined == self.without_answer + self.held_out + self.training
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.sources.iter().map(|s| s.name.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:width$} {:>8} {:>8} {:>10} {:>10} {:>9} {:>8} {:>8}",
            "source", "read", "empty", "duplicate", "unmatched", "too long", "usable", "(cut)"
        )?;
        for s in &self.sources {
            let empty = s.empty_problems + s.empty_solutions;
            writeln!(
                f,
                "{:width$} {:>8} {:>8} {:>10} {:>10} {:>9} {:>8} {:>8}",
                s.name, s.read, empty, s.duplicates, s.unmatched, s.too_long, s.usable, s.cut
            )?;
        }
        for s in self.sources.iter().filter(|s| s.wrong > 0) {
            writeln!(f, "{}: {} more are marked as wrong and left out", s.name, s.wrong)?;
        }
        for s in self.sources.iter().filter(|s| s.id_conflicts > 0) {
            writeln!(f, "{}: {} ids that name another problem elsewhere", s.name, s.id_conflicts)?;
        }
        write!(
            f,
            "problems: {} joined = {} to train on + {} held out + {} without the answers they need",
            self.joined, self.training, self.held_out, self.without_answer
        )
    }
}
