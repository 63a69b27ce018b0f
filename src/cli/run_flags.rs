//! The flags that `train`, `compare`, `preview`, and `plan` share, and the settings that they make up.

use super::common::{Failure, Global, Session, quoted};
use clap::Args;
use mixdistill::data::{ColumnMap, MixtureConfig};
use mixdistill::model::{BaseType, LoraConfig};
use mixdistill::recipe::{RunConfig, RunDirectory, RunMode};
use mixdistill::settings::{Layers, table_of};
use mixdistill::{Error, Result};
use std::path::{Path, PathBuf};
use toml::Value;

/// The settings of a run and its directory.
#[derive(Args, Debug)]
pub struct RunFlags {
    /// Model to fine-tune: a folder in Hugging Face format, a GGUF file, or owner/name on the Hugging Face
    /// Hub [default: none; trains a small student from random weights]
    #[arg(
        id = "base_model",
        long = "model",
        value_name = "MODEL",
        help_heading = "Data and model"
    )]
    model: Option<String>,
    /// Long answers: a JSONL, JSON, CSV, TSV, or Parquet file, or a dataset on the Hugging Face Hub, such as
    /// owner/name:train [default: the built-in toy corpus]
    #[arg(
        id = "data.sources.long.path",
        long = "long",
        value_name = "FILE",
        requires = "data.sources.short.path",
        help_heading = "Data and model"
    )]
    long: Option<PathBuf>,
    /// Short answers, in the same forms as --long
    #[arg(
        id = "data.sources.short.path",
        long = "short",
        value_name = "FILE",
        requires = "data.sources.long.path",
        help_heading = "Data and model"
    )]
    short: Option<PathBuf>,
    /// Column names of the long file that are not recognized automatically, as
    /// problem=NAME,solution=NAME. Keys: problem, solution, reasoning, answer, id, messages, system,
    /// context, options, correct. The name none ignores a column
    #[arg(
        id = "data.sources.long.columns",
        long = "long-columns",
        value_name = "MAP",
        requires = "data.sources.long.path",
        help_heading = "Data and model"
    )]
    long_columns: Option<String>,
    /// Column names of the short file, in the same form as --long-columns
    #[arg(
        id = "data.sources.short.columns",
        long = "short-columns",
        value_name = "MAP",
        requires = "data.sources.short.path",
        help_heading = "Data and model"
    )]
    short_columns: Option<String>,
    /// Maximum length of a row in tokens [default: 2048 with --model, else 512]
    #[arg(
        id = "data.max_length",
        long = "max-length",
        value_name = "TOKENS",
        help_heading = "Data and model"
    )]
    max_length: Option<u64>,
    /// Share of long answers in the mixture, 0 to 1, or auto to choose it with pilot runs before training
    /// [default: 0.2]
    #[arg(
        id = "mixture.weights",
        long = "share",
        value_name = "SHARE",
        value_parser = asked_share,
        allow_negative_numbers = true,
        help_heading = "Training"
    )]
    share: Option<AskedShare>,
    /// Choose answers by a score instead of at random: rsr, nll, lalp, shortest, or longest. With --share,
    /// the share stays exact and the scores decide which problems get the long answer
    /// [default: at random, by --share]
    #[arg(
        id = "mixture.choice.by",
        long = "choose",
        value_name = "METHOD",
        help_heading = "Training"
    )]
    choose: Option<String>,
    /// Train low-rank adapters (LoRA) of this rank [default: none; trains all weights]
    #[arg(id = "lora.rank", long = "lora-rank", value_name = "RANK", help_heading = "Training")]
    lora_rank: Option<u64>,
    /// Passes over the data [default: 2 with --model, else 1]
    #[arg(
        id = "train.epochs",
        long = "epochs",
        value_name = "N",
        conflicts_with = "train.steps",
        help_heading = "Training"
    )]
    epochs: Option<f64>,
    /// Number of optimizer steps, instead of --epochs [default: set by --epochs]
    #[arg(id = "train.steps", long = "steps", value_name = "N", help_heading = "Training")]
    steps: Option<u64>,
    /// Peak learning rate [default: 1e-5 with --model, 1e-4 with adapters, else 2e-3]
    #[arg(
        id = "train.learning_rate",
        long = "learning-rate",
        value_name = "RATE",
        help_heading = "Training"
    )]
    learning_rate: Option<f64>,
    /// Data type of the base model's weights when adapters are trained: f32, bf16, int8, or nf4
    /// [default: f32]
    #[arg(
        id = "base.type",
        long = "base-type",
        value_name = "TYPE",
        value_parser = BaseType::NAMES,
        help_heading = "Training"
    )]
    base_type: Option<String>,
    /// Random seed of the run [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Training")]
    seed: Option<u64>,
    /// Number of held-out problems to answer before and after training [default: 0 with --model, else 200]
    #[arg(
        id = "evaluation.questions",
        long = "questions",
        value_name = "N",
        help_heading = "Training"
    )]
    questions: Option<u64>,
    /// TOML file of settings; flags override it [default: with --resume, the settings of the run]
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Set any setting, such as train.batch_size=4. Overrides flags and --config; may be repeated.
    /// `mixdistill config explain` lists all settings
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    set: Vec<String>,
    /// Run directory [default: run]
    #[arg(long, value_name = "DIR", help_heading = "Run directory")]
    out: Option<PathBuf>,
    /// Resume the run in the run directory, with its settings
    #[arg(long, conflicts_with = "overwrite", help_heading = "Run directory")]
    resume: bool,
    /// With --resume: resume even if settings or data have changed
    #[arg(long, requires = "resume", help_heading = "Run directory")]
    allow_changes: bool,
    /// Replace the run in the run directory
    #[arg(long, help_heading = "Run directory")]
    overwrite: bool,
}

