//! Ranks that are processes, on one or more machines, communicating over MPI.
//!
//! One thread makes all MPI calls: it initializes MPI, sends messages, and receives messages, so that they
//! move while the rank computes.

use super::mailbox::Mailbox;
use super::{Communicator, no_such_rank};
use crate::error::{Error, Result};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source};
use mpi::request::{self, Request};
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::*;
use std::cell::RefCell;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Size of a piece of a message in bytes. MPI counts in 31 bits.
const PIECE: usize = 64 << 20;
/// Maximum number of bytes to allocate before a message has arrived.
const MOST_AT_ONCE: usize = 1 << 30;
/// How often the thread polls before it sleeps.
const BUSY_LOOKS: usize = 100;
/// How long the thread sleeps when idle.
const REST: Duration = Duration::from_micros(200);
/// How long to wait for MPI to abort all processes.
const PATIENCE_WITH_MPI: Duration = Duration::from_secs(8);

/// Message tags.
mod tag {
    /// The length of a message, in 8 bytes.
    pub const LENGTH: i32 = 1;
    /// A piece of a message.
    pub const PIECE: i32 = 2;
    /// Why the sender has failed.
    pub const FAILED: i32 = 3;
}

/// A command for the thread.
enum Job {
    Send(usize, Vec<u8>),
    End,
}

/// An incomplete message and its full length.
type Begun = Option<(Vec<u8>, usize)>;

/// What comes before all queued messages, which a hanging rank may never receive.
#[derive(Debug, Default)]
struct Urgent {
    /// Why this rank has failed, until the others are notified.
    failure: Option<String>,
    /// Whether to abort all ranks.
    aborts: bool,
}

#[derive(Debug, Default)]
struct Shared {
    mailbox: OnceLock<Mailbox>,
    urgent: Mutex<Urgent>,
}

impl Shared {
    fn urgent(&self) -> MutexGuard<'_, Urgent> {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the mailbox, which exists once MPI has started.
    fn mailbox(&self) -> Result<&Mailbox> {
        self.mailbox.get().ok_or_else(|| Error::Ranks {
            what: "MPI has not started".into(),
            hint: "Start the program with `mpirun` or `srun`".into(),
        })
    }
}

