//! The operations in plain f64 loops, written from their formulas and not from the library's code.

use mixdistill::ops::AttentionShape;

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// In its form with `tanh`.
pub fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let width = weight.len();
    x.chunks_exact(width)
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
            row.iter().zip(weight).map(move |(x, w)| x / (mean + eps).sqrt() * w)
        })
        .collect()
}

/// `table` holds the cosines and sines, `half` of them a position.
pub fn rotary(x: &[f64], table: &[Vec<f64>; 2], positions: &[i64], half: usize) -> Vec<f64> {
    let width = x.len() / positions.len();
    let mut out = vec![0.0; x.len()];
    for (token, &position) in positions.iter().enumerate() {
        for i in 0..width {
            let (head, within) = (i / (2 * half), i % (2 * half));
            let angle = position as usize * half + within % half;
            let (cos, sin) = (table[0][angle], table[1][angle]);
            let partner = (within + half) % (2 * half);
            let partner = x[token * width + head * 2 * half + partner];
            let own = x[token * width + i];
            out[token * width + i] =
                if within < half { own * cos - partner * sin } else { own * cos + partner * sin };
        }
    }
    out
}

/// `starts` are those of one row, the same in every row of the batch.
pub fn attention([q, k, v]: [&[f64]; 3], starts: &[i64], shape: AttentionShape) -> Vec<f64> {
    let AttentionShape { batch, seq, heads, kv_heads, head_dim } = shape;
    let mut out = vec![0.0; q.len()];
    for (row, query, head) in (0..batch)
        .flat_map(|row| (0..seq).flat_map(move |i| (0..heads).map(move |head| (row, i, head))))
    {
        let kv_head = head * kv_heads / heads;
        let query_at = ((row * seq + query) * heads + head) * head_dim;
        let key_at = |key: usize| ((row * seq + key) * kv_heads + kv_head) * head_dim;
        let keys = starts[query] as usize..=query;
        let exps: Vec<f64> = keys
            .clone()
            .map(|key| {
                let dot: f64 = (0..head_dim).map(|i| q[query_at + i] * k[key_at(key) + i]).sum();
                (dot / (head_dim as f64).sqrt()).exp()
            })
            .collect();
        let sum: f64 = exps.iter().sum();
        for (key, exp) in keys.zip(exps) {
            for i in 0..head_dim {
                out[query_at + i] += exp / sum * v[key_at(key) + i];
            }
        }
    }
    out
}

/// `weight` is `[width, vocabulary]`, row-major.
pub fn loss(hidden: &[f64], weight: &[f64], targets: &[i64], token_weights: &[f64]) -> f64 {
    let width = hidden.len() / targets.len();
    let vocabulary = weight.len() / width;
    let mut loss = 0.0;
    for (token, (&target, token_weight)) in targets.iter().zip(token_weights).enumerate() {
        let hidden = &hidden[token * width..(token + 1) * width];
        let logit =
            |id: usize| (0..width).map(|i| hidden[i] * weight[i * vocabulary + id]).sum::<f64>();
        let sum: f64 = (0..vocabulary).map(|id| logit(id).exp()).sum();
        loss += token_weight * (sum.ln() - logit(target as usize));
    }
    loss
}

/// Parameters after AdamW steps with the gradients given, one step each.
pub fn adamw(params: &[f64], grads: &[Vec<f64>], lr: f64, weight_decay: f64) -> Vec<f64> {
    let (beta_1, beta_2, epsilon) = (0.9f64, 0.999f64, 1e-8);
    let mut params = params.to_vec();
    let mut m = vec![0.0; params.len()];
    let mut v = vec![0.0; params.len()];
    for (step, grads) in grads.iter().enumerate() {
        let t = step as i32 + 1;
        for i in 0..params.len() {
            params[i] -= lr * weight_decay * params[i];
            m[i] += (1.0 - beta_1) * (grads[i] - m[i]);
            v[i] += (1.0 - beta_2) * (grads[i] * grads[i] - v[i]);
            let (m, v) = (m[i] / (1.0 - beta_1.powi(t)), v[i] / (1.0 - beta_2.powi(t)));
            params[i] -= lr * m / (v.sqrt() + epsilon);
        }
    }
    params
}

/// The mean of values, weighted by the softmax of their scores.
pub fn softmax_mean(items: impl Iterator<Item = (f64, Vec<f64>)>) -> Vec<f64> {
    let items: Vec<_> = items.collect();
    let max = items.iter().fold(f64::NEG_INFINITY, |max, (score, _)| max.max(*score));
    let sum: f64 = items.iter().map(|(score, _)| (score - max).exp()).sum();
    let mut mean = vec![0.0; items[0].1.len()];
    for (score, values) in items {
        let weight = (score - max).exp() / sum;
        mean.iter_mut().zip(values).for_each(|(mean, x)| *mean += weight * x);
    }
    mean
}
