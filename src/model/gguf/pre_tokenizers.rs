//! Pre-tokenizers of byte-level BPE: llama.cpp's names, and the equivalent parts of a `tokenizer.json`.

use super::fingerprints::{PRINTS, TEXT};
use crate::data::TextTokenizer;
use crate::error::Result;
use crate::text::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A part of a pre-tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Splits into matches and the text between them.
    Split(&'static str),
    /// Splits off each digit.
    Digits,
    /// Maps bytes to characters; `divides`: after GPT-2's pattern.
    Bytes { divides: bool },
}

/// A pre-tokenizer with its names in llama.cpp.
struct PreTokenizer {
    /// Names. The first is written if no fingerprint matches.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether a piece that is a token skips the merges.
    ignores_merges: bool,
    /// Whether llama.cpp adds BOS if the file does not specify it.
    adds_bos: bool,
}

/// Llama 3: letters after at most one sign, up to three digits, signs, line breaks, spaces.
const BY_THREE_DIGITS: Step = Step::Split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen2: the same, with single digits.
const BY_DIGIT: Step = Step::Split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen3.5: the same, with marks as letters.
const WITH_MARKS: Step = Step::Split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Mistral's Tekken: words split before capitals.
const BY_CAPITALS: Step = Step::Split(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// GPT-4o: the same, with up to three digits and endings such as `'ll`.
const BY_CAPITALS_AND_DIGITS: Step = Step::Split(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const BYTES: Step = Step::Bytes { divides: false };

const TABLE: [PreTokenizer; 8] = [
    PreTokenizer {
        names: &[
            "gpt-2", "mpt", "olmo", "jais", "phi-2", "gigachat", "mellum", "a.x-4.0", "trillion",
        ],
        steps: &[Step::Bytes { divides: true }],
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        steps: &[Step::Digits, Step::Bytes { divides: true }],
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        steps: &[BY_THREE_DIGITS, BYTES],
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["smaug-bpe", "dbrx"],
        steps: &[BY_THREE_DIGITS, BYTES],
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"],
        steps: &[BY_DIGIT, BYTES],
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen35"],
        steps: &[WITH_MARKS, BYTES],
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        steps: &[BY_CAPITALS, BYTES],
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4"],
        steps: &[BY_CAPITALS_AND_DIGITS, BYTES],
        ignores_merges: false,
        adds_bos: false,
    },
];

/// Returns the pre-tokenizer's name of a byte-level tokenizer, by its fingerprint as in llama.cpp's
/// converter, else by the parts of `json`, its `tokenizer.json`.
///
/// # Errors
/// The errors of the tokenizer.
pub(super) fn name_of(tokenizer: &TextTokenizer, json: &Value) -> Result<Option<&'static str>> {
    let tokens = tokenizer.encode_with_added(TEXT)?;
    let print = Sha256::digest(format!("{tokens:?}").as_bytes());
    let print = hex(print);
    if let Some((_, name)) = PRINTS.iter().find(|(known, _)| *known == print) {
        return Ok(Some(name));
    }
    let ignores = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let found = TABLE
        .iter()
        .find(|row| row.ignores_merges == ignores && are(&json["pre_tokenizer"], row.steps));
    Ok(found.filter(|_| is_plain(&json["normalizer"])).map(|row| row.names[0]))
}

/// Returns whether a normalizer is absent, or one that llama.cpp also ignores for these tokenizers.
fn is_plain(normalizer: &Value) -> bool {
    normalizer.is_null() || normalizer["type"] == "NFC"
}

/// Returns whether a pre-tokenizer consists of these steps.
fn are(pre_tokenizer: &Value, steps: &[Step]) -> bool {
    let one = std::slice::from_ref(pre_tokenizer);
    let parts = match pre_tokenizer["pretokenizers"].as_array() {
        Some(parts) => parts.as_slice(),
        None => one,
    };
    parts.len() == steps.len() && parts.iter().zip(steps).all(|(part, step)| is(part, *step))
}

fn is(part: &Value, step: Step) -> bool {
    match step {
        Step::Split(pattern) => {
            part["type"] == "Split"
                && part["pattern"]["Regex"] == pattern
                && part["behavior"] == "Isolated"
                && part["invert"] == false
        }
        Step::Digits => part["type"] == "Digits" && part["individual_digits"] == true,
        Step::Bytes { divides } => {
            // The default is to split.
            part["type"] == "ByteLevel"
                && part["add_prefix_space"] == false
                && part["use_regex"].as_bool().unwrap_or(true) == divides
        }
    }
}

/// Returns the pre-tokenizer of a `tokenizer.json` for a name, and whether pieces that are tokens skip the
/// merges. `None` for an unknown name.
pub(super) fn parts_of(name: &str) -> Option<(Value, bool)> {
    let row = TABLE.iter().find(|row| row.names.contains(&name))?;
    let part = |step: &Step| match step {
        Step::Split(pattern) => json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
        }),
        Step::Digits => json!({"type": "Digits", "individual_digits": true}),
        Step::Bytes { divides } => json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": divides,
        }),
    };
    let parts: Vec<Value> = row.steps.iter().map(part).collect();
    Some((json!({"type": "Sequence", "pretokenizers": parts}), row.ignores_merges))
}

/// Returns whether llama.cpp adds BOS for a pre-tokenizer if the file does not specify it.
pub(super) fn adds_bos(name: &str) -> bool {
    TABLE.iter().any(|row| row.adds_bos && row.names.contains(&name))
}

/// Returns whether llama.cpp has a pre-tokenizer of this name.
pub(super) fn is_known(name: &str) -> bool {
    PRINTS.iter().any(|(_, known)| *known == name)
        || TABLE.iter().any(|row| row.names.contains(&name))
}

/// Returns the names that can be read, as a list in text.
pub(super) fn known_names() -> String {
    let names: Vec<&str> = TABLE.iter().flat_map(|row| row.names).copied().collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_made_are_those_that_are_recognized() {
        for (index, row) in TABLE.iter().enumerate() {
            for name in row.names {
                let (parts, ignores_merges) = parts_of(name).unwrap();
                assert_eq!(ignores_merges, row.ignores_merges);
                let same = |other: &PreTokenizer| are(&parts, other.steps);
                let found = TABLE
                    .iter()
                    .position(|other| same(other) && other.ignores_merges == row.ignores_merges);
                assert_eq!(found, Some(index), "{name}");
            }
        }
        assert!(parts_of("default").is_none());
    }
}
