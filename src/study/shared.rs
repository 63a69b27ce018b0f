//! A study that several processes share, on one machine or on several with a common directory.

use super::arms::ArmKind;
use super::claims::{Claims, Watched};
use super::config::{Cell, StudyConfig};
use super::part::as_tested;
use super::pretrained::pretrain;
use super::results::{CellResult, Study};
use super::run::{
    Asked, Begun, KIND, MARK, Place, SETTINGS, Work, date_of, going_on, name, toml_of, with_hint,
};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::{
    FolderLock, WorkDir, differences, is_of_lock, locks_of_one_machine, read_if_there, sha256_of,
    write_text,
};
use crate::text::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options for sharing a study between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// A process without a sign of life for this long is considered dead, and others take over its work.
    /// At least one second.
    pub dead_after: Duration,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { dead_after: Duration::from_secs(120) }
    }
}

/// The name of the claim on the report.
const REPORT: &str = ".report.json";
/// The name of the claim on datasets of the Hub, which one process finds for all.
const DATASETS: &str = ".datasets.json";
/// The settings of all processes that currently work on the study.
const SHARED_SETTINGS: &str = ".settings.toml";
/// The file with a digest of the results in the report.
const REPORTED: &str = ".reported";

/// Works on a study alongside other processes that do the same until all cells are done. Returns the report,
/// which one of them writes.
///
/// # Errors
/// See [`study`](super::study); [`Error::RunDirectory`] if other processes work on it with different settings
/// or if its file system cannot be shared; [`Error::Training`] if this process gave no sign of life for so
/// long that another one took over its work.
pub fn study_shared(
    config: &StudyConfig,
    sharing: &Sharing,
    command: &str,
    context: &Context<'_>,
) -> Result<Study> {
    config.validate()?;
    KIND.check_files(&config.out)?;
    let mut asked = Asked::read(config, context)?;
    let dead_after = sharing.dead_after.max(Duration::from_secs(1));
    let claims = Claims::new(&config.out, config.out.join(MARK), dead_after);
    let (directory, date) = take(config, &claims)?;
    let watched = Watched { claims: claims.clone(), context };
    let watched = Context::new(watched, context.stop_flag());
    let context = &watched;
    let pretrained = pretrain(config, Some(&claims), context).map_err(going_on)?;
    let finding = match names_on_the_hub(config)? && !config.out.join("datasets.json").is_file() {
        true => Some(claims.wait(DATASETS, "finding the datasets", context).map_err(going_on)?),
        false => None,
    };
    if finding.is_some() {
        asked = Asked::read(config, context)?;
    }
    let place = Place { directory, date, claims: Some(claims.clone()) };
    let mut begun = Begun::new(config, asked, place, pretrained, context)?;
    drop(finding);
    begun.work.check_done(&all_cells(config)).map_err(going_on)?;
    claims.exclusively(|| keep_settings(config, &begun.directory))?;
    begun.work.make_all(&claims).map_err(going_on)?;
    begun.collect()?;
    begun.report_once(&claims, command)
}

/// Opens the directory together with other processes, which must have the same settings.
fn take(config: &StudyConfig, claims: &Claims) -> Result<(WorkDir, String)> {
    let out = &config.out;
    fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let refusal = match FolderLock::are_there(out)? {
        false => Some("its file system does not support locks, or they do not hold".into()),
        true => locks_of_one_machine(out)
            .map(|how| format!("{how}, so its locks hold on one machine only")),
    };
    if let Some(why) = refusal {
        return Err(Error::RunDirectory {
            path: out.clone(),
            what: format!("processes cannot share it: {why}"),
            hint: "Divide the study with --part instead, each part in its own directory, and join the \
                   parts with --report"
                .into(),
        });
    }
    claims.exclusively(|| {
        let others = FolderLock::is_taken(out);
        let directory = WorkDir::open_shared(out, KIND).map_err(|error| {
            let hint = "That process works on it alone: wait for it to finish, or stop it and start it \
                        again with --share";
            if is_of_lock(&error, out) { with_hint(error, hint) } else { error }
        })?;
        let date = date_of(&directory)?;
        // Whether finished work matches these settings is checked later.
        let (settings, path) = (toml_of(config)?, claims.file(SHARED_SETTINGS));
        let then = match read_if_there(&path)? {
            None => read_if_there(&out.join(SETTINGS))?,
            then => then,
        };
        match then {
            Some(then) if others => same_settings(config, &then, &settings)?,
            _ => {
                claims.make_folder()?;
                write_text(&path, &settings)?;
            }
        }
        Ok((directory, date))
    })
}

