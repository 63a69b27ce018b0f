//! The settings of pilots.

use crate::data::{MixtureConfig, Schedule, Share};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The share to use if no other share is clearly better: the paper's.
pub const FALLBACK_SHARE: f64 = 0.2;

/// Checks for mixture settings that pilots cannot represent.
///
/// # Errors
/// [`Error::Config`] with the setting. `mixture.choice` is checked elsewhere.
pub(in crate::recipe) fn validate_mixture(mixture: &MixtureConfig) -> Result<()> {
    if mixture.share != Share::Auto {
        return Ok(());
    }
    let hint = "Remove it, or set a share instead of mixture.share = auto";
    if mixture.schedule != Schedule::Constant {
        let what = "with mixture.share = auto, pilots find one share for the whole training run";
        return Err(Error::config("mixture.schedule", what, hint));
    }
    if mixture.redraw {
        let what = "with mixture.share = auto, each problem keeps its answer in all epochs";
        return Err(Error::config("mixture.redraw", what, hint));
    }
    Ok(())
}

/// How pilots find the share with `mixture.share = "auto"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PilotsConfig {
    /// Maximum number of trained tokens of all pilots together, as a multiple of the trained tokens of the
    /// run (averaged over the shares). Grading the pilots is not included. Raise it if the run warns that
    /// pilots are too short.
    pub budget: f64,
    /// Shares to try, from 0 to 1: of the source named `long`, or of the first source if neither has that
    /// name. 0.2 is always added. With fewer shares, each pilot is longer.
    pub shares: Vec<f64>,
    /// Tokens of a round relative to the round before, 1 to 100. With larger values, the last pilots, which
    /// decide, are longer and the first ones shorter.
    pub growth: f64,
    /// Number of training problems to set aside for grading the pilots, at most half of all. The run itself
    /// trains on all problems.
    pub questions: usize,
    /// Share of bootstrap resamples of the graded problems in which the best share must beat 0.2 to be
    /// proposed, 0.5 to 1. Otherwise, 0.2 is used. 0.5 always takes the best pilot; 0.975 corresponds to a
    /// 95% interval above 0.
    pub confidence: f64,
}

impl Default for PilotsConfig {
    fn default() -> Self {
        Self {
            budget: 1.0,
            shares: vec![0.0, 0.2, 0.6, 1.0],
            growth: 6.0,
            questions: 200,
            confidence: 0.8,
        }
    }
}

impl PilotsConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(self.budget > 0.0 && self.budget <= 1000.0) {
            let what = format!("it is {}", self.budget);
            let hint = "Use a positive number up to 1000 (default 1)";
            return Err(Error::config("pilots.budget", what, hint));
        }
        if !(1.0..=100.0).contains(&self.growth) {
            let what = format!("it is {}", self.growth);
            return Err(Error::config("pilots.growth", what, "Use 1 to 100 (default 6)"));
        }
        if !(0.5..=1.0).contains(&self.confidence) {
            let what = format!("it is {}", self.confidence);
            return Err(Error::config(
                "pilots.confidence",
                what,
                "Use 0.5 to 1 (default 0.8); 0.5 always takes the best pilot",
            ));
        }
        let is_share = |share: &f64| (0.0..=1.0).contains(share);
        if !self.shares.iter().all(is_share) || self.all_shares().len() < 2 {
            let what = format!("{:?}", self.shares);
            let hint = "Use shares from 0 to 1, at least one besides 0.2";
            return Err(Error::config("pilots.shares", what, hint));
        }
        /// A sanity limit.
        const MOST: usize = 100;
        if self.shares.len() > MOST {
            let what = format!("there are {}", self.shares.len());
            return Err(Error::config("pilots.shares", what, "Use at most 100"));
        }
        if self.questions == 0 {
            let what = "it is 0, but pilots are graded by their answers";
            return Err(Error::config("pilots.questions", what, "Use 1 or more (default 200)"));
        }
        Ok(())
    }

    /// Returns the shares in ascending order without duplicates, including the fallback.
    pub(super) fn all_shares(&self) -> Vec<f64> {
        let mut shares = self.shares.clone();
        // Turns -0.0 into 0.0.
        shares.iter_mut().for_each(|share| *share += 0.0);
        shares.push(FALLBACK_SHARE);
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        shares
    }
}
