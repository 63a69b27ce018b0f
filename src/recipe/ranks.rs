//! A run on several ranks: the leader does what [`run`](super::run) does, and the others follow it.
//!
//! Only the leader reads and writes the run directory, runs pilots, and scores answers for a choice. Then it
//! sends the resulting settings to the others. All ranks read the data, check that they have the same, and
//! train.

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

/// The message that the leader sends to the others before training.
#[derive(Serialize, Deserialize)]
pub(super) enum Start {
    /// The run was finished earlier.
    Finished,
    /// The run was stopped before it started.
    Stopped,
    Train {
        /// The settings, including a share that pilots found.
        config: String,
        /// Whether the run continues from a checkpoint.
        resumes: bool,
        /// The scores for a choice of answers.
        scores: Option<Vec<RowScores>>,
    },
}

impl Start {
    pub fn of(config: &RunConfig, prepared: &Prepared, resumes: bool) -> Result<Self> {
        let scores = prepared.scores.as_ref().map(|scores| scores.rows.to_vec());
        Ok(Self::Train { config: config.to_toml()?, resumes, scores })
    }
}

/// Sends the start message to the other ranks, if there are any.
pub(super) fn tell_followers(ranks: &Ranks, start: impl FnOnce() -> Result<Start>) -> Result<()> {
    if ranks.is_solo() {
        return Ok(());
    }
    ranks.told_by_leader(Topic::Start, || to_json(&start()?), true).map(|_| ())
}

/// Returns a notice if some ranks have nothing to compute.
pub(super) fn idle(config: &RunConfig, ranks: usize) -> Option<String> {
    let train = &config.train;
    // With a budget of tokens, a step has at most one micro-batch per row.
    let most =
        if train.tokens_per_batch.is_some() { train.rows_per_step() } else { train.accumulate };
    (most < ranks).then(|| {
        format!(
            "a step has at most {most} micro-batches, so {} of {ranks} ranks compute nothing; raise \
             train.accumulate, and lower train.batch_size to keep the size of a step",
            ranks - most
        )
    })
}

/// Runs a configuration as one of several ranks. Every rank makes this call with the same settings and data.
/// Only the leader returns a summary, reports to its context, and uses the run directory. A stop request on
/// any rank stops all of them after the current step.
///
/// # Errors
/// See [`run`](super::run); [`Error::Ranks`] if a rank has failed or has other settings or data. An error on
/// one rank is reported to the others.
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
                // A stop is an error only before collective work starts; the others wait for this message.
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

/// Runs a configuration on `count` ranks in this process, with one thread and one device each. On a CPU, all
/// ranks share its cores. With a GPU backend, each rank has a GPU of its own, in order.
///
/// # Errors
/// See [`run_on_ranks`].
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
        // Dropped so that no follower waits for a leader that has ended.
        drop(leader);
        for follower in followers {
            // Failures, panics included, have been reported to the leader.
            let _ = follower.join();
        }
        led
    });
    let nobody = || Error::Ranks {
        what: "the leader returned no summary".into(),
        hint: "This is a bug; please report it".into(),
    };
    led?.ok_or_else(nobody)
}

/// Returns what must be the same on all ranks at the start.
fn asked_for(config: &RunConfig, mode: RunMode) -> serde_json::Value {
    let mut config = RunConfig { out: PathBuf::new(), ..config.clone() };
    // Ranks may use devices of the same kind with different numbers.
    let backend = config.backend.split(':').next().unwrap_or_default();
    config.backend = device::resolved(backend).to_owned();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "settings": config,
        "mode": format!("{mode:?}"),
    })
}

/// Does the part of every rank except the leader.
fn follow(asked_for: &RunConfig, ranks: &Ranks, stop: &StopFlag) -> Result<()> {
    let message = ranks.told_by_leader(Topic::Start, || Ok(vec![]), true)?;
    let (config, resumes, scores) = match from_json(&message, 0)? {
        Start::Train { config, resumes, scores } => (config, resumes, scores),
        Start::Finished => return Ok(()),
        Start::Stopped => return Err(Error::stopped("rank 0 received a stop request")),
    };
    let mut config = RunConfig::from_toml(&config)?;
    config.backend.clone_from(&asked_for.backend);
    let (config, nobody) = (&config, Context::new((), stop));
    let device = device::by_name(&config.backend)?;
    let prepared = &data(config, scores)?;
    // A stop on one rank must not interrupt collective work.
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

/// Returns the data of a run, given its final settings and the scores of its answers.
fn data(config: &RunConfig, scores: Option<Vec<RowScores>>) -> Result<Prepared> {
    let (unscored, _) = config.unscored();
    let prepared = Prepared::new(&unscored, &Context::default())?;
    match (&config.mixture.choice, scores) {
        (Some(choice), Some(rows)) => {
            let places = prepared.answer_places().count();
            if places != rows.len() {
                return Err(Error::Ranks {
                    what: format!(
                        "rank 0 has scores of {} answers, this rank {places}",
                        rows.len()
                    ),
                    hint: "Start all ranks with the same data".into(),
                });
            }
            prepared.mixed_by(config, Some(ChoiceScores::of(choice, &prepared, rows)))
        }
        _ => Ok(prepared),
    }
}
