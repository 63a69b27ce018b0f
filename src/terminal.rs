//! Events as bars and lines at a terminal (feature `cli`).
//!
//! Bars and what passes go to standard error, what a run is and comes to goes to standard output.
//! Where standard error is no terminal, lines every two seconds take the place of bars.

mod bar;
mod screen;

pub use screen::Screen;

use crate::context::{Event, Moment, Observer, Progress, StepReport, Task};
use crate::error::Result;
use crate::text::{DISPLAY_WIDTH, wrapped};
use bar::{Bar, LINE_EVERY};
use std::io::IsTerminal;
use std::time::Instant;

/// Columns of the terminal, of 40 at least.
fn width() -> usize {
    let size = terminal_size::terminal_size();
    size.map_or(DISPLAY_WIDTH, |(width, _)| usize::from(width.0).max(40))
}

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Notices alone.
    Quiet,
    /// What a person wants to know.
    #[default]
    Normal,
    /// Each step and checkpoint in a line too.
    Verbose,
}

/// Shows events.
#[derive(Debug)]
pub struct Terminal {
    verbosity: Verbosity,
    /// Whether standard output is left to results.
    results_only: bool,
    screen: Screen,
    work: Option<(Task, Bar)>,
    training: Option<Bar>,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    /// How far two teachers are, in words.
    pairs: String,
    /// When the checkpoint that is being written was begun.
    saving: Option<Instant>,
    /// Whether checkpoints are written without anyone noticing.
    saves_quickly: bool,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new(Verbosity::Normal)
    }
}

impl Terminal {
    /// Shows as much as it is told to.
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

    /// Leaves standard output to results: all that is told goes to standard error.
    pub fn with_results_only(mut self, results_only: bool) -> Self {
        self.results_only = results_only;
        self
    }

    /// Columns of the terminal, of 40 at least; 100 where that is not known.
    pub fn width() -> usize {
        width()
    }

    /// A text whose paragraphs are parted between words where standard output is a terminal; lines
    /// that are indented stay as they are.
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

    /// Where this terminal prints, for others who print while it shows bars.
    pub fn screen(&self) -> Screen {
        self.screen.clone()
    }

    /// A passing line, above the bar where there is one.
    fn line(&self, text: &str) {
        self.screen.error_line(text);
    }

    /// A line of what a run is or comes to.
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
        // A second bar would fight with the training's for the terminal.
        if let Some(training) = &mut self.training {
            let name = task.name();
            training.within(|| format!("{name}: {} of {}", progress.done, progress.total));
            return;
        }
        if self.work.as_ref().is_none_or(|(running, _)| *running != task) {
            // The old bar goes before the new one comes.
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

    /// Events of the training loop.
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
                "step {}: {} of {} held-out answers right",
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
                self.line(&format!("step {step} left out: its {what} is not finite"));
            }
            Event::RolledBack { from, to, .. } => {
                self.line(&format!("back from step {from} to the checkpoint of step {to}"));
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
