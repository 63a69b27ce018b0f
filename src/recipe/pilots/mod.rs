//! `mixture.share = "auto"`: short pilot runs find the share of the source `long`, or of the first source if
//! neither has that name.
//!
//! ```text
//! run/
//!   pilots/round-1/share-0.2/     the run directory of a pilot: settings, summary, answers
//!   pilots.json                   the proposal and its reasons
//! ```
//!
//! A pilot is a shorter version of the run: the same student, settings, and seed, on a part of the training
//! problems. The other training problems are set aside to grade the pilots, so the run's held-out problems
//! stay unseen. [`halving`] decides which shares are dropped.

mod config;
mod halving;
mod proposal;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use config::validate_mixture;
pub use config::{FALLBACK_SHARE, PilotsConfig};
pub use proposal::{PilotResult, PilotRound, ShareProposal};

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::finished::same_settings;
use super::grader::read_answers;
use super::prepare::Prepared;
use super::run::{PartEvents, dated, run_on};
use super::teacher::check_every_answer;
use crate::context::{Context, Event};
use crate::data::{MixtureConfig, Pairs, Share};
use crate::error::{Error, Result};
use crate::eval::Bootstrap;
use crate::files::remove_folder;
use crate::random::Stream;
use halving::{Halved, Halving, Outcome, Pilots, sizes, steps_of};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokens::Tokens;

/// The file with the proposal.
const RESULT: &str = "pilots.json";
/// The folder with the run directories of the pilots.
const FOLDER: &str = "pilots";
/// A pilot with fewer steps counts as too short to tell shares apart.
const FEW_STEPS: usize = 8;
/// The source that the share refers to, in any position. If no source has this name, it is the first one.
const LONG: &str = "long";

/// Proposes a share for a run with pilots, regardless of its `mixture.share`. The pilots work in the run
/// directory (`out`). Finished pilots are kept. A later run with `mixture.share = "auto"` and
/// [`RunMode::Resume`] uses the proposal.
///
/// # Errors
/// See [`Prepared::new`]; [`Error::Config`] if there are not exactly two sources, if no problem set aside has
/// a reference answer, or if the budget is too small for one step of each pilot; [`Error::Stopped`]: the same
/// call continues.
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

/// Returns the names of the two sources, first the one that the share refers to.
///
/// # Errors
/// [`Error::Config`] if there are not exactly two.
fn two_sources(pairs: &Pairs) -> Result<[&str; 2]> {
    match &**pairs.sources() {
        // The fallback 0.2 is a share of long answers, in any order of the sources.
        [first, second] if second.name() == LONG => Ok([second.name(), first.name()]),
        [first, second] => Ok([first.name(), second.name()]),
        sources => Err(Error::config(
            "mixture.share",
            format!("auto needs exactly two sources, but there are {}", sources.len()),
            "Set mixture.weights, and another mixture.share",
        )),
    }
}

/// Returns the mixture to use while the share is unknown: that of the fallback.
///
/// # Errors
/// [`Error::Config`] if there are not exactly two sources.
pub(super) fn stand_in(asked: &MixtureConfig, pairs: &Pairs) -> Result<MixtureConfig> {
    Ok(proposal::mixture_of(two_sources(pairs)?, FALLBACK_SHARE, asked))
}

/// Reports that the share of a run is not known yet, for plans and previews.
pub(super) fn tell_unknown(config: &RunConfig, context: &Context<'_>) -> Result<()> {
    if config.mixture.share != Share::Auto {
        return Ok(());
    }
    let pilots: usize = sizes(config.pilots.all_shares().len()).iter().sum();
    let questions = config.pilots.questions;
    context.notice(format!(
        "mixture.share = auto: pilots find the share before training, within {} times its trained \
         tokens; this assumes {FALLBACK_SHARE}. The pilots also generate at most {} answers to grade: \
         {pilots} pilots with {questions} each",
        config.pilots.budget,
        pilots.saturating_mul(questions)
    ))
}

/// Returns the settings and data of a run with the share that pilots find. Runs the pilots if needed.
///
/// # Errors
/// See [`propose_share`].
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
        // The stored settings already contain the share that pilots found.
        let found = read(directory).filter(|p| p.mixture(&config.mixture) == config.mixture);
        prepared.pilots = found.map(Arc::new);
    }
    Ok((config, prepared))
}

