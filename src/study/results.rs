//! Computes the numbers of the report from the answers of all students.

use super::arms::ArmKind;
use super::config::{Cell, ComparisonConfig, StudyConfig};
use super::differences::{self, ArmDifference};
use super::overlap::Overlaps;
use super::pretrained::PretrainedStudent;
use super::style::StyleShift;
use crate::context::{Context, Task};
use crate::data::{ChoiceReport, Ledger, SourceShare};
use crate::error::Result;
use crate::eval::{Answer, Arm, Bootstrap, Estimate, GradedAnswer, Hits, score as score_of};
use crate::recipe::Summary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A student's answers to one benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Name of the benchmark.
    pub benchmark: String,
    /// For each problem, the share of correct answers.
    pub hits: Vec<f32>,
    /// Mean tokens per answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit truncated.
    pub hit_limit: f64,
    /// Share of answers without a final answer.
    pub without_answer: f64,
    /// Wall time of answering, in seconds. 0 for the held-out problems of a run, which are part of the
    /// run's own time.
    #[serde(default)]
    pub seconds: f64,
}

impl Tested {
    /// Returns the share of correct answers.
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
            seconds: 0.0,
        }
    }
}

/// A student's answers to all benchmarks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TestedAnswers(pub Vec<Tested>);

impl TestedAnswers {
    /// Answers to the held-out problems of a run.
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
        let tested = tested.map(|(name, answers)| Tested {
            seconds: answers.iter().map(|answer| answer.seconds).sum(),
            ..Tested::new(name, answers.iter().map(of))
        });
        Self(tested.collect())
    }

    /// Returns the wall time of answering, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.0.iter().map(|tested| tested.seconds).sum()
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn hits(&self) -> Hits {
        self.0.iter().map(|tested| tested.hits.clone()).collect()
    }
}

/// A finished cell.
pub(super) type CellResult = (Cell, Summary, TestedAnswers);

/// By comparison, for each benchmark the number of training problems that are left out.
pub(super) type LeftOutProblems = BTreeMap<usize, Vec<(String, usize)>>;

/// All answers of a study.
#[derive(Default)]
pub(super) struct StudyData {
    /// By student, comparison, and seed.
    pub untuned: BTreeMap<(usize, usize, u64), TestedAnswers>,
    pub cells: Vec<CellResult>,
    pub left_out: LeftOutProblems,
    pub pretrained: Vec<PretrainedStudent>,
    pub overlaps: Overlaps,
}

/// A student in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentLine {
    /// Its name.
    pub name: String,
    /// Kind of student, such as base or instruct.
    pub kind: Option<String>,
    /// Number of parameters.
    pub parameters: usize,
    /// Number of trained parameters.
    pub trained_parameters: usize,
}

/// The realized share of a source in an arm, averaged over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RealizedShare {
    /// Name of the source.
    pub source: String,
    /// Its share of the rows of an epoch.
    pub rows: f64,
    /// Its share of the trained tokens of an epoch.
    pub trained_tokens: f64,
}

/// The results of a student in one arm, over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixtureScore {
    /// Share of the strong source: the requested one, or the realized one of a choice.
    pub alpha: f64,
    /// Name of the arm, such as `by RSR`. Empty in studies of earlier versions.
    #[serde(default)]
    pub title: String,
    /// The realized shares.
    #[serde(default)]
    pub shares: Vec<RealizedShare>,
    /// The score.
    pub score: Estimate,
    /// Accuracy by benchmark.
    pub by_benchmark: Vec<f64>,
    /// Score of each seed.
    pub by_seed: Vec<f64>,
    /// Mean tokens per answer.
    pub mean_tokens: f64,
    /// Share of truncated answers.
    pub hit_limit: f64,
    /// Share of answers without a final answer.
    pub without_answer: f64,
    /// Final held-out loss by source.
    pub losses: Vec<(String, f64)>,
}

/// The results of a choice, its control, and its inverse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScore {
    /// Index of the choice in its comparison.
    pub number: usize,
    /// The choice.
    pub choice: MixtureScore,
    /// The random mixture with as many rows of each source.
    pub control: Option<MixtureScore>,
    /// The answers with the worst scores.
    pub inverse: Option<MixtureScore>,
    /// Scores of the answers by source, and how far the choice is from chance, in the first seed.
    #[serde(default)]
    pub report: Option<ChoiceReport>,
}

