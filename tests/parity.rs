//! The model compared with transformers: SmolLM2-135M-Instruct, and tiny random models with adapters
//! (`tests/parity/fixtures`, made by `tests/parity/make_references.py`).

mod common;
mod parity_support;

use burn::tensor::{Device, Tensor, TensorData};
use common::{devices, generate, shared, smollm2};
use mixdistill::data::Row;
use mixdistill::model::{
    DecoderLm, GenerateConfig, HostTensor, ModelFolder, PROJECTIONS, named_tensors,
};
use mixdistill::train::{Learner, LrSchedule, TrainConfig};
use parity_support::{
    PROMPT, Reference, folder_for_transformers, largest_difference, line, logits,
    loss_and_gradients, norm, our_name,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Mean loss and the gradients' norms, by Hugging Face's names.
fn loss_and_norms(
    model: &DecoderLm,
    tokens: &[u32],
    prompt: usize,
) -> (f64, BTreeMap<String, f64>) {
    let (loss, gradients) = loss_and_gradients(model, tokens, prompt);
    (loss, gradients.iter().map(|(name, g)| (name.clone(), norm(g))).collect())
}

/// The loss of each token after the prompt.
fn token_losses(model: &DecoderLm, tokens: &[u32], prompt: usize, device: &Device) -> Vec<f64> {
    let vocabulary = model.config().vocab_size;
    let logits = logits(model, tokens, device);
    (prompt..tokens.len())
        .map(|place| {
            let row = &logits[(place - 1) * vocabulary..place * vocabulary];
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            sum.ln() - f64::from(row[tokens[place] as usize] - max)
        })
        .collect()
}

#[test]
fn smollm2_gives_what_transformers_gives() {
    let (Some(folder), Some(json)) = (smollm2(), shared("smollm2/reference.json")) else { return };
    let tensors = Reference::read(&json.with_extension("safetensors"));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let tokens = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let device = devices().remove(0);
    let folder = ModelFolder::open(&folder).unwrap();
    let model = folder.load(&device.clone().autodiff()).unwrap();
    println!(
        "SmolLM2-135M-Instruct, f32, against transformers {}",
        json["versions"]["transformers"]
    );
    let mut holds = true;

    let plain = folder.load(&device).unwrap();
    let prompt = tensors.tokens("input_ids");
    let difference =
        largest_difference(&logits(&plain, &prompt, &device), &tensors.floats("logits"));
    holds &= line("logits, largest absolute difference", difference, 1e-3);

    let sft = &json["sft"];
    let row = tokens(&sft["input_ids"]);
    let labels = sft["labels"].as_array().unwrap();
    let prompt = labels.iter().take_while(|label| **label == -100).count();
    let (loss, norms) = loss_and_norms(&model, &row, prompt);
    let expected = sft["loss_mean"].as_f64().unwrap();
    holds &= line("mean loss, absolute difference", (loss - expected).abs(), 1e-4);
    let losses = token_losses(&plain, &row, prompt, &device);
    let expected = sft["token_losses"].as_array().unwrap();
    assert_eq!(losses.len(), expected.len() + 1 - prompt);
    let worst = losses.iter().zip(&expected[prompt - 1..]);
    let worst = worst.map(|(a, b)| (a - b.as_f64().unwrap()).abs()).fold(0.0, f64::max);
    holds &= line("loss of each token, largest absolute difference", worst, 1e-3);
    let expected = sft["grad_norms"].as_object().unwrap();
    let names: std::collections::BTreeSet<&String> = expected.keys().collect();
    assert!(norms.keys().eq(names), "the same tensors have gradients");
    let relative =
        |(name, norm): (&String, &f64)| (norm / expected[name].as_f64().unwrap() - 1.0).abs();
    let worst = norms.iter().map(relative).fold(0.0, f64::max);
    holds &= line("gradient norm of each tensor, largest relative", worst, 1e-3);
    let total = norms.values().map(|x| x * x).sum::<f64>().sqrt();
    let expected = sft["grad_norm_total"].as_f64().unwrap();
    holds &= line("gradient norm of all, relative", (total / expected - 1.0).abs(), 1e-3);

    for case in json["greedy"].as_array().unwrap() {
        let expected = tokens(&case["new_ids"]);
        let config = GenerateConfig { max_new_tokens: expected.len(), ..Default::default() };
        let ends = folder.end_tokens();
        let prompt = tokens(&case["prompt_ids"]);
        let mut answer = generate(&plain, &[prompt], &ends, &config).unwrap().remove(0).tokens;
        // Where the model ends its answer, transformers shows the end token.
        if expected.last().is_some_and(|last| ends.contains(last)) {
            answer.push(expected[expected.len() - 1]);
        }
        let margins = case["margins"].as_array().unwrap();
        let same = answer.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let margin = margins.get(same).and_then(Value::as_f64);
        println!(
            "greedy: {same} of {} tokens equal, smallest margin {:.4}",
            expected.len(),
            case["min_margin"].as_f64().unwrap()
        );
        holds &= same == expected.len() || margin.is_some_and(|margin| margin <= 0.01);
    }
    assert!(holds, "see the table above");
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures").join(name)
}

const FIXTURES: [&str; 4] = ["llama3", "llama_bf16", "qwen2", "qwen3"];

#[test]
fn small_models_of_every_kind_give_what_transformers_gives() {
    for device in devices() {
        for name in FIXTURES {
            let reference = Reference::read(&fixture(name).join("reference.safetensors"));
            let folder = ModelFolder::open(&fixture(name)).unwrap();
            let model = folder.load(&device.clone().autodiff()).unwrap();
            let plain = folder.load(&device).unwrap();
            let tokens = reference.tokens("input_ids");
            println!("{name} on {device:?}");
            let expected = reference.floats("logits");
            let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let difference = largest_difference(&logits(&plain, &tokens, &device), &expected);
            let mut holds =
                line("logits, relative to the largest", difference / f64::from(scale), 1e-5);

            let (loss, norms) = loss_and_norms(&model, &tokens, PROMPT);
            let expected = f64::from(reference.floats("loss")[0]);
            holds &= line("mean loss, relative", (loss / expected - 1.0).abs(), 1e-5);
            let losses = token_losses(&plain, &tokens, PROMPT, &device);
            let expected: Vec<f32> = reference.floats("token_losses")[PROMPT - 1..].to_vec();
            let ours: Vec<f32> = losses.iter().map(|x| *x as f32).collect();
            holds &= line("loss of each token", largest_difference(&ours, &expected), 1e-4);
            let expected =
                |name: &str| f64::from(reference.floats(&format!("grad_norm.{name}"))[0]);
            let total = f64::from(reference.floats("grad_norm_total")[0]);
            let mut worst = 0f64;
            for (name, norm) in &norms {
                // The gradient of a key's bias is 0 but for rounding: it moves all scores alike.
                let near_zero = 1e-4 * total;
                let scale = expected(name).max(near_zero);
                worst = worst.max((norm - expected(name)).abs() / scale);
            }
            let names = reference.names();
            let theirs = names.iter().filter(|name| name.starts_with("grad_norm.")).count();
            assert_eq!(theirs, norms.len());
            holds &= line("gradient norm of each tensor, relative", worst, 1e-3);

            let greedy = reference.tokens("greedy");
            let margins = reference.floats("greedy_margins");
            let config = GenerateConfig { max_new_tokens: greedy.len(), ..Default::default() };
            let answer = generate(&plain, &[tokens[..8].to_vec()], &[], &config).unwrap().remove(0);
            let same = answer.tokens.iter().zip(&greedy).take_while(|(a, b)| a == b).count();
            println!("greedy: {same} of {} tokens equal", greedy.len());
            assert!(same == greedy.len() || margins[same] < 0.01);
            assert!(holds, "{name}: see the table above");
        }
    }
}

#[test]
fn both_forms_of_a_configuration_say_the_same() {
    for name in ["llama3", "qwen2"] {
        let old = ModelFolder::open(&fixture(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let new = fixture(name).join("config_transformers5.json");
        std::fs::copy(new, folder.path().join("config.json")).unwrap();
        let new = ModelFolder::open(folder.path()).unwrap();
        assert_eq!(new.config(), old.config());
        assert_eq!(new.config().rope_scaling.is_some(), name == "llama3");
    }
}

/// Adapters that PEFT made.
fn adapters() -> Vec<(&'static str, PathBuf)> {
    FIXTURES
        .into_iter()
        .flat_map(|name| {
            ["adapter", "adapter_rslora"].map(|adapter| (name, fixture(name).join(adapter)))
        })
        .filter(|(_, folder)| folder.is_dir())
        .collect()
}

#[test]
fn adapters_of_peft_give_what_peft_gives() {
    let adapters = adapters();
    assert_eq!(adapters.len(), 2);
    for device in devices() {
        for (name, folder) in &adapters {
            let base = ModelFolder::open(&fixture(name)).unwrap();
            let reference = Reference::read(&folder.join("reference.safetensors"));
            let tokens = reference.tokens("input_ids");
            let model = base.load(&device.clone().autodiff()).unwrap();
            let model = model.with_adapter(folder).unwrap();
            let plain = base.load(&device).unwrap().with_adapter(folder).unwrap();
            println!("{} on {device:?}", folder.strip_prefix(fixture("")).unwrap().display());
            let expected = reference.floats("logits");
            let scale = f64::from(expected.iter().fold(0f32, |m, x| m.max(x.abs())));
            let difference = |model: &DecoderLm| {
                largest_difference(&logits(model, &tokens, &device), &expected) / scale
            };
            let mut holds = line("logits, relative to the largest", difference(&plain), 1e-5);
            holds &= line("logits after merging", difference(&plain.clone().merged()), 1e-5);
            let untouched = largest_difference(
                &logits(&base.load(&device).unwrap(), &tokens, &device),
                &expected,
            );
            assert!(untouched > 0.1 * scale, "the adapter does something");

            let (loss, norms) = loss_and_norms(&model, &tokens, PROMPT);
            let expected = f64::from(reference.floats("loss")[0]);
            holds &= line("mean loss, relative", (loss / expected - 1.0).abs(), 1e-5);
            // Only the adapters have gradients.
            let theirs: BTreeMap<String, f64> = reference
                .names()
                .iter()
                .filter_map(|name| Some((name, name.strip_prefix("grad_norm.")?)))
                .map(|(name, of)| (our_name(of), f64::from(reference.floats(name)[0])))
                .collect();
            assert_eq!(norms.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
            let relative = |(name, norm): (&String, &f64)| (norm / theirs[name] - 1.0).abs();
            let worst = norms.iter().map(relative).fold(0.0, f64::max);
            holds &= line("gradient norm of each tensor, relative", worst, 1e-3);
            assert!(holds, "see the table above");
        }
    }
}

/// Writes what `check_ours.py` reads, where `MIXDISTILL_PARITY_OUT` says: for each fixture the
/// folder as we write it, in several forms, and the logits that we get.
#[test]
fn folders_for_transformers_are_written() {
    let Some(out) = folder_for_transformers() else { return };
    written::write_all(&out);
}

mod written {
    use super::*;
    use crate::parity_support::{with_random_b, write_adapter, write_logits};
    use mixdistill::data::{ChatTemplate, Message, TextTokenizer};
    use mixdistill::model::{FileType, LoraConfig, SaveFolder};

    pub(super) fn write_all(out: &Path) {
        let device = devices().remove(0);
        let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
        for name in FIXTURES {
            let base = ModelFolder::open(&fixture(name)).unwrap();
            let model = base.load(&device).unwrap();
            let tokens = Reference::read(&fixture(name).join("reference.safetensors"));
            let tokens = tokens.tokens("input_ids");
            for (form, file_type, max_shard_bytes) in [
                ("f32", FileType::F32, u64::MAX),
                ("sharded", FileType::F32, 20_000),
                ("bf16", FileType::Bf16, u64::MAX),
            ] {
                let folder = out.join(format!("{name}-{form}"));
                let how = SaveFolder {
                    base: Some(&base),
                    end_tokens: &[1],
                    file_type,
                    max_shard_bytes,
                    ..SaveFolder::new(&tokenizer)
                };
                model.save(&folder, &how).unwrap();
                let read = DecoderLm::load(&folder, &device).unwrap();
                write_logits(&folder, &tokens, &logits(&read, &tokens, &device));
            }
            for (form, config) in [
                ("lora", LoraConfig { rank: 4, alpha: 8.0, ..Default::default() }),
                (
                    "rslora",
                    LoraConfig {
                        rank: 3,
                        alpha: 5.0,
                        rslora: true,
                        target_modules: [PROJECTIONS[0], PROJECTIONS[1]].into(),
                        ..Default::default()
                    },
                ),
            ] {
                let model = base.load(&device).unwrap().with_lora(&config, 1).unwrap();
                let folder = out.join(format!("{name}-{form}"));
                write_adapter(&folder, &with_random_b(model), &format!("{name}-f32"), &tokens);
            }
        }
        write_own(&out.join("own"), &device, &tokenizer);
        if let Some(folder) = smollm2() {
            write_smollm2(&folder, &out.join("smollm2"), &device);
        }
    }

    /// A model that did not come from a folder, with the built-in tokenizer.
    fn write_own(folder: &Path, device: &Device, tokenizer: &TextTokenizer) {
        let config = mixdistill::model::DecoderConfig {
            vocab_size: tokenizer.vocabulary_size(),
            initializer_range: 0.2,
            ..Default::default()
        };
        let model = config.init(3, device).unwrap();
        model.save(folder, &SaveFolder::new(tokenizer)).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        write_logits(folder, &tokens, &logits(&model, &tokens, device));
        let text = "words\n and 12 + 30 = 42 \\boxed{é}";
        let ours = serde_json::json!({"text": text, "ids": tokenizer.encode(text).unwrap()});
        std::fs::write(folder.join("ours.json"), ours.to_string()).unwrap();
    }

    fn write_smollm2(from: &Path, folder: &Path, device: &Device) {
        let base = ModelFolder::open(from).unwrap();
        let tokenizer = base.tokenizer(None).unwrap();
        let model = base.load(device).unwrap();
        let how = SaveFolder {
            base: Some(&base),
            end_tokens: &base.end_tokens(),
            ..SaveFolder::new(&tokenizer)
        };
        model.save(folder, &how).unwrap();
        let text = "The answer is 42.\n  \\boxed{42}";
        let messages = [Message::new("user", "What is 12*7?")];
        let template = ChatTemplate::from_folder(folder).unwrap().unwrap();
        let ours = serde_json::json!({
            "text": text,
            "ids": tokenizer.encode(text).unwrap(),
            "chat": {"messages": messages, "rendered": template.render(&messages, true).unwrap()},
        });
        std::fs::write(folder.join("ours.json"), ours.to_string()).unwrap();
        let tokens = tokenizer.encode_marked(&template.render(&messages, true).unwrap()).unwrap();
        write_logits(folder, &tokens, &logits(&model, &tokens, device));
    }
}

#[test]
fn twenty_steps_equal_those_of_pytorch() {
    let reference = Reference::read(&fixture("training_record.safetensors"));
    let (rows, prompts) = (reference.tokens("rows"), reference.tokens("prompts"));
    let length = rows.len() / prompts.len();
    let config = TrainConfig {
        steps: Some(20),
        batch_size: 2,
        accumulate: 2,
        learning_rate: 3e-3,
        warmup_steps: 4,
        lr_schedule: LrSchedule::Cosine,
        min_lr_ratio: 0.0,
        beta_1: 0.9,
        beta_2: 0.95,
        epsilon: 1e-5,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
        ..TrainConfig::default()
    };
    for device in devices() {
        let model = ModelFolder::open(&fixture("qwen3")).unwrap();
        let model = model.load(&device.clone().autodiff()).unwrap();
        let before = named_tensors(&model).unwrap();
        let mut learner = Learner::new(model, config.clone()).unwrap();
        let mut worst = [0f64; 3];
        for step in 0..20 {
            let rows: Vec<Row> = (4 * step..4 * step + 4)
                .map(|row| Row {
                    tokens: rows[row * length..(row + 1) * length].to_vec(),
                    prompt: prompts[row] as usize,
                    label: String::new(),
                    number: row as u64,
                    ..Row::default()
                })
                .collect();
            let report = learner.train_step(&rows, 20).unwrap();
            let pairs = [
                (report.loss, reference.doubles("losses")[step]),
                (report.gradient_norm, reference.doubles("norms")[step]),
                (report.learning_rate, reference.doubles("rates")[step]),
            ];
            for (worst, (ours, theirs)) in worst.iter_mut().zip(pairs) {
                // The last rate of the cosine is small; all are compared to the peak.
                let scale = if theirs < 3e-3 { 3e-3 } else { theirs };
                *worst = worst.max((ours - theirs).abs() / scale);
            }
        }
        println!("20 steps of AdamW against PyTorch on {device:?}");
        let mut holds = line("loss of each step, relative", worst[0], 1e-5);
        holds &= line("gradient norm of each step, relative", worst[1], 1e-4);
        holds &= line("learning rate of each step, relative to the peak", worst[2], 1e-9);
        let mut furthest = 0f64;
        let mut least_moved = f64::INFINITY;
        for (name, tensor) in named_tensors(learner.model()).unwrap() {
            let theirs = reference.floats(&name);
            let scale = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let difference = largest_difference(&tensor.values, &theirs) / f64::from(scale);
            furthest = furthest.max(difference);
            let moved = largest_difference(&before[&name].values, &theirs) / f64::from(scale);
            least_moved = least_moved.min(moved);
        }
        holds &= line("parameters after 20 steps, relative", furthest, 1e-5);
        assert!(least_moved > 1e-3, "every tensor was trained: {least_moved}");
        assert!(holds, "see the table above");
    }
}

/// So that the comparison above cannot pass by comparing nothing.
#[test]
fn a_difference_is_seen() {
    assert_eq!(largest_difference(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
    let data = TensorData::new(vec![3f32, 4.0], [2]);
    let tensor = Tensor::<1>::from_data(data, &devices()[0]);
    let values = tensor.try_into_vec_as::<f32>().unwrap();
    assert_eq!(norm(&HostTensor { shape: vec![2], values }), 5.0);
}
