//! Selects the layers that get adapters, and the modules that are trained and stored with them, by PEFT's
//! rules.

use super::config::LoraConfig;
use super::names::ModuleNames;
use super::regex::{BlockNumbers, Deadline, Expression, Matcher};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use std::collections::{BTreeMap, BTreeSet};

/// Path of the decoder in a vision-language model, instead of `model.`.
pub(in crate::model) const WITHIN: &str = "model.language_model.";

/// The same in transformers 4.
pub(in crate::model) const OLD_WITHIN: &str = "language_model.model.";

/// Names of the embedding's and the head's tensors.
pub(in crate::model) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(in crate::model) const HEAD: &str = "lm_head.weight";

/// Origin of an adapter's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoraSource {
    /// A user, for a text-only model. Names without a match are an error.
    Settings,
    /// A user, for the text part of a vision-language model. Paths may be those of either model.
    SettingsOfPart,
    /// A file. As in PEFT, names without a match are allowed as long as some layer has an adapter; the
    /// tensors in the file are checked instead.
    File,
}

/// A layer's adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerLora {
    /// Rank.
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    /// Factor of the output.
    pub(crate) scale: f64,
    pub(crate) dropout: f64,
    /// Whether B has a bias.
    pub(crate) has_bias: bool,
    /// Whether it uses DoRA.
    pub(crate) has_magnitude: bool,
}

/// The parts of a model that an adapter affects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LoraTargets {
    /// Linear layers with an adapter, by path.
    pub(crate) layers: BTreeMap<String, LayerLora>,
    /// Tensors of the model that are trained in full and stored with the adapter.
    pub(crate) saved: BTreeSet<String>,
    /// Whether a tied embedding and head become two matrices.
    pub(crate) unties: bool,
}

impl LoraSource {
    /// Returns whether names without a match are an error.
    fn is_strict(self) -> bool {
        self != Self::File
    }

    /// Returns the paths by which a module may be named.
    fn paths(self, path: &str) -> Vec<String> {
        let plain = path.to_owned();
        match (self, path.strip_prefix("model.")) {
            (Self::Settings, _) | (_, None) => vec![plain],
            (_, Some(rest)) => {
                vec![plain, format!("{WITHIN}{rest}"), format!("{OLD_WITHIN}{rest}")]
            }
        }
    }
}

