//! Settings of generation.

use crate::error::{Error, Result};
use crate::settings::{Settings, table_of};
use serde::{Deserialize, Serialize};

/// Settings of generation.
///
/// They apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Maximum length of an answer in tokens, including the end token. An answer also ends at the model's
    /// context length. Raise it for answers with long reasoning.
    pub max_new_tokens: usize,
    /// Sampling temperature, 0 to 100. 0 always takes the most probable token (greedy). Higher values divide
    /// the logits by the temperature before sampling and give more varied answers.
    pub temperature: f64,
    /// Samples only among this many most probable tokens. 0 means all.
    pub top_k: usize,
    /// Samples only among the most probable tokens whose probabilities sum to this value (nucleus sampling):
    /// above 0, up to 1. 1 means all.
    pub top_p: f64,
    /// Samples only among tokens that have at least this share of the highest probability, 0 to 1. 0 means
    /// all.
    pub min_p: f64,
    /// Penalty for tokens that the prompt or the answer already has: positive logits are divided by it,
    /// negative ones multiplied. 1 means none. Raise it slightly if answers repeat themselves.
    pub repetition_penalty: f64,
    /// Texts that end an answer when they appear in it. They are not part of the answer.
    pub stop: Vec<String>,
    /// Seed of the sampling. Each prompt has its own random stream, which does not depend on its batch.
    pub seed: u64,
    /// Number of prompts that are answered at the same time. Lower it to save memory.
    pub batch_size: usize,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: vec![],
            seed: 0,
            batch_size: 64,
        }
    }
}

impl Settings for GenerateConfig {
    fn defaults(_given: &toml::Table) -> Result<toml::Table> {
        table_of(&Self::default())
    }
}

impl GenerateConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(Error::config(format!("generate.{key}"), what, hint))
        };
        if self.max_new_tokens == 0 || self.batch_size == 0 {
            let key = if self.batch_size == 0 { "batch_size" } else { "max_new_tokens" };
            return refuse(key, "it is 0".into(), "Use a positive number");
        }
        if !(0.0..=100.0).contains(&self.temperature) {
            let what = format!("it is {}", self.temperature);
            return refuse("temperature", what, "Use a number from 0 (greedy) to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let what = format!("it is {}", self.top_p);
            return refuse("top_p", what, "Use a number above 0, up to 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", format!("it is {}", self.min_p), "Use a number from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let what = format!("it is {}", self.repetition_penalty);
            return refuse("repetition_penalty", what, "Use a positive number; 1 means no penalty");
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "it has an empty text".into(), "Remove the empty text");
        }
        Ok(())
    }
}
