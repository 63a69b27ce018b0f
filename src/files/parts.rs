//! A job that several processes divide: what each says beside its output of the part that it is, and what is
//! looked at before the outputs are put together.
//!
//! ```text
//! a/part.json   {"part": "1/2", "settings": …, "job": …, "items": 3, "sha256": …, "own": [item 0, item 2]}
//! b/part.json   {"part": "2/2", …                                                  "own": [item 1]}
//! ```
//!
//! The items of the whole job, such as problems, are hashed in their order: parts with the same hash are of the
//! same items, and together they have all of them.

use super::settings::refuse_other;
use super::{differences, write_text};
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

/// The name of a record in a directory, and the ending of one beside a file.
pub(crate) const PART: &str = "part.json";

/// What the output of a part says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartRecord<T> {
    /// Which it is.
    pub part: Part,
    /// What the output depends on: the same in all parts, and whenever a part goes on.
    pub settings: Value,
    /// What else is the same in all parts; a part that goes on may have others.
    pub job: Value,
    /// Items of the whole job.
    items: usize,
    /// SHA-256 of all of them in their order.
    sha256: String,
    /// Those of the part, in their order.
    pub own: Vec<T>,
}

/// Hashes items one after the other.
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
    /// A part of a job with these items.
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

    /// Writes the record of an output, which [`check_part`] lets be this part's.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] where it was begun with other settings; [`Error::Io`].
    pub(crate) fn keep(&self, record: &Path) -> Result<()> {
        if let Some(then) = read::<Settings>(record)? {
            let hint = "Choose another output, or go on with the settings of this one";
            refuse_other(record, &then.settings, &self.settings, hint)?;
        }
        let text = serde_json::to_string(self).map_err(|e| Error::io("write", record, e.into()))?;
        write_text(record, &(text + "\n"))
    }
}

/// What is read of a record to go on with it.
#[derive(Deserialize)]
struct Settings {
    part: Part,
    settings: Value,
}

/// What a record says, where there is one.
fn read<R: DeserializeOwned>(path: &Path) -> Result<Option<R>> {
    /// Far more than any record has.
    const LONGEST: u64 = 1 << 30;
    let read = |e| Error::io("read", path, e);
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // The output may be a file where a directory is meant.
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        file => file.map_err(read)?,
    };
    let length = file.metadata().map_err(read)?.len();
    if length > LONGEST {
        let what = format!("it has {length} bytes, and no record of a part has so many");
        return Err(Error::data(Place::file(path), what, "Make the part anew in another place"));
    }
    let mut text = vec![];
    file.take(LONGEST).read_to_end(&mut text).map_err(read)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        let what = format!("it does not say what part this is: {e}");
        Error::data(Place::file(path), what, "Make the part anew in another place")
    })
}

/// Refuses an output, by what is wrong with it.
pub(crate) fn refused(output: &Path, what: impl Into<String>, hint: impl Into<String>) -> Error {
    let (what, hint) = (what.into(), hint.into());
    match output.is_dir() {
        true => Error::RunDirectory { path: output.to_owned(), what, hint },
        false => Error::data(Place::file(output), what, hint),
    }
}

/// Refuses an output that is of another part than `part`, or of a part where none is made, or of the whole where
/// one is; `is_begun` says whether there is anything in it.
///
/// # Errors
/// [`Error::RunDirectory`], of a file [`Error::Data`].
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
            format!("Go on with part {there}, or give part {part} an output of its own"),
        ),
        (Some(there), None) => (
            format!("it is part {there} of a job that is divided"),
            format!("Join the parts first, or go on with part {there}"),
        ),
        (None, Some(part)) if is_begun => (
            "it holds what is no part of a job".into(),
            format!("Give part {part} an output of its own"),
        ),
        _ => return Ok(()),
    };
    Err(refused(output, what, hint))
}

/// A part, and where it is.
pub(crate) struct Output<T> {
    pub path: PathBuf,
    pub record: PartRecord<T>,
}

/// All parts of a job, in the order of their numbers.
pub(crate) struct Parts<T>(Vec<Output<T>>);

impl<T: Serialize + DeserializeOwned> Parts<T> {
    /// The parts with these outputs: all that there are, each once, of the same job. `record_of` says where the
    /// record of an output is.
    ///
    /// # Errors
    /// All that is wrong, by the outputs' names; [`Error::Config`] for parts that are missing.
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
            return Err(Error::config("join", "no part is named", "Name the outputs of all parts"));
        }
        parts.sort_by_key(|output| output.record.part.number());
        let parts = Self(parts);
        parts.check_items()?;
        Ok(parts)
    }

    /// Refuses records that were changed.
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
        let what = format!("what the parts say they have is not all of {items} items");
        Err(refused(&first.path, what, "A record was changed: make the parts anew"))
    }

    fn holder(&self, index: usize) -> &Output<T> {
        &self.0[index % self.0.len()]
    }

    /// What all of them have in common.
    pub(crate) fn first(&self) -> &Output<T> {
        &self.0[0]
    }

    /// The parts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Output<T>> {
        self.0.iter()
    }

    /// Something of each part, all errors together.
    pub(crate) fn each<U>(&self, of: impl Fn(&Output<T>) -> Result<U>) -> Result<Vec<U>> {
        let mut problems = Problems::default();
        let all = self.0.iter().filter_map(|output| problems.note(of(output))).collect();
        problems.check().map(|()| all)
    }
}

