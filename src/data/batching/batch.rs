//! Rows in training order, and micro-batches of them.
//!
//! ```text
//! row      a   P P A A E . .        . padding
//! row      b   P P P A A A E
//! ids          P P A A . .          inputs: all tokens but the last
//! targets      P A A E . .          the token that follows
//! weights      0 1 1 1 0 0          1 where the target is trained
//! ```

use super::encode::{Encoded, Example};
use super::top_tokens::TopTokens;
use crate::data::mixing::MixDistillation;
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// A training row: tokens, and which of them are trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Prompt, answer, and end token.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens. The tokens after them are trained.
    pub prompt: usize,
    /// Tokens after the prompt that are not trained, as ascending ranges: user turns between two trained
    /// answers.
    pub untrained: Vec<Range<u32>>,
    /// A name for messages: source and problem.
    pub label: String,
    /// The row's number in training order, which seeds its random operations.
    pub number: u64,
    /// A teacher's likeliest tokens at the trained positions, if there is a teacher.
    pub teacher: Option<Arc<TopTokens>>,
}

impl Row {
    /// Returns the row without its label.
    pub fn example(&self) -> Example<'_> {
        Example {
            tokens: &self.tokens,
            prompt: self.prompt,
            untrained: &self.untrained,
            number: self.number,
            teacher: self.teacher.as_deref(),
        }
    }
}

/// An endless sequence of rows by number. Row `n` is always the same, so a run can resume anywhere.
pub trait RowStream {
    /// Returns the number of rows in an epoch.
    fn rows_per_epoch(&self) -> usize;

    /// Returns the rows with these numbers.
    ///
    /// # Errors
    /// Errors of reading a row.
    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>>;

    /// Like [`RowStream::rows`], if all rows need tokens but only some need expensive data such as a
    /// teacher's. `chosen` returns the indices of those rows. By default, all rows are complete.
    ///
    /// # Errors
    /// See [`RowStream::rows`].
    fn rows_for(
        &mut self,
        range: Range<u64>,
        chosen: &mut dyn FnMut(&[Row]) -> Vec<usize>,
    ) -> Result<Vec<Row>> {
        let _ = chosen;
        self.rows(range)
    }
}

/// The rows of a mixture, epoch after epoch, in the order of each epoch.
#[derive(Clone, Debug)]
pub struct MixedRows {
    mixture: MixDistillation,
    encoded: Arc<Encoded>,
    /// The order of the current epoch of `mixture`.
    order: Vec<u32>,
}

impl MixedRows {
    /// Creates a stream of the rows of `mixture`, whose pairs must all be encoded in `encoded` (see
    /// [`Encoded::fitting`]).
    pub fn new(mixture: MixDistillation, encoded: Arc<Encoded>) -> Self {
        let order = mixture.order(mixture.epoch());
        Self { mixture, encoded, order }
    }

    fn turn_to(&mut self, epoch: u64) {
        if self.mixture.epoch() != epoch {
            self.mixture = self.mixture.at_epoch(epoch);
            self.order = self.mixture.order(epoch);
        }
    }
}

impl RowStream for MixedRows {
    fn rows_per_epoch(&self) -> usize {
        self.order.len()
    }

    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>> {
        let per_epoch = self.order.len() as u64;
        range
            .map(|number| {
                self.turn_to(number / per_epoch);
                let problem = self.order[(number % per_epoch) as usize] as usize;
                let row = self.mixture.row(problem);
                let example = self.encoded.example(row.source_index(), row.record_index());
                let example = example.expect("MixedRows::new is given encoded pairs only");
                Ok(Row {
                    tokens: example.tokens.to_vec(),
                    prompt: example.prompt,
                    untrained: example.untrained.to_vec(),
                    label: row.label(),
                    number,
                    teacher: None,
                })
            })
            .collect()
    }
}

/// A micro-batch on the host.
///
/// Each row has one example, padded on the right, or several examples in sequence ([`Batch::packed`]).
/// `positions` and `starts` distinguish them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Positions per row, including padding.
    pub length: usize,
    /// Input tokens, `[rows * length]`.
    pub ids: Vec<u32>,
    /// The next token for each input token, `[rows * length]`.
    pub targets: Vec<u32>,
    /// 1 if the target is trained, else 0, `[rows * length]`.
    pub weights: Vec<f32>,
    /// The position of each token in its example, `[rows * length]`.
    pub positions: Vec<u32>,
    /// The start of each token's example in its row, `[rows * length]`.
    pub starts: Vec<u32>,
    /// The number of each token's example in training order, `[rows * length]`.
    pub numbers: Vec<u64>,
    /// The number of input tokens of each token's example, 0 for padding, `[rows * length]`.
    pub lengths: Vec<u32>,
    /// A teacher's likeliest tokens at the trained targets, in order. `None` unless every example has the
    /// same number of them.
    pub teacher: Option<TopTokens>,
    /// Number of examples.
    pub examples: usize,
    /// Number of input positions with a token.
    pub tokens: usize,
    /// Number of trained targets.
    pub trained: usize,
}

