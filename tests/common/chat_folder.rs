//! Folders with a tokenizer and a chat template, as chat models have them, and templates of published models.

use super::say;
use mixdistill::data::{ChatFormat, ChatTemplate, TextTokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with a byte-level tokenizer in which each byte is a token.
pub struct ChatFolder(TempDir);

impl ChatFolder {
    /// `special` names special tokens, numbered from 256. `added` names ordinary tokens after them. With
    /// `adds_bos`, tokenizer.json puts `<s>`, the first special token, before every text. `settings` is the
    /// content of tokenizer_config.json.
    pub fn new(special: &[&str], added: &[&str], adds_bos: bool, settings: Value) -> Self {
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            // Byte-level tokenizers represent unprintable bytes by other characters.
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let unprintable = (0..byte).filter(|b| !matches!(b, 33..=126 | 161..=172 | 174..=255));
            let code = if printable { u32::from(byte) } else { 256 + unprintable.count() as u32 };
            vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
        }
        let token = |(i, (content, special)): (usize, (&&str, bool))| {
            json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": special})
        };
        let special = special.iter().map(|name| (name, true));
        let added = added.iter().map(|name| (name, false));
        let added: Vec<Value> = special.chain(added).enumerate().map(token).collect();
        let processor = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
        });
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": true});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": level, "decoder": level,
            "post_processor": if adds_bos { processor } else { Value::Null },
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", &tokenizer);
        write("tokenizer_config.json", &settings);
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn tokenizer(&self) -> TextTokenizer {
        TextTokenizer::from_folder(self.path(), None).unwrap()
    }

    pub fn format(&self, system: Option<&str>) -> mixdistill::Result<ChatFormat> {
        let template = ChatTemplate::from_folder(self.path())?.expect("the folder has a template");
        ChatFormat::new(template, &self.tokenizer(), system.map(str::to_owned))
    }
}

/// The source of a published model's template, by its name in llama.cpp's collection. It comes from the sample
/// data next to the checkout, the folder that `MIXDISTILL_TEMPLATES` names, or the cache of `.ci/run`. `None`,
/// with a message, if none of them has it.
pub fn template(name: &str) -> Option<String> {
    let file = format!("{name}.jinja");
    let found = template_folders()
        .iter()
        .find_map(|folder| std::fs::read_to_string(folder.join(&file)).ok());
    if found.is_none() {
        say(&format!("skipped: {file} is missing; set MIXDISTILL_TEMPLATES to its folder"));
    }
    found
}

/// The folders with templates of published models that exist.
pub fn template_folders() -> Vec<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/templates/jinja");
    let named = std::env::var_os("MIXDISTILL_TEMPLATES").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    let cache = cache.map(|cache| cache.join("mixdistill/templates"));
    [Some(beside), named, cache].into_iter().flatten().filter(|folder| folder.is_dir()).collect()
}
