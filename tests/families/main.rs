//! Every model family compared with transformers, with tiny random models (`tests/parity/families`, made by
//! `tests/parity/make_families.py`): logits, loss, all gradients, greedy tokens, packed rows, adapters, and
//! written files.

#[path = "../common/mod.rs"]
mod common;
#[path = "../parity_support/mod.rs"]
mod parity_support;
mod qwen3_5;

use burn::module::Module;
use burn::tensor::Device;
use common::{devices, generate, shaken, tiny, toy_run};
use mixdistill::context::Context;
use mixdistill::data::{Batch, Example, Row, TextTokenizer, arith};
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, FileType, GenerateConfig, HostTensor, LoraConfig,
    ModelFolder, SaveFolder,
};
use mixdistill::model::{LoadOptions, RopeType, TextModel};
use mixdistill::recipe::{RunMode, run};
use mixdistill::train::{Learner, TrainConfig, step_gradients};
use parity_support::{
    LOGITS, PROMPT, Reference, Table, folder_for_transformers, logits, logits_off, our_name,
    training, with_random_b, worst_gradient, write_adapter, write_logits,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All folders of `tests/parity/families`.
const CASES: [&str; 21] = [
    "gemma3",
    "gemma3_text",
    "granite",
    "llama_linear",
    "llama_yarn",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo2",
    "phi3",
    "phi3_longrope_long",
    "phi3_longrope_short",
    "phi3_window",
    "qwen2_window",
    "qwen2_yarn",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_yarn_attention_factor",
    "qwen3_yarn_mscale",
    "smollm3",
    "smollm3_sliding",
];
/// Those with an adapter.
const WITH_ADAPTER: [&str; 10] = [
    "gemma3_text",
    "granite",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo2",
    "phi3",
    "qwen3_5",
    "qwen3_5_text",
    "smollm3",
];
/// Tokens of the references' row.
const LENGTH: usize = 48;
/// Tokens that the greedy ones follow.
const GREEDY_PROMPT: usize = 24;
/// Where the references' row is cut for the packed one, and the prompt of each half.
const PACKED_CUT: usize = 20;
const PACKED_PROMPT: usize = 6;

const PACKED_LOSS: f64 = 1e-5;

fn family(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity/families").join(name)
}

/// A folder for rows of the references' length, which decides between LongRoPE's two lists.
fn open(folder: &Path) -> ModelFolder {
    ModelFolder::open(folder).unwrap().for_length(LENGTH, &Context::default()).unwrap()
}

#[test]
fn each_folder_is_a_case() {
    let mut folders: Vec<String> = std::fs::read_dir(family(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    folders.sort();
    assert_eq!(folders, CASES);
    let has_adapter = |name: &&str| family(name).join("adapter").is_dir();
    assert_eq!(CASES.into_iter().filter(has_adapter).collect::<Vec<_>>(), WITH_ADAPTER);
}

#[test]
fn each_family_gives_what_transformers_gives() {
    for device in devices() {
        compare(&CASES, &device);
    }
}

/// Holds these families on a device to their references.
fn compare(names: &[&str], device: &Device) {
    let mut table =
        Table::new(&format!("Families and transformers, largest differences on {device:?}"));
    for name in names {
        let reference = Reference::read(&family(name).join("reference.safetensors"));
        let folder = open(&family(name));
        let plain = folder.load(device).unwrap();
        let model = folder.load(&device.clone().autodiff()).unwrap();
        let [loss, gradients] = training(name, &model, &reference);
        table.add(
            name,
            &[
                ("logits", logits_off(&plain, &reference, device), LOGITS),
                loss,
                gradients,
                ("packed loss", packed_off(&model, &reference), PACKED_LOSS),
                ("other tokens", greedy_off(&plain, &reference), 0.0),
            ],
        );
    }
    table.show();
}

/// Of the greedy tokens, how many are not those of transformers.
fn greedy_off(model: &DecoderLm, reference: &Reference) -> f64 {
    let greedy = reference.tokens("greedy");
    let config = GenerateConfig { max_new_tokens: greedy.len(), ..Default::default() };
    let prompt = reference.tokens("input_ids")[..GREEDY_PROMPT].to_vec();
    let answer = generate(model, &[prompt], &[], &config).unwrap().remove(0).tokens;
    let same = answer.iter().zip(&greedy).take_while(|(a, b)| a == b).count();
    (greedy.len() - same) as f64
}

/// Two rows in one do not see each other, and both begin at position 0.
fn packed_off(model: &DecoderLm, reference: &Reference) -> f64 {
    let tokens = reference.tokens("input_ids");
    let (first, second) = tokens.split_at(PACKED_CUT);
    let examples = [(first, 0), (second, 1)].map(|(tokens, number)| Example {
        tokens,
        prompt: PACKED_PROMPT,
        number,
        ..Example::default()
    });
    let batch = Batch::packed(examples, 1);
    assert_eq!((batch.rows, batch.examples), (1, 2));
    let loss = step_gradients(model, &[batch]).unwrap().loss;
    (loss / f64::from(reference.floats("packed_loss")[0]) - 1.0).abs()
}

/// The published models have one form, save_pretrained writes the other.
#[test]
fn both_forms_of_a_configuration_say_the_same() {
    let mut both = 0;
    for name in CASES {
        let old = family(name).join("config_transformers4.json");
        if old.is_file() {
            let folder = tempfile::tempdir().unwrap();
            std::fs::copy(old, folder.path().join("config.json")).unwrap();
            let old = ModelFolder::open(folder.path()).unwrap();
            let new = ModelFolder::open(&family(name)).unwrap();
            assert_eq!(old.config(), new.config(), "{name}");
            both += 1;
        }
    }
    assert_eq!(both, 12);
}

#[test]
fn adapters_of_peft_give_what_peft_gives() {
    for device in devices() {
        let mut table =
            Table::new(&format!("Adapters and PEFT, largest differences on {device:?}"));
        for name in WITH_ADAPTER {
            let adapter = family(name).join("adapter");
            let reference = Reference::read(&adapter.join("reference.safetensors"));
            let base = open(&family(name));
            let plain = base.load(&device).unwrap();
            assert!(logits_off(&plain, &reference, &device) > 0.1, "the adapter does something");
            let plain = plain.with_adapter(&adapter).unwrap();
            let adapted = logits_off(&plain, &reference, &device);
            let merged = logits_off(&plain.merged(), &reference, &device);
            let model = base.load(&device.clone().autodiff()).unwrap();
            // Only the adapter has gradients.
            let model = model.with_adapter(&adapter).unwrap();
            let [loss, gradients] = training(name, &model, &reference);
            let [adapted, merged] =
                [("logits", adapted, LOGITS), ("merged logits", merged, LOGITS)];
            table.add(name, &[adapted, merged, loss, gradients]);
        }
        table.show();
    }
}

/// Writes what `check_ours.py` reads, where `MIXDISTILL_PARITY_OUT` says: each case as we write it,
/// with f32 and with bf16 weights, an adapter of ours, and the logits that we get.
#[test]
fn folders_for_transformers_are_written() {
    let Some(out) = folder_for_transformers() else { return };
    let device = devices().remove(0);
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    for name in CASES {
        let base = open(&family(name));
        let reference = Reference::read(&family(name).join("reference.safetensors"));
        let tokens = reference.tokens("input_ids");
        let as_it_is = base.load(&device).unwrap();
        for (form, model, file_type) in [
            ("f32", as_it_is.clone(), FileType::F32),
            ("bf16", as_it_is, FileType::Bf16),
            ("tuned", tuned(&base, &tokens), FileType::F32),
        ] {
            let folder = out.join(format!("{name}-{form}"));
            let how = SaveFolder {
                base: Some(&base),
                end_tokens: &[2],
                file_type,
                ..SaveFolder::new(&tokenizer)
            };
            model.save(&folder, &how).unwrap();
            let read = open(&folder).load(&device).unwrap();
            write_logits(&folder, &tokens, &logits(&read, &tokens, &device));
            let said = serde_json::json!({"class": class_of(name), "config_of": family(name)});
            std::fs::write(folder.join("ours.json"), said.to_string()).unwrap();
        }
        let model = base.load(&device).unwrap().with_lora(&adapter(), 1).unwrap();
        let folder = out.join(format!("{name}-lora"));
        // That of a text part is for the whole model, as it was read.
        let base = match class_of(name) == class_there(name) {
            true => format!("{name}-f32"),
            false => family(name).display().to_string(),
        };
        write_adapter(&folder, &with_random_b(model), &base, &tokens);
    }
}

/// The model of a folder after three steps of fine-tuning on a row.
fn tuned(base: &ModelFolder, tokens: &[u32]) -> DecoderLm {
    let row = Row { tokens: tokens.to_vec(), prompt: PROMPT, ..Row::default() };
    let config = TrainConfig { learning_rate: 1e-2, ..TrainConfig::default() };
    let model = base.load(&devices().remove(0).autodiff()).unwrap();
    let mut learner = Learner::new(model, config).unwrap();
    let losses = [(); 3].map(|()| learner.train_step(std::slice::from_ref(&row), 3).unwrap().loss);
    assert!(losses[2] < losses[0], "{losses:?}");
    learner.model().valid()
}

/// The same for models that did not come from a folder, of each family.
#[test]
fn models_of_our_own_are_written_for_transformers() {
    let Some(out) = folder_for_transformers() else { return };
    let device = devices().remove(0);
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    for architecture in Architecture::ALL {
        let config = DecoderConfig {
            vocab_size: tokenizer.vocabulary_size(),
            // Some classes know no other width of heads than this by their number.
            hidden_size: 24,
            head_dim: None,
            ..tiny(architecture)
        };
        let model = shaken(&config, &device);
        let folder = out.join(format!("own-{}", architecture.properties().model_type));
        model.save(&folder, &SaveFolder::new(&tokenizer)).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        write_logits(&folder, &tokens, &logits(&model, &tokens, &device));
        let class = serde_json::json!({"class": architecture.properties().class});
        std::fs::write(folder.join("ours.json"), class.to_string()).unwrap();
    }
}

/// The class that a folder of ours must load as: that of the text part alone.
fn class_of(name: &str) -> String {
    match class_there(name).as_str() {
        "Gemma3ForConditionalGeneration" => "Gemma3ForCausalLM".into(),
        "Mistral3ForConditionalGeneration" => "Ministral3ForCausalLM".into(),
        "Qwen3_5ForConditionalGeneration" => "Qwen3_5ForCausalLM".into(),
        class => class.into(),
    }
}

/// The class of a reference's folder.
fn class_there(name: &str) -> String {
    let config = std::fs::read_to_string(family(name).join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    config["architectures"][0].as_str().unwrap().to_owned()
}

/// An adapter on all layers.
fn adapter() -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() }
}

/// So that the comparison above cannot pass by comparing nothing.
#[test]
fn a_wrong_gradient_is_seen() {
    let reference = Reference::read(&family("phi3").join("reference.safetensors"));
    let mut ours: BTreeMap<String, HostTensor> = reference
        .names()
        .iter()
        .filter_map(|name| Some((name, name.strip_prefix("grad.")?)))
        .map(|(name, of)| {
            let (shape, values) = (reference.shape(name), reference.floats(name));
            (our_name(of), HostTensor { shape, values })
        })
        .collect();
    assert_eq!(worst_gradient(&ours, &reference).0, 0.0);
    let norms = "model.layers.1.input_layernorm.weight";
    for value in &mut ours.get_mut(norms).unwrap().values {
        *value *= 1.5;
    }
    let (error, tensor) = worst_gradient(&ours, &reference);
    assert!((error - 0.5).abs() < 1e-6, "{error}");
    assert_eq!(tensor, norms);
}

/// Fine-tuned by a run from its folder, all of its weights and with adapters; the run then answers.
#[test]
fn each_family_is_fine_tuned_from_its_folder_and_answers() {
    let device = devices().remove(0);
    let place = tempfile::tempdir().unwrap();
    let words = arith::vocabulary();
    let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
    for architecture in Architecture::ALL {
        let name = architecture.properties().model_type;
        let config =
            DecoderConfig { vocab_size: tokenizer.vocabulary_size(), ..tiny(architecture) };
        let folder = place.path().join(name);
        shaken(&config, &device).save(&folder, &SaveFolder::new(&tokenizer)).unwrap();
        for lora in [None, Some(adapter())] {
            let out = place.path().join(format!("{name}-{}", lora.is_some()));
            let mut config = toy_run(&out);
            config.base_model = Some(folder.display().to_string());
            // LoRA has the names that all families share; those of fused layers follow from them.
            config.lora = lora;
            config.data.max_length = 256;
            config.train.steps = Some(2);
            config.evaluation.questions = 2;
            config.generate.max_new_tokens = 20;
            run(&config, RunMode::New, &Context::default()).unwrap();
            let options = LoadOptions { backend: "flex".into(), ..LoadOptions::default() };
            let loaded =
                TextModel::load(&out.display().to_string(), &options, &Context::default()).unwrap();
            let text = loaded.text_interface();
            let prompt = text.template.prompt(text.tokenizer, "1 + 1?".into()).unwrap();
            let settings = GenerateConfig { max_new_tokens: 12, ..Default::default() };
            let answers = generate(&loaded.model, &[prompt], text.end_tokens, &settings).unwrap();
            assert!(!answers[0].tokens.is_empty() || !answers[0].hit_limit(), "{name}");
            assert_eq!(loaded.model.lora().is_some(), config.lora.is_some(), "{name}");
        }
    }
}

/// The decoder that a case's configuration describes after a change.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> DecoderConfig {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(family(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    ModelFolder::open(folder.path()).unwrap().config().clone()
}

/// Published folders leave out what equals the defaults of their class.
#[test]
fn what_a_configuration_leaves_out_is_what_its_class_has() {
    let config = changed("ministral3", |config| remove(config, "/rope_parameters"));
    let scaling = config.rope_scaling.unwrap();
    assert_eq!(config.rope_theta, 1e6);
    assert_eq!((scaling.rope_type, scaling.factor), (RopeType::Yarn, 16.0));
    assert_eq!(scaling.original_max_position_embeddings, 16_384);
    assert_eq!(scaling.llama_4_scaling_beta, Some(0.1));

    let config = changed("phi3_longrope_long", |config| {
        remove(config, "/original_max_position_embeddings");
        config["max_position_embeddings"] = 131_072.into();
    });
    let scaling = config.rope_scaling.unwrap();
    assert_eq!((scaling.original_max_position_embeddings, scaling.factor), (4096, 32.0));

    // Layers with a window are never scaled, whatever their base is.
    let config = changed("gemma3_text", |config| {
        config["rope_parameters"] = serde_json::json!({
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        });
    });
    assert!(config.attention(0).rope_scaling.is_none());
    assert!(config.attention(5).rope_scaling.is_some());

    let sizes = ["num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size"];
    let config = changed("smollm3", |config| {
        sizes.iter().for_each(|size| remove(config, &format!("/{size}")));
    });
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (16, 4));
    assert_eq!((config.hidden_size, config.vocab_size), (2048, 128_256));
}

