//! The one error type of the crate.
//!
//! Every variant says what happened, where, and what to do about it; [`Error`]'s `Display` is one
//! sentence or two that a program can print as they are.

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
    /// An error that a setting leads to.
    #[error("{cause} (setting `{key}`)")]
    Setting {
        /// The setting's name, as in the TOML file.
        key: String,
        /// What is wrong.
        cause: Box<Error>,
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
    /// A directory of a run, of pairs, of scores or of a study that cannot be used.
    #[error("directory {}: {what}. {hint}", path.display())]
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
    /// Several things are wrong at once.
    #[error("{}", numbered(.0))]
    Several(Vec<Error>),
    /// A stop was asked for.
    #[error("stopped: {what}")]
    Stopped {
        /// What is kept, and how to go on.
        what: String,
    },
    /// Ranks that train together have lost one of them, or have come apart.
    #[error("ranks: {what}. {hint}")]
    Ranks {
        /// What happened.
        what: String,
        /// What to do.
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
    /// Line (JSONL; CSV and TSV, where the row begins) or record (JSON array, Parquet), counted from 1;
    /// of a compressed file, in its text.
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

    /// An [`Error::Stopped`].
    pub fn stopped(what: impl Into<String>) -> Self {
        Self::Stopped { what: what.into() }
    }

    /// The same error with the setting that leads to it.
    pub(crate) fn with_key(self, key: impl Into<String>) -> Self {
        Self::Setting { key: key.into(), cause: Box::new(self) }
    }

    /// The same error of a template or tokenizer, with the row that it came up in.
    pub(crate) fn within(mut self, row: &str) -> Self {
        if let Self::Template { name, .. } | Self::Tokenizer { name, .. } = &mut self {
            name.push_str(&format!(", {row}"));
        }
        self
    }

    /// The same error where its setting stands in a table of others.
    pub(crate) fn in_table(self, table: &str) -> Self {
        match self {
            Self::Config { key, what, hint } => {
                Self::Config { key: format!("{table}.{key}"), what, hint }
            }
            Self::Setting { key, cause } => Self::Setting { key: format!("{table}.{key}"), cause },
            Self::Several(errors) => {
                Self::Several(errors.into_iter().map(|error| error.in_table(table)).collect())
            }
            error => error,
        }
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

/// Errors in a list, each by itself.
fn numbered(errors: &[Error]) -> String {
    let each = errors.iter().enumerate().map(|(index, error)| format!("\n{}. {error}", index + 1));
    format!("{} problems:{}", errors.len(), each.collect::<String>())
}

/// Gathers what is wrong, so that it is told at once.
#[derive(Default)]
pub(crate) struct Problems(Vec<Error>);

impl Problems {
    /// The value, or nothing where there is an error, which is kept.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An error where any was noted: the only one as it is.
    ///
    /// # Errors
    /// [`Error::Several`], or the one.
    pub(crate) fn check(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(Error::Several(self.0)),
        }
    }
}

impl FromIterator<Error> for Problems {
    fn from_iter<I: IntoIterator<Item = Error>>(errors: I) -> Self {
        Self(errors.into_iter().collect())
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
