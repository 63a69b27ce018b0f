//! Unusable rows: left out and counted by reason. Too many of them are an error.

use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Default of `data.max_left_out`: the share of a file's rows that may be unusable.
pub const MAX_LEFT_OUT: f64 = 0.05;

/// One reason why rows of a file are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOutReason {
    /// The reason, such as `not JSON`.
    pub reason: String,
    /// Number of rows left out for it.
    pub rows: usize,
    /// The first of these rows, with its location and what was found.
    pub example: String,
}

/// Unusable rows of one file, by reason.
///
/// Displayed as `3 rows: 2 x not JSON (a.jsonl:7: ...); 1 x no answer (...)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftOut {
    reasons: Vec<LeftOutReason>,
}

/// Why a row is unusable.
#[derive(Debug)]
pub(crate) struct Unusable {
    /// The kind of problem, by which rows are counted.
    pub(crate) reason: String,
    /// What was found, where, and a hint.
    pub(crate) error: Box<Error>,
}

impl Unusable {
    pub(crate) fn new(reason: impl Into<String>, error: Error) -> Self {
        Self { reason: reason.into(), error: Box::new(error) }
    }
}

impl LeftOut {
    /// Maximum number of separate reasons. Further ones are counted together.
    const MOST_REASONS: usize = 24;

    /// Counts one row.
    pub(crate) fn add(&mut self, reason: &str, example: impl FnOnce() -> String) {
        let reason = match self.reasons.iter().any(|known| known.reason == reason) {
            false if self.reasons.len() >= Self::MOST_REASONS => "other reasons",
            _ => reason,
        };
        match self.reasons.iter_mut().find(|known| known.reason == reason) {
            Some(known) => known.rows += 1,
            None => {
                let (reason, example) = (reason.to_owned(), example());
                self.reasons.push(LeftOutReason { reason, rows: 1, example });
            }
        }
    }

    /// Returns the reasons, in order of first occurrence.
    pub fn reasons(&self) -> &[LeftOutReason] {
        &self.reasons
    }

    /// Returns the number of rows left out.
    pub fn rows(&self) -> usize {
        self.reasons.iter().map(|reason| reason.rows).sum()
    }

    /// Returns the number of rows left out for a reason.
    pub fn rows_for(&self, reason: &str) -> usize {
        self.reasons.iter().filter(|known| known.reason == reason).map(|known| known.rows).sum()
    }

    /// Returns whether no row is left out.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns the number of unusable rows that a share allows of `read` rows. One is always allowed, unless
    /// the share is 0.
    pub(crate) fn allowed(read: usize, share: f64) -> usize {
        match share > 0.0 {
            true => ((share * read as f64).floor() as usize).max(1),
            false => 0,
        }
    }

    /// Returns the reasons with counts and examples, for an error about too many unusable rows.
    pub(crate) fn summary(&self, read: usize) -> String {
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|r| format!("{} x {} ({})", r.rows, r.reason, r.example))
            .collect();
        format!("{} of {read} rows cannot be used: {}", self.rows(), reasons.join("; "))
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = if self.rows() == 1 { "" } else { "s" };
        write!(f, "{} row{s}", self.rows())?;
        for (index, reason) in self.reasons.iter().enumerate() {
            let before = if index == 0 { ": " } else { "; " };
            write!(f, "{before}{} x {} ({})", reason.rows, reason.reason, reason.example)?;
        }
        Ok(())
    }
}

/// Checks a share of rows that may be unusable.
///
/// # Errors
/// [`Error::Config`] if it is not between 0 and 1.
pub(crate) fn check_share(share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    let what = format!("{share} is not between 0 and 1");
    Err(Error::config("data.max_left_out", what, "Give a share of a file's rows, such as 0.05"))
}

/// The limit on unusable rows of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    share: f64,
    /// Whether the limit is the setting `data.max_left_out`.
    is_setting: bool,
}

impl Limit {
    /// For files whose limit is not configurable.
    pub(crate) const USUAL: Self = Self { share: MAX_LEFT_OUT, is_setting: false };

    pub(crate) fn of_setting(share: f64) -> Self {
        Self { share, is_setting: true }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_setting {
            true => write!(f, "data.max_left_out allows {} of a file's rows", self.share),
            false => write!(f, "At most {}% of a file's rows may be unusable", 100.0 * self.share),
        }
    }
}

/// Counts unusable rows of one file and keeps the first error, in case there are too many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) left_out: LeftOut,
    first: Option<Error>,
}

impl Tally {
    pub(crate) fn add(&mut self, unusable: Unusable) {
        const LONGEST: usize = 240;
        self.left_out.add(&unusable.reason, || {
            let text = match &*unusable.error {
                Error::Data { place, what, .. } => format!("{place}: {what}"),
                other => other.to_string(),
            };
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        });
        self.first.get_or_insert(*unusable.error);
    }

    /// Returns the rows left out, if the limit allows them.
    ///
    /// # Errors
    /// The error of the first unusable row if it is the only one; otherwise the reasons with examples.
    pub(crate) fn finish(self, path: &Path, read: usize, limit: Limit) -> Result<LeftOut> {
        let rows = self.left_out.rows();
        if rows <= LeftOut::allowed(read, limit.share) && (rows < read || rows == 0) {
            return Ok(self.left_out);
        }
        match self.first {
            Some(Error::Data { hint, .. }) if rows > 1 => {
                let hint = if rows == read { hint } else { format!("{hint}. {limit}") };
                Err(Error::data(Place::file(path), self.left_out.summary(read), hint))
            }
            Some(error) => Err(error),
            None => Ok(self.left_out),
        }
    }
}
