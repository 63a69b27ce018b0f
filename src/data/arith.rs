//! A toy corpus: arithmetic problems, each with a correct short and a correct long solution.
//!
//! It makes it possible to try and test everything offline. The short solutions state a few intermediate
//! results. The long ones work digit by digit, check themselves, and occasionally make a mistake that they
//! notice and correct, like teachers with long chains of thought. Results on it say nothing about
//! mathematical ability.
//!
//! ```text
//! problem  Mia has 9 shells. She finds 6 more. Then she loses 5. How many shells does she have?
//! short    9 + 6 = 15. 15 - 5 = 10. The answer is \boxed{10}.
//! long     Let me think step by step. We start with 9. Now we add 6. 9 + 6 = 15, carry 1.
//!          0 + 0 + 1 = 1. That makes 15. Check: 15 - 6 = 9. Good. Now we take away 5. [...]
//! ```

use super::mixing::Source;
use super::reading::record::CotRecord;
use crate::random::Stream;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt::Write;

const NAMES: [(&str, &str); 12] = [
    ("Mia", "She"),
    ("Tom", "He"),
    ("Ana", "She"),
    ("Ben", "He"),
    ("Eva", "She"),
    ("Max", "He"),
    ("Lea", "She"),
    ("Sam", "He"),
    ("Zoe", "She"),
    ("Leo", "He"),
    ("Ida", "She"),
    ("Jan", "He"),
];

const THINGS: [&str; 12] = [
    "apples", "shells", "books", "coins", "stamps", "cards", "beads", "stones", "pens", "eggs",
    "cups", "plums",
];

const GAINS: [&str; 4] = ["finds", "buys", "gets", "wins"];
const LOSSES: [&str; 4] = ["gives away", "sells", "loses", "breaks"];

/// Settings of the toy corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArithConfig {
    /// Minimum and maximum number of operations in a problem.
    pub operations: (usize, usize),
    /// Largest starting number. The smallest is 1.
    pub start: i64,
    /// Largest number to add or subtract. The smallest is 1. Intermediate results are between 0 and `start`
    /// plus the maximum number of operations times `operand`.
    pub operand: i64,
}

impl Default for ArithConfig {
    fn default() -> Self {
        Self { operations: (2, 3), start: 10, operand: 7 }
    }
}

/// One problem with both of its solutions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArithProblem {
    /// The question.
    pub problem: String,
    /// A few intermediate results.
    pub short: String,
    /// Digit by digit, with checks and corrections.
    pub long: String,
    /// The result.
    pub answer: i64,
}

impl ArithProblem {
    /// Returns the short solution as a record with this id.
    pub fn short_record(&self, id: usize) -> CotRecord {
        self.record(id, &self.short)
    }

    /// Returns the long solution as a record with this id.
    pub fn long_record(&self, id: usize) -> CotRecord {
        self.record(id, &self.long)
    }

    fn record(&self, id: usize, solution: &str) -> CotRecord {
        CotRecord {
            system: None,
            earlier: vec![],
            id: Some(format!("arith-{id}")),
            problem: self.problem.clone(),
            solution: solution.to_owned(),
            answer: Some(self.answer.to_string()),
        }
    }
}

/// Training and test problems. No problem occurs twice.
#[derive(Clone, Debug)]
pub struct ArithCorpus {
    /// Problems to train on.
    pub train: Vec<ArithProblem>,
    /// Problems to test with.
    pub test: Vec<ArithProblem>,
}

impl ArithCorpus {
    /// Generates the corpus. It is a pure function of its arguments.
    ///
    /// If the configuration has too few distinct problems, the corpus has fewer than requested.
    ///
    /// # Panics
    /// If a bound of the configuration is below 1 or the operations' bounds are reversed.
    pub fn generate(config: &ArithConfig, train: usize, test: usize, seed: u64) -> Self {
        let (least, most) = config.operations;
        assert!(least >= 1 && most >= least, "operations {least} to {most}");
        assert!(config.start >= 1 && config.operand >= 1, "numbers start at 1");
        let mut seen = HashSet::new();
        let mut problems = vec![];
        let wanted = train + test;
        // The bound ends the search if the configuration has too few problems.
        for index in 0..(wanted as u64 * 20 + 1000) {
            if problems.len() == wanted {
                break;
            }
            let problem = generate(config, &mut Stream::new(seed, "arith", index));
            if seen.insert(problem.problem.clone()) {
                problems.push(problem);
            }
        }
        let train = problems.split_off(test.min(problems.len()));
        Self { train, test: problems }
    }
}

/// Returns the long and short solutions to the same problems, as sources `long` and `short`.
pub fn sources(problems: &[ArithProblem]) -> Vec<Source> {
    let records = |record: fn(&ArithProblem, usize) -> CotRecord| {
        problems.iter().enumerate().map(|(id, problem)| record(problem, id)).collect()
    };
    vec![
        Source::new("long", records(ArithProblem::long_record)),
        Source::new("short", records(ArithProblem::short_record)),
    ]
}

