//! The loss of a token, from its logits `z`, its target `t`, and optionally a teacher's distribution; and its
//! gradient.
//!
//! ```text
//! (1 - weight) * cross-entropy  +  weight * temperature^2 * divergence  +  z_loss * lse(z)^2
//!
//! cross-entropy   -sum_v y_v log softmax(z)_v,  y = (1 - label_smoothing) at t
//!                                                   + label_smoothing / vocabulary everywhere
//! divergence      between the teacher P and the student Q = softmax(z / temperature), over the
//!                 teacher's k most likely tokens and one bucket for all others
//! ```
//!
//! The bucket makes P and Q complete distributions without the teacher's other logits. If k is the size of
//! the vocabulary, the divergence is that of the full distributions; otherwise it is a lower bound of it.
//! Sources: label smoothing arXiv 1512.00567, z-loss arXiv 2204.02311, divergences and their names arXiv
//! 2306.13649, the factor `temperature^2` arXiv 1503.02531.

use super::backends::{cast, for_each_backend_without_kernels, kernel_trait};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Slice, Tensor};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, VariantAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::fmt;

/// The divergence between a teacher's distribution P and the student's distribution Q.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(P || Q), the usual choice: the student must cover everything that the teacher considers likely.
    #[default]
    ForwardKl,
    /// KL(Q || P): the student concentrates on what the teacher considers likely and may ignore alternatives.
    ReverseKl,
    /// The generalized Jensen-Shannon divergence, `beta KL(P || M) + (1 - beta) KL(Q || M)` with
    /// `M = beta P + (1 - beta) Q`. `jsd` alone uses `beta` 0.5; `{ jsd = beta }` sets it to a number between
    /// 0 and 1. A compromise between the other two.
    Jsd(f64),
}

/// Reads the form of the settings: a name (`jsd` alone is the symmetric divergence), or `{ jsd = beta }`.
impl<'de> Deserialize<'de> for Divergence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const NAMES: [&str; 3] = ["forward_kl", "reverse_kl", "jsd"];
        deserializer.deserialize_enum("Divergence", &NAMES, DivergenceVisitor)
    }
}

struct DivergenceVisitor;

impl<'de> Visitor<'de> for DivergenceVisitor {
    type Value = Divergence;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("forward_kl, reverse_kl, jsd or { jsd = beta }")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Divergence, A::Error> {
        let (name, content) = access.variant::<String>()?;
        match name.as_str() {
            "forward_kl" => content.unit_variant().map(|()| Divergence::ForwardKl),
            "reverse_kl" => content.unit_variant().map(|()| Divergence::ReverseKl),
            "jsd" => {
                let is_there = Cell::new(false);
                match content.newtype_variant_seed(Beta { is_there: &is_there }) {
                    // Only the name.
                    Err(_) if !is_there.get() => Ok(Divergence::Jsd(0.5)),
                    beta => beta.map(Divergence::Jsd),
                }
            }
            name => Err(A::Error::custom(format!(
                "there is no divergence `{name}`; there are forward_kl, reverse_kl, jsd and {{ jsd \
                 = beta }}"
            ))),
        }
    }
}

/// Reads the optional number of `jsd`, and notes whether there is one.
struct Beta<'b> {
    is_there: &'b Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Beta<'_> {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        self.is_there.set(true);
        f64::deserialize(deserializer)
    }
}

/// Distillation from a teacher's logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distillation {
    /// The divergence between the teacher and the student.
    pub divergence: Divergence,
    /// Weight of the divergence, from 0 to 1. The cross-entropy has the remaining weight: 0 ignores the
    /// teacher, and 1 ignores the cross-entropy.
    pub weight: f64,
    /// Divides the logits of teacher and student before the softmax, from 0.01 to 100. Values above 1
    /// emphasize less likely tokens. Stored teacher logits must have been written at the same temperature.
    pub temperature: f64,
}

impl Default for Distillation {
    fn default() -> Self {
        Self { divergence: Divergence::ForwardKl, weight: 0.5, temperature: 1.0 }
    }
}

