//! Answers, the conditions that end them, and their observers.

use crate::data::TextTokenizer;
use crate::error::Result;
use std::ops::ControlFlow;

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model generated this end token.
    EndToken(u32),
    /// This stop text appeared.
    Stop(String),
    /// The length limit was reached.
    Limit,
    /// The observer requested a stop.
    Interrupted,
}

/// A generated answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Tokens of the answer, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: EndReason,
}

impl Generation {
    /// Returns whether the answer hit the length limit.
    pub fn hit_limit(&self) -> bool {
        self.end == EndReason::Limit
    }

    /// Returns the answer's text, up to the stop text.
    ///
    /// # Errors
    /// See [`TextTokenizer::decode`].
    pub fn text(&self, tokenizer: &TextTokenizer) -> Result<String> {
        let mut text = tokenizer.decode(&self.tokens)?;
        if let EndReason::Stop(stop) = &self.end
            && let Some(at) = text.find(stop.as_str())
        {
            text.truncate(at);
        }
        Ok(text)
    }
}

/// Conditions that end an answer before its length limit.
#[derive(Clone, Copy, Debug)]
pub struct StopConditions<'a> {
    /// End tokens.
    pub tokens: &'a [u32],
    /// Decodes the answer, to find [`GenerateConfig::stop`](super::GenerateConfig::stop) in it.
    pub tokenizer: &'a TextTokenizer,
}

/// A new token of an answer, as reported to an observer.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    /// Index of the prompt.
    pub prompt: usize,
    /// The answer so far, without an end token.
    pub tokens: &'a [u32],
    /// Set with the last token of the answer.
    pub end: Option<&'a EndReason>,
    /// Number of finished answers, including this one.
    pub finished: usize,
}

/// Receives every new token and can stop the generation.
pub type TokenObserver<'a> = dyn FnMut(&NewToken<'_>) -> ControlFlow<()> + 'a;
