//! The training loop.
//!
//! An optimizer step uses `accumulate` micro-batches. Their losses are summed over trained tokens and divided
//! once by the step's number of trained tokens, so the result does not depend on how its rows are split.
//! Observers do everything else (progress, metrics, plots).

use super::checkpoint::CheckpointStore;
use super::config::TrainConfig;
use super::losses::{HeldOut, StepGradients, held_out_losses_on, step_gradients_in_lanes};
use super::optimizer::{FusedAdamW, Optimizer, global_norm};
use super::recovery::Failures;
use super::selection::Selection;
use super::state::LearnerState;
use crate::context::{
    Context, EvaluationReport, Event, GradedReport, Observer, Outcome, SampleAnswer, StepReport,
    StopFlag,
};
use crate::data::{Batch, Row, RowStream};
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::model::tensors::lazy_tensors;
use crate::ranks::{Ranks, Topic};
use std::path::PathBuf;
use std::time::Instant;

/// Grades a model on held-out problems during training. It must use its own random numbers, if any.
pub trait Grader<M> {
    /// Returns the grade after a step and some of the answers.
    ///
    /// # Errors
    /// [`Error::Stopped`] abandons the grading; any other error ends training. Files on disk are kept.
    fn grade(
        &mut self,
        model: &M,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)>;
}

/// Optional inputs of [`Learner::fit`]. The default has none of them.
pub struct FitOptions<'a, M> {
    /// Rows for held-out evaluation.
    pub held_out: &'a [HeldOut],
    /// Grades the model at every evaluation except the last.
    pub grader: Option<&'a mut dyn Grader<M>>,
    /// Receives the events.
    pub observer: Option<&'a mut dyn Observer>,
    /// Requests a stop.
    pub stop: StopFlag,
    /// Where checkpoints are written. Without it, none are written.
    pub checkpoints: Option<&'a CheckpointStore>,
}

impl<M> Default for FitOptions<'_, M> {
    fn default() -> Self {
        Self {
            held_out: &[],
            grader: None,
            observer: None,
            stop: StopFlag::default(),
            checkpoints: None,
        }
    }
}

/// The result of attempting a step.
enum Attempt {
    Made,
    /// Skipped because a value was not finite.
    Skipped,
    /// Training returned to a checkpoint.
    RolledBack,
    /// Abandoned because of a stop request.
    Stopped,
}

/// One call of [`Learner::fit`].
pub(super) struct Fit<'a, 'c, 'r, M> {
    rows: &'r mut dyn RowStream,
    held_out: &'a [HeldOut],
    grader: Option<&'a mut dyn Grader<M>>,
    pub(super) context: &'c Context<'a>,
    pub(super) checkpoints: Option<&'a CheckpointStore>,
    total_steps: usize,
    pub(super) failures: Failures,
    outcome: Outcome,
}

/// Trains a model.
pub struct Learner<M> {
    pub(super) state: LearnerState<M>,
    pub(super) config: TrainConfig,
}

impl<M> std::fmt::Debug for Learner<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner")
            .field("step", &self.state.step)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What [`Error::NotFinite`] names if a held-out loss is not finite.
const HELD_OUT_LOSS: &str = "held-out loss";

