//! Frequencies of the rotary position embedding (RoPE), and their scaling for longer contexts.
//!
//! ```text
//! linear     divides all by `factor`                       arXiv 2306.15595
//! llama3     divides low ones, keeps high ones             Llama 3.1
//! yarn       the same with a ramp over the dimensions;     arXiv 2309.00071
//!            scales cosines and sines
//! longrope   divides each by its own factor, from one      arXiv 2402.13753
//!            list for short rows and one for long rows
//! ```

use super::blocks::refuse;
use crate::error::Result;
use crate::ops::rotary_frequencies;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Type of RoPE scaling, by its name in `rope_type` of `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// As in Llama 3.1: low frequencies are divided by `factor`, high ones stay unchanged, and those in
    /// between are interpolated.
    #[default]
    Llama3,
    /// All frequencies are divided by `factor`.
    Linear,
    /// YaRN: as `llama3` with a different ramp; cosines and sines are scaled, too.
    Yarn,
    /// LongRoPE: each frequency has its own divisor, which depends on whether rows exceed the original
    /// context; cosines and sines are scaled, too.
    LongRope,
}

/// Scaling of RoPE's frequencies. Field names follow `rope_scaling` in `config.json`. Each type uses only its
/// own fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RopeScaling {
    /// Type of scaling.
    pub rope_type: RopeType,
    /// Divisor of the low frequencies (`linear`: of all frequencies), 1 or more. With `longrope`, the ratio
    /// of the whole context to the original one.
    pub factor: f64,
    /// Context length before scaling, in tokens. Not used by `linear`.
    pub original_max_position_embeddings: usize,
    /// `llama3`: wavelengths above the original context divided by this value are low frequencies.
    pub low_freq_factor: f64,
    /// `llama3`: wavelengths below the original context divided by this value are high frequencies. Must
    /// exceed `low_freq_factor`.
    pub high_freq_factor: f64,
    /// `yarn`: frequencies with more rotations than this in the original context stay unchanged.
    pub beta_fast: f64,
    /// `yarn`: frequencies with fewer rotations than this in the original context are divided by `factor`.
    pub beta_slow: f64,
    /// `yarn`: whether the ends of the ramp are rounded to whole dimensions.
    pub truncate: bool,
    /// `yarn` and `longrope`: factor of cosines and sines. Unset means the value that follows from `factor`.
    pub attention_factor: Option<f64>,
    /// `yarn`: with `mscale_all_dim`, sets the factor of cosines and sines to `(0.1 mscale ln(factor) + 1) /
    /// (0.1 mscale_all_dim ln(factor) + 1)`. Unset or 0 means YaRN's default, `0.1 ln(factor) + 1`.
    pub mscale: Option<f64>,
    /// `yarn`: the value in the divisor of that factor; see `mscale`.
    pub mscale_all_dim: Option<f64>,
    /// `longrope`: divisor of each frequency if rows stay within the original context.
    pub short_factor: Vec<f64>,
    /// `longrope`: divisor of each frequency if rows exceed the original context.
    pub long_factor: Vec<f64>,
    /// `longrope`: whether rows exceed the original context, so that `long_factor` applies. A run sets it
    /// once, from `data.max_length`; transformers decides it for each batch.
    pub long: bool,
    /// Multiplies queries at position `p` by `1 + beta ln(1 + floor(p / original context))`, as in Llama 4
    /// and Ministral 3. Unset means no scaling.
    pub llama_4_scaling_beta: Option<f64>,
}

impl Default for RopeScaling {
    /// Defaults to the type `llama3` with a factor of 1, which changes nothing.
    fn default() -> Self {
        Self {
            rope_type: RopeType::Llama3,
            factor: 1.0,
            original_max_position_embeddings: 8192,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            short_factor: vec![],
            long_factor: vec![],
            long: false,
            llama_4_scaling_beta: None,
        }
    }
}

/// Returns YaRN's factor of cosines and sines, with `of` as the `mscale`.
pub(super) fn yarn_scale(factor: f64, of: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * of * factor.ln() + 1.0 }
}

impl RopeScaling {
    /// Checks the fields of the type. `rotated` is the number of rotated values per head.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first field that is out of range.
    pub(super) fn validate(&self, rotated: usize) -> Result<()> {
        let refuse = |what: String, hint: &str| refuse("rope_scaling", what, hint);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !self.factor.is_finite() || self.factor < 1.0 {
            return refuse(format!("its factor is {}", self.factor), "Use 1 or more");
        }
        if self.original_max_position_embeddings == 0 {
            return refuse("its original context is 0".into(), "Set it to a number of tokens");
        }
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let llama3 = self.rope_type == RopeType::Llama3;
        if llama3 && (!positive(low) || !high.is_finite() || high <= low) {
            let what = format!("its low_freq_factor is {low} and its high_freq_factor {high}");
            return refuse(what, "Use values with 0 < low < high");
        }
        let (fast, slow) = (self.beta_fast, self.beta_slow);
        if self.rope_type == RopeType::Yarn && (!positive(slow) || !positive(fast) || fast < slow) {
            let what = format!("its beta_fast is {fast} and its beta_slow {slow}");
            return refuse(what, "Use values with 0 < slow <= fast");
        }
        if let Some(factor) = self.attention_factor.filter(|factor| !positive(*factor)) {
            return refuse(format!("its attention_factor is {factor}"), "Use a positive number");
        }
        let scales = [self.mscale, self.mscale_all_dim, self.llama_4_scaling_beta];
        if let Some(scale) = scales.into_iter().flatten().find(|x| !x.is_finite() || *x < 0.0) {
            return refuse(format!("one of its scales is {scale}"), "Use 0 or more");
        }
        if self.rope_type != RopeType::LongRope {
            return Ok(());
        }
        for (name, list) in [("short", &self.short_factor), ("long", &self.long_factor)] {
            if list.len() != rotated / 2 {
                let what = format!("its {name}_factor has {} numbers", list.len());
                return refuse(what, &format!("Use {}, one per frequency", rotated / 2));
            }
            if let Some(factor) = list.iter().find(|factor| !positive(**factor)) {
                let what = format!("its {name}_factor has {factor}");
                return refuse(what, "Use positive numbers");
            }
        }
        Ok(())
    }

