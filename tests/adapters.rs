//! Promise: adapters of every kind that PEFT has and this crate reads compute, train, merge and are written
//! as PEFT does it (`tests/parity/adapters`, made by `tests/parity/make_adapters.py`); and whatever else an
//! adapter's file says ends with an error that names it.

mod common;
mod parity_support;

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
    LOGITS, Reference, Table, largest_difference, logits, logits_off, training, write_adapter,
    write_logits,
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
        assert!(error.contains("are not those of this model"), "{name}: {error}");
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
        (
            "dora",
            LoraConfig { use_dora: true, target_modules: "all-linear".into(), ..usual() },
        ),
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

#[test]
fn new_adapters_of_any_kind_change_nothing_and_are_trained_with_what_stands_beside() {
    let device = devices().remove(0).autodiff();
    for architecture in [Architecture::Qwen2, Architecture::Llama, Architecture::Gemma3Text] {
        for tied in [true, false] {
            let shape = mixdistill::model::DecoderConfig {
                tie_word_embeddings: tied,
                ..tiny(architecture)
            };
            let plain = shaken(&shape, &device);
            for (kind, config) in kinds() {
                let what = format!("{architecture:?} {tied} {kind}");
                let model = plain.clone().with_lora(&config, 7).unwrap();
                assert!(relative_error(&new_logits(&model), &new_logits(&plain)) < 1e-5, "{what}");
                let before = named_tensors(&model).unwrap();
                let trained = trained_names(&model);
                let settings = TrainConfig { learning_rate: 0.05, ..TrainConfig::default() };
                let mut learner = Learner::new(model, settings).unwrap();
                let loss = |learner: &mut Learner<DecoderLm>| {
                    learner.train_step(&rows(&[(9, 3)]), 9).unwrap().loss
                };
                let losses: Vec<f64> = (0..4).map(|_| loss(&mut learner)).collect();
                assert!(losses[3] < losses[1], "{what}: {losses:?}");
                for (name, tensor) in named_tensors(learner.model()).unwrap() {
                    assert_eq!(tensor != before[&name], trained.contains(&name), "{what}: {name}");
                }
                let is_saved = |name: &&String| !name.contains(".lora_");
                let saved: Vec<&str> =
                    trained.iter().filter(is_saved).map(String::as_str).collect();
                let norm = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
                let expected: &[&str] = match (kind, tied) {
                    ("saved", true) => &["model.embed_tokens.weight", norm[0], norm[1]],
                    ("saved", false) => {
                        &["lm_head.weight", "model.embed_tokens.weight", norm[0], norm[1]]
                    }
                    ("saved_apart", _) => &["lm_head.weight"],
                    _ => &[],
                };
                assert_eq!(saved, expected, "{what}");
            }
        }
    }
}

#[test]
fn merging_and_writing_give_the_same_model_with_any_kind() {
    let device = devices().remove(0).autodiff();
    let place = tempfile::tempdir().unwrap();
    let plain_shape = |tied| mixdistill::model::DecoderConfig {
        tie_word_embeddings: tied,
        ..tiny(Architecture::Qwen2)
    };
    for tied in [true, false] {
        for (kind, config) in kinds() {
            let plain = shaken(&plain_shape(tied), &device);
            let model = moved(&plain.clone().with_lora(&config, 7).unwrap());
            let expected = new_logits(&model);
            assert!(relative_error(&new_logits(&plain), &expected) > 1e-2, "{kind} does something");
            let merged = model.clone().merged();
            assert!(relative_error(&new_logits(&merged), &expected) < 1e-5, "{kind}");
            let folder = place.path().join(format!("{kind}-{tied}"));
            model.save_adapter(&folder, &adapter_of("base")).unwrap();
            let read = plain.clone().valid().with_adapter(&folder).unwrap();
            assert!(new_logits(&read) == expected, "{kind}");
            assert!(named_tensors(&read).unwrap() == named_tensors(&model).unwrap(), "{kind}");
            // As a folder; a head that has become another one comes back.
            let whole = place.path().join(format!("{kind}-{tied}-merged"));
            let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
            merged.save(&whole, &SaveFolder::new(&tokenizer)).unwrap();
            let again = DecoderLm::load(&whole, &devices()[0]).unwrap();
            assert!(new_logits(&again) == new_logits(&merged), "{kind}");
        }
    }
}

