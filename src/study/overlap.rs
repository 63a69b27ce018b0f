//! Test problems that are also training problems: counted in warnings, or left out.

use crate::context::{Context, Task};
use crate::data::{OverlapKind, TrainingProblems, plain};
use crate::error::{Error, Result};
use crate::eval::Benchmark;
use crate::recipe::Prepared;
use std::collections::HashSet;

/// Benchmarks, and the number of problems left out of each.
type Kept = (Vec<Benchmark>, Vec<(String, usize)>);

/// A named set of test problems.
type Tested<'a> = (&'a str, Vec<&'a str>);

/// A student's data in a comparison and its pretraining problems.
pub(super) type Trained<'a> = (&'a Prepared, &'a [String]);

/// Test problems that are also training problems.
#[derive(Default)]
pub(super) struct Overlaps {
    /// Warnings for the report.
    pub warnings: Vec<String>,
    /// Whether a test problem is a training problem, word for word.
    pub same: bool,
    /// Whether a test problem shares many consecutive words with a training problem.
    pub alike: bool,
}

impl Overlaps {
    pub(super) fn extend(&mut self, other: Self) {
        self.warnings.extend(other.warnings);
        self.same |= other.same;
        self.alike |= other.alike;
    }

    /// Returns the report's statement about the test problems.
    pub(super) fn tested_on(&self) -> &'static str {
        match (self.same, self.alike) {
            (false, false) => "Tested on problems that no student was trained on",
            (false, true) => {
                "Tested on problems whose exact text no student was trained on; the warnings below \
                 count those that share 13 consecutive words with a training problem"
            }
            (true, _) => {
                "Tested on problems that include some training problems; the warnings below count them"
            }
        }
    }
}

/// Returns the training problems.
fn training_problems(prepared: &Prepared) -> impl ExactSizeIterator<Item = &str> {
    let pairs = prepared.mixture.pairs();
    (0..pairs.len()).map(|index| pairs.problem(index))
}

/// Finds the test problems of a comparison that are also training problems, including pretraining.
///
/// # Errors
/// [`Error::Stopped`].
pub(super) fn contamination(
    comparison: &str,
    students: &[Trained<'_>],
    benchmarks: &[Benchmark],
    context: &Context<'_>,
) -> Result<Overlaps> {
    let mut found = Overlaps::default();
    for (number, (prepared, pretrained)) in students.iter().enumerate() {
        // Students with the same data get the same warnings.
        let earlier = students[..number].iter();
        let is_same = |(other, before): &Trained<'_>| {
            training_problems(other).eq(training_problems(prepared))
                && other.questions == prepared.questions
                && before == pretrained
        };
        if earlier.clone().any(is_same) {
            continue;
        }
        let held_out = prepared.questions.iter().map(|question| question.problem.as_str());
        let mut tests: Vec<Tested<'_>> = vec![("the held-out set", held_out.collect())];
        tests.extend(benchmarks.iter().map(|benchmark| {
            let problems = benchmark.problems.iter().map(|problem| problem.problem.as_str());
            (benchmark.name.as_str(), problems.collect())
        }));
        let before = pretrained.iter().map(String::as_str);
        let trained = before.chain(training_problems(prepared)).collect();
        found.extend(shared(comparison, trained, &tests, context)?);
    }
    found.warnings.sort();
    found.warnings.dedup();
    Ok(found)
}

fn shared(
    comparison: &str,
    training: Vec<&str>,
    tests: &[Tested<'_>],
    context: &Context<'_>,
) -> Result<Overlaps> {
    let total = training.len() + tests.iter().map(|(_, problems)| problems.len()).sum::<usize>();
    let mut progress = context.task(Task::FindOverlaps, total as u64);
    let mut index = TrainingProblems::default();
    for problem in training {
        index.add(problem);
        progress.advance()?;
    }
    let mut found = Overlaps::default();
    for (tested, problems) in tests {
        let (mut same, mut alike, of) = (0, 0, problems.len());
        for (number, problem) in problems.iter().enumerate() {
            match index.overlap(number, problem).map(|overlap| overlap.kind) {
                Some(OverlapKind::SameText) => same += 1,
                Some(OverlapKind::SharedWords) => alike += 1,
                None => {}
            }
            progress.advance()?;
        }
        found.same |= same > 0;
        found.alike |= alike > 0;
        if same > 0 {
            found.warnings.push(format!(
                "{comparison}: {same} of {of} problems in {tested} are training problems, word for word"
            ));
        }
        if alike > 0 {
            found.warnings.push(format!(
                "{comparison}: {alike} of {of} problems in {tested} share 13 consecutive words with a \
                 training problem (problems made from the same template do, too)"
            ));
        }
    }
    Ok(found)
}

/// Removes from the benchmarks the problems that any of the students trains on or was pretrained on, and
/// returns how many those are. All arms of all students are then tested on the same problems.
///
/// # Errors
/// [`Error::Config`] if no problem of a benchmark is left.
pub(super) fn without_trained(
    comparison: &str,
    students: &[Trained<'_>],
    benchmarks: &[Benchmark],
) -> Result<Kept> {
    let of_student = |(prepared, pretrained): &Trained<'_>| -> Vec<String> {
        let before = pretrained.iter().map(String::as_str);
        before.chain(training_problems(prepared)).map(plain).collect()
    };
    let trained: HashSet<String> = students.iter().flat_map(of_student).collect();
    let (mut kept, mut left_out) = (vec![], vec![]);
    for benchmark in benchmarks {
        let mut benchmark = benchmark.clone();
        let before = benchmark.problems.len();
        benchmark.problems.retain(|problem| !trained.contains(&plain(&problem.problem)));
        if benchmark.problems.is_empty() && before > 0 {
            return Err(Error::config(
                "leave_out_trained",
                format!(
                    "{comparison}: all {before} problems in {} are training problems",
                    benchmark.name
                ),
                "Train on only some of them (data.problems), or use another benchmark",
            ));
        }
        left_out.push((benchmark.name.clone(), before - benchmark.problems.len()));
        kept.push(benchmark);
    }
    Ok((kept, left_out))
}

#[cfg(test)]
mod tests {
    use super::shared;
    use crate::context::Context;

    #[test]
    fn a_report_says_of_the_problems_only_what_is_so() {
        let words = "a b c d e f g h i j k l m n";
        let alike = format!("{words} other");
        let of = |tested: &str| {
            let tests = [("bench", vec![tested])];
            shared("Long", vec![words], &tests, &Context::default()).unwrap()
        };
        let [none, alike, same] = ["nothing of it", &alike, words].map(of);
        assert!(none.tested_on().ends_with("that no student was trained on"));
        assert!(alike.tested_on().contains("exact text"), "{:?}", alike.warnings);
        assert!(same.tested_on().contains("some training problems"), "{:?}", same.warnings);
        assert_eq!([none, alike, same].map(|found| found.warnings.len()), [0, 1, 1]);
    }
}
