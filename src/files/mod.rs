//! Directories that one process at a time works in, and files that are written completely or not at all.
//!
//! A [`WorkDir`] is locked while it is open, and its [`WorkDirKind`] marks it, so that nothing is written
//! among unrelated files. Its writes are atomic.
//!
//! ```
//! use mixdistill::files::{WorkDir, WorkDirKind};
//!
//! const REPORTS: WorkDirKind = WorkDirKind::new("a report's", ".report");
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("reports");
//! let directory = WorkDir::open_marked(&path, REPORTS)?;
//! directory.write("notes.txt", "done\n")?;
//! directory.write_jsonl("rows.jsonl", &[1, 2])?;
//! assert_eq!(std::fs::read_to_string(directory.join("rows.jsonl")).unwrap(), "1\n2\n");
//!
//! // The directory is locked until the last clone of `directory` is dropped.
//! assert!(WorkDir::open(&path, REPORTS).is_err());
//! # Ok::<(), mixdistill::Error>(())
//! ```

mod jsonl;
mod lock;
mod mounts;
mod parts;
mod settings;
mod work_dir;

pub(crate) use jsonl::{JsonlLog, LastLine, read_values};
pub(crate) use lock::{FolderLock, is_of_lock};
pub(crate) use mounts::locks_of_one_machine;
pub(crate) use parts::{
    Output, PART, PartRecord, Parts, check_part, first_names, grouped, in_order, refused,
    remove_record, unfinished,
};
pub(crate) use settings::{differences, same_settings};
pub use work_dir::{WorkDir, WorkDirKind};

use crate::error::{Error, Result};
use crate::text::hex;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// Writes a file atomically, even if power fails: first to a temporary file beside it, then renamed.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let failed = |e| Error::io("write", &beside, e);
    let mut file = BufWriter::new(File::create(&beside).map_err(failed)?);
    let done = fill(&mut file).and_then(|()| {
        file.flush().map_err(failed)?;
        file.get_ref().sync_all().map_err(failed)?;
        fs::rename(&beside, path).map_err(|e| Error::io("rename", &beside, e))
    });
    if done.is_err() {
        let _ = fs::remove_file(&beside);
        return done;
    }
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(Ok(()), flush_folder)
}

/// Like [`write_whole`], for a text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |file| {
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e))
    })
}

