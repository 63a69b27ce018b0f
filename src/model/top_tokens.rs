//! A model's predictions at the trained targets of a batch: its top tokens, and the ranks of the targets.

use super::decoder::DecoderLm;
use super::precision::in_f32;
use super::tensors::host;
use crate::data::{Batch, TopTokens};
use crate::error::{Error, Result};
use crate::ops::linear;
use rayon::prelude::*;

/// Lower bound of the log-probability of all other tokens together: `ln` of about 1e-13.
const LEAST_LOG_REST: f64 = -30.0;

/// A model's score of a trained target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetScore {
    /// Negative log-probability in nats over the model's whole vocabulary, 0 or more. Computed in f64 from
    /// f32 logits.
    pub nll: f64,
    /// 1 plus the number of tokens with a higher logit: 1 is the most likely. Ties share a rank.
    pub rank: u32,
}

impl TargetScore {
    /// Selects them from the logits of all tokens.
    fn of(logits: &[f32], target: usize) -> Self {
        let own = logits[target];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut higher) = (0.0, 0);
        for logit in logits {
            sum += (f64::from(*logit) - f64::from(max)).exp();
            higher += u32::from(*logit > own);
        }
        Self { nll: (f64::from(max) - f64::from(own) + sum.ln()).max(0.0), rank: 1 + higher }
    }
}

impl DecoderLm {
    /// Returns the `k` most likely of the first `vocabulary` tokens at each trained target of a batch, with
    /// their log-probabilities after the logits are divided by `temperature`. Ties go to the lower token ID.
    /// Logits beyond `vocabulary`, which pad the embedding, are ignored. Only the logits of a few hundred
    /// tokens are in memory at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if `k` is 0 or above `vocabulary`, or `vocabulary` exceeds the model's;
    /// [`Error::Training`] if the device cannot be read or a logit is not finite.
    pub fn top_tokens(
        &self,
        batch: &Batch,
        k: usize,
        temperature: f64,
        vocabulary: usize,
    ) -> Result<TopTokens> {
        check_request(k, vocabulary, self.config().vocab_size)?;
        let mut top = TopTokens { k, ..TopTokens::default() };
        for (tokens, log_probs) in
            self.at_targets(batch, |_, logits| likeliest(&logits[..vocabulary], k, temperature))?
        {
            top.tokens.extend(tokens);
            top.log_probs.extend(log_probs);
        }
        Ok(top)
    }

    /// Returns the rank of each trained target of a batch among all tokens, from 0: the number of tokens that
    /// are more likely, or equally likely with a lower ID.
    ///
    /// # Errors
    /// [`Error::Training`] if the device cannot be read or a logit is not finite.
    pub fn target_ranks(&self, batch: &Batch) -> Result<Vec<u32>> {
        let targets = trained_targets(batch);
        self.at_targets(batch, |index, logits| {
            let target = targets[index] as usize;
            let before = |(token, logit): (usize, &f32)| {
                *logit > logits[target] || (*logit == logits[target] && token < target)
            };
            logits.iter().enumerate().filter(|pair| before(*pair)).count() as u32
        })
    }

    /// Returns the negative log-probability and the rank of each trained target of a batch, in order.
    ///
    /// # Errors
    /// [`Error::Training`] if the device cannot be read or a logit is not finite.
    pub fn target_scores(&self, batch: &Batch) -> Result<Vec<TargetScore>> {
        let targets = trained_targets(batch);
        self.at_targets(batch, |index, logits| TargetScore::of(logits, targets[index] as usize))
    }

    /// Applies a function to the index and the logits of each trained target.
    fn at_targets<T: Send>(
        &self,
        batch: &Batch,
        of: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let vocabulary = self.config().vocab_size;
        let Some(hidden) = self.hidden_at_targets(batch) else { return Ok(vec![]) };
        let [tokens, _] = hidden.dims();
        let block = ((16 << 20) / vocabulary).clamp(1, 512);
        let mut all = vec![];
        for start in (0..tokens).step_by(block) {
            let hidden = hidden.clone().narrow(0, start, block.min(tokens - start));
            let logits = host(linear(in_f32(hidden), self.head()))?.values;
            check_finite(&logits)?;
            let rows = logits.par_chunks(vocabulary).enumerate();
            all.extend(rows.map(|(row, logits)| of(start + row, logits)).collect::<Vec<_>>());
        }
        Ok(all)
    }
}

