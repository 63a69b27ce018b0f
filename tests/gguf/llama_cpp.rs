//! Cases for `tests/parity/check_gguf.py`: files, and this crate's results for the same prompts.

use super::{Student, cases, export, other_tokenizers};
use crate::common::{devices, generate, say, smollm2};
use crate::parity_support::{self, with_random_b};
use mixdistill::context::Context;
use mixdistill::gguf::TensorType;
use mixdistill::model::{
    DecoderLm, GenerateConfig, LoraConfig, ModelFolder, SaveAdapter, export_gguf_adapter,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Tokens of an answer.
const NEW: usize = 24;

fn folder_of_cases() -> Option<PathBuf> {
    let out = std::env::var_os("MIXDISTILL_GGUF_OUT").map(PathBuf::from);
    if out.is_none() {
        say("skipped: MIXDISTILL_GGUF_OUT does not name a folder");
    }
    out
}

/// The tokens that follow a prompt.
fn greedy(model: &DecoderLm, prompt: &[u32]) -> Vec<u32> {
    let config = GenerateConfig { max_new_tokens: NEW, temperature: 0.0, ..Default::default() };
    let answers = generate(model, &[prompt.to_vec()], &[], &config).unwrap();
    answers[0].tokens.clone()
}

/// Writes what is to be compared: texts with their tokens, prompts with the tokens that follow.
fn write_case(folder: &Path, out: &Path, kinds: &[TensorType], texts: &[&str]) {
    std::fs::create_dir_all(out).unwrap();
    let files = ModelFolder::open(folder).unwrap();
    // The context that llama.cpp decides LongRoPE by.
    let context = 96;
    let files = files.for_length(context, &Context::default()).unwrap();
    let tokenizer = files.tokenizer(None).unwrap();
    let model = files.load(&devices()[0]).unwrap();
    let texts: Vec<_> = texts
        .iter()
        .map(|text| json!({"text": text, "tokens": tokenizer.encode_marked(text).unwrap()}))
        .collect();
    let prompts: Vec<_> = texts
        .iter()
        .map(|text| {
            let prompt: Vec<u32> = serde_json::from_value(text["tokens"].clone()).unwrap();
            let prompt = prompt[..prompt.len().min(context - NEW)].to_vec();
            let all = parity_support::logits(&model, &prompt, &devices()[0]);
            let last = &all[all.len() - files.config().vocab_size..];
            json!({"prompt": prompt, "greedy": greedy(&model, &prompt), "logits": last})
        })
        .collect();
    for kind in kinds {
        export(folder, &out.join(format!("{}.gguf", kind.name())), *kind).unwrap();
    }
    let mut expected = json!({"texts": texts, "prompts": prompts, "n_ctx": context});
    if files.config().num_hidden_layers < 10 {
        let lora = LoraConfig { rank: 4, alpha: 16.0, ..LoraConfig::default() };
        let adapted = with_random_b(model.with_lora(&lora, 3).unwrap());
        let (adapter, base) = (out.join("adapter"), folder.to_str().unwrap());
        adapted.save_adapter(&adapter, &SaveAdapter { base, ..SaveAdapter::default() }).unwrap();
        let (file, context) = (out.join("lora.gguf"), Context::default());
        export_gguf_adapter(base, Some(&adapter), &file, TensorType::F32, &context).unwrap();
        let prompts: Vec<_> = prompts
            .iter()
            .map(|asked| {
                let prompt: Vec<u32> = serde_json::from_value(asked["prompt"].clone()).unwrap();
                let all = parity_support::logits(&adapted, &prompt, &devices()[0]);
                let last = &all[all.len() - files.config().vocab_size..];
                json!({"prompt": prompt, "greedy": greedy(&adapted, &prompt), "logits": last})
            })
            .collect();
        expected["lora"] = prompts.into();
    }
    std::fs::write(out.join("expected.json"), expected.to_string()).unwrap();
}

const TEXTS: [&str; 3] = [
    "<|im_start|>user\nWhat is 12 * 7?<|im_end|>\n<|im_start|>assistant\n",
    "It's 3333 times\n\n  better:   x = [1, 2]; né 🦙",
    "<think>\nFirst, 5 + 6 = 11.\n</think>\nSo it is 11.",
];

#[test]
fn cases_for_llama_cpp_are_written() {
    let Some(out) = folder_of_cases() else { return };
    for (name, config) in cases() {
        let student = Student::new(&config);
        write_case(&student.folder, &out.join(name), &[TensorType::F32, TensorType::F16], &TEXTS);
    }
}

#[test]
fn cases_with_other_tokenizers_are_written() {
    let Some(out) = folder_of_cases() else { return };
    for (name, tokenizer) in other_tokenizers() {
        let student = Student::with_tokenizer(&tokenizer);
        // llama.cpp's Unigram knows no bytes for what has no token.
        let texts: &[&str] = match name {
            "unigram" => &["12 + 7 = 19", "Start with 12,  then add 7.\nIt is 19"],
            _ => &["the  33 hens at it", " in\n\nthere: é 🦙 x333", "a</s>the ing"],
        };
        write_case(&student.folder, &out.join(name), &[TensorType::F32], texts);
    }
}

#[test]
fn smollm2_is_written_for_llama_cpp() {
    let (Some(out), Some(folder)) = (folder_of_cases(), smollm2()) else { return };
    let kinds = [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q4_0];
    let out = out.join("SmolLM2");
    write_case(&folder, &out, &kinds, &TEXTS);
    let original = folder.with_file_name("gguf").join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if original.is_file() {
        std::fs::write(out.join("original.txt"), original.to_str().unwrap()).unwrap();
    }
}
