//! GGUF files: written, read back, and compared with the folders that they come from; files that are not models;
//! and cases for `tests/parity/check_gguf.py`, which runs llama.cpp.

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
use mixdistill::data::{TextTokenizer, arith};
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
        partial_rotary_factor: properties.partial_rotary.unwrap_or(1.0),
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

/// A tokenizer as it comes from SentencePiece: BPE over characters with `▁` for spaces, bytes for the rest.
pub fn sentence_piece(adds_space: bool) -> TextTokenizer {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    pieces.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    // In the order of their scores.
    let merged = [
        "\u{2581}t",
        "in",
        "er",
        "\u{2581}a",
        "he",
        "\u{2581}the",
        "at",
        "\u{2581}\u{2581}",
        "ing",
        "33",
    ];
    pieces.extend(merged.map(str::to_owned));
    pieces.extend((33..127u8).map(|byte| char::from(byte).to_string()));
    pieces.extend(["\u{2581}", "é"].map(str::to_owned));
    let place = |piece: &str| pieces.iter().position(|other| other == piece);
    let mut merges = vec![];
    for piece in merged {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if place(left).is_some() && place(right).is_some() {
                merges.push(json!([left, right]));
            }
        }
    }
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), id.into())).collect();
    let special = |id: usize| {
        json!({"id": id, "content": pieces[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if adds_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
                  "byte_fallback": true, "vocab": vocabulary, "merges": merges},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    TextTokenizer::from_folder(folder.path(), Some("</s>")).unwrap()
}

/// Tokenizers of other kinds than byte-level BPE, with what they are called.
pub fn other_tokenizers() -> Vec<(&'static str, TextTokenizer)> {
    let words = arith::vocabulary();
    let unigram = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
    vec![
        ("sentence_piece", sentence_piece(true)),
        ("sentence_piece_plain", sentence_piece(false)),
        ("unigram", unigram),
    ]
}

impl Student {
    /// One with this tokenizer, and without a chat template.
    pub fn with_tokenizer(tokenizer: &TextTokenizer) -> Self {
        let vocab_size = tokenizer.vocabulary_size() + 3;
        let config = DecoderConfig { vocab_size, ..small(Architecture::Llama) };
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("student");
        let model = shaken(&config, &common::devices()[0]);
        model.save(&folder, &SaveFolder::new(tokenizer)).unwrap();
        Self { folder, model, place }
    }

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
