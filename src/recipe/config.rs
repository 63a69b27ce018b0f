//! Everything that a run can be told, in one struct; TOML files and flags fill the same one.

use crate::data::arith::ArithConfig;
use crate::data::{ColumnMap, Join, MAX_LEFT_OUT, MixtureConfig, Packing, PlainTemplate, TooLong};
use crate::error::{Error, Result};
use crate::eval::AnswerKind;
use crate::model::{
    DecoderConfig, FileType, GenerateConfig, LoraConfig, MAX_SHARD_BYTES, Precision,
};
use crate::ops::Distillation;
use crate::train::TrainConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file of one teacher's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name in the mixture.
    pub name: String,
    /// JSONL, JSON or Parquet.
    pub path: PathBuf,
    /// Which columns hold what; without it they are recognized by name.
    #[serde(default)]
    pub columns: ColumnMap,
}

/// Which problems are trained on, and as which tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The teachers' answers; empty means the built-in toy corpus, with sources long and short.
    pub sources: Vec<SourceConfig>,
    /// Share of a file's rows that may be unusable (no JSON, a wrong type, no problem, no answer), 0
    /// to 1; they are left out and counted by reason. One row may be in any file, unless it is 0.
    pub max_left_out: f64,
    /// Which problems are kept when the sources are joined.
    pub join: Join,
    /// Whether only problems are kept that every source answers within the length limit; a
    /// comparison sets it.
    pub complete: bool,
    /// A `tokenizer.json`; without it the built-in tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// The token that ends an answer, in place of the chat template's and the tokenizer's own.
    pub end_token: Option<String>,
    /// A chat template in a file, or `none` for the built-in layout; without it the base model's.
    pub chat_template: Option<String>,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// The system's message in each conversation; without it the chat template's own.
    pub system_prompt: Option<String>,
    /// Seed of the toy corpus and of the held-out split, where it is not the run's. Problems are then
    /// held out by their text, so that runs of other seeds, tokenizers or length limits are tested on
    /// the same ones.
    pub seed: Option<u64>,
    /// The date that a chat template sees, as YYYY-MM-DD; without it the day of the run's start.
    pub date: Option<String>,
    /// Length limit of a row in tokens: prompt, answer and end token.
    pub max_length: usize,
    /// What happens to longer rows.
    pub too_long: TooLong,
    /// Share of the problems that is held out, 0 to 1 (files only; the toy corpus has a test set).
    pub hold_out: f64,
    /// Problems of the toy corpus to train on.
    pub toy_problems: usize,
    /// Problems of the toy corpus to test with.
    pub toy_test_problems: usize,
    /// What the toy problems are like.
    pub toy: ArithConfig,
    /// Layout of prompt and answer where there is no chat template.
    pub template: PlainTemplate,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            sources: vec![],
            max_left_out: MAX_LEFT_OUT,
            join: Join::Inner,
            complete: false,
            tokenizer: None,
            end_token: None,
            chat_template: None,
            template_variables: BTreeMap::new(),
            system_prompt: None,
            seed: None,
            date: None,
            max_length: 512,
            too_long: TooLong::Drop,
            hold_out: 0.05,
            toy_problems: 9_000,
            toy_test_problems: 200,
            toy: ArithConfig::default(),
            template: PlainTemplate::default(),
        }
    }
}

/// How the student is written at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaveConfig {
    /// `f32`, the weights as they were trained, or `bf16`, half the size.
    pub file_type: FileType,
    /// Largest size of a file of weights, in bytes, before it is divided.
    pub max_shard_bytes: u64,
}

impl Default for SaveConfig {
    fn default() -> Self {
        Self { file_type: FileType::F32, max_shard_bytes: MAX_SHARD_BYTES }
    }
}

