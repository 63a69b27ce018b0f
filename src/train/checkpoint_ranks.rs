//! Checkpoints of several ranks: the leader writes and reads them, whole, so that they belong to no number
//! of ranks.

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
}
