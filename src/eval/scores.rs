//! The scores of a benchmark: accuracy with its interval, pass@k, majority, and statistics of the answers.

use super::benchmark::Benchmark;
use super::bootstrap::Bootstrap;
use super::evaluate::GradedAnswer;
use super::interval::wilson;
use super::math::{Extractor, after_reasoning, extract, same_answer};
use crate::text::{DISPLAY_WIDTH, Table, wrapped};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// The score of one benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Name of the benchmark.
    pub benchmark: String,
    /// Number of answered problems.
    pub problems: usize,
    /// Number of problems in the benchmark.
    pub of: usize,
    /// Number of answers per problem; the minimum if it varies.
    pub samples: usize,
    /// Share of correct answers (pass@1), 0 to 1.
    pub accuracy: f64,
    /// The accuracy including answers that the judge accepted, if one was asked.
    pub with_judge: Option<f64>,
    /// The accuracy's 95% interval: Wilson's for one answer per problem, else a bootstrap over problems.
    pub interval: (f64, f64),
    /// Pass@k for powers of 2 and for all samples: an unbiased estimate of the probability that one of k
    /// answers is correct (arXiv 2107.03374, equation 1).
    pub pass_at: Vec<(usize, f64)>,
    /// Share of problems whose most common answer is correct (maj@n). The first answer wins a tie.
    pub majority: Option<f64>,
    /// Share of answers without a box.
    pub without_box: f64,
    /// Share of answers without a final answer.
    pub without_answer: f64,
    /// Share of answers that the length limit truncated.
    pub hit_limit: f64,
    /// Mean number of tokens of an answer; 0 if unknown.
    pub mean_tokens: f64,
    /// Generated tokens per second; 0 if unknown.
    pub tokens_per_second: f64,
}

/// Returns `1 - C(n - c, k) / C(n, k)`: the probability that k of n answers, c of them correct, include a
/// correct one.
fn pass_at(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - ((n - c + 1)..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

impl Scores {
    /// Scores the answers to a benchmark's problems. Answers to other problems are ignored.
    pub fn of(benchmark: &Benchmark, answers: &[GradedAnswer]) -> Self {
        let known: HashSet<&str> = benchmark.problems.iter().map(|p| p.id.as_str()).collect();
        let answers = answers.iter().filter(|answer| known.contains(answer.id.as_str()));
        let answers: Vec<&GradedAnswer> = answers.collect();
        let mut by_problem: HashMap<&str, Vec<&GradedAnswer>> = HashMap::new();
        for answer in &answers {
            by_problem.entry(&answer.id).or_default().push(answer);
        }
        let problems: Vec<&Vec<&GradedAnswer>> =
            benchmark.problems.iter().filter_map(|p| by_problem.get(p.id.as_str())).collect();
        let samples = problems.iter().map(|answers| answers.len()).min().unwrap_or(0);
        let right = |answers: &[&GradedAnswer]| answers.iter().filter(|a| a.correct).count();
        let mean = |of: &dyn Fn(&[&GradedAnswer]) -> f64| {
            problems.iter().map(|answers| of(answers)).sum::<f64>() / problems.len().max(1) as f64
        };
        let accuracy = mean(&|answers| right(answers) as f64 / answers.len() as f64);
        let most = problems.iter().map(|answers| answers.len()).max().unwrap_or(0);
        let interval = match most {
            0 | 1 => wilson(problems.iter().map(|a| right(a)).sum(), problems.len()),
            _ => {
                let share = |a: &&Vec<&GradedAnswer>| right(a) as f32 / a.len() as f32;
                let hits = vec![problems.iter().map(share).collect()];
                let estimate = Bootstrap::default().score(&vec![&hits]);
                (estimate.low, estimate.high)
            }
        };
        let powers = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < samples);
        let ks: Vec<usize> = powers.chain((samples > 0).then_some(samples)).collect();
        let share = |test: &dyn Fn(&GradedAnswer) -> bool| {
            answers.iter().filter(|a| test(a)).count() as f64 / answers.len().max(1) as f64
        };
        let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
        let seconds: f64 = answers.iter().map(|answer| answer.seconds).sum();
        Self {
            benchmark: benchmark.name.clone(),
            problems: problems.len(),
            of: benchmark.problems.len(),
            samples,
            accuracy,
            with_judge: answers.iter().any(|answer| answer.by_judge.is_some()).then(|| {
                mean(&|answers| {
                    let agreed = answers.iter().filter(|a| a.correct || a.by_judge == Some(true));
                    agreed.count() as f64 / answers.len() as f64
                })
            }),
            interval,
            pass_at: ks
                .into_iter()
                .map(|k| (k, mean(&|answers| pass_at(answers.len(), right(answers), k))))
                .collect(),
            majority: (most > 1).then(|| mean(&|answers| f64::from(majority(answers)))),
            without_box: share(&|a| {
                let text = after_reasoning(&a.text, a.reasoning_opened);
                text.and_then(|text| extract(text, &[Extractor::Boxed])).is_none()
            }),
            without_answer: share(&|answer| answer.stated.is_none()),
            hit_limit: share(&|answer| answer.hit_limit),
            mean_tokens: tokens as f64 / answers.len().max(1) as f64,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
        }
    }
}

/// Returns whether the most common answer to a problem is correct. Equal answers count together, and texts
/// without a final answer do not count.
fn majority(answers: &[&GradedAnswer]) -> bool {
    let mut groups: Vec<(&GradedAnswer, usize)> = vec![];
    for answer in answers {
        let Some(stated) = &answer.stated else { continue };
        let same = groups
            .iter_mut()
            .find(|(first, _)| first.stated.as_ref().is_some_and(|s| same_answer(s, stated)));
        match same {
            Some((_, count)) => *count += 1,
            None => groups.push((answer, 1)),
        }
    }
    // The first of the largest groups; max_by_key would return the last.
    let largest = groups.iter().map(|(_, count)| *count).max();
    groups.iter().find(|(_, count)| Some(*count) == largest).is_some_and(|(first, _)| first.correct)
}

/// Columns of the table.
const COLUMNS: usize = 9;

/// The scores of several benchmarks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoresTable {
    /// One entry per benchmark.
    pub scores: Vec<Scores>,
}

