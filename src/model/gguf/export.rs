//! Writes models as GGUF files.

use super::families::GgufFamily;
use super::model::shape_in_files;
use super::modelfile::modelfile;
use super::names::gguf_name;
use super::settings::settings;
use super::tensors::Change;
use super::vocabulary::{Vocabulary, VocabularySource};
use crate::context::{Context, Event, Task};
use crate::device;
use crate::error::{Error, Result};
use crate::files::write_text;
use crate::gguf::{GgufValue, NewTensor, TensorType, quantize, write_file};
use crate::model::config::DecoderConfig;
use crate::model::folder::{biases_without_place, check_new_place};
use crate::model::tensors::{Elements, HostTensor, NamedTensor, lazy_tensors};
use crate::model::text_model::{LoadOptions, TextModelFiles};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Options of [`export_gguf`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufOptions {
    /// Type of the matrices: f32, f16, bf16, q8_0, or q4_0. Norms and biases are f32.
    pub tensor_type: TensorType,
    /// Type of the embedding and the head. `None`: `tensor_type`, or q8_0 if that is q4_0, which is too
    /// coarse for them.
    pub embedding_type: Option<TensorType>,
    /// Name of the model in the file. `None`: the name of its folder.
    pub name: Option<String>,
    /// llama.cpp's name of the pre-tokenizer, if it cannot be detected.
    pub pre_tokenizer: Option<String>,
    /// Path of a Modelfile for Ollama. `None`: no Modelfile.
    pub modelfile: Option<PathBuf>,
    /// Name of the backend that merges adapters.
    pub backend: String,
}

impl Default for GgufOptions {
    /// Defaults to f16, without a Modelfile, on the backend `auto`.
    fn default() -> Self {
        Self {
            tensor_type: TensorType::F16,
            embedding_type: None,
            name: None,
            pre_tokenizer: None,
            modelfile: None,
            backend: "auto".into(),
        }
    }
}

/// Contents of a written GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufReport {
    /// Value of `general.architecture`.
    pub architecture: &'static str,
    /// Number of tensors of each type.
    pub tensors: BTreeMap<TensorType, usize>,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Differences between llama.cpp's computation and the model, and other notices.
    pub notices: Vec<String>,
}

/// Writes a model with its tokenizer and its chat template as a new GGUF file. `model` and `adapter` are as
/// in [`TextModelFiles::open`]; an adapter is merged first.
///
/// # Errors
/// See [`TextModelFiles::open`] and [`TextModelFiles::load`]. [`Error::Model`] if a file exists, llama.cpp
/// does not support the family or the model's settings, or the type cannot represent a value.
/// [`Error::Tokenizer`] if llama.cpp does not support the tokenizer. [`Error::Config`] if the type cannot be
/// written. [`Error::Io`] if a file cannot be written; [`Error::Stopped`] if the context was stopped.
pub fn export_gguf(
    model: &str,
    adapter: Option<&Path>,
    out: &Path,
    options: &GgufOptions,
    context: &Context<'_>,
) -> Result<GgufReport> {
    check_places(out, options)?;
    let types = Types::of(options)?;
    let load = LoadOptions { adapter: adapter.map(Path::to_owned), ..LoadOptions::default() };
    let files = TextModelFiles::read(model, &load, context)?;
    let path = files.folder().path().to_owned();
    let refused = |what: String| Error::Model {
        path: path.clone(),
        what,
        hint: "Serve the model folder with vLLM or transformers instead".into(),
    };
    let architecture = files.folder().config().architecture;
    let family = GgufFamily::of(architecture).ok_or_else(|| {
        refused(format!("llama.cpp does not support {}", architecture.properties().class))
    })?;
    settings(files.folder().config(), family).map_err(refused)?;
    let vocabulary = vocabulary(&files, options)?;
    // An adapter may untie the head.
    let (source, config) = Source::open(&files, options, context)?;
    let settings = settings(&config, family).map_err(refused)?;
    let mut metadata = general(family, options, &types, model, &config);
    metadata.extend(settings.entries);
    metadata.extend(vocabulary.entries);
    if let Some(template) = files.chat_template() {
        metadata.push(("tokenizer.chat_template".into(), template.source().into()));
    }
    let mut tensors = vec![];
    for (name, shape) in in_order(&config, family) {
        tensors.push(source.tensor(&config, family, name, shape, &types));
    }
    for (name, values) in settings.tensors {
        let (shape, kind) = (vec![values.len()], TensorType::F32);
        let bytes = Box::new(move || quantize(&values, kind).map_err(|what| unwritten(name, what)));
        tensors.push(NewTensor { name: name.into(), shape, kind, bytes });
    }
    let mut report = GgufReport {
        architecture: family.name,
        tensors: BTreeMap::new(),
        bytes: 0,
        notices: [settings.notices, vocabulary.notices].concat(),
    };
    report.count(&tensors, &types);
    for notice in &report.notices {
        context.notice(notice)?;
    }
    report.bytes = write_new(out, &metadata, tensors, context)?;
    if let Some(path) = &options.modelfile {
        write_text(path, &modelfile(&files, out, path))?;
    }
    context.emit(&Event::Written { what: "the GGUF model", path: out })?;
    Ok(report)
}

