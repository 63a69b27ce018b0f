//! Converts the rows of a file to the problems of a benchmark.

use super::benchmark::{AnswerKind, Benchmark, BenchmarkProblem, SkippedRow, chosen};
use super::math::final_answer;
use crate::data::reading::asked::{NamedColumns, RowFault, RowFields};
use crate::data::reading::bare_solution;
use crate::data::reading::left_out::{Limit, Tally, Unusable};
use crate::data::reading::problem_text::{Options, plain_text};
use crate::data::reading::row_at::{FileColumn, RowAt, Unit};
use crate::data::reading::rows::{RowSink, read_files};
use crate::data::{ColumnMap, DataFiles};
use crate::error::{Error, Place, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

impl Benchmark {
    /// Reads a file of problems: JSONL, a JSON array, CSV, TSV, or (feature `parquet`) Parquet.
    ///
    /// # Errors
    /// Same as [`Benchmark::read_with`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, &ColumnMap::default())
    }

    /// Reads a file of problems with the given column names: `problem`, `answer`, `id`, `context`, `options`,
    /// `system`, and `solution`, whose box has the answer if there is no `answer`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] if more rows than [`MAX_LEFT_OUT`](crate::data::MAX_LEFT_OUT) allows
    /// cannot be used (no problem, or an answer that is not among the options), if two rows have the same id,
    /// or if no row has an answer; [`Error::Config`] for a key that benchmarks do not have.
    pub fn read_with(path: &Path, columns: &ColumnMap) -> Result<Self> {
        Self::read_files(&DataFiles::file(path), columns)
    }

    /// Same as [`Benchmark::read_with`], for several files as if they were one.
    ///
    /// # Errors
    /// Same as [`Benchmark::read_with`].
    pub fn read_files(files: &DataFiles, columns: &ColumnMap) -> Result<Self> {
        let mut rows = BenchmarkRows::new(files, columns)?;
        let read = read_files(files.files(), &mut rows)?;
        read.explain(files.name(), rows.finish())
    }
}

const HINT: &str = "Give each row a problem (problem, question, input) and an answer (answer, target, \
                    final_answer, expected_answer, solution), or name other columns; for a list of \
                    options, the answer is a letter, the text of an option, or its index from 0";

/// Collects the rows of a benchmark in order.
struct BenchmarkRows<'a> {
    path: &'a Path,
    columns: &'a ColumnMap,
    benchmark: Benchmark,
    /// The line of each id.
    ids: HashMap<String, usize>,
    named: NamedColumns,
    tally: Tally,
    rows: usize,
    /// Index of the current file, from 0.
    file: usize,
}

/// A parsed row.
enum Found {
    Problem { problem: BenchmarkProblem, has_id: bool },
    WithoutAnswer,
}

impl RowSink for BenchmarkRows<'_> {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn columns(&mut self, _: Vec<FileColumn>) {}

    fn row(&mut self, at: RowAt<'_>, row: Map<String, Value>) -> Result<()> {
        self.rows += 1;
        self.named.see(&row);
        let fields = RowFields { columns: self.columns, row: &row };
        // Each file counts its rows from 1.
        let number = match self.file {
            0 => at.number.to_string(),
            file => format!("{}:{}", file + 1, at.number),
        };
        match problem(&fields, number) {
            Ok(Found::Problem { mut problem, has_id }) => {
                problem.row = self.rows;
                self.benchmark.has_ids &= has_id;
                if let Some(other) = self.ids.insert(problem.id.clone(), at.number) {
                    let place = if at.unit == Unit::Line { "line" } else { "row" };
                    let what =
                        format!("its id `{}` is already used in {place} {other}", problem.id);
                    return Err(at.error(what, HINT));
                }
                self.benchmark.problems.push(problem);
            }
            Ok(Found::WithoutAnswer) => {
                self.benchmark.without_answer.push(at.number);
                self.skip(&fields);
            }
            Err((reason, what)) => {
                self.skip(&fields);
                self.tally.add(Unusable::new(reason, at.error(what, HINT)));
            }
        }
        Ok(())
    }

    fn next_file(&mut self) {
        self.file += 1;
    }

    fn is_later_file(&self) -> bool {
        self.file > 0
    }

    fn unusable(&mut self, unusable: Unusable) {
        self.rows += 1;
        self.benchmark.skipped.push(SkippedRow { row: self.rows, id: None, problem: None });
        self.tally.add(unusable);
    }
}

