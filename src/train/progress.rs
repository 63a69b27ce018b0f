//! Progress at the terminal: a bar, or plain lines where there is no terminal.

use super::observer::{Event, Observer, StepReport};
use crate::error::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How one counted piece of work is shown on standard error.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    total: u64,
    /// Units that were done before this process.
    before: u64,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Work of `total` units, called `name` (`train`, `encode`, ...).
    pub fn new(name: &'static str, total: u64) -> Self {
        Self::resumed(name, total, 0)
    }

    /// Work of which `before` units were done earlier.
    pub fn resumed(name: &'static str, total: u64, before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{prefix:9} [{bar:24}] {pos}/{len} {elapsed} {msg}";
            // The template is a constant; were it refused, the default style does as well.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(name);
            bar.set_position(before);
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let now = Instant::now();
        Self { name, total, before, bar, started: now, last_line: now }
    }

    /// Shows that `done` units are done.
    pub fn update(&mut self, done: u64, message: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(format!("{} {}", message(), self.time_left(done)));
            }
            None if self.last_line.elapsed() >= LINE_EVERY || done == self.total => {
                self.plain_line(done, &format!("{} {}", message(), self.time_left(done)));
            }
            None => {}
        }
    }

    /// Shows how far the unit after `done` is, without a guess of the time left.
    fn within(&mut self, done: u64, message: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => bar.set_message(message()),
            None if self.last_line.elapsed() >= LINE_EVERY => self.plain_line(done, &message()),
            None => {}
        }
    }

    fn plain_line(&mut self, done: u64, message: &str) {
        print_line(format!("{} {done}/{} {message}", self.name, self.total).trim_end());
        self.last_line = Instant::now();
    }

    /// Shows that `done` units of `total` are done.
    pub fn update_of(&mut self, done: u64, total: u64, message: impl FnOnce() -> String) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.update(done, message);
    }

    /// Prints a line without disturbing the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_line(text)),
            None => print_line(text),
        }
    }

    /// Ends the bar and leaves no trace of it.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn time_left(&self, done: u64) -> String {
        if done <= self.before || done >= self.total {
            return String::new();
        }
        let each = self.started.elapsed().as_secs_f64() / (done - self.before) as f64;
        let seconds = (each * (self.total - done) as f64).round() as u64;
        match seconds {
            0..60 => format!("{seconds} s left"),
            60..3600 => format!("{}:{:02} min left", seconds / 60, seconds % 60),
            _ => format!("{}:{:02} h left", seconds / 3600, seconds / 60 % 60),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A line on standard error; one that nobody reads any more is no reason to stop.
pub(super) fn print_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Shows training: step, loss, learning rate, tokens a second, time left.
#[derive(Debug, Default)]
pub struct ProgressObserver {
    training: Option<Progress>,
    evaluation: Option<Progress>,
    smoothed: Option<f64>,
    tokens_per_second: Option<f64>,
    /// When the checkpoint that is being written was begun.
    saving: Option<Instant>,
    /// Whether checkpoints are written without anyone noticing.
    saves_quickly: bool,
}

impl ProgressObserver {
    /// A line, above the bar where there is one.
    fn line(&self, text: &str) {
        match &self.training {
            Some(progress) => progress.line(text),
            None => print_line(text),
        }
    }

    fn message(&mut self, report: &StepReport) -> String {
        let smooth = |old: Option<f64>, new: f64| old.map_or(new, |old| 0.9 * old + 0.1 * new);
        let loss = smooth(self.smoothed, report.loss);
        let speed = report.tokens as f64 / report.seconds.max(1e-9);
        let speed = smooth(self.tokens_per_second, speed);
        (self.smoothed, self.tokens_per_second) = (Some(loss), Some(speed));
        format!("loss {loss:.3} (smoothed) lr {:.2e} {speed:.0} tokens/s", report.learning_rate)
    }
}

impl Observer for ProgressObserver {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Start { step, total_steps } => {
                let (total, before) = (*total_steps as u64, *step as u64);
                self.training = Some(Progress::resumed("train", total, before));
            }
            Event::MicroBatch { step, done, of } if of > done => {
                if let Some(progress) = &mut self.training {
                    let message = || format!("step {step}: {done} of {of} micro-batches");
                    progress.within(*step as u64 - 1, message);
                }
            }
            Event::MicroBatch { .. } => {}
            Event::Step(report) => {
                let message = self.message(report);
                if let Some(progress) = &mut self.training {
                    progress.update(report.step as u64, || message);
                }
            }
            // A second bar would fight with the training's for the terminal.
            Event::Evaluating { done, of } => match &self.training {
                Some(Progress { bar: Some(bar), .. }) => {
                    bar.set_message(format!("evaluating: {done} of {of}"));
                }
                _ => {
                    self.evaluation
                        .get_or_insert_with(|| Progress::new("evaluate", *of as u64))
                        .update_of(*done as u64, *of as u64, String::new);
                }
            },
            Event::Evaluation(report) => {
                self.evaluation = None;
                let losses: Vec<String> = report
                    .sources
                    .iter()
                    .map(|source| format!("{} {:.4}", source.name, source.loss))
                    .collect();
                self.line(&format!("step {}: held-out loss {}", report.step, losses.join(", ")));
            }
            Event::Skipped { step, what } => {
                self.line(&format!("step {step} left out: its {what} is not finite"));
            }
            Event::RolledBack { from, to, .. } => {
                self.line(&format!("back from step {from} to the checkpoint of step {to}"));
            }
            Event::Graded(report) => {
                self.evaluation = None;
                self.line(&format!(
                    "step {}: {} of {} held-out answers right",
                    report.step, report.correct, report.questions
                ));
            }
            Event::Saving { step } => {
                self.saving = Some(Instant::now());
                let message = || format!("step {step}: saving a checkpoint");
                match &mut self.training {
                    Some(Progress { bar: Some(bar), .. }) => bar.set_message(message()),
                    Some(progress) if !self.saves_quickly => {
                        progress.plain_line(*step as u64, &message());
                    }
                    _ => {}
                }
            }
            Event::Notice(text) => self.line(text),
            Event::Sample(_) => {}
            Event::End(_) => self.training = None,
            Event::Checkpoint { .. } => {
                let took = self.saving.take().map(|begun| begun.elapsed());
                self.saves_quickly = took.is_some_and(|took| took < LINE_EVERY);
            }
        }
        Ok(())
    }
}
