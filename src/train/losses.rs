//! Losses: of an optimizer step, with its gradients, and of held-out rows.

use super::config::TrainConfig;
use crate::context::{Context, SourceLoss, Task};
use crate::data::{Batch, Row};
use crate::error::{Error, Result};
use crate::model::tensors::host;
use crate::model::{CausalLm, StepOptions};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;

/// Held-out rows of one source.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// The source's name.
    pub name: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// Loss and gradients of one optimizer step.
pub struct StepGradients {
    /// Mean loss of the trained tokens: the cross-entropy in nats, with what the objective adds.
    pub loss: f64,
    /// Trained tokens.
    pub trained: usize,
    /// Gradients of that mean, by parameter.
    pub gradients: GradientsParams,
}

/// Loss and gradients of micro-batches that make one optimizer step: the mean over all their
/// trained tokens, however they are split.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read.
pub fn step_gradients<M: CausalLm>(model: &M, batches: &[Batch]) -> Result<StepGradients> {
    step_gradients_with(model, batches, &StepOptions::default(), &mut |_| Ok(()))
}

/// As [`step_gradients`], for an objective and perhaps with activation checkpointing; `progress` is
/// called with the micro-batches done so far.
///
/// # Errors
/// As [`step_gradients`]; [`Error::Config`] where the objective needs a teacher and a batch has
/// none; what `progress` returns.
pub fn step_gradients_with<M: CausalLm>(
    model: &M,
    batches: &[Batch],
    options: &StepOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<StepGradients> {
    let untaught = batches.iter().any(|batch| batch.trained > 0 && batch.teacher.is_none());
    if untaught && options.objective.distillation.is_some() {
        return Err(Error::config(
            "train.objective.distillation",
            "a row came without its teacher's tokens",
            "Name the teacher, or wrap the rows in `DistillationRows`",
        ));
    }
    let known = model.vocabulary_size();
    let mut named =
        batches.iter().filter_map(|batch| batch.teacher.as_ref()).flat_map(|t| &t.tokens);
    if let Some(token) = named.find(|token| **token as usize >= known) {
        return Err(Error::config(
            "teacher",
            format!("it names token {token}, and the student knows {known}"),
            "Take a teacher with the student's tokens",
        ));
    }
    let trained: usize = batches.iter().map(|batch| batch.trained).sum();
    let mut sum: Option<Tensor<1>> = None;
    let mut accumulator = GradientsAccumulator::new();
    for (index, batch) in batches.iter().enumerate().filter(|(_, batch)| batch.trained > 0) {
        let scale = 1.0 / trained as f64;
        let (value, gradients) = model.loss_and_gradients(batch, scale, options);
        sum = Some(match sum {
            Some(sum) => sum + value,
            None => value,
        });
        accumulator.accumulate(model, gradients);
        progress(index + 1)?;
    }
    let loss = match sum {
        Some(sum) => f64::from(host(sum)?.values[0]),
        None => 0.0,
    };
    Ok(StepGradients { loss, trained, gradients: accumulator.grads() })
}

/// Mean cross-entropy of each source's held-out rows; changes nothing. A source without rows has no
/// line.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read; [`Error::Stopped`].
pub fn held_out_losses<M: CausalLm>(
    model: &M,
    held_out: &[HeldOut],
    config: &TrainConfig,
    context: &Context<'_>,
) -> Result<Vec<SourceLoss>> {
    let model = model.valid();
    let rows: usize = held_out.iter().map(|source| source.rows.len()).sum();
    let mut progress = context.task(Task::HeldOutLoss, rows as u64);
    let mut done = 0;
    let mut losses = vec![];
    for source in held_out.iter().filter(|source| !source.rows.is_empty()) {
        let (mut sum, mut trained) = (0.0, 0);
        for batch in config.batches(&source.rows) {
            if batch.trained > 0 {
                sum += f64::from(host(model.loss_sum(&batch, 1.0))?.values[0]);
                trained += batch.trained;
            }
            done += batch.examples;
            progress.update(done as u64)?;
        }
        losses.push(SourceLoss {
            name: source.name.clone(),
            rows: source.rows.len(),
            trained_tokens: trained,
            loss: sum / trained.max(1) as f64,
        });
    }
    Ok(losses)
}
