//! From the answers of all students to the numbers of the report.

use super::config::{Cell, StudyConfig};
use super::pretrained::PretrainedStudent;
use super::style::StyleShift;
use crate::data::{Ledger, SourceShare};
use crate::eval::{Answer, Arm, Bootstrap, Estimate, GradedAnswer, Hits, score as score_of};
use crate::recipe::Summary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A student's answers to one benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// The benchmark.
    pub benchmark: String,
    /// For each problem, the share of its answers that are right.
    pub hits: Vec<f32>,
    /// Mean tokens of an answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit ended.
    pub hit_limit: f64,
    /// Share of answers that state no final answer.
    pub without_answer: f64,
}

impl Tested {
    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        let sum: f64 = self.hits.iter().map(|hit| f64::from(*hit)).sum();
        sum / self.hits.len().max(1) as f64
    }

    fn new(benchmark: &str, answers: impl Iterator<Item = (f32, usize, bool, bool)>) -> Self {
        let answers: Vec<_> = answers.collect();
        let share = |sum: usize| sum as f64 / answers.len().max(1) as f64;
        Self {
            benchmark: benchmark.to_owned(),
            hits: answers.iter().map(|answer| answer.0).collect(),
            mean_tokens: share(answers.iter().map(|answer| answer.1).sum()),
            hit_limit: share(answers.iter().filter(|answer| answer.2).count()),
            without_answer: share(answers.iter().filter(|answer| answer.3).count()),
        }
    }
}

/// A student's answers to all benchmarks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TestedAnswers(pub Vec<Tested>);

impl TestedAnswers {
    /// Those to the held-out problems of a run.
    pub(super) fn of_questions(answers: &[Answer]) -> Self {
        let of = |a: &Answer| {
            (f32::from(u8::from(a.correct)), a.tokens, a.hit_limit, a.stated.is_none())
        };
        match answers.is_empty() {
            true => Self(vec![]),
            false => Self(vec![Tested::new("held-out", answers.iter().map(of))]),
        }
    }

    pub(super) fn of_benchmarks(benchmarks: Vec<(String, Vec<GradedAnswer>)>) -> Self {
        let of = |a: &GradedAnswer| {
            (f32::from(u8::from(a.correct)), a.tokens, a.hit_limit, a.stated.is_none())
        };
        let tested = benchmarks.iter().filter(|(_, answers)| !answers.is_empty());
        Self(tested.map(|(name, answers)| Tested::new(name, answers.iter().map(of))).collect())
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn hits(&self) -> Hits {
        self.0.iter().map(|tested| tested.hits.clone()).collect()
    }
}

/// All answers of a study.
#[derive(Default)]
pub(super) struct StudyData {
    /// By student, comparison and seed.
    pub untuned: BTreeMap<(usize, usize, u64), TestedAnswers>,
    pub cells: Vec<(Cell, Summary, TestedAnswers)>,
    pub pretrained: Vec<PretrainedStudent>,
}

/// A student in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentLine {
    /// Its name.
    pub name: String,
    /// What it is, such as base or instruct.
    pub kind: Option<String>,
    /// Its parameters.
    pub parameters: usize,
    /// Those that are trained.
    pub trained_parameters: usize,
}

/// A student trained on one mixture, over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixtureScore {
    /// Share of the strong source.
    pub alpha: f64,
    /// The score.
    pub score: Estimate,
    /// Accuracy by benchmark.
    pub by_benchmark: Vec<f64>,
    /// Score of each seed.
    pub by_seed: Vec<f64>,
    /// Mean tokens of an answer.
    pub mean_tokens: f64,
    /// Share of answers at the length limit.
    pub hit_limit: f64,
    /// Share of answers without a final answer.
    pub without_answer: f64,
    /// Held-out loss at the end, by source.
    pub losses: Vec<(String, f64)>,
}

