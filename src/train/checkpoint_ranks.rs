//! Checkpoints of several ranks: the leader writes and reads them, whole, so that they belong to no number
//! of ranks.

use super::checkpoint::{CheckpointStore, verified_state};
use super::optimizer::SavedPart;
use super::selection::Selection;
use super::slots::{counts, names, owned};
use super::state::LearnerState;
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::ranks::Topic;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// What the leader says of a checkpoint that it has read.
#[derive(Serialize, Deserialize)]
struct Announced {
    path: PathBuf,
    skipped: Vec<String>,
    files: Vec<String>,
    selection: Selection,
}

/// Parts of an optimizer's state, and the folder that they are in.
pub(super) struct Parts {
    pub parts: Vec<SavedPart>,
    _folder: Option<TempDir>,
}

impl<M: CausalLm> LearnerState<M> {
    /// The parts of the optimizer's state that other ranks have; they give them to the leader.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Ranks`]; what the optimizer gives.
    pub(super) fn gathered_parts(&self) -> Result<Parts> {
        if !self.shards {
            return Ok(Parts { parts: vec![], _folder: None });
        }
        let (ranks, topic) = (&self.ranks, Topic::Moments);
        let folder = ranks.scratch()?;
        if !ranks.is_leader() {
            let path = folder.path().join("optimizer");
            let numbers = self.optimizer.save(self.model(), &path)?;
            let numbers = serde_json::to_vec(&numbers).unwrap_or_default();
            ranks.send(topic, 0, numbers)?;
            ranks.send_file(topic, &[0], &path)?;
            return Ok(Parts { parts: vec![], _folder: None });
        }
        let mut parts = vec![];
        for rank in 1..ranks.count() {
            let numbers = ranks.receive(topic, rank)?;
            let numbers: BTreeMap<String, u64> =
                serde_json::from_slice(&numbers).map_err(|e| unclear(rank, &e))?;
            let path = folder.path().join(format!("rank-{rank}"));
            ranks.receive_file(topic, rank, &path)?;
            parts.push(SavedPart { path, numbers });
        }
        Ok(Parts { parts, _folder: Some(folder) })
    }

    /// Of what an optimizer keeps beside its file, that of this rank's own parameters.
    pub(super) fn own_updates(&self, updates: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        if !self.shards {
            return updates.clone();
        }
        let own = &owned(&counts(self.model()), self.ranks.count())[self.ranks.rank()];
        let own: BTreeSet<String> =
            names(self.model()).into_iter().skip(own.start).take(own.len()).collect();
        let is_own = |(name, _): &(&String, &u64)| own.contains(*name);
        updates.iter().filter(is_own).map(|(name, number)| (name.clone(), *number)).collect()
    }
}

impl CheckpointStore {
    /// Reads a checkpoint on all ranks: `read` on the leader, which sends its files to the others.
    ///
    /// # Errors
    /// What `read` gives, on all ranks; [`Error::Io`]; [`Error::Ranks`].
    pub(super) fn read_together<M: CausalLm>(
        &self,
        learner: &mut LearnerState<M>,
        read: impl FnOnce(&mut LearnerState<M>) -> Result<(PathBuf, Vec<String>)>,
    ) -> Result<(PathBuf, Vec<String>)> {
        let ranks = learner.ranks.clone();
        if ranks.is_solo() {
            return read(learner);
        }
        let topic = Topic::Checkpoint;
        if ranks.is_leader() {
            let found = read(learner);
            let announced = found.as_ref().map_err(ToString::to_string).map(|(path, skipped)| {
                let files = Self::files_of(path);
                let (path, skipped) = (path.clone(), skipped.clone());
                Announced { path, skipped, files, selection: learner.selection }
            });
            let message = serde_json::to_vec(&announced).unwrap_or_default();
            ranks.from_leader(topic, || Ok(message), false)?;
            if let Ok(Announced { path, files, .. }) = announced {
                let others: Vec<usize> = (1..ranks.count()).collect();
                for name in files {
                    ranks.send_file(topic, &others, &path.join(name))?;
                }
            }
            return found;
        }
        let message = ranks.from_leader(topic, || Ok(vec![]), false)?;
        let announced: std::result::Result<Announced, String> =
            serde_json::from_slice(&message).map_err(|e| unclear(0, &e))?;
        let Announced { path, skipped, files, selection } =
            announced.map_err(|what| Error::Ranks {
                what: format!("rank 0 cannot read a checkpoint: {what}"),
                hint: "Mend the cause there".into(),
            })?;
        let folder = ranks.scratch()?;
        let place = folder.path().join(path.file_name().unwrap_or_default());
        fs::create_dir(&place).map_err(|e| Error::io("create", &place, e))?;
        for name in files {
            ranks.receive_file(topic, 0, &place.join(name))?;
        }
        self.read(&place, verified_state(&place)?, learner)?;
        // What the leader has found beside it is not here.
        learner.selection = selection;
        Ok((path, skipped))
    }

    /// The names of a checkpoint's files.
    fn files_of(path: &std::path::Path) -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

fn unclear(rank: usize, error: &serde_json::Error) -> Error {
    Error::Ranks {
        what: format!("what rank {rank} says cannot be read: {error}"),
        hint: "Start all ranks with the same program, settings and data".into(),
    }
}
