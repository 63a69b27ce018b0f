//! A teacher's likeliest tokens.

/// A teacher's likeliest tokens for each trained token of a row.
///
/// ```text
/// row         P P P A A E          three trained tokens, k = 2
/// tokens            a a e          the likeliest token for each
///                   b x .          the second
/// log_probs         . . .          their logarithms of probability, and one more for all others
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopTokens {
    /// Number of tokens kept for each trained token.
    pub k: usize,
    /// `[trained * k]`. The k tokens of one trained token are distinct.
    pub tokens: Vec<u32>,
    /// `[trained * (k + 1)]`: the log probabilities of the k tokens, followed by that of all other tokens
    /// together.
    pub log_probs: Vec<f32>,
}

impl TopTokens {
    /// Returns whether it fits this number of trained tokens.
    pub fn fits(&self, trained: usize) -> bool {
        self.k > 0
            && trained.checked_mul(self.k) == Some(self.tokens.len())
            && trained.checked_add(self.tokens.len()) == Some(self.log_probs.len())
    }

    /// Appends the tokens of the next trained tokens.
    pub(super) fn extend(&mut self, other: &Self) {
        self.k = other.k;
        self.tokens.extend_from_slice(&other.tokens);
        self.log_probs.extend_from_slice(&other.log_probs);
    }
}
