//! Counted work as a progress bar, or as lines.

use super::screen::Screen;
use super::width;
use crate::context::Progress;
use crate::text::duration;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Time between plain lines.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(2);
/// Time between updates of a bar. Faster updates would be invisible.
const BAR_EVERY: Duration = Duration::from_millis(50);
/// Time and units after which the time left can be estimated.
const KNOWN_AFTER: (Duration, u64) = (Duration::from_secs(3), 3);
/// How often a bar updates its time.
const TICK_EVERY: Duration = Duration::from_millis(250);

/// Counted work that is shown.
#[derive(Debug)]
pub(super) struct Bar {
    name: &'static str,
    /// Whether the units are bytes.
    bytes: bool,
    pub progress: Progress,
    screen: Screen,
    bar: Option<ProgressBar>,
    /// The width that the bar is formatted for.
    fitted: usize,
    started: Instant,
    shown: Option<Instant>,
}

impl Bar {
    pub fn new(name: &'static str, bytes: bool, progress: Progress, screen: &Screen) -> Self {
        let bar = screen.is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(progress.total), target);
            bar.set_prefix(name);
            bar.set_position(progress.done);
            bar
        });
        let mut new = Self {
            name,
            bytes,
            progress,
            screen: screen.clone(),
            bar,
            fitted: 0,
            started: Instant::now(),
            shown: None,
        };
        new.fit();
        if let Some(bar) = &new.bar {
            bar.enable_steady_tick(TICK_EVERY);
        }
        screen.set_bar(new.bar.clone(), name);
        new
    }

    /// Formats the bar for the terminal's width, which may have changed.
    fn fit(&mut self) {
        let Some(bar) = &self.bar else { return };
        let width = width();
        if width == self.fitted {
            return;
        }
        self.fitted = width;
        bar.set_style(style(width, self.bytes));
    }

    /// Seconds since this process started the work.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Shows the progress of the work.
    pub fn update(&mut self, progress: Progress, message: impl FnOnce() -> String) {
        self.progress = progress;
        let Progress { done, total, .. } = progress;
        let every = if self.bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        let is_due = self.shown.is_none_or(|shown| shown.elapsed() >= every);
        if !is_due && done != total {
            return;
        }
        // Plain lines start after a delay, so that short work prints none.
        if self.shown.is_none() && self.bar.is_none() && self.started.elapsed() < every {
            return;
        }
        self.shown = Some(Instant::now());
        self.fit();
        // The most important part comes first, because a narrow terminal truncates the rest.
        let message = [self.time_left(), message()];
        let message: Vec<&str> =
            message.iter().map(String::as_str).filter(|m| !m.is_empty()).collect();
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(message.join(", "));
            }
            None => self.plain_line(&message.join(", ")),
        }
    }

    /// Shows what happens within the current unit, without an estimate of the time left.
    pub fn within(&mut self, message: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => bar.set_message(message()),
            None => {
                let since = self.shown.unwrap_or(self.started);
                if since.elapsed() >= LINE_EVERY {
                    self.shown = Some(Instant::now());
                    self.plain_line(&message());
                }
            }
        }
    }

    fn plain_line(&self, message: &str) {
        let Progress { done, total, .. } = self.progress;
        let [done, total] = match self.bytes {
            true => [done, total].map(|bytes| indicatif::BinaryBytes(bytes).to_string()),
            false => [done, total].map(|count| count.to_string()),
        };
        let line = format!("{} {done}/{total}", self.name);
        self.screen.set_status(line.clone());
        self.screen.error_line(format!("{line} {message}").trim_end());
    }

    /// Returns the estimated time left, if known.
    fn time_left(&self) -> String {
        let Progress { done, total, before, tokens } = self.progress;
        let (made, elapsed) = (done.saturating_sub(before), self.started.elapsed());
        if elapsed < KNOWN_AFTER.0 || made < KNOWN_AFTER.1 || done >= total {
            return String::new();
        }
        // Answers of a batch finish together, so the first ones predict little.
        if tokens > 0 && made * 10 < total.saturating_sub(before) {
            return String::new();
        }
        let each = elapsed.as_secs_f64() / made as f64;
        format!("{} left", duration(each * (total - done) as f64))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.screen.set_bar(None, "working");
    }
}

/// Builds a style from a constant template, or the default style if the template is invalid.
fn styled(template: &str, default: fn() -> ProgressStyle) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| default());
    style
        .with_key("time", |state: &ProgressState, text: &mut dyn Write| {
            // Tenths of a second would flicker.
            let seconds = state.elapsed().as_secs();
            let _ = match seconds {
                0..10 => write!(text, "{seconds} s"),
                _ => write!(text, "{}", duration(seconds as f64)),
            };
        })
        .progress_chars("=> ")
}

/// Returns the style for a terminal width. The message is truncated to fit.
fn style(width: usize, bytes: bool) -> ProgressStyle {
    let count = match bytes {
        true => "{binary_bytes}/{binary_total_bytes}",
        false => "{pos}/{len}",
    };
    let template = match width {
        0..60 => format!("{{prefix}} {count} {{time}} {{wide_msg}}"),
        60..90 => format!("{{prefix:8}} [{{bar:12}}] {count} {{time}} {{wide_msg}}"),
        _ => format!("{{prefix:8}} [{{bar:24}}] {count} {{time}} {{wide_msg}}"),
    };
    styled(&template, ProgressStyle::default_bar)
}

/// Shows that work without a count is in progress.
pub(super) fn spinner(status: &str) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(styled("{spinner} {wide_msg}", ProgressStyle::default_spinner));
    spinner.set_message(format!("{status} ..."));
    spinner.enable_steady_tick(TICK_EVERY);
    spinner
}
