//! Measures what merging changes if an adapter was trained on a quantized base: merging adds it to the
//! original weights, which differ from those that it was trained with.

use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use crate::context::{Context, SourceLoss};
use crate::device;
use crate::error::Result;
use crate::model::{DecoderLm, ModelFolder};
use crate::train::held_out_losses;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The held-out loss of a source before and after merging an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedLoss {
    /// The source's name.
    pub source: String,
    /// Number of held-out rows.
    pub rows: usize,
    /// Mean cross-entropy in nats per token with the adapter on the quantized base.
    pub before: f64,
    /// Mean cross-entropy in nats per token of the merged model.
    pub after: f64,
}

/// Finds the run that trained an adapter on a base with fewer bits than f32, and its settings. `model` and
/// `adapter` are as in [`merge_adapter`]. `None` if there is no run or its base was f32.
///
/// # Errors
/// See [`RunConfig::read`].
///
/// [`merge_adapter`]: crate::model::merge_adapter
pub fn run_on_stored_base(
    model: &str,
    adapter: Option<&Path>,
) -> Result<Option<(PathBuf, RunConfig)>> {
    let named = [adapter, adapter.and_then(Path::parent), Some(Path::new(model))];
    let is_run = |path: &&Path| RunDirectory::holds_run(path) && path.join("adapter").is_dir();
    let Some(run) = named.into_iter().flatten().find(is_run) else { return Ok(None) };
    let config = RunConfig::read(&run.join("config.toml"))?;
    Ok((!config.base.is_f32()).then(|| (run.to_owned(), config)))
}

/// Computes the losses of a run's held-out rows with its adapter on the quantized base, and with the merged
/// model. Reads the run's data again from its original paths.
///
/// # Errors
/// See [`Prepared::new`]; errors of loading the models; [`Error::Stopped`](crate::Error::Stopped).
pub fn merged_losses(
    run: &Path,
    config: &RunConfig,
    merged: &Path,
    backend: &str,
    context: &Context<'_>,
) -> Result<Vec<MergedLoss>> {
    // Held-out rows do not depend on the choice of answers.
    let prepared = Prepared::new(&config.unscored().0, context)?;
    let device = device::by_name(backend)?;
    let losses = |model: DecoderLm| {
        let model = model.with_precision(config.precision)?;
        held_out_losses(&model, &prepared.held_out, &config.train, context)
    };
    let Some(base) = &prepared.base else { return Ok(vec![]) };
    let stored = base.clone().with_base_weights(config.base)?.load_with(&device, context)?;
    let before = losses(stored.with_adapter(&run.join("adapter"))?)?;
    let folder = ModelFolder::open(merged)?.for_length(config.data.max_length, context)?;
    let after = losses(folder.load_with(&device, context)?)?;
    let line = |(before, after): (SourceLoss, SourceLoss)| MergedLoss {
        source: before.name,
        rows: before.rows,
        before: before.loss,
        after: after.loss,
    };
    Ok(before.into_iter().zip(after).map(line).collect())
}
