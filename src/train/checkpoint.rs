//! Checkpoints: everything that the next step depends on, complete or absent.
//!
//! ```text
//! checkpoints/step-000200/
//!   model.safetensors       trained weights, f32, under Hugging Face names
//!   optimizer.safetensors   NAME.exp_avg and NAME.exp_avg_sq; 8-bit moments also have
//!                           NAME.exp_avg.absmax and NAME.exp_avg_sq.absmax
//!                           (Burn's own optimizers write optimizer.bpk instead)
//!   state.json              version, step, update counts of the moments, best step, settings of the run
//!   manifest.json           length and SHA-256 of each file above
//! ```
//!
//! A checkpoint is written to a temporary folder, flushed, and renamed. The order of the data and all random
//! choices are functions of the seed and the step, so they need no stored state.

use super::optimizer::SavedPart;
use super::selection::Selection;
use super::state::LearnerState;
use crate::error::{Error, Result};
use crate::files::{differences, flush_folder, gone, remove_folder};
use crate::model::CausalLm;
use crate::model::FileType;
use crate::model::tensors::{lazy_tensors, with_named_tensors};
use crate::model::weights::{WeightFiles, write_file};
use crate::ranks::Topic;
use crate::text::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Version of the checkpoint format.
const VERSION: u32 = 3;
const WEIGHTS: &str = "model.safetensors";
const STATE: &str = "state.json";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    step: usize,
    /// What the optimizer stores besides its file. For AdamW, the number of updates of each parameter.
    updates: BTreeMap<String, u64>,
    selection: Selection,
    /// Whether the evaluation of this step is still due.
    evaluation_due: bool,
    settings: serde_json::Value,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

impl FileEntry {
    /// Computes the length and checksum of a file.
    fn of(path: &Path) -> Result<Self> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        let mut add = || -> std::io::Result<()> {
            let mut file = File::open(path)?;
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        };
        add().map_err(|e| Error::io("read", path, e))?;
        let sha256 = hex(hash.finalize());
        Ok(Self { bytes, sha256 })
    }
}

/// Slows writing down if a test asks for it, so that a signal arrives in the middle.
fn linger() {
    let asked = std::env::var("MIXDISTILL_TEST_LINGER_MS").ok();
    if let Some(milliseconds) = asked.and_then(|text| text.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    }
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
    settings: serde_json::Value,
    allow_changes: bool,
}

impl CheckpointStore {
    /// Stores checkpoints in `folder` and keeps the newest `keep`. `settings` identify the run: a checkpoint
    /// with other settings is refused when it is read.
    pub fn new(folder: impl Into<PathBuf>, keep: usize, settings: serde_json::Value) -> Self {
        Self { folder: folder.into(), keep: keep.max(1), settings, allow_changes: false }
    }

    /// Sets whether checkpoints with other settings are accepted.
    pub fn allowing_changes(mut self, allow: bool) -> Self {
        self.allow_changes = allow;
        self
    }

    /// Describes what is safe on disk, for error messages.
    pub fn safe(&self) -> String {
        match self.newest_path() {
            Ok(Some(path)) => {
                format!("Safe on disk: {}; fix the cause and resume the run", path.display())
            }
            _ => format!("No checkpoint is in {}", self.folder.display()),
        }
    }

