//! The settings of a run: one struct, filled from TOML files and flags.

mod validate;

use super::pilots::PilotsConfig;
use crate::data::arith::ArithConfig;
use crate::data::{
    AnswersKept, ColumnMap, Join, MAX_LEFT_OUT, MixtureConfig, Packing, PlainTemplate, TooLong,
    TrainedTurns,
};
use crate::error::{Error, Result};
use crate::eval::AnswerKind;
use crate::model::{
    BaseWeights, DecoderConfig, FileType, GenerateConfig, LoraConfig, MAX_SHARD_BYTES, Precision,
};
use crate::ops::Distillation;
use crate::settings::{Layers, Settings, table_of, to_toml};
use crate::train::TrainConfig;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A source: one teacher's answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the source, as in `mixture.weights`.
    pub name: String,
    /// File to read: JSONL, JSON, CSV, TSV (each optionally compressed with gzip or Zstandard), or Parquet.
    /// With the feature `hub`, also a dataset on the Hugging Face Hub, such as `owner/name:train`; the run's
    /// `config.toml` then records the commit that was read.
    pub path: PathBuf,
    /// Columns to read. Columns that are not listed are recognized by name.
    #[serde(default)]
    pub columns: ColumnMap,
    /// Chat template variables for the rows of this source. They override `data.template_variables`. For
    /// example, set `enable_thinking` to `true` for long answers and to `false` for short ones.
    #[serde(default)]
    pub template_variables: BTreeMap<String, serde_json::Value>,
}

/// The data: sources, pairing, prompt layout, length limit, and held-out split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Sources of answers, as a list or by name (`[data.sources.long]`). Empty means the built-in toy corpus
    /// with the sources `long` and `short`.
    pub sources: Vec<SourceConfig>,
    /// Largest share of a file's rows that may be unusable (broken JSON, a wrong type, no problem, or no
    /// answer), from 0 to 1. Unusable rows are left out and counted by reason. Above this share, the run
    /// stops. One unusable row per file is always allowed, unless this is 0.
    pub max_left_out: f64,
    /// Which problems to keep when the sources are joined.
    pub join: Join,
    /// Keep only problems that every source answers within the length limit. `compare` always sets this.
    pub complete: bool,
    /// Which answers to keep if a source has several to one problem: `first`, or `all` as candidates for
    /// `mixture.choice`. If unset, `all` applies with `mixture.choice`, and `first` without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersKept>,
    /// Maximum number of problems to train on. If there are more, their text and the seed decide which ones
    /// are used. If unset, all problems that are not held out are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<usize>,
    /// Path of a `tokenizer.json` for a student that starts from random weights. If unset, the toy corpus
    /// uses a built-in tokenizer; files require one. A `base_model` brings its own tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// Token that ends an answer. If unset, the end token of the chat template or the tokenizer is used.
    pub end_token: Option<String>,
    /// Path of a chat template, or `none` for the built-in layout (`data.template`). If unset, the base
    /// model's chat template is used, or the built-in layout if it has none.
    pub chat_template: Option<String>,
    /// Chat template variables, such as `enable_thinking`. `data.sources.*.template_variables` overrides them
    /// for the rows of a source, and `evaluation.template_variables` for held-out questions.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// System message of every conversation. It replaces any in the data. If unset, a row's own system text
    /// or the chat template's default is used. Requires a chat template.
    pub system_prompt: Option<String>,
    /// Seed of the held-out split and the toy corpus. If set, problems are held out by their text, so runs
    /// with other seeds, tokenizers, or length limits hold out the same problems. If unset, `seed` is used.
    pub seed: Option<u64>,
    /// Date that chat templates see, as YYYY-MM-DD. If unset, it is the day on which the run starts.
    pub date: Option<String>,
    /// Which answers of a conversation with several turns to train on.
    pub trained_turns: TrainedTurns,
    /// Maximum length of a row in tokens: prompt, answer, and end token. Raise it if too many long answers
    /// are left out; memory and time grow with it.
    pub max_length: usize,
    /// What to do with rows that are longer than `data.max_length`.
    pub too_long: TooLong,
    /// Share of the problems to hold out for evaluation, from 0 to below 1. The toy corpus has a test set
    /// instead, unless `data.toy_test_problems` is 0.
    pub hold_out: f64,
    /// Number of toy problems to train on.
    pub toy_problems: usize,
    /// Number of toy problems to test on.
    pub toy_test_problems: usize,
    /// Shape of the toy problems.
    pub toy: ArithConfig,
    /// Layout of prompt and answer if there is no chat template.
    pub template: PlainTemplate,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            sources: vec![],
            max_left_out: MAX_LEFT_OUT,
            join: Join::Inner,
            complete: false,
            answers: None,
            problems: None,
            tokenizer: None,
            end_token: None,
            chat_template: None,
            template_variables: BTreeMap::new(),
            system_prompt: None,
            seed: None,
            date: None,
            trained_turns: TrainedTurns::Last,
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

