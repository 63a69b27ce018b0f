//! Promise: a run's output has what servers read in addition to transformers (docs/serving.md).

#[path = "common/mod.rs"]
mod common;

use common::{command, devices};
use mixdistill::data::{TextTokenizer, arith};
use mixdistill::model::{Architecture, DecoderConfig, SaveFolder};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A base model, `base`, with files of answers.
fn setting() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let words = arith::vocabulary();
    let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
    let config = DecoderConfig {
        architecture: Architecture::Qwen3,
        vocab_size: tokenizer.vocabulary_size(),
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        ..DecoderConfig::default()
    };
    let model = config.init(3, &devices()[0]).unwrap();
    model.save(&path("base"), &SaveFolder::new(&tokenizer)).unwrap();
    let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 20, 0, 1);
    for (name, long) in [("long.jsonl", true), ("short.jsonl", false)] {
        let record = |(id, p): (usize, &arith::ArithProblem)| {
            let record = if long { p.long_record(id) } else { p.short_record(id) };
            format!("{}\n", json!({ "problem": record.problem, "solution": record.solution }))
        };
        let lines: String = corpus.train.iter().enumerate().map(record).collect();
        std::fs::write(path(name), lines).unwrap();
    }
    folder
}

/// Trains for a step, from within the folder, so that all paths are relative.
fn train(folder: &Path, more: &[&str]) -> PathBuf {
    let words = [
        "--model",
        "base",
        "--long",
        "long.jsonl",
        "--short",
        "short.jsonl",
        "--steps",
        "1",
        "--out",
        "run",
        "--set",
        "train.evaluate_every=0",
    ];
    let ended = command("train").args(words).args(more).current_dir(folder).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    folder.join("run")
}

#[test]
fn a_run_writes_what_servers_read() {
    // The template of the base is in either of the two places.
    for place in ["chat_template.jinja", "tokenizer_config.json"] {
        let folder = setting();
        let base = folder.path().join("base");
        let mut settings = json_of(&base.join("tokenizer_config.json"));
        if place == "tokenizer_config.json" {
            settings["chat_template"] = TEMPLATE.into();
        } else {
            std::fs::write(base.join(place), TEMPLATE).unwrap();
        }
        std::fs::write(base.join("tokenizer_config.json"), settings.to_string()).unwrap();
        std::fs::remove_file(base.join("generation_config.json")).unwrap();
        let mut config = json_of(&base.join("config.json"));
        (config["bos_token_id"], config["pad_token_id"]) = (0.into(), 1.into());
        config["eos_token_id"] = 0.into();
        std::fs::write(base.join("config.json"), config.to_string()).unwrap();
        let model = train(folder.path(), &["--set", "save.max_shard_bytes=9000"]).join("model");

        let file = std::fs::read_to_string(model.join("chat_template.jinja")).unwrap();
        let settings = json_of(&model.join("tokenizer_config.json"));
        assert_eq!([file.as_str(), settings["chat_template"].as_str().unwrap()], [TEMPLATE; 2]);

        // The end of a turn in the template ends an answer, beside what ended one before.
        let tokenizer = json_of(&model.join("tokenizer.json"));
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let end = added.iter().find(|token| token["content"] == settings["eos_token"]);
        let end = end.unwrap()["id"].as_u64().unwrap();
        let generation = json_of(&model.join("generation_config.json"));
        let ends: BTreeSet<u64> = generation["eos_token_id"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        assert_eq!(ends, BTreeSet::from([0, end]));
        assert_eq!(
            (&generation["bos_token_id"], &generation["pad_token_id"]),
            (&json!(0), &json!(1))
        );

        let config = json_of(&model.join("config.json"));
        assert_eq!(config["architectures"], json!(["Qwen3ForCausalLM"]));
        assert_eq!(
            (&config["dtype"], &config["torch_dtype"]),
            (&json!("float32"), &json!("float32"))
        );

        // The index names every file of weights that is there.
        let index = json_of(&model.join("model.safetensors.index.json"));
        let named: BTreeSet<String> = index["weight_map"]
            .as_object()
            .unwrap()
            .values()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        let there = std::fs::read_dir(&model).unwrap();
        let there = there.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let there: BTreeSet<String> = there.filter(|name| name.ends_with(".safetensors")).collect();
        assert!(named.len() > 1 && named == there, "{named:?} {there:?}");
    }
}

#[test]
fn an_adapter_names_its_base_from_anywhere() {
    let folder = setting();
    let adapter = train(folder.path(), &["--lora-rank", "2"]).join("adapter");
    let config = json_of(&adapter.join("adapter_config.json"));
    let base = Path::new(config["base_model_name_or_path"].as_str().unwrap());
    assert!(base.is_absolute() && base.join("config.json").is_file(), "{}", base.display());
    for key in ["use_dora", "lora_bias", "modules_to_save", "layer_replication"] {
        let value = config.get(key).unwrap_or(&Value::Null);
        assert!(value.is_null() || value == false, "{key}: {value}");
    }
    assert_eq!((&config["bias"], &config["init_lora_weights"]), (&json!("none"), &json!(true)));
    let weights = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    for name in weights.names() {
        let layer = name.strip_prefix("base_model.model.model.layers.0.").expect(name);
        assert!(layer.ends_with("_proj.lora_A.weight") || layer.ends_with("_proj.lora_B.weight"));
    }
    // The card says what it is for, and not where that lies.
    let card = std::fs::read_to_string(adapter.join("README.md")).unwrap();
    assert!(card.contains("Trained from `base`") && !card.contains("base_model:"), "{card}");
}
