//! Promise: all supported kinds of PEFT adapters compute, train, merge, and are written as in PEFT
//! (`tests/parity/adapters`, made by `tests/parity/make_adapters.py`). Errors name unsupported settings.

#[path = "../common/mod.rs"]
mod common;
#[path = "../parity_support/mod.rs"]
mod parity_support;

mod hostile;
mod settings;
mod training;

use burn::module::Module;
use burn::tensor::Device;
use common::{adapter_of, devices, generate, ids, relative_error, rows, shaken, tiny};
use mixdistill::context::Context;
use mixdistill::data::{Batch, TextTokenizer};
use mixdistill::model::{
    Architecture, DecoderLm, FileType, GenerateConfig, LoraConfig, ModelFolder, ModuleNames,
    SaveFolder, StepOptions, named_tensors, with_named_tensors,
};
use mixdistill::recipe::{self, RunConfig, RunMode};
use mixdistill::settings::Layers;
use mixdistill::train::{
    Learner, TrainConfig, named_gradients, step_gradients, step_gradients_with,
};
use parity_support::{
    LOGITS, Reference, Table, folder_for_transformers, largest_difference, logits, logits_off,
    training, write_adapter, write_logits,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// All folders of `tests/parity/adapters`.
const CASES: [&str; 12] = [
    "dora_all_linear",
    "dora_rslora",
    "full_paths",
    "part",
    "patterns",
    "regex_bias",
    "saved",
    "saved_both",
    "saved_embedding",
    "saved_head",
    "saved_tied",
    "stored_embeddings",
];

fn parity(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn case(name: &str) -> PathBuf {
    parity("adapters").join(name)
}

fn reference(name: &str) -> Reference {
    Reference::read(&case(name).join("reference.safetensors"))
}

fn base_folder(name: &str) -> PathBuf {
    parity(std::fs::read_to_string(case(name).join("base.txt")).unwrap().trim())
}

fn base(name: &str) -> ModelFolder {
    ModelFolder::open(&base_folder(name)).unwrap()
}

/// A case's model with its adapter.
fn adapted(name: &str, device: &Device) -> DecoderLm {
    base(name).load(device).unwrap().with_adapter(&case(name)).unwrap()
}

#[test]
fn each_folder_is_a_case() {
    let folders = std::fs::read_dir(case("")).unwrap().map(|entry| entry.unwrap().path());
    let folders = folders.filter(|path| path.is_dir());
    let mut names: Vec<String> =
        folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, CASES);
}

#[test]
fn each_kind_of_adapter_gives_what_peft_gives() {
    for device in devices() {
        let mut table =
            Table::new(&format!("Kinds of adapters and PEFT, largest differences on {device:?}"));
        for name in CASES {
            let reference = reference(name);
            let plain = base(name).load(&device).unwrap();
            assert!(logits_off(&plain, &reference, &device) > 0.1, "{name} does something");
            let plain = adapted(name, &device);
            let found = logits_off(&plain, &reference, &device);
            let merged = logits(&plain.merged(), &reference.tokens("input_ids"), &device);
            let merged = largest_difference(&merged, &reference.floats("merged_logits"));
            // What PEFT trains has gradients, and nothing else.
            let model = adapted(name, &device.clone().autodiff());
            let [loss, gradients] = training(name, &model, &reference);
            table.add(
                name,
                &[("logits", found, LOGITS), ("merged logits", merged, LOGITS), loss, gradients],
            );
        }
        table.show();
    }
}

/// The largest relative difference of two models' gradients by tensor.
fn gradients_off(model: &DecoderLm, options: [&StepOptions; 2]) -> f64 {
    let batch = [Batch::new(common::examples(&rows(&[(9, 3), (14, 5)])), 1)];
    let [one, other] = options.map(|options| {
        let step = step_gradients_with(model, &batch, options, &mut |_| Ok(())).unwrap();
        (step.loss, named_gradients(model, &step.gradients).unwrap())
    });
    assert!((one.0 - other.0).abs() < 1e-6, "{} {}", one.0, other.0);
    assert!(one.1.keys().eq(other.1.keys()) && !one.1.is_empty());
    let off = |name: &String| relative_error(&one.1[name].values, &other.1[name].values);
    one.1.keys().map(off).fold(0.0, f64::max)
}

#[test]
fn activation_checkpointing_changes_no_gradient_of_any_kind() {
    let device = devices().remove(0).autodiff();
    let again = StepOptions { activation_checkpointing: true, ..StepOptions::default() };
    for name in CASES {
        let model = adapted(name, &device);
        let off = gradients_off(&model, [&StepOptions::default(), &again]);
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}

/// The likeliest tokens after a prompt, each from the whole row.
fn greedy(model: &DecoderLm, prompt: &[u32], count: usize, device: &Device) -> Vec<u32> {
    let mut row = prompt.to_vec();
    for _ in 0..count {
        let logits = model.logits(ids(&row, [1, row.len()], device));
        let [_, length, vocabulary] = logits.dims();
        let last = logits.narrow(1, length - 1, 1).try_into_vec_as::<f32>().unwrap();
        let best = (0..vocabulary).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        row.push(best as u32);
    }
    row.split_off(prompt.len())
}

#[test]
fn a_cache_gives_the_tokens_of_whole_rows_with_any_kind() {
    let device = devices().remove(0);
    for name in CASES {
        let model = adapted(name, &device);
        let prompt = reference(name).tokens("input_ids")[..9].to_vec();
        let settings = GenerateConfig { max_new_tokens: 12, ..GenerateConfig::default() };
        let answers = generate(&model, std::slice::from_ref(&prompt), &[], &settings).unwrap();
        assert_eq!(answers[0].tokens, greedy(&model, &prompt, 12, &device), "{name}");
    }
}

#[test]
fn an_adapter_of_any_kind_is_written_as_it_was_read() {
    let device = devices().remove(0);
    let place = tempfile::tempdir().unwrap();
    for name in CASES {
        let model = adapted(name, &device);
        let folder = place.path().join(name);
        model.save_adapter(&folder, &adapter_of("base")).unwrap();
        let again = base(name).load(&device).unwrap().with_adapter(&folder).unwrap();
        assert!(named_tensors(&again).unwrap() == named_tensors(&model).unwrap(), "{name}");
        let names = |folder: &Path| {
            let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut tensors: Vec<(String, Vec<usize>)> =
                file.tensors().into_iter().map(|(n, t)| (n, t.shape().to_vec())).collect();
            tensors.sort();
            tensors
        };
        assert_eq!(names(&folder), names(&case(name)), "{name}");
        // Another base's weights are seen, whatever the adapter holds in place of some of them.
        let other = base(name).config().init(99, &device).unwrap();
        let error = other.with_adapter(&folder).unwrap_err().to_string();
        assert!(error.contains("base model with other weights"), "{name}: {error}");
    }
}

/// Settings of each kind.
fn kinds() -> Vec<(&'static str, LoraConfig)> {
    let usual = || LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    vec![
        (
            "patterns",
            LoraConfig {
                rank_pattern: [("^model.layers.1.mlp.up_proj", 5), ("q_proj", 2)].into(),
                alpha_pattern: [("down_proj", 1.5)].into(),
                layers_to_transform: vec![1],
                layers_pattern: names(&["layers"]),
                exclude_modules: ["k_proj"].into(),
                ..usual()
            },
        ),
        (
            "paths",
            LoraConfig {
                target_modules: ["model.layers.0.self_attn.o_proj", "1.mlp.down_proj"].into(),
                ..usual()
            },
        ),
        (
            "regex_bias",
            LoraConfig {
                target_modules: r"model\.layers\.(?!1)\d\.self_attn\.[qkv]_proj".into(),
                lora_bias: true,
                ..usual()
            },
        ),
        ("dora", LoraConfig { use_dora: true, target_modules: "all-linear".into(), ..usual() }),
        ("dora_rslora", LoraConfig { use_dora: true, rslora: true, ..usual() }),
        (
            "saved",
            LoraConfig {
                modules_to_save: names(&["embed_tokens", "lm_head", "model.norm", "0.mlp.up_proj"]),
                ..usual()
            },
        ),
        (
            "saved_apart",
            LoraConfig {
                modules_to_save: names(&["lm_head"]),
                ensure_weight_tying: false,
                ..usual()
            },
        ),
    ]
}

/// The same model with its adapters, and what is trained beside them, off their beginning.
fn moved(model: &DecoderLm) -> DecoderLm {
    let mut tensors = named_tensors(model).unwrap();
    let trained: Vec<String> = trained_names(model);
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| trained.contains(name)) {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            let by = ((i * 7 + name.len()) % 11) as f32 / 20.0 - 0.25;
            *value += if name.contains("lora_magnitude") { *value * by } else { by * 0.5 };
        }
    }
    with_named_tensors(model.clone(), &mut |name| tensors.remove(name)).unwrap()
}

