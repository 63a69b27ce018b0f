//! The arms of a comparison: what its students are trained on.
//!
//! ```text
//! shares       long alone, short alone, and mixtures: which problem gets which answer is chance
//! choice       the answers that a score chooses, such as RSR under the untuned student
//! its control  as many rows of each source as the choice has: which problem gets which is chance
//! its inverse  the answers that the same score likes least
//! ```
//!
//! A choice changes two things at once: the shares of the sources, and which problem gets which
//! answer. Its control has the same shares, so that what is left is the choice.

use super::config::{Cell, ComparisonConfig, StudyConfig};
use crate::data::{AnswersKept, ChoiceBy, ChoiceConfig, MixtureConfig, Prefer};
use crate::error::{Error, Result};
use crate::recipe::{Prepared, RunConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What the students of a comparison are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// Nothing: the student before any training. It is compared with, and no cell has it.
    Untuned,
    /// A share of the strong source, 0 to 1; chance decides which problems get its answers.
    Share(f64),
    /// What the comparison's choice with this number takes.
    Choice(usize),
    /// At random as many rows of each source as that choice takes.
    Control(usize),
    /// What the same score likes least.
    Inverse(usize),
}

/// The weak source alone, which every comparison has.
pub(super) const WEAK: ArmKind = ArmKind::Share(0.0);

/// A choice by score, as an arm of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmChoice {
    /// Its name in tables and folders; without it that of what the answers are chosen by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What answers are chosen by, as `mixture.choice.by` of a run: `rsr`, `nll`, `lalp`, `shortest`,
    /// `longest` or `column`.
    pub by: ChoiceBy,
    /// Which end of the scores is chosen, `lowest` or `highest`; without it the one that the method
    /// prefers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Prefer>,
    /// Share of the strong source, exactly, in hundredths; the scores then decide which problems get
    /// its answers. Without it the scores decide the share, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_share: Option<f64>,
    /// The least share of rows that a source has, by its name, 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floor: BTreeMap<String, f64>,
    /// The largest share of rows that a source has, by its name, 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ceiling: BTreeMap<String, f64>,
    /// Train an arm at random at the share that the choice has come to: the control that tells the
    /// choice from its share.
    #[serde(default = "yes")]
    pub control: bool,
    /// Train an arm on the answers that the score likes least.
    #[serde(default)]
    pub inverse: bool,
}

fn yes() -> bool {
    true
}

impl ArmChoice {
    /// Its name in folders.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.by.name())
    }

    /// What it is called in a report, such as `RSR`.
    fn title(&self) -> &str {
        match (&self.name, self.by) {
            (Some(name), _) => name,
            (None, ChoiceBy::Rsr | ChoiceBy::Nll | ChoiceBy::Lalp) => self.by.title(),
            (None, by) => by.name(),
        }
    }

    /// The setting of a run.
    fn config(&self, inverse: bool) -> ChoiceConfig {
        let mut choice = ChoiceConfig {
            prefer: self.prefer,
            within_share: self.within_share.is_some(),
            floor: self.floor.clone(),
            ceiling: self.ceiling.clone(),
            ..ChoiceConfig::by(self.by)
        };
        if inverse {
            choice.prefer = Some(choice.prefers().opposite());
        }
        choice
    }

    fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(Error::config(format!("comparisons.choices.{key}"), what, hint))
        };
        if self.by == ChoiceBy::Chance {
            let what = "the arms of shares and the controls are chosen by chance already".into();
            return refuse("by", what, "Name a score, such as rsr");
        }
        if let Some(share) = self.within_share.filter(|share| !is_share(share)) {
            return refuse("within_share", format!("it is {share}"), HUNDREDTHS);
        }
        let mixture =
            MixtureConfig { choice: Some(self.config(false)), ..MixtureConfig::default() };
        mixture.validate_choice().map_err(in_study)
    }
}

/// The error of a run's choice, with the setting of the study.
fn in_study(error: Error) -> Error {
    match error {
        Error::Config { key, what, hint } => {
            let key = key.replacen("mixture.choice", "comparisons.choices", 1);
            Error::Config { key, what, hint }
        }
        error => error,
    }
}

/// Shows what is wrong with the choice of a cell's settings before any training.
pub(super) fn check_choice(prepared: &Prepared, run: &RunConfig) -> Result<()> {
    prepared.check_choice(run).map_err(in_study)
}

/// What the student before any training is called.
pub(super) const UNTUNED: &str = "untuned";

const HUNDREDTHS: &str = "Give shares from 0 to 1, in hundredths";

/// Whether it can be told from others in the name of a folder.
fn is_share(share: &f64) -> bool {
    (0.0..=1.0).contains(share) && ((100.0 * share).round() - 100.0 * share).abs() < 1e-9
}

impl ComparisonConfig {
    /// Its arms: the shares in order, then each choice with its control and its inverse.
    pub fn arms(&self) -> Vec<ArmKind> {
        let mut arms: Vec<ArmKind> = self.shares().into_iter().map(ArmKind::Share).collect();
        for (number, choice) in self.choices.iter().enumerate() {
            arms.push(ArmKind::Choice(number));
            arms.extend(choice.control.then_some(ArmKind::Control(number)));
            arms.extend(choice.inverse.then_some(ArmKind::Inverse(number)));
        }
        arms
    }

    /// The shares of the strong source, 0 and 1 included, in order.
    pub fn shares(&self) -> Vec<f64> {
        let mut shares = self.alphas.clone();
        // A negative zero is a zero.
        shares.iter_mut().for_each(|share| *share += 0.0);
        shares.extend([0.0, 1.0]);
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        shares
    }

