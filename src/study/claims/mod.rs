//! Claims: which process works on what in a study that several processes share.
//!
//! ```text
//! OUT/claims/STUDENT/ARM/seed-1.json       claim on a cell, named like its file in results/
//! OUT/claims/STUDENT/pretraining.json      claim on a student's pretraining
//! OUT/claims/STUDENT/scores-Long.json      claim on a student's scores
//! OUT/claims/.report.json                  claim on the report
//! OUT/claims/STUDENT/ARM/.seed-1.json.lock the lock next to a claim
//! OUT/claims/.settings.toml                the settings of the processes that work on the study
//! ```
//!
//! A claim is a file that is created exclusively. It has the host, the process, and a heartbeat: a counter
//! that the holder increments while it works. A process that sees the same heartbeat for too long, by its
//! own clock, takes the claim over. All changes of claims happen under one lock, so if two processes want a
//! claim, exactly one gets it. A holder that has lost its claim fails with an error.
//!
//! A process also holds a lock next to its claim, which the system releases when the process ends. A process
//! that took over a claim starts to work only once it has that lock, too. A suspended process that wakes up
//! therefore never writes at the same time.

use crate::context::{Context, Event, Observer};
use crate::error::{Error, Result};
use crate::files::{FolderLock, bytes_if_there, remove_file};
use crate::text::duration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest time between renewals of a claim.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// The number of heartbeats that a live process may miss.
const MISSED: u32 = 4;
/// How often to check whether a claim is free.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long to wait at least for the lock of all claims. Processes hold it only for a moment, but a network
/// mount keeps the lock of a lost machine for a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// The content of a claim file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Claim {
    host: String,
    process: u32,
    /// Unique for each claim.
    token: String,
    /// When it was created, by the host's clock. For people only.
    started: String,
    /// The interval in seconds at which the holder renews the heartbeat.
    renewed_every: f64,
    heartbeat: u64,
}

impl Claim {
    fn text(&self) -> String {
        format!("{}\n", serde_json::to_string(self).unwrap_or_default())
    }

    /// Parses a claim file. An unreadable claim belongs to nobody and dies if it does not change.
    fn of(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn holder(&self) -> String {
        format!("{}, process {}", self.host, self.process)
    }
}

/// The claims of a study, as one process sees them. Clones share their state.
#[derive(Clone)]
pub(super) struct Claims(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    /// The file whose lock is held while a claim changes.
    locked: PathBuf,
    dead_after: Duration,
    host: String,
    count: AtomicU64,
    /// Claims of others, with the time of their last observed change.
    seen: Mutex<BTreeMap<PathBuf, (String, Instant)>>,
    /// The claims of this process.
    held: Mutex<Vec<Arc<State>>>,
}

/// A claim of this process.
struct State {
    path: PathBuf,
    claim: Mutex<Claim>,
    renewed: Mutex<Instant>,
    /// The new holder, if another process took it over.
    lost: Mutex<Option<String>>,
}

/// A claim that this process holds until it is dropped.
pub(super) struct Held {
    claims: Claims,
    state: Arc<State>,
    /// Shows others that this process exists, whether or not it renews the claim. `None` if the claim was
    /// taken over from a process that still exists.
    lock: Option<FolderLock>,
    /// The earlier holder, if the claim was taken over.
    pub taken_from: Option<String>,
    beat: Option<(Sender<()>, JoinHandle<()>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    /// Returns the claims in a study's directory. They change only under the lock of one of its files.
    pub fn new(out: &Path, locked: PathBuf, dead_after: Duration) -> Self {
        Self(Arc::new(Inner {
            folder: out.join("claims"),
            locked,
            dead_after,
            host: host(),
            count: AtomicU64::new(0),
            seen: Mutex::default(),
            held: Mutex::default(),
        }))
    }

    /// Returns the path of a file among the claims.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.folder.join(name)
    }

