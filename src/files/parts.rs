//! A job that is split across processes: the record that each part writes beside its output, and the checks
//! before the outputs are joined.
//!
//! ```text
//! a/part.json   {"part": "1/2", "settings": …, "job": …, "items": 3, "sha256": …, "own": [item 0, item 2]}
//! b/part.json   {"part": "2/2", …                                                  "own": [item 1]}
//! ```
//!
//! The items of the whole job, such as problems, are hashed in order. Parts with the same hash have the same
//! items, and all parts together have every item.

use super::settings::refuse_other;
use super::{differences, remove_file, write_text};
use crate::error::{Error, Place, Problems, Result};
use crate::part::Part;
use crate::text::hex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file name of a record in a directory, and the suffix of a record beside a file.
pub(crate) const PART: &str = "part.json";

/// The record beside a part's output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartRecord<T> {
    /// Which part it is.
    pub part: Part,
    /// Settings that determine the output. They are the same in all parts, and when a part continues.
    pub settings: Value,
    /// Other settings that are the same in all parts. They may change when a part continues.
    pub job: Value,
    /// Number of items in the whole job.
    items: usize,
    /// SHA-256 of all items in order.
    sha256: String,
    /// The part's own items, in order.
    pub own: Vec<T>,
}

/// Hashes a sequence of items.
#[derive(Default)]
struct Hashed {
    hash: Sha256,
    count: usize,
}

impl Hashed {
    fn add(&mut self, item: &impl Serialize) -> Result<()> {
        let line = serde_json::to_vec(item);
        let line = line.map_err(|e| Error::io("write", PART, e.into()))?;
        self.hash.update(line);
        self.hash.update(b"\n");
        self.count += 1;
        Ok(())
    }
}

impl<T: Serialize> PartRecord<T> {
    /// Creates the record of a part of a job with these items.
    pub(crate) fn new(
        part: Part,
        settings: Value,
        job: Value,
        items: impl IntoIterator<Item = T>,
    ) -> Result<Self> {
        let (mut all, mut own) = (Hashed::default(), vec![]);
        for (index, item) in items.into_iter().enumerate() {
            all.add(&item)?;
            if part.holds(index) {
                own.push(item);
            }
        }
        Ok(Self { part, settings, job, items: all.count, sha256: hex(all.hash.finalize()), own })
    }

    /// Writes the record of an output after [`check_part`] accepted it.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if it was started with other settings; [`Error::Io`].
    pub(crate) fn keep(&self, record: &Path) -> Result<()> {
        if let Some(then) = read::<Settings>(record)? {
            let hint = "Choose another output, or continue with the settings of this one";
            refuse_other(record, &then.settings, &self.settings, hint)?;
        }
        let text = serde_json::to_string(self).map_err(|e| Error::io("write", record, e.into()))?;
        write_text(record, &(text + "\n"))
    }
}

/// The fields that are needed to continue a part.
#[derive(Deserialize)]
struct Settings {
    part: Part,
    settings: Value,
}

/// Reads a record, if it exists.
fn read<R: DeserializeOwned>(path: &Path) -> Result<Option<R>> {
    /// Far larger than any record.
    const LONGEST: u64 = 1 << 30;
    let read = |e| Error::io("read", path, e);
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // The output may be a file instead of a directory.
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        file => file.map_err(read)?,
    };
    let length = file.metadata().map_err(read)?.len();
    if length > LONGEST {
        let what = format!("it has {length} bytes, too many for the record of a part");
        return Err(Error::data(Place::file(path), what, "Create the part again elsewhere"));
    }
    let mut text = vec![];
    file.take(LONGEST).read_to_end(&mut text).map_err(read)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        let what = format!("it does not say which part this is: {e}");
        Error::data(Place::file(path), what, "Create the part again elsewhere")
    })
}

/// Returns the error for an unusable output.
pub(crate) fn refused(output: &Path, what: impl Into<String>, hint: impl Into<String>) -> Error {
    let (what, hint) = (what.into(), hint.into());
    match output.is_dir() {
        true => Error::RunDirectory { path: output.to_owned(), what, hint },
        false => Error::data(Place::file(output), what, hint),
    }
}

