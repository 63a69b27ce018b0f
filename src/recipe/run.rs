//! One run, from its configuration to its summary.

use super::choice::{keep_choice, scored};
use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::finished::finished;
use super::grader::{QuestionGrader, graded, read_answers};
use super::overview::tell_overview;
use super::pilots;
use super::prepare::Prepared;
use super::ranks::{Start, idle, tell_followers};
use super::student::{save, student};
use super::summary::{Measured, Parameters, Summary};
use super::teacher::teacher;
use crate::context::{Accuracy, Context, Event, Moment, Observer, StopFlag};
use crate::data::{DataFiles, RowStream};
use crate::device;
use crate::error::{Error, Result};
use crate::model::{DecoderLm, GenerateConfig, LoraConfig};
use crate::ranks::Ranks;
use crate::train::{
    CheckpointStore, DistillationRows, FitOptions, Grader, Learner, LogitTeacher, LossPlot,
    MetricsFile, MomentType, ResumePoint, SamplesFile, TensorBoard, WatchedTeacher,
};
use burn::tensor::Device;
use std::time::Instant;

/// Runs a configuration: reads and mixes the data, trains, grades, and fills the run directory.
///
/// Progress is reported to the context. After a stop, the summary has `outcome.stopped` set, and there is
/// neither `after` nor a model folder. Resuming a finished run returns its summary.
///
/// # Errors
/// Any problem with the configuration, the files, or the directory, before anything is created or replaced;
/// [`Error::Stopped`] if a stop was requested before training; errors of training.
pub fn run(config: &RunConfig, mode: RunMode, context: &Context<'_>) -> Result<Summary> {
    run_with_data(config, mode, context).map(|(summary, _)| summary)
}

