//! What several stages do with files and folders.

use crate::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
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
