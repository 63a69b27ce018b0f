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
//! | MMLU | `question`, `choices`, a list | `answer`, a place in it, counted from 0 |
//! | MedQA | `question`, `options`, an object of letters | `answer`, the text of an option |

use super::grade::Question;
use super::math::{Extractor, extract, final_answer, same_answer};
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// What a model is asked beside the problem, so that its answer can be found.
pub const INSTRUCTION: &str =
    r"Please reason step by step, and put your final answer within \boxed{}.";
/// The same for multiple choice.
pub const CHOICE_INSTRUCTION: &str =
    r"Please reason step by step, and put the letter of your choice within \boxed{}.";

/// Where the answer to a problem is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Where it is stated: in a box, after `####`, after "the final answer is".
    #[default]
    Stated,
    /// There, or else the last number of the text, as is usual for word problems.
    LastNumber,
    /// There, or else the letter of an option.
    Choice,
}

impl AnswerKind {
    /// The final answer of a text, if there is one.
    pub fn answer(self, text: &str) -> Option<String> {
        match self {
            Self::Stated => final_answer(text),
            Self::LastNumber => {
                final_answer(text).or_else(|| extract(text, &[Extractor::LastNumber]))
            }
            Self::Choice => {
                let letters = || Extractor::Choice(('A'..='J').collect());
                let letter = |text: &str| extract(text, &[letters()]);
                // "(B) 7" in a box is the letter B, and "A as shown" is A: there it is no article.
                let of_stated =
                    |stated: String| letter(&format!("answer: {stated}")).unwrap_or(stated);
                // "The answer is B) 12" is B: what follows a phrase is looked at for its letter first.
                let boxed = extract(text, &[Extractor::Boxed, Extractor::Gsm8k]);
                boxed.map(of_stated).or_else(|| letter(text)).or_else(|| final_answer(text))
            }
        }
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchmarkProblem {
    /// Its name in the file, or its line.
    pub id: String,
    /// Its text, with context and options where it has them.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// Where an answer to it is looked for.
    #[serde(default)]
    pub kind: AnswerKind,
    /// Its row in the file, counted from 1; blank lines are none.
    #[serde(default)]
    pub row: usize,
}

/// A benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Benchmark {
    /// Its name: that of the file without its ending.
    pub name: String,
    /// Its problems, in the file's order; each has an id of its own.
    pub problems: Vec<BenchmarkProblem>,
    /// Whether the ids are the file's, and not its lines.
    #[serde(default)]
    pub has_ids: bool,
    /// Lines of rows that are left out, since they have no answer.
    #[serde(default)]
    pub without_answer: Vec<usize>,
}

impl Benchmark {
    /// Reads a JSONL file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] with the line for a row without a problem, or whose answer is
    /// none of its options; or a file in which no row has an answer.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let (mut problems, mut without_answer) = (vec![], vec![]);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let mut ids = HashMap::new();
        let mut has_ids = true;
        for (row_number, (index, line)) in lines.enumerate() {
            let failed = |what: String| {
                let hint = "A row has a problem (problem, question, input) and an answer (answer, \
                            target, final_answer, solution); of a list of options it is a letter, \
                            the text of one option, or its place counted from 0";
                Error::data(Place::line(path, index + 1), what, hint)
            };
            let row: Map<String, Value> = serde_json::from_str(line)
                .map_err(|e| failed(format!("it is not a JSON object: {e}")))?;
            let Some((mut problem, named)) = problem(&row, index + 1).map_err(failed)? else {
                without_answer.push(index + 1);
                continue;
            };
            problem.row = row_number + 1;
            has_ids &= named;
            if let Some(other) = ids.insert(problem.id.clone(), index + 1) {
                return Err(failed(format!("its id `{}` is that of line {other}", problem.id)));
            }
            problems.push(problem);
        }
        if problems.is_empty() {
            let what = match without_answer.first() {
                Some(line) => format!("no row has an answer; the first is line {line}"),
                None => "it has no rows".into(),
            };
            let hint = "An answer is in answer, target, final_answer, or in a box in solution";
            return Err(Error::data(Place::file(path), what, hint));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, problems, has_ids, without_answer })
    }

    /// Rows of the file, those without an answer included.
    pub fn rows(&self) -> usize {
        self.problems.len() + self.without_answer.len()
    }

    /// The first problems, where a limit is given.
    pub fn first(&self, limit: Option<usize>) -> Self {
        let mut first = self.clone();
        first.problems.truncate(limit.unwrap_or(usize::MAX));
        first
    }

    /// Questions as a benchmark.
    pub fn of_questions(name: &str, questions: &[Question], kind: AnswerKind) -> Self {
        let problem = |(index, question): (usize, &Question)| BenchmarkProblem {
            id: (index + 1).to_string(),
            problem: question.problem.clone(),
            reference: question.reference.clone(),
            kind,
            row: index + 1,
        };
        let problems = questions.iter().enumerate().map(problem).collect();
        Self { name: name.to_owned(), problems, has_ids: false, without_answer: vec![] }
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

/// The options that a row has one by one, with their letters: a list's in its order, an object's by
/// its keys. Those that are null are not there: some writers fill an object's missing keys so.
fn lettered(options: Option<&Value>) -> Result<Vec<(char, &Value)>, String> {
    let mut lettered: Vec<(char, &Value)> = match options {
        Some(Value::Array(options)) => ('A'..='Z').zip(options).collect(),
        Some(Value::Object(options)) => {
            let letter = |key: &str| match key.trim_matches([' ', '(', ')', '.', ':']).as_bytes() {
                [byte] if byte.is_ascii_alphabetic() => Ok(char::from(byte.to_ascii_uppercase())),
                _ => Err(format!("the key `{key}` of its options is no letter")),
            };
            // By their keys, whatever the order in the file.
            let options: std::collections::BTreeMap<_, _> = options.iter().collect();
            let options = options.into_iter().map(|(key, option)| Ok((letter(key)?, option)));
            options.collect::<Result<_, String>>()?
        }
        _ => vec![],
    };
    lettered.retain(|(_, option)| !option.is_null());
    lettered.sort_by_key(|(letter, _)| *letter);
    match lettered.iter().find(|(_, option)| text(option).is_none()) {
        Some((letter, _)) => Err(format!("its option {letter} is no text")),
        None => Ok(lettered),
    }
}

/// The letter of the option that an answer names: by its letter, its text, what is equal to its text, or
/// its place, counted from 0. A number in JSON is a place before it is a text, for MMLU has places beside texts that are
/// numbers; where options are numbers in JSON too, it is one of them first.
fn chosen(
    answer: Option<&Value>,
    reference: &str,
    options: &[(char, &Value)],
) -> Result<String, String> {
    let letters = || options.iter().map(|(letter, _)| *letter);
    let alike = options.iter().filter(|(_, option)| text(option).as_deref() == Some(reference));
    let alike: Vec<char> = alike.map(|(letter, _)| *letter).collect();
    // A number in the box of a solution is a value and no place.
    let digits = answer.is_some() && reference.bytes().all(|byte| byte.is_ascii_digit());
    let place = || {
        let place = reference.parse::<usize>().ok().filter(|_| digits)?;
        let letter = ('A'..='Z').nth(place)?;
        letters().find(|other| *other == letter)
    };
    let place_first = answer.is_some_and(Value::is_number)
        && !options.iter().any(|(_, option)| option.is_number());
    // "3" is the option "$3$".
    let equal = || {
        let mut equal = options.iter().filter(|(_, option)| {
            text(option).is_some_and(|option| same_answer(&option, reference))
        });
        equal.next().filter(|_| equal.next().is_none()).map(|(letter, _)| *letter)
    };
    // "b", "(B)" and "(B) twelve".
    let named = |letter: &char| {
        let letter = letter.to_string();
        reference.eq_ignore_ascii_case(&letter) || same_answer(&letter, reference)
    };
    letters()
        .find(|letter| reference.chars().eq([*letter]))
        .or_else(|| place().filter(|_| place_first))
        .or_else(|| match alike[..] {
            [letter] => Some(letter),
            [] => equal().or_else(place).or_else(|| letters().find(named)),
            _ => None,
        })
        .map(String::from)
        .ok_or_else(|| {
            let shown: String = reference.chars().take(60).collect();
            let letters: String = letters().collect();
            match alike.len() {
                0 => format!("its answer `{shown}` is none of its options {letters}"),
                _ => format!("its answer `{shown}` is the text of several of its options"),
            }
        })
}

/// The problem of a row and whether its id is the row's own; `None` where it has no answer.
fn problem(
    row: &Map<String, Value>,
    line: usize,
) -> Result<Option<(BenchmarkProblem, bool)>, String> {
    let get = |names: &[&str]| field(row, names).and_then(text);
    let mut problem =
        get(&["problem", "question", "Question", "input", "prompt"]).ok_or("it has no problem")?;
    if let Some(body) = get(&["context", "Body"]) {
        // SVAMP's bodies lack the full stop before the question.
        let end = if body.ends_with(['.', '?', '!', ':']) { "" } else { "." };
        problem = format!("{body}{end} {problem}");
    }
    let written = field(row, &["options", "choices"]);
    let options = lettered(written)?;
    let shown = match options.is_empty() {
        true => written.and_then(text),
        false => {
            let texts = options.iter().filter_map(|(letter, option)| {
                text(option).map(|option| format!("{letter}) {option}"))
            });
            Some(texts.collect::<Vec<_>>().join("\n"))
        }
    };
    if let Some(shown) = &shown {
        problem = format!("{problem}\n{shown}");
    }
    let given = ["answer", "Answer", "target", "final_answer", "ground_truth"];
    let answer = field(row, &given);
    let reference = match answer {
        Some(Value::Array(answers)) => {
            Some(answers.iter().filter_map(text).collect::<Vec<_>>().join(", "))
        }
        Some(answer) => text(answer),
        None => get(&["solution"]).and_then(|solution| final_answer(&solution)),
    };
    let Some(reference) = reference.filter(|answer| !answer.is_empty()) else { return Ok(None) };
    // GSM8K's come with their working; it, SVAMP and MAWPS ask for a number.
    let is_word_problem =
        reference.contains("####") || row.contains_key("Body") || row.contains_key("target");
    let reference = match reference.contains("####") {
        true => final_answer(&reference).unwrap_or(reference),
        false => reference,
    };
    let reference = match options.is_empty() {
        true => reference,
        false => chosen(answer, &reference, &options)?,
    };
    let id = get(&["unique_id", "id", "ID", "idx"]);
    let named = id.is_some();
    let id = id.unwrap_or_else(|| line.to_string());
    let kind = match shown {
        Some(_) => AnswerKind::Choice,
        None if is_word_problem => AnswerKind::LastNumber,
        None => AnswerKind::Stated,
    };
    Ok(Some((BenchmarkProblem { id, problem, reference, kind, row: 0 }, named)))
}
