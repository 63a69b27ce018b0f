//! A run on several ranks: the leader does what [`run`](super::run) does, the others follow it.
//!
//! The leader alone reads and writes the run directory, finds the share where pilots do, and scores answers
//! where a choice needs it; then it tells the others its settings with what it has found. All ranks read the
//! data, hold them against each other, and train.

use super::choice::ChoiceScores;
use super::config::RunConfig;
use super::directory::RunMode;
use super::grader::{QuestionGrader, asked};
use super::prepare::Prepared;
use super::run::{ReadyToTrain, lead, ready, training_rows};
use super::score::RowScores;
use super::summary::Summary;
use crate::context::{Context, StopFlag};
use crate::device;
use crate::error::{Error, Result};
use crate::ranks::{Ranks, Topic, from_json, local_device, thread_ranks, to_json};
use crate::train::{CheckpointStore, FitOptions, Grader};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What the leader tells the others before a training.
#[derive(Serialize, Deserialize)]
pub(super) enum Start {
    /// The run was finished before.
    Finished,
    /// It was stopped before it began.
    Stopped,
    Train {
        /// The settings, with what was found for them.
        config: String,
        /// Whether it goes on from a checkpoint.
        resumes: bool,
        /// The scores that a choice is made by.
        scores: Option<Vec<RowScores>>,
    },
}

impl Start {
    pub fn of(config: &RunConfig, prepared: &Prepared, resumes: bool) -> Result<Self> {
        let scores = prepared.scores.as_ref().map(|scores| scores.rows.to_vec());
        Ok(Self::Train { config: config.to_toml()?, resumes, scores })
    }
}

/// Tells the others how the run begins; without others nothing is made.
pub(super) fn tell_followers(ranks: &Ranks, start: impl FnOnce() -> Result<Start>) -> Result<()> {
    if ranks.is_solo() {
        return Ok(());
    }
    ranks.told_by_leader(Topic::Start, || to_json(&start()?), true).map(|_| ())
}

/// What is to be said where some ranks have nothing to compute.
pub(super) fn idle(config: &RunConfig, ranks: usize) -> Option<String> {
    let train = &config.train;
    // A budget of tokens makes micro-batches as the rows of each step allow.
    let most =
        if train.tokens_per_batch.is_some() { train.rows_per_step() } else { train.accumulate };
    (most < ranks).then(|| {
        format!(
            "a step has at most {most} micro-batches, so that {} of {ranks} ranks compute nothing; raise \
             train.accumulate, and lower train.batch_size for the same step",
            ranks - most
        )
    })
}

/// Runs a configuration as one of several ranks, each of which makes this call with the same settings and
/// data. The leader alone has a summary, tells the context, and uses the run directory; a stop that any
/// rank is asked for stops all of them after the step.
///
/// # Errors
/// As [`run`](super::run); [`Error::Ranks`] where a rank has failed or has other settings or data. The
/// others have been told.
pub fn run_on_ranks(
    config: &RunConfig,
    mode: RunMode,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<Option<Summary>> {
    let run = || {
        ranks.same("program or settings", &asked_for(config, mode))?;
        match ranks.is_leader() {
            true => match lead(config, mode, ranks, context) {
                // What ranks do together is never stopped so: it has not begun.
                Err(stopped @ Error::Stopped { .. }) => {
                    tell_followers(ranks, || Ok(Start::Stopped))?;
                    Err(stopped)
                }
                led => led.map(|(summary, _)| Some(summary)),
            },
            false => follow(config, ranks, context.stop_flag()).map(|()| None),
        }
    };
    run().inspect_err(|error| {
        if !matches!(error, Error::Stopped { .. }) {
            ranks.fail(error);
        }
    })
}

/// Runs a configuration on so many ranks of this process, one thread and one device each. All of them share
/// the processor; of a GPU backend the first has the first device, and so on.
///
/// # Errors
/// As [`run_on_ranks`].
pub fn run_on_threads(
    config: &RunConfig,
    mode: RunMode,
    count: usize,
    patience: Duration,
    context: &Context<'_>,
) -> Result<Summary> {
    let mut all = thread_ranks(count).into_iter();
    let wrap = |rank| Ranks::new(Arc::new(rank)).with_patience(patience);
    let leader = all.next().map(wrap).unwrap_or_default();
    let led = thread::scope(|scope| {
        let follower = |(number, rank)| {
            let mut config = config.clone();
            config.backend = local_device(&config.backend, number + 1);
            scope.spawn(move || run_on_ranks(&config, mode, &wrap(rank), &Context::default()))
        };
        let followers: Vec<_> = all.enumerate().map(follower).collect();
        let led = run_on_ranks(config, mode, &leader, context);
        // Nobody waits for one that has ended.
        drop(leader);
        for follower in followers {
            // What went wrong there, a panic too, was told to the leader.
            let _ = follower.join();
        }
        led
    });
    let nobody = || Error::Ranks {
        what: "no rank has led".into(),
        hint: "This is a defect; please report it".into(),
    };
    led?.ok_or_else(nobody)
}

/// What all ranks must have been started with.
fn asked_for(config: &RunConfig, mode: RunMode) -> serde_json::Value {
    let mut config = RunConfig { out: PathBuf::new(), ..config.clone() };
    // Devices of one kind are told apart by their number.
    let backend = config.backend.split(':').next().unwrap_or_default();
    config.backend = device::resolved(backend).to_owned();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "settings": config,
        "mode": format!("{mode:?}"),
    })
}