/// What is measured on held-out problems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Problems whose held-out loss is taken during training.
    pub loss_problems: usize,
    /// Problems that the model answers before and after training; those without a reference
    /// answer are left out. 0 asks none.
    pub questions: usize,
    /// Whether they are asked before training too.
    pub before: bool,
    /// Where their answers are looked for.
    pub kind: AnswerKind,
    /// Of these, how many are answered at each evaluation during training too. Takes its time:
    /// generation is far slower than a training step on as many tokens.
    pub during_training: usize,
    /// Answers that are shown.
    pub samples: usize,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            loss_problems: 64,
            questions: 200,
            before: true,
            kind: AnswerKind::Stated,
            during_training: 0,
            samples: 3,
        }
    }
}

/// A teacher whose logits the student learns, beside the answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// A folder of logits that the example `teacher_logits` wrote, or a model with the student's
    /// tokens, which then runs beside the training: a folder, or with the feature `hub` a name.
    pub path: String,
    /// Tokens that such a model tells for each trained token; a folder of logits has its own.
    #[serde(default = "usual_top_k")]
    pub top_k: usize,
}

/// Nearly all of a language model's probability, for most tokens.
fn usual_top_k() -> usize {
    64
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The run directory.
    pub out: PathBuf,
    /// Seed of the corpus, the held-out split, the mixture, the order and the initial weights.
    pub seed: u64,
    /// `auto`, or one of `cuda`, `metal`, `rocm`, `vulkan`, `wgpu`, `flex`, `ndarray`.
    pub backend: String,
    /// The data.
    pub data: DataConfig,
    /// The mixture. Its seed and its planned rows are set by the run.
    pub mixture: MixtureConfig,
    /// The model to fine-tune: a folder in Hugging Face's format, or, with the feature `hub`,
    /// `owner/name` or `owner/name@revision`. Without it the student starts from random weights.
    pub base_model: Option<String>,
    /// Train low-rank adapters and leave the base model's weights as they are.
    pub lora: Option<LoraConfig>,
    /// The student that starts from random weights. A vocabulary of 0 means the tokenizer's.
    pub model: DecoderConfig,
    /// What is computed in: `f32`, or `bf16` where the device can; trained weights and the loss are
    /// f32 with either.
    pub precision: Precision,
    /// A teacher whose logits are learned, as `train.objective.distillation` says.
    pub teacher: Option<TeacherConfig>,
    /// The training.
    pub train: TrainConfig,
    /// How held-out problems are answered.
    pub generate: GenerateConfig,
    /// What is measured.
    pub evaluation: EvaluationConfig,
    /// How the student is written.
    pub save: SaveConfig,
}

impl Default for RunConfig {
    /// The toy run: a student of about a million parameters, from random weights.
    fn default() -> Self {
        Self {
            out: "run".into(),
            seed: 1,
            backend: "auto".into(),
            data: DataConfig::default(),
            mixture: MixtureConfig::default(),
            base_model: None,
            lora: None,
            // Measured on the toy corpus: from 0.06 a student of this size learns in far fewer steps
            // than from the usual 0.02.
            model: DecoderConfig { initializer_range: 0.06, ..DecoderConfig::default() },
            precision: Precision::F32,
            teacher: None,
            train: TrainConfig {
                epochs: 1.0,
                batch_size: 8,
                accumulate: 1,
                learning_rate: 2e-3,
                warmup_steps: 20,
                min_lr_ratio: 0.05,
                beta_2: 0.95,
                weight_decay: 0.01,
                packing: Packing::On,
                evaluate_every: 250,
                checkpoint_every: 500,
                ..TrainConfig::default()
            },
            generate: GenerateConfig { batch_size: 100, ..GenerateConfig::default() },
            evaluation: EvaluationConfig::default(),
            save: SaveConfig::default(),
        }
    }
}

