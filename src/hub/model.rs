//! Models on the Hub.

use super::client::{HubOptions, is_offline};
use super::fetch::{Commit, Lack, Wanted, fetch};
use super::names::{MAIN, RepoId, is_word};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::read_if_there;
use hf_hub::RepoTypeModel;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Optional files of a model.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// A model on the Hugging Face Hub: owner, name and revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel(RepoId);

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns an error about a model.
pub(super) fn model_error(name: impl Into<PathBuf>, what: String, hint: &str) -> Error {
    Error::Model { path: name.into(), what, hint: hint.into() }
}

impl HubModel {
    /// Parses `owner/name` or `owner/name@revision`. A revision is a branch, a tag, or a commit. The
    /// default is `main`.
    ///
    /// # Errors
    /// [`Error::Model`] for any other text.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        RepoId::new(owner, name, revision).map(Self).map_err(|what| {
            let hint =
                "Write owner/name or owner/name@revision, with letters, digits, `.`, `_`, and `-`";
            model_error(text.escape_debug().to_string(), what, hint)
        })
    }

    /// Downloads the model into the cache and returns its folder there. The folder is named after the
    /// commit that the revision resolves to.
    ///
    /// Downloads `config.json`, the safetensors, and the tokenizer files, all from one commit, and only
    /// what the cache lacks. If the Hub cannot be reached or `HF_HUB_OFFLINE` is set, a complete copy in
    /// the cache is used. A commit that the cache has completely is used without a request to the Hub.
    ///
    /// The library that downloads large files reports speeds to the Hub, without names. Set
    /// `HF_HUB_DISABLE_TELEMETRY` or `DO_NOT_TRACK` to `1` to turn that off.
    ///
    /// # Errors
    /// [`Error::Model`] if the Hub refuses access or does not have the model, if the model has no
    /// `config.json` or safetensors, or if the connection fails and the cache has no complete copy;
    /// [`Error::Io`]; [`Error::Stopped`]: downloaded files stay in the cache.
    pub fn fetch(&self, context: &Context<'_>) -> Result<PathBuf> {
        self.fetch_with(&HubOptions { offline: is_offline(), ..HubOptions::default() }, context)
    }

    /// Same as [`HubModel::fetch`], but without the weights: only the configuration and the tokenizer.
    ///
    /// # Errors
    /// Same as [`HubModel::fetch`].
    pub fn fetch_settings(&self, context: &Context<'_>) -> Result<PathBuf> {
        let options =
            HubOptions { offline: is_offline(), settings_only: true, ..HubOptions::default() };
        self.fetch_with(&options, context)
    }

    /// Same as [`HubModel::fetch`], with options that override the environment.
    ///
    /// # Errors
    /// Same as [`HubModel::fetch`].
    pub fn fetch_with(&self, hub: &HubOptions, context: &Context<'_>) -> Result<PathBuf> {
        let wanted = WantedModel { model: self, settings_only: hub.settings_only };
        Ok(fetch(&wanted, hub, context)?.folder)
    }
}

/// The files of a model.
struct WantedModel<'a> {
    model: &'a HubModel,
    settings_only: bool,
}

impl Wanted for WantedModel<'_> {
    type Kind = RepoTypeModel;

    fn id(&self) -> &RepoId {
        &self.model.0
    }

    fn error(&self, what: String, hint: &str) -> Error {
        model_error(self.model.to_string(), what, hint)
    }

    fn needs_list(&self) -> bool {
        false
    }

    fn gather(
        &self,
        at: &Commit<'_>,
        get: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<Option<Lack>> {
        if !get(CONFIG)? {
            return Ok(Some((CONFIG.into(), "Choose the repository of a language model")));
        }
        for file in OPTIONAL {
            get(file)?;
        }
        if self.settings_only || get(WEIGHTS)? {
            return Ok(None);
        }
        if !get(INDEX)? {
            let hint = "Choose another model or convert this one; only safetensors are supported";
            return Ok(Some((WEIGHTS.into(), hint)));
        }
        for shard in self.shards(&at.folder.join(INDEX))? {
            if !get(&shard)? {
                return Ok(Some((shard, "Choose another revision; the index names this file")));
            }
        }
        Ok(None)
    }
}

impl WantedModel<'_> {
    /// Returns the files that an index names.
    fn shards(&self, index: &Path) -> Result<BTreeSet<String>> {
        let text = read_if_there(index)?.unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let names = value["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        let names: Option<BTreeSet<&str>> = names.map(|name| name.as_str()).collect();
        let error = |what| self.error(what, "Use another revision of the model");
        let names = names.filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| error(format!("its {INDEX} names no files")))?;
        let is_plain = |name: &&&str| {
            is_word(name) && !name.starts_with('.') && name.ends_with(".safetensors")
        };
        if let Some(name) = names.iter().find(|name| !is_plain(name)) {
            let name = name.escape_debug();
            let what = format!("its {INDEX} names `{name}`, which is not a plain file name");
            return Err(error(what));
        }
        Ok(names.into_iter().map(str::to_owned).collect())
    }
}
