//! Finished runs: their summaries, graded by the rules of this version.

use super::config::RunConfig;
use super::directory::{RunDirectory, RunMode};
use super::grader::read_answers;
use super::prepare::Prepared;
use super::summary::Summary;
use crate::context::Accuracy;
use crate::error::{Error, Result};
use crate::files::differences;
use std::path::PathBuf;

/// Returns the summary of a finished run; `None` if the run is not finished or, with allowed changes,
/// differs.
pub(super) fn finished(
    config: &RunConfig,
    prepared: &Prepared,
    directory: &RunDirectory,
    mode: RunMode,
) -> Result<Option<Summary>> {
    let path = directory.path("summary.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    // The summary of a comparison has another format and is not handled here.
    let Ok(summary) = serde_json::from_str::<Summary>(&text) else { return Ok(None) };
    if summary.outcome.stopped {
        return Ok(None);
    }
    let settings = same_settings(&summary.config, config);
    let changed = settings.is_err() || summary.data != prepared.fingerprint;
    if mode == RunMode::ResumeChanged && changed {
        return Ok(None);
    }
    settings?;
    if summary.data != prepared.fingerprint {
        return Err(Error::RunDirectory {
            path: config.out.clone(),
            what: "it holds a finished run whose data have changed since".into(),
            hint: "Restore the old data files, or overwrite it".into(),
        });
    }
    regraded(summary, directory).map(Some)
}

/// Grades a summary's answers again by the rules of this version, and stores it if it changed.
fn regraded(mut summary: Summary, directory: &RunDirectory) -> Result<Summary> {
    let kind = summary.config.evaluation.kind;
    let stored = summary.clone();
    for (name, grade) in
        [("before.jsonl", &mut summary.before), ("after.jsonl", &mut summary.after)]
    {
        let answers = read_answers(directory, name, kind)?;
        if grade.is_some() && !answers.is_empty() {
            *grade = Some(Accuracy::of(&answers));
        }
    }
    let samples = summary.samples.clone();
    summary.samples = samples.into_iter().map(|answer| answer.graded_anew(kind)).collect();
    if summary != stored {
        directory.write_json("summary.json", &summary)?;
    }
    Ok(summary)
}

/// Checks that the settings have not changed. The directory may have been moved.
///
/// # Errors
/// [`Error::RunDirectory`] with the settings that differ.
pub(crate) fn same_settings(then: &RunConfig, now: &RunConfig) -> Result<()> {
    let json = |config: &RunConfig| {
        let mut config = RunConfig { out: PathBuf::new(), ..config.clone() };
        // It does not change any answer.
        config.generate.batch_size = 1;
        // The fingerprint of the data covers the candidates.
        config.data.answers = None;
        config.train.shard_optimizer = false;
        // The file may have been moved. The mixture's identity covers the scores.
        if let Some(choice) = &mut config.mixture.choice {
            choice.scores = None;
        }
        serde_json::to_value(config).unwrap_or_default()
    };
    let changes = differences(&json(then), &json(now), "");
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::RunDirectory {
        path: now.out.clone(),
        what: format!("it was started with other settings: {}", changes.join(", ")),
        hint: "Resume with the original settings, allow the change, or overwrite it".into(),
    })
}
