//! Ranks that are threads of one process.

use super::mailbox::Mailbox;
use super::{Communicator, no_such_rank};
use crate::error::Result;
use std::sync::Arc;
use std::time::Duration;

/// A rank created by [`thread_ranks`]. Dropping it ends the rank; waiting for it then fails.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    /// The mailboxes of all ranks.
    mailboxes: Arc<Vec<Mailbox>>,
}

/// Creates `count` ranks (at least one) for threads of this process.
pub fn thread_ranks(count: usize) -> Vec<ThreadRank> {
    let ranks = count.max(1);
    let mailboxes: Arc<Vec<_>> = Arc::new((0..ranks).map(|_| Mailbox::new(ranks)).collect());
    (0..ranks).map(|rank| ThreadRank { rank, mailboxes: mailboxes.clone() }).collect()
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.mailboxes.len()
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        self.mailboxes[self.rank].check()?;
        self.mailboxes.get(to).ok_or_else(|| no_such_rank(to))?.put(self.rank, message);
        Ok(())
    }

    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>> {
        self.mailboxes[self.rank].take(from, patience)
    }

    fn fail(&self, why: &str) {
        // A rank that received a failure does not report another one.
        if self.mailboxes[self.rank].check().is_ok() {
            self.mailboxes.iter().for_each(|mailbox| mailbox.fail(self.rank, why));
        }
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.end(self.rank));
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
        // A message is received even if its sender has ended.
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
