//! A model written as a GGUF file.

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

/// How a GGUF file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufOptions {
    /// The type of the matrices: f32, f16, bf16, q8_0 or q4_0. Norms and biases are f32.
    pub tensor_type: TensorType,
    /// The same for the embedding and the head; without it as the others, and with q4_0, which loses much
    /// of them, q8_0.
    pub embedding_type: Option<TensorType>,
    /// The model's name in the file; without it that of its folder.
    pub name: Option<String>,
    /// The pre-tokenizer's name, where llama.cpp's converter would not find it.
    pub pre_tokenizer: Option<String>,
    /// Where a Modelfile for Ollama is written, if anywhere.
    pub modelfile: Option<PathBuf>,
    /// The device that adds adapters, by the name of its backend.
    pub backend: String,
}

impl Default for GgufOptions {
    /// In f16, without a Modelfile, on the fastest backend.
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

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufReport {
    /// Its name in `general.architecture`.
    pub architecture: &'static str,
    /// Tensors of each type.
    pub tensors: BTreeMap<TensorType, usize>,
    /// The length of the file.
    pub bytes: u64,
    /// What llama.cpp does otherwise.
    pub notices: Vec<String>,
}

/// Writes a model as a GGUF file, which must not exist, with its tokenizer and its chat template. Names are as
/// in [`TextModelFiles::open`]; an adapter is merged on the way.
///
/// # Errors
/// As [`TextModelFiles::open`] and [`TextModelFiles::load`]; [`Error::Model`] for a family, or settings of a
/// model, that llama.cpp does not compute, and for numbers that the type cannot hold; [`Error::Tokenizer`] for
/// a tokenizer that it does not have; [`Error::Config`] for a type that is not written; [`Error::Io`], also
/// where a file exists; [`Error::Stopped`].
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
        hint: "Serve the model's folder as it is, with vLLM or transformers".into(),
    };
    let architecture = files.folder().config().architecture;
    let family = GgufFamily::of(architecture)
        .ok_or_else(|| refused(format!("llama.cpp has no {}", architecture.properties().class)))?;
    settings(files.folder().config(), family).map_err(refused)?;
    let vocabulary = vocabulary(&files, options)?;
    // An adapter may give the model a head of its own.
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
    context.emit(&Event::Written { what: "the model in GGUF", path: out })?;
    Ok(report)
}

impl GgufReport {
    /// Counts the tensors of each type, and says which have another one than was asked for.
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
                "the rows of {odd} matrices do not divide into blocks of {kind}; these are in f16, as \
                 llama.cpp's converter has them"
            ));
        }
    }
}

/// Refuses places where something is already, or one place for two files.
fn check_places(out: &Path, options: &GgufOptions) -> Result<()> {
    check_new_place(out, "file")?;
    let Some(modelfile) = &options.modelfile else { return Ok(()) };
    if std::path::absolute(modelfile).ok() == std::path::absolute(out).ok() {
        let what = "the Modelfile would have the place of the GGUF file";
        return Err(Error::config("modelfile", what, "Give one of them another name"));
    }
    check_new_place(modelfile, "file").map_err(|error| match error {
        Error::Model { path, what, .. } => {
            let hint = "Move it away, name another place for the Modelfile, or write none";
            Error::Model { path, what, hint: hint.into() }
        }
        other => other,
    })
}

pub(super) fn unwritten(name: &str, what: String) -> Error {
    Error::Model {
        path: name.into(),
        what,
        hint: "Choose another type: f32 holds every number".into(),
    }
}

/// Writes a file whose place has been looked at. Returns its length.
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
                let hint = "Choose f32, f16, bf16, q8_0 or q4_0; llama-quantize makes the others of an f16 file";
                return Err(Error::config(key, what, hint));
            }
        }
        Ok(Self { matrices, embeddings })
    }
}

/// What a file says of itself, whatever the family.
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
    // Of a model on the hub without its revision.
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

/// The number of parameters, in two digits or more: `1.2B`, `135M`.
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

/// The tensors of a file in its order, by their names in folders: the embedding, the layers, the rest.
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

/// Where a model's tensors come from.
enum Source {
    /// The files, as they are.
    Files(RefCell<crate::model::weights::WeightFiles>),
    /// A model in memory, with its adapter merged.
    Model(BTreeMap<String, NamedTensor>),
}

impl Source {
    /// The tensors, and the shape of the model that they are of.
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
        // A head that is tied is there only in some files.
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
                    _ => Err(unwritten(name, "it is not there in numbers".into())),
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
