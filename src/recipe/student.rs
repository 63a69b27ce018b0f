//! The student of a run: loaded or initialized at the start, and saved at the end.

use super::card::model_card;
use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use super::summary::Summary;
use crate::context::Context;
use crate::error::Result;
use crate::files::remove_folder;
use crate::model::{DecoderLm, SaveAdapter, SaveFolder};
use burn::tensor::Device;
use std::path::Path;

/// Returns the student before training.
///
/// # Errors
/// Errors of reading the base model.
pub(crate) fn student(
    config: &RunConfig,
    prepared: &Prepared,
    device: &Device,
    context: &Context<'_>,
) -> Result<DecoderLm> {
    let model = match &prepared.base {
        Some(folder) => {
            folder.clone().with_base_weights(config.base)?.load_with(device, context)?
        }
        None => prepared.model.init(config.seed, device)?,
    };
    match &config.lora {
        Some(lora) => model.with_lora(lora, config.seed),
        None => Ok(model),
    }
}

/// Returns a model's name that works from any working directory: relative paths become absolute.
fn named_from_anywhere(name: &str) -> String {
    let path = Path::new(name);
    match std::path::absolute(path) {
        Ok(whole) if !name.is_empty() && path.exists() => whole.to_string_lossy().into_owned(),
        _ => name.to_owned(),
    }
}

/// Saves the student or its adapters, with a model card.
pub(super) fn save(
    config: &RunConfig,
    prepared: &Prepared,
    model: &DecoderLm,
    directory: &RunDirectory,
    summary: &Summary,
) -> Result<()> {
    for name in ["model", "adapter"] {
        remove_folder(&directory.path(name))?;
    }
    let card = model_card(summary, &prepared.template_name);
    // If the template is unchanged, the base's template files are kept as they are.
    let own = match &prepared.base {
        Some(base) => base.chat_template()?.map(|template| template.source().to_owned()),
        None => None,
    };
    let changed = own.is_none_or(|own| own != prepared.chat_template);
    let chat_template = changed.then_some(prepared.chat_template.as_str());
    if model.lora().is_some() {
        let base = named_from_anywhere(config.base_model.as_deref().unwrap_or_default());
        let base = base.as_str();
        let how = SaveAdapter { base, chat_template, card: Some(&card) };
        return model.save_adapter(&directory.path("adapter"), &how);
    }
    let how = SaveFolder {
        base: prepared.base.as_ref(),
        end_tokens: &prepared.end_tokens,
        chat_template,
        file_type: config.save.file_type,
        max_shard_bytes: config.save.max_shard_bytes,
        card: Some(&card),
        ..SaveFolder::new(&prepared.tokenizer)
    };
    model.save(&directory.path("model"), &how)
}