impl<'a> BenchmarkRows<'a> {
    fn new(files: &'a DataFiles, columns: &'a ColumnMap) -> Result<Self> {
        let keys =
            ["problem", "answer", "solution", "id", "context", "options", "system", "messages"];
        columns.check_keys("benchmarks", &keys)?;
        let path = files.name();
        let benchmark =
            Benchmark { name: files.stem().to_owned(), has_ids: true, ..Benchmark::default() };
        let (ids, tally) = (HashMap::new(), Tally::default());
        let named = NamedColumns::new(columns);
        Ok(Self { path, columns, benchmark, ids, named, tally, rows: 0, file: 0 })
    }

    fn skip(&mut self, fields: &RowFields<'_>) {
        let problem = fields.asked().ok().map(|asked| asked.problem);
        let row = SkippedRow { row: self.rows, id: fields.id(), problem };
        self.benchmark.skipped.push(row);
    }

    fn finish(self) -> Result<Benchmark> {
        let Self { path, mut benchmark, named, tally, rows, .. } = self;
        benchmark.left_out = tally.finish(path, rows, Limit::USUAL)?;
        named.check(path)?;
        if benchmark.problems.is_empty() {
            let what = match benchmark.without_answer.first() {
                Some(line) => format!("no row has an answer; the first is line {line}"),
                None => "it has no rows".into(),
            };
            let hint = "Put answers in answer, target, final_answer, expected_answer, or a box in \
                        solution, or name another column";
            return Err(Error::data(Place::file(path), what, hint));
        }
        Ok(benchmark)
    }
}

/// Parses the problem of a row.
fn problem(fields: &RowFields<'_>, number: String) -> Result<Found, RowFault> {
    let asked = fields.asked()?;
    let given = [
        "answer",
        "Answer",
        "target",
        "final_answer",
        "expected_answer",
        "ground_truth",
        "gold_answer",
        "answerKey",
        "reward_model.ground_truth",
    ];
    let answer = fields.field(&fields.columns.answer, &given);
    let reference = match answer.as_deref() {
        Some(Value::Array(answers)) => {
            Some(answers.iter().filter_map(plain_text).collect::<Vec<_>>().join(", "))
        }
        Some(answer) => plain_text(answer),
        None => fields
            .text(&fields.columns.solution, &["solution", "ground_truth_solution"])
            .and_then(|solution| final_answer(&solution))
            .or_else(|| bare_solution(fields.row).filter(|_| fields.columns.solution.is_none())),
    };
    let Some(reference) = reference.filter(|answer| !answer.is_empty()) else {
        return Ok(Found::WithoutAnswer);
    };
    // GSM8K's answers include the solution. GSM8K, SVAMP, and MAWPS ask for a number.
    let is_word_problem = reference.contains("####")
        || fields.row.contains_key("Body")
        || fields.row.contains_key("target");
    let reference = match reference.contains("####") {
        true => final_answer(&reference).unwrap_or(reference),
        false => reference,
    };
    let written = fields.options();
    let options = Options::of(written.as_deref()).unwrap_or_default();
    let reference = match options.lettered.is_empty() {
        true => reference,
        false => chosen(answer.as_deref(), &reference, &options.lettered)
            .map_err(|what| ("answer not among the options", what))?,
    };
    let id = fields.id();
    let has_id = id.is_some();
    let kind = match options.text {
        Some(_) => AnswerKind::Choice,
        None if is_word_problem => AnswerKind::LastNumber,
        None => AnswerKind::Stated,
    };
    let problem = BenchmarkProblem {
        id: id.unwrap_or(number),
        system: asked.system,
        problem: asked.problem,
        reference,
        kind,
        row: 0,
    };
    Ok(Found::Problem { problem, has_id })
}
