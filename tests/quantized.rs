//! Promise: a model with frozen weights in bf16, int8, or NF4 has the losses, adapter gradients, and answers of
//! the model with the decoded weights.

mod common;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use common::{adapter_of, devices, generate, relative_error, rows, shaken, tiny};
use mixdistill::context::Context;
use mixdistill::data::{Batch, TextTokenizer};
use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderLm, GenerateConfig, LoraConfig, ModelFolder,
    SaveFolder, StepOptions, named_tensors, with_named_tensors,
};
use mixdistill::ops::EncodedWeight;
use mixdistill::recipe::{self, RunConfig, RunMode};
use mixdistill::train::{Learner, TrainConfig, named_gradients, step_gradients_with};

/// How bases are stored.
fn kinds() -> Vec<BaseWeights> {
    let of = |base_type, embeddings, double_quantization| BaseWeights {
        base_type,
        embeddings,
        double_quantization,
    };
    vec![
        of(BaseType::Bf16, None, false),
        of(BaseType::Int8, Some(BaseType::Int8), false),
        of(BaseType::Nf4, None, true),
        of(BaseType::Nf4, Some(BaseType::Int8), false),
        of(BaseType::F32, Some(BaseType::Int8), false),
        of(BaseType::Int8, Some(BaseType::F32), false),
    ]
}

/// Whether a device stores it.
fn is_stored(base: &BaseWeights, device: &Device) -> bool {
    let short = [base.base_type, base.embedding_type()].contains(&BaseType::Bf16);
    !short || device.supports_dtype(DType::BF16)
}

/// The model whose weights are the numbers that codes stand for.
fn decoded(model: &DecoderLm, base: &BaseWeights) -> DecoderLm {
    let device = model.device();
    let mut tensors = named_tensors(model).unwrap();
    for (name, tensor) in &mut tensors {
        let [rows, columns] = tensor.shape[..] else { continue };
        let is_embedding = name.contains("embed_tokens") || name.contains("lm_head");
        let kind = if is_embedding { base.embedding_type() } else { base.base_type };
        let size = [rows, columns];
        let encoded = match kind {
            BaseType::F32 => continue,
            BaseType::Bf16 => {
                let short = |value: &mut f32| *value = half::bf16::from_f32(*value).to_f32();
                tensor.values.iter_mut().for_each(short);
                continue;
            }
            BaseType::Int8 => EncodedWeight::int8(&tensor.values, size, &device),
            BaseType::Nf4 => {
                EncodedWeight::nf4(&tensor.values, size, base.double_quantization, &device)
            }
        };
        tensor.values = encoded.decoded().try_into_vec_as::<f32>().unwrap();
    }
    with_named_tensors(model.clone(), &mut |name| tensors.remove(name)).unwrap()
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, dropout: 0.1, ..LoraConfig::default() }
}

#[test]
fn a_model_and_its_adapters_compute_as_on_the_decoded_weights() {
    for device in devices() {
        for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Phi3] {
            for base in kinds().into_iter().filter(|base| is_stored(base, &device)) {
                let what = format!("{architecture:?} {base:?}");
                let model = shaken(&tiny(architecture), &device.clone().autodiff());
                let batch = [Batch::new(common::examples(&rows(&[(9, 3), (14, 5)])), 1)];
                let [found, expected] =
                    [model.clone().with_base_weights(&base).unwrap(), decoded(&model, &base)].map(
                        |model| {
                            let model = model.with_lora(&lora(), 7).unwrap();
                            // Off their beginning.
                            let settings = TrainConfig {
                                learning_rate: 0.1,
                                warmup_steps: 0,
                                ..TrainConfig::default()
                            };
                            let mut learner = Learner::new(model, settings).unwrap();
                            learner.train_step(&rows(&[(9, 3), (14, 5)]), 1).unwrap();
                            let model = learner.into_model();
                            let options = StepOptions {
                                activation_checkpointing: base.base_type == BaseType::Nf4,
                                ..StepOptions::default()
                            };
                            let step =
                                step_gradients_with(&model, &batch, &options, &mut |_| Ok(()))
                                    .unwrap();
                            let gradients = named_gradients(&model, &step.gradients).unwrap();
                            let config =
                                GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
                            let prompts = [vec![1, 2, 3], vec![4, 5, 6, 7]];
                            let answers =
                                generate(&model.valid(), &prompts, &[22], &config).unwrap();
                            let answers: Vec<Vec<u32>> =
                                answers.into_iter().map(|a| a.tokens).collect();
                            (step.loss, gradients, answers)
                        },
                    );
                assert!((found.0 - expected.0).abs() < 1e-5, "{what}: {} {}", found.0, expected.0);
                assert!(found.1.keys().eq(expected.1.keys()));
                for (name, gradient) in &found.1 {
                    let off = relative_error(&gradient.values, &expected.1[name].values);
                    assert!(off < 1e-3, "{what} {name}: {off:e}");
                }
                assert_eq!(found.2, expected.2, "{what}");
            }
        }
    }
}

