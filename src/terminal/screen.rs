//! Lines and the bar below them, shared by all code that prints.

use super::bar::spinner;
use crate::text::duration;
use indicatif::ProgressBar;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time without output.
const SILENCE: Duration = Duration::from_secs(2);
/// Maximum time between lines of a long wait, if lines replace the bar. The time doubles up to this.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// How often to check whether the screen has been silent for too long.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Prints lines above a bar, if there is one. Clones share the screen.
///
/// If nothing was shown for two seconds, it reports that work continues, until [`Screen::rest`] is called.
#[derive(Clone, Debug)]
pub struct Screen {
    state: Arc<Mutex<State>>,
    is_terminal: bool,
}

#[derive(Debug)]
struct State {
    /// The bar at the bottom.
    bar: Option<ProgressBar>,
    /// The spinner at the bottom, if there is no bar.
    spinner: Option<ProgressBar>,
    /// A description of the work, if there is no bar.
    status: String,
    /// When something was last shown.
    shown: Instant,
    /// When the current work started.
    begun: Instant,
    patience: Duration,
    watches: bool,
    rests: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new(true)
    }
}

impl Screen {
    /// Creates a screen. If `watches`, it reports when nothing was shown for a while.
    pub fn new(watches: bool) -> Self {
        let now = Instant::now();
        let state = Arc::new(Mutex::new(State {
            bar: None,
            spinner: None,
            status: "working".into(),
            shown: now,
            begun: now,
            patience: SILENCE,
            watches,
            rests: !watches,
        }));
        let is_terminal = std::io::stderr().is_terminal();
        if watches {
            let watched = Arc::downgrade(&state);
            // Without the thread, only these messages are missing.
            let _ = thread::Builder::new()
                .name("screen".into())
                .spawn(move || watch(&watched, is_terminal));
        }
        Self { state, is_terminal }
    }

    /// Returns whether bars can be shown.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line to standard error. Write errors are ignored.
    pub fn error_line(&self, text: &str) {
        self.state().print(|| drop(writeln!(std::io::stderr(), "{text}")));
    }

    /// Prints a line to standard output. Write errors are ignored.
    pub fn output_line(&self, text: &str) {
        self.state().print(|| drop(writeln!(std::io::stdout(), "{text}")));
    }

    /// Clears the bar and stops reporting that work continues, because the program waits for the user or
    /// shows its own progress.
    pub fn rest(&self) {
        let mut state = self.state();
        state.clear();
        state.rests = true;
    }

    /// Reports again after [`Screen::rest`]. `status` describes the work.
    pub fn watch(&self, status: &str) {
        let mut state = self.state();
        (state.rests, state.begun) = (!state.watches, Instant::now());
        state.status = status.to_owned();
        state.has_shown();
    }

    /// Shows a bar at the bottom, or sets the status if there is none.
    pub(super) fn set_bar(&self, bar: Option<ProgressBar>, status: &str) {
        let mut state = self.state();
        state.clear();
        (state.bar, state.status, state.begun) = (bar, status.to_owned(), Instant::now());
        state.has_shown();
    }

    /// Sets the message of a long wait.
    pub(super) fn set_status(&self, status: String) {
        self.state().status = status;
    }
}

impl State {
    fn print(&mut self, print: impl FnOnce()) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
        self.has_shown();
    }

    fn has_shown(&mut self) {
        (self.shown, self.patience) = (Instant::now(), SILENCE);
    }

    fn clear(&mut self) {
        for bar in [self.bar.take(), self.spinner.take()].into_iter().flatten() {
            bar.finish_and_clear();
        }
    }

    /// Reports that work continues, if nothing else shows it.
    fn look(&mut self, is_terminal: bool) {
        // A bar shows its own time.
        if self.rests || self.bar.is_some() || self.spinner.is_some() {
            return;
        }
        if self.shown.elapsed() < self.patience {
            return;
        }
        if is_terminal {
            self.spinner = Some(spinner(&self.status));
            return;
        }
        let waited = duration(self.begun.elapsed().as_secs_f64());
        let _ = writeln!(std::io::stderr(), "{} ... {waited}", self.status);
        self.shown = Instant::now();
        self.patience = (2 * self.patience).min(LONGEST_SILENCE);
    }
}

/// Watches the screen as long as it exists.
fn watch(state: &Weak<Mutex<State>>, is_terminal: bool) {
    loop {
        thread::sleep(LOOK_EVERY);
        let Some(state) = state.upgrade() else { return };
        state.lock().unwrap_or_else(PoisonError::into_inner).look(is_terminal);
    }
}
