//! Settings of making pairs.

use super::{ChatConfig, LocalConfig, ReasoningForm};
use crate::error::{Error, Result};
use crate::settings::{Layers, Settings, table_of};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Which of several correct answers to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The first correct answer. The teacher is not asked for more answers once it has one.
    #[default]
    First,
    /// The correct answer with the fewest characters. The teacher is asked for all `samples`.
    Shortest,
    /// The correct answer with the most characters. The teacher is asked for all `samples`.
    Longest,
}

/// Which problems to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Problems that both teachers answered correctly, as in the paper.
    #[default]
    Both,
    /// Problems that at least one teacher answered correctly. Each file then has the rows of its own teacher.
    Either,
}

/// A teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherConfig {
    /// Number of concurrent requests to a server, 1 to 1,024. A local model ignores it.
    pub concurrency: usize,
    /// Number of answers per request to a server. If the server returns fewer than `samples` in total, it is
    /// asked again. Not every server supports more than 1; a local model requires 1.
    pub n: usize,
    /// How the reasoning of a reasoning model becomes part of the training text.
    pub reasoning: ReasoningForm,
    /// Prices of a million prompt tokens and of a million answer tokens, in a currency of your choice. The
    /// report shows the cost. 0 and 0 leave it out.
    pub price: [f64; 2],
    /// The server that runs the teacher. Set either this table or `local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ChatConfig>,
    /// A model that runs in this process as the teacher. Set either this table or `server`.
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
        /// Each connection has a thread.
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
            let hint = "Give the prices of a million prompt tokens and a million answer tokens";
            return refuse("price", what, hint);
        }
        let temperature = match (&self.server, &self.local) {
            (Some(server), None) => {
                server.validate().map_err(|error| error.in_table("server"))?;
                ("server.temperature", server.temperature)
            }
            (None, Some(local)) => {
                local.validate().map_err(|error| error.in_table("local"))?;
                if self.n > 1 {
                    let what = "a local model gives one answer per request".to_owned();
                    return refuse("n", what, "Leave it out; samples sets the number of answers");
                }
                ("local.temperature", local.temperature)
            }
            (None, None) => {
                let what = "no teacher is set".into();
                return refuse("server", what, "Give the URL of a server or the folder of a model");
            }
            (Some(_), Some(_)) => {
                let what = "both a server and a local model are set".into();
                return refuse("server", what, "Set only one of them");
            }
        };
        if samples > 1 && temperature.1 == 0.0 {
            let what = format!("it is 0, so {samples} answers to a problem would be identical");
            return refuse(temperature.0, what, "Set a value above 0, or set samples to 1");
        }
        Ok(())
    }
}

/// Settings of [`make_pairs`](super::make_pairs).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MakePairsConfig {
    /// File of problems with known answers, in the published format of a benchmark (JSONL, JSON, CSV, TSV, or
    /// Parquet), or a dataset on the Hugging Face Hub, such as `owner/name:train`.
    pub problems: PathBuf,
    /// Number of problems to use, from the first one. If unset, all are used.
    pub limit: Option<usize>,
    /// Benchmarks, as files or datasets, whose problems are excluded: a problem is left out if it has the
    /// same text as a benchmark problem or shares thirteen words in a row with one.
    pub benchmarks: Vec<PathBuf>,
    /// Similarity from which two problems with the same answer count as duplicates, 0.6 to 1. Only the first
    /// one is kept. The similarity is the share of three-word sequences that both texts have, of those that
    /// either has; 1 leaves out only texts with the same words.
    pub near_duplicates: f64,
    /// Whether to append the instruction to reason step by step and to put the final answer in a box. Without
    /// it, teachers get only the problem.
    pub instruct: bool,
    /// Maximum number of answers to request from each teacher per problem, 1 to 65,536. More than 1 requires
    /// a temperature above 0. With `pick = "first"`, a teacher is asked only until it has a correct answer.
    pub samples: usize,
    /// Which of several correct answers to keep.
    pub pick: Pick,
    /// Which problems to keep.
    pub keep: Keep,
    /// Random seed for sampling. The first answer to a problem uses this seed, the second one the next
    /// number, and so on.
    pub seed: u64,
    /// The teacher that gives long answers.
    pub long: TeacherConfig,
    /// The teacher that gives short answers.
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
    /// Reads settings from a TOML file.
    ///
    /// # Errors
    /// Same as [`Layers::file`] and [`Layers::settings`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        layers.settings()
    }

    /// Parses settings from TOML text.
    ///
    /// # Errors
    /// Same as [`MakePairsConfig::read`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.text(text)?;
        layers.settings()
    }

    /// Validates the settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first invalid setting.
    pub fn validate(&self) -> Result<()> {
        self.validate_problems()?;
        for (role, teacher) in [("long", &self.long), ("short", &self.short)] {
            teacher.validate(self.samples).map_err(|error| error.in_table(role))?;
        }
        Ok(())
    }

    /// Validates everything except the teachers.
    pub(super) fn validate_problems(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        if self.problems.as_os_str().is_empty() {
            let hint = "Set it to a file of problems with answers";
            return refuse("problems", "it is missing".into(), hint);
        }
        if self.limit == Some(0) {
            return refuse("limit", "it is 0".into(), "Give at least 1, or leave it out");
        }
        // Near-duplicates of lower similarity are found too rarely.
        if !(0.6..=1.0).contains(&self.near_duplicates) {
            let what = format!("it is {}", self.near_duplicates);
            return refuse("near_duplicates", what, "Give a number from 0.6 to 1");
        }
        /// Far more than anyone needs.
        const MOST_SAMPLES: usize = 1 << 16;
        if !(1..=MOST_SAMPLES).contains(&self.samples) {
            let what = format!("it is {}", self.samples);
            return refuse("samples", what, "Give a number from 1 to 65536");
        }
        Ok(())
    }
}
