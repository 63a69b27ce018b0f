//! Tokenizers: any Hugging Face `tokenizer.json`, and a small one for the toy corpus.

use super::chat_template::TokenizerConfig;
use super::reasoning::is_reasoning_mark;
use crate::error::{Error, Result};
use crate::files::stands_in;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, ModelWrapper};

/// End tokens of known model families, tried in this order if none is named.
const KNOWN_END_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<|end|>",
    "<eos>",
    "[EOS]",
];

/// First of the characters that replace the names of special tokens while a template lays out text that
/// contains these names. They are in the last private plane of Unicode, after the range that icon fonts use.
const FIRST_STAND_IN: u32 = 0x10_4000;

/// Converts text to tokens and back, and knows the token that ends an answer.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    /// Encodes the names of special tokens as plain text.
    plain: Arc<Tokenizer>,
    /// Encodes the names of special tokens as these tokens.
    marked: Arc<Tokenizer>,
    name: String,
    end: (u32, String),
    /// The tokens that the tokenizer prepends: its BOS token, or nothing.
    bos: Vec<u32>,
    /// Special tokens and their texts, longer ones first.
    special: Arc<Vec<(String, u32)>>,
    special_ids: Arc<HashMap<u32, usize>>,
    /// Special tokens after which text is encoded as if it started there.
    dividing: Arc<Vec<String>>,
}

