//! Model folders in Hugging Face's format: written folders can be read, and errors name what does not fit.

mod common;

use common::{Said, devices, shaken, tiny};
use mixdistill::Error;
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::TextTokenizer;
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, FileType, HostTensor, ModelFolder, RopeScaling,
    SaveFolder, named_tensors,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn tokenizer() -> TextTokenizer {
    TextTokenizer::builtin([" word"]).unwrap()
}

fn config(architecture: Architecture) -> DecoderConfig {
    DecoderConfig { vocab_size: tokenizer().vocabulary_size(), ..tiny(architecture) }
}

/// A saved model of the Llama family, to be spoiled.
struct Saved {
    _parent: TempDir,
    folder: PathBuf,
    tensors: BTreeMap<String, HostTensor>,
}

impl Saved {
    fn new(max_shard_bytes: u64) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let model = shaken(&config(Architecture::Llama), &devices()[0]);
        let tokenizer = tokenizer();
        let how = SaveFolder { max_shard_bytes, ..SaveFolder::new(&tokenizer) };
        model.save(&folder, &how).unwrap();
        Self { _parent: parent, folder, tensors: named_tensors(&model).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(name);
        let mut value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    fn load(&self) -> mixdistill::Result<DecoderLm> {
        DecoderLm::load(&self.folder, &devices()[0])
    }

    fn error(&self) -> String {
        let error = self.load().unwrap_err();
        assert!(matches!(error, Error::Model { .. }), "{error}");
        error.to_string()
    }
}

/// A safetensors file of one's own making.
fn safetensors(header: &Value, length: Option<u64>, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn a_folder_gives_the_same_model_back() {
    let device = &devices()[0];
    let tokenizer = tokenizer();
    for architecture in Architecture::ALL {
        let mut config = config(architecture);
        if architecture == Architecture::Llama {
            config.rope_scaling = Some(RopeScaling {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
                ..RopeScaling::default()
            });
        }
        let model = shaken(&config, device);
        let parent = tempfile::tempdir().unwrap();
        // Whole, and in shards that hold a tensor or two.
        for (name, max_shard_bytes) in [("whole", u64::MAX), ("shards", 3000)] {
            let folder = parent.path().join(name);
            let how = SaveFolder { max_shard_bytes, ..SaveFolder::new(&tokenizer) };
            model.save(&folder, &how).unwrap();
            assert_eq!(folder.join("model.safetensors").exists(), name == "whole");
            let read = ModelFolder::open(&folder).unwrap();
            assert_eq!(read.config(), &config);
            assert_eq!(read.end_tokens(), [tokenizer.end_token()]);
            assert_eq!(
                read.tokenizer(None).unwrap().vocabulary_size(),
                tokenizer.vocabulary_size()
            );
            let read = read.load(device).unwrap();
            assert_eq!(named_tensors(&read).unwrap(), named_tensors(&model).unwrap());
        }
        let error = model.save(&parent.path().join("whole"), &SaveFolder::new(&tokenizer));
        assert!(error.unwrap_err().to_string().contains("it already exists"));
        let names = |folder: &Path| {
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert_eq!(names(parent.path()).len(), 2, "nothing else is left there");

        // What a crash left is no obstacle, and everything can be read by whoever may read the rest.
        let folder = parent.path().join("again");
        std::fs::create_dir(parent.path().join(".again.writing")).unwrap();
        std::fs::write(parent.path().join(".again.writing/model.safetensors"), "half").unwrap();
        model.save(&folder, &SaveFolder::new(&tokenizer)).unwrap();
        let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions();
        assert_eq!(mode("model.safetensors"), mode("config.json"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(names(parent.path()).len(), 2);
    }
}

#[test]
fn half_precision_files_are_read_and_written() {
    let device = &devices()[0];
    let tokenizer = tokenizer();
    let model = shaken(&config(Architecture::Qwen3), device);
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let how = SaveFolder { file_type: FileType::Bf16, ..SaveFolder::new(&tokenizer) };
    model.save(&folder, &how).unwrap();
    let json = std::fs::read_to_string(folder.join("config.json")).unwrap();
    assert!(json.contains("bfloat16"), "{json}");
    let read = DecoderLm::load(&folder, device).unwrap();
    for (name, tensor) in named_tensors(&read).unwrap() {
        for (read, written) in
            tensor.values.iter().zip(&named_tensors(&model).unwrap()[&name].values)
        {
            assert_eq!(*read, half::bf16::from_f32(*written).to_f32(), "{name}");
        }
    }
    // f16 files are read: 1.5 is 0x3E00.
    let saved = Saved::new(u64::MAX);
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for (name, tensor) in &saved.tensors {
        let start = data.len();
        data.extend(tensor.values.iter().flat_map(|_| 0x3E00u16.to_le_bytes()));
        let entry = json!({
            "dtype": "F16", "shape": tensor.shape, "data_offsets": [start, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let file = safetensors(&Value::Object(header), None, &data);
    std::fs::write(saved.path("model.safetensors"), file).unwrap();
    let read = named_tensors(&saved.load().unwrap()).unwrap();
    assert!(read.values().all(|tensor| tensor.values.iter().all(|value| *value == 1.5)));
}

/// Settings that are refused, and what is said of them.
fn refused_settings() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("architectures", json!(["GPT2LMHeadModel"]), "architecture `GPT2LMHeadModel`"),
        ("hidden_act", json!("gelu"), "activation \"gelu\""),
        ("attention_bias", json!(true), "`attention_bias`"),
        ("mlp_bias", json!(true), "`mlp_bias`"),
        ("use_sliding_window", json!(true), "`use_sliding_window`"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
        ("layer_types", json!(["full_attention"]), "1 of 2 layers"),
        ("layer_types", json!(["full_attention", "linear_attention"]), "linear_attention"),
        ("layer_types", json!("all"), "not a list"),
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor`"),
        ("quantization_config", json!({"bits": 4}), "`quantization_config`"),
        ("rope_scaling", json!({"type": "linear"}), "`rope_scaling.factor`"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 0.5}), "its factor is 0.5"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": "x"}), "`rope_scaling.factor`"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "short_factor"),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
            "its short_factor has 1 numbers",
        ),
        ("final_logit_softcapping", json!(30.0), "`final_logit_softcapping`"),
        ("rope_parameters", json!({"rope_type": "dynamic"}), "RoPE type `dynamic`"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 2.0}), "low_freq_factor"),
        ("rope_scaling", json!(3), "`rope_scaling` is 3"),
        ("hidden_size", json!(18), "model.layers.0.input_layernorm.weight is [16], not [18]"),
        ("num_hidden_layers", json!(3), "model.layers.2.input_layernorm.weight is missing"),
        (
            "num_hidden_layers",
            json!(1),
            "model.layers.1.input_layernorm.weight does not belong to this model",
        ),
        ("num_key_value_heads", json!(3), "do not divide"),
        ("hidden_size", json!(-1), "`hidden_size` is -1"),
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("hidden_size", json!(u64::MAX), ""),
        ("num_hidden_layers", json!(1_000_000), ""),
        ("vocab_size", json!(4_000_000_000u64), ""),
        ("rms_norm_eps", json!("small"), "`rms_norm_eps`"),
        ("tie_word_embeddings", json!("yes"), "`tie_word_embeddings`"),
        ("tie_word_embeddings", json!(false), "lm_head.weight is missing"),
    ]
}

#[test]
fn what_the_decoder_does_not_do_is_refused_by_name() {
    let saved = Saved::new(u64::MAX);
    let original = std::fs::read_to_string(saved.path("config.json")).unwrap();
    for (key, value, message) in refused_settings() {
        saved.edit("config.json", |config| config[key] = value.clone());
        let error = saved.error();
        assert!(error.contains(message), "{key} = {value}: {error}");
        std::fs::write(saved.path("config.json"), &original).unwrap();
    }
    saved.edit("config.json", |config| {
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
        config["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 4.0});
    });
    assert!(saved.error().contains("both set and differ"));
    std::fs::write(saved.path("config.json"), &original).unwrap();
    // Settings that change nothing are no reason to refuse.
    saved.edit("config.json", |config| {
        config["sliding_window"] = json!(32768);
        config["rope_scaling"] = json!({"rope_type": "default"});
        config["architectures"] = Value::Null;
        // In training alone, or nowhere.
        config["attention_dropout"] = json!(0.1);
        config["hidden_dropout"] = json!(0.1);
        config["resid_pdrop"] = json!(0.1);
        config["embd_pdrop"] = json!(0.1);
        config["initializer_range"] = json!(0.0);
        config["pretraining_tp"] = json!(1);
        config["use_cache"] = json!(false);
        config["output_router_logits"] = json!(true);
    });
    saved.load().unwrap();
    let for_training = || {
        let mut said = Said::default();
        let context = Context::new(&mut said, &StopFlag::default());
        ModelFolder::open(&saved.folder).unwrap().for_training(&context).unwrap();
        drop(context);
        said
    };
    for key in ["attention_dropout", "resid_pdrop", "embd_pdrop"] {
        let notice = format!("sets `{key}` to 0.1; training does not apply");
        assert!(for_training().contains(&notice), "{key}");
    }
    std::fs::write(saved.path("config.json"), &original).unwrap();
    assert!(for_training().0.is_empty());
    for text in ["", "[]", "{", "null", "\"text\""] {
        std::fs::write(saved.path("config.json"), text).unwrap();
        saved.error();
    }
}

/// Both places of RoPE's settings in a configuration: `rope_theta` and `rope_scaling` of the older
/// form, and `rope_parameters`.
#[test]
fn both_forms_of_rope_are_read_where_they_agree() {
    let saved = Saved::new(u64::MAX);
    let original = std::fs::read_to_string(saved.path("config.json")).unwrap();
    let with = |theta: Value, old: Value, new: Value| {
        std::fs::write(saved.path("config.json"), &original).unwrap();
        saved.edit("config.json", |config| {
            config["rope_theta"] = theta;
            config["rope_scaling"] = old;
            config["rope_parameters"] = new;
        });
        ModelFolder::open(&saved.folder)
            .map(|folder| (folder.config().rope_theta, folder.config().rope_scaling.is_some()))
            .map_err(|error| error.to_string())
    };
    let none = || Value::Null;
    let llama = |factor: Value| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    };
    let and = |mut rope: Value, key: &str, value: Value| {
        rope[key] = value;
        rope
    };
    assert_eq!(with(none(), none(), none()), Ok((10_000.0, false)));
    assert_eq!(with(json!(5e5), none(), none()), Ok((5e5, false)));
    assert_eq!(with(none(), none(), json!({"rope_theta": 500_000})), Ok((5e5, false)));
    assert_eq!(with(json!(5e5), none(), json!({"rope_theta": 500_000})), Ok((5e5, false)));
    // The same in both, but for how it is written.
    let new = and(llama(json!(8)), "rope_theta", json!(5e5));
    let mut old = and(llama(json!(8.0)), "type", json!("llama3"));
    old.as_object_mut().unwrap().remove("rope_type");
    assert_eq!(with(json!(500_000), old.clone(), new.clone()), Ok((5e5, true)));
    assert_eq!(with(none(), old, new.clone()), Ok((5e5, true)));
    let plain = json!({"rope_type": "default", "rope_theta": 5e5});
    assert_eq!(with(none(), json!({"type": "default"}), plain.clone()), Ok((5e5, false)));
    for (theta, old, new, said) in [
        (none(), llama(json!(8)), llama(json!(4)), vec!["both set and differ", "8", "4"]),
        (none(), llama(json!(8)), plain.clone(), vec!["both set and differ", "llama3", "default"]),
        (json!(1e4), none(), plain.clone(), vec!["`rope_theta` is 10000", "500000"]),
        (none(), json!({"rope_theta": 1e6}), plain, vec!["1000000", "500000"]),
        (
            none(),
            json!({"type": "dynamic"}),
            json!({"rope_type": "dynamic"}),
            vec!["RoPE type `dynamic`"],
        ),
        (none(), json!({"factor": 2.0}), none(), vec!["no `rope_type`"]),
        (none(), json!({"rope_type": 3}), none(), vec!["`rope_scaling.rope_type` is 3"]),
    ] {
        let error = with(theta, old, new).unwrap_err();
        assert!(said.iter().all(|said| error.contains(said)), "{error}");
    }
    for key in ["rope_parameters", "rope_scaling"] {
        std::fs::write(saved.path("config.json"), &original).unwrap();
        saved.edit("config.json", |config| {
            config[key] = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                 "sliding_attention": {"rope_theta": 1e4}});
        });
        let error = saved.error();
        assert!(error.contains(&format!("`{key}` has separate")), "{error}");
        assert!(error.contains("full_attention, sliding_attention"), "{error}");
    }
}

#[test]
fn a_hint_is_about_what_is_wrong() {
    let saved = Saved::new(u64::MAX);
    let original = std::fs::read_to_string(saved.path("config.json")).unwrap();
    let family = "Choose a model of one of these";
    for (key, value, is_family) in [
        ("architectures", json!(["GPT2LMHeadModel"]), true),
        ("mlp_bias", json!(true), false),
        ("hidden_size", json!("wide"), false),
        ("rope_scaling", json!({"rope_type": "dynamic"}), false),
        ("quantization_config", json!({"bits": 4}), false),
        ("num_key_value_heads", json!(3), false),
    ] {
        saved.edit("config.json", |config| config[key] = value.clone());
        let error = saved.error();
        assert_eq!(error.contains(family), is_family, "{error}");
        std::fs::write(saved.path("config.json"), &original).unwrap();
    }
}

/// Every file of a folder, replaced by what a clone without Git LFS or a failed download has in its
/// place.
#[test]
fn what_stands_in_for_a_file_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n";
    let page = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";
    for (stand_in, said) in [(pointer, "is a Git LFS pointer"), (page, "is a web page")] {
        let check = |name: &str, max_shard_bytes: u64, text: &str| {
            let saved = Saved::new(max_shard_bytes);
            let name = match name {
                "shard" => {
                    let index = saved.path("model.safetensors.index.json");
                    let index: Value =
                        serde_json::from_str(&std::fs::read_to_string(index).unwrap()).unwrap();
                    index["weight_map"]["model.norm.weight"].as_str().unwrap().to_owned()
                }
                name => name.to_owned(),
            };
            std::fs::write(saved.path(&name), text).unwrap();
            let load = || -> mixdistill::Result<()> {
                let folder = ModelFolder::open(&saved.folder)?;
                folder.tokenizer(None)?;
                folder.chat_template()?;
                folder.load(&devices()[0]).map(|_| ())
            };
            let error = load().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(&name), "{error}");
        };
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model.safetensors",
        ] {
            check(name, u64::MAX, stand_in);
        }
        check("model.safetensors.index.json", 1000, stand_in);
        check("shard", 1000, stand_in);
    }
}

#[test]
fn weights_in_other_files_can_be_converted() {
    for (name, said) in
        [("pytorch_model.bin", "safe_serialization=True"), ("model.Q4_K_M.gguf", "GGUF")]
    {
        let saved = Saved::new(u64::MAX);
        std::fs::rename(saved.path("model.safetensors"), saved.path(name)).unwrap();
        let error = saved.error();
        assert!(error.contains(name) && error.contains(said), "{error}");
    }
}

#[test]
fn damaged_weights_are_an_error_each() {
    let saved = Saved::new(u64::MAX);
    let path = saved.path("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let entry = |shape: Value, offsets: [u64; 2]| json!({"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}});
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("seven bytes", vec![1; 7]),
        ("cut in the header", whole[..100].to_vec()),
        ("cut in the data", whole[..whole.len() - 4].to_vec()),
        ("longer than it says", [whole.clone(), vec![0; 4]].concat()),
        ("an absurd length of the header", safetensors(&json!({}), Some(u64::MAX), &[])),
        ("a header of 4 GB", safetensors(&json!({}), Some(1 << 32), &[])),
        ("an absurd shape", safetensors(&entry(json!([1u64 << 62, 8]), [0, 64]), None, &[0; 64])),
        ("a shape of 2^70", safetensors(&entry(json!([1e21]), [0, 64]), None, &[0; 64])),
        ("offsets past the end", safetensors(&entry(json!([16]), [0, 1 << 40]), None, &[0; 64])),
        ("offsets backwards", safetensors(&entry(json!([16]), [64, 0]), None, &[0; 64])),
        ("no JSON", safetensors(&json!("text"), None, &[0; 64])),
        ("an unknown type", {
            let header = json!({"x": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 1]}});
            safetensors(&header, None, &[0])
        }),
        ("missing tensors", safetensors(&entry(json!([16]), [0, 64]), None, &[0; 64])),
    ];
    for (name, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let error = saved.error();
        assert!(error.contains("model.safetensors"), "{name}: {error}");
    }
    // A number that is none, in the last tensor.
    let mut spoiled = whole.clone();
    let last = spoiled.len() - 4;
    spoiled[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &spoiled).unwrap();
    assert!(saved.error().contains("1 of its 16 values are not finite"));
    // Integers are no weights.
    let text = String::from_utf8_lossy(&whole[8..]).replacen("\"F32\"", "\"I32\"", 1);
    let end = text.find("}}").unwrap();
    let mut integers = whole.clone();
    integers[8..8 + end].copy_from_slice(&text.as_bytes()[..end]);
    std::fs::write(&path, &integers).unwrap();
    assert!(saved.error().contains("not f32, bf16, or f16"));
    std::fs::remove_file(&path).unwrap();
    assert!(saved.error().contains("neither model.safetensors nor"));
    std::fs::create_dir(&path).unwrap();
    saved.error();
}

#[test]
fn shards_and_index_must_agree() {
    let saved = Saved::new(3000);
    let index = "model.safetensors.index.json";
    let original = std::fs::read_to_string(saved.path(index)).unwrap();
    let tensor = "model.norm.weight";
    let of = |value: &Value| value["weight_map"][tensor].as_str().unwrap().to_owned();
    let shard = of(&serde_json::from_str(&original).unwrap());
    let attempt = |change: &dyn Fn(&mut Value), message: &str| {
        saved.edit(index, change);
        let error = saved.error();
        assert!(error.contains(message), "{error}");
        std::fs::write(saved.path(index), &original).unwrap();
    };
    attempt(&|json| json["weight_map"][tensor] = "other.safetensors".into(), "other.safetensors");
    attempt(&|json| json["weight_map"][tensor] = "../x.safetensors".into(), "is not a file name");
    attempt(&|json| json["weight_map"][tensor] = "/etc/passwd".into(), "is not a file name");
    attempt(&|json| json["weight_map"][tensor] = json!(3), "is not a file name");
    attempt(&|json| json["weight_map"]["more"] = shard.as_str().into(), "differ in more");
    attempt(&|json| *json = json!({}), "no `weight_map`");
    // A shard that the index does not name at all.
    let without = |json: &mut Value| {
        json["weight_map"].as_object_mut().unwrap().retain(|_, file| *file != shard.as_str());
    };
    attempt(&without, "model.norm.weight is missing");
    std::fs::remove_file(saved.path(&shard)).unwrap();
    assert!(saved.error().contains(&shard));
    std::fs::write(saved.path(&shard), [0; 100]).unwrap();
    saved.error();
}

#[test]
fn a_tied_head_in_the_file_must_be_the_embedding() {
    let saved = Saved::new(u64::MAX);
    let write = |head: f32| {
        let mut header = serde_json::Map::new();
        let mut data: Vec<u8> = vec![];
        let mut tensors = saved.tensors.clone();
        let mut tied = tensors["model.embed_tokens.weight"].clone();
        tied.values[5] += head;
        tensors.insert("lm_head.weight".into(), tied);
        for (name, tensor) in &tensors {
            let start = data.len();
            data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
            let entry = json!({
                "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, data.len()],
            });
            header.insert(name.clone(), entry);
        }
        let file = safetensors(&Value::Object(header), None, &data);
        std::fs::write(saved.path("model.safetensors"), file).unwrap();
    };
    write(0.0);
    assert_eq!(named_tensors(&saved.load().unwrap()).unwrap(), saved.tensors);
    write(1.0);
    assert!(saved.error().contains("lm_head.weight differs from the embedding"));
}

#[test]
fn a_tokenizer_past_the_embedding_is_refused() {
    let saved = Saved::new(u64::MAX);
    let larger = TextTokenizer::builtin([" word and more"]).unwrap();
    std::fs::write(saved.path("tokenizer.json"), larger.to_json().unwrap()).unwrap();
    let error = ModelFolder::open(&saved.folder).unwrap().tokenizer(None).unwrap_err();
    let rows = tokenizer().vocabulary_size();
    assert!(error.to_string().contains(&format!("embedding has {rows} rows")), "{error}");
}

#[test]
fn a_folder_that_is_none_says_what_to_give() {
    let empty = tempfile::tempdir().unwrap();
    let error = |path: &Path| ModelFolder::open(path).unwrap_err().to_string();
    assert!(error(empty.path()).contains("it has no config.json"));
    assert!(error(&empty.path().join("none")).contains("there is no such folder"));
    std::fs::write(empty.path().join("adapter_config.json"), "{}").unwrap();
    assert!(error(empty.path()).contains("Pass the folder of its base model"));
}

#[test]
fn a_fine_tuned_model_keeps_the_files_of_its_base() {
    let saved = Saved::new(u64::MAX);
    // Details that a rewritten file would lose.
    let settings = "{\n \"eos_token\":   \"<|end|>\", \"chat_template\": \"{{ 1 }}\"}";
    std::fs::write(saved.path("tokenizer_config.json"), settings).unwrap();
    std::fs::write(saved.path("special_tokens_map.json"), "{ }").unwrap();
    saved.edit("config.json", |config| config["kept"] = json!({"as": ["it", "is"]}));
    let base = ModelFolder::open(&saved.folder).unwrap();
    let tokenizer = base.tokenizer(None).unwrap();
    let model = base.load(&devices()[0]).unwrap();
    let write = |name: &str, end_tokens: &[u32]| {
        let folder = saved.folder.with_file_name(name);
        let how = SaveFolder {
            base: Some(&base),
            end_tokens,
            card: Some("# A card"),
            ..SaveFolder::new(&tokenizer)
        };
        model.save(&folder, &how).unwrap();
        folder
    };
    let same = |folder: &Path, name: &str| {
        std::fs::read(folder.join(name)).unwrap() == std::fs::read(saved.path(name)).unwrap()
    };
    let folder = write("same", &base.end_tokens());
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        assert!(same(&folder, name), "{name}");
    }
    assert!(same(&folder, "generation_config.json") && same(&folder, "model.safetensors"));
    assert_eq!(std::fs::read_to_string(folder.join("README.md")).unwrap(), "# A card");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["kept"], json!({"as": ["it", "is"]}));

    // An end token that the base does not name is added to what generation stops at.
    let ends = [base.end_tokens()[0], 7];
    let folder = write("more", &ends);
    assert_eq!(ModelFolder::open(&folder).unwrap().end_tokens(), [7, ends[0]]);
}
