//! Checkpoints in training on several ranks. The leader writes and reads complete checkpoints, so they do not
//! depend on the number of ranks.

use super::checkpoint::{CheckpointStore, file_names, verified_state};
use super::optimizer::SavedPart;
use super::selection::Selection;
use super::slots::{counts, names, owned};
use super::state::LearnerState;
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::ranks::{Topic, from_json, to_json};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// What the leader reports about a checkpoint that it has read.
#[derive(Serialize, Deserialize)]
struct Announced {
    path: PathBuf,
    skipped: Vec<String>,
    files: Vec<String>,
    selection: Selection,
}

/// Parts of an optimizer's state, and the folder that holds them.
pub(super) struct Parts {
    pub parts: Vec<SavedPart>,
    _folder: Option<TempDir>,
}

impl<M: CausalLm> LearnerState<M> {
    /// Collects the optimizer state of the other ranks on the leader.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Ranks`]; errors of the optimizer.
    pub(super) fn gathered_parts(&self) -> Result<Parts> {
        if !self.shards {
            return Ok(Parts { parts: vec![], _folder: None });
        }
        let (ranks, topic) = (self.ranks.unhurried(), Topic::Moments);
        let folder = ranks.scratch()?;
        if !ranks.is_leader() {
            let path = folder.path().join("optimizer");
            let numbers = self.optimizer.save(self.model(), &path)?;
            ranks.send(topic, 0, to_json(&numbers)?)?;
            ranks.send_file(topic, &[0], &path)?;
            return Ok(Parts { parts: vec![], _folder: None });
        }
        let mut parts = vec![];
        for rank in 1..ranks.count() {
            let numbers = ranks.receive(topic, rank)?;
            let numbers: BTreeMap<String, u64> = from_json(&numbers, rank)?;
            let path = folder.path().join(format!("rank-{rank}"));
            ranks.receive_file(topic, rank, &path)?;
            parts.push(SavedPart { path, numbers });
        }
        Ok(Parts { parts, _folder: Some(folder) })
    }

    /// Selects the entries of `updates` that belong to this rank's parameters.
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
    /// Reads a checkpoint on all ranks: the leader calls `read` and sends the files to the others.
    ///
    /// # Errors
    /// Errors of `read`, on all ranks; [`Error::Io`]; [`Error::Ranks`].
    pub(super) fn read_together<M: CausalLm>(
        &self,
        learner: &mut LearnerState<M>,
        read: impl FnOnce(&mut LearnerState<M>) -> Result<(PathBuf, Vec<String>)>,
    ) -> Result<(PathBuf, Vec<String>)> {
        let ranks = learner.ranks.unhurried();
        if ranks.is_solo() {
            return read(learner);
        }
        let topic = Topic::Checkpoint;
        if ranks.is_leader() {
            let found = read(learner);
            let announced = match &found {
                Err(error) => Err(error.to_string()),
                Ok((path, skipped)) => Ok(Announced {
                    path: path.clone(),
                    skipped: skipped.clone(),
                    files: file_names(path)?,
                    selection: learner.selection,
                }),
            };
            ranks.told_by_leader(topic, || to_json(&announced), false)?;
            if let Ok(Announced { path, files, .. }) = announced {
                let others: Vec<usize> = (1..ranks.count()).collect();
                for name in files {
                    ranks.send_file(topic, &others, &path.join(name))?;
                }
            }
            return found;
        }
        let message = ranks.told_by_leader(topic, || Ok(vec![]), false)?;
        let announced: std::result::Result<Announced, String> = from_json(&message, 0)?;
        let Announced { path, skipped, files, selection } =
            announced.map_err(|what| Error::Checkpoint {
                path: self.place_of(learner.step),
                what: format!("rank 0 cannot read it: {what}"),
                hint: "Fix the cause on rank 0".into(),
            })?;
        let folder = ranks.scratch()?;
        let place = folder.path().join(path.file_name().unwrap_or_default());
        fs::create_dir(&place).map_err(|e| Error::io("create", &place, e))?;
        for name in files {
            ranks.receive_file(topic, 0, &place.join(name))?;
        }
        self.read(&place, verified_state(&place)?, learner)?;
        // Only the leader can check for the best checkpoint on its disk.
        learner.selection = selection;
        Ok((path, skipped))
    }
}
