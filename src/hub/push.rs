//! Pushes a model, an adapter, or a GGUF file to the Hub, in one commit.

use super::client::{HubOptions, is_offline, plain, with_causes, without_key};
use super::model::model_error;
use super::names::{MAIN, RepoId, is_commit, is_word};
use super::push_files::{PushFiles, Source};
use crate::context::{Context, StopFlag, Task};
use crate::error::{Error, Result};
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{AddSource, CommitOperation, StreamSource};
use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoTypeModel};
use serde::Serialize;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Number of retries of a failed request.
const RETRIES: usize = 3;
/// Interval between checks for a stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const TOKEN: &str = "Set HF_TOKEN to a token with write access (huggingface.co/settings/tokens)";
const LATER: &str = "Try again; data that the Hub already has is not uploaded again";

/// Options of [`push`].
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Whether a new repository is public, and a push to a public one is allowed.
    pub public: bool,
    /// Commit message. The default describes what is pushed.
    pub message: Option<String>,
    /// Branch to push to, created if it does not exist. The default is `main`.
    pub revision: Option<String>,
    /// Options that override the environment. `cache` and `settings_only` are ignored.
    pub hub: HubOptions,
}

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The repository, `owner/name`.
    pub repository: String,
    /// URL of the repository.
    pub url: String,
    /// The branch.
    pub revision: String,
    /// Hash of the commit.
    pub commit: String,
    /// URL of the commit.
    pub commit_url: String,
    /// Names of the pushed files in the repository.
    pub files: Vec<String>,
    /// Total size of the pushed files in bytes.
    pub bytes: u64,
    /// Files of the folder that were left out because they are not part of the model.
    pub left_out: Vec<String>,
    /// Whether the repository is new.
    pub created: bool,
    /// Whether the repository is private.
    pub private: bool,
}

/// Pushes a run's student, a model folder, an adapter folder, or a GGUF file to `repository`, given as
/// `owner/name`, in one commit.
///
/// A new repository is private unless [`PushOptions::public`] is set. From a folder, only the files of a
/// model are pushed: weights, configurations, tokenizer, chat template, card, and license, but no hidden
/// files and no training state. Files of the same name are replaced; the old ones stay in the history. Other
/// files in the repository stay. A folder without a card gets a short one, unless the repository has a card.
///
/// Large files go through Xet, the Hub's storage, which uploads only what it does not have. If a hub does not
/// support Xet, large files are refused.
///
/// # Errors
/// [`Error::Model`] if there is nothing to push, if the Hub refuses the push or the token is not valid, if
/// the repository is public and [`PushOptions::public`] is not set, or if the connection fails;
/// [`Error::Io`]; [`Error::Stopped`].
pub fn push(
    what: &Path,
    repository: &str,
    options: &PushOptions,
    context: &Context<'_>,
) -> Result<Pushed> {
    let refuse =
        |what: String, hint: &str| model_error(repository.escape_debug().to_string(), what, hint);
    let revision = options.revision.as_deref().unwrap_or(MAIN);
    let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
    let id = RepoId::new(owner, name, revision).map_err(|what| {
        refuse(what, "Write owner/name, with letters, digits, `.`, `_`, and `-`")
    })?;
    if is_commit(revision) {
        return Err(refuse("the revision is a commit".into(), "Name a branch to push to"));
    }
    let files = PushFiles::of(what)?;
    if options.hub.offline || is_offline() {
        return Err(refuse("HF_HUB_OFFLINE is set".into(), "Unset it to push"));
    }
    files.notices().iter().try_for_each(|notice| context.notice(notice))?;
    let going = Arc::new(Going::default());
    let push = Push {
        id,
        public: options.public,
        message: options.message.clone().unwrap_or_else(|| files.message()),
        hub: options.hub.clone(),
        stop: context.stop_flag().clone(),
        going: going.clone(),
        files,
    };
    let total = push.files.bytes();
    let mut shown = None;
    let done = context.aside(move || push.all(), &mut || {
        let [read, sent] = [&going.read, &going.sent].map(|done| done.load(Ordering::Relaxed));
        let (task, done) = match read < total {
            true => (Task::CheckFiles, read),
            false => (Task::Upload, sent.min(total)),
        };
        if shown.as_ref().is_none_or(|(old, _)| *old != task) {
            // The old one ends before the new one begins.
            shown = None;
            shown = Some((task, context.task(task, total)));
        }
        shown.as_mut().map_or(Ok(()), |(_, progress)| progress.update(done))
    });
    drop(shown);
    let stopped = || {
        Error::stopped(match going.committing.load(Ordering::SeqCst) {
            true => "the commit was in progress; check whether it is in the repository",
            false => "nothing was committed; uploaded data will not be uploaded again",
        })
    };
    match done {
        Err(Error::Stopped { .. }) | Ok(Err(Failed::Stopped)) => Err(stopped()),
        Err(error) => Err(error),
        Ok(done) => done.map_err(|failed| failed.worded(&refuse)),
    }
}

