//! Lengths of encoded records, for shares of tokens.

/// The length of one row in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// All tokens of the row.
    pub tokens: u32,
    /// The trained tokens.
    pub trained: u32,
}

/// The lengths of all encoded records, by source and record index.
#[derive(Clone, Debug, Default)]
pub struct Lengths(Vec<Vec<Option<Length>>>);

impl Lengths {
    /// Creates lengths from values for each record of each source.
    pub fn new(lengths: Vec<Vec<Option<Length>>>) -> Self {
        Self(lengths)
    }

    /// Returns the length of a record, or `None` if it was not encoded or exceeds the limit.
    pub fn get(&self, source: usize, record: usize) -> Option<Length> {
        *self.0.get(source)?.get(record)?
    }
}