/// Refuses an output of another part than `part`, an output of a part if `part` is `None`, and an output of
/// the whole job if `part` is given. `is_begun` says whether the output has any content.
///
/// # Errors
/// [`Error::RunDirectory`], or [`Error::Data`] for a file.
pub(crate) fn check_part(
    output: &Path,
    record: &Path,
    part: Option<Part>,
    is_begun: bool,
) -> Result<()> {
    let there = read::<Settings>(record)?.map(|record| record.part);
    let (what, hint) = match (there, part) {
        (Some(there), Some(part)) if there != part => (
            format!("it is part {there}, not part {part}"),
            format!("Continue with part {there}, or give part {part} its own output"),
        ),
        (Some(there), None) => (
            format!("it is part {there} of a divided job"),
            format!("Join the parts first, or continue with part {there}"),
        ),
        (None, Some(part)) if is_begun => (
            "its content is not a part of a divided job".into(),
            format!("Give part {part} its own output"),
        ),
        _ => return Ok(()),
    };
    Err(refused(output, what, hint))
}

/// Removes the record of an output that has no content.
///
/// # Errors
/// [`Error::Data`] if the file is not a record; [`Error::Io`].
pub(crate) fn remove_record(record: &Path) -> Result<()> {
    match read::<Settings>(record)? {
        Some(_) => remove_file(record),
        None => Ok(()),
    }
}

/// A part and its path.
pub(crate) struct Output<T> {
    pub path: PathBuf,
    pub record: PartRecord<T>,
}

/// All parts of a job, in order of their numbers.
pub(crate) struct Parts<T>(Vec<Output<T>>);

impl<T: Serialize + DeserializeOwned> Parts<T> {
    /// Reads the parts with these outputs, which must be all parts of one job, each once. `record_of` gives
    /// the path of an output's record.
    ///
    /// # Errors
    /// All problems, with the names of the outputs; [`Error::Config`] for missing parts.
    pub(crate) fn read(outputs: &[PathBuf], record_of: impl Fn(&Path) -> PathBuf) -> Result<Self> {
        let mut problems = Problems::default();
        let mut parts: Vec<Output<T>> = vec![];
        for path in outputs {
            let output =
                problems.note(output(path, &record_of(path))).filter(|output: &Output<T>| {
                    let goes = parts.first().map_or(Ok(()), |first| go_together(first, output));
                    problems.note(goes.and_then(|()| is_new(&parts, output))).is_some()
                });
            parts.extend(output);
        }
        if let Some(first) = parts.first() {
            problems.note(none_missing(first.record.part.of(), &parts));
        }
        problems.check()?;
        if parts.is_empty() {
            return Err(Error::config("join", "no part is given", "Give the outputs of all parts"));
        }
        parts.sort_by_key(|output| output.record.part.number());
        let parts = Self(parts);
        parts.check_items()?;
        Ok(parts)
    }

    /// Refuses modified records.
    fn check_items(&self) -> Result<()> {
        let [first, ..] = self.0.as_slice() else { return Ok(()) };
        let PartRecord { items, sha256, .. } = &first.record;
        let mut all = Hashed::default();
        let each =
            (0..*items).map_while(|index| self.holder(index).record.own.get(index / self.0.len()));
        each.into_iter().try_for_each(|item| all.add(item))?;
        let own: usize = self.0.iter().map(|output| output.record.own.len()).sum();
        if own == *items && all.count == *items && hex(all.hash.finalize()) == *sha256 {
            return Ok(());
        }
        let what = format!("the parts together do not have all of {items} items");
        Err(refused(&first.path, what, "Create the parts again: a record was modified"))
    }

    fn holder(&self, index: usize) -> &Output<T> {
        &self.0[index % self.0.len()]
    }

    /// Returns the first part, for values that all parts share.
    pub(crate) fn first(&self) -> &Output<T> {
        &self.0[0]
    }

    /// Returns the parts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Output<T>> {
        self.0.iter()
    }

    /// Applies a function to each part and collects all errors.
    pub(crate) fn each<U>(&self, of: impl Fn(&Output<T>) -> Result<U>) -> Result<Vec<U>> {
        let mut problems = Problems::default();
        let all = self.0.iter().filter_map(|output| problems.note(of(output))).collect();
        problems.check().map(|()| all)
    }
}

/// Groups adjacent items that belong together.
pub(crate) fn grouped<U>(all: Vec<U>, same: impl Fn(&U, &U) -> bool) -> Vec<Vec<U>> {
    let mut groups: Vec<Vec<U>> = vec![];
    for one in all {
        match groups.last_mut() {
            Some(group) if same(&group[0], &one) => group.push(one),
            _ => groups.push(vec![one]),
        }
    }
    groups
}

