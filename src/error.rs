//! The crate's error type.
//!
//! Every variant carries what happened, where, and what to do about it. [`Error`]'s `Display` is one or two
//! sentences that a program can print unchanged. Match on a variant to handle a case yourself:
//!
//! ```
//! use mixdistill::Error;
//! use mixdistill::data::{ColumnMap, read_records};
//!
//! match read_records("missing.jsonl", &ColumnMap::default(), 0.05) {
//!     Err(Error::Io { path, source, .. }) => {
//!         assert!(path.ends_with("missing.jsonl"));
//!         assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
//!     }
//!     other => panic!("expected an I/O error, got {other:?}"),
//! }
//!
//! // Bad settings name their key, and the hint says what to write instead.
//! match ColumnMap::parse("problem") {
//!     Err(Error::Config { key, hint, .. }) => {
//!         assert_eq!(key, "columns");
//!         assert!(hint.contains("problem=question"));
//!     }
//!     other => panic!("expected a settings error, got {other:?}"),
//! }
//! ```

use std::fmt;
use std::path::PathBuf;

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action, as a verb: `"read"`, `"write"`, `"create"`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A server cannot be reached or returned an unusable response.
    #[error("server {url}: {what}. {hint}")]
    Server {
        /// The server's address.
        url: String,
        /// What happened.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// Training ended for a reason outside the training itself.
    #[error("{cause}. Training had reached step {step}. {safe}")]
    Interrupted {
        /// The last step reached.
        step: usize,
        /// What is saved on disk.
        safe: String,
        /// The underlying error.
        cause: Box<Error>,
    },
    /// A data file has unusable content.
    #[error("{place}: {what}. {hint}")]
    Data {
        /// The file and the location in it.
        place: Place,
        /// What was found.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// The sources have no problems in common, or their problems cannot be paired.
    #[error("{what}. {hint}")]
    Pairing {
        /// What was found.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// An error caused by a setting.
    #[error("{cause} (setting `{key}`)")]
    Setting {
        /// The setting's key, as in the TOML file.
        key: String,
        /// What is wrong.
        cause: Box<Error>,
    },
    /// An invalid setting.
    #[error("setting `{key}`: {what}. {hint}")]
    Config {
        /// The setting's key, as in the TOML file.
        key: String,
        /// What is wrong with the value.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A tokenizer cannot be loaded or used.
    #[error("tokenizer {name}: {what}. {hint}")]
    Tokenizer {
        /// The file, or the name of a built-in tokenizer.
        name: String,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A chat template cannot be used.
    #[error("chat template {name}: {what}. {hint}")]
    Template {
        /// The file, or a name for the template.
        name: String,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A model folder or its tensors cannot be used.
    #[error("model {}: {what}. {hint}", path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A backend is not compiled in, or the machine does not support it.
    #[error("backend `{name}`: {what}. {hint}")]
    Backend {
        /// The backend's name.
        name: String,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A directory of a run, pairs, scores, or a study cannot be used.
    #[error("directory {}: {what}. {hint}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// A checkpoint cannot be written or read.
    #[error("checkpoint {}: {what}. {hint}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// The loss or the gradient is not a finite number.
    #[error("step {step}: the {what} is not finite; rows of the step: {}. {hint}", shortened(rows))]
    NotFinite {
        /// The optimizer step, counted from 1.
        step: usize,
        /// `"loss"`, `"gradient norm"`, or `"held-out loss"`.
        what: &'static str,
        /// The rows in the step, by source and problem.
        rows: Vec<String>,
        /// What is saved on disk and what to try next.
        hint: String,
    },
    /// Several errors at once.
    #[error("{}", numbered(.0))]
    Several(Vec<Error>),
    /// The call stopped on request.
    #[error("stopped: {what}")]
    Stopped {
        /// What is saved, and how to continue.
        what: String,
    },
    /// Distributed training lost a rank, or its ranks diverged.
    #[error("ranks: {what}. {hint}")]
    Ranks {
        /// What happened.
        what: String,
        /// A suggested fix.
        hint: String,
    },
    /// An observer or a device failed while training.
    #[error("{what}. {hint}")]
    Training {
        /// What failed.
        what: String,
        /// A suggested fix.
        hint: String,
    },
}

/// A location in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line (JSONL, and the first line of the row in CSV and TSV) or record number (JSON arrays and Parquet),
    /// counted from 1. In a compressed file, counted in the uncompressed text.
    pub line: Option<usize>,
    /// The column (field) of the record.
    pub column: Option<String>,
}

impl Place {
    /// Creates a location that means the whole file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), line: None, column: None }
    }

    /// Creates the location of one line of a file.
    pub fn line(path: impl Into<PathBuf>, line: usize) -> Self {
        Self { path: path.into(), line: Some(line), column: None }
    }

    /// Narrows the location to a column.
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
    /// Creates an [`Error::Io`].
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// Creates an [`Error::Data`].
    pub fn data(place: Place, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Data { place, what: what.into(), hint: hint.into() }
    }

    /// Creates an [`Error::Stopped`].
    pub fn stopped(what: impl Into<String>) -> Self {
        Self::Stopped { what: what.into() }
    }

    /// Wraps the error with the setting that caused it.
    pub(crate) fn with_key(self, key: impl Into<String>) -> Self {
        Self::Setting { key: key.into(), cause: Box::new(self) }
    }

    /// Adds the affected row to a template or tokenizer error.
    pub(crate) fn within(mut self, row: &str) -> Self {
        if let Self::Template { name, .. } | Self::Tokenizer { name, .. } = &mut self {
            name.push_str(&format!(", {row}"));
        }
        self
    }

    /// Prefixes the error's setting with the name of its table.
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

    /// Creates an [`Error::Config`].
    pub fn config(
        key: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Config { key: key.into(), what: what.into(), hint: hint.into() }
    }
}

/// Formats errors as a numbered list.
fn numbered(errors: &[Error]) -> String {
    let each = errors.iter().enumerate().map(|(index, error)| format!("\n{}. {error}", index + 1));
    format!("{} problems:{}", errors.len(), each.collect::<String>())
}

/// Collects errors so that they are reported together.
#[derive(Default)]
pub(crate) struct Problems(Vec<Error>);

impl Problems {
    /// Returns the value, or records the error and returns `None`.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// Returns whether no error was recorded.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the recorded errors, if any. A single error is returned unchanged.
    ///
    /// # Errors
    /// [`Error::Several`], or the single error.
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

/// Returns the first few names, followed by the number of the rest.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