/// Writes the settings of a study to its directory, unless the directory has the same settings except for
/// `out`.
fn keep_settings(config: &StudyConfig, directory: &WorkDir) -> Result<()> {
    let settings = toml_of(config)?;
    match read_if_there(&directory.join(SETTINGS))? {
        Some(then) if setting_changes(&then, &settings, &["out"]).is_empty() => Ok(()),
        _ => directory.write(SETTINGS, &settings),
    }
}

/// Checks that the settings equal those of the other processes.
fn same_settings(config: &StudyConfig, then: &str, now: &str) -> Result<()> {
    // The directory may have a different name on each machine, unless names of models contain it.
    let is_named = config.pretrained_cache.is_none()
        && config.students.iter().any(|student| student.pretraining.is_some());
    let changes = setting_changes(then, now, if is_named { &[] } else { &["out"] });
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::RunDirectory {
        path: config.out.clone(),
        what: format!("other processes work on it with different settings: {}", changes.join(", ")),
        hint: "Start all of them with the same settings, or choose another directory (out)".into(),
    })
}

/// Descriptions of the settings in which two studies differ, ignoring those in `without`.
pub(super) fn setting_changes(then: &str, now: &str, without: &[&str]) -> Vec<String> {
    let value = |text: &str| {
        let table = text.parse::<toml::Table>().unwrap_or_default();
        let mut value = serde_json::to_value(table).unwrap_or_default();
        if let Value::Object(entries) = &mut value {
            without.iter().for_each(|key| drop(entries.remove(*key)));
        }
        value
    };
    differences(&value(then), &value(now), "")
}

/// Returns whether some data are not local files.
fn names_on_the_hub(config: &StudyConfig) -> Result<bool> {
    let mut names = config.benchmarks.clone();
    for cell in config.cells() {
        let sources = config.run_config(&cell)?.data.sources;
        names.extend(sources.into_iter().map(|source| source.path));
    }
    Ok(names.iter().any(|name| !name.exists()))
}

/// Returns everything that a study makes: untuned students, then cells.
pub(super) fn all_cells(config: &StudyConfig) -> Vec<Cell> {
    let untuned = config.untuned_cells().into_iter();
    untuned.map(|cell| Cell { arm: ArmKind::Untuned, ..cell }).chain(config.cells()).collect()
}

