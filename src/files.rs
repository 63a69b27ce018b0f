//! What several stages do with files and folders.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::Path;

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

/// Removes a folder if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
