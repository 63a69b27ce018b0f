//! Progress events of long calls, and how to stop them.
//!
//! Every long call takes a [`Context`]. It emits typed [`Event`]s to an [`Observer`] and returns
//! [`Error::Stopped`] soon after a [`StopFlag`] was raised. The library prints nothing; programs build bars
//! and lines from events, as `terminal::Terminal` (feature `cli`) does.
//!
//! ```
//! use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
//!
//! struct Lines;
//!
//! impl Observer for Lines {
//!     fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
//!         if let Event::Task { task, progress } = event {
//!             println!("{} {} of {}", task.name(), progress.done, progress.total);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let (stop, mut lines) = (StopFlag::default(), Lines);
//! let context = Context::new(&mut lines, &stop);
//! let mut task = context.task(Task::Encode, 2);
//! task.update(1)?;
//! stop.request();
//! assert!(matches!(task.update(2), Err(mixdistill::Error::Stopped { .. })));
//! # Ok::<(), mixdistill::Error>(())
//! ```

mod event;
mod reports;

pub use event::{Event, Moment, Observer, Progress, RunOverview, Task};
pub use reports::{
    Accuracy, BestStep, EvaluationReport, GradedReport, Outcome, PairsProgress, SampleAnswer,
    SourceLoss, StepReport,
};

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Requests a stop. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Requests the stop. Returns whether it was requested before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Returns whether a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Carries events to an observer and stop requests to the work.
pub struct Context<'a> {
    observer: RefCell<Box<dyn Observer + 'a>>,
    stop: StopFlag,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl Default for Context<'_> {
    /// Has no observer and never stops.
    fn default() -> Self {
        Self { observer: RefCell::new(Box::new(())), stop: StopFlag::default() }
    }
}

impl<'a> Context<'a> {
    /// Creates a context with an observer and a stop flag.
    pub fn new(observer: impl Observer + 'a, stop: &StopFlag) -> Self {
        Self { observer: RefCell::new(Box::new(observer)), stop: stop.clone() }
    }

    /// Emits an event. If an observer emits an event to the same context while it handles another one, that
    /// event is dropped.
    ///
    /// # Errors
    /// Errors of the observer.
    pub fn emit(&self, event: &Event<'_>) -> Result<()> {
        match self.observer.try_borrow_mut() {
            Ok(mut observer) => observer.observe(event),
            Err(_) => Ok(()),
        }
    }

    /// Emits a message for the user.
    ///
    /// # Errors
    /// See [`Context::emit`].
    pub fn notice(&self, text: impl AsRef<str>) -> Result<()> {
        self.emit(&Event::Notice(text.as_ref()))
    }

    /// Returns a context with the same observer that never stops, for work that ranks do together: a stop on
    /// one rank alone would leave the others waiting.
    pub(crate) fn without_stop(&self) -> Context<'_> {
        Context::new(self, &StopFlag::default())
    }

    /// Returns the stop flag.
    pub fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// Returns whether a stop was requested.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }

    /// Fails if a stop was requested.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check(&self) -> Result<()> {
        match self.is_stopped() {
            true => Err(Error::stopped("nothing is lost")),
            false => Ok(()),
        }
    }

    /// Runs blocking work on another thread and returns its result. Calls `watch` ten times per second
    /// meanwhile. If a stop is requested or `watch` fails, the work is abandoned.
    #[cfg(any(feature = "hub", feature = "teacher"))]
    pub(crate) fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        watch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<T> {
        use std::sync::mpsc::{RecvTimeoutError, channel};
        const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(100);
        let failed = |what: String| Error::Training { what, hint: "Try again".into() };
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().spawn(move || drop(sender.send(work())));
        thread.map_err(|e| failed(format!("cannot start a thread: {e}")))?;
        loop {
            self.check()?;
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => watch()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("a thread ended without a result".into()));
                }
            }
        }
    }

    /// Starts counted work of `total` units.
    pub fn task(&self, task: Task, total: u64) -> TaskProgress<'_, 'a> {
        self.resumed_task(task, total, 0)
    }

    /// Starts counted work of which `before` units are already done.
    pub fn resumed_task(&self, task: Task, total: u64, before: u64) -> TaskProgress<'_, 'a> {
        let progress = Progress { done: before, total, before, tokens: 0 };
        TaskProgress { context: self, task, progress }
    }
}

/// A context can observe nested work.
impl Observer for &Context<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.emit(event)
    }
}

/// Counted work in progress. Dropping it ends the work.
#[derive(Debug)]
pub struct TaskProgress<'c, 'a> {
    context: &'c Context<'a>,
    task: Task,
    progress: Progress,
}

impl TaskProgress<'_, '_> {
    /// Reports that `done` units are done, including those of earlier processes.
    ///
    /// # Errors
    /// [`Error::Stopped`] if a stop was requested; errors of the observer.
    pub fn update(&mut self, done: u64) -> Result<()> {
        self.progress.done = done;
        self.tell()?;
        self.context.check()
    }

    /// Reports the progress whether or not a stop was requested, before a write that a stop must not lose and
    /// that an observer may forbid.
    ///
    /// # Errors
    /// Errors of the observer.
    pub(crate) fn tell(&self) -> Result<()> {
        self.context.emit(&Event::Task { task: self.task, progress: self.progress })
    }

    /// Like [`TaskProgress::update`], and sets the total, if it was unknown before.
    ///
    /// # Errors
    /// See [`TaskProgress::update`].
    pub fn update_of(&mut self, done: u64, total: u64) -> Result<()> {
        self.progress.total = total;
        self.update(done)
    }

    /// Reports that one more unit is done.
    ///
    /// # Errors
    /// See [`TaskProgress::update`].
    pub fn advance(&mut self) -> Result<()> {
        self.update(self.progress.done + 1)
    }

    /// Adds to the token count, which the next update reports.
    pub fn add_tokens(&mut self, tokens: u64) {
        self.progress.tokens += tokens;
    }

    /// Returns the current progress.
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

impl Drop for TaskProgress<'_, '_> {
    fn drop(&mut self) {
        // Failing to remove a progress bar is not an error.
        let _ = self.context.emit(&Event::TaskEnd(self.task));
    }
}
