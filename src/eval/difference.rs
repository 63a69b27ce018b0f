//! Tests of score differences: the p-value, and the smallest difference that the same data could show.

use super::bootstrap::{Estimate, ROUNDING};
use serde::{Deserialize, Serialize};

/// A difference of scores, from the paired bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The difference with its interval.
    pub estimate: Estimate,
    /// Two-sided p-value, above 0 and at most 1.
    pub p: f64,
    /// Standard error: the standard deviation of the resampled differences.
    pub standard_error: f64,
}

impl Default for Difference {
    /// Returns the difference of empty arms.
    fn default() -> Self {
        Self { estimate: Estimate::default(), p: 1.0, standard_error: 0.0 }
    }
}

impl Difference {
    /// Returns the difference from its resamples. If `r` of `n` resamples are at 0 or on the other side of
    /// it, the p-value is `2 (r + 1) / (n + 1)`, at most 1. Apart from rounding, it is below 0.05 if the
    /// interval excludes 0. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section
    /// 15.4, with the added 1 of Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    /// equation 4.11, since `n` resamples cannot show a smaller p-value. Values within rounding error of 0
    /// count as 0.
    pub(super) fn of(estimate: Estimate, resampled: &[f64]) -> Self {
        let count = resampled.len() as f64;
        let at_most = resampled.iter().filter(|value| **value < ROUNDING).count();
        let at_least = resampled.iter().filter(|value| **value > -ROUNDING).count();
        let p = 2.0 * (at_most.min(at_least) + 1) as f64 / (count + 1.0);
        let mean = resampled.iter().sum::<f64>() / count;
        let squares: f64 = resampled.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (squares / (count - 1.0).max(1.0)).sqrt();
        Self { estimate, p: p.min(1.0), standard_error }
    }

    /// Returns the smallest p-value that this number of resamples can show.
    pub fn smallest_p(resamples: usize) -> f64 {
        (2.0 / (resamples as f64 + 1.0)).min(1.0)
    }

    /// Returns the minimum detectable difference: the smallest true difference that 80% of studies like this
    /// one would show in a two-sided test at the 5% level, (1.960 + 0.842) standard errors. `None` if the
    /// resamples do not vary, for example because all answers are wrong.
    ///
    /// Source: J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, for a normally
    /// distributed estimate.
    pub fn shown_in_most(&self) -> Option<f64> {
        (self.standard_error > ROUNDING)
            .then_some((AT_5_PERCENT + AT_80_PERCENT) * self.standard_error)
    }

    /// Returns the factor by which [`Difference::shown_in_most`] grows for a test at the level 5% / `tests`,
    /// which Holm's correction requires of the smallest of `tests` p-values.
    pub fn corrected_factor(tests: usize) -> f64 {
        let level = 0.05 / tests.max(1) as f64;
        (upper_quantile(level / 2.0) + AT_80_PERCENT) / (AT_5_PERCENT + AT_80_PERCENT)
    }
}

/// The 97.5% and 80% quantiles of the normal distribution.
const AT_5_PERCENT: f64 = 1.959_963_984_540_054;
const AT_80_PERCENT: f64 = 0.841_621_233_572_914_3;