impl GgufReport {
    /// Counts the tensors of each type, and adds a notice if some have another type than requested.
    fn count(&mut self, tensors: &[NewTensor<'_>], types: &Types) {
        let mut odd = 0;
        for tensor in tensors {
            *self.tensors.entry(tensor.kind).or_default() += 1;
            let asked = [types.matrices, types.embeddings].contains(&tensor.kind);
            odd += usize::from(tensor.shape.len() == 2 && !asked);
        }
        if odd > 0 {
            let kind = types.matrices.name();
            self.notices.push(format!(
                "{odd} matrices have rows that are not a multiple of the block size of {kind}; they are stored \
                 as f16, as in llama.cpp's converter"
            ));
        }
    }
}

/// Refuses existing files, and the same path for both files.
fn check_places(out: &Path, options: &GgufOptions) -> Result<()> {
    check_new_place(out, "file")?;
    let Some(modelfile) = &options.modelfile else { return Ok(()) };
    if std::path::absolute(modelfile).ok() == std::path::absolute(out).ok() {
        let what = "the Modelfile and the GGUF file have the same path";
        return Err(Error::config("modelfile", what, "Choose another name for one of them"));
    }
    check_new_place(modelfile, "file").map_err(|error| match error {
        Error::Model { path, what, .. } => {
            let hint = "Move it away, or choose another path for the Modelfile";
            Error::Model { path, what, hint: hint.into() }
        }
        other => other,
    })
}

pub(super) fn unwritten(name: &str, what: String) -> Error {
    Error::Model {
        path: name.into(),
        what,
        hint: "Choose another type; f32 can represent every value".into(),
    }
}

/// Writes a file whose path has been checked. Returns its length in bytes.
pub(super) fn write_new(
    out: &Path,
    metadata: &[(String, GgufValue)],
    tensors: Vec<NewTensor<'_>>,
    context: &Context<'_>,
) -> Result<u64> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    let mut progress = context.task(Task::WriteModel, tensors.len() as u64);
    write_file(out, metadata, tensors, &mut |done| progress.update(done))
}

/// The types of a file's matrices.
struct Types {
    matrices: TensorType,
    embeddings: TensorType,
}

impl Types {
    fn of(options: &GgufOptions) -> Result<Self> {
        let matrices = options.tensor_type;
        let usual = if matrices == TensorType::Q4_0 { TensorType::Q8_0 } else { matrices };
        let embeddings = options.embedding_type.unwrap_or(usual);
        for (key, kind) in [("tensor_type", matrices), ("embedding_type", embeddings)] {
            if let Err(what) = quantize(&[], kind) {
                let hint = "Use f32, f16, bf16, q8_0, or q4_0; llama-quantize converts an f16 file to other types";
                return Err(Error::config(key, what, hint));
            }
        }
        Ok(Self { matrices, embeddings })
    }
}

