//! A model on the hub.

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
/// Files that a model may lack.
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

/// An error about a model.
pub(super) fn model_error(name: impl Into<PathBuf>, what: String, hint: &str) -> Error {
    Error::Model { path: name.into(), what, hint: hint.into() }
}

impl HubModel {
    /// Reads `owner/name` or `owner/name@revision`. A revision is a branch, a tag or a commit;
    /// without one it is `main`.
    ///
    /// # Errors
    /// [`Error::Model`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        RepoId::new(owner, name, revision).map(Self).map_err(|what| {
            let hint =
                "Write owner/name or owner/name@revision, in letters, digits, `.`, `_` and `-`";
            model_error(text.escape_debug().to_string(), what, hint)
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
            let hint = "Only safetensors are read: choose another model, or convert this one";
            return Ok(Some((WEIGHTS.into(), hint)));
        }
        for shard in self.shards(&at.folder.join(INDEX))? {
            if !get(&shard)? {
                return Ok(Some((shard, "Its index names the file; choose another revision")));
            }
        }
        Ok(None)
    }
}

impl WantedModel<'_> {
    /// The files that an index names.
    fn shards(&self, index: &Path) -> Result<BTreeSet<String>> {
        let text = read_if_there(index)?.unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
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
}
