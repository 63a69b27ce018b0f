//! What was asked of the mixture and what came of it.

use super::mixture::Share;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One source's part of the mixture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceShare {
    /// The source's name.
    pub name: String,
    /// The share asked for, 0 to 1.
    pub requested: f64,
    /// Problems that the source answers within the length limit.
    pub available: usize,
    /// Rows with this source's answer.
    pub rows: usize,
    /// Characters (Unicode scalar values) of those answers.
    pub characters: u64,
    /// Tokens of those rows: prompt, answer and end.
    pub tokens: u64,
    /// Tokens that are trained: answer and end.
    pub trained_tokens: u64,
}

/// Requested and realised shares of one epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixtureReport {
    /// What the request is a share of.
    pub share: Share,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Whether the token columns are known.
    pub with_tokens: bool,
    /// One line for each source.
    pub sources: Vec<SourceShare>,
    /// Shares that the sources could not fill, in words.
    pub shortfalls: Vec<String>,
}

impl MixtureReport {
    pub(super) fn new(
        share: Share,
        epoch: u64,
        with_tokens: bool,
        sources: Vec<SourceShare>,
    ) -> Self {
        let mut report = Self { share, epoch, with_tokens, sources, shortfalls: vec![] };
        let total = report.total();
        let rows = total.rows.max(1) as f64;
        for line in &report.sources {
            let asked = line.requested;
            // How far a share that nothing hinders may be off: a row; what chance does; a row of
            // unknown length.
            let (realised, slack) = match share {
                Share::Exact => (line.rows as f64 / rows, 1.0 / rows),
                Share::Bernoulli => {
                    let deviation = (asked * (1.0 - asked) / rows).sqrt();
                    (line.rows as f64 / rows, 1.0 / rows + 4.0 * deviation)
                }
                Share::Tokens => {
                    let all = total.trained_tokens.max(1) as f64;
                    (line.trained_tokens as f64 / all, 0.005 + 1.0 / rows)
                }
            };
            // Without a problem that the source does not answer, nothing hinders its share.
            if line.available < total.rows && realised + slack < asked {
                report.shortfalls.push(format!(
                    "`{}` answers {} of {} problems: its share is {:.1} %, not {:.1} %",
                    line.name,
                    line.available,
                    total.rows,
                    100.0 * realised,
                    100.0 * asked
                ));
            }
        }
        report
    }

    /// The sums over all sources; `requested` is their sum, 1.
    pub fn total(&self) -> SourceShare {
        let mut total = SourceShare { name: "all".into(), ..Default::default() };
        for line in &self.sources {
            total.requested += line.requested;
            total.rows += line.rows;
            total.characters += line.characters;
            total.tokens += line.tokens;
            total.trained_tokens += line.trained_tokens;
        }
        total
    }

    /// A source's realised shares of rows, characters, tokens and trained tokens.
    pub fn realised(&self, source: &SourceShare) -> [f64; 4] {
        let total = self.total();
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        [
            share(source.rows as f64, total.rows as f64),
            share(source.characters as f64, total.characters as f64),
            share(source.tokens as f64, total.tokens as f64),
            share(source.trained_tokens as f64, total.trained_tokens as f64),
        ]
    }
}

impl fmt::Display for MixtureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.sources.iter().map(|s| s.name.len()).max().unwrap_or(0).max(6);
        let of = match self.share {
            Share::Exact => "of rows, exact",
            Share::Bernoulli => "of rows, by chance",
            Share::Tokens => "of trained tokens",
        };
        writeln!(
            f,
            "{:width$} {:>9} {:>16} {:>20} {:>18} {:>18}   (asked: {of})",
            "source", "asked", "rows", "characters", "tokens", "trained tokens"
        )?;
        for line in &self.sources {
            let [rows, characters, tokens, trained] = self.realised(line).map(|x| 100.0 * x);
            let tokens = match self.with_tokens {
                true => format!("{:>9} {tokens:>6.2} %", line.tokens),
                false => "-".into(),
            };
            let trained = match self.with_tokens {
                true => format!("{:>9} {trained:>6.2} %", line.trained_tokens),
                false => "-".into(),
            };
            writeln!(
                f,
                "{:width$} {:>7.2} % {:>7} {rows:>6.2} % {:>11} {characters:>6.2} % {tokens:>18} {trained:>18}",
                line.name,
                100.0 * line.requested,
                line.rows,
                line.characters,
            )?;
        }
        let total = self.total();
        write!(
            f,
            "{:width$} {:>9} {:>7} {:>8} {:>11} {:>8}",
            "all", "", total.rows, "", total.characters, ""
        )?;
        if self.with_tokens {
            write!(f, " {:>9} {:>8} {:>9} {:>8}", total.tokens, "", total.trained_tokens, "")?;
        }
        for shortfall in &self.shortfalls {
            write!(f, "\nnot filled: {shortfall}")?;
        }
        Ok(())
    }
}