#[test]
fn dropout_with_dora_is_a_function_of_the_row_and_not_of_its_batch() {
    let device = devices().remove(0).autodiff();
    let config = LoraConfig { dropout: 0.3, use_dora: true, rank: 3, ..LoraConfig::default() };
    let plain = shaken(&tiny(Architecture::Qwen2), &device);
    let model = moved(&plain.with_lora(&config, 7).unwrap());
    let data = rows(&[(9, 3), (14, 5), (7, 2)]);
    let gradients = |per_batch: usize| {
        let batches: Vec<Batch> = data
            .chunks(per_batch)
            .map(|rows| Batch::new(common::examples(rows), 1))
            .collect();
        let step = step_gradients(&model, &batches).unwrap();
        let named = named_gradients(&model, &step.gradients).unwrap();
        (step.loss, named.into_values().flat_map(|g| g.values).collect::<Vec<f32>>())
    };
    let (loss, whole) = gradients(3);
    let (other, split) = gradients(1);
    assert!((other / loss - 1.0).abs() < 1e-6, "{other} {loss}");
    assert!(relative_error(&split, &whole) < 1e-5);
    let again = StepOptions { activation_checkpointing: true, ..StepOptions::default() };
    assert!(gradients_off(&model, [&StepOptions::default(), &again]) < 1e-4);
    // What is left of an input is scaled, so that it is right in expectation.
    let without = LoraConfig { dropout: 0.0, ..config };
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("adapter");
    model.save_adapter(&folder, &adapter_of("base")).unwrap();
    let path = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json["lora_dropout"] = json!(without.dropout);
    std::fs::write(&path, json.to_string()).unwrap();
    let plain = shaken(&tiny(Architecture::Qwen2), &device).with_adapter(&folder).unwrap();
    let exact = step_gradients(&plain, &[Batch::new([data[1].example()], 1)]).unwrap().loss;
    let of_number = |number| {
        let row = mixdistill::data::Row { number, ..data[1].clone() };
        step_gradients(&model, &[Batch::new([row.example()], 1)]).unwrap().loss
    };
    let mean = (0..300).map(of_number).sum::<f64>() / 300.0;
    assert!((mean / exact - 1.0).abs() < 0.15, "{mean} {exact}");
    assert!(mean != exact);
}

/// Writes what `check_ours.py` reads, where `MIXDISTILL_PARITY_OUT` says: adapters of each kind, as they
/// were read and of our own, and merged models.
#[test]
fn adapters_for_peft_are_written() {
    let Some(out) = std::env::var_os("MIXDISTILL_PARITY_OUT").map(PathBuf::from) else {
        eprintln!("skipped: MIXDISTILL_PARITY_OUT does not name a folder");
        return;
    };
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
                let whole = |name: &String| name.replace("model.layers.0", "model.language_model.layers.0");
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

/// An adapter of one of the cases, changed.
struct Changed {
    name: &'static str,
    folder: tempfile::TempDir,
}

impl Changed {
    fn of(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(case(name).join(file), folder.path().join(file)).unwrap();
        }
        Self { name, folder }
    }

    fn setting(self, key: &str, value: Value) -> Self {
        let path = self.folder.path().join("adapter_config.json");
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json[key] = value;
        std::fs::write(path, json.to_string()).unwrap();
        self
    }

    /// Tensors, each as its name, shape and bytes.
    fn tensors(self, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) -> Self {
        use safetensors::tensor::{Dtype, TensorView};
        let path = self.folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, shape, data)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    fn error(&self) -> String {
        let model = base(self.name).load(&devices()[0]).unwrap();
        let error = model.with_adapter(self.folder.path()).unwrap_err();
        assert!(matches!(error, mixdistill::Error::Model { .. }), "{error:?}");
        error.to_string()
    }
}