/// Things in groups of those beside each other that belong together.
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

/// What is there one for each item of its part, in the order of the whole job.
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

/// A part that is not at its end: so many of its things, as in "3 of 5 problems are answered".
pub(crate) fn unfinished<T>(output: &Output<T>, what: impl std::fmt::Display) -> Error {
    let part = output.record.part;
    let hint = format!(
        "Call what has begun it once more, with --part {part} --out {}, then join again",
        output.path.display()
    );
    refused(&output.path, format!("part {part} is not finished: {what}"), hint)
}

fn output<T: DeserializeOwned>(path: &Path, record: &Path) -> Result<Output<T>> {
    match read(record)? {
        Some(record) => Ok(Output { path: path.to_owned(), record }),
        None if path.exists() => Err(refused(
            path,
            "it is no part of a job that is divided",
            "Name what calls with --part have written",
        )),
        None => Err(Error::io("read", path, std::io::ErrorKind::NotFound.into())),
    }
}

/// Refuses a part of another job than the first.
fn go_together<T>(first: &Output<T>, output: &Output<T>) -> Result<()> {
    let (there, here) = (&first.record, &output.record);
    let other = first.path.display();
    let mut changes = vec![];
    if there.part.of() != here.part.of() {
        changes.push(format!("it is part {}, and that is part {}", here.part, there.part));
    }
    changes.extend(differences(&there.settings, &here.settings, ""));
    changes.extend(differences(&there.job, &here.job, ""));
    if (there.items, &there.sha256) != (here.items, &here.sha256) {
        changes.push(match there.items == here.items {
            true => "its data are others".into(),
            false => format!("its data are others: {} items, not {}", here.items, there.items),
        });
    }
    if changes.is_empty() {
        return Ok(());
    }
    let what = format!("it is of another job than {other}: {}", changes.join(", "));
    Err(refused(&output.path, what, "Name the parts of one job"))
}

/// Refuses a part that is there already.
fn is_new<T>(parts: &[Output<T>], output: &Output<T>) -> Result<()> {
    let part = output.record.part;
    match parts.iter().find(|known| known.record.part == part) {
        None => Ok(()),
        Some(known) => {
            let what = format!("it is part {part}, and so is {}", known.path.display());
            Err(refused(&output.path, what, "Name each part once"))
        }
    }
}

/// Names, as far as there are few, and how many more there are.
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

/// Refuses parts of which some are not there.
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
    let hint = "Make what is missing with the call of the other parts, each with its own part and \
                output, and name it too";
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
            &["more: it is of another job", "8 items, not 7", "3/3 is missing"],
        );
        keep("four", &record("3/4", 7));
        refused(
            &["p1", "p2", "p3", "four"],
            &["four: it is of another job", "it is part 3/4, and that is part 1/3"],
        );
        keep("other", &PartRecord { settings: json!({ "model": "n" }), ..record("2/3", 7) });
        refused(
            &["p1", "other", "p3"],
            &["other: it is of another job", "model was \"m\", is \"n\""],
        );
        keep("changed", &PartRecord { own: vec![1, 5], ..record("2/3", 7) });
        refused(&["p1", "changed", "p3"], &["not all of 7 items"]);
        std::fs::write(place("mine"), "").unwrap();
        refused(&["p1", "p2", "mine"], &["mine: it is no part"]);
        refused(&["p1", "p2", "p3", "nowhere"], &["cannot read", "nowhere"]);
        std::fs::write(place(&format!("mine.{PART}")), "{}").unwrap();
        refused(&["mine"], &["does not say what part"]);
        // One that is too long is not read at all.
        let long = File::create(place(&format!("mine.{PART}"))).unwrap();
        long.set_len((1 << 30) + 1).unwrap();
        refused(&["mine"], &["it has 1073741825 bytes, and no record"]);
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
        assert!(check(Some("1/2"), true).unwrap_err().contains("no part of a job"));
        record("2/3", 7).keep(&path).unwrap();
        assert!(check(Some("2/3"), true).is_ok());
        assert!(check(Some("1/3"), true).unwrap_err().contains("it is part 2/3, not part 1/3"));
        assert!(check(None, true).unwrap_err().contains("it is part 2/3 of a job"));
        // It may have more to do, but not under other settings.
        record("2/3", 9).keep(&path).unwrap();
        let other = PartRecord { settings: json!({ "model": "n" }), ..record("2/3", 9) };
        assert!(other.keep(&path).unwrap_err().to_string().contains("model was \"m\", is \"n\""));
    }
}
