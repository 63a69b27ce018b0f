//! The micro-batches that a training comes to, by the lengths of its rows in their order.

use super::activations::MicroBatch;
use crate::recipe::config::RunConfig;
use crate::recipe::prepare::Prepared;
use crate::train::TrainConfig;

/// A row by its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowLength {
    /// Input tokens: all but the last.
    pub inputs: u32,
    /// Trained targets.
    pub trained: u32,
    /// Its source and its record there.
    pub place: [u32; 2],
}

/// Rows that are looked at. A training of more has seen its longest ones many times by then.
const MOST_ROWS: u64 = 1 << 20;

/// Rows of a step that are looked at where there are no data; also what `train.accumulate` may be.
pub(super) const MOST_ROWS_OF_STEP: usize = 1 << 16;

/// The rows of a training in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    pub rows: Vec<RowLength>,
    /// Optimizer steps of the whole training, where they are known.
    pub steps: Option<usize>,
}

impl Order {
    /// The rows of prepared data.
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

    /// One step, or the first rows of a very large one, of rows that are all as long as they may be, where there are no data yet.
    pub fn of_longest(config: &RunConfig) -> Self {
        let inputs = config.data.max_length.saturating_sub(1) as u32;
        let row = RowLength { inputs, trained: inputs, place: [0; 2] };
        let rows = config.train.rows_per_step().min(MOST_ROWS_OF_STEP);
        Self { rows: vec![row; rows], steps: config.train.steps }
    }

    /// The micro-batches, of rows of at most so many tokens.
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

/// The micro-batches of the rows that were looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Batches {
    /// By positions, the smallest first.
    all: Vec<MicroBatch>,
    /// Optimizer steps.
    pub steps: usize,
    /// Positions, padding included.
    pub positions: f64,
    /// Trained targets.
    pub trained: f64,
    /// The sum over examples of the squares of their input tokens.
    pub squares: f64,
}

impl Batches {
    /// The largest one, with as many trained targets and as long an example as any has.
    pub fn largest(&self) -> MicroBatch {
        let most = |of: fn(&MicroBatch) -> usize| self.all.iter().map(of).max().unwrap_or(0);
        let largest = self.all.last().copied().unwrap_or_default();
        MicroBatch {
            longest: most(|batch| batch.longest),
            trained: most(|batch| batch.trained).min(largest.positions()),
            ..largest
        }
    }

    /// The one that so large a share of them is not larger than.
    pub fn quantile(&self, share: f64) -> MicroBatch {
        let last = self.all.len().saturating_sub(1);
        let index = (share * last as f64).round() as usize;
        self.all.get(index.min(last)).copied().unwrap_or_default()
    }
}