#[test]
fn hostile_adapters_end_with_an_error_that_names_what_is_wrong() {
    let start = std::time::Instant::now();
    let rank = u64::from(u32::MAX);
    for (changed, said) in [
        (Changed::of("patterns").setting("r", json!(rank)), "lora.rank"),
        (Changed::of("patterns").setting("rank_pattern", json!({"q_proj": 1e30})), "not a size"),
        (Changed::of("patterns").setting("rank_pattern", json!({"q_proj": rank})), "rank_pattern.q_proj"),
        (Changed::of("patterns").setting("rank_pattern", json!([1])), "not a table"),
        (Changed::of("patterns").setting("rank_pattern", json!({"(": 2})), "is no regular expression"),
        (Changed::of("patterns").setting("alpha_pattern", json!({"x": -1})), "alpha_pattern.x"),
        (Changed::of("patterns").setting("alpha_pattern", json!({"x": "y"})), "not a number"),
        (Changed::of("patterns").setting("layers_to_transform", json!([99])), "no layer of the model"),
        (Changed::of("patterns").setting("layers_to_transform", json!("a")), "not the number"),
        (Changed::of("patterns").setting("layers_to_transform", json!([-1])), "not the number"),
        (Changed::of("patterns").setting("layers_to_transform", Value::Null), "layers_pattern"),
        (Changed::of("patterns").setting("layers_pattern", json!("blocks")), "no layer of the model"),
        (Changed::of("patterns").setting("exclude_modules", json!(3)), "`exclude_modules` is 3"),
        (Changed::of("patterns").setting("exclude_modules", json!(".*")), "no layer of the model"),
        (
            Changed::of("full_paths").setting("target_modules", json!(["model.layers.9.mlp.up_proj"])),
            "no layer of the model",
        ),
        (Changed::of("full_paths").setting("target_modules", json!([])), "no layer of the model"),
        // Expressions that would take for ever, or all memory.
        (
            Changed::of("regex_bias").setting("target_modules", json!(r"(?=m)((.+)+)+\.x_proj")),
            "target_modules",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!(r"((\w{900}){900}){900}")),
            "is no regular expression",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!("(".repeat(90_000))),
            "is no regular expression",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!("a".repeat(1 << 20))),
            "1048576 bytes",
        ),
        (
            Changed::of("patterns").setting(
                "rank_pattern",
                (0..5000).map(|i| (format!("x{i}"), json!(1))).collect::<serde_json::Map<_, _>>().into(),
            ),
            "5000 entries",
        ),
        (Changed::of("dora_rslora").setting("lora_bias", json!(true)), "lora_bias"),
        (
            Changed::of("dora_rslora").setting("use_dora", json!(false)),
            "lora_magnitude_vector.weight is not of this model",
        ),
        (
            Changed::of("regex_bias").setting("lora_bias", json!(false)),
            "lora_B.bias is not of this model",
        ),
        (
            Changed::of("dora_rslora")
                .tensors(|tensors| tensors.retain(|t| !t.0.ends_with("0.self_attn.k_proj.lora_magnitude_vector"))),
            "0.self_attn.k_proj.lora_magnitude_vector.weight is missing",
        ),
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                let magnitude = tensors.iter_mut().find(|t| t.0.ends_with("magnitude_vector")).unwrap();
                magnitude.1 = vec![1, magnitude.1[0]];
            }),
            "lora_magnitude_vector.weight is [1, ",
        ),
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                let magnitude = tensors.iter_mut().find(|t| t.0.ends_with("magnitude_vector")).unwrap();
                magnitude.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            "not finite",
        ),
        (
            Changed::of("saved").setting("modules_to_save", json!(["lm_head", "v_proj"])),
            "model.layers.0.self_attn.v_proj",
        ),
        (Changed::of("saved").setting("modules_to_save", json!(["("])), "is no regular expression"),
        (Changed::of("saved").setting("modules_to_save", json!({"a": 1})), "not a list of names"),
        (
            Changed::of("saved").setting("modules_to_save", json!(["lm_head", "embed_tokens"])),
            "norm.weight is not of this model",
        ),
        (
            Changed::of("saved").tensors(|tensors| {
                let head = tensors.iter_mut().find(|t| t.0.ends_with("lm_head.weight")).unwrap();
                head.1[0] += 8;
                head.2.extend(vec![0; 4 * 8 * head.1[1]]);
            }),
            "resize_token_embeddings(115)",
        ),
        (
            Changed::of("saved_tied").tensors(|tensors| {
                let head = tensors.iter_mut().find(|t| t.0.ends_with("lm_head.weight")).unwrap();
                head.2[..4].copy_from_slice(&7f32.to_le_bytes());
            }),
            "differs from the embedding",
        ),
        (
            Changed::of("full_paths").tensors(|tensors| {
                let (name, shape, data) = tensors[0].clone();
                let name = name.replace("model.layers", "model.extra.layers");
                tensors.push((name, shape, data));
            }),
            "is not of this model",
        ),
        (
            Changed::of("full_paths").tensors(|tensors| {
                let (_, shape, data) = tensors[0].clone();
                let name = "base_model.model.model.embed_tokens.lora_embedding_A".to_owned();
                tensors.push((name, shape, data));
            }),
            "adapters on the embedding or the head",
        ),
    ] {
        let error = changed.error();
        assert!(error.contains(said), "{said}: {error}");
    }
    assert!(start.elapsed().as_secs() < 100, "{:?}", start.elapsed());
}

