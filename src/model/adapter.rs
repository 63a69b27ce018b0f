//! Reads and writes adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

mod config;
mod misfit;

use super::config::DecoderConfig;
use super::decoder::DecoderLm;
use super::folder::{CHAT_TEMPLATE, write_folder};
use super::lora::{
    AdapterTensors, EMBEDDING, HEAD, LayerLora, LoraConfig, LoraSource, LoraTargets, OLD_WITHIN,
    WITHIN,
};
use super::tensors::{HostTensor, NamedTensor, lazy_tensors, with_replaced};
use super::weights::{FileType, WeightFiles, write_file};
use crate::error::{Error, Result};
use crate::files::read_if_there;
use burn::tensor::{Device, Tensor, TensorData};
use config::{base_of, merge, read_config, write_config};
use misfit::misfit;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Pickled weights, written by older versions of PEFT.
const PICKLED: &str = "adapter_model.bin";

/// PEFT's prefix of paths in a causal language model.
const PREFIX: &str = "base_model.model.";

/// End of the path of DoRA's magnitude vector, whose name in PEFT's files lacks `.weight`.
const MAGNITUDE: &str = ".lora_magnitude_vector";

/// Metadata key of the weights file that holds the base model's fingerprint.
const BASE_KEY: &str = "base_model_sha256";

/// Options of [`DecoderLm::save_adapter`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SaveAdapter<'a> {
    /// Name or path of the base model.
    pub base: &'a str,
    /// Chat template used in training, if it differs from the base model's.
    pub chat_template: Option<&'a str>,
    /// Model card, in Markdown.
    pub card: Option<&'a str>,
}

/// Path components that identify the vision part of a vision-language model.
const OTHER_PARTS: [&str; 3] = ["vision_tower.", "multi_modal_projector.", "visual."];

/// This crate's name of an adapter tensor. `None` for tensors of the vision part, which text does not use.
fn own_name(name: &str) -> Option<String> {
    let Some(path) = name.strip_prefix(PREFIX) else { return Some(name.to_owned()) };
    let within = [WITHIN, OLD_WITHIN].into_iter().find_map(|within| path.strip_prefix(within));
    let path = match within {
        Some(rest) => format!("model.{rest}"),
        None if OTHER_PARTS.iter().any(|part| path.contains(part)) => return None,
        None => path.to_owned(),
    };
    let end = if path.ends_with(MAGNITUDE) { ".weight" } else { "" };
    Some(format!("{PREFIX}{path}{end}"))
}

/// Returns the name of a tensor in an adapter file.
fn name_in_file(name: &str, is_part: bool) -> String {
    let path = match name.strip_prefix("model.").filter(|_| is_part) {
        Some(rest) => format!("{WITHIN}{rest}"),
        None => name.to_owned(),
    };
    let plain = path.strip_suffix(".weight").filter(|path| path.ends_with(MAGNITUDE));
    format!("{PREFIX}{}", plain.unwrap_or(&path))
}

/// This crate's names of the adapter's tensors, with their shapes in the file.
fn shapes(model: &DecoderConfig, targets: &LoraTargets) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let of_model = model.tensor_shapes();
    for (path, lora) in &targets.layers {
        let Some([output, input]) = of_model.get(&format!("{path}.weight")).map(Vec::as_slice)
        else {
            continue;
        };
        let mut add = |part: &str, shape: Vec<usize>, is_there: bool| {
            if is_there {
                shapes.insert(format!("{PREFIX}{path}.{part}"), shape);
            }
        };
        add("lora_A.weight", vec![lora.rank, *input], true);
        add("lora_B.weight", vec![*output, lora.rank], true);
        add("lora_B.bias", vec![*output], lora.has_bias);
        add("lora_magnitude_vector.weight", vec![*output], lora.has_magnitude);
    }
    for name in &targets.saved {
        if let Some(shape) = shape_in(model, name) {
            shapes.insert(format!("{PREFIX}{name}"), shape);
        }
    }
    shapes
}

