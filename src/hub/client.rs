//! Adapts hf-hub's clients, errors, and progress events to this crate.

use super::fetch::Wanted;
use super::names::RepoId;
use crate::context::Context;
use crate::error;
use crate::text::duration;
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, HFResult, RepoType, RepoTypeDataset,
    RepoTypeModel,
};
use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Number of retries of a failed request. The pauses between them add up to a second or two.
const RETRIES: usize = 3;
/// Time limit for resolving a revision to a commit.
const PATIENCE: Duration = Duration::from_secs(30);
/// Downloads of at least this many bytes show their progress.
const SHOWN_FROM: u64 = 10_000_000;

/// Options that override the environment.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// URL of the Hub, instead of `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Cache folder, instead of `HF_HUB_CACHE`.
    pub cache: Option<PathBuf>,
    /// Access token, instead of `HF_TOKEN`.
    pub token: Option<String>,
    /// Whether to use only the cache and send no request.
    pub offline: bool,
    /// Whether to skip the weights of a model.
    pub settings_only: bool,
}

pub(super) type Repository<K> = HFRepositorySync<K>;

/// A kind of repository.
pub(super) trait Kind: RepoType {
    /// The word for it in messages.
    const WORD: &'static str;
    /// The prefix of its folders in the cache.
    const FOLDER: &'static str;

    fn repository(client: &HFClientSync, id: &RepoId) -> Repository<Self>;

    /// Returns the commit of a revision and, if requested, the names of its files.
    fn describe(
        repository: &Repository<Self>,
        revision: String,
        expand: Vec<String>,
    ) -> HFResult<(Option<String>, Vec<String>)>;
}

impl Kind for RepoTypeModel {
    const WORD: &'static str = "model";
    const FOLDER: &'static str = "models";

    fn repository(client: &HFClientSync, id: &RepoId) -> Repository<Self> {
        client.model(&id.owner, &id.name)
    }

    fn describe(
        repository: &Repository<Self>,
        revision: String,
        expand: Vec<String>,
    ) -> HFResult<(Option<String>, Vec<String>)> {
        let info = repository.info().revision(revision).expand(expand).send()?;
        let files = info.siblings.into_iter().flatten().map(|file| file.rfilename);
        Ok((info.sha, files.collect()))
    }
}

impl Kind for RepoTypeDataset {
    const WORD: &'static str = "dataset";
    const FOLDER: &'static str = "datasets";

    fn repository(client: &HFClientSync, id: &RepoId) -> Repository<Self> {
        client.dataset(&id.owner, &id.name)
    }

    fn describe(
        repository: &Repository<Self>,
        revision: String,
        expand: Vec<String>,
    ) -> HFResult<(Option<String>, Vec<String>)> {
        let info = repository.info().revision(revision).expand(expand).send()?;
        let files = info.siblings.into_iter().flatten().map(|file| file.rfilename);
        Ok((info.sha, files.collect()))
    }
}

/// Returns whether `HF_HUB_OFFLINE` is set.
pub(super) fn is_offline() -> bool {
    let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
    ["1", "on", "yes", "true"].contains(&offline.as_str())
}

pub(super) fn connect(hub: &HubOptions, cache: &Path) -> HFResult<HFClientSync> {
    let mut builder = HFClient::builder().cache_dir(cache).retry_max_attempts(RETRIES);
    if let Some(endpoint) = &hub.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(token) = &hub.token {
        builder = builder.token(token);
    }
    let of_environment = env::var("HF_TOKEN").ok();
    [&hub.token, &of_environment].into_iter().flatten().for_each(|token| keep_secret(token.trim()));
    HFClientSync::from_inner(builder.build()?)
}

/// A resolved revision.
pub(super) struct Resolved {
    pub commit: String,
    /// The names of its files, if requested.
    pub list: Vec<String>,
}

/// Resolves a revision to a commit. If the Hub cannot be reached, the inner `Err` says why.
pub(super) fn resolve<K: Kind>(
    repository: &Repository<K>,
    revision: &str,
    with_list: bool,
    context: &Context<'_>,
) -> error::Result<Result<HFResult<Resolved>, String>> {
    let (repository, revision) = (repository.clone(), revision.to_owned());
    let ask = move || {
        let fields: &[&str] = if with_list { &["sha", "siblings"] } else { &["sha"] };
        let expand = fields.iter().map(|field| (*field).to_owned()).collect();
        let (commit, list) = K::describe(&repository, revision, expand)?;
        Ok(Resolved { commit: commit.unwrap_or_default(), list })
    };
    // The client itself would wait for minutes if a network drops packets.
    let (start, mut is_late) = (Instant::now(), false);
    let answer = context.aside(ask, &mut || {
        is_late = start.elapsed() > PATIENCE;
        if is_late { Err(error::Error::stopped("the request was abandoned")) } else { Ok(()) }
    });
    Ok(match answer {
        Err(_) if is_late => Err(format!("no answer in {}", duration(PATIENCE.as_secs_f64()))),
        Err(error) => return Err(error),
        Ok(Err(HFError::Request { source, .. })) => Err(with_causes(&source.without_url())),
        Ok(Err(HFError::Http { context })) if context.status.is_server_error() => {
            Err(format!("it returned status {}", context.status.as_u16()))
        }
        Ok(Err(HFError::RateLimited { .. })) => {
            Err("it returned status 429: too many requests".into())
        }
        Ok(answer) => Ok(answer),
    })
}

