//! Limits of a model's input.

/// Limits of the tokens that a model accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimits {
    /// Size of the vocabulary. Token IDs are below it.
    pub vocabulary: usize,
    /// Maximum length of prompt and answer together, in tokens. `usize::MAX` means no limit.
    pub context: usize,
}