/// How the trained student is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaveConfig {
    /// Number type of the written weights: `f32`, as they were trained, or `bf16`, half the size. Adapters
    /// are always f32.
    pub file_type: FileType,
    /// Maximum size of a weight file in bytes. Larger models are split into several files.
    pub max_shard_bytes: u64,
}

impl Default for SaveConfig {
    fn default() -> Self {
        Self { file_type: FileType::F32, max_shard_bytes: MAX_SHARD_BYTES }
    }
}

/// What to measure on held-out problems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Number of held-out problems to compute the held-out loss on, for each source. 0 turns it off.
    pub loss_problems: usize,
    /// Number of held-out problems that the student answers before and after training. Only problems with a
    /// reference answer count. 0 turns this off.
    pub questions: usize,
    /// Whether to ask the questions before training, too.
    pub before: bool,
    /// How to find the final answer in the student's text.
    pub kind: AnswerKind,
    /// Chat template variables for the questions. They override `data.template_variables`. Held-out losses
    /// use the variables of each source instead.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// Number of questions to ask at each evaluation during training (`train.evaluate_every`), at most
    /// `evaluation.questions`. 0 asks none. Generating text is far slower than training on the same number of
    /// tokens.
    pub during_training: usize,
    /// Number of answers to show as samples after training and at each evaluation that asks questions.
    pub samples: usize,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            loss_problems: 64,
            questions: 200,
            before: true,
            kind: AnswerKind::Stated,
            template_variables: BTreeMap::new(),
            during_training: 0,
            samples: 3,
        }
    }
}

/// A teacher whose logits the student learns in addition to the answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitTeacherConfig {
    /// Folder of logits that `mixdistill logits` wrote, or a model that runs during training and has the
    /// student's tokens: a model folder, a GGUF file, a run, or, with the feature `hub`, a name on the
    /// Hugging Face Hub.
    pub path: String,
    /// Number of the teacher's most likely tokens to learn at each trained token. This applies to a model; a
    /// folder of logits has its own number.
    #[serde(default = "usual_top_k")]
    pub top_k: usize,
}

