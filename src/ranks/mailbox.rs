//! What has come for a rank, and waiting for it.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct State {
    /// Messages by sender.
    messages: Vec<VecDeque<Vec<u8>>>,
    /// The ranks that send nothing any more.
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
    /// One for messages of so many ranks.
    pub fn new(ranks: usize) -> Self {
        let state = State {
            messages: vec![VecDeque::new(); ranks],
            ended: vec![false; ranks],
            failed: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A thread that has panicked left nothing half done here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message of a rank into it; one of no such rank is left out.
    pub fn put(&self, from: usize, message: Vec<u8>) {
        if let Some(queue) = self.state().messages.get_mut(from) {
            queue.push_back(message);
        }
        self.changed.notify_all();
    }

    /// Says that a rank has failed; the first one counts.
    pub fn fail(&self, rank: usize, why: &str) {
        self.state().failed.get_or_insert((rank, why.to_owned()));
        self.changed.notify_all();
    }

    /// Says that a rank sends nothing any more.
    pub fn end(&self, rank: usize) {
        if let Some(ended) = self.state().ended.get_mut(rank) {
            *ended = true;
        }
        self.changed.notify_all();
    }

    /// An error where a rank has failed.
    pub fn check(&self) -> Result<()> {
        match &self.state().failed {
            Some((rank, why)) => Err(failed(*rank, why)),
            None => Ok(()),
        }
    }

    /// The next message of a rank, as [`Communicator::receive`](super::Communicator::receive).
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
            // Woken at times in any case, to see whether it has waited long enough.
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

/// What is said of a rank that has failed.
fn failed(rank: usize, why: &str) -> Error {
    Error::Ranks {
        what: format!("rank {rank} failed: {why}"),
        hint: "Mend the cause; the run goes on from its last checkpoint with --resume".into(),
    }
}

/// What is said of a rank that does not answer.
fn silent(rank: usize, waited: Duration) -> Error {
    Error::Ranks {
        what: format!("rank {rank} has not answered for {} s", waited.as_secs()),
        hint: "Look at its machine; the run goes on from its last checkpoint with --resume. Where \
               ranks are slow and not dead, raise --rank-timeout"
            .into(),
    }
}