/// Each setting of each family's configuration, at any depth, replaced by whatever else JSON has.
#[test]
fn whatever_a_configuration_says_it_is_a_model_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (mut models, mut errors) = (0, 0);
    for name in CASES {
        let config = std::fs::read_to_string(family(name).join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        for pointer in pointers(&config) {
            for value in others() {
                let mut changed = config.clone();
                match value {
                    Some(value) => *changed.pointer_mut(&pointer).unwrap() = value,
                    None => remove(&mut changed, &pointer),
                }
                std::fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
                match ModelFolder::open(folder.path()) {
                    Ok(folder) => {
                        let config = folder.config().clone().for_length(LENGTH);
                        config.tensor_shapes();
                        for layer in 0..config.num_hidden_layers {
                            let frequencies = config.attention(layer).rope_frequencies();
                            assert!(frequencies.iter().all(|f| f.is_finite()), "{name} {pointer}");
                        }
                        models += 1;
                    }
                    Err(error) => {
                        // It names what is wrong, and says what to do.
                        assert!(error.to_string().contains(". "), "{name} {pointer}: {error}");
                        errors += 1;
                    }
                }
            }
        }
    }
    println!("{models} models, {errors} errors");
    assert!(models > 1000 && errors > 1000);
}

/// Values that a setting may be replaced by; `None` removes it.
fn others() -> Vec<Option<Value>> {
    let values = serde_json::json!([
        null, true, false, 0, 1, 2, 3, -1, 0.5, 1e-300, 1e300, u64::MAX, 1 << 20, "", "silu",
        "yarn", [], [0], ["sliding_attention"], {}, {"rope_type": "longrope"}
    ]);
    let Value::Array(values) = values else { unreachable!() };
    std::iter::once(None).chain(values.into_iter().map(Some)).collect()
}

/// The places of all values within a value.
fn pointers(value: &Value) -> Vec<String> {
    let Value::Object(map) = value else { return vec![] };
    let below = |(key, value): (&String, &Value)| {
        let here = format!("/{key}");
        let deeper = pointers(value).into_iter().map(|rest| format!("{here}{rest}"));
        std::iter::once(here.clone()).chain(deeper).collect::<Vec<_>>()
    };
    map.iter().flat_map(below).collect()
}

fn remove(value: &mut Value, pointer: &str) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
}
