//! `mixture.share = "auto"`: the share of the first of two sources, found by small pilots.
//!
//! ```text
//! run/
//!   pilots/round-1/share-0.2/     the run directory of a pilot: settings, summary, answers
//!   pilots.json                   what they propose, and why
//! ```
//!
//! A pilot is the run itself, shorter: the same student, settings and seed, on a part of the problems to
//! train on. The others are kept apart to grade the pilots on, so that the run's held-out problems stay
//! unseen. How shares are given up is in [`halving`].

mod config;
mod halving;
mod proposal;

pub use config::{FALLBACK_SHARE, PilotsConfig};
pub use proposal::{PilotResult, PilotRound, ShareProposal};

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::grader::read_answers;
use super::prepare::Prepared;
use super::run::{dated, run_on};
use crate::context::{Context, Event, Moment, Observer};
use crate::data::{MixtureConfig, Pairs, Share};
use crate::error::{Error, Result};
use crate::eval::Bootstrap;
use crate::files::remove_folder;
use crate::random::Stream;
use halving::{Halved, Halving, Outcome, Pilots};
use std::sync::Arc;

/// What pilots have found.
const RESULT: &str = "pilots.json";
/// Their run directories.
const FOLDER: &str = "pilots";

/// Proposes a share for a run by pilots, whatever its `mixture.share` is. They work in the run's
/// directory (`out`), which a later run with `mixture.share = "auto"` and [`RunMode::Resume`] goes on
/// with; pilots that are finished are kept.
///
/// # Errors
/// As [`Prepared::new`]; [`Error::Config`] where there are not exactly two sources, where too few problems
/// have a reference answer, or where the budget allows no pilot; [`Error::Stopped`]: the same call goes on.
pub fn propose_share(config: &RunConfig, context: &Context<'_>) -> Result<ShareProposal> {
    let mut config = config.clone();
    config.mixture.share = Share::Auto;
    config.validate()?;
    let mode = match RunDirectory::holds_run(&config.out) {
        true => RunMode::Resume,
        false => RunMode::New,
    };
    let config = &dated(&config, mode);
    let prepared = Prepared::new(config, context)?;
    let config = &prepared.pinned(config);
    let directory = RunDirectory::open(&config.out, mode)?;
    propose(config, &prepared, &directory, mode, context)
}

/// The names of the two sources of a run whose share is found.
///
/// # Errors
/// [`Error::Config`] where there are not two.
fn two_sources(pairs: &Pairs) -> Result<[&str; 2]> {
    match &**pairs.sources() {
        [first, second] => Ok([first.name(), second.name()]),
        sources => Err(Error::config(
            "mixture.share",
            format!("auto finds the share of one of two sources, and there are {}", sources.len()),
            "Give mixture.weights, and another share",
        )),
    }
}

/// The mixture that stands for one whose share is not found yet: that of the fallback.
///
/// # Errors
/// [`Error::Config`] where there are not two sources.
pub(super) fn stand_in(asked: &MixtureConfig, pairs: &Pairs) -> Result<MixtureConfig> {
    Ok(proposal::mixture_of(two_sources(pairs)?, FALLBACK_SHARE, asked))
}

/// Tells whoever plans or previews a run that its share is not known yet.
pub(super) fn tell_unknown(config: &RunConfig, context: &Context<'_>) -> Result<()> {
    if config.mixture.share != Share::Auto {
        return Ok(());
    }
    context.notice(format!(
        "mixture.share = auto: pilots find the share before training, within {} times its trained \
         tokens; until then it is taken as {FALLBACK_SHARE}",
        config.pilots.budget
    ))
}

