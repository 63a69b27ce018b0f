//! Adapters as folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

use super::config::DecoderConfig;
use super::decoder::DecoderLm;
use super::folder::{CHAT_TEMPLATE, write_folder};
use super::hf_config::Refusal;
use super::lora::{LoraConfig, PROJECTIONS};
use super::tensors::{NamedTensor, PathStack, host, lazy_tensors};
use super::weights::{FileType, WeightFiles, listed, write_file};
use crate::error::{Error, Result};
use crate::files::read_if_there;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights as older versions of PEFT write them, which holds Python's objects.
const PICKLED: &str = "adapter_model.bin";

/// What PEFT puts before the paths of a causal language model.
const PREFIX: &str = "base_model.model.";

/// Where the decoder of a model of text and images is, in place of `model.`.
const WITHIN: &str = "model.language_model.";

/// PEFT's name of all linear layers.
const ALL_LINEAR: &str = "all-linear";

/// Key in the metadata of the weights: the fingerprint of the base model.
const BASE_KEY: &str = "base_model_sha256";

/// Settings of PEFT that say nothing about the computation, or that are handled here.
const KNOWN: [&str; 22] = [
    "alora_invocation_tokens",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "loftq_config",
    "ensure_weight_tying",
];

/// How adapters are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct SaveAdapter<'a> {
    /// Name or path of the model that they belong to.
    pub base: &'a str,
    /// The chat template that they were trained with, where it is not the base's.
    pub chat_template: Option<&'a str>,
    /// A model card, in Markdown.
    pub card: Option<&'a str>,
}

/// Our name of an adapter's tensor; `None` for those on other parts of a model of text and images, which
/// text does not pass.
fn own_name(name: &str) -> Option<String> {
    let Some(path) = name.strip_prefix(PREFIX) else { return Some(name.to_owned()) };
    match path.strip_prefix(WITHIN) {
        Some(rest) => Some(format!("{PREFIX}model.{rest}")),
        None if path.contains("vision_tower.") || path.contains("multi_modal_projector.") => None,
        None => Some(name.to_owned()),
    }
}

/// The adapter's settings in PEFT's words. In a model of text and images the layers of the text part alone
/// have adapters.
fn write_config(config: &LoraConfig, is_part: bool, base: &str) -> Value {
    let target_modules = match is_part {
        true => json!(format!(r".*\.language_model\..*\.({})", config.target_modules.join("|"))),
        false => json!(config.target_modules),
    };
    // A name on the hub may come with its revision, which PEFT keeps apart.
    let (base, revision) = match base.split_once('@') {
        Some((name, revision)) if !Path::new(base).exists() => (name, Some(revision)),
        _ => (base, None),
    };
    json!({
        "revision": revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    })
}

/// What to do about an adapter that asks for more than is done here.
const MERGE: &str = "Merge it with PEFT (`AutoPeftModelForCausalLM.from_pretrained(ADAPTER)\
                     .merge_and_unload().save_pretrained(FOLDER)`) and give FOLDER as the model, or \
                     train an adapter without it";

/// What a setting of PEFT means where it is set, for those that are asked for most.
fn meaning(key: &str) -> Option<&'static str> {
    Some(match key {
        "rank_pattern" => "ranks of their own for some layers",
        "alpha_pattern" => "scales of their own for some layers",
        "layers_to_transform" => "adapters on some layers only",
        "layers_pattern" => "names of layers",
        "layer_replication" => "layers that are repeated",
        "exclude_modules" => "layers without adapters",
        "target_parameters" => "adapters on parameters",
        "trainable_token_indices" => "trained rows of the embedding",
        "modules_to_save" => "modules that were trained as a whole, beside the adapters",
        "use_dora" => "DoRA, which scales the weights' columns too",
        "lora_bias" => "biases in the adapters",
        "fan_in_fan_out" => "transposed weights",
        "use_qalora" => "quantized adapters",
        _ => return None,
    })
}

/// An adapter that asks for more than is done here.
fn merge(what: String) -> Refusal {
    Refusal { what, hint: MERGE }
}

/// Settings that no adapter has.
fn mend(what: String) -> Refusal {
    Refusal { what, hint: "Mend the file, or save the adapter again" }
}

