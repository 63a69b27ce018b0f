//! A directory that one process at a time works in. A mark identifies it, so that nothing is written among
//! unrelated files.

use super::lock::{FolderLock, LOCK, LOCK_PROBE};
use super::{PART, remove_file, write_text, write_whole};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Written and removed again, to test whether a directory is writable.
const PROBE: &str = ".write-probe";

/// A kind of directory.
#[derive(Clone, Copy, Debug)]
pub struct WorkDirKind {
    /// The owner of its files, as in "it holds files that are not a run's".
    pub owner: &'static str,
    /// The name of the file that marks a directory of this kind.
    pub mark: &'static str,
    /// Whether a directory without the mark is of this kind as well, such as those of versions before the
    /// mark.
    pub is_unmarked: fn(&Path) -> bool,
}

impl WorkDirKind {
    /// Creates a kind whose directories all have the mark.
    pub const fn new(owner: &'static str, mark: &'static str) -> Self {
        Self { owner, mark, is_unmarked: |_| false }
    }

    /// Adds a rule for directories without the mark.
    pub const fn or_unmarked(self, is_unmarked: fn(&Path) -> bool) -> Self {
        Self { is_unmarked, ..self }
    }

    /// Returns whether a directory is of this kind.
    pub fn holds(&self, path: &Path) -> bool {
        path.join(self.mark).is_file() || (self.is_unmarked)(path)
    }

    /// Returns whether a file may be left over from a process that was killed before it set the mark.
    fn is_leftover(&self, name: &std::ffi::OsStr) -> bool {
        // The second name is that of earlier versions.
        let mark_on_its_way = [format!(".{}.new", self.mark), format!(".{}", self.mark)];
        let is = |leftover: &String| name == &**leftover;
        name == PROBE
            || name == LOCK
            // Written before the mark if the mark would make the part a started one.
            || name == PART
            || is(&format!(".{PART}.new"))
            || name.to_string_lossy().starts_with(LOCK_PROBE)
            || is(&format!(".{}.lock", self.mark))
            || mark_on_its_way.iter().any(is)
    }

    /// Performs the checks of [`WorkDir::open`] without creating or changing anything.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if the path is not a directory, has other files, or is used by another
    /// process; [`Error::Io`].
    pub fn check(&self, path: &Path) -> Result<()> {
        self.check_files(path)?;
        if path.join(LOCK).is_file() {
            drop(FolderLock::take(path)?);
        }
        Ok(())
    }

    /// Like [`WorkDirKind::check`], regardless of other processes.
    pub(crate) fn check_files(&self, path: &Path) -> Result<()> {
        let refuse = |what: String, hint: &str| {
            Err(Error::RunDirectory { path: path.to_owned(), what, hint: hint.to_owned() })
        };
        let read = |e| Error::io("read", path, e);
        if path.exists() && !path.is_dir() {
            return refuse("it is not a directory".into(), "Choose another path");
        }
        if path.is_dir() && !self.holds(path) {
            for entry in fs::read_dir(path).map_err(read)? {
                let is_other = !self.is_leftover(&entry.map_err(read)?.file_name());
                // A process that shares the directory may have marked it in the meantime.
                if is_other && !self.holds(path) {
                    let what = format!("it holds files that are not {}", self.owner);
                    return refuse(what, "Choose an empty directory");
                }
            }
        }
        Ok(())
    }
}

/// A directory that only this process works in. Clones share it. If this process created the directory and
/// left it empty, the directory is removed when the last clone is dropped.
///
/// ```
/// use mixdistill::files::{WorkDir, WorkDirKind};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("curves");
/// const CURVES: WorkDirKind = WorkDirKind::new("learning curves", ".curves");
/// let directory = WorkDir::open(&path, CURVES)?;
/// directory.set_mark("")?;
/// directory.write_json("first.json", &[3.1, 2.7])?;
/// assert!(WorkDir::open(&path, CURVES).is_err(), "in use");
/// # Ok::<(), mixdistill::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct WorkDir(Arc<Taken>);

/// A locked directory.
#[derive(Debug)]
struct Taken {
    path: PathBuf,
    kind: WorkDirKind,
    /// Directories that were created for it, deepest first.
    made: Vec<PathBuf>,
    lock: Option<FolderLock>,
}

impl WorkDir {
    /// Locks a directory and creates it if necessary. Does not set the mark.
    ///
    /// # Errors
    /// See [`WorkDirKind::check`]; [`Error::Io`] if it is not writable.
    pub fn open(path: &Path, kind: WorkDirKind) -> Result<Self> {
        kind.check(path)?;
        let directory = Self::made(path, kind)?;
        Self::locked(directory, FolderLock::take(path))
    }

    /// Opens a directory that several processes share. Each makes sure that no two of them write the same
    /// file. The directory is not removed if it is left empty.
    ///
    /// # Errors
    /// See [`WorkDir::open`]; [`Error::RunDirectory`] if a process uses it exclusively.
    pub(crate) fn open_shared(path: &Path, kind: WorkDirKind) -> Result<Self> {
        kind.check_files(path)?;
        let mut directory = Self::made(path, kind)?;
        directory.made.clear();
        Self::locked(directory, FolderLock::take_shared(path))
    }

    fn locked(mut taken: Taken, lock: Result<FolderLock>) -> Result<Self> {
        taken.lock = Some(lock?);
        Ok(Self(Arc::new(taken)))
    }