/// The processes that `mpirun` or `srun` started (feature `mpi`). Dropping it finalizes MPI, which waits for
/// all ranks.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    ranks: usize,
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Mpi {
    /// Starts MPI. Possible only once per process.
    ///
    /// # Errors
    /// [`Error::Ranks`] if MPI was started before or does not start.
    pub fn start() -> Result<Self> {
        let refuse = |what: &str| {
            Err(Error::Ranks {
                what: what.to_owned(),
                hint: "Start the program with `mpirun` or `srun`".into(),
            })
        };
        let shared = Arc::new(Shared::default());
        let (jobs, queue) = channel();
        let (tell, told) = channel();
        let of_thread = shared.clone();
        let work = move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
                let _ = tell.send(None);
                return;
            };
            let world = universe.world();
            let [rank, ranks] = [world.rank(), world.size()].map(|number| number as usize);
            let _ = of_thread.mailbox.set(Mailbox::new(ranks));
            let _ = tell.send(Some([rank, ranks]));
            let begun = RefCell::new(vec![None; ranks]);
            Carrier { universe, world, shared: of_thread, queue, begun }.work();
        };
        let thread = thread::Builder::new().name("mpi".into()).spawn(work);
        let Ok(thread) = thread else { return refuse("cannot start the thread for MPI") };
        match told.recv() {
            Ok(Some([rank, ranks])) => Ok(Self { rank, ranks, shared, jobs, thread: Some(thread) }),
            _ => refuse("MPI was started before in this process"),
        }
    }

    /// Aborts all ranks. They must have been notified of the reason before.
    pub fn abort(&self) -> ! {
        self.shared.urgent().aborts = true;
        thread::sleep(PATIENCE_WITH_MPI);
        // MPI itself hangs.
        std::process::exit(1);
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        if to >= self.ranks {
            return Err(no_such_rank(to));
        }
        self.shared.mailbox()?.check()?;
        self.jobs.send(Job::Send(to, message)).map_err(|_| Error::Ranks {
            what: "MPI has ended".into(),
            hint: "This is a bug; please report it".into(),
        })
    }

    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>> {
        self.shared.mailbox()?.take(from, patience)
    }

    fn fail(&self, why: &str) {
        // A rank that received a failure does not report another one.
        if self.shared.mailbox().is_ok_and(|mailbox| mailbox.check().is_ok()) {
            self.shared.urgent().failure.get_or_insert_with(|| why.to_owned());
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // After a panic, the others must not wait for this rank to finalize MPI.
        self.shared.urgent().aborts |= thread::panicking();
        let _ = self.jobs.send(Job::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
struct Carrier {
    /// Finalizes MPI when dropped.
    universe: Universe,
    world: SimpleCommunicator,
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    /// The incomplete message of each sender.
    begun: RefCell<Vec<Begun>>,
}

impl Carrier {
    fn work(self) {
        loop {
            let found = self.take_all();
            self.report_failure_or_abort();
            let wait = if found { Duration::ZERO } else { REST };
            match self.queue.recv_timeout(wait) {
                Ok(Job::Send(to, message)) => self.send(to, &message),
                Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.report_failure_or_abort();
        let Self { universe, .. } = self;
        drop(universe);
    }

    /// Notifies the others of this rank's failure and aborts all ranks, if requested.
    fn report_failure_or_abort(&self) {
        let (failure, aborts) = {
            let mut urgent = self.shared.urgent();
            (urgent.failure.take(), urgent.aborts)
        };
        if let Some(why) = failure {
            self.fail(&why);
        }
        if aborts {
            self.world.abort(1);
        }
    }

    /// Sends a message and meanwhile receives others, because the receiver may be sending too.
    fn send(&self, to: usize, message: &[u8]) {
        let length = (message.len() as u64).to_ne_bytes();
        self.send_piece(to, &length, tag::LENGTH);
        for piece in message.chunks(PIECE) {
            self.send_piece(to, piece, tag::PIECE);
        }
    }

    fn send_piece(&self, to: usize, piece: &[u8], tag: i32) {
        let process = self.world.process_at_rank(to as i32);
        request::scope(|scope| {
            let mut sending: Request<'_, _, _> = process.immediate_send_with_tag(scope, piece, tag);
            let mut idle = 0;
            loop {
                sending = match sending.test() {
                    Ok(_) => return,
                    Err(sending) => sending,
                };
                if self.take_all() {
                    idle = 0;
                    continue;
                }
                self.report_failure_or_abort();
                // The rank's own work may need this core.
                idle += 1;
                if idle < BUSY_LOOKS {
                    thread::yield_now();
                } else {
                    thread::sleep(REST);
                }
            }
        });
    }

    /// Notifies all others why this rank has failed. Small messages do not wait for their receivers.
    fn fail(&self, why: &str) {
        const MOST: usize = 2000;
        let why: String = why.chars().take(MOST).collect();
        for to in (0..self.world.size() as usize).filter(|to| *to != self.world.rank() as usize) {
            self.send_piece(to, why.as_bytes(), tag::FAILED);
        }
    }

    /// Receives what has arrived. Returns whether there was anything.
    fn take_all(&self) -> bool {
        let mut found = false;
        while let Some(matched) = self.world.any_process().immediate_matched_probe() {
            found = true;
            let (from, kind) = (matched.1.source_rank() as usize, matched.1.tag());
            let (bytes, _) = matched.matched_receive_vec::<u8>();
            let Ok(mailbox) = self.shared.mailbox() else { continue };
            if kind == tag::FAILED {
                mailbox.fail(from, &String::from_utf8_lossy(&bytes));
            } else if let Some(whole) = add(&mut self.begun.borrow_mut()[from], kind, bytes) {
                mailbox.put(from, whole);
            }
        }
        found
    }
}

/// Adds what has arrived (a length or the next piece) to the current message. Returns the message when it is
/// complete.
fn add(begun: &mut Begun, kind: i32, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if kind == tag::LENGTH {
        let length = bytes.try_into().map_or(0, u64::from_ne_bytes) as usize;
        // A message of one piece needs no copy. Otherwise memory is reserved up front, up to a limit.
        let room = if length > PIECE { length.min(MOST_AT_ONCE) } else { 0 };
        *begun = Some((Vec::with_capacity(room), length));
    } else if let Some((message, length)) = begun {
        match message.is_empty() && bytes.len() == *length {
            true => *message = bytes,
            false => message.extend_from_slice(&bytes),
        }
    }
    match begun {
        Some((message, length)) if message.len() == *length => {
            let whole = std::mem::take(message);
            *begun = None;
            Some(whole)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_when_all_their_pieces_have_come() {
        let length = |bytes: usize| (bytes as u64).to_ne_bytes().to_vec();
        let mut begun = None;
        // An empty message has no pieces.
        assert_eq!(add(&mut begun, tag::LENGTH, length(0)), Some(vec![]));
        assert_eq!(add(&mut begun, tag::LENGTH, length(3)), None);
        assert_eq!(add(&mut begun, tag::PIECE, vec![1, 2, 3]), Some(vec![1, 2, 3]));
        assert_eq!(add(&mut begun, tag::LENGTH, length(PIECE + 1)), None);
        assert_eq!(add(&mut begun, tag::PIECE, vec![7; PIECE]), None);
        let whole = add(&mut begun, tag::PIECE, vec![8]).unwrap();
        assert_eq!((whole.len(), whole[0], whole[PIECE]), (PIECE + 1, 7, 8));
        // A piece without a length before it is ignored.
        assert_eq!(add(&mut begun, tag::PIECE, vec![9]), None);
    }
}
