//! The lines of a terminal and the bar below them, shared by all who print.

use super::bar::spinner;
use crate::text::duration;
use indicatif::ProgressBar;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing stays unseen for longer than this.
const SILENCE: Duration = Duration::from_secs(2);
/// Where lines take the place of a bar, a long wait is told less and less often, down to this.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it has been silent for too long.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Where lines are printed while a bar may stand below them. Clones share it.
///
/// It says that the work goes on where nothing was shown for two seconds, until
/// [`Screen::rest`] is called.
#[derive(Clone, Debug)]
pub struct Screen {
    state: Arc<Mutex<State>>,
    is_terminal: bool,
}

#[derive(Debug)]
struct State {
    /// What stands at the bottom.
    bar: Option<ProgressBar>,
    /// What stands there while nothing is counted.
    spinner: Option<ProgressBar>,
    /// The work in words, where there is no bar.
    status: String,
    /// When something was shown last.
    shown: Instant,
    /// When what is being done was begun.
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
    /// A screen; with `watches` it says when nothing was shown for long.
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
            // Without the thread nothing is lost but these lines.
            let _ = thread::Builder::new()
                .name("screen".into())
                .spawn(move || watch(&watched, is_terminal));
        }
        Self { state, is_terminal }
    }

    /// Whether bars can be shown.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints a line to standard error. That nobody reads it any more is no reason to stop.
    pub fn error_line(&self, text: &str) {
        self.state().print(|| drop(writeln!(std::io::stderr(), "{text}")));
    }

    /// Prints a line to standard output.
    pub fn output_line(&self, text: &str) {
        self.state().print(|| drop(writeln!(std::io::stdout(), "{text}")));
    }

    /// Clears what stands at the bottom, and says no more that the work goes on: the program waits
    /// for a person, or shows by itself what it does.
    pub fn rest(&self) {
        let mut state = self.state();
        state.clear();
        state.rests = true;
    }

    /// Watches again after [`Screen::rest`]; a long wait is told in these words.
    pub fn watch(&self, status: &str) {
        let mut state = self.state();
        (state.rests, state.begun) = (!state.watches, Instant::now());
        state.status = status.to_owned();
        state.has_shown();
    }

    /// Puts a bar at the bottom, or a line's words where bars cannot be shown.
    pub(super) fn set_bar(&self, bar: Option<ProgressBar>, status: &str) {
        let mut state = self.state();
        state.clear();
        (state.bar, state.status, state.begun) = (bar, status.to_owned(), Instant::now());
        state.has_shown();
    }

    /// Says what the line of a long wait says.
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

    /// Says that the work goes on, where nobody could see it.
    fn look(&mut self, is_terminal: bool) {
        // A bar shows its time by itself.
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

/// Looks at the screen as long as there is one.
fn watch(state: &Weak<Mutex<State>>, is_terminal: bool) {
    loop {
        thread::sleep(LOOK_EVERY);
        let Some(state) = state.upgrade() else { return };
        state.lock().unwrap_or_else(PoisonError::into_inner).look(is_terminal);
    }
}
