//! Reads messages, typed or piped in.

use mixdistill::{Error, Result};
use rustyline::config::Config;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, Editor};
use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Maximum length of a line in bytes; more than any model reads.
const LONGEST: u64 = 16 << 20;
/// Lines kept in the history.
const HISTORY: usize = 1_000;
/// Time within which a second Ctrl-C exits.
const TWICE: Duration = Duration::from_secs(2);

/// One message.
pub enum Line {
    Text(String),
    /// Why a message cannot be used.
    Unusable(String),
    /// End of input.
    End,
}

/// Where messages come from.
pub enum Lines {
    /// A person at a terminal, with line editing, history, and pasted text of several lines.
    Edited {
        editor: Box<Editor<(), FileHistory>>,
        history: Option<PathBuf>,
        /// When Ctrl-C was last pressed at the prompt.
        interrupted: Option<Instant>,
    },
    /// A pipe or a file, or a terminal whose output goes elsewhere.
    Plain { prompts: bool },
}

impl Lines {
    /// Opens standard input. Also returns the problem with the history, if any.
    pub fn open(keep_history: bool) -> (Self, Option<String>) {
        let is_terminal = std::io::stdin().is_terminal();
        let plain = Self::Plain { prompts: is_terminal };
        if !(is_terminal && std::io::stdout().is_terminal()) {
            return (plain, None);
        }
        let config = Config::builder()
            .behavior(Behavior::Stdio)
            .bracketed_paste(true)
            .auto_add_history(true)
            .history_ignore_space(true)
            .max_history_size(HISTORY);
        let editor = config.and_then(|config| {
            let history = FileHistory::with_config(&config.clone().build());
            Editor::with_history(config.build(), history)
        });
        let mut editor = match editor {
            Ok(editor) => Box::new(editor),
            Err(error) => return (plain, Some(format!("no line editing: {error}"))),
        };
        let history = keep_history.then(history_file).flatten();
        let trouble = history.as_ref().and_then(|path| match editor.load_history(path) {
            Ok(()) => None,
            Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(format!("cannot read the history {}: {error}", path.display())),
        });
        (Self::Edited { editor, history, interrupted: None }, trouble)
    }

    /// Returns whether a person can edit lines.
    pub fn is_edited(&self) -> bool {
        matches!(self, Self::Edited { .. })
    }

    /// Returns the next message.
    ///
    /// # Errors
    /// [`Error::Io`] if standard input cannot be read.
    pub fn read(&mut self) -> Result<Line> {
        match self {
            Self::Plain { prompts } => plain(*prompts),
            Self::Edited { editor, history, interrupted } => match editor.readline("> ") {
                Ok(line) => {
                    *interrupted = None;
                    // Saved immediately, since closing the terminal ends the program. Errors are
                    // reported at the end.
                    let _ = history.as_ref().map(|path| append_history(editor, path));
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Eof) => Ok(Line::End),
                // Twice in a row, it ends the chat; once, it clears the typed text.
                Err(ReadlineError::Interrupted)
                    if interrupted.is_some_and(|at| at.elapsed() < TWICE) =>
                {
                    Ok(Line::End)
                }
                Err(ReadlineError::Interrupted) => {
                    *interrupted = Some(Instant::now());
                    let how = "press Ctrl-C again to exit; Ctrl-D and /quit exit, too";
                    Ok(Line::Unusable(how.into()))
                }
                Err(ReadlineError::Io(error)) => Err(Error::io("read", "standard input", error)),
                Err(error) => {
                    Err(Error::io("read", "standard input", std::io::Error::other(error)))
                }
            },
        }
    }

    /// Saves the history. Returns the problem with it, if any.
    pub fn close(self) -> Option<String> {
        let Self::Edited { mut editor, history: Some(path), .. } = self else { return None };
        let error = append_history(&mut editor, &path).err()?;
        Some(format!("cannot write the history {}: {error}", path.display()))
    }
}

/// Appends new lines to the history file.
fn append_history(
    editor: &mut Editor<(), FileHistory>,
    path: &Path,
) -> std::result::Result<(), ReadlineError> {
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(ReadlineError::Io)?;
    editor.append_history(path)
}

/// Reads one line without line editing.
fn plain(prompts: bool) -> Result<Line> {
    if prompts {
        let _ = write!(std::io::stderr(), "> ");
    }
    let mut bytes = vec![];
    let mut input = std::io::stdin().lock();
    let read = (&mut input).take(LONGEST).read_until(b'\n', &mut bytes);
    let count = read.map_err(|e| Error::io("read", "standard input", e))?;
    if count == 0 {
        return Ok(Line::End);
    }
    if count as u64 == LONGEST && bytes.last() != Some(&b'\n') {
        let what = format!("a line is longer than {LONGEST} bytes");
        return Err(Error::io("read", "standard input", std::io::Error::other(what)));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Line::Text(text),
        Err(_) => Line::Unusable("not sent: the line is not UTF-8".into()),
    })
}

/// Returns the history file, in the user's cache folder.
fn history_file() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || from("HOME").map(PathBuf::from);
    let caches = if cfg!(windows) {
        from("LOCALAPPDATA").map(PathBuf::from)
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Caches"))
    } else {
        from("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("mixdistill").join("chat_history"))
}