#[test]
fn what_peft_does_not_mind_is_no_error() {
    let device = devices().remove(0);
    for (changed, kept) in [
        // Patterns for layers that are not there.
        (Changed::of("full_paths").setting("rank_pattern", json!({"layers.77": 5})), "full_paths"),
        (Changed::of("full_paths").setting("modules_to_save", json!(["classifier"])), "full_paths"),
        (Changed::of("full_paths").setting("exclude_modules", json!(["vision"])), "full_paths"),
        (Changed::of("full_paths").setting("ensure_weight_tying", json!(true)), "full_paths"),
        (
            // One number, and one name.
            Changed::of("patterns").setting("layers_pattern", json!(["blocks", "layers"])),
            "patterns",
        ),
        // One of the two names of a matrix.
        (
            Changed::of("saved_tied").tensors(|tensors| tensors.retain(|t| !t.0.contains("lm_head"))),
            "saved_tied",
        ),
        (
            Changed::of("saved_tied")
                .tensors(|tensors| tensors.retain(|t| !t.0.contains("embed_tokens"))),
            "saved_tied",
        ),
        // As some versions of PEFT write it.
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                for tensor in tensors.iter_mut().filter(|t| t.0.ends_with("magnitude_vector")) {
                    tensor.0.push_str(".weight");
                }
            }),
            "dora_rslora",
        ),
    ] {
        let model = base(kept).load(&device).unwrap().with_adapter(changed.folder.path()).unwrap();
        let tokens = reference(kept).tokens("input_ids");
        let expected = logits(&adapted(kept, &device), &tokens, &device);
        assert!(logits(&model, &tokens, &device) == expected, "{kept}");
    }
}

#[test]
fn settings_that_name_nothing_are_refused() {
    let plain = shaken(&tiny(Architecture::Qwen2), &devices()[0]);
    let names = |name: &str| vec![name.to_owned()];
    let usual = LoraConfig::default;
    for (config, key, said) in [
        (LoraConfig { target_modules: ["9.mlp.up_proj"].into(), ..usual() }, "target_modules", "9.mlp"),
        (LoraConfig { target_modules: "x.*".into(), ..usual() }, "target_modules", "no layer"),
        (LoraConfig { target_modules: ".*".into(), ..usual() }, "target_modules", "lm_head"),
        (LoraConfig { target_modules: "(".into(), ..usual() }, "target_modules", "expression"),
        (LoraConfig { target_modules: ["embed_tokens"].into(), ..usual() }, "target_modules", "embed"),
        (LoraConfig { exclude_modules: ["k"].into(), ..usual() }, "exclude_modules", "`k`"),
        (LoraConfig { layers_to_transform: vec![2], ..usual() }, "layers_to_transform", "block 2"),
        (LoraConfig { layers_pattern: names("layers"), ..usual() }, "layers_pattern", "not set"),
        (
            LoraConfig {
                target_modules: ".*q_proj".into(),
                layers_to_transform: vec![1],
                ..usual()
            },
            "layers_to_transform",
            "regular expression",
        ),
        (LoraConfig { rank_pattern: [("z_proj", 3)].into(), ..usual() }, "rank_pattern", "z_proj"),
        (LoraConfig { rank_pattern: [("q_proj", 0)].into(), ..usual() }, "rank_pattern.q_proj", "it is 0"),
        (LoraConfig { alpha_pattern: [("^q_proj", 3.0)].into(), ..usual() }, "alpha_pattern", "matches no"),
        (LoraConfig { modules_to_save: names("head"), ..usual() }, "modules_to_save", ""),
        (LoraConfig { modules_to_save: names("heads"), ..usual() }, "modules_to_save", "`heads`"),
        (LoraConfig { lora_bias: true, use_dora: true, ..usual() }, "lora_bias", "DoRA"),
    ] {
        if said.is_empty() {
            plain.clone().with_lora(&config, 1).unwrap();
            continue;
        }
        let error = plain.clone().with_lora(&config, 1).unwrap_err().to_string();
        assert!(error.contains(&format!("lora.{key}")) && error.contains(said), "{key}: {error}");
    }
}