/// The adapter's settings from PEFT's words; what is not done here is refused by name, in words.
fn read_config(value: &Value) -> std::result::Result<LoraConfig, Refusal> {
    let settings = value.as_object().ok_or_else(|| mend("it is not a JSON object".into()))?;
    if value["peft_type"] != "LORA" {
        return Err(merge(format!("`peft_type` is {}, not \"LORA\"", value["peft_type"])));
    }
    for (key, value) in settings.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
        let unset = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !unset {
            let means = meaning(key).map_or_else(String::new, |means| format!(" ({means})"));
            let what = format!("`{key}` is {value}{means}, which this build does not support");
            return Err(merge(what));
        }
    }
    if !value["alora_invocation_tokens"].is_null() {
        let what = "`alora_invocation_tokens` is set, which this build does not support";
        return Err(merge(what.into()));
    }
    match value["bias"].as_str() {
        None | Some("none") => {}
        Some(other) => {
            let what = "(trained biases of the model); this build supports \"none\" only";
            return Err(merge(format!("`bias` is \"{other}\" {what}")));
        }
    }
    match &value["init_lora_weights"] {
        Value::Null | Value::Bool(_) => {}
        Value::String(name) if name == "gaussian" => {}
        // These change the base model's weights when the adapter is made.
        other => {
            return Err(merge(format!(
                "`init_lora_weights` is {other}, which changes the base model's weights and which \
                 this build does not support"
            )));
        }
    }
    let rank = value["r"].as_u64().and_then(|r| usize::try_from(r).ok());
    let target_modules: BTreeSet<String> = match &value["target_modules"] {
        Value::Array(list) => {
            list.iter().filter_map(|m| Some(m.as_str()?.rsplit('.').next()?.to_owned())).collect()
        }
        Value::String(all) if all == ALL_LINEAR => PROJECTIONS.map(str::to_owned).into(),
        other => {
            return Err(mend(format!("`target_modules` is {other}, not a list of layers")));
        }
    };
    let config = LoraConfig {
        rank: rank.ok_or_else(|| mend(format!("`r` is {}, not a size", value["r"])))?,
        alpha: value["lora_alpha"].as_f64().ok_or_else(|| {
            mend(format!("`lora_alpha` is {}, not a number", value["lora_alpha"]))
        })?,
        dropout: value["lora_dropout"].as_f64().unwrap_or(0.0),
        rslora: value["use_rslora"].as_bool().unwrap_or(false),
        target_modules: target_modules.into_iter().collect(),
    };
    config.validate().map_err(|e| mend(e.to_string().trim_end_matches('.').to_owned()))?;
    Ok(config)
}

/// PEFT's name of an adapter's matrix, and its shape in the file.
fn shapes(config: &DecoderConfig, lora: &LoraConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for (name, shape) in config.tensor_shapes() {
        let Some(path) = name.strip_suffix(".weight") else { continue };
        if let [output, input] = shape[..]
            && path.starts_with("model.layers.")
            && lora.targets(path)
        {
            shapes.insert(format!("{PREFIX}{path}.lora_A.weight"), vec![lora.rank, input]);
            shapes.insert(format!("{PREFIX}{path}.lora_B.weight"), vec![output, lora.rank]);
        }
    }
    shapes
}

/// Layers that `target_modules` names one by one, as in `model.layers.3.self_attn.q_proj`.
fn single_layers(settings: &Value) -> Vec<&str> {
    let has_number = |path: &str| path.split('.').any(|part| part.parse::<u32>().is_ok());
    let names = settings["target_modules"].as_array().into_iter().flatten();
    names.filter_map(Value::as_str).filter(|path| has_number(path)).collect()
}

/// What is wrong where an adapter's tensors are not those that its settings and the model call for,
/// and what to do.
fn misfit(settings: &Value, extra: &[&str], problems: &[String]) -> (String, String) {
    let single = single_layers(settings);
    if !single.is_empty() {
        let what = "which this build does not support";
        let listed = listed(&single);
        return (format!("`target_modules` names single layers ({listed}), {what}"), MERGE.into());
    }
    let beside: Vec<&str> = extra.iter().filter(|name| !is_low_rank(name)).copied().collect();
    if !beside.is_empty() {
        let what = "(trained embeddings, whole modules, magnitudes or biases), which this build \
                    does not support";
        let listed = listed(&beside);
        return (format!("it holds tensors beside LoRA's matrices, {listed} {what}"), MERGE.into());
    }
    let what = format!("its tensors do not fit the model: {}", listed(problems));
    // Whether this is the model that it names cannot be told from a name.
    let hint = format!(
        "These names and shapes are what the file, {CONFIG} and the model differ in; by {CONFIG} it \
         was made for {}",
        base_of(settings)
    );
    (what, hint)
}

/// Whether a tensor is one of LoRA's two matrices of a linear layer.
fn is_low_rank(name: &str) -> bool {
    [".lora_A.weight", ".lora_B.weight"].iter().any(|end| name.ends_with(end))
        && !name.contains("embed_tokens")
        && !name.contains("lm_head")
}