    /// Returns the factor of cosines and sines.
    pub(super) fn attention_factor(&self) -> f64 {
        let ln = self.factor.ln();
        match self.rope_type {
            RopeType::Llama3 | RopeType::Linear => 1.0,
            _ if self.attention_factor.is_some() => self.attention_factor.unwrap_or(1.0),
            RopeType::Yarn => {
                let scale = |of: f64| yarn_scale(self.factor, of);
                // A scale of 0 means the default, as in transformers.
                match (self.mscale, self.mscale_all_dim) {
                    (Some(one), Some(all)) if one != 0.0 && all != 0.0 => scale(one) / scale(all),
                    _ => scale(1.0),
                }
            }
            RopeType::LongRope if self.factor <= 1.0 => 1.0,
            RopeType::LongRope => {
                (1.0 + ln / (self.original_max_position_embeddings as f64).ln()).sqrt()
            }
        }
    }

    /// Returns the divisor of each frequency of a head with `rotated` rotated values.
    pub(super) fn divisors(&self, rotated: usize, theta: f64) -> Vec<f64> {
        let plain = rotary_frequencies(rotated, theta);
        let scaled = self.scaled(plain.clone(), theta);
        plain.into_iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect()
    }

    /// Returns the factor of a query at a position.
    pub(super) fn query_scale(&self, position: u32) -> f64 {
        let beta = self.llama_4_scaling_beta.unwrap_or(0.0);
        let contexts = f64::from(position) / self.original_max_position_embeddings as f64;
        1.0 + beta * contexts.floor().ln_1p()
    }

    /// Scales the frequencies.
    fn scaled(&self, plain: Vec<f64>, theta: f64) -> Vec<f64> {
        let ramp = match self.rope_type {
            RopeType::Yarn => self.yarn_ramp(plain.len(), theta),
            _ => vec![],
        };
        let scaled = |(i, frequency): (usize, f64)| match self.rope_type {
            RopeType::Llama3 => self.llama3(frequency),
            RopeType::Linear => frequency / self.factor,
            RopeType::Yarn => frequency / self.factor * ramp[i] + frequency * (1.0 - ramp[i]),
            RopeType::LongRope => {
                frequency / if self.long { self.long_factor[i] } else { self.short_factor[i] }
            }
        };
        plain.into_iter().enumerate().map(scaled).collect()
    }

    fn llama3(&self, frequency: f64) -> f64 {
        let context = self.original_max_position_embeddings as f64;
        let wave = 2.0 * PI / frequency;
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

    /// Returns the weight of the divided value of each frequency: 0 up to the dimension that rotates
    /// `beta_fast` times in the original context, 1 from the dimension that rotates `beta_slow` times.
    fn yarn_ramp(&self, pairs: usize, theta: f64) -> Vec<f64> {
        let width = 2.0 * pairs as f64;
        let context = self.original_max_position_embeddings as f64;
        let dimension =
            |rotations: f64| width * (context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..pairs).map(|i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }
}

/// Returns the angle per position of each pair of a head's `rotated` values, in radians (`rotated / 2`
/// numbers).
pub(super) fn frequencies(rotated: usize, theta: f64, scaling: Option<&RopeScaling>) -> Vec<f64> {
    let plain = rotary_frequencies(rotated, theta);
    match scaling {
        Some(scaling) => scaling.scaled(plain, theta),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_scaled_by_the_contexts_before_them() {
        let scaling = RopeScaling {
            original_max_position_embeddings: 16,
            llama_4_scaling_beta: Some(0.1),
            ..RopeScaling::default()
        };
        assert_eq!(scaling.query_scale(15), 1.0);
        assert!((scaling.query_scale(16) - (1.0 + 0.1 * 2f64.ln())).abs() < 1e-15);
        assert!((scaling.query_scale(47) - (1.0 + 0.1 * 3f64.ln())).abs() < 1e-15);
    }

    #[test]
    fn long_rows_have_factors_of_their_own() {
        let mut scaling = RopeScaling {
            rope_type: RopeType::LongRope,
            factor: 4.0,
            original_max_position_embeddings: 16,
            short_factor: vec![1.0, 2.0],
            long_factor: vec![4.0, 8.0],
            ..RopeScaling::default()
        };
        scaling.validate(4).unwrap();
        assert!(scaling.validate(6).is_err());
        assert_eq!(frequencies(4, 100.0, Some(&scaling)), [1.0, 0.05]);
        scaling.long = true;
        assert_eq!(frequencies(4, 100.0, Some(&scaling)), [0.25, 0.0125]);
        // ln 4 / ln 16 is a half.
        assert!((scaling.attention_factor() - 1.5f64.sqrt()).abs() < 1e-15);
    }
}
