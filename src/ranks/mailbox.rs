//! Messages that have arrived for a rank, and waiting for them.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct State {
    /// Messages by sender.
    messages: Vec<VecDeque<Vec<u8>>>,
    /// Ranks that have ended and send nothing more.
    ended: Vec<bool>,
    /// The rank that failed first, and why.
    failed: Option<(usize, String)>,
}

/// The messages for one rank.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Mailbox {
    /// Creates a mailbox for messages from `ranks` ranks.
    pub fn new(ranks: usize) -> Self {
        let state = State {
            messages: vec![VecDeque::new(); ranks],
            ended: vec![false; ranks],
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Locks the state. A thread that panicked cannot leave the state half changed, so poisoning is ignored.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message from a rank. Ignores an unknown rank.
    pub fn put(&self, from: usize, message: Vec<u8>) {
        if let Some(queue) = self.state().messages.get_mut(from) {
            queue.push_back(message);
        }
        self.changed.notify_all();
    }

    /// Records that a rank has failed. Only the first failure counts.
    pub fn fail(&self, rank: usize, why: &str) {
        self.state().failed.get_or_insert((rank, why.to_owned()));
        self.changed.notify_all();
    }

    /// Records that a rank has ended.
    pub fn end(&self, rank: usize) {
        if let Some(ended) = self.state().ended.get_mut(rank) {
            *ended = true;
        }
        self.changed.notify_all();
    }

    /// Returns an error if a rank has failed.
    pub fn check(&self) -> Result<()> {
        match &self.state().failed {
            Some((rank, why)) => Err(failed(*rank, why)),
            None => Ok(()),
        }
    }

    /// Takes the next message from a rank; see [`Communicator::receive`](super::Communicator::receive).
    pub fn take(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut state = self.state();
        loop {
            let queue = state.messages.get_mut(from).ok_or_else(|| super::no_such_rank(from))?;
            if let Some(message) = queue.pop_front() {
                return Ok(message);
            }
            if let Some((rank, why)) = &state.failed {
                return Err(failed(*rank, why));
            }
            if state.ended[from] {
                return Err(failed(from, "it ended before the others"));
            }
            // Wakes up regularly to check the time limit.
            let mut nap = Duration::from_secs(1);
            if let Some(patience) = patience {
                let waited = start.elapsed();
                if waited >= patience {
                    return Err(silent(from, waited));
                }
                nap = nap.min(patience - waited);
            }
            let waited = self.changed.wait_timeout(state, nap);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Returns the error for a rank that has failed.
fn failed(rank: usize, why: &str) -> Error {
    Error::Ranks {
        what: format!("rank {rank} failed: {why}"),
        hint: "Fix the cause, then resume the run from its last checkpoint with --resume".into(),
    }
}

/// Returns the error for a rank that does not answer.
fn silent(rank: usize, waited: Duration) -> Error {
    Error::Ranks {
        what: format!("rank {rank} has not answered for {} s", waited.as_secs()),
        hint: "Check its machine, then resume the run from its last checkpoint with --resume. If ranks \
               are slow rather than dead, raise --rank-timeout"
            .into(),
    }
}
