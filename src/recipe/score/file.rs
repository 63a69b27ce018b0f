//! Files of scores: a line of JSON for each answer, and beside it whose scores these are.
//!
//! ```text
//! scores.jsonl                  {"row": "9f…", "source": "long", "nll": 0.61, "rsr": 2.9, …}
//! scores.jsonl.settings.json    the student, and how LALP is taken
//! scores.jsonl.part.json        of a part: which it is, and its answers
//! ```

use super::{LalpConfig, RowScores, is_parquet};
use crate::error::{Error, Place, Result};
use crate::files::{
    FolderLock, JsonlLog, LastLine, PART, check_part, head_of, read_values, remove_file,
    same_settings, write_text, write_whole,
};
use crate::part::Part;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const HINT: &str = "Name another file, or remove this one and the settings beside it to score anew";
/// How every line begins.
const BEGINNING: &[u8] = b"{\"row\":\"";

/// The scores in a JSONL file that [`write_scores`](super::write_scores) has written, one for each row and source.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a line that holds no scores.
pub fn read_scores(path: &Path) -> Result<Vec<RowScores>> {
    let all: Vec<RowScores> =
        read_values(path, LastLine::MayBeTorn, "Give a file of `mixdistill score`")?;
    let mut lines = Lines::default();
    // A process that was killed may have left a line beside the one that it made anew.
    for scores in all {
        lines.put(scores);
    }
    Ok(lines.all)
}

/// The settings beside a file: its whole name and an ending, since `scores.txt` may stand beside `scores.jsonl`.
pub(super) fn settings_of(path: &Path) -> PathBuf {
    beside(path, "settings.json")
}

/// What a file says of the part that it is.
pub(super) fn part_of(path: &Path) -> PathBuf {
    beside(path, PART)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{ending}"))
}

/// What the settings beside a file say, where there are any.
///
/// # Errors
/// [`Error::Data`] for a file of that name that is none of ours; [`Error::Io`].
pub(super) fn settings_beside(path: &Path) -> Result<Option<Value>> {
    /// Far more than any settings have.
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
        let what = "it is not the settings of a file of scores, which have this name";
        return Err(Error::data(Place::file(beside), what, "Name another file of scores"));
    }
    Ok(Some(settings))
}

fn length_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Refuses a place where no file of scores can be, or where something else is, such as another part.
pub(super) fn check_place(path: &Path, part: Option<Part>) -> Result<()> {
    if is_parquet(path) {
        let lines = path.with_extension("jsonl");
        let hint = format!("Name the JSONL file beside it: {}", lines.display());
        let what = "its name is that of a Parquet file, and scores are read from JSONL";
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
        let what = "it is no file of scores: no settings are beside it";
        return Err(Error::data(Place::file(path), what, HINT));
    }
    let is_begun = length_of(path) > 0;
    // As settings do, it says nothing beside a file that is gone.
    if is_begun { check_part(path, &part_of(path), part, is_begun) } else { Ok(()) }
}

/// Refuses to replace a Parquet file that is not written from the lines of `store`.
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
    let what = format!("it is there, and no scores in {lines} that it was written from");
    Err(Error::data(Place::file(parquet), what, "Name another file, or remove this one"))
}

/// Refuses to write where an input is.
pub(super) fn check_no_input(out: &Path, inputs: &[&Path]) -> Result<()> {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    for place in [out.to_owned(), settings_of(out), part_of(out)] {
        let there = whole(&place);
        if inputs.iter().any(|input| *input == place || there.is_some() && whole(input) == there) {
            let what = "it is one of the sources, and would be written over";
            return Err(Error::data(Place::file(place), what, "Name another file of scores"));
        }
    }
    Ok(())
}

/// Scores, one for each row and source.
#[derive(Default)]
struct Lines {
    all: Vec<RowScores>,
    /// The places in `all` of a row, one for each source.
    of_row: HashMap<String, Vec<usize>>,
}

impl Lines {
    fn of_row(&self, row: &str) -> impl Iterator<Item = usize> + '_ {
        self.of_row.get(row).into_iter().flatten().copied()
    }

    fn place(&self, row: &str, source: &str) -> Option<usize> {
        self.of_row(row).find(|place| self.all[*place].source == source)
    }

    /// Scores of a row, whichever source they are of; those with LALP before others.
    fn any(&self, row: &str) -> Option<&RowScores> {
        let with_lalp = self.of_row(row).find(|place| self.all[*place].lalp.is_some());
        with_lalp.or_else(|| self.of_row(row).next()).map(|place| &self.all[place])
    }

    /// Adds scores: where they are, and whether they take the place of others.
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

