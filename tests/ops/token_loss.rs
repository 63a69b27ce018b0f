//! Promise: label smoothing, z-loss, and the divergences from a teacher match their formulas, with
//! their gradients, and need only the teacher's most likely tokens.

use super::support::{Case, cases, check_composition, check_reference, numbers, run};
use super::{input, values};
use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};
use mixdistill::ops::{Distillation, Divergence, TeacherTokens, TokenLoss, linear_token_loss};

const TOKENS: usize = 5;
const WIDTH: usize = 6;
const VOCABULARY: usize = 11;
const TARGETS: [i64; TOKENS] = [3, 0, 10, 10, 7];
const WEIGHTS: [f64; TOKENS] = [0.5, 0.0, 1.0, 0.25, 0.75];

/// A teacher that knows `k` tokens of each distribution.
struct Teacher {
    k: usize,
    tokens: Vec<i64>,
    log_probs: Vec<f64>,
}

impl Teacher {
    fn new(tokens: usize, vocabulary: usize, k: usize, temperature: f64) -> Self {
        let mut teacher = Self { k, tokens: vec![], log_probs: vec![] };
        for logits in numbers(9, tokens * vocabulary).chunks(vocabulary) {
            let scaled = |v: usize| 2.0 * logits[v] / temperature;
            let log_sum = (0..vocabulary).map(|v| scaled(v).exp()).sum::<f64>().ln();
            let mut order: Vec<usize> = (0..vocabulary).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let rest: f64 = order[k..].iter().map(|v| (scaled(*v) - log_sum).exp()).sum();
            teacher.tokens.extend(order[..k].iter().map(|v| *v as i64));
            teacher.log_probs.extend(order[..k].iter().map(|v| scaled(*v) - log_sum));
            teacher.log_probs.push(rest.ln().max(-30.0));
        }
        teacher
    }

    fn tensors(&self, case: &Case) -> TeacherTokens {
        let rows = self.tokens.len() / self.k;
        TeacherTokens {
            tokens: case.ints(&self.tokens).reshape([rows, self.k]),
            log_probs: case.tensor(&self.log_probs, [rows, self.k + 1]),
        }
    }
}

/// The loss in plain loops.
fn reference(hidden: &[f64], weight: &[f64], terms: &TokenLoss, teacher: &Teacher) -> f64 {
    let mut total = 0.0;
    for token in 0..TOKENS {
        let logits: Vec<f64> = (0..VOCABULARY)
            .map(|v| {
                (0..WIDTH).map(|i| hidden[token * WIDTH + i] * weight[i * VOCABULARY + v]).sum()
            })
            .collect();
        let lse = |t: f64| logits.iter().map(|z: &f64| (z / t).exp()).sum::<f64>().ln();
        let smoothing = terms.label_smoothing;
        let cross_entropy: f64 = (0..VOCABULARY)
            .map(|v| {
                let hit = f64::from(v as i64 == TARGETS[token]);
                let y = (1.0 - smoothing) * hit + smoothing / VOCABULARY as f64;
                -y * (logits[v] - lse(1.0))
            })
            .sum();
        let mut loss = cross_entropy + terms.z_loss * lse(1.0).powi(2);
        if let Some(Distillation { divergence, weight, temperature }) = terms.distillation {
            let k = teacher.k;
            let chosen: Vec<usize> =
                teacher.tokens[token * k..][..k].iter().map(|v| *v as usize).collect();
            let p: Vec<f64> =
                teacher.log_probs[token * (k + 1)..][..k + 1].iter().map(|x| x.exp()).collect();
            let prob = |v: usize| (logits[v] / temperature - lse(temperature)).exp();
            let mut q: Vec<f64> = chosen.iter().map(|v| prob(*v)).collect();
            let rest: f64 = (0..VOCABULARY).filter(|v| !chosen.contains(v)).map(prob).sum();
            q.push(rest.max((-30.0f64).exp()));
            let kl = |a: &[f64], b: &[f64]| -> f64 {
                a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum()
            };
            let value = match divergence {
                Divergence::ForwardKl => kl(&p, &q),
                Divergence::ReverseKl => kl(&q, &p),
                Divergence::Jsd(beta) => {
                    let m: Vec<f64> =
                        p.iter().zip(&q).map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
                    beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
                }
            };
            loss += -weight * cross_entropy + weight * temperature * temperature * value;
        }
        total += WEIGHTS[token] * loss;
    }
    total
}

