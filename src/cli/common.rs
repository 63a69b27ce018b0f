//! What all commands share: flags, context, output, and exit status.

use super::interrupts::Interrupts;
use super::messages::SettingFlags;
use super::ranks::Together;
use clap::Args;
use mixdistill::context::{Context, Event, Observer, RunOverview, StopFlag};
use mixdistill::data::ChatTemplate;
use mixdistill::terminal::{Screen, Terminal, Verbosity};
use mixdistill::{Error, Part, Result};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;

/// Prints results for a person, on standard output, or on standard error with `--json`.
macro_rules! say {
    ($session:expr, $($text:tt)*) => {
        $session.say_text(&format!($($text)*))
    };
}
pub(super) use say;

/// Exit status after a requested stop.
const STOPPED: u8 = 75;
/// Exit status for wrong usage, as in clap.
const USAGE: u8 = 2;

/// Flags of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Show only warnings and errors
    #[arg(short, long, global = true, display_order = 1000)]
    pub quiet: bool,
    /// Also print a line for every step and every checkpoint
    #[arg(short, long, global = true, conflicts_with = "quiet", display_order = 1001)]
    pub verbose: bool,
    /// Compute backend: auto (the first of these in this build), cuda, metal, rocm, vulkan, wgpu, flex, or
    /// ndarray [default: auto]
    #[arg(long, global = true, value_name = "NAME", display_order = 1002)]
    pub backend: Option<String>,
    /// Number of CPU threads [default: one per core]
    #[arg(long, global = true, value_name = "N", display_order = 1003,
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub threads: Option<u16>,
}

impl Global {
    /// Returns the backend's name.
    pub fn backend(&self) -> &str {
        self.backend.as_deref().unwrap_or("auto")
    }

    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

/// The flag of commands whose results a script may want.
#[derive(Args, Clone, Copy, Debug)]
pub struct Json {
    /// Print the results as one line of JSON, and everything else on standard error
    #[arg(long, help_heading = "Global options", display_order = 999)]
    pub json: bool,
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage: exit status 2.
    Usage(Error),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The result of a command. A requested stop is an [`Error::Stopped`], which says what was saved.
pub type Ended = Result<(), Failure>;

/// One call of the program.
pub struct Session {
    /// Shows events and stops on Ctrl-C.
    pub context: Context<'static>,
    /// The flags of every command.
    pub global: Global,
    pub interrupts: Interrupts,
    /// The screen that the context prints on.
    pub screen: Screen,
    /// The command's name.
    command: String,
    json: bool,
    flags: Rc<SettingFlags>,
    /// How to resume after a stop.
    go_on: RefCell<GoOn>,
    /// The other processes of the same job.
    pub together: Together,
}

/// How to resume after a stop.
enum GoOn {
    /// Run the same command again.
    SameCall,
    Call(String),
    Nothing,
}

impl Session {
    /// Takes over the terminal and the signals.
    ///
    /// # Errors
    /// Same as [`Interrupts::install`].
    pub fn new(
        global: Global,
        command: &str,
        json: bool,
        flags: SettingFlags,
        together: Together,
    ) -> Result<Self> {
        let stop = StopFlag::default();
        let terminal = Terminal::new(global.verbosity()).with_results_only(json);
        let screen = terminal.screen();
        let interrupts = Interrupts::install(&stop, together.speaks().then(|| screen.clone()))?;
        let flags = Rc::new(flags);
        let context = match together.speaks() {
            true => Context::new(WithFlags { terminal, flags: flags.clone() }, &stop),
            false => Context::new((), &stop),
        };
        let (command, go_on) = (command.to_owned(), RefCell::new(GoOn::SameCall));
        Ok(Self { context, global, interrupts, screen, command, json, flags, go_on, together })
    }

    /// Prints results for a person; use [`say!`](crate::cli::common::say).
    pub fn say_text(&self, text: &str) {
        match (self.global.quiet || !self.together.speaks(), self.json) {
            (true, _) => {}
            (_, true) => self.screen.error_line(text),
            (_, false) => self.screen.output_line(text),
        }
    }

    /// Prints what the command exists to print, such as settings as TOML, on standard output, even
    /// with `--quiet`.
    pub fn print(&self, text: &str) {
        self.screen.output_line(text);
    }

    /// Prints a warning, even with `--quiet`.
    pub fn warn(&self, text: &str) {
        if !self.together.speaks() {
            return;
        }
        self.screen.error_line(&self.flags.text(text));
    }

    /// Returns whether results are printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the results as one line of JSON, with `--json`.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be serialized.
    pub fn result(&self, result: &impl Serialize) -> Result<()> {
        if !self.json || !self.together.speaks() {
            return Ok(());
        }
        let line = serde_json::to_string(result)
            .map_err(|e| Error::io("write", "standard output", std::io::Error::other(e)))?;
        self.screen.output_line(&line);
        Ok(())
    }

    /// Sets the command that resumes after a stop. The default is this same command.
    pub fn go_on_with(&self, command: String) {
        *self.go_on.borrow_mut() = GoOn::Call(command);
    }

    /// Declares that no command resumes after a stop.
    pub fn go_on_with_nothing(&self) {
        *self.go_on.borrow_mut() = GoOn::Nothing;
    }