impl Batch {
    /// Lays out examples in one row each. The length is rounded up to a multiple of `multiple`, which limits
    /// the number of distinct shapes.
    pub fn new<'a>(examples: impl IntoIterator<Item = Example<'a>>, multiple: usize) -> Self {
        let examples: Vec<Example> = examples.into_iter().collect();
        let longest = examples.iter().map(Example::inputs).max().unwrap_or(0);
        let mut batch = Self::empty(examples.len(), longest.next_multiple_of(multiple.max(1)));
        for (row, example) in examples.iter().enumerate() {
            batch.put(example, row, 0);
        }
        batch.teach(&examples);
        batch
    }

    /// Concatenates examples in one row, with padding only at the end.
    ///
    /// ```text
    /// ids         a a a a b b b c c .
    /// positions   0 1 2 3 0 1 2 0 1 0     restart with each example
    /// starts      0 0 0 0 4 4 4 7 7 9     attention looks no further back than this
    /// ```
    pub fn packed<'a>(examples: impl IntoIterator<Item = Example<'a>>, multiple: usize) -> Self {
        let examples: Vec<Example> = examples.into_iter().collect();
        let total: usize = examples.iter().map(Example::inputs).sum();
        let mut batch = Self::empty(1, total.next_multiple_of(multiple.max(1)));
        let mut place = 0;
        for example in &examples {
            batch.put(example, 0, place);
            place += example.inputs();
        }
        batch.teach(&examples);
        // Padding is a separate example that nothing attends to.
        for (index, padding) in (place..batch.length).enumerate() {
            batch.positions[padding] = index as u32;
            batch.starts[padding] = place as u32;
        }
        batch
    }

    fn empty(rows: usize, length: usize) -> Self {
        let size = rows * length;
        Self {
            rows,
            length,
            ids: vec![0; size],
            targets: vec![0; size],
            weights: vec![0.0; size],
            positions: (0..size).map(|i| (i % length) as u32).collect(),
            starts: vec![0; size],
            numbers: vec![0; size],
            lengths: vec![0; size],
            ..Default::default()
        }
    }

    /// Writes an example into a row, starting at `place`.
    fn put(&mut self, example: &Example, row: usize, place: usize) {
        let inputs = example.inputs();
        let at = row * self.length + place..row * self.length + place + inputs;
        self.examples += 1;
        self.tokens += inputs;
        if inputs == 0 {
            return;
        }
        self.ids[at.clone()].copy_from_slice(&example.tokens[..inputs]);
        self.targets[at.clone()].copy_from_slice(&example.tokens[1..]);
        self.starts[at.clone()].fill(place as u32);
        self.numbers[at.clone()].fill(example.number);
        self.lengths[at.clone()].fill(inputs as u32);
        for (index, position) in self.positions[at.clone()].iter_mut().enumerate() {
            *position = index as u32;
        }
        let weights = &mut self.weights[at];
        weights[example.first_target()..].fill(1.0);
        for range in example.untrained {
            // A token is the target of the one before it.
            let range =
                range.start.saturating_sub(1) as usize..range.end.saturating_sub(1) as usize;
            if let Some(weights) = weights.get_mut(range) {
                weights.fill(0.0);
            }
        }
        self.trained += example.targets();
    }

    /// Collects the teacher's tokens of the examples, which are in this order.
    fn teach(&mut self, examples: &[Example]) {
        let mut all = TopTokens::default();
        for example in examples.iter().filter(|example| example.targets() > 0) {
            match example.teacher {
                Some(top) if top.fits(example.targets()) && (all.k == 0 || all.k == top.k) => {
                    all.extend(top);
                }
                _ => return,
            }
        }
        self.teacher = (all.k > 0).then_some(all);
    }

    /// Returns the number of positions without a token.
    pub fn padding(&self) -> usize {
        self.rows * self.length - self.tokens
    }
}