impl ChoiceScore {
    /// Returns the choice and, if they exist, its control and its inverse.
    pub fn all(&self) -> impl Iterator<Item = &MixtureScore> {
        std::iter::once(&self.choice).chain(&self.control).chain(&self.inverse)
    }
}

/// The results of a student in a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentResult {
    /// Its name.
    pub student: String,
    /// Its score before training, on the same problems.
    pub untuned: Estimate,
    /// That score by benchmark.
    pub untuned_by_benchmark: Vec<f64>,
    /// Its score in each seed. A student that is read from a folder has the same score in all seeds.
    #[serde(default)]
    pub untuned_by_seed: Vec<f64>,
    /// One entry per share, in order. The first is the weak source alone, the last the strong one.
    pub mixtures: Vec<MixtureScore>,
    /// P of the strong source minus P of the weak one. Below 0, there is a learnability gap.
    pub gap: Estimate,
    /// Each mixture's score minus that of the weak source and minus that of the strong one: (share, over
    /// weak, over strong).
    pub gains: Vec<(f64, Estimate, Estimate)>,
    /// One entry per choice.
    #[serde(default)]
    pub choices: Vec<ChoiceScore>,
    /// All differences in the report, corrected together with those of the other students.
    #[serde(default)]
    pub differences: Vec<ArmDifference>,
}

impl StudentResult {
    /// Returns all arms: the mixtures, then each choice with its control and inverse.
    pub fn arms(&self) -> impl Iterator<Item = &MixtureScore> {
        self.mixtures.iter().chain(self.choices.iter().flat_map(ChoiceScore::all))
    }
}

/// The budget of one arm's runs, in the first seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Share of the strong source: the requested one, or the realized one of a choice.
    pub alpha: f64,
    /// Name of the arm. Empty in studies of earlier versions.
    #[serde(default)]
    pub title: String,
    /// Optimizer steps.
    pub updates: usize,
    /// The strong source's share of the rows of an epoch.
    pub strong_rows: f64,
    /// The strong source's share of the trained tokens of an epoch.
    pub strong_trained: f64,
    /// Tokens of all steps, without padding.
    pub tokens: u64,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// Length limit of a row.
    pub max_length: usize,
}

/// The results of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonResult {
    /// Its name.
    pub name: String,
    /// The strong source.
    pub strong: String,
    /// The weak source.
    pub weak: String,
    /// The benchmarks and their numbers of problems.
    pub benchmarks: Vec<(String, usize)>,
    /// One entry per student.
    pub students: Vec<StudentResult>,
    /// One entry per arm, for the first student and seed.
    pub budgets: Vec<Budget>,
    /// For each benchmark, the number of training problems left out, if the study leaves them out.
    #[serde(default)]
    pub left_out: Vec<(String, usize)>,
    /// What happened to every record.
    pub ledger: Ledger,
}

/// The numbers of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// Its title.
    pub title: String,
    /// Its introduction.
    pub introduction: String,
    /// The command that made it.
    pub command: String,
    /// The version of the library.
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
    /// Warnings that qualify the numbers.
    pub warnings: Vec<String>,
    /// How students were pretrained, if any were.
    #[serde(default)]
    pub pretrained: Vec<PretrainedStudent>,
    /// Tokens that training made more likely.
    pub style: Vec<StyleShift>,
    /// Wall time of all training, in seconds.
    pub training_seconds: f64,
    /// Wall time of testing untuned students and answering benchmarks, in seconds.
    #[serde(default)]
    pub answering_seconds: f64,
}

impl StudyData {
    /// Returns the answers of an untuned student, seed by seed. A student that is read from a folder is
    /// tested once, and its answers count for every seed.
    fn untuned_hits(&self, config: &StudyConfig, student: usize, comparison: usize) -> Vec<Hits> {
        let of_seed = |seed: u64| self.untuned.get(&(student, comparison, seed));
        let first = config.seeds.first().and_then(|seed| of_seed(*seed));
        let all = config.seeds.iter().filter_map(|seed| of_seed(*seed).or(first));
        all.map(TestedAnswers::hits).collect()
    }

    /// Returns the answers of a student in an arm, seed by seed.
    fn hits(
        &self,
        config: &StudyConfig,
        student: usize,
        comparison: usize,
        arm: ArmKind,
    ) -> Vec<Hits> {
        if arm == ArmKind::Untuned {
            return self.untuned_hits(config, student, comparison);
        }
        let of_seed = |seed: &u64| {
            let wanted = Cell { student, comparison, arm, seed: *seed };
            self.cells.iter().find(|(cell, ..)| *cell == wanted)
        };
        let cells = config.seeds.iter().filter_map(of_seed);
        cells.map(|(_, _, answers)| answers.hits()).collect()
    }

