//! The training loop, step by step.
//!
//! One optimizer step is `accumulate` micro-batches. Their losses are summed over trained tokens
//! and divided once by the step's trained tokens, so that a step does not depend on how its rows
//! are split. Everything else (progress, metrics, plots) is done by observers.

use super::checkpoint::CheckpointStore;
use super::config::{OnNotFinite, TrainConfig};
use super::losses::{StepGradients, held_out_losses, step_gradients_with};
use super::observer::{EvaluationReport, Event, Grader, Observer, Outcome, StepReport};
use super::optimizer::{ModuleAdamW, global_norm};
use super::selection::Selection;
use crate::data::{Batch, Row, RowStream};
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::model::tensors::lazy_tensors;
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
    pub(super) evaluation_due: bool,
    /// The step of the newest checkpoint that this learner has made or read.
    pub(super) saved: Option<usize>,
}

/// What is not finite where a held-out loss is not.
const HELD_OUT_LOSS: &str = "held-out loss";

/// Whether something that happens every so many steps, 0 meaning never, happens after this one.
fn is_due(every: usize, step: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
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
        let names: Vec<String> =
            lazy_tensors(&model, true).into_iter().map(|tensor| tensor.name).collect();
        let idle = config.parameter_groups.iter().find(|g| !names.iter().any(|name| g.holds(name)));
        if let Some(idle) = idle {
            return Err(Error::config(
                "train.parameter_groups",
                format!("no parameter that is trained has a name with {:?}", idle.names),
                format!("Names are such as {}", names.first().map_or("", String::as_str)),
            ));
        }
        let optimizer = ModuleAdamW::new(&config);
        Ok(Self {
            model: Some(model),
            optimizer,
            config,
            step: 0,
            selection: Selection::default(),
            evaluation_due: false,
            saved: None,
        })
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
        let StepGradients { loss, trained, gradients } =
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
        let scale = if limit > 0.0 && norm > limit { limit / norm } else { 1.0 };
        let rate = self.config.learning_rate_at(step, total_steps);
        if trained > 0 {
            let model = self.model.take().expect("the model is put back after each step");
            self.model = Some(self.optimizer.scaled_step(rate, scale, model, gradients));
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
    /// A checkpoint is made before the evaluation that is due at the same step, and a stop gives an
    /// evaluation up; it is then made when the training goes on.
    ///
    /// # Errors
    /// As [`Learner::train_step`]; what the rows, the observer and the checkpoints give. What is not
    /// the training's own fault comes as [`Error::Interrupted`], with what is safe on disk.
    pub fn fit(
        &mut self,
        rows: &mut dyn RowStream,
        surroundings: Surroundings<'_, M>,
    ) -> Result<Outcome> {
        let checkpoints = surroundings.checkpoints;
        self.fit_within(rows, surroundings).map_err(|cause| match cause {
            Error::NotFinite { what, .. } if what != HELD_OUT_LOSS => cause,
            Error::Config { .. } | Error::RunDirectory { .. } | Error::Checkpoint { .. } => cause,
            cause => Error::Interrupted {
                step: self.step,
                safe: checkpoints.map_or("No checkpoints are made".into(), CheckpointStore::safe),
                cause: Box::new(cause),
            },
        })
    }

    fn fit_within(
        &mut self,
        rows: &mut dyn RowStream,
        mut surroundings: Surroundings<'_, M>,
    ) -> Result<Outcome> {
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
        surroundings.observer.observe(&Event::Start { step: self.step, total_steps })?;
        let mut failures = Failures::default();
        if self.evaluation_due {
            outcome.stopped = self.finish_step(total_steps, false, &mut surroundings)?;
        }
        while !outcome.stopped && self.step < total_steps && !self.is_past_its_best() {
            let started = Instant::now();
            let first = self.step as u64 * per_step;
            let end = (first + per_step).min(total_rows);
            let step_rows = rows.rows(first..end)?;
            let Surroundings { observer, checkpoints, .. } = &mut surroundings;
            match self.observed_step(&step_rows, total_steps, *observer) {
                Ok(mut report) => {
                    failures.in_a_row = 0;
                    report.epoch = end as f64 / per_epoch as f64;
                    // With the time that rows and their teacher take.
                    report.seconds = started.elapsed().as_secs_f64();
                    outcome.tokens += report.tokens as u64;
                    outcome.trained_tokens += report.trained_tokens as u64;
                    observer.observe(&Event::Step(&report))?;
                }
                Err(error @ Error::NotFinite { .. }) => {
                    match self.recover(error, &mut failures, *checkpoints, *observer)? {
                        Some(skipped) => outcome.skipped.push(skipped),
                        None => {
                            // Steps after the checkpoint come again.
                            outcome.step = self.step;
                            outcome.skipped.retain(|skipped| *skipped <= self.step);
                            if self.evaluation_due {
                                outcome.stopped =
                                    self.finish_step(total_steps, false, &mut surroundings)?;
                            }
                            continue;
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            outcome.step = self.step;
            let last = self.step == total_steps;
            self.evaluation_due = last || is_due(self.config.evaluate_every, self.step);
            // While steps are left out, the weights are those of an earlier one, and perhaps spoiled:
            // no checkpoint of them may push out a good one.
            let regular = is_due(self.config.checkpoint_every, self.step) && failures.in_a_row == 0;
            outcome.stopped = self.finish_step(total_steps, regular, &mut surroundings)?;
        }
        let Surroundings { observer, checkpoints, .. } = surroundings;
        outcome.stopped_early = self.step < total_steps && self.is_past_its_best();
        outcome.stopped &= !outcome.stopped_early;
        outcome.best = self.selection.best;
        if let (Some(best), Some(store), true) =
            (self.selection.best, checkpoints, self.config.keep_best && !outcome.stopped)
            && best.step != self.step
            && let Err(error) = store.restore(best.step, self)
        {
            outcome.best = None;
            let text = format!("the best weights are lost, the last are kept: {error}");
            observer.observe(&Event::Notice(&text))?;
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        observer.observe(&Event::End(&outcome))?;
        Ok(outcome)
    }

    /// Saves and evaluates what is due after a step, or after the checkpoint of one. Returns whether
    /// a stop ends the training here.
    fn finish_step(
        &mut self,
        total_steps: usize,
        regular: bool,
        surroundings: &mut Surroundings<'_, M>,
    ) -> Result<bool> {
        let Surroundings { held_out, grader, observer, stop, checkpoints } = surroundings;
        let last = self.step == total_steps;
        let stops = || stop.is_requested() && !last;
        // Looked at once: a stop must not come between saving and ending.
        let stopping = stops();
        if stopping || last || regular {
            self.save(*checkpoints, *observer)?;
        }
        if stopping {
            return Ok(true);
        }
        if !self.evaluation_due {
            return Ok(false);
        }
        let done = self.evaluate_until(held_out, *observer, &stops)?;
        let graded = match (&done, grader) {
            (Some(_), Some(grader)) if !last => {
                // A bar that cannot be drawn is no reason to stop.
                let mut progress = |done, of| {
                    let _ = observer.observe(&Event::Evaluating { done, of });
                    !stops()
                };
                grader.grade(self.model(), self.step, &mut progress)?.map(Some)
            }
            _ => Some(None),
        };
        let (Some(report), Some(graded)) = (done, graded) else {
            // Given up: it is made when the training goes on.
            self.save(*checkpoints, *observer)?;
            return Ok(true);
        };
        if !report.sources.is_empty() {
            observer.observe(&Event::Evaluation(&report))?;
        }
        if let Some((graded, samples)) = graded {
            observer.observe(&Event::Graded(&graded))?;
            samples.iter().try_for_each(|sample| observer.observe(&Event::Sample(sample)))?;
        }
        self.evaluation_due = false;
        let is_best = self.selection.note(&report) && self.config.keep_best;
        if is_best || self.is_past_its_best() {
            self.save(*checkpoints, *observer)?;
        }
        Ok(false)
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
            let (_, damaged) = store.resume(self)?;
            for problem in damaged {
                observer.observe(&Event::Notice(&format!("skipped {problem}")))?;
            }
            let evaluation_due = self.evaluation_due;
            observer.observe(&Event::RolledBack { from: step, to: self.step, evaluation_due })?;
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
        let report = self.evaluate_until(held_out, observer, &|| false)?;
        let report = report.expect("an evaluation that nobody stops comes to its end");
        if !report.sources.is_empty() {
            observer.observe(&Event::Evaluation(&report))?;
        }
        Ok(report)
    }

    /// The held-out losses; `None` where `stops` gave it up.
    fn evaluate_until(
        &self,
        held_out: &[HeldOut],
        observer: &mut dyn Observer,
        stops: &dyn Fn() -> bool,
    ) -> Result<Option<EvaluationReport>> {
        let start = Instant::now();
        let of = held_out.iter().map(|source| source.rows.len()).sum();
        let mut given_up = false;
        let sources = held_out_losses(self.model(), held_out, &self.config, &mut |done| {
            observer.observe(&Event::Evaluating { done, of })?;
            given_up = stops() && done < of;
            match given_up {
                true => Err(Error::config("evaluation", "it was given up", "Resume the run")),
                false => Ok(()),
            }
        });
        if given_up {
            return Ok(None);
        }
        let sources = sources?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(bad) = sources.iter().find(|source| !source.loss.is_finite()) {
            return Err(Error::NotFinite {
                step: self.step,
                what: HELD_OUT_LOSS,
                rows: vec![format!("held-out rows of `{}`", bad.name)],
                hint: "Try a smaller learning rate".into(),
            });
        }
        Ok(Some(EvaluationReport { step: self.step, sources, seconds }))
    }

    /// Whether the evaluation of the step that was reached is still to be made, as after resuming
    /// from a checkpoint that was made before it.
    pub fn evaluation_due(&self) -> bool {
        self.evaluation_due
    }

    fn save(&mut self, store: Option<&CheckpointStore>, observer: &mut dyn Observer) -> Result<()> {
        let Some(store) = store.filter(|_| self.saved != Some(self.step)) else { return Ok(()) };
        observer.observe(&Event::Saving { step: self.step })?;
        let path = store.save(self)?;
        self.saved = Some(self.step);
        observer.observe(&Event::Checkpoint { step: self.step, path: &path })
    }
}