/// Converts an error of the client. URLs are left out, since they can contain keys.
pub(super) fn failure<W: Wanted>(
    wanted: &W,
    cache: &Path,
    file: Option<&str>,
    error: HFError,
) -> error::Error {
    let kind = W::Kind::WORD;
    let access = "Check the spelling. For a gated or private repository, accept its terms on its \
        page and set HF_TOKEN to a token with read access";
    let later = "Try again; files in the cache are not downloaded again";
    let said = |message: Option<String>| {
        message.map(|text| format!(": {}", plain(&text))).unwrap_or_default()
    };
    let (what, hint) = match error {
        HFError::Io(source) => return error::Error::io("write", cache, source),
        HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            let (status, said) = (context.status.as_u16(), said(context.server_message));
            (format!("the Hub refuses access ({status}){said}"), access)
        }
        HFError::RevisionNotFound { context, .. } => {
            match context.and_then(|context| context.error_code).as_deref() {
                Some("RepoNotFound") => (format!("the Hub has no such {kind}"), access),
                Some("RevisionNotFound") => {
                    (format!("the {kind} has no such revision"), "Use a branch, a tag, or a commit")
                }
                _ => (format!("the Hub has no such {kind} or revision"), access),
            }
        }
        HFError::CacheLockTimeout { .. } => {
            ("another process is downloading it".into(), "Wait until that process has finished")
        }
        HFError::Http { context } | HFError::RateLimited { context, .. } => {
            let (status, said) = (context.status.as_u16(), said(context.server_message));
            (format!("the Hub returned status {status}{said}"), later)
        }
        HFError::Request { source, .. } => {
            (format!("the connection failed: {}", with_causes(&source.without_url())), later)
        }
        HFError::Url(error) => {
            (format!("HF_ENDPOINT is not a valid URL: {error}"), "Fix the variable")
        }
        other => (plain(&other.to_string()), later),
    };
    let file = file.map(|file| format!("`{file}`: ")).unwrap_or_default();
    wanted.error(format!("{file}{what}"), hint)
}

pub(super) fn with_causes(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    plain(&text)
}

/// Returns whether a word contains something that looks like a token of the Hub.
fn is_token(word: &str) -> bool {
    const SHORTEST: usize = 8;
    word.split("hf_").skip(1).any(|rest| {
        rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
            >= SHORTEST
    })
}

/// Shortens a text from outside to one line. URLs are reduced to their hosts, and tokens are hidden.
pub(super) fn plain(text: &str) -> String {
    let word = |word: &str| match word.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.split(['/', '?', '#', ')']).next().unwrap_or_default();
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{}", if rest.contains(')') { ")" } else { "" })
        }
        None if is_token(word) => "hf_...".to_owned(),
        None => word.to_owned(),
    };
    let tokens = TOKENS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = tokens.iter().fold(text.to_owned(), |text, token| text.replace(token, "hf_..."));
    let line = text.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    line.trim_end_matches('.').to_owned()
}

/// Returns a URL without the user name and the key that it may contain.
pub(super) fn without_key(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
}

/// The tokens that this process sends, which must not appear in any text.
static TOKENS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Registers a token to be hidden in all texts.
fn keep_secret(token: &str) {
    /// Shorter tokens would match parts of words.
    const SHORTEST: usize = 6;
    if token.len() >= SHORTEST {
        TOKENS.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned());
    }
}

/// A download: its size according to the Hub, and the bytes received.
#[derive(Default)]
pub(super) struct Coming {
    size: OnceLock<u64>,
    done: AtomicU64,
}

impl Coming {
    /// Returns whether the file has the size that the Hub reported. It reports none for a file that was
    /// cached.
    pub(super) fn is_whole(&self, path: &Path) -> bool {
        let has = |size| std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == size);
        self.size.get().is_none_or(|size| has(*size))
    }

    /// Returns the received and total bytes of a large download in progress.
    pub(super) fn shown(&self) -> Option<[u64; 2]> {
        let size = self.size.get().copied().filter(|size| *size >= SHOWN_FROM)?;
        let done = self.done.load(Ordering::Relaxed);
        (0 < done && done < size).then_some([done, size])
    }
}

impl ProgressHandler for Coming {
    fn on_progress(&self, event: &ProgressEvent) {
        let done = match event {
            ProgressEvent::Download(DownloadEvent::Start { total_bytes, .. }) => {
                // 0 also means a response without a length.
                if *total_bytes > 0 {
                    let _ = self.size.set(*total_bytes);
                }
                return;
            }
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.iter().map(|file| file.bytes_completed).sum()
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => *bytes_completed,
            _ => return,
        };
        self.done.store(done, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_lose_addresses_and_line_breaks() {
        let text = "error for url (https://me:key@cdn.test/a/b?Signature=abc):\n\u{1b}[31m gone.";
        assert_eq!(plain(text), "error for url (https://cdn.test) [31m gone");
        assert_eq!(plain(&"x".repeat(1000)).len(), 300);
        assert_eq!(plain("bad token (hf_abcdefgh1) hf_hub"), "bad token hf_... hf_hub");
    }

    #[test]
    fn a_file_is_whole_if_its_size_is_the_one_that_was_given() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let coming = Coming::default();
        assert!(coming.is_whole(file.path()));
        for (total_bytes, is_whole) in [(5, true), (6, false), (0, true)] {
            let coming = Coming::default();
            let start = DownloadEvent::Start { total_files: 1, total_bytes };
            coming.on_progress(&ProgressEvent::Download(start));
            assert_eq!(coming.is_whole(file.path()), is_whole);
        }
    }
}
