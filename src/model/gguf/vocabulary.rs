//! A tokenizer as GGUF's metadata.

use super::pre_tokenizers::name_of;
use super::sentence_piece::SentencePiece;
use crate::data::TextTokenizer;
use crate::error::{Error, Result};
use crate::gguf::{GgufArray, GgufValue};
use serde_json::Value;
use std::collections::HashMap;

/// What stands for a space in SentencePiece's vocabularies.
pub(super) const SPACE: char = '\u{2581}';

/// The type of a token, by its number in GGUF.
pub(super) mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// What a tokenizer is made of.
pub(super) struct VocabularySource<'a> {
    pub tokenizer: &'a TextTokenizer,
    /// `tokenizer_config.json`, or null.
    pub settings: Value,
    /// `config.json`, for tokens that the settings do not name.
    pub config: &'a Value,
    /// SentencePiece's `tokenizer.model`, where there is one.
    pub sentence_piece: Option<Vec<u8>>,
    /// Rows of the model's embedding.
    pub size: usize,
    /// Tokens that end an answer.
    pub ends: &'a [u32],
    /// A name for the pre-tokenizer, in place of the one that is found.
    pub pre_tokenizer: Option<&'a str>,
}

/// Tokens, one by one.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
}

impl VocabularySource<'_> {
    /// Keys and values.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for one that llama.cpp does not have.
    pub fn entries(&self) -> Result<Vec<(String, GgufValue)>> {
        let json = self.tokenizer.to_json()?;
        let json: Value = serde_json::from_str(&json)
            .map_err(|e| self.refused(format!("it cannot be written: {e}"), "Report it"))?;
        let mut entries = vec![];
        let mut put = |key: &str, value: GgufValue| {
            entries.push((format!("tokenizer.ggml.{key}"), value));
        };
        let model = &json["model"];
        let bytes = model["byte_fallback"] == true;
        match model["type"].as_str() {
            Some("BPE") if !bytes => {
                put("model", "gpt2".into());
                put("pre", self.pre_tokenizer(&json)?.into());
                let tokens = self.tokens(&json)?;
                put("tokens", GgufValue::Array(GgufArray::String(tokens.texts)));
                put("token_type", GgufValue::Array(GgufArray::I32(tokens.kinds)));
                let merges = merges(model).into_iter().map(|[left, right]| {
                    // A space within a part would divide it elsewhere.
                    format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}"))
                });
                put("merges", GgufValue::Array(GgufArray::String(merges.collect())));
            }
            Some("BPE") => {
                put("model", "llama".into());
                put("pre", "default".into());
                put("add_space_prefix", self.adds_space(&json).into());
                self.put_scored(self.scored(&json)?, &mut put);
            }
            Some("Unigram") => {
                if !json["normalizer"].is_null() || !json["pre_tokenizer"].is_null() {
                    let what = "it is a Unigram model that normalizes or divides texts";
                    return Err(self.refused(what, "Choose a student with a BPE tokenizer"));
                }
                put("model", "t5".into());
                put("pre", "default".into());
                put("add_space_prefix", false.into());
                put("remove_extra_whitespaces", false.into());
                put("add_eos_token", false.into());
                self.put_scored(self.unigram(&json)?, &mut put);
            }
            other => {
                let what = format!(
                    "it is a {} model; llama.cpp has BPE and Unigram",
                    other.unwrap_or("nameless")
                );
                return Err(self.refused(what, "Choose a student with a BPE tokenizer"));
            }
        }
        let id = |token: u32| GgufValue::U32(token);
        if let Some(token) = self.named("bos") {
            put("bos_token_id", id(token));
        }
        let end = self.tokenizer.end_token();
        put("eos_token_id", id(end));
        // The first that the tokenizer does not name by itself ends turns.
        if let Some(other) = self.ends.iter().find(|other| **other != end) {
            put("eot_token_id", id(*other));
        }
        for (name, key) in [("unk", "unknown_token_id"), ("pad", "padding_token_id")] {
            if let Some(token) = self.named(name) {
                put(key, id(token));
            }
        }
        let adds_bos = !self.tokenizer.with_bos(vec![]).is_empty();
        put("add_bos_token", adds_bos.into());
        Ok(entries)
    }

    fn refused(&self, what: impl Into<String>, hint: &str) -> Error {
        let name = self.tokenizer.name().to_owned();
        Error::Tokenizer { name, what: what.into(), hint: hint.into() }
    }

    fn pre_tokenizer(&self, json: &Value) -> Result<String> {
        if let Some(name) = self.pre_tokenizer {
            return Ok(name.to_owned());
        }
        let found = name_of(self.tokenizer, json)?;
        found.map(str::to_owned).ok_or_else(|| {
            let what = "llama.cpp's converter does not know its pre-tokenizer, and none that it has \
                        divides texts as this one does";
            let hint = "If you know the name of one that does, give it as the pre-tokenizer; a wrong one \
                        makes other tokens";
            self.refused(what, hint)
        })
    }

    /// The number of a special token, by `tokenizer_config.json` or `config.json`.
    fn named(&self, name: &str) -> Option<u32> {
        let token = &self.settings[format!("{name}_token")];
        let text = token.as_str().or_else(|| token["content"].as_str());
        text.and_then(|text| self.tokenizer.token(text)).or_else(|| {
            let id = self.config[format!("{name}_token_id")].as_u64()?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < self.size)
        })
    }

    /// All tokens, without scores.
    fn tokens(&self, json: &Value) -> Result<Tokens> {
        let size = self.size;
        let mut tokens = Tokens {
            texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![kind::UNUSED; size],
            scores: vec![0.0; size],
        };
        let falls_back = json["model"]["byte_fallback"] == true;
        let unknown = json["model"]["unk_token"].as_str().filter(|_| falls_back);
        for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            let id = self.number(id)?;
            tokens.kinds[id] = match text {
                text if Some(text.as_str()) == unknown => kind::UNKNOWN,
                text if falls_back && is_byte(text) => kind::BYTE,
                _ => kind::NORMAL,
            };
            tokens.texts[id] = text.clone();
        }
        self.add(json, &mut tokens)?;
        Ok(tokens)
    }

    /// Tokens that were added to the model's own.
    fn add(&self, json: &Value, tokens: &mut Tokens) -> Result<()> {
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let id = self.number(&added["id"])?;
            let text = added["content"].as_str().unwrap_or_default();
            if added["special"] == true || looks_special(text) {
                tokens.kinds[id] = kind::CONTROL;
                tokens.texts[id] = text.to_owned();
            } else {
                tokens.kinds[id] = kind::USER_DEFINED;
                tokens.texts[id] = text.replace(SPACE, " ");
            }
        }
        Ok(())
    }

    /// A token's number, which the embedding must have.
    fn number(&self, id: &Value) -> Result<usize> {
        let found = id.as_u64().and_then(|id| usize::try_from(id).ok());
        found.filter(|id| *id < self.size).ok_or_else(|| {
            let what = format!("it has a token {id}, and the model {} of them", self.size);
            self.refused(what, "Use the tokenizer that belongs to the model")
        })
    }

    /// The tokens of a BPE tokenizer that came from SentencePiece, with its scores, or where it is not
    /// there with scores that merge in the same order.
    fn scored(&self, json: &Value) -> Result<Tokens> {
        let mut tokens = self.tokens(json)?;
        if let Some(bytes) = &self.sentence_piece {
            let model = SentencePiece::parse(bytes).ok_or_else(|| {
                let hint = "Bring the file again, or remove it: tokenizer.json is enough";
                self.refused("tokenizer.model beside it is damaged", hint)
            })?;
            for (id, piece) in model.pieces.into_iter().enumerate().take(self.size) {
                tokens.scores[id] = piece.score;
                // Otherwise it has another meaning today.
                if tokens.texts[id] == piece.text && tokens.kinds[id] != kind::CONTROL {
                    tokens.kinds[id] = piece.kind;
                }
            }
            return Ok(tokens);
        }
        let merges = merges(&json["model"]);
        let mut scores: HashMap<String, f32> = HashMap::with_capacity(merges.len());
        for (rank, [left, right]) in merges.into_iter().enumerate() {
            scores.entry(left + &right).or_insert(-(rank as f32) - 1.0);
        }
        for (text, score) in tokens.texts.iter().zip(&mut tokens.scores) {
            *score = scores.get(text).copied().unwrap_or(0.0);
        }
        Ok(tokens)
    }

    /// The tokens of a Unigram tokenizer.
    fn unigram(&self, json: &Value) -> Result<Tokens> {
        let size = self.size;
        let mut tokens = Tokens {
            texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![kind::UNUSED; size],
            // Unused tokens match texts, too.
            scores: vec![-1e9; size],
        };
        let unknown = json["model"]["unk_id"].as_u64();
        let vocabulary = json["model"]["vocab"].as_array().into_iter().flatten();
        for (id, entry) in (0u64..).zip(vocabulary) {
            let at = self.number(&Value::from(id))?;
            let text = entry[0].as_str().unwrap_or_default();
            tokens.scores[at] = entry[1].as_f64().unwrap_or(0.0) as f32;
            tokens.kinds[at] = match text {
                _ if Some(id) == unknown => kind::UNKNOWN,
                text if is_byte(text) => kind::BYTE,
                _ => kind::NORMAL,
            };
            tokens.texts[at] = text.replace(' ', &SPACE.to_string());
        }
        self.add(json, &mut tokens)?;
        Ok(tokens)
    }

    fn put_scored(&self, tokens: Tokens, put: &mut impl FnMut(&str, GgufValue)) {
        put("tokens", GgufValue::Array(GgufArray::String(tokens.texts)));
        put("scores", GgufValue::Array(GgufArray::F32(tokens.scores)));
        put("token_type", GgufValue::Array(GgufArray::I32(tokens.kinds)));
    }

    /// Whether a space is put before a text.
    fn adds_space(&self, json: &Value) -> bool {
        if let Some(adds) = self.settings["add_prefix_space"].as_bool() {
            return adds;
        }
        if let Some(model) = self.sentence_piece.as_deref().and_then(SentencePiece::parse) {
            return model.adds_space;
        }
        let normalizer = &json["normalizer"];
        let one = std::slice::from_ref(normalizer);
        let parts = normalizer["normalizers"].as_array().map_or(one, Vec::as_slice);
        let metaspace = &json["pre_tokenizer"];
        parts.iter().any(|part| part["type"] == "Prepend")
            || metaspace["type"] == "Metaspace" && metaspace["prepend_scheme"] != "never"
    }
}

/// Whether a token stands for a byte: `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Whether a token is one that some models use as special, and do not say so; as llama.cpp's converter
/// has it.
fn looks_special(text: &str) -> bool {
    let between = |left: &str, right: &str| text.starts_with(left) && text.ends_with(right);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// The merges of a BPE model, in order.
fn merges(model: &Value) -> Vec<[String; 2]> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some([left.to_owned(), right.to_owned()])
        }
        pair => Some([pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()]),
    };
    model["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}