    /// What an arm is called in a report.
    ///
    /// # Panics
    /// If the comparison has no choice with the arm's number.
    pub fn title(&self, arm: ArmKind) -> String {
        match arm {
            ArmKind::Untuned => UNTUNED.into(),
            ArmKind::Share(0.0) => format!("{} alone", self.weak),
            ArmKind::Share(1.0) => format!("{} alone", self.strong),
            ArmKind::Share(share) => format!("{:.0} % {}", 100.0 * share, self.strong),
            ArmKind::Choice(number) => format!("by {}", self.choices[number].title()),
            ArmKind::Control(number) => {
                format!("random at the share of {}", self.choices[number].title())
            }
            ArmKind::Inverse(number) => format!("by {}, inverse", self.choices[number].title()),
        }
    }

    /// The folder of an arm.
    pub(super) fn folder(&self, arm: ArmKind) -> String {
        let by = |number: usize| format!("{}-by-{}", self.name, self.choices[number].name());
        match arm {
            ArmKind::Untuned => format!("{}-{UNTUNED}", self.name),
            ArmKind::Share(share) => format!("{}-{share:.2}", self.name),
            ArmKind::Choice(number) => by(number),
            ArmKind::Control(number) => format!("{}-control", by(number)),
            ArmKind::Inverse(number) => format!("{}-inverse", by(number)),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !self.alphas.iter().all(is_share) {
            let what = format!("{:?}", self.alphas);
            return Err(Error::config("alphas", what, HUNDREDTHS));
        }
        if self.strong == self.weak {
            let what = format!("both are `{}`", self.strong);
            return Err(Error::config("strong", what, "Name two sources"));
        }
        self.choices.iter().try_for_each(ArmChoice::validate)
    }

    /// Weights of a share of the strong source: the rest is the weak one's, and others have none.
    fn weights(&self, share: f64, others: &[&str]) -> BTreeMap<String, f64> {
        let mut weights: BTreeMap<String, f64> =
            others.iter().map(|name| ((*name).to_owned(), 0.0)).collect();
        weights.insert(self.strong.clone(), share);
        weights.insert(self.weak.clone(), 1.0 - share);
        weights
    }

    /// Puts what an arm is trained on into a run's settings. The weights of a control are equal ones
    /// here: those of its choice show once that is mixed.
    pub(super) fn apply(&self, arm: ArmKind, config: &mut RunConfig) {
        let sources = config.data.sources.iter().map(|source| source.name.as_str());
        let sources: Vec<&str> = sources.collect();
        config.mixture.weights = match arm {
            ArmKind::Share(share) => self.weights(share, &sources),
            ArmKind::Choice(number) | ArmKind::Inverse(number) => {
                self.weights(self.choices[number].within_share.unwrap_or(0.5), &sources)
            }
            ArmKind::Control(_) | ArmKind::Untuned => self.weights(0.5, &sources),
        };
        config.mixture.choice = match arm {
            ArmKind::Share(_) | ArmKind::Untuned => None,
            ArmKind::Choice(number) => Some(self.choices[number].config(false)),
            ArmKind::Control(_) => Some(ChoiceConfig::by(ChoiceBy::Chance)),
            ArmKind::Inverse(number) => Some(self.choices[number].config(true)),
        };
        if !self.choices.is_empty() {
            // All arms have the same problems, and choose among the same answers.
            config.data.answers.get_or_insert(AnswersKept::All);
        }
    }
}

impl StudyConfig {
    /// The file of the untuned student's scores of a cell's answers. A student that is read from a
    /// folder has one for all seeds; one that begins with random weights is another in each seed.
    pub(super) fn scores_file(&self, cell: &Cell, is_read: bool) -> PathBuf {
        let folder = self.out.join("scores").join(&self.students[cell.student].name);
        let name = &self.comparisons[cell.comparison].name;
        folder.join(match is_read {
            true => format!("{name}.jsonl"),
            false => format!("{name}-seed-{}.jsonl", cell.seed),
        })
    }

    /// The untuned students to test, as the cells that they are tested like: one that is read from a folder
    /// is the same for all seeds.
    pub(super) fn untuned_cells(&self) -> Vec<Cell> {
        let mut cells = vec![];
        for (number, seed) in self.seeds.iter().enumerate() {
            for comparison in 0..self.comparisons.len() {
                for student in 0..self.students.len() {
                    let cell = Cell { student, comparison, arm: WEAK, seed: *seed };
                    let is_read = self.run_config(&cell).is_ok_and(|run| run.base_model.is_some());
                    cells.extend((number == 0 || !is_read).then_some(cell));
                }
            }
        }
        cells
    }

    /// No two cells have the same folder.
    pub(super) fn validate_folders(&self) -> Result<()> {
        let mut folders = BTreeSet::new();
        for comparison in &self.comparisons {
            let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            for choice in &comparison.choices {
                let name = choice.name();
                if name.is_empty() || !name.chars().all(plain) {
                    let what = format!("the name \"{name}\" cannot be that of a folder");
                    let hint = "Use letters, digits, -, _ and .";
                    return Err(Error::config("comparisons.choices.name", what, hint));
                }
            }
            for arm in comparison.arms() {
                let folder = comparison.folder(arm);
                if !folders.insert(folder.to_lowercase()) {
                    let what = format!("two arms would be in the folder {folder}");
                    let hint = "Give each choice and each comparison its own name";
                    return Err(Error::config("comparisons.choices.name", what, hint));
                }
            }
        }
        Ok(())
    }
}
