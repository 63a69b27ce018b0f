//! Benchmarks in their published formats.
//!
//! | benchmark | problem | answer |
//! | --- | --- | --- |
//! | MATH-500, AIME24, AMC23, GaoKao | `problem` or `question` | `answer` |
//! | OpenMathReasoning | `problem` | `expected_answer` |
//! | DAPO | `prompt`, a list of messages | `reward_model.ground_truth` |
//! | GSM8K | `question` | `answer`, a solution that ends in `#### n` |
//! | SVAMP | `Body` and `Question` | `Answer` |
//! | MAWPS | `input` | `target` |
//! | OlympiadBench | `context`, `question` | `final_answer`, a list |
//! | Minerva | `problem` | the box in `solution` |
//! | SAT, other multiple choice | `question`, `options` | `Answer`, a letter |
//! | MMLU | `question`, `choices`, a list | `answer`, an index from 0 |
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

/// The instruction after a problem, so that the final answer can be found.
pub const INSTRUCTION: &str =
    r"Please reason step by step, and put your final answer within \boxed{}.";
/// The instruction after a multiple-choice problem.
pub const CHOICE_INSTRUCTION: &str =
    r"Please reason step by step, and put the letter of your choice within \boxed{}.";

/// A problem of a benchmark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchmarkProblem {
    /// The id in the file, or the line number.
    pub id: String,
    /// The system message, if the problem comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The text of the problem, with its context and options if it has them.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// Where to look for the final answer in a text.
    #[serde(default)]
    pub kind: AnswerKind,
    /// The row in the file, counted from 1 without blank lines.
    #[serde(default)]
    pub row: usize,
}

/// A row of a benchmark that is left out. It is kept to recognize answers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// The row in the file, counted from 1.
    pub row: usize,
    /// The id, if the row has one.
    pub id: Option<String>,
    /// The problem, if the row has one.
    pub problem: Option<String>,
}

/// A benchmark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Benchmark {
    /// The name: the file name without its extension.
    pub name: String,
    /// The problems in the order of the file, with unique ids.
    pub problems: Vec<BenchmarkProblem>,
    /// Whether the ids come from the file rather than from line numbers.
    #[serde(default)]
    pub has_ids: bool,
    /// Lines of rows that are left out because they have no answer.
    #[serde(default)]
    pub without_answer: Vec<usize>,
    /// Rows that are left out because they cannot be used, by reason.
    #[serde(default)]
    pub left_out: LeftOut,
    /// All rows that are left out.
    #[serde(default)]
    pub skipped: Vec<SkippedRow>,
    /// For a dataset on the Hub, the requested name and the same name with the commit.
    #[serde(default)]
    pub read_as: Option<[PathBuf; 2]>,
}

impl Benchmark {
    /// Returns the number of rows in the file, including those that are left out.
    pub fn rows(&self) -> usize {
        self.problems.len() + self.skipped.len()
    }

    /// Returns a copy with only the first problems, if a limit is given.
    pub fn first(&self, limit: Option<usize>) -> Self {
        let mut first = self.clone();
        first.problems.truncate(limit.unwrap_or(usize::MAX));
        first
    }

    /// Makes a benchmark of questions.
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

/// Returns the letter of the option that an answer gives: as a letter, as the text of an option or an equal
/// text, or as an index from 0. A JSON number is an index rather than a text, since MMLU has indices of
/// options that are numeric texts. If the options are JSON numbers, too, it is one of them rather than an
/// index.
pub(super) fn chosen(
    answer: Option<&Value>,
    reference: &str,
    options: &[(char, &Value)],
) -> Result<String, String> {
    let letters = || options.iter().map(|(letter, _)| *letter);
    let alike =
        options.iter().filter(|(_, option)| plain_text(option).as_deref() == Some(reference));
    let alike: Vec<char> = alike.map(|(letter, _)| *letter).collect();
    // A number in the box of a solution is a value, not an index.
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
                0 => format!("its answer `{shown}` is not one of its options {letters}"),
                _ => format!("its answer `{shown}` is the text of several of its options"),
            }
        })
}
