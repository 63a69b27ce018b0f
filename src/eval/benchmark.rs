//! Benchmarks in JSONL, in the shapes that they are met in.
//!
//! | benchmark | problem | answer |
//! | --- | --- | --- |
//! | MATH-500, AIME24, AMC23, GaoKao | `problem` or `question` | `answer` |
//! | GSM8K | `question` | `answer`, with its working and `#### n` |
//! | SVAMP | `Body` and `Question` | `Answer` |
//! | MAWPS | `input` | `target` |
//! | OlympiadBench | `context`, `question` | `final_answer`, a list |
//! | Minerva | `problem` | the box in `solution` |
//! | SAT, other multiple choice | `question`, `options` | `Answer`, a letter |

use super::answer::final_answer;
use super::grade::Question;
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// What a model is asked beside the problem, so that its answer can be found.
pub const INSTRUCTION: &str =
    r"Please reason step by step, and put your final answer within \boxed{}.";
/// The same for multiple choice.
pub const CHOICE_INSTRUCTION: &str =
    r"Please reason step by step, and put the letter of your choice within \boxed{}.";

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchmarkProblem {
    /// Its name in the file, or its line.
    pub id: String,
    /// Its text, with context and options where it has them.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// Whether it is one of the options' letters.
    pub choice: bool,
}

/// A benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Benchmark {
    /// Its name: that of the file without its ending.
    pub name: String,
    /// Its problems, in the file's order.
    pub problems: Vec<BenchmarkProblem>,
}

impl Benchmark {
    /// Reads a JSONL file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] with the line for a row without a problem or an answer, or a
    /// file without rows.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let mut problems = vec![];
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines {
            let failed = |what: String| {
                let hint = "A row has a problem (problem, question, input) and an answer (answer, \
                            target, final_answer, solution)";
                Error::data(Place::line(path, index + 1), what, hint)
            };
            let row: Map<String, Value> = serde_json::from_str(line)
                .map_err(|e| failed(format!("it is not a JSON object: {e}")))?;
            problems.push(problem(&row, index + 1).map_err(failed)?);
        }
        if problems.is_empty() {
            return Err(Error::data(Place::file(path), "it has no rows", "Give a JSONL file"));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, problems })
    }

    /// Questions as a benchmark.
    pub fn of_questions(name: &str, questions: &[Question]) -> Self {
        let problem = |(index, question): (usize, &Question)| BenchmarkProblem {
            id: (index + 1).to_string(),
            problem: question.problem.clone(),
            reference: question.reference.clone(),
            choice: false,
        };
        let problems = questions.iter().enumerate().map(problem).collect();
        Self { name: name.to_owned(), problems }
    }
}

/// The first of these that is there and says something.
fn field<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().filter_map(|name| row.get(*name)).find(|value| match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        _ => true,
    })
}

/// A string or a number as text; 27.0 is 27.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
            _ => number.to_string(),
        }),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn problem(row: &Map<String, Value>, line: usize) -> Result<BenchmarkProblem, String> {
    let get = |names: &[&str]| field(row, names).and_then(text);
    let mut problem =
        get(&["problem", "question", "Question", "input", "prompt"]).ok_or("it has no problem")?;
    if let Some(body) = get(&["context", "Body"]) {
        // SVAMP's bodies lack the full stop before the question.
        let end = if body.ends_with(['.', '?', '!', ':']) { "" } else { "." };
        problem = format!("{body}{end} {problem}");
    }
    let options = match field(row, &["options", "choices"]) {
        Some(Value::Array(options)) => {
            let letters = ('A'..='Z').zip(options);
            let texts = letters.filter_map(|(letter, option)| {
                text(option).map(|option| format!("{letter}) {option}"))
            });
            Some(texts.collect::<Vec<_>>().join("\n"))
        }
        other => other.and_then(text),
    };
    if let Some(options) = &options {
        problem = format!("{problem}\n{options}");
    }
    let given = ["answer", "Answer", "target", "final_answer", "ground_truth"];
    let reference = match field(row, &given) {
        Some(Value::Array(answers)) => {
            Some(answers.iter().filter_map(text).collect::<Vec<_>>().join(", "))
        }
        Some(answer) => text(answer),
        None => {
            let solution = get(&["solution"]).ok_or("it has no answer")?;
            Some(final_answer(&solution).ok_or("its solution has no \\boxed answer")?)
        }
    };
    let reference = reference.filter(|answer| !answer.is_empty()).ok_or("its answer is empty")?;
    // GSM8K's come with their working.
    let reference = match reference.contains("####") {
        true => final_answer(&reference).unwrap_or(reference),
        false => reference,
    };
    let id = get(&["unique_id", "id", "ID", "idx"]).unwrap_or_else(|| line.to_string());
    Ok(BenchmarkProblem { id, problem, reference, choice: options.is_some() })
}