/// The loss of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenLoss {
    /// Share of the target that is spread over the vocabulary, at least 0 and below 1.
    pub label_smoothing: f64,
    /// Weight of the squared log-sum-exp of the logits.
    pub z_loss: f64,
    /// Distillation from a teacher.
    pub distillation: Option<Distillation>,
}

impl TokenLoss {
    /// Returns whether this is the plain cross-entropy.
    pub fn is_cross_entropy(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the weight of the cross-entropy.
    pub(super) fn hard(&self) -> f64 {
        1.0 - self.distillation.map_or(0.0, |distillation| distillation.weight)
    }
}

/// A teacher's distributions, one per token.
#[derive(Clone, Debug)]
pub struct TeacherTokens {
    /// The k most likely tokens, all different, `[tokens, k]`.
    pub tokens: Tensor<2, Int>,
    /// Their log probabilities at the loss's temperature, followed by the log probability of all other
    /// tokens, `[tokens, k + 1]`, in f32.
    pub log_probs: Tensor<2>,
}

/// Minimum log probability of the bucket, so that the divergence stays finite if the teacher has nothing else
/// and the student does.
pub(super) const LEAST_LOG_REST: f64 = -30.0;
/// Keeps the logarithm of a zero sum finite.
const TINY: f64 = 1e-37;

/// A teacher's tokens and log probabilities on plain backend tensors.
pub(crate) type TeacherPart<B> = (IntTensor<B>, FloatTensor<B>);

kernel_trait! {
    /// The loss of a block of tokens on plain backend tensors.
    trait TokenLossKernel {
        /// Returns the loss of each token, `[tokens, 1]`, and, if requested, its gradient with respect to the
        /// logits in the type `dtype`; otherwise the logits.
        ///
        /// `logits` is `[tokens, vocabulary]` in f32 (f64); `targets` and `token_weights` are `[tokens, 1]`.
        /// If `terms` has no distillation, the teacher's tensors are ignored.
        #[allow(clippy::too_many_arguments, reason = "a fusing backend takes no tensors in options")]
        #[fusion(meta = |logits, _targets, weights, _tokens, _log_probs, _terms, dtype, wants_grad| {
            let dtype = if *wants_grad { (*dtype).into() } else { logits.dtype };
            (weights.clone(), TensorSpec::new(logits.shape.clone(), dtype))
        })]
        fn token_loss(
            logits: FloatTensor<Self>,
            targets: IntTensor<Self>,
            token_weights: FloatTensor<Self>,
            teacher_tokens: IntTensor<Self>,
            teacher_log_probs: FloatTensor<Self>,
            terms: TokenLoss,
            dtype: FloatDType,
            wants_grad: bool,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let teacher = terms.distillation.map(|_| (teacher_tokens, teacher_log_probs));
            let tokens = (targets, token_weights);
            portable_loss_and_grad::<Self>(logits, tokens, terms, teacher, dtype, wants_grad)
        }
    }
}

for_each_backend_without_kernels! { TokenLossKernel }

/// Implements [`TokenLossKernel::token_loss`].
fn portable_loss_and_grad<B: Backend>(
    logits: FloatTensor<B>,
    (targets, token_weights): (IntTensor<B>, FloatTensor<B>),
    terms: TokenLoss,
    teacher: Option<TeacherPart<B>>,
    dtype: FloatDType,
    wants_grad: bool,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let unchanged = (!wants_grad).then(|| logits.clone());
    let (loss, grad) =
        portable_loss::<B>(logits, targets, token_weights, terms, teacher, wants_grad);
    match (grad, unchanged) {
        (Some(grad), None) => (loss, cast::<B>(grad, dtype)),
        (_, Some(unchanged)) => (loss, unchanged),
        (None, None) => unreachable!("a gradient that is wanted is there"),
    }
}

