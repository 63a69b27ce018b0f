//! The settings of a study: students, comparisons of data, and seeds.

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

/// A comparison of two kinds of answers and of mixtures of them: long and short answers, or those of a
/// large and a small teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonConfig {
    /// Name in tables and folders, such as `Long` or `Large`.
    pub name: String,
    /// Name of the strong source: the long answers, or those of the large teacher.
    pub strong: String,
    /// Name of the weak source: the short answers, or those of the small teacher.
    pub weak: String,
    /// Shares of the strong source to train on, from 0 to 1 in hundredths. 0 and 1 (each source alone) are
    /// always included. Default: `[0.2]`.
    #[serde(default = "paper_share")]
    pub alphas: Vec<f64>,
    /// Arms whose answers are chosen by a score, each with a control arm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ArmChoice>,
    /// Run settings for all runs of this comparison, such as `data.sources`. They override the study's
    /// `run`.
    #[serde(default)]
    pub run: Table,
}

fn paper_share() -> Vec<f64> {
    vec![0.2]
}

/// A student to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
    /// Name in tables and folders.
    pub name: String,
    /// Kind of student, such as `base` or `instruct`, for the report. Charts draw one line per kind.
    #[serde(default)]
    pub kind: Option<String>,
    /// Run settings for all runs of this student, such as `base_model`, `lora`, or `model.hidden_size`.
    /// They override those of the study and of the comparison.
    #[serde(default)]
    pub run: Table,
    /// Settings of a run that pretrains this student once. They override the study's `run` and the
    /// student's own. Every run of the study then starts from the pretrained model. Without them, runs
    /// start from the student that `run` describes.
    #[serde(default)]
    pub pretraining: Option<Table>,
}

/// Run settings that the study sets itself.
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

/// The settings of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyConfig {
    /// Directory of the study.
    #[serde(default = "usual_out")]
    pub out: PathBuf,
    /// Title of the report.
    #[serde(default = "usual_title")]
    pub title: String,
    /// First paragraph of the report.
    #[serde(default)]
    pub introduction: String,
    /// Seeds of the runs: each arm of each student is trained once per seed. A seed sets the order of
    /// the rows, the mixture, and the initial weights. All seeds hold out the same problems.
    #[serde(default = "usual_seeds")]
    pub seeds: Vec<u64>,
    /// Seed of the toy corpus, the held-out split, and the bootstrap.
    #[serde(default)]
    pub data_seed: u64,
    /// What to compare: at least one pair of sources.
    pub comparisons: Vec<ComparisonConfig>,
    /// Students to train: at least one.
    pub students: Vec<StudentConfig>,
    /// Benchmark files, or datasets on the Hugging Face Hub, to test each student on in addition to the
    /// held-out problems.
    #[serde(default)]
    pub benchmarks: Vec<PathBuf>,
    /// Number of problems to test on from each benchmark, from its beginning. If unset, all problems are
    /// used.
    #[serde(default)]
    pub benchmark_problems: Option<usize>,
    /// Leave out benchmark problems that any student of the comparison trains on or was pretrained on.
    /// Problems match by text, ignoring case and white space. `benchmark_problems` counts only the
    /// problems that remain.
    #[serde(default)]
    pub leave_out_trained: bool,
    /// Append the instruction to reason step by step and to box the answer to benchmark problems.
    /// Held-out problems keep the prompt that they are trained with.
    #[serde(default)]
    pub instruct: bool,
    /// Number of bootstrap resamples, 1 to 1,000,000.
    #[serde(default = "usual_resamples")]
    pub resamples: usize,
    /// Number of answers per trained student whose tokens are ranked under the untuned student, for the
    /// report's style shift. 0 leaves it out.
    #[serde(default)]
    pub style_answers: usize,
    /// Keep the checkpoints of finished runs, which are otherwise deleted.
    #[serde(default)]
    pub keep_checkpoints: bool,
    /// Directory for pretrained students, which several studies can share. If unset, they are stored in
    /// `pretrained` in the study's directory.
    #[serde(default)]
    pub pretrained_cache: Option<PathBuf>,
    /// Run settings for all runs of the study.
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
        // These two have no defaults.
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

/// One training run of a study: a student, a comparison, an arm, and a seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Index of the student.
    pub student: usize,
    /// Index of the comparison.
    pub comparison: usize,
    /// The arm to train on.
    pub arm: ArmKind,
    /// The seed.
    pub seed: u64,
}

