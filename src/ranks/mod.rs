//! Ranks: processes or threads that train one student together.
//!
//! Each rank has the same data, settings and weights, computes a part of every step, and tells the others
//! what it found. What is added up is added in an order that depends on the step alone and not on how many
//! ranks there are ([`crate::train`]), so that any number of them comes to the same bits on like
//! hardware. Rank 0, the leader, alone writes and speaks.
//!
//! [`Communicator`] carries messages: [`Solo`] where there is one rank, [`ThreadRank`] within a process, such
//! as for several GPUs of one machine, and `Mpi` (feature `mpi`) between processes and machines.
//! [`Ranks`] is what the rest of the crate uses of it.

mod files;
mod mailbox;
#[cfg(feature = "mpi")]
mod mpi;
mod place;
mod threads;

#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use place::{Place, Started, local_device};
pub use threads::{ThreadRank, thread_ranks};

use crate::error::{Error, Result};
use crate::files::differences;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Carries messages between ranks. Messages from one rank to another arrive in the order in which they
/// were sent.
pub trait Communicator: Debug + Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Gives a message to another rank, and does not wait until that takes it.
    ///
    /// # Errors
    /// [`Error::Ranks`] where a rank has failed.
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()>;

    /// The next message of another rank; `patience` is how long it is waited for, without it for ever.
    ///
    /// # Errors
    /// [`Error::Ranks`] where a rank has failed, has ended, or does not answer in time.
    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>>;

    /// Tells all others that this rank has failed, so that none waits for it.
    fn fail(&self, why: &str);
}

/// The only rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn send(&self, to: usize, _: Vec<u8>) -> Result<()> {
        Err(no_such_rank(to))
    }

    fn receive(&self, from: usize, _: Option<Duration>) -> Result<Vec<u8>> {
        Err(no_such_rank(from))
    }

    fn fail(&self, _: &str) {}
}

fn no_such_rank(rank: usize) -> Error {
    Error::Ranks { what: format!("there is no rank {rank}"), hint: "Start more ranks".into() }
}

/// What a message is about; both sides must mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Topic {
    /// What the ranks were started with.
    Start = 1,
    /// Whether a stop was asked for.
    Stop,
    /// Sums of gradients, to the rank that adds them up.
    Terms,
    /// Whole gradients.
    Gradients,
    /// Sums of squares of gradients.
    Squares,
    /// Updated parameters.
    Parameters,
    /// Losses of held-out rows.
    Losses,
    /// Graded answers.
    Answers,
    /// Moments for a checkpoint.
    Moments,
    /// A checkpoint that is read.
    Checkpoint,
    /// A checkpoint that was written.
    Saved,
    /// Whether the ranks agree.
    Same,
}

/// The ranks of a training, seen from one of them.
#[derive(Clone, Debug)]
pub struct Ranks {
    communicator: Arc<dyn Communicator>,
    patience: Duration,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::new(Arc::new(Solo))
    }
}

impl Ranks {
    /// How long a rank waits for another one, unless it is told otherwise.
    pub const PATIENCE: Duration = Duration::from_secs(600);

    /// The ranks that a communicator reaches.
    pub fn new(communicator: Arc<dyn Communicator>) -> Self {
        Self { communicator, patience: Self::PATIENCE }
    }

    /// The same, with the time that a rank waits for another before it gives up.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// How many ranks there are.
    pub fn count(&self) -> usize {
        self.communicator.ranks()
    }

    /// Whether there is one rank only.
    pub fn is_solo(&self) -> bool {
        self.count() == 1
    }

    /// Whether this is the rank that writes and speaks.
    pub fn is_leader(&self) -> bool {
        self.rank() == 0
    }

    /// The same with ten times the patience: for where another rank works alone, such as on files.
    pub(crate) fn unhurried(&self) -> Self {
        Self { communicator: self.communicator.clone(), patience: self.patience * 10 }
    }

    /// Tells all others that this rank has failed.
    pub fn fail(&self, error: &Error) {
        // The cause alone: what is safe and what to do each rank says itself.
        let mut cause = error;
        while let Error::Interrupted { cause: inner, .. } = cause {
            cause = inner;
        }
        match cause {
            Error::Ranks { what, .. } => self.communicator.fail(what),
            cause => self.communicator.fail(&cause.to_string()),
        }
    }

    pub(crate) fn send(&self, topic: Topic, to: usize, mut message: Vec<u8>) -> Result<()> {
        // At its end, so that nothing is moved.
        message.push(topic as u8);
        self.communicator.send(to, message)
    }

    pub(crate) fn receive(&self, topic: Topic, from: usize) -> Result<Vec<u8>> {
        self.receive_within(topic, from, Some(self.patience))
    }

    fn receive_within(
        &self,
        topic: Topic,
        from: usize,
        patience: Option<Duration>,
    ) -> Result<Vec<u8>> {
        let mut message = self.communicator.receive(from, patience)?;
        match message.pop() {
            Some(found) if found == topic as u8 => Ok(message),
            found => Err(Error::Ranks {
                what: format!(
                    "rank {} waits for {topic:?} of rank {from}, which sends something else ({found:?})",
                    self.rank()
                ),
                hint: "Start all ranks with the same program, settings and data".into(),
            }),
        }
    }

