//! One process at a time on a folder.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;

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
