//! Scores how well teachers' answers suit an untuned student, with one forward pass per answer.
//!
//! ```text
//! tokens   P P P P A A A A E        P prompt, A answer, E end of turn
//! nll      . . . . x x x x .        -ln p of the token, given all before it
//! rank     . . . . x x x x .        1 + tokens with a higher logit
//! ```
//!
//! The end of a turn is not scored: it says nothing about the answer, and the published code of the
//! Rank-Surprisal Ratio leaves it out, too.

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

/// Ranks are capped at this value.
pub const MOST_RANK: u32 = 100;

/// Lower bound of the divisor of the Rank-Surprisal Ratio, the sum of an answer's NLLs. Same as in the
/// published code.
pub const LEAST_NLL: f64 = 1e-12;

/// The Rank-Surprisal Ratio of an answer without tokens to score: the largest possible ratio, so that no
/// choice of low ratios takes the answer.
pub const NO_TOKENS_RSR: f64 = MOST_RANK as f64 / LEAST_NLL;

/// The scores of one answer under an untuned student.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowScores {
    /// Key of the row: a hash of its tokens and of which of them are trained.
    pub row: String,
    /// The source's name.
    pub source: String,
    /// The id of the answer's record in its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The answer's name in messages: source and line.
    pub label: String,
    /// Number of tokens before the answer.
    pub prompt_tokens: usize,
    /// Number of scored tokens: the answer without the end of its turn.
    pub tokens: usize,
    /// Mean negative log-probability of these tokens in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean of the ranks, each capped at [`MOST_RANK`]. A rank is 1 plus the number of tokens with a higher
    /// logit.
    pub rank: f64,
    /// The Rank-Surprisal Ratio (arXiv 2601.14249): sum of `min(rank, 100)` over sum of NLLs. Lower suits the
    /// student better. Never infinite; see [`LEAST_NLL`] and [`NO_TOKENS_RSR`].
    pub rsr: f64,
    /// Share of the tokens whose rank is above [`MOST_RANK`].
    pub above_100: f64,
    /// The local average log-probability: the mean over the answer's steps of each step's mean
    /// log-probability, given the problem and some preceding steps (arXiv 2510.03988); see [`LalpConfig`].
    /// Higher suits the student better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lalp: Option<f64>,
    /// Number of steps in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
}

/// How to compute the local average log-probability (LALP).
///
/// A step ends at a line break, or at `.`, `!`, or `?` (plus closing quotes and brackets) before white space,
/// always at a token boundary. A step with fewer than four non-whitespace characters, such as `1.`, is part
/// of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LalpConfig {
    /// Number of preceding steps that the student sees in addition to the problem.
    pub window: usize,
}

impl Default for LalpConfig {
    fn default() -> Self {
        Self { window: 4 }
    }
}

/// What to score, and where to store the scores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoreOptions {
    /// The JSONL file to append to. With the feature `parquet`, a name that ends in `.parquet`: that file is
    /// written at the end, from a JSONL file with the same name. If unset, scores are not stored.
    pub file: Option<PathBuf>,
    /// Also compute the local average log-probability. The student reads each step again with its window,
    /// which takes several times as many tokens.
    pub lalp: Option<LalpConfig>,
    /// Score only this part of the problems, each with the answers of all sources. [`join_scores`] joins the
    /// files of all parts.
    pub part: Option<Part>,
}

/// The result of [`write_scores`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrittenScores {
    /// The scores, ordered by problem and source.
    #[serde(skip)]
    pub rows: Vec<RowScores>,
    /// The JSONL file, if there is one.
    pub file: Option<PathBuf>,
    /// Number of answers that were scored earlier.
    pub before: usize,
    /// Tokens that the student has read for the other answers, including prompts and padding.
    pub read_tokens: u64,
    /// The scores of each source.
    pub sources: Vec<SourceScores>,
}

/// Scores all answers of a run's sources with the untuned student. Problems that only some sources answer are
/// included, and none is held out; of the toy corpus, only the training problems are scored. Continues a file
/// that was started earlier.
///
/// # Errors
/// [`Error::Stopped`]: finished scores are in the file, and the same call continues. [`Error::Data`] if the
/// file holds scores of another student, another part, or something else, if it is one of the sources, or for
/// an existing Parquet file that was not written from the JSONL file next to it. [`Error::Config`] for a
/// Parquet file without the feature. [`Error::RunDirectory`] if another process uses the file. Errors of
/// preparing the data and loading the student.
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

/// Checks, before anything is scored, that the outputs do not overwrite other files.
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

/// Returns the JSONL file that a file of scores is, or is written from.
fn store_of(file: &Path) -> PathBuf {
    if is_parquet(file) { file.with_extension("jsonl") } else { file.to_owned() }
}

/// Returns the settings of a run with all answers of its sources.
fn every_answer(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    (config.teacher, config.train.objective.distillation) = (None, None);
    (config.data.join, config.data.complete, config.data.hold_out) = (Join::Outer, false, 0.0);
    config.train.steps = Some(1);
    // Every source gets a weight, regardless of the run's mixture.
    let weights = config.source_names().into_iter().map(|name| (name, 1.0)).collect();
    config.data.answers = Some(AnswersKept::All);
    config.data.problems = None;
    config.mixture = MixtureConfig { weights, ..MixtureConfig::default() };
    config
}

fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet"))
}

/// Checks that this build can write Parquet.
fn check_parquet(file: &Path) -> Result<()> {
    match cfg!(feature = "parquet") {
        true => Ok(()),
        false => Err(Error::config(
            "out",
            format!("this build cannot write the Parquet file {}", file.display()),
            "Use a name that ends in .jsonl, or build with `--features parquet`",
        )),
    }
}