    /// Creates the folder of the claims.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn make_folder(&self) -> Result<()> {
        let folder = &self.0.folder;
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))
    }

    /// Runs short `work` that no two processes may do at the same time.
    ///
    /// # Errors
    /// Errors of `work`; [`Error::RunDirectory`] if another process holds the lock for too long.
    pub fn exclusively<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.0.exclusively(work)
    }

    /// Takes a claim if nobody has it or if its holder is dead.
    ///
    /// # Errors
    /// [`Error::Io`]; see [`Claims::exclusively`].
    pub fn try_claim(&self, name: &str) -> Result<Option<Held>> {
        let path = self.0.folder.join(name);
        if let Some(text) = read(&path)?
            && !self.0.is_dead(&path, &text)
        {
            return Ok(None);
        }
        let inner = &self.0;
        let claimed = inner.exclusively(|| {
            let claim = inner.claim();
            let holder = match read(&path)? {
                None if !inner.create(&path, &claim)? => return Ok(None),
                None => None,
                Some(then) if !inner.is_dead(&path, &then) => return Ok(None),
                Some(then) => {
                    write(&path, &claim)?;
                    let then = Claim::of(&then).map(|then| then.holder());
                    Some(then.unwrap_or("another process".into()))
                }
            };
            // If the lock is free, no holder exists anymore.
            Ok(Some((claim, holder, FolderLock::try_of_file(&path)?)))
        })?;
        let Some((claim, taken_from, lock)) = claimed else { return Ok(None) };
        let state = Arc::new(State {
            path,
            claim: Mutex::new(claim),
            renewed: Mutex::new(Instant::now()),
            lost: Mutex::default(),
        });
        let mut held =
            Held { claims: self.clone(), state: state.clone(), lock, taken_from, beat: None };
        held.beat = Some(self.beat(&state)?);
        self::lock(&inner.held).push(state);
        Ok(Some(held))
    }

    /// Waits until a claim is free and takes it. Gives a notice of who has it meanwhile.
    ///
    /// # Errors
    /// See [`Claims::try_claim`]; [`Error::Stopped`].
    pub fn wait(&self, name: &str, about: &str, context: &Context<'_>) -> Result<Held> {
        let mut told = String::new();
        loop {
            context.check()?;
            let waits = match self.try_claim(name)? {
                Some(held) if held.is_alone() => {
                    held.tell(about, context)?;
                    return Ok(held);
                }
                Some(held) => format!("waiting for {about}: {}", held.still_there()),
                None => match self.holder(name) {
                    Some(holder) => format!("waiting: {holder} is working on {about}"),
                    None => told.clone(),
                },
            };
            if told != waits {
                context.notice(&waits)?;
                told = waits;
            }
            self.pause(context)?;
        }
    }

    /// Returns a description of a claim's holder.
    pub fn holder(&self, name: &str) -> Option<String> {
        let text = read(&self.0.folder.join(name)).ok()??;
        Claim::of(&text).map(|claim| claim.holder())
    }

    /// Waits for a sensible time between two checks.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn pause(&self, context: &Context<'_>) -> Result<()> {
        const STEP: Duration = Duration::from_millis(50);
        let end = Instant::now() + LOOK_EVERY.min(self.0.dead_after / MISSED);
        while Instant::now() < end {
            context.check()?;
            std::thread::sleep(STEP);
        }
        context.check()
    }

    /// Checks that this process still holds all its claims. A claim that was not renewed in time, for example
    /// because the process was suspended, is renewed first.
    ///
    /// # Errors
    /// [`Error::Training`] if another process has taken one over; errors of renewing if it has failed for so
    /// long that others may take the claim over.
    pub fn check(&self) -> Result<()> {
        let held = lock(&self.0.held).clone();
        held.iter().try_for_each(|state| {
            let since = lock(&state.renewed).elapsed();
            if since >= self.0.dead_after / 2 && lock(&state.lost).is_none() {
                let renewed = self.0.renew(state);
                if since >= self.0.dead_after {
                    renewed?;
                }
            }
            state.check()
        })
    }

    /// Runs short `work` that requires all claims of this process. No other process can take one over
    /// meanwhile.
    ///
    /// # Errors
    /// See [`Claims::check`], after renewing each claim; errors of renewing and of `work`.
    pub fn verified<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let held = lock(&self.0.held).clone();
        self.0.exclusively(|| {
            held.iter()
                .try_for_each(|state| self.0.renew_now(state).and_then(|()| state.check()))?;
            work()
        })
    }

    /// Removes claims on finished work that killed processes have left. Claims with a holder stay.
    ///
    /// # Errors
    /// [`Error::Io`]; see [`Claims::exclusively`].
    pub fn remove(&self, mut names: impl Iterator<Item = String>) -> Result<()> {
        self.0.exclusively(|| {
            names.try_for_each(|name| {
                let path = self.0.folder.join(name);
                if !path.is_file() {
                    return Ok(());
                }
                match FolderLock::try_of_file(&path)? {
                    Some(_free) => remove_file(&path),
                    None => Ok(()),
                }
            })
        })
    }

    /// Starts a thread that renews a claim until a message stops it.
    fn beat(&self, state: &Arc<State>) -> Result<(Sender<()>, JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let (inner, state) = (self.0.clone(), state.clone());
        let path = state.path.clone();
        let work = move || {
            // `check` reports errors that persist.
            while receiver.recv_timeout(inner.renew_every()) == Err(RecvTimeoutError::Timeout) {
                let _ = inner.renew(&state);
            }
        };
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(work);
        let thread = thread.map_err(|e| Error::io("renew", path, e))?;
        Ok((sender, thread))
    }
}