/// The progress of a push.
#[derive(Default)]
pub(super) struct Going {
    /// Bytes read for checksums.
    pub read: AtomicU64,
    sent: AtomicU64,
    committing: AtomicBool,
}

impl ProgressHandler for Going {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }) => {
                self.sent.store(*bytes_completed, Ordering::Relaxed);
            }
            ProgressEvent::Upload(UploadEvent::Committing) => {
                self.committing.store(true, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

/// Why a push failed.
enum Failed {
    Stopped,
    Refused { what: String, hint: &'static str },
    Hub(HFError),
    Io(Error),
}

impl From<HFError> for Failed {
    fn from(error: HFError) -> Self {
        Self::Hub(error)
    }
}

impl Failed {
    fn refused(what: impl Into<String>, hint: &'static str) -> Self {
        Self::Refused { what: what.into(), hint }
    }

    /// Converts to an error; `refuse` adds the repository. URLs are left out, since they can contain keys.
    fn worded(self, refuse: &dyn Fn(String, &str) -> Error) -> Error {
        let said = |message: Option<String>| {
            message.map(|text| format!(": {}", plain(&text))).unwrap_or_default()
        };
        let error = match self {
            Self::Stopped => return Error::stopped("nothing was committed"),
            Self::Refused { what, hint } => return refuse(what, hint),
            Self::Io(error) => return error,
            Self::Hub(error) => error,
        };
        let (what, hint) = match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                let (status, said) = (context.status.as_u16(), said(context.server_message));
                (format!("the Hub refuses access ({status}){said}"), TOKEN)
            }
            HFError::RepoNotFound { .. } => ("the Hub no longer has this repository".into(), LATER),
            HFError::Http { context }
            | HFError::RateLimited { context, .. }
            | HFError::Conflict { context } => {
                let (status, said) = (context.status.as_u16(), said(context.server_message));
                (format!("the Hub returned status {status}{said}"), LATER)
            }
            HFError::Request { source, .. } => {
                (format!("the connection failed: {}", with_causes(&source.without_url())), LATER)
            }
            HFError::Xet { source, .. } => {
                (format!("Xet, the Hub's storage, failed: {}", with_causes(&*source)), LATER)
            }
            HFError::Url(error) => {
                (format!("HF_ENDPOINT is not a valid URL: {error}"), "Fix the variable")
            }
            other => (plain(&other.to_string()), LATER),
        };
        refuse(what, hint)
    }
}

/// A push, which runs on its own thread.
struct Push {
    id: RepoId,
    public: bool,
    message: String,
    hub: HubOptions,
    files: PushFiles,
    stop: StopFlag,
    going: Arc<Going>,
}

impl Push {
    /// Runs all steps. A stop cancels the current one, so that nothing is committed later.
    fn all(self) -> Result<Pushed, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failed::Io(Error::io("start", "a thread", e)))?;
        runtime.block_on(async {
            let mut steps = std::pin::pin!(self.steps());
            loop {
                match tokio::time::timeout(LOOK_EVERY, &mut steps).await {
                    _ if self.stop.is_requested() => return Err(Failed::Stopped),
                    Ok(done) => return done,
                    Err(_) => {}
                }
            }
        })
    }

    fn client(&self) -> HFResult<HFClient> {
        let mut builder = HFClient::builder().retry_max_attempts(RETRIES);
        if let Some(endpoint) = &self.hub.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &self.hub.token {
            builder = builder.token(token);
        }
        builder.build()
    }

    async fn steps(&self) -> Result<Pushed, Failed> {
        let client = self.client()?;
        let RepoId { owner, name, revision } = &self.id;
        // Checks the token before reading gigabytes.
        match client.whoami().send().await {
            Err(HFError::AuthRequired { .. }) => {
                return Err(Failed::refused("there is no valid token for the Hub", TOKEN));
            }
            answer => answer?,
        };
        let repository = client.model(owner, name);
        let there = self.there(&repository).await?;
        let created = there.is_none();
        let there = match there {
            Some(there) => there,
            None => {
                let id = format!("{owner}/{name}");
                let request = client.create_repository().repo_id(&id).repo_type(RepoTypeModel);
                request.private(!self.public).send().await?;
                There { private: !self.public, has_card: false }
            }
        };
        let is_other_branch = revision != MAIN && !revision.starts_with("refs/");
        if is_other_branch && !repository.revision_exists().revision(revision).send().await? {
            repository.create_branch().branch(revision).send().await?;
        }
        let (operations, files, bytes) = self.operations(there.has_card)?;
        let commit = repository
            .create_commit()
            .operations(operations)
            .commit_message(&self.message)
            .revision(revision)
            .progress(self.going.clone())
            .send();
        let commit = Self::whole(commit).await?;
        let url = format!("{}/{owner}/{name}", without_key(client.endpoint()));
        let commit = commit.commit_oid.filter(|commit| is_word(commit)).ok_or_else(|| {
            let hint = "Check whether it is in the repository";
            Failed::refused("the Hub did not return the commit", hint)
        })?;
        Ok(Pushed {
            repository: format!("{owner}/{name}"),
            commit_url: format!("{url}/commit/{commit}"),
            url,
            revision: revision.clone(),
            commit,
            files,
            bytes,
            left_out: self.files.left_out().to_vec(),
            created,
            private: there.private,
        })
    }

    /// Waits for a commit. Converts the error of large files that would go into the request as text.
    async fn whole<T>(commit: impl Future<Output = HFResult<T>>) -> Result<T, Failed> {
        match commit.await {
            Err(HFError::Other(text)) if text == super::push_files::NO_XET => Err(Failed::refused(
                "this hub does not accept large files through Xet, the only way this build supports",
                "Push it with `hf upload`",
            )),
            other => Ok(other?),
        }
    }

    /// Returns the existing repository, if any.
    async fn there(
        &self,
        repository: &HFRepository<RepoTypeModel>,
    ) -> Result<Option<There>, Failed> {
        let expand = ["private", "siblings"].map(str::to_owned).to_vec();
        let info = match repository.info().expand(expand).send().await {
            Err(HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. }) => {
                return Ok(None);
            }
            info => info?,
        };
        let private = info.private.unwrap_or(false);
        if !private && !self.public {
            return Err(Failed::refused(
                "the repository exists and is public",
                "Allow it with --public, or choose another name",
            ));
        }
        let mut names = info.siblings.iter().flatten().map(|file| file.rfilename.as_str());
        Ok(Some(There { private, has_card: names.any(|name| name == super::push_files::CARD) }))
    }

    /// Returns the operations of the commit, the names of the files, and their total size.
    fn operations(
        &self,
        has_card: bool,
    ) -> Result<(Vec<CommitOperation>, Vec<String>, u64), Failed> {
        let mut operations = vec![];
        let (mut names, mut bytes) = (vec![], 0);
        for file in self.files.to_send(has_card) {
            let (source, size) = match &file.source {
                Source::Text(text) => {
                    (AddSource::bytes(text.clone().into_bytes()), text.len() as u64)
                }
                Source::File { path, size } => {
                    let stream = file.stream(path, &self.stop, &self.going);
                    (AddSource::stream(StreamSource::new(Arc::new(stream), *size)), *size)
                }
            };
            operations.push(CommitOperation::Add { path_in_repo: file.name.clone(), source });
            names.push(file.name.clone());
            bytes += size;
        }
        Ok((operations, names, bytes))
    }
}

/// An existing repository.
struct There {
    private: bool,
    has_card: bool,
}