    /// Sends each rank its message, and returns those of all ranks to this one, in their order.
    pub(crate) fn exchange(&self, topic: Topic, messages: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let mut messages = messages;
        let mut own = messages.get_mut(self.rank()).map(std::mem::take);
        for to in self.others() {
            let message = messages.get_mut(to).map(std::mem::take);
            self.send(topic, to, message.unwrap_or_default())?;
        }
        let receive = |from: usize| match from == self.rank() {
            true => Ok(own.take().unwrap_or_default()),
            false => self.receive(topic, from),
        };
        (0..self.count()).map(receive).collect()
    }

    /// The other ranks, the next one first: were all to begin with the same one, its link would be busy
    /// and the others' idle.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, count) = (self.rank(), self.count());
        (1..count).map(move |shift| (rank + shift) % count)
    }

    /// What all ranks say, in their order.
    pub(crate) fn all(&self, topic: Topic, message: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.exchange(topic, vec![message; self.count()])
    }

    /// What all ranks say, in their order, each as JSON.
    pub(crate) fn all_json<T: Serialize + DeserializeOwned>(
        &self,
        topic: Topic,
        own: &T,
    ) -> Result<Vec<T>> {
        let all = self.all(topic, to_json(own)?)?;
        let read = |(rank, message): (usize, &Vec<u8>)| from_json(message, rank);
        all.iter().enumerate().map(read).collect()
    }

    /// What the leader says; the others' own message is not looked at. However long the leader
    /// works before it speaks, it is waited for where `patient`.
    pub(crate) fn told_by_leader(
        &self,
        topic: Topic,
        message: impl FnOnce() -> Result<Vec<u8>>,
        patient: bool,
    ) -> Result<Vec<u8>> {
        if !self.is_leader() {
            let patience = Some(self.patience).filter(|_| !patient);
            return self.receive_within(topic, 0, patience);
        }
        let message = message()?;
        (1..self.count()).try_for_each(|to| self.send(topic, to, message.clone()))?;
        Ok(message)
    }

    /// Whether any rank says so.
    pub(crate) fn any(&self, topic: Topic, own: bool) -> Result<bool> {
        if self.is_solo() {
            return Ok(own);
        }
        Ok(self.all(topic, vec![u8::from(own)])?.iter().any(|message| message.contains(&1)))
    }

    /// Refuses to go on where a rank has something else than the leader.
    ///
    /// # Errors
    /// [`Error::Ranks`] with what differs, on every rank.
    pub(crate) fn same(&self, what: &str, own: &Value) -> Result<()> {
        if self.is_solo() {
            return Ok(());
        }
        let all = self.all_json(Topic::Same, own)?;
        for (rank, other) in all.iter().enumerate().skip(1) {
            let changes = differences(&all[0], other, "");
            if !changes.is_empty() {
                return Err(Error::Ranks {
                    what: format!(
                        "rank {rank} has other {what} than rank 0: {}",
                        changes.join(", ")
                    ),
                    hint: "Start all ranks with the same program, settings and data".into(),
                });
            }
        }
        Ok(())
    }
}

/// A message as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Ranks {
        what: format!("what is to be told cannot be written: {e}"),
        hint: "Paths must be UTF-8".into(),
    })
}

/// Reads a message of a rank.
pub(crate) fn from_json<T: DeserializeOwned>(message: &[u8], rank: usize) -> Result<T> {
    serde_json::from_slice(message).map_err(|e| Error::Ranks {
        what: format!("what rank {rank} says cannot be read: {e}"),
        hint: "Start all ranks with the same program, settings and data".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What each of some ranks says at the end.
    pub(super) fn on_ranks<T: Send>(count: usize, of: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let ranks = thread_ranks(count).into_iter();
            let threads: Vec<_> = ranks
                .map(|rank| {
                    let of = &of;
                    scope.spawn(move || of(Ranks::new(Arc::new(rank))))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn everyone_gets_what_everyone_says() {
        for count in [1, 2, 3, 5] {
            let all = on_ranks(count, |ranks| {
                let me = ranks.rank() as u8;
                let messages = (0..count as u8).map(|to| vec![me, to]).collect();
                let got = ranks.exchange(Topic::Terms, messages).unwrap();
                let any = ranks.any(Topic::Stop, me == 1).unwrap();
                let said = ranks.told_by_leader(Topic::Start, || Ok(vec![7]), true).unwrap();
                (got, any, said)
            });
            for (me, (got, any, said)) in all.into_iter().enumerate() {
                let expected: Vec<Vec<u8>> =
                    (0..count as u8).map(|from| vec![from, me as u8]).collect();
                assert_eq!((got, any, said), (expected, count > 1, vec![7]));
            }
        }
    }

    #[test]
    fn what_differs_is_said_on_every_rank() {
        let errors = on_ranks(3, |ranks| {
            ranks.same("data", &json!({ "fingerprint": "a" })).unwrap();
            let own = if ranks.rank() == 2 { "b" } else { "a" };
            ranks.same("data", &json!({ "fingerprint": own })).unwrap_err().to_string()
        });
        for error in errors {
            let told = "rank 2 has other data than rank 0: fingerprint was \"a\", is \"b\"";
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn ranks_that_have_come_apart_say_so() {
        let errors = on_ranks(2, |ranks| {
            let topic = if ranks.is_leader() { Topic::Stop } else { Topic::Terms };
            ranks.all(topic, vec![]).unwrap_err().to_string()
        });
        assert!(errors[0].contains("waits for Stop of rank 1"), "{errors:?}");
    }
}
