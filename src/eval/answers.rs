//! Reads and grades answers of another program.

use super::benchmark::{Benchmark, BenchmarkProblem};
use super::evaluate::GradedAnswer;
use crate::data::reading::asked::{NamedColumns, RowFault};
use crate::data::reading::left_out::{Limit, Tally, Unusable};
use crate::data::reading::row_at::{FileColumn, RowAt, Unit};
use crate::data::reading::rows::{RowSink, read_rows};
use crate::data::reading::{described, quoted, value_at};
use crate::data::{ColumnMap, LeftOut, normalized};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Options for reading a file of answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerOptions {
    /// Column names: `solution` for the answer, `problem`, and `id`.
    pub columns: ColumnMap,
    /// Whether the prompts opened the reasoning, so that every answer starts inside it.
    pub reasoning_opened: bool,
}

/// The graded answers of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GradedAnswers {
    /// The answers, in the file's order.
    pub answers: Vec<GradedAnswer>,
    /// Number of answers that were left out because their row of the benchmark has no usable reference.
    pub without_reference: usize,
    /// Number of rows that lm-evaluation-harness wrote for other filters of the same answers.
    pub other_filters: usize,
    /// Rows that cannot be used, by reason.
    pub left_out: LeftOut,
}

/// Usual names of the answer column.
const TEXTS: [&str; 10] = [
    "text",
    "output",
    "response",
    "completion",
    "generation",
    "prediction",
    "generated_text",
    "model_output",
    "generated_solution",
    "generations",
];
const HINT: &str = "Give each row the answer (text, output, response, completion, prediction) and the \
                    problem's text or id, or name other columns";
/// Number of rows that the choice of the column is based on.
const FIRST_ROWS: usize = 64;

/// Grades answers of another program from a JSONL, JSON, CSV, TSV, or Parquet file.
///
/// The answer is in `text`, `output`, `response`, `completion`, `generation`, `prediction`, `generated_text`,
/// `model_output`, `generated_solution`, or `generations`, as a string or a list of strings. The problem is
/// given by its text (`problem`, `question`, `prompt`) or by the benchmark's `id`, if it has ids. If a row
/// has both, they must agree. Rows with neither are matched to the rows of the benchmark in order. Several
/// rows of a problem are several answers to it.
///
/// The output of `generate` and the samples that lm-evaluation-harness logs are supported, too: answers from
/// `resps`, problems from `doc` or else by `doc_id`, and only the rows of the first filter.
///
/// Answers to rows of the benchmark without a usable reference are counted and left out.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] for a key that answers do not have; [`Error::Data`] if no column is
/// recognized as the answer, if a named column does not exist, if a row belongs to another benchmark (with
/// its line), or if more rows than [`MAX_LEFT_OUT`](crate::data::MAX_LEFT_OUT) allows have no answer.
pub fn grade_answers(
    benchmark: &Benchmark,
    path: &Path,
    options: &AnswerOptions,
) -> Result<GradedAnswers> {
    options.columns.check_keys("answers", &["solution", "problem", "id"])?;
    let mut rows = AnswerRows::new(benchmark, options);
    let rows_read = read_rows(path, &mut rows)?;
    rows_read.explain(path, rows.choose())?;
    let read = rows.rows - rows.other_filters;
    let left_out = rows.tally.finish(path, read, Limit::USUAL)?;
    rows.named.check(path)?;
    let AnswerRows { answers, without_reference, other_filters, .. } = rows;
    Ok(GradedAnswers { answers, without_reference, other_filters, left_out })
}

/// The column with the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AnswerColumn {
    Name(String),
    /// The first of the usual names that is not null in a row.
    Usual,
    /// `resps` of lm-evaluation-harness.
    Harness,
}

/// A row with its position in the file, counted from 1.
struct HeldRow {
    place: usize,
    number: usize,
    row: Map<String, Value>,
}