/// Merges lists that have one entry per item of each part, in the order of the whole job.
pub(crate) fn in_order<U>(parts: Vec<Vec<U>>) -> impl Iterator<Item = U> {
    let mut parts: Vec<std::vec::IntoIter<U>> = parts.into_iter().map(Vec::into_iter).collect();
    let mut next = 0;
    std::iter::from_fn(move || {
        let count = parts.len();
        let item = parts.get_mut(next)?.next();
        next = (next + 1) % count;
        item
    })
}

/// Returns the error for an unfinished part. `what` is its progress, as in "3 of 5 problems are answered".
pub(crate) fn unfinished<T>(output: &Output<T>, what: impl std::fmt::Display) -> Error {
    let part = output.record.part;
    let hint = format!(
        "Run its command again with --part {part} --out {}, then join again",
        output.path.display()
    );
    refused(&output.path, format!("part {part} is not finished: {what}"), hint)
}

fn output<T: DeserializeOwned>(path: &Path, record: &Path) -> Result<Output<T>> {
    match read(record)? {
        Some(record) => Ok(Output { path: path.to_owned(), record }),
        None if path.exists() => Err(refused(
            path,
            "it is not a part of a divided job",
            "Give the outputs of commands with --part",
        )),
        None => Err(Error::io("read", path, std::io::ErrorKind::NotFound.into())),
    }
}

/// Refuses a part that belongs to another job than the first.
fn go_together<T>(first: &Output<T>, output: &Output<T>) -> Result<()> {
    let (there, here) = (&first.record, &output.record);
    let other = first.path.display();
    let mut changes = vec![];
    if there.part.of() != here.part.of() {
        changes.push(format!("it is part {}, and that one is part {}", here.part, there.part));
    }
    changes.extend(differences(&there.settings, &here.settings, ""));
    changes.extend(differences(&there.job, &here.job, ""));
    if (there.items, &there.sha256) != (here.items, &here.sha256) {
        changes.push(match there.items == here.items {
            true => "its data differ".into(),
            false => format!("its data differ: {} items, not {}", here.items, there.items),
        });
    }
    if changes.is_empty() {
        return Ok(());
    }
    let what = format!("it belongs to another job than {other}: {}", changes.join(", "));
    Err(refused(&output.path, what, "Give the parts of one job"))
}

/// Refuses a part that was already given.
fn is_new<T>(parts: &[Output<T>], output: &Output<T>) -> Result<()> {
    let part = output.record.part;
    match parts.iter().find(|known| known.record.part == part) {
        None => Ok(()),
        Some(known) => {
            let what = format!("it is part {part}, and so is {}", known.path.display());
            Err(refused(&output.path, what, "Give each part once"))
        }
    }
}

