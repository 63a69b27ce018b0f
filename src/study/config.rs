//! What a study is of: students, comparisons of data, seeds.

use super::arms::{ArmChoice, ArmKind};
use crate::data::{DataFiles, Share};
use crate::error::{Error, Result};
use crate::recipe::RunConfig;
use crate::settings::{Layers, Schema, Settings, table_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Table;

/// Data of two kinds, and mixtures of them: long and short answers, or those of a large and of a
/// small teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonConfig {
    /// Its name, such as `Long` or `Large`.
    pub name: String,
    /// The source that the paper calls strong: the long answers, or the large teacher's.
    pub strong: String,
    /// The other.
    pub weak: String,
    /// Shares of the strong source to train on. 0 and 1 are always there.
    #[serde(default = "paper_share")]
    pub alphas: Vec<f64>,
    /// Choices by score to train on, each beside its control.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ArmChoice>,
    /// Settings of a run that this comparison has, such as `data.sources`.
    #[serde(default)]
    pub run: Table,
}

fn paper_share() -> Vec<f64> {
    vec![0.2]
}

/// A student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
    /// Its name in tables and folders.
    pub name: String,
    /// What it is, such as `base` or `instruct`; students are listed by it.
    #[serde(default)]
    pub kind: Option<String>,
    /// Settings of a run that this student has, such as `base_model`, `lora`, `model.hidden_size`.
    #[serde(default)]
    pub run: Table,
    /// Settings of a run that pretrains this student, laid over those of all cells and its own: every
    /// cell then tunes the student that it gives. Without them the student is as `run` says.
    #[serde(default)]
    pub pretraining: Option<Table>,
}

/// Settings of a run that a study sets.
const OWN: [&str; 8] = [
    "out",
    "seed",
    "data.seed",
    "data.complete",
    "mixture.weights",
    "mixture.choice",
    "evaluation.before",
    "train.keep_checkpoints",
];

/// A study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyConfig {
    /// The study's directory.
    #[serde(default = "usual_out")]
    pub out: PathBuf,
    /// Title of the report.
    #[serde(default = "usual_title")]
    pub title: String,
    /// Text of the report's first paragraph.
    #[serde(default)]
    pub introduction: String,
    /// Seeds of the runs: order, mixture and initial weights. The problems that are held out are
    /// the same for all.
    #[serde(default = "usual_seeds")]
    pub seeds: Vec<u64>,
    /// Seed of the toy corpus and of the held-out split.
    #[serde(default)]
    pub data_seed: u64,
    /// What is compared.
    pub comparisons: Vec<ComparisonConfig>,
    /// Who learns.
    pub students: Vec<StudentConfig>,
    /// Benchmark files, or datasets on the hub, that each student is tested on beside the held-out
    /// problems.
    #[serde(default)]
    pub benchmarks: Vec<PathBuf>,
    /// Problems of each benchmark file that are asked; without it all.
    #[serde(default)]
    pub benchmark_problems: Option<usize>,
    /// Do not ask the problems of benchmark files that a comparison trains on, or that one of its
    /// students was pretrained on: those with the same text, but for case and white space.
    /// `benchmark_problems` counts the others.
    #[serde(default)]
    pub leave_out_trained: bool,
    /// Whether the problems of benchmark files are followed by the instruction to reason and to box
    /// the answer. Held-out problems are asked as they were trained.
    #[serde(default)]
    pub instruct: bool,
    /// Resamples of the bootstrap.
    #[serde(default = "usual_resamples")]
    pub resamples: usize,
    /// Answers of each student in which tokens are ranked by the untuned student; 0 leaves it out.
    #[serde(default)]
    pub style_answers: usize,
    /// Keep the checkpoints of cells that are done.
    #[serde(default)]
    pub keep_checkpoints: bool,
    /// Directory of pretrained students, which studies may share; without it one in the study's own.
    #[serde(default)]
    pub pretrained_cache: Option<PathBuf>,
    /// Settings of a run that all cells have in common.
    #[serde(default)]
    pub run: Table,
}

fn usual_out() -> PathBuf {
    "study".into()
}

fn usual_title() -> String {
    "The learnability gap".into()
}

fn usual_seeds() -> Vec<u64> {
    vec![1, 2, 3]
}

fn usual_resamples() -> usize {
    2_000
}

impl Settings for StudyConfig {
    fn defaults(_given: &Table) -> Result<Table> {
        let mut table = table_of(&Self {
            out: usual_out(),
            title: usual_title(),
            introduction: String::new(),
            seeds: usual_seeds(),
            data_seed: 0,
            comparisons: vec![],
            students: vec![],
            benchmarks: vec![],
            benchmark_problems: None,
            leave_out_trained: false,
            instruct: false,
            resamples: usual_resamples(),
            style_answers: 0,
            keep_checkpoints: false,
            pretrained_cache: None,
            run: Table::new(),
        })?;
        // These have no defaults.
        table.remove("comparisons");
        table.remove("students");
        Ok(table)
    }

    fn inner() -> Result<Vec<(&'static str, Arc<Schema>)>> {
        let run = Schema::of::<RunConfig>()?;
        let places = ["run", "comparisons.*.run", "students.*.run", "students.*.pretraining"];
        Ok(places.map(|place| (place, run.clone())).to_vec())
    }
}

/// One training of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Number of the student.
    pub student: usize,
    /// Number of the comparison.
    pub comparison: usize,
    /// What it is trained on.
    pub arm: ArmKind,
    /// The seed.
    pub seed: u64,
}

