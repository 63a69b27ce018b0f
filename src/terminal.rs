//! Shows events as progress bars and lines in a terminal (feature `cli`).
//!
//! [`Terminal`] is an [`Observer`]. Progress bars and passing messages go to standard error; the description
//! of a run and its results go to standard output. If standard error is not a terminal, a line every two
//! seconds replaces the bar. [`Screen`] lets other code print while a bar is shown.
//!
//! ```
//! use mixdistill::context::{Context, StopFlag, Task};
//! use mixdistill::terminal::{Terminal, Verbosity};
//!
//! let stop = StopFlag::default();
//! let context = Context::new(Terminal::new(Verbosity::Normal), &stop);
//! let mut encoding = context.task(Task::Encode, 2);
//! encoding.advance()?;
//! context.notice("one answer is empty")?;
//! encoding.advance()?;
//! assert_eq!(encoding.progress().done, 2);
//! # Ok::<(), mixdistill::Error>(())
//! ```

mod bar;
mod screen;

pub use screen::Screen;

use crate::context::{Event, Moment, Observer, Progress, StepReport, Task};
use crate::error::Result;
use crate::text::{DISPLAY_WIDTH, wrapped};
use bar::{Bar, LINE_EVERY};
use std::io::IsTerminal;
use std::time::Instant;

/// Returns the width of the terminal in columns, at least 40.
fn width() -> usize {
    let size = terminal_size::terminal_size();
    size.map_or(DISPLAY_WIDTH, |(width, _)| usize::from(width.0).max(40))
}

/// How much to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Only notices and warnings.
    Quiet,
    /// Progress and results.
    #[default]
    Normal,
    /// Also a line for each step and each checkpoint.
    Verbose,
}

/// Shows events in a terminal.
#[derive(Debug)]
pub struct Terminal {
    verbosity: Verbosity,
    /// Whether standard output is reserved for results.
    results_only: bool,
    screen: Screen,
    work: Option<(Task, Bar)>,
    training: Option<Bar>,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    /// The progress of two teachers, as text.
    pairs: String,
    /// When writing the current checkpoint started.
    saving: Option<Instant>,
    /// Whether checkpoints are written too fast to be worth a message.
    saves_quickly: bool,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new(Verbosity::Normal)
    }
}

