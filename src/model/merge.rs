//! Adapters added to their base model, written as a plain model folder.

use super::folder::{CHAT_TEMPLATE, MAX_SHARD_BYTES, SaveFolder, check_new_folder};
use super::lora::LoraConfig;
use super::text_model::{LoadOptions, TextModel, TextModelFiles};
use super::weights::FileType;
use crate::context::{Context, Event};
use crate::data::ChatTemplate;
use crate::device;
use crate::error::{Error, Result};
use std::path::Path;

/// How a merged model is made and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeOptions {
    /// The type of the weights.
    pub file_type: FileType,
    /// Largest size of a file of weights, in bytes, before it is divided.
    pub max_shard_bytes: u64,
    /// The device that adds, by the name of its backend.
    pub backend: String,
}

impl Default for MergeOptions {
    /// In f32, on the fastest backend.
    fn default() -> Self {
        let file_type = FileType::F32;
        Self { file_type, max_shard_bytes: MAX_SHARD_BYTES, backend: "auto".into() }
    }
}

/// Adds an adapter to its base model and writes the result as a model folder, which must not exist:
/// the base's configuration and tokenizer, with the chat template that the adapter was trained with.
/// `model` and `adapter` are named as in [`TextModelFiles::open`]; without `adapter`, `model` is a run
/// that trained one. Returns the adapter's settings.
///
/// # Errors
/// As [`TextModelFiles::open`] and [`TextModelFiles::load`]; [`Error::Config`] where there is no
/// adapter; [`Error::Model`] where `out` exists; [`Error::Io`]; [`Error::Backend`].
pub fn merge_adapter(
    model: &str,
    adapter: Option<&Path>,
    out: &Path,
    options: &MergeOptions,
    context: &Context<'_>,
) -> Result<LoraConfig> {
    check_new_folder(out)?;
    let load = LoadOptions { adapter: adapter.map(Path::to_owned), ..LoadOptions::default() };
    let files = TextModelFiles::read(model, &load, context)?;
    let Some(adapter) = files.adapter().map(Path::to_owned) else {
        let what = format!("{model} has no adapter that could be merged");
        return Err(Error::config("adapter", what, "Name its folder, or the run that trained it"));
    };
    let device = device::by_name(&options.backend)?;
    let TextModel { model, files } = files.load(&device, context)?;
    let lora = model.lora().cloned().unwrap_or_default();
    let model = model.merged();
    context.check()?;
    let template = files.chat_template().map(ChatTemplate::source);
    let how = SaveFolder {
        base: Some(files.folder()),
        end_tokens: files.end_tokens(),
        // The base's own comes with its files.
        chat_template: template.filter(|_| adapter.join(CHAT_TEMPLATE).is_file()),
        file_type: options.file_type,
        max_shard_bytes: options.max_shard_bytes,
        ..SaveFolder::new(files.tokenizer())
    };
    model.save(out, &how)?;
    context.emit(&Event::Written { what: "the merged model", path: out })?;
    Ok(lora)
}
