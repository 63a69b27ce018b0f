//! The decoder compared with plain f64 arithmetic.

mod common;

use common::{devices, examples, ids, relative_error, rows, shaken, tiny};
use mixdistill::data::Batch;
use mixdistill::model::{Architecture, CausalLm, DecoderConfig, HostTensor, named_tensors};
use std::collections::BTreeMap;

const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

/// The decoder in f64, one row at a time, written from the models' papers with loops only. Weights
/// are `[output, input]` under Hugging Face's names.
struct Reference<'a> {
    config: &'a DecoderConfig,
    weights: &'a BTreeMap<String, HostTensor>,
}

impl Reference<'_> {
    fn weight(&self, name: &str) -> Vec<f64> {
        self.weights[name].values.iter().map(|x| f64::from(*x)).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.weight(&format!("{name}.weight"));
        let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
        let mut y: Vec<f64> = weight.chunks(x.len()).map(dot).collect();
        if self.weights.contains_key(&format!("{name}.bias")) {
            let bias = self.weight(&format!("{name}.bias"));
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.weight(&format!("{name}.weight"));
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.config.rms_norm_eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }

    fn rotate(&self, head: &mut [f64], position: usize) {
        let half = head.len() / 2;
        for i in 0..half {
            let frequency = self.config.rope_theta.powf(-2.0 * i as f64 / head.len() as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }

    /// Queries or keys of one token: projected, normalized by head (Qwen3), rotated.
    fn heads(&self, layer: &str, part: &str, x: &[f64], position: usize) -> Vec<f64> {
        let mut all = self.linear(&format!("{layer}.self_attn.{part}_proj"), x);
        for head in all.chunks_mut(self.config.head_dim()) {
            let norm = format!("{layer}.self_attn.{part}_norm");
            if self.weights.contains_key(&format!("{norm}.weight")) {
                head.copy_from_slice(&self.norm(&norm, head));
            }
            self.rotate(head, position);
        }
        all
    }

    /// Logits of every position, `[length][vocabulary]`.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let (width, dim) = (self.config.hidden_size, self.config.head_dim());
        let group = self.config.num_attention_heads / self.config.num_key_value_heads;
        let embedding = self.weight("model.embed_tokens.weight");
        let embed = |t: &u32| embedding[*t as usize * width..][..width].to_vec();
        let mut x: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        for layer in 0..self.config.num_hidden_layers {
            let layer = format!("model.layers.{layer}");
            let h: Vec<_> =
                x.iter().map(|x| self.norm(&format!("{layer}.input_layernorm"), x)).collect();
            let at = |part: &str| -> Vec<Vec<f64>> {
                h.iter().enumerate().map(|(p, h)| self.heads(&layer, part, h, p)).collect()
            };
            let (q, k) = (at("q"), at("k"));
            let v: Vec<_> =
                h.iter().map(|h| self.linear(&format!("{layer}.self_attn.v_proj"), h)).collect();
            for position in 0..x.len() {
                let mut mixed = vec![];
                for head in 0..self.config.num_attention_heads {
                    let (own, shared) = (head * dim, head / group * dim);
                    let score = |key: usize| -> f64 {
                        let (q, k) = (&q[position][own..own + dim], &k[key][shared..shared + dim]);
                        q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                    };
                    let weights: Vec<f64> = (0..=position).map(|key| score(key).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    mixed.extend((0..dim).map(|i| {
                        (0..=position)
                            .map(|key| weights[key] / sum * v[key][shared + i])
                            .sum::<f64>()
                    }));
                }
                let out = self.linear(&format!("{layer}.self_attn.o_proj"), &mixed);
                x[position].iter_mut().zip(out).for_each(|(x, o)| *x += o);
            }
            for x in &mut x {
                let h = self.norm(&format!("{layer}.post_attention_layernorm"), x);
                let gate = self.linear(&format!("{layer}.mlp.gate_proj"), &h);
                let up = self.linear(&format!("{layer}.mlp.up_proj"), &h);
                let silu = |g: f64| g / (1.0 + (-g).exp());
                let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect();
                let out = self.linear(&format!("{layer}.mlp.down_proj"), &inner);
                x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
            }
        }
        let head = match self.config.tie_word_embeddings {
            true => embedding,
            false => self.weight("lm_head.weight"),
        };
        x.iter()
            .map(|x| {
                let x = self.norm("model.norm", x);
                head.chunks(width).map(|w| w.iter().zip(&x).map(|(a, b)| a * b).sum()).collect()
            })
            .collect()
    }
}

#[test]
fn logits_equal_plain_f64_arithmetic() {
    for device in devices() {
        for architecture in ALL {
            let config = tiny(architecture);
            let model = shaken(&config, &device);
            let weights = named_tensors(&model).unwrap();
            let reference = Reference { config: &config, weights: &weights };
            let tokens = &rows(&[(9, 1)])[0].tokens;
            let expected: Vec<f32> =
                reference.logits(tokens).into_iter().flatten().map(|x| x as f32).collect();
            let logits = model.logits(ids(tokens, [1, 9], &device));
            let logits = logits.try_into_vec_as::<f32>().unwrap();
            let error = relative_error(&logits, &expected);
            // A few dozen f32 roundings on the way.
            assert!(error < 5e-6, "{architecture:?} {error:e}");
        }
    }
}

#[test]
fn the_loss_equals_plain_f64_arithmetic_over_the_trained_positions() {
    for device in devices() {
        for architecture in ALL {
            let config = tiny(architecture);
            let model = shaken(&config, &device);
            let weights = named_tensors(&model).unwrap();
            let reference = Reference { config: &config, weights: &weights };
            let rows = rows(&[(9, 4), (5, 1), (12, 11)]);
            let mut expected = 0.0;
            for row in &rows {
                let logits = reference.logits(&row.tokens);
                for target in row.prompt..row.tokens.len() {
                    let scores = &logits[target - 1];
                    let sum: f64 = scores.iter().map(|x| x.exp()).sum();
                    expected += sum.ln() - scores[row.tokens[target] as usize];
                }
            }
            let batch = Batch::new(examples(&rows), 8);
            assert_eq!(batch.trained, 5 + 4 + 1);
            let loss = model.loss_sum(&batch, 0.5).into_scalar::<f32>();
            let error = (f64::from(loss) / (0.5 * expected) - 1.0).abs();
            assert!(error < 2e-6, "{architecture:?}: {loss} for {}", 0.5 * expected);
        }
    }
}

#[test]
fn padding_changes_no_loss() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Llama), device);
    let rows = rows(&[(9, 4), (5, 1)]);
    let loss =
        |multiple| model.loss_sum(&Batch::new(examples(&rows), multiple), 1.0).into_scalar::<f32>();
    let alone: f32 = rows
        .iter()
        .map(|row| model.loss_sum(&Batch::new([row.example()], 1), 1.0).into_scalar::<f32>())
        .sum();
    for multiple in [1, 16, 33] {
        // Sums of other lengths round in another order.
        assert!((loss(multiple) / alone - 1.0).abs() < 1e-6, "{} {alone}", loss(multiple));
    }
}

#[test]
fn a_seed_gives_the_same_weights_everywhere() {
    let config = tiny(Architecture::Qwen3);
    let expected = named_tensors(&config.init(3, &devices()[0]).unwrap()).unwrap();
    for device in devices() {
        assert_eq!(named_tensors(&config.init(3, &device.autodiff()).unwrap()).unwrap(), expected);
    }
    let other = named_tensors(&config.init(4, &devices()[0]).unwrap()).unwrap();
    assert_ne!(other, expected);
    let values = &expected["model.embed_tokens.weight"].values;
    let variance = values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64;
    // 368 draws: the standard error of the deviation is 4%.
    assert!((variance.sqrt() / 0.3 - 1.0).abs() < 0.15, "{}", variance.sqrt());
}
