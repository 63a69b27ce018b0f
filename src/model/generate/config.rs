//! How answers are drawn: one home for every option.

use crate::error::{Error, Result};
use crate::settings::{Settings, table_of};
use serde::{Deserialize, Serialize};

/// How answers are drawn.
///
/// The settings apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Length limit of an answer in tokens, the end token included; an answer also ends where the
    /// model's positions do.
    pub max_new_tokens: usize,
    /// 0 takes the most probable token; above, scores are divided by it and a token is drawn.
    pub temperature: f64,
    /// Draw among this many most probable tokens; 0 means among all.
    pub top_k: usize,
    /// Draw among the most probable tokens whose probabilities sum to this, 0 to 1.
    pub top_p: f64,
    /// Draw among tokens that have at least this share of the highest probability; 0 means all.
    pub min_p: f64,
    /// Scores of tokens that the prompt or the answer holds already are divided by this where they
    /// are positive, else multiplied; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Seed of the draws; each prompt has its own stream, whatever it is batched with.
    pub seed: u64,
    /// Prompts answered at the same time.
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
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(Error::config(format!("generate.{key}"), what, hint))
        };
        if self.max_new_tokens == 0 || self.batch_size == 0 {
            let key = if self.batch_size == 0 { "batch_size" } else { "max_new_tokens" };
            return refuse(key, "it is 0".into(), "Give a positive number");
        }
        if !(0.0..=100.0).contains(&self.temperature) {
            let what = format!("it is {}", self.temperature);
            return refuse("temperature", what, "Give a number from 0 (greedy) to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let what = format!("it is {}", self.top_p);
            return refuse("top_p", what, "Give a number above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", format!("it is {}", self.min_p), "Give a number from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let what = format!("it is {}", self.repetition_penalty);
            return refuse("repetition_penalty", what, "Give a positive number; 1 is none");
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "a text in it is empty".into(), "Leave it out");
        }
        Ok(())
    }
}
