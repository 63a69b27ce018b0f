//! The training objective, and the options of a training step.

use crate::error::{Error, Result};
use crate::ops::{Distillation, Divergence, TokenLoss};
use serde::{Deserialize, Serialize};

/// Terms that modify the cross-entropy of the trained tokens. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Share of each target that is spread over the whole vocabulary, from 0 to below 1 (arXiv 1512.00567). 0
    /// means none.
    pub label_smoothing: f64,
    /// Weight of the squared log-sum-exp of the logits in the loss, which keeps the logits from drifting
    /// (arXiv 2204.02311). 0 means none; 1e-4 is typical.
    pub z_loss: f64,
    /// Adds uniform noise of up to `neftune_alpha / sqrt(tokens * width)` to the embeddings of a row
    /// (NEFTune, arXiv 2310.05914). 0 means none; 5 is typical. The noise depends on the row's number in
    /// training order, not on its batch.
    pub neftune_alpha: f64,
    /// Seed of the noise. Not a setting: a run sets it.
    #[serde(skip)]
    pub noise_seed: u64,
    /// Distillation from a teacher's token probabilities. Requires a teacher (`teacher.path`). Unset means
    /// its defaults if there is a teacher, and no distillation otherwise.
    pub distillation: Option<Distillation>,
}

impl Objective {
    /// Returns whether the objective is the cross-entropy alone.
    pub fn is_cross_entropy(&self) -> bool {
        Self { noise_seed: 0, ..*self } == Self::default()
    }

    /// Returns the part of the objective that is computed from logits.
    pub fn token_loss(&self) -> TokenLoss {
        TokenLoss {
            label_smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            distillation: self.distillation,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |key: &str, value: f64, good: bool, hint: &str| match good {
            true => Ok(()),
            false => {
                let key = format!("train.objective.{key}");
                Err(Error::config(key, format!("it is {value}"), hint))
            }
        };
        let amount = |value: f64| (0.0..f64::INFINITY).contains(&value);
        let smoothing = self.label_smoothing;
        let share = "Use a share from 0 to below 1";
        check("label_smoothing", smoothing, (0.0..1.0).contains(&smoothing), share)?;
        check("z_loss", self.z_loss, amount(self.z_loss), "Use 0 or more; 1e-4 is typical")?;
        let alpha = self.neftune_alpha;
        check("neftune_alpha", alpha, amount(alpha), "Use 0 or more; 5 is typical")?;
        let Some(Distillation { divergence, weight, temperature }) = self.distillation else {
            return Ok(());
        };
        let in_unit = (0.0..=1.0).contains(&weight);
        check("distillation.weight", weight, in_unit, "Use a share from 0 to 1")?;
        let usable = (1e-2..=1e2).contains(&temperature);
        check("distillation.temperature", temperature, usable, "Use 0.01 to 100")?;
        if let Divergence::Jsd(beta) = divergence {
            let inside = beta > 0.0 && beta < 1.0;
            let hint = "Use a number between 0 and 1; 0.5 gives the symmetric divergence";
            check("distillation.divergence.jsd", beta, inside, hint)?;
        }
        Ok(())
    }
}

/// Options of a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOptions {
    /// Training objective.
    pub objective: Objective,
    /// Whether to keep only each block's input for the backward pass and recompute the rest: less memory, the
    /// same gradients, one extra forward pass.
    pub activation_checkpointing: bool,
}
