//! Requested and realized shares of a mixture.

use super::chosen::ChoiceReport;
use super::share::Share;
use crate::text::{DISPLAY_WIDTH, Table, wrapped};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A source's share of the mixture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceShare {
    /// The source's name.
    pub name: String,
    /// The requested share, 0 to 1.
    pub requested: f64,
    /// Problems that the source answers within the length limit.
    pub available: usize,
    /// Rows with this source's answer.
    pub rows: usize,
    /// Characters (Unicode scalar values) in these answers.
    pub characters: u64,
    /// Tokens in these rows: prompt, answer, and end token.
    pub tokens: u64,
    /// Trained tokens: answer and end token.
    pub trained_tokens: u64,
}

/// Requested and realized shares of one epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixtureReport {
    /// What the shares are shares of.
    pub share: Share,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Whether the token columns are known.
    pub with_tokens: bool,
    /// One entry per source.
    pub sources: Vec<SourceShare>,
    /// Shares that the sources cannot reach, in words.
    pub shortfalls: Vec<String>,
    /// The result of a choice by score, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<ChoiceReport>,
}

impl MixtureReport {
    pub(super) fn new(
        share: Share,
        epoch: u64,
        with_tokens: bool,
        sources: Vec<SourceShare>,
    ) -> Self {
        let mut report =
            Self { share, epoch, with_tokens, sources, shortfalls: vec![], choice: None };
        let total = report.total();
        let rows = total.rows.max(1) as f64;
        for line in &report.sources {
            let asked = line.requested;
            // Tolerance for a share: one row, plus random variation for draws, plus a row of unknown length
            // for tokens.
            let (realized, slack) = match share {
                Share::Exact | Share::Auto => (line.rows as f64 / rows, 1.0 / rows),
                Share::Bernoulli => {
                    let deviation = (asked * (1.0 - asked) / rows).sqrt();
                    (line.rows as f64 / rows, 1.0 / rows + 4.0 * deviation)
                }
                Share::Tokens => {
                    let all = total.trained_tokens.max(1) as f64;
                    (line.trained_tokens as f64 / all, 0.005 + 1.0 / rows)
                }
            };
            // A source that answers every problem can reach any share.
            if line.available < total.rows && realized + slack < asked {
                report.shortfalls.push(format!(
                    "`{}` answers {} of {} problems: its share is {:.1}%, not {:.1}%",
                    line.name,
                    line.available,
                    total.rows,
                    100.0 * realized,
                    100.0 * asked
                ));
            }
        }
        report
    }

    /// Returns the totals over all sources. `requested` is their sum, 1.
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

    /// Returns a source's realized shares of rows, characters, tokens, and trained tokens.
    pub fn realized(&self, source: &SourceShare) -> [f64; 4] {
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

impl MixtureReport {
    /// Formats the table and the shares that are not reached, in lines of at most `width` columns.
    pub fn to_text(&self, width: usize) -> String {
        let mut table =
            Table::new(["source", "requested", "rows", "characters", "tokens", "trained tokens"]);
        // All percentages have the same width, so that the counts align.
        let is_whole = |share: &f64| *share >= 0.999_95;
        let whole = self.sources.iter().any(|line| self.realized(line).iter().any(is_whole));
        let digits = if whole { 6 } else { 5 };
        let percent = |share: f64| format!("{:>digits$.2}%", 100.0 * share);
        let counted = |count: u64, share: f64| format!("{count} {}", percent(share));
        let chosen = self.choice.as_ref().is_some_and(|choice| !choice.within_share);
        let if_known = |text: String| if self.with_tokens { text } else { "-".into() };
        for line in &self.sources {
            let [rows, characters, tokens, trained] = self.realized(line);
            table.row([
                line.name.clone(),
                if chosen { "-".into() } else { percent(line.requested) },
                counted(line.rows as u64, rows),
                counted(line.characters, characters),
                if_known(counted(line.tokens, tokens)),
                if_known(counted(line.trained_tokens, trained)),
            ]);
        }
        let total = self.total();
        let whole = |count: u64| format!("{count} {}", " ".repeat(digits + 1));
        table.row([
            total.name.clone(),
            String::new(),
            whole(total.rows as u64),
            whole(total.characters),
            if_known(whole(total.tokens)),
            if_known(whole(total.trained_tokens)),
        ]);
        let of = match self.share {
            Share::Exact | Share::Auto => "of rows, exact",
            Share::Bernoulli => "of rows, at random",
            Share::Tokens => "of trained tokens",
        };
        let mut lines = vec![table.to_text(width)];
        if !chosen {
            lines.push(format!("requested shares: {of}"));
        }
        lines.extend(self.choice.as_ref().map(|choice| choice.to_text(width)));
        let shortfalls = self.shortfalls.iter();
        lines.extend(shortfalls.map(|line| wrapped(&format!("not reached: {line}"), width)));
        lines.join("\n")
    }
}

impl fmt::Display for MixtureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(f.width().unwrap_or(DISPLAY_WIDTH)))
    }
}
