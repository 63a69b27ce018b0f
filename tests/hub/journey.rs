//! The whole way with the program alone: a student and teachers' answers from a hub, training,
//! pushing the student back, and a file for llama.cpp, which `tests/parity/check_gguf.py` asks the
//! same questions.

use super::cache;
use super::common::chat_folder::ChatFolder;
use super::common::{devices, say, shaken};
use super::datasets::run_program;
use super::server::*;
use mixdistill::context::Context;
use mixdistill::model::{
    Architecture, DecoderConfig, GenerateConfig, LoadOptions, SaveFolder, StopConditions, TextModel,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                        message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const PROMPT: &str = "What is 12 + 7?";
const NEW: &str = "20";

/// A student's folder.
fn student(folder: &Path) -> PathBuf {
    let settings = json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE});
    let tokens = ChatFolder::new(&["<|im_start|>", "<|im_end|>"], &[], false, settings);
    let config = DecoderConfig {
        architecture: Architecture::Qwen3,
        vocab_size: 260,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 3,
        head_dim: Some(16),
        rms_norm_eps: 1e-6,
        initializer_range: 0.15,
        ..DecoderConfig::default()
    };
    let (tokenizer, out) = (tokens.tokenizer(), folder.join("student"));
    let how = SaveFolder { chat_template: Some(TEMPLATE), ..SaveFolder::new(&tokenizer) };
    shaken(&config, &devices()[0]).save(&out, &how).unwrap();
    out
}

/// Rows of one teacher.
fn answers(teacher: &str) -> Vec<u8> {
    let row = |n: usize| {
        let sum = n + 7;
        let problem = format!("What is {n} + 7?");
        json!({"problem": problem, "solution": format!("{teacher} {sum}")}).to_string() + "\n"
    };
    (0..12).map(row).collect::<String>().into_bytes()
}

/// What a command prints as JSON.
fn result(server: &Server, cache: &TempDir, words: &[&str]) -> Value {
    let ended = run_program(server, cache, &[words, &["--json"]].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    assert!(ended.status.success(), "{words:?}: {out}\n{err}");
    assert!(!out.contains(TOKEN) && !err.contains(TOKEN));
    serde_json::from_str(out.trim()).unwrap()
}

#[test]
fn from_the_hub_to_llama_cpp_and_back_to_the_hub() {
    let (place, cache) = (tempfile::tempdir().unwrap(), cache());
    let student = student(place.path());
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<(String, Vec<u8>)> =
        fs::read_dir(&student).unwrap().map(|entry| read(entry.unwrap())).collect();
    files.push(("long.jsonl".into(), answers("First we add, and then we have")));
    files.push(("short.jsonl".into(), answers("It is")));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let server = Server::start(&files);
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (run, file) = (path("run"), path("student.gguf"));
    let call = |words: &[&str]| result(&server, &cache, words);
    let trained = call(&[
        "train",
        "--model",
        "some/model",
        "--long",
        "some/data/long.jsonl",
        "--short",
        "some/data/short.jsonl",
        "--lora-rank",
        "4",
        "--steps",
        "3",
        "--max-length",
        "160",
        "--out",
        &run,
    ]);
    assert_eq!(trained["outcome"]["step"], 3, "{trained}");
    let pushed = call(&["push", "me/tuned", "--from", &run]);
    assert_eq!(pushed["repository"], "me/tuned", "{pushed}");
    {
        let state = server.state.lock().unwrap();
        let (_, lines) = &state.store.commits[0];
        let sent = |path: &str| lines.iter().find(|line| line["value"]["path"] == path);
        assert!(sent("README.md").is_some(), "{lines:?}");
        let weights = fs::read(place.path().join("run/adapter/adapter_model.safetensors")).unwrap();
        let sha256: String =
            Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sent("adapter_model.safetensors").unwrap()["value"]["oid"], sha256);
    }
    let exported =
        call(&["export", "--model", &run, "--gguf", &file, "--type", "f32", "--no-modelfile"]);
    assert_eq!(exported["architecture"], "qwen3", "{exported}");
    let ask = |model: &str| {
        let words = ["generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", NEW];
        call(&words)["answer"].as_str().unwrap().to_owned()
    };
    let answer = ask(&run);
    assert!(!answer.is_empty());
    assert_eq!(ask(&file), answer);
    write_case(Path::new(&file), &answer);
}

/// Writes the file and the answer for llama.cpp.
fn write_case(file: &Path, answer: &str) {
    let options = LoadOptions { backend: "flex".into(), ..LoadOptions::default() };
    let loaded = TextModel::load(file.to_str().unwrap(), &options, &Context::default()).unwrap();
    let text = loaded.text_interface();
    let prompt = text.template.prompt(text.tokenizer, PROMPT.into()).unwrap();
    let stop = StopConditions { tokens: text.end_tokens, tokenizer: text.tokenizer };
    let config = GenerateConfig { max_new_tokens: NEW.parse().unwrap(), ..Default::default() };
    let prompts = [prompt];
    let answers =
        loaded.model.generate(&prompts, stop, &config, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answers[0].text(text.tokenizer).unwrap(), answer);
    let Some(out) = std::env::var_os("MIXDISTILL_GGUF_OUT").map(PathBuf::from) else {
        return say("skipped: MIXDISTILL_GGUF_OUT does not name a folder");
    };
    let out = out.join("journey");
    fs::create_dir_all(&out).unwrap();
    fs::copy(file, out.join("f32.gguf")).unwrap();
    let expected = json!({
        "texts": [],
        "prompts": [{"prompt": prompts[0], "greedy": answers[0].tokens}],
        "n_ctx": 256,
    });
    fs::write(out.join("expected.json"), expected.to_string()).unwrap();
}
