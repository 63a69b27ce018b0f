//! What tokens a model takes.

/// The tokens that a model can be asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimits {
    /// Tokens that it knows: their numbers are below this.
    pub vocabulary: usize,
    /// Tokens of its longest row, prompt and answer together; `usize::MAX` where there is no limit.
    pub context: usize,
}
