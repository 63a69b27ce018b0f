//! What a model is trained for, and how a step's gradients are computed.

use crate::error::{Error, Result};
use crate::ops::{Distillation, Divergence, TokenLoss};
use serde::{Deserialize, Serialize};

/// What is added to the cross-entropy of the trained tokens. By default nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Share of each target that is spread over the vocabulary, 0 to below 1 (arXiv 1512.00567).
    pub label_smoothing: f64,
    /// Weight of the square of the logits' log-sum-exp, which keeps logits from drifting; 1e-4 is
    /// usual (arXiv 2204.02311).
    pub z_loss: f64,
    /// Uniform noise on the embeddings of a row, of up to `neftune_alpha / sqrt(tokens * width)`
    /// (NEFTune, arXiv 2310.05914); 5 is usual. A row's noise depends on its number in training
    /// order, and not on what it is batched with.
    pub neftune_alpha: f64,
    /// Seed of that noise; none of the settings, since a run sets its own.
    #[serde(skip)]
    pub noise_seed: u64,
    /// A teacher's part in the loss; the rows must come with what the teacher finds likely.
    pub distillation: Option<Distillation>,
}

impl Objective {
    /// Whether it is the cross-entropy and nothing else.
    pub fn is_cross_entropy(&self) -> bool {
        Self { noise_seed: 0, ..*self } == Self::default()
    }

    /// Its part that is computed from the logits.
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
    /// [`Error::Config`] with the first one that is out of range.
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
        let share = "Give a share, 0 to below 1";
        check("label_smoothing", smoothing, (0.0..1.0).contains(&smoothing), share)?;
        check("z_loss", self.z_loss, amount(self.z_loss), "Give 0 or more; 1e-4 is usual")?;
        let alpha = self.neftune_alpha;
        check("neftune_alpha", alpha, amount(alpha), "Give 0 or more; 5 is usual")?;
        let Some(Distillation { divergence, weight, temperature }) = self.distillation else {
            return Ok(());
        };
        let in_unit = (0.0..=1.0).contains(&weight);
        check("distillation.weight", weight, in_unit, "Give a share, 0 to 1")?;
        let usable = (1e-2..=1e2).contains(&temperature);
        check("distillation.temperature", temperature, usable, "Give 0.01 to 100")?;
        if let Divergence::Jsd(beta) = divergence {
            let inside = beta > 0.0 && beta < 1.0;
            let hint = "Give a number between 0 and 1; 0.5 is the symmetric divergence";
            check("distillation.divergence.jsd", beta, inside, hint)?;
        }
        Ok(())
    }
}

/// How the gradients of a step are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOptions {
    /// What is trained for.
    pub objective: Objective,
    /// Keep only each block's input for the backward pass and compute the rest once more: less
    /// memory, the same gradients, one more forward pass.
    pub activation_checkpointing: bool,
}