/// The model that an adapter says it was made for.
fn base_of(settings: &Value) -> String {
    match (settings["base_model_name_or_path"].as_str(), settings["revision"].as_str()) {
        (None | Some(""), _) => "a model that it does not name".into(),
        (Some(base), None | Some("")) => base.to_owned(),
        (Some(base), Some(revision)) => format!("{base} (revision {revision})"),
    }
}

fn failed(path: &Path, what: String, hint: &str) -> Error {
    Error::Model { path: path.to_owned(), what, hint: hint.into() }
}

/// An adapter's folder without safetensors.
fn no_weights(folder: &Path) -> Error {
    if folder.join(PICKLED).is_file() {
        return failed(
            folder,
            format!("it has {PICKLED} and no {WEIGHTS}; weights are read from safetensors only"),
            "Convert it in its folder: `import torch; from safetensors.torch import save_file; \
             save_file({k: v.contiguous() for k, v in torch.load(\"adapter_model.bin\", \
             map_location=\"cpu\", weights_only=True).items()}, \"adapter_model.safetensors\")`, \
             or save it with PEFT's `save_pretrained(FOLDER, safe_serialization=True)`",
        );
    }
    failed(folder, format!("it has no {WEIGHTS}"), "Give the folder of an adapter in PEFT's format")
}

impl DecoderLm {
    /// A fingerprint of the weights without adapters: SHA-256 over name, shape and first numbers of
    /// each tensor, rounded to bf16, so that a copy in bf16 has the same one. Models that were
    /// trained apart differ in it.
    ///
    /// # Errors
    /// [`Error::Training`] where the device cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        struct Visitor {
            path: PathStack,
            shapes: BTreeMap<String, Vec<usize>>,
            parts: Vec<(String, Tensor<1>)>,
        }
        impl ModuleVisitor for Visitor {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }

            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }

            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                /// Numbers of a tensor's first column that count.
                const COUNTED: usize = 256;
                let name = self.path.name();
                if name.contains(".lora_") || name.ends_with(".encoded.scales") {
                    return;
                }
                let mut part = param.val();
                // Of a matrix in codes, what was its first column.
                if let Some(matrix) = name.strip_suffix(".encoded.first") {
                    let name = format!("{matrix}.weight");
                    let mut dims = self.shapes.get(&name).cloned().unwrap_or_default();
                    if !name.ends_with("embed_tokens.weight") {
                        dims.reverse();
                    }
                    let [count] = part.shape().dims();
                    self.parts.push((format!("{name} {dims:?}"), part.reshape([count])));
                    return;
                }
                let (dims, rows) = (part.dims(), part.dims()[0].min(COUNTED));
                for other in 1..D {
                    part = part.narrow(other, 0, 1);
                }
                let part = part.narrow(0, 0, rows).reshape([rows]);
                self.parts.push((format!("{name} {dims:?}"), part));
            }
        }
        let shapes = self.config().tensor_shapes();
        let mut visitor = Visitor { path: PathStack::default(), shapes, parts: vec![] };
        self.visit(&mut visitor);
        let mut hash = Sha256::new();
        for (name, part) in visitor.parts {
            hash.update(name.as_bytes());
            let rounded = host(part)?.values.into_iter().map(half::bf16::from_f32);
            rounded.for_each(|value| hash.update(value.to_le_bytes()));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes the adapters into a new folder in PEFT's format, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`]: the folder exists, or the model has no
    /// adapters; [`Error::Training`] where the device cannot be read.
    pub fn save_adapter(&self, folder: &Path, how: &SaveAdapter<'_>) -> Result<()> {
        let config = self.lora().ok_or_else(|| Error::Model {
            path: folder.to_owned(),
            what: "the model has no adapters".into(),
            hint: "Save it as a whole".into(),
        })?;
        let tensors: Vec<NamedTensor> = lazy_tensors(self, false)
            .into_iter()
            .filter(|tensor| tensor.name.contains(".lora_"))
            .map(|mut tensor| {
                if self.is_part() {
                    tensor.name = tensor.name.replacen("model.", WITHIN, 1);
                }
                tensor.name.insert_str(0, PREFIX);
                tensor
            })
            .collect();
        // One entry only: the order of more is left to chance, and so would be the file's bytes.
        let metadata = HashMap::from([(BASE_KEY.to_owned(), self.fingerprint()?)]);
        write_folder(folder, |beside| {
            let write = |name: &str, text: &str| {
                let path = beside.join(name);
                std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
            };
            write(CONFIG, &format!("{:#}\n", write_config(config, self.is_part(), how.base)))?;
            if let Some(template) = how.chat_template {
                write(CHAT_TEMPLATE, template)?;
            }
            if let Some(card) = how.card {
                write("README.md", card)?;
            }
            write_file(&beside.join(WEIGHTS), &tensors, FileType::F32, metadata)
        })
    }

    /// The model with the adapters of a folder in PEFT's format; the weights are frozen.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`]: the folder asks for what is not done here (named), its
    /// tensors do not fit the model (listed), or they belong to another base model.
    pub fn with_adapter(self, folder: &Path) -> Result<Self> {
        if self.lora().is_some() {
            let what = "the model has adapters already".into();
            return Err(failed(folder, what, "Merge them first"));
        }
        let AdapterFiles { config, made_for, mut files } =
            AdapterFiles::open(folder, self.config())?;
        if let Some(fingerprint) = files.metadata(BASE_KEY)?
            && fingerprint != self.fingerprint()?
        {
            let what = "the weights of its base model are not those of this model".to_owned();
            let hint = format!(
                "Whatever its name, the model must have the weights that the adapter was trained \
                 on; by {CONFIG} it was made for {made_for}"
            );
            return Err(failed(&folder.join(WEIGHTS), what, &hint));
        }
        let device = self.device();
        let mut model = self.no_grad();
        for (name, layer) in model.linear_layers_mut() {
            if !config.targets(&name) {
                continue;
            }
            let mut read = |part: &str| -> Result<Tensor<2>> {
                let host = files.read(&format!("{PREFIX}{name}.{part}.weight"))?.transposed();
                Ok(Tensor::from_data(TensorData::new(host.values, host.shape), &device))
            };
            let (a, b) = (read("lora_A")?, read("lora_B")?);
            layer.set_adapter(&config, &name, 0, a, b);
        }
        model.set_lora(config);
        Ok(model)
    }
}

