//! Model folders in the format of Hugging Face's tools.
//!
//! ```text
//! config.json              configuration         tokenizer.json         the tokenizer
//! generation_config.json   end tokens            tokenizer_config.json  its settings
//! model.safetensors        the weights, or shards and model.safetensors.index.json
//! chat_template.jinja      the chat template, if tokenizer_config.json lacks it
//! ```

mod write;

pub(crate) use write::writing_place;
pub use write::{MAX_SHARD_BYTES, SaveFolder, check_new_folder};
pub(super) use write::{biases_without_place, check_new_place, write_folder};

use super::base_weights::BaseWeights;
use super::config::DecoderConfig;
use super::decoder::DecoderLm;
use super::gguf::GgufModel;
use super::hf_config::{Refusal, dropouts, read_config, text_part, token_ids};
use super::matrix::{MatrixRole, NewMatrix};
use super::rope::RopeType;
use super::tensors::HostTensor;
use super::weight_source::WeightSource;
use super::weights::{WeightFiles, listed, text_name};
use crate::context::{Context, Task, TaskProgress};
use crate::data::{ChatTemplate, PromptTemplate, TextTokenizer, TokenizerConfig};
use crate::error::{Error, Result};
use crate::files::read_if_there;
use crate::gguf::GgufFile;
use crate::ops::resident;
use crate::random::Stream;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Finds the folder or the GGUF file of a model. `name` is a path or, with the feature `hub`, `owner/name` or
/// `owner/name@revision` on the Hugging Face Hub, which is downloaded into the standard cache. A local folder
/// of that name takes precedence.
///
/// # Errors
/// [`Error::Model`] if there is no such folder, and the Hub does not have the model or is not compiled in.
pub fn model_folder(name: &str, context: &Context<'_>) -> Result<PathBuf> {
    find_folder(name, true, context)
}

/// Like [`model_folder`], but downloads only the configuration and the tokenizer from the Hub.
///
/// # Errors
/// See [`model_folder`].
pub(crate) fn folder_without_weights(name: &str, context: &Context<'_>) -> Result<PathBuf> {
    find_folder(name, false, context)
}

fn find_folder(name: &str, with_weights: bool, context: &Context<'_>) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_dir() || GgufFile::is_one(&path) {
        return Ok(path);
    }
    if path.exists() {
        let what = "it is a file, but not a GGUF file".into();
        let hint = "Pass the model's folder or its GGUF file".into();
        return Err(Error::Model { path, what, hint });
    }
    #[cfg(not(feature = "hub"))]
    let _ = (context, with_weights);
    #[cfg(feature = "hub")]
    if let Ok(model) = crate::hub::HubModel::parse(name) {
        return if with_weights { model.fetch(context) } else { model.fetch_settings(context) };
    }
    Err(Error::Model {
        path,
        what: "there is no such folder".into(),
        hint: match cfg!(feature = "hub") {
            true => "Pass a folder with config.json, tokenizer.json, and safetensors files, or owner/name",
            false => {
                "Pass a folder with config.json, tokenizer.json, and safetensors files; owner/name on the \
                 Hugging Face Hub needs a build with the feature `hub`"
            }
        }
        .into(),
    })
}

/// The file of a chat template.
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A model folder or GGUF file whose configuration has been read. [`ModelFolder::load`] reads the weights.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: DecoderConfig,
    /// `config.json`, or the equivalent for the text part of a vision-language model.
    json: Value,
    /// Whether the decoder is the text part of a vision-language model.
    is_part: bool,
    generation: Value,
    base: BaseWeights,
    /// Set for a GGUF file: its equivalents of a folder's files.
    gguf: Option<GgufModel>,
}

/// Returns the error for an unsupported or invalid `config.json`.
fn refused(path: &Path, refusal: &Refusal) -> Error {
    Error::Model {
        path: path.to_owned(),
        what: format!("config.json: {}", refusal.what),
        hint: refusal.hint.into(),
    }
}

