//! The decoder against plain f64 arithmetic, its cache against the whole row, its folder.

mod common;

use burn::tensor::{Int, Tensor, TensorData};
use common::{devices, examples, relative_error, rows, tiny};
use mixdistill::Error;
use mixdistill::data::{Batch, TextTokenizer};
use mixdistill::model::{
    Architecture, CausalLm, DecoderConfig, DecoderLm, GenerateConfig, HostTensor, named_tensors,
};
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

    /// Queries or keys of one token: projected, normalised by head (Qwen3), rotated.
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

/// A model whose norms and biases are not at their trivial initial values.
fn shaken(config: &DecoderConfig, device: &burn::tensor::Device) -> DecoderLm {
    let model = config.init(5, device).unwrap();
    let mut tensors = named_tensors(&model).unwrap();
    for (index, (name, tensor)) in tensors.iter_mut().enumerate() {
        if name.contains("norm") || name.ends_with("bias") {
            for (i, value) in tensor.values.iter_mut().enumerate() {
                *value += 0.3 * (((i * 7 + index * 3) % 11) as f32 / 5.0 - 1.0);
            }
        }
    }
    mixdistill::model::with_named_tensors(model, &mut |name| tensors.remove(name)).unwrap()
}

fn ids(tokens: &[u32], shape: [usize; 2], device: &burn::tensor::Device) -> Tensor<2, Int> {
    let values: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
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
fn a_cache_gives_the_tokens_that_whole_rows_give() {
    for device in devices() {
        for architecture in ALL {
            let config = tiny(architecture);
            let model = shaken(&config, &device);
            let prompt = rows(&[(7, 1)])[0].tokens.clone();
            let settings = GenerateConfig { max_new_tokens: 150, ..Default::default() };
            let answers =
                model.generate(std::slice::from_ref(&prompt), &[], &settings, &mut |_| {}).unwrap();
            let mut row = prompt;
            for token in &answers[0].tokens {
                let length = row.len();
                let logits = model.logits(ids(&row, [1, length], &device));
                let last = logits.narrow(1, length - 1, 1).try_into_vec_as::<f32>().unwrap();
                let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
                assert_eq!(*token as usize, best, "{architecture:?} after {length} tokens");
                row.push(*token);
            }
            // Long enough for the cache to grow twice.
            assert_eq!(answers[0].tokens.len(), 150);
        }
    }
}

#[test]
fn answers_do_not_depend_on_what_they_are_batched_with() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Qwen2), device);
    let shapes = [(3, 1), (11, 1), (1, 1), (7, 1), (7, 1), (20, 1)];
    let prompts: Vec<Vec<u32>> = rows(&shapes).into_iter().map(|row| row.tokens).collect();
    for temperature in [0.0, 0.9] {
        let settings = |batch_size| GenerateConfig {
            max_new_tokens: 24,
            temperature,
            top_p: 0.95,
            seed: 4,
            batch_size,
        };
        let end = [3, 5];
        let together = model.generate(&prompts, &end, &settings(6), &mut |_| {}).unwrap();
        let alone = model.generate(&prompts, &end, &settings(1), &mut |_| {}).unwrap();
        let three = model.generate(&prompts, &end, &settings(4), &mut |_| {}).unwrap();
        assert_eq!(together, alone);
        assert_eq!(together, three);
        assert!(together.iter().any(|answer| answer.ended), "some answer ends early");
        assert!(together.iter().all(|a| !a.tokens.iter().any(|t| end.contains(t))));
        assert!(together.iter().all(|a| a.ended || a.tokens.len() == 24));
    }
}

#[test]
fn drawn_answers_follow_their_seed() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Llama), device);
    let prompts = vec![vec![1, 2, 3]];
    let answer = |seed| {
        let settings =
            GenerateConfig { temperature: 1.5, seed, max_new_tokens: 30, ..Default::default() };
        model.generate(&prompts, &[], &settings, &mut |_| {}).unwrap()
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

#[test]
fn prompts_and_settings_that_cannot_be_answered_are_refused() {
    let device = &devices()[0];
    let model = tiny(Architecture::Llama).init(1, device).unwrap();
    let try_with = |prompt: Vec<u32>, settings: GenerateConfig| {
        model.generate(&[prompt], &[], &settings, &mut |_| {}).unwrap_err().to_string()
    };
    let fine = GenerateConfig::default;
    assert!(try_with(vec![], fine()).contains("prompt 0 is empty"));
    assert!(try_with(vec![23], fine()).contains("prompt 0 has token 23 of 23"));
    for (settings, key) in [
        (GenerateConfig { max_new_tokens: 0, ..fine() }, "max_new_tokens"),
        (GenerateConfig { batch_size: 0, ..fine() }, "batch_size"),
        (GenerateConfig { temperature: -1.0, ..fine() }, "temperature"),
        (GenerateConfig { temperature: f64::NAN, ..fine() }, "temperature"),
        (GenerateConfig { top_p: 0.0, ..fine() }, "top_p"),
    ] {
        assert!(try_with(vec![1], settings).contains(key));
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
    // 368 draws: the standard error of the deviation is 4 %.
    assert!((variance.sqrt() / 0.3 - 1.0).abs() < 0.15, "{}", variance.sqrt());
}

#[test]
fn a_folder_gives_the_same_model_back() {
    let device = &devices()[0];
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    for architecture in ALL {
        let config =
            DecoderConfig { vocab_size: tokenizer.vocabulary_size(), ..tiny(architecture) };
        let model = shaken(&config, device);
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), &tokenizer).unwrap();
        let read = DecoderLm::load(folder.path(), device).unwrap();
        assert_eq!(read.config(), &config);
        assert_eq!(named_tensors(&read).unwrap(), named_tensors(&model).unwrap());
        let again = TextTokenizer::from_file(&folder.path().join("tokenizer.json"), None).unwrap();
        assert_eq!(again.end_token(), tokenizer.end_token());
        let error = model.save(folder.path(), &tokenizer).unwrap_err().to_string();
        assert!(error.contains("already holds a model"), "{error}");
    }
}

#[test]
fn a_folder_that_does_not_fit_is_refused_by_name() {
    let device = &devices()[0];
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let config =
        DecoderConfig { vocab_size: tokenizer.vocabulary_size(), ..tiny(Architecture::Llama) };
    let model = config.init(1, device).unwrap();
    let attempt = |from: &str, to: &str| {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), &tokenizer).unwrap();
        let path = folder.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        DecoderLm::load(folder.path(), device).unwrap_err().to_string()
    };
    let cases = [
        ("LlamaForCausalLM", "GPT2LMHeadModel", "architecture `GPT2LMHeadModel`"),
        ("\"silu\"", "\"gelu\"", "activation `gelu`"),
        ("\"hidden_size\": 16", "\"hidden_size\": 18", "`model.norm.weight` is [16], not [18]"),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "`model.layers.2.mlp.up_proj.weight` is missing",
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "`model.layers.1.mlp.up_proj.weight` is not of this model",
        ),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "do not divide"),
        ("\"hidden_size\": 16", "\"hidden_size\": -1", "`hidden_size` is -1"),
    ];
    for (from, to, message) in cases {
        let error = attempt(from, to);
        assert!(error.contains(message), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(DecoderLm::load(empty.path(), device), Err(Error::Io { .. })));
}
