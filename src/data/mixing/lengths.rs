//! Lengths of encoded records, which shares of tokens are computed from.

/// Length of one row in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// All tokens of the row.
    pub tokens: u32,
    /// Those that are trained.
    pub trained: u32,
}

/// Lengths of all encoded records, by source and record number.
#[derive(Clone, Debug, Default)]
pub struct Lengths(Vec<Vec<Option<Length>>>);

impl Lengths {
    /// Lengths computed elsewhere: for each source, for each of its records.
    pub fn new(lengths: Vec<Vec<Option<Length>>>) -> Self {
        Self(lengths)
    }

    /// The length of a record, if it was encoded and fits the limit.
    pub fn get(&self, source: usize, record: usize) -> Option<Length> {
        *self.0.get(source)?.get(record)?
    }
}
