//! Datasets on the Hub: selecting files and downloading them into the cache.

use super::client::{HubOptions, is_offline};
use super::data_card;
use super::fetch::{Commit, Lack, Wanted, fetch};
use super::names::{MAIN, RepoId, is_file, is_word};
use super::splits::{Selection, choose};
use crate::context::Context;
use crate::data::reading::stem_of_name;
use crate::error::{Error, Place, Result};
use hf_hub::RepoTypeDataset;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

const CARD: &str = "README.md";
/// The optional prefix of a name, as in Hugging Face's tools.
const ADDRESS: &str = "hf://datasets/";
const HINT: &str = "Write owner/name, then @revision unless it is main, then :split, :subset:split, or \
                    /file; for a local file, give a path that exists";

/// Files of a dataset on the Hugging Face Hub.
///
/// ```text
/// owner/name                      the only split
/// owner/name:test                 a split, or a subset with one split
/// owner/name:main:train           a split of a subset
/// owner/name@v1.0:train           a split at a branch, a tag, or a commit
/// owner/name/data/a.parquet       a file
/// owner/name@v1.0/data/*.jsonl    files that match a pattern
/// ```
///
/// In a revision before a `/file`, write a slash as `%2F`, except in `refs/pr/1` and `refs/convert/parquet`.
/// The prefix `hf://datasets/` is optional.
///
/// The list `configs` in the card says which files belong to a split. Without it, names decide, with the
/// rules of Hugging Face's `datasets`: `data/NAME-00000-of-00001...`, else `train`, `validation`, `test`, and
/// their usual synonyms in names of folders, else in names of files, else all files are `train`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataset {
    id: RepoId,
    has_revision: bool,
    selection: Selection,
}

/// Files of a dataset in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedDataset {
    /// The dataset, at the commit of the files.
    pub dataset: HubDataset,
    /// The files, in order.
    pub files: Vec<PathBuf>,
}

impl fmt::Display for HubDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RepoId { owner, name, revision } = &self.id;
        write!(f, "{owner}/{name}")?;
        match &self.selection {
            _ if !self.has_revision => {}
            Selection::File(_) if !is_special(revision) => {
                write!(f, "@{}", revision.replace('/', "%2F"))?;
            }
            _ => write!(f, "@{revision}")?,
        }
        match &self.selection {
            Selection::Any => Ok(()),
            Selection::Word(word) => write!(f, ":{word}"),
            Selection::Split { subset, split } => write!(f, ":{subset}:{split}"),
            Selection::File(file) => write!(f, "/{file}"),
        }
    }
}

/// Returns whether a revision with slashes can be distinguished from a file after it.
fn is_special(revision: &str) -> bool {
    special_length(revision) == Some(revision.len())
}

/// Returns the length in bytes of `refs/pr/1` or `refs/convert/parquet` at the start of a text.
fn special_length(text: &str) -> Option<usize> {
    let kind = ["refs/pr/", "refs/convert/"].iter().find(|kind| text.starts_with(**kind))?;
    let rest = &text[kind.len()..];
    let name = rest.split('/').next().filter(|name| is_word(name))?;
    Some(kind.len() + name.len())
}

/// Returns a revision and the file after it, if any.
fn revision_of(text: &str) -> (String, Option<&str>) {
    let end = special_length(text).or_else(|| text.find('/')).unwrap_or(text.len());
    let (revision, rest) = text.split_at(end);
    let revision = revision.replace("%2F", "/").replace("%2f", "/");
    (revision, rest.strip_prefix('/'))
}

/// Returns whether a text can be the name of a subset or a split.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && !text.contains(|c: char| c.is_control() || c == ':')
}

