//! The sequences of a batch.

use std::ops::Range;
use std::sync::Arc;

/// The sequences of a batch: ranges of its tokens, in ascending order and without overlap. Tokens between
/// them, such as padding, belong to no sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    tokens: usize,
    ranges: Arc<Vec<Range<usize>>>,
}

impl Sequences {
    /// Creates the sequences of a batch of `tokens` tokens.
    ///
    /// # Panics
    /// If a range is empty, starts before the previous one ends, or ends after the last token.
    pub fn new(tokens: usize, ranges: Vec<Range<usize>>) -> Self {
        let mut end = 0;
        for range in &ranges {
            assert!(
                range.start >= end && range.start < range.end && range.end <= tokens,
                "sequences: {range:?} does not follow token {end} within {tokens} tokens"
            );
            end = range.end;
        }
        Self { tokens, ranges: Arc::new(ranges) }
    }

    /// Creates rows of one sequence each.
    ///
    /// # Panics
    /// If there are rows of length 0, or the number of tokens overflows.
    pub fn rows(rows: usize, length: usize) -> Self {
        Self::new(rows * length, (0..rows).map(|row| row * length..(row + 1) * length).collect())
    }

    /// Returns the number of tokens in the batch, including those outside all sequences.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the sequences.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Returns the length of the longest sequence in tokens.
    pub(crate) fn longest(&self) -> usize {
        self.ranges.iter().map(Range::len).max().unwrap_or(0)
    }

    /// Returns the position of each token in its sequence; `None` for tokens outside all sequences.
    pub(crate) fn places(&self) -> Vec<Option<usize>> {
        let mut places = vec![None; self.tokens];
        for range in self.ranges() {
            for (place, token) in range.clone().enumerate() {
                places[token] = Some(place);
            }
        }
        places
    }
}
