//! Writes a tokenizer as GGUF metadata.

use super::pre_tokenizers::{is_known, known_names, name_of};
use super::sentence_piece::SentencePiece;
use crate::data::TextTokenizer;
use crate::error::{Error, Result};
use crate::gguf::{GgufArray, GgufValue};
use serde_json::Value;
use std::collections::HashMap;

/// The space in SentencePiece's vocabularies.
pub(super) const SPACE: char = '\u{2581}';

/// Hint for a tokenizer that llama.cpp does not support.
const OTHER_STUDENT: &str = "Choose a student with a BPE tokenizer, or serve its folder with vLLM";

/// Types of tokens, by their numbers in GGUF.
pub(super) mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The sources of a vocabulary.
pub(super) struct VocabularySource<'a> {
    pub tokenizer: &'a TextTokenizer,
    /// `tokenizer_config.json`, or null.
    pub settings: Value,
    /// `config.json`, for special tokens that the settings do not name.
    pub config: &'a Value,
    /// SentencePiece's `tokenizer.model`, if there is one.
    pub sentence_piece: Option<Vec<u8>>,
    /// Rows of the model's embedding.
    pub size: usize,
    /// The token with which the model's layout ends an answer.
    pub end_of_turn: u32,
    /// All tokens that end an answer.
    pub ends: &'a [u32],
    /// Name of the pre-tokenizer, which overrides detection.
    pub pre_tokenizer: Option<&'a str>,
}

/// A tokenizer in GGUF.
pub(super) struct Vocabulary {
    /// Keys and values.
    pub entries: Vec<(String, GgufValue)>,
    /// Messages about differences in llama.cpp.
    pub notices: Vec<String>,
}

/// Tokens, indexed by ID.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
}

