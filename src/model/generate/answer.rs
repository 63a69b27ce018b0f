//! What an answer is, what ends it, and who sees it grow.

use crate::data::TextTokenizer;
use crate::error::Result;
use std::ops::ControlFlow;

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended it with this token.
    EndToken(u32),
    /// This one of the stop texts appeared.
    Stop(String),
    /// The length limit was reached.
    Limit,
    /// The observer asked for a stop.
    Interrupted,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The answer's tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: EndReason,
}

impl Generation {
    /// Whether the length limit ended the answer.
    pub fn hit_limit(&self) -> bool {
        self.end == EndReason::Limit
    }

    /// The answer's text, without a stop text and what follows it.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
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

/// What ends an answer before its length limit.
#[derive(Clone, Copy, Debug)]
pub struct StopConditions<'a> {
    /// Tokens, any of which ends it.
    pub tokens: &'a [u32],
    /// Turns tokens to text, to find [`GenerateConfig::stop`](super::GenerateConfig::stop) in it.
    pub tokenizer: &'a TextTokenizer,
}

/// A new token of one answer, as an observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    /// Number of the prompt.
    pub prompt: usize,
    /// The answer so far, without an end token.
    pub tokens: &'a [u32],
    /// Set with the last token.
    pub end: Option<&'a EndReason>,
    /// Answers finished so far, this one included.
    pub finished: usize,
}

/// Sees every new token, and may end the work.
pub type TokenObserver<'a> = dyn FnMut(&NewToken<'_>) -> ControlFlow<()> + 'a;