impl StudyConfig {
    /// Reads settings from a TOML file and validates them.
    ///
    /// # Errors
    /// See [`Layers::file`], [`Layers::settings`], and [`StudyConfig::validate`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        let config = layers.settings()?;
        config.validate().map_err(|error| layers.locate(error))?;
        Ok(config)
    }

    /// Returns all cells, seed by seed, so that a study that is stopped early has complete seeds.
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

    /// Returns the settings of a cell's run. The mixture weights of a control are placeholders (equal
    /// weights): the real ones are known once its choice is mixed.
    ///
    /// # Errors
    /// [`Error::Config`] for invalid settings.
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

    /// Returns the run directory of a cell.
    pub fn cell_folder(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("cells")
            .join(&self.students[cell.student].name)
            .join(self.comparisons[cell.comparison].folder(cell.arm))
            .join(format!("seed-{}", cell.seed))
    }

    /// Returns the folder with the answers of a cell's student before training.
    pub(super) fn untuned_folder(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("untuned")
            .join(&self.students[cell.student].name)
            .join(&self.comparisons[cell.comparison].name)
            .join(format!("seed-{}", cell.seed))
    }

    /// Returns the file that stores the result of a finished cell, or of a student before training.
    pub fn result_file(&self, cell: &Cell) -> PathBuf {
        self.out
            .join("results")
            .join(&self.students[cell.student].name)
            .join(self.comparisons[cell.comparison].folder(cell.arm))
            .join(format!("seed-{}.json", cell.seed))
    }

    /// Validates the settings, including those of every cell.
    ///
    /// # Errors
    /// [`Error::Config`] with the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        self.validate_names()?;
        self.validate_runs()?;
        self.validate_pretraining()?;
        self.validate_benchmarks()?;
        let seeds: BTreeSet<&u64> = self.seeds.iter().collect();
        if seeds.len() != self.seeds.len() {
            return refuse("seeds", "it lists a seed twice", "List each seed once");
        }
        for comparison in &self.comparisons {
            comparison.validate()?;
        }
        self.validate_folders()?;
        if !(1..=1_000_000).contains(&self.resamples) {
            let what = format!("it is {}", self.resamples);
            return refuse("resamples", what, "Use 1 to 1000000; the default is 2000");
        }
        for cell in self.cells() {
            let config = self.run_config(&cell)?;
            config.validate().map_err(|error| error.in_table("run"))?;
            if config.mixture.share == Share::Auto {
                let what = "it is auto, but a study trains the shares in alphas";
                return refuse("run.mixture.share", what, "Leave it out");
            }
            if config.evaluation.questions == 0 && self.benchmarks.is_empty() {
                let hint = "Set run.evaluation.questions, or add a benchmark";
                return refuse("benchmarks", "there are no test problems", hint);
            }
        }
        Ok(())
    }

    /// Checks that students and comparisons have unique names that can be folder names.
    fn validate_names(&self) -> Result<()> {
        if self.seeds.is_empty() || self.students.is_empty() || self.comparisons.is_empty() {
            let what = "seeds, students, or comparisons are empty";
            return refuse("seeds", what, "Set at least one of each");
        }
        let students: Vec<&String> = self.students.iter().map(|student| &student.name).collect();
        let comparisons: Vec<&String> =
            self.comparisons.iter().map(|comparison| &comparison.name).collect();
        for (key, names) in [("students", students), ("comparisons", comparisons)] {
            let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
            let is_folder =
                |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
            if let Some(name) = names.iter().find(|name| !is_folder(name)) {
                let what = format!("the name \"{name}\" cannot be a folder name");
                return refuse(key, what, "Use only letters, digits, -, _, and .");
            }
            let different: BTreeSet<String> =
                names.iter().map(|name| name.to_lowercase()).collect();
            if different.len() != names.len() {
                return refuse(key, "a name is used twice", "Give each one its own name");
            }
        }
        Ok(())
    }

    /// Checks that run settings leave out what the study sets itself.
    fn validate_runs(&self) -> Result<()> {
        let tables = [&self.run].into_iter();
        let tables = tables.chain(self.comparisons.iter().map(|comparison| &comparison.run));
        for table in tables.chain(self.students.iter().map(|student| &student.run)) {
            for path in OWN {
                let mut keys = path.split('.');
                let first = keys.next().and_then(|key| table.get(key));
                if keys.fold(first, |value, key| value?.get(key)).is_some() {
                    let hint = "Leave it out; use the study's seeds, data_seed, alphas, choices, and \
                                keep_checkpoints instead";
                    return refuse(&format!("run.{path}"), "the study sets it", hint);
                }
            }
        }
        Ok(())
    }

    /// Checks that benchmarks have unique names: tables show them by file name.
    fn validate_benchmarks(&self) -> Result<()> {
        let mut files = BTreeSet::from(["held-out".to_owned()]);
        for path in &self.benchmarks {
            let name = DataFiles::stem_of(path).to_lowercase();
            if !files.insert(name) {
                let what = format!("{} has the same name as another benchmark", path.display());
                return refuse("benchmarks", what, "Use files with different names");
            }
        }
        Ok(())
    }
}

fn refuse(key: &str, what: impl Into<String>, hint: &str) -> Result<()> {
    Err(Error::config(key, what, hint))
}