/// A run of the toy corpus whose settings are a kind's.
fn run_of(base: &Path, out: &Path, lora: LoraConfig) -> RunConfig {
    let mut config = RunConfig::fine_tune(base.to_string_lossy()).with_lora(lora);
    config.out = out.to_owned();
    config.data.toy_problems = 40;
    config.data.toy_test_problems = 8;
    config.data.max_length = 128;
    config.train.steps = Some(4);
    config.train.checkpoint_every = 2;
    config.train.keep_checkpoints = 9;
    config.train.learning_rate = 1e-2;
    config
}

#[test]
fn a_run_of_each_kind_resumes_in_the_same_bits_and_is_asked_and_merged() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let mut toy = common::toy_run(&path("toy"));
    toy.model.num_hidden_layers = 2;
    toy.model.tie_word_embeddings = true;
    toy.train.steps = Some(8);
    toy.evaluation.questions = 0;
    recipe::run(&toy, RunMode::New, &Context::default()).unwrap();
    let base = path("toy").join("model");
    for (kind, mut lora) in kinds() {
        // A Llama has no biases.
        if kind == "regex_bias" {
            lora.lora_bias = false;
        }
        let config = run_of(&base, &path(kind), lora);
        recipe::run(&config, RunMode::New, &Context::default()).unwrap();
        let adapter = path(kind).join("adapter");
        let file = || std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
        let whole = file();
        // From its second step on once more.
        std::fs::remove_dir_all(path(kind).join("checkpoints/step-000004")).unwrap();
        std::fs::remove_file(path(kind).join("summary.json")).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        recipe::run(&config, RunMode::Resume, &Context::default()).unwrap();
        assert!(file() == whole, "{kind}: a resumed run has other bits");
        // The settings come back from the run's directory.
        let read = RunConfig::read(&path(kind).join("config.toml")).unwrap();
        assert_eq!(read.lora, config.lora, "{kind}");

        let run = |name: &str, words: &[&str]| {
            let output = common::command(name).args(words).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let [of, merged, adapter] = [&base, &path(&format!("{kind}-merged")), &adapter]
            .map(|path| path.to_string_lossy().into_owned());
        run("merge", &["--model", &of, "--adapter", &adapter, "--out", &merged]);
        let ask = ["--prompt", "1 + 1?", "--max-new-tokens", "8", "--model"];
        let with = run("generate", &[&ask[..], &[&of, "--adapter", &adapter]].concat());
        assert_eq!(with, run("generate", &[&ask[..], &[&merged]].concat()), "{kind}");
        let shape = ModelFolder::open(Path::new(&merged)).unwrap();
        assert_eq!(shape.config().tie_word_embeddings, kind != "saved_apart", "{kind}");
    }
}

#[test]
fn biases_of_adapters_are_merged_where_the_layer_has_one() {
    let device = devices().remove(0).autodiff();
    let (_, config) = kinds().into_iter().find(|(kind, _)| *kind == "regex_bias").unwrap();
    let place = tempfile::tempdir().unwrap();
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let plain = shaken(&tiny(Architecture::Llama), &device);
    let merged = moved(&plain.with_lora(&config, 7).unwrap()).merged();
    let folder = place.path().join("merged");
    let error = merged.save(&folder, &SaveFolder::new(&tokenizer)).unwrap_err().to_string();
    assert!(error.contains("lora_bias") && error.contains("self_attn.k_proj.bias"), "{error}");
    assert!(!folder.exists());
}

