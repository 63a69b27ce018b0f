//! Training one student on several ranks: processes or threads that work together.
//!
//! All ranks have the same data, settings, and weights. Each computes a part of every step and sends its
//! results to the others. Sums are added in an order that depends only on the step (see [`crate::train`]), so
//! on equal hardware any number of ranks produces bit-identical results. Rank 0, the leader, is the only one
//! that writes files and reports progress.
//!
//! - [`Communicator`] carries messages: [`Solo`] for a single rank, [`ThreadRank`] for threads of one process
//!   (for example, one per GPU), and `Mpi` (feature `mpi`) for processes on one or more machines.
//! - [`Ranks`] is a handle that training uses; see
//!   [`Learner::with_ranks`](crate::train::Learner::with_ranks).
//! - [`Started`] and [`Place`] tell how a launcher such as `mpirun` started this process.
//!
//! ```
//! use mixdistill::data::Row;
//! use mixdistill::model::DecoderConfig;
//! use mixdistill::ranks::{Ranks, thread_ranks};
//! use mixdistill::train::{Learner, TrainConfig};
//! use std::sync::Arc;
//!
//! // The loss of one step on two rows, computed together with other ranks.
//! let loss = |ranks: Ranks| -> mixdistill::Result<f64> {
//!     let device = mixdistill::device::by_name("auto")?.autodiff();
//!     let model = DecoderConfig { vocab_size: 16, hidden_size: 32, ..Default::default() };
//!     let config = TrainConfig { batch_size: 1, ..Default::default() };
//!     let mut learner = Learner::new(model.init(1, &device)?, config)?.with_ranks(ranks)?;
//!     let row = |tokens: &[u32]| Row { tokens: tokens.to_vec(), prompt: 1, ..Row::default() };
//!     Ok(learner.train_step(&[row(&[1, 2, 3, 4]), row(&[5, 6, 7])], 1)?.loss)
//! };
//! let alone = loss(Ranks::default())?;
//! std::thread::scope(|scope| {
//!     for rank in thread_ranks(2) {
//!         scope.spawn(move || assert_eq!(loss(Ranks::new(Arc::new(rank))).unwrap(), alone));
//!     }
//! });
//! # Ok::<(), mixdistill::Error>(())
//! ```

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

/// Carries messages between ranks. Messages from one rank to another arrive in the order in which they were
/// sent.
pub trait Communicator: Debug + Send + Sync {
    /// Returns the number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn ranks(&self) -> usize;

    /// Sends a message to another rank without waiting for it to be received.
    ///
    /// # Errors
    /// [`Error::Ranks`] if a rank has failed.
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()>;

    /// Receives the next message from another rank. Waits at most `patience`, or indefinitely if it is
    /// `None`.
    ///
    /// # Errors
    /// [`Error::Ranks`] if a rank has failed, has ended, or does not answer in time.
    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Vec<u8>>;

    /// Tells all other ranks that this rank has failed, so that they stop waiting for it.
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

/// The subject of a message. Sender and receiver must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Topic {
    /// What the ranks were started with.
    Start = 1,
    /// Whether a stop was requested.
    Stop,
    /// Sums of gradients, for the rank that adds them.
    Terms,
    /// Complete gradients.
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
    /// A checkpoint that is being read.
    Checkpoint,
    /// A checkpoint that was written.
    Saved,
    /// Whether the ranks have the same inputs.
    Same,
}

/// The ranks of a training, as seen from one of them.
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
    /// The default time that a rank waits for another one.
    pub const PATIENCE: Duration = Duration::from_secs(600);

    /// Uses the ranks that a communicator connects.
    pub fn new(communicator: Arc<dyn Communicator>) -> Self {
        Self { communicator, patience: Self::PATIENCE }
    }

    /// Sets how long a rank waits for another one before it gives up.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// Returns the number of ranks.
    pub fn count(&self) -> usize {
        self.communicator.ranks()
    }

    /// Returns whether there is only one rank.
    pub fn is_solo(&self) -> bool {
        self.count() == 1
    }

    /// Returns whether this is rank 0, which writes files and reports progress.
    pub fn is_leader(&self) -> bool {
        self.rank() == 0
    }

    /// Returns the same ranks with ten times the patience, for when another rank works alone, such as on
    /// files.
    pub(crate) fn unhurried(&self) -> Self {
        Self { communicator: self.communicator.clone(), patience: self.patience * 10 }
    }

    /// Tells all other ranks that this rank has failed.
    pub fn fail(&self, error: &Error) {
        // Sends only the cause. Each rank reports what is safe and what to do.
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
        // Appended, so that the message is not moved in memory.
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
                    "rank {} expected {topic:?} from rank {from}, but received something else ({found:?})",
                    self.rank()
                ),
                hint: "Start all ranks with the same program, settings, and data".into(),
            }),
        }
    }

    /// Sends each rank its message. Returns the messages of all ranks to this one, in rank order.
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

    /// Returns the other ranks, starting with the next one. If all ranks started with the same one, its link
    /// would be busy and the others idle.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, count) = (self.rank(), self.count());
        (1..count).map(move |shift| (rank + shift) % count)
    }

    /// Sends a message to all ranks and returns the messages of all ranks in order.
    pub(crate) fn all(&self, topic: Topic, message: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.exchange(topic, vec![message; self.count()])
    }

    /// Like [`Ranks::all`], with JSON values.
    pub(crate) fn all_json<T: Serialize + DeserializeOwned>(
        &self,
        topic: Topic,
        own: &T,
    ) -> Result<Vec<T>> {
        let all = self.all(topic, to_json(own)?)?;
        let read = |(rank, message): (usize, &Vec<u8>)| from_json(message, rank);
        all.iter().enumerate().map(read).collect()
    }

    /// Returns the leader's message on all ranks. Messages of other ranks are ignored. If `patient`, they
    /// wait for the leader indefinitely.
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

    /// Returns whether `own` is true on any rank.
    pub(crate) fn any(&self, topic: Topic, own: bool) -> Result<bool> {
        if self.is_solo() {
            return Ok(own);
        }
        Ok(self.all(topic, vec![u8::from(own)])?.iter().any(|message| message.contains(&1)))
    }

    /// Checks that all ranks have the same value as the leader.
    ///
    /// # Errors
    /// [`Error::Ranks`] on every rank, with the differences.
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
                        "the {what} of rank {rank} differ from rank 0: {}",
                        changes.join(", ")
                    ),
                    hint: "Start all ranks with the same program, settings, and data".into(),
                });
            }
        }
        Ok(())
    }
}

/// Writes a message as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Ranks {
        what: format!("cannot write a message to other ranks: {e}"),
        hint: "Use paths that are valid UTF-8".into(),
    })
}

/// Reads a JSON message of a rank.
pub(crate) fn from_json<T: DeserializeOwned>(message: &[u8], rank: usize) -> Result<T> {
    serde_json::from_slice(message).map_err(|e| Error::Ranks {
        what: format!("cannot read a message of rank {rank}: {e}"),
        hint: "Start all ranks with the same program, settings, and data".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Runs a function on several ranks and returns their results.
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
            let told = "the data of rank 2 differ from rank 0: fingerprint was \"a\", is \"b\"";
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn ranks_that_have_come_apart_say_so() {
        let errors = on_ranks(2, |ranks| {
            let topic = if ranks.is_leader() { Topic::Stop } else { Topic::Terms };
            ranks.all(topic, vec![]).unwrap_err().to_string()
        });
        assert!(errors[0].contains("expected Stop from rank 1"), "{errors:?}");
    }
}
