//! Files of scores: one JSON line per answer, and the settings that the scores belong to.
//!
//! ```text
//! scores.jsonl                  {"row": "9f…", "source": "long", "nll": 0.61, "rsr": 2.9, …}
//! scores.jsonl.settings.json    the student, and how LALP is computed
//! scores.jsonl.part.json        for a part: which one it is, and its answers
//! ```

use super::{LalpConfig, RowScores, is_parquet};
use crate::error::{Error, Place, Result};
use crate::files::{
    FolderLock, JsonlLog, LastLine, PART, check_part, head_of, read_values, remove_file,
    remove_record, same_settings, write_text, write_whole,
};
use crate::part::Part;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const HINT: &str = "Use another file, or remove this one and its settings to score again";
/// The beginning of every line.
const BEGINNING: &[u8] = b"{\"row\":\"";

/// Reads the scores in a JSONL file of [`write_scores`](super::write_scores), one per row and source.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that does not contain scores.
pub fn read_scores(path: &Path) -> Result<Vec<RowScores>> {
    let all: Vec<RowScores> =
        read_values(path, LastLine::MayBeTorn, "Use a file that `mixdistill score` wrote")?;
    let mut lines = Lines::default();
    // A killed process may have left two lines for the same answer.
    for scores in all {
        lines.put(scores);
    }
    Ok(lines.all)
}

/// Returns the settings file: the full name plus an extension, since `scores.txt` and `scores.jsonl` may
/// exist side by side.
pub(super) fn settings_of(path: &Path) -> PathBuf {
    beside(path, "settings.json")
}

/// Returns the file that describes the part.
pub(super) fn part_of(path: &Path) -> PathBuf {
    beside(path, PART)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{ending}"))
}

/// Reads the settings file, if there is one.
///
/// # Errors
/// [`Error::Data`] for a file with that name and other content; [`Error::Io`].
pub(super) fn settings_beside(path: &Path) -> Result<Option<Value>> {
    /// Far larger than any settings.
    const LONGEST: u64 = 16 << 20;
    let beside = settings_of(path);
    let read = |e| Error::io("read", &beside, e);
    let file = match File::open(&beside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(read)?,
    };
    let mut text = vec![];
    file.take(LONGEST).read_to_end(&mut text).map_err(read)?;
    let settings: Value = serde_json::from_slice(&text).unwrap_or_default();
    if settings.get("student").is_none() || settings.get("lalp").is_none() {
        let what = "it has the name of a settings file of scores, but other content";
        return Err(Error::data(Place::file(beside), what, "Use another file of scores"));
    }
    Ok(Some(settings))
}

fn length_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Checks that a path can hold scores, and that it holds nothing else, such as another part.
pub(super) fn check_place(path: &Path, part: Option<Part>) -> Result<()> {
    if is_parquet(path) {
        let lines = path.with_extension("jsonl");
        let hint = format!("Name the JSONL file next to it: {}", lines.display());
        let what = "it is a Parquet file, but scores are read from JSONL";
        return Err(Error::data(Place::file(path), what, hint));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(Error::io("write", path, std::io::ErrorKind::NotFound.into()));
    }
    if path.is_dir() {
        return Err(Error::io("write", path, std::io::ErrorKind::IsADirectory.into()));
    }
    if settings_beside(path)?.is_none() && length_of(path) > 0 {
        let what = "it is not a file of scores: it has no settings file";
        return Err(Error::data(Place::file(path), what, HINT));
    }
    // Part and settings files are ignored if the file of scores is gone. A part may have no answers.
    match path.exists() {
        true => check_part(path, &part_of(path), part, length_of(path) > 0),
        false => Ok(()),
    }
}

/// Checks that an existing Parquet file was written from the lines of `store`, so that it may be replaced.
pub(super) fn check_replaced(parquet: &Path, store: &Path) -> Result<()> {
    if parquet.is_dir() {
        return Err(Error::io("write", parquet, std::io::ErrorKind::IsADirectory.into()));
    }
    let is_ours =
        || -> Result<bool> { Ok(length_of(store) > 0 && settings_beside(store)?.is_some()) };
    if std::fs::symlink_metadata(parquet).is_err() || is_ours()? {
        return Ok(());
    }
    let lines = store.display();
    let what = format!("it exists, but there are no scores in {lines} that it was written from");
    Err(Error::data(Place::file(parquet), what, "Use another file, or remove this one"))
}

/// Checks that the outputs do not overwrite an input.
pub(super) fn check_no_input(out: &Path, inputs: &[&Path]) -> Result<()> {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    for place in [out.to_owned(), settings_of(out), part_of(out)] {
        let there = whole(&place);
        if inputs.iter().any(|input| *input == place || there.is_some() && whole(input) == there) {
            let what = "it is one of the sources and would be overwritten";
            return Err(Error::data(Place::file(place), what, "Use another file of scores"));
        }
    }
    Ok(())
}

