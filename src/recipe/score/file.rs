//! Files of scores: a line of JSON for each answer, and beside it whose scores these are.
//!
//! ```text
//! scores.jsonl            {"row": "9f…", "source": "long", "nll": 0.61, "rsr": 2.9, …}
//! scores.settings.json    the student, and how LALP is taken
//! ```

use super::{LalpConfig, RowScores};
use crate::error::{Error, Place, Result};
use crate::files::{
    FolderLock, JsonlLog, LastLine, read_values, remove_file, same_settings, write_text,
    write_whole,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const HINT: &str = "Name another file, or remove this one and the settings beside it to score anew";

/// The scores in a JSONL file that [`write_scores`](super::write_scores) has written, one for each row and source.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that holds no scores.
pub fn read_scores(path: &Path) -> Result<Vec<RowScores>> {
    let all: Vec<RowScores> =
        read_values(path, LastLine::MayBeTorn, "Give a file of `mixdistill score`")?;
    let (mut lines, mut places) = (vec![], HashMap::new());
    // A process that was killed may have left a line beside the one that it made anew.
    for scores in &all {
        put(&mut lines, &mut places, scores);
    }
    Ok(lines)
}

/// The settings beside a file.
fn settings_of(path: &Path) -> PathBuf {
    path.with_extension("settings.json")
}

/// Refuses a place where no file of scores can be, or where something else is.
pub(super) fn check_place(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(Error::io("write", path, std::io::ErrorKind::NotFound.into()));
    }
    if path.is_dir() {
        return Err(Error::io("write", path, std::io::ErrorKind::IsADirectory.into()));
    }
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length > 0 && !settings_of(path).is_file() {
        let what = "it is no file of scores: no settings are beside it";
        return Err(Error::data(Place::file(path), what, HINT));
    }
    Ok(())
}

/// Scores in memory, and in a file where there is one.
pub(super) struct ScoreFile {
    /// By row, whichever source they are of.
    known: HashMap<String, RowScores>,
    /// Without LALP, where that is asked for, these count for nothing.
    needs_lalp: bool,
    kept: Option<Kept>,
}

/// What is in the file.
struct Kept {
    log: JsonlLog,
    /// Row and source of each line, by place in `lines`.
    places: HashMap<(String, String), usize>,
    lines: Vec<RowScores>,
    /// Whether a line stands for a later one too.
    is_doubled: bool,
    _lock: FolderLock,
}

impl ScoreFile {
    /// Takes what a file holds; a line that was cut off is removed.
    pub(super) fn open(
        path: Option<&Path>,
        student: &Value,
        lalp: Option<LalpConfig>,
    ) -> Result<Self> {
        let mut all = Self { known: HashMap::new(), needs_lalp: lalp.is_some(), kept: None };
        let Some(path) = path else { return Ok(all) };
        check_place(path)?;
        let lock = FolderLock::take_of_file(path)?;
        same_student(path, student, lalp)?;
        let (mut lines, mut places) = (vec![], HashMap::new());
        let mut is_doubled = false;
        let mut log = JsonlLog::open(path, &mut |line| {
            let scores: RowScores = line.parse().map_err(|e| {
                Error::data(
                    Place::line(path, line.number),
                    format!("it holds no scores: {e}"),
                    HINT,
                )
            })?;
            is_doubled |= put(&mut lines, &mut places, &scores);
            Ok(())
        })?;
        log.cut_torn()?;
        lines.iter().for_each(|scores| all.learn(scores));
        all.kept = Some(Kept { log, places, lines, is_doubled, _lock: lock });
        Ok(all)
    }

    fn learn(&mut self, scores: &RowScores) {
        let better = |old: &RowScores| old.lalp.is_none() && scores.lalp.is_some();
        if self.known.get(&scores.row).is_none_or(better) {
            self.known.insert(scores.row.clone(), scores.clone());
        }
    }

    /// The scores of a row, where all that is asked for is there.
    pub(super) fn get(&self, row: &str) -> Option<&RowScores> {
        self.known.get(row).filter(|scores| !self.needs_lalp || scores.lalp.is_some())
    }

    pub(super) fn holds(&self, row: &str) -> bool {
        self.get(row).is_some()
    }

    /// Adds scores, and a line of them where the file lacks it.
    pub(super) fn put(&mut self, scores: &RowScores) -> Result<()> {
        self.learn(scores);
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let place = kept.places.get(&(scores.row.clone(), scores.source.clone()));
        let line = place.map(|place| &kept.lines[*place]);
        if line.is_some_and(|line| line.lalp.is_some() || scores.lalp.is_none()) {
            return Ok(());
        }
        kept.log.append(std::slice::from_ref(scores))?;
        kept.is_doubled |= put(&mut kept.lines, &mut kept.places, scores);
        Ok(())
    }

    /// What a stop leaves.
    pub(super) fn kept(&self, done: usize, total: usize) -> String {
        match &self.kept {
            Some(kept) => {
                format!("{done} of {total} answers are in {}", kept.log.path().display())
            }
            None => format!("{done} of {total} answers had their scores, and nothing is kept"),
        }
    }

    /// Makes the file durable, with one line for each answer.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if !kept.is_doubled {
            return kept.log.sync();
        }
        let path = kept.log.path();
        write_whole(path, |file| {
            kept.lines.iter().try_for_each(|scores| {
                let failed = |e: std::io::Error| Error::io("write", path, e);
                serde_json::to_writer(&mut *file, scores).map_err(|e| failed(e.into()))?;
                file.write_all(b"\n").map_err(failed)
            })
        })
    }
}

/// Adds a line; whether it takes the place of another.
fn put(
    lines: &mut Vec<RowScores>,
    places: &mut HashMap<(String, String), usize>,
    scores: &RowScores,
) -> bool {
    match places.entry((scores.row.clone(), scores.source.clone())) {
        std::collections::hash_map::Entry::Occupied(place) => {
            lines[*place.get()].clone_from(scores);
            true
        }
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(lines.len());
            lines.push(scores.clone());
            false
        }
    }
}

/// Refuses a file of another student, or of another LALP where both have one; a new file gets its settings.
fn same_student(path: &Path, student: &Value, lalp: Option<LalpConfig>) -> Result<()> {
    let beside = settings_of(path);
    // Settings of a file that is gone say nothing.
    if std::fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
        remove_file(&beside)?;
    }
    let settings = json!({ "student": student, "lalp": lalp });
    let asked = &settings["lalp"];
    let mut is_first = false;
    let older = |then: &mut Value| {
        let stored = &then["lalp"];
        if stored.is_null() || asked.is_null() {
            is_first = stored.is_null() && !asked.is_null();
            then["lalp"] = asked.clone();
        }
        Ok(())
    };
    same_settings(&beside, &settings, older, HINT).map_err(|error| match error {
        Error::RunDirectory { what, hint, .. } => Error::data(Place::file(path), what, hint),
        error => error,
    })?;
    match is_first {
        true => write_text(&beside, &format!("{settings:#}\n")),
        false => Ok(()),
    }
}
