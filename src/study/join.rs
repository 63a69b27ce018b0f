//! The report of a study whose parts were made independently. It takes finished cells from `results/` of
//! each directory and trains nothing.

use super::arms::{ArmKind, WEAK};
use super::config::{Cell, StudyConfig};
use super::part::sees_day;
use super::pretrained::pretrain;
use super::results::Study;
use super::run::{
    Asked, Begun, KIND, MARK, Place, SETTINGS, date_of, going_on, how_to_share, name,
};
use super::shared::{all_cells, setting_changes};
use super::stored::StoredCell;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::{WorkDir, differences, first_names, read_if_there, write_text};
use crate::recipe::{RunConfig, RunDirectory};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Joins parts of a study in its directory: copies their finished cells to `results/` and writes the
/// report, with the same numbers as a single process. Finished cells that the directory already has count
/// as well.
///
/// # Errors
/// [`Error::RunDirectory`] if cells are missing from all directories, if a cell does not match the settings
/// or data, or if two directories have the same cell with different numbers; see [`study`](super::study).
pub fn join(
    config: &StudyConfig,
    directories: &[PathBuf],
    command: &str,
    context: &Context<'_>,
) -> Result<Study> {
    config.validate()?;
    let mut parts =
        directories.iter().map(|path| Joined::open(path)).collect::<Result<Vec<_>>>()?;
    KIND.check(&config.out).map_err(|error| how_to_share(error, &config.out))?;
    if KIND.holds(&config.out) && !parts.iter().any(|part| is_one_place(&part.path, &config.out)) {
        parts.push(Joined::open(&config.out)?);
    }
    no_cell_missing(config, &parts)?;
    let directory = WorkDir::open(&config.out, KIND);
    let directory = directory.map_err(|error| how_to_share(error, &config.out))?;
    if let Some(part) = parts.first().filter(|_| !directory.is_marked()) {
        directory.set_mark(&format!("{}\n", part.date))?;
    }
    let date = date_of(&directory)?;
    let datasets = directory.join("datasets.json");
    let noted =
        parts.iter().find_map(|part| fs::read_to_string(part.path.join("datasets.json")).ok());
    if let Some(noted) = noted.filter(|_| !datasets.is_file()) {
        write_text(&datasets, &noted)?;
    }
    take_pretrained(config, &parts)?;
    let asked = Asked::read(config, context)?;
    let pretrained = pretrain(config, None, context).map_err(going_on)?;
    let place = Place { directory, date, claims: None };
    let mut begun = Begun::new(config, asked, place, pretrained, context)?;
    begun.take_cells(&parts)?;
    begun.collect()?;
    begun.report(command)
}

/// A directory with a part of the study.
struct Joined {
    path: PathBuf,
    /// Its path when its cells were made.
    out: PathBuf,
    /// The day on which it was started.
    date: String,
}

impl Joined {
    fn open(path: &Path) -> Result<Self> {
        if !KIND.holds(path) {
            return Err(Error::RunDirectory {
                path: path.to_owned(),
                what: format!("it does not hold a part of a study: it has no {MARK}"),
                hint: "Use complete directories that `mixdistill study` made (--out)".into(),
            });
        }
        let date = read_if_there(&path.join(MARK))?.unwrap_or_default().trim().to_owned();
        let settings = read_if_there(&path.join(SETTINGS))?.unwrap_or_default();
        let settings = settings.parse::<toml::Table>().unwrap_or_default();
        let out = settings.get("out").and_then(|out| out.as_str()).map(PathBuf::from);
        Ok(Self { path: path.to_owned(), out: out.unwrap_or_else(|| path.to_owned()), date })
    }

    /// Returns the result file of a cell in this directory.
    fn result_file(&self, config: &StudyConfig, cell: &Cell) -> PathBuf {
        let file = config.result_file(cell);
        self.path.join(file.strip_prefix(&config.out).unwrap_or(&file))
    }

    /// Returns a cell as it would be stored in the study's own directory.
    fn read(&self, config: &StudyConfig, cell: &Cell) -> Result<Option<StoredCell>> {
        let path = self.result_file(config, cell);
        let Some(stored) = StoredCell::read(&path)? else { return Ok(None) };
        let failed = |e| Error::io("read", &path, std::io::Error::other(e));
        let mut value = serde_json::to_value(stored).map_err(failed)?;
        let moved = |value: Option<&mut Value>| {
            let Some(value) = value else { return };
            let inside =
                value.as_str().and_then(|text| Path::new(text).strip_prefix(&self.out).ok());
            if let Some(inside) = inside {
                *value = config.out.join(inside).display().to_string().into();
            }
        };
        for place in ["/summary/config/out", "/summary/config/base_model"] {
            moved(value.pointer_mut(place));
        }
        moved(value.pointer_mut("/summary/config/mixture/choice/scores"));
        for asked in value.get_mut("asked").and_then(Value::as_object_mut).into_iter().flatten() {
            moved(asked.1.pointer_mut("/settings/base_model"));
        }
        serde_json::from_value(value).map(Some).map_err(failed)
    }
}