impl HubDataset {
    /// Parses the name of a dataset's files. See [`HubDataset`] for the forms.
    ///
    /// # Errors
    /// [`Error::Data`] for any other text.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parts(text).map_err(|what| {
            let shown = text.escape_debug().to_string();
            Error::data(Place::file(shown), what, HINT)
        })
    }

    fn parts(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix(ADDRESS).unwrap_or(text);
        let (place, label) = match text.split_once(':') {
            Some((place, label)) => (place, Some(label)),
            None => (text, None),
        };
        let (owner, rest) = place.split_once('/').unwrap_or(("", place));
        let end = rest.find(['@', '/']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, file) = match rest.strip_prefix('@') {
            // Without a file, slashes belong to the revision.
            Some(rest) if label.is_some() => (Some(rest.replace("%2F", "/")), None),
            Some(rest) => {
                let (revision, file) = revision_of(rest);
                (Some(revision), file)
            }
            None => (None, rest.strip_prefix('/')),
        };
        let id = RepoId::new(owner, name, revision.as_deref().unwrap_or(MAIN))?;
        let selection = match (label, file) {
            (None, None) => Selection::Any,
            (None, Some(file)) if is_file(file) => Selection::File(file.to_owned()),
            (Some(label), None) => match label.split_once(':') {
                None if is_label(label) => Selection::Word(label.to_owned()),
                Some((subset, split)) if is_label(subset) && is_label(split) => {
                    Selection::Split { subset: subset.to_owned(), split: split.to_owned() }
                }
                _ => return Err(format!("`{}` is not a split", label.escape_debug())),
            },
            (Some(_), Some(_)) => return Err("it has both a file and a split".into()),
            (None, Some(file)) => {
                return Err(format!(
                    "`{}` is not a valid file name on the Hub",
                    file.escape_debug()
                ));
            }
        };
        Ok(Self { id, has_revision: revision.is_some(), selection })
    }

    /// Returns whether this is `then` without its revision.
    pub(crate) fn is_unpinned(&self, then: &Self) -> bool {
        let names = |dataset: &Self| (dataset.id.owner.clone(), dataset.id.name.clone());
        !self.has_revision
            && then.has_revision
            && names(self) == names(then)
            && self.selection == then.selection
    }

    /// Returns a short name that is valid as a file name.
    pub(crate) fn stem(&self) -> String {
        let name = &self.id.name;
        let stem = match &self.selection {
            Selection::Any => name.clone(),
            Selection::Word(word) => format!("{name}-{word}"),
            Selection::Split { subset, split } => format!("{name}-{subset}-{split}"),
            Selection::File(file) => {
                stem_of_name(Path::new(file.rsplit('/').next().unwrap_or_default()))
            }
        };
        let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        stem.chars().map(plain).collect()
    }

    /// Downloads the files into the cache, all from one commit, and only what the cache lacks. If the Hub
    /// cannot be reached, if `HF_HUB_OFFLINE` is set, or if the revision is a commit that was downloaded
    /// before, the copy in the cache is used.
    ///
    /// # Errors
    /// [`Error::Data`] if the Hub refuses access or does not have the dataset, if the selection is ambiguous
    /// (with the choices), or if the connection fails and the cache has no complete copy; [`Error::Io`];
    /// [`Error::Stopped`]: downloaded files stay in the cache.
    pub fn fetch(&self, context: &Context<'_>) -> Result<FetchedDataset> {
        self.fetch_with(&HubOptions { offline: is_offline(), ..HubOptions::default() }, context)
    }

    /// Same as [`HubDataset::fetch`], with options that override the environment.
    ///
    /// # Errors
    /// Same as [`HubDataset::fetch`].
    pub fn fetch_with(&self, hub: &HubOptions, context: &Context<'_>) -> Result<FetchedDataset> {
        let fetched = fetch(self, hub, context)?;
        let at = Commit { folder: fetched.folder.clone(), list: &fetched.list };
        let files = self.chosen(&at)?.into_iter().map(|file| fetched.folder.join(file)).collect();
        let id = RepoId { revision: fetched.commit, ..self.id.clone() };
        Ok(FetchedDataset { dataset: Self { id, has_revision: true, ..self.clone() }, files })
    }

    /// Returns the names of the selected files.
    fn chosen(&self, at: &Commit<'_>) -> Result<Vec<String>> {
        let card = match self.selection {
            Selection::File(_) => vec![],
            // The card may be missing, and its content is not trusted.
            _ => match read_card(&at.folder.join(CARD)) {
                Ok(bytes) if bytes.len() > LARGEST_CARD => {
                    let what = format!("its {CARD} has more than {LARGEST_CARD} bytes");
                    return Err(self.error(what, "Choose the files with owner/name/FILE"));
                }
                Ok(bytes) => {
                    data_card::subsets(&String::from_utf8_lossy(&bytes)).map_err(|what| {
                        let what = format!("the front matter of its {CARD} cannot be read: {what}");
                        self.error(
                            what,
                            "Choose the files with owner/name/FILE or a pattern such as data/*.jsonl",
                        )
                    })?
                }
                Err(_) => vec![],
            },
        };
        let named = Self { selection: Selection::Any, ..self.clone() };
        let chosen = choose(&self.selection, &card, at.list, &named.to_string());
        chosen.map_err(|(what, hint)| self.error(what, &hint))
    }
}