/// DoRA takes the lengths of the stored numbers, and modules that are trained as a whole begin with them.
#[test]
fn adapters_of_every_kind_compute_as_on_the_decoded_weights() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let kinds_of_lora = [
        LoraConfig { use_dora: true, ..lora() },
        LoraConfig {
            modules_to_save: names(&["embed_tokens", "lm_head", "o_proj"]),
            rank_pattern: [("down_proj", 5)].into(),
            ..lora()
        },
        LoraConfig {
            modules_to_save: names(&["lm_head"]),
            ensure_weight_tying: false,
            target_modules: ["v_proj"].into(),
            lora_bias: true,
            ..lora()
        },
    ];
    let place = tempfile::tempdir().unwrap();
    for device in devices() {
        for architecture in [Architecture::Llama, Architecture::Qwen2] {
            for base in kinds().into_iter().filter(|base| is_stored(base, &device)) {
                for (number, config) in kinds_of_lora.iter().enumerate() {
                    let what = format!("{architecture:?} {base:?} {number}");
                    let model = shaken(&tiny(architecture), &device.clone().autodiff());
                    let stored = || model.clone().with_base_weights(&base).unwrap();
                    let both = [stored(), decoded(&model, &base)].map(|model| {
                        let model = model.with_lora(config, 7).unwrap();
                        let settings = TrainConfig {
                            learning_rate: 0.02,
                            warmup_steps: 0,
                            ..TrainConfig::default()
                        };
                        let mut learner = Learner::new(model, settings).unwrap();
                        let losses: Vec<f64> = (0..3)
                            .map(|_| learner.train_step(&rows(&[(9, 3), (14, 5)]), 3).unwrap().loss)
                            .collect();
                        (losses, learner.into_model())
                    });
                    let [(found, model_here), (expected, _)] = both;
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 2e-3, "{what}: {found} {expected}");
                    }
                    // Read again beside the same stored weights, and merged.
                    let folder = place.path().join("adapter");
                    let _ = std::fs::remove_dir_all(&folder);
                    model_here.save_adapter(&folder, &adapter_of("base")).unwrap();
                    let logits = |model: &DecoderLm| {
                        let tokens = common::ids(&[1, 2, 3, 4, 5], [1, 5], &device);
                        model.clone().valid().logits(tokens).try_into_vec_as::<f32>().unwrap()
                    };
                    let read = stored().with_adapter(&folder).unwrap();
                    assert_eq!(logits(&read), logits(&model_here), "{what}");
                    let off = relative_error(&logits(&read.clone().merged()), &logits(&read));
                    assert!(off < 1e-4, "{what}: {off:e}");
                }
            }
        }
    }
}

/// A folder with a tiny model.
fn folder(architecture: Architecture, at: &std::path::Path) {
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let mut config = tiny(architecture);
    config.vocab_size = tokenizer.vocabulary_size();
    let model = shaken(&config, &devices()[0]);
    model.save(at, &SaveFolder::new(&tokenizer)).unwrap();
}

