//! How well teachers' answers suit a student that is not yet tuned: scores of every answer, from one forward
//! pass each.
//!
//! ```text
//! tokens   P P P P A A A A E        P prompt, A answer, E end of turn
//! nll      . . . . x x x x .        -ln p of the token, given all before it
//! rank     . . . . x x x x .        1 + tokens with a higher logit
//! ```
//!
//! The end of a turn is left out: it says nothing of the answer, and the published code of the Rank-Surprisal
//! Ratio leaves it out.

mod file;
mod join;
mod make;
#[cfg(feature = "parquet")]
mod parquet;
mod steps;
mod summary;

pub use file::read_scores;
pub use join::join_scores;
pub(crate) use make::{keep_scores, score_run};
pub use steps::answer_steps;
pub use summary::{SourceScores, score_table};

use super::config::RunConfig;
use super::prepare::Prepared;
use crate::context::Context;
use crate::data::{AnswersKept, Join, MixtureConfig};
use crate::error::{Error, Result};
use crate::part::Part;
use make::scored;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A rank above this counts as this.
pub const MOST_RANK: u32 = 100;

/// What the sum of an answer's NLLs counts as at least, where the Rank-Surprisal Ratio divides by it; that of the
/// published code.
pub const LEAST_NLL: f64 = 1e-12;

/// The Rank-Surprisal Ratio of an answer without a token to score: as large as one token can have, so that no
/// choice of low ratios takes it.
pub const NO_TOKENS_RSR: f64 = MOST_RANK as f64 / LEAST_NLL;

/// The scores of one answer under an untuned student.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowScores {
    /// What the row is known by: prompt, tokens and which of them are trained, hashed.
    pub row: String,
    /// The source's name.
    pub source: String,
    /// The id that the answer's record has in its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Names the answer in messages: source and line.
    pub label: String,
    /// Tokens before the answer.
    pub prompt_tokens: usize,
    /// Tokens that are scored: those of the answer without the end of its turn.
    pub tokens: usize,
    /// Mean negative log-probability of these tokens, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean of the ranks, each at most [`MOST_RANK`]; a rank is 1 and how many tokens have a higher logit.
    pub rank: f64,
    /// The Rank-Surprisal Ratio (arXiv 2601.14249): sum of `min(rank, 100)` over sum of NLLs. Lower suits the
    /// student more. Never infinite: see [`LEAST_NLL`] and [`NO_TOKENS_RSR`].
    pub rsr: f64,
    /// Share of the tokens that are ranked above [`MOST_RANK`].
    pub above_100: f64,
    /// The mean over the answer's steps of each step's mean log-probability, given the problem and some steps
    /// before it (arXiv 2510.03988); see [`LalpConfig`]. Higher suits the student more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lalp: Option<f64>,
    /// The answer's steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
}

/// How the local average log-probability (LALP) is taken.
///
/// A step ends at a line break, or at `.`, `!` or `?` (with quotes and brackets behind it) before white space, in
/// both cases where a token ends. A step of fewer than four characters other than white space, such as `1.`, is
/// part of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LalpConfig {
    /// Steps before a step that the student sees, beside the problem.
    pub window: usize,
}

impl Default for LalpConfig {
    fn default() -> Self {
        Self { window: 4 }
    }
}

/// What is scored, and where it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoreOptions {
    /// The file of scores: JSONL, which is appended to, or with the feature `parquet` a name that ends in
    /// `.parquet`, which is written at the end from a JSONL file of that name. Without it nothing is kept.
    pub file: Option<PathBuf>,
    /// Also take the local average log-probability. Each step is read again with its window: several times the
    /// tokens.
    pub lalp: Option<LalpConfig>,
    /// Only this part of the problems, each with the answers of all sources. With one file for each part,
    /// [`join_scores`] puts them together.
    pub part: Option<Part>,
}

/// What [`write_scores`] has made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenScores {
    /// The scores, by problem and source.
    #[serde(skip)]
    pub rows: Vec<RowScores>,
    /// The JSONL file, where there is one.
    pub file: Option<PathBuf>,
    /// Answers whose scores were there before.
    pub before: usize,
    /// Tokens that the student has read for the others, prompts and padding included.
    pub read_tokens: u64,
    /// The scores of each source.
    pub sources: Vec<SourceScores>,
}

/// Scores every answer of a run's sources, of any number, by the untuned student. Problems count that any source
/// answers, and none is held out; of the toy corpus those that are trained on. A file that was begun goes on.
///
/// # Errors
/// [`Error::Stopped`]: what was made is in the file, and the same call goes on. [`Error::RunDirectory`] where the
/// file holds scores of another student; [`Error::Data`] where it holds something else, another part or is one of the sources, and for a Parquet
/// file that is there and was not written from the JSONL file beside it; [`Error::Config`] for a
/// Parquet file without that feature; what preparing the run's data and loading the student give.
pub fn write_scores(
    config: &RunConfig,
    options: &ScoreOptions,
    context: &Context<'_>,
) -> Result<WrittenScores> {
    let parquet = options.file.as_deref().filter(|file| is_parquet(file));
    parquet.map_or(Ok(()), check_parquet)?;
    let store = options.file.as_deref().map(store_of);
    if let Some(store) = &store {
        let sources: Vec<&Path> = config.data.sources.iter().map(|s| s.path.as_path()).collect();
        check_targets(&sources, store, parquet, options.part)?;
    }
    let config = every_answer(config);
    let prepared = Prepared::new(&config, context)?;
    let options = ScoreOptions { file: store, ..options.clone() };
    let made = scored(&config, &prepared, &options, context)?;
    #[cfg(feature = "parquet")]
    if let Some(path) = parquet {
        self::parquet::write(path, &made.rows)?;
    }
    let names = prepared.mixture.pairs().sources().iter().map(|source| source.name().to_owned());
    Ok(WrittenScores {
        sources: SourceScores::of(&made.rows, names),
        rows: made.rows,
        file: options.file,
        before: made.before,
        read_tokens: made.read_tokens,
    })
}

/// Refuses, before anything is scored, to write over what is not ours.
fn check_targets(
    inputs: &[&Path],
    store: &Path,
    parquet: Option<&Path>,
    part: Option<Part>,
) -> Result<()> {
    for target in [Some(store), parquet].into_iter().flatten() {
        file::check_no_input(target, inputs)?;
    }
    file::check_place(store, part)?;
    parquet.map_or(Ok(()), |parquet| file::check_replaced(parquet, store))
}

/// The lines that a file is made of, or is itself.
fn store_of(file: &Path) -> PathBuf {
    if is_parquet(file) { file.with_extension("jsonl") } else { file.to_owned() }
}

/// The settings of a run with all answers of its sources in it.
fn every_answer(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    (config.teacher, config.train.objective.distillation) = (None, None);
    (config.data.join, config.data.complete, config.data.hold_out) = (Join::Outer, false, 0.0);
    config.train.steps = Some(1);
    // All sources have a part in it, whatever the run takes of them.
    let weights = config.source_names().into_iter().map(|name| (name, 1.0)).collect();
    config.data.answers = Some(AnswersKept::All);
    config.data.problems = None;
    config.mixture = MixtureConfig { weights, ..MixtureConfig::default() };
    config
}

fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet"))
}

/// Refuses a Parquet file that cannot be written.
fn check_parquet(file: &Path) -> Result<()> {
    match cfg!(feature = "parquet") {
        true => Ok(()),
        false => Err(Error::config(
            "out",
            format!("{} is to be Parquet, which this build does not write", file.display()),
            "Name a file that ends in .jsonl, or build with `--features parquet`",
        )),
    }
}
