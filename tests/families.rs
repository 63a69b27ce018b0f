//! Every family of models against transformers, on tiny random models (`tests/parity/families`,
//! made by `tests/parity/make_families.py`): logits, loss, all gradients, greedy tokens, packed
//! rows, adapters, and what is written.

mod common;
mod parity_support;

use burn::module::Module;
use burn::tensor::Device;
use common::{devices, generate, shaken, tiny};
use mixdistill::context::Context;
use mixdistill::data::{Batch, Example, Row, TextTokenizer};
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, FileType, GenerateConfig, HostTensor, LoraConfig,
    ModelFolder, SaveFolder,
};
use mixdistill::train::{Learner, TrainConfig, step_gradients};
use parity_support::{
    PROMPT, Reference, largest_difference, line, logits, loss_and_gradients, norm, norm_of,
    our_name, with_random_b, write_adapter, write_logits,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All folders of `tests/parity/families`.
const CASES: [&str; 18] = [
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
    "qwen2_yarn",
    "qwen3_yarn_attention_factor",
    "qwen3_yarn_mscale",
    "smollm3",
    "smollm3_sliding",
];
/// Those with an adapter.
const WITH_ADAPTER: [&str; 7] =
    ["gemma3_text", "granite", "ministral3", "mistral", "olmo2", "phi3", "smollm3"];
/// Tokens of the references' row.
const LENGTH: usize = 48;
/// Tokens that the greedy ones follow.
const GREEDY_PROMPT: usize = 24;
/// Where the references' row is cut for the packed one, and the prompt of each half.
const PACKED_CUT: usize = 20;
const PACKED_PROMPT: usize = 6;

const LOGITS: f64 = 1e-3;
const LOSS: f64 = 1e-4;
const PACKED_LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-3;

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
    let mut holds = true;
    for device in devices() {
        println!("on {device:?}");
        for name in CASES {
            let reference = Reference::read(&family(name).join("reference.safetensors"));
            let folder = open(&family(name));
            let plain = folder.load(&device).unwrap();
            holds &= logits_hold(name, &plain, &reference, &device);
            holds &= greedy_holds(name, &plain, &reference);
            let model = folder.load(&device.clone().autodiff()).unwrap();
            holds &= training_holds(name, &model, &reference);
            holds &= packing_holds(name, &model, &reference);
        }
    }
    assert!(holds, "see the table above");
}

fn logits_hold(what: &str, model: &DecoderLm, reference: &Reference, device: &Device) -> bool {
    let ours = logits(model, &reference.tokens("input_ids"), device);
    let difference = largest_difference(&ours, &reference.floats("logits"));
    line(&format!("{what}: logits"), difference, LOGITS)
}

fn training_holds(what: &str, model: &DecoderLm, reference: &Reference) -> bool {
    let tokens = reference.tokens("input_ids");
    let (loss, gradients) = loss_and_gradients(model, &tokens, PROMPT);
    let difference = (loss - f64::from(reference.floats("loss")[0])).abs();
    let mut holds = line(&format!("{what}: loss"), difference, LOSS);
    let (error, tensor) = worst_gradient(&gradients, reference);
    let gradient = line(&format!("{what}: gradients"), error, GRADIENT);
    if !gradient {
        println!("the gradient of {tensor} is the furthest");
    }
    holds &= gradient;
    holds
}