/// A value of `--share`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AskedShare {
    Of(f64),
    Auto,
}

fn asked_share(text: &str) -> Result<AskedShare, String> {
    match text {
        "auto" => Ok(AskedShare::Auto),
        text => text.parse().map(AskedShare::Of).map_err(|_| "give a number or auto".into()),
    }
}

/// The settings and the mode of a run, as the command line gives them.
pub struct Asked {
    pub config: RunConfig,
    pub mode: RunMode,
    /// The sources of the settings.
    pub layers: Layers<RunConfig>,
}

/// Adds a hint if settings of a source were given and no source has a file: they may be meant for the toy
/// corpus.
fn with_toy_hint(error: Error, layers: &Layers<RunConfig>) -> Error {
    let sources = layers.given().get("data").and_then(|data| data.get("sources"));
    let mut sources = sources.and_then(Value::as_array).into_iter().flatten();
    let is_of_source = |key: &str| key.starts_with("data.sources.") && key.ends_with(".path");
    match error {
        Error::Config { key, what, hint }
            if is_of_source(&key) && !sources.any(|source| source.get("path").is_some()) =>
        {
            let hint = format!("{hint}; the toy corpus has no per-source settings");
            Error::Config { key, what, hint }
        }
        Error::Several(errors) => {
            Error::Several(errors.into_iter().map(|e| with_toy_hint(e, layers)).collect())
        }
        error => error,
    }
}

