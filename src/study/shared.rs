//! A study that several processes share, on one machine or on many with a common directory.

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

/// How processes share a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// A process that gives no sign of life for so long is dead: others take over what it works on. At
    /// least a second.
    pub dead_after: Duration,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { dead_after: Duration::from_secs(120) }
    }
}

/// The claim of the report.
const REPORT: &str = ".report.json";
/// The claim of names on the hub, which are found once for all.
const DATASETS: &str = ".datasets.json";
/// The settings of all processes that work on the study now.
const SHARED_SETTINGS: &str = ".settings.toml";
/// Says which results the report is of.
const REPORTED: &str = ".reported";

/// Works on a study beside other processes that do the same, until all cells are done, and gives the
/// report, which one of them writes.
///
/// # Errors
/// As [`study`](super::study); [`Error::RunDirectory`] where other processes work on it with other
/// settings, where its file system cannot be shared, and where another process took over what this one
/// worked on, since it gave no sign of life.
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

/// Takes the directory beside others, which must have the same settings.
fn take(config: &StudyConfig, claims: &Claims) -> Result<(WorkDir, String)> {
    let out = &config.out;
    fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let refusal = match FolderLock::are_there(out)? {
        false => Some("its file system has no locks, or they do not hold".into()),
        true => locks_of_one_machine(out)
            .map(|how| format!("{how}, so that its locks are of one machine")),
    };
    if let Some(why) = refusal {
        return Err(Error::RunDirectory {
            path: out.clone(),
            what: format!("processes cannot share it: {why}"),
            hint: "Divide the study with --part instead, each part in a directory of its own, and put \
                   the parts together with --report"
                .into(),
        });
    }
    claims.exclusively(|| {
        let others = FolderLock::is_taken(out);
        let directory = WorkDir::open_shared(out, KIND).map_err(|error| {
            let hint = "That process works on it alone: wait for its end, or stop it and start it again \
                        with --share";
            if is_of_lock(&error, out) { with_hint(error, hint) } else { error }
        })?;
        let date = date_of(&directory)?;
        // Whether what is done already fits these settings shows later.
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

/// Writes the settings of a study into its directory, unless they are there under whatever name of that.
fn keep_settings(config: &StudyConfig, directory: &WorkDir) -> Result<()> {
    let settings = toml_of(config)?;
    match read_if_there(&directory.join(SETTINGS))? {
        Some(then) if setting_changes(&then, &settings, &["out"]).is_empty() => Ok(()),
        _ => directory.write(SETTINGS, &settings),
    }
}

/// Refuses settings other than those with which other processes work on the study.
fn same_settings(config: &StudyConfig, then: &str, now: &str) -> Result<()> {
    // The directory may have another name on each machine, but for what the names of models hold.
    let is_named = config.pretrained_cache.is_none()
        && config.students.iter().any(|student| student.pretraining.is_some());
    let changes = setting_changes(then, now, if is_named { &[] } else { &["out"] });
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::RunDirectory {
        path: config.out.clone(),
        what: format!("other processes work on it with other settings: {}", changes.join(", ")),
        hint: "Start all of them with the same settings, or name another directory (out)".into(),
    })
}

/// The settings in which two studies differ, in words, without some.
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

/// Whether a name of data is none of a file here.
fn names_on_the_hub(config: &StudyConfig) -> Result<bool> {
    let mut names = config.benchmarks.clone();
    for cell in config.cells() {
        let sources = config.run_config(&cell)?.data.sources;
        names.extend(sources.into_iter().map(|source| source.path));
    }
    Ok(names.iter().any(|name| !name.exists()))
}

/// All that is made: students before any training, then cells.
pub(super) fn all_cells(config: &StudyConfig) -> Vec<Cell> {
    let untuned = config.untuned_cells().into_iter();
    untuned.map(|cell| Cell { arm: ArmKind::Untuned, ..cell }).chain(config.cells()).collect()
}

/// The claim of a cell.
fn claim_of(config: &StudyConfig, cell: &Cell) -> String {
    let file = config.result_file(cell);
    let name = file.strip_prefix(config.out.join("results")).unwrap_or(&file);
    // Each part of it is a name of a folder.
    name.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

impl Work<'_, '_> {
    /// Makes cells that nobody else works on until all are done.
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

    /// Makes a cell, unless it is done or another process works on it.
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
        // Of other versions the lock of the run's directory alone tells.
        let folder = self.config.cell_folder(cell);
        if FolderLock::is_taken(&folder) {
            return Ok(Tried::Busy(format!("one holds {}: stop it if it hangs", folder.display())));
        }
        let about = name(self.config, cell).join(", ");
        held.tell(&about, self.context)?;
        self.make(cell, place, None)?;
        Ok(Tried::Made)
    }

    /// Refuses settings or data that do not fit what is done already.
    pub(super) fn check_done(&mut self, cells: &[Cell]) -> Result<()> {
        cells.iter().try_for_each(|cell| {
            self.context.check()?;
            self.is_done(cell).map(drop)
        })
    }

    /// Whether a cell is stored; one of other settings or data is refused.
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

/// What came of a look at a cell.
enum Tried {
    Done,
    Made,
    /// Who works on it.
    Busy(String),
}

/// What is waited for, in words.
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
    /// Takes all cells as they are stored.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] where one is not there, or does not fit settings or data.
    pub(super) fn collect(&mut self) -> Result<()> {
        let missing = |path: &Path| Error::RunDirectory {
            path: path.to_owned(),
            what: "it is not there".into(),
            hint: "Start the same command again".into(),
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

    /// The report of all cells: one process writes it, the others read it.
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

    /// Tells these results from others.
    fn digest(&self) -> Result<String> {
        let config = self.work.config;
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION"));
        // The directory may have another name on each machine.
        hash.update(toml_of(&StudyConfig { out: PathBuf::new(), ..config.clone() })?);
        for cell in all_cells(config) {
            hash.update(sha256_of(&config.result_file(&cell))?);
        }
        Ok(hex(hash.finalize()))
    }
}
