//! Which tokens of a batch follow each other.

use std::ops::Range;
use std::sync::Arc;

/// The sequences of a batch: ranges of its tokens, in ascending order and without overlap. Tokens between
/// them, such as padding, belong to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    tokens: usize,
    ranges: Arc<Vec<Range<usize>>>,
}

impl Sequences {
    /// Sequences of a batch of so many tokens.
    ///
    /// # Panics
    /// If a range is empty, begins before the one before it ends, or ends after the last token.
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

    /// Rows of one sequence each.
    ///
    /// # Panics
    /// If there is a row and its length is 0, or there are more tokens than numbers for them.
    pub fn rows(rows: usize, length: usize) -> Self {
        Self::new(rows * length, (0..rows).map(|row| row * length..(row + 1) * length).collect())
    }

    /// Tokens of the batch, those of no sequence among them.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The sequences.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Tokens of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.ranges.iter().map(Range::len).max().unwrap_or(0)
    }

    /// The place of each token in its sequence; `None` for tokens of none.
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
