//! How the rows of an optimizer step become micro-batches. The layout does not change the step: attention
//! stays inside each example, and the loss is summed over trained tokens.
//!
//! ```text
//! off                          on                            on, with a budget of 8 tokens
//! a a a . . . . .              a a a b b b b b b b b c c     b b b b b b b b
//! b b b b b b b b                                            a a a c c d d d
//! c c . . . . . .
//! ```

use super::batch::{Batch, Row};
use serde::{Deserialize, Serialize};

/// Whether the examples of a micro-batch are concatenated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Give each example its own row, padded to the longest one.
    Off,
    /// Concatenate examples in one row, which saves the time for padding.
    On,
    /// Concatenate examples if more than 10% of the step would otherwise be padding.
    #[default]
    Auto,
}

/// A layout of micro-batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    /// Rows per micro-batch, without a token budget.
    pub rows_per_batch: usize,
    /// Maximum positions per micro-batch, including padding. A longer row is a micro-batch of its own.
    pub tokens_per_batch: Option<usize>,
    /// Whether examples are packed.
    pub packing: Packing,
    /// Lengths are rounded up to a multiple of this.
    pub multiple: usize,
    /// Whether lengths are rounded up further, to at most eight distinct ones per power of two.
    pub bucket: bool,
}

/// The size of a micro-batch, and its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Indices of its rows.
    pub members: Vec<usize>,
    /// Rows of the batch, 1 if examples are packed.
    pub rows: usize,
    /// Positions per row, including padding.
    pub length: usize,
    is_packed: bool,
}

impl BatchSize {
    /// Returns the number of positions, including padding.
    pub fn positions(&self) -> usize {
        self.rows * self.length
    }
}

impl BatchLayout {
    /// Returns a layout with a fixed number of rows per micro-batch.
    pub fn rows(rows_per_batch: usize, multiple: usize, packing: Packing) -> Self {
        Self { rows_per_batch, tokens_per_batch: None, packing, multiple, bucket: false }
    }

    /// Returns the micro-batches of one optimizer step. Each row is in exactly one.
    pub fn batches(&self, rows: &[Row]) -> Vec<Batch> {
        let batch = |size: &BatchSize| {
            let examples = size.members.iter().map(|row| rows[*row].example());
            match size.is_packed {
                true => Batch::packed(examples, size.length),
                false => Batch::new(examples, size.length),
            }
        };
        self.sizes_of(rows).iter().map(batch).collect()
    }

    /// Returns the sizes of the micro-batches of one optimizer step, by its rows.
    pub fn sizes_of(&self, rows: &[Row]) -> Vec<BatchSize> {
        let inputs: Vec<usize> = rows.iter().map(inputs).collect();
        self.sizes(&inputs)
    }

    /// Returns the sizes of the micro-batches of one optimizer step, by the number of input tokens of its
    /// rows (all but the last token).
    pub fn sizes(&self, inputs: &[usize]) -> Vec<BatchSize> {
        /// Share of padding above which packing pays off.
        const MOST_PADDING: f64 = 0.1;
        match self.packing {
            Packing::Off => self.padded(inputs),
            Packing::On => self.packed(inputs),
            Packing::Auto => {
                let sizes = self.padded(inputs);
                let all: usize = sizes.iter().map(BatchSize::positions).sum();
                let padding = all - inputs.iter().sum::<usize>();
                let much = padding as f64 > MOST_PADDING * all as f64;
                if much { self.packed(inputs) } else { sizes }
            }
        }
    }

    /// Combines rows of similar length.
    fn padded(&self, inputs: &[usize]) -> Vec<BatchSize> {
        let mut sorted: Vec<usize> = (0..inputs.len()).collect();
        sorted.sort_by_key(|row| inputs[*row]);
        let mut chunks: Vec<Vec<usize>> = vec![];
        for row in sorted {
            let full = chunks.last().is_none_or(|chunk| match self.tokens_per_batch {
                // Rows are sorted, so this one is the longest so far.
                Some(budget) => (chunk.len() + 1) * self.rounded(inputs[row]) > budget,
                None => chunk.len() >= self.rows_per_batch,
            });
            match chunks.last_mut() {
                Some(chunk) if !full => chunk.push(row),
                _ => chunks.push(vec![row]),
            }
        }
        let size = |members: Vec<usize>| {
            let longest = members.iter().map(|row| inputs[*row]).max().unwrap_or(0);
            let (rows, length) = (members.len(), self.rounded(longest));
            BatchSize { members, rows, length, is_packed: false }
        };
        chunks.into_iter().map(size).collect()
    }