impl ModelFolder {
    /// Reads `config.json` and `generation_config.json`, or their equivalents in a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read. [`Error::Model`] if the folder has no model, the model needs
    /// an unsupported feature (named), or a GGUF file is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |what: String, hint: &str| Error::Model {
            path: path.to_owned(),
            what,
            hint: hint.into(),
        };
        let gguf = GgufFile::is_one(path).then(|| GgufModel::open(path)).transpose()?;
        if gguf.is_none() && !path.is_dir() {
            return Err(failed(
                "there is no such folder".into(),
                "Pass a folder with config.json, tokenizer.json, and safetensors files, or a GGUF file",
            ));
        }
        let read = |name: &str| -> Result<Option<Value>> {
            let Some(text) = text_of(path, gguf.as_ref(), name)? else { return Ok(None) };
            let value = serde_json::from_str(&text);
            value.map(Some).map_err(|e| failed(format!("{name} is not JSON: {e}"), "Fix the file"))
        };
        let json = read("config.json")?.ok_or_else(|| {
            let hint = if path.join("adapter_config.json").is_file() {
                "Pass the folder of its base model; this is an adapter"
            } else if path.join("model").join("config.json").is_file() {
                "Pass its model/ folder; this is a run directory"
            } else {
                "Pass the folder of a Hugging Face model"
            };
            failed("it has no config.json".into(), hint)
        })?;
        let refused = |refusal: Refusal| refused(path, &refusal);
        let text = text_part(&json).map_err(refused)?;
        let (is_part, json) = (matches!(text, Cow::Owned(_)), text.into_owned());
        let config = read_config(&json).map_err(refused)?;
        config
            .validate()
            .map_err(|e| refused(e.to_string().trim_end_matches('.').to_owned().into()))?;
        let generation = read("generation_config.json")?.unwrap_or(Value::Null);
        let base = BaseWeights::default();
        Ok(Self { path: path.to_owned(), config, json, is_part, generation, base, gguf })
    }

    /// Selects the configuration for rows of up to `tokens` tokens; see [`DecoderConfig::for_length`].
    /// Notifies the context if this matters for the model.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the context was stopped.
    pub fn for_length(mut self, tokens: usize, context: &Context<'_>) -> Result<Self> {
        self.config = self.config.for_length(tokens);
        if let Some(scaling) = &self.config.rope_scaling
            && scaling.rope_type == RopeType::LongRope
        {
            let list = if scaling.long { "long_factor" } else { "short_factor" };
            context.notice(format!(
                "LongRoPE: rows have up to {tokens} tokens and the model's original context has {}, so \
                 `{list}` is used for all rows; they may have up to {} tokens",
                scaling.original_max_position_embeddings,
                self.config.context()
            ))?;
        }
        Ok(self)
    }

    /// Prepares the folder for training. Notifies the context of dropout in `config.json`, which training
    /// does not apply.
    ///
    /// # Errors
    /// [`Error::Model`] if a dropout is not a number; [`Error::Stopped`] if the context was stopped.
    pub fn for_training(self, context: &Context<'_>) -> Result<Self> {
        let dropouts = dropouts(&self.json).map_err(|refusal| refused(&self.path, &refusal))?;
        for (key, rate) in dropouts {
            context.notice(format!(
                "the model's config.json sets `{key}` to {rate}; training does not apply this dropout"
            ))?;
        }
        Ok(self)
    }

    /// Sets the storage types for [`ModelFolder::load`], which converts one matrix at a time. With types
    /// other than f32, all weights are frozen.
    ///
    /// # Errors
    /// See [`BaseWeights::validate`].
    pub fn with_base_weights(mut self, base: BaseWeights) -> Result<Self> {
        base.validate()?;
        self.base = base;
        Ok(self)
    }

    /// Returns the path of the folder or the GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns `config.json`, or the equivalent for the text part of a vision-language model.
    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    /// Returns the length of `tokenizer.json` in bytes.
    pub(crate) fn tokenizer_bytes(&self) -> Option<u64> {
        let name = "tokenizer.json";
        match &self.gguf {
            Some(gguf) => gguf.text(name).map(|text| text.len() as u64),
            None => Some(self.path.join(name).metadata().ok()?.len()),
        }
    }

    /// Returns the text of a small file of the folder.
    fn text(&self, name: &str) -> Result<Option<String>> {
        text_of(&self.path, self.gguf.as_ref(), name)
    }

    /// Returns `tokenizer_config.json`, or an empty one if the folder has none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`] if it is not a JSON object.
    pub(super) fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        match &self.gguf {
            None => TokenizerConfig::read(&self.path),
            Some(gguf) => {
                let text = gguf.text("tokenizer_config.json").unwrap_or("{}");
                TokenizerConfig::parse(self.path.display().to_string(), text)
            }
        }
    }

    /// Returns SentencePiece's `tokenizer.model`, if the folder has one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn sentence_piece(&self) -> Result<Option<Vec<u8>>> {
        if self.gguf.is_some() {
            return Ok(None);
        }
        let path = self.path.join("tokenizer.model");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Returns whether this is a vision-language model, of which only the text part is read.
    pub(crate) fn is_part(&self) -> bool {
        self.is_part
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Reads the tokenizer. `end_token` overrides the token that ends an answer.
    ///
    /// # Errors
    /// See [`TextTokenizer::from_folder`]. [`Error::Tokenizer`] if it has more tokens than the embedding has
    /// rows.
    pub fn tokenizer(&self, end_token: Option<&str>) -> Result<TextTokenizer> {
        let tokenizer = match &self.gguf {
            None => TextTokenizer::from_folder(&self.path, end_token)?,
            Some(gguf) => {
                let bytes = gguf.text("tokenizer.json").unwrap_or_default().as_bytes();
                let name = self.path.display().to_string();
                TextTokenizer::from_parts(name, bytes, &self.tokenizer_config()?, end_token)?
            }
        };
        let (tokens, known) = (tokenizer.vocabulary_size(), self.config.vocab_size);
        if tokens > known {
            return Err(Error::Tokenizer {
                name: tokenizer.name().to_owned(),
                what: format!(
                    "its token IDs go up to {}, but the model's embedding has {known} rows",
                    tokens - 1
                ),
                hint: "Use the tokenizer that belongs to the model".into(),
            });
        }
        Ok(tokenizer)
    }

    /// Reads the chat template, if the folder has one.
    ///
    /// # Errors
    /// See [`ChatTemplate::from_folder`].
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        if self.gguf.is_none() {
            return ChatTemplate::from_folder(&self.path);
        }
        let Some(source) = self.text(CHAT_TEMPLATE)? else { return Ok(None) };
        let name = self.path.display().to_string();
        ChatTemplate::with_config(name, source, &self.tokenizer_config()?).map(Some)
    }

    /// Reads the chat template: from `file` if it is given, else from the adapter's folder if that has one,
    /// else the model's own.
    ///
    /// # Errors
    /// See [`ChatTemplate::from_file`] and [`ChatTemplate::from_folder`].
    pub fn chat_template_with(
        &self,
        file: Option<&Path>,
        adapter: Option<&Path>,
    ) -> Result<Option<ChatTemplate>> {
        let adapters = adapter.map(|adapter| adapter.join(CHAT_TEMPLATE));
        match file.or(adapters.as_deref().filter(|file| file.is_file())) {
            Some(file) => ChatTemplate::from_file_with(file, &self.tokenizer_config()?).map(Some),
            None => self.chat_template(),
        }
    }

    /// Returns all tokens that end an answer: those of the folder's configuration files, the tokenizer's end
    /// token, and the one with which the layout ends answers.
    pub fn answer_ends(&self, tokenizer: &TextTokenizer, layout: &dyn PromptTemplate) -> Vec<u32> {
        let mut ends = self.end_tokens();
        for token in [layout.end_token(tokenizer), tokenizer.end_token()] {
            if !ends.contains(&token) {
                ends.push(token);
            }
        }
        ends
    }

    /// Returns the end tokens (`eos_token_id`) of `generation_config.json` and `config.json`.
    pub fn end_tokens(&self) -> Vec<u32> {
        let ends: BTreeSet<u32> = [&self.generation, &self.json]
            .into_iter()
            .flat_map(|json| token_ids(json, "eos_token_id"))
            .collect();
        ends.into_iter().collect()
    }

    /// Loads the weights, converting them to f32 or to the types of [`ModelFolder::with_base_weights`].
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read. [`Error::Model`] if a file is damaged or a tensor has values
    /// that are not finite, and with a list of tensors that are missing, unexpected, or of another shape.
    pub fn load(&self, device: &Device) -> Result<DecoderLm> {
        self.load_with(device, &Context::default())
    }

    /// Like [`ModelFolder::load`], and reports progress to the context.
    ///
    /// # Errors
    /// See [`ModelFolder::load`]. [`Error::Stopped`] if the context was stopped.
    pub fn load_with(&self, device: &Device, context: &Context<'_>) -> Result<DecoderLm> {
        self.load_as(Task::LoadModel, device, context)
    }

    /// Like [`ModelFolder::load_with`], reported as another task.
    pub(super) fn load_as(
        &self,
        task: Task,
        device: &Device,
        context: &Context<'_>,
    ) -> Result<DecoderLm> {
        let mut files = self.open_weights()?;
        if self.config.tie_word_embeddings
            && files.holds("lm_head.weight")
            && files.read("lm_head.weight")? != files.read("model.embed_tokens.weight")?
        {
            let what = "lm_head.weight differs from the embedding that it is tied to";
            return Err(misfit(files.path(), what));
        }
        if let Some(parts) = files.set_aside() {
            context.notice(format!(
                "only the model's text part is used; these other tensors are ignored: {parts}"
            ))?;
        }
        let progress = context.task(task, self.config.tensor_shapes().len() as u64);
        let base = self.base;
        base.check(device)?;
        let mut source = FileWeights { files, base, device, progress, done: 0 };
        let model = self.config.build(&mut source)?;
        let mut model = if base.is_f32() { model } else { model.no_grad() };
        model.set_part(self.is_part);
        Ok(model)
    }

    /// Opens the weight files and checks the names and shapes of their tensors against the configuration.
    /// Reads no weights.
    ///
    /// # Errors
    /// Same as [`ModelFolder::load`], except for the tensors' values.
    pub(super) fn open_weights(&self) -> Result<WeightFiles> {
        let mut files = match &self.gguf {
            None => WeightFiles::open(&self.path)?,
            Some(gguf) => WeightFiles::of_gguf(gguf.clone(), &self.path),
        };
        let others = self.config.architecture.properties().other_parts;
        files.rename(|name| match self.is_part {
            true => text_name(name),
            false if others.iter().any(|part| name.starts_with(part)) => None,
            false => Some(name.to_owned()),
        });
        let expected = self.config.tensor_shapes();
        let missing = expected.keys().filter(|name| !files.holds(name));
        let mut problems: Vec<String> = missing.map(|name| format!("{name} is missing")).collect();
        for (name, shape) in files.shapes() {
            match expected.get(name) {
                Some(expected) if expected != shape => {
                    problems.push(format!("{name} is {shape:?}, not {expected:?}"));
                }
                Some(_) => {}
                // RoPE's frequencies in older files, which follow from the configuration.
                None if name.ends_with("rotary_emb.inv_freq") => {}
                // Checked when the weights are loaded; it is unexpected only if the head is tied.
                None if name == "lm_head.weight" => {}
                None => problems.push(format!("{name} does not belong to this model")),
            }
        }
        match problems.is_empty() {
            true => Ok(files),
            false => Err(misfit(files.path(), &listed(&problems))),
        }
    }
}

