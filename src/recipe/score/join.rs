//! Joins the scores of parts.

use super::file::{check_free, part_of, settings_beside, settings_of};
use super::{
    RowScores, SourceScores, WrittenScores, check_parquet, check_targets, is_parquet, read_scores,
    store_of,
};
use crate::error::{Problems, Result};
use crate::files::{
    Output, Parts, differences, holds_text, in_order, json_lines, refused, same_settings,
    unfinished, write_text,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// An answer that a part scores.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ScoredAnswer {
    pub row: String,
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub label: String,
}

/// The answers to a problem. They are in the same part.
type Problem = Vec<ScoredAnswer>;

/// What is common to the parts of a job: the names of the sources.
#[derive(Deserialize)]
struct Job {
    sources: Vec<String>,
}

/// Joins the files of all parts in one file (JSONL or, with the feature `parquet`, both formats), as if one
/// process had scored all answers. Loads no student and keeps the parts.
///
/// # Errors
/// All problems with the parts, before anything is written: [`Error::Data`](crate::Error::Data) for a file
/// that is not a part, belongs to another job, is given twice, or is not finished;
/// [`Error::Config`](crate::Error::Config) for missing parts;
/// [`Error::RunDirectory`](crate::Error::RunDirectory) if another process uses a part. For `out`: as
/// [`write_scores`](super::write_scores); it must not hold other scores.
pub fn join_scores(parts: &[PathBuf], out: &Path) -> Result<WrittenScores> {
    let parquet = Some(out).filter(|out| is_parquet(out));
    parquet.map_or(Ok(()), check_parquet)?;
    let (store, files) = (store_of(out), parts.iter().map(|part| store_of(part)));
    let files: Vec<PathBuf> = files.collect();
    let parts = Parts::<Problem>::read(&files, part_of)?;
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    check_targets(&inputs, &store, parquet, None)?;
    let settings = common_settings(&parts)?;
    let first = parts.first();
    let job: Job = serde_json::from_value(first.record.job.clone()).map_err(|e| {
        let what = format!("it does not describe what was scored: {e}");
        refused(&first.path, what, "Score the part again in another file")
    })?;
    let needs_lalp = settings.get("lalp").is_some_and(|lalp| !lalp.is_null());
    let scores = parts.each(|part| scores_of(part, needs_lalp))?;
    let rows: Vec<RowScores> = in_order(scores).flatten().collect();
    write(&store, &rows, &settings)?;
    #[cfg(feature = "parquet")]
    if let Some(path) = parquet {
        super::parquet::write(path, &rows)?;
    }
    Ok(WrittenScores {
        sources: SourceScores::of(&rows, job.sources),
        rows,
        file: Some(store),
        before: 0,
        read_tokens: 0,
    })
}

/// Returns the settings of the parts, which must be the same.
fn common_settings(parts: &Parts<Problem>) -> Result<Value> {
    let all = parts.each(|part| settings_beside(&part.path).map(Option::unwrap_or_default))?;
    let first = parts.first().path.display();
    let mut problems = Problems::default();
    for (part, settings) in parts.iter().zip(&all) {
        let changes = differences(&all[0], settings, "");
        if !changes.is_empty() {
            let what = format!("it belongs to another job than {first}: {}", changes.join(", "));
            let hint = "Score both with the same flags, then join again";
            problems.note::<()>(Err(refused(&part.path, what, hint)));
        }
    }
    problems.check()?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// Returns the scores of a part's answers, by problem.
fn scores_of(part: &Output<Problem>, needs_lalp: bool) -> Result<Vec<Vec<RowScores>>> {
    check_free(&part.path)?;
    let own = &part.record.own;
    let lines = match own.is_empty() || !part.path.exists() {
        true => vec![],
        false => read_scores(&part.path)?,
    };
    let whole = lines.iter().filter(|line| !needs_lalp || line.lalp.is_some());
    let by_name: HashMap<(&str, &str), &RowScores> =
        whole.map(|line| ((line.row.as_str(), line.source.as_str()), line)).collect();
    let find = |answer: &ScoredAnswer| {
        let line = by_name.get(&(answer.row.as_str(), answer.source.as_str()))?;
        let ScoredAnswer { row, source, id, label } = answer.clone();
        Some(RowScores { row, source, id, label, ..(*line).clone() })
    };
    let found = own.iter().map(|answers| answers.iter().filter_map(find).collect());
    let found: Vec<Vec<RowScores>> = found.collect();
    let [count, of] =
        [found.iter().map(Vec::len).sum::<usize>(), own.iter().map(Vec::len).sum::<usize>()];
    match count == of {
        true => Ok(found),
        false => Err(unfinished(part, format!("{count} of {of} answers have scores"))),
    }
}

/// Writes a file with one line per row and source, and its settings.
fn write(store: &Path, rows: &[RowScores], settings: &Value) -> Result<()> {
    let mut seen = HashSet::new();
    let lines = rows.iter().filter(|row| seen.insert((&row.row, &row.source)));
    let text = json_lines(lines, store)?;
    if holds_text(store, &text, "Use another file of scores")? {
        return same_settings(&settings_of(store), settings, |_| Ok(()), "Use another file");
    }
    write_text(&settings_of(store), &format!("{settings:#}\n"))?;
    write_text(store, &text)
}
