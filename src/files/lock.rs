//! Exclusive and shared locks on folders and files.

use crate::error::{Error, Result};
use crate::text::duration;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The lock file.
pub(crate) const LOCK: &str = ".lock";
/// Prefix of the files that probe whether locks work.
pub(super) const LOCK_PROBE: &str = ".lock-probe-";

/// A lock on a folder or file. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks a folder.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] if another process holds the lock; [`Error::Io`].
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        Self::take_at(&folder.join(LOCK), folder)
    }

    /// Locks a file, with a lock file beside it.
    ///
    /// # Errors
    /// See [`FolderLock::take`].
    pub(crate) fn take_of_file(path: &Path) -> Result<Self> {
        Self::take_at(&lock_of_file(path), path)
    }

    /// Locks a file, or returns `None` if another process holds the lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn try_of_file(path: &Path) -> Result<Option<Self>> {
        Self::try_at(&lock_of_file(path), File::try_lock)
    }

    /// Returns whether a process ever locked this file.
    pub(crate) fn is_of_file(path: &Path) -> bool {
        lock_of_file(path).is_file()
    }

    /// Takes a shared lock of a folder, which excludes processes that want it exclusively.
    ///
    /// # Errors
    /// See [`FolderLock::take`].
    pub(crate) fn take_shared(folder: &Path) -> Result<Self> {
        Self::try_at(&folder.join(LOCK), File::try_lock_shared)?.ok_or_else(|| taken(folder))
    }

    /// Locks a file that many processes lock briefly.
    ///
    /// # Errors
    /// [`Error::RunDirectory`] with the lock file if it was not free within `patience`; [`Error::Io`].
    pub(crate) fn wait_of_file(path: &Path, patience: Duration) -> Result<Self> {
        let (lock, end) = (lock_of_file(path), Instant::now() + patience);
        loop {
            match Self::try_at(&lock, File::try_lock)? {
                Some(taken) => return Ok(taken),
                None if Instant::now() >= end => return Err(held_for_long(lock, patience)),
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Returns whether another process, or another part of this one, holds the lock of a folder.
    pub(crate) fn is_taken(folder: &Path) -> bool {
        let lock = folder.join(LOCK);
        lock.is_file() && matches!(Self::try_at(&lock, File::try_lock), Ok(None))
    }

    /// Returns whether locks work on this folder's file system, which must refuse a second lock of the same
    /// file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn are_there(folder: &Path) -> Result<bool> {
        // Processes on two machines may have the same ID.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let probe = folder.join(format!("{LOCK_PROBE}{}-{now}", std::process::id()));
        let open = || File::options().create(true).truncate(false).write(true).open(&probe);
        let failed = |e| Error::io("write", &probe, e);
        let (first, second) = (open().map_err(failed)?, open().map_err(failed)?);
        let hold = first.try_lock().is_ok()
            && matches!(second.try_lock(), Err(TryLockError::WouldBlock))
            && matches!(
                File::create_new(&probe).map_err(|e| e.kind()),
                Err(std::io::ErrorKind::AlreadyExists)
            );
        drop((first, second));
        super::remove_file(&probe)?;
        Ok(hold)
    }

    fn take_at(lock: &Path, of: &Path) -> Result<Self> {
        Self::try_at(lock, File::try_lock)?.ok_or_else(|| taken(of))
    }

    /// Tries to take the lock; returns `None` if it is taken.
    fn try_at(
        lock: &Path,
        take: fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<Option<Self>> {
        // Network file systems need a readable file for a shared lock.
        let file = File::options().create(true).truncate(false).read(true).write(true).open(lock);
        let file = file.map_err(|e| Error::io("write", lock, e))?;
        match take(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some file systems have no locks. Continue without one.
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", lock, e)),
        }
        Ok(Some(Self { _file: file }))
    }
}

/// Polling interval while waiting for a lock.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The error text for a folder in use.
const TAKEN: &str = "another process is using it";

fn taken(of: &Path) -> Error {
    let hint = "Wait until that process ends, or stop it".into();
    Error::RunDirectory { path: of.to_owned(), what: TAKEN.into(), hint }
}

fn held_for_long(lock: PathBuf, patience: Duration) -> Error {
    let long = duration(patience.as_secs_f64());
    Error::RunDirectory {
        path: lock,
        what: format!(
            "another process has held this lock for {long}, but should need it only briefly"
        ),
        hint: "Resume or stop that process, which hangs or is suspended, then start again".into(),
    }
}

/// Returns whether the error is that another process holds this folder.
pub(crate) fn is_of_lock(error: &Error, folder: &Path) -> bool {
    matches!(error, Error::RunDirectory { path, what, .. } if what == TAKEN && path == folder)
}

/// Returns the lock file of a file, which is beside it.
pub(super) fn lock_of_file(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

/// Returns whether the error means that locks are unsupported, as on network mounts without a lock service.
fn has_no_locks(error: &std::io::Error) -> bool {
    const LINUX_ENOLCK: i32 = 37;
    error.kind() == std::io::ErrorKind::Unsupported
        || (cfg!(target_os = "linux") && error.raw_os_error() == Some(LINUX_ENOLCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_share_a_folder_exclude_whoever_wants_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(!FolderLock::is_taken(path) && FolderLock::are_there(path).unwrap());
        let [one, other] = [(); 2].map(|()| FolderLock::take_shared(path).unwrap());
        drop(one);
        assert!(FolderLock::is_taken(path));
        assert!(is_of_lock(&FolderLock::take(path).unwrap_err(), path));
        drop(other);
        let alone = FolderLock::take(path).unwrap();
        let error = FolderLock::take_shared(path).unwrap_err();
        assert!(is_of_lock(&error, path) && !is_of_lock(&error, &path.join("other")));
        drop(alone);
        assert!(!FolderLock::is_taken(path));
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 1, "the probe is gone");
    }

    #[test]
    fn who_waits_for_a_lock_gets_it_or_gives_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let first = FolderLock::wait_of_file(&path, Duration::ZERO).unwrap();
        let refused = FolderLock::wait_of_file(&path, Duration::from_millis(20)).unwrap_err();
        let told = refused.to_string();
        assert!(told.contains(".file.lock") && told.contains("hangs or is suspended"), "{told}");
        assert!(FolderLock::try_of_file(&path).unwrap().is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| FolderLock::wait_of_file(&path, Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(30));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
