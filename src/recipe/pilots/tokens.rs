//! Counts the trained tokens of a mixture.

use crate::data::MixDistillation;
use crate::recipe::prepare::Prepared;

/// The trained tokens of each problem in a mixture that is the same in every epoch. The tokens of any number
/// of rows are then those of whole epochs and of a part of one.
pub(super) struct Tokens {
    mixture: MixDistillation,
    of_problem: Vec<u32>,
    of_epoch: u64,
}

impl Tokens {
    pub fn new(prepared: &Prepared) -> Self {
        let of_problem = prepared.trained_by_problem();
        let of_epoch = of_problem.iter().map(|tokens| u64::from(*tokens)).sum();
        Self { mixture: prepared.mixture.clone(), of_problem, of_epoch }
    }

    /// Returns the number of trained tokens of the first `rows` rows of training.
    pub fn of_first(&self, rows: u64) -> u64 {
        let per_epoch = self.of_problem.len().max(1) as u64;
        let (epochs, left) = (rows / per_epoch, (rows % per_epoch) as usize);
        let whole = self.of_epoch.saturating_mul(epochs);
        if left == 0 {
            return whole;
        }
        let last = self.mixture.order(epochs).into_iter().take(left);
        let last: u64 = last.map(|problem| u64::from(self.of_problem[problem as usize])).sum();
        whole.saturating_add(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::data::MixtureConfig;
    use crate::recipe::RunConfig;

    #[test]
    fn tokens_are_those_of_a_look_at_every_row() {
        let mut config = RunConfig::toy();
        (config.data.toy_problems, config.data.toy_test_problems) = (30, 2);
        for share in [0.0, 0.2, 1.0] {
            config.mixture = MixtureConfig::long_short(share);
            let prepared = Prepared::new(&config, &Context::default()).unwrap();
            let tokens = Tokens::new(&prepared);
            for rows in [0, 1, 7, 29, 30, 31, 60, 100] {
                let seen = prepared.seen(rows);
                let seen: u64 = seen.iter().map(|source| source.trained_tokens).sum();
                assert_eq!(tokens.of_first(rows), seen, "{share}, {rows} rows");
            }
        }
    }
}