/// Returns whether an event that happens every `every` steps (0 means never) happens after this step.
fn is_due(every: usize, step: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<M: CausalLm> Learner<M> {
    /// Creates a learner with AdamW. The model must be on an autodiff device.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range or a device without autodiff.
    pub fn new(model: M, config: TrainConfig) -> Result<Self> {
        config.validate()?;
        let optimizer = Box::new(FusedAdamW::new(&config));
        Self::build(model, config, optimizer)
    }

    /// Like [`Learner::new`], with another optimizer. The optimizer has its own settings; the learner only
    /// passes it the learning rate of each step and the clipped gradients.
    ///
    /// # Errors
    /// See [`Learner::new`]; [`Error::Config`] if the settings have parameter groups.
    pub fn with_optimizer(
        model: M,
        config: TrainConfig,
        optimizer: Box<dyn Optimizer<M>>,
    ) -> Result<Self> {
        config.validate()?;
        if !config.parameter_groups.is_empty() {
            return Err(Error::config(
                "train.parameter_groups",
                "only this crate's AdamW supports parameter groups",
                "Remove them, and set up groups in the optimizer itself",
            ));
        }
        Self::build(model, config, optimizer)
    }

    fn build(model: M, config: TrainConfig, optimizer: Box<dyn Optimizer<M>>) -> Result<Self> {
        if !model.devices().iter().all(burn::tensor::Device::is_autodiff) {
            return Err(Error::config(
                "device",
                "the model's device does not compute gradients",
                "Create the model on `device.autodiff()`",
            ));
        }
        if !model.supports(&config.objective) {
            return Err(Error::config(
                "train.objective",
                "this model supports the cross-entropy only",
                "Remove the setting, or implement `CausalLm::objective_sum` and `supports`",
            ));
        }
        let names: Vec<String> =
            lazy_tensors(&model, true).into_iter().map(|tensor| tensor.name).collect();
        let idle = config.parameter_groups.iter().find(|g| !names.iter().any(|name| g.holds(name)));
        if let Some(idle) = idle {
            return Err(Error::config(
                "train.parameter_groups",
                format!("no trained parameter has a name that contains one of {:?}", idle.names),
                format!("Use parts of names such as {}", names.first().map_or("", String::as_str)),
            ));
        }
        let state = LearnerState {
            model: Some(model),
            optimizer,
            step: 0,
            selection: Selection::default(),
            evaluation_due: false,
            saved: None,
            keep_best: config.keep_best,
            ranks: Ranks::default(),
            shards: false,
        };
        Ok(Self { state, config })
    }

    /// Returns the model in its current state.
    ///
    /// # Panics
    /// If an earlier step panicked.
    pub fn model(&self) -> &M {
        self.state.model()
    }

    /// Consumes the learner and returns the model.
    ///
    /// # Panics
    /// If an earlier step panicked.
    pub fn into_model(self) -> M {
        self.state.model.expect("the model is put back after each step")
    }

    /// Steps made so far.
    pub fn step(&self) -> usize {
        self.state.step
    }

    /// Returns the settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Returns whether the evaluation of the current step is still due, as after resuming from a checkpoint
    /// that was written before it.
    pub fn evaluation_due(&self) -> bool {
        self.state.evaluation_due
    }

    /// Writes a checkpoint; see [`CheckpointStore`].
    ///
    /// # Errors
    /// [`Error::Io`]; earlier checkpoints are unchanged.
    pub fn save(&self, store: &CheckpointStore) -> Result<PathBuf> {
        store.save(&self.state)
    }

    /// Resumes from the newest valid checkpoint, which must be of the same model and optimizer. Returns its
    /// path and the problems of newer checkpoints. Damaged ones are renamed to `damaged-step-...`, so that
    /// they do not count toward the number to keep.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if no checkpoint is valid, or if it belongs to a run with other settings;
    /// [`Error::Io`].
    pub fn resume(&mut self, store: &CheckpointStore) -> Result<(PathBuf, Vec<String>)> {
        store.resume(&mut self.state)
    }

    /// Returns to the checkpoint of one step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is missing, damaged, or has other settings; [`Error::Io`].
    pub fn restore(&mut self, store: &CheckpointStore, step: usize) -> Result<()> {
        store.restore(step, &mut self.state)
    }

    /// Makes one optimizer step on these rows. `total_steps` determines the learning rate.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss or the gradient is not finite (the model is unchanged);
    /// [`Error::Training`] if the device fails.
    pub fn train_step(&mut self, rows: &[Row], total_steps: usize) -> Result<StepReport> {
        self.step_within(rows, total_steps, &Context::default())
    }

    /// Like [`Learner::train_step`], reporting micro-batches to the context. A stop between micro-batches
    /// abandons the step without a trace.
    fn step_within(
        &mut self,
        rows: &[Row],
        total_steps: usize,
        context: &Context<'_>,
    ) -> Result<StepReport> {
        let start = Instant::now();
        let batches = self.config.batches(rows);
        let step = self.state.step + 1;
        let not_finite = |what| Error::NotFinite {
            step,
            what,
            rows: rows.iter().map(|row| row.label.clone()).collect(),
            hint: "Try a lower learning rate; the step did not change the model".into(),
        };
        let options = self.config.step_options();
        let ranked = self.ranked();
        let (found, norm) = match ranked.ranks.is_solo() {
            true => {
                let lanes = self.config.lanes;
                let mut told = |done| {
                    context.emit(&Event::MicroBatch { step, done, of: batches.len() })?;
                    if done < batches.len() { context.check() } else { Ok(()) }
                };
                let model = self.model();
                (step_gradients_in_lanes(model, &batches, lanes, &options, &mut told)?, None)
            }
            // Ranks agree on a stop only between steps.
            false => {
                let mut told = |done, of| context.emit(&Event::MicroBatch { step, done, of });
                let model = self.model();
                let (found, norm) = ranked.step_gradients(model, &batches, &options, &mut told)?;
                (found, Some(norm))
            }
        };
        let StepGradients { loss, trained, gradients } = found;
        if !loss.is_finite() {
            return Err(not_finite("loss"));
        }
        let norm = match norm {
            Some(norm) => norm,
            None => global_norm(self.model(), &gradients)?,
        };
        if !norm.is_finite() {
            return Err(not_finite("gradient norm"));
        }
        let limit = self.config.max_grad_norm;
        let scale = if limit > 0.0 && norm > limit { limit / norm } else { 1.0 };
        let rate = self.config.learning_rate_at(step, total_steps);
        if trained > 0 {
            let model = self.state.model.take().expect("the model is put back after each step");
            let model = self.state.optimizer.step(rate, scale, model, gradients);
            self.state.model = Some(self.ranked().updated(model)?);
        }
        self.state.step = step;
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

    /// Trains to the end of the data or until a stop is requested, then writes a checkpoint.
    ///
    /// At a step where both are due, the checkpoint is written before the evaluation. A stop abandons an
    /// evaluation, or a step between two micro-batches; a resumed training repeats it.
    ///
    /// # Errors
    /// See [`Learner::train_step`]; errors of the rows, the observer, and the checkpoints. Errors from outside
    /// the training become [`Error::Interrupted`], which reports what is safe on disk.
    pub fn fit(&mut self, rows: &mut dyn RowStream, options: FitOptions<'_, M>) -> Result<Outcome> {
        let FitOptions { held_out, grader, observer, stop, checkpoints } = options;
        let context = match observer {
            Some(observer) => Context::new(observer, &stop),
            None => Context::new((), &stop),
        };
        let per_epoch = rows.rows_per_epoch();
        let total_steps = self.config.total_steps(per_epoch);
        if total_steps == 0 {
            return Err(Error::config(
                "train.epochs",
                format!("{} epochs of {per_epoch} rows are less than one step", self.config.epochs),
                "Raise `train.epochs`, or set `train.steps`",
            ));
        }
        let outcome = Outcome { step: self.state.step, total_steps, ..Outcome::default() };
        let failures = Failures::default();
        let context = &context;
        let fit =
            Fit { rows, held_out, grader, context, checkpoints, total_steps, failures, outcome };
        self.fit_within(fit).map_err(|cause| match cause {
            Error::NotFinite { what, .. } if what != HELD_OUT_LOSS => cause,
            Error::Config { .. } | Error::RunDirectory { .. } | Error::Checkpoint { .. } => cause,
            cause => Error::Interrupted {
                step: self.state.step,
                safe: match checkpoints {
                    Some(_) if !self.state.ranks.is_leader() => {
                        "Rank 0 writes the checkpoints".into()
                    }
                    Some(store) => store.safe(),
                    None => "No checkpoints are written".into(),
                },
                cause: Box::new(cause),
            },
        })
    }

    fn fit_within(&mut self, mut fit: Fit<'_, '_, '_, M>) -> Result<Outcome> {
        let start = Instant::now();
        let (step, total_steps) = (self.state.step, fit.total_steps);
        fit.context.emit(&Event::Start { step, total_steps })?;
        if self.state.evaluation_due {
            fit.outcome.stopped = self.finish_step(&mut fit, false)?;
        }
        while !fit.outcome.stopped && self.state.step < total_steps && !self.is_past_its_best() {
            let attempt = self.attempt_step(&mut fit)?;
            fit.outcome.step = self.state.step;
            match attempt {
                Attempt::Made | Attempt::Skipped => {
                    let last = self.state.step == total_steps;
                    self.state.evaluation_due =
                        last || is_due(self.config.evaluate_every, self.state.step);
                    // After skipped steps the weights may be bad, so their checkpoint must not displace a
                    // good one.
                    let regular = is_due(self.config.checkpoint_every, self.state.step)
                        && fit.failures.in_a_row == 0;
                    fit.outcome.stopped = self.finish_step(&mut fit, regular)?;
                }
                Attempt::RolledBack => {
                    // Steps after the checkpoint are repeated.
                    fit.outcome.skipped.retain(|skipped| *skipped <= self.state.step);
                    if self.state.evaluation_due {
                        fit.outcome.stopped = self.finish_step(&mut fit, false)?;
                    }
                }
                Attempt::Stopped => {
                    self.save_once(&fit)?;
                    fit.outcome.stopped = true;
                }
            }
        }
        self.conclude(fit, start)
    }

    /// Attempts one step on the next rows.
    fn attempt_step(&mut self, fit: &mut Fit<'_, '_, '_, M>) -> Result<Attempt> {
        let started = Instant::now();
        let per_epoch = fit.rows.rows_per_epoch();
        let per_step = self.config.rows_per_step() as u64;
        let first = self.state.step as u64 * per_step;
        let end = (first + per_step).min(self.config.total_rows(per_epoch));
        let rows = match self.rows_of_step(fit.rows, first..end) {
            // The teacher may have received a stop request.
            Err(Error::Stopped { .. }) => return Ok(Attempt::Stopped),
            rows => rows?,
        };
        match self.step_within(&rows, fit.total_steps, fit.context) {
            Ok(mut report) => {
                fit.failures.in_a_row = 0;
                report.epoch = end as f64 / per_epoch as f64;
                // Includes the time for reading rows and for the teacher.
                report.seconds = started.elapsed().as_secs_f64();
                fit.outcome.tokens += report.tokens as u64;
                fit.outcome.trained_tokens += report.trained_tokens as u64;
                fit.context.emit(&Event::Step(&report))?;
                Ok(Attempt::Made)
            }
            Err(error @ Error::NotFinite { .. }) => match self.recover(error, fit)? {
                Some(skipped) => {
                    fit.outcome.skipped.push(skipped);
                    Ok(Attempt::Skipped)
                }
                None => Ok(Attempt::RolledBack),
            },
            Err(Error::Stopped { .. }) => Ok(Attempt::Stopped),
            Err(error) => Err(error),
        }
    }

    /// Finishes after the last step or a stop.
    fn conclude(&mut self, fit: Fit<'_, '_, '_, M>, start: Instant) -> Result<Outcome> {
        let Fit { context, checkpoints, total_steps, mut outcome, .. } = fit;
        outcome.stopped_early = self.state.step < total_steps && self.is_past_its_best();
        outcome.stopped &= !outcome.stopped_early;
        outcome.best = self.state.selection.best;
        if let (Some(best), Some(store), true) =
            (outcome.best, checkpoints, self.config.keep_best && !outcome.stopped)
            && best.step != self.state.step
            && let Err(error) = store.restore(best.step, &mut self.state)
        {
            // If the leader could not read it, all ranks lack it. A rank that fails alone is an error.
            if !self.state.ranks.is_solo() && !matches!(error, Error::Checkpoint { .. }) {
                return Err(error);
            }
            outcome.best = None;
            context.notice(format!(
                "cannot load the best weights, so the last ones are kept: {error}"
            ))?;
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        context.emit(&Event::End(&outcome))?;
        Ok(outcome)
    }

    /// Saves and evaluates if due after a step, or after its checkpoint is loaded. Returns whether a stop
    /// ends training here.
    fn finish_step(&mut self, fit: &mut Fit<'_, '_, '_, M>, regular: bool) -> Result<bool> {
        let last = self.state.step == fit.total_steps;
        // Checked once, so that a stop cannot arrive between saving and ending.
        let stopping = self.state.ranks.any(Topic::Stop, fit.context.is_stopped())? && !last;
        if stopping || last || regular {
            self.save_once(fit)?;
        }
        if stopping {
            return Ok(true);
        }
        if !self.state.evaluation_due {
            return Ok(false);
        }
        match self.evaluate_and_grade(fit, last) {
            // Abandoned: a resumed training repeats it.
            Err(Error::Stopped { .. }) => {
                self.save_once(fit)?;
                Ok(true)
            }
            Err(error) => Err(error),
            Ok(report) => {
                self.state.evaluation_due = false;
                let is_best = self.state.selection.note(&report) && self.config.keep_best;
                if is_best || self.is_past_its_best() {
                    self.save_once(fit)?;
                }
                Ok(false)
            }
        }
    }

    /// Evaluates after a step. An abandoned evaluation emits no events.
    fn evaluate_and_grade(
        &mut self,
        fit: &mut Fit<'_, '_, '_, M>,
        last: bool,
    ) -> Result<EvaluationReport> {
        let report = self.held_out_report(fit.held_out, fit.context)?;
        let graded = match &mut fit.grader {
            Some(grader) if !last => {
                Some(grader.grade(self.state.model(), self.state.step, fit.context)?)
            }
            _ => None,
        };
        if !report.sources.is_empty() {
            fit.context.emit(&Event::Evaluation(&report))?;
        }
        if let Some((graded, samples)) = graded {
            fit.context.emit(&Event::Graded(&graded))?;
            samples.iter().try_for_each(|sample| fit.context.emit(&Event::Sample(sample)))?;
        }
        Ok(report)
    }

    /// Returns whether early stopping ends the training here.
    fn is_past_its_best(&self) -> bool {
        self.config.early_stopping > 0 && self.state.selection.since >= self.config.early_stopping
    }

    /// Evaluates on held-out rows and emits the report.
    ///
    /// # Errors
    /// See [`held_out_losses`](super::held_out_losses); [`Error::NotFinite`].
    pub fn evaluate(
        &self,
        held_out: &[HeldOut],
        context: &Context<'_>,
    ) -> Result<EvaluationReport> {
        let report = self.held_out_report(held_out, context)?;
        if !report.sources.is_empty() {
            context.emit(&Event::Evaluation(&report))?;
        }
        Ok(report)
    }

    fn held_out_report(
        &self,
        held_out: &[HeldOut],
        context: &Context<'_>,
    ) -> Result<EvaluationReport> {
        let start = Instant::now();
        let step = self.state.step;
        let ranks = &self.state.ranks;
        let sources = match ranks.is_solo() {
            true => held_out_losses_on(self.model(), held_out, &self.config, ranks, context)?,
            false => {
                let context = context.without_stop();
                held_out_losses_on(self.model(), held_out, &self.config, ranks, &context)?
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        if let Some(bad) = sources.iter().find(|source| !source.loss.is_finite()) {
            return Err(Error::NotFinite {
                step,
                what: HELD_OUT_LOSS,
                rows: vec![format!("held-out rows of `{}`", bad.name)],
                hint: "Try a lower learning rate".into(),
            });
        }
        Ok(EvaluationReport { step, sources, seconds })
    }

    /// Saves a checkpoint of this step unless it exists.
    fn save_once(&mut self, fit: &Fit<'_, '_, '_, M>) -> Result<()> {
        let step = self.state.step;
        let Some(store) = fit.checkpoints.filter(|_| self.state.saved != Some(step)) else {
            return Ok(());
        };
        fit.context.emit(&Event::Saving { step })?;
        let path = store.save(&self.state)?;
        self.state.saved = Some(step);
        fit.context.emit(&Event::Checkpoint { step, path: &path })
    }
}