/// Returns a number that, for most tokens, covers nearly all of a language model's probability.
fn usual_top_k() -> usize {
    64
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default = "RunConfig::toy")]
pub struct RunConfig {
    /// Run directory.
    pub out: PathBuf,
    /// Seed of the toy corpus, the held-out split, the mixture, the order of the rows, and the initial
    /// weights.
    pub seed: u64,
    /// Backend to compute on: `cuda`, `metal`, `rocm`, `vulkan`, `wgpu`, `flex`, `ndarray`, or `auto` for the
    /// first of these that is compiled in. `cuda:1` is the second CUDA device.
    pub backend: String,
    /// Which data to read, and how rows are made from it.
    pub data: DataConfig,
    /// Which source's answer each problem is trained with.
    pub mixture: MixtureConfig,
    /// How pilots find the share with `mixture.share = "auto"`.
    pub pilots: PilotsConfig,
    /// Model to fine-tune: a folder in Hugging Face's format, a GGUF file, or, with the feature `hub`,
    /// `owner/name` or `owner/name@revision`. If unset, the student starts from random weights.
    pub base_model: Option<String>,
    /// Train low-rank adapters and keep the base model frozen. If unset, all weights are trained.
    pub lora: Option<LoraConfig>,
    /// How frozen weights of the base model are stored in memory. Types other than f32 require adapters.
    pub base: BaseWeights,
    /// Shape of a student that starts from random weights. Not used with `base_model`.
    pub model: DecoderConfig,
    /// Number type to compute in: `f32`, or `bf16` on devices that support it. Trained weights, optimizer
    /// moments, and the loss are f32 with either.
    pub precision: Precision,
    /// Teacher whose logits the student learns in addition to the answers, as `train.objective.distillation`
    /// sets.
    pub teacher: Option<LogitTeacherConfig>,
    /// The training loop: steps, batches, optimizer, evaluations, and checkpoints.
    pub train: TrainConfig,
    /// How the student answers held-out questions.
    pub generate: GenerateConfig,
    /// What to measure on held-out problems.
    pub evaluation: EvaluationConfig,
    /// How to write the trained student.
    pub save: SaveConfig,
}

impl RunConfig {
    /// Returns the toy run: a student with about a million parameters, trained from random weights on the
    /// built-in corpus.
    pub fn toy() -> Self {
        Self {
            out: "run".into(),
            seed: 1,
            backend: "auto".into(),
            data: DataConfig::default(),
            mixture: MixtureConfig::default(),
            pilots: PilotsConfig::default(),
            base_model: None,
            lora: None,
            base: BaseWeights::default(),
            // Measured on the toy corpus: with 0.06, a student of this size learns in far fewer steps than
            // with the usual 0.02.
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

    /// Returns settings to fine-tune all weights of a model: the paper's learning rate of 1e-5, two epochs,
    /// and rows of up to 2,048 tokens. `model` is a folder in Hugging Face's format or, with the feature
    /// `hub`, `owner/name` or `owner/name@revision`. Held-out losses are computed; held-out questions are
    /// off, since answering them can take longer than training.
    pub fn fine_tune(model: impl Into<String>) -> Self {
        let base = Self::toy();
        Self {
            base_model: Some(model.into()),
            data: DataConfig { max_length: 2048, ..base.data },
            train: TrainConfig {
                batch_size: 2,
                accumulate: 8,
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

    /// Changes the settings to train adapters instead of the model's weights, at the paper's learning rate
    /// for adapters, 1e-4.
    pub fn with_lora(mut self, lora: LoraConfig) -> Self {
        self.lora = Some(lora);
        self.train.learning_rate = 1e-4;
        self
    }

    /// Reads a TOML file. Missing keys keep their defaults; unknown keys are errors.
    ///
    /// # Errors
    /// See [`Layers::file`] and [`Layers::settings`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        layers.settings()
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// See [`RunConfig::read`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.text(text)?;
        layers.settings()
    }

    /// Returns the settings as TOML. Optional settings without a value appear as comments.
    ///
    /// # Errors
    /// [`Error::Config`] if a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        to_toml(self, false)
    }

    /// Reads settings from TOML tables. Later tables override earlier ones, and all override the defaults.
    ///
    /// # Errors
    /// See [`RunConfig::read`].
    pub fn from_tables(tables: &[&toml::Table]) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        tables.iter().try_for_each(|table| layers.table(table))?;
        layers.settings()
    }

    /// Returns the names of the sources.
    pub fn source_names(&self) -> Vec<String> {
        match self.data.sources.is_empty() {
            true => ["long", "short"].map(str::to_owned).to_vec(),
            false => self.data.sources.iter().map(|source| source.name.clone()).collect(),
        }
    }

    /// Replaces a choice that needs the student's scores by equal shares. Also returns whether there was such
    /// a choice.
    pub(super) fn unscored(&self) -> (Self, bool) {
        let choice = self.mixture.choice.as_ref();
        if !choice.is_some_and(|choice| choice.by.needs_student()) {
            return (self.clone(), false);
        }
        let weights = self.source_names().into_iter().map(|name| (name, 1.0)).collect();
        let mixture = MixtureConfig { weights, ..MixtureConfig::default() };
        let mut config = Self { mixture, ..self.clone() };
        config.data.answers = Some(self.answers_kept());
        (config, true)
    }

    /// Returns which answers to keep if a source has several to one problem.
    pub fn answers_kept(&self) -> AnswersKept {
        let usual = match self.mixture.choice {
            Some(_) => AnswersKept::All,
            None => AnswersKept::First,
        };
        self.data.answers.unwrap_or(usual)
    }

    /// Returns the seed of the toy corpus and of the held-out split.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// Returns the chat template variables for the rows of a source.
    pub fn laid_out_with(&self, source: &str) -> BTreeMap<String, serde_json::Value> {
        let mut variables = self.data.template_variables.clone();
        if let Some(source) = self.data.sources.iter().find(|known| known.name == source) {
            variables.extend(source.template_variables.clone());
        }
        variables
    }

    /// Returns the chat template variables for held-out questions.
    pub fn asked_with(&self) -> BTreeMap<String, serde_json::Value> {
        let mut variables = self.data.template_variables.clone();
        variables.extend(self.evaluation.template_variables.clone());
        variables
    }

    /// Sets the teacher, and the default distillation objective if there is none.
    pub fn set_teacher(&mut self, teacher: LogitTeacherConfig) {
        self.teacher = Some(teacher);
        self.train.objective.distillation.get_or_insert_with(Distillation::default);
    }

    /// Sets the weights of `long` and `short`.
    ///
    /// # Errors
    /// [`Error::Config`] if the share is not from 0 to 1.
    pub fn set_share(&mut self, share: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&share) {
            let what = format!("it is {share}");
            return Err(Error::config(
                "mixture.weights",
                what,
                "Use a share of long answers from 0 to 1",
            ));
        }
        self.mixture.weights = MixtureConfig::long_short(share).weights;
        Ok(())
    }
}

impl Settings for RunConfig {
    const OTHER_NAMES: &'static [(&'static str, &'static str)] = &[
        ("model", "base_model"),
        ("share", "mixture.weights"),
        ("share_of", "mixture.share"),
        ("lr", "train.learning_rate"),
        ("max_steps", "train.steps"),
        ("num_train_epochs", "train.epochs"),
        ("gradient_accumulation_steps", "train.accumulate"),
        ("max_seq_length", "data.max_length"),
        ("lora_rank", "lora.rank"),
        ("lora_alpha", "lora.alpha"),
        ("base_type", "base.type"),
        ("bnb_4bit_use_double_quant", "base.double_quantization"),
    ];