/// Texts with all words of the corpus, for [`TextTokenizer::builtin`].
///
/// [`TextTokenizer::builtin`]: super::chat::tokenizer::TextTokenizer::builtin
pub fn vocabulary() -> Vec<String> {
    let mut texts: Vec<String> = NAMES
        .iter()
        .map(|(name, pronoun)| format!("{name} {pronoun} {}", pronoun.to_lowercase()))
        .collect();
    texts.extend([&THINGS[..], &GAINS[..], &LOSSES[..]].concat().iter().map(|w| format!(" {w}")));
    let corpus = ArithCorpus::generate(&ArithConfig::default(), 200, 0, 0);
    texts.extend(corpus.train.into_iter().flat_map(|p| [p.problem, p.short, p.long]));
    texts.push("Problem Solution".into());
    texts
}

fn generate(config: &ArithConfig, random: &mut Stream) -> ArithProblem {
    let (least, most) = config.operations;
    let count = random.between(least as i64, most as i64);
    let start = random.between(1, config.start);
    let mut value = start;
    let steps: Vec<i64> = (0..count)
        .map(|_| {
            let gain = value == 0 || random.below(2) == 0;
            let step = match gain {
                true => random.between(1, config.operand),
                false => -random.between(1, config.operand.min(value)),
            };
            value += step;
            step
        })
        .collect();
    let problem = match random.below(3) {
        0 => expression(start, &steps),
        _ => story(start, &steps, random),
    };
    ArithProblem {
        problem,
        short: short(start, &steps),
        long: long(start, &steps, random),
        answer: value,
    }
}

fn sign(step: i64) -> char {
    if step < 0 { '-' } else { '+' }
}

fn expression(start: i64, steps: &[i64]) -> String {
    let terms: String = steps.iter().map(|s| format!(" {} {}", sign(*s), s.abs())).collect();
    format!("What is {start}{terms}?")
}

fn story(start: i64, steps: &[i64], random: &mut Stream) -> String {
    let (name, pronoun) = random.pick(&NAMES);
    let things = random.pick(&THINGS);
    let mut text = format!("{name} has {start} {things}.");
    for (index, step) in steps.iter().enumerate() {
        let (verb, more) = match *step > 0 {
            true => (random.pick(&GAINS), " more"),
            false => (random.pick(&LOSSES), ""),
        };
        let lead = match index {
            0 => (*pronoun).to_owned(),
            _ => format!("Then {}", pronoun.to_lowercase()),
        };
        let _ = write!(text, " {lead} {verb} {}{more}.", step.abs());
    }
    let _ = write!(text, " How many {things} does {} have?", pronoun.to_lowercase());
    text
}

fn short(start: i64, steps: &[i64]) -> String {
    let mut value = start;
    let mut text = String::new();
    for step in steps {
        let next = value + step;
        let _ = write!(text, "{value} {} {} = {next}. ", sign(*step), step.abs());
        value = next;
    }
    let _ = write!(text, "The answer is \\boxed{{{value}}}.");
    text
}

fn long(start: i64, steps: &[i64], random: &mut Stream) -> String {
    let mut value = start;
    let mut text = format!("Let me think step by step. We start with {start}.");
    for step in steps {
        let next = value + step;
        let verb = if *step < 0 { "take away" } else { "add" };
        let _ = write!(text, " Now we {verb} {}.", step.abs());
        text.push_str(&by_digits(value, *step));
        // A mistake that the following check finds and corrects.
        if random.below(6) == 0 {
            let wrong = if next == 0 || random.below(2) == 0 { next + 1 } else { next - 1 };
            let _ = write!(
                text,
                " That makes {wrong}. Wait, let me check: {wrong} {} {} = {}, not {value}. So it must be {next}.",
                sign(-step),
                step.abs(),
                wrong - step
            );
        } else {
            let _ = write!(
                text,
                " That makes {next}. Check: {next} {} {} = {value}. Good.",
                sign(-step),
                step.abs()
            );
        }
        value = next;
    }
    let _ = write!(text, " So the answer is \\boxed{{{value}}}.");
    text
}

/// Adds or subtracts a step digit by digit, from the right.
fn by_digits(value: i64, step: i64) -> String {
    let (mut a, mut b) = (value, step.abs());
    let adds = step > 0;
    let mut carry = 0;
    let mut text = String::new();
    while a > 0 || b > 0 || carry > 0 {
        let (x, y) = (a % 10, b % 10);
        let with_carry =
            if carry > 0 { format!(" {} 1", if adds { '+' } else { '-' }) } else { String::new() };
        if adds {
            let sum = x + y + carry;
            let _ = write!(text, " {x} + {y}{with_carry} = {sum}");
            carry = sum / 10;
            text.push_str(match carry {
                0 => ".",
                _ => ", carry 1.",
            });
        } else {
            let mut difference = x - y - carry;
            carry = i64::from(difference < 0);
            match carry {
                0 => {
                    let _ = write!(text, " {x} - {y}{with_carry} = {difference}.");
                }
                _ => {
                    difference += 10;
                    let _ = write!(text, " 1{x} - {y}{with_carry} = {difference}, borrow 1.");
                }
            }
        }
        a /= 10;
        b /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digit_by_digit_arithmetic_is_right() {
        assert_eq!(by_digits(14, 8), " 4 + 8 = 12, carry 1. 1 + 0 + 1 = 2.");
        assert_eq!(by_digits(22, -5), " 12 - 5 = 7, borrow 1. 2 - 0 - 1 = 1.");
        assert_eq!(by_digits(9, 1), " 9 + 1 = 10, carry 1. 0 + 0 + 1 = 1.");
    }
}
