//! Merges adapters into their base model and writes the result as a model folder.

use super::folder::{CHAT_TEMPLATE, MAX_SHARD_BYTES, SaveFolder, check_new_folder};
use super::lora::LoraConfig;
use super::text_model::{LoadOptions, TextModel, TextModelFiles};
use super::weights::FileType;
use crate::context::{Context, Event};
use crate::data::ChatTemplate;
use crate::device;
use crate::error::{Error, Result};
use std::path::Path;

/// Options of [`merge_adapter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeOptions {
    /// Type of the weights in the files.
    pub file_type: FileType,
    /// Maximum size of a weight file in bytes. Larger models are split into shards.
    pub max_shard_bytes: u64,
    /// Name of the backend that merges.
    pub backend: String,
}

impl Default for MergeOptions {
    /// Defaults to f32 on the backend `auto`.
    fn default() -> Self {
        let file_type = FileType::F32;
        Self { file_type, max_shard_bytes: MAX_SHARD_BYTES, backend: "auto".into() }
    }
}

/// Merges an adapter into its base model and writes the result as a new model folder, with the base's
/// configuration and tokenizer and the chat template that the adapter was trained with. `model` and `adapter`
/// are as in [`TextModelFiles::open`]; without `adapter`, `model` must be a run that trained one. Returns the
/// adapter's settings.
///
/// # Errors
/// See [`TextModelFiles::open`] and [`TextModelFiles::load`]. [`Error::Config`] if there is no adapter;
/// [`Error::Model`] if `out` exists; [`Error::Io`] if it cannot be written; [`Error::Backend`] if the device
/// is not available.
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
        let what = format!("{model} has no adapter to merge");
        let hint = "Pass the adapter's folder or the run that trained it; a model that was trained in full \
                    needs no merge";
        return Err(Error::config("adapter", what, hint));
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
        // The base's own template is copied with its files.
        chat_template: template.filter(|_| adapter.join(CHAT_TEMPLATE).is_file()),
        file_type: options.file_type,
        max_shard_bytes: options.max_shard_bytes,
        ..SaveFolder::new(files.tokenizer())
    };
    model.save(out, &how)?;
    context.emit(&Event::Written { what: "the merged model", path: out })?;
    Ok(lora)
}
