//! The files that rows are read from: a local file, or those of a dataset on the Hugging Face Hub.

use super::unpacked::{Packing, format_of_name, stem_of_name};
use crate::context::Context;
use crate::error::{Error, Place, Result};
use crate::files::{WorkDir, read_if_there};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Formats of rows, by file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Parquet,
    Json,
    Csv,
    Tsv,
}

/// The formats, for messages.
#[cfg(feature = "hub")]
pub(crate) const READABLE: &str = "Parquet, JSONL, JSON, CSV and TSV";

impl FileKind {
    /// Returns the format of a file name, compressed or not.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let name = Path::new(name);
        match format_of_name(name).as_str() {
            "parquet" if Packing::named(name).is_none() => Some(Self::Parquet),
            "jsonl" | "ndjson" | "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            _ => None,
        }
    }
}

/// The files that rows are read from, in sequence, as if they were one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    name: PathBuf,
    stem: String,
    files: Vec<PathBuf>,
}

impl DataFiles {
    /// Finds the files of a path or, with the feature `hub`, of a dataset on the Hugging Face Hub. The files
    /// of a dataset are all downloaded into the usual cache before the first one is read. Local paths take
    /// precedence.
    ///
    /// A dataset is named `owner/name`, optionally followed by `@revision`, and then by `/file`, `:split`,
    /// or `:subset:split`. See `hub::HubDataset`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file; [`Error::Data`] if the Hub does not have the dataset, the
    /// feature is not compiled in, or several splits match, which are listed; [`Error::Stopped`].
    pub fn find(name: &Path, context: &Context<'_>) -> Result<Self> {
        Self::check(name)?;
        if Self::is_here(name) {
            return Ok(Self::file(name));
        }
        #[cfg(feature = "hub")]
        {
            let dataset = crate::hub::HubDataset::parse(&name.to_string_lossy())?;
            let fetched = dataset.fetch(context)?;
            let stem = fetched.dataset.stem();
            let name = fetched.dataset.to_string().into();
            Ok(Self { name, stem, files: fetched.files })
        }
        #[cfg(not(feature = "hub"))]
        {
            let _ = context;
            unreachable!("what is not here is refused")
        }
    }

    /// Resolves a name that an earlier process read as `earlier` (see [`DataFiles::name`]): a dataset
    /// without a revision in its name stays at the commit that was read then.
    pub fn as_before(name: &Path, earlier: &Path) -> PathBuf {
        #[cfg(feature = "hub")]
        if !Self::is_here(name)
            && let Ok(dataset) = crate::hub::HubDataset::parse(&name.to_string_lossy())
            && let Ok(then) = crate::hub::HubDataset::parse(&earlier.to_string_lossy())
            && dataset.is_unpinned(&then)
        {
            return earlier.to_owned();
        }
        #[cfg(not(feature = "hub"))]
        let _ = earlier;
        name.to_owned()
    }

    /// Returns a single local file.
    pub fn file(path: &Path) -> Self {
        Self { name: path.to_owned(), stem: stem_of_name(path), files: vec![path.to_owned()] }
    }

    /// Checks that a file is readable or a name may be a dataset, without a request to the Hub.
    ///
    /// # Errors
    /// See [`DataFiles::find`].
    pub fn check(name: &Path) -> Result<()> {
        if !Self::is_here(name) {
            return match cfg!(feature = "hub") {
                #[cfg(feature = "hub")]
                true => crate::hub::HubDataset::parse(&name.to_string_lossy()).map(|_| ()),
                #[cfg(not(feature = "hub"))]
                true => Ok(()),
                false => Err(Error::data(
                    Place::file(name),
                    "there is no such file, and this build does not read datasets from the Hugging Face Hub",
                    "Check the path, or use a build with the feature `hub` to read owner/name",
                )),
            };
        }
        // Do not open a pipe, whose content can be read only once.
        let open = || match std::fs::metadata(name)?.is_file() {
            true => File::open(name).map(|_| ()),
            false => Ok(()),
        };
        open().map_err(|e| Error::io("read", name, e))
    }

