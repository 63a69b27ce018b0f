//! The loss and gradients of an optimizer step, and held-out losses.

use super::config::TrainConfig;
use super::reduce::{Piece, Sum};
use super::slots::{Reader, push_values};
use crate::context::{Context, SourceLoss, Task};
use crate::data::{Batch, Row};
use crate::error::{Error, Result};
use crate::model::tensors::host;
use crate::model::{CausalLm, StepOptions};
use crate::ranks::{Ranks, Topic};
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
    /// Mean loss over trained tokens: the cross-entropy in nats plus the terms of the objective.
    pub loss: f64,
    /// Trained tokens.
    pub trained: usize,
    /// Gradients of the mean loss, by parameter.
    pub gradients: GradientsParams,
}

/// Computes the loss and gradients of one optimizer step: the mean over all trained tokens of its
/// micro-batches.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub fn step_gradients<M: CausalLm>(model: &M, batches: &[Batch]) -> Result<StepGradients> {
    step_gradients_with(model, batches, &StepOptions::default(), &mut |_| Ok(()))
}

/// Like [`step_gradients`], with an objective and optional activation checkpointing. `progress` receives the
/// number of micro-batches done so far.
///
/// # Errors
/// See [`step_gradients`]; [`Error::Config`] if the objective needs a teacher and a batch has none; errors of
/// `progress`.
pub fn step_gradients_with<M: CausalLm>(
    model: &M,
    batches: &[Batch],
    options: &StepOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<StepGradients> {
    step_gradients_in_lanes(model, batches, 1, options, progress)
}

/// Like [`step_gradients_with`], adding the gradients in lanes ([`TrainConfig::lanes`]).
pub(super) fn step_gradients_in_lanes<M: CausalLm>(
    model: &M,
    batches: &[Batch],
    lanes: usize,
    options: &StepOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<StepGradients> {
    check_teachers(model, batches.iter(), options)?;
    let trained: usize = batches.iter().map(|batch| batch.trained).sum();
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done)
    };
    let all = match Sum::of(&pieces(batches), lanes) {
        Some(sum) => add_all(model, batches, &sum, 1.0 / trained as f64, options, &mut step)?,
        None => None,
    };
    Ok(match all {
        Some(Partial { loss, gradients }) => {
            StepGradients { loss: f64::from(host(loss)?.values[0]), trained, gradients }
        }
        None => StepGradients { loss: 0.0, trained, gradients: GradientsParams::new() },
    })
}

/// Returns what the order of a sum depends on, for each micro-batch.
pub(super) fn pieces(batches: &[Batch]) -> Vec<Piece> {
    let piece = |batch: &Batch| Piece {
        positions: batch.tokens + batch.padding(),
        trains: batch.trained > 0,
    };
    batches.iter().map(piece).collect()
}

/// A part of a step's loss and gradients.
pub(super) struct Partial {
    pub loss: Tensor<1>,
    pub gradients: GradientsParams,
}