/// Scores, one per row and source.
#[derive(Default)]
struct Lines {
    all: Vec<RowScores>,
    /// The indices in `all` of a row, one per source.
    of_row: HashMap<String, Vec<usize>>,
}

impl Lines {
    fn of_row(&self, row: &str) -> impl Iterator<Item = usize> + '_ {
        self.of_row.get(row).into_iter().flatten().copied()
    }

    fn place(&self, row: &str, source: &str) -> Option<usize> {
        self.of_row(row).find(|place| self.all[*place].source == source)
    }

    /// Scores of a row from any source, preferably with LALP.
    fn any(&self, row: &str) -> Option<&RowScores> {
        let with_lalp = self.of_row(row).find(|place| self.all[*place].lalp.is_some());
        with_lalp.or_else(|| self.of_row(row).next()).map(|place| &self.all[place])
    }

    /// Adds scores. Returns their index, and whether they replaced others.
    fn put(&mut self, scores: RowScores) -> (usize, bool) {
        if let Some(place) = self.place(&scores.row, &scores.source) {
            self.all[place] = scores;
            return (place, true);
        }
        let place = self.all.len();
        match self.of_row.get_mut(&scores.row) {
            Some(places) => places.push(place),
            None => drop(self.of_row.insert(scores.row.clone(), vec![place])),
        }
        self.all.push(scores);
        (place, false)
    }
}

/// Checks that no other process uses a file, without creating anything.
pub(super) fn check_free(path: &Path) -> Result<()> {
    match FolderLock::is_of_file(path) {
        true => FolderLock::take_of_file(path).map(drop),
        false => Ok(()),
    }
}

/// Scores in memory, and in a file if there is one.
pub(super) struct ScoreFile {
    lines: Lines,
    /// Whether scores without LALP count as missing.
    needs_lalp: bool,
    kept: Option<Kept>,
}

/// The file, which has all lines.
struct Kept {
    log: JsonlLog,
    /// Whether an answer has several lines.
    is_doubled: bool,
    _lock: FolderLock,
}

impl ScoreFile {
    /// Reads the scores of a file, if any, and removes a partial last line.
    pub(super) fn open(
        path: Option<&Path>,
        student: &Value,
        lalp: Option<LalpConfig>,
        part: Option<Part>,
    ) -> Result<Self> {
        let mut lines = Lines::default();
        let needs_lalp = lalp.is_some();
        let Some(path) = path else { return Ok(Self { lines, needs_lalp, kept: None }) };
        check_place(path, part)?;
        let lock = FolderLock::take_of_file(path)?;
        if length_of(path) == 0 {
            remove_record(&part_of(path))?;
        }
        let mut is_doubled = false;
        let mut log = JsonlLog::open(path, &mut |line| {
            let scores: RowScores = line.parse().map_err(|e| {
                let what = format!("it does not contain scores: {e}");
                Error::data(Place::line(path, line.number), what, HINT)
            })?;
            is_doubled |= lines.put(scores).1;
            Ok(())
        })?;
        if log.refuse_without_whole_line().is_err() && !is_beginning(&head_of(path)?) {
            let what = "it is not a file of scores: it has no line of JSON";
            return Err(Error::data(Place::file(path), what, HINT));
        }
        same_student(path, student, lalp)?;
        log.cut_torn()?;
        Ok(Self { lines, needs_lalp, kept: Some(Kept { log, is_doubled, _lock: lock }) })
    }

    /// Returns the number of rows with scores.
    pub(super) fn rows(&self) -> usize {
        self.lines.of_row.len()
    }

    /// Returns whether a row has scores, with or without LALP.
    pub(super) fn knows(&self, row: &str) -> bool {
        self.lines.of_row.contains_key(row)
    }

    /// Returns the scores of a row, if they are complete.
    pub(super) fn get(&self, row: &str) -> Option<&RowScores> {
        self.lines.any(row).filter(|scores| !self.needs_lalp || scores.lalp.is_some())
    }