/// Returns the loss of a block of tokens on plain backend tensors, `[tokens, 1]`, and its gradient with
/// respect to the logits if requested.
///
/// `logits` is `[tokens, vocabulary]` in f32 (f64); `targets` and `token_weights` are `[tokens, 1]`.
fn portable_loss<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    token_weights: FloatTensor<B>,
    terms: TokenLoss,
    teacher: Option<TeacherPart<B>>,
    wants_grad: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let [_, vocabulary] = logits.shape().dims::<2>();
    let (hard, smoothing) = (terms.hard(), terms.label_smoothing);
    let taught = terms.distillation.zip(teacher).map(|(distillation, teacher)| {
        let scaled = B::float_div_scalar(logits.clone(), distillation.temperature.into());
        let (value, grad) = portable_divergence::<B>(scaled, teacher, distillation.divergence);
        let weight = distillation.weight * distillation.temperature;
        let value = B::float_mul_scalar(value, (weight * distillation.temperature).into());
        (value, B::float_mul_scalar(grad, weight.into()))
    });

    let max = B::float_max_dim(logits.clone(), 1);
    let logits = B::float_sub(logits, max.clone());
    let exps = B::float_exp(logits.clone());
    let sums = B::float_sum_dim(exps.clone(), 1);
    let log_sums = B::float_log(sums.clone());
    let picked = B::float_gather(1, logits.clone(), targets.clone());
    let mut loss = match smoothing {
        0.0 => B::float_sub(log_sums.clone(), picked),
        _ => {
            let picked = B::float_mul_scalar(picked, (1.0 - smoothing).into());
            let mean = B::float_mul_scalar(B::float_mean_dim(logits, 1), smoothing.into());
            B::float_sub(log_sums.clone(), B::float_add(picked, mean))
        }
    };
    let mut of_probs = token_weights.clone();
    if hard != 1.0 {
        loss = B::float_mul_scalar(loss, hard.into());
        of_probs = B::float_mul_scalar(of_probs, hard.into());
    }
    if terms.z_loss != 0.0 {
        let lse = B::float_add(log_sums, max);
        let square =
            B::float_mul_scalar(B::float_mul(lse.clone(), lse.clone()), terms.z_loss.into());
        loss = B::float_add(loss, square);
        let slope = B::float_mul_scalar(lse, (2.0 * terms.z_loss).into());
        of_probs = B::float_add(of_probs, B::float_mul(slope, token_weights.clone()));
    }
    if let Some((value, _)) = &taught {
        loss = B::float_add(loss, value.clone());
    }
    let loss = B::float_mul(loss, token_weights.clone());
    if !wants_grad {
        return (loss, None);
    }
    let mut grad = B::float_mul(exps, B::float_div(of_probs, sums));
    if smoothing != 0.0 {
        let everywhere = B::float_mul_scalar(
            token_weights.clone(),
            (hard * smoothing / vocabulary as f64).into(),
        );
        grad = B::float_sub(grad, everywhere);
    }
    if let Some((_, of_divergence)) = taught {
        grad = B::float_add(grad, B::float_mul(of_divergence, token_weights.clone()));
    }
    let minus = B::float_mul_scalar(token_weights, (-hard * (1.0 - smoothing)).into());
    (loss, Some(B::float_scatter(1, grad, targets, minus, IndexingUpdateOp::Add)))
}