impl RunFlags {
    /// Returns settings and mode: defaults, then the file (or the resumed run's), then flags, then `--set`.
    pub fn asked(&self, session: &Session) -> Result<Asked, Failure> {
        let mode = match (self.resume, self.overwrite) {
            (true, _) if self.allow_changes => RunMode::ResumeChanged,
            (true, _) => RunMode::Resume,
            (_, true) => RunMode::Overwrite,
            _ => RunMode::New,
        };
        let mut layers = Layers::<RunConfig>::new()?;
        if let Some(path) = &self.config {
            layers.file(path)?;
        } else if self.resume {
            layers.file(&stored_settings(self.out.as_deref())?)?;
            // The directory may have been moved since.
            let out = self.out.clone().unwrap_or_else(usual_out);
            layers.set_value("out", out.to_string_lossy().into_owned())?;
        }
        self.add_flags(&mut layers, &session.global).map_err(Failure::Usage)?;
        add_assignments(&mut layers, &self.set)?;
        layers.notices().iter().for_each(|notice| session.warn(notice));
        let config = layers.settings().map_err(|error| with_toy_hint(error, &layers))?;
        if self.share.is_some() && config.mixture.chooses_share() {
            let what = "--share conflicts with mixture.choice, which decides the shares";
            let hint = "Leave out --share, or set mixture.choice.within_share=true";
            return Err(Failure::Usage(Error::config("mixture.weights", what, hint)));
        }
        config.validate().map_err(|error| layers.locate(error))?;
        Ok(Asked { config, mode, layers })
    }

    fn add_flags(&self, layers: &mut Layers<RunConfig>, global: &Global) -> Result<()> {
        let text = |path: &PathBuf| Value::from(path.to_string_lossy().into_owned());
        let whole = |number: u64| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
        let mut set = |key: &str, value: Option<Value>| match value {
            Some(value) => layers.set_value(key, value),
            None => Ok(()),
        };
        set("base.type", self.base_type.clone().map(Value::from))?;
        set("base_model", self.model.clone().map(Value::from))?;
        set("out", self.out.as_ref().map(text))?;
        set("backend", global.backend.clone().map(Value::from))?;
        set("seed", self.seed.map(whole))?;
        set("data.max_length", self.max_length.map(whole))?;
        set("train.learning_rate", self.learning_rate.map(Value::from))?;
        set("evaluation.questions", self.questions.map(whole))?;
        set("train.steps", self.steps.map(whole))?;
        set("mixture.choice.by", self.choose.clone().map(Value::from))?;
        if let (Some(_), Some(AskedShare::Of(_))) = (&self.choose, self.share) {
            set("mixture.choice.within_share", Some(true.into()))?;
        }
        if let Some(epochs) = self.epochs {
            set("train.epochs", Some(epochs.into()))?;
            layers.set("train.steps=")?;
        }
        self.add_share(layers)?;
        self.add_lora(layers)?;
        self.add_sources(layers)
    }

    /// Sets the share, which replaces the one in the file, even `auto`.
    fn add_share(&self, layers: &mut Layers<RunConfig>) -> Result<()> {
        let share = match self.share {
            None => return Ok(()),
            Some(AskedShare::Auto) => return layers.set_value("mixture.share", "auto"),
            Some(AskedShare::Of(share)) => share,
        };
        if !(0.0..=1.0).contains(&share) {
            let hint = "Give the share of long answers, 0 to 1, or auto";
            return Err(Error::config("mixture.weights", format!("it is {share}"), hint));
        }
        let set = layers.given().get("mixture").and_then(|mixture| mixture.get("share"));
        if set.and_then(Value::as_str) == Some("auto") {
            layers.set_value("mixture.share", "exact")?;
        }
        let weights = table_of(&MixtureConfig::long_short(share))?.remove("weights");
        weights.map_or(Ok(()), |weights| layers.set_value("mixture.weights", weights))
    }

    /// Sets the rank and keeps the ratio of alpha to rank that the file has.
    fn add_lora(&self, layers: &mut Layers<RunConfig>) -> Result<()> {
        let Some(rank) = self.lora_rank else { return Ok(()) };
        let before = layers.settings().ok().and_then(|config| config.lora);
        let LoraConfig { alpha, rank: old, .. } = before.unwrap_or_default();
        let scale = alpha / old.max(1) as f64;
        layers.set_value("lora.rank", i64::try_from(rank).unwrap_or(i64::MAX))?;
        layers.set_value("lora.alpha", scale * rank as f64)
    }

