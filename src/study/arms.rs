//! The arms of a comparison: the data that its students are trained on.
//!
//! ```text
//! shares       long alone, short alone, and mixtures: answers are drawn at random
//! choice       the answers with the best scores, such as RSR under the untuned student
//! control      answers drawn at random, with as many rows of each source as the choice
//! inverse      the answers with the worst scores
//! ```
//!
//! A choice changes two things at once: the shares of the sources, and which problem gets which answer.
//! Its control has the same shares, so the difference between the two is the effect of the selection.

use super::config::{Cell, ComparisonConfig, StudyConfig};
use crate::data::{AnswersKept, ChoiceBy, ChoiceConfig, MixtureConfig, Prefer};
use crate::error::{Error, Result};
use crate::recipe::{Prepared, RunConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// An arm: the data that the students of a comparison are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// The student before training. Other arms are compared with it; no cell has it.
    Untuned,
    /// A share of the strong source, from 0 to 1. Its problems are drawn at random.
    Share(f64),
    /// The answers that the comparison's choice with this index selects.
    Choice(usize),
    /// A random mixture with as many rows of each source as that choice.
    Control(usize),
    /// The answers with the worst scores under that choice.
    Inverse(usize),
}

/// The weak source alone, an arm of every comparison.
pub(super) const WEAK: ArmKind = ArmKind::Share(0.0);

/// An arm whose answers are chosen by a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmChoice {
    /// Name in tables and folders. If unset, it is the value of `by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How answers are chosen, as in `mixture.choice.by` of a run: `rsr`, `nll`, `lalp`, `shortest`,
    /// `longest`, or `column`. A study does not accept `chance`: `control` adds random mixtures.
    pub by: ChoiceBy,
    /// Which scores to prefer, `lowest` or `highest`. If unset, the method decides; `column` requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Prefer>,
    /// Exact share of the strong source, from 0 to 1 in hundredths. Scores then decide only which problems
    /// get its answers. If unset, scores decide the share as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_share: Option<f64>,
    /// Minimum share of rows per source, from 0 to 1, by name of the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub floor: BTreeMap<String, f64>,
    /// Maximum share of rows per source, from 0 to 1, by name of the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ceiling: BTreeMap<String, f64>,
    /// Also train a control: a random mixture with as many rows of each source as the choice. The
    /// difference between the two is the effect of the selection, without that of the shares. Default:
    /// `true`.
    #[serde(default = "yes")]
    pub control: bool,
    /// Also train an arm on the answers with the worst scores. Default: `false`.
    #[serde(default)]
    pub inverse: bool,
}

fn yes() -> bool {
    true
}

impl ArmChoice {
    /// Returns the name in folders.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.by.name())
    }

    /// Returns the name in a report, such as `RSR`.
    fn title(&self) -> &str {
        match (&self.name, self.by) {
            (Some(name), _) => name,
            (None, ChoiceBy::Rsr | ChoiceBy::Nll | ChoiceBy::Lalp) => self.by.title(),
            (None, by) => by.name(),
        }
    }

    /// Returns the choice as a run setting.
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
            let what = "fixed shares and controls are already random".into();
            return refuse("by", what, "Use a score, such as rsr");
        }
        if let Some(share) = self.within_share.filter(|share| !is_share(share)) {
            return refuse("within_share", format!("it is {share}"), HUNDREDTHS);
        }
        let mixture =
            MixtureConfig { choice: Some(self.config(false)), ..MixtureConfig::default() };
        mixture.validate_choice().map_err(in_study)
    }
}

/// Replaces the key of a run's choice in an error with the key in the study's settings.
fn in_study(error: Error) -> Error {
    match error {
        Error::Config { key, what, hint } => {
            let key = key.replacen("mixture.choice", "comparisons.choices", 1);
            Error::Config { key, what, hint }
        }
        error => error,
    }
}

/// Reports an invalid choice in a cell's settings before any training.
pub(super) fn check_choice(prepared: &Prepared, run: &RunConfig) -> Result<()> {
    prepared.check_choice(run).map_err(in_study)
}

/// The name of the arm without training.
pub(super) const UNTUNED: &str = "untuned";

const HUNDREDTHS: &str = "Use shares from 0 to 1 in hundredths";

/// Returns whether a share is valid and distinguishable from others in a folder name.
fn is_share(share: &f64) -> bool {
    (0.0..=1.0).contains(share) && ((100.0 * share).round() - 100.0 * share).abs() < 1e-9
}

