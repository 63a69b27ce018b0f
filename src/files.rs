//! What several stages do with files and folders.

use crate::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// Writes a file, whole or not at all, even where power is lost: beside its place first.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let failed = |e| Error::io("write", &beside, e);
    let mut file = BufWriter::new(File::create(&beside).map_err(failed)?);
    fill(&mut file)?;
    file.flush().map_err(failed)?;
    file.get_ref().sync_all().map_err(failed)?;
    fs::rename(&beside, path).map_err(|e| Error::io("rename", &beside, e))?;
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(Ok(()), flush_folder)
}

/// As [`write_whole`], of a text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |file| {
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write", path, e))
    })
}

/// Makes the names in a folder durable; systems that cannot open a folder do so by themselves.
pub(crate) fn flush_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("flush", path, e))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Whether a file that begins so is a Git LFS pointer: a clone without Git LFS has these in place of
/// large files.
pub(crate) fn is_lfs_pointer(head: &[u8]) -> bool {
    head.starts_with(b"version https://git-lfs.github.com/spec/v1")
}

/// Whether a file that begins so is a web page, as where a download got the page of a file.
pub(crate) fn is_web_page(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |tag: &[u8]| head.get(..tag.len()).is_some_and(|h| h.eq_ignore_ascii_case(tag));
    begins(b"<!doctype") || begins(b"<html")
}

/// Bytes of a file's beginning that tell what it is.
pub(crate) const HEAD: usize = 256;

/// What a file is in place of the one that its name says, and what to do, by how it begins; `None`
/// where nothing speaks against it.
pub(crate) fn stands_in(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if is_lfs_pointer(head) {
        return Some((
            "it is a Git LFS pointer, not the file itself",
            "Run `git lfs pull` in its folder, or download it again",
        ));
    }
    is_web_page(head).then_some((
        "it is a web page (HTML), not the file itself",
        "Download the file again, by its raw or `resolve` address; a page that asks for a login \
         may have been saved in its place",
    ))
}

/// The beginning of a file.
pub(crate) fn head_of(path: &Path) -> Result<Vec<u8>> {
    let mut head = vec![];
    let read = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    read.map(|_| head).map_err(|e| Error::io("read", path, e))
}

/// A run's directory is not where it was.
pub(crate) fn gone(folder: &Path, step: usize) -> Error {
    Error::RunDirectory {
        path: folder.to_owned(),
        what: format!("it was removed or moved under the run, which had come to step {step}"),
        hint: "If it was moved, resume the run at its new place".into(),
    }
}

/// Removes a folder if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The file that is locked.
pub(crate) const LOCK: &str = ".lock";

/// Held by the process that works on a folder; the system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of a folder.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] where another process holds it; [`Error::Io`].
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let lock = folder.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(|e| Error::io("write", &lock, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::RunDirectory {
                    path: folder.to_owned(),
                    what: "another process works on it".into(),
                    hint: "Wait for its end, or stop it".into(),
                });
            }
            // Some file systems have no locks; a run there is better than none.
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &lock, e)),
        }
        Ok(Self { _file: file })
    }
}

/// Whether an error says that there are no locks here, as on network mounts without that service.
fn has_no_locks(error: &std::io::Error) -> bool {
    const LINUX_ENOLCK: i32 = 37;
    error.kind() == std::io::ErrorKind::Unsupported
        || (cfg!(target_os = "linux") && error.raw_os_error() == Some(LINUX_ENOLCK))
}

#[cfg(test)]
mod tests {
    use super::*;

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