impl RunConfig {
    /// The defaults for fine-tuning a model in a folder: the paper's learning rates (1e-5, and 1e-4
    /// with adapters), two epochs, rows of up to 2,048 tokens. Held-out losses are taken; answering
    /// held-out questions is left to whoever asks for it, since it may take longer than the
    /// training.
    pub fn for_base_model(name: impl Into<String>, lora: Option<LoraConfig>) -> Self {
        let rate = if lora.is_some() { 1e-4 } else { 1e-5 };
        let base = Self::default();
        Self {
            base_model: Some(name.into()),
            lora,
            data: DataConfig { max_length: 2048, ..base.data },
            train: TrainConfig {
                batch_size: 2,
                accumulate: 8,
                learning_rate: rate,
                packing: Packing::On,
                evaluate_every: 50,
                checkpoint_every: 50,
                ..TrainConfig::default()
            },
            generate: GenerateConfig { batch_size: 16, max_new_tokens: 1024, ..base.generate },
            evaluation: EvaluationConfig { questions: 0, ..base.evaluation },
            ..base
        }
    }

    /// Reads a TOML file; what it does not name keeps its default, and unknown keys are errors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] with the line and what is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, None, None)
    }

    /// As [`RunConfig::read`], with the model and the adapters to train where they are given; which
    /// defaults the settings start from depends on those.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn read_with(
        path: &Path,
        base_model: Option<String>,
        lora: Option<LoraConfig>,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_toml_with(&text, base_model, lora).map_err(|error| match error {
            Error::Config { key, what, hint } => {
                Error::Config { key, what: format!("{}: {what}", path.display()), hint }
            }
            error => error,
        })
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::from_toml_with(text, None, None)
    }

    fn from_toml_with(
        text: &str,
        base_model: Option<String>,
        lora: Option<LoraConfig>,
    ) -> Result<Self> {
        // Read by itself first: that reports unknown keys and wrong types with their line.
        let given: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            Error::config(
                "config",
                format!("line {line}: {}", e.message()),
                "`--print-config` shows every setting with its default",
            )
        })?;
        // Then laid over the defaults of a run, so that a table that names one key changes one key.
        let failed = |what: String| {
            Error::config("config", what, "`--print-config` shows every setting with its default")
        };
        let base = match base_model.clone().or(given.base_model) {
            Some(name) => Self::for_base_model(name, lora.clone().or(given.lora)),
            None => Self::default(),
        };
        let mut all = toml::Table::try_from(base).map_err(|e| failed(e.to_string()))?;
        merge(&mut all, toml::from_str(text).map_err(|e| failed(e.to_string()))?);
        let mut config: Self =
            all.try_into().map_err(|e: toml::de::Error| failed(e.to_string()))?;
        config.base_model = base_model.or(config.base_model);
        config.lora = lora.or(config.lora);
        if let Some(teacher) = config.teacher.clone() {
            config.set_teacher(teacher);
        }
        Ok(config)
    }

    /// The settings as TOML.
    ///
    /// # Errors
    /// [`Error::Config`] where a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| {
            Error::config("config", e.to_string(), "This is a defect; please report it")
        })
    }

    /// Reads settings from TOML tables, each laid over those before it, and all over the defaults.
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`].
    pub fn from_tables(tables: &[&toml::Table]) -> Result<Self> {
        let mut all = toml::Table::new();
        tables.iter().for_each(|table| merge(&mut all, (*table).clone()));
        let text = toml::to_string(&all).map_err(|e| {
            Error::config("config", e.to_string(), "This is a defect; please report it")
        })?;
        Self::from_toml(&text)
    }

    /// The seed of the toy corpus and of the held-out split.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// Sets the teacher, and its part in the loss to the usual one where it has none.
    pub fn set_teacher(&mut self, teacher: TeacherConfig) {
        self.teacher = Some(teacher);
        self.train.objective.distillation.get_or_insert_with(Distillation::default);
    }

    /// Sets the weights of `long` and `short`.
    ///
    /// # Errors
    /// [`Error::Config`] for a share outside 0 to 1.
    pub fn set_share(&mut self, share: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&share) {
            let what = format!("it is {share}");
            return Err(Error::config("share", what, "Give the share of long answers, 0 to 1"));
        }
        self.mixture.weights = MixtureConfig::long_short(share).weights;
        Ok(())
    }

    /// Checks the settings that need no file.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.train.validate()?;
        self.generate.validate()?;
        if self.train.objective.distillation.is_some() && self.teacher.is_none() {
            return Err(Error::config(
                "train.objective.distillation",
                "there is no teacher",
                "Name one with teacher.path (--teacher)",
            ));
        }
        let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
        if let Some(teacher) = &self.teacher {
            if self.train.objective.distillation.is_none() {
                let what = "a teacher is named, and has no part in the loss".to_owned();
                return refuse(
                    "teacher",
                    what,
                    "Set train.objective.distillation, or leave it out",
                );
            }
            if teacher.top_k == 0 {
                return refuse("teacher.top_k", "it is 0".into(), "64 is usual");
            }
        }
        let asked = &self.evaluation;
        if asked.during_training > 0
            && (asked.questions < asked.during_training || self.train.evaluate_every == 0)
        {
            let what = format!(
                "it is {}, of {} questions, at evaluations every {} steps",
                asked.during_training, asked.questions, self.train.evaluate_every
            );
            let hint = "Raise evaluation.questions (--questions) and train.evaluate_every";
            return refuse("evaluation.during_training", what, hint);
        }
        let data = &self.data;
        if data.max_length < 2 {
            let what = format!("it is {}", data.max_length);
            return refuse("data.max_length", what, "A row needs at least two tokens");
        }
        if !(0.0..1.0).contains(&data.hold_out) {
            let what = format!("it is {}", data.hold_out);
            return refuse("data.hold_out", what, "Give a share of the problems, 0 to below 1");
        }
        if let Some(lora) = &self.lora {
            lora.validate()?;
            if self.save.file_type != FileType::F32 {
                let what = "adapters are written as they were trained, in f32".to_owned();
                return refuse(
                    "save.file_type",
                    what,
                    "Leave it out, or merge them with --save-type",
                );
            }
            if self.base_model.is_none() {
                let what = "there is no model to add adapters to".to_owned();
                return refuse("lora", what, "Name it with base_model (--model)");
            }
        }
        if self.base_model.is_some() && data.tokenizer.is_some() {
            let what = "the base model has a tokenizer of its own".to_owned();
            return refuse("data.tokenizer", what, "Leave it out");
        }
        if let Some(date) = &data.date
            && date.parse::<jiff::civil::Date>().is_err()
        {
            return refuse("data.date", format!("it is \"{date}\""), "Give it as YYYY-MM-DD");
        }
        if self.save.max_shard_bytes == 0 {
            return refuse("save.max_shard_bytes", "it is 0".into(), "Give a positive number");
        }
        if data.sources.is_empty() {
            let toy = &data.toy;
            let ordered = 1 <= toy.operations.0 && toy.operations.0 <= toy.operations.1;
            if !ordered || toy.operations.1 > 64 {
                let what = format!("{} to {}", toy.operations.0, toy.operations.1);
                return refuse("data.toy.operations", what, "Give 1 to 64, the smaller first");
            }
            let fits = |x: i64| (1..=1_000_000_000).contains(&x);
            if !fits(toy.start) || !fits(toy.operand) {
                return refuse("data.toy", "start or operand".into(), "Give 1 to 1000000000");
            }
            if data.toy_problems == 0 || data.toy_problems + data.toy_test_problems > 10_000_000 {
                let what = format!("{} problems", data.toy_problems);
                return refuse("data.toy_problems", what, "Give 1 to 10000000");
            }
        }
        Ok(())
    }
}

/// Lays the keys of `over` over those of `base`, table by table. Values that are one choice
/// together, such as the weights of a mixture, are replaced as a whole.
fn merge(base: &mut toml::Table, over: toml::Table) {
    const WHOLE: [&str; 4] = ["weights", "schedule", "template_variables", "divergence"];
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over))
                if !WHOLE.contains(&key.as_str()) =>
            {
                merge(base, over);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
