//! Downloads files of a repository into the cache, all from one commit.

use super::cache::{Cache, usual_cache};
use super::client::{Coming, HubOptions, Kind, Repository, Resolved, connect, failure, resolve};
use super::names::{RepoId, is_commit};
use crate::context::{Context, Task};
use crate::error::{Error, Result};
use hf_hub::HFError;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Number of attempts to download a file completely.
const ATTEMPTS: usize = 3;
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(200);
const LATER: &str = "Download it once with a network connection; after that, the cache is enough";

/// A missing file, with a hint.
pub(super) type Lack = (String, &'static str);

/// The files to download from a repository.
pub(super) trait Wanted {
    /// A model or a dataset.
    type Kind: Kind;

    fn id(&self) -> &RepoId;

    /// Returns an error about the repository.
    fn error(&self, what: String, hint: &str) -> Error;

    /// Returns whether the selection depends on the names of all files.
    fn needs_list(&self) -> bool;

    /// Requests all wanted files with `get`, which returns whether the file exists. `at.list` has the names
    /// of the repository's files if they are needed. Returns a missing file, if any.
    fn gather(
        &self,
        at: &Commit<'_>,
        get: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<Option<Lack>>;
}

/// A commit in the cache.
pub(super) struct Commit<'a> {
    pub folder: PathBuf,
    /// The names of all its files; empty if they are not needed.
    pub list: &'a [String],
}

/// A finished download.
pub(super) struct Fetched {
    /// The commit's folder in the cache.
    pub folder: PathBuf,
    pub commit: String,
    /// The names of all files of the commit; empty if they are not needed.
    pub list: Vec<String>,
}

/// Downloads the wanted files into the cache.
///
/// # Errors
/// [`Wanted::error`] if the Hub refuses access or does not have the files, or if the connection fails and
/// the cache has no complete copy; [`Error::Io`]; [`Error::Stopped`].
pub(super) fn fetch<W: Wanted>(
    wanted: &W,
    hub: &HubOptions,
    context: &Context<'_>,
) -> Result<Fetched> {
    let root = cache_root(wanted, hub)?;
    let id = wanted.id();
    let cache = Cache(root.join(format!("{}--{}--{}", W::Kind::FOLDER, id.owner, id.name)));
    if hub.offline {
        return cached(wanted, &cache, "HF_HUB_OFFLINE is set", context);
    }
    if is_commit(&id.revision)
        && let Some(settled) = settled(wanted, &cache)?
    {
        return Ok(settled);
    }
    let failed = |error| failure(wanted, &root, None, error);
    let repository = W::Kind::repository(&connect(hub, &root).map_err(failed)?, id);
    let needs_list = wanted.needs_list();
    let resolved = resolve::<W::Kind>(&repository, &id.revision, needs_list, context)?;
    let Resolved { commit, list } = match resolved {
        Ok(resolved) => resolved.map_err(failed)?,
        Err(why) => {
            let why = format!("the Hub cannot be reached ({why})");
            let fetched = cached(wanted, &cache, &why, context)?;
            context.notice(format!("{id}: {why}; using the copy in the cache"))?;
            return Ok(fetched);
        }
    };
    if !is_commit(&commit) {
        let what = "the Hub did not return its commit";
        return Err(wanted.error(what.into(), "Check HF_ENDPOINT"));
    }
    let folder = cache.snapshot(&commit);
    let at = Commit { folder: folder.clone(), list: &list };
    let download = Download { wanted, hub: &repository, cache: &cache, commit: &commit, context };
    let lack = wanted.gather(&at, &mut |file| {
        Ok(cache.has(&commit, file) || !cache.knows_absent(&commit, file) && download.file(file)?)
    })?;
    if let Some((file, hint)) = lack {
        return Err(wanted.error(format!("it has no `{file}`"), hint));
    }
    if needs_list {
        cache.note_list(&commit, &list)?;
    }
    cache.remember(&id.revision, &commit)?;
    Ok(Fetched { folder, commit, list })
}

fn cache_root(wanted: &impl Wanted, hub: &HubOptions) -> Result<PathBuf> {
    hub.cache.clone().or_else(usual_cache).ok_or_else(|| {
        let what = "there is no home folder for the cache";
        wanted.error(what.into(), "Set HF_HOME to a folder")
    })
}

/// Returns the complete copy in the cache, or an error that says `why` it was needed.
fn cached<W: Wanted>(
    wanted: &W,
    cache: &Cache,
    why: &str,
    context: &Context<'_>,
) -> Result<Fetched> {
    let Some(commit) = cache.noted(&wanted.id().revision) else {
        let what = format!("{why}, and the {} is not in the cache", W::Kind::WORD);
        return Err(wanted.error(what, LATER));
    };
    let (noted, folder) = (cache.list(&commit), cache.snapshot(&commit));
    let is_noted = noted.is_some() || !wanted.needs_list();
    let list = noted.unwrap_or_else(|| with_missing_shards(cache.files(&commit)));
    let at = Commit { folder: folder.clone(), list: &list };
    let lack = wanted.gather(&at, &mut |file| Ok(cache.has(&commit, file)))?;
    if let Some((file, _)) = lack {
        let what = format!("{why}, and the copy in the cache has no `{file}`");
        return Err(wanted.error(what, LATER));
    }
    if !is_noted {
        context.notice(format!(
            "{}: {why}; using the files that are in the cache, although some may be missing",
            wanted.id()
        ))?;
    }
    Ok(Fetched { folder, commit, list })
}

/// Adds to file names those that they imply, such as `train-00001-of-00002.parquet` if there is a
/// `train-00000-of-00002.parquet`.
fn with_missing_shards(files: Vec<String>) -> Vec<String> {
    const MOST: usize = 100_000;
    let mut all: BTreeSet<String> = files.iter().cloned().collect();
    let mut seen = BTreeSet::new();
    for file in &files {
        let Some((before, rest)) = file.split_once("-of-") else { continue };
        let (Some((stem, number)), Some((count, ending))) =
            (before.rsplit_once('-'), rest.split_once('.'))
        else {
            continue;
        };
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        if let (true, true, Ok(of)) = (is_number(number), is_number(count), count.parse::<usize>())
            && of < MOST
            && seen.insert((stem, count, ending))
        {
            all.extend((0..of).map(|shard| format!("{stem}-{shard:05}-of-{count}.{ending}")));
        }
    }
    all.into_iter().collect()
}

/// Returns the cached copy, if the revision is a commit that the cache has completely, so that no request is
/// needed.
fn settled<W: Wanted>(wanted: &W, cache: &Cache) -> Result<Option<Fetched>> {
    let commit = wanted.id().revision.clone();
    let list = match (wanted.needs_list(), cache.list(&commit)) {
        (false, _) => vec![],
        (true, Some(list)) => list,
        (true, None) => return Ok(None),
    };
    let (mut known, folder) = (true, cache.snapshot(&commit));
    let at = Commit { folder: folder.clone(), list: &list };
    let lack = wanted.gather(&at, &mut |file| {
        let has = cache.has(&commit, file);
        known &= has || cache.knows_absent(&commit, file);
        Ok(has)
    })?;
    Ok((known && lack.is_none()).then_some(Fetched { folder, commit, list }))
}

/// Downloads the files of a commit.
struct Download<'a, 'c, W: Wanted> {
    wanted: &'a W,
    hub: &'a Repository<W::Kind>,
    cache: &'a Cache,
    commit: &'a str,
    context: &'a Context<'c>,
}

impl<W: Wanted> Download<'_, '_, W> {
    /// Downloads one file. Returns false if the commit does not have it.
    fn file(&self, file: &str) -> Result<bool> {
        let Self { wanted, cache, commit, context, .. } = *self;
        let path = cache.snapshot(commit).join(file);
        let mut is_bad = false;
        for attempt in 1..=ATTEMPTS {
            let coming = Arc::new(Coming::default());
            let (hub, handler) = (self.hub.clone(), Arc::clone(&coming));
            let (name, revision) = (file.to_owned(), commit.to_owned());
            let request = move || {
                let request = hub.download_file().filename(name).revision(revision);
                request.force_download(is_bad).progress(handler).send()
            };
            let mut progress = None;
            let came = context.aside(request, &mut || match coming.shown() {
                None => Ok(()),
                Some([done, total]) => progress
                    .get_or_insert_with(|| context.task(Task::Download, total))
                    .update_of(done, total),
            });
            drop(progress);
            match came? {
                Ok(found) if found != path => {
                    let what = format!("the Hub returned `{file}` of another commit");
                    return Err(wanted.error(what, "Check HF_ENDPOINT"));
                }
                Ok(_) if coming.is_whole(&path) => return Ok(true),
                // hf-hub accepts an error page as the file, and a partial file as complete.
                Ok(_) => {
                    cache.discard(&path);
                    is_bad = true;
                }
                Err(HFError::EntryNotFound { .. }) => return Ok(false),
                Err(HFError::Request { .. } | HFError::Xet { .. }) if attempt < ATTEMPTS => {}
                Err(error) => return Err(failure(wanted, &cache.0, Some(file), error)),
            }
            context.aside(|| thread::sleep(PAUSE), &mut || Ok(()))?;
        }
        let hint = "Try again; files in the cache are not downloaded again";
        let what = format!("every download of `{file}` was incomplete or had the wrong size");
        Err(wanted.error(what, hint))
    }
}
