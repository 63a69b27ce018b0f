//! What long calls tell whoever started them, and how they are stopped.
//!
//! Every call that takes long is given a [`Context`]. It tells typed [`Event`]s to an [`Observer`],
//! and gives up with [`Error::Stopped`] soon after a [`StopFlag`] was raised.
//! The library prints nothing; a program makes bars and lines of the events, as
//! [`Terminal`](crate::terminal::Terminal) does.
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

/// Asks work to stop; clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks for the stop. Returns whether it had been asked for before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Who is told what happens, and whether it is to stop.
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
    /// Nobody is told, and nobody stops it.
    fn default() -> Self {
        Self { observer: RefCell::new(Box::new(())), stop: StopFlag::default() }
    }
}

impl<'a> Context<'a> {
    /// An observer that is told, and a flag that stops.
    pub fn new(observer: impl Observer + 'a, stop: &StopFlag) -> Self {
        Self { observer: RefCell::new(Box::new(observer)), stop: stop.clone() }
    }

    /// Tells an event.
    ///
    /// # Errors
    /// What the observer returns. An observer that itself tells an event to the same context is not
    /// told that one.
    pub fn emit(&self, event: &Event<'_>) -> Result<()> {
        match self.observer.try_borrow_mut() {
            Ok(mut observer) => observer.observe(event),
            Err(_) => Ok(()),
        }
    }

    /// Tells something that whoever watches should know.
    ///
    /// # Errors
    /// As [`Context::emit`].
    pub fn notice(&self, text: impl AsRef<str>) -> Result<()> {
        self.emit(&Event::Notice(text.as_ref()))
    }

    /// The same, told everything and never stopped: for work that several ranks do together, which a
    /// stop on one of them alone would leave waiting.
    pub(crate) fn without_stop(&self) -> Context<'_> {
        Context::new(self, &StopFlag::default())
    }

    /// The flag that stops the work.
    pub fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// Whether a stop was asked for.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_requested()
    }

    /// Nothing, unless a stop was asked for.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check(&self) -> Result<()> {
        match self.is_stopped() {
            true => Err(Error::stopped("nothing is lost")),
            false => Ok(()),
        }
    }

    /// Does work that blocks on another thread, and gives its result. Meanwhile `watch` is called ten
    /// times a second; after a stop, or where it fails, the work is left to itself.
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
        thread.map_err(|e| failed(format!("the system refuses a thread: {e}")))?;
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

    /// Counted work of `total` units, of which none is done yet.
    pub fn task(&self, task: Task, total: u64) -> TaskProgress<'_, 'a> {
        self.resumed_task(task, total, 0)
    }

    /// Counted work of which `before` units were done earlier.
    pub fn resumed_task(&self, task: Task, total: u64, before: u64) -> TaskProgress<'_, 'a> {
        let progress = Progress { done: before, total, before, tokens: 0 };
        TaskProgress { context: self, task, progress }
    }
}

/// A context is an observer of what happens below it.
impl Observer for &Context<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.emit(event)
    }
}

/// Counted work on its way; dropped, it ends.
#[derive(Debug)]
pub struct TaskProgress<'c, 'a> {
    context: &'c Context<'a>,
    task: Task,
    progress: Progress,
}

impl TaskProgress<'_, '_> {
    /// Tells that `done` units are done, those of earlier processes included.
    ///
    /// # Errors
    /// [`Error::Stopped`] where a stop was asked for; what the observer returns.
    pub fn update(&mut self, done: u64) -> Result<()> {
        self.progress.done = done;
        self.tell()?;
        self.context.check()
    }

    /// Tells how far it is, whether or not a stop was asked for: before something is written that a stop
    /// must not lose, and that an observer may forbid.
    ///
    /// # Errors
    /// What the observer returns.
    pub(crate) fn tell(&self) -> Result<()> {
        self.context.emit(&Event::Task { task: self.task, progress: self.progress })
    }

    /// As [`TaskProgress::update`], with the units in all where they were not known before.
    ///
    /// # Errors
    /// As [`TaskProgress::update`].
    pub fn update_of(&mut self, done: u64, total: u64) -> Result<()> {
        self.progress.total = total;
        self.update(done)
    }

    /// Tells that one more unit is done.
    ///
    /// # Errors
    /// As [`TaskProgress::update`].
    pub fn advance(&mut self) -> Result<()> {
        self.update(self.progress.done + 1)
    }

    /// Counts tokens of work, told with the next update.
    pub fn add_tokens(&mut self, tokens: u64) {
        self.progress.tokens += tokens;
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

impl Drop for TaskProgress<'_, '_> {
    fn drop(&mut self) {
        // A bar that cannot be removed is no reason to stop.
        let _ = self.context.emit(&Event::TaskEnd(self.task));
    }
}
