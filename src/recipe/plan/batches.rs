//! The micro-batches of a training run, from the lengths of its rows in training order.

use super::activations::MicroBatch;
use crate::recipe::config::RunConfig;
use crate::recipe::prepare::Prepared;
use crate::train::TrainConfig;

/// The length of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLength {
    /// Input tokens: all but the last.
    pub inputs: u32,
    /// Trained targets.
    pub trained: u32,
    /// Source and record of the row.
    pub place: [u32; 2],
}

/// Maximum number of rows to look at. A longer training run has seen its longest rows many times by then.
const MOST_ROWS: u64 = 1 << 20;

/// Maximum number of rows of a step to look at without data. Also the maximum of `train.accumulate`.
pub(super) const MOST_ROWS_OF_STEP: usize = 1 << 16;

/// The row lengths of a training run, in training order.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    pub rows: Vec<RowLength>,
    /// Optimizer steps of the whole run, if known.
    pub steps: Option<usize>,
}

impl Order {
    /// Returns the row lengths of prepared data.
    pub fn of(config: &RunConfig, prepared: &Prepared) -> Self {
        let per_epoch = prepared.mixture.pairs().len() as u64;
        let wanted = config.train.total_rows(per_epoch as usize).min(MOST_ROWS);
        let mut rows = Vec::with_capacity(wanted as usize);
        for epoch in 0..wanted.div_ceil(per_epoch.max(1)) {
            let mixture = prepared.mixture.at_epoch(epoch);
            let left = (wanted - rows.len() as u64) as usize;
            for problem in mixture.order(epoch).into_iter().take(left) {
                let row = mixture.row(problem as usize);
                let place = [row.source_index(), row.record_index()];
                let Some(example) = prepared.encoded.example(place[0], place[1]) else { continue };
                rows.push(RowLength {
                    inputs: example.tokens.len().saturating_sub(1) as u32,
                    trained: example.targets() as u32,
                    place: place.map(|index| index as u32),
                });
            }
        }
        Self { rows, steps: Some(config.train.total_steps(per_epoch as usize)) }
    }

    /// Returns the batches without data: one step (or the first rows of a very large one) of rows at the
    /// length limit.
    pub fn of_longest(config: &RunConfig) -> Self {
        let inputs = config.data.max_length.saturating_sub(1) as u32;
        let row = RowLength { inputs, trained: inputs, place: [0; 2] };
        let rows = config.train.rows_per_step().min(MOST_ROWS_OF_STEP);
        Self { rows: vec![row; rows], steps: config.train.steps }
    }

    /// Returns the micro-batches of all rows with up to `most_tokens` tokens.
    pub fn batches(&self, train: &TrainConfig, most_tokens: usize) -> Batches {
        let layout = train.layout();
        let mut batches = Batches::default();
        for step in self.rows.chunks(train.rows_per_step().max(1)) {
            let fits = |row: &&RowLength| (row.inputs as usize) < most_tokens;
            let rows: Vec<&RowLength> = step.iter().filter(fits).collect();
            let inputs: Vec<usize> = rows.iter().map(|row| row.inputs as usize).collect();
            batches.steps += usize::from(!rows.is_empty());
            for size in layout.sizes(&inputs) {
                let members = || size.members.iter().map(|row| rows[*row]);
                let batch = MicroBatch {
                    rows: size.rows,
                    length: size.length,
                    longest: members().map(|row| row.inputs as usize).max().unwrap_or(0),
                    trained: members().map(|row| row.trained as usize).sum(),
                };
                batches.positions += batch.positions() as f64;
                batches.trained += batch.trained as f64;
                let squares = members().map(|row| f64::from(row.inputs).powi(2));
                batches.squares += squares.sum::<f64>();
                batches.all.push(batch);
            }
        }
        batches.all.sort_by_key(MicroBatch::positions);
        batches
    }
}

/// Micro-batches and their totals.
#[derive(Clone, Debug, Default)]
pub(super) struct Batches {
    /// Sorted by positions, smallest first.
    all: Vec<MicroBatch>,
    /// Optimizer steps.
    pub steps: usize,
    /// Positions, including padding.
    pub positions: f64,
    /// Trained targets.
    pub trained: f64,
    /// Sum over examples of the square of their input tokens.
    pub squares: f64,
}

impl Batches {
    /// Returns the largest micro-batch, with the most trained targets and the longest example of any.
    pub fn largest(&self) -> MicroBatch {
        let most = |of: fn(&MicroBatch) -> usize| self.all.iter().map(of).max().unwrap_or(0);
        let largest = self.all.last().copied().unwrap_or_default();
        MicroBatch {
            longest: most(|batch| batch.longest),
            trained: most(|batch| batch.trained).min(largest.positions()),
            ..largest
        }
    }

    /// Returns the quantile of the micro-batches by size, for a share of 0 to 1.
    pub fn quantile(&self, share: f64) -> MicroBatch {
        let last = self.all.len().saturating_sub(1);
        let index = (share * last as f64).round() as usize;
        self.all.get(index.min(last)).copied().unwrap_or_default()
    }
}