/// Returns the shape of a model tensor. A tied head has the shape of the embedding.
fn shape_in(model: &DecoderConfig, name: &str) -> Option<Vec<usize>> {
    let mut shapes = model.tensor_shapes();
    shapes.remove(name).or_else(|| shapes.remove(EMBEDDING).filter(|_| name == HEAD))
}

fn failed(path: &Path, what: String, hint: &str) -> Error {
    Error::Model { path: path.to_owned(), what, hint: hint.into() }
}

/// Returns the error for an adapter folder without safetensors weights.
fn no_weights(folder: &Path) -> Error {
    if folder.join(PICKLED).is_file() {
        return failed(
            folder,
            format!("it has {PICKLED} but no {WEIGHTS}; only safetensors weights are supported"),
            "Convert it in its folder: `import torch; from safetensors.torch import save_file; \
             save_file({k: v.contiguous() for k, v in torch.load(\"adapter_model.bin\", \
             map_location=\"cpu\", weights_only=True).items()}, \"adapter_model.safetensors\")`, \
             or save it with PEFT's `save_pretrained(FOLDER, safe_serialization=True)`",
        );
    }
    failed(folder, format!("it has no {WEIGHTS}"), "Pass a folder with an adapter in PEFT's format")
}

impl DecoderLm {
    /// Writes the adapters to a new folder in PEFT's format, atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written; [`Error::Model`] if it exists or the model has no
    /// adapters; [`Error::Training`] if the device cannot be read.
    pub fn save_adapter(&self, folder: &Path, how: &SaveAdapter<'_>) -> Result<()> {
        let config = self.lora().ok_or_else(|| Error::Model {
            path: folder.to_owned(),
            what: "the model has no adapters".into(),
            hint: "Save the whole model instead".into(),
        })?;
        let targets = config.targets_in(self.config(), LoraSource::File)?;
        // PEFT warns if there is nothing to tie.
        let ties = self.config().tie_word_embeddings && self.adapted().contains(EMBEDDING);
        let config = LoraConfig { ensure_weight_tying: ties, ..config.clone() };
        let config = write_config(&config, &targets, self.is_part(), how.base);
        // A single entry: several would be written in random order, and the file's bytes would vary.
        let metadata = HashMap::from([(BASE_KEY.to_owned(), self.fingerprint()?)]);
        write_folder(folder, |beside| {
            let write = |name: &str, text: &str| {
                let path = beside.join(name);
                std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
            };
            write(CONFIG, &format!("{config:#}\n"))?;
            if let Some(template) = how.chat_template {
                write(CHAT_TEMPLATE, template)?;
            }
            if let Some(card) = how.card {
                write("README.md", card)?;
            }
            write_file(&beside.join(WEIGHTS), &self.adapter_tensors(), FileType::F32, metadata)
        })
    }

    /// Returns the tensors of an adapter file.
    fn adapter_tensors(&self) -> Vec<NamedTensor> {
        let all = || lazy_tensors(self, false).into_iter();
        let is_of_adapter = |name: &str| name.contains(".lora_") || self.adapted().contains(name);
        let mut tensors: Vec<NamedTensor> =
            all().filter(|tensor| is_of_adapter(&tensor.name)).collect();
        if self.config().tie_word_embeddings && self.adapted().contains(EMBEDDING) {
            // PEFT expects the shared matrix under both names.
            let embedding = all().find(|tensor| tensor.name == EMBEDDING);
            tensors.extend(embedding.map(|mut embedding| {
                embedding.name = HEAD.to_owned();
                embedding
            }));
        }
        for tensor in &mut tensors {
            tensor.name = name_in_file(&tensor.name, self.is_part());
        }
        tensors
    }