    /// Adds scores, and appends them to the file if it lacks them. Returns their index for
    /// [`ScoreFile::into_rows`].
    pub(super) fn put(&mut self, scores: RowScores) -> Result<usize> {
        if let Some(place) = self.lines.place(&scores.row, &scores.source)
            && (self.lines.all[place].lalp.is_some() || scores.lalp.is_none())
        {
            return Ok(place);
        }
        if let Some(kept) = &mut self.kept {
            kept.log.append(std::slice::from_ref(&scores))?;
        }
        let (place, replaces) = self.lines.put(scores);
        if let Some(kept) = &mut self.kept {
            kept.is_doubled |= replaces;
        }
        Ok(place)
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> Option<&Path> {
        self.kept.as_ref().map(|kept| kept.log.path())
    }

    /// Returns the message for a stop: how much is stored.
    pub(super) fn kept(&self, done: usize, total: usize) -> String {
        match self.path() {
            Some(path) => format!("{done} of {total} answers are in {}", path.display()),
            None => format!("{done} of {total} answers were scored, but the scores are not stored"),
        }
    }

    /// Makes the file durable, with exactly one line per answer.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if self.lines.all.is_empty() {
            return kept.log.reopen();
        }
        if !kept.is_doubled {
            return kept.log.sync();
        }
        let path = kept.log.path();
        write_whole(path, |file| {
            self.lines.all.iter().try_for_each(|scores| {
                let failed = |e: std::io::Error| Error::io("write", path, e);
                serde_json::to_writer(&mut *file, scores).map_err(|e| failed(e.into()))?;
                file.write_all(b"\n").map_err(failed)
            })
        })
    }

    /// Returns the scores at these indices, in order. Copies only those that occur more than once.
    pub(super) fn into_rows(self, places: &[usize]) -> Vec<RowScores> {
        let mut all = self.lines.all;
        let mut uses = vec![0usize; all.len()];
        places.iter().for_each(|place| uses[*place] += 1);
        let take = |place: &usize| {
            uses[*place] -= 1;
            match uses[*place] {
                0 => std::mem::take(&mut all[*place]),
                _ => all[*place].clone(),
            }
        };
        places.iter().map(take).collect()
    }
}

/// Returns whether bytes may be the first line that a killed process left incomplete.
fn is_beginning(head: &[u8]) -> bool {
    head.starts_with(BEGINNING) || BEGINNING.starts_with(head)
}

/// Checks that the settings of a file match the student and, if both have it, the LALP settings. Writes the
/// settings of a new file.
fn same_student(path: &Path, student: &Value, lalp: Option<LalpConfig>) -> Result<()> {
    let beside = settings_of(path);
    // A settings file is outdated if its file of scores is gone.
    if settings_beside(path)?.is_some() && length_of(path) == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(row: &str, source: &str, lalp: Option<f64>) -> RowScores {
        RowScores { row: row.into(), source: source.into(), lalp, ..RowScores::default() }
    }

    #[test]
    fn a_line_begins_as_it_is_looked_for() {
        let line = serde_json::to_vec(&row("ab", "a", None)).unwrap();
        assert!((1..line.len()).all(|length| is_beginning(&line[..length])));
        assert!(!is_beginning(b"PAR1") && !is_beginning(b"{\"id\"") && !is_beginning(b"mine"));
    }

    #[test]
    fn scores_are_found_by_row_and_given_in_order() {
        let mut store = ScoreFile::open(None, &Value::Null, None, None).unwrap();
        let mut put = |scores: RowScores| store.put(scores).unwrap();
        let places = [put(row("x", "a", None)), put(row("y", "a", None)), put(row("x", "b", None))];
        assert_eq!(places, [0, 1, 2]);
        assert_eq!([put(row("x", "b", Some(1.0))), put(row("x", "b", None))], [2, 2]);
        assert_eq!(store.get("x").unwrap().source, "b");
        assert!(store.knows("y") && store.rows() == 2 && store.get("z").is_none());
        let rows = store.into_rows(&[1, 2, 2, 0]);
        let wanted =
            [("y", "a", None), ("x", "b", Some(1.0)), ("x", "b", Some(1.0)), ("x", "a", None)];
        assert_eq!(rows, wanted.map(|(name, source, lalp)| row(name, source, lalp)));
    }

    #[test]
    fn a_parquet_file_is_replaced_beside_its_lines_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [parquet, store] = ["s.parquet", "s.jsonl"].map(|name| folder.path().join(name));
        check_replaced(&parquet, &store).unwrap();
        std::fs::write(&parquet, "mine").unwrap();
        let refused = || check_replaced(&parquet, &store).unwrap_err().to_string();
        assert!(
            refused().contains("s.parquet: it exists, but there are no scores"),
            "{}",
            refused()
        );
        std::fs::write(&store, "mine too\n").unwrap();
        assert!(refused().contains("s.parquet: it exists"));
        std::fs::write(settings_of(&store), "{\"student\": {}, \"lalp\": null}").unwrap();
        check_replaced(&parquet, &store).unwrap();
        std::fs::write(&store, "").unwrap();
        assert!(refused().contains("s.parquet: it exists"));
    }

    #[test]
    fn a_source_is_no_place_for_scores() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.parquet");
        let same = folder.path().join("./../").join(folder.path().file_name().unwrap());
        let same = same.join("a.parquet");
        std::fs::write(&source, "").unwrap();
        for out in [&source, &same] {
            let error = check_no_input(out, &[Path::new("x/y:train"), &source]).unwrap_err();
            assert!(error.to_string().contains("it is one of the sources"), "{error}");
        }
        let out = folder.path().join("b.jsonl");
        check_no_input(&out, &[Path::new("x/y:train"), &source]).unwrap();
        assert!(check_no_input(&out, &[&settings_of(&out)]).is_err());
    }
}