/// The settings and data of a run with its share as pilots have found it; pilots are made where they are
/// needed.
///
/// # Errors
/// As [`propose_share`].
pub(super) fn resolve(
    mut config: RunConfig,
    mut prepared: Prepared,
    directory: &RunDirectory,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<(RunConfig, Prepared)> {
    if config.mixture.share == Share::Auto {
        let proposal = propose(&config, &prepared, directory, mode, context)?;
        config.mixture = proposal.mixture(&config.mixture);
        prepared = prepared.with_mixture(&config)?;
        prepared.pilots = Some(Arc::new(proposal));
    } else if mode.resumes() {
        // The settings in the directory are those with the share that was found.
        let found = read(directory).filter(|p| p.mixture(&config.mixture) == config.mixture);
        prepared.pilots = found.map(Arc::new);
    }
    Ok((config, prepared))
}

/// The proposal that a directory holds. One that cannot be read is none: it only tells of the share.
fn read(directory: &RunDirectory) -> Option<ShareProposal> {
    let text = std::fs::read_to_string(directory.path(RESULT)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Makes the pilots of a run, or takes those that are finished.
fn propose(
    config: &RunConfig,
    prepared: &Prepared,
    directory: &RunDirectory,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<ShareProposal> {
    let pairs = prepared.mixture.pairs();
    let [source, other] = two_sources(pairs)?.map(str::to_owned);
    let settings = config.pilots.clone();
    let apart = settings.questions.min(pairs.len() / 2);
    // Not the stream that has divided the problems before.
    let seed = Stream::new(config.seed, "pilots", 0).next_u64();
    let subset = prepared.keeping_apart(config, apart, seed)?;
    if subset.questions.is_empty() {
        return Err(Error::config(
            "mixture.share",
            format!(
                "auto needs answers to grade, and none of {apart} problems has a reference answer"
            ),
            "Give answers in the data, or give mixture.weights and another share",
        ));
    }
    let shares = settings.all_shares();
    let of_share = |share: f64| -> Result<u64> {
        let mut run = config.clone();
        run.mixture = proposal::mixture_of([&source, &other], share, &config.mixture);
        trained_tokens(&prepared.with_mixture(&run)?, config.train.total_rows(pairs.len()))
    };
    let all: u64 = shares.iter().map(|share| of_share(*share)).sum::<Result<u64>>()?;
    let training = all / shares.len() as u64;
    if !mode.resumes() {
        directory.clear()?;
        clear(directory)?;
    }
    // What was asked; the share that is found takes its place when training begins.
    if !directory.path("config.toml").exists() {
        directory.write("config.toml", &config.to_toml()?)?;
    }
    let halving = Halving {
        shares,
        fallback: FALLBACK_SHARE,
        budget: (settings.budget * training as f64) as u64,
        growth: settings.growth,
        most_steps: config.train.total_steps(pairs.len()),
        bootstrap: Bootstrap { seed: config.seed, ..Bootstrap::default() },
    };
    let names = [source.as_str(), other.as_str()];
    let whole = halving.most_steps;
    let mut pilots = Trainings { config, subset: &subset, directory, names, whole, mode, context };
    let Halved { rounds, best, gain } = halving.run(&mut pilots)?;
    let clear = best != FALLBACK_SHARE && gain.low > 0.0;
    let share = if clear { best } else { FALLBACK_SHARE };
    let proposal = ShareProposal {
        share,
        best,
        fallback: FALLBACK_SHARE,
        gain,
        rounds,
        settings,
        problems: subset.mixture.pairs().len(),
        questions: subset.questions.len(),
        budget: halving.budget,
        training,
        source,
        other,
    };
    directory.write_json(RESULT, &proposal)?;
    context.notice(proposal.line())?;
    context.notice(proposal.cost())?;
    Ok(proposal)
}

/// Removes what earlier pilots have written.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn clear(directory: &RunDirectory) -> Result<()> {
    directory.remove(RESULT)?;
    remove_folder(&directory.path(FOLDER))
}

/// Trained tokens of the first so many rows.
fn trained_tokens(prepared: &Prepared, rows: u64) -> Result<u64> {
    Ok(prepared.seen(rows).iter().map(|source| source.trained_tokens).sum())
}

/// Pilots that are trained.
struct Trainings<'a, 'c> {
    config: &'a RunConfig,
    /// The data without the problems kept apart, which are its held-out ones.
    subset: &'a Prepared,
    directory: &'a RunDirectory,
    names: [&'a str; 2],
    /// Steps of the run.
    whole: usize,
    mode: RunMode,
    context: &'a Context<'c>,
}

impl Trainings<'_, '_> {
    /// The settings of a pilot: the run's, its schedule scaled to so many steps.
    fn settings(&self, round: usize, share: f64, steps: usize) -> RunConfig {
        let mut run = self.config.clone();
        let name = format!("share-{share}");
        run.out = self.directory.path(FOLDER).join(format!("round-{round}")).join(name);
        run.mixture = proposal::mixture_of(self.names, share, &run.mixture);
        let train = &mut run.train;
        let warmup = (train.warmup_steps * steps) as f64 / self.whole.max(1) as f64;
        train.warmup_steps = (warmup.round() as usize).clamp(train.warmup_steps.min(1), steps);
        train.steps = Some(steps);
        (train.evaluate_every, train.early_stopping, train.keep_best) = (0, 0, false);
        train.keep_checkpoints = 1;
        let evaluation = &mut run.evaluation;
        (evaluation.before, evaluation.during_training) = (false, 0);
        evaluation.questions = self.subset.questions.len();
        run
    }
}

impl Pilots for Trainings<'_, '_> {
    fn cost(&self, share: f64, steps: usize) -> Result<u64> {
        let run = self.settings(1, share, steps);
        let rows = run.train.total_rows(self.subset.mixture.pairs().len());
        trained_tokens(&self.subset.with_mixture(&run)?, rows)
    }

    fn run(
        &mut self,
        round: usize,
        share: f64,
        steps: usize,
        [number, of]: [usize; 2],
    ) -> Result<Outcome> {
        self.context.check().map_err(going_on)?;
        let run = self.settings(round, share, steps);
        let about = format!("{:.0} % {}, {steps} steps", 100.0 * share, self.names[0]);
        let name = format!("pilot, round {round}");
        let part = Event::Part { name: &name, about: &about, number, of, seconds_left: None };
        self.context.emit(&part)?;
        let mode = match RunDirectory::holds_run(&run.out) {
            true if self.mode.resumes() => self.mode,
            true => RunMode::Overwrite,
            false => RunMode::New,
        };
        let events = Context::new(PilotEvents(self.context), self.context.stop_flag());
        let data = self.subset.with_mixture(&run)?;
        let summary = run_on(&run, data, mode, &events).map_err(going_on)?;
        if summary.outcome.stopped {
            return Err(going_on(Error::stopped("")));
        }
        let directory = RunDirectory::open(&run.out, RunMode::Resume)?;
        // A pilot's student is needed no more; its answers are kept.
        for name in ["model", "adapter", "checkpoints", "tensorboard"] {
            remove_folder(&directory.path(name))?;
        }
        let answers = read_answers(&directory, "after.jsonl", run.evaluation.kind)?;
        let losses = summary.final_evaluation().map_or(&[][..], |e| &e.sources);
        Ok(Outcome {
            hits: answers.iter().map(|answer| f32::from(u8::from(answer.correct))).collect(),
            losses: losses.iter().map(|source| (source.name.clone(), source.loss)).collect(),
            trained_tokens: summary.trained_tokens,
            seconds: summary.training_seconds,
            evaluation_seconds: (summary.seconds - summary.training_seconds).max(0.0),
        })
    }
}

/// What a stop leaves.
fn going_on(error: Error) -> Error {
    match error {
        Error::Stopped { .. } => {
            Error::stopped("finished pilots are kept; resuming goes on with them")
        }
        error => error,
    }
}

/// Of a pilot's training what the run tells.
struct PilotEvents<'a, 'c>(&'a Context<'c>);

impl Observer for PilotEvents<'_, '_> {
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
