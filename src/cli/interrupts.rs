//! Ctrl-C and SIGTERM: the first asks for a stop, the second ends the program at once.

use mixdistill::context::StopFlag;
use mixdistill::terminal::Screen;
use mixdistill::{Error, Result};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Exit status where a second signal ends the program.
const ENDED: i32 = 130;

/// What a signal stops.
#[derive(Clone, Debug)]
enum Mode {
    /// The whole work.
    Work,
    /// One answer of a chat; the program goes on.
    Answer(StopFlag),
    /// Nothing is on its way, and the program ends.
    Idle,
}

/// What signals do now.
#[derive(Clone, Debug)]
pub struct Interrupts {
    stop: StopFlag,
    mode: Arc<Mutex<Mode>>,
}

impl Interrupts {
    /// Handles signals from now on; a process without a screen says nothing of them.
    ///
    /// # Errors
    /// [`Error::Training`] where the system allows no handler.
    pub fn install(stop: &StopFlag, screen: Option<Screen>) -> Result<Self> {
        let new = Self { stop: stop.clone(), mode: Arc::new(Mutex::new(Mode::Work)) };
        let handled = new.clone();
        let installed = ctrlc::set_handler(move || handled.signal(screen.as_ref()));
        installed.map_err(|e| Error::Training {
            what: format!("the handler for Ctrl-C cannot be installed: {e}"),
            hint: "Run the program in a terminal of its own".into(),
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
            screen.error_line("stopping; once more to stop at once");
        }
    }

    /// From now on a signal ends an answer alone, by the flag that is returned.
    pub fn begin_answer(&self) -> StopFlag {
        let stop = StopFlag::default();
        *self.mode() = Mode::Answer(stop.clone());
        stop
    }

    /// From now on a signal ends the program.
    pub fn idle(&self) {
        *self.mode() = Mode::Idle;
    }
}
