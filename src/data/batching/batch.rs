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

/// One row of training: tokens, and which of them are trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Prompt, answer and end token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; those after it are trained.
    pub prompt: usize,
    /// Tokens after the prompt that are not trained, in ascending ranges: what a user says between two
    /// answers.
    pub untrained: Vec<Range<u32>>,
    /// Names the row in messages: source and problem.
    pub label: String,
    /// Its number in training order; what is random about a row depends on it.
    pub number: u64,
    /// What a teacher finds likely at its trained tokens, where there is a teacher.
    pub teacher: Option<Arc<TopTokens>>,
}

impl Row {
    /// The row without its label.
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

/// An endless sequence of rows, by number: row `n` is always the same row, so that a run can be
/// taken up anywhere.
pub trait RowStream {
    /// Rows in one epoch.
    fn rows_per_epoch(&self) -> usize;

    /// The rows with these numbers.
    ///
    /// # Errors
    /// Whatever reading a row may give.
    fn rows(&mut self, range: Range<u64>) -> Result<Vec<Row>>;

    /// As [`RowStream::rows`], where the tokens of all rows are needed, and what costs more than reading
    /// them, such as a teacher, only of those that `chosen` gives by their index. By default all rows
    /// have everything.
    ///
    /// # Errors
    /// As [`RowStream::rows`].
    fn rows_for(
        &mut self,
        range: Range<u64>,
        chosen: &mut dyn FnMut(&[Row]) -> Vec<usize>,
    ) -> Result<Vec<Row>> {
        let _ = chosen;
        self.rows(range)
    }
}

/// The rows of a mixture, epoch after epoch, each in its own order.
#[derive(Clone, Debug)]
pub struct MixedRows {
    mixture: MixDistillation,
    encoded: Arc<Encoded>,
    /// Order of the epoch that `mixture` describes.
    order: Vec<u32>,
}

impl MixedRows {
    /// The rows of `mixture`, whose pairs are all encoded in `encoded` (see [`Encoded::fitting`]).
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

/// One micro-batch on the host.
///
/// Its rows hold one example each, padded on the right, or several examples one after the other
/// ([`Batch::packed`]); `positions` and `starts` tell them apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Positions in each row, padding included.
    pub length: usize,
    /// Input tokens, `[rows * length]`.
    pub ids: Vec<u32>,
    /// The token that follows each input token, `[rows * length]`.
    pub targets: Vec<u32>,
    /// 1 where the target is trained, else 0, `[rows * length]`.
    pub weights: Vec<f32>,
    /// Position of each token in its example, `[rows * length]`.
    pub positions: Vec<u32>,
    /// Where in its row each token's example starts, `[rows * length]`.
    pub starts: Vec<u32>,
    /// The example's number in training order, for each token, `[rows * length]`.
    pub numbers: Vec<u64>,
    /// Input tokens of each token's example, 0 for padding, `[rows * length]`.
    pub lengths: Vec<u32>,
    /// What a teacher finds likely at the trained targets, in their order; `None` unless every
    /// example has it, for the same number of tokens.
    pub teacher: Option<TopTokens>,
    /// Examples.
    pub examples: usize,
    /// Input positions that hold a token.
    pub tokens: usize,
    /// Targets that are trained.
    pub trained: usize,
}

impl Batch {
    /// Lays examples out side by side, one a row; the length is rounded up to a multiple of
    /// `multiple`, which keeps the number of different shapes small.
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

    /// Lays examples out in one row, one after the other, with padding at the end only.
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
        // Padding is an example of its own, which nothing attends to.
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

    /// Puts an example into a row, from `place` on.
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

    /// Takes over what the examples, which lie in this order, have of a teacher.
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

    /// Positions that hold no token.
    pub fn padding(&self) -> usize {
        self.rows * self.length - self.tokens
    }
}
