//! Uncertainty of score differences: the paired bootstrap over problems and seeds.
//!
//! A score is the unweighted mean of the accuracies on several benchmarks, as in the paper, averaged over
//! seeds. A resample draws the problems of each benchmark and the seeds with replacement. Both sides of a
//! difference use the same draw, so the difficulty of problems and the effects of seeds that both sides share
//! do not count as noise. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, percentile
//! intervals.

use super::difference::Difference;
use super::interval::wilson;
use crate::random::Stream;
use serde::{Deserialize, Serialize};

/// Rounding error of sums of fractions of problems whose exact value is 0.
pub(super) const ROUNDING: f64 = 1e-12;

/// A number with its 95% confidence interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// Returns whether the interval excludes 0.
    pub fn is_clear(&self) -> bool {
        self.low >= ROUNDING || self.high <= -ROUNDING
    }
}

/// The correct answers of one model: for each benchmark and each problem, the share of correct answers, 0 to
/// 1.
pub type Hits = Vec<Vec<f32>>;

/// One arm of a comparison: the same student and data, with one element per seed.
pub type Arm<'a> = Vec<&'a Hits>;

/// The bootstrap for arms that have the same seeds, benchmarks, and problems.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Number of resamples. 1,000 give the interval to within about 5% of its width.
    pub resamples: usize,
    /// Random seed of the resamples.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2_000, seed: 0 }
    }
}

/// Returns the score of a model: the mean over benchmarks of the mean over problems.
pub fn score(hits: &Hits) -> f64 {
    let mean = |hits: &Vec<f32>| {
        hits.iter().map(|hit| f64::from(*hit)).sum::<f64>() / hits.len().max(1) as f64
    };
    hits.iter().map(mean).sum::<f64>() / hits.len().max(1) as f64
}

impl Bootstrap {
    /// Returns the score of an arm. If all answers are correct, or none, resamples do not vary. The interval
    /// is then Wilson's interval for the number of problems.
    pub fn score(&self, arm: &Arm) -> Estimate {
        let estimate = self.combination(&[(1.0, arm)]);
        let problems = arm.first().map_or(0, |hits| hits.iter().map(Vec::len).sum());
        match estimate.value {
            0.0 => Estimate { high: wilson(0, problems).1, ..estimate },
            1.0 => Estimate { low: wilson(problems, problems).0, ..estimate },
            _ => estimate,
        }
    }

    /// Returns the score of the first arm minus that of the second.
    ///
    /// # Panics
    /// Same as [`Bootstrap::combination`].
    pub fn difference(&self, first: &Arm, second: &Arm) -> Estimate {
        self.combination(&[(1.0, first), (-1.0, second)])
    }

    /// Same as [`Bootstrap::difference`], with the p-value and the standard error.
    ///
    /// # Panics
    /// Same as [`Bootstrap::combination`].
    pub fn test(&self, first: &Arm, second: &Arm) -> Difference {
        match self.resampled(&[(1.0, first), (-1.0, second)]) {
            Some((value, values)) => Difference::of(estimate(value, &values), &values),
            None => Difference::default(),
        }
    }

    /// Returns a weighted sum of the scores of arms.
    ///
    /// # Panics
    /// If the arms differ in seeds, benchmarks, or problems.
    pub fn combination(&self, arms: &[(f64, &Arm)]) -> Estimate {
        let resampled = self.resampled(arms);
        resampled.map_or_else(Estimate::default, |(value, values)| estimate(value, &values))
    }

    /// Returns a weighted sum of the scores of arms, and the sums of the resamples in ascending order. `None`
    /// without arms or seeds.
    fn resampled(&self, arms: &[(f64, &Arm)]) -> Option<(f64, Vec<f64>)> {
        let shape = |arm: &Arm| -> Vec<Vec<usize>> {
            arm.iter().map(|hits| hits.iter().map(Vec::len).collect()).collect()
        };
        let (_, first) = arms.first()?;
        let expected = shape(first);
        assert!(
            arms.iter().all(|(_, arm)| shape(arm) == expected),
            "arms of a comparison must have the same seeds, benchmarks, and problems"
        );
        let seeds = first.len();
        if seeds == 0 {
            return None;
        }
        let of = |arm: &Arm| arm.iter().map(|hits| score(hits)).sum::<f64>() / seeds as f64;
        let value = arms.iter().map(|(weight, arm)| weight * of(arm)).sum();
        // The contribution of each problem to the combination, by seed. A resample is then a sum of look-ups.
        let sizes = &expected[0];
        let combined: Vec<Hits> = (0..seeds)
            .map(|seed| {
                let sum = |benchmark: usize, problem: usize| {
                    let terms = arms
                        .iter()
                        .map(|(weight, arm)| weight * f64::from(arm[seed][benchmark][problem]));
                    terms.sum::<f64>() as f32
                };
                let of_benchmark = |b: usize| (0..sizes[b]).map(|p| sum(b, p)).collect();
                (0..sizes.len()).map(of_benchmark).collect()
            })
            .collect();
        let mut random = Stream::new(self.seed, "bootstrap", 0);
        let mut values: Vec<f64> = (0..self.resamples.max(1))
            .map(|_| {
                let drawn: Vec<Vec<usize>> = sizes
                    .iter()
                    .map(|n| (0..*n).map(|_| random.below(*n as u64) as usize).collect())
                    .collect();
                let mut sum = 0.0;
                for _ in 0..seeds {
                    let hits = &combined[random.below(seeds as u64) as usize];
                    let mut of_seed = 0.0;
                    for (hits, drawn) in hits.iter().zip(&drawn) {
                        let hit: f64 = drawn.iter().map(|p| f64::from(hits[*p])).sum();
                        of_seed += hit / drawn.len().max(1) as f64;
                    }
                    sum += of_seed / sizes.len().max(1) as f64;
                }
                sum / seeds as f64
            })
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        Some((value, values))
    }
}

