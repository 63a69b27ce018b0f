//! Settings for choosing answers by score instead of at random.

use super::mixture::{MixtureConfig, Schedule};
use super::share::Share;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The score that answers are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceBy {
    /// Rank-Surprisal Ratio under the untuned student, lowest first (Yang et al., arXiv 2601.14249).
    Rsr,
    /// Mean negative log-likelihood under the untuned student, lowest first (GRAPE, arXiv 2502.04194).
    Nll,
    /// Local average log-probability under the untuned student, highest first (Just et al., arXiv
    /// 2510.03988).
    Lalp,
    /// Number of trained tokens in the answer, fewest first.
    Shortest,
    /// Number of trained tokens in the answer, most first.
    Longest,
    /// Numbers in a column of the data, which `columns.score` of each source names.
    Column,
    /// Random choice, as a control for the others: shares follow the weights, and one of a source's answers
    /// to a problem is drawn at random.
    Chance,
}

impl ChoiceBy {
    /// All choices.
    pub const ALL: [Self; 7] = [
        Self::Rsr,
        Self::Nll,
        Self::Lalp,
        Self::Shortest,
        Self::Longest,
        Self::Column,
        Self::Chance,
    ];

    /// Returns the name in settings, such as `rsr`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsr => "rsr",
            Self::Nll => "nll",
            Self::Lalp => "lalp",
            Self::Shortest => "shortest",
            Self::Longest => "longest",
            Self::Column => "column",
            Self::Chance => "chance",
        }
    }

    /// Returns the name in reports, such as `RSR`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Rsr => "RSR",
            Self::Nll => "NLL",
            Self::Lalp => "LALP",
            Self::Shortest | Self::Longest => "trained tokens",
            Self::Column => "the score column",
            Self::Chance => "chance",
        }
    }

    /// Returns whether it needs the untuned student's scores of the answers.
    pub fn needs_student(self) -> bool {
        matches!(self, Self::Rsr | Self::Nll | Self::Lalp)
    }

    /// Returns which end of the scores is usually preferred. `None` for a column, whose meaning only the user
    /// knows.
    pub fn usual(self) -> Option<Prefer> {
        match self {
            Self::Rsr | Self::Nll | Self::Shortest | Self::Chance => Some(Prefer::Lowest),
            Self::Lalp | Self::Longest => Some(Prefer::Highest),
            Self::Column => None,
        }
    }
}

/// Which end of the scores is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// Prefer low scores.
    Lowest,
    /// Prefer high scores.
    Highest,
}

impl Prefer {
    /// Returns the other end.
    pub fn opposite(self) -> Self {
        match self {
            Self::Lowest => Self::Highest,
            Self::Highest => Self::Lowest,
        }
    }
}

/// Settings for choosing answers by score instead of at random.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceConfig {
    /// Score to choose answers by. The scores `rsr`, `nll`, and `lalp` are computed with the untuned student.
    pub by: ChoiceBy,
    /// Which scores to prefer, `lowest` or `highest`. If unset, the usual end for the score is used. Required
    /// with `mixture.choice.by = "column"`, and not allowed with `chance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Prefer>,
    /// Keep the exact shares of `mixture.weights`; scores only decide which problems get which source's
    /// answer. If false, scores also determine the shares, and the weights are ignored.
    #[serde(default)]
    pub within_share: bool,
    /// Minimum share of rows, by source, 0 to 1. Sources that are not listed have no minimum. Not allowed if
    /// the weights determine the shares (`mixture.choice.within_share` or `chance`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floor: BTreeMap<String, f64>,
    /// Maximum share of rows, by source, 0 to 1. Sources that are not listed have no maximum. Not allowed if
    /// the weights determine the shares (`mixture.choice.within_share` or `chance`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ceiling: BTreeMap<String, f64>,
    /// With `mixture.choice.by = "lalp"`: number of preceding steps that the student sees in addition to the
    /// problem. If unset, it is 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// File of scores, as written by the `score` command. Missing scores are computed and added to it. If
    /// unset, all scores are computed and stored in the run directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<PathBuf>,
}

impl ChoiceConfig {
    /// Returns a choice by this score, without bounds.
    pub fn by(by: ChoiceBy) -> Self {
        Self {
            by,
            prefer: None,
            within_share: false,
            floor: BTreeMap::new(),
            ceiling: BTreeMap::new(),
            window: None,
            scores: None,
        }
    }

    /// Returns the preferred end of the scores.
    pub fn prefers(&self) -> Prefer {
        self.prefer.or(self.by.usual()).unwrap_or(Prefer::Lowest)
    }
}

impl MixtureConfig {
    /// Returns whether the choice, and not the weights, determines the shares of the sources.
    pub fn chooses_share(&self) -> bool {
        self.choice.as_ref().is_some_and(|c| !c.within_share && c.by != ChoiceBy::Chance)
    }

    /// Checks the settings of the choice, independently of the sources.
    ///
    /// # Errors
    /// [`Error::Config`] with the invalid setting.
    pub fn validate_choice(&self) -> Result<()> {
        let Some(choice) = &self.choice else { return Ok(()) };
        let refuse = |key: &str, what: &str, hint: &str| {
            Err(Error::config(format!("mixture.choice.{key}"), what, hint))
        };
        let by_weights = choice.within_share || choice.by == ChoiceBy::Chance;
        if self.share != Share::Exact || self.redraw || self.schedule != Schedule::Constant {
            let what = "a choice is made once and works with exact shares of rows";
            let hint = "Remove mixture.share, mixture.redraw, and mixture.schedule, or the choice";
            return refuse("by", what, hint);
        }
        if choice.by == ChoiceBy::Column && choice.prefer.is_none() {
            let what = "a column does not say whether low or high scores are better";
            return refuse("prefer", what, "Set it to lowest or highest");
        }
        if choice.by != ChoiceBy::Lalp && choice.window.is_some() {
            let what = format!("by = \"{}\" has no steps", choice.by.name());
            return refuse("window", &what, "Remove it, or choose by lalp");
        }
        if choice.by == ChoiceBy::Chance && choice.prefer.is_some() {
            return refuse("prefer", "a random choice has no preference", "Remove it");
        }
        let bounds = [("floor", &choice.floor), ("ceiling", &choice.ceiling)];
        for (key, of) in bounds {
            if by_weights && !of.is_empty() {
                let what = "the weights already determine the shares";
                return refuse(key, what, "Remove it, or remove within_share");
            }
            if let Some((name, share)) = of.iter().find(|(_, share)| !(0.0..=1.0).contains(*share))
            {
                let what = format!("the share of `{name}` is {share}");
                return refuse(key, &what, "Give shares of rows, 0 to 1");
            }
        }
        for (name, floor) in &choice.floor {
            if let Some(ceiling) = choice.ceiling.get(name).filter(|ceiling| *ceiling < floor) {
                let what =
                    format!("the floor of `{name}`, {floor}, is above its ceiling, {ceiling}");
                return refuse("floor", &what, "Lower it, or raise mixture.choice.ceiling");
            }
        }
        if choice.floor.values().sum::<f64>() > 1.0 + 1e-9 {
            return refuse("floor", "the floors sum to more than 1", "Lower them");
        }
        Ok(())
    }
}