/// The largest relative error of a tensor's gradient, and that tensor. Both sides must have
/// gradients of the same tensors.
fn worst_gradient(ours: &BTreeMap<String, HostTensor>, reference: &Reference) -> (f64, String) {
    let names = reference.names();
    let theirs: BTreeMap<&str, &str> = names
        .iter()
        .filter_map(|name| Some((our_name(name.strip_prefix("grad.")?), name.as_str())))
        .collect();
    let our_names: Vec<&str> = ours.keys().map(String::as_str).collect();
    assert_eq!(our_names, theirs.keys().copied().collect::<Vec<_>>());
    let gradients: BTreeMap<&str, Vec<f32>> =
        theirs.iter().map(|(name, theirs)| (*name, reference.floats(theirs))).collect();
    let total = norm_of(gradients.values().flatten().copied());
    // Some are 0 but for rounding: a key's bias moves all scores alike.
    let near_zero = 1e-4 * total;
    ours.iter()
        .map(|(name, ours)| {
            assert_eq!(ours.shape, reference.shape(theirs[name.as_str()]), "{name}");
            let theirs = &gradients[name.as_str()];
            assert!(norm(ours).is_finite(), "{name}");
            let difference = norm_of(ours.values.iter().zip(theirs).map(|(a, b)| a - b));
            (difference / norm_of(theirs.iter().copied()).max(near_zero), name.clone())
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
}

fn greedy_holds(what: &str, model: &DecoderLm, reference: &Reference) -> bool {
    let greedy = reference.tokens("greedy");
    let config = GenerateConfig { max_new_tokens: greedy.len(), ..Default::default() };
    let prompt = reference.tokens("input_ids")[..GREEDY_PROMPT].to_vec();
    let answer = generate(model, &[prompt], &[], &config).unwrap().remove(0).tokens;
    let same = answer.iter().zip(&greedy).take_while(|(a, b)| a == b).count();
    line(&format!("{what}: greedy tokens that differ"), (greedy.len() - same) as f64, 0.0)
}

/// Two rows in one do not see each other, and both begin at position 0.
fn packing_holds(what: &str, model: &DecoderLm, reference: &Reference) -> bool {
    let tokens = reference.tokens("input_ids");
    let (first, second) = tokens.split_at(PACKED_CUT);
    let examples = [(first, 0), (second, 1)].map(|(tokens, number)| Example {
        tokens,
        prompt: PACKED_PROMPT,
        number,
        teacher: None,
    });
    let batch = Batch::packed(examples, 1);
    assert_eq!((batch.rows, batch.examples), (1, 2));
    let loss = step_gradients(model, &[batch]).unwrap().loss;
    let expected = f64::from(reference.floats("packed_loss")[0]);
    line(&format!("{what}: loss of a packed row"), (loss / expected - 1.0).abs(), PACKED_LOSS)
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
    assert_eq!(both, 10);
}

#[test]
fn adapters_of_peft_give_what_peft_gives() {
    let mut holds = true;
    for device in devices() {
        println!("on {device:?}");
        for name in WITH_ADAPTER {
            let adapter = family(name).join("adapter");
            let reference = Reference::read(&adapter.join("reference.safetensors"));
            let base = open(&family(name));
            let plain = base.load(&device).unwrap();
            let untouched = logits(&plain, &reference.tokens("input_ids"), &device);
            let moved = largest_difference(&untouched, &reference.floats("logits"));
            assert!(moved > 0.1, "the adapter does something");

            let plain = plain.with_adapter(&adapter).unwrap();
            holds &= logits_hold(name, &plain, &reference, &device);
            let merged = format!("{name}, merged");
            holds &= logits_hold(&merged, &plain.merged(), &reference, &device);
            let model = base.load(&device.clone().autodiff()).unwrap();
            // Only the adapter has gradients.
            let model = model.with_adapter(&adapter).unwrap();
            holds &= training_holds(name, &model, &reference);
        }
    }
    assert!(holds, "see the table above");
}

/// Writes what `check_ours.py` reads, where `MIXDISTILL_PARITY_OUT` says: each case as we write it,
/// with f32 and with bf16 weights, an adapter of ours, and the logits that we get.
#[test]
fn folders_for_transformers_are_written() {
    let Some(out) = std::env::var_os("MIXDISTILL_PARITY_OUT").map(PathBuf::from) else {
        eprintln!("skipped: MIXDISTILL_PARITY_OUT does not name a folder");
        return;
    };
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
        write_adapter(&folder, &with_random_b(model), &format!("{name}-f32"), &tokens);
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
    let Some(out) = std::env::var_os("MIXDISTILL_PARITY_OUT").map(PathBuf::from) else {
        eprintln!("skipped: MIXDISTILL_PARITY_OUT does not name a folder");
        return;
    };
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
    let config = std::fs::read_to_string(family(name).join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let class = match config["architectures"][0].as_str().unwrap() {
        "Gemma3ForConditionalGeneration" => "Gemma3ForCausalLM",
        "Mistral3ForConditionalGeneration" => "Ministral3ForCausalLM",
        class => class,
    };
    class.to_owned()
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
            (our_name(of).to_owned(), HostTensor { shape, values })
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
