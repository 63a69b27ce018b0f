//! The parts of an evaluation: the record of each part, and joining them.

use super::benchmark::{Benchmark, BenchmarkProblem};
use super::directory::{EvaluationDirectory, WEIGHTS, answers_file};
use super::evaluate::{EvaluateConfig, GradedAnswer, answers_of};
use crate::data::reading::Datasets;
use crate::error::Result;
use crate::files::{
    Output, PART, PartRecord, Parts, holds_text, in_order, json_lines, refused, unfinished,
    write_text,
};
use crate::part::Part;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A problem that a part asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AskedProblem {
    benchmark: String,
    problem: BenchmarkProblem,
}

/// What is asked, besides the problems.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Job {
    samples: usize,
    benchmarks: Vec<String>,
}

/// Returns the record of a part.
pub(super) fn part_record(
    part: Part,
    settings: &Value,
    benchmarks: &[Benchmark],
    config: &EvaluateConfig,
) -> Result<PartRecord<AskedProblem>> {
    let job = json!({
        "samples": config.samples.max(1),
        "benchmarks": benchmarks.iter().map(|benchmark| &benchmark.name).collect::<Vec<_>>(),
    });
    let limit = config.limit.unwrap_or(usize::MAX);
    let problems = benchmarks.iter().flat_map(|benchmark| {
        benchmark.problems.iter().take(limit).map(|problem| AskedProblem {
            benchmark: benchmark.name.clone(),
            problem: problem.clone(),
        })
    });
    PartRecord::new(part, settings.clone(), job, problems)
}

/// A joined evaluation.
#[derive(Debug)]
pub struct JoinedEvaluation {
    /// The directory with all answers.
    pub directory: EvaluationDirectory,
    /// The problems that were asked.
    pub benchmarks: Vec<Benchmark>,
    /// The answers to each benchmark, in the order of problems and samples.
    pub answers: Vec<Vec<GradedAnswer>>,
}

/// Joins the parts of an evaluation in a directory, as if one process had asked: the answers in the order of
/// problems and samples, the settings, and the commits of datasets.
/// [`EvaluationDirectory::write_scores`] scores them. Loads no model. The parts stay unchanged.
///
/// # Errors
/// All errors at once, with nothing written. [`RunDirectory`](crate::Error::RunDirectory) for a directory
/// that is not a part, belongs to another job, is given twice, is not finished, or is in use by another
/// process, and if `out` holds something else; [`Config`](crate::Error::Config) for missing parts;
/// [`Data`](crate::Error::Data) for answers that cannot be read.
pub fn join_evaluations(parts: &[PathBuf], out: &Path) -> Result<JoinedEvaluation> {
    let parts = Parts::<AskedProblem>::read(parts, |path| path.join(PART))?;
    let first = parts.first();
    let job: Job = serde_json::from_value(first.record.job.clone()).map_err(|e| {
        let what = format!("its record does not say what was asked: {e}");
        refused(&first.path, what, "Run the part again in another directory")
    })?;
    let answers = parts.each(|part| answers_of_part(part, &job))?;
    let own = parts.iter().map(|part| part.record.own.clone()).collect();
    let mut benchmarks: Vec<Benchmark> = vec![];
    for name in &job.benchmarks {
        benchmarks.push(Benchmark { name: name.clone(), ..Benchmark::default() });
    }
    let mut all = vec![vec![]; benchmarks.len()];
    for (asked, answers) in in_order::<AskedProblem>(own).zip(in_order(answers)) {
        // Cannot fail, since each part was checked.
        let Some(place) = job.benchmarks.iter().position(|name| *name == asked.benchmark) else {
            continue;
        };
        benchmarks[place].problems.push(asked.problem);
        all[place].extend(answers);
    }
    let directory = write(&parts, out, &benchmarks, &all)?;
    Ok(JoinedEvaluation { directory, benchmarks, answers: all })
}

/// Returns the answers of a part to each of its problems.
fn answers_of_part(part: &Output<AskedProblem>, job: &Job) -> Result<Vec<Vec<GradedAnswer>>> {
    EvaluationDirectory::check(&part.path)?;
    let config = EvaluateConfig { samples: job.samples, ..EvaluateConfig::default() };
    let of = |name: &str| {
        let own = part.record.own.iter().filter(|asked| asked.benchmark == name);
        own.map(|asked| asked.problem.clone()).collect::<Vec<_>>()
    };
    // The problems of a part are in the order of the benchmarks.
    let (mut answers, mut found) = (vec![], 0);
    for name in &job.benchmarks {
        let benchmark = Benchmark { name: name.clone(), problems: of(name), ..Default::default() };
        let stored = answers_of(&benchmark, &config, &part.path.join(answers_file(name)))?;
        found += stored.len();
        answers.extend(stored.chunk_by(|a, b| a.id == b.id).map(<[_]>::to_vec));
    }
    let asked = part.record.own.len().saturating_mul(job.samples);
    if found != asked || answers.len() != part.record.own.len() {
        return Err(unfinished(part, format!("{found} of {asked} answers are done")));
    }
    Ok(answers)
}

/// Writes the joined directory unless something conflicts with it.
fn write(
    parts: &Parts<AskedProblem>,
    out: &Path,
    benchmarks: &[Benchmark],
    answers: &[Vec<GradedAnswer>],
) -> Result<EvaluationDirectory> {
    let first = parts.first();
    EvaluationDirectory::check(out)?;
    let directory = EvaluationDirectory::open(out)?;
    let files = directory.files();
    let mut texts = vec![];
    for (benchmark, answers) in benchmarks.iter().zip(answers) {
        let path = files.join(&answers_file(&benchmark.name));
        let text = json_lines(answers, &path)?;
        let is_there = holds_text(&path, &text, "Choose another directory (out)")?;
        texts.push((path, text, is_there));
    }
    directory.same_settings(&first.record.settings, None)?;
    for (path, text, _) in texts.iter().filter(|(.., is_there)| !is_there) {
        write_text(path, text)?;
    }
    Datasets::of(&first.path)?.write(files)?;
    // Parts on one file system have noted the same weights.
    let noted = parts.iter().map(|part| fs::read_to_string(part.path.join(WEIGHTS)).ok());
    let mut noted: Vec<Option<String>> = noted.collect();
    noted.dedup();
    if let [Some(text)] = noted.as_slice() {
        files.write(WEIGHTS, text)?;
    }
    Ok(directory)
}