/// Returns the trained target tokens, in order.
fn trained_targets(batch: &Batch) -> Vec<u32> {
    let pairs = batch.targets.iter().zip(&batch.weights);
    pairs.filter(|(_, weight)| **weight != 0.0).map(|(target, _)| *target).collect()
}

/// Checks `k` and `vocabulary` against a model with `known` tokens.
pub(super) fn check_request(k: usize, vocabulary: usize, known: usize) -> Result<()> {
    if vocabulary > known {
        let what = format!("{vocabulary} tokens are requested, but the model has only {known}");
        return Err(Error::config("teacher", what, "Use a teacher with the student's tokens"));
    }
    if k == 0 || k > vocabulary {
        let hint = format!("Use 1 to {vocabulary}");
        return Err(Error::config("teacher.top_k", format!("it is {k}"), hint));
    }
    Ok(())
}

pub(super) fn check_finite(logits: &[f32]) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    Err(Error::Training {
        what: "a logit is not finite".into(),
        hint: "Check the model's weights, or compute in f32".into(),
    })
}

/// Returns the tokens of the `k` largest logits, and the log-probabilities of each and of all others
/// together.
pub(super) fn likeliest(logits: &[f32], k: usize, temperature: f64) -> (Vec<u32>, Vec<f32>) {
    let before = |a: &u32, b: &u32| {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b))
    };
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if k < order.len() {
        order.select_nth_unstable_by(k, before);
    }
    let (chosen, others) = order.split_at_mut(k);
    chosen.sort_unstable_by(before);
    // Sum in a fixed order.
    others.sort_unstable();
    let scaled = |token: &u32| f64::from(logits[*token as usize]) / temperature;
    let max = scaled(&chosen[0]);
    let sum = |tokens: &[u32]| tokens.iter().map(|t| (scaled(t) - max).exp()).sum::<f64>();
    let (of_chosen, of_others) = (sum(chosen), sum(others));
    let log_sum = (of_chosen + of_others).ln() + max;
    let rest = (of_others.ln() + max - log_sum).max(LEAST_LOG_REST);
    let log_probs = chosen.iter().map(|token| (scaled(token) - log_sum) as f32);
    (chosen.to_vec(), log_probs.chain([rest as f32]).collect())
}

#[cfg(test)]
mod tests {
    use super::{TargetScore, likeliest};

    #[test]
    fn a_target_has_the_rank_and_the_loss_of_its_logit() {
        // Ties share a rank.
        let logits = [0.5, 3.0, -1.0, 3.0, 2.0, 0.0];
        let sum: f64 = logits.iter().map(|x: &f32| f64::from(*x).exp()).sum();
        for (target, rank) in [(0, 4), (1, 1), (2, 6), (3, 1), (4, 3), (5, 5)] {
            let score = TargetScore::of(&logits, target);
            assert_eq!(score.rank, rank, "{target}");
            assert!((score.nll - (sum.ln() - f64::from(logits[target]))).abs() < 1e-12);
        }
        // Far from 0, where a plain sum of exponentials overflows, and with certainty.
        let far = [3.0e38f32, -3.0e38, 0.0];
        assert_eq!(TargetScore::of(&far, 0), TargetScore { nll: 0.0, rank: 1 });
        let least = TargetScore::of(&far, 1);
        assert!(least.nll.is_finite() && least.rank == 3, "{least:?}");
        let near = TargetScore::of(&[1000.0, 999.0], 1).nll;
        assert!((near - (1.0 + (-1.0f64).exp().ln_1p())).abs() < 1e-12, "{near}");
    }

    #[test]
    fn the_likeliest_come_first_and_all_adds_up_to_one() {
        let logits = [0.5, 3.0, -1.0, 3.0, 2.0, 0.0];
        for (k, expected) in [(1, vec![1]), (3, vec![1, 3, 4]), (6, vec![1, 3, 4, 0, 5, 2])] {
            let (tokens, log_probs) = likeliest(&logits, k, 2.0);
            assert_eq!(tokens, expected);
            let sum: f64 = log_probs.iter().map(|x| f64::from(*x).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            assert!((log_probs[0] - log_probs[k.min(2) - 1]).abs() < 1e-7);
        }
    }
}
