//! Answers that another program has made, read and graded.

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

/// How a file of answers is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerOptions {
    /// Columns that are named: `solution` for the answer, `problem` and `id`.
    pub columns: ColumnMap,
    /// Whether the prompts had opened the reasoning, so that every answer begins within it.
    pub reasoning_opened: bool,
}

/// The answers of a file, graded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GradedAnswers {
    /// The answers, in the file's order.
    pub answers: Vec<GradedAnswer>,
    /// Answers to rows of the benchmark that are left out, since they have no usable reference.
    pub without_reference: usize,
    /// Rows that lm-evaluation-harness has written for other filters of the same answers.
    pub other_filters: usize,
    /// Rows that cannot be used, by reason.
    pub left_out: LeftOut,
}

/// Usual names of the answer's column.
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
const HINT: &str = "A row has the answer (text, output, response, completion, prediction) and the \
                    problem's text or id; other columns can be named";
/// Rows on which the column is chosen.
const FIRST_ROWS: usize = 64;

/// Grades answers that another program has made: JSONL, a JSON array, CSV, TSV or Parquet with the answer
/// as `text`, `output`, `response`, `completion`, `generation`, `prediction`, `generated_text`,
/// `model_output`, `generated_solution` or `generations`, a text or a list of several, and the problem
/// by its text (`problem`, `question`, `prompt`) or by the benchmark's `id`, where it has ids; where an
/// id and a problem are given, they must agree. Rows with neither are taken in the order of the
/// benchmark's rows. Several rows of a problem are several answers to it.
///
/// The output of `generate` is read as it is, and so are the samples that lm-evaluation-harness logs:
/// answers from `resps`, problems from `doc` or else by `doc_id`; of the rows that it writes for each
/// filter those of the first one.
///
/// Answers to rows of the benchmark that have no usable reference are counted and left out.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] for a key that answers do not have; [`Error::Data`] where no column
/// is recognized as the answer or one that is named is nowhere, with the line of a row that is of
/// another benchmark, or where more rows than [`MAX_LEFT_OUT`](crate::data::MAX_LEFT_OUT) allows hold
/// no answer.
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

/// Where a file has its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AnswerColumn {
    Name(String),
    /// The first of the usual ones that says something in a row.
    Usual,
    /// `resps` of lm-evaluation-harness.
    Harness,
}

/// A row with its place among the rows of the file, counted from 1.
struct HeldRow {
    place: usize,
    number: usize,
    row: Map<String, Value>,
}

/// Takes the rows of answers.
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
    /// The filter of lm-evaluation-harness whose rows are taken.
    filter: Option<String>,
    samples: Vec<usize>,
    answers: Vec<GradedAnswer>,
    without_reference: usize,
    other_filters: usize,
    tally: Tally,
    rows: usize,
}

/// What an answer is to.
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
    /// Whether `problem` is one, and not a prompt, which may be anything.
    is_problem: bool,
    /// Its row in the benchmark, counted from 1, where it says so.
    row: Option<usize>,
    /// Its row in its own file, counted from 1.
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

    /// Chooses the column of the answers on the first rows, and takes these.
    fn choose(&mut self) -> Result<()> {
        if self.column.is_some() || self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        let has = |test: &dyn Fn(&Map<String, Value>) -> bool| held.iter().any(|h| test(&h.row));
        let says = |name: &str| has(&|row| row.get(name).is_some_and(|value| !value.is_null()));
        // In other files `answer` is the reference.
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
                "Name it with solution=<column>; recognized are {}, and `answer` in the output of \
                 generate",
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

    /// The answers of a row.
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
            // The harness has a list of lists.
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

    /// The parts of a row; otherwise why it cannot be used.
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

    /// What a row's answer is to.
    fn target(&self, row: &AnswerRow, at: RowAt<'_>) -> Result<Target> {
        let failed = |what: String| -> Result<Target, Error> { Err(at.error(what, HINT)) };
        let named = |name: &str| -> String { name.chars().take(60).collect() };
        let of_id = row.id.as_ref().map(|id| self.by_id.get(id));
        let of_text = row.problem.as_ref().map(|problem| self.by_text.get(&normalized(problem)));
        match (of_id, of_text) {
            (Some(Some(a)), Some(Some(b))) if a != b => {
                let id = row.id.as_deref().unwrap_or_default();
                failed(format!("its id `{}` is of another problem", named(id)))
            }
            // A prompt may be anything. A problem may lack the options, have them in another layout,
            // or more around it, but it begins alike.
            (Some(Some(Target::Problem(place))), Some(None))
                if row.is_problem && self.differs(row, *place) =>
            {
                let (id, own) = (row.id.as_deref(), row.problem.as_deref());
                let (id, own) = (id.unwrap_or_default(), own.unwrap_or_default());
                failed(format!("`{}` is not the problem `{}`", named(own), named(id)))
            }
            (Some(Some(target)), _) | (_, Some(Some(target))) => Ok(*target),
            (None, None) => self.by_place(row.row.unwrap_or(row.place), at),
            // The harness says where a problem stands, whatever it makes of its text.
            (None, Some(None)) if row.row.is_some() => {
                let target = self.by_place(row.row.unwrap_or_default(), at)?;
                match target {
                    Target::Problem(place) if row.is_problem && self.differs(row, place) => {
                        let own = row.problem.as_deref().unwrap_or_default();
                        let name = &self.benchmark.name;
                        failed(format!("`{}` is no problem of {name}", named(own)))
                    }
                    target => Ok(target),
                }
            }
            _ => {
                let name = row.problem.as_deref().or(row.id.as_deref()).unwrap_or_default();
                failed(format!("`{}` is no problem of {}", named(name), self.benchmark.name))
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

/// Whether two texts are of different problems: neither holds the other, and they begin otherwise.
fn differ(a: &str, b: &str) -> bool {
    const BEGINNING: usize = 40;
    let letters = |text: &str| -> String {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (a, b) = (letters(a), letters(b));
    let alike = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    alike < BEGINNING && !a.contains(&b) && !b.contains(&a)
}
