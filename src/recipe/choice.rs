//! The scores by which a run chooses answers.

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

/// The file of scores in the run directory, unless the settings name another.
const SCORES: &str = "scores.jsonl";
/// The settings that the scores belong to.
const SETTINGS: &str = "scores.jsonl.settings.json";
/// The chart of the scores.
const CHART: &str = "scores.svg";

/// Scores of all answers to the training problems.
#[derive(Clone)]
pub(super) struct ChoiceScores {
    /// The score that the choice uses, by answer.
    pub of_answers: Arc<AnswerScores>,
    /// All scores, as they are stored.
    pub rows: Arc<Vec<RowScores>>,
}

impl ChoiceScores {
    /// Returns the scores that the choice of a configuration needs: read from its file, and computed if the
    /// file lacks them. `None` if the choice does not use the student.
    ///
    /// # Errors
    /// See [`score_run`].
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

    /// Selects the score that the choice uses from the scores of all answers.
    pub fn of(choice: &ChoiceConfig, prepared: &Prepared, rows: Vec<RowScores>) -> Self {
        let places: Vec<(usize, usize, usize)> = prepared.answer_places().collect();
        assert_eq!(places.len(), rows.len(), "an answer that is kept has a row");
        let score = |row: &RowScores| match choice.by {
            ChoiceBy::Rsr => Some(row.rsr),
            ChoiceBy::Nll => Some(row.nll),
            _ => row.lalp,
        };
        // An answer without tokens to score counts as the worst.
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

/// Returns options for scoring the answers of a choice and storing the scores in `file`.
fn options(choice: &ChoiceConfig, file: Option<PathBuf>) -> ScoreOptions {
    let usual = LalpConfig::default();
    let window = choice.window.unwrap_or(usual.window);
    let lalp = (choice.by == ChoiceBy::Lalp).then_some(LalpConfig { window });
    ScoreOptions { file, lalp, part: None }
}

/// Writes the chart of a choice's scores, and the scores themselves if the settings name no file for them.
///
/// # Errors
/// See [`keep_scores`]; [`Error::Io`].
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

/// Returns the cumulative distribution of the answers' scores, by source.
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

/// Returns the data of a run in the mixture that the student's scores choose. If the settings name no file,
/// the scores are stored in the run directory, so a stopped run keeps those that it has computed.
///
/// # Errors
/// See [`Prepared::mixed`]; [`Error::Io`].
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
        // The stored scores may belong to the student before the change.
        Err(Error::Data { .. }) if mode == RunMode::ResumeChanged => {
            [SCORES, SETTINGS].iter().try_for_each(|name| directory.remove(name))?;
            prepared.mixed(&keeping, context)
        }
        prepared => prepared,
    }
}