/// Collects the rows of answers.
struct AnswerRows<'a> {
    benchmark: &'a Benchmark,
    options: &'a AnswerOptions,
    by_id: HashMap<String, Target>,
    by_text: HashMap<String, Target>,
    by_row: HashMap<usize, Target>,
    /// The first rows, until the column is chosen.
    held: Vec<HeldRow>,
    path: PathBuf,
    unit: Unit,
    column: Option<AnswerColumn>,
    named: NamedColumns,
    /// The filter of lm-evaluation-harness whose rows are used.
    filter: Option<String>,
    samples: Vec<usize>,
    answers: Vec<GradedAnswer>,
    without_reference: usize,
    other_filters: usize,
    tally: Tally,
    rows: usize,
}

/// The row of the benchmark that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Problem(usize),
    /// A row of the benchmark without a usable reference.
    Skipped,
}

/// One row of a file of answers.
struct AnswerRow {
    texts: Vec<String>,
    id: Option<String>,
    problem: Option<String>,
    /// Whether `problem` is a problem rather than a prompt, which may be any text.
    is_problem: bool,
    /// The row in the benchmark, counted from 1, if given.
    row: Option<usize>,
    /// The row in the file of answers, counted from 1.
    place: usize,
    tokens: usize,
    hit_limit: bool,
}

impl RowSink for AnswerRows<'_> {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn columns(&mut self, _: Vec<FileColumn>) {}

    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()> {
        self.rows += 1;
        self.unit = at.unit;
        let held = HeldRow { place: self.rows, number: at.number, row };
        if self.column.is_some() {
            return self.take(held);
        }
        if self.held.is_empty() {
            self.path = at.path.to_owned();
        }
        self.held.push(held);
        if self.held.len() < FIRST_ROWS { Ok(()) } else { self.choose() }
    }

    fn unusable(&mut self, unusable: Unusable) {
        self.rows += 1;
        self.tally.add(unusable);
    }
}

impl<'a> AnswerRows<'a> {
    fn new(benchmark: &'a Benchmark, options: &'a AnswerOptions) -> Self {
        let mut by_id = HashMap::new();
        let (mut by_text, mut by_row) = (HashMap::new(), HashMap::new());
        for row in &benchmark.skipped {
            by_id.extend(row.id.clone().map(|id| (id, Target::Skipped)));
            by_text.extend(row.problem.as_ref().map(|text| (normalized(text), Target::Skipped)));
            by_row.insert(row.row, Target::Skipped);
        }
        for (index, problem) in benchmark.problems.iter().enumerate() {
            let target = Target::Problem(index);
            by_id.insert(problem.id.clone(), target);
            by_text.insert(normalized(&problem.problem), target);
            by_row.insert(problem.row, target);
        }
        if !benchmark.has_ids {
            by_id.clear();
        }
        Self {
            benchmark,
            options,
            by_id,
            by_text,
            by_row,
            held: vec![],
            path: PathBuf::new(),
            unit: Unit::Line,
            column: None,
            named: NamedColumns::new(&options.columns),
            filter: None,
            samples: vec![0; benchmark.problems.len()],
            answers: vec![],
            without_reference: 0,
            other_filters: 0,
            tally: Tally::default(),
            rows: 0,
        }
    }

    /// Chooses the answer column from the first rows, and grades these rows.
    fn choose(&mut self) -> Result<()> {
        if self.column.is_some() || self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        let has = |test: &dyn Fn(&Map<String, Value>) -> bool| held.iter().any(|h| test(&h.row));
        let says = |name: &str| has(&|row| row.get(name).is_some_and(|value| !value.is_null()));
        // In other files, `answer` is the reference.
        let of_generate =
            || has(&|row| ["index", "ended", "answer"].iter().all(|name| row.contains_key(*name)));
        let name = |name: &str| AnswerColumn::Name(name.to_owned());
        let usual = || TEXTS.iter().any(|name| says(name)).then_some(AnswerColumn::Usual);
        let empty = || TEXTS.iter().any(|name| has(&|row| row.contains_key(*name)));
        let column = match &self.options.columns.solution {
            Some(named) => Some(name(named)),
            None if has(&|row| row.get("resps").is_some_and(Value::is_array)) => {
                Some(AnswerColumn::Harness)
            }
            None => usual()
                .or_else(|| of_generate().then(|| name("answer")))
                .or_else(|| empty().then_some(AnswerColumn::Usual)),
        };
        let Some(column) = column else {
            let first = &held[0];
            let mut columns: Vec<&str> = first.row.keys().map(String::as_str).collect();
            columns.sort_unstable();
            let what = format!(
                "no column is recognized as the answer; the row's columns are {}",
                quoted(columns.into_iter())
            );
            let hint = format!(
                "Name it with solution=<column>. Recognized names: {}, and `answer` in the output \
                 of generate",
                quoted(TEXTS.into_iter())
            );
            let at = RowAt { path: &self.path, number: first.number, unit: self.unit };
            return Err(at.error(what, hint).with_key("columns.solution"));
        };
        self.column = Some(column);
        held.into_iter().try_for_each(|row| self.take(row))
    }

