//! Which answer a problem gets where that is decided by scores, not by chance.

use super::mixture::{MixtureConfig, Schedule};
use super::share::Share;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What answers are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceBy {
    /// The Rank-Surprisal Ratio under the untuned student; lowest first (Yang et al., arXiv
    /// 2601.14249).
    Rsr,
    /// The mean negative log-likelihood under the untuned student; lowest first (GRAPE, arXiv
    /// 2502.04194).
    Nll,
    /// The local average log probability under the untuned student; highest first (Just et al.,
    /// arXiv 2510.03988).
    Lalp,
    /// The trained tokens of the answer, fewest first.
    Shortest,
    /// The trained tokens of the answer, most first.
    Longest,
    /// A number in a column of the sources, which `columns.score` of each source names.
    Column,
    /// Chance: shares as the weights say, and of several answers of one source to a problem one at
    /// random. A control for the others.
    Chance,
}

impl ChoiceBy {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Rsr,
        Self::Nll,
        Self::Lalp,
        Self::Shortest,
        Self::Longest,
        Self::Column,
        Self::Chance,
    ];

    /// Its name in settings, such as `rsr`.
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

    /// What it is in a report, such as `RSR`.
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

    /// Whether the untuned student's scores of the answers are needed.
    pub fn needs_student(self) -> bool {
        matches!(self, Self::Rsr | Self::Nll | Self::Lalp)
    }

    /// Which end of the scores suits the student better; `None` for a column, whose meaning only its
    /// user knows.
    pub fn usual(self) -> Option<Prefer> {
        match self {
            Self::Rsr | Self::Nll | Self::Shortest | Self::Chance => Some(Prefer::Lowest),
            Self::Lalp | Self::Longest => Some(Prefer::Highest),
            Self::Column => None,
        }
    }
}

/// Which end of the scores is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// The lowest score.
    Lowest,
    /// The highest score.
    Highest,
}

impl Prefer {
    /// The other end.
    pub fn opposite(self) -> Self {
        match self {
            Self::Lowest => Self::Highest,
            Self::Highest => Self::Lowest,
        }
    }
}

/// Answers chosen by a score, in place of the seed's chance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceConfig {
    /// What answers are chosen by: `rsr`, `nll`, `lalp`, `shortest`, `longest`, `column` or `chance`.
    pub by: ChoiceBy,
    /// Which end of the scores is chosen, `lowest` or `highest`; without it the one that the method
    /// prefers. A column of scores needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Prefer>,
    /// Keep the shares of rows exactly as the weights ask; the scores then decide which problems get
    /// which source's answer. Otherwise the weights are not used.
    #[serde(default)]
    pub within_share: bool,
    /// The least share of rows that a source has, by its name, 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floor: BTreeMap<String, f64>,
    /// The largest share of rows that a source has, by its name, 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ceiling: BTreeMap<String, f64>,
    /// With `lalp`: the steps before a step that the student sees, beside the problem; 4 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// The file of scores that `mixdistill score` writes. A run computes the scores that the file
    /// lacks and adds them to it; without a file it computes all of them and keeps them in the run
    /// directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<PathBuf>,
}

impl ChoiceConfig {
    /// A choice by this, without bounds.
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

    /// The end of the scores that is chosen.
    pub fn prefers(&self) -> Prefer {
        self.prefer.or(self.by.usual()).unwrap_or(Prefer::Lowest)
    }
}

impl MixtureConfig {
    /// Whether the share of each source comes of a choice, and not of the weights.
    pub fn chooses_share(&self) -> bool {
        self.choice.as_ref().is_some_and(|c| !c.within_share && c.by != ChoiceBy::Chance)
    }

    /// Checks what a choice needs beside what the sources are.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting that cannot be used.
    pub fn validate_choice(&self) -> Result<()> {
        let Some(choice) = &self.choice else { return Ok(()) };
        let refuse = |key: &str, what: &str, hint: &str| {
            Err(Error::config(format!("mixture.choice.{key}"), what, hint))
        };
        let by_weights = choice.within_share || choice.by == ChoiceBy::Chance;
        if self.share != Share::Exact || self.redraw || self.schedule != Schedule::Constant {
            let what = "a choice is made once, in exact shares of rows";
            let hint =
                "Leave mixture.share, mixture.redraw and mixture.schedule out, or the choice";
            return refuse("by", what, hint);
        }
        if choice.by == ChoiceBy::Column && choice.prefer.is_none() {
            let what = "whether low or high scores of a column are better is not known";
            return refuse("prefer", what, "Give lowest or highest");
        }
        if choice.by != ChoiceBy::Lalp && choice.window.is_some() {
            let what = format!("by = \"{}\" has no steps", choice.by.name());
            return refuse("window", &what, "Leave it out, or choose by lalp");
        }
        if choice.by == ChoiceBy::Chance && choice.prefer.is_some() {
            return refuse("prefer", "chance prefers nothing", "Leave it out");
        }
        let bounds = [("floor", &choice.floor), ("ceiling", &choice.ceiling)];
        for (key, of) in bounds {
            if by_weights && !of.is_empty() {
                let what = "the weights fix each share already";
                return refuse(key, what, "Leave it out, or within_share");
            }
            if let Some((name, share)) = of.iter().find(|(_, share)| !(0.0..=1.0).contains(*share))
            {
                let what = format!("that of `{name}` is {share}");
                return refuse(key, &what, "Give shares of rows, 0 to 1");
            }
        }
        for (name, floor) in &choice.floor {
            if let Some(ceiling) = choice.ceiling.get(name).filter(|ceiling| *ceiling < floor) {
                let what = format!("that of `{name}`, {floor}, is above its ceiling, {ceiling}");
                return refuse("floor", &what, "Lower it, or raise mixture.choice.ceiling");
            }
        }
        if choice.floor.values().sum::<f64>() > 1.0 + 1e-9 {
            return refuse("floor", "the floors sum to more than 1", "Lower them");
        }
        Ok(())
    }
}