/// Returns the special tokens after which text is encoded as if it started there: no component of the
/// tokenizer depends on the position in the text, and the token neither absorbs adjacent text nor is part of
/// another token.
fn dividing_tokens(tokenizer: &Tokenizer) -> Vec<String> {
    /// Components that treat every piece of text alike.
    const ALIKE: [&str; 13] = [
        "Sequence",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "ByteLevel",
        "Split",
        "Digits",
        "Punctuation",
        "Whitespace",
        "WhitespaceSplit",
    ];
    /// Maximum number of pairs of special and added tokens to compare, since more make loading slow.
    const MOST_PAIRS: usize = 1 << 20;
    fn alike(part: &serde_json::Value) -> bool {
        match part {
            serde_json::Value::Object(fields) => {
                let kind = fields.get("type").and_then(serde_json::Value::as_str);
                let parts = ["normalizers", "pretokenizers"].iter().filter_map(|k| fields.get(*k));
                kind.is_some_and(|kind| ALIKE.contains(&kind)) && parts.into_iter().all(alike)
            }
            serde_json::Value::Array(parts) => parts.iter().all(alike),
            other => other.is_null(),
        }
    }
    let part = |part: Result<serde_json::Value, serde_json::Error>| part.is_ok_and(|p| alike(&p));
    if !part(serde_json::to_value(tokenizer.get_normalizer()))
        || !part(serde_json::to_value(tokenizer.get_pre_tokenizer()))
    {
        return vec![];
    }
    let added = tokenizer.get_added_tokens_decoder();
    let special = added.values().filter(|token| token.special).count();
    if special * added.len() > MOST_PAIRS {
        return vec![];
    }
    // If a token can overlap the beginning of another, only the whole text determines which one matches.
    let overlaps = |other: &AddedToken, name: &str| {
        let ends = other.content.char_indices().skip(1).map(|(at, _)| &other.content[at..]);
        ends.into_iter().any(|end| name.starts_with(end))
    };
    let divides = |token: &&AddedToken| {
        let name = &token.content;
        let plain = !(token.lstrip || token.rstrip || token.single_word || token.normalized);
        let others = added.values().filter(|other| other.content.contains(name.as_str())).count();
        token.special
            && !name.is_empty()
            && plain
            && others == 1
            && !added.values().any(|other| overlaps(other, name))
    };
    added.values().filter(divides).map(|token| token.content.clone()).collect()
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// The end token is `end_token`, or else the `eos_token` in a `tokenizer_config.json` beside the file, or
    /// else the first known one in the vocabulary (`<|im_end|>`, `<|endoftext|>`, ...). A BOS token is
    /// prepended to prompts if `add_bos_token` in that file says so, or, if the file does not say, if
    /// `tokenizer.json` does.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`] if the file is not a tokenizer, the end token is not in the
    /// vocabulary, or there is no end token.
    pub fn from_file(path: &Path, end_token: Option<&str>) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        if let Some((what, hint)) = stands_in(&bytes) {
            return Err(Error::Tokenizer { name, what: what.into(), hint: hint.into() });
        }
        let config = TokenizerConfig::read(path.parent().unwrap_or(Path::new("")))?;
        Self::from_parts(name, &bytes, &config, end_token)
    }

    /// Creates a tokenizer from the bytes of a `tokenizer.json` and its settings. `name` is used in messages.
    ///
    /// # Errors
    /// See [`TextTokenizer::from_file`].
    pub(crate) fn from_parts(
        name: String,
        bytes: &[u8],
        config: &TokenizerConfig,
        end_token: Option<&str>,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| Error::Tokenizer {
            name: name.clone(),
            what: format!("it cannot be read: {e}"),
            hint: "Give the tokenizer.json of a Hugging Face model".into(),
        })?;
        let end_token = end_token.or_else(|| config.token("eos_token"));
        let mut tokenizer = Self::new(tokenizer, name, end_token)?;
        match config.json.get("add_bos_token").and_then(serde_json::Value::as_bool) {
            Some(false) => tokenizer.bos = vec![],
            Some(true) => {
                let bos = config.token("bos_token");
                if let Some(bos) = bos.and_then(|bos| tokenizer.plain.token_to_id(bos)) {
                    tokenizer.bos = vec![bos];
                }
            }
            None => {}
        }
        Ok(tokenizer)
    }

    fn new(mut tokenizer: Tokenizer, name: String, end_token: Option<&str>) -> Result<Self> {
        // Truncation and padding in the file would silently change rows.
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        let found = match end_token {
            Some(token) => tokenizer.token_to_id(token).map(|id| (id, token.to_owned())),
            None => KNOWN_END_TOKENS
                .iter()
                .find_map(|token| Some((tokenizer.token_to_id(token)?, (*token).to_owned()))),
        };
        let end = found.ok_or_else(|| Error::Tokenizer {
            name: name.clone(),
            what: match end_token {
                Some(token) => format!("the end token `{token}` is not in its vocabulary"),
                None => "it has no known end token".into(),
            },
            hint: "Name the token that ends an answer with `end_token`".into(),
        })?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut special: Vec<(String, u32)> = added
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        let special_ids = special.iter().enumerate().map(|(at, (_, id))| (*id, at)).collect();
        let dividing = Arc::new(dividing_tokens(&tokenizer));
        let mut plain = tokenizer.clone();
        // A problem or solution that contains the name of an end token does not end anything.
        plain.set_encode_special_tokens(true);
        let mut tokenizer = Self {
            plain: Arc::new(plain),
            marked: Arc::new(tokenizer),
            name,
            end,
            bos: vec![],
            special: Arc::new(special),
            special_ids: Arc::new(special_ids),
            dividing,
        };
        tokenizer.bos = tokenizer.own_prefix()?;
        Ok(tokenizer)
    }

    /// Reads the tokenizer of a model folder. See [`TextTokenizer::from_file`].
    ///
    /// # Errors
    /// See [`TextTokenizer::from_file`].
    pub fn from_folder(folder: &Path, end_token: Option<&str>) -> Result<Self> {
        Self::from_file(&folder.join("tokenizer.json"), end_token)
    }

    /// Returns the tokens that `tokenizer.json` prepends to text by itself.
    fn own_prefix(&self) -> Result<Vec<u32>> {
        const SAMPLE: &str = "a";
        let with = self.encoded(&self.marked, SAMPLE, true)?;
        let without = self.encoded(&self.marked, SAMPLE, false)?;
        let length = (0..with.len()).find(|start| with[*start..].starts_with(&without));
        Ok(with[..length.unwrap_or(0)].to_vec())
    }

    /// Returns the tokenizer of the toy corpus. Its tokens are known words, signs with the spaces around
    /// them, characters, and bytes. Every digit is a token. Decoding restores any text exactly.
    ///
    /// `words` are texts whose words (letters with a preceding space) become tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the `tokenizers` crate rejects the vocabulary.
    pub fn builtin<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        const PAD: &str = "<|pad|>";
        const END: &str = "<|end|>";
        let failed = |what: String| Error::Tokenizer {
            name: "built-in".into(),
            what,
            hint: "This is a bug in mixdistill; please report it".into(),
        };
        let mut vocabulary: Vec<(String, f64)> = vec![("<unk>".into(), -1000.0)];
        vocabulary.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), -100.0)));
        // Scores are log probabilities of the unigram model: one word beats its characters.
        vocabulary.extend((32..127u8).map(|c| (char::from(c).to_string(), -10.0)));
        vocabulary.push(("\n".into(), -10.0));
        vocabulary.extend([" + ", " - ", " = "].map(|sign| (sign.to_owned(), -11.0)));
        let mut seen: HashSet<&str> = HashSet::new();
        for text in words {
            for word in pieces(text) {
                if word.chars().count() > 1 && seen.insert(word) {
                    vocabulary.push((word.to_owned(), -11.0));
                }
            }
        }
        let unigram =
            Unigram::from(vocabulary, Some(0), true).map_err(|e| failed(e.to_string()))?;
        let mut tokenizer = Tokenizer::new(ModelWrapper::Unigram(unigram));
        tokenizer.with_decoder(Some(DecoderWrapper::Sequence(Sequence::new(vec![
            DecoderWrapper::ByteFallback(ByteFallback::new()),
            DecoderWrapper::Fuse(Fuse::new()),
        ]))));
        tokenizer
            .add_special_tokens([AddedToken::from(PAD, true), AddedToken::from(END, true)])
            .map_err(|e| failed(e.to_string()))?;
        Self::new(tokenizer, "built-in".into(), Some(END))
    }

    /// Returns the file's path, or `built-in`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the vocabulary size including added tokens: one more than the largest token ID.
    pub fn vocabulary_size(&self) -> usize {
        let vocabulary = self.plain.get_vocab(true);
        vocabulary.values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Returns the token that ends an answer.
    pub fn end_token(&self) -> u32 {
        self.end.0
    }

    /// Returns the text of the end token.
    pub fn end_token_text(&self) -> &str {
        &self.end.1
    }

    /// Returns the ID of a token, by its text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.plain.token_to_id(text)
    }

    /// Returns the text of a token, by its ID.
    pub fn token_text(&self, token: u32) -> Option<String> {
        self.plain.id_to_token(token)
    }

    /// Returns the first token ID with a different text in another tokenizer. `None` if they are all equal.
    pub fn first_difference(&self, other: &Self) -> Option<u32> {
        let count = self.vocabulary_size().max(other.vocabulary_size()) as u32;
        (0..count).find(|token| self.token_text(*token) != other.token_text(*token))
    }

    /// Returns whether a token is special, such as an end of turn.
    pub fn is_special(&self, token: u32) -> bool {
        self.special_ids.contains_key(&token)
    }

    /// Prepends the tokenizer's BOS token, if it has one and the tokens do not start with it.
    pub fn with_bos(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        if !tokens.starts_with(&self.bos) {
            tokens.splice(0..0, self.bos.iter().copied());
        }
        tokens
    }

    /// Returns the text that [`with_bos`](Self::with_bos) prepends. Empty if there is none.
    pub fn bos_text(&self) -> String {
        self.bos.iter().filter_map(|token| self.plain.id_to_token(*token)).collect()
    }

    /// Encodes text without the tokens that the tokenizer would add around it. Names of special tokens are
    /// plain text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encoded(&self.plain, text, false)
    }

    /// Encodes text with the tokens that the tokenizer adds around it. Names of special tokens become these
    /// tokens. Equivalent to `encode` in transformers.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer rejects the text.
    pub(crate) fn encode_with_added(&self, text: &str) -> Result<Vec<u32>> {
        self.encoded(&self.marked, text, true)
    }

    /// Encodes text produced by a template. Names of special tokens become these tokens, unless
    /// [`TextTokenizer::hide_special`] hid them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer rejects the text.
    pub fn encode_marked(&self, text: &str) -> Result<Vec<u32>> {
        if !text.chars().any(|c| self.hidden(c).is_some()) {
            return self.encoded(&self.marked, text, false);
        }
        // The tokenizer splits text at special tokens as well, so the text between them can be encoded
        // separately.
        let mut tokens = vec![];
        let mut rest = text;
        while !rest.is_empty() {
            let next = self.special.iter().filter_map(|(name, id)| {
                Some((rest.find(name.as_str())?, std::cmp::Reverse(name.len()), *id))
            });
            let (at, length, id) = match next.min() {
                Some((at, length, id)) => (at, length.0, Some(id)),
                None => (rest.len(), 0, None),
            };
            if at > 0 {
                let shown: String = rest[..at]
                    .chars()
                    .map(|c| self.hidden(c).map_or(c.to_string(), str::to_owned))
                    .collect();
                tokens.extend(self.encode(&shown)?);
            }
            tokens.extend(id);
            rest = &rest[at + length..];
        }
        Ok(tokens)
    }

    /// Returns whether this is the same tokenizer or a clone of it.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.marked, &other.marked)
    }

    /// Returns the length of the prefix, in bytes, that can be encoded separately from what follows: up to
    /// the end of the last special token that divides text. 0 if there is none.
    pub(super) fn divided_at(&self, text: &str) -> usize {
        // Such texts are encoded piece by piece anyway.
        if text.chars().any(|c| self.hidden(c).is_some()) {
            return 0;
        }
        let ends = self.dividing.iter().filter_map(|name| Some(text.rfind(name)? + name.len()));
        ends.max().unwrap_or(0)
    }

    /// Replaces the names of special tokens by stand-ins, so that a template can lay out the text without
    /// creating these tokens.
    pub fn hide_special<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for (index, (name, _)) in self.special.iter().enumerate() {
            let stand_in = u32::try_from(index).ok().and_then(|i| FIRST_STAND_IN.checked_add(i));
            if let Some(stand_in) = stand_in.and_then(char::from_u32)
                && text.contains(name.as_str())
            {
                text = Cow::Owned(text.replace(name.as_str(), &stand_in.to_string()));
            }
        }
        text
    }

    /// Returns the name that a stand-in character replaces.
    fn hidden(&self, c: char) -> Option<&str> {
        let index = u32::from(c).checked_sub(FIRST_STAND_IN)?;
        Some(&self.special.get(index as usize)?.0)
    }

    fn encoded(&self, tokenizer: &Tokenizer, text: &str, around: bool) -> Result<Vec<u32>> {
        let encoding = tokenizer.encode_fast(text, around).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot encode a text of {} bytes: {e}", text.len()),
            hint: "Check that the file belongs to the model".into(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes tokens to text without special tokens. An incomplete character at the end becomes one U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer rejects the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        /// Bytes of an incomplete character, each of which may be a token.
        const MOST_MISSING: usize = 3;
        let text = self.decode_as_is(tokens)?;
        if !text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(text);
        }
        // With byte tokens, an incomplete character breaks all preceding characters that consist of bytes.
        // Without it, they are complete.
        let whole = |text: &str| text.chars().filter(|c| *c != char::REPLACEMENT_CHARACTER).count();
        for missing in 1..=MOST_MISSING.min(tokens.len()) {
            let before = self.decode_as_is(&tokens[..tokens.len() - missing])?;
            if !before.ends_with(char::REPLACEMENT_CHARACTER) {
                let mended = whole(&before) >= whole(&text);
                return Ok(if mended { before + "\u{FFFD}" } else { text });
            }
        }
        Ok(text)
    }

    /// Decodes tokens without special ones, except reasoning tags, since the text between them is not part of
    /// the answer.
    fn decode_as_is(&self, tokens: &[u32]) -> Result<String> {
        let name = |token: &u32| Some(self.special.get(*self.special_ids.get(token)?)?.0.as_str());
        let marks = |token: &u32| name(token).is_some_and(is_reasoning_mark);
        if !tokens.iter().any(marks) {
            return self.decoded(tokens, true);
        }
        let kept = |token: &&u32| name(token).is_none() || marks(token);
        let kept: Vec<u32> = tokens.iter().filter(kept).copied().collect();
        self.decoded(&kept, false)
    }

    fn decoded(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.plain.decode(tokens, skip_special).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot decode {} tokens: {e}", tokens.len()),
            hint: "Check that the file belongs to the model".into(),
        })
    }

    /// Decodes tokens to text, including special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer rejects the tokens.
    pub fn decode_all(&self, tokens: &[u32]) -> Result<String> {
        self.decoded(tokens, false)
    }

    /// Serializes the tokenizer as `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it cannot be serialized.
    pub fn to_json(&self) -> Result<String> {
        self.marked.to_string(true).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot be written: {e}"),
            hint: "This is a bug in mixdistill; please report it".into(),
        })
    }
}

/// Splits text into words with a preceding space, and single other characters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut chars = rest.char_indices().peekable();
        let (_, first) = chars.next()?;
        let word = |c: char| c.is_alphabetic();
        let next_is_word = chars.peek().is_some_and(|(_, c)| word(*c));
        let end = if word(first) || (first == ' ' && next_is_word) || first == '\\' {
            chars.find(|(_, c)| !word(*c)).map_or(rest.len(), |(at, _)| at)
        } else {
            first.len_utf8()
        };
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_cut_takes_no_other_with_it() {
        let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
        let text = "a word é😀€";
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        for cut in 0..tokens.len() {
            let decoded = tokenizer.decode(&tokens[..cut]).unwrap();
            let whole = decoded.trim_end_matches(char::REPLACEMENT_CHARACTER);
            assert!(text.starts_with(whole), "{decoded}");
            assert!(decoded.chars().count() - whole.chars().count() <= 1, "{decoded}");
            // Complete text stays complete with the next token.
            let next = tokenizer.decode(&tokens[..cut + 1]).unwrap();
            assert!(next.starts_with(whole), "{decoded}, then {next}");
        }
    }
}