    /// Returns the later value of [`DataFiles::stem`], without a request to the Hub.
    pub(crate) fn stem_of(name: &Path) -> String {
        #[cfg(feature = "hub")]
        if !Self::is_here(name)
            && let Ok(dataset) = crate::hub::HubDataset::parse(&name.to_string_lossy())
        {
            return dataset.stem();
        }
        Self::file(name).stem
    }

    /// Returns whether a name is a local path: it exists, or it cannot be the name of a dataset.
    fn is_here(name: &Path) -> bool {
        let Some(text) = name.to_str() else { return true };
        if text.starts_with("hf://") {
            return false;
        }
        let (first, rest) = text.split_once('/').unwrap_or(("", text));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_owner = !first.is_empty() && !first.starts_with('.') && first.chars().all(is_plain);
        // `data/long.jsonl` is a missing file, and so is any missing path in an existing folder.
        let is_file = !rest.contains(['/', ':', '@']) && FileKind::of(rest).is_some();
        name.exists() || !is_owner || is_file || Path::new(first).is_dir()
    }

    /// Returns the requested name. For a dataset, with the commit that was read.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Returns a short name: the file name without extensions, or the name of a dataset with subset and
    /// split.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// Returns the files, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Names of datasets on the Hub, with the commits that were read. A directory that several processes work
/// in, one after another, records them and keeps using the same commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Datasets(BTreeMap<PathBuf, PathBuf>);

impl Datasets {
    const FILE: &'static str = "datasets.json";

    /// Reads the datasets that a directory recorded.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::RunDirectory`] if they cannot be parsed.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let path = directory.join(Self::FILE);
        let Some(text) = read_if_there(&path)? else { return Ok(Self::default()) };
        serde_json::from_str(&text).map(Self).map_err(|e| Error::RunDirectory {
            path,
            what: format!("it cannot be read: {e}"),
            hint: "Fix the file, or choose another directory".into(),
        })
    }

    /// Returns the name to read for a requested name.
    pub(crate) fn at<'a>(&'a self, name: &'a Path) -> &'a Path {
        self.0.get(name).map_or(name, PathBuf::as_path)
    }

    /// Finds the files of a name at the recorded commit.
    ///
    /// # Errors
    /// See [`DataFiles::find`].
    pub(crate) fn find(&mut self, name: &Path, context: &Context<'_>) -> Result<DataFiles> {
        let files = DataFiles::find(self.at(name), context)?;
        self.note(name, files.name());
        Ok(files)
    }

    /// Records what was read for a name, if it differs.
    pub(crate) fn note(&mut self, name: &Path, read: &Path) {
        if name != read && self.at(name) != read {
            self.0.insert(name.to_owned(), read.to_owned());
        }
    }

    /// Writes the records, if there are any.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, directory: &WorkDir) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { directory.write_json(Self::FILE, &self.0) }
    }
}

/// Returns the name of one of several files, for messages.
pub(crate) fn short_name(path: &Path) -> String {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_endings() {
        for (name, kind) in [
            ("a.parquet", Some(FileKind::Parquet)),
            ("A.JSONL", Some(FileKind::Json)),
            ("a.b.json.gz", Some(FileKind::Json)),
            ("a.csv.zst", Some(FileKind::Csv)),
            ("a.tsv", Some(FileKind::Tsv)),
            ("a.parquet.gz", None),
            ("a.gz", None),
            ("jsonl", None),
            ("README.md", None),
        ] {
            assert_eq!(FileKind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn paths_are_told_from_names_on_the_hub() {
        for path in
            ["long.jsonl", "./a/b", "/a/b", "src/a/b", "../a/b", "data/long.jsonl", "a", "ä/b"]
        {
            assert!(DataFiles::is_here(Path::new(path)), "{path}");
        }
        for name in [
            "owner/name",
            "owner/name:train",
            "owner/name@v1/data/a.jsonl",
            "owner/name/a.jsonl",
            "hf://datasets/a/b",
            "owner/name.jsonl:train",
        ] {
            assert!(!DataFiles::is_here(Path::new(name)), "{name}");
        }
    }
}
