//! Reads a tokenizer from GGUF metadata into the files of a model folder.

use super::pre_tokenizers::{adds_bos, known_names, parts_of};
use super::vocabulary::{SPACE, is_byte, kind};
use crate::gguf::{GgufArray, GgufFile, GgufValue};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};

/// The files of a tokenizer.
pub(super) struct TokenizerTexts {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`.
    pub settings: Value,
    /// IDs of tokens that end an answer.
    pub ends: Vec<u32>,
    /// The chat template.
    pub template: Option<String>,
}

/// Texts of tokens that end a turn even if the file does not name them.
const ENDS_OF_TURNS: [&str; 5] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"];

/// Maximum length in bytes of a SentencePiece piece that merges form. SentencePiece's default limit is 16
/// characters.
const LONGEST_PIECE: usize = 128;

/// The tokens of a file.
struct Tokens<'a> {
    file: &'a GgufFile,
    texts: &'a [String],
    kinds: Vec<i64>,
}

/// Reads the tokenizer of a model whose embedding has `size` rows.
///
/// # Errors
/// A message about what is invalid or not supported.
pub(super) fn read_vocabulary(file: &GgufFile, size: usize) -> Result<TokenizerTexts, String> {
    let list = |key: &str| value(file, key).and_then(GgufValue::as_array);
    let Some(GgufArray::String(texts)) = list("tokens") else {
        return Err("it has no tokens (`tokenizer.ggml.tokens`)".into());
    };
    if texts.len() > size {
        return Err(format!("it has {} tokens, but its embedding has {size} rows", texts.len()));
    }
    let kinds = list("token_type").and_then(GgufArray::integers);
    let kinds = kinds.unwrap_or_else(|| vec![i64::from(kind::NORMAL); texts.len()]);
    let different: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
    if kinds.len() != texts.len() || different.len() != texts.len() {
        return Err("its tokens are not distinct, or some have no type".into());
    }
    let tokens = Tokens { file, texts, kinds };
    let tokens_kind = |id: u32| tokens.kinds[id as usize];
    let name = value(file, "model").and_then(GgufValue::as_str).unwrap_or("none");
    let mut tokenizer = match name {
        "gpt2" => tokens.byte_level()?,
        "llama" => tokens.sentence_piece()?,
        "t5" => tokens.unigram()?,
        other => {
            return Err(format!(
                "its tokenizer has the type `{other}`; supported types are gpt2, llama, and t5"
            ));
        }
    };
    tokenizer["version"] = "1.0".into();
    tokenizer["added_tokens"] = tokens.added(name).into();
    let token = |key: &str| {
        let id = value(file, key).and_then(GgufValue::as_u64)?;
        let text = texts.get(usize::try_from(id).ok()?)?;
        Some((u32::try_from(id).ok()?, text.as_str()))
    };
    let usual = |key: &str| match (name, key) {
        // llama.cpp's defaults for this type.
        ("llama", "bos_token_id") => texts.get(1).map(|text| (1, text.as_str())),
        ("llama", "eos_token_id") => texts.get(2).map(|text| (2, text.as_str())),
        _ => None,
    };
    let token = |key: &str| token(key).or_else(|| usual(key));
    let mut settings = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    for (key, ours) in [
        ("bos_token_id", "bos_token"),
        ("eos_token_id", "eos_token"),
        ("unknown_token_id", "unk_token"),
        ("padding_token_id", "pad_token"),
    ] {
        if let Some((_, text)) = token(key) {
            settings[ours] = text.into();
        }
    }
    let adds = value(file, "add_bos_token").and_then(GgufValue::as_bool);
    let pre = value(file, "pre").and_then(GgufValue::as_str).unwrap_or_default();
    let adds = adds.unwrap_or(name == "llama" || name == "gpt2" && adds_bos(pre));
    settings["add_bos_token"] = adds.into();
    if let Some((id, bos)) = token("bos_token_id").filter(|_| adds) {
        tokenizer["post_processor"] = puts_before(id, bos);
    }
    let mut ends = vec![];
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some((id, _)) = token(key).filter(|(id, _)| !ends.contains(id)) {
            ends.push(id);
        }
    }
    // llama.cpp recognizes these by their texts.
    for (id, text) in (0u32..).zip(texts) {
        let is_control = tokens_kind(id) == i64::from(kind::CONTROL);
        if is_control && ENDS_OF_TURNS.contains(&text.as_str()) && !ends.contains(&id) {
            ends.push(id);
        }
    }
    let template = file.metadata().get("tokenizer.chat_template");
    let template = template.and_then(GgufValue::as_str).map(str::to_owned);
    Ok(TokenizerTexts { tokenizer, settings, ends, template })
}

fn value<'a>(file: &'a GgufFile, key: &str) -> Option<&'a GgufValue> {
    file.metadata().get(&format!("tokenizer.ggml.{key}"))
}

/// Returns the post-processor that puts a token before every text.
fn puts_before(id: u32, text: &str) -> Value {
    let token = json!({"SpecialToken": {"id": text, "type_id": 0}});
    let part = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [token, part("A", 0)],
        "pair": [token, part("A", 0), part("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    })
}

impl Tokens<'_> {
    /// Returns whether a token only pads the vocabulary to the embedding's size.
    fn is_filler(&self, id: usize) -> bool {
        let number = self.texts[id].strip_prefix("[PAD").and_then(|text| text.strip_suffix(']'));
        self.kinds[id] == i64::from(kind::UNUSED)
            && number.is_some_and(|n| n.parse::<u32>().is_ok())
    }

    /// Returns the added tokens, which are matched before anything else: special and user-defined ones.
    fn added(&self, model: &str) -> Vec<Value> {
        let one = |(id, text): (usize, &String)| {
            let special = match i32::try_from(self.kinds[id]).ok()? {
                kind::CONTROL => true,
                kind::UNKNOWN => model == "llama",
                kind::USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        self.texts.iter().enumerate().filter_map(one).collect()
    }

    /// Returns the vocabulary, without fillers.
    fn vocabulary(&self) -> Map<String, Value> {
        let own = self.texts.iter().enumerate().filter(|(id, _)| !self.is_filler(*id));
        own.map(|(id, text)| (text.clone(), id.into())).collect()
    }

    fn byte_level(&self) -> Result<Value, String> {
        let name = value(self.file, "pre").and_then(GgufValue::as_str).unwrap_or("default");
        let Some((pre_tokenizer, ignore_merges)) = parts_of(name) else {
            let known = known_names();
            return Err(format!("its pre-tokenizer is `{name}`; supported ones are {known}"));
        };
        let merges = value(self.file, "merges").and_then(GgufValue::as_array);
        let Some(GgufArray::String(merges)) = merges else {
            return Err("it has no merges (`tokenizer.ggml.merges`)".into());
        };
        let pair = |merge: &String| {
            let (left, right) = merge.split_once(' ')?;
            Some(json!([left, right]))
        };
        let merges: Option<Vec<Value>> = merges.iter().map(pair).collect();
        let merges = merges.ok_or("one of its merges does not have two parts")?;
        Ok(json!({
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                        "use_regex": true},
            "model": {"type": "BPE", "vocab": self.vocabulary(), "merges": merges,
                      "ignore_merges": ignore_merges, "byte_fallback": false},
        }))
    }

    fn scores(&self) -> Result<&[f32], String> {
        match value(self.file, "scores").and_then(GgufValue::as_array) {
            Some(GgufArray::F32(scores)) if scores.len() == self.texts.len() => Ok(scores),
            _ => Err("it has no scores for its tokens (`tokenizer.ggml.scores`)".into()),
        }
    }

    /// Returns SentencePiece's BPE, which first merges the adjacent pieces that form the piece with the
    /// highest score.
    fn sentence_piece(&self) -> Result<Value, String> {
        let scores = self.scores()?;
        let vocabulary = self.vocabulary();
        let ids: HashMap<&str, usize> =
            self.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
        let mergeable =
            |id: usize| [kind::NORMAL, kind::UNUSED].map(i64::from).contains(&self.kinds[id]);
        let mut merges: Vec<(f32, usize, usize, usize)> = vec![];
        for (id, text) in self.texts.iter().enumerate().filter(|(id, _)| mergeable(*id)) {
            if text.len() > LONGEST_PIECE {
                return Err(format!(
                    "its token {id} has {} bytes, more than {LONGEST_PIECE}",
                    text.len()
                ));
            }
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let (Some(left), Some(right)) = (ids.get(left), ids.get(right))
                    && mergeable(*left)
                    && mergeable(*right)
                {
                    merges.push((scores[id], id, *left, *right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let text = |id: usize| self.texts[id].as_str();
        let merges: Vec<Value> =
            merges.iter().map(|(_, _, left, right)| json!([text(*left), text(*right)])).collect();
        let unknown = self.kinds.iter().position(|of| *of == i64::from(kind::UNKNOWN));
        let unknown = unknown.or_else(|| {
            let id = value(self.file, "unknown_token_id").and_then(GgufValue::as_u64).unwrap_or(0);
            usize::try_from(id).ok().filter(|id| *id < self.texts.len())
        });
        let adds = value(self.file, "add_space_prefix").and_then(GgufValue::as_bool);
        let adds = adds.unwrap_or(true);
        let space = SPACE.to_string();
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
        let prepend = json!({"type": "Prepend", "prepend": space});
        let normalizers = if adds { vec![prepend, replace] } else { vec![replace] };
        let back = json!({"type": "Replace", "pattern": {"String": space}, "content": " "});
        let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if adds {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": true,
                      "fuse_unk": true, "ignore_merges": false, "unk_token": unknown.map(text)},
        }))
    }

    fn unigram(&self) -> Result<Value, String> {
        let is = |key: &str| value(self.file, key).and_then(GgufValue::as_bool);
        let plain = is("add_space_prefix") == Some(false)
            && is("remove_extra_whitespaces") == Some(false)
            && value(self.file, "precompiled_charsmap").is_none();
        if !plain {
            return Err("its Unigram tokenizer normalizes text, which is not supported".into());
        }
        let scores = self.scores()?;
        let last = (0..self.texts.len()).rev().find(|id| {
            let added = [kind::CONTROL, kind::USER_DEFINED].map(i64::from);
            !self.is_filler(*id) && !added.contains(&self.kinds[*id])
        });
        let own = |id: usize| {
            // Convert through the shortest decimal form, so scores stay as written.
            let score: f64 = scores[id].to_string().parse().unwrap_or(0.0);
            json!([self.texts[id].replace(SPACE, " "), score])
        };
        let vocabulary: Vec<Value> = (0..last.map_or(0, |last| last + 1)).map(own).collect();
        let unknown = self.kinds.iter().position(|of| *of == i64::from(kind::UNKNOWN));
        let falls_back = self.texts.iter().any(|text| is_byte(text));
        Ok(json!({
            "normalizer": null,
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence",
                        "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "Unigram", "vocab": vocabulary, "unk_id": unknown,
                      "byte_fallback": falls_back},
        }))
    }
}