    fn of(
        &self,
        student: usize,
        comparison: usize,
        arm: ArmKind,
    ) -> Vec<(&Summary, &TestedAnswers)> {
        let same =
            |cell: &Cell| (cell.student, cell.comparison, cell.arm) == (student, comparison, arm);
        let cells = self.cells.iter().filter(|(cell, ..)| same(cell));
        cells.map(|(_, summary, answers)| (summary, answers)).collect()
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
        context: &Context<'_>,
    ) -> Result<Self> {
        let bootstrap = Bootstrap { resamples: config.resamples, seed: config.data_seed };
        let first = data.cells.first();
        let students = config.comparisons.len() * config.students.len();
        let mut progress = context.task(Task::Resample, students as u64);
        let mut result = |comparison| {
            comparison_result(config, data, &bootstrap, comparison, &mut || progress.advance())
        };
        let comparisons = (0..config.comparisons.len()).map(&mut result);
        let comparisons = comparisons.collect::<Result<Vec<_>>>()?;
        Ok(Self {
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
            comparisons,
            warnings,
            pretrained: data.pretrained.clone(),
            style,
            training_seconds: data.cells.iter().map(|(_, s, _)| s.training_seconds).sum(),
            answering_seconds: {
                let trained = data.cells.iter().map(|(.., answers)| answers);
                trained.chain(data.untuned.values()).map(TestedAnswers::seconds).sum()
            },
        })
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

/// Returns the mean accuracy by benchmark.
fn by_benchmark(answers: &[&TestedAnswers]) -> Vec<f64> {
    let benchmarks = answers.first().map_or(0, |answers| answers.0.len());
    (0..benchmarks).map(|b| mean(answers.iter().map(|a| a.0[b].accuracy()))).collect()
}

/// Computes the results of one student in one comparison.
struct Scored<'a> {
    config: &'a StudyConfig,
    data: &'a StudyData,
    bootstrap: &'a Bootstrap,
    number: usize,
    student: usize,
}

impl Scored<'_> {
    fn hits(&self, arm: ArmKind) -> Vec<Hits> {
        self.data.hits(self.config, self.student, self.number, arm)
    }

    fn score(&self, arm: ArmKind) -> MixtureScore {
        let comparison = &self.config.comparisons[self.number];
        let hits = self.hits(arm);
        let hits: Arm = hits.iter().collect();
        let cells = self.data.of(self.student, self.number, arm);
        let shares = realized(&cells);
        let strong = shares.iter().find(|share| share.source == comparison.strong);
        let alpha = match arm {
            ArmKind::Share(share) => share,
            _ => strong.map_or(0.0, |share| share.rows),
        };
        let score = self.bootstrap.score(&hits);
        let title = comparison.title(arm);
        MixtureScore { alpha, title, shares, ..mixture_score(score, &hits, &cells) }
    }

    fn result(&self) -> StudentResult {
        let comparison = &self.config.comparisons[self.number];
        let shares = comparison.shares();
        let is_own = |(student, number, _): &(usize, usize, u64)| {
            (*student, *number) == (self.student, self.number)
        };
        let untuned = self.data.untuned.iter().filter(|(key, _)| is_own(key));
        let untuned: Vec<&TestedAnswers> = untuned.map(|(_, answers)| answers).collect();
        let untuned_hits: Vec<Hits> = untuned.iter().map(|answers| answers.hits()).collect();
        let choices = comparison.choices.iter().enumerate().map(|(number, choice)| ChoiceScore {
            number,
            choice: self.score(ArmKind::Choice(number)),
            control: choice.control.then(|| self.score(ArmKind::Control(number))),
            inverse: choice.inverse.then(|| self.score(ArmKind::Inverse(number))),
            report: {
                let cells = self.data.of(self.student, self.number, ArmKind::Choice(number));
                cells.first().and_then(|(summary, _)| summary.mixture.choice.clone())
            },
        });
        let differences = differences::of(comparison, self.bootstrap, |arm| self.hits(arm));
        let (weak, strong) = (ArmKind::Share(0.0), ArmKind::Share(1.0));
        let less = |arm: ArmKind, other: ArmKind| {
            let mut found = differences.iter().filter(|d| (d.arm, d.other) == (arm, other));
            found.next().map_or_else(Estimate::default, |difference| difference.estimate)
        };
        let mixed = shares.iter().filter(|share| **share > 0.0 && **share < 1.0);
        StudentResult {
            student: self.config.students[self.student].name.clone(),
            untuned: self.bootstrap.score(&untuned_hits.iter().collect()),
            untuned_by_benchmark: by_benchmark(&untuned),
            untuned_by_seed: self.hits(ArmKind::Untuned).iter().map(score_of).collect(),
            mixtures: shares.iter().map(|share| self.score(ArmKind::Share(*share))).collect(),
            gap: less(strong, weak),
            gains: mixed
                .map(|share| {
                    let arm = ArmKind::Share(*share);
                    (*share, less(arm, weak), less(arm, strong))
                })
                .collect(),
            choices: choices.collect(),
            differences,
        }
    }
}