/// Returns the first names, followed by the number of the rest.
pub(crate) fn first_names(names: impl IntoIterator<Item = String>, between: &str) -> String {
    const SHOWN: usize = 8;
    let mut names = names.into_iter();
    let mut text = names.by_ref().take(SHOWN).collect::<Vec<_>>().join(between);
    match names.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// Refuses an incomplete set of parts.
fn none_missing<T>(of: usize, parts: &[Output<T>]) -> Result<()> {
    let there: std::collections::BTreeSet<usize> =
        parts.iter().map(|output| output.record.part.number()).collect();
    let missing = of - there.len();
    if missing == 0 {
        return Ok(());
    }
    let names = (1..=of).filter(|number| !there.contains(number));
    let text = first_names(names.map(|number| format!("{number}/{of}")), ", ");
    let what = match missing {
        1 => format!("part {text} is missing"),
        _ => format!("parts {text} are missing"),
    };
    let hint = "Create the missing parts with the same command, each with its own --part and \
                output, and include them";
    Err(Error::config("join", what, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(part: &str, items: usize) -> PartRecord<usize> {
        let part = part.parse().unwrap();
        PartRecord::new(part, json!({ "model": "m" }), json!({ "samples": 1 }), 0..items).unwrap()
    }

    #[test]
    fn parts_have_every_item_in_order() {
        for (items, of) in [(7, 3), (2, 5), (0, 2), (6, 1)] {
            let parts = (1..=of).map(|number| record(&format!("{number}/{of}"), items).own);
            assert!(in_order(parts.collect()).eq(0..items), "{items} items in {of} parts");
        }
    }

    #[test]
    fn what_belongs_together_is_one_item() {
        let tens = |a: &usize, b: &usize| a / 10 == b / 10;
        assert_eq!(grouped(vec![1, 2, 11, 30, 31], tens), [vec![1, 2], vec![11], vec![30, 31]]);
        assert!(grouped(vec![], tens).is_empty());
    }

    #[test]
    fn what_is_no_whole_job_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let keep = |name: &str, record: &PartRecord<usize>| {
            std::fs::write(place(name), "").unwrap();
            record.keep(&place(&format!("{name}.{PART}"))).unwrap();
        };
        let join = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(|name| place(name)).collect();
            let beside = |path: &Path| {
                let name = path.file_name().unwrap().to_string_lossy();
                path.with_file_name(format!("{name}.{PART}"))
            };
            let parts = Parts::<usize>::read(&paths, beside);
            parts.map(|parts| parts.0.len()).map_err(|error| error.to_string())
        };
        (1..=3).for_each(|i| keep(&format!("p{i}"), &record(&format!("{i}/3"), 7)));
        assert_eq!(join(&["p3", "p1", "p2"]), Ok(3));
        let refused = |names: &[&str], expected: &[&str]| {
            let error = join(names).unwrap_err();
            assert!(expected.iter().all(|text| error.contains(text)), "{error}");
        };
        refused(&["p1", "p3"], &["part 2/3 is missing"]);
        refused(&["p2"], &["parts 1/3, 3/3 are missing"]);
        refused(&["p1", "p2", "p3", "p2"], &["p2: it is part 2/3, and so is ", "each part once"]);
        keep("more", &record("3/3", 8));
        refused(
            &["p1", "p2", "more"],
            &["more: it belongs to another job", "8 items, not 7", "3/3 is missing"],
        );
        keep("four", &record("3/4", 7));
        refused(
            &["p1", "p2", "p3", "four"],
            &["four: it belongs to another job", "it is part 3/4, and that one is part 1/3"],
        );
        keep("other", &PartRecord { settings: json!({ "model": "n" }), ..record("2/3", 7) });
        refused(
            &["p1", "other", "p3"],
            &["other: it belongs to another job", "model was \"m\", is \"n\""],
        );
        keep("changed", &PartRecord { own: vec![1, 5], ..record("2/3", 7) });
        refused(&["p1", "changed", "p3"], &["do not have all of 7 items"]);
        std::fs::write(place("mine"), "").unwrap();
        refused(&["p1", "p2", "mine"], &["mine: it is not a part"]);
        refused(&["p1", "p2", "p3", "nowhere"], &["cannot read", "nowhere"]);
        std::fs::write(place(&format!("mine.{PART}")), "{}").unwrap();
        refused(&["mine"], &["does not say which part"]);
        // A record that is too large is not read at all.
        let long = File::create(place(&format!("mine.{PART}"))).unwrap();
        long.set_len((1 << 30) + 1).unwrap();
        refused(&["mine"], &["it has 1073741825 bytes, too many"]);
    }

    #[test]
    fn an_output_stays_that_of_its_part() {
        let folder = tempfile::tempdir().unwrap();
        let (output, path) = (folder.path(), folder.path().join(PART));
        let check = |part: Option<&str>, is_begun| {
            let part = part.map(|part| part.parse().unwrap());
            check_part(output, &path, part, is_begun).map_err(|error| error.to_string())
        };
        assert!(check(None, true).is_ok() && check(Some("1/2"), false).is_ok());
        assert!(check(Some("1/2"), true).unwrap_err().contains("not a part of a divided job"));
        record("2/3", 7).keep(&path).unwrap();
        assert!(check(Some("2/3"), true).is_ok());
        assert!(check(Some("1/3"), true).unwrap_err().contains("it is part 2/3, not part 1/3"));
        assert!(check(None, true).unwrap_err().contains("it is part 2/3 of a divided job"));
        // The job may have grown, but its settings may not change.
        record("2/3", 9).keep(&path).unwrap();
        let other = PartRecord { settings: json!({ "model": "n" }), ..record("2/3", 9) };
        assert!(other.keep(&path).unwrap_err().to_string().contains("model was \"m\", is \"n\""));
    }
}
