//! Tokenizers: any Hugging Face `tokenizer.json`, and a small one for the built-in corpus.

use crate::error::{Error, Result};
use std::collections::HashSet;
use std::path::Path;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, ModelWrapper};

/// End tokens of the known model families, tried in this order when nothing names one.
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

/// Text to tokens and back, with the token that ends an answer.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    name: String,
    end: (u32, String),
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// The end token is `end_token`, else the `eos_token` of a `tokenizer_config.json` beside the
    /// file, else the first known one in the vocabulary (`<|im_end|>`, `<|endoftext|>`, ...).
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Tokenizer`]: a file that cannot be read or is no tokenizer, an
    /// end token that is not in the vocabulary, no end token at all.
    pub fn from_file(path: &Path, end_token: Option<&str>) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| Error::Tokenizer {
            name: name.clone(),
            what: format!("it cannot be read: {e}"),
            hint: "Give the tokenizer.json of a Hugging Face model".into(),
        })?;
        let configured = match end_token {
            Some(token) => Some(token.to_owned()),
            None => configured_end_token(path)?,
        };
        Self::new(tokenizer, name, configured.as_deref())
    }

    fn new(mut tokenizer: Tokenizer, name: String, end_token: Option<&str>) -> Result<Self> {
        // Truncation and padding that a file asks for would change rows behind our back.
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        // A problem or solution that spells an end token does not end anything.
        tokenizer.set_encode_special_tokens(true);
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
                None => "it has no end token that is known".into(),
            },
            hint: "Name the token that ends an answer with `end_token`".into(),
        })?;
        Ok(Self { tokenizer, name, end })
    }

    /// The tokenizer of the built-in corpus: whole words where it knows them, signs with the spaces
    /// around them, else characters, else bytes; every digit is a token. Any text comes back as it
    /// was.
    ///
    /// `words` are texts whose words (letters with the space before them) become tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the `tokenizers` crate refuses the vocabulary.
    pub fn builtin<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        const PAD: &str = "<|pad|>";
        const END: &str = "<|end|>";
        let failed = |what: String| Error::Tokenizer {
            name: "built-in".into(),
            what,
            hint: "This is a defect; please report it".into(),
        };
        let mut vocabulary: Vec<(String, f64)> = vec![("<unk>".into(), -1000.0)];
        vocabulary.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), -100.0)));
        // Scores are log-probabilities of the Unigram model: one word beats its characters.
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

    /// The file's path, or `built-in`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of tokens, added ones included: one more than the largest token number.
    pub fn vocabulary_size(&self) -> usize {
        let vocabulary = self.tokenizer.get_vocab(true);
        vocabulary.values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The token that ends an answer.
    pub fn end_token(&self) -> u32 {
        self.end.0
    }

    /// The text of the end token.
    pub fn end_token_text(&self) -> &str {
        &self.end.1
    }

    /// The tokens of a text, without any that the tokenizer would add around it. The names of
    /// special tokens are text like any other.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot encode a text of {} bytes: {e}", text.len()),
            hint: "Check that the file belongs to the model".into(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot decode {} tokens: {e}", tokens.len()),
            hint: "Check that the file belongs to the model".into(),
        })
    }

    /// The `tokenizer.json` as text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it cannot be serialised.
    pub fn to_json(&self) -> Result<String> {
        self.tokenizer.to_string(true).map_err(|e| Error::Tokenizer {
            name: self.name.clone(),
            what: format!("it cannot be written: {e}"),
            hint: "This is a defect; please report it".into(),
        })
    }
}

/// The `eos_token` of the `tokenizer_config.json` beside a `tokenizer.json`, if there is one.
fn configured_end_token(path: &Path) -> Result<Option<String>> {
    let config = path.with_file_name("tokenizer_config.json");
    let text = match std::fs::read_to_string(&config) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", config, e)),
    };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::Tokenizer {
        name: config.display().to_string(),
        what: format!("it is not JSON: {e}"),
        hint: "Mend the file, or name the end token with `end_token`".into(),
    })?;
    let token = &value["eos_token"];
    let text = token.as_str().or_else(|| token["content"].as_str());
    Ok(text.map(str::to_owned))
}

/// Words with the space before them, and single characters of everything else.
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
