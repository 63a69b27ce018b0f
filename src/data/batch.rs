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
use super::mixture::MixDistillation;
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// One row of training: tokens, and how many of them are prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Prompt, answer and end token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt; those after it are trained.
    pub prompt: usize,
    /// Names the row in messages: source and problem.
    pub label: String,
}

impl Row {
    /// The row without its label.
    pub fn example(&self) -> Example<'_> {
        Example { tokens: &self.tokens, prompt: self.prompt }
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
                let record = row.record_index() + 1;
                let id = row.record().id.as_deref().map_or(String::new(), |id| format!(" id {id}"));
                Ok(Row {
                    tokens: example.tokens.to_vec(),
                    prompt: example.prompt,
                    label: format!("{} record {record}{id}", row.source()),
                })
            })
            .collect()
    }
}

/// One micro-batch on the host; rows are padded on the right to one length.
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
    /// Input positions that hold a token.
    pub tokens: usize,
    /// Targets that are trained.
    pub trained: usize,
}

impl Batch {
    /// Lays rows out side by side; the length is rounded up to a multiple of `multiple`, which
    /// keeps the number of different shapes small.
    pub fn new<'a>(rows: impl IntoIterator<Item = Example<'a>>, multiple: usize) -> Self {
        let rows: Vec<Example> = rows.into_iter().collect();
        let longest = rows.iter().map(|row| row.tokens.len().saturating_sub(1)).max().unwrap_or(0);
        let length = longest.next_multiple_of(multiple.max(1));
        let mut batch = Self {
            rows: rows.len(),
            length,
            ids: vec![0; rows.len() * length],
            targets: vec![0; rows.len() * length],
            weights: vec![0.0; rows.len() * length],
            ..Default::default()
        };
        for (index, row) in rows.iter().enumerate() {
            let inputs = row.tokens.len().saturating_sub(1);
            let start = index * length;
            batch.tokens += inputs;
            if inputs == 0 {
                continue;
            }
            batch.ids[start..start + inputs].copy_from_slice(&row.tokens[..inputs]);
            batch.targets[start..start + inputs].copy_from_slice(&row.tokens[1..]);
            // Position p predicts token p + 1, so the first trained target is at prompt - 1.
            let first = row.prompt.saturating_sub(1).min(inputs);
            batch.weights[start + first..start + inputs].fill(1.0);
            batch.trained += inputs - first;
        }
        batch
    }

    /// The micro-batches of one optimizer step: rows of similar length go together, which saves
    /// padding and does not change the step.
    pub fn split(rows: &[Row], rows_per_batch: usize, multiple: usize) -> Vec<Self> {
        let mut sorted: Vec<&Row> = rows.iter().collect();
        sorted.sort_by_key(|row| row.tokens.len());
        sorted
            .chunks(rows_per_batch.max(1))
            .map(|chunk| Self::new(chunk.iter().map(|row| row.example()), multiple))
            .collect()
    }

    /// Positions that hold no token.
    pub fn padding(&self) -> usize {
        self.rows * self.length - self.tokens
    }
}