/// Returns the general metadata, which every family has.
fn general(
    family: &GgufFamily,
    options: &GgufOptions,
    types: &Types,
    model: &str,
    config: &DecoderConfig,
) -> Vec<(String, GgufValue)> {
    let path = Path::new(model);
    let of_folder = || {
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = if full.is_file() { full.file_stem() } else { full.file_name() };
        name.unwrap_or_default().to_string_lossy().into_owned()
    };
    // The name of a model on the Hub, without its revision.
    let of_hub = || model.split_once('@').map_or(model, |(name, _)| name).to_owned();
    let name = options.name.clone();
    let name = name.unwrap_or_else(|| if path.exists() { of_folder() } else { of_hub() });
    let entries: [(&str, GgufValue); 6] = [
        ("general.architecture", family.name.into()),
        ("general.type", "model".into()),
        ("general.name", name.as_str().into()),
        ("general.size_label", size_label(config).into()),
        ("general.file_type", types.matrices.file_type().into()),
        ("general.quantization_version", 2u32.into()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

/// Returns the number of parameters with at least two digits: `1.2B`, `135M`.
fn size_label(config: &DecoderConfig) -> String {
    let count: usize =
        config.tensor_shapes().values().map(|shape| shape.iter().product::<usize>()).sum();
    let count = count as f64;
    let (scaled, unit) = match count {
        count if count > 1e9 => (count / 1e9, "B"),
        count if count > 1e6 => (count / 1e6, "M"),
        count => (count / 1e3, "K"),
    };
    let digits = usize::from(scaled.round() < 10.0);
    format!("{scaled:.digits$}{unit}")
}

fn vocabulary(files: &TextModelFiles, options: &GgufOptions) -> Result<Vocabulary> {
    let folder = files.folder();
    let source = VocabularySource {
        tokenizer: files.tokenizer(),
        settings: folder.tokenizer_config()?.json,
        config: folder.json(),
        sentence_piece: folder.sentence_piece()?,
        size: folder.config().vocab_size,
        end_of_turn: files.template().end_token(files.tokenizer()),
        ends: files.end_tokens(),
        pre_tokenizer: options.pre_tokenizer.as_deref(),
    };
    source.vocabulary()
}

/// Returns the tensors in the order of the file, by their names in folders: the embedding, the layers, the
/// rest.
fn in_order(config: &DecoderConfig, family: &GgufFamily) -> Vec<(String, Vec<usize>)> {
    let mut shapes = config.tensor_shapes();
    if family.needs_head && config.tie_word_embeddings {
        shapes.insert("lm_head.weight".into(), vec![config.vocab_size, config.hidden_size]);
    }
    let place = |name: &str| {
        let layer = name.strip_prefix("model.layers.");
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        match layer {
            Some(layer) => layer + 1,
            None if name.contains("embed_tokens") => 0,
            None => usize::MAX,
        }
    };
    let mut all: Vec<(String, Vec<usize>)> = shapes.into_iter().collect();
    all.sort_by_key(|(name, _)| place(name));
    all
}

/// Source of the model's tensors.
enum Source {
    /// The model's files.
    Files(RefCell<crate::model::weights::WeightFiles>),
    /// A model in memory, with a merged adapter.
    Model(BTreeMap<String, NamedTensor>),
}

impl Source {
    /// Returns the tensors and the configuration of their model.
    fn open(
        files: &TextModelFiles,
        options: &GgufOptions,
        context: &Context<'_>,
    ) -> Result<(Self, DecoderConfig)> {
        let folder = files.folder();
        let Some(adapter) = files.adapter() else {
            let files = Self::Files(RefCell::new(folder.open_weights()?));
            return Ok((files, folder.config().clone()));
        };
        let device = device::by_name(&options.backend)?;
        let model = files.clone().load(&device, context)?.model.merged();
        context.check()?;
        let tensors: BTreeMap<String, NamedTensor> = lazy_tensors(&model, false)
            .into_iter()
            .map(|tensor| (tensor.name.clone(), tensor))
            .collect();
        let config = model.config().clone();
        let shapes = config.tensor_shapes();
        let without_place: Vec<&str> =
            tensors.keys().filter(|name| !shapes.contains_key(*name)).map(String::as_str).collect();
        match without_place.is_empty() {
            true => Ok((Self::Model(tensors), config)),
            false => Err(biases_without_place(adapter, &without_place)),
        }
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        // Only some files store a tied head.
        let tied = |holds: bool| match name {
            "lm_head.weight" if !holds => "model.embed_tokens.weight",
            name => name,
        };
        match self {
            Self::Files(files) => {
                let name = tied(files.borrow().holds(name));
                files.borrow_mut().read(name)
            }
            Self::Model(tensors) => {
                let found = tensors.get(tied(tensors.contains_key(name)));
                match found.map(|tensor| &tensor.elements) {
                    Some(Elements::Numbers(read)) => read(),
                    _ => Err(unwritten(name, "it is not stored as floats".into())),
                }
            }
        }
    }

    fn tensor<'a>(
        &'a self,
        config: &DecoderConfig,
        family: &GgufFamily,
        name: String,
        shape: Vec<usize>,
        types: &Types,
    ) -> NewTensor<'a> {
        let is_outer = ["model.embed_tokens.weight", "lm_head.weight"].contains(&name.as_str());
        let wanted = if is_outer { types.embeddings } else { types.matrices };
        let kind = match shape[..] {
            [_, columns] if columns.is_multiple_of(wanted.block()) => wanted,
            [_, _] => TensorType::F16,
            _ => TensorType::F32,
        };
        let change = Change::of(config, family, &name);
        let own = gguf_name(config, &name).unwrap_or_else(|| name.clone());
        let bytes = Box::new(move || {
            let tensor = change.apply(self.read(&name)?);
            quantize(&tensor.values, kind).map_err(|what| unwritten(&name, what))
        });
        NewTensor { name: own, shape: shape_in_files(&shape), kind, bytes }
    }
}