impl VocabularySource<'_> {
    /// Returns the tokenizer in GGUF.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if llama.cpp does not support it.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        let json = self.tokenizer.to_json()?;
        let json: Value = serde_json::from_str(&json).map_err(|e| {
            self.refused(format!("it cannot be written: {e}"), "Report this as a bug")
        })?;
        let (mut entries, mut notices) = (vec![], vec![]);
        let mut put = |key: &str, value: GgufValue| {
            entries.push((format!("tokenizer.ggml.{key}"), value));
        };
        let bytes = json["model"]["byte_fallback"] == true;
        let mut unknown = self.named("unk");
        match json["model"]["type"].as_str() {
            Some("BPE") if !bytes => self.put_byte_level(&json, &mut put)?,
            Some("BPE") => {
                self.check_sentence_piece(&json)?;
                put("model", "llama".into());
                put("pre", "default".into());
                put("add_space_prefix", self.adds_space(&json).into());
                put_scored(self.scored(&json)?, &mut put);
            }
            Some("Unigram") => {
                if !json["normalizer"].is_null() || !json["pre_tokenizer"].is_null() {
                    let what = "it is a Unigram model with a normalizer or a pre-tokenizer";
                    return Err(self.refused(what, OTHER_STUDENT));
                }
                put("model", "t5".into());
                put("pre", "default".into());
                put("add_space_prefix", false.into());
                put("remove_extra_whitespaces", false.into());
                put("add_eos_token", false.into());
                put_scored(self.unigram(&json)?, &mut put);
                unknown = json["model"]["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
                if bytes {
                    notices.push(
                        "the tokenizer encodes characters without a token as bytes; llama.cpp's Unigram encodes \
                         them as the unknown token"
                            .into(),
                    );
                }
            }
            other => {
                let name = other.unwrap_or("nameless");
                let what = format!("it is a {name} model; only BPE and Unigram can be exported");
                return Err(self.refused(what, OTHER_STUDENT));
            }
        }
        if let Some(token) = self.named("bos") {
            put("bos_token_id", GgufValue::U32(token));
        }
        notices.extend(self.put_ends(&mut put));
        for (token, key) in [(unknown, "unknown_token_id"), (self.named("pad"), "padding_token_id")]
        {
            if let Some(token) = token {
                put(key, GgufValue::U32(token));
            }
        }
        let adds_bos = !self.tokenizer.with_bos(vec![]).is_empty();
        put("add_bos_token", adds_bos.into());
        Ok(Vocabulary { entries, notices })
    }

    fn put_byte_level(&self, json: &Value, put: &mut impl FnMut(&str, GgufValue)) -> Result<()> {
        put("model", "gpt2".into());
        put("pre", self.pre_tokenizer(json)?.into());
        let tokens = self.tokens(json)?;
        put("tokens", GgufValue::Array(GgufArray::String(tokens.texts)));
        put("token_type", GgufValue::Array(GgufArray::I32(tokens.kinds)));
        let merges = merges(&json["model"]).into_iter().map(|[left, right]| {
            // A space within a part would be taken as the separator.
            format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}"))
        });
        put("merges", GgufValue::Array(GgufArray::String(merges.collect())));
        Ok(())
    }

    /// Writes the end tokens: the tokenizer's, the layout's, and one more. llama.cpp recognizes others by
    /// their texts. Returns a notice about tokens that do not fit.
    fn put_ends(&self, put: &mut impl FnMut(&str, GgufValue)) -> Option<String> {
        let end = self.tokenizer.end_token();
        put("eos_token_id", GgufValue::U32(end));
        let mut ends: Vec<u32> = vec![self.end_of_turn];
        ends.extend(self.ends);
        let mut others: Vec<u32> = vec![];
        for token in ends {
            if token != end && !others.contains(&token) {
                others.push(token);
            }
        }
        let mut others = others.into_iter();
        for key in ["eot_token_id", "eom_token_id"] {
            if let Some(token) = others.next() {
                put(key, GgufValue::U32(token));
            }
        }
        let left: Vec<String> =
            others.map(|token| self.tokenizer.token_text(token).unwrap_or_default()).collect();
        (!left.is_empty()).then(|| {
            let left = left.join(", ");
            format!("a GGUF file can name only three end tokens; it does not name {left}")
        })
    }

    /// Refuses a normalizer or a pre-tokenizer that differs from SentencePiece's.
    fn check_sentence_piece(&self, json: &Value) -> Result<()> {
        let normalizer = &json["normalizer"];
        let one = std::slice::from_ref(normalizer);
        let parts = normalizer["normalizers"].as_array().map_or(one, Vec::as_slice);
        let space = SPACE.to_string();
        let replaces = |part: &Value| {
            part["type"] == "Replace"
                && part["pattern"]["String"] == " "
                && part["content"] == space
        };
        let prepends = |part: &Value| part["type"] == "Prepend" && part["prepend"] == space;
        let plain = parts.iter().all(|part| part.is_null() || replaces(part) || prepends(part));
        let pre_tokenizer = &json["pre_tokenizer"];
        let divides = match pre_tokenizer["type"].as_str() {
            None => !pre_tokenizer.is_null(),
            Some("Metaspace") => false,
            // Gemma's splits at spaces, which are already replaced.
            Some("Split") => pre_tokenizer["pattern"]["String"] != " ",
            Some(_) => true,
        };
        if plain && !divides {
            return Ok(());
        }
        let what = "it has SentencePiece's tokens, but a different normalizer or pre-tokenizer";
        Err(self.refused(what, OTHER_STUDENT))
    }

    fn refused(&self, what: impl Into<String>, hint: &str) -> Error {
        let name = self.tokenizer.name().to_owned();
        Error::Tokenizer { name, what: what.into(), hint: hint.into() }
    }

    fn pre_tokenizer(&self, json: &Value) -> Result<String> {
        if let Some(name) = self.pre_tokenizer {
            return match is_known(name) {
                true => Ok(name.to_owned()),
                false => Err(Error::config(
                    "pre_tokenizer",
                    format!("llama.cpp has no pre-tokenizer `{name}`"),
                    format!("Use one of {}", known_names()),
                )),
            };
        }
        let found = name_of(self.tokenizer, json)?;
        found.map(str::to_owned).ok_or_else(|| {
            let what = "llama.cpp's converter does not know its pre-tokenizer, and no known one splits text \
                        the same way";
            let hint = "Pass the name of an equivalent pre-tokenizer if you know one; a wrong one changes \
                        the tokens";
            self.refused(what, hint)
        })
    }

    /// Returns the ID of a special token, from `tokenizer_config.json` or `config.json`.
    fn named(&self, name: &str) -> Option<u32> {
        let token = &self.settings[format!("{name}_token")];
        let text = token.as_str().or_else(|| token["content"].as_str());
        text.and_then(|text| self.tokenizer.token(text)).or_else(|| {
            let id = self.config[format!("{name}_token_id")].as_u64()?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < self.size)
        })
    }

    /// Returns all tokens, without scores.
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

    /// Adds the added tokens.
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

    /// Returns a token's ID, which must be within the embedding.
    fn number(&self, id: &Value) -> Result<usize> {
        let found = id.as_u64().and_then(|id| usize::try_from(id).ok());
        found.filter(|id| *id < self.size).ok_or_else(|| {
            let what =
                format!("it has the token ID {id}, but the model has only {} tokens", self.size);
            self.refused(what, "Use the tokenizer that belongs to the model")
        })
    }

    /// Returns the tokens of a BPE tokenizer from SentencePiece, with the scores of `tokenizer.model`, or
    /// without that file with scores that give the same order of merges.
    fn scored(&self, json: &Value) -> Result<Tokens> {
        let mut tokens = self.tokens(json)?;
        if let Some(bytes) = &self.sentence_piece {
            let model = SentencePiece::parse(bytes).ok_or_else(|| {
                let hint =
                    "Download or copy the file again, or remove it; tokenizer.json is enough";
                self.refused("the file tokenizer.model is damaged", hint)
            })?;
            for (id, piece) in model.pieces.into_iter().enumerate().take(self.size) {
                tokens.scores[id] = piece.score;
                // Otherwise, the token has been redefined.
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

    /// Returns the tokens of a Unigram tokenizer.
    fn unigram(&self, json: &Value) -> Result<Tokens> {
        let size = self.size;
        let mut tokens = Tokens {
            texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![kind::UNUSED; size],
            // llama.cpp also matches unused tokens in text.
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

    /// Returns whether a space is added before a text.
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

fn put_scored(tokens: Tokens, put: &mut impl FnMut(&str, GgufValue)) {
    put("tokens", GgufValue::Array(GgufArray::String(tokens.texts)));
    put("scores", GgufValue::Array(GgufArray::F32(tokens.scores)));
    put("token_type", GgufValue::Array(GgufArray::I32(tokens.kinds)));
}

/// Returns whether a token represents a byte, such as `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Returns whether a token is special in some models that do not mark it as such, as in llama.cpp's
/// converter.
fn looks_special(text: &str) -> bool {
    let between = |left: &str, right: &str| text.starts_with(left) && text.ends_with(right);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Returns the merges of a BPE model, in order.
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