fn is_one_place(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Returns an error that names the cells missing from all directories, if there are any.
fn no_cell_missing(config: &StudyConfig, parts: &[Joined]) -> Result<()> {
    let has = |cell: &Cell| parts.iter().any(|part| part.result_file(config, cell).is_file());
    let cells = all_cells(config);
    let missing = cells.iter().filter(|cell| !has(cell));
    let missing: Vec<String> = missing.map(|cell| name(config, cell).join(", ")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (path, count, of) = (config.out.clone(), missing.len(), cells.len());
    let named = first_names(missing, "; ");
    Err(Error::RunDirectory {
        path,
        what: format!("{count} of the {of} cells of the study are in no directory: {named}"),
        hint: "Run the command of their part (--part) again, which continues where it stopped, and list the \
               directories of all parts"
            .into(),
    })
}

/// Takes over the pretrained students, which every part has made for itself.
fn take_pretrained(config: &StudyConfig, parts: &[Joined]) -> Result<()> {
    for (number, student) in config.students.iter().enumerate() {
        let Some(run) = config.pretraining(number)? else { continue };
        let file = Path::new("pretrained-models").join(format!("{}.json", student.name));
        same_models(&student.name, &run.out, parts, &file)?;
        let inside = run.out.strip_prefix(&config.out).map(Path::to_owned);
        let is_finished = |folder: &Path| {
            let summary = fs::read_to_string(folder.join("summary.json")).unwrap_or_default();
            let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
            RunDirectory::holds_run(folder) && summary["outcome"]["stopped"] == false
        };
        if !is_finished(&run.out) {
            let inside = inside.as_deref().ok();
            let mut folders = parts.iter().filter_map(|part| Some(part.path.join(inside?)));
            let Some(folder) = folders.find(|folder| is_finished(folder)) else {
                return Err(Error::RunDirectory {
                    path: run.out,
                    what: format!("the pretrained student `{}` is in no directory", student.name),
                    hint: "Copy the folder of a part here (pretrained/, or pretrained_cache): its tokenizer \
                           is needed to check the cells"
                        .into(),
                });
            };
            copy_folder(&folder, &run.out)?;
        }
        let fingerprints = config.out.join(&file);
        if !fingerprints.is_file()
            && let Some(text) =
                parts.iter().find_map(|p| fs::read_to_string(p.path.join(&file)).ok())
        {
            let folder = config.out.join("pretrained-models");
            fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
            write_text(&fingerprints, &text)?;
        }
    }
    Ok(())
}

/// Checks that all cells of a student started from the same model.
fn same_models(student: &str, run: &Path, parts: &[Joined], file: &Path) -> Result<()> {
    let digest = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut first: Option<(PathBuf, String)> = None;
    for part in parts {
        let path = part.path.join(file);
        let text = read_if_there(&path)?.unwrap_or_default();
        let known: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
        let Some(model) = known.get(&digest) else { continue };
        match &first {
            None => first = Some((path, model.clone())),
            Some((_, same)) if same == model => {}
            Some((other, _)) => {
                return Err(Error::RunDirectory {
                    path,
                    what: format!(
                        "the cells here started from another model of the pretrained student `{student}` \
                         than those of {}: pretraining gives the same model only on identical machines",
                        other.display()
                    ),
                    hint: "Pretrain it once (pretrained_cache), copy that folder to all machines, and train \
                           the cells of one of these directories again"
                        .into(),
                });
            }
        }
    }
    Ok(())
}

/// Copies a run without its checkpoints, completely or not at all.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let beside = to.with_extension("new");
    crate::files::remove_folder(&beside)?;
    copy_into(from, &beside)?;
    fs::rename(&beside, to).map_err(|e| Error::io("rename", &beside, e))
}

fn copy_into(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| Error::io("create", to, e))?;
    for entry in fs::read_dir(from).map_err(|e| Error::io("read", from, e))? {
        let entry = entry.map_err(|e| Error::io("read", from, e))?;
        let (path, name) = (entry.path(), entry.file_name());
        match path.is_dir() {
            true if name == "checkpoints" => {}
            true => copy_into(&path, &to.join(name))?,
            false => {
                fs::copy(&path, to.join(name)).map_err(|e| Error::io("copy", &path, e))?;
            }
        }
    }
    Ok(())
}

/// Figures that differ if the same cell is made twice.
const OF_EACH_TIME: [&str; 9] = [
    "seconds",
    "training_seconds",
    "tokens_per_second",
    "peak_memory_mib",
    "machine",
    "backend",
    "batch_size",
    "version",
    // Compared separately, because old results lack it.
    "base_weights",
];