    /// Reports how the command ended, in all processes, and returns the exit status.
    pub fn end(&self, ended: Ended) -> ExitCode {
        self.screen.rest();
        self.together.before_an_error(&ended);
        let status = self.status(ended);
        self.together.end(status)
    }

    /// Reports how the command ended and returns the exit status.
    fn status(&self, ended: Ended) -> ExitCode {
        let stopped = |what: &str| {
            self.screen.error_line(&format!("stopped: {what}"));
            match &*self.go_on.borrow() {
                GoOn::SameCall => self.screen.error_line(&format!("resume with: {}", this_call())),
                GoOn::Call(call) => self.screen.error_line(&format!("resume with: {call}")),
                GoOn::Nothing => {}
            }
            ExitCode::from(STOPPED)
        };
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure::Error(Error::Stopped { .. })) if !self.together.speaks() => {
                ExitCode::from(STOPPED)
            }
            Err(Failure::Error(Error::Stopped { what })) => stopped(&what),
            Err(Failure::Error(error)) => {
                self.screen.error_line(&format!("error: {}", self.flags.error(&error)));
                ExitCode::FAILURE
            }
            Err(Failure::Usage(error)) => {
                let (text, command) = (self.flags.error(&error), &self.command);
                self.screen.error_line(&format!(
                    "error: {text}\n\nFor more information, try `mixdistill {command} --help`."
                ));
                ExitCode::from(USAGE)
            }
        }
    }
}

/// Shows events and adds flags next to the settings that they name.
struct WithFlags {
    terminal: Terminal,
    flags: Rc<SettingFlags>,
}

impl Observer for WithFlags {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Notice(text) => self.terminal.observe(&Event::Notice(&self.flags.text(text))),
            Event::Overview(overview) => {
                let lines: Vec<String> =
                    overview.lines.iter().map(|line| self.flags.text(line)).collect();
                let overview = RunOverview { lines: &lines, ..**overview };
                self.terminal.observe(&Event::Overview(&overview))
            }
            event => self.terminal.observe(event),
        }
    }
}

/// Returns the default output directory. Each part has its own.
pub fn usual_out(name: &str, part: Option<Part>) -> PathBuf {
    match part {
        Some(part) => format!("{name}-part-{}-of-{}", part.number(), part.of()).into(),
        None => name.into(),
    }
}

/// Prints how to join the parts once all of them are done.
pub fn tell_part(part: Part, session: &Session) {
    let command = &session.command;
    say!(
        session,
        "\npart {part} is done. When all {} parts are done, join them:\n  mixdistill {command} \
         --join PARTS... --out OUT",
        part.of()
    );
}

/// This command, quoted for pasting into a shell.
pub fn this_call() -> String {
    let arguments = std::env::args_os().skip(1);
    let arguments: Vec<String> =
        arguments.map(|argument| quoted(&argument.to_string_lossy())).collect();
    format!("mixdistill {}", arguments.join(" "))
}

/// Returns a word of a command, quoted if a shell needs it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@+%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A chat-template variable from a flag. The value is JSON, or a string if it is not valid JSON.
#[derive(Clone, Debug)]
pub struct TemplateVariable {
    pub name: String,
    pub value: serde_json::Value,
}

impl FromStr for TemplateVariable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("use the form NAME=VALUE")?;
        let is_letter = |c: char| c == '_' || c.is_ascii_alphabetic();
        let goes_on = |c: char| is_letter(c) || c.is_ascii_digit();
        if !name.starts_with(is_letter) || !name.chars().all(goes_on) {
            return Err(format!("{name:?} is not a valid name: use letters, digits, and _"));
        }
        ChatTemplate::check_variable("template_variables", name).map_err(|e| e.to_string())?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        Ok(Self { name: name.to_owned(), value })
    }
}

impl TemplateVariable {
    /// Variables by name. If one is given twice, the last value counts.
    pub fn by_name(variables: &[Self]) -> BTreeMap<String, serde_json::Value> {
        variables.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect()
    }

    /// Returns the flag that sets this variable.
    pub fn flag(name: &str, value: &serde_json::Value) -> String {
        format!("--template-variable {}", quoted(&format!("{name}={value}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_json_or_text() {
        let value = |text: &str| text.parse::<TemplateVariable>().unwrap().value;
        assert_eq!(value("enable_thinking=false"), serde_json::json!(false));
        assert_eq!(value("budget=12"), serde_json::json!(12));
        let error = "messages=12".parse::<TemplateVariable>().unwrap_err();
        assert!(error.contains("template_variables.messages"), "{error}");
        assert_eq!(value("mode=low"), serde_json::json!("low"));
        assert_eq!(value("mode=\"12\""), serde_json::json!("12"));
        assert_eq!(value("mode="), serde_json::json!(""));
        for wrong in ["enable_thinking", "=1", "a b=1", "1a=1", "a.b=1"] {
            wrong.parse::<TemplateVariable>().unwrap_err();
        }
        let flag = TemplateVariable::flag("a", &serde_json::json!(["x"]));
        assert_eq!(flag, "--template-variable 'a=[\"x\"]'");
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("--out=run-1/a_b.jsonl"), "--out=run-1/a_b.jsonl");
        assert_eq!(quoted("two words"), "'two words'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