/// Like [`run`], and also returns the data.
///
/// # Errors
/// See [`run`].
pub(crate) fn run_with_data(
    config: &RunConfig,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<(Summary, Prepared)> {
    lead(config, mode, &Ranks::default(), context)
}

/// Like [`run_with_data`], as the leader of other ranks, which [`follow`](super::ranks::follow).
pub(super) fn lead(
    config: &RunConfig,
    mode: RunMode,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<(Summary, Prepared)> {
    config.validate()?;
    let device = device::by_name(&config.backend)?;
    RunDirectory::check(&config.out, mode)?;
    let config = &dated(config, mode);
    let (unscored, needs_scores) = config.unscored();
    let prepared = Prepared::new(&unscored, context)?;
    let config = prepared.pinned(config);
    if needs_scores {
        prepared.check_choice(&config)?;
    }
    let directory = RunDirectory::open(&config.out, mode)?;
    let prepared = match needs_scores {
        true => scored(&config, &prepared, &directory, mode, context)?,
        false => prepared,
    };
    let (config, prepared) = pilots::resolve(config, prepared, &directory, mode, context)?;
    let data = prepared.clone();
    let summary = run_prepared(&config, &device, &directory, data, mode, ranks, context)?;
    Ok((summary, prepared))
}

/// Like [`run`], with prepared data.
///
/// # Errors
/// See [`run`].
pub(crate) fn run_on(
    config: &RunConfig,
    prepared: Prepared,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<Summary> {
    let device = device::by_name(&config.backend)?;
    let config = &dated(config, mode);
    let directory = RunDirectory::open(&config.out, mode)?;
    run_alone(config, &device, &directory, prepared, mode, context)
}

/// Like [`run_prepared`], without other ranks.
pub(super) fn run_alone(
    config: &RunConfig,
    device: &Device,
    directory: &RunDirectory,
    prepared: Prepared,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<Summary> {
    run_prepared(config, device, directory, prepared, mode, &Ranks::default(), context)
}

/// Returns the configuration with the date that chat templates see and the commits of datasets. A resumed
/// run keeps those of its start.
pub(super) fn dated(config: &RunConfig, mode: RunMode) -> RunConfig {
    let mut config = config.clone();
    if mode.resumes()
        && let Ok(then) = RunConfig::read(&config.out.join("config.toml"))
    {
        for source in &mut config.data.sources {
            if let Some(then) = then.data.sources.iter().find(|then| then.name == source.name) {
                source.path = DataFiles::as_before(&source.path, &then.path);
            }
        }
    }
    if config.base_model.is_none() && config.data.chat_template.is_none() {
        return config;
    }
    if mode.resumes() && config.data.date.is_none() {
        let then = RunConfig::read(&config.out.join("config.toml"));
        config.data.date = then.ok().and_then(|then| then.data.date);
    }
    config.data.date.get_or_insert_with(|| jiff::ZonedDateTime::now().date().to_string());
    config
}

/// Like [`run_on`], with an open directory and device.
fn run_prepared(
    config: &RunConfig,
    device: &Device,
    directory: &RunDirectory,
    prepared: Prepared,
    mode: RunMode,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<Summary> {
    if mode.resumes()
        && let Some(summary) = finished(config, &prepared, directory, mode)?
    {
        tell_followers(ranks, || Ok(Start::Finished))?;
        context.emit(&Event::AlreadyFinished)?;
        tell_accuracy(context, Moment::Before, summary.before.as_ref())?;
        tell_accuracy(context, Moment::After, summary.after.as_ref())?;
        return Ok(summary);
    }
    // Before the weights are read, since they may not fit into memory.
    tell_overview(config, &prepared, context)?;
    let resumes = mode.resumes() && newest_checkpoint(directory)?;
    if let Some(idle) = idle(config, ranks.count()) {
        context.notice(idle)?;
    }
    tell_followers(ranks, || Start::of(config, &prepared, resumes))?;
    let together = context.without_stop();
    let within = if ranks.is_solo() { context.stop_flag() } else { together.stop_flag() };
    let ready = ready(config, &prepared, device, ranks, &Context::new(context, within))?;
    let ReadyToTrain { learner, teacher, settings, parameters } = ready;
    let folder = directory.path("checkpoints");
    let store = CheckpointStore::new(folder, config.train.keep_checkpoints, settings)
        .allowing_changes(mode == RunMode::ResumeChanged);
    let prepared = &prepared;
    let run = Run { config, directory, prepared, store, parameters, mode, resumes, ranks, context };
    run.train(learner, teacher)
}

/// Returns whether a run has a checkpoint.
fn newest_checkpoint(directory: &RunDirectory) -> Result<bool> {
    let store = CheckpointStore::new(directory.path("checkpoints"), 1, serde_json::Value::Null);
    Ok(store.newest_path()?.is_some())
}

/// Everything that training starts with.
pub(super) struct ReadyToTrain {
    pub learner: Learner<DecoderLm>,
    pub teacher: Option<Box<dyn LogitTeacher>>,
    /// What must be the same when the run is resumed.
    pub settings: serde_json::Value,
    pub parameters: Parameters,
}

/// Loads the student and its teacher, and checks that they are the same on all ranks.
pub(super) fn ready(
    config: &RunConfig,
    prepared: &Prepared,
    device: &Device,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<ReadyToTrain> {
    let model = student(config, prepared, &device.clone().autodiff(), context)?;
    // Random weights, adapters included, must be the same on all ranks.
    let needed = prepared.base.is_some() || !ranks.is_solo();
    let weights = if needed { Some(model.fingerprint()?) } else { None };
    let base = weights.clone().filter(|_| prepared.base.is_some());
    let model = model.with_precision(config.precision)?;
    let teacher = teacher(config, prepared, device, context)?;
    let parameters = Parameters::of(&model);
    let (teacher, identity) = teacher.unzip();
    let settings = settings(config, prepared, base, identity.as_ref());
    let same = serde_json::json!({
        "settings": settings,
        "held_out": prepared.held_out_fingerprint,
        "questions": prepared.questions.len(),
        "weights": weights,
    });
    // Other ranks start reading only after the leader has finished.
    ranks.unhurried().same("data or models", &same)?;
    let mut train = config.train.clone();
    train.objective.noise_seed = config.seed;
    let learner = Learner::new(model, train)?.with_ranks(ranks.clone())?;
    Ok(ReadyToTrain { learner, teacher, settings, parameters })
}

/// Emits an accuracy if there is one.
fn tell_accuracy(context: &Context<'_>, moment: Moment, accuracy: Option<&Accuracy>) -> Result<()> {
    let Some(accuracy) = accuracy else { return Ok(()) };
    context.emit(&Event::Accuracy { moment, accuracy })
}

/// The state of one run.
struct Run<'a, 'c> {
    config: &'a RunConfig,
    directory: &'a RunDirectory,
    prepared: &'a Prepared,
    store: CheckpointStore,
    parameters: Parameters,
    mode: RunMode,
    /// Whether the run continues from a checkpoint.
    resumes: bool,
    ranks: &'a Ranks,
    context: &'a Context<'c>,
}

/// Returns the training rows, with the teacher's logits if there is a teacher.
pub(super) fn training_rows<'r>(
    prepared: &Prepared,
    teacher: Option<Box<dyn LogitTeacher + 'r>>,
    context: &'r Context<'_>,
) -> Box<dyn RowStream + 'r> {
    match teacher {
        Some(teacher) => {
            let teacher = WatchedTeacher::new(teacher, context);
            Box::new(DistillationRows::new(prepared.rows(), teacher))
        }
        None => Box::new(prepared.rows()),
    }
}

impl Run<'_, '_> {
    /// Trains from the start or from a checkpoint, grades, and writes the results.
    fn train(
        &self,
        mut learner: Learner<DecoderLm>,
        teacher: Option<Box<dyn LogitTeacher>>,
    ) -> Result<Summary> {
        let start = Instant::now();
        let (config, prepared, context) = (self.config, self.prepared, self.context);
        let (resumes, ranks) = (self.resumes, self.ranks);
        let metrics_file = match resumes {
            true => self.resume(&mut learner)?,
            false => self.begin()?,
        };
        let mut observers = self.observers(metrics_file, &learner)?;
        let before = self.graded_before(&learner, resumes, &mut observers)?;
        // A stop on one rank must not interrupt collective work.
        let never = StopFlag::default();
        let stop = if ranks.is_solo() { context.stop_flag() } else { &never };
        let watching = Context::new(context, stop);
        let mut rows = training_rows(prepared, teacher, &watching);
        let mut grader = QuestionGrader { config, prepared, ranks };
        let asks = config.evaluation.during_training > 0 && !prepared.questions.is_empty();
        let mut outcome = learner.fit(
            &mut *rows,
            FitOptions {
                held_out: &prepared.held_out,
                grader: asks.then_some(&mut grader as &mut dyn Grader<DecoderLm>),
                observer: Some(&mut observers),
                stop: context.stop_flag().clone(),
                checkpoints: Some(&self.store),
            },
        )?;
        drop(observers);
        let model = learner.into_model();
        let (mut after, mut samples) = (None, vec![]);
        if !outcome.stopped {
            match graded(config, prepared, &model, self.directory, "after.jsonl", ranks, context) {
                Ok(answers) => {
                    after = (!answers.is_empty()).then(|| Accuracy::of(&answers));
                    tell_accuracy(context, Moment::After, after.as_ref())?;
                    samples = answers.into_iter().take(config.evaluation.samples).collect();
                }
                // The resumed run asks all questions again.
                Err(Error::Stopped { .. }) => outcome.stopped = true,
                Err(error) => return Err(error),
            }
        }
        let parameters = self.parameters;
        let measured = Measured { before, after, samples, outcome, parameters, start };
        let metrics = self.directory.path("metrics.jsonl");
        let summary = Summary::of(config, prepared, &metrics, measured)?;
        if !summary.outcome.stopped {
            save(config, prepared, &model, self.directory, &summary)?;
            let [what, name] = match config.lora {
                Some(_) => ["the adapter", "adapter"],
                None => ["the student", "model"],
            };
            context.emit(&Event::Written { what, path: &self.directory.path(name) })?;
        }
        self.directory.write_json("summary.json", &summary)?;
        Ok(summary)
    }

    /// Continues from the newest checkpoint.
    fn resume(&self, learner: &mut Learner<DecoderLm>) -> Result<MetricsFile<'_>> {
        let directory = self.directory;
        let (path, skipped) = learner.resume(&self.store)?;
        self.context.emit(&Event::Resuming { path: &path, skipped: &skipped })?;
        // Settings that may change, such as `checkpoint_every`, take effect now. An earlier summary is
        // outdated.
        directory.remove("summary.json")?;
        self.write_beginning()?;
        MetricsFile::resume(&directory.path("metrics.jsonl"), reached(learner))
    }

    /// Starts at the first step.
    fn begin(&self) -> Result<MetricsFile<'_>> {
        let directory = self.directory;
        // A run that stopped before its first checkpoint starts over. Results are never thrown away.
        let results = ["summary.json", "compare.json", "model", "adapter"];
        if self.mode.resumes()
            && let Some(name) = results.iter().find(|name| directory.path(name).exists())
        {
            return Err(Error::RunDirectory {
                path: self.config.out.clone(),
                what: format!("it has no checkpoint to resume from, but it has {name}"),
                hint: "Resume a comparison with `compare`, or overwrite it".into(),
            });
        }
        directory.clear()?;
        if self.prepared.pilots.is_none() {
            pilots::clear(directory)?;
        }
        self.write_beginning()?;
        MetricsFile::create(&directory.path("metrics.jsonl"))
    }

    /// Writes the files that exist from the start.
    fn write_beginning(&self) -> Result<()> {
        self.directory.write("config.toml", &self.config.to_toml()?)?;
        self.directory.write_json("ledger.json", &self.prepared.ledger)?;
        self.directory.write_json("mixture.json", &self.prepared.report)?;
        keep_choice(self.config, self.prepared, self.directory)
    }

    fn observers<'o>(
        &'o self,
        metrics_file: MetricsFile<'o>,
        learner: &Learner<DecoderLm>,
    ) -> Result<Vec<Box<dyn Observer + 'o>>> {
        let (directory, context) = (self.directory, self.context);
        let metrics = directory.path("metrics.jsonl");
        let samples = SamplesFile::resume(&directory.path("samples.jsonl"), reached(learner))?;
        Ok(vec![
            Box::new(metrics_file.telling(move |text| context.notice(text))),
            Box::new(samples.telling(move |text| context.notice(text))),
            Box::new(TensorBoard::new(&directory.path("tensorboard"), learner.step())?),
            Box::new(LossPlot::new(&metrics, directory.path("loss.svg"))),
            Box::new(context),
        ])
    }

    /// Returns the accuracy before training: measured now, or by the process that started the run.
    fn graded_before(
        &self,
        learner: &Learner<DecoderLm>,
        resumes: bool,
        observers: &mut dyn Observer,
    ) -> Result<Option<Accuracy>> {
        let (config, prepared, directory) = (self.config, self.prepared, self.directory);
        let answers = if resumes {
            let answers = read_answers(directory, "before.jsonl", config.evaluation.kind)?;
            let asked = answers.iter().map(|answer| &answer.problem);
            // Answers to other questions are not comparable with those after training.
            let same = asked.eq(prepared.questions.iter().map(|question| &question.problem));
            if same { answers } else { vec![] }
        } else {
            let inner = Context::new(observers, self.context.stop_flag());
            learner.evaluate(&prepared.held_out, &inner).map_err(nothing_kept)?;
            match config.evaluation.before {
                true => {
                    let model = learner.model();
                    let ranks = self.ranks;
                    graded(config, prepared, model, directory, "before.jsonl", ranks, self.context)
                        .map_err(nothing_kept)?
                }
                false => vec![],
            }
        };
        let before = (!answers.is_empty()).then(|| Accuracy::of(&answers));
        tell_accuracy(self.context, Moment::Before, before.as_ref())?;
        Ok(before)
    }
}

