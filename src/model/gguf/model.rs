//! A GGUF file instead of a model folder.

use super::families::GgufFamily;
use super::names::gguf_names;
use super::read_settings::read_settings;
use super::read_vocabulary::{TokenizerTexts, read_vocabulary};
use super::tensors::Change;
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, GgufValue, TensorType};
use crate::model::config::DecoderConfig;
use crate::model::hf_config::write_config;
use crate::model::tensors::HostTensor;
use crate::model::weights::listed;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The model of a GGUF file: the equivalents of a folder's files, and the tensors by their names in folders.
#[derive(Clone, Debug)]
pub(in crate::model) struct GgufModel {
    file: GgufFile,
    /// The equivalents of a folder's text files, by name.
    texts: Arc<BTreeMap<&'static str, String>>,
    /// Tensors, by their names in folders.
    tensors: Arc<BTreeMap<String, Held>>,
    /// Tensors of multi-token prediction blocks, by their names in the file.
    others: Arc<Vec<String>>,
}

/// A tensor in the file.
#[derive(Debug)]
struct Held {
    /// Name in the file.
    own: String,
    /// Change between folder and file.
    change: Change,
    /// Shape in folders.
    shape: Vec<usize>,
}

/// A matrix in the storage type of the file.
pub(super) struct Blocks {
    pub kind: TensorType,
    /// Rows and columns.
    pub size: [usize; 2],
    pub bytes: Vec<u8>,
}

/// Tensors that belong to the settings.
const OF_SETTINGS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

impl GgufModel {
    /// Reads everything except the weights.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if the file is damaged, or the model or the tokenizer is not supported
    /// (named).
    pub fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let failed = |what: String, hint: &str| Error::Model {
            path: path.to_owned(),
            what,
            hint: hint.into(),
        };
        let text = |key: &str| file.metadata().get(key).and_then(GgufValue::as_str);
        if let Some(other) = text("general.type").filter(|kind| *kind != "model") {
            let what = format!("it is not a whole model (`general.type` is {other})");
            return Err(failed(what, "Pass the file of the model itself"));
        }
        let shards = file.metadata().get("split.count").and_then(GgufValue::as_u64);
        if shards.is_some_and(|shards| shards > 1) {
            let what = "it is one file of a split model".to_owned();
            return Err(failed(what, "Join the files with llama.cpp's `llama-gguf-split --merge`"));
        }
        let name = text("general.architecture").unwrap_or("nothing");
        let family = GgufFamily::by_name(name).ok_or_else(|| {
            let names = GgufFamily::names();
            failed(
                format!("its architecture is `{name}`; supported architectures are {names}"),
                "Choose a model of one of these",
            )
        })?;
        let hint = "Use another file of the model, or its folder with safetensors";
        let config = read_settings(&file, family).map_err(|what| failed(what, hint))?;
        config.validate().map_err(|e| failed(e.to_string(), hint))?;
        let names = gguf_names(&config);
        let others = held(&file, &config, &names).map_err(|what| failed(what, hint))?;
        let read = read_vocabulary(&file, config.vocab_size).map_err(|what| failed(what, hint))?;
        let texts = Arc::new(texts(&config, read));
        let mut shapes = config.tensor_shapes();
        let with_change = |(name, own): (String, String)| {
            let change = Change::of(&config, family, &name);
            let shape = shapes.remove(&name).unwrap_or_default();
            (name, Held { own, change, shape })
        };
        let tensors = Arc::new(names.into_iter().map(with_change).collect());
        Ok(Self { file, texts, tensors, others: Arc::new(others) })
    }

    /// Tensors of multi-token prediction blocks, by their names in the file.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// Returns the equivalent of a folder's text file.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    /// Returns the equivalents of all text files of a folder.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.texts.iter().map(|(name, text)| (*name, text.as_str()))
    }

    /// Returns the names and shapes of the tensors, as in folders.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.iter().map(|(name, held)| (name.clone(), held.shape.clone())).collect()
    }

    /// Returns the storage type of a tensor, by its name in folders.
    pub fn tensor_type(&self, name: &str) -> Option<TensorType> {
        self.file.tensors().get(&self.tensors.get(name)?.own).map(|info| info.kind)
    }

    /// Reads a tensor, by its name in folders.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if it is missing or has values that are not finite.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let missing = || self.damaged(name, "it is missing");
        let Held { own, change, shape } = self.tensors.get(name).ok_or_else(missing)?;
        let tensor = change.undo(HostTensor { shape: shape.clone(), values: self.file.read(own)? });
        match tensor.values.iter().all(|value| value.is_finite()) {
            true => Ok(tensor),
            false => Err(self.not_finite(name)),
        }
    }

    fn damaged(&self, name: &str, what: &str) -> Error {
        Error::Model {
            path: self.file.path().to_owned(),
            what: format!("tensor `{name}`: {what}"),
            hint: "Download or copy the file again; it is damaged or incomplete".into(),
        }
    }

    pub(super) fn not_finite(&self, name: &str) -> Error {
        self.damaged(name, "some of its values are not finite")
    }

    /// Reads the blocks of a matrix, with the rows in the order of folders. `None` if there is no such matrix
    /// or its columns are permuted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let Some(Held { own, change, .. }) = self.tensors.get(name) else { return Ok(None) };
        if change.is_of_columns() {
            return Ok(None);
        }
        let info = &self.file.tensors()[own];
        let bytes = self.file.read_bytes(own)?;
        let [rows, columns] = info.shape[..] else { return Ok(None) };
        let of_row = info.kind.bytes(columns);
        let row = |row: usize| {
            let from = change.undone_row(row, rows) * of_row;
            &bytes[from..from + of_row]
        };
        let bytes = (0..rows).flat_map(row).copied().collect();
        Ok(Some(Blocks { kind: info.kind, size: [rows, columns], bytes }))
    }
}