#[test]
fn every_term_is_its_formula_and_has_its_gradients() {
    let divergences = [
        ("forward KL", Divergence::ForwardKl),
        ("reverse KL", Divergence::ReverseKl),
        ("JSD", Divergence::Jsd(0.3)),
    ];
    let mut terms = vec![
        ("label smoothing", TokenLoss { label_smoothing: 0.1, ..Default::default() }, 1),
        ("z-loss", TokenLoss { z_loss: 0.01, ..Default::default() }, 1),
    ];
    for (name, divergence) in divergences {
        for (k, weight, temperature) in [(3, 1.0, 1.0), (4, 0.4, 2.5), (VOCABULARY, 0.7, 0.8)] {
            let distillation = Some(Distillation { divergence, weight, temperature });
            terms.push((name, TokenLoss { distillation, ..Default::default() }, k));
            terms.push((name, TokenLoss { distillation, label_smoothing: 0.2, z_loss: 0.03 }, k));
        }
    }
    for case in cases() {
        for (name, terms, k) in &terms {
            let temperature = terms.distillation.map_or(1.0, |d| d.temperature);
            let teacher = Teacher::new(TOKENS, VOCABULARY, *k, temperature);
            let op = |[h, w]: [Tensor<2>; 2]| {
                let taught = terms.distillation.map(|_| teacher.tensors(&case));
                let weights = case.tensor(&WEIGHTS, [TOKENS]);
                linear_token_loss(h, w, case.ints(&TARGETS), weights, *terms, taught)
            };
            check_reference(
                name,
                [input(1, [TOKENS, WIDTH], 1.0), input(2, [WIDTH, VOCABULARY], 1.0)],
                &case,
                |inputs| op(inputs) * 3.0,
                |[h, w]| vec![3.0 * reference(h, w, terms, &teacher)],
            );
        }
    }
}

#[test]
fn a_teacher_that_tells_all_gives_the_divergence_of_the_whole_distributions() {
    let (tokens, width, vocabulary) = (600, 24, 90);
    let targets: Vec<i64> = (0..tokens).map(|i| (i * i % vocabulary) as i64).collect();
    let weights = vec![1.0 / 512.0; tokens];
    for case in cases() {
        let teacher = Teacher::new(tokens, vocabulary, vocabulary, 2.0);
        let distillation = Distillation { weight: 1.0, temperature: 2.0, ..Default::default() };
        let terms = TokenLoss { distillation: Some(distillation), ..Default::default() };
        check_composition(
            "KL, 600 tokens",
            [input(1, [tokens, width], 1.0), input(2, [width, vocabulary], 1.0)],
            &case,
            |[h, w]| {
                let weights = case.tensor(&weights, [tokens]);
                let taught = Some(teacher.tensors(&case));
                linear_token_loss(h, w, case.ints(&targets), weights, terms, taught)
            },
            |[h, w]| {
                let logits = case.tensor(&numbers(9, tokens * vocabulary), [tokens, vocabulary]);
                let p = softmax(logits.clone(), 1);
                let log_q = log_softmax(h.matmul(w) / 2.0, 1);
                let kl = (p * (log_softmax(logits, 1) - log_q)).sum();
                kl * 4.0 / 512.0
            },
        );
    }
}

#[test]
fn a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient() {
    for case in cases() {
        for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd(0.5)] {
            let (hidden, weight) = (input(1, [4, 6], 1.0), input(2, [6, 11], 1.0));
            let logits =
                values(case.tensor(&hidden.0, hidden.1).matmul(case.tensor(&weight.0, weight.1)));
            let mut teacher = Teacher { k: 3, tokens: vec![], log_probs: vec![] };
            for row in logits.chunks(11) {
                let log_sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
                teacher.tokens.extend([7, 2, 5]);
                teacher.log_probs.extend([7, 2, 5].map(|v: usize| row[v] - log_sum));
                let rest = (0..11).filter(|v| ![7, 2, 5].contains(v));
                teacher.log_probs.push(rest.map(|v| (row[v] - log_sum).exp()).sum::<f64>().ln());
            }
            let distillation = Some(Distillation { divergence, weight: 1.0, ..Default::default() });
            let terms = TokenLoss { distillation, ..Default::default() };
            let (loss, grads) = run(&case, &[hidden, weight], |[h, w]| {
                let ones = case.tensor(&[1.0; 4], [4]);
                let taught = Some(teacher.tensors(&case));
                linear_token_loss(h, w, case.ints(&[0, 1, 2, 3]), ones, terms, taught)
            });
            let largest = grads.iter().flatten().chain(&loss).fold(0.0f64, |m, x| m.max(x.abs()));
            assert!(largest < 1e-5, "{} {divergence:?}: {largest:e}", case.name);
        }
    }
}

#[test]
fn far_apart_distributions_have_finite_losses_and_gradients() {
    for case in cases() {
        for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd(0.5)] {
            // The student is sure of token 0, the teacher of token 1, and it knows of no other.
            let teacher = Teacher { k: 2, tokens: vec![1, 2], log_probs: vec![0.0, -60.0, -30.0] };
            let terms = TokenLoss {
                distillation: Some(Distillation { divergence, weight: 0.9, temperature: 1.0 }),
                z_loss: 1e-4,
                label_smoothing: 0.1,
            };
            let inputs = [(vec![1.0], [1, 1]), (vec![300.0, -300.0, 0.0, 10.0], [1, 4])];
            let (loss, grads) = run(&case, &inputs, |[h, w]| {
                let one = case.tensor(&[1.0], [1]);
                let taught = Some(teacher.tensors(&case));
                linear_token_loss(h, w, case.ints(&[3]), one, terms, taught)
            });
            let all = || grads.iter().flatten().chain(&loss);
            assert!(all().all(|x| x.is_finite()), "{} {divergence:?} {loss:?}", case.name);
            assert!(loss[0] > 1.0, "{} {divergence:?} {loss:?}", case.name);
        }
    }
}