/// A student in a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentResult {
    /// Its name.
    pub student: String,
    /// Its score before training, on the same problems.
    pub untuned: Estimate,
    /// The same by benchmark.
    pub untuned_by_benchmark: Vec<f64>,
    /// One for each share, in order; the first is the weak source alone, the last the strong one.
    pub mixtures: Vec<MixtureScore>,
    /// P of the strong source less P of the weak: below 0 there is a learnability gap.
    pub gap: Estimate,
    /// Each mixture's score less that of the weak source, and less that of the strong: (share, over
    /// weak, over strong).
    pub gains: Vec<(f64, Estimate, Estimate)>,
}

/// What the runs of one share have used, in the first seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Share of the strong source.
    pub alpha: f64,
    /// Optimizer steps.
    pub updates: usize,
    /// Rows of the strong source, as a share of an epoch's.
    pub strong_rows: f64,
    /// Trained tokens of the strong source, as a share of an epoch's.
    pub strong_trained: f64,
    /// Tokens of all steps, padding left out.
    pub tokens: u64,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// Length limit of a row.
    pub max_length: usize,
}

/// A comparison's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonResult {
    /// Its name.
    pub name: String,
    /// The strong source.
    pub strong: String,
    /// The weak one.
    pub weak: String,
    /// The benchmarks and their problems.
    pub benchmarks: Vec<(String, usize)>,
    /// One for each student.
    pub students: Vec<StudentResult>,
    /// One for each share, of the first student and seed.
    pub budgets: Vec<Budget>,
    /// What became of every record.
    pub ledger: Ledger,
}

/// A study's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// Its title.
    pub title: String,
    /// Its introduction.
    pub introduction: String,
    /// The command that made it.
    pub command: String,
    /// The library's version.
    pub version: String,
    /// The backend.
    pub backend: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// The students.
    pub students: Vec<StudentLine>,
    /// The comparisons.
    pub comparisons: Vec<ComparisonResult>,
    /// What a reader must know before believing.
    pub warnings: Vec<String>,
    /// How students were pretrained, where any were.
    #[serde(default)]
    pub pretrained: Vec<PretrainedStudent>,
    /// Tokens that training has made likelier.
    pub style: Vec<StyleShift>,
    /// Wall time of all training, in seconds.
    pub training_seconds: f64,
}

impl StudyData {
    /// The answers of a student trained on a share, seed by seed.
    fn arm(
        &self,
        config: &StudyConfig,
        student: usize,
        comparison: usize,
        alpha: f64,
    ) -> Vec<Hits> {
        let of_seed = |seed: &u64| {
            self.cells.iter().find(|(cell, ..)| {
                (cell.student, cell.comparison, cell.alpha, cell.seed)
                    == (student, comparison, alpha, *seed)
            })
        };
        let cells = config.seeds.iter().filter_map(of_seed);
        cells.map(|(_, _, answers)| answers.hits()).collect()
    }

    fn of(&self, student: usize, comparison: usize, alpha: f64) -> Vec<(&Summary, &TestedAnswers)> {
        let same = |cell: &Cell| {
            (cell.student, cell.comparison, cell.alpha) == (student, comparison, alpha)
        };
        let cells = self.cells.iter().filter(|(cell, ..)| same(cell));
        cells.map(|(_, summary, answers)| (summary, answers)).collect()
    }