    /// Grades the answers of a row.
    fn take(&mut self, held: HeldRow) -> Result<()> {
        let HeldRow { place, number, row } = held;
        self.named.see(&row);
        let harness = self.column == Some(AnswerColumn::Harness);
        if let Some(filter) = row.get("filter").and_then(Value::as_str).filter(|_| harness)
            && self.filter.get_or_insert_with(|| filter.to_owned()) != filter
        {
            self.other_filters += 1;
            return Ok(());
        }
        let path = self.path.clone();
        let at = RowAt { path: &path, number, unit: self.unit };
        let row = match self.answer_row(&row, place) {
            Ok(row) => row,
            Err((reason, what)) => {
                self.tally.add(Unusable::new(reason, at.error(what, HINT)));
                return Ok(());
            }
        };
        match self.target(&row, at)? {
            Target::Skipped => self.without_reference += row.texts.len(),
            Target::Problem(place) => {
                let problem = &self.benchmark.problems[place];
                for text in row.texts {
                    let opened = self.options.reasoning_opened;
                    let answer = GradedAnswer::of(problem, self.samples[place], text, opened);
                    let (tokens, hit_limit) = (row.tokens, row.hit_limit);
                    self.answers.push(GradedAnswer { tokens, hit_limit, ..answer });
                    self.samples[place] += 1;
                }
            }
        }
        Ok(())
    }