    /// Sets the sources from `--long` and `--short`, which replace all others.
    fn add_sources(&self, layers: &mut Layers<RunConfig>) -> Result<()> {
        let (Some(long), Some(short)) = (&self.long, &self.short) else { return Ok(()) };
        let sources = [("long", long, &self.long_columns), ("short", short, &self.short_columns)];
        let sources = sources.map(|(name, path, columns)| FlagSource {
            name: name.into(),
            path: path.to_string_lossy().into_owned(),
            columns: columns.clone(),
        });
        set_sources(layers, &sources)
    }

    /// Returns the command that resumes a run, if its directory holds one.
    pub fn to_go_on(command: &str, config: &RunConfig) -> Option<String> {
        let out = quoted(&config.out.to_string_lossy());
        RunDirectory::holds_run(&config.out)
            .then(|| format!("mixdistill {command} --resume --out {out}"))
    }
}

/// A source given by flags.
pub struct FlagSource {
    pub name: String,
    /// A file, or a dataset on the Hub.
    pub path: String,
    /// Its columns, as [`ColumnMap::parse`] takes them.
    pub columns: Option<String>,
}

/// Replaces the sources that are set. A source keeps the other settings of a set source of the same name,
/// such as template variables, and its columns unless new ones are given.
///
/// # Errors
/// [`Error::Config`] for columns that cannot be parsed.
pub fn set_sources(layers: &mut Layers<RunConfig>, sources: &[FlagSource]) -> Result<()> {
    let set = layers.given().get("data").and_then(|data| data.get("sources")).cloned();
    let set_for = |source: &FlagSource| {
        let named = |set: &&Value| set.get("name").and_then(Value::as_str) == Some(&source.name);
        set.as_ref()?.as_array()?.iter().find(named)?.as_table().cloned()
    };
    let entry = |source: &FlagSource| {
        let mut entry = set_for(source).unwrap_or_default();
        entry.insert("name".into(), source.name.as_str().into());
        entry.insert("path".into(), source.path.as_str().into());
        if let Some(columns) = &source.columns {
            let columns = ColumnMap::parse(columns)
                .map_err(|error| at_key(error, &format!("data.sources.{}.columns", source.name)))?;
            entry.insert("columns".into(), Value::Table(table_of(&columns)?));
        }
        Ok(Value::Table(entry))
    };
    let sources: Result<Vec<Value>> = sources.iter().map(entry).collect();
    layers.set_value("data.sources", sources?)
}

/// Adds the assignments of `--set`. An unknown key is wrong usage, like an unknown flag.
///
/// # Errors
/// [`Failure::Usage`].
pub fn add_assignments<T: mixdistill::settings::Settings>(
    layers: &mut Layers<T>,
    assignments: &[String],
) -> Result<(), Failure> {
    assignments.iter().try_for_each(|assignment| layers.set(assignment)).map_err(Failure::Usage)
}

/// Returns the keys that `--set` accepts.
///
/// # Errors
/// Same as [`Layers::new`].
pub fn settable<T: mixdistill::settings::Settings>() -> Result<Vec<String>> {
    let keys = Layers::<T>::new()?.keys()?;
    Ok(keys.into_iter().filter(|key| !key.is_table).map(|key| key.path).collect())
}

/// Returns the same error with the full key of its setting.
fn at_key(error: Error, key: &str) -> Error {
    match error {
        Error::Config { what, hint, .. } => Error::config(key, what, hint),
        error => error,
    }
}

fn usual_out() -> PathBuf {
    RunConfig::toy().out
}

/// Returns the settings of the run in a directory.
fn stored_settings(out: Option<&Path>) -> Result<PathBuf> {
    let out = out.map_or_else(usual_out, Path::to_owned);
    let path = out.join("config.toml");
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::RunDirectory {
        path: out,
        what: "it holds no run".into(),
        hint: "Check the path, or start a new run".into(),
    })
}