#[test]
fn a_folder_is_stored_while_it_is_read_and_adapters_fit_every_type() {
    let place = tempfile::tempdir().unwrap();
    let (path, adapter) = (place.path().join("model"), place.path().join("adapter"));
    for architecture in [Architecture::Llama, Architecture::Qwen2] {
        let _ = std::fs::remove_dir_all(place.path().join("model"));
        let _ = std::fs::remove_dir_all(place.path().join("adapter"));
        folder(architecture, &path);
        let device = &devices()[0];
        let open = |base: BaseWeights| {
            ModelFolder::open(&path).unwrap().with_base_weights(base).unwrap().load(device).unwrap()
        };
        let plain = open(BaseWeights::default());
        for base in kinds() {
            let read = open(base);
            // Of the same weights, whatever they are stored in.
            assert_eq!(read.fingerprint().unwrap(), plain.fingerprint().unwrap(), "{base:?}");
            assert_eq!(read.parameter_count(), plain.parameter_count());
            let logits = |model: &DecoderLm| {
                let tokens = common::ids(&[1, 2, 3, 4, 5], [1, 5], device);
                model.logits(tokens).try_into_vec_as::<f32>().unwrap()
            };
            let expected = logits(&plain.clone().with_base_weights(&base).unwrap());
            assert_eq!(logits(&read), expected, "{base:?}");
            assert!(relative_error(&logits(&read), &logits(&plain)) > 1e-4, "it does something");
        }
        let nf4 = BaseWeights { base_type: BaseType::Nf4, ..BaseWeights::default() };
        let model = open(nf4).with_lora(&lora(), 1).unwrap();
        model.save_adapter(&adapter, &adapter_of("base")).unwrap();
        let refused = model.save(&place.path().join("whole"), &whole()).unwrap_err().to_string();
        assert!(refused.contains("weights are quantized"), "{refused}");
        for base in kinds() {
            open(base).with_adapter(&adapter).unwrap();
        }
        open(BaseWeights::default()).with_adapter(&adapter).unwrap();
    }
}

fn whole() -> SaveFolder<'static> {
    static TOKENIZER: std::sync::OnceLock<TextTokenizer> = std::sync::OnceLock::new();
    SaveFolder::new(TOKENIZER.get_or_init(|| TextTokenizer::builtin([" word"]).unwrap()))
}

#[test]
fn merging_on_codes_adds_to_the_numbers_that_they_stand_for() {
    let device = &devices()[0];
    let model = shaken(&tiny(Architecture::Qwen2), device);
    for base in kinds() {
        let adapted = |model: DecoderLm| model.with_lora(&lora(), 1).unwrap().merged();
        let found = named_tensors(&adapted(model.clone().with_base_weights(&base).unwrap()));
        let expected = named_tensors(&adapted(decoded(&model, &base))).unwrap();
        for (name, tensor) in found.unwrap() {
            let off = relative_error(&tensor.values, &expected[&name].values);
            assert!(off < 1e-6, "{base:?} {name}: {off:e}");
        }
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let refused = |base: BaseWeights| base.validate().unwrap_err().to_string();
    let nf4 = BaseWeights { base_type: BaseType::Nf4, ..BaseWeights::default() };
    let error = refused(BaseWeights { embeddings: Some(BaseType::Nf4), ..nf4 });
    assert!(error.contains("base.embeddings"), "{error}");
    let int8 = BaseWeights { base_type: BaseType::Int8, ..BaseWeights::default() };
    let error = refused(BaseWeights { double_quantization: true, ..int8 });
    assert!(error.contains("base.double_quantization"), "{error}");
    let mut config = mixdistill::recipe::RunConfig::fine_tune("somewhere");
    config.base = nf4;
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("base.type") && error.contains("adapters"), "{error}");
}