    /// Creates the directory and checks that it is writable.
    fn made(path: &Path, kind: WorkDirKind) -> Result<Taken> {
        let ancestors = path.ancestors().filter(|folder| !folder.as_os_str().is_empty());
        let made = ancestors.take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))?;
        let taken = Taken { path: path.to_owned(), kind, made, lock: None };
        let probe = path.join(PROBE);
        fs::write(&probe, b"").map_err(|e| Error::io("write to", path, e))?;
        remove_file(&probe)?;
        Ok(taken)
    }

    /// Like [`WorkDir::open`], and sets an empty mark if there is none.
    ///
    /// # Errors
    /// See [`WorkDir::open`].
    pub fn open_marked(path: &Path, kind: WorkDirKind) -> Result<Self> {
        let directory = Self::open(path, kind)?;
        if !directory.is_marked() {
            directory.set_mark("")?;
        }
        Ok(directory)
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the path of a file in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path.join(name)
    }

    /// Returns whether the directory is of its kind already, because a process worked in it before.
    pub fn is_marked(&self) -> bool {
        self.0.kind.holds(&self.0.path)
    }

    /// Sets the mark, with a text as its content. Set it before writing anything else, so that the files of a
    /// killed process can be identified.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_mark(&self, text: &str) -> Result<()> {
        self.write(self.0.kind.mark, text)
    }

    /// Writes a text file atomically.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write_text(&self.join(name), text)
    }

    /// Writes a file atomically.
    ///
    /// # Errors
    /// [`Error::Io`]; errors of `fill`.
    pub fn write_with(
        &self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
    ) -> Result<()> {
        write_whole(&self.join(name), fill)
    }

    /// Writes a value as indented JSON.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value);
        let text = text.map_err(|e| Error::io("write", self.join(name), e.into()))?;
        self.write(name, &(text + "\n"))
    }

    /// Writes values as JSONL.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_jsonl<T: Serialize>(&self, name: &str, values: &[T]) -> Result<()> {
        self.write_with(name, |file| {
            values.iter().try_for_each(|value| self.write_line(name, file, value))
        })
    }

    /// Writes one value as a JSON line to an open file. `name` is used in errors.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_line(
        &self,
        name: &str,
        file: &mut impl Write,
        value: &impl Serialize,
    ) -> Result<()> {
        let failed = |e| Error::io("write", self.join(name), e);
        serde_json::to_writer(&mut *file, value).map_err(|e| failed(e.into()))?;
        file.write_all(b"\n").map_err(failed)
    }

    /// Removes a file if it exists.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<()> {
        remove_file(&self.join(name))
    }
}

impl Taken {
    /// Returns whether the directory has nothing but its lock and mark.
    fn is_empty(&self) -> bool {
        let Ok(mut entries) = fs::read_dir(&self.path) else { return false };
        let own = |name: &std::ffi::OsStr| name == LOCK || name == self.kind.mark;
        entries.all(|entry| entry.is_ok_and(|entry| own(&entry.file_name())))
    }

    /// Removes the created directories, up to the first that is not empty.
    fn remove_made(&self) {
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Failures to remove are harmless. A directory that another process locked is left to that process.
        if self.lock.is_none() {
            self.remove_made();
        }
        if self.lock.is_none() || self.made.is_empty() || !self.is_empty() {
            return;
        }
        let _ = fs::remove_file(self.path.join(self.kind.mark));
        if fs::remove_file(self.path.join(LOCK)).is_err() {
            // Some systems cannot remove an open file.
            self.lock = None;
            let _ = fs::remove_file(self.path.join(LOCK));
        }
        self.remove_made();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: WorkDirKind =
        WorkDirKind::new("a test's", ".mark").or_unmarked(|path| path.join("old.txt").is_file());

    fn refusal(path: &Path) -> String {
        let error = KIND.check(path).unwrap_err();
        assert_eq!(WorkDir::open(path, KIND).unwrap_err().to_string(), error.to_string());
        error.to_string()
    }

    #[test]
    fn other_files_and_no_directories_are_refused_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notes.txt");
        fs::write(&file, "mine").unwrap();
        assert!(refusal(folder.path()).contains("files that are not a test's"));
        assert!(refusal(&file).contains("not a directory"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Other files are fine beside a mark, or beside files from before there were marks.
        for sign in [".mark", "old.txt"] {
            fs::write(folder.path().join(sign), "").unwrap();
            assert!(WorkDir::open(folder.path(), KIND).unwrap().is_marked());
            fs::remove_file(folder.path().join(sign)).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn one_at_a_time_takes_it_and_an_empty_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("b");
        KIND.check(&path).unwrap();
        assert!(!folder.path().join("a").exists());
        let first = WorkDir::open(&path, KIND).unwrap();
        assert!(!first.is_marked());
        assert!(refusal(&path).contains("another process"));
        let clone = first.clone();
        drop(first);
        assert!(refusal(&path).contains("another process"));
        clone.set_mark("today").unwrap();
        drop(clone);
        assert!(!folder.path().join("a").exists(), "made and left empty");
        let second = WorkDir::open(&path, KIND).unwrap();
        second.set_mark("").unwrap();
        second.write_jsonl("rows.jsonl", &[1, 2]).unwrap();
        drop(second);
        assert_eq!(fs::read_to_string(path.join("rows.jsonl")).unwrap(), "1\n2\n");
        // A directory that existed before is kept, even if it is empty.
        fs::remove_file(path.join("rows.jsonl")).unwrap();
        drop(WorkDir::open(&path, KIND).unwrap());
        assert!(path.join(".mark").is_file());
    }

    #[test]
    fn what_a_killed_beginning_leaves_is_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in [PROBE, LOCK, PART, "..mark.new", ".lock-probe-1-2"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(!WorkDir::open(folder.path(), KIND).unwrap().is_marked());
    }
}
