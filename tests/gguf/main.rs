//! GGUF files: written and read back, beside the folders that they come from; what is not a model's file; and
//! cases for `tests/parity/check_gguf.py`, which asks llama.cpp.

#[path = "../common/mod.rs"]
mod common;
#[path = "../parity_support/mod.rs"]
mod parity_support;

mod files;
mod llama_cpp;
mod students;

use common::chat_folder::ChatFolder;
use common::shaken;
use mixdistill::context::Context;
use mixdistill::gguf::TensorType;
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, GgufOptions, GgufReport, RopeScaling, RopeType,
    SaveFolder, export_gguf,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A layout such as chat models have.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                            message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A small model of a family, of sizes that llama.cpp takes and of which rows are whole blocks.
pub fn small(architecture: Architecture) -> DecoderConfig {
    let properties = architecture.properties();
    DecoderConfig {
        architecture,
        vocab_size: 264,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: if properties.rope_local_base_freq.is_some() { 7 } else { 4 },
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: Some(16),
        max_position_embeddings: 512,
        rms_norm_eps: properties.rms_norm_eps,
        rope_theta: properties.rope_theta,
        sliding_window: properties.rope_local_base_freq.map(|_| 12),
        tie_word_embeddings: properties.tie_word_embeddings || architecture == Architecture::Llama,
        initializer_range: 0.15,
        ..multipliers(architecture)
    }
}

fn multipliers(architecture: Architecture) -> DecoderConfig {
    match architecture {
        Architecture::Granite => DecoderConfig {
            embedding_multiplier: Some(3.0),
            attention_multiplier: Some(0.2),
            residual_multiplier: 0.6,
            logits_scaling: 2.0,
            ..DecoderConfig::default()
        },
        Architecture::Ministral3 => DecoderConfig {
            rope_scaling: Some(RopeScaling {
                rope_type: RopeType::Yarn,
                factor: 4.0,
                original_max_position_embeddings: 24,
                mscale: Some(1.0),
                mscale_all_dim: Some(1.0),
                llama_4_scaling_beta: Some(0.1),
                ..RopeScaling::default()
            }),
            ..DecoderConfig::default()
        },
        _ => DecoderConfig::default(),
    }
}

/// The small models: one of each family, and more for scalings of RoPE.
pub fn cases() -> Vec<(String, DecoderConfig)> {
    let name = |family: Architecture| family.properties().model_type.to_owned();
    let mut cases: Vec<(String, DecoderConfig)> =
        Architecture::ALL.into_iter().map(|family| (name(family), small(family))).collect();
    let mut scaled = |name: &str, architecture, scaling: RopeScaling| {
        let config = DecoderConfig { rope_scaling: Some(scaling), ..small(architecture) };
        cases.push((name.to_owned(), config));
    };
    let yarn = RopeScaling {
        rope_type: RopeType::Yarn,
        factor: 4.0,
        original_max_position_embeddings: 128,
        ..RopeScaling::default()
    };
    scaled("llama_yarn", Architecture::Llama, yarn.clone());
    let attention_factor = Some(1.3);
    scaled("qwen3_yarn", Architecture::Qwen3, RopeScaling { attention_factor, ..yarn.clone() });
    let linear = RopeScaling { rope_type: RopeType::Linear, factor: 8.0, ..yarn.clone() };
    scaled("qwen2_linear", Architecture::Qwen2, linear.clone());
    scaled("gemma3_linear", Architecture::Gemma3Text, linear);
    let llama3 = RopeScaling {
        rope_type: RopeType::Llama3,
        factor: 8.0,
        original_max_position_embeddings: 64,
        ..RopeScaling::default()
    };
    scaled("llama3", Architecture::Llama, llama3);
    // llama.cpp decides by its context, which is at least 256 tokens; ours is shorter in these tests.
    for (name, original) in [("phi3_longrope_long", 64u16), ("phi3_longrope_short", 256)] {
        let longrope = RopeScaling {
            rope_type: RopeType::LongRope,
            factor: 512.0 / f64::from(original),
            original_max_position_embeddings: usize::from(original),
            short_factor: (0..8).map(|i| 1.0 + 0.1 * f64::from(i)).collect(),
            long_factor: (0..8).map(|i| 1.5 + 0.5 * f64::from(i)).collect(),
            ..RopeScaling::default()
        };
        scaled(name, Architecture::Phi3, longrope);
    }
    cases
}

/// A model's folder with a byte-level tokenizer and a chat template.
pub struct Student {
    pub folder: PathBuf,
    pub model: DecoderLm,
    place: tempfile::TempDir,
}

impl Student {
    pub fn new(config: &DecoderConfig) -> Self {
        let settings = json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE});
        let special = ["<|im_start|>", "<|im_end|>", "<|pad|>"];
        let tokens = ChatFolder::new(&special, &["<think>", "</think>"], false, settings);
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("student");
        let model = shaken(config, &common::devices()[0]);
        let tokenizer = tokens.tokenizer();
        let how = SaveFolder { chat_template: Some(TEMPLATE), ..SaveFolder::new(&tokenizer) };
        model.save(&folder, &how).unwrap();
        Self { folder, model, place }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn export(&self, name: &str, kind: TensorType) -> (PathBuf, GgufReport) {
        let out = self.path(name);
        (out.clone(), export(&self.folder, &out, kind).unwrap())
    }
}

/// Writes a folder as a file of this type, without a Modelfile.
pub fn export(folder: &Path, out: &Path, kind: TensorType) -> mixdistill::Result<GgufReport> {
    let options = GgufOptions { tensor_type: kind, ..GgufOptions::default() };
    export_gguf(folder.to_str().unwrap(), None, out, &options, &Context::default())
}