/// What a user writes, in a file and on the command line.
#[test]
fn settings_of_adapters_are_written_as_pefts() {
    let text = "base_model = \"m\"\n[lora]\nrank = 8\ntarget_modules = \"all-linear\"\n\
                layers_to_transform = [0, 3]\nmodules_to_save = [\"lm_head\"]\nuse_dora = true\n\
                [lora.rank_pattern]\n\"^model.layers.0.mlp.up_proj\" = 4\nq_proj = 2\na_proj = 1\n";
    let config = RunConfig::from_toml(text).unwrap();
    let lora = config.lora.clone().unwrap();
    assert_eq!(lora.target_modules, "all-linear".into());
    assert_eq!(lora.alpha, 16.0);
    // In their order.
    let expected = [("^model.layers.0.mlp.up_proj", 4), ("q_proj", 2), ("a_proj", 1)];
    assert_eq!(lora.rank_pattern, expected.into());
    assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);

    let set = |assignments: &[&str]| {
        let mut layers = Layers::<RunConfig>::new().unwrap();
        layers.text("base_model = \"m\"\n[lora]\n").unwrap();
        assignments.iter().for_each(|assignment| layers.set(assignment).unwrap());
        layers.settings().unwrap().lora.unwrap()
    };
    let targets = |text: &str| set(&[&format!("lora.target_modules={text}")]).target_modules;
    assert_eq!(targets("q_proj,v_proj"), ["q_proj", "v_proj"].into());
    assert_eq!(targets("0.mlp.up_proj"), ["0.mlp.up_proj"].into());
    assert_eq!(targets("[\"q_proj\"]"), ["q_proj"].into());
    assert_eq!(targets("all-linear"), "all-linear".into());
    assert_eq!(targets(r".*\.(q|v)_proj"), r".*\.(q|v)_proj".into());
    assert_eq!(targets("\"q_proj\""), "q_proj".into());
    let lora = set(&[
        "lora.rank_pattern.q_proj=4",
        "lora.alpha_pattern.\"layers.0\"=2.5",
        "lora.layers_to_transform=1,2",
        "lora.modules_to_save=embed_tokens,lm_head",
        "lora.ensure_weight_tying=false",
    ]);
    assert_eq!(lora.rank_pattern, [("q_proj", 4)].into());
    assert_eq!(lora.alpha_pattern, [("layers.0", 2.5)].into());
    assert_eq!(lora.layers_to_transform, [1, 2]);
    assert_eq!(lora.modules_to_save, ["embed_tokens", "lm_head"]);
    assert!(!lora.ensure_weight_tying && LoraConfig::default().ensure_weight_tying);
    let mut layers = Layers::<RunConfig>::new().unwrap();
    let error = layers.set("lora.target_modules=[1]").unwrap_err().to_string();
    assert!(error.contains("lora.target_modules.0"), "{error}");
    let error = layers.set("lora.rank_pattern.q_proj=x").unwrap_err().to_string();
    assert!(error.contains("lora.rank_pattern.q_proj"), "{error}");
}

/// What is written says what PEFT must know of a head that stays the embedding.
#[test]
fn a_tied_head_stays_so_unless_it_is_told_otherwise() {
    let device = devices().remove(0).autodiff();
    let place = tempfile::tempdir().unwrap();
    for (tying, held) in [(true, 2), (false, 1)] {
        let config = LoraConfig {
            modules_to_save: vec!["embed_tokens".into()],
            ensure_weight_tying: tying,
            ..LoraConfig::default()
        };
        let model = shaken(&tiny(Architecture::Llama), &device).with_lora(&config, 1).unwrap();
        let folder = place.path().join(tying.to_string());
        model.save_adapter(&folder, &adapter_of("base")).unwrap();
        let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ensure_weight_tying"], json!(tying));
        assert_eq!(json["modules_to_save"], json!(["embed_tokens"]));
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let whole = file.names().iter().filter(|name| !name.contains(".lora_")).count();
        assert_eq!(whole, held);
        assert_eq!(model.clone().merged().config().tie_word_embeddings, tying);
    }
}