impl StudyConfig {
    /// Reads a TOML file and checks the settings.
    ///
    /// # Errors
    /// As [`Layers::file`], [`Layers::settings`] and [`StudyConfig::validate`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        let config = layers.settings()?;
        config.validate().map_err(|error| layers.locate(error))?;
        Ok(config)
    }

    /// All cells, seed by seed, so that a study that is stopped early has whole seeds.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![];
        for seed in &self.seeds {
            for comparison in 0..self.comparisons.len() {
                for student in 0..self.students.len() {
                    for arm in self.comparisons[comparison].arms() {
                        cells.push(Cell { student, comparison, arm, seed: *seed });
                    }
                }
            }
        }
        cells
    }

    /// The settings of a cell's run; the weights of a control are known once its choice is mixed, and
    /// equal ones here.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that are none.
    pub fn run_config(&self, cell: &Cell) -> Result<RunConfig> {
        let (student, comparison) =
            (&self.students[cell.student], &self.comparisons[cell.comparison]);
        let mut config = RunConfig::from_tables(&[&self.run, &comparison.run, &student.run])?;
        config.out = self.cell_folder(cell);
        config.seed = cell.seed;
        config.data.seed = Some(self.data_seed);
        config.data.complete = true;
        config.evaluation.before = false;
        comparison.apply(cell.arm, &mut config);
        config.train.keep_checkpoints = 1;
        self.set_pretrained(cell.student, &mut config)?;
        Ok(config)
    }

    /// Where a cell's run is.
    pub fn cell_folder(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("cells")
            .join(&self.students[cell.student].name)
            .join(self.comparisons[cell.comparison].folder(cell.arm))
            .join(format!("seed-{}", cell.seed))
    }

    /// Where the answers of a cell's student before any training are.
    pub(super) fn untuned_folder(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("untuned")
            .join(&self.students[cell.student].name)
            .join(&self.comparisons[cell.comparison].name)
            .join(format!("seed-{}", cell.seed))
    }

    /// Where a finished cell, or a student before any training, is stored without its run.
    pub fn result_file(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("results")
            .join(&self.students[cell.student].name)
            .join(self.comparisons[cell.comparison].folder(cell.arm))
            .join(format!("seed-{}.json", cell.seed))
    }

    /// Checks the settings, those of every cell included.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that cannot be.
    pub fn validate(&self) -> Result<()> {
        self.validate_names()?;
        self.validate_runs()?;
        self.validate_pretraining()?;
        self.validate_benchmarks()?;
        let seeds: BTreeSet<&u64> = self.seeds.iter().collect();
        if seeds.len() != self.seeds.len() {
            return refuse("seeds", "a seed is there twice", "Give each once");
        }
        for comparison in &self.comparisons {
            comparison.validate()?;
        }
        self.validate_folders()?;
        if !(1..=1_000_000).contains(&self.resamples) {
            let what = format!("it is {}", self.resamples);
            return refuse("resamples", what, "Give 1 to 1000000; 2000 is usual");
        }
        for cell in self.cells() {
            let config = self.run_config(&cell)?;
            config.validate().map_err(|error| error.in_table("run"))?;
            if config.mixture.share == Share::Auto {
                let what = "it is auto, and a study trains the shares in alphas";
                return refuse("run.mixture.share", what, "Leave it out");
            }
            if config.evaluation.questions == 0 && self.benchmarks.is_empty() {
                let hint = "Set run.evaluation.questions, or name a file";
                return refuse("benchmarks", "nothing is asked", hint);
            }
        }
        Ok(())
    }

    /// Students and comparisons have different names, which can be those of folders.
    fn validate_names(&self) -> Result<()> {
        if self.seeds.is_empty() || self.students.is_empty() || self.comparisons.is_empty() {
            let what = "seeds, students or comparisons are empty";
            return refuse("seeds", what, "Name at least one of each");
        }
        let students: Vec<&String> = self.students.iter().map(|student| &student.name).collect();
        let comparisons: Vec<&String> =
            self.comparisons.iter().map(|comparison| &comparison.name).collect();
        for (key, names) in [("students", students), ("comparisons", comparisons)] {
            let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            let is_folder =
                |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
            if let Some(name) = names.iter().find(|name| !is_folder(name)) {
                let what = format!("the name \"{name}\" cannot be that of a folder");
                return refuse(key, what, "Use letters, digits, -, _ and .");
            }
            let different: BTreeSet<String> =
                names.iter().map(|name| name.to_lowercase()).collect();
            if different.len() != names.len() {
                return refuse(key, "a name is there twice", "Give each its own");
            }
        }
        Ok(())
    }

    /// Settings of runs that a study sets itself are not there.
    fn validate_runs(&self) -> Result<()> {
        let tables = [&self.run].into_iter();
        let tables = tables.chain(self.comparisons.iter().map(|comparison| &comparison.run));
        for table in tables.chain(self.students.iter().map(|student| &student.run)) {
            for path in OWN {
                let mut keys = path.split('.');
                let first = keys.next().and_then(|key| table.get(key));
                if keys.fold(first, |value, key| value?.get(key)).is_some() {
                    let hint = "Leave it out; seeds, data_seed, alphas, choices and \
                                keep_checkpoints are the study's";
                    return refuse(&format!("run.{path}"), "a study sets it", hint);
                }
            }
        }
        Ok(())
    }

    /// Tables name benchmarks by their files.
    fn validate_benchmarks(&self) -> Result<()> {
        let mut files = BTreeSet::from(["held-out".to_owned()]);
        for path in &self.benchmarks {
            let name = DataFiles::stem_of(path).to_lowercase();
            if !files.insert(name) {
                let what = format!("{} has the name of another", path.display());
                return refuse("benchmarks", what, "Give the files different names");
            }
        }
        Ok(())
    }
}

fn refuse(key: &str, what: impl Into<String>, hint: &str) -> Result<()> {
    Err(Error::config(key, what, hint))
}