/// Returns a stored cell without the figures that differ from run to run, and without the date unless the chat
/// template shows it to the student (`is_dated`).
fn numbers(stored: &StoredCell, is_dated: bool) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(entries) => {
                entries.retain(|key, _| !OF_EACH_TIME.contains(&key.as_str()));
                entries.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(if is_dated { stored.clone() } else { stored.undated() })
        .unwrap_or_default();
    let outcome = value.pointer_mut("/summary/outcome").and_then(Value::as_object_mut);
    // These cover only the last process that worked on the cell.
    if let Some(outcome) = outcome {
        ["tokens", "trained_tokens", "skipped"].iter().for_each(|key| drop(outcome.remove(*key)));
    }
    strip(&mut value);
    value
}

impl Begun<'_, '_> {
    /// Copies all cells to the study's own results. Each cell is checked, and compared with its duplicates.
    fn take_cells(&self, parts: &[Joined]) -> Result<()> {
        let mut done = vec![];
        let mut weights: BTreeMap<String, (PathBuf, String)> = BTreeMap::new();
        for cell in all_cells(self.work.config) {
            self.work.context.check()?;
            let run = match cell.arm {
                ArmKind::Untuned => self.work.run_config(&Cell { arm: WEAK, ..cell.clone() })?,
                _ => self.work.weighted(&cell, &done)?,
            };
            let stored = self.taken(&cell, &run, parts, &mut weights)?;
            stored.write(&self.work.config.result_file(&cell))?;
            if let Some(summary) = stored.summary {
                done.push((cell, summary, stored.answers));
            }
        }
        Ok(())
    }

    /// Returns the cell from the first directory that has it. `weights` has the fingerprint of each base
    /// model and the first cell that knows it.
    fn taken(
        &self,
        cell: &Cell,
        run: &RunConfig,
        parts: &[Joined],
        weights: &mut BTreeMap<String, (PathBuf, String)>,
    ) -> Result<StoredCell> {
        let (work, config) = (&self.work, self.work.config);
        let mut first: Option<(PathBuf, StoredCell)> = None;
        for part in parts {
            let Some(stored) = part.read(config, cell)? else { continue };
            let path = part.result_file(config, cell);
            work.check_stored(cell, run, &stored, &path)?;
            if let (Some(model), Some(own)) = (&run.base_model, &stored.base_weights) {
                let first = weights.entry(model.clone()).or_insert((path.clone(), own.clone()));
                let (other, known) = &*first;
                let of_other = format!("{model} than {}", other.display());
                stored.check_weights(&path, &of_other, Some(known))?;
            }
            let Some((other, known)) = &first else {
                first = Some((path, stored));
                continue;
            };
            let is_dated = sees_day(&work.unmixed(cell, run)?.chat_template);
            let [then, now] = [known, &stored].map(|stored| numbers(stored, is_dated));
            let mut changes = differences(&then, &now, "");
            changes.truncate(3);
            if !changes.is_empty() {
                return Err(Error::RunDirectory {
                    path,
                    what: format!(
                        "{} was made twice, with different numbers than in {}: {}",
                        name(config, cell).join(", "),
                        other.display(),
                        changes.join(", ")
                    ),
                    hint: "Keep one of them: remove the other file or leave out its directory"
                        .into(),
                });
            }
        }
        first.map(|(_, stored)| stored).ok_or_else(|| Error::RunDirectory {
            path: config.result_file(cell),
            what: "it was there a moment ago".into(),
            hint: "Run the command again".into(),
        })
    }
}

/// Returns the settings that all parts of a study have in common, with the directory of the first part.
///
/// # Errors
/// [`Error::RunDirectory`] if a directory has no settings or different ones; see [`StudyConfig::read`].
pub fn settings_of(directories: &[PathBuf]) -> Result<StudyConfig> {
    let mut first: Option<(&Path, String)> = None;
    for path in directories {
        Joined::open(path)?;
        let refuse = |what: String, hint: &str| {
            Err(Error::RunDirectory { path: path.clone(), what, hint: hint.into() })
        };
        let Some(text) = read_if_there(&path.join(SETTINGS))? else {
            return refuse(format!("it has no {SETTINGS}"), "Add the settings (--config FILE)");
        };
        let Some((other, settings)) = &first else {
            first = Some((path, text));
            continue;
        };
        let changes = setting_changes(settings, &text, &["out"]);
        if !changes.is_empty() {
            let what = format!(
                "its settings differ from those of {}: {}",
                other.display(),
                changes.join(", ")
            );
            return refuse(
                what,
                "Make all parts with the same settings, or add the settings (--config FILE)",
            );
        }
    }
    match first {
        Some((path, _)) => StudyConfig::read(&path.join(SETTINGS)),
        None => Err(Error::config("report", "it lists no directory", "List those of all parts")),
    }
}
