//! Ranks that are processes, on one machine or several, through MPI.
//!
//! One thread makes all calls of MPI: it starts it, sends what the others give it, takes what comes, and so
//! keeps messages moving while the rank computes.

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

/// What a message is cut into: MPI counts in 31 bits.
const PIECE: usize = 64 << 20;
/// The most room that is made for a message before it has come.
const MOST_AT_ONCE: usize = 1 << 30;
/// How often the thread looks for something to do before it rests.
const BUSY_LOOKS: usize = 100;
/// How long the thread rests where nothing is to be done.
const REST: Duration = Duration::from_micros(200);
/// How long MPI may take to end all processes.
const PATIENCE_WITH_MPI: Duration = Duration::from_secs(8);

/// Tags of what is sent.
mod tag {
    /// The length of a message, in 8 bytes.
    pub const LENGTH: i32 = 1;
    /// A piece of it.
    pub const PIECE: i32 = 2;
    /// Why the sender has failed.
    pub const FAILED: i32 = 3;
}

/// What the thread is told.
enum Job {
    Send(usize, Vec<u8>),
    End,
}

/// A message of which pieces have come, and its length.
type Begun = Option<(Vec<u8>, usize)>;

/// What is to be done before all that is to be sent, which a rank that hangs may never take.
#[derive(Debug, Default)]
struct Urgent {
    /// Why this rank has failed, until the others are told.
    failure: Option<String>,
    /// Whether all ranks are to be ended.
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

    /// It is there once MPI has started.
    fn mailbox(&self) -> Result<&Mailbox> {
        self.mailbox.get().ok_or_else(|| Error::Ranks {
            what: "MPI has not started".into(),
            hint: "Start the program with `mpirun` or `srun`".into(),
        })
    }
}

/// The processes that `mpirun` or `srun` has started. Dropping it ends MPI, for which all ranks wait.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    ranks: usize,
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Mpi {
    /// Starts MPI; once in a process.
    ///
    /// # Errors
    /// [`Error::Ranks`] where it was started before, or does not start.
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
        let Ok(thread) = thread else { return refuse("the thread for MPI cannot be started") };
        match told.recv() {
            Ok(Some([rank, ranks])) => Ok(Self { rank, ranks, shared, jobs, thread: Some(thread) }),
            _ => refuse("MPI was started before in this process"),
        }
    }

    /// Ends all ranks at once, which have been told why before.
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
            hint: "This is a defect; please report it".into(),
        })
    }

    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>> {
        self.shared.mailbox()?.take(from, patience)
    }

    fn fail(&self, why: &str) {
        // Who was told of a failure has nothing to tell.
        if self.shared.mailbox().is_ok_and(|mailbox| mailbox.check().is_ok()) {
            self.shared.urgent().failure.get_or_insert_with(|| why.to_owned());
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // After a panic nobody may wait for this rank to end as it should.
        self.shared.urgent().aborts |= thread::panicking();
        let _ = self.jobs.send(Job::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Carrier {
    /// Ends MPI when it is dropped.
    universe: Universe,
    world: SimpleCommunicator,
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    /// By sender, what has come of its next message.
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

    /// Tells the others of this rank's failure, and ends all ranks, where that is asked for.
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

    /// Sends a message, and takes meanwhile what comes: the receiver may be sending, too.
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
                // The core may be that of the rank's own work.
                idle += 1;
                if idle < BUSY_LOOKS {
                    thread::yield_now();
                } else {
                    thread::sleep(REST);
                }
            }
        });
    }

    /// Tells all others why this rank has failed. Small messages do not wait for their receivers.
    fn fail(&self, why: &str) {
        const MOST: usize = 2000;
        let why: String = why.chars().take(MOST).collect();
        for to in (0..self.world.size() as usize).filter(|to| *to != self.world.rank() as usize) {
            self.send_piece(to, why.as_bytes(), tag::FAILED);
        }
    }

    /// Takes what has come; whether anything had.
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

/// Adds what has come to the message that has begun: a length, or the next piece. Gives the message when
/// it is whole.
fn add(begun: &mut Begun, kind: i32, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if kind == tag::LENGTH {
        let length = bytes.try_into().map_or(0, u64::from_ne_bytes) as usize;
        // A message of one piece is that piece; otherwise room is made, up to a limit.
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
        // One of no bytes has no piece.
        assert_eq!(add(&mut begun, tag::LENGTH, length(0)), Some(vec![]));
        assert_eq!(add(&mut begun, tag::LENGTH, length(3)), None);
        assert_eq!(add(&mut begun, tag::PIECE, vec![1, 2, 3]), Some(vec![1, 2, 3]));
        assert_eq!(add(&mut begun, tag::LENGTH, length(PIECE + 1)), None);
        assert_eq!(add(&mut begun, tag::PIECE, vec![7; PIECE]), None);
        let whole = add(&mut begun, tag::PIECE, vec![8]).unwrap();
        assert_eq!((whole.len(), whole[0], whole[PIECE]), (PIECE + 1, 7, 8));
        // A piece of nothing that has begun is left out.
        assert_eq!(add(&mut begun, tag::PIECE, vec![9]), None);
    }
}