/// Returns a number with the percentile interval of its sorted resamples.
fn estimate(value: f64, values: &[f64]) -> Estimate {
    let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
    Estimate { value, low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(seed: u64, problems: usize, rate: f64) -> Hits {
        let mut random = Stream::new(seed, "hits", 0);
        vec![(0..problems).map(|_| f32::from(random.unit() < rate)).collect()]
    }

    #[test]
    fn the_interval_of_one_share_is_about_the_usual_one() {
        let hits = hits(1, 400, 0.3);
        let estimate = Bootstrap::default().score(&vec![&hits]);
        let p = score(&hits);
        let half = 1.96 * (p * (1.0 - p) / 400.0).sqrt();
        assert_eq!(estimate.value, p);
        assert!((estimate.low - (p - half)).abs() < 0.008, "{estimate:?} {p} {half}");
        assert!((estimate.high - (p + half)).abs() < 0.008, "{estimate:?} {p} {half}");
    }

    #[test]
    fn pairing_takes_out_what_both_sides_share() {
        // The second arm is the first, except for one problem in ten.
        let first = hits(2, 300, 0.5);
        let mut second = first.clone();
        for problem in (0..300).step_by(10) {
            second[0][problem] = 0.0;
        }
        let bootstrap = Bootstrap::default();
        let difference = bootstrap.difference(&vec![&first], &vec![&second]);
        assert!(difference.is_clear() && difference.low > 0.0, "{difference:?}");
        let alone = bootstrap.score(&vec![&first]);
        assert!(difference.high - difference.low < 0.6 * (alone.high - alone.low));
        let none = bootstrap.difference(&vec![&first], &vec![&first]);
        assert_eq!((none.value, none.low, none.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn seeds_that_disagree_widen_the_interval() {
        let (good, bad) = (hits(3, 200, 0.9), hits(4, 200, 0.1));
        let middle = hits(5, 200, 0.5);
        let bootstrap = Bootstrap::default();
        let apart = bootstrap.score(&vec![&good, &bad]);
        let alike = bootstrap.score(&vec![&middle, &middle]);
        assert!(apart.high - apart.low > 3.0 * (alike.high - alike.low));
    }

    #[test]
    fn differences_that_are_exactly_0_count_as_0_whatever_the_sizes_of_the_benchmarks() {
        // Each benchmark's first three problems: right on one side only, on the other only, equal.
        let arm = |right: usize| -> Hits {
            let hits = |n: usize| (0..n).map(|p| f32::from(u8::from(p % 3 == right))).collect();
            [3, 7, 11].map(hits).to_vec()
        };
        let [first, second] = [vec![arm(0), arm(1), arm(0)], vec![arm(1), arm(0), arm(2)]];
        let (first, second): (Arm, Arm) = (first.iter().collect(), second.iter().collect());
        let bootstrap = Bootstrap { resamples: 2_000, seed: 1 };
        let (_, values) = bootstrap.resampled(&[(1.0, &first), (-1.0, &second)]).unwrap();
        // Each is a whole number of 1 / (3 x 7 x 11) of a benchmark, over 3 benchmarks and 3 seeds.
        let units = f64::from(3 * 7 * 11 * 3 * 3);
        let whole: Vec<i64> = values.iter().map(|value| (value * units).round() as i64).collect();
        for (value, whole) in values.iter().zip(&whole) {
            assert!((value * units - *whole as f64).abs() < 1e-6, "{value}");
        }
        let lost =
            values.iter().zip(&whole).filter(|(value, whole)| **whole == 0 && **value != 0.0);
        assert!(lost.count() > 0, "some zeros are rounded");
        let at_most = whole.iter().filter(|value| **value <= 0).count();
        let at_least = whole.iter().filter(|value| **value >= 0).count();
        let by_hand = (2.0 * (at_most.min(at_least) + 1) as f64 / 2_001.0).min(1.0);
        assert_eq!(bootstrap.test(&first, &second).p, by_hand);
    }

    #[test]
    fn benchmarks_count_alike_whatever_their_size() {
        let hits: Hits = vec![vec![1.0; 10], vec![0.0; 1000]];
        assert_eq!(score(&hits), 0.5);
        let estimate = Bootstrap::default().score(&vec![&hits]);
        assert_eq!((estimate.low, estimate.high), (0.5, 0.5));
    }
}
