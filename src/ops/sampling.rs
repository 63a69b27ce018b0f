//! Draws the next token on the device of the scores, so that only the token leaves a GPU.

use super::backends::{dispatched, for_each_backend_without_kernels, kernel_trait};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, TensorMetadata, read_sync};
#[cfg(feature = "fusion")]
use burn::tensor::DType;
use burn::tensor::{Int, IntDType, Tensor, TensorData};

/// How to draw tokens. The settings apply in this order: repetition penalty, temperature, top-k, top-p,
/// min-p.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// Scores of tokens that already occur are divided by this if positive and multiplied by it otherwise.
    pub repetition_penalty: f64,
    /// 0 takes the most probable token; otherwise scores are divided by this.
    pub temperature: f64,
    /// Draw from this many most probable tokens; 0 means all.
    pub top_k: usize,
    /// Draw from the most probable tokens whose probabilities sum to this.
    pub top_p: f64,
    /// Draw from tokens with at least this fraction of the highest probability.
    pub min_p: f64,
}

/// The draws for the rows of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    pub sampling: Sampling,
    /// For each row, the position of its token in the remaining distribution, from 0 to 1.
    pub points: Vec<f64>,
    /// For each row, the distinct tokens to penalize. Empty if there are none in any row.
    pub earlier: Vec<Vec<u32>>,
}

impl Draws {
    /// Returns whether to take the most probable tokens of the unmodified scores.
    fn is_plain_argmax(&self) -> bool {
        self.sampling.temperature == 0.0 && self.earlier.is_empty()
    }
}

kernel_trait! {
    /// Sampling on plain backend tensors.
    trait SamplingKernel {
        /// Returns a token for each row of `logits` `[rows, vocabulary]`: `[rows]`.
        #[fusion(meta = |logits, _draws| {
            burn::backend::fusion::custom::TensorSpec::new([logits.shape[0]].into(), DType::I32)
        })]
        fn draw(logits: FloatTensor<Self>, draws: Draws) -> IntTensor<Self> {
            portable::<Self>(logits, draws)
        }
    }
}

for_each_backend_without_kernels! { SamplingKernel }

/// Reads the scores to the host. This is for CPUs, where reading costs nothing.
fn portable<B: Backend>(logits: FloatTensor<B>, draws: Draws) -> IntTensor<B> {
    let ([rows, vocabulary], device) = (logits.shape().dims(), logits.device());
    if draws.is_plain_argmax() {
        return B::int_reshape(B::float_argmax(logits, 1, IntDType::I32), [rows].into());
    }
    let data = read_sync(B::float_into_data(logits)).expect("a processor's memory can be read");
    let mut logits = data.convert::<f32>().try_into_vec::<f32>().expect("scores in f32");
    let Draws { sampling, points, earlier } = draws;
    let row = |(row, logits): (usize, &mut [f32])| {
        if let Some(earlier) = earlier.get(row) {
            penalize(logits, earlier, sampling.repetition_penalty as f32);
        }
        match sampling.temperature {
            0.0 => most_probable(logits) as i32,
            _ => sample(logits, &sampling, points[row]) as i32,
        }
    };
    let tokens: Vec<i32> = logits.chunks_exact_mut(vocabulary).enumerate().map(row).collect();
    B::int_from_data(TensorData::new(tokens, [rows]), &device)
}

/// Lowers the scores of tokens that already occur.
fn penalize(logits: &mut [f32], earlier: &[u32], penalty: f32) {
    for token in earlier {
        let logit = &mut logits[*token as usize];
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
}

/// Returns the most probable token; the lowest one in case of ties.
fn most_probable(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), (token, logit): (u32, &f32)| {
        if *logit > best.1 { (token, *logit) } else { best }
    };
    (0u32..).zip(logits).fold((0, f32::NEG_INFINITY), better).0
}

/// Returns the token at `point` (0 to 1) of the distribution that the settings leave.
fn sample(logits: &[f32], sampling: &Sampling, point: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - max) / sampling.temperature).exp();
    let mut tokens: Vec<(f64, u32)> =
        logits.iter().zip(0u32..).map(|(x, token)| (weight(*x), token)).collect();
    // Most probable first, with ties in order of the token number, so that the order is defined.
    let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if sampling.top_k > 0 && sampling.top_k < tokens.len() {
        tokens.select_nth_unstable_by(sampling.top_k - 1, order);
        tokens.truncate(sampling.top_k);
    }
    tokens.sort_unstable_by(order);
    let total: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    let mut kept = 0.0;
    let mut count = 0;
    for (weight, _) in &tokens {
        // The highest weight is 1.
        if count > 0 && *weight < sampling.min_p {
            break;
        }
        kept += weight;
        count += 1;
        if kept >= sampling.top_p * total {
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

// For scores, which are off the autodiff graph.
dispatched! {
    []
    trait SamplingOps {
        fn drawn(logits: FloatTensor<Self>, draws: Draws) -> IntTensor<Self> {
            <Self as SamplingKernel>::draw(logits, draws)
        }
    }
}

/// Draws a token for each row of scores, on their device.
///
/// # Shapes
/// `logits`: `[rows, vocabulary]`, off the autodiff graph; result: `[rows]`.
///
/// # Panics
/// If `draws` has points or tokens to penalize for a different number of rows, or `logits` is on an autodiff
/// device.
pub(crate) fn draw_tokens(logits: Tensor<2>, draws: Draws) -> Tensor<1, Int> {
    let [rows, _] = logits.dims();
    assert_eq!(draws.points.len(), rows, "draw_tokens: points for another number of rows");
    assert!(
        draws.earlier.is_empty() || draws.earlier.len() == rows,
        "draw_tokens: tokens to be penalized for another number of rows"
    );
    Tensor::from_dispatch(<Dispatch as SamplingOps>::drawn(logits.into_dispatch(), draws))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling =
        Sampling { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    #[test]
    fn sampling_follows_its_settings() {
        let logits = [0.0, 2f32.ln(), 5f32.ln()]; // probabilities 1/8, 2/8, 5/8
        let all = PLAIN;
        assert_eq!(
            [0.0, 0.62, 0.63, 0.87, 0.88, 0.999].map(|p| sample(&logits, &all, p)),
            [2, 2, 1, 1, 0, 0]
        );
        let nucleus = Sampling { top_p: 0.8, ..all };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &nucleus, p)), [2, 2, 1, 1]);
        let two = Sampling { top_k: 2, ..all };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &two, p)), [2, 2, 1, 1]);
        // Of 5/8, 2/8, and 1/8, the last is less than 0.3 times the first.
        let near = Sampling { min_p: 0.3, ..all };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &near, p)), [2, 2, 1, 1]);
        let cold = Sampling { temperature: 0.01, ..all };
        assert_eq!([0.0, 0.5, 0.999].map(|p| sample(&logits, &cold, p)), [2, 2, 2]);
    }

    #[test]
    fn repetition_is_penalized() {
        let mut logits = [2.0, -2.0, 1.0, 0.0];
        penalize(&mut logits, &[0, 1, 3], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0, 0.0]);
        assert_eq!(most_probable(&logits), 0);
    }
}
