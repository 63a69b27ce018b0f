//! `mixture.share = "auto"`: the share of long answers (of the first of two sources with other names), found
//! by small pilots.
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

/// What pilots have found.
const RESULT: &str = "pilots.json";
/// Their run directories.
const FOLDER: &str = "pilots";
/// Steps below which a pilot is said to be too short to tell shares apart.
const FEW_STEPS: usize = 8;
/// The source that the share is of, wherever it stands; where none has this name it is the first.
const LONG: &str = "long";

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

/// The names of the two sources of a run whose share is found, first the one that it is the share of.
///
/// # Errors
/// [`Error::Config`] where there are not two.
fn two_sources(pairs: &Pairs) -> Result<[&str; 2]> {
    match &**pairs.sources() {
        // 0.2, the fallback, is meant of long answers, whatever stands first.
        [first, second] if second.name() == LONG => Ok([second.name(), first.name()]),
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
    let pilots: usize = sizes(config.pilots.all_shares().len()).iter().sum();
    let questions = config.pilots.questions;
    context.notice(format!(
        "mixture.share = auto: pilots find the share before training, within {} times its trained \
         tokens; until then it is taken as {FALLBACK_SHARE}. Beside that they generate at most {} answers to \
         be graded: {pilots} pilots, {questions} each",
        config.pilots.budget,
        pilots.saturating_mul(questions)
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

/// The settings that pilots depend on: what they set themselves, and where the run writes, is left out.
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

/// Holds the settings of pilots against those that a directory was started with, before any pilot, and
/// stores them.
///
/// # Errors
/// [`Error::RunDirectory`] with what differs, unless the mode allows it.
fn take_settings(config: &RunConfig, directory: &RunDirectory, mode: RunMode) -> Result<()> {
    if !mode.resumes() {
        directory.clear()?;
        clear(directory)?;
    }
    let stored = RunConfig::read(&directory.path("config.toml")).ok();
    if let Some(mut then) = stored {
        // The share that pilots have found takes the place of `auto` when training begins.
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

/// Makes the pilots of a run, or takes those that are finished.
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

/// Tells what pilots will do, before they do it.
fn tell_work(halving: &Halving, questions: usize, context: &Context<'_>) -> Result<()> {
    let sizes = sizes(halving.shares.len());
    let pilots: usize = sizes.iter().sum();
    context.notice(format!(
        "{pilots} pilots in {} round{} find the share within {} trained tokens; beside that they generate {} \
         answers to be graded, {questions} each",
        sizes.len(),
        if sizes.len() == 1 { "" } else { "s" },
        halving.budget,
        pilots * questions
    ))
}

/// What pilots propose, whoever trains them.
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
        // Where nothing is right the loss decides which is the best, and nothing says that it is better.
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

/// Removes what earlier pilots have written.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn clear(directory: &RunDirectory) -> Result<()> {
    directory.remove(RESULT)?;
    remove_folder(&directory.path(FOLDER))
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
    /// Trained tokens of the shares, by the bits of the number, each counted once.
    counted: RefCell<BTreeMap<u64, Tokens>>,
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
        let mut counted = self.counted.borrow_mut();
        if let Some(tokens) = counted.get(&share.to_bits()) {
            return Ok(tokens.of_first(rows));
        }
        self.context.check()?;
        // A constant mixture is the same for any number of steps.
        let tokens = Tokens::new(&self.subset.with_mixture(&run)?);
        Ok(counted.entry(share.to_bits()).or_insert(tokens).of_first(rows))
    }

    fn fewest_steps(&self) -> usize {
        // A scaled warm-up of at least half a step, where the run has one.
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
        let about = format!("{:.0} % {}, {}", 100.0 * share, self.names[0], steps_of(steps));
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
            // A pilot of which a part is of other settings or data compares with none.
            self.context.notice(format!("{name}, {about}: made anew, since it differs"))?;
            summary = run_on(&run, data, RunMode::Overwrite, &events);
        }
        let summary = summary.map_err(going_on)?;
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
