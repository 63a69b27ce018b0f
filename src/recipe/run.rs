//! One run from its configuration to its summary.

use super::card::model_card;
use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::finished::finished;
use super::grader::{QuestionGrader, graded, read_answers};
use super::prepare::Prepared;
use super::teacher::teacher;
use crate::data::{Ledger, MixtureReport, RowStream};
use crate::device;
use crate::error::{Error, Result};
use crate::eval::{Accuracy, Answer};
use crate::files::remove_folder;
use crate::model::tensors::{NamedTensor, lazy_tensors};
use crate::model::{DecoderLm, GenerateConfig, Precision, SaveAdapter, SaveFolder};
use crate::train::{
    Best, CheckpointStore, EvaluationReport, Grader, Learner, LossPlot, Metric, MetricsFile,
    Observer, Outcome, Progress, ProgressObserver, Reached, SamplesFile, StepReport, StopFlag,
    Surroundings, TaughtRows, TensorBoard, read_metrics,
};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Every figure of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The settings.
    pub config: RunConfig,
    /// The backend that was used.
    pub backend: String,
    /// Parameters of the student, adapters included.
    pub parameters: usize,
    /// Those that are trained.
    pub trained_parameters: usize,
    /// Tokens in its vocabulary.
    pub vocabulary: usize,
    /// SHA-256 of the tokens to train on.
    pub data: String,
    /// What became of every record.
    pub ledger: Ledger,
    /// The mixture, in its first epoch.
    pub mixture: MixtureReport,
    /// Answers to held-out problems before training.
    pub before: Option<Accuracy>,
    /// Answers to held-out problems after training.
    pub after: Option<Accuracy>,
    /// Mean training loss of the first steps, ten at most.
    pub first_loss: f64,
    /// Mean training loss of the last steps, ten at most.
    pub last_loss: f64,
    /// Input tokens of all steps, padding left out.
    pub tokens: u64,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// Padding of all steps, in positions.
    pub padding: u64,
    /// Wall time of all steps.
    pub training_seconds: f64,
    /// Input tokens a second of the steps' time.
    pub tokens_per_second: f64,
    /// Held-out losses before training and at each evaluation.
    pub evaluations: Vec<EvaluationReport>,
    /// How training ended in the last process that worked on the run.
    pub outcome: Outcome,
    /// The first answers to held-out problems after training.
    pub samples: Vec<Answer>,
    /// Most memory that the last process had, in MiB, where the system tells (Linux); memory of a
    /// GPU is not in it.
    pub peak_memory_mib: Option<f64>,
    /// Wall time of everything in the last process.
    pub seconds: f64,
}

impl Summary {
    /// The evaluation of the weights that the run ended with.
    pub fn final_evaluation(&self) -> Option<&EvaluationReport> {
        let best = self.outcome.best.filter(|_| self.config.train.keep_best);
        let of_best = |best: Best| self.evaluations.iter().find(|e| e.step == best.step);
        best.and_then(of_best).or(self.evaluations.last())
    }
}

