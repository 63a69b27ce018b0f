//! Benchmarks in the shapes that they are published in.
//!
//! | benchmark | problem | answer |
//! | --- | --- | --- |
//! | MATH-500, AIME24, AMC23, GaoKao | `problem` or `question` | `answer` |
//! | OpenMathReasoning | `problem` | `expected_answer` |
//! | DAPO | `prompt`, a list of messages | `reward_model.ground_truth` |
//! | GSM8K | `question` | `answer`, with its working and `#### n` |
//! | SVAMP | `Body` and `Question` | `Answer` |
//! | MAWPS | `input` | `target` |
//! | OlympiadBench | `context`, `question` | `final_answer`, a list |
//! | Minerva | `problem` | the box in `solution` |
//! | SAT, other multiple choice | `question`, `options` | `Answer`, a letter |
//! | MMLU | `question`, `choices`, a list | `answer`, a place in it, counted from 0 |
//! | ARC | `question`, `choices`, lists of texts and labels | `answerKey` |
//! | MedQA | `question`, `options`, an object of letters | `answer`, the text of an option |

pub use super::math::AnswerKind;
use super::math::same_answer;
use super::question::Question;
use crate::data::LeftOut;
use crate::data::reading::problem_text::plain_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// What a model is asked beside the problem, so that its answer can be found.
pub const INSTRUCTION: &str =
    r"Please reason step by step, and put your final answer within \boxed{}.";
/// The same for multiple choice.
pub const CHOICE_INSTRUCTION: &str =
    r"Please reason step by step, and put the letter of your choice within \boxed{}.";

/// One problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchmarkProblem {
    /// Its name in the file, or its line.
    pub id: String,
    /// The system's text, where it comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
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

/// A row of a benchmark that is left out, so that an answer to it can be told from one to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// Its row in the file, counted from 1.
    pub row: usize,
    /// Its id, where it has one.
    pub id: Option<String>,
    /// Its problem, where it has one.
    pub problem: Option<String>,
}

/// A benchmark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Rows that are left out since they cannot be used, by reason.
    #[serde(default)]
    pub left_out: LeftOut,
    /// All rows that are left out.
    #[serde(default)]
    pub skipped: Vec<SkippedRow>,
    /// Of a dataset on the hub the name that it was asked for by, and the same with its commit.
    #[serde(default)]
    pub read_as: Option<[PathBuf; 2]>,
}

impl Benchmark {
    /// Rows of the file, those that are left out included.
    pub fn rows(&self) -> usize {
        self.problems.len() + self.skipped.len()
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
            system: question.system.clone(),
            problem: question.problem.clone(),
            reference: question.reference.clone(),
            kind,
            row: index + 1,
        };
        let problems = questions.iter().enumerate().map(problem).collect();
        Self { name: name.to_owned(), problems, ..Self::default() }
    }
}

/// The letter of the option that an answer names: by its letter, its text, what is equal to its text, or
/// its place, counted from 0. A number in JSON is a place before it is a text, for MMLU has places beside texts that are
/// numbers; where options are numbers in JSON too, it is one of them first.
pub(super) fn chosen(
    answer: Option<&Value>,
    reference: &str,
    options: &[(char, &Value)],
) -> Result<String, String> {
    let letters = || options.iter().map(|(letter, _)| *letter);
    let alike =
        options.iter().filter(|(_, option)| plain_text(option).as_deref() == Some(reference));
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
            plain_text(option).is_some_and(|option| same_answer(&option, reference))
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