/// Returns a tensor's shape in GGUF files, which drop the dimension of size 1 of a convolution.
pub(super) fn shape_in_files(shape: &[usize]) -> Vec<usize> {
    match shape[..] {
        [channels, 1, taps] => vec![channels, taps],
        _ => shape.to_vec(),
    }
}

/// Checks a file's tensors against the names and shapes that its settings require. Returns the names of
/// tensors in blocks beyond the decoder's.
fn held(
    file: &GgufFile,
    config: &DecoderConfig,
    names: &BTreeMap<String, String>,
) -> Result<Vec<String>, String> {
    let (mut problems, mut others) = (vec![], vec![]);
    let is_other = |own: &str| {
        let block = own.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        block.is_some_and(|block: usize| block >= config.num_hidden_layers)
    };
    let key = file.metadata().keys().find(|key| key.ends_with(".nextn_predict_layers"));
    let has_others = key.is_some();
    for (name, shape) in config.tensor_shapes() {
        let shape = shape_in_files(&shape);
        let own = names.get(&name).map_or(name.as_str(), String::as_str);
        match file.tensors().get(own) {
            None => problems.push(format!("{own} is missing")),
            Some(info) if info.shape != shape => {
                problems.push(format!("{own} is {:?}, not {shape:?}", info.shape));
            }
            Some(_) => {}
        }
    }
    let expected: BTreeSet<&str> = names.values().map(String::as_str).collect();
    for own in file.tensors().keys() {
        let tied = config.tie_word_embeddings && own == "output.weight";
        if has_others && is_other(own) {
            others.push(own.clone());
        } else if !expected.contains(own.as_str()) && !OF_SETTINGS.contains(&own.as_str()) && !tied
        {
            problems.push(format!("{own} does not belong to this model"));
        }
    }
    match problems.is_empty() {
        true => Ok(others),
        false => Err(format!("its tensors do not match its settings: {}", listed(&problems))),
    }
}

/// Returns the equivalents of a folder's text files.
fn texts(config: &DecoderConfig, read: TokenizerTexts) -> BTreeMap<&'static str, String> {
    let TokenizerTexts { tokenizer, settings, ends, template } = read;
    let ends = match ends[..] {
        [] => Value::Null,
        [one] => json!(one),
        _ => json!(ends),
    };
    let mut json = write_config(config);
    json["eos_token_id"] = ends.clone();
    for key in ["bos_token_id", "pad_token_id"] {
        // The defaults of the class may exceed the vocabulary.
        json[key] = Value::Null;
    }
    let generation = json!({"eos_token_id": ends, "do_sample": false});
    let mut texts = BTreeMap::from([
        ("config.json", format!("{json:#}\n")),
        ("generation_config.json", format!("{generation:#}\n")),
        ("tokenizer.json", tokenizer.to_string()),
        ("tokenizer_config.json", format!("{settings:#}\n")),
    ]);
    texts.extend(template.map(|template| ("chat_template.jinja", template)));
    texts
}
