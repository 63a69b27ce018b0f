//! Ctrl-C and SIGTERM. The first signal requests a stop, the second ends the program immediately.

use mixdistill::context::StopFlag;
use mixdistill::terminal::Screen;
use mixdistill::{Error, Result};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Exit status after a second signal.
const ENDED: i32 = 130;

/// What a signal stops.
#[derive(Clone, Debug)]
enum Mode {
    /// All of the work.
    Work,
    /// One answer of a chat; the program continues.
    Answer(StopFlag),
    /// Nothing is running, so the program ends.
    Idle,
}

/// What a signal currently does.
#[derive(Clone, Debug)]
pub struct Interrupts {
    stop: StopFlag,
    mode: Arc<Mutex<Mode>>,
}

impl Interrupts {
    /// Installs the signal handler. A process without a screen does not report signals.
    ///
    /// # Errors
    /// [`Error::Training`] if the system refuses the handler.
    pub fn install(stop: &StopFlag, screen: Option<Screen>) -> Result<Self> {
        let new = Self { stop: stop.clone(), mode: Arc::new(Mutex::new(Mode::Work)) };
        let handled = new.clone();
        let installed = ctrlc::set_handler(move || handled.signal(screen.as_ref()));
        installed.map_err(|e| Error::Training {
            what: format!("the Ctrl-C handler cannot be installed: {e}"),
            hint: "Run the program in its own terminal".into(),
        })?;
        Ok(new)
    }

    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, screen: Option<&Screen>) {
        let mode = self.mode().clone();
        let again = match &mode {
            Mode::Work => self.stop.request(),
            Mode::Answer(stop) => stop.request(),
            Mode::Idle => true,
        };
        if again {
            process::exit(ENDED);
        }
        if let (Mode::Work, Some(screen)) = (mode, screen) {
            screen.error_line("stopping; press Ctrl-C again to stop immediately");
        }
    }

    /// Makes a signal end only the current answer, through the returned flag.
    pub fn begin_answer(&self) -> StopFlag {
        let stop = StopFlag::default();
        *self.mode() = Mode::Answer(stop.clone());
        stop
    }

    /// Makes a signal end the program again.
    pub fn idle(&self) {
        *self.mode() = Mode::Idle;
    }
}