/// Computes the loss and gradients of some micro-batches of a step, added in the order of the sum. Calls
/// `step` after each micro-batch.
pub(super) fn add_all<M: CausalLm>(
    model: &M,
    batches: &[Batch],
    sum: &Sum,
    scale: f64,
    options: &StepOptions,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<Partial>> {
    let mut accumulator = GradientsAccumulator::new();
    let mut loss: Option<Tensor<1>> = None;
    let mut add = |value: Tensor<1>, gradients: GradientsParams| {
        loss = Some(match loss.take() {
            Some(loss) => loss + value,
            None => value,
        });
        accumulator.accumulate(model, gradients);
    };
    match sum {
        Sum::Chain(indices) => {
            for index in indices {
                let (value, gradients) = model.loss_and_gradients(&batches[*index], scale, options);
                add(value, gradients);
                step()?;
            }
        }
        Sum::Pair(first, second) => {
            for part in [first, second] {
                if let Some(part) = add_all(model, batches, part, scale, options, step)? {
                    add(part.loss, part.gradients);
                }
            }
        }
    }
    Ok(loss.map(|loss| Partial { loss, gradients: accumulator.grads() }))
}

/// Rejects micro-batches without a teacher, or whose teacher names tokens outside the student's vocabulary.
pub(super) fn check_teachers<'b, M: CausalLm>(
    model: &M,
    batches: impl Iterator<Item = &'b Batch> + Clone,
    options: &StepOptions,
) -> Result<()> {
    let mut untaught = batches.clone().filter(|batch| batch.trained > 0 && batch.teacher.is_none());
    if untaught.next().is_some() && options.objective.distillation.is_some() {
        return Err(Error::config(
            "train.objective.distillation",
            "a row has no teacher logits",
            "Set a teacher, or wrap the rows in `DistillationRows`",
        ));
    }
    let known = model.vocabulary_size();
    let mut named = batches.filter_map(|batch| batch.teacher.as_ref()).flat_map(|t| &t.tokens);
    if let Some(token) = named.find(|token| **token as usize >= known) {
        return Err(Error::config(
            "teacher",
            format!("it names token {token}, but the student's vocabulary has {known} tokens"),
            "Use a teacher with the student's tokenizer",
        ));
    }
    Ok(())
}

/// Computes the mean cross-entropy of each source's held-out rows. Sources without rows are omitted.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read; [`Error::Stopped`].
pub fn held_out_losses<M: CausalLm>(
    model: &M,
    held_out: &[HeldOut],
    config: &TrainConfig,
    context: &Context<'_>,
) -> Result<Vec<SourceLoss>> {
    held_out_losses_on(model, held_out, config, &Ranks::default(), context)
}

/// Like [`held_out_losses`], with the micro-batches divided among ranks. All ranks get the same losses.
///
/// # Errors
/// See [`held_out_losses`]; [`Error::Ranks`].
pub(super) fn held_out_losses_on<M: CausalLm>(
    model: &M,
    held_out: &[HeldOut],
    config: &TrainConfig,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<Vec<SourceLoss>> {
    let model = model.valid();
    let rows: usize = held_out.iter().map(|source| source.rows.len()).sum();
    let mut progress = context.task(Task::HeldOutLoss, rows as u64);
    let (mut done, mut batches, mut own) = (0, vec![], vec![]);
    let sources = || held_out.iter().enumerate().filter(|(_, source)| !source.rows.is_empty());
    for (number, source) in sources() {
        for batch in config.batches(&source.rows) {
            let mine = batches.len() % ranks.count() == ranks.rank();
            if batch.trained > 0 {
                if mine {
                    own.push(host(model.loss_sum(&batch, 1.0))?.values[0]);
                }
                batches.push((number, batch.trained));
            }
            done += batch.examples;
            progress.update(done as u64)?;
        }
    }
    let losses = everyones(&own, batches.len(), ranks)?;
    let of_source = |(number, source): (usize, &HeldOut)| {
        let own = batches.iter().zip(&losses).filter(|((of, _), _)| *of == number);
        let (sum, trained) = own.fold((0.0, 0), |(sum, all), ((_, trained), loss)| {
            (sum + f64::from(*loss), all + trained)
        });
        SourceLoss {
            name: source.name.clone(),
            rows: source.rows.len(),
            trained_tokens: trained,
            loss: sum / trained.max(1) as f64,
        }
    };
    Ok(sources().map(of_source).collect())
}

/// Collects numbers that are distributed over the ranks in turn, in their order.
fn everyones(own: &[f32], count: usize, ranks: &Ranks) -> Result<Vec<f32>> {
    let mut message = vec![];
    push_values(&mut message, own);
    let all = ranks.all(Topic::Losses, message)?;
    let mut readers: Vec<Reader<'_>> =
        all.iter().enumerate().map(|(rank, message)| Reader::new(message, rank)).collect();
    let turns = (0..count).map(|place| Ok(readers[place % ranks.count()].values(1)?[0]));
    turns.collect()
}