/// A run of the toy corpus whose adapters are trained beside a stored base.
fn stored_run(base_model: &std::path::Path, out: &std::path::Path, base: BaseWeights) -> RunConfig {
    let mut config = RunConfig::fine_tune(base_model.to_string_lossy()).with_lora(lora());
    config.out = out.to_owned();
    config.base = base;
    config.data.toy_problems = 40;
    config.data.toy_test_problems = 8;
    config.data.max_length = 128;
    config.train.steps = Some(6);
    config.train.checkpoint_every = 3;
    config.train.learning_rate = 1e-2;
    config
}

#[test]
fn a_run_on_a_stored_base_goes_on_with_the_same_bits_and_merges_into_the_original_weights() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let mut toy = common::toy_run(&path("toy"));
    toy.train.steps = Some(8);
    toy.evaluation.questions = 0;
    recipe::run(&toy, RunMode::New, &Context::default()).unwrap();
    let base_model = path("toy").join("model");
    let nf4 = BaseWeights { base_type: BaseType::Nf4, ..BaseWeights::default() };
    let whole = stored_run(&base_model, &path("whole"), nf4);
    recipe::run(&whole, RunMode::New, &Context::default()).unwrap();

    // The same, resumed from its third step.
    let mut halved = stored_run(&base_model, &path("halved"), nf4);
    halved.train.keep_checkpoints = 9;
    recipe::run(&halved, RunMode::New, &Context::default()).unwrap();
    let checkpoints = path("halved").join("checkpoints");
    let mut steps: Vec<_> =
        std::fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    steps.sort();
    assert!(steps.len() > 1, "{steps:?}");
    std::fs::remove_dir_all(steps.last().unwrap()).unwrap();
    for part in ["summary.json", "adapter"] {
        let part = path("halved").join(part);
        let _ = std::fs::remove_file(&part);
        let _ = std::fs::remove_dir_all(&part);
    }
    recipe::run(&halved, RunMode::Resume, &Context::default()).unwrap();
    let adapter =
        |run: &str| std::fs::read(path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("halved"), "a resumed run has other bits");

    // Another type is another training.
    let other = RunConfig { base: BaseWeights::default(), ..halved.clone() };
    std::fs::remove_file(path("halved").join("summary.json")).unwrap();
    let error = recipe::run(&other, RunMode::Resume, &Context::default()).unwrap_err().to_string();
    assert!(error.contains("base"), "{error}");

    let merged = |out: &str| {
        let out = path(out);
        let output = common::command("merge")
            .args(["--model", &path("whole").to_string_lossy(), "--json"])
            .args(["--out", &out.to_string_lossy()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let result = merged("merged");
    let losses = result["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 2, "{result}");
    for line in losses {
        let [before, after] = ["before", "after"].map(|key| line[key].as_f64().unwrap());
        assert!(before.is_finite() && before != after && (before - after).abs() < 1.0, "{line}");
    }
    // The original weights, not those that the codes stand for.
    let original = ModelFolder::open(&base_model).unwrap().load(&devices()[0]).unwrap();
    let adapted = original.with_adapter(&path("whole").join("adapter")).unwrap().merged();
    let written = ModelFolder::open(&path("merged")).unwrap().load(&devices()[0]).unwrap();
    assert_eq!(named_tensors(&written).unwrap(), named_tensors(&adapted).unwrap());
}

#[test]
fn the_program_answers_on_stored_weights() {
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("model");
    folder(Architecture::Llama, &model);
    for (kind, embeddings) in [("bf16", "bf16"), ("int8", "int8"), ("nf4", "f32")] {
        let output = common::command("generate")
            .args(["--model", &model.to_string_lossy(), "--base-type", kind])
            .args([
                "--embedding-type",
                embeddings,
                "--max-new-tokens",
                "4",
                "--raw",
                "--prompt",
                " word",
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = common::command("generate")
        .args(["--model", &model.to_string_lossy(), "--base-type", "int3", "--prompt", " word"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