impl Terminal {
    /// Creates a terminal with a verbosity.
    pub fn new(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            results_only: false,
            screen: Screen::new(verbosity != Verbosity::Quiet),
            work: None,
            training: None,
            loss: None,
            tokens_per_second: None,
            pairs: String::new(),
            saving: None,
            saves_quickly: false,
        }
    }

    /// Reserves standard output for results: everything else goes to standard error.
    pub fn with_results_only(mut self, results_only: bool) -> Self {
        self.results_only = results_only;
        self
    }

    /// Returns the width of the terminal in columns: at least 40, or 100 if unknown.
    pub fn width() -> usize {
        width()
    }

    /// Wraps paragraphs at the terminal's width if standard output is a terminal. Indented lines are
    /// unchanged.
    pub fn fitted(text: &str) -> String {
        if !std::io::stdout().is_terminal() {
            return text.to_owned();
        }
        let width = width();
        let fit = |line: &str| match line.is_empty() || line.starts_with(' ') {
            true => line.to_owned(),
            false => wrapped(line, width),
        };
        text.split('\n').map(fit).collect::<Vec<_>>().join("\n")
    }

    /// Returns the screen that this terminal prints to, for other code that prints while bars are shown.
    pub fn screen(&self) -> Screen {
        self.screen.clone()
    }

    /// Prints a passing message, above the bar if there is one.
    fn line(&self, text: &str) {
        self.screen.error_line(text);
    }

    /// Prints a line about a run or its results.
    fn say(&self, text: &str) {
        match (self.verbosity, self.results_only) {
            (Verbosity::Quiet, _) => {}
            (_, true) => self.screen.error_line(text),
            (_, false) => self.screen.output_line(text),
        }
    }

    fn task(&mut self, task: Task, progress: Progress) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        // A second bar would conflict with the training bar.
        if let Some(training) = &mut self.training {
            let name = task.name();
            training.within(|| format!("{name}: {} of {}", progress.done, progress.total));
            return;
        }
        if self.work.as_ref().is_none_or(|(running, _)| *running != task) {
            // Removes the old bar before the new one appears.
            self.work = None;
            let bytes = matches!(
                task,
                Task::Download | Task::CheckFiles | Task::Upload | Task::ReadResponses
            );
            self.work = Some((task, Bar::new(task.name(), bytes, progress, &self.screen)));
        }
        let Some((_, bar)) = &mut self.work else { return };
        let seconds = bar.seconds();
        bar.update(progress, || match progress.tokens {
            _ if task == Task::AskTeachers => self.pairs.clone(),
            0 => String::new(),
            tokens => {
                let speed = tokens as f64 / seconds.max(1e-9);
                format!("{tokens} tokens, {speed:.0} tokens/s")
            }
        });
    }

    fn step_message(&mut self, report: &StepReport) -> String {
        let smooth = |old: Option<f64>, new: f64| old.map_or(new, |old| 0.9 * old + 0.1 * new);
        let loss = smooth(self.loss, report.loss);
        let speed = report.tokens as f64 / report.seconds.max(1e-9);
        let speed = smooth(self.tokens_per_second, speed);
        (self.loss, self.tokens_per_second) = (Some(loss), Some(speed));
        format!("loss {loss:.3} (smoothed), {speed:.0} tokens/s, lr {:.2e}", report.learning_rate)
    }

    /// Shows events of the training loop.
    fn training(&mut self, event: &Event<'_>) {
        match event {
            Event::Start { step, total_steps } => {
                let (done, total) = (*step as u64, *total_steps as u64);
                let progress = Progress { done, total, before: done, tokens: 0 };
                self.work = None;
                self.training = Some(Bar::new("train", false, progress, &self.screen));
            }
            Event::MicroBatch { step, done, of } if of > done => {
                if let Some(bar) = &mut self.training {
                    bar.within(|| format!("step {step}: {done} of {of} micro-batches"));
                }
            }
            Event::Step(report) => {
                let message = self.step_message(report);
                if self.verbosity == Verbosity::Verbose {
                    self.line(&format!("step {}: loss {:.4}", report.step, report.loss));
                }
                if let Some(bar) = &mut self.training {
                    let progress = Progress { done: report.step as u64, ..bar.progress };
                    bar.update(progress, || message);
                }
            }
            Event::Saving { step } => {
                self.saving = Some(Instant::now());
                if let Some(bar) = self.training.as_mut().filter(|_| !self.saves_quickly) {
                    bar.within(|| format!("step {step}: saving a checkpoint"));
                }
            }
            Event::Checkpoint { path, .. } => {
                let took = self.saving.take().map(|begun| begun.elapsed());
                self.saves_quickly = took.is_some_and(|took| took < LINE_EVERY);
                if self.verbosity == Verbosity::Verbose {
                    self.line(&format!("checkpoint {}", path.display()));
                }
            }
            Event::Evaluation(report) => {
                let losses = report.sources.iter();
                let losses: Vec<String> =
                    losses.map(|source| format!("{} {:.4}", source.name, source.loss)).collect();
                let losses = losses.join(", ");
                self.line(&Self::fitted(&format!("step {}: held-out loss {losses}", report.step)));
            }
            Event::Graded(report) => self.line(&format!(
                "step {}: {} of {} held-out answers correct",
                report.step, report.correct, report.questions
            )),
            Event::End(_) => self.training = None,
            _ => {}
        }
    }
}

impl Observer for Terminal {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Notice(text) => self.line(text),
            Event::Skipped { step, what } => {
                self.line(&format!("skipped step {step}: its {what} is not finite"));
            }
            Event::RolledBack { from, to, .. } => {
                self.line(&format!("rolled back from step {from} to the checkpoint of step {to}"));
            }
            Event::Resuming { path, skipped } => {
                skipped.iter().for_each(|problem| self.line(&format!("skipped {problem}")));
                self.say(&format!("resuming from {}", path.display()));
            }
            Event::Overview(overview) if self.verbosity == Verbosity::Quiet => {
                overview.warnings.iter().for_each(|text| self.line(&Self::fitted(text)));
            }
            _ if self.verbosity == Verbosity::Quiet => {}
            Event::Task { task, progress } => self.task(*task, *progress),
            Event::Pairs(progress) => self.pairs = progress.message(),
            Event::TaskEnd(task) => {
                if self.work.as_ref().is_some_and(|(running, _)| running == task) {
                    self.work = None;
                }
            }
            Event::Overview(overview) => {
                let width = Self::width();
                self.say(&format!("data: {}", overview.data));
                self.say(&format!("{:width$}\n", overview.ledger));
                self.say(&format!("mixture:\n{:width$}\n", overview.mixture));
                overview.lines.iter().for_each(|line| self.say(&Self::fitted(line)));
            }
            Event::AlreadyFinished => self.say("this run is finished"),
            Event::Accuracy { moment, accuracy } => self.say(&Self::fitted(&match moment {
                Moment::Before => format!("before training: {accuracy}"),
                Moment::After => format!("after training: {accuracy}"),
            })),
            Event::Part { name, about, number, of, seconds_left } => {
                let left = seconds_left.map(crate::text::duration);
                let left = left.map_or(String::new(), |left| format!(", about {left} left"));
                let number = match number {
                    0 => String::new(),
                    number => format!(" (run {number} of {of}{left})"),
                };
                self.say(&format!("\n=== {name}: {about}{number} ==="));
            }
            Event::Written { what, path } => self.say(&format!("{what}: {}", path.display())),
            event => self.training(event),
        }
        Ok(())
    }
}