/// Maximum size of a dataset's card in bytes. Real cards have some ten thousand.
const LARGEST_CARD: usize = 4 << 20;

/// Reads a card up to one byte more than the maximum size.
fn read_card(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    fs::File::open(path)?.take(LARGEST_CARD as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Wanted for HubDataset {
    type Kind = RepoTypeDataset;

    fn id(&self) -> &RepoId {
        &self.id
    }

    fn error(&self, what: String, hint: &str) -> Error {
        Error::data(Place::file(self.to_string()), what, hint)
    }

    fn needs_list(&self) -> bool {
        !matches!(&self.selection, Selection::File(file) if !file.contains(['*', '?', '[']))
    }

    fn gather(
        &self,
        at: &Commit<'_>,
        get: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<Option<Lack>> {
        if !matches!(self.selection, Selection::File(_)) && at.list.iter().any(|file| file == CARD)
        {
            get(CARD)?;
        }
        for file in self.chosen(at)? {
            if !get(&file)? {
                return Ok(Some((file, "Check the spelling, or choose another revision")));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for text in [
            "a/b",
            "a/b:train",
            "a/b:main:train",
            "a/b@v1",
            "a/b@v1:train",
            "a/b@x/y:train",
            "a/b@refs/convert/parquet:train",
            "a/b@refs/pr/1/data/x.jsonl",
            "a/b@x%2Fy/data/x.jsonl",
            "a/b/data/train-00000-of-00010.parquet",
            "a/b@v1/data/*.jsonl",
            "a/b/x y=1/é.json",
        ] {
            assert_eq!(HubDataset::parse(text).unwrap().to_string(), text);
        }
        let address = HubDataset::parse("hf://datasets/a/b@v1/c.jsonl").unwrap();
        assert_eq!(address.to_string(), "a/b@v1/c.jsonl");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b@",
            "a/b:",
            "a/b::train",
            "a/b:x:",
            "a/b:x:y:z",
            "a/b/",
            "a/b/../c",
            "a/b/c//d",
            "a/b/.c",
            "a/b\\c",
            "a/b/c\\d",
            "a/b@x/../y:z",
            "a/b@../c",
            "a b/c",
            "a/b/c.jsonl:train",
            "a/b:\n",
            "a/b/c\0",
            "https://huggingface.co/datasets/a/b",
        ] {
            let error = HubDataset::parse(text).expect_err(text).to_string();
            assert!(error.contains("owner/name") && !error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn stems_can_be_names_of_files() {
        for (text, stem) in [
            ("a/b", "b"),
            ("a/b@v1:test", "b-test"),
            ("a/b:x/y:test", "b-x-y-test"),
            ("a/b/data/test.parquet", "test"),
            ("a/b/data/*.jsonl", "-"),
            ("a/b/data/gsm8k.jsonl.gz", "gsm8k"),
        ] {
            assert_eq!(HubDataset::parse(text).unwrap().stem(), stem);
        }
    }
}
