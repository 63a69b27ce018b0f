//! Where a model and its adapters lie, by the name of a folder, of a run, or of a model on the hub.

use super::adapter::CONFIG as ADAPTER_CONFIG;
use super::folder::model_folder;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use std::path::{Path, PathBuf};

/// The settings of a run, in its directory.
const RUN_CONFIG: &str = "config.toml";
/// Where a run writes its student.
const RUN_MODEL: &str = "model";
/// Where a run writes adapters.
const RUN_ADAPTER: &str = "adapter";
/// Runs in the directory of a comparison.
const RUNS_OF_COMPARISON: [&str; 3] = ["long", "short", "mix"];

/// A model's folder, and its adapters.
#[derive(Debug)]
pub(super) struct Location {
    pub folder: PathBuf,
    pub adapter: Option<PathBuf>,
    /// The length limit of the rows that a run has trained on.
    pub trained_length: Option<usize>,
}

impl Location {
    /// Finds a model: a folder with `config.json`, a run, or what [`model_folder`] finds. A run stands
    /// for the student that it has written: its model, or its adapters on their base model.
    ///
    /// # Errors
    /// [`Error::Model`] where nothing is found; [`Error::Config`] for an adapter beside a run's own.
    pub fn find(name: &str, adapter: Option<&Path>, context: &Context<'_>) -> Result<Self> {
        let adapter = adapter.map(adapter_folder).transpose()?;
        let path = Path::new(name);
        let model = path.join(RUN_MODEL);
        if !is_run(path) {
            let folder = model_folder(name, context)?;
            return Ok(Self { folder, adapter, trained_length: None });
        }
        if holds_model(&model) {
            return Ok(Self { folder: model, adapter, trained_length: trained_length(path)? });
        }
        let own = path.join(RUN_ADAPTER);
        if !holds_adapter(&own) {
            return Err(without_student(path));
        }
        if adapter.is_some_and(|adapter| adapter != own) {
            let what = format!("the model {name} is a run with adapters of its own");
            let hint = "Leave it out, or give the base model as the model";
            return Err(Error::config("adapter", what, hint));
        }
        let base = base_model(path)?;
        let folder = model_folder(&base, context).map_err(|error| match error {
            Error::Model { path: base, what, .. } => Error::Model {
                path: base,
                what: format!("{what}; {} is the adapter of this model", own.display()),
                hint: format!(
                    "Give the base model's folder as the model, and {} as the adapter",
                    path.display()
                ),
            },
            error => error,
        })?;
        Ok(Self { folder, adapter: Some(own), trained_length: trained_length(path)? })
    }
}

/// What can be pushed to the hub.
#[cfg(feature = "hub")]
#[derive(Debug)]
pub(crate) enum Pushable {
    /// A model's folder.
    Model(PathBuf),
    /// An adapter's folder.
    Adapter(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Finds what can be pushed: the student of a run, a folder of a model or an adapter, a GGUF file.
///
/// # Errors
/// [`Error::Model`] where there is nothing of these.
#[cfg(feature = "hub")]
pub(crate) fn pushable(path: &Path) -> Result<Pushable> {
    const HINT: &str = "Give a run, the folder of a model or an adapter, or a .gguf file";
    if !path.exists() {
        return Err(failed(path, "there is no such folder or file", HINT));
    }
    if path.is_file() {
        return match crate::gguf::GgufFile::begins(path) {
            true => Ok(Pushable::Gguf(path.to_owned())),
            false => Err(failed(path, "it is no GGUF file", HINT)),
        };
    }
    if holds_adapter(path) {
        return Ok(Pushable::Adapter(path.to_owned()));
    }
    if holds_model(path) {
        return Ok(Pushable::Model(path.to_owned()));
    }
    if !is_run(path) {
        return Err(failed(path, "it holds neither a model nor an adapter", HINT));
    }
    let (model, adapter) = (path.join(RUN_MODEL), path.join(RUN_ADAPTER));
    match (holds_model(&model), holds_adapter(&adapter)) {
        (true, _) => Ok(Pushable::Model(model)),
        (_, true) => Ok(Pushable::Adapter(adapter)),
        _ => Err(without_student(path)),
    }
}

fn failed(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

fn holds_model(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

fn holds_adapter(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG).is_file()
}

/// Whether a folder is a run's directory, or that of a comparison of runs.
fn is_run(folder: &Path) -> bool {
    folder.join(RUN_CONFIG).is_file() && !holds_model(folder)
}

/// The folder of an adapter, which may be named by its run.
fn adapter_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        let what = if path.exists() { "it is a file" } else { "there is no such folder" };
        let hint = "Give the folder of an adapter in PEFT's format, or a run that trained one";
        return Err(failed(path, what, hint));
    }
    let of_run = path.join(RUN_ADAPTER);
    if holds_adapter(path) {
        return Ok(path.to_owned());
    }
    if holds_adapter(&of_run) {
        return Ok(of_run);
    }
    if is_run(path) {
        let model = path.join(RUN_MODEL);
        return Err(match holds_model(&model) {
            true => failed(
                path,
                "it is a run that trained all weights, and has no adapter",
                format!("Give {} as the model", model.display()),
            ),
            false => without_student(path),
        });
    }
    Ok(path.to_owned())
}

/// A run that has written neither a model nor adapters.
fn without_student(run: &Path) -> Error {
    let of_comparison: Vec<String> = RUNS_OF_COMPARISON
        .iter()
        .map(|name| run.join(name))
        .filter(|run| is_run(run))
        .map(|run| run.display().to_string())
        .collect();
    if !of_comparison.is_empty() {
        let hint = format!("Give one of its runs: {}", of_comparison.join(", "));
        return failed(run, "it is a comparison of several runs", hint);
    }
    failed(
        run,
        "it is a run that has not written its student yet: it has neither model/ nor adapter/",
        "Let it come to its end, or resume it",
    )
}

/// A run's settings, and their file.
fn settings(run: &Path) -> Result<(PathBuf, toml::Table)> {
    let path = run.join(RUN_CONFIG);
    let text = read_if_there(&path)?.unwrap_or_default();
    match toml::from_str(&text) {
        Ok(settings) => Ok((path, settings)),
        Err(e) => Err(failed(&path, format!("it is not TOML: {e}"), "Mend the file")),
    }
}

/// The length limit of a run's rows, by its settings.
fn trained_length(run: &Path) -> Result<Option<usize>> {
    let (_, settings) = settings(run)?;
    let length = settings.get("data").and_then(|data| data.get("max_length")?.as_integer());
    Ok(length.and_then(|length| usize::try_from(length).ok()))
}

/// The model that a run has trained adapters for, by its settings.
fn base_model(run: &Path) -> Result<String> {
    let (path, settings) = settings(run)?;
    let name = settings.get("base_model").and_then(toml::Value::as_str);
    name.map(str::to_owned).ok_or_else(|| {
        let hint = "Give the base model as the model, and the run as the adapter";
        failed(&path, "it names no base_model, which the run's adapters belong to", hint)
    })
}