    const RETIRED: &'static [(&'static str, &'static str)] = &[
        ("mixture.seed", "the mixture is drawn by `seed`"),
        ("mixture.planned_rows", "a run counts its rows itself"),
    ];

    /// Returns the defaults of a toy run, or of fine-tuning if a base model is given.
    fn defaults(given: &toml::Table) -> Result<toml::Table> {
        let mut config = match given.get("base_model").and_then(toml::Value::as_str) {
            Some(model) => Self::fine_tune(model),
            None => Self::toy(),
        };
        if config.base_model.is_some() && given.contains_key("lora") {
            config = config.with_lora(LoraConfig::default());
            // The given settings say which adapters.
            config.lora = None;
        }
        table_of(&config)
    }

    fn complete(&mut self) {
        if let Some(teacher) = self.teacher.clone() {
            self.set_teacher(teacher);
        }
    }
}

/// Reads stored settings, possibly of an earlier version.
pub(super) fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RunConfig, D::Error> {
    let mut value = serde_json::Value::deserialize(deserializer)?;
    for (path, _) in RunConfig::RETIRED {
        let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
        if let Some(serde_json::Value::Object(table)) = value.get_mut(table) {
            table.remove(key);
        }
    }
    serde_json::from_value(value).map_err(D::Error::custom)
}