/// What every rank but the leader does.
fn follow(asked_for: &RunConfig, ranks: &Ranks, stop: &StopFlag) -> Result<()> {
    let message = ranks.told_by_leader(Topic::Start, || Ok(vec![]), true)?;
    let (config, resumes, scores) = match from_json(&message, 0)? {
        Start::Train { config, resumes, scores } => (config, resumes, scores),
        Start::Finished => return Ok(()),
        Start::Stopped => return Err(Error::stopped("rank 0 was asked to stop")),
    };
    let mut config = RunConfig::from_toml(&config)?;
    config.backend.clone_from(&asked_for.backend);
    let (config, nobody) = (&config, Context::new((), stop));
    let device = device::by_name(&config.backend)?;
    let prepared = &data(config, scores)?;
    // What ranks do together is not stopped on one of them.
    let together = nobody.without_stop();
    let ready = ready(config, prepared, &device, ranks, &together)?;
    let ReadyToTrain { mut learner, teacher, settings, .. } = ready;
    let scratch = ranks.scratch()?;
    let store = CheckpointStore::new(scratch.path(), 1, settings).allowing_changes(true);
    if resumes {
        learner.resume(&store)?;
    } else {
        learner.evaluate(&prepared.held_out, &together)?;
        if config.evaluation.before {
            asked(config, prepared, learner.model(), &prepared.questions, ranks, &together)?;
        }
    }
    let mut rows = training_rows(prepared, teacher, &together);
    let mut grader = QuestionGrader { config, prepared, ranks };
    let asks = config.evaluation.during_training > 0 && !prepared.questions.is_empty();
    let outcome = learner.fit(
        &mut *rows,
        FitOptions {
            held_out: &prepared.held_out,
            grader: asks.then_some(&mut grader as &mut dyn Grader<_>),
            observer: None,
            stop: stop.clone(),
            checkpoints: Some(&store),
        },
    )?;
    if !outcome.stopped {
        asked(config, prepared, learner.model(), &prepared.questions, ranks, &together)?;
    }
    Ok(())
}

/// The data of a run whose share and scores are known.
fn data(config: &RunConfig, scores: Option<Vec<RowScores>>) -> Result<Prepared> {
    let (unscored, _) = config.unscored();
    let prepared = Prepared::new(&unscored, &Context::default())?;
    match (&config.mixture.choice, scores) {
        (Some(choice), Some(rows)) => {
            let places = prepared.answer_places().count();
            if places != rows.len() {
                return Err(Error::Ranks {
                    what: format!("rank 0 has scores of {} answers, not {places}", rows.len()),
                    hint: "Start all ranks with the same data".into(),
                });
            }
            prepared.mixed_by(config, Some(ChoiceScores::of(choice, &prepared, rows)))
        }
        _ => Ok(prepared),
    }
}
