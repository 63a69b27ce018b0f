//! The cache that Hugging Face's tools share.

use super::names::is_commit;
use crate::error::{Error, Result};
use crate::files::write_text;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The folder of one repository in the cache, in the layout of Hugging Face's tools.
pub(super) struct Cache(pub PathBuf);

impl Cache {
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Returns whether the Hub reported that the commit does not have the file.
    pub fn knows_absent(&self, commit: &str, file: &str) -> bool {
        self.0.join(".no_exist").join(commit).join(file).is_file()
    }

    /// Removes an incomplete file and the target of its link.
    pub fn discard(&self, path: &Path) {
        if let (Ok(folder), Ok(target)) = (self.0.canonicalize(), path.canonicalize())
            && target.starts_with(folder)
        {
            let _ = fs::remove_file(target);
        }
        let _ = fs::remove_file(path);
    }

    /// Returns the commit of a revision according to the last answer of the Hub. A commit stands for itself.
    pub fn noted(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.0.join("refs").join(revision));
        let commit = noted.unwrap_or_else(|_| revision.to_owned());
        Some(commit.trim()).filter(|commit| is_commit(commit)).map(str::to_owned)
    }

    /// Saves the commit of a revision, for offline use.
    pub fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        let refs = self.0.join("refs");
        let path = refs.join(revision);
        let is_noted = fs::read_to_string(&path).is_ok_and(|noted| noted.trim() == commit);
        if is_noted || is_commit(revision) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&refs);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        fs::write(&path, commit).map_err(|e| Error::io("write", &path, e))
    }

    /// Returns the file with the list of a commit's files. Hugging Face's tools ignore it. Without it,
    /// missing files cannot be detected offline.
    fn list_path(&self, commit: &str) -> PathBuf {
        self.0.join(".mixdistill").join(format!("{commit}.json"))
    }

    /// Returns the names of a commit's files, if the list is saved.
    pub fn list(&self, commit: &str) -> Option<Vec<String>> {
        serde_json::from_slice(&fs::read(self.list_path(commit)).ok()?).ok()
    }

    /// Saves the names of a commit's files.
    pub fn note_list(&self, commit: &str, files: &[String]) -> Result<()> {
        let path = self.list_path(commit);
        let parent = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        write_text(&path, &serde_json::json!(files).to_string())
    }

    /// Returns the names of a commit's files that the cache has.
    pub fn files(&self, commit: &str) -> Vec<String> {
        fn below(folder: &Path, prefix: &str, files: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let (path, name) = (entry.path(), format!("{prefix}{name}"));
                match path.is_dir() {
                    true => below(&path, &format!("{name}/"), files),
                    false => files.push(name),
                }
            }
        }
        let mut files = vec![];
        below(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }
}

/// Returns the cache folder, found the same way as by Hugging Face's tools.
pub(super) fn usual_cache() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).or_else(|| {
        let home = folder("HF_HOME").or_else(|| {
            let cache = folder("XDG_CACHE_HOME");
            let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        });
        home.map(|home| home.join("hub"))
    })
}
