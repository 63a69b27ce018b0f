//! Settings of making pairs.

use super::{ChatConfig, LocalConfig, ReasoningForm};
use crate::error::{Error, Result};
use crate::settings::{Layers, Settings, table_of};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Which of several correct answers is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The first; the teacher is not asked for more.
    #[default]
    First,
    /// The one with the fewest characters.
    Shortest,
    /// The one with the most.
    Longest,
}

/// Which problems are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Those that both teachers answered correctly, as in the paper.
    #[default]
    Both,
    /// Those that at least one did.
    Either,
}

/// A teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherConfig {
    /// Requests to a server at the same time.
    pub concurrency: usize,
    /// Answers that a server is asked for in one request; where it gives fewer, it is asked again.
    pub n: usize,
    /// How its reasoning becomes part of the text that is trained on.
    pub reasoning: ReasoningForm,
    /// What a million tokens of questions cost, and of answers.
    pub price: [f64; 2],
    /// The server that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ChatConfig>,
    /// Or the model in a folder that does, run here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            n: 1,
            reasoning: ReasoningForm::default(),
            price: [0.0; 2],
            server: None,
            local: None,
        }
    }
}

impl TeacherConfig {
    fn validate(&self, samples: usize) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        /// Threads, each with a connection.
        const MOST: usize = 1024;
        if !(1..=MOST).contains(&self.concurrency) {
            let what = format!("it is {}", self.concurrency);
            return refuse("concurrency", what, "Give a number from 1 to 1024");
        }
        if self.n == 0 {
            return refuse("n", "it is 0".into(), "Give at least 1");
        }
        if self.price.iter().any(|price| !(0.0..1e9).contains(price)) {
            let what = format!("it is {:?}", self.price);
            return refuse("price", what, "Give the prices of a million tokens asked and answered");
        }
        let temperature = match (&self.server, &self.local) {
            (Some(server), None) => {
                server.validate().map_err(|error| error.in_table("server"))?;
                ("server.temperature", server.temperature)
            }
            (None, Some(local)) => {
                local.validate().map_err(|error| error.in_table("local"))?;
                if self.n > 1 {
                    let what = "a model that runs here answers a question once".to_owned();
                    return refuse("n", what, "Leave it out; samples says how often it is asked");
                }
                ("local.temperature", local.temperature)
            }
            (None, None) => {
                let what = "nobody is named".into();
                return refuse("server", what, "Give the address of a server, or a model's folder");
            }
            (Some(_), Some(_)) => {
                let what = "a server is named, and a folder too".into();
                return refuse("server", what, "Name one of them");
            }
        };
        if samples > 1 && temperature.1 == 0.0 {
            let what = format!("it is 0, so that {samples} answers to a problem are all the same");
            return refuse(temperature.0, what, "Set one above 0, or samples to 1");
        }
        Ok(())
    }
}

/// How pairs are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MakePairsConfig {
    /// File of problems with answers, in any shape that [`Benchmark`](crate::eval::Benchmark) reads, or a
    /// dataset on the hub.
    pub problems: PathBuf,
    /// Problems that are taken, from the first on; without it all.
    pub limit: Option<usize>,
    /// Files or datasets of problems with answers that must not be among them.
    pub benchmarks: Vec<PathBuf>,
    /// Similarity from which two problems with the same answer count as one, 0.6 to 1; see
    /// [`near_duplicates`](crate::data::near_duplicates).
    pub near_duplicates: f64,
    /// Whether problems are followed by the instruction to reason and to box the answer.
    pub instruct: bool,
    /// Answers that each teacher is asked for to a problem, at most.
    pub samples: usize,
    /// Which of several correct ones is kept.
    pub pick: Pick,
    /// Which problems are kept.
    pub keep: Keep,
    /// Seed of the draws; a problem's first answer has this one, the second the next.
    pub seed: u64,
    /// Who answers at length.
    pub long: TeacherConfig,
    /// Who answers briefly.
    pub short: TeacherConfig,
}

impl Default for MakePairsConfig {
    fn default() -> Self {
        Self {
            problems: PathBuf::new(),
            limit: None,
            benchmarks: vec![],
            near_duplicates: 0.8,
            instruct: true,
            samples: 1,
            pick: Pick::default(),
            keep: Keep::default(),
            seed: 0,
            long: TeacherConfig::default(),
            short: TeacherConfig::default(),
        }
    }
}

impl Settings for MakePairsConfig {
    fn defaults(_given: &toml::Table) -> Result<toml::Table> {
        table_of(&Self::default())
    }
}

impl MakePairsConfig {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// As [`Layers::file`] and [`Layers::settings`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        layers.settings()
    }

    /// The settings of a text in TOML.
    ///
    /// # Errors
    /// As [`MakePairsConfig::read`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.text(text)?;
        layers.settings()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.validate_problems()?;
        for (role, teacher) in [("long", &self.long), ("short", &self.short)] {
            teacher.validate(self.samples).map_err(|error| error.in_table(role))?;
        }
        Ok(())
    }

    /// The same, but for who the teachers are.
    pub(super) fn validate_problems(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        if self.problems.as_os_str().is_empty() {
            let hint = "Name a JSONL file of problems with answers";
            return refuse("problems", "it is missing".into(), hint);
        }
        if self.limit == Some(0) {
            return refuse("limit", "it is 0".into(), "Give at least 1, or leave it out");
        }
        // Lower ones are found too seldom.
        if !(0.6..=1.0).contains(&self.near_duplicates) {
            let what = format!("it is {}", self.near_duplicates);
            return refuse("near_duplicates", what, "Give a number from 0.6 to 1");
        }
        /// Far above any use.
        const MOST_SAMPLES: usize = 1 << 16;
        if !(1..=MOST_SAMPLES).contains(&self.samples) {
            let what = format!("it is {}", self.samples);
            return refuse("samples", what, "Give a number from 1 to 65536");
        }
        Ok(())
    }
}