/// Returns the mean realized share of each source in the mixtures of some cells.
fn realized(cells: &[(&Summary, &TestedAnswers)]) -> Vec<RealizedShare> {
    let Some((first, _)) = cells.first() else { return vec![] };
    let sources = first.mixture.sources.iter().enumerate();
    let share = |(index, source): (usize, &SourceShare)| {
        let of_cells = || {
            let mixtures = cells.iter().map(|(summary, _)| &summary.mixture);
            mixtures.filter_map(|mixture| Some(mixture.realized(mixture.sources.get(index)?)))
        };
        RealizedShare {
            source: source.name.clone(),
            rows: mean(of_cells().map(|[rows, ..]| rows)),
            trained_tokens: mean(of_cells().map(|[.., trained]| trained)),
        }
    };
    sources.map(share).collect()
}

fn comparison_result(
    config: &StudyConfig,
    data: &StudyData,
    bootstrap: &Bootstrap,
    number: usize,
    told: &mut dyn FnMut() -> Result<()>,
) -> Result<ComparisonResult> {
    let comparison = &config.comparisons[number];
    let mut students = vec![];
    for student in 0..config.students.len() {
        students.push(Scored { config, data, bootstrap, number, student }.result());
        told()?;
    }
    differences::correct(students.iter_mut().flat_map(|student| &mut student.differences));
    let first = data.of(0, number, ArmKind::Share(0.0)).first().copied();
    let ledger = first.map(|(summary, _)| summary.ledger.clone());
    let benchmarks = first.map_or(vec![], |(_, answers)| {
        answers.0.iter().map(|tested| (tested.benchmark.clone(), tested.hits.len())).collect()
    });
    Ok(ComparisonResult {
        benchmarks,
        name: comparison.name.clone(),
        strong: comparison.strong.clone(),
        weak: comparison.weak.clone(),
        students,
        budgets: comparison
            .arms()
            .into_iter()
            .filter_map(|arm| budget(comparison, arm, data.of(0, number, arm).first()?.0))
            .collect(),
        left_out: data.left_out.get(&number).cloned().unwrap_or_default(),
        ledger: ledger.unwrap_or_default(),
    })
}

fn budget(comparison: &ComparisonConfig, arm: ArmKind, summary: &Summary) -> Option<Budget> {
    let mixture = &summary.mixture;
    let strong = mixture.sources.iter().find(|source| source.name == comparison.strong)?;
    let [strong_rows, .., strong_trained] = mixture.realized(strong);
    let alpha = match arm {
        ArmKind::Share(share) => share,
        _ => strong_rows,
    };
    Some(Budget {
        alpha,
        title: comparison.title(arm),
        updates: summary.outcome.step,
        strong_rows,
        strong_trained,
        tokens: summary.tokens,
        trained_tokens: summary.trained_tokens,
        max_length: summary.config.data.max_length,
    })
}

/// Returns all results of an arm except its shares and its title.
fn mixture_score(score: Estimate, arm: &Arm, cells: &[(&Summary, &TestedAnswers)]) -> MixtureScore {
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
        alpha: 0.0,
        title: String::new(),
        shares: vec![],
        score,
        by_benchmark: by_benchmark(&answers),
        by_seed: arm.iter().map(|hits| score_of(hits)).collect(),
        mean_tokens: over_all(|tested| tested.mean_tokens),
        hit_limit: over_all(|tested| tested.hit_limit),
        without_answer: over_all(|tested| tested.without_answer),
        losses: losses.into_iter().map(|(name, l)| (name, mean(l.into_iter()))).collect(),
    }
}