/// The tensors of an adapter by our names.
struct AdapterWeights(WeightFiles);

/// # Errors
/// [`Error::Io`]; [`Error::Model`] where there are none in safetensors, or the file is broken.
fn open_adapter_weights(folder: &Path) -> Result<AdapterWeights> {
    let path = folder.join(WEIGHTS);
    if !path.exists() {
        return Err(no_weights(folder));
    }
    let mut files = WeightFiles::open_file(path)?;
    files.rename(own_name);
    Ok(AdapterWeights(files))
}

impl AdapterWeights {
    /// The names of the layers that have an adapter.
    fn targets(&self) -> Vec<String> {
        let layer = |name: &str| {
            let path = name.strip_suffix(".lora_A.weight")?;
            Some(path.rsplit('.').next()?.to_owned())
        };
        let layers: BTreeSet<String> =
            self.0.shapes().filter_map(|(name, _)| layer(name)).collect();
        layers.into_iter().collect()
    }
}

/// An adapter's folder, held against the shape of its base model; nothing of the weights is read.
pub(super) struct AdapterFiles {
    config: LoraConfig,
    /// The model that it was made for, in words.
    made_for: String,
    files: WeightFiles,
}

impl AdapterFiles {
    /// # Errors
    /// As [`DecoderLm::with_adapter`], but for what the base model's weights show.
    pub fn open(folder: &Path, model: &DecoderConfig) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = read_if_there(&path)?.ok_or_else(|| {
            let hint = "Give the folder of an adapter in PEFT's format";
            failed(folder, format!("it has no {CONFIG}"), hint)
        })?;
        let mut json: Value = serde_json::from_str(&text)
            .map_err(|e| failed(&path, format!("it is not JSON: {e}"), "Mend the file"))?;
        if json["target_modules"].as_str().is_some_and(|pattern| pattern != ALL_LINEAR) {
            // A regular expression; which layers it has found, the tensors tell.
            json["target_modules"] = open_adapter_weights(folder)?.targets().into();
        }
        let config =
            read_config(&json).map_err(|refusal| failed(&path, refusal.what, refusal.hint))?;
        let config = config.for_layers(model.linear_layers()).map_err(|error| {
            failed(&path, error.to_string().trim_end_matches('.').to_owned(), MERGE)
        })?;
        let path = folder.join(WEIGHTS);
        let AdapterWeights(files) = open_adapter_weights(folder)?;
        let held: BTreeMap<String, Vec<usize>> =
            files.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        let expected = shapes(model, &config);
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
        problems.extend(extra.iter().map(|name| format!("{name} is not of this model")));
        if !problems.is_empty() {
            let (what, hint) = misfit(&json, &extra, &problems);
            return Err(failed(&path, what, &hint));
        }
        Ok(Self { config, made_for: base_of(&json), files })
    }
}