/// Returns the stored proposal. An unreadable one counts as missing, since it is only informative.
fn read(directory: &RunDirectory) -> Option<ShareProposal> {
    let text = std::fs::read_to_string(directory.path(RESULT)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Returns the settings that pilots depend on, without those that they set themselves and without `out`.
fn inputs(config: &RunConfig) -> RunConfig {
    let mut inputs = RunConfig { out: PathBuf::new(), ..config.clone() };
    inputs.pilots.shares = inputs.pilots.all_shares();
    let train = &mut inputs.train;
    (train.evaluate_every, train.early_stopping, train.keep_best) = (0, 0, false);
    train.keep_checkpoints = 1;
    let evaluation = &mut inputs.evaluation;
    (evaluation.before, evaluation.during_training, evaluation.questions) = (false, 0, 0);
    if inputs.mixture.share == Share::Auto {
        // Weights are not used.
        inputs.mixture.weights.clear();
    }
    inputs
}

/// Checks that the settings of pilots match those that the directory was started with, and stores them.
///
/// # Errors
/// [`Error::RunDirectory`] with the settings that differ, unless the mode allows changes.
fn take_settings(config: &RunConfig, directory: &RunDirectory, mode: RunMode) -> Result<()> {
    if !mode.resumes() {
        directory.clear()?;
        clear(directory)?;
    }
    let stored = RunConfig::read(&directory.path("config.toml")).ok();
    if let Some(mut then) = stored {
        // When training starts, the share that pilots found replaces `auto` in the stored settings.
        if read(directory).is_some_and(|found| found.mixture(&then.mixture) == then.mixture) {
            then.mixture = config.mixture.clone();
        }
        let now = RunConfig { out: config.out.clone(), ..inputs(config) };
        match same_settings(&inputs(&then), &now) {
            Ok(()) => return Ok(()),
            Err(error) if mode != RunMode::ResumeChanged => return Err(error),
            Err(_) => {}
        }
    }
    directory.write("config.toml", &config.to_toml()?)
}

/// Runs the pilots, reusing finished ones, and stores their proposal.
fn propose(
    config: &RunConfig,
    prepared: &Prepared,
    directory: &RunDirectory,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<ShareProposal> {
    let pairs = prepared.mixture.pairs();
    let [source, other] = two_sources(pairs)?;
    let settings = &config.pilots;
    let apart = settings.questions.min(pairs.len() / 2);
    // Independent of the stream that splits off the held-out problems.
    let seed = Stream::new(config.seed, "pilots", 0).next_u64();
    let subset = prepared.keeping_apart(config, apart, seed)?;
    if subset.questions.is_empty() {
        return Err(Error::config(
            "mixture.share",
            format!(
                "auto grades answers, but none of the {apart} problems set aside has a reference answer"
            ),
            "Add reference answers to the data, or set mixture.weights and another mixture.share",
        ));
    }
    check_every_answer(config, prepared)?;
    let names = [source, other];
    let shares = settings.all_shares();
    let of_share = |share: f64| -> Result<u64> {
        context.check()?;
        let mut run = config.clone();
        run.mixture = proposal::mixture_of(names, share, &config.mixture);
        let tokens = Tokens::new(&prepared.with_mixture(&run)?);
        Ok(tokens.of_first(config.train.total_rows(pairs.len())))
    };
    let all: u64 = shares.iter().map(|share| of_share(*share)).sum::<Result<u64>>()?;
    let training = all / shares.len() as u64;
    take_settings(config, directory, mode)?;
    let whole = config.train.total_steps(pairs.len());
    let halving = Halving {
        budget: (settings.budget * training as f64) as u64,
        training,
        shares,
        fallback: FALLBACK_SHARE,
        growth: settings.growth,
        most_steps: whole,
        bootstrap: Bootstrap { seed: config.seed, ..Bootstrap::default() },
    };
    tell_work(&halving, subset.questions.len(), context)?;
    let counted = RefCell::default();
    let subset = &subset;
    let mut pilots = Trainings { config, subset, directory, names, whole, mode, counted, context };
    let proposal = proposed(&halving, &mut pilots, settings, subset, names)?;
    directory.write_json(RESULT, &proposal)?;
    context.notice(proposal.line())?;
    context.notice(proposal.cost())?;
    Ok(proposal)
}

/// Reports what the pilots will do before they start.
fn tell_work(halving: &Halving, questions: usize, context: &Context<'_>) -> Result<()> {
    let sizes = sizes(halving.shares.len());
    let pilots: usize = sizes.iter().sum();
    context.notice(format!(
        "{pilots} pilots in {} round{} find the share within {} trained tokens; they also generate {} \
         answers to grade, {questions} each",
        sizes.len(),
        if sizes.len() == 1 { "" } else { "s" },
        halving.budget,
        pilots * questions
    ))
}

/// Returns the proposal of pilots, independent of how they are trained.
fn proposed(
    halving: &Halving,
    pilots: &mut dyn Pilots,
    settings: &PilotsConfig,
    subset: &Prepared,
    names: [&str; 2],
) -> Result<ShareProposal> {
    let Halved { rounds, best, sure, gain, runner_up, lead, warnings } = halving.run(pilots)?;
    let fallback = halving.fallback;
    let [source, other] = names.map(str::to_owned);
    Ok(ShareProposal {
        // If no answer is correct, the loss ranks the shares, which is no evidence for a better share.
        share: if sure >= settings.confidence && gain.value > 0.0 { best } else { fallback },
        best,
        fallback,
        gain,
        runner_up: Some(runner_up),
        lead,
        warnings,
        rounds,
        settings: settings.clone(),
        problems: subset.mixture.pairs().len(),
        questions: subset.questions.len(),
        budget: halving.budget,
        training: halving.training,
        source,
        other,
    })
}

/// Removes the files of earlier pilots.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn clear(directory: &RunDirectory) -> Result<()> {
    directory.remove(RESULT)?;
    remove_folder(&directory.path(FOLDER))
}

/// Pilots that really train.
struct Trainings<'a, 'c> {
    config: &'a RunConfig,
    /// The training data without the problems set aside, which are its held-out problems.
    subset: &'a Prepared,
    directory: &'a RunDirectory,
    names: [&'a str; 2],
    /// Steps of the run.
    whole: usize,
    mode: RunMode,
    /// Token counts by share (its bits), each computed once.
    counted: RefCell<BTreeMap<u64, Tokens>>,
    context: &'a Context<'c>,
}

impl Trainings<'_, '_> {
    /// Returns the settings of a pilot: those of the run, with the schedule scaled to `steps`.
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
        let mut counted = self.counted.borrow_mut();
        if let Some(tokens) = counted.get(&share.to_bits()) {
            return Ok(tokens.of_first(rows));
        }
        self.context.check()?;
        // The mixture is constant, so it does not depend on the number of steps.
        let tokens = Tokens::new(&self.subset.with_mixture(&run)?);
        Ok(counted.entry(share.to_bits()).or_insert(tokens).of_first(rows))
    }

    fn fewest_steps(&self) -> usize {
        // The scaled warmup must be at least half a step.
        let warmup = self.config.train.warmup_steps;
        let of_warmup = if warmup == 0 { 0 } else { self.whole.div_ceil(2 * warmup) };
        of_warmup.max(FEW_STEPS)
    }

    fn warn(&mut self, text: &str) -> Result<()> {
        self.context.notice(text)
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
        let about = format!("{:.0}% {}, {}", 100.0 * share, self.names[0], steps_of(steps));
        let name = format!("pilot, round {round}");
        let part = Event::Part { name: &name, about: &about, number, of, seconds_left: None };
        self.context.emit(&part)?;
        let holds_run = RunDirectory::holds_run(&run.out);
        let mode = match holds_run {
            true if self.mode.resumes() => RunMode::Resume,
            true => RunMode::Overwrite,
            false => RunMode::New,
        };
        let events = Context::new(PartEvents(self.context), self.context.stop_flag());
        let data = self.subset.with_mixture(&run)?;
        let mut summary = run_on(&run, data.clone(), mode, &events);
        let differs = matches!(summary, Err(Error::RunDirectory { .. } | Error::Checkpoint { .. }));
        if holds_run && differs && self.mode == RunMode::ResumeChanged {
            // A pilot that was started with other settings or data is not comparable.
            let why = "run again, since settings or data have changed";
            self.context.notice(format!("{name}, {about}: {why}"))?;
            summary = run_on(&run, data, RunMode::Overwrite, &events);
        }
        let summary = summary.map_err(going_on)?;
        if summary.outcome.stopped {
            return Err(going_on(Error::stopped("")));
        }
        let directory = RunDirectory::open(&run.out, RunMode::Resume)?;
        // The pilot's student is no longer needed. Its answers are kept.
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

/// Adds to a stop what was kept.
fn going_on(error: Error) -> Error {
    match error {
        Error::Stopped { .. } => {
            Error::stopped("finished pilots are kept; resuming continues with the others")
        }
        error => error,
    }
}