impl ComparisonConfig {
    /// Returns the arms: the shares in order, then each choice with its control and its inverse.
    pub fn arms(&self) -> Vec<ArmKind> {
        let mut arms: Vec<ArmKind> = self.shares().into_iter().map(ArmKind::Share).collect();
        for (number, choice) in self.choices.iter().enumerate() {
            arms.push(ArmKind::Choice(number));
            arms.extend(choice.control.then_some(ArmKind::Control(number)));
            arms.extend(choice.inverse.then_some(ArmKind::Inverse(number)));
        }
        arms
    }

    /// Returns the shares of the strong source in ascending order, including 0 and 1.
    pub fn shares(&self) -> Vec<f64> {
        let mut shares = self.alphas.clone();
        // Turns -0 into 0.
        shares.iter_mut().for_each(|share| *share += 0.0);
        shares.extend([0.0, 1.0]);
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        shares
    }

    /// Returns the name of an arm in a report.
    ///
    /// # Panics
    /// If the comparison has no choice with the arm's index.
    pub fn title(&self, arm: ArmKind) -> String {
        match arm {
            ArmKind::Untuned => UNTUNED.into(),
            ArmKind::Share(0.0) => format!("{} alone", self.weak),
            ArmKind::Share(1.0) => format!("{} alone", self.strong),
            ArmKind::Share(share) => format!("{:.0}% {}", 100.0 * share, self.strong),
            ArmKind::Choice(number) => format!("by {}", self.choices[number].title()),
            ArmKind::Control(number) => {
                format!("random at the share of {}", self.choices[number].title())
            }
            ArmKind::Inverse(number) => format!("by {}, inverse", self.choices[number].title()),
        }
    }

    /// Returns the folder name of an arm.
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
            let what = format!("strong and weak are both `{}`", self.strong);
            return Err(Error::config("strong", what, "Use two different sources"));
        }
        self.choices.iter().try_for_each(ArmChoice::validate)
    }

    /// Returns the mixture weights for a share of the strong source. The weak source gets the rest, others
    /// get 0.
    fn weights(&self, share: f64, others: &[&str]) -> BTreeMap<String, f64> {
        let mut weights: BTreeMap<String, f64> =
            others.iter().map(|name| ((*name).to_owned(), 0.0)).collect();
        weights.insert(self.strong.clone(), share);
        weights.insert(self.weak.clone(), 1.0 - share);
        weights
    }

    /// Sets the data of an arm in a run's settings. A control gets equal weights as placeholders: the real
    /// ones are known once its choice is mixed.
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
            // All arms have the same problems and the same candidate answers.
            config.data.answers.get_or_insert(AnswersKept::All);
        }
    }
}

impl StudyConfig {
    /// Returns the file with the untuned student's scores of a cell's answers. A student that is read from a
    /// folder has one file for all seeds. A student with random weights has one file per seed.
    pub(super) fn scores_file(&self, cell: &Cell, is_read: bool) -> PathBuf {
        let folder = self.out.join("scores").join(&self.students[cell.student].name);
        let name = &self.comparisons[cell.comparison].name;
        folder.join(match is_read {
            true => format!("{name}.jsonl"),
            false => format!("{name}-seed-{}.jsonl", cell.seed),
        })
    }

    /// Returns the untuned students to test, as cells with the settings of the test. A student that is read
    /// from a folder is tested once for all seeds.
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

    /// Checks that no two cells have the same folder.
    pub(super) fn validate_folders(&self) -> Result<()> {
        let mut folders = BTreeSet::new();
        for comparison in &self.comparisons {
            let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            for choice in &comparison.choices {
                let name = choice.name();
                if name.is_empty() || !name.chars().all(plain) {
                    let what = format!("the name \"{name}\" cannot be a folder name");
                    let hint = "Use only letters, digits, -, _, and .";
                    return Err(Error::config("comparisons.choices.name", what, hint));
                }
            }
            for arm in comparison.arms() {
                let folder = comparison.folder(arm);
                if !folders.insert(folder.to_lowercase()) {
                    let what = format!("two arms would use the folder {folder}");
                    let hint = "Give each choice and each comparison a unique name";
                    return Err(Error::config("comparisons.choices.name", what, hint));
                }
            }
        }
        Ok(())
    }
}
