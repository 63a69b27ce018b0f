//! What the report needs of a finished cell, in a small file without problems or answers:
//!
//! ```text
//! OUT/results/STUDENT/Long-0.20/seed-1.json        a cell
//! OUT/results/STUDENT/Long-untuned/seed-1.json     an untuned student
//! ```
//!
//! A study without its cell folders continues from these files. Unlike weights and the texts of a
//! benchmark, they can be kept in version control, published with a report, or moved between machines.

use super::machine::Machine;
use super::results::TestedAnswers;
use crate::error::{Error, Result};
use crate::eval::{AnswerKind, Benchmark};
use crate::files::{differences, read_if_there, write_text};
use crate::recipe::{RunConfig, Summary, same_run_settings};
use crate::text::hex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How a student was tested on a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct AskedAs {
    /// The settings that determine an answer.
    settings: Value,
    /// A fingerprint of the problems and their references in order, with system prompts and kinds of answers.
    problems: String,
    /// The number of problems.
    count: usize,
}

impl AskedAs {
    pub(super) fn new(settings: Value, benchmark: &Benchmark) -> Self {
        let mut hash = Sha256::new();
        for problem in &benchmark.problems {
            for text in [&problem.id, &problem.problem, &problem.reference] {
                add_text(&mut hash, text);
            }
            // Only if set, so that the fingerprint of problems without them does not change.
            if problem.system.is_some() || problem.kind != AnswerKind::default() {
                hash.update([u8::from(problem.system.is_some())]);
                add_text(&mut hash, problem.system.as_deref().unwrap_or_default());
                add_text(&mut hash, &serde_json::to_string(&problem.kind).unwrap_or_default());
            }
        }
        Self { settings, problems: hex(hash.finalize()), count: benchmark.problems.len() }
    }
}

/// Adds a text to a hash, with its length to avoid collisions.
fn add_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// By benchmark, how a student was tested on it.
pub(super) type Asking = BTreeMap<String, AskedAs>;

/// Returns the settings without the date.
fn undated(asked: &Asking) -> Asking {
    let mut asked = asked.clone();
    for AskedAs { settings, .. } in asked.values_mut() {
        if let Some(date) = settings.get_mut("date") {
            *date = Value::Null;
        }
    }
    asked
}

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredCell {
    asked: Asking,
    pub answers: TestedAnswers,
    /// The figures of its run, without samples. `None` for an untuned student.
    pub summary: Option<Summary>,
    /// The machine that made it. Early versions did not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The version of the program that graded the answers. Early versions did not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// A fingerprint of the weights of a base model in a folder. Early versions did not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_weights: Option<String>,
}

/// Advice if a stored cell does not match settings or data.
const HINT: &str = "Restore the old settings and data, choose another directory (out), or remove this file \
                    to make the cell again";

impl StoredCell {
    pub fn new(asked: Asking, answers: TestedAnswers, summary: Option<&Summary>) -> Self {
        let summary = summary.map(|summary| Summary { samples: vec![], ..summary.clone() });
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        Self { asked, answers, summary, machine: None, version, base_weights: None }
    }

    /// Writes the cell, unless the file already has the same content.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::io("write", path, std::io::Error::other(e)))?;
        let text = format!("{text}\n");
        if fs::read_to_string(path).is_ok_and(|stored| stored == text) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        write_text(path, &text)
    }

    /// Reads a cell from a file, if there is one.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if the file is not a stored cell; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(text) = read_if_there(path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| Error::RunDirectory {
            path: path.to_owned(),
            what: format!("it is not a finished cell of a study: {e}"),
            hint: HINT.into(),
        })
    }

    /// Checks that the weights of the base model are the same as `now`, if both are known.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] with the base model's name.
    pub fn check_weights(&self, path: &Path, name: &str, now: Option<&str>) -> Result<()> {
        match (self.base_weights.as_deref(), now) {
            (Some(then), Some(now)) if then != now => Err(Error::RunDirectory {
                path: path.to_owned(),
                what: format!("it was made with other weights of the base model {name}"),
                hint: "Restore the old weights, choose another directory (out), or remove this file and the \
                       cell's folder to make it again"
                    .into(),
            }),
            _ => Ok(()),
        }
    }

    /// Returns the cell without the date on which it was made.
    pub fn undated(&self) -> Self {
        let mut cell = Self { asked: undated(&self.asked), ..self.clone() };
        if let Some(summary) = &mut cell.summary {
            summary.config.data.date = None;
        }
        cell
    }

    /// Checks that the cell was made with the same settings, data, and test problems. The date counts only if
    /// the chat template shows it to the student (`is_dated`).
    ///
    /// # Errors
    /// [`Error::RunDirectory`] with the differences.
    pub fn check(
        &self,
        path: &Path,
        asked: &Asking,
        run: Option<(&RunConfig, &str)>,
        is_dated: bool,
    ) -> Result<()> {
        let refuse = |what: String| {
            Err(Error::RunDirectory { path: path.to_owned(), what, hint: HINT.into() })
        };
        match (run, &self.summary) {
            (None, None) => {}
            (Some((run, data)), Some(summary)) => {
                let mut then = summary.config.clone();
                if !is_dated {
                    then.data.date.clone_from(&run.data.date);
                }
                if let Err(Error::RunDirectory { what, .. }) = same_run_settings(&then, run) {
                    return refuse(what);
                }
                if summary.data != data {
                    return refuse("the data have changed since it was made".into());
                }
            }
            _ => return refuse("it is another kind of cell".into()),
        }
        let json = |asked: &Asking| {
            let asked = if is_dated { asked.clone() } else { undated(asked) };
            serde_json::to_value(asked).unwrap_or_default()
        };
        let changes = differences(&json(&self.asked), &json(asked), "");
        if !changes.is_empty() {
            return refuse(format!("it was tested differently: {}", changes.join(", ")));
        }
        let of = |name: &String| self.answers.0.iter().find(|tested| tested.benchmark == *name);
        let count = |name: &String| of(name).map_or(0, |tested| tested.hits.len());
        if asked.iter().any(|(name, asked)| count(name) != asked.count) {
            return refuse("its answers are not to the current test problems".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::BenchmarkProblem;

    #[test]
    fn a_fingerprint_of_problems_stays_and_tells_what_is_asked_otherwise() {
        let problem = BenchmarkProblem {
            id: "1".into(),
            problem: "1 + 1?".into(),
            reference: "2".into(),
            ..Default::default()
        };
        let of = |problem: BenchmarkProblem| {
            let benchmark = Benchmark { problems: vec![problem], ..Benchmark::default() };
            AskedAs::new(Value::Null, &benchmark).problems
        };
        // As stored by version 0.1.0.
        let mut hash = Sha256::new();
        ["1", "1 + 1?", "2"].iter().for_each(|text| add_text(&mut hash, text));
        let usual = of(problem.clone());
        assert_eq!(usual, hex(hash.finalize()));
        let with_system =
            |text: &str| of(BenchmarkProblem { system: Some(text.into()), ..problem.clone() });
        let choice = of(BenchmarkProblem { kind: AnswerKind::Choice, ..problem.clone() });
        let mut all = vec![usual, with_system(""), with_system("Be short."), choice];
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4);
    }
}
