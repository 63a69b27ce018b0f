//! One process at a time on a folder.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The file that is locked.
pub(crate) const LOCK: &str = ".lock";

/// Held by the process that works on a folder or a file; the system lets go of it when the process ends,
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
        Self::take_at(&folder.join(LOCK), folder)
    }

    /// Takes the lock of a file, which is beside it.
    ///
    /// # Errors
    /// As [`FolderLock::take`].
    pub(crate) fn take_of_file(path: &Path) -> Result<Self> {
        Self::take_at(&Self::beside(path), path)
    }

    /// Whether a process has ever taken the lock of a file.
    pub(crate) fn is_of_file(path: &Path) -> bool {
        Self::beside(path).is_file()
    }

    fn beside(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!(".{name}.lock"))
    }

    fn take_at(lock: &Path, of: &Path) -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(lock);
        let file = file.map_err(|e| Error::io("write", lock, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::RunDirectory {
                    path: of.to_owned(),
                    what: "another process works on it".into(),
                    hint: "Wait for its end, or stop it".into(),
                });
            }
            // Some file systems have no locks; a run there is better than none.
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", lock, e)),
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
