//! Writes model folders atomically.

mod template_file;

use super::super::decoder::DecoderLm;
use super::super::hf_config::{token_ids, write_config};
use super::super::tensors::lazy_tensors;
use super::super::weights::{FileType, listed, write_model};
use super::{CHAT_TEMPLATE, ModelFolder};
use crate::data::TextTokenizer;
use crate::error::{Error, Result};
use crate::files::{flush_folder, remove_folder};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Files of a tokenizer. Those that exist are copied unchanged.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    CHAT_TEMPLATE,
    "chat_template.json",
];

/// Default of [`SaveFolder::max_shard_bytes`].
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Options of [`DecoderLm::save`].
#[derive(Clone, Debug)]
pub struct SaveFolder<'a> {
    /// Folder that the model came from. Its configuration and tokenizer files are copied.
    pub base: Option<&'a ModelFolder>,
    /// Tokenizer. It is written if there is no base.
    pub tokenizer: &'a TextTokenizer,
    /// Tokens that end an answer. Empty means the tokenizer's end token.
    pub end_tokens: &'a [u32],
    /// Chat template, which replaces the base's.
    pub chat_template: Option<&'a str>,
    /// Type of the weights in the files.
    pub file_type: FileType,
    /// Maximum size of a weight file in bytes. Larger models are split into shards.
    pub max_shard_bytes: u64,
    /// Model card, in Markdown.
    pub card: Option<&'a str>,
}

impl<'a> SaveFolder<'a> {
    /// Returns the options of a new model: f32, without a base, a chat template, or a card.
    pub fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self {
            base: None,
            tokenizer,
            end_tokens: &[],
            chat_template: None,
            file_type: FileType::F32,
            max_shard_bytes: MAX_SHARD_BYTES,
            card: None,
        }
    }
}

impl DecoderLm {
    /// Writes the model to a new folder, atomically. Adapters must be merged first, or saved with
    /// [`DecoderLm::save_adapter`].
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written. [`Error::Model`] if it exists, or the model is
    /// quantized or has adapters.
    pub fn save(&self, folder: &Path, how: &SaveFolder<'_>) -> Result<()> {
        let refuse = |what: &str, hint: &str| {
            Err(Error::Model { path: folder.to_owned(), what: what.into(), hint: hint.into() })
        };
        if self.is_encoded() {
            return refuse(
                "its weights are quantized",
                "Save the adapters, and merge them into the original weights",
            );
        }
        if self.lora().is_some() {
            return refuse("the model has adapters", "Merge them first, or save the adapters");
        }
        let shapes = self.config().tensor_shapes();
        let tensors = lazy_tensors(self, false);
        let without_place: Vec<&str> = tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .filter(|name| !shapes.contains_key(*name))
            .collect();
        if !without_place.is_empty() {
            return Err(biases_without_place(folder, &without_place));
        }
        let ends = match how.end_tokens {
            [] => vec![how.tokenizer.end_token()],
            ends => ends.to_vec(),
        };
        write_folder(folder, |beside| {
            let write = |name: &str, text: &str| {
                let path = beside.join(name);
                std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
            };
            let mut config =
                how.base.map_or_else(|| write_config(self.config()), |b| b.json.clone());
            if let Some(config) = config.as_object_mut() {
                // The current key, and the one that older readers use.
                for key in ["dtype", "torch_dtype"] {
                    config.insert(key.into(), how.file_type.torch_name().into());
                }
                // An adapter has untied the head.
                if how.base.is_some_and(|base| base.config.tie_word_embeddings)
                    && !self.config().tie_word_embeddings
                {
                    config.insert("tie_word_embeddings".into(), false.into());
                }
                if how.base.is_none() {
                    config.insert("eos_token_id".into(), one_or_all(&ends));
                    // The defaults of the class may exceed the vocabulary.
                    config.insert("bos_token_id".into(), Value::Null);
                    config.insert("pad_token_id".into(), Value::Null);
                }
            }
            write("config.json", &format!("{config:#}\n"))?;
            match how.base {
                Some(base) => base.copy_files(beside, &ends)?,
                None => write_own_files(how.tokenizer, &ends, &write)?,
            }
            template_file::settle(beside, how.chat_template)?;
            if let Some(card) = how.card {
                write("README.md", card)?;
            }
            write_model(beside, tensors, how.file_type, how.max_shard_bytes)
        })
    }
}

/// Returns the error for merged adapter biases on layers without a bias.
pub(in crate::model) fn biases_without_place(folder: &Path, names: &[&str]) -> Error {
    Error::Model {
        path: folder.to_owned(),
        what: format!(
            "the adapter has biases (lora_bias) on layers without a bias, which models of this class cannot \
             store: {}",
            listed(names)
        ),
        hint: "Use the model together with its adapter; PEFT cannot merge such adapters either"
            .into(),
    }
}