    /// Returns the path of the checkpoint of a step.
    pub fn place_of(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:06}"))
    }

    /// Writes a checkpoint, then removes the oldest ones beyond the number to keep. A best checkpoint that is
    /// kept is not counted.
    ///
    /// # Errors
    /// [`Error::Io`]; earlier checkpoints are unchanged.
    pub(super) fn save<M: CausalLm>(&self, learner: &LearnerState<M>) -> Result<PathBuf> {
        let place = self.place_of(learner.step);
        let parts = learner.gathered_parts()?;
        let ranks = learner.ranks.unhurried();
        if ranks.is_leader() {
            self.save_here(learner, &parts.parts)?;
        }
        if !ranks.is_solo() {
            // The other ranks wait until the checkpoint is complete.
            ranks.told_by_leader(Topic::Saved, || Ok(vec![]), false)?;
        }
        Ok(place)
    }

    /// Implements [`CheckpointStore::save`] on the leader, with the optimizer state of the other ranks in
    /// `parts`.
    fn save_here<M: CausalLm>(&self, learner: &LearnerState<M>, parts: &[SavedPart]) -> Result<()> {
        let place = self.place_of(learner.step);
        let beside = self.folder.join(format!(".writing-step-{:06}", learner.step));
        // A run directory that is gone may have been moved, so it is not created again.
        if learner.saved.is_some()
            && let Some(parent) = self.folder.parent().filter(|parent| !parent.exists())
        {
            return Err(gone(parent, learner.step));
        }
        fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        for left in self.unfinished()? {
            remove_folder(&left)?;
        }
        fs::create_dir(&beside).map_err(|e| Error::io("create", &beside, e))?;
        if let Err(error) = self.write(learner, &beside, parts) {
            // Frees the space on a full disk. The first error is the one to report.
            let _ = remove_folder(&beside);
            return Err(error);
        }
        // An existing checkpoint of this step is either damaged or identical.
        remove_folder(&place)?;
        fs::rename(&beside, &place).map_err(|e| Error::io("rename", &beside, e))?;
        flush_folder(&self.folder)?;
        linger();
        let best = learner.selection.best.filter(|_| learner.keep_best);
        let others = self.all()?.into_iter();
        let others: Vec<_> = others
            .filter(|(step, path)| *path != place && best.is_none_or(|best| best.step != *step))
            .collect();
        for (_, old) in &others[..others.len().saturating_sub(self.keep - 1)] {
            remove_folder(old)?;
        }
        Ok(())
    }

    /// Writes and flushes all files of a checkpoint.
    fn write<M: CausalLm>(
        &self,
        learner: &LearnerState<M>,
        beside: &Path,
        parts: &[SavedPart],
    ) -> Result<()> {
        let weights = lazy_tensors(learner.model(), true);
        write_file(&beside.join(WEIGHTS), &weights, FileType::F32, HashMap::new())?;
        linger();
        let optimizer = learner.optimizer.file_name();
        let file = beside.join(optimizer);
        let updates = learner.optimizer.save_joined(learner.model(), &file, parts)?;
        linger();
        let settings = self.settings.clone();
        let selection = learner.selection;
        let state = State {
            version: VERSION,
            step: learner.step,
            updates,
            selection,
            evaluation_due: learner.evaluation_due,
            settings,
        };
        write_flushed(&beside.join(STATE), &to_json(&state, beside)?)?;
        let mut manifest = BTreeMap::new();
        for name in [WEIGHTS, optimizer, STATE] {
            manifest.insert(name.to_owned(), FileEntry::of(&beside.join(name))?);
        }
        write_flushed(&beside.join("manifest.json"), &to_json(&manifest, beside)?)?;
        flush_folder(beside)?;
        linger();
        Ok(())
    }

    /// Folders that killed processes left unfinished.
    fn unfinished(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder).map_err(|e| Error::io("read", &self.folder, e))?;
        let names = entries.flatten().map(|entry| entry.path());
        let begun = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".writing-"))
        };
        Ok(names.filter(begun).collect())
    }

    /// Returns all checkpoints, oldest first, valid or not.
    fn all(&self) -> Result<Vec<(usize, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(Error::io("read", &self.folder, e)),
        };
        let mut found = vec![];
        for entry in entries {
            let path = entry.map_err(|e| Error::io("read", &self.folder, e))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let step = name.strip_prefix("step-").and_then(|step| step.parse().ok());
            found.extend(step.map(|step: usize| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Returns the directory of the newest checkpoint, valid or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn newest_path(&self) -> Result<Option<PathBuf>> {
        Ok(self.all()?.pop().map(|(_, path)| path))
    }

    /// Loads the newest valid checkpoint into a learner with a matching model. Returns its path and the
    /// problems of newer checkpoints. Damaged ones are renamed to `damaged-step-...`, so that they do not
    /// count toward the number to keep.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if no checkpoint is valid, or if it belongs to a run with other settings;
    /// [`Error::Io`].
    pub(super) fn resume<M: CausalLm>(
        &self,
        learner: &mut LearnerState<M>,
    ) -> Result<(PathBuf, Vec<String>)> {
        self.read_together(learner, |learner| self.read_newest(learner))
    }

    fn read_newest<M: CausalLm>(
        &self,
        learner: &mut LearnerState<M>,
    ) -> Result<(PathBuf, Vec<String>)> {
        let mut skipped = vec![];
        let mut damaged: Vec<PathBuf> = vec![];
        for (_, path) in self.all()?.into_iter().rev() {
            match verified_state(&path) {
                Ok(state) => {
                    self.read(&path, state, learner)?;
                    for path in damaged {
                        set_aside(&path)?;
                    }
                    return Ok((path, skipped));
                }
                Err(error) => {
                    skipped.push(error.to_string());
                    // A checkpoint that cannot be read now may still be intact.
                    let missing = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
                    if !matches!(&error, Error::Io { source, .. } if !missing(source)) {
                        damaged.push(path);
                    }
                }
            }
        }
        Err(Error::Checkpoint {
            path: self.folder.clone(),
            what: match skipped.as_slice() {
                [] => "there is no checkpoint".into(),
                _ => format!("no checkpoint is valid: {}", skipped.join("; ")),
            },
            hint: "Start the run again".into(),
        })
    }

    /// Loads the checkpoint of one step into a learner.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is missing, damaged, or has other settings; [`Error::Io`].
    pub(super) fn restore<M: CausalLm>(
        &self,
        step: usize,
        learner: &mut LearnerState<M>,
    ) -> Result<()> {
        let path = self.place_of(step);
        let read = |learner: &mut LearnerState<M>| {
            self.read(&path, verified_state(&path)?, learner)?;
            Ok((path.clone(), vec![]))
        };
        self.read_together(learner, read).map(|_| ())
    }

    pub(super) fn read<M: CausalLm>(
        &self,
        path: &Path,
        state: State,
        learner: &mut LearnerState<M>,
    ) -> Result<()> {
        let failed = |what: String, hint: &str| Error::Checkpoint {
            path: path.to_owned(),
            what,
            hint: hint.into(),
        };
        if state.version != VERSION {
            let what = format!("its format is version {}, not {VERSION}", state.version);
            return Err(failed(what, "Use the program version that wrote it"));
        }
        let differences = differences(&state.settings, &self.settings, "");
        if !differences.is_empty() && !self.allow_changes {
            let what = format!("it was written with other settings: {}", differences.join(", "));
            let hint = "Resume with the settings and data of the original run, or allow the change";
            return Err(failed(what, hint));
        }
        let mut weights = WeightFiles::open_file(path.join(WEIGHTS))?;
        let foreign = "Resume with the model that it was written for";
        let model = learner.model().clone();
        let mut unreadable = None;
        let mut read = |name: &str| match weights.read(name) {
            Ok(tensor) => Some(tensor),
            Err(error) => {
                unreadable.get_or_insert(error.to_string());
                None
            }
        };
        let model = with_named_tensors(model, &mut read);
        let model = model.map_err(|problems| {
            failed(unreadable.unwrap_or_else(|| problems.join(", ")), foreign)
        })?;
        let file = path.join(learner.optimizer.file_name());
        if !file.is_file() {
            let what = format!("{} is missing", learner.optimizer.file_name());
            return Err(failed(what, "Resume with the optimizer of the original run"));
        }
        let updates = learner.own_updates(&state.updates);
        let model = learner.optimizer.load(model, &file, &updates);
        learner.model = Some(model.map_err(|error| match error {
            Error::Checkpoint { .. } => error,
            _ => failed(error.to_string(), foreign),
        })?);
        learner.step = state.step;
        learner.evaluation_due = state.evaluation_due;
        learner.saved = Some(state.step);
        // A best step is kept only if the data is the same and its checkpoint exists.
        let kept = state.selection.best.is_none_or(|best| {
            let place = self.place_of(best.step);
            !learner.keep_best || best.step == state.step || verified_state(&place).is_ok()
        });
        let same = differences.is_empty() && kept;
        learner.selection = if same { state.selection } else { Selection::default() };
        Ok(())
    }
}

/// Returns the state of a checkpoint after checking its files against the manifest.
pub(super) fn verified_state(path: &Path) -> Result<State> {
    let failed = |what: String| Error::Checkpoint {
        path: path.to_owned(),
        what,
        hint: "Restore the file from a backup, or resume from an earlier checkpoint".into(),
    };
    let manifest = read_file(&path.join("manifest.json"))?;
    let manifest: BTreeMap<String, FileEntry> =
        serde_json::from_slice(&manifest).map_err(|e| failed(format!("manifest.json: {e}")))?;
    if let Some(name) = [WEIGHTS, STATE].iter().find(|name| !manifest.contains_key(**name)) {
        return Err(failed(format!("manifest.json does not list {name}")));
    }
    // Accepts only files inside the checkpoint's folder, whatever the manifest lists.
    let is_plain = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
    for (name, entry) in &manifest {
        if !is_plain(name) {
            return Err(failed("manifest.json names files in other folders".into()));
        }
        if FileEntry::of(&path.join(name))? != *entry {
            return Err(failed(format!("{name} is damaged")));
        }
    }
    serde_json::from_slice(&read_file(&path.join(STATE))?)
        .map_err(|e| failed(format!("state.json: {e}")))
}

/// Returns the file names in a checkpoint's manifest, and the manifest itself.
pub(super) fn file_names(path: &Path) -> Result<Vec<String>> {
    const MANIFEST: &str = "manifest.json";
    let manifest: BTreeMap<String, FileEntry> =
        serde_json::from_slice(&read_file(&path.join(MANIFEST))?).map_err(|e| {
            Error::Checkpoint {
                path: path.to_owned(),
                what: format!("{MANIFEST}: {e}"),
                hint: "Use another checkpoint; this one is damaged".into(),
            }
        })?;
    Ok(manifest.into_keys().chain([MANIFEST.to_owned()]).collect())
}

fn to_json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::Checkpoint {
        path: path.to_owned(),
        what: format!("cannot write its state: {e}"),
        hint: "This is a bug; please report it".into(),
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io("read", path, e))
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// Renames a damaged checkpoint so that it is not read again.
fn set_aside(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let aside = path.with_file_name(format!("damaged-{name}"));
    remove_folder(&aside)?;
    fs::rename(path, &aside).map_err(|e| Error::io("rename", path, e))
}
