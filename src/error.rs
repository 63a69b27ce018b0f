//! The one error type of the crate.
//!
//! Every variant says what happened, where, and what to do about it; [`Error`]'s `Display` is one
//! sentence or two that an example can print as they are.

use std::fmt;
use std::path::PathBuf;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `"read"`, `"write"`, `"create"`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A server cannot be asked, or answers with what cannot be used.
    #[error("server {url}: {what}. {hint}")]
    Server {
        /// Its address.
        url: String,
        /// What happened.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Training was ended by something that is not its own fault.
    #[error("{cause}. Training had come to step {step}. {safe}")]
    Interrupted {
        /// The step that it had come to.
        step: usize,
        /// What is safe on disk.
        safe: String,
        /// What ended it.
        cause: Box<Error>,
    },
    /// A data file holds something that cannot be used.
    #[error("{place}: {what}. {hint}")]
    Data {
        /// Where in which file.
        place: Place,
        /// What was found.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Sources that share no problem, or whose problems cannot be paired.
    #[error("{what}. {hint}")]
    Pairing {
        /// What was found.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A setting that cannot be used.
    #[error("setting `{key}`: {what}. {hint}")]
    Config {
        /// The setting's name, as in the TOML file.
        key: String,
        /// What is wrong with its value.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A tokenizer that cannot be loaded or used.
    #[error("tokenizer {name}: {what}. {hint}")]
    Tokenizer {
        /// The file, or a name for a built-in tokenizer.
        name: String,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A chat template that cannot be used.
    #[error("chat template {name}: {what}. {hint}")]
    Template {
        /// The file, or a name for it.
        name: String,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A model folder or its tensors that cannot be used.
    #[error("model {}: {what}. {hint}", path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A backend that was not compiled in or that the machine lacks.
    #[error("backend `{name}`: {what}. {hint}")]
    Backend {
        /// The backend's name.
        name: String,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A run directory that cannot be used.
    #[error("run directory {}: {what}. {hint}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A checkpoint that cannot be written or read.
    #[error("checkpoint {}: {what}. {hint}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The loss or the gradient stopped being a finite number.
    #[error("step {step}: the {what} is not finite; rows of the step: {}. {hint}", shortened(rows))]
    NotFinite {
        /// The optimizer step, counted from 1.
        step: usize,
        /// `"loss"`, `"gradient norm"` or `"held-out loss"`.
        what: &'static str,
        /// The rows of the step, by source and problem.
        rows: Vec<String>,
        /// What is safe on disk and what to try.
        hint: String,
    },
    /// An observer or a device failed while training.
    #[error("{what}. {hint}")]
    Training {
        /// What failed.
        what: String,
        /// What to do.
        hint: String,
    },
}

/// A place in a data file; lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line (JSONL) or record (JSON array, Parquet), counted from 1.
    pub line: Option<usize>,
    /// The column (field) of the record.
    pub column: Option<String>,
}

impl Place {
    /// The file as a whole.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), line: None, column: None }
    }

    /// One line of the file.
    pub fn line(path: impl Into<PathBuf>, line: usize) -> Self {
        Self { path: path.into(), line: Some(line), column: None }
    }

    /// The same place, narrowed to a column.
    pub fn with_column(mut self, column: impl Into<String>) -> Self {
        self.column = Some(column.into());
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = &self.column {
            write!(f, ": column `{column}`")?;
        }
        Ok(())
    }
}

impl Error {
    /// An [`Error::Io`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// An [`Error::Data`].
    pub fn data(place: Place, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Data { place, what: what.into(), hint: hint.into() }
    }

    /// The same error of a template or tokenizer, with the row that it came up in.
    pub(crate) fn within(mut self, row: &str) -> Self {
        if let Self::Template { name, .. } | Self::Tokenizer { name, .. } = &mut self {
            name.push_str(&format!(", {row}"));
        }
        self
    }

    /// An [`Error::Config`].
    pub fn config(
        key: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Config { key: key.into(), what: what.into(), hint: hint.into() }
    }
}

/// The first few names and how many more there are.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