/// Returns the value that a standard normal variable exceeds with probability `chance`, at most one half; the
/// error is below 0.00045. Source: M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 1964,
/// 26.2.23.
fn upper_quantile(chance: f64) -> f64 {
    let t = (-2.0 * chance.ln()).sqrt();
    let above = 2.515517 + t * (0.802853 + t * 0.010328);
    let below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Bootstrap, Hits};
    use crate::random::Stream;

    fn hits(random: &mut Stream, problems: usize, rate: f64) -> Hits {
        vec![(0..problems).map(|_| f32::from(random.unit() < rate)).collect()]
    }

    #[test]
    fn p_values_and_errors_are_those_by_hand() {
        let estimate = Estimate { value: 0.2, low: -0.1, high: 0.3 };
        // One of four is below 0: 2 (1 + 1) / (4 + 1).
        let found = Difference::of(estimate, &[-0.1, 0.1, 0.2, 0.4]);
        assert!((found.p - 0.8).abs() < 1e-15 && found.estimate == estimate);
        // Mean 0.15; squares 0.0625 + 0.0025 + 0.0025 + 0.0625 over 3.
        assert!((found.standard_error - (0.13f64 / 3.0).sqrt()).abs() < 1e-15);
        let none = Difference::of(Estimate::default(), &[0.0; 9]);
        assert_eq!((none.p, none.standard_error, none.shown_in_most()), (1.0, 0.0, None));
        let clear = Difference::of(estimate, &[0.1; 99]);
        assert_eq!(clear.p, Difference::smallest_p(99));
        assert_eq!(clear.p, 0.02);
    }

    #[test]
    fn a_corrected_test_needs_a_larger_difference() {
        // Quantiles of the normal distribution from tables.
        for (chance, quantile) in
            [(0.2, 0.841_621), (0.025, 1.959_964), (0.0005, 3.290_527), (5e-6, 4.417_173)]
        {
            let found = upper_quantile(chance);
            assert!((found - quantile).abs() < 4.5e-4, "{chance}: {found} {quantile}");
        }
        assert!((Difference::corrected_factor(1) - 1.0).abs() < 2e-4);
        // 50 tests: (3.290527 + 0.841621) / 2.801585.
        assert!((Difference::corrected_factor(50) - 1.474_932).abs() < 2e-4);
        assert_eq!(Difference::corrected_factor(0), Difference::corrected_factor(1));
    }

    #[test]
    fn a_test_has_the_same_interval_as_the_difference() {
        let mut random = Stream::new(3, "test", 0);
        let [first, second] = [0.6, 0.4].map(|rate| hits(&mut random, 150, rate));
        let bootstrap = Bootstrap::default();
        let (first, second) = (vec![&first, &second], vec![&second, &second]);
        let test = bootstrap.test(&first, &second);
        assert_eq!(test.estimate, bootstrap.difference(&first, &second));
        assert_eq!(test.estimate.is_clear(), test.p < 0.05);
        let reversed = bootstrap.test(&second, &first);
        assert_eq!(reversed.p, test.p);
        assert!((reversed.standard_error - test.standard_error).abs() < 1e-12);
    }

    /// Simulates studies with two arms whose answers are correct with known probabilities. Returns the share
    /// of studies with a p-value below 5% and the mean of their minimum detectable differences.
    fn power(rates: [f64; 2], problems: usize, seeds: usize) -> (f64, f64) {
        const STUDIES: u64 = 300;
        let (mut found, mut least) = (0, 0.0);
        for study in 0..STUDIES {
            let mut random = Stream::new(study, "studies", 0);
            let arms = rates.map(|rate| {
                (0..seeds).map(|_| hits(&mut random, problems, rate)).collect::<Vec<_>>()
            });
            let arms = arms.each_ref().map(|arm| arm.iter().collect());
            let test = Bootstrap { resamples: 400, seed: study }.test(&arms[0], &arms[1]);
            found += u64::from(test.p < 0.05);
            least += test.shown_in_most().unwrap();
        }
        (found as f64 / STUDIES as f64, least / STUDIES as f64)
    }

    #[test]
    fn four_of_five_studies_show_the_difference_that_they_say_they_would() {
        let (problems, rate) = (120, 0.4);
        // By hand: independent binomials with a difference d have the variance
        // (0.4 x 0.6 + (0.4 + d)(0.6 - d)) / 120; d is 2.8016 times its root.
        let mut by_hand = 0.17f64;
        for _ in 0..50 {
            let variance = rate * (1.0 - rate) + (rate + by_hand) * (1.0 - rate - by_hand);
            by_hand = 2.801_585_218 * (variance / problems as f64).sqrt();
        }
        let (share, told) = power([rate + by_hand, rate], problems, 1);
        assert!((told - by_hand).abs() < 0.01 * by_hand, "{told} {by_hand}");
        // Three standard deviations of a share of 300 studies are 0.069.
        assert!((share - 0.8).abs() < 0.07, "{share}");
        // Without a difference, one study in twenty shows one: three standard deviations are 0.038.
        let (share, _) = power([rate, rate], problems, 1);
        assert!((share - 0.05).abs() < 0.038, "{share}");
        // Seeds that differ only by chance count twice in a resample, by problem and by seed, so more studies
        // show the difference.
        let (_, told) = power([rate + 0.1, rate], problems, 3);
        assert!(told < by_hand && told > by_hand / 3f64.sqrt(), "{told} {by_hand}");
        let (share, _) = power([rate + told, rate], problems, 3);
        assert!(share > 0.8, "{share}");
    }
}