    /// Where cells that are compared differ in what they may use.
    pub fn differences(&self, config: &StudyConfig) -> Vec<String> {
        let mut warnings = vec![];
        if config.seeds.len() < 5 {
            warnings.push(match config.seeds.len() {
                1 => "one seed: how much another training would differ is in no interval".into(),
                seeds => format!(
                    "{seeds} seeds: how much trainings differ is estimated from as many only, so the \
                     intervals are rather too narrow"
                ),
            });
        }
        for (number, comparison) in config.comparisons.iter().enumerate() {
            for (student, of) in config.students.iter().enumerate() {
                // Where nearly all or nearly no answers are right, differences have no room.
                const EDGE: f64 = 0.05;
                let own = self
                    .cells
                    .iter()
                    .filter(|(cell, ..)| (cell.student, cell.comparison) == (student, number));
                let scores: Vec<f64> = own.map(|(.., a)| score_of(&a.hits())).collect();
                let edge = match () {
                    () if scores.is_empty() => continue,
                    () if scores.iter().all(|score| *score < EDGE) => "nearly no answer",
                    () if scores.iter().all(|score| *score > 1.0 - EDGE) => "nearly every answer",
                    () => continue,
                };
                warnings.push(format!(
                    "{}, {}: {edge} is right, whatever it was trained on; these scores say nothing of \
                     a gap, and intervals of no width are no certainty",
                    comparison.name, of.name
                ));
            }
            let of_comparison = self.cells.iter().filter(|(cell, ..)| cell.comparison == number);
            let updates: std::collections::BTreeSet<usize> =
                of_comparison.map(|(_, summary, _)| summary.outcome.step).collect();
            if updates.len() > 1 {
                warnings.push(format!("{}: updates differ, {updates:?}", comparison.name));
            }
            for (student, of) in config.students.iter().enumerate() {
                let cells: Vec<&Summary> = self
                    .cells
                    .iter()
                    .filter(|(cell, ..)| (cell.student, cell.comparison) == (student, number))
                    .map(|(_, summary, _)| summary)
                    .collect();
                let mut differ = |what: &str, values: Vec<u64>| {
                    let (low, high) = (values.iter().min(), values.iter().max());
                    if let (Some(low), Some(high)) = (low, high)
                        && low != high
                    {
                        warnings.push(format!(
                            "{}, {}: {what} differ between cells, {low} to {high}",
                            comparison.name, of.name
                        ));
                    }
                };
                let all = |part: fn(&Summary) -> u64| cells.iter().map(|s| part(s)).collect();
                differ("length limits", all(|s| s.config.data.max_length as u64));
                differ("problems", all(|s| s.ledger.training as u64));
                if student == 0 {
                    differ(
                        "trained tokens (as the answers' lengths do)",
                        all(|s| s.trained_tokens),
                    );
                }
            }
        }
        warnings
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl Study {
    pub(super) fn new(
        config: &StudyConfig,
        command: &str,
        data: &StudyData,
        warnings: Vec<String>,
        style: Vec<StyleShift>,
    ) -> Self {
        let bootstrap = Bootstrap { resamples: config.resamples, seed: config.data_seed };
        let first = data.cells.first();
        let of = |comparison| comparison_result(config, data, &bootstrap, comparison);
        Self {
            title: config.title.clone(),
            introduction: config.introduction.clone(),
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            backend: first.map_or(String::new(), |(_, summary, _)| summary.backend.clone()),
            seeds: config.seeds.clone(),
            resamples: config.resamples,
            students: (0..config.students.len())
                .map(|student| student_line(config, data, student))
                .collect(),
            comparisons: (0..config.comparisons.len()).map(of).collect(),
            warnings,
            pretrained: data.pretrained.clone(),
            style,
            training_seconds: data.cells.iter().map(|(_, s, _)| s.training_seconds).sum(),
        }
    }
}

fn student_line(config: &StudyConfig, data: &StudyData, student: usize) -> StudentLine {
    let summary = data.cells.iter().find(|(cell, ..)| cell.student == student);
    StudentLine {
        name: config.students[student].name.clone(),
        kind: config.students[student].kind.clone(),
        parameters: summary.map_or(0, |(_, summary, _)| summary.parameters),
        trained_parameters: summary.map_or(0, |(_, summary, _)| summary.trained_parameters),
    }
}

/// Mean accuracy by benchmark.
fn by_benchmark(answers: &[&TestedAnswers]) -> Vec<f64> {
    let benchmarks = answers.first().map_or(0, |answers| answers.0.len());
    (0..benchmarks).map(|b| mean(answers.iter().map(|a| a.0[b].accuracy()))).collect()
}

fn comparison_result(
    config: &StudyConfig,
    data: &StudyData,
    bootstrap: &Bootstrap,
    number: usize,
) -> ComparisonResult {
    let comparison = &config.comparisons[number];
    let alphas = config.alphas(number);
    let student_result = |student: usize| {
        let arms: Vec<Vec<Hits>> =
            alphas.iter().map(|alpha| data.arm(config, student, number, *alpha)).collect();
        let arms: Vec<Arm> = arms.iter().map(|arm| arm.iter().collect()).collect();
        let (weak, strong) = (&arms[0], &arms[arms.len() - 1]);
        let mixtures = alphas.iter().zip(&arms).map(|(alpha, arm)| {
            let cells = data.of(student, number, *alpha);
            mixture_score(*alpha, bootstrap.score(arm), arm, &cells)
        });
        let gains = alphas.iter().zip(&arms).filter(|(alpha, _)| **alpha > 0.0 && **alpha < 1.0);
        let untuned = data.untuned.iter().filter(|((s, c, _), _)| (*s, *c) == (student, number));
        let untuned: Vec<&TestedAnswers> = untuned.map(|(_, answers)| answers).collect();
        let untuned_hits: Vec<Hits> = untuned.iter().map(|answers| answers.hits()).collect();
        StudentResult {
            student: config.students[student].name.clone(),
            untuned: bootstrap.score(&untuned_hits.iter().collect()),
            untuned_by_benchmark: by_benchmark(&untuned),
            mixtures: mixtures.collect(),
            gap: bootstrap.difference(strong, weak),
            gains: gains
                .map(|(alpha, arm)| {
                    (*alpha, bootstrap.difference(arm, weak), bootstrap.difference(arm, strong))
                })
                .collect(),
        }
    };
    let budget = |alpha: &f64| {
        let (summary, _) = *data.of(0, number, *alpha).first()?;
        let strong = summary.mixture.sources.iter().find(|s| s.name == comparison.strong)?;
        let all = |part: fn(&SourceShare) -> u64| {
            summary.mixture.sources.iter().map(part).sum::<u64>().max(1) as f64
        };
        Some(Budget {
            alpha: *alpha,
            updates: summary.outcome.step,
            strong_rows: strong.rows as f64 / all(|s| s.rows as u64),
            strong_trained: strong.trained_tokens as f64 / all(|s| s.trained_tokens),
            tokens: summary.tokens,
            trained_tokens: summary.trained_tokens,
            max_length: summary.config.data.max_length,
        })
    };
    let first = data.of(0, number, 0.0).first().copied();
    let ledger = first.map(|(summary, _)| summary.ledger.clone());
    let benchmarks = first.map_or(vec![], |(_, answers)| {
        answers.0.iter().map(|tested| (tested.benchmark.clone(), tested.hits.len())).collect()
    });
    ComparisonResult {
        benchmarks,
        name: comparison.name.clone(),
        strong: comparison.strong.clone(),
        weak: comparison.weak.clone(),
        students: (0..config.students.len()).map(student_result).collect(),
        budgets: alphas.iter().filter_map(budget).collect(),
        ledger: ledger.unwrap_or_default(),
    }
}

fn mixture_score(
    alpha: f64,
    score: Estimate,
    arm: &Arm,
    cells: &[(&Summary, &TestedAnswers)],
) -> MixtureScore {
    let answers: Vec<&TestedAnswers> = cells.iter().map(|(_, answers)| *answers).collect();
    let over_all = |part: fn(&Tested) -> f64| {
        mean(answers.iter().flat_map(|answers| answers.0.iter().map(part)))
    };
    let mut losses: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (summary, _) in cells {
        for source in summary.final_evaluation().iter().flat_map(|e| &e.sources) {
            losses.entry(source.name.clone()).or_default().push(source.loss);
        }
    }
    MixtureScore {
        alpha,
        score,
        by_benchmark: by_benchmark(&answers),
        by_seed: arm.iter().map(|hits| score_of(hits)).collect(),
        mean_tokens: over_all(|tested| tested.mean_tokens),
        hit_limit: over_all(|tested| tested.hit_limit),
        without_answer: over_all(|tested| tested.without_answer),
        losses: losses.into_iter().map(|(name, l)| (name, mean(l.into_iter()))).collect(),
    }
}
