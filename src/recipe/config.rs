//! Everything that a run can be told, in one struct; TOML files and flags fill the same one.

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

/// A file of one teacher's answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name in the mixture.
    pub name: String,
    /// JSONL, JSON, CSV, TSV or Parquet, of which text may be compressed with gzip or Zstandard; or, with the
    /// feature `hub`, a dataset, such as `owner/name:train`. A run names it with the commit that it has read.
    pub path: PathBuf,
    /// Which columns hold what; without it they are recognized by name.
    #[serde(default)]
    pub columns: ColumnMap,
    /// Variables for the chat template where it lays out this source's answers, laid over those of all
    /// data: `enable_thinking = true` for the long ones, `false` for the short ones.
    #[serde(default)]
    pub template_variables: BTreeMap<String, serde_json::Value>,
}

/// Which problems are trained on, and as which tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The teachers' answers, as a list or by name (`[data.sources.long]`); empty means the built-in toy
    /// corpus, with sources long and short.
    pub sources: Vec<SourceConfig>,
    /// Share of a file's rows that may be unusable (no JSON, a wrong type, no problem, no answer), 0
    /// to 1; they are left out and counted by reason. One row may be in any file, unless it is 0.
    pub max_left_out: f64,
    /// Which problems are kept when the sources are joined.
    pub join: Join,
    /// Whether only problems are kept that every source answers within the length limit; a
    /// comparison sets it.
    pub complete: bool,
    /// Which answers are kept where a source has several to one problem: `first`, or `all`, as
    /// candidates of `mixture.choice`. Without it all where there is a choice, else the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersKept>,
    /// Problems to train on at most, drawn by their text; without it all that are not held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<usize>,
    /// A `tokenizer.json`; without it the built-in tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// The token that ends an answer, in place of the chat template's and the tokenizer's own.
    pub end_token: Option<String>,
    /// A chat template in a file, or `none` for the built-in layout; without it the base model's.
    pub chat_template: Option<String>,
    /// Variables for the chat template, such as `enable_thinking`. A source, and the held-out problems
    /// that are answered, may have others laid over them.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// The system's message in each conversation; without it the chat template's own.
    pub system_prompt: Option<String>,
    /// Seed of the toy corpus and of the held-out split, where it is not the run's. Problems are then
    /// held out by their text, so that runs of other seeds, tokenizers or length limits are tested on
    /// the same ones.
    pub seed: Option<u64>,
    /// The date that a chat template sees, as YYYY-MM-DD; without it the day of the run's start.
    pub date: Option<String>,
    /// Which answers of a conversation of several turns are trained.
    pub trained_turns: TrainedTurns,
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
    /// Variables for the chat template where problems are answered, laid over those of all data. The
    /// held-out losses of a source have the source's own.
    pub template_variables: BTreeMap<String, serde_json::Value>,
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
            template_variables: BTreeMap::new(),
            during_training: 0,
            samples: 3,
        }
    }
}

/// A teacher whose logits the student learns, beside the answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitTeacherConfig {
    /// A folder of logits that [`write_teacher_logits`](super::write_teacher_logits) wrote, or a
    /// model with the student's tokens, which then runs beside the training: a folder, or with the
    /// feature `hub` a name.
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
#[serde(deny_unknown_fields, default = "RunConfig::toy")]
pub struct RunConfig {
    /// The run directory.
    pub out: PathBuf,
    /// Seed of the corpus, the held-out split, the mixture, the order and the initial weights.
    pub seed: u64,
    /// `auto`, or one of `cuda`, `metal`, `rocm`, `vulkan`, `wgpu`, `flex`, `ndarray`.
    pub backend: String,
    /// The data.
    pub data: DataConfig,
    /// The mixture.
    pub mixture: MixtureConfig,
    /// How the share of `mixture.share = "auto"` is found.
    pub pilots: PilotsConfig,
    /// The model to fine-tune: a folder in Hugging Face's format, or, with the feature `hub`,
    /// `owner/name` or `owner/name@revision`. Without it the student starts from random weights.
    pub base_model: Option<String>,
    /// Train low-rank adapters and leave the base model's weights as they are.
    pub lora: Option<LoraConfig>,
    /// How the base model's weights are kept in memory, where adapters are trained beside them.
    pub base: BaseWeights,
    /// The student that starts from random weights. A vocabulary of 0 means the tokenizer's.
    pub model: DecoderConfig,
    /// What is computed in: `f32`, or `bf16` where the device can; trained weights and the loss are
    /// f32 with either.
    pub precision: Precision,
    /// A teacher whose logits are learned, as `train.objective.distillation` says.
    pub teacher: Option<LogitTeacherConfig>,
    /// The training.
    pub train: TrainConfig,
    /// How held-out problems are answered.
    pub generate: GenerateConfig,
    /// What is measured.
    pub evaluation: EvaluationConfig,
    /// How the student is written.
    pub save: SaveConfig,
}