/// Refuses a file that another process works on; makes nothing.
pub(super) fn check_free(path: &Path) -> Result<()> {
    match FolderLock::is_of_file(path) {
        true => FolderLock::take_of_file(path).map(drop),
        false => Ok(()),
    }
}

/// Scores in memory, and in a file where there is one.
pub(super) struct ScoreFile {
    lines: Lines,
    /// Without LALP, where that is asked for, scores count for nothing.
    needs_lalp: bool,
    kept: Option<Kept>,
}

/// The file, which has all of the lines.
struct Kept {
    log: JsonlLog,
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
        part: Option<Part>,
    ) -> Result<Self> {
        let mut lines = Lines::default();
        let needs_lalp = lalp.is_some();
        let Some(path) = path else { return Ok(Self { lines, needs_lalp, kept: None }) };
        check_place(path, part)?;
        let lock = FolderLock::take_of_file(path)?;
        if length_of(path) == 0 {
            remove_file(&part_of(path))?;
        }
        let mut is_doubled = false;
        let mut log = JsonlLog::open(path, &mut |line| {
            let scores: RowScores = line.parse().map_err(|e| {
                let what = format!("it holds no scores: {e}");
                Error::data(Place::line(path, line.number), what, HINT)
            })?;
            is_doubled |= lines.put(scores).1;
            Ok(())
        })?;
        if log.refuse_without_whole_line().is_err() && !is_beginning(&head_of(path)?) {
            let what = "it is no file of scores: it holds no line of JSON";
            return Err(Error::data(Place::file(path), what, HINT));
        }
        same_student(path, student, lalp)?;
        log.cut_torn()?;
        Ok(Self { lines, needs_lalp, kept: Some(Kept { log, is_doubled, _lock: lock }) })
    }

    /// Rows that there are scores of.
    pub(super) fn rows(&self) -> usize {
        self.lines.of_row.len()
    }

    /// Whether there are scores of a row, with or without LALP.
    pub(super) fn knows(&self, row: &str) -> bool {
        self.lines.of_row.contains_key(row)
    }

    /// The scores of a row, where all that is asked for is there.
    pub(super) fn get(&self, row: &str) -> Option<&RowScores> {
        self.lines.any(row).filter(|scores| !self.needs_lalp || scores.lalp.is_some())
    }

    /// Adds scores, and a line of them where the file lacks it. Returns their place, for
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

    /// Where the scores are kept.
    pub(super) fn path(&self) -> Option<&Path> {
        self.kept.as_ref().map(|kept| kept.log.path())
    }

    /// What a stop leaves.
    pub(super) fn kept(&self, done: usize, total: usize) -> String {
        match self.path() {
            Some(path) => format!("{done} of {total} answers are in {}", path.display()),
            None => format!("{done} of {total} answers had their scores, and nothing is kept"),
        }
    }

    /// Makes the file durable, with one line for each answer; without any it is empty.
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

    /// The scores at some places, in that order; only those that are there more than once are copied.
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

/// Whether bytes may be what a killed process has written of its first line.
fn is_beginning(head: &[u8]) -> bool {
    head.starts_with(BEGINNING) || BEGINNING.starts_with(head)
}

/// Refuses a file of another student, or of another LALP where both have one; a new file gets its settings.
fn same_student(path: &Path, student: &Value, lalp: Option<LalpConfig>) -> Result<()> {
    let beside = settings_of(path);
    // Settings of ours beside a file that is gone say nothing.
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
        assert!(refused().contains("s.parquet: it is there, and no scores in "), "{}", refused());
        std::fs::write(&store, "mine too\n").unwrap();
        assert!(refused().contains("s.parquet: it is there"));
        std::fs::write(settings_of(&store), "{\"student\": {}, \"lalp\": null}").unwrap();
        check_replaced(&parquet, &store).unwrap();
        std::fs::write(&store, "").unwrap();
        assert!(refused().contains("s.parquet: it is there"));
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
