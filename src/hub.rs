//! Models from the Hugging Face Hub: `owner/name@revision` comes into the usual cache and is a
//! folder like any other from there on.
//!
//! The cache is the one of Hugging Face's own tools, so what they fetched is not fetched again. The
//! variables `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what
//! they mean there.

mod client;

use crate::context::{Context, Task};
use crate::error::{Error, Result};
pub use client::HubOptions;
use client::{Coming, Repository, connect, failure, resolve};
use hf_hub::HFError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fmt, fs, thread};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files that a model may lack.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// Attempts at a file that does not come whole.
const ATTEMPTS: usize = 3;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(200);

/// A model on the Hugging Face Hub: owner, name and revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    owner: String,
    name: String,
    revision: String,
}

/// Whether the environment says to leave the hub alone.
fn is_offline() -> bool {
    let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
    ["1", "on", "yes", "true"].contains(&offline.as_str())
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.owner, self.name, self.revision)
    }
}

impl HubModel {
    /// Reads `owner/name` or `owner/name@revision`. A revision is a branch, a tag or a commit;
    /// without one it is `main`.
    ///
    /// # Errors
    /// [`Error::Model`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        let (what, part) = match (is_name(owner), is_name(name), is_revision(revision)) {
            (true, true, true) => {
                let [owner, name, revision] = [owner, name, revision].map(str::to_owned);
                return Ok(Self { owner, name, revision });
            }
            (false, ..) => ("an owner", owner),
            (_, false, _) => ("a name", name),
            _ => ("a revision", revision),
        };
        Err(Error::Model {
            path: text.escape_debug().to_string().into(),
            what: format!("`{}` is not {what} on the hub", part.escape_debug()),
            hint: "Write owner/name or owner/name@revision, in letters, digits, `.`, `_` and `-`"
                .into(),
        })
    }

    /// Brings the model into the cache and returns its folder there, which is named after the
    /// commit that the revision stands for.
    ///
    /// Of the model it takes `config.json`, the safetensors and what a tokenizer needs, all from
    /// one commit, and nothing that the cache has already. Where the hub cannot be reached or
    /// `HF_HUB_OFFLINE` is set, a whole copy in the cache is enough. A commit that the cache has
    /// whole is used without asking the hub.
    ///
    /// The library that fetches big files reports speeds to the hub, without names; with
    /// `HF_HUB_DISABLE_TELEMETRY` or `DO_NOT_TRACK` set to `1` it does not.
    ///
    /// # Errors
    /// [`Error::Model`] where the hub refuses the model or does not have it, where it lacks
    /// `config.json` or safetensors, or where the connection fails and the cache has no whole copy;
    /// [`Error::Io`]; [`Error::Stopped`]: what has come stays in the cache.
    pub fn fetch(&self, context: &Context<'_>) -> Result<PathBuf> {
        self.fetch_with(&HubOptions { offline: is_offline(), ..HubOptions::default() }, context)
    }

    /// As [`HubModel::fetch`], but for the weights: the configuration and the tokenizer.
    ///
    /// # Errors
    /// As of [`HubModel::fetch`].
    pub fn fetch_settings(&self, context: &Context<'_>) -> Result<PathBuf> {
        let options =
            HubOptions { offline: is_offline(), settings_only: true, ..HubOptions::default() };
        self.fetch_with(&options, context)
    }

    /// [`HubModel::fetch`] with other options than those of the environment.
    ///
    /// # Errors
    /// As of [`HubModel::fetch`].
    pub fn fetch_with(&self, hub: &HubOptions, context: &Context<'_>) -> Result<PathBuf> {
        let root = hub.cache.clone().or_else(usual_cache).ok_or_else(|| {
            self.error("there is no home folder for the cache", "Set HF_HOME to a folder")
        })?;
        let cache = Cache(root.join(format!("models--{}--{}", self.owner, self.name)));
        if hub.offline {
            return self.cached(&cache, hub.settings_only, "HF_HUB_OFFLINE is set");
        }
        if is_commit(&self.revision) && self.is_settled(&cache, hub.settings_only)? {
            return Ok(cache.snapshot(&self.revision));
        }
        let failure = |error| failure(&self.to_string(), &root, None, error);
        let repository = connect(hub, &root).map_err(failure)?.model(&self.owner, &self.name);
        let commit = match resolve(&repository, &self.revision, context)? {
            Ok(commit) => commit.map_err(failure)?,
            Err(why) => {
                let why = format!("the hub cannot be reached ({why})");
                let folder = self.cached(&cache, hub.settings_only, &why)?;
                context.notice(format!("{self}: {why}; using the copy in the cache"))?;
                return Ok(folder);
            }
        };
        if !is_commit(&commit) {
            return Err(self.error("the hub does not name its commit", "Check HF_ENDPOINT"));
        }
        let lack = self.gather(&cache.snapshot(&commit), hub.settings_only, |file| {
            Ok(cache.has(&commit, file)
                || !cache.knows_absent(&commit, file)
                    && self.download(&repository, &cache, &commit, file, context)?)
        })?;
        if let Some((file, hint)) = lack {
            return Err(self.error(format!("it has no `{file}`"), hint));
        }
        self.remember(&cache, &commit)?;
        Ok(cache.snapshot(&commit))
    }

    /// Asks for every file that the model needs through `get`, which answers whether there is one.
    /// Returns the one that is missing, with a hint.
    fn gather(
        &self,
        snapshot: &Path,
        settings_only: bool,
        mut get: impl FnMut(&str) -> Result<bool>,
    ) -> Result<Option<(String, &'static str)>> {
        if !get(CONFIG)? {
            return Ok(Some((CONFIG.into(), "Choose the repository of a language model")));
        }
        for file in OPTIONAL {
            get(file)?;
        }
        if settings_only || get(WEIGHTS)? {
            return Ok(None);
        }
        if !get(INDEX)? {
            let hint = "Only safetensors are read: choose another model, or convert this one";
            return Ok(Some((WEIGHTS.into(), hint)));
        }
        for shard in self.shards(&snapshot.join(INDEX))? {
            if !get(&shard)? {
                return Ok(Some((shard, "Its index names the file; choose another revision")));
            }
        }
        Ok(None)
    }

    /// The files that an index names.
    fn shards(&self, index: &Path) -> Result<BTreeSet<String>> {
        let text = fs::read(index).map_err(|e| Error::io("read", index, e))?;
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let names = value["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        let names: Option<BTreeSet<&str>> = names.map(|name| name.as_str()).collect();
        let error = |what| self.error(what, "Do not use this revision of the model");
        let names = names.filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| error(format!("its {INDEX} names no files")))?;
        let is_plain = |name: &&&str| {
            is_word(name) && !name.starts_with('.') && name.ends_with(".safetensors")
        };
        if let Some(name) = names.iter().find(|name| !is_plain(name)) {
            let name = name.escape_debug();
            return Err(error(format!("its {INDEX} names `{name}`, which is no plain file name")));
        }
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    /// Fetches one file; false where the commit has none of that name.
    fn download(
        &self,
        hub: &Repository,
        cache: &Cache,
        commit: &str,
        file: &str,
        context: &Context<'_>,
    ) -> Result<bool> {
        let path = cache.snapshot(commit).join(file);
        let mut is_bad = false;
        for attempt in 1..=ATTEMPTS {
            let coming = Arc::new(Coming::default());
            let (hub, handler) = (hub.clone(), Arc::clone(&coming));
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
                    let what = format!("the hub gives `{file}` of another commit");
                    return Err(self.error(what, "Check HF_ENDPOINT"));
                }
                Ok(_) if coming.is_whole(&path) => return Ok(true),
                // hf-hub takes an error page for the file, and the first part for the whole.
                Ok(_) => {
                    cache.discard(&path);
                    is_bad = true;
                }
                Err(HFError::EntryNotFound { .. }) => return Ok(false),
                Err(HFError::Request { .. } | HFError::Xet { .. }) if attempt < ATTEMPTS => {}
                Err(error) => {
                    return Err(failure(&self.to_string(), &cache.0, Some(file), error));
                }
            }
            context.aside(|| thread::sleep(PAUSE), &mut || Ok(()))?;
        }
        let hint = "Try again; files that are in the cache are not fetched again";
        let what = format!("`{file}` does not come whole, or something else comes in its place");
        Err(self.error(what, hint))
    }

    /// The whole copy in the cache, or an error that says `why` it was needed.
    fn cached(&self, cache: &Cache, settings_only: bool, why: &str) -> Result<PathBuf> {
        let hint = "Fetch it once with a network; then the cache is enough";
        let noted = fs::read_to_string(cache.0.join("refs").join(&self.revision));
        let commit = noted.unwrap_or_else(|_| self.revision.clone());
        let commit = commit.trim();
        if !is_commit(commit) {
            return Err(self.error(format!("{why}, and the model is not in the cache"), hint));
        }
        match self
            .gather(&cache.snapshot(commit), settings_only, |file| Ok(cache.has(commit, file)))?
        {
            None => Ok(cache.snapshot(commit)),
            Some((file, _)) => {
                let what = format!("{why}, and the copy in the cache has no `{file}`");
                Err(self.error(what, hint))
            }
        }
    }

    /// Whether the revision is a commit that the cache has whole, with nothing left to ask.
    fn is_settled(&self, cache: &Cache, settings_only: bool) -> Result<bool> {
        let mut known = true;
        let lack = self.gather(&cache.snapshot(&self.revision), settings_only, |file| {
            let has = cache.has(&self.revision, file);
            known &= has || cache.knows_absent(&self.revision, file);
            Ok(has)
        })?;
        Ok(known && lack.is_none())
    }

    /// Notes which commit the revision is, for when there is no network.
    fn remember(&self, cache: &Cache, commit: &str) -> Result<()> {
        let refs = cache.0.join("refs");
        let path = refs.join(&self.revision);
        let is_noted = fs::read_to_string(&path).is_ok_and(|noted| noted.trim() == commit);
        if is_noted || is_commit(&self.revision) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&refs);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        fs::write(&path, commit).map_err(|e| Error::io("write", &path, e))
    }

    fn error(&self, what: impl Into<String>, hint: &str) -> Error {
        Error::Model { path: self.to_string().into(), what: what.into(), hint: hint.into() }
    }
}

/// The folder of one model in the cache, laid out as Hugging Face's tools do.
struct Cache(PathBuf);

impl Cache {
    fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether the hub has said that the commit lacks the file.
    fn knows_absent(&self, commit: &str, file: &str) -> bool {
        self.0.join(".no_exist").join(commit).join(file).is_file()
    }

    /// Removes a file that is not whole, and what it links to.
    fn discard(&self, path: &Path) {
        if let (Ok(folder), Ok(target)) = (self.0.canonicalize(), path.canonicalize())
            && target.starts_with(folder)
        {
            let _ = fs::remove_file(target);
        }
        let _ = fs::remove_file(path);
    }
}

/// The cache's folder, found as Hugging Face's tools find it.
fn usual_cache() -> Option<PathBuf> {
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

/// Letters, digits, `.`, `_` and `-`, and nothing that climbs out of a folder.
fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain) && !text.contains("..")
}

/// The hub's own rule for owners and names; the cache's folders need it too.
fn is_name(text: &str) -> bool {
    let edge = ['.', '-'];
    is_word(text)
        && text.len() <= 96
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
}

fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| is_word(part) && !part.starts_with('.'))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