/// The names of a model's tensors that have gradients.
fn trained_names(model: &DecoderLm) -> Vec<String> {
    let batch = [Batch::new(common::examples(&rows(&[(9, 3)])), 1)];
    let step = step_gradients(model, &batch).unwrap();
    named_gradients(model, &step.gradients).unwrap().into_keys().collect()
}

fn new_logits(model: &DecoderLm) -> Vec<f32> {
    let device = devices().remove(0);
    let tokens: Vec<u32> = (0..12).map(|i| i * 5 % 23).collect();
    logits(&model.clone().valid(), &tokens, &device)
}

/// Writes what `check_ours.py` reads, where `MIXDISTILL_PARITY_OUT` says: adapters of each kind, as they
/// were read and of our own, and merged models.
#[test]
fn adapters_for_peft_are_written() {
    let Some(out) = folder_for_transformers() else { return };
    let device = devices().remove(0);
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    for name in CASES {
        let tokens = reference(name).tokens("input_ids");
        let folder = out.join(format!("adapter-{name}"));
        let of = base_folder(name).display().to_string();
        let model = adapted(name, &device);
        write_adapter(&folder, &model, &of, &tokens);
        let merged = out.join(format!("adapter-{name}-merged"));
        let how = SaveFolder {
            base: Some(&base(name)),
            end_tokens: &[2],
            file_type: FileType::F32,
            ..SaveFolder::new(&tokenizer)
        };
        let model = model.merged();
        model.save(&merged, &how).unwrap();
        write_logits(&merged, &tokens, &logits(&model, &tokens, &device));
        std::fs::remove_file(merged.join("tokenizer.json")).ok();
    }
    for of in ["qwen2_window", "olmo2", "mistral3", "phi3"] {
        let base = ModelFolder::open(&parity("families").join(of)).unwrap();
        for (kind, mut config) in kinds() {
            let is_fused = of == "phi3";
            let is_part = of == "mistral3";
            if (is_fused && ["patterns", "regex_bias", "saved"].contains(&kind))
                || (of != "qwen2_window" && kind == "regex_bias")
            {
                continue;
            }
            if is_part && let ModuleNames::List(names) = &mut config.target_modules {
                // A whole path is as in the whole model, or as in its text part.
                let whole =
                    |name: &String| name.replace("model.layers.0", "model.language_model.layers.0");
                *names = names.iter().map(whole).collect();
            }
            let model = base.load(&device.clone().autodiff()).unwrap();
            let model = moved(&model.with_lora(&config, 1).unwrap()).valid();
            let tokens: Vec<u32> = (0..24).map(|i| 3 + i * 7 % 100).collect();
            let folder = out.join(format!("kind-{of}-{kind}"));
            let path = parity("families").join(of).display().to_string();
            write_adapter(&folder, &model, &path, &tokens);
        }
    }
}
