//! The scores that a run's choice of answers is made by.

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::prepare::Prepared;
use super::score::{LalpConfig, RowScores, ScoreOptions, keep_scores, score_run};
use crate::chart::{Axis, Chart, Point, Scale, Series};
use crate::context::Context;
use crate::data::{AnswerScores, ChoiceBy, ChoiceConfig, ChoiceReport, Prefer};
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a run keeps its scores, where its settings name no file.
const SCORES: &str = "scores.jsonl";
/// Whose scores these are.
const SETTINGS: &str = "scores.jsonl.settings.json";
/// Its picture.
const CHART: &str = "scores.svg";

/// Scores of all answers to the problems that are trained on.
#[derive(Clone)]
pub(super) struct ChoiceScores {
    /// The one that the choice is made by.
    pub of_answers: Arc<AnswerScores>,
    /// All of them, as they are kept.
    pub rows: Arc<Vec<RowScores>>,
}

impl ChoiceScores {
    /// The scores that the choice of a configuration needs: taken from its file, and computed where the
    /// file lacks them. `None` where the student does not decide.
    ///
    /// # Errors
    /// As [`score_run`].
    pub fn needed(
        config: &RunConfig,
        prepared: &Prepared,
        context: &Context<'_>,
    ) -> Result<Option<Self>> {
        let choice = config.mixture.choice.as_ref().filter(|choice| choice.by.needs_student());
        let Some(choice) = choice else { return Ok(None) };
        let options = options(choice, choice.scores.clone());
        let rows = score_run(config, prepared, &options, context)?;
        Ok(Some(Self::of(choice, prepared, rows)))
    }

    /// The scores that a choice is made by, of those of all answers.
    pub fn of(choice: &ChoiceConfig, prepared: &Prepared, rows: Vec<RowScores>) -> Self {
        let places: Vec<(usize, usize, usize)> = prepared.answer_places().collect();
        assert_eq!(places.len(), rows.len(), "an answer that is kept has a row");
        let score = |row: &RowScores| match choice.by {
            ChoiceBy::Rsr => Some(row.rsr),
            ChoiceBy::Nll => Some(row.nll),
            _ => row.lalp,
        };
        // Nothing is known of an answer without a token to score: it counts as the worst.
        let known = || rows.iter().filter(|row| row.tokens > 0).filter_map(score);
        let worst = match choice.prefers() {
            Prefer::Lowest => known().reduce(f64::max),
            Prefer::Highest => known().reduce(f64::min),
        };
        let sources = prepared.mixture.pairs().sources();
        let mut scores: Vec<Vec<Option<f64>>> =
            sources.iter().map(|source| vec![None; source.records().len()]).collect();
        for ((_, source, record), row) in places.into_iter().zip(&rows) {
            let of_row = if row.tokens > 0 { score(row) } else { Some(worst.unwrap_or(0.0)) };
            scores[source][record] = of_row;
        }
        let of_answers = Arc::new(AnswerScores::new(scores));
        Self { of_answers, rows: Arc::new(rows) }
    }
}

/// How the scores of a choice are made, and where they are kept.
fn options(choice: &ChoiceConfig, file: Option<PathBuf>) -> ScoreOptions {
    let usual = LalpConfig::default();
    let window = choice.window.unwrap_or(usual.window);
    let lalp = (choice.by == ChoiceBy::Lalp).then_some(LalpConfig { window });
    ScoreOptions { file, lalp, part: None }
}

/// Writes what a choice of a run was made by: its picture, and the scores where no file has them.
///
/// # Errors
/// As [`keep_scores`]; [`Error::Io`].
pub(super) fn keep_choice(
    config: &RunConfig,
    prepared: &Prepared,
    directory: &RunDirectory,
) -> Result<()> {
    let Some(choice) = &config.mixture.choice else { return Ok(()) };
    if let Some(report) = &prepared.report.choice {
        directory.write(CHART, &score_chart(report).svg())?;
    }
    match (&prepared.scores, &choice.scores) {
        (Some(scores), None) => {
            let options = options(choice, Some(directory.path(SCORES)));
            keep_scores(config, prepared, &options, &scores.rows)
        }
        _ => Ok(()),
    }
}

/// The scores of the answers by source, as shares of answers below.
pub(crate) fn score_chart(report: &ChoiceReport) -> Chart {
    let series = report.sources.iter().map(|source| {
        let points = source.percentiles.iter().zip((0..=100).step_by(5));
        let points = points.map(|(score, percent)| Point {
            x: *score,
            y: f64::from(percent),
            interval: None,
        });
        Series { name: source.name.clone(), points: points.collect(), marked: false }
    });
    let title = report.by.title();
    Chart {
        title: format!("{title} of the answers by source"),
        x: Axis { name: title.to_owned(), scale: Scale::Linear },
        y: Axis { name: "answers at or below (percent)".to_owned(), scale: Scale::Linear },
        series: series.collect(),
    }
}

/// The data of a run in the mixture that the student's scores choose. Without a file for them they are
/// made in the run directory, so that a run that is stopped goes on with those that it has.
///
/// # Errors
/// As [`Prepared::mixed`]; [`Error::Io`].
pub(super) fn scored(
    config: &RunConfig,
    prepared: &Prepared,
    directory: &RunDirectory,
    mode: RunMode,
    context: &Context<'_>,
) -> Result<Prepared> {
    let mut keeping = config.clone();
    let choice = keeping.mixture.choice.as_mut().filter(|choice| choice.scores.is_none());
    let Some(choice) = choice else { return prepared.mixed(config, context) };
    choice.scores = Some(directory.path(SCORES));
    if !mode.resumes() {
        directory.clear()?;
        directory.write("config.toml", &config.to_toml()?)?;
    }
    match prepared.mixed(&keeping, context) {
        // What it has kept may be of the student before the change.
        Err(Error::Data { .. }) if mode == RunMode::ResumeChanged => {
            [SCORES, SETTINGS].iter().try_for_each(|name| directory.remove(name))?;
            prepared.mixed(&keeping, context)
        }
        prepared => prepared,
    }
}