    /// Concatenates rows.
    fn packed(&self, inputs: &[usize]) -> Vec<BatchSize> {
        let bins: Vec<Vec<usize>> = match self.tokens_per_batch {
            Some(budget) => best_fit_decreasing(inputs, |filled| self.rounded(filled) <= budget),
            None => {
                let all: Vec<usize> = (0..inputs.len()).collect();
                all.chunks(self.rows_per_batch.max(1)).map(<[usize]>::to_vec).collect()
            }
        };
        let size = |members: Vec<usize>| {
            let length = self.rounded(members.iter().map(|row| inputs[*row]).sum());
            BatchSize { members, rows: 1, length, is_packed: true }
        };
        bins.into_iter().map(size).collect()
    }

    /// Rounds a length up, to limit the number of distinct lengths.
    fn rounded(&self, length: usize) -> usize {
        let multiple = match self.bucket {
            true => (length.next_power_of_two() / 16).max(self.multiple),
            false => self.multiple,
        };
        length.next_multiple_of(multiple.max(1))
    }
}

/// Returns the number of input tokens of a row: all but the last.
fn inputs(row: &Row) -> usize {
    row.tokens.len().saturating_sub(1)
}

/// Packs items into bins, as long as `fits` accepts the filled size: largest first, each into the fullest bin
/// with room, or into a new one. Items that fit nowhere get their own bin. Items in a bin keep their order.
fn best_fit_decreasing(sizes: &[usize], fits: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    // Stable, so that equal sizes keep their order.
    order.sort_by_key(|item| std::cmp::Reverse(sizes[*item]));
    let mut bins: Vec<(usize, Vec<usize>)> = vec![];
    for item in order {
        let fitting = bins.iter_mut().filter(|(filled, _)| fits(filled + sizes[item]));
        match fitting.max_by_key(|(filled, _)| *filled) {
            Some((filled, items)) => {
                *filled += sizes[item];
                items.push(item);
            }
            None => bins.push((sizes[item], vec![item])),
        }
    }
    let sorted = |(_, mut items): (usize, Vec<usize>)| {
        items.sort_unstable();
        items
    };
    bins.into_iter().map(sorted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fullest_bin_with_room_is_taken() {
        let within = |capacity: usize| move |filled: usize| filled <= capacity;
        assert_eq!(
            best_fit_decreasing(&[5, 7, 5, 2, 4, 2, 5, 1, 6], within(10)),
            [vec![1, 3, 7], vec![4, 8], vec![0, 2], vec![5, 6]]
        );
        assert_eq!(best_fit_decreasing(&[30, 1], within(10)), [vec![0], vec![1]]);
        assert!(best_fit_decreasing(&[], within(10)).is_empty());
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_batch_within_the_budget(
            lengths in prop::collection::vec(1usize..200, 0..40),
            budget in 1usize..600,
            packing in prop::sample::select(vec![Packing::Off, Packing::On, Packing::Auto]),
            bucket: bool,
            multiple in 1usize..20,
        ) {
            let row = |(number, length): (usize, &usize)| Row {
                tokens: (0..=*length as u32).collect(),
                prompt: 1,
                number: number as u64,
                ..Row::default()
            };
            let rows: Vec<Row> = lengths.iter().enumerate().map(row).collect();
            let layout = BatchLayout {
                rows_per_batch: 4, tokens_per_batch: Some(budget), packing, multiple, bucket,
            };
            let batches = layout.batches(&rows);
            prop_assert_eq!(batches.iter().map(|b| b.examples).sum::<usize>(), rows.len());
            let tokens: usize = batches.iter().map(|b| b.tokens).sum();
            prop_assert_eq!(tokens, lengths.iter().sum::<usize>());
            for batch in &batches {
                let size = batch.rows * batch.length;
                prop_assert!(batch.examples == 1 || size <= budget, "{} {}", size, budget);
                prop_assert!(batch.length.is_multiple_of(multiple) || bucket);
            }
        }

        #[test]
        fn buckets_are_few_and_cost_little(length in 1usize..100_000) {
            let layout = BatchLayout { bucket: true, ..BatchLayout::rows(1, 1, Packing::Off) };
            let rounded = layout.rounded(length);
            prop_assert!(rounded >= length && (rounded as f64) < 1.126 * length as f64 + 1.0);
            let octave = length.next_power_of_two();
            let all: std::collections::BTreeSet<usize> =
                (octave / 2 + 1..=octave).map(|n| layout.rounded(n)).collect();
            prop_assert!(all.len() <= 8);
        }
    }
}