impl Inner {
    fn exclusively<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let patience = PATIENCE.max(self.dead_after);
        let _lock = FolderLock::wait_of_file(&self.locked, patience)?;
        work()
    }

    fn renew_every(&self) -> Duration {
        RENEW_EVERY.min(self.dead_after / MISSED)
    }

    /// Returns a new claim of this process.
    fn claim(&self) -> Claim {
        let process = std::process::id();
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Claim {
            host: self.host.clone(),
            process,
            token: format!("{}-{process}-{now}-{count}", self.host),
            started: jiff::Timestamp::now().to_string(),
            renewed_every: self.renew_every().as_secs_f64(),
            heartbeat: 0,
        }
    }

    /// Creates a claim file. Returns false if it exists already.
    fn create(&self, path: &Path, claim: &Claim) -> Result<bool> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        match File::create_new(path) {
            Ok(mut file) => {
                let written = file.write_all(claim.text().as_bytes());
                written.map(|()| true).map_err(|e| Error::io("write", path, e))
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::io("create", path, e)),
        }
    }

    /// Returns whether a claim has not changed for longer than a live process would leave it, by this
    /// process's clock.
    fn is_dead(&self, path: &Path, text: &str) -> bool {
        let mut seen = lock(&self.seen);
        match seen.get(path) {
            Some((then, since)) if then == text => {
                let every = Claim::of(text).map_or(0.0, |claim| claim.renewed_every);
                let missed = f64::from(MISSED) * every.clamp(0.0, RENEW_EVERY.as_secs_f64());
                since.elapsed() >= self.dead_after.max(Duration::from_secs_f64(missed))
            }
            _ => {
                seen.insert(path.to_owned(), (text.to_owned(), Instant::now()));
                false
            }
        }
    }

    /// Increments the heartbeat, or notes that another process has the claim.
    fn renew(&self, state: &State) -> Result<()> {
        self.exclusively(|| self.renew_now(state))
    }

    /// Like [`Inner::renew`], for a caller that holds the lock of all claims.
    fn renew_now(&self, state: &State) -> Result<()> {
        let mut claim = lock(&state.claim);
        let holder = read(&state.path)?.map(|now| Claim::of(&now));
        match holder {
            Some(Some(now)) if now.token == claim.token => {
                claim.heartbeat += 1;
                write(&state.path, &claim)?;
                *lock(&state.renewed) = Instant::now();
            }
            holder => {
                let holder = holder.flatten().map(|now| now.holder());
                let other = holder.unwrap_or("another process".into());
                *lock(&state.lost) = Some(other);
            }
        }
        Ok(())
    }

    /// Removes a claim file if this process still holds the claim.
    fn release(&self, state: &State) -> Result<()> {
        self.exclusively(|| {
            let now = read(&state.path)?;
            let token = now.as_deref().and_then(Claim::of).map(|now| now.token);
            match token.is_some_and(|token| token == lock(&state.claim).token) {
                true => remove_file(&state.path),
                false => Ok(()),
            }
        })
    }
}

/// Returns the text of a claim, if there is one. Invalid text belongs to nobody.
fn read(path: &Path) -> Result<Option<String>> {
    Ok(bytes_if_there(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Writes a claim. Nobody else writes it under the lock, and a reader that sees half of it sees a change.
fn write(path: &Path, claim: &Claim) -> Result<()> {
    fs::write(path, claim.text()).map_err(|e| Error::io("write", path, e))
}

impl State {
    fn check(&self) -> Result<()> {
        let lost = lock(&self.lost);
        let Some(other) = &*lost else { return Ok(()) };
        Err(Error::Training {
            what: format!(
                "{}: this process did not renew its claim for too long, and {other} has taken it over",
                self.path.display()
            ),
            hint: "Nothing is lost: the other process continues the work. Run the same command again to \
                   work on something else, with a longer --dead-after if this happens often"
                .into(),
        })
    }
}

impl Held {
    /// Returns whether no earlier holder exists. A hanging or suspended process still exists.
    pub fn is_alone(&self) -> bool {
        self.lock.is_some()
    }

    /// Returns a message about the earlier holder that still exists.
    pub fn still_there(&self) -> String {
        let holder = self.taken_from.as_deref().unwrap_or("a process");
        format!("{holder} gives no sign of life but still exists: stop it if it hangs")
    }

    /// Gives a notice if the claim was taken over.
    ///
    /// # Errors
    /// See [`Context::notice`].
    pub fn tell(&self, about: &str, context: &Context<'_>) -> Result<()> {
        let Some(holder) = &self.taken_from else { return Ok(()) };
        let long = duration(self.claims.0.dead_after.as_secs_f64());
        context.notice(format!(
            "{about}: {holder} has given no sign of life for {long}; this process takes over its work"
        ))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.beat.take() {
            drop(sender);
            let _ = thread.join();
        }
        lock(&self.claims.0.held).retain(|state| !Arc::ptr_eq(state, &self.state));
        // Released first, so that no claim means no holder.
        self.lock = None;
        // If the file cannot be removed, the claim dies later.
        let _ = self.claims.0.release(&self.state);
    }
}

/// Forwards events as long as this process holds all its claims.
pub(super) struct Watched<'a, 'c> {
    pub claims: Claims,
    pub context: &'a Context<'c>,
}

impl Observer for Watched<'_, '_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.claims.check()?;
        self.context.emit(event)
    }
}

/// Returns the name of this machine, for messages.
fn host() -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let files = files.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let variables = ["HOSTNAME", "COMPUTERNAME"].into_iter().filter_map(|v| std::env::var(v).ok());
    let mut names = files.chain(variables).map(|name| name.trim().to_owned());
    names.find(|name| !name.is_empty()).unwrap_or_else(|| "a machine".into())
}

#[cfg(test)]
mod tests;
