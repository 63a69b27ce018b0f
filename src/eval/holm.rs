//! Holm's correction for multiple tests. Of twenty tests at the 5% level, one is expected to be significant
//! by chance.
//!
//! Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
//! Statistics 6 (1979). The probability of one or more false positives in the family stays below the level,
//! no matter how the tests depend on each other.

/// Returns the adjusted p-values of a family of tests, in the given order: the lowest level at which Holm's
/// procedure rejects each null hypothesis. NaN counts as 1.
///
/// ```
/// let adjusted = mixdistill::eval::holm(&[0.01, 0.04, 0.03]);
/// assert_eq!(adjusted, [0.03, 0.06, 0.06]);
/// ```
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let known = |p: f64| if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) };
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| known(p_values[*a]).total_cmp(&known(p_values[*b])));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut largest = 0.0f64;
    for (rank, test) in order.into_iter().enumerate() {
        let left = (p_values.len() - rank) as f64;
        largest = largest.max((left * known(p_values[test])).min(1.0));
        adjusted[test] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::holm;
    use crate::random::Stream;

    /// Applies Holm's procedure by its definition. Returns the tests that it rejects at a level.
    fn rejected(p_values: &[f64], level: f64) -> Vec<bool> {
        let mut left: Vec<usize> = (0..p_values.len()).collect();
        let mut rejected = vec![false; p_values.len()];
        while !left.is_empty() {
            let smallest =
                *left.iter().min_by(|a, b| p_values[**a].total_cmp(&p_values[**b])).unwrap();
            if p_values[smallest] * left.len() as f64 > level {
                break;
            }
            rejected[smallest] = true;
            left.retain(|test| *test != smallest);
        }
        rejected
    }

    #[test]
    fn adjusted_values_are_those_by_hand() {
        // 4 x 0.005; 3 x 0.011; 2 x 0.02 = 0.04; 1 x 0.04, which is no more than the one before.
        let adjusted = holm(&[0.02, 0.005, 0.04, 0.011]);
        let expected = [0.04, 0.02, 0.04, 0.033];
        for (adjusted, expected) in adjusted.iter().zip(expected) {
            assert!((adjusted - expected).abs() < 1e-15, "{adjusted} {expected}");
        }
        assert_eq!(holm(&[0.7, 0.6]), [1.0, 1.0]);
        assert_eq!(holm(&[0.03]), [0.03]);
        assert_eq!(holm(&[f64::NAN, 0.01]), [1.0, 0.02]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn a_test_is_rejected_where_its_adjusted_value_is_at_the_level() {
        let mut random = Stream::new(1, "holm", 0);
        let mut rejections = 0;
        for family in 0..300 {
            let count = 1 + family % 7;
            // Some of them are equal.
            let p_values: Vec<f64> =
                (0..count).map(|_| (random.below(40) + 1) as f64 / 400.0).collect();
            let adjusted = holm(&p_values);
            for level in [0.01, 0.0203, 0.05, 0.1, 0.31, 0.9] {
                let by_adjusted: Vec<bool> = adjusted.iter().map(|p| *p <= level).collect();
                assert_eq!(by_adjusted, rejected(&p_values, level), "{p_values:?} at {level}");
                rejections += by_adjusted.iter().filter(|r| **r).count();
            }
        }
        assert!(rejections > 500, "{rejections}");
    }
}
