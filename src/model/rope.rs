//! Frequencies of the rotary position embedding, scaled as Llama 3.1 does it.

use crate::ops::rotary_frequencies;
use serde::{Deserialize, Serialize};

/// Llama 3.1's scaling (`rope_type` `llama3`): low frequencies, whose waves are longer than the
/// context that the model was trained on, are divided by `factor`; high ones stay; between the two
/// the change is gradual.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Divides the low frequencies.
    pub factor: f64,
    /// Waves longer than the original context divided by this are low.
    pub low_freq_factor: f64,
    /// Waves shorter than the original context divided by this are high.
    pub high_freq_factor: f64,
    /// The context before scaling, in tokens.
    pub original_max_position_embeddings: usize,
}

impl RopeScaling {
    fn scaled(&self, frequency: f64) -> f64 {
        let context = self.original_max_position_embeddings as f64;
        let wave = 2.0 * std::f64::consts::PI / frequency;
        if wave < context / self.high_freq_factor {
            frequency
        } else if wave > context / self.low_freq_factor {
            frequency / self.factor
        } else {
            let span = self.high_freq_factor - self.low_freq_factor;
            let smooth = (context / wave - self.low_freq_factor) / span;
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

/// Angle per position of each pair of a head's values, in radians: `head_dim / 2` numbers.
pub(super) fn frequencies(head_dim: usize, theta: f64, scaling: Option<RopeScaling>) -> Vec<f64> {
    rotary_frequencies(head_dim, theta)
        .into_iter()
        .map(|frequency| scaling.map_or(frequency, |s| s.scaled(frequency)))
        .collect()
}
