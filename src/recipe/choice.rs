//! The scores that a run's choice of answers is made by.

use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use super::score::{LalpConfig, RowScores, ScoreOptions, keep_scores, score_run};
use crate::chart::{Axis, Chart, Point, Scale, Series};
use crate::context::Context;
use crate::data::{AnswerScores, ChoiceBy, ChoiceConfig, ChoiceReport};
use crate::error::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a run keeps its scores, where its settings name no file.
const SCORES: &str = "scores.jsonl";
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
        let sources = prepared.mixture.pairs().sources();
        let mut scores: Vec<Vec<Option<f64>>> =
            sources.iter().map(|source| vec![None; source.records().len()]).collect();
        for ((source, record), row) in prepared.answer_places().zip(&rows) {
            scores[source][record] = match choice.by {
                ChoiceBy::Rsr => Some(row.rsr),
                ChoiceBy::Nll => Some(row.nll),
                _ => row.lalp,
            };
        }
        let of_answers = Arc::new(AnswerScores::new(scores));
        Ok(Some(Self { of_answers, rows: Arc::new(rows) }))
    }
}

/// How the scores of a choice are made, and where they are kept.
fn options(choice: &ChoiceConfig, file: Option<PathBuf>) -> ScoreOptions {
    ScoreOptions { file, lalp: (choice.by == ChoiceBy::Lalp).then(LalpConfig::default) }
}

/// Writes what a choice of a run was made by: its picture, and the scores where no file has them.
///
/// # Errors
/// As [`keep_scores`]; [`Error::Io`](crate::Error::Io).
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

/// The settings of a run that goes on, with the scores that it has kept in its directory.
pub(super) fn with_kept_scores(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    let kept = config.out.join(SCORES);
    if let Some(choice) = config.mixture.choice.as_mut()
        && choice.scores.is_none()
        && kept.is_file()
    {
        choice.scores = Some(kept);
    }
    config
}