/// Runs a configuration: reads and mixes the data, trains, grades, and fills the run directory.
///
/// `say` is given what a person would read, line by line. After a stop the summary has
/// `outcome.stopped` set, and neither `after` nor a model folder. Resuming a run that is finished
/// gives its summary back.
///
/// # Errors
/// Whatever is wrong with configuration, files or directory, before any training and before
/// anything is replaced; later, what training gives.
pub fn run(
    config: &RunConfig,
    mode: RunMode,
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Summary> {
    config.validate()?;
    let device = device::by_name(&config.backend)?;
    let directory = RunDirectory::open(&config.out, mode)?;
    let config = &dated(config, mode, &directory);
    let prepared = Prepared::new(config)?;
    run_prepared(config, &device, &directory, prepared, mode, stop, say)
}

/// As [`run`], with data that is there already.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_on(
    config: &RunConfig,
    prepared: Prepared,
    mode: RunMode,
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Summary> {
    let device = device::by_name(&config.backend)?;
    let directory = RunDirectory::open(&config.out, mode)?;
    let config = &dated(config, mode, &directory);
    run_prepared(config, &device, &directory, prepared, mode, stop, say)
}

/// The configuration with the date that chat templates see: that of the run's start, also when it
/// is resumed on another day.
pub(super) fn dated(config: &RunConfig, mode: RunMode, directory: &RunDirectory) -> RunConfig {
    let mut config = config.clone();
    if config.base_model.is_none() && config.data.chat_template.is_none() {
        return config;
    }
    if mode.resumes() && config.data.date.is_none() {
        let then = RunConfig::read(&directory.path("config.toml"));
        config.data.date = then.ok().and_then(|then| then.data.date);
    }
    config.data.date.get_or_insert_with(|| jiff::ZonedDateTime::now().date().to_string());
    config
}

/// As [`run`], with data that is there already.
pub(super) fn run_prepared(
    config: &RunConfig,
    device: &Device,
    directory: &RunDirectory,
    prepared: Prepared,
    mode: RunMode,
    stop: &StopFlag,
    say: &mut dyn FnMut(&str),
) -> Result<Summary> {
    let start = Instant::now();
    if mode.resumes()
        && let Some(summary) = finished(config, &prepared, directory, mode)?
    {
        say("this run is finished");
        for (when, accuracy) in
            [("before training:", &summary.before), ("after training: ", &summary.after)]
        {
            if let Some(accuracy) = accuracy {
                say(&format!("{when} {}", sentence(accuracy)));
            }
        }
        return Ok(summary);
    }
    let model = student(config, &prepared, &device.clone().autodiff())?;
    let base = match &prepared.base {
        Some(_) => Some(model.fingerprint()?),
        None => None,
    };
    let model = model.with_precision(config.precision)?;
    let teacher = teacher(config, &prepared, device)?;
    let parameters = Parameters::of(&model);
    describe(config, &prepared, parameters, say);

    let mut train = config.train.clone();
    train.objective.noise_seed = config.seed;
    let mut learner = Learner::new(model, train)?;
    let store = CheckpointStore::new(
        directory.path("checkpoints"),
        config.train.keep_checkpoints,
        settings(config, &prepared, base, teacher.as_ref().map(|(_, identity)| identity)),
    )
    .allowing_changes(mode == RunMode::ResumeChanged);
    let metrics = directory.path("metrics.jsonl");
    let resumes = mode.resumes() && store.newest_path()?.is_some();
    let metrics_file = if resumes {
        let (path, skipped) = store.resume(&mut learner)?;
        skipped.iter().for_each(|problem| say(&format!("skipped {problem}")));
        say(&format!("resuming from {}", path.display()));
        // What may change, such as how often checkpoints are made, has changed from now on; an earlier
        // summary is none of this run's any more.
        directory.remove("summary.json")?;
        directory.write("config.toml", &config.to_toml()?)?;
        directory.write_json("ledger.json", &prepared.ledger)?;
        directory.write_json("mixture.json", &prepared.report)?;
        MetricsFile::resume(&metrics, reached(&learner))?
    } else {
        // A run that was stopped before its first checkpoint starts anew; anything more is not
        // thrown away.
        let results = ["summary.json", "compare.json", "model", "adapter"];
        if mode.resumes()
            && let Some(name) = results.iter().find(|name| directory.path(name).exists())
        {
            return Err(Error::RunDirectory {
                path: config.out.clone(),
                what: format!("it has no checkpoint to resume from, but it has {name}"),
                hint: "A comparison is resumed with --compare; --overwrite starts anew".into(),
            });
        }
        directory.clear()?;
        directory.write("config.toml", &config.to_toml()?)?;
        directory.write_json("ledger.json", &prepared.ledger)?;
        directory.write_json("mixture.json", &prepared.report)?;
        MetricsFile::create(&metrics)?
    };
    let mut observers: Vec<Box<dyn Observer>> = vec![
        Box::new(metrics_file),
        Box::new(SamplesFile::resume(&directory.path("samples.jsonl"), reached(&learner))?),
        Box::new(TensorBoard::new(&directory.path("tensorboard"), learner.step())?),
        Box::new(LossPlot::new(&metrics, directory.path("loss.svg"))),
        Box::new(ProgressObserver::default()),
    ];
    let before = match resumes {
        true => {
            let answers = read_answers(directory, "before.jsonl", config.evaluation.kind)?;
            let asked = answers.iter().map(|answer| &answer.problem);
            // Answers to other questions cannot be compared with those after training.
            let same = asked.eq(prepared.questions.iter().map(|question| &question.problem));
            if same { answers } else { vec![] }
        }
        false => {
            learner.evaluate(&prepared.held_out, &mut observers)?;
            match config.evaluation.before {
                true => graded(config, &prepared, learner.model(), directory, "before.jsonl")?,
                false => vec![],
            }
        }
    };
    let before = (!before.is_empty()).then(|| Accuracy::of(&before));
    if let Some(before) = &before {
        say(&format!("before training: {}", sentence(before)));
    }
    let mut rows: Box<dyn RowStream> = match teacher {
        Some((teacher, _)) => Box::new(TaughtRows::new(prepared.rows(), teacher)),
        None => Box::new(prepared.rows()),
    };
    let mut grader = QuestionGrader { config, prepared: &prepared };
    let asks = config.evaluation.during_training > 0 && !prepared.questions.is_empty();
    let outcome = learner.fit(
        &mut *rows,
        Surroundings {
            held_out: &prepared.held_out,
            grader: asks.then_some(&mut grader as &mut dyn Grader<DecoderLm>),
            observer: &mut observers,
            stop,
            checkpoints: Some(&store),
        },
    )?;
    drop(observers);
    let model = learner.into_model();
    let (mut after, mut samples) = (None, vec![]);
    if !outcome.stopped {
        let answers = graded(config, &prepared, &model, directory, "after.jsonl")?;
        if !answers.is_empty() {
            let accuracy = Accuracy::of(&answers);
            say(&format!("after training:  {}", sentence(&accuracy)));
            after = Some(accuracy);
        }
        samples = answers.into_iter().take(config.evaluation.samples).collect();
    }
    let (mut steps, mut evaluations) = (vec![], vec![]);
    let stored = if metrics.exists() { read_metrics(&metrics)? } else { vec![] };
    for metric in stored {
        match metric {
            Metric::Step(step) => steps.push(step),
            Metric::Evaluation(evaluation) => evaluations.push(evaluation),
            Metric::Graded(_) => {}
        }
    }
    let mean_loss = |part: &[StepReport]| {
        part.iter().map(|step| step.loss).sum::<f64>() / part.len().max(1) as f64
    };
    // The two ends do not overlap.
    let edge = (steps.len() / 2).clamp(1, 10).min(steps.len());
    let sum = |part: fn(&StepReport) -> usize| steps.iter().map(|s| part(s) as u64).sum::<u64>();
    let training_seconds = steps.iter().map(|step| step.seconds).sum::<f64>();
    let tokens = sum(|step| step.tokens);
    let summary = Summary {
        backend: backend_name(config),
        parameters: parameters.all,
        trained_parameters: parameters.trained,
        vocabulary: prepared.model.vocab_size,
        data: prepared.fingerprint.clone(),
        ledger: prepared.ledger.clone(),
        mixture: prepared.report.clone(),
        before,
        after,
        first_loss: mean_loss(&steps[..edge]),
        last_loss: mean_loss(&steps[steps.len() - edge..]),
        tokens,
        trained_tokens: sum(|step| step.trained_tokens),
        padding: sum(|step| step.padding),
        training_seconds,
        tokens_per_second: tokens as f64 / training_seconds.max(1e-9),
        evaluations,
        outcome,
        samples,
        peak_memory_mib: crate::device::peak_memory_mib(),
        seconds: start.elapsed().as_secs_f64(),
        config: config.clone(),
    };
    if !summary.outcome.stopped {
        say("writing the student");
        save(config, &prepared, &model, directory, &summary)?;
    }
    directory.write_json("summary.json", &summary)?;
    Ok(summary)
}

/// How far a learner has come.
fn reached(learner: &Learner<DecoderLm>) -> Reached {
    Reached { step: learner.step(), evaluation_due: learner.evaluation_due() }
}

/// The student before training.
///
/// # Errors
/// What reading its folder gives.
pub(crate) fn student(
    config: &RunConfig,
    prepared: &Prepared,
    device: &Device,
) -> Result<DecoderLm> {
    let model = match &prepared.base {
        Some(folder) => {
            let mut progress = Progress::new("load", 0);
            let model = folder.load_with(device, &mut |done, of| {
                progress.update_of(done as u64, of as u64, String::new);
            })?;
            progress.finish();
            model
        }
        None => prepared.model.init(config.seed, device)?,
    };
    match &config.lora {
        Some(lora) => model.with_lora(lora, config.seed),
        None => Ok(model),
    }
}

/// How many parameters a student has, and how many of them are trained.
#[derive(Clone, Copy)]
struct Parameters {
    all: usize,
    trained: usize,
}

impl Parameters {
    fn of(model: &DecoderLm) -> Self {
        let size = |tensor: &NamedTensor| tensor.shape.iter().product::<usize>();
        Self {
            all: lazy_tensors(model, false).iter().map(size).sum(),
            trained: lazy_tensors(model, true).iter().map(size).sum(),
        }
    }
}

/// Writes the student, or its adapters, with a model card.
fn save(
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
    // The base's own template stays where the base has it.
    let own = match &prepared.base {
        Some(base) => base.chat_template()?.map(|template| template.source().to_owned()),
        None => None,
    };
    let changed = own.is_none_or(|own| own != prepared.chat_template);
    let chat_template = changed.then_some(prepared.chat_template.as_str());
    if model.lora().is_some() {
        let base = config.base_model.as_deref().unwrap_or_default();
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

/// The backend's name, `auto` resolved.
fn backend_name(config: &RunConfig) -> String {
    match config.backend.as_str() {
        "auto" => device::compiled().first().copied().unwrap_or("none").to_owned(),
        name => name.to_owned(),
    }
}

/// What must be the same when a run is resumed.
fn settings(
    config: &RunConfig,
    prepared: &Prepared,
    base: Option<String>,
    teacher: Option<&serde_json::Value>,
) -> serde_json::Value {
    let mut train = config.train.clone();
    // These change what is seen and kept, not the training.
    (train.checkpoint_every, train.keep_checkpoints) = (0, 1);
    // Where they decide when training ends or which weights are kept, held-out losses belong to it.
    let selects = train.early_stopping > 0 || train.keep_best;
    if !selects {
        train.evaluate_every = 0;
    }
    serde_json::json!({
        "seed": config.seed,
        "model": prepared.model,
        "base_model": base,
        "lora": config.lora,
        "precision": config.precision,
        "teacher": teacher,
        "mixture": prepared.mixture.config(),
        "train": train,
        "data": prepared.fingerprint,
        "held_out": selects.then_some(&prepared.held_out_fingerprint),
        "questions": config.evaluation.questions,
        "generate": GenerateConfig { batch_size: 1, ..config.generate.clone() },
    })
}

fn describe(
    config: &RunConfig,
    prepared: &Prepared,
    parameters: Parameters,
    say: &mut dyn FnMut(&str),
) {
    let data = match config.data.sources.is_empty() {
        true => "the built-in toy corpus of arithmetic problems".to_owned(),
        false => config
            .data
            .sources
            .iter()
            .map(|s| s.path.display().to_string())
            .collect::<Vec<_>>()
            .join(" + "),
    };
    say(&format!("data: {data}"));
    say(&prepared.ledger.to_string());
    say("");
    say("mixture:");
    say(&prepared.report.to_string());
    say("");
    if prepared.mixture.config().redraw || !prepared.mixture.is_constant() {
        say("(this is the first epoch; later ones are drawn anew or follow the schedule)");
    }
    if prepared.held_out.iter().all(|source| source.rows.is_empty()) {
        say("no problem is held out, so there is no held-out loss (data.hold_out)");
    }
    if prepared.questions.is_empty() && config.evaluation.questions > 0 {
        say("no held-out problem has a reference answer, so nothing is graded");
    }
    let train = &config.train;
    let rows = prepared.mixture.pairs().len();
    let from = config.base_model.as_deref().unwrap_or("random weights");
    let trained = match &config.lora {
        Some(lora) => format!(" ({} trained: adapters of rank {})", parameters.trained, lora.rank),
        None => String::new(),
    };
    say(&format!(
        "student: from {from}, {} parameters{trained}, {} tokens in its vocabulary, backend {}",
        parameters.all,
        prepared.model.vocab_size,
        backend_name(config),
    ));
    if config.base_model.is_some() || config.data.chat_template.is_some() {
        say(&format!("rows are laid out by {}", prepared.template_name));
    }
    say(&format!(
        "training: {} optimizer steps of {} rows ({} x {}), at most {} tokens a row, peak learning rate {:e}",
        train.total_steps(rows),
        train.rows_per_step(),
        train.batch_size,
        train.accumulate,
        config.data.max_length,
        train.learning_rate,
    ));
    if config.precision == Precision::Bf16 {
        let slow = ["flex", "ndarray"].contains(&backend_name(config).as_str());
        let slow = if slow { "; a CPU emulates it, which is slower than f32" } else { "" };
        say(&format!("computed in bf16, with trained weights and loss in f32{slow}"));
    }
    if let (Some(teacher), Some(part)) = (&config.teacher, &train.objective.distillation) {
        say(&format!(
            "teacher: {}, weight {} beside the answers' {}, temperature {}",
            teacher.path,
            part.weight,
            1.0 - part.weight,
            part.temperature,
        ));
    }
}

/// A grade in one sentence.
pub fn sentence(accuracy: &Accuracy) -> String {
    let (low, high) = accuracy.interval;
    format!(
        "{} of {} right = {:.1} % (95 % interval {:.1} to {:.1} %), {:.0} tokens an answer, \
         {:.1} % at the length limit, {:.1} % without a final answer",
        accuracy.correct,
        accuracy.questions,
        100.0 * accuracy.accuracy,
        100.0 * low,
        100.0 * high,
        accuracy.mean_tokens,
        100.0 * accuracy.hit_limit,
        100.0 * accuracy.without_answer,
    )
}