/// Serializes values as JSON lines. `path`, the destination, is used in errors.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn json_lines<T: serde::Serialize>(
    values: impl IntoIterator<Item = T>,
    path: &Path,
) -> Result<String> {
    let mut text = String::new();
    for value in values {
        let line = serde_json::to_string(&value).map_err(|e| Error::io("write", path, e.into()))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// Returns whether a file exists with this text, so that it need not be written.
///
/// # Errors
/// [`Error::Data`] with `hint` if it has other content; [`Error::Io`].
pub(crate) fn holds_text(path: &Path, text: &str, hint: &str) -> Result<bool> {
    match fs::read(path) {
        Ok(there) if there == text.as_bytes() => Ok(true),
        Ok(_) => {
            let what = "the file exists with other content";
            Err(Error::data(crate::Place::file(path), what, hint))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Makes the names in a folder durable. Systems that cannot open a folder do this themselves.
pub(crate) fn flush_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("flush", path, e))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Returns whether a file with this beginning is a Git LFS pointer, which a clone without Git LFS has in
/// place of a large file.
pub(crate) fn is_lfs_pointer(head: &[u8]) -> bool {
    head.starts_with(b"version https://git-lfs.github.com/spec/v1")
}

/// Returns whether a file with this beginning is a web page, for example because the page about a file was
/// downloaded.
pub(crate) fn is_web_page(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |tag: &[u8]| head.get(..tag.len()).is_some_and(|h| h.eq_ignore_ascii_case(tag));
    begins(b"<!doctype") || begins(b"<html")
}

/// Bytes at the beginning of a file that identify its type.
pub(crate) const HEAD: usize = 256;

/// Detects by its beginning that a file is a stand-in for the expected one. Returns what it is, and a hint.
pub(crate) fn stands_in(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if is_lfs_pointer(head) {
        return Some((
            "it is a Git LFS pointer, not the file itself",
            "Run `git lfs pull` in its folder, or download it again",
        ));
    }
    is_web_page(head).then_some((
        "it is a web page (HTML), not the file itself",
        "Download the file again from its raw or `resolve` URL; a login page may have been saved \
         instead",
    ))
}

/// Returns the beginning of a file.
pub(crate) fn head_of(path: &Path) -> Result<Vec<u8>> {
    let mut head = vec![];
    let read = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    read.map(|_| head).map_err(|e| Error::io("read", path, e))
}

/// Returns the text of a small file in a model folder, or `None` if there is none.
///
/// # Errors
/// [`Error::Io`], also for a file that is too large for its name; [`Error::Model`] for a Git LFS pointer or a
/// web page.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = bytes_if_there(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::io("read", path, std::io::Error::new(std::io::ErrorKind::InvalidData, e))
    })?;
    match stands_in(text.as_bytes()) {
        None => Ok(Some(text)),
        Some((what, hint)) => {
            Err(Error::Model { path: path.to_owned(), what: what.into(), hint: hint.into() })
        }
    }
}

/// Returns the content of a small file, or `None` if there is none, even if it is removed during the read.
///
/// # Errors
/// [`Error::Io`], also for a file that is too large for its name.
pub(crate) fn bytes_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    use std::io::ErrorKind::{NotFound, StaleNetworkFileHandle};
    const LARGEST: u64 = 64 << 20;
    let mut bytes = vec![];
    let read = File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        if length > LARGEST {
            let what = format!("it has {length} bytes, too many for a file with this name");
            return Err(std::io::Error::other(what));
        }
        // The file may grow in the meantime.
        file.take(LARGEST).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => Ok(Some(bytes)),
        // Network mounts report a stale handle if another machine removed the file.
        Err(e) if matches!(e.kind(), NotFound | StaleNetworkFileHandle) => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Returns the error for a run directory that disappeared.
pub(crate) fn gone(folder: &Path, step: usize) -> Error {
    Error::RunDirectory {
        path: folder.to_owned(),
        what: format!("it was removed or moved during the run, which had reached step {step}"),
        hint: "Resume the run in its new location if it was moved".into(),
    }
}

/// Removes a folder if it exists.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a file if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Returns the SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let read = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(read)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut block).map_err(read)? {
            0 => break,
            bytes => hash.update(&block[..bytes]),
        }
    }
    Ok(hex(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_goes_as_it_is_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        assert_eq!(read_if_there(&path).unwrap(), None);
        let go_on = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while go_on.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&path, "{}").unwrap();
                    fs::remove_file(&path).unwrap();
                }
            });
            let looks = (0..2_000).map(|_| read_if_there(&path));
            let wrong: Vec<_> = looks.filter_map(Result::err).collect();
            go_on.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(wrong.is_empty(), "{}", wrong[0]);
        });
        fs::write(&path, b"\xff").unwrap();
        assert!(read_if_there(&path).is_err());
        assert_eq!(bytes_if_there(&path).unwrap().as_deref(), Some(&b"\xff"[..]));
    }

    #[test]
    fn what_stands_in_for_a_file_is_known_by_its_beginning() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert!(is_lfs_pointer(pointer) && stands_in(pointer).is_some());
        for page in ["<!DOCTYPE html>", "\n  <html lang=\"en\">", "\u{feff}<!doctype HTML"] {
            assert!(is_web_page(page.as_bytes()), "{page}");
        }
        for file in ["", "{}", "version 2", "<|im_start|>", "<htm", "{{ '<html>' }}"] {
            assert_eq!(stands_in(file.as_bytes()), None, "{file}");
        }
    }
}
