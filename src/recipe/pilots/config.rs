//! What pilots are told.

use crate::data::{MixtureConfig, Schedule, Share};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The share where no other is clearly better: the paper's.
pub const FALLBACK_SHARE: f64 = 0.2;

/// Refuses what gives the share another meaning than the one that pilots find.
///
/// # Errors
/// [`Error::Config`] with the setting; a choice of answers refuses the share itself.
pub(in crate::recipe) fn validate_mixture(mixture: &MixtureConfig) -> Result<()> {
    if mixture.share != Share::Auto {
        return Ok(());
    }
    let hint = "Leave it out, or give the share in place of mixture.share = auto";
    if mixture.schedule != Schedule::Constant {
        let what = "with mixture.share = auto pilots find one share for the whole training";
        return Err(Error::config("mixture.schedule", what, hint));
    }
    if mixture.redraw {
        let what = "with mixture.share = auto each problem keeps its answer in all epochs";
        return Err(Error::config("mixture.redraw", what, hint));
    }
    Ok(())
}

/// How the share of `mixture.share = "auto"` is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PilotsConfig {
    /// Trained tokens of all pilots together, as a multiple of those of one training of the run (the
    /// mean over the shares).
    pub budget: f64,
    /// Shares of long answers (of the first source, where none is named `long`) that are tried; 0.2 is always among them. Few make longer pilots.
    pub shares: Vec<f64>,
    /// How many times the tokens of a round the next one may use: the last pilots, which decide, are the
    /// longest.
    pub growth: f64,
    /// Problems to train on that are kept apart to grade the pilots on: at most half of them. The run
    /// trains on all.
    pub questions: usize,
    /// How sure it must be that the best share is better than 0.2 before it is proposed: the share of
    /// resamples of these problems in which it is, 0.5 to 1.
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
    /// [`Error::Config`] with the first one that cannot be.
    pub fn validate(&self) -> Result<()> {
        if !(self.budget > 0.0 && self.budget <= 1000.0) {
            let what = format!("it is {}", self.budget);
            return Err(Error::config("pilots.budget", what, "Give a number above 0; 1 is usual"));
        }
        if !(1.0..=100.0).contains(&self.growth) {
            let what = format!("it is {}", self.growth);
            return Err(Error::config("pilots.growth", what, "Give 1 to 100; 6 is usual"));
        }
        if !(0.5..=1.0).contains(&self.confidence) {
            let what = format!("it is {}", self.confidence);
            return Err(Error::config(
                "pilots.confidence",
                what,
                "Give 0.5 to 1; 0.8 is usual, and 0.5 takes the best pilot as it is",
            ));
        }
        let is_share = |share: &f64| (0.0..=1.0).contains(share);
        if !self.shares.iter().all(is_share) || self.all_shares().len() < 2 {
            let what = format!("{:?}", self.shares);
            let hint = "Give shares from 0 to 1, at least one beside 0.2";
            return Err(Error::config("pilots.shares", what, hint));
        }
        /// Far above any use.
        const MOST: usize = 100;
        if self.shares.len() > MOST {
            let what = format!("there are {}", self.shares.len());
            return Err(Error::config("pilots.shares", what, "Give 100 at most"));
        }
        if self.questions == 0 {
            let hint = "200 is usual";
            return Err(Error::config("pilots.questions", "pilots are graded by answers", hint));
        }
        Ok(())
    }

    /// The shares in order, each once, the fallback among them.
    pub(super) fn all_shares(&self) -> Vec<f64> {
        let mut shares = self.shares.clone();
        // A negative zero is a zero.
        shares.iter_mut().for_each(|share| *share += 0.0);
        shares.push(FALLBACK_SHARE);
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        shares
    }
}