    /// Attaches the adapters from a folder in PEFT's format and freezes the model's own weights.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read. [`Error::Model`] if the model already has adapters, the
    /// adapter needs an unsupported feature (named), its tensors do not fit the model (listed), or it belongs
    /// to another base model.
    pub fn with_adapter(self, folder: &Path) -> Result<Self> {
        if self.lora().is_some() {
            let what = "the model already has adapters".into();
            return Err(failed(folder, what, "Merge them first"));
        }
        let AdapterFiles { config, targets, stored, made_for, mut files } =
            AdapterFiles::open(folder, self.config())?;
        let device = self.device();
        let mut model = self.for_adapters(&targets, &stored);
        if let Some(fingerprint) = files.metadata(BASE_KEY)?
            && fingerprint != model.fingerprint()?
        {
            let what = "it was trained on a base model with other weights".to_owned();
            let hint = format!(
                "Use the exact base model that the adapter was trained on; {CONFIG} says it was made \
                 for {made_for}"
            );
            return Err(failed(&folder.join(WEIGHTS), what, &hint));
        }
        for (name, layer) in model.linear_layers_mut() {
            let Some(lora) = targets.layers.get(&name) else { continue };
            let mut read = |part: &str| files.read(&format!("{PREFIX}{name}.{part}"));
            let tensors = AdapterTensors {
                a: on(read("lora_A.weight")?.transposed(), &device),
                b: on(read("lora_B.weight")?.transposed(), &device),
                bias: lora
                    .has_bias
                    .then(|| read("lora_B.bias").map(|host| on(host, &device)))
                    .transpose()?,
                magnitude: lora
                    .has_magnitude
                    .then(|| read("lora_magnitude_vector.weight").map(|host| on(host, &device)))
                    .transpose()?,
            };
            layer.set_adapter(lora, &name, 0, tensors);
        }
        let is_one = model.config().tie_word_embeddings;
        let mut read = |name: &str| files.read_adapted(name, is_one).map(Some);
        let model = with_replaced(model, &targets.saved, true, &mut read)?;
        let mut model = with_replaced(model, &stored, false, &mut read)?;
        model.set_lora(config);
        Ok(model)
    }
}

/// Copies a tensor to a device.
fn on<const D: usize>(host: HostTensor, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(host.values, host.shape), device)
}

/// The tensors of an adapter file, by this crate's names.
struct AdapterWeights(WeightFiles);

impl AdapterWeights {
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if there is no safetensors file, or it is damaged.
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(WEIGHTS);
        if !path.exists() {
            return Err(no_weights(folder));
        }
        let mut files = WeightFiles::open_file(path)?;
        files.rename(own_name);
        Ok(Self(files))
    }

    fn metadata(&self, key: &str) -> Result<Option<String>> {
        self.0.metadata(key)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        self.0.read(name)
    }

    /// Reads a tensor that replaces the model's. A tied matrix has two names (`is_one`).
    fn read_adapted(&mut self, name: &str, is_one: bool) -> Result<HostTensor> {
        let [this, head] = [name, HEAD].map(|name| format!("{PREFIX}{name}"));
        if name != EMBEDDING || !is_one || !self.0.holds(&head) {
            return self.0.read(&this);
        }
        let both = self.0.read(&head)?;
        if self.0.holds(&this) && self.0.read(&this)? != both {
            let what = format!("{head} differs from the embedding that it is tied to");
            let hint = "Use a base model with its own head, whose config.json sets \
                        `tie_word_embeddings` to false";
            return Err(failed(self.0.path(), what, hint));
        }
        Ok(both)
    }
}

/// An adapter folder, checked against the shapes of its base model. Opening it reads no weights.
pub(super) struct AdapterFiles {
    config: LoraConfig,
    targets: LoraTargets,
    /// Embedding and head tensors that the file holds although its settings do not list them.
    stored: BTreeSet<String>,
    /// The base model that the settings name, for messages.
    made_for: String,
    files: AdapterWeights,
}

