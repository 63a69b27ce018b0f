//! Promise: a model whose frozen weights are stored in bf16, int8 or NF4 is the model on the numbers that
//! these stand for: its losses, the gradients of its adapters, its answers.

mod common;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use common::{adapter_of, devices, generate, relative_error, rows, shaken, tiny};
use mixdistill::data::{Batch, TextTokenizer};
use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderLm, GenerateConfig, LoraConfig, ModelFolder,
    SaveFolder, named_tensors, with_named_tensors,
};
use mixdistill::ops::EncodedWeight;
use mixdistill::train::{Learner, TrainConfig, named_gradients, step_gradients};

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
    LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() }
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
                            let step = step_gradients(&model, &batch).unwrap();
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
        assert!(refused.contains("stored in codes"), "{refused}");
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