/// Returns the text of a small file of a model folder, or its equivalent in a GGUF file.
fn text_of(path: &Path, gguf: Option<&GgufModel>, name: &str) -> Result<Option<String>> {
    match gguf {
        Some(gguf) => Ok(gguf.text(name).map(str::to_owned)),
        None => read_if_there(&path.join(name)),
    }
}

impl DecoderLm {
    /// Loads a model folder or GGUF file; see [`ModelFolder`] for more options.
    ///
    /// # Errors
    /// See [`ModelFolder::open`] and [`ModelFolder::load`].
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        ModelFolder::open(folder)?.load(device)
    }
}

/// Returns the error for weights that do not match the configuration.
fn misfit(path: &Path, what: &str) -> Error {
    Error::Model {
        path: path.to_owned(),
        what: format!("its tensors do not match config.json: {what}"),
        hint: "Use the weights and the configuration of the same model".into(),
    }
}

/// Weights from files.
struct FileWeights<'a, 'c> {
    files: WeightFiles,
    base: BaseWeights,
    device: &'a Device,
    progress: TaskProgress<'a, 'c>,
    done: u64,
}

impl FileWeights<'_, '_> {
    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let host = self.files.read(name)?;
        self.told()?;
        Ok(host)
    }

    fn told(&mut self) -> Result<()> {
        self.done += 1;
        self.progress.update(self.done)
    }
}

impl WeightSource for FileWeights<'_, '_> {
    fn numbers<const D: usize>(
        &mut self,
        name: &str,
        _: [usize; D],
        _: impl FnOnce(&mut Stream) -> Vec<f32>,
    ) -> Result<Tensor<D>> {
        let host = self.read(name)?;
        Ok(resident(host.values, host.shape, self.device))
    }

    fn matrix(&mut self, name: &str, _: [usize; 2], role: MatrixRole, _: f64) -> Result<NewMatrix> {
        if role != MatrixRole::Embedding
            && let Some(blocks) = self.files.stored(name, self.base.type_of(role))?
        {
            self.told()?;
            return Ok(NewMatrix::of_blocks(blocks, self.device));
        }
        let host = self.read(name)?;
        Ok(NewMatrix::stored(host, role, &self.base, self.device))
    }
}