    /// Returns the answers of a row.
    fn texts(&self, row: &Map<String, Value>) -> Result<Vec<String>, RowFault> {
        let (name, value) = match &self.column {
            Some(AnswerColumn::Name(name)) => (name.as_str(), value_at(row, name)),
            Some(AnswerColumn::Usual) => {
                let says = |name: &&&str| row.get(**name).is_some_and(|value| !value.is_null());
                let name = TEXTS.iter().find(says).copied().unwrap_or("response");
                (name, row.get(name).map(Cow::Borrowed))
            }
            _ => ("resps", row.get("resps").map(Cow::Borrowed)),
        };
        let wrong = |value: &Value| {
            let what =
                format!("`{name}` is {}, expected text or a list of texts", described(value));
            Err(("answer of a wrong type", what))
        };
        match value.as_deref() {
            None | Some(Value::Null) => Err(("no answer", "it has no answer".to_owned())),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Number(number)) => Ok(vec![number.to_string()]),
            Some(Value::Array(list)) if list.is_empty() => {
                Err(("no answer", format!("its `{name}` is empty")))
            }
            // The harness writes a list of lists.
            Some(value @ Value::Array(list)) => {
                let lists: Vec<&Value> = list
                    .iter()
                    .flat_map(|item| match item {
                        Value::Array(inner) => inner.iter().collect(),
                        item => vec![item],
                    })
                    .collect();
                let texts: Option<Vec<String>> =
                    lists.iter().map(|text| text.as_str().map(str::to_owned)).collect();
                texts.filter(|texts| !texts.is_empty()).map_or_else(|| wrong(value), Ok)
            }
            Some(value) => wrong(value),
        }
    }

    /// Parses a row, or returns why it cannot be used.
    fn answer_row(&self, row: &Map<String, Value>, place: usize) -> Result<AnswerRow, RowFault> {
        let columns = &self.options.columns;
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let get = |names: &[&str]| names.iter().find_map(|name| text(row.get(*name)?));
        let named = |name: &Option<String>, names: &[&str]| match name.as_deref() {
            Some("none") => None,
            Some(name) => value_at(row, name).as_deref().and_then(text),
            None => get(names),
        };
        let texts = self.texts(row)?;
        let doc = row.get("doc").and_then(Value::as_object);
        let of_doc = |names: &[&str]| names.iter().find_map(|name| text(doc?.get(*name)?));
        let problem = named(&columns.problem, &["problem", "question"])
            .or_else(|| of_doc(&["problem", "question"]));
        let is_problem = problem.is_some();
        let problem = match &columns.problem {
            None => problem.or_else(|| get(&["prompt"])),
            Some(_) => problem,
        };
        let id = named(&columns.id, &["id", "unique_id", "ID", "idx"])
            .or_else(|| of_doc(&["unique_id", "id", "ID", "idx"]));
        let ended = row.get("ended").and_then(Value::as_str);
        let number = |name: &str| row.get(name).and_then(Value::as_u64);
        let doc_id = number("doc_id").and_then(|id| usize::try_from(id).ok());
        Ok(AnswerRow {
            texts,
            id: id.filter(|_| self.benchmark.has_ids),
            problem,
            is_problem,
            row: doc_id.and_then(|id| id.checked_add(1)),
            place,
            tokens: number("tokens").and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            hit_limit: ended == Some("at the length limit")
                || row.get("hit_limit").and_then(Value::as_bool) == Some(true)
                || row.get("finish_reason").and_then(Value::as_str) == Some("length"),
        })
    }

    /// Returns the row of the benchmark that a row's answer belongs to.
    fn target(&self, row: &AnswerRow, at: RowAt<'_>) -> Result<Target> {
        let failed = |what: String| -> Result<Target, Error> { Err(at.error(what, HINT)) };
        let named = |name: &str| -> String { name.chars().take(60).collect() };
        let of_id = row.id.as_ref().map(|id| self.by_id.get(id));
        let of_text = row.problem.as_ref().map(|problem| self.by_text.get(&normalized(problem)));
        match (of_id, of_text) {
            (Some(Some(a)), Some(Some(b))) if a != b => {
                let id = row.id.as_deref().unwrap_or_default();
                failed(format!("its id `{}` belongs to another problem", named(id)))
            }
            // A prompt may be any text. A problem may lack the options, have them in another layout, or
            // have more text around it, but it begins with the same text.
            (Some(Some(Target::Problem(place))), Some(None))
                if row.is_problem && self.differs(row, *place) =>
            {
                let (id, own) = (row.id.as_deref(), row.problem.as_deref());
                let (id, own) = (id.unwrap_or_default(), own.unwrap_or_default());
                failed(format!("`{}` is not the problem `{}`", named(own), named(id)))
            }
            (Some(Some(target)), _) | (_, Some(Some(target))) => Ok(*target),
            (None, None) => self.by_place(row.row.unwrap_or(row.place), at),
            // The harness gives the position of a problem, whatever it does to its text.
            (None, Some(None)) if row.row.is_some() => {
                let target = self.by_place(row.row.unwrap_or_default(), at)?;
                match target {
                    Target::Problem(place) if row.is_problem && self.differs(row, place) => {
                        let own = row.problem.as_deref().unwrap_or_default();
                        let name = &self.benchmark.name;
                        failed(format!("`{}` is not a problem of {name}", named(own)))
                    }
                    target => Ok(target),
                }
            }
            _ => {
                let name = row.problem.as_deref().or(row.id.as_deref()).unwrap_or_default();
                failed(format!("`{}` is not a problem of {}", named(name), self.benchmark.name))
            }
        }
    }

    fn by_place(&self, row: usize, at: RowAt<'_>) -> Result<Target> {
        self.by_row.get(&row).copied().ok_or_else(|| {
            let (name, rows) = (&self.benchmark.name, self.benchmark.rows());
            at.error(format!("{name} has {rows} rows"), HINT)
        })
    }

    fn differs(&self, row: &AnswerRow, place: usize) -> bool {
        let BenchmarkProblem { problem, .. } = &self.benchmark.problems[place];
        row.problem.as_ref().is_some_and(|own| differ(own, problem))
    }
}

/// Returns whether two texts are different problems: neither contains the other, and their beginnings differ.
fn differ(a: &str, b: &str) -> bool {
    const BEGINNING: usize = 40;
    let letters = |text: &str| -> String {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (a, b) = (letters(a), letters(b));
    let alike = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    alike < BEGINNING && !a.contains(&b) && !b.contains(&a)
}
