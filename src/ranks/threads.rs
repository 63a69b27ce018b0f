//! Ranks that are threads of one process.

use super::Communicator;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What all ranks see.
#[derive(Debug, Default)]
struct State {
    /// Messages by receiver and sender.
    messages: Vec<VecDeque<Vec<u8>>>,
    ended: Vec<bool>,
    /// The rank that failed first, and why.
    failed: Option<(usize, String)>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// A thread that has panicked left nothing half done here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the ranks that [`thread_ranks`] makes. Dropping it ends it: who waits for it then fails.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    ranks: usize,
    shared: Arc<Shared>,
}

/// Ranks for as many threads of this process, at least one.
pub fn thread_ranks(count: usize) -> Vec<ThreadRank> {
    let ranks = count.max(1);
    let state = State {
        messages: vec![VecDeque::new(); ranks * ranks],
        ended: vec![false; ranks],
        failed: None,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (0..ranks).map(|rank| ThreadRank { rank, ranks, shared: shared.clone() }).collect()
}

/// What is said of a rank that has failed.
pub(super) fn failed(rank: usize, why: &str) -> Error {
    Error::Ranks {
        what: format!("rank {rank} failed: {why}"),
        hint: "Mend the cause; the run goes on from its last checkpoint with --resume".into(),
    }
}

/// What is said of a rank that does not answer.
pub(super) fn silent(rank: usize, waited: Duration) -> Error {
    Error::Ranks {
        what: format!("rank {rank} has not answered for {} s", waited.as_secs()),
        hint: "Look at its machine; the run goes on from its last checkpoint with --resume. Where \
               ranks are slow and not dead, raise --rank-timeout"
            .into(),
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        let mut state = self.shared.state();
        if let Some((rank, why)) = &state.failed {
            return Err(failed(*rank, why));
        }
        if to >= self.ranks {
            return Err(super::no_such_rank(to));
        }
        state.messages[to * self.ranks + self.rank].push_back(message);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>> {
        if from >= self.ranks {
            return Err(super::no_such_rank(from));
        }
        let start = Instant::now();
        let place = self.rank * self.ranks + from;
        let mut state = self.shared.state();
        loop {
            if let Some(message) = state.messages[place].pop_front() {
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
            let waited = self.shared.changed.wait_timeout(state, nap);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn fail(&self, why: &str) {
        let mut state = self.shared.state();
        // Who was told of a failure has nothing to tell.
        state.failed.get_or_insert((self.rank, why.to_owned()));
        self.shared.changed.notify_all();
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.shared.state().ended[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_fails_ends_or_is_silent_lets_nobody_wait() {
        let mut ranks = thread_ranks(4);
        let [a, b, c, d] = [ranks.remove(0), ranks.remove(0), ranks.remove(0), ranks.remove(0)];
        b.send(0, vec![1]).unwrap();
        // What was sent is received, whatever came of the sender.
        drop(b);
        assert_eq!(a.receive(1, None).unwrap(), [1]);
        let ended = a.receive(1, None).unwrap_err().to_string();
        assert!(ended.contains("rank 1 failed: it ended before the others"), "{ended}");
        let late = a.receive(2, Some(Duration::from_millis(20))).unwrap_err().to_string();
        assert!(late.contains("rank 2 has not answered") && late.contains("--resume"), "{late}");
        d.fail("no memory");
        c.fail("something else");
        for error in [a.receive(2, None).unwrap_err(), a.send(2, vec![]).unwrap_err()] {
            assert!(error.to_string().contains("rank 3 failed: no memory"), "{error}");
        }
    }
}
