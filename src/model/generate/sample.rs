//! From scores to the next token.

use super::config::GenerateConfig;

/// Makes tokens that stand there already less probable.
pub(super) fn penalize<'a>(
    logits: &mut [f32],
    earlier: impl Iterator<Item = &'a u32>,
    penalty: f32,
) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = vec![false; logits.len()];
    for token in earlier {
        let token = *token as usize;
        if !std::mem::replace(&mut seen[token], true) {
            let logit = &mut logits[token];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The most probable token; of equals the lowest.
pub(super) fn most_probable(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), (token, logit): (u32, &f32)| {
        if *logit > best.1 { (token, *logit) } else { best }
    };
    (0u32..).zip(logits).fold((0, f32::NEG_INFINITY), better).0
}

/// The token at `point` (0 to 1) of the distribution that the settings leave.
pub(super) fn sample(logits: &[f32], config: &GenerateConfig, point: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - max) / config.temperature).exp();
    let mut tokens: Vec<(f64, u32)> =
        logits.iter().zip(0u32..).map(|(x, token)| (weight(*x), token)).collect();
    // Most probable first; of equals the lower number, so that the order is defined.
    let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if config.top_k > 0 && config.top_k < tokens.len() {
        tokens.select_nth_unstable_by(config.top_k - 1, order);
        tokens.truncate(config.top_k);
    }
    tokens.sort_unstable_by(order);
    let total: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    let mut kept = 0.0;
    let mut count = 0;
    for (weight, _) in &tokens {
        // The highest weight is 1.
        if count > 0 && *weight < config.min_p {
            break;
        }
        kept += weight;
        count += 1;
        if kept >= config.top_p * total {
            break;
        }
    }
    let mut point = point * kept;
    for (weight, token) in &tokens[..count] {
        point -= weight;
        if point < 0.0 {
            return *token;
        }
    }
    tokens[count - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_its_settings() {
        let logits = [0.0, 2f32.ln(), 5f32.ln()]; // probabilities 1/8, 2/8, 5/8
        let config = GenerateConfig { temperature: 1.0, ..Default::default() };
        assert_eq!(
            [0.0, 0.62, 0.63, 0.87, 0.88, 0.999].map(|p| sample(&logits, &config, p)),
            [2, 2, 1, 1, 0, 0]
        );
        let nucleus = GenerateConfig { top_p: 0.8, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &nucleus, p)), [2, 2, 1, 1]);
        let two = GenerateConfig { top_k: 2, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &two, p)), [2, 2, 1, 1]);
        // Of 5/8, 2/8 and 1/8 the last is less than 0.3 of the first.
        let near = GenerateConfig { min_p: 0.3, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &near, p)), [2, 2, 1, 1]);
        let cold = GenerateConfig { temperature: 0.01, ..config };
        assert_eq!([0.0, 0.5, 0.999].map(|p| sample(&logits, &cold, p)), [2, 2, 2]);
    }

    #[test]
    fn repetition_is_penalized_once_for_each_token() {
        let mut logits = [2.0, -2.0, 1.0, 0.0];
        penalize(&mut logits, [0, 1, 0, 3].iter(), 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0, 0.0]);
        assert_eq!(most_probable(&logits), 0);
    }
}
