//! A model, an adapter or a GGUF file to the hub, in one commit.

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

/// Repetitions of a request that fails.
const RETRIES: usize = 3;
/// How often work looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const TOKEN: &str = "Set HF_TOKEN to a token that may write there (huggingface.co/settings/tokens)";
const LATER: &str = "Try again; what the hub has already is not sent again";

/// How something is pushed.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Whether a new repository is public.
    pub public: bool,
    /// The commit's message, in place of one that says what is pushed.
    pub message: Option<String>,
    /// The branch, in place of `main`; it is made where there is none.
    pub revision: Option<String>,
    /// What to use in place of what the environment says.
    pub hub: HubOptions,
}

/// What has been pushed, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// `owner/name`.
    pub repository: String,
    /// The repository's address.
    pub url: String,
    /// The branch.
    pub revision: String,
    /// The commit.
    pub commit: String,
    /// The commit's address.
    pub commit_url: String,
    /// The files, by their names there.
    pub files: Vec<String>,
    /// Their size.
    pub bytes: u64,
    /// Files of the folder that are not of the model, and were left out.
    pub left_out: Vec<String>,
    /// Whether the repository is new.
    pub created: bool,
    /// Whether the repository is private.
    pub private: bool,
}

/// Pushes a run's student, a model's folder, an adapter's folder or a GGUF file to `repository`,
/// `owner/name`, in one commit.
///
/// A new repository is private, unless it is to be public. Of a folder the files of a model are taken:
/// weights, configurations, tokenizer, chat template, card and license; nothing hidden and nothing that
/// only training needs. Files of the same name are replaced there, in a commit of their own that leaves
/// the old ones in the history; other files stay. A folder without a card gets a short one, unless the
/// repository has a card.
///
/// Big files go through Xet, the hub's storage, which sends only what it does not have. Where a hub does
/// not offer it, they are refused.
///
/// # Errors
/// [`Error::Model`] where there is nothing to push, where the hub refuses it, or knows no valid token,
/// where the repository is public and not to be, or where the connection fails; [`Error::Io`];
/// [`Error::Stopped`].
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
    let id = RepoId::new(owner, name, revision)
        .map_err(|what| refuse(what, "Write owner/name, in letters, digits, `.`, `_` and `-`"))?;
    if is_commit(revision) {
        return Err(refuse("a commit cannot be pushed to".into(), "Name a branch"));
    }
    let files = PushFiles::of(what)?;
    if options.hub.offline || is_offline() {
        return Err(refuse("HF_HUB_OFFLINE is set".into(), "Push where there is a network"));
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
            true => "the commit was on its way: look at the repository whether it is there",
            false => "nothing is committed; what has been sent is not sent again",
        })
    };
    match done {
        Err(Error::Stopped { .. }) | Ok(Err(Failed::Stopped)) => Err(stopped()),
        Err(error) => Err(error),
        Ok(done) => done.map_err(|failed| failed.worded(&refuse)),
    }
}

/// How far a push is.
#[derive(Default)]
pub(super) struct Going {
    /// Bytes that were read to tell what they are.
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

    /// In words; `refuse` adds the repository. Addresses are left out: they can hold keys.
    fn worded(self, refuse: &dyn Fn(String, &str) -> Error) -> Error {
        let said = |message: Option<String>| {
            message.map(|text| format!(": {}", plain(&text))).unwrap_or_default()
        };
        let error = match self {
            Self::Stopped => return Error::stopped("nothing is committed"),
            Self::Refused { what, hint } => return refuse(what, hint),
            Self::Io(error) => return error,
            Self::Hub(error) => error,
        };
        let (what, hint) = match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                let (status, said) = (context.status.as_u16(), said(context.server_message));
                (format!("the hub refuses access ({status}){said}"), TOKEN)
            }
            HFError::RepoNotFound { .. } => ("the hub has no such model any more".into(), LATER),
            HFError::Http { context }
            | HFError::RateLimited { context, .. }
            | HFError::Conflict { context } => {
                let (status, said) = (context.status.as_u16(), said(context.server_message));
                (format!("the hub answers {status}{said}"), LATER)
            }
            HFError::Request { source, .. } => {
                (format!("the connection failed: {}", with_causes(&source.without_url())), LATER)
            }
            HFError::Xet { source, .. } => {
                (format!("Xet, the hub's storage, fails: {}", with_causes(&*source)), LATER)
            }
            HFError::Url(error) => {
                (format!("HF_ENDPOINT is no address: {error}"), "Mend the variable")
            }
            other => (plain(&other.to_string()), LATER),
        };
        refuse(what, hint)
    }
}

/// A push on a thread of its own.
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
    /// Does all of it; a stop drops what is under way, so that nothing is committed later.
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
        // Before gigabytes are read.
        match client.whoami().send().await {
            Err(HFError::AuthRequired { .. }) => {
                return Err(Failed::refused("the hub is given no valid token", TOKEN));
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
            let hint = "Look at the repository whether it is there";
            Failed::refused("the hub does not name the commit", hint)
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

    /// A commit; where big files would go into the request as text, the error of their streams.
    async fn whole<T>(commit: impl Future<Output = HFResult<T>>) -> Result<T, Failed> {
        match commit.await {
            Err(HFError::Other(text)) if text == super::push_files::NO_XET => Err(Failed::refused(
                "this hub does not take big files through Xet, the only way that this build has",
                "Push it with `hf upload`",
            )),
            other => Ok(other?),
        }
    }

    /// What is there; `None` where nothing is.
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
                "the repository is there and is public",
                "Push to it as a public one (--public), or choose another name",
            ));
        }
        let mut names = info.siblings.iter().flatten().map(|file| file.rfilename.as_str());
        Ok(Some(There { private, has_card: names.any(|name| name == super::push_files::CARD) }))
    }

    /// The commit's operations, their names, and their size.
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

/// A repository that is there.
struct There {
    private: bool,
    has_card: bool,
}