/// Returns the name of the claim on a cell.
fn claim_of(config: &StudyConfig, cell: &Cell) -> String {
    let file = config.result_file(cell);
    let name = file.strip_prefix(config.out.join("results")).unwrap_or(&file);
    // Each component is a folder name.
    name.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

impl Work<'_, '_> {
    /// Makes cells that no other process works on until all are done.
    fn make_all(&mut self, claims: &Claims) -> Result<()> {
        let cells = all_cells(self.config);
        let mut done = vec![false; cells.len()];
        let mut told = String::new();
        loop {
            let (mut worked, mut busy) = (false, vec![]);
            for (index, cell) in cells.iter().enumerate() {
                if done[index] {
                    continue;
                }
                self.context.check()?;
                match self.try_make(claims, cell, [index + 1, cells.len()])? {
                    Tried::Done => done[index] = true,
                    Tried::Made => (done[index], worked) = (true, true),
                    Tried::Busy(holder) => busy.push(holder),
                }
            }
            if busy.is_empty() {
                return Ok(());
            }
            if !worked {
                let waits = waiting(&busy);
                if waits != told {
                    self.context.notice(&waits)?;
                    told = waits;
                }
                claims.pause(self.context)?;
            }
        }
    }

    /// Makes a cell unless it is done or another process works on it.
    fn try_make(&mut self, claims: &Claims, cell: &Cell, place: [usize; 2]) -> Result<Tried> {
        if self.is_done(cell)? {
            return Ok(Tried::Done);
        }
        let claim = claim_of(self.config, cell);
        let Some(held) = claims.try_claim(&claim)? else {
            return Ok(Tried::Busy(claims.holder(&claim).unwrap_or_default()));
        };
        // Another process may have finished it a moment ago.
        if self.is_done(cell)? {
            return Ok(Tried::Done);
        }
        if !held.is_alone() {
            return Ok(Tried::Busy(held.still_there()));
        }
        // Processes of other versions hold only the lock of the run directory.
        let folder = self.config.cell_folder(cell);
        if FolderLock::is_taken(&folder) {
            return Ok(Tried::Busy(format!(
                "a process holds {}: stop it if it hangs",
                folder.display()
            )));
        }
        let about = name(self.config, cell).join(", ");
        held.tell(&about, self.context)?;
        self.make(cell, place, None)?;
        Ok(Tried::Made)
    }

    /// Checks that finished cells match settings and data.
    pub(super) fn check_done(&mut self, cells: &[Cell]) -> Result<()> {
        cells.iter().try_for_each(|cell| {
            self.context.check()?;
            self.is_done(cell).map(drop)
        })
    }

    /// Returns whether a cell is stored. A cell with different settings or data is an error.
    fn is_done(&mut self, cell: &Cell) -> Result<bool> {
        if !self.config.result_file(cell).is_file() {
            return Ok(false);
        }
        if cell.arm == ArmKind::Untuned {
            return Ok(self.stored_untuned(&as_tested(cell))?.is_some());
        }
        let run = self.weighted(cell, &[])?;
        Ok(self.stored(cell, &run)?.is_some())
    }
}

/// The outcome of an attempt to make a cell.
enum Tried {
    Done,
    Made,
    /// The process that works on it.
    Busy(String),
}

/// Returns a message about what this process waits for.
fn waiting(busy: &[String]) -> String {
    let mut holders: Vec<&str> =
        busy.iter().map(String::as_str).filter(|holder| !holder.is_empty()).collect();
    holders.sort_unstable();
    holders.dedup();
    let cells =
        if busy.len() == 1 { "1 cell is".into() } else { format!("{} cells are", busy.len()) };
    match holders.is_empty() {
        true => format!("waiting: {cells} with other processes"),
        false => format!("waiting: {cells} with other processes ({})", holders.join("; ")),
    }
}

impl Begun<'_, '_> {
    /// Reads all stored cells.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if one is missing or does not match settings or data.
    pub(super) fn collect(&mut self) -> Result<()> {
        let missing = |path: &Path| Error::RunDirectory {
            path: path.to_owned(),
            what: "it is missing".into(),
            hint: "Run the same command again".into(),
        };
        let work = &mut self.work;
        (work.stored, work.machines, work.versions) = (0, vec![], vec![]);
        for cell in work.config.untuned_cells() {
            let untuned = Cell { arm: ArmKind::Untuned, ..cell.clone() };
            let found = work.stored_untuned(&cell)?;
            let found = found.ok_or_else(|| missing(&work.config.result_file(&untuned)))?;
            work.took(&found, &work.config.untuned_folder(&cell));
            self.tested.untuned.insert((cell.student, cell.comparison, cell.seed), found.answers);
        }
        let mut cells: Vec<CellResult> = vec![];
        for cell in work.config.cells() {
            let run = work.weighted(&cell, &cells)?;
            let found = work.stored(&cell, &run)?.filter(|found| found.summary.is_some());
            let mut found = found.ok_or_else(|| missing(&work.config.result_file(&cell)))?;
            work.took(&found, &run.out);
            if let Some(summary) = found.summary.take() {
                cells.push((cell, summary, found.answers));
            }
        }
        self.tested.cells = cells;
        Ok(())
    }

    /// Returns the report of all cells, which one process writes and the others read.
    fn report_once(self, claims: &Claims, command: &str) -> Result<Study> {
        let out = self.work.config.out.clone();
        let config = self.work.config;
        let _held = claims.wait(REPORT, "the report", self.work.context)?;
        let (made, reported) = (self.digest()?, claims.file(REPORTED));
        if read_if_there(&reported)?.is_some_and(|then| then == made)
            && let Some(text) = read_if_there(&out.join("study.json"))?
            && let Ok(study) = serde_json::from_str(&text)
        {
            return Ok(study);
        }
        let study = self.report(command)?;
        claims.verified(|| write_text(&reported, &made))?;
        claims.remove(all_cells(config).iter().map(|cell| claim_of(config, cell)))?;
        Ok(study)
    }

    /// Returns a digest of the results.
    fn digest(&self) -> Result<String> {
        let config = self.work.config;
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION"));
        // The directory may have a different name on each machine.
        hash.update(toml_of(&StudyConfig { out: PathBuf::new(), ..config.clone() })?);
        for cell in all_cells(config) {
            hash.update(sha256_of(&config.result_file(&cell))?);
        }
        Ok(hex(hash.finalize()))
    }
}
