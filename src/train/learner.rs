//! The training loop, step by step.
//!
//! One optimizer step is `accumulate` micro-batches. Their losses are summed over trained tokens
//! and divided once by the step's trained tokens, so that a step does not depend on how its rows
//! are split. Everything else (progress, metrics, plots) is done by observers.

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

/// Lets a model answer held-out problems during training. Its random choices, if any, must be its
/// own.
pub trait Grader<M> {
    /// The grade after a step, and some of the answers.
    ///
    /// # Errors
    /// [`Error::Stopped`] gives the grading up; any other error ends the training. What is on disk
    /// stays.
    fn grade(
        &mut self,
        model: &M,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)>;
}

/// What a training may have beside model and data; by default nothing of it.
pub struct FitOptions<'a, M> {
    /// Rows to evaluate on.
    pub held_out: &'a [HeldOut],
    /// Asks the model questions at each evaluation but the last.
    pub grader: Option<&'a mut dyn Grader<M>>,
    /// Sees the events.
    pub observer: Option<&'a mut dyn Observer>,
    /// Asks for a stop.
    pub stop: StopFlag,
    /// Where checkpoints go; without it none are made.
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

/// What came of an attempt at a step.
enum Attempt {
    Made,
    /// Left out, since it was not finite.
    Skipped,
    /// Training has gone back to a checkpoint.
    RolledBack,
    /// Given up before its end, because of a stop.
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

/// What is not finite where a held-out loss is not.
const HELD_OUT_LOSS: &str = "held-out loss";

/// Whether something that happens every so many steps, 0 meaning never, happens after this one.
fn is_due(every: usize, step: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<M: CausalLm> Learner<M> {
    /// A learner before its first step, with AdamW. The model must be on an autodiff device.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range or a device without autodiff.
    pub fn new(model: M, config: TrainConfig) -> Result<Self> {
        config.validate()?;
        let optimizer = Box::new(FusedAdamW::new(&config));
        Self::build(model, config, optimizer)
    }

    /// As [`Learner::new`], with another optimizer. It brings its own settings: of the configuration
    /// it gets the learning rate of each step and the clipped gradients.
    ///
    /// # Errors
    /// As [`Learner::new`]; [`Error::Config`] where the settings have parameter groups.
    pub fn with_optimizer(
        model: M,
        config: TrainConfig,
        optimizer: Box<dyn Optimizer<M>>,
    ) -> Result<Self> {
        config.validate()?;
        if !config.parameter_groups.is_empty() {
            return Err(Error::config(
                "train.parameter_groups",
                "they are settings of this crate's AdamW",
                "Leave them out, and give the optimizer groups of its own",
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
                "this model is trained for the cross-entropy only",
                "Leave it out, or implement `CausalLm::objective_sum` and `supports`",
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

    /// The model as it stands.
    ///
    /// # Panics
    /// If an earlier step panicked half way.
    pub fn model(&self) -> &M {
        self.state.model()
    }

    /// Ends the learner and keeps the model.
    ///
    /// # Panics
    /// If an earlier step panicked half way.
    pub fn into_model(self) -> M {
        self.state.model.expect("the model is put back after each step")
    }

    /// Steps made so far.
    pub fn step(&self) -> usize {
        self.state.step
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Whether the evaluation of the step that was reached is still to be made, as after resuming
    /// from a checkpoint that was made before it.
    pub fn evaluation_due(&self) -> bool {
        self.state.evaluation_due
    }

    /// Writes a checkpoint; see [`CheckpointStore`].
    ///
    /// # Errors
    /// [`Error::Io`]; earlier checkpoints are left as they are.
    pub fn save(&self, store: &CheckpointStore) -> Result<PathBuf> {
        store.save(&self.state)
    }

    /// Goes on from the newest valid checkpoint, of a model and optimizer like this learner's.
    /// Returns where it was and what is wrong with newer ones, which are renamed to
    /// `damaged-step-...`, so that they are not counted among those to keep.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where there is none that is valid, or where it belongs to a run with
    /// other settings; [`Error::Io`].
    pub fn resume(&mut self, store: &CheckpointStore) -> Result<(PathBuf, Vec<String>)> {
        store.resume(&mut self.state)
    }

    /// Goes back to the checkpoint of one step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where it is missing, damaged, or of other settings; [`Error::Io`].
    pub fn restore(&mut self, store: &CheckpointStore, step: usize) -> Result<()> {
        store.restore(step, &mut self.state)
    }

    /// Makes one optimizer step on these rows, of `total_steps`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where loss or gradient are not finite (the model is left as it was);
    /// [`Error::Training`] where the device fails.
    pub fn train_step(&mut self, rows: &[Row], total_steps: usize) -> Result<StepReport> {
        self.step_within(rows, total_steps, &Context::default())
    }

    /// As [`Learner::train_step`]; the context is told of micro-batches, and between them may stop
    /// the step, which then leaves no trace.
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
            hint: "The model is as it was before the step; try a smaller learning rate".into(),
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
            // A stop is agreed on between two steps.
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

    /// Trains to the end of the data, or until a stop is asked for; then a checkpoint is made.
    ///
    /// A checkpoint is made before the evaluation that is due at the same step, and a stop gives an
    /// evaluation up; it is then made when the training goes on. A step of several micro-batches is
    /// given up between two of them, and made anew when the training goes on.
    ///
    /// # Errors
    /// As [`Learner::train_step`]; what the rows, the observer and the checkpoints give. What is not
    /// the training's own fault comes as [`Error::Interrupted`], with what is safe on disk.
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
                format!("{} epochs of {per_epoch} rows make no step", self.config.epochs),
                "Raise it, or set train.steps",
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
                    Some(_) if !self.state.ranks.is_leader() => "Rank 0 has the checkpoints".into(),
                    Some(store) => store.safe(),
                    None => "No checkpoints are made".into(),
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
                    // While steps are left out, the weights are those of an earlier one, and perhaps
                    // spoiled: no checkpoint of them may push out a good one.
                    let regular = is_due(self.config.checkpoint_every, self.state.step)
                        && fit.failures.in_a_row == 0;
                    fit.outcome.stopped = self.finish_step(&mut fit, regular)?;
                }
                Attempt::RolledBack => {
                    // Steps after the checkpoint come again.
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

    /// One step on the rows that are next.
    fn attempt_step(&mut self, fit: &mut Fit<'_, '_, '_, M>) -> Result<Attempt> {
        let started = Instant::now();
        let per_epoch = fit.rows.rows_per_epoch();
        let per_step = self.config.rows_per_step() as u64;
        let first = self.state.step as u64 * per_step;
        let end = (first + per_step).min(self.config.total_rows(per_epoch));
        let rows = match self.rows_of_step(fit.rows, first..end) {
            // A teacher may have been asked to stop.
            Err(Error::Stopped { .. }) => return Ok(Attempt::Stopped),
            rows => rows?,
        };
        match self.step_within(&rows, fit.total_steps, fit.context) {
            Ok(mut report) => {
                fit.failures.in_a_row = 0;
                report.epoch = end as f64 / per_epoch as f64;
                // With the time that rows and their teacher take.
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

    /// What is left to do after the last step or a stop.
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
            // Where the leader could not read it, no rank has it; a rank that failed alone has failed.
            if !self.state.ranks.is_solo() && !matches!(error, Error::Checkpoint { .. }) {
                return Err(error);
            }
            outcome.best = None;
            context.notice(format!("the best weights are lost, the last are kept: {error}"))?;
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        context.emit(&Event::End(&outcome))?;
        Ok(outcome)
    }

    /// Saves and evaluates what is due after a step, or after the checkpoint of one. Returns whether
    /// a stop ends the training here.
    fn finish_step(&mut self, fit: &mut Fit<'_, '_, '_, M>, regular: bool) -> Result<bool> {
        let last = self.state.step == fit.total_steps;
        // Looked at once: a stop must not come between saving and ending.
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
            // Given up: it is made when the training goes on.
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

    /// The evaluation after a step; nothing is told of one that is given up.
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

    /// Whether early stopping ends the training here.
    fn is_past_its_best(&self) -> bool {
        self.config.early_stopping > 0 && self.state.selection.since >= self.config.early_stopping
    }

    /// Evaluates on held-out rows, and tells the context.
    ///
    /// # Errors
    /// As [`held_out_losses`](super::held_out_losses); [`Error::NotFinite`].
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
                hint: "Try a smaller learning rate".into(),
            });
        }
        Ok(EvaluationReport { step, sources, seconds })
    }

    /// Saves a checkpoint of this step, unless there is one.
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