impl ModelFolder {
    /// Copies the tokenizer's files, and the generation settings with the end tokens.
    fn copy_files(&self, folder: &Path, ends: &[u32]) -> Result<()> {
        if let Some(gguf) = &self.gguf {
            let beside = ["config.json", "generation_config.json"];
            for (name, text) in gguf.texts().filter(|(name, _)| !beside.contains(name)) {
                let path = folder.join(name);
                std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
            }
        }
        for name in TOKENIZER_FILES.into_iter().filter(|name| self.path.join(name).is_file()) {
            copy_bytes(&self.path.join(name), &folder.join(name))?;
        }
        let to = folder.join("generation_config.json");
        let missing = ends.iter().any(|e| !token_ids(&self.generation, "eos_token_id").contains(e));
        if !missing && self.gguf.is_none() {
            return copy_bytes(&self.path.join("generation_config.json"), &to);
        }
        let mut generation = match &self.generation {
            Value::Object(_) => self.generation.clone(),
            // Without this file, readers take these keys from config.json.
            _ => ["bos_token_id", "pad_token_id"]
                .into_iter()
                .filter_map(|key| Some((key, self.json.get(key).filter(|id| !id.is_null())?)))
                .map(|(key, id)| (key.to_owned(), id.clone()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        };
        generation["eos_token_id"] = one_or_all(ends);
        std::fs::write(&to, format!("{generation:#}\n")).map_err(|e| Error::io("write", &to, e))
    }
}

/// Copies a file's bytes but not its permissions.
fn copy_bytes(from: &Path, to: &Path) -> Result<()> {
    let copy = || std::io::copy(&mut std::fs::File::open(from)?, &mut std::fs::File::create(to)?);
    copy().map(|_| ()).map_err(|e| Error::io("copy", from, e))
}

/// Returns a number for one token, a list for several.
fn one_or_all(tokens: &[u32]) -> Value {
    match tokens {
        [one] => json!(one),
        all => json!(all),
    }
}

fn write_own_files(
    tokenizer: &TextTokenizer,
    ends: &[u32],
    write: &dyn Fn(&str, &str) -> Result<()>,
) -> Result<()> {
    let generation = json!({"eos_token_id": one_or_all(ends), "do_sample": false});
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.end_token_text(),
    });
    write("generation_config.json", &format!("{generation:#}\n"))?;
    write("tokenizer.json", &tokenizer.to_json()?)?;
    write("tokenizer_config.json", &format!("{settings:#}\n"))
}

/// Checks that nothing exists at the path of a new folder.
///
/// # Errors
/// [`Error::Model`] if something does, or the path has no file name.
pub fn check_new_folder(folder: &Path) -> Result<()> {
    check_new_place(folder, "folder")
}

/// Like [`check_new_folder`], for a `kind` of path: `folder` or `file`.
pub(in crate::model) fn check_new_place(path: &Path, kind: &str) -> Result<()> {
    let refuse =
        |what: String, hint: String| Err(Error::Model { path: path.to_owned(), what, hint });
    // Broken links count as existing.
    if path.symlink_metadata().is_ok() {
        let hint = format!("Choose another {kind}, or move the old one away");
        return refuse("it already exists".into(), hint);
    }
    if path.file_name().is_none() {
        return refuse(
            format!("it is not a valid name for a {kind}"),
            "Choose another name".into(),
        );
    }
    Ok(())
}

/// Returns the temporary path of a folder that is being written.
pub(crate) fn writing_place(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.writing"))
}

/// Fills a temporary folder next to the final one, flushes it, and renames it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Model`] if the folder exists; the errors of `fill`.
pub(in crate::model) fn write_folder(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    check_new_folder(folder)?;
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    let beside = writing_place(folder);
    // A killed process may have left one behind.
    remove_folder(&beside)?;
    std::fs::create_dir(&beside).map_err(|e| Error::io("create", &beside, e))?;
    let done = fill(&beside).and_then(|()| {
        let entries = std::fs::read_dir(&beside).map_err(|e| Error::io("read", &beside, e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::io("read", &beside, e))?.path();
            let flush = || std::fs::File::options().write(true).open(&path)?.sync_all();
            flush().map_err(|e| Error::io("flush", &path, e))?;
        }
        flush_folder(&beside)?;
        std::fs::rename(&beside, folder).map_err(|e| Error::io("rename", &beside, e))?;
        flush_folder(parent)
    });
    if done.is_err() {
        let _ = std::fs::remove_dir_all(&beside);
    }
    done
}
