//! Confidence intervals of proportions.

/// Returns the 95% confidence interval of a proportion after `hits` in `trials` (Wilson, 1927), as (low,
/// high), 0 to 1. Without trials, it is (0, 1).
///
/// ```
/// let (low, high) = mixdistill::eval::wilson(8, 10);
/// assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4);
/// assert_eq!(mixdistill::eval::wilson(0, 0), (0.0, 1.0));
/// ```
pub fn wilson(hits: usize, trials: usize) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    const Z: f64 = 1.959_963_984_540_054;
    let (n, p) = (trials as f64, hits as f64 / trials as f64);
    let denominator = 1.0 + Z * Z / n;
    let center = (p + Z * Z / (2.0 * n)) / denominator;
    let half = Z / denominator * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((center - half).max(0.0), (center + half).min(1.0))
}