impl ScoresTable {
    /// Lines below the table: the accuracy with the judge, pass@k, and the majority.
    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![];
        for score in &self.scores {
            let name = &score.benchmark;
            if let Some(share) = score.with_judge {
                lines.push(format!("{name}: {:.1}% correct with the judge", 100.0 * share));
            }
            if let Some(majority) = score.majority {
                let at = score.pass_at.iter().map(|(k, p)| format!("pass@{k} {:.1}%", 100.0 * p));
                let at: Vec<String> = at.collect();
                let majority = format!("maj@{} {:.1}%", score.samples, 100.0 * majority);
                lines.push(format!("{name}: {}, {majority}", at.join(", ")));
            }
        }
        lines
    }

    fn table(&self, header: [&str; COLUMNS]) -> Table {
        let mut table = Table::new(header);
        self.scores.iter().for_each(|score| table.row(cells(score)));
        table
    }

    /// Returns the table and the lines below it, at most `width` columns wide.
    pub fn to_text(&self, width: usize) -> String {
        let table = self.table([
            "benchmark",
            "problems",
            "accuracy",
            "95% interval",
            "no box",
            "no answer",
            "truncated",
            "tokens",
            "tokens/s",
        ]);
        let mut lines = vec![table.to_text(width)];
        lines.extend(self.remarks().iter().map(|line| wrapped(line, width)));
        lines.join("\n")
    }

    /// Returns the table and the lines below it as Markdown.
    pub fn to_markdown(&self) -> String {
        let table = self.table([
            "benchmark",
            "problems",
            "accuracy",
            "95% interval",
            "without a box",
            "without an answer",
            "truncated",
            "tokens per answer",
            "tokens/s",
        ]);
        let mut out = table.to_markdown();
        for line in self.remarks() {
            out.push_str(&format!("\n{line}\n"));
        }
        out
    }
}

impl fmt::Display for ScoresTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(f.width().unwrap_or(DISPLAY_WIDTH)))
    }
}

fn cells(score: &Scores) -> [String; COLUMNS] {
    let problems = match score.problems == score.of {
        true => score.of.to_string(),
        false => format!("{} of {}", score.problems, score.of),
    };
    let known = |value: f64, digits: usize| match value > 0.0 {
        true => format!("{value:.digits$}"),
        false => "-".into(),
    };
    [
        score.benchmark.clone(),
        problems,
        format!("{:.1}%", 100.0 * score.accuracy),
        format!("{:.1} to {:.1}%", 100.0 * score.interval.0, 100.0 * score.interval.1),
        format!("{:.1}%", 100.0 * score.without_box),
        format!("{:.1}%", 100.0 * score.without_answer),
        format!("{:.1}%", 100.0 * score.hit_limit),
        known(score.mean_tokens, 1),
        known(score.tokens_per_second, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::BenchmarkProblem;

    #[test]
    fn pass_at_k_is_the_chance_of_a_draw_without_replacement() {
        assert_eq!(pass_at(1, 1, 1), 1.0);
        assert_eq!(pass_at(4, 0, 2), 0.0);
        // Two of four are correct: one of the six pairs has no correct answer.
        assert!((pass_at(4, 2, 2) - 5.0 / 6.0).abs() < 1e-12);
        assert!((pass_at(10, 3, 1) - 0.3).abs() < 1e-12);
        assert_eq!(pass_at(5, 3, 3), 1.0);
    }

    #[test]
    fn equal_answers_are_counted_together_for_the_majority() {
        let problem = BenchmarkProblem {
            id: "1".into(),
            problem: "?".into(),
            reference: "0.5".into(),
            row: 1,
            ..Default::default()
        };
        let benchmark =
            Benchmark { name: "b".into(), problems: vec![problem.clone()], ..Default::default() };
        let of = |texts: &[&str]| {
            let answers: Vec<GradedAnswer> = texts
                .iter()
                .enumerate()
                .map(|(i, text)| GradedAnswer::of(&problem, i, format!("\\boxed{{{text}}}"), false))
                .collect();
            Scores::of(&benchmark, &answers)
        };
        let scores = of(&["1", r"\frac{1}{2}", "1", "0.50", "1/2"]);
        assert_eq!((scores.accuracy, scores.majority), (0.6, Some(1.0)));
        assert_eq!(scores.pass_at.last(), Some(&(5, 1.0)));
        assert_eq!(of(&["1", "1", "0.5"]).majority, Some(0.0));
        let alone = of(&["0.5"]);
        assert_eq!((alone.majority, alone.interval), (None, wilson(1, 1)));
    }
}