/// Returns the error for a stop before the first step.
fn nothing_kept(error: Error) -> Error {
    match error {
        Error::Stopped { .. } => {
            Error::stopped("training has not started yet; resuming the run starts it over")
        }
        error => error,
    }
}

/// Returns where a learner is.
fn reached(learner: &Learner<DecoderLm>) -> ResumePoint {
    ResumePoint { step: learner.step(), evaluation_due: learner.evaluation_due() }
}

/// Returns what must be the same when a run is resumed.
fn settings(
    config: &RunConfig,
    prepared: &Prepared,
    base: Option<String>,
    teacher: Option<&serde_json::Value>,
) -> serde_json::Value {
    let mut train = config.train.clone();
    // These change what is reported and kept, not the weights.
    (train.checkpoint_every, train.keep_checkpoints) = (0, 1);
    // Evaluations matter if they decide when training ends or which weights are kept.
    let selects = train.early_stopping > 0 || train.keep_best;
    if !selects {
        train.evaluate_every = 0;
    }
    let mut train = serde_json::json!(train);
    if let Some(train) = train.as_object_mut() {
        // Checkpoints of earlier versions lack these keys.
        if config.train.moments == MomentType::F32 {
            train.remove("moments");
        }
        if config.train.lanes == 1 {
            train.remove("lanes");
        }
        // It does not change any result.
        train.remove("shard_optimizer");
    }
    let asked_with = &config.evaluation.template_variables;
    serde_json::json!({
        "seed": config.seed,
        "model": prepared.model,
        "base_model": base,
        "lora": config.lora.as_ref().map(LoraConfig::identity),
        "precision": config.precision,
        "base": (!config.base.is_f32()).then_some(config.base),
        "teacher": teacher,
        "mixture": prepared.mixture.identity(),
        "train": train,
        "data": prepared.fingerprint,
        "held_out": selects.then_some(&prepared.held_out_fingerprint),
        "questions": config.evaluation.questions,
        "template_variables": (!asked_with.is_empty()).then_some(asked_with),
        "generate": GenerateConfig { batch_size: 1, ..config.generate.clone() },
    })
}

/// Filters the events of a run that is part of other work: drops those that would repeat for each run.
pub(crate) struct PartEvents<'a, 'c>(pub &'a Context<'c>);

impl Observer for PartEvents<'_, '_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Overview(_)
            | Event::Written { .. }
            | Event::AlreadyFinished
            | Event::Accuracy { moment: Moment::Before, .. } => Ok(()),
            event => self.0.emit(event),
        }
    }
}
