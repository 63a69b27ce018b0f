//! Finds a model and its adapter by the name of a folder, a run, or a model on the Hub.

use super::adapter::CONFIG as ADAPTER_CONFIG;
use super::folder::model_folder;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use std::path::{Path, PathBuf};

/// Settings file of a run.
const RUN_CONFIG: &str = "config.toml";
/// Folder of a run's student.
const RUN_MODEL: &str = "model";
/// Folder of a run's adapter.
const RUN_ADAPTER: &str = "adapter";
/// Runs within the directory of a comparison.
const RUNS_OF_COMPARISON: [&str; 3] = ["long", "short", "mix"];

/// A model folder and its adapter.
#[derive(Debug)]
pub(super) struct Location {
    pub folder: PathBuf,
    pub adapter: Option<PathBuf>,
    /// The length limit of a run's rows, in tokens.
    pub trained_length: Option<usize>,
}

impl Location {
    /// Finds a model: a folder with `config.json`, a run, or anything that [`model_folder`] finds. A run
    /// means its student: its model, or its adapter with the base model.
    ///
    /// # Errors
    /// [`Error::Model`] if nothing is found; [`Error::Config`] if `adapter` is given for a run with its own.
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
            let what = format!("the model {name} is a run with its own adapter");
            let hint = "Remove it, or pass the base model as the model";
            return Err(Error::config("adapter", what, hint));
        }
        let base = base_model(path)?;
        let folder = model_folder(&base, context).map_err(|error| match error {
            Error::Model { path: base, what, .. } => Error::Model {
                path: base,
                what: format!("{what}; {} is the adapter of this model", own.display()),
                hint: format!(
                    "Pass the base model's folder as the model and {} as the adapter",
                    path.display()
                ),
            },
            error => error,
        })?;
        Ok(Self { folder, adapter: Some(own), trained_length: trained_length(path)? })
    }
}

/// Something that can be pushed to the Hub.
#[cfg(feature = "hub")]
#[derive(Debug)]
pub(crate) enum Pushable {
    /// A model folder.
    Model(PathBuf),
    /// An adapter folder.
    Adapter(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Finds what to push: the student of a run, a folder of a model or an adapter, or a GGUF file.
///
/// # Errors
/// [`Error::Model`] if the path is none of these.
#[cfg(feature = "hub")]
pub(crate) fn pushable(path: &Path) -> Result<Pushable> {
    const HINT: &str = "Pass a run, the folder of a model or an adapter, or a .gguf file";
    if !path.exists() {
        return Err(failed(path, "there is no such folder or file", HINT));
    }
    if path.is_file() {
        return match crate::gguf::GgufFile::begins(path) {
            true => Ok(Pushable::Gguf(path.to_owned())),
            false => Err(failed(path, "it is not a GGUF file", HINT)),
        };
    }
    if holds_adapter(path) {
        return Ok(Pushable::Adapter(path.to_owned()));
    }
    if holds_model(path) {
        return Ok(Pushable::Model(path.to_owned()));
    }
    if !is_run(path) {
        return Err(failed(path, "it has neither a model nor an adapter", HINT));
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

/// Returns whether a folder is the directory of a run or of a comparison of runs.
fn is_run(folder: &Path) -> bool {
    folder.join(RUN_CONFIG).is_file() && !holds_model(folder)
}

/// Returns the folder of an adapter. `path` may be the adapter's run.
fn adapter_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        let what = if path.exists() { "it is a file" } else { "there is no such folder" };
        let hint = "Pass a folder with an adapter in PEFT's format, or a run that trained one";
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
                "it is a run that trained all weights and has no adapter",
                format!("Pass {} as the model", model.display()),
            ),
            false => without_student(path),
        });
    }
    Ok(path.to_owned())
}

/// Returns the error for a run that has written neither a model nor an adapter.
fn without_student(run: &Path) -> Error {
    let of_comparison: Vec<String> = RUNS_OF_COMPARISON
        .iter()
        .map(|name| run.join(name))
        .filter(|run| is_run(run))
        .map(|run| run.display().to_string())
        .collect();
    if !of_comparison.is_empty() {
        let hint = format!("Pass one of its runs: {}", of_comparison.join(", "));
        return failed(run, "it is a comparison of several runs", hint);
    }
    failed(
        run,
        "it is a run that has not written its student yet: it has neither model/ nor adapter/",
        "Wait until it finishes, or resume it",
    )
}

/// Returns a run's settings, and their file.
fn settings(run: &Path) -> Result<(PathBuf, toml::Table)> {
    let path = run.join(RUN_CONFIG);
    let text = read_if_there(&path)?.unwrap_or_default();
    match toml::from_str(&text) {
        Ok(settings) => Ok((path, settings)),
        Err(e) => Err(failed(&path, format!("it is not TOML: {e}"), "Fix the file")),
    }
}

/// Returns the length limit of a run's rows, from its settings.
fn trained_length(run: &Path) -> Result<Option<usize>> {
    let (_, settings) = settings(run)?;
    let length = settings.get("data").and_then(|data| data.get("max_length")?.as_integer());
    Ok(length.and_then(|length| usize::try_from(length).ok()))
}

/// Returns the base model of a run's adapter, from its settings.
fn base_model(run: &Path) -> Result<String> {
    let (path, settings) = settings(run)?;
    let name = settings.get("base_model").and_then(toml::Value::as_str);
    name.map(str::to_owned).ok_or_else(|| {
        let hint = "Pass the base model as the model and the run as the adapter";
        failed(&path, "it does not name the base_model of the run's adapter", hint)
    })
}