impl AdapterFiles {
    /// # Errors
    /// Same as [`DecoderLm::with_adapter`], except that the base model's weights are not compared.
    pub fn open(folder: &Path, model: &DecoderConfig) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = read_if_there(&path)?.ok_or_else(|| {
            let hint = "Pass a folder with an adapter in PEFT's format";
            failed(folder, format!("it has no {CONFIG}"), hint)
        })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| failed(&path, format!("it is not JSON: {e}"), "Fix the file"))?;
        let config =
            read_config(&json).map_err(|refusal| failed(&path, refusal.what, refusal.hint))?;
        let config = config.for_model(model);
        let targets = config.targets_in(model, LoraSource::File).map_err(|error| {
            let refusal = merge(error.to_string().trim_end_matches('.').to_owned());
            failed(&path, refusal.what, refusal.hint)
        })?;
        let path = folder.join(WEIGHTS);
        let files = AdapterWeights::open(folder)?;
        let held: BTreeMap<String, Vec<usize>> =
            files.0.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        let (expected, stored) = expected(model, &targets, &held);
        let mut problems = vec![];
        for (name, shape) in &expected {
            match held.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(held) if held != shape => {
                    problems.push(format!("{name} is {held:?}, not {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let extra: Vec<&str> =
            held.keys().filter(|name| !expected.contains_key(*name)).map(String::as_str).collect();
        problems.extend(extra.iter().map(|name| format!("{name} does not belong to this model")));
        if !problems.is_empty() {
            let (what, hint) = misfit(&json, model, &held, &extra, &problems);
            return Err(failed(&path, what, &hint));
        }
        Ok(Self { config, targets, stored, made_for: base_of(&json), files })
    }
}

/// An adapter layer that consists of A and B only.
pub(super) struct LowRankLayer {
    /// Path of the linear layer.
    pub path: String,
    pub rank: usize,
    /// Factor of the layer's output.
    pub scale: f64,
}

impl AdapterFiles {
    /// Returns the layers, if each of them consists of A and B only.
    ///
    /// # Errors
    /// A message that says what else the adapter has.
    pub fn low_rank(&self) -> std::result::Result<Vec<LowRankLayer>, String> {
        if let Some(name) = self.targets.saved.iter().chain(&self.stored).next() {
            return Err(format!("it stores all of {name}"));
        }
        let layer = |(path, lora): (&String, &LayerLora)| match lora {
            LayerLora { has_magnitude: true, .. } => Err(format!("{path} uses DoRA")),
            LayerLora { has_bias: true, .. } => Err(format!("{path} has a bias in B")),
            LayerLora { rank, scale, .. } => {
                Ok(LowRankLayer { path: path.clone(), rank: *rank, scale: *scale })
            }
        };
        self.targets.layers.iter().map(layer).collect()
    }

    /// Reads a layer's A, `[rank, input]`, and B, `[output, rank]`.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn matrices(&mut self, path: &str) -> Result<[HostTensor; 2]> {
        let mut read = |part: &str| self.files.read(&format!("{PREFIX}{path}.{part}.weight"));
        Ok([read("lora_A")?, read("lora_B")?])
    }
}

/// Returns the tensors that the adapter file must have, and those of them that are the embedding or the head
/// although the settings do not list them.
fn expected(
    model: &DecoderConfig,
    targets: &LoraTargets,
    held: &BTreeMap<String, Vec<usize>>,
) -> (BTreeMap<String, Vec<usize>>, BTreeSet<String>) {
    let mut expected = shapes(model, targets);
    let mut stored = BTreeSet::new();
    let is_one = model.tie_word_embeddings && !targets.unties;
    for name in [EMBEDDING, HEAD] {
        let in_file = format!("{PREFIX}{name}");
        if !held.contains_key(&in_file) || expected.contains_key(&in_file) {
            continue;
        }
        let Some(shape) = shape_in(model, name) else { continue };
        expected.insert(in_file, shape);
        let name = if is_one { EMBEDDING } else { name };
        if !targets.saved.contains(name) {
            stored.insert(name.to_owned());
        }
    }
    // A tied matrix needs only one of its two names.
    let [embedding, head] = [EMBEDDING, HEAD].map(|name| format!("{PREFIX}{name}"));
    if is_one && held.contains_key(&head) && !held.contains_key(&embedding) {
        expected.remove(&embedding);
    }
    (expected, stored)
}
