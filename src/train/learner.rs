//! The training loop, step by step.
//!
//! One optimizer step is `accumulate` micro-batches. Their losses are summed over trained tokens
//! and divided once by the step's trained tokens, so that a step does not depend on how its rows
//! are split. Everything else (progress, metrics, plots) is done by observers.

use super::checkpoint::CheckpointStore;
use super::config::{OnNotFinite, TrainConfig};
use super::observer::{EvaluationReport, Event, Grader, Observer, Outcome, SourceLoss, StepReport};
use super::optimizer::{ModuleAdamW, global_norm, scaled};
use super::selection::Selection;
use crate::data::{Batch, Row, RowStream};
use crate::error::{Error, Result};
use crate::model::tensors::host;
use crate::model::{CausalLm, StepOptions};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Asks a training to stop after its step; clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks for the stop. Returns whether it had been asked for before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

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
            "Name the teacher, or wrap the rows in `TaughtRows`",
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
/// `progress` is called with the rows done so far.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read, and what `progress` returns.
pub fn held_out_losses<M: CausalLm>(
    model: &M,
    held_out: &[HeldOut],
    config: &TrainConfig,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<SourceLoss>> {
    let model = model.valid();
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
            progress(done)?;
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

/// What a training needs beside the data.
pub struct Surroundings<'a, M> {
    /// Rows to evaluate on.
    pub held_out: &'a [HeldOut],
    /// Asks the model questions at each evaluation but the last.
    pub grader: Option<&'a mut dyn Grader<M>>,
    /// Sees the events.
    pub observer: &'a mut dyn Observer,
    /// Asks for a stop.
    pub stop: &'a StopFlag,
    /// Where checkpoints go; without it none are made.
    pub checkpoints: Option<&'a CheckpointStore>,
}

/// Steps that were not finite.
#[derive(Default)]
struct Failures {
    in_a_row: usize,
    /// Those that were rolled back from.
    steps: BTreeSet<usize>,
}

/// Trains a model.
#[derive(Debug)]
pub struct Learner<M> {
    pub(super) model: Option<M>,
    pub(super) optimizer: ModuleAdamW,
    pub(super) config: TrainConfig,
    pub(super) step: usize,
    pub(super) selection: Selection,
}

/// Steps in a row that may be skipped, and times that training may roll back.
const MOST_FAILURES: usize = 10;

impl<M: CausalLm> Learner<M> {
    /// A learner before its first step. The model must be on an autodiff device.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range or a device without autodiff.
    pub fn new(model: M, config: TrainConfig) -> Result<Self> {
        config.validate()?;
        if !model.devices().iter().all(burn::tensor::Device::is_autodiff) {
            return Err(Error::config(
                "device",
                "the model's device does not compute gradients",
                "Create the model on `device.autodiff()`",
            ));
        }
        if !model.takes(&config.objective) {
            return Err(Error::config(
                "train.objective",
                "this model is trained for the cross-entropy only",
                "Leave it out, or implement `CausalLm::objective_sum` and `takes`",
            ));
        }
        let optimizer = ModuleAdamW::new(&config);
        Ok(Self { model: Some(model), optimizer, config, step: 0, selection: Selection::default() })
    }

    /// The model as it stands.
    ///
    /// # Panics
    /// If an earlier step panicked half way.
    pub fn model(&self) -> &M {
        self.model.as_ref().expect("the model is put back after each step")
    }

    /// Ends the learner and keeps the model.
    ///
    /// # Panics
    /// If an earlier step panicked half way.
    pub fn into_model(self) -> M {
        self.model.expect("the model is put back after each step")
    }

    /// Steps made so far.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Makes one optimizer step on these rows, of `total_steps`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where loss or gradient are not finite (the model is left as it was);
    /// [`Error::Training`] where the device fails.
    pub fn train_step(&mut self, rows: &[Row], total_steps: usize) -> Result<StepReport> {
        self.observed_step(rows, total_steps, &mut ())
    }

    /// As [`Learner::train_step`]; the observer sees the micro-batches.
    fn observed_step(
        &mut self,
        rows: &[Row],
        total_steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<StepReport> {
        let start = Instant::now();
        let batches = self.config.batches(rows);
        let step = self.step + 1;
        let not_finite = |what| Error::NotFinite {
            step,
            what,
            rows: rows.iter().map(|row| row.label.clone()).collect(),
            hint: "The model is as it was before the step; try a smaller learning rate".into(),
        };
        let options = self.config.step_options();
        let StepGradients { loss, trained, mut gradients } =
            step_gradients_with(self.model(), &batches, &options, &mut |done| {
                observer.observe(&Event::MicroBatch { step, done, of: batches.len() })
            })?;
        if !loss.is_finite() {
            return Err(not_finite("loss"));
        }
        let norm = global_norm(self.model(), &gradients)?;
        if !norm.is_finite() {
            return Err(not_finite("gradient norm"));
        }
        let limit = self.config.max_grad_norm;
        if limit > 0.0 && norm > limit {
            gradients = scaled(self.model(), gradients, limit / norm);
        }
        let rate = self.config.learning_rate_at(step, total_steps);
        if trained > 0 {
            let model = self.model.take().expect("the model is put back after each step");
            self.model = Some(self.optimizer.step(rate, model, gradients));
        }
        self.step = step;
        Ok(StepReport {
            step,
            epoch: 0.0,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            rows: rows.len(),
            tokens: batches.iter().map(|batch| batch.tokens).sum(),
            trained_tokens: trained,
            padding: batches.iter().map(Batch::padding).sum(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Trains to the end of the data, or until a stop is asked for; then a checkpoint is made.
    ///
    /// # Errors
    /// As [`Learner::train_step`]; what the rows, the observer and the checkpoints give.
    pub fn fit(
        &mut self,
        rows: &mut dyn RowStream,
        surroundings: Surroundings<'_, M>,
    ) -> Result<Outcome> {
        let Surroundings { held_out, mut grader, observer, stop, checkpoints } = surroundings;
        let start = Instant::now();
        let per_epoch = rows.rows_per_epoch();
        let total_rows = self.config.total_rows(per_epoch);
        let total_steps = self.config.total_steps(per_epoch);
        let per_step = self.config.rows_per_step() as u64;
        let mut outcome = Outcome {
            step: self.step,
            total_steps,
            stopped: false,
            stopped_early: false,
            skipped: vec![],
            best: None,
            tokens: 0,
            trained_tokens: 0,
            seconds: 0.0,
        };
        if total_steps == 0 {
            return Err(Error::config(
                "train.epochs",
                format!("{} epochs of {per_epoch} rows make no step", self.config.epochs),
                "Raise it, or set train.steps",
            ));
        }
        observer.observe(&Event::Start { step: self.step, total_steps })?;
        let due = |every: usize, step: usize| every > 0 && step.is_multiple_of(every);
        let mut failures = Failures::default();
        while self.step < total_steps && !self.is_past_its_best() {
            let first = self.step as u64 * per_step;
            let end = (first + per_step).min(total_rows);
            let step_rows = rows.rows(first..end)?;
            match self.observed_step(&step_rows, total_steps, observer) {
                Ok(mut report) => {
                    failures.in_a_row = 0;
                    report.epoch = end as f64 / per_epoch as f64;
                    outcome.tokens += report.tokens as u64;
                    outcome.trained_tokens += report.trained_tokens as u64;
                    observer.observe(&Event::Step(&report))?;
                }
                Err(error @ Error::NotFinite { .. }) => {
                    match self.recover(error, &mut failures, checkpoints, observer)? {
                        Some(skipped) => outcome.skipped.push(skipped),
                        None => {
                            // Steps after the checkpoint come again.
                            outcome.skipped.retain(|skipped| *skipped <= self.step);
                            continue;
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            outcome.step = self.step;
            let last = self.step == total_steps;
            outcome.stopped = stop.is_requested() && !last;
            // While steps are left out, the weights are those of an earlier one, and perhaps spoiled:
            // no checkpoint of them may push out a good one.
            let regular = due(self.config.checkpoint_every, self.step) && failures.in_a_row == 0;
            let mut saves = outcome.stopped || last || regular;
            if last || due(self.config.evaluate_every, self.step) {
                let report = self.evaluate(held_out, observer)?;
                saves |= self.selection.note(&report) && self.config.keep_best;
                saves |= self.is_past_its_best();
                if let Some(grader) = grader.as_mut().filter(|_| !last) {
                    // A bar that cannot be drawn is no reason to stop.
                    let mut progress = |done, of| {
                        let _ = observer.observe(&Event::Evaluating { done, of });
                    };
                    let (report, samples) = grader.grade(self.model(), self.step, &mut progress)?;
                    observer.observe(&Event::Graded(&report))?;
                    samples.iter().try_for_each(|s| observer.observe(&Event::Sample(s)))?;
                }
            }
            if saves {
                self.save(checkpoints, observer)?;
            }
            if outcome.stopped {
                break;
            }
        }
        outcome.stopped_early = self.step < total_steps && self.is_past_its_best();
        outcome.stopped &= !outcome.stopped_early;
        outcome.best = self.selection.best;
        if let (Some(best), Some(store), true) =
            (self.selection.best, checkpoints, self.config.keep_best && !outcome.stopped)
            && best.step != self.step
        {
            // Where it cannot be read any more, the last weights stay.
            if store.restore(best.step, self).is_err() {
                outcome.best = None;
            }
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        observer.observe(&Event::End(&outcome))?;
        Ok(outcome)
    }

    /// Whether early stopping ends the training here.
    fn is_past_its_best(&self) -> bool {
        self.config.early_stopping > 0 && self.selection.since >= self.config.early_stopping
    }

    /// Goes on after a step that was not finite, where the settings say so: the number of the step
    /// that was left out, or `None` after going back to a checkpoint.
    fn recover(
        &mut self,
        error: Error,
        failures: &mut Failures,
        checkpoints: Option<&CheckpointStore>,
        observer: &mut dyn Observer,
    ) -> Result<Option<usize>> {
        let Error::NotFinite { step, what, rows, hint } = error else { return Err(error) };
        let newest = checkpoints.and_then(|store| store.newest_path().ok().flatten());
        let skips = match self.config.on_not_finite {
            OnNotFinite::Stop => false,
            OnNotFinite::Skip => failures.in_a_row < MOST_FAILURES,
            // What failed before fails again.
            OnNotFinite::RollBack => failures.steps.contains(&step),
        };
        if skips {
            failures.in_a_row += 1;
            self.step = step;
            observer.observe(&Event::Skipped { step, what })?;
            return Ok(Some(step));
        }
        if let (OnNotFinite::RollBack, Some(store), Some(_)) =
            (self.config.on_not_finite, checkpoints, &newest)
            && failures.steps.len() < MOST_FAILURES
        {
            failures.steps.insert(step);
            store.resume(self)?;
            observer.observe(&Event::RolledBack { from: step, to: self.step })?;
            return Ok(None);
        }
        let last = match newest {
            Some(path) => format!("the last checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        Err(Error::NotFinite { step, what, rows, hint: format!("{hint}; {last}") })
    }

    /// Evaluates on held-out rows and tells the observer.
    ///
    /// # Errors
    /// As [`held_out_losses`].
    pub fn evaluate(
        &self,
        held_out: &[HeldOut],
        observer: &mut dyn Observer,
    ) -> Result<EvaluationReport> {
        let start = Instant::now();
        let of = held_out.iter().map(|source| source.rows.len()).sum();
        let sources = held_out_losses(self.model(), held_out, &self.config, &mut |done| {
            observer.observe(&Event::Evaluating { done, of })
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(bad) = sources.iter().find(|source| !source.loss.is_finite()) {
            return Err(Error::NotFinite {
                step: self.step,
                what: "held-out loss",
                rows: vec![format!("held-out rows of `{}`", bad.name)],
                hint: "Try a smaller learning rate".into(),
            });
        }
        let report = EvaluationReport { step: self.step, sources, seconds };
        if of > 0 {
            observer.observe(&Event::Evaluation(&report))?;
        }
        Ok(report)
    }

    fn save(&self, store: Option<&CheckpointStore>, observer: &mut dyn Observer) -> Result<()> {
        let Some(store) = store else { return Ok(()) };
        observer.observe(&Event::Saving { step: self.step })?;
        let path = store.save(self).map_err(|error| {
            let safe = match store.newest_path() {
                Ok(Some(path)) => format!("Safe on disk: {}", path.display()),
                _ => "No checkpoint is on disk".into(),
            };
            Error::Checkpoint {
                path: store.place_of(self.step),
                what: format!("it cannot be written: {error}"),
                hint: format!("{safe}. Mend the cause and resume the run"),
            }
        })?;
        observer.observe(&Event::Checkpoint { step: self.step, path: &path })
    }
}