/// Returns whether any of these paths matches.
fn any(paths: &[String], mut is_meant: impl FnMut(&str) -> Result<bool>) -> Result<bool> {
    for path in paths {
        if is_meant(path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refuse<T>(key: &str, what: String, hint: &str) -> Result<T> {
    Err(Error::config(format!("lora.{key}"), what, hint))
}

impl LoraConfig {
    /// Returns the adapter of a layer that no pattern matches.
    pub(crate) fn of_layer(&self) -> LayerLora {
        LayerLora {
            rank: self.rank,
            alpha: self.alpha,
            scale: self.scale(),
            dropout: self.dropout,
            has_bias: self.lora_bias,
            has_magnitude: self.use_dora,
        }
    }

    /// Returns the targets of these settings in a model. The settings must come from
    /// [`LoraConfig::for_model`].
    ///
    /// # Errors
    /// [`Error::Config`] if the model lacks a target, or an expression is invalid or takes too long.
    pub(crate) fn targets_in(
        &self,
        model: &DecoderConfig,
        source: LoraSource,
    ) -> Result<LoraTargets> {
        let deadline = Deadline::new();
        let shapes = model.tensor_shapes();
        let linear: Vec<&str> = shapes
            .iter()
            .filter(|(name, shape)| name.starts_with("model.layers.") && shape.len() == 2)
            .filter_map(|(name, _)| name.strip_suffix(".weight"))
            .collect();
        let tensors = shapes.keys().map(String::as_str);
        let saved = self.saved_in(model, tensors, source, deadline)?;
        let mut layers: BTreeMap<String, LayerLora> = self
            .targeted(model, &linear, source, deadline)?
            .into_iter()
            .map(|path| (path.to_owned(), self.of_layer()))
            .collect();
        self.set_by_pattern(&mut layers, source, deadline)?;
        if let Some(both) = layers.keys().find(|path| saved.contains(&format!("{path}.weight"))) {
            let what = format!("it includes {both}, which also gets an adapter");
            return refuse(
                "modules_to_save",
                what,
                "Use each layer in only one of target_modules and modules_to_save",
            );
        }
        let has = |name: &str| saved.contains(name);
        let unties =
            model.tie_word_embeddings && !self.ensure_weight_tying && (has(EMBEDDING) || has(HEAD));
        Ok(LoraTargets { layers, saved, unties })
    }

    /// Returns the linear layers that get adapters.
    fn targeted<'a>(
        &self,
        model: &DecoderConfig,
        linear: &[&'a str],
        source: LoraSource,
        deadline: Deadline,
    ) -> Result<Vec<&'a str>> {
        let targets = Matcher::new("target_modules", &self.target_modules, deadline)?;
        let excluded = Matcher::new("exclude_modules", &self.exclude_modules, deadline)?;
        let within: Vec<Expression> = self
            .modules_to_save
            .iter()
            .map(|name| Expression::of_module("modules_to_save", name, deadline))
            .collect::<Result<_>>()?;
        let is_excluded = |path: &str| -> Result<bool> {
            let paths = source.paths(path);
            for saved in &within {
                if any(&paths, |path| saved.matches(path))? {
                    return Ok(true);
                }
            }
            any(&paths, |path| excluded.matches(path))
        };
        for other in ["lm_head", "model.embed_tokens"] {
            let paths = source.paths(other);
            if any(&paths, |path| targets.matches(path))? && !is_excluded(other)? {
                let what =
                    format!("it matches {other}, but only layers of blocks can have adapters");
                let hint = "Add it to modules_to_save, which trains it in full, or exclude it";
                return refuse("target_modules", what, hint);
            }
        }
        let numbers = BlockNumbers::new(&self.layers_pattern, deadline)?;
        let in_block = |path: &str| -> Result<bool> {
            let number = numbers.of(path)?;
            Ok(number.is_some_and(|number| self.layers_to_transform.contains(&number)))
        };
        let mut found = vec![];
        for path in linear {
            let paths = source.paths(path);
            let is_target = any(&paths, |path| targets.matches(path))?
                && (self.layers_to_transform.is_empty() || any(&paths, in_block)?);
            if is_target && !is_excluded(path)? {
                found.push(*path);
            }
        }
        if source.is_strict() {
            self.check_names(model, linear, source, deadline)?;
        }
        if found.is_empty() {
            let what = format!("no layer of the model matches `{}`", self.target_modules);
            let hint = format!("Choose from {}", model.linear_layers().join(", "));
            return refuse("target_modules", what, &hint);
        }
        Ok(found)
    }

    /// Refuses names without a match.
    fn check_names(
        &self,
        model: &DecoderConfig,
        linear: &[&str],
        source: LoraSource,
        deadline: Deadline,
    ) -> Result<()> {
        let names_any = |one: &Matcher<'_>| -> Result<bool> {
            for path in linear {
                if any(&source.paths(path), |path| one.matches(path))? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let layers = model.linear_layers().join(", ");
        for name in self.target_modules.list() {
            if !names_any(&Matcher::List(std::slice::from_ref(name)))? {
                let what = format!("the model has no separate linear layer `{name}`");
                return refuse("target_modules", what, &format!("Choose from {layers}"));
            }
        }
        let excluded: Vec<Matcher<'_>> = match &self.exclude_modules {
            ModuleNames::List(names) => names.chunks(1).map(Matcher::List).collect(),
            pattern => vec![Matcher::new("exclude_modules", pattern, deadline)?],
        };
        for one in &excluded {
            if !names_any(one)? {
                let what = match one {
                    Matcher::List(names) => format!("the model has no linear layer `{}`", names[0]),
                    Matcher::Pattern(_) => "it matches no linear layer".into(),
                };
                return refuse("exclude_modules", what, &format!("Choose from {layers}"));
            }
        }
        let blocks = model.num_hidden_layers;
        if let Some(number) = self.layers_to_transform.iter().find(|number| **number >= blocks) {
            let what = format!("it lists block {number}");
            let hint = format!("Use numbers from 0 to {}", blocks - 1);
            return refuse("layers_to_transform", what, &hint);
        }
        Ok(())
    }

    /// Applies the patterns of ranks and alphas.
    fn set_by_pattern(
        &self,
        layers: &mut BTreeMap<String, LayerLora>,
        source: LoraSource,
        deadline: Deadline,
    ) -> Result<()> {
        let mut matched = |key: &'static str,
                           texts: &mut dyn Iterator<Item = &String>,
                           set: &mut dyn FnMut(&mut LayerLora, usize)|
         -> Result<()> {
            let mut open: BTreeSet<String> = layers.keys().cloned().collect();
            for (index, text) in texts.enumerate() {
                let expression = Expression::of_end(key, text, deadline)?;
                let mut is_used = false;
                for (path, layer) in layers.iter_mut() {
                    if any(&source.paths(path), |path| expression.matches(path))? {
                        is_used = true;
                        if open.remove(path) {
                            set(layer, index);
                        }
                    }
                }
                if !is_used && source.is_strict() {
                    let what = format!("`{text}` matches no layer with an adapter");
                    let hint =
                        "Use the end of a layer's path, such as q_proj or layers.0.mlp.up_proj";
                    return refuse(key, what, hint);
                }
            }
            Ok(())
        };
        let ranks = &self.rank_pattern.0;
        let mut texts = ranks.iter().map(|(text, _)| text);
        matched("rank_pattern", &mut texts, &mut |layer, index| layer.rank = ranks[index].1)?;
        let alphas = &self.alpha_pattern.0;
        let mut texts = alphas.iter().map(|(text, _)| text);
        matched("alpha_pattern", &mut texts, &mut |layer, index| layer.alpha = alphas[index].1)?;
        for layer in layers.values_mut() {
            layer.scale = self.scale_of(layer.rank, layer.alpha);
        }
        Ok(())
    }

    /// Returns the tensors of the modules that are trained in full.
    fn saved_in<'a>(
        &self,
        model: &DecoderConfig,
        tensors: impl Iterator<Item = &'a str>,
        source: LoraSource,
        deadline: Deadline,
    ) -> Result<BTreeSet<String>> {
        let mut saved = BTreeSet::new();
        let mut unused: BTreeSet<&String> = self.modules_to_save.iter().collect();
        // A tied head counts as a module, too.
        for tensor in tensors.chain(model.tie_word_embeddings.then_some(HEAD)) {
            deadline.check("modules_to_save")?;
            let mut module = tensor;
            while let Some((outer, _)) = module.rsplit_once('.') {
                module = outer;
                let paths = source.paths(module);
                for name in &self.modules_to_save {
                    // PEFT does not require a dot before the name.
                    if paths.iter().any(|path| path.ends_with(name)) {
                        saved.insert(tensor.to_owned());
                        unused.remove(name);
                    }
                }
            }
        }
        if let Some(name) = unused.first().filter(|_| source.is_strict()) {
            let what = format!("the model has no module `{name}`");
            let hint =
                "Use names such as embed_tokens, lm_head, model.norm, or layers.0.mlp.up_proj";
            return refuse("modules_to_save", what, hint);
        }
        // The shared matrix is stored as the embedding.
        if model.tie_word_embeddings && self.ensure_weight_tying && saved.remove(HEAD) {
            saved.insert(EMBEDDING.to_owned());
        }
        Ok(saved)
    }
}