impl RunConfig {
    /// The toy run: a student of about a million parameters, from random weights, on the built-in
    /// corpus.
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

    /// Fine-tuning of a model, all of its weights: the paper's learning rate of 1e-5, two epochs, rows
    /// of up to 2,048 tokens. `model` is a folder in Hugging Face's format, or, with the feature
    /// `hub`, `owner/name` or `owner/name@revision`. Held-out losses are taken; answering held-out
    /// questions is left to whoever asks for it, since it may take longer than the training.
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

    /// The same with adapters that are trained in place of the model's weights, at the paper's
    /// learning rate for them, 1e-4.
    pub fn with_lora(mut self, lora: LoraConfig) -> Self {
        self.lora = Some(lora);
        self.train.learning_rate = 1e-4;
        self
    }

    /// Reads a TOML file; what it does not name keeps its default, and unknown keys are errors.
    ///
    /// # Errors
    /// As [`Layers::file`] and [`Layers::settings`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.file(path)?;
        layers.settings()
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn from_toml(text: &str) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        layers.text(text)?;
        layers.settings()
    }

    /// The settings as TOML; what has no value stands there as a comment.
    ///
    /// # Errors
    /// [`Error::Config`] where a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        to_toml(self, false)
    }

    /// Reads settings from TOML tables, each laid over those before it, and all over the defaults.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn from_tables(tables: &[&toml::Table]) -> Result<Self> {
        let mut layers = Layers::<Self>::new()?;
        tables.iter().try_for_each(|table| layers.table(table))?;
        layers.settings()
    }

    /// The names of the sources.
    pub fn source_names(&self) -> Vec<String> {
        match self.data.sources.is_empty() {
            true => ["long", "short"].map(str::to_owned).to_vec(),
            false => self.data.sources.iter().map(|source| source.name.clone()).collect(),
        }
    }

    /// The settings with equal shares in place of a choice that needs the student's scores, and whether
    /// there was one.
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

    /// Which answers are kept where a source has several to one problem.
    pub fn answers_kept(&self) -> AnswersKept {
        let usual = match self.mixture.choice {
            Some(_) => AnswersKept::All,
            None => AnswersKept::First,
        };
        self.data.answers.unwrap_or(usual)
    }

    /// The seed of the toy corpus and of the held-out split.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// The variables of the chat template where it lays out the answers of a source.
    pub fn laid_out_with(&self, source: &str) -> BTreeMap<String, serde_json::Value> {
        let mut variables = self.data.template_variables.clone();
        if let Some(source) = self.data.sources.iter().find(|known| known.name == source) {
            variables.extend(source.template_variables.clone());
        }
        variables
    }

    /// The variables of the chat template where held-out problems are answered.
    pub fn asked_with(&self) -> BTreeMap<String, serde_json::Value> {
        let mut variables = self.data.template_variables.clone();
        variables.extend(self.evaluation.template_variables.clone());
        variables
    }

    /// Sets the teacher, and its part in the loss to the usual one where it has none.
    pub fn set_teacher(&mut self, teacher: LogitTeacherConfig) {
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
            return Err(Error::config(
                "mixture.weights",
                what,
                "Give the share of long answers, 0 to 1",
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

    /// Those of a toy run, or of fine-tuning where a model is given.
    fn defaults(given: &toml::Table) -> Result<toml::Table> {
        let mut config = match given.get("base_model").and_then(toml::Value::as_str) {
            Some(model) => Self::fine_tune(model),
            None => Self::toy(),
        };
        if config.base_model.is_some() && given.contains_key("lora") {
            config = config.with_lora(LoraConfig::default());
            // Which adapters, those say that are given.
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

/// Reads settings that an earlier version may have stored.
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