/// Returns the divergence, `[tokens, 1]`, and its gradient with respect to `scaled`, the logits divided by
/// the temperature, `[tokens, vocabulary]`.
///
/// With `s = sum_b w_b` over tokens and bucket, the gradient at a teacher's token is `w_b - q_b s`. The
/// bucket's gradient is distributed over its tokens by their probabilities.
fn portable_divergence<B: Backend>(
    scaled: FloatTensor<B>,
    (tokens, log_p): TeacherPart<B>,
    divergence: Divergence,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [rows, k] = tokens.shape().dims();
    let add = |a, b| B::float_add(a, b);
    let mul = |a, b| B::float_mul(a, b);
    let sub = |a, b| B::float_sub(a, b);
    let times = |a, factor: f64| B::float_mul_scalar(a, factor.into());
    let sum = |a| B::float_sum_dim(a, 1);

    let log_p = cast::<B>(log_p, super::backends::wide(scaled.dtype()));
    let shifted = sub(scaled.clone(), B::float_max_dim(scaled, 1));
    let exps = B::float_exp(shifted.clone());
    let picked = B::float_gather(1, exps.clone(), tokens.clone());
    let log_sum = B::float_log(sum(exps.clone()));
    // The exponentials of the other tokens; exactly 0 at the teacher's tokens.
    let others =
        B::float_scatter(1, exps, tokens.clone(), B::float_neg(picked), IndexingUpdateOp::Add);
    let sum_others = B::float_clamp_min(sum(others.clone()), TINY.into());
    let log_rest = sub(B::float_log(sum_others.clone()), log_sum.clone());
    let log_rest = B::float_clamp_min(log_rest, LEAST_LOG_REST.into());
    let log_q = sub(B::float_gather(1, shifted, tokens.clone()), log_sum);
    let log_q = B::float_cat(vec![log_q, log_rest], 1);
    let (p, q) = (B::float_exp(log_p.clone()), B::float_exp(log_q.clone()));

    let (value, w) = match divergence {
        Divergence::ForwardKl => (sum(mul(p.clone(), sub(log_p, log_q))), B::float_neg(p)),
        Divergence::ReverseKl => {
            let w = mul(q.clone(), sub(log_q, log_p));
            (sum(w.clone()), w)
        }
        Divergence::Jsd(beta) => {
            let m = add(times(p.clone(), beta), times(q.clone(), 1.0 - beta));
            let log_m = B::float_log(B::float_clamp_min(m, TINY.into()));
            let of_p = times(mul(p, sub(log_p, log_m.clone())), beta);
            let w = times(mul(q.clone(), sub(log_q, log_m)), 1.0 - beta);
            (sum(add(of_p, w.clone())), w)
        }
    };
    let grad = sub(w.clone(), mul(q, sum(w)));
    let part = |range| B::float_slice(grad.clone(), &[(0..rows).into(), Slice::from(range)]);
    let (of_tokens, of_rest) = (part(0..k), part(k..k + 1));
    let spread = mul(others, B::float_div(of_rest, sum_others));
    (value, B::float_scatter(1, spread, tokens, of_tokens, IndexingUpdateOp::Add))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
pub(super) mod flex {
    use super::super::kernel::{self, simd_fn};
    use super::*;

    simd_fn! {
        /// Turns a row of logits into the gradient of its cross-entropy and returns the loss.
        fn cross_entropy(row: &mut [f32], target: usize, token_weight: f32) -> f64 {
            let target_logit = row[target];
            let max = kernel::max(row);
            let sum = kernel::exp_sum(row, max);
            let scale = token_weight / sum;
            row.iter_mut().for_each(|x| *x *= scale);
            row[target] -= token_weight;
            let log_sum = f64::from(sum).ln() + f64::from(max);
            f64::from(token_weight) * (log_sum - f64::from(target_logit))
        }
    }

    simd_fn! {
        /// Replaces elements by `exp(factor * x - shift)`, with the shift that makes the largest 1, and
        /// returns their sum and the shift.
        fn exponentials(row: &mut [f32], factor: f32) -> (f32, f32) {
            row.iter_mut().for_each(|x| *x *= factor);
            let max = kernel::max(row);
            (kernel::exp_sum(row, max), max)
        }
    }

    simd_fn! {
        /// Computes `row * factor + constant + other * other_factor`, in place.
        fn combine(row: &mut [f32], factor: f32, constant: f32, other: &[f32], other_factor: f32) {
            for (x, y) in row.iter_mut().zip(other) {
                *x = *x * factor + constant + *y * other_factor;
            }
        }
    }

    /// A teacher's distribution for one token.
    #[derive(Clone, Copy)]
    pub struct Taught<'a> {
        pub tokens: &'a [usize],
        pub log_probs: &'a [f32],
    }

    /// Turns a row of logits into the gradient of its loss and returns the loss. `scratch` must be as long as
    /// the row if there is a teacher.
    pub fn loss_and_logit_grads(
        row: &mut [f32],
        target: usize,
        token_weight: f32,
        terms: &TokenLoss,
        taught: Option<Taught>,
        scratch: &mut Vec<f32>,
    ) -> f64 {
        if terms.is_cross_entropy() {
            return cross_entropy(row, target, token_weight);
        }
        let vocabulary = row.len() as f64;
        let (hard, smoothing) = (terms.hard(), terms.label_smoothing);
        let weight = f64::from(token_weight);
        let divergence = terms.distillation.zip(taught).map(|(distillation, taught)| {
            scratch.clear();
            scratch.extend_from_slice(row);
            let temperature = distillation.temperature;
            let value = divergence(scratch, taught, distillation);
            (
                value * distillation.weight * temperature * temperature,
                distillation.weight * temperature,
            )
        });
        let target_logit = f64::from(row[target]);
        let mean = match smoothing {
            0.0 => 0.0,
            _ => row.iter().map(|x| f64::from(*x)).sum::<f64>() / vocabulary,
        };
        let (sum, max) = exponentials(row, 1.0);
        let lse = f64::from(sum).ln() + f64::from(max);
        let cross_entropy = lse - (1.0 - smoothing) * target_logit - smoothing * mean;
        let loss = hard * cross_entropy
            + terms.z_loss * lse * lse
            + divergence.map_or(0.0, |(value, _)| value);
        let of_probs = (hard + 2.0 * terms.z_loss * lse) * weight / f64::from(sum);
        let everywhere = -weight * hard * smoothing / vocabulary;
        match divergence {
            Some((_, factor)) => {
                let factor = (weight * factor) as f32;
                combine(row, of_probs as f32, everywhere as f32, scratch, factor);
            }
            None => row.iter_mut().for_each(|x| *x = *x * of_probs as f32 + everywhere as f32),
        }
        row[target] -= (weight * hard * (1.0 - smoothing)) as f32;
        weight * loss
    }

    /// Turns a row of logits into the gradient of the divergence with respect to the logits divided by the
    /// temperature, and returns the divergence. Sums over the teacher's tokens are f64.
    fn divergence(row: &mut [f32], taught: Taught, distillation: Distillation) -> f64 {
        let k = taught.tokens.len();
        let factor = (1.0 / distillation.temperature) as f32;
        let logits: Vec<f32> = taught.tokens.iter().map(|token| row[*token] * factor).collect();
        let (sum, max) = exponentials(row, factor);
        let lse = f64::from(sum).ln() + f64::from(max);
        taught.tokens.iter().for_each(|token| row[*token] = 0.0);
        let sum_others = row.iter().map(|x| f64::from(*x)).sum::<f64>().max(TINY);
        let log_q = logits.iter().map(|logit| f64::from(*logit) - lse);
        let rest = (sum_others.ln() + f64::from(max) - lse).max(LEAST_LOG_REST);
        let log_q: Vec<f64> = log_q.chain([rest]).collect();
        let mut w = vec![0.0; k + 1];
        let (mut value, mut sum_w) = (0.0, 0.0);
        for (i, w) in w.iter_mut().enumerate() {
            let (log_p, log_q) = (f64::from(taught.log_probs[i]), log_q[i]);
            let (p, q) = (log_p.exp(), log_q.exp());
            match distillation.divergence {
                Divergence::ForwardKl => {
                    *w = -p;
                    value += p * (log_p - log_q);
                }
                Divergence::ReverseKl => {
                    *w = q * (log_q - log_p);
                    value += *w;
                }
                Divergence::Jsd(beta) => {
                    let log_m = (beta * p + (1.0 - beta) * q).max(TINY).ln();
                    *w = (1.0 - beta) * q * (log_q - log_m);
                    value += beta * p * (log_p - log_m) + *w;
                }
            }
            sum_w += *w;
        }
        let grad = |i: usize| w[i] - log_q[i].exp() * sum_w;
        let spread = (grad(k) / sum_others) as f32;
        row.iter_mut().for_each(|x| *x *= spread);
        for (i, token) in taught.tokens.iter().enumerate() {
            row[*token] = grad(i) as f32;
        }
        value
    }
}
