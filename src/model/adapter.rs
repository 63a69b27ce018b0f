//! Adapters as folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

use super::config::DecoderConfig;
use super::decoder::DecoderLm;
use super::folder::{CHAT_TEMPLATE, write_folder};
use super::lora::{LoraConfig, PROJECTIONS};
use super::tensors::{NamedTensor, PathStack, host, lazy_tensors};
use super::weights::{FileType, WeightFiles, listed, write_file};
use crate::data::tokenizer::read_if_there;
use crate::error::{Error, Result};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before the paths of a causal language model.
const PREFIX: &str = "base_model.model.";

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

/// The adapter's settings in PEFT's words.
fn write_config(config: &LoraConfig, base: &str) -> Value {
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
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    })
}

/// The adapter's settings from PEFT's words; what is not done here is refused by name, in words.
fn read_config(value: &Value) -> std::result::Result<LoraConfig, String> {
    let settings = value.as_object().ok_or("it is not a JSON object")?;
    if value["peft_type"] != "LORA" {
        return Err(format!("`peft_type` is {}, not \"LORA\"", value["peft_type"]));
    }
    for (key, value) in settings.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
        let unset = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !unset {
            return Err(format!("`{key}` is {value}, which is not supported"));
        }
    }
    if !value["alora_invocation_tokens"].is_null() {
        return Err("`alora_invocation_tokens` is set, which is not supported".into());
    }
    match value["bias"].as_str() {
        None | Some("none") => {}
        Some(other) => return Err(format!("`bias` is \"{other}\", only \"none\" is supported")),
    }
    match &value["init_lora_weights"] {
        Value::Null | Value::Bool(_) => {}
        Value::String(name) if name == "gaussian" => {}
        // These change the base model's weights when the adapter is made.
        other => return Err(format!("`init_lora_weights` is {other}, which is not supported")),
    }
    let rank = value["r"].as_u64().and_then(|r| usize::try_from(r).ok());
    let target_modules: BTreeSet<String> = match &value["target_modules"] {
        Value::Array(list) => {
            list.iter().filter_map(|m| Some(m.as_str()?.rsplit('.').next()?.to_owned())).collect()
        }
        Value::String(all) if all == "all-linear" => PROJECTIONS.map(str::to_owned).into(),
        other => return Err(format!("`target_modules` is {other}, not a list of layers")),
    };
    let config = LoraConfig {
        rank: rank.ok_or_else(|| format!("`r` is {}, not a size", value["r"]))?,
        alpha: value["lora_alpha"]
            .as_f64()
            .ok_or_else(|| format!("`lora_alpha` is {}, not a number", value["lora_alpha"]))?,
        dropout: value["lora_dropout"].as_f64().unwrap_or(0.0),
        rslora: value["use_rslora"].as_bool().unwrap_or(false),
        target_modules: target_modules.into_iter().collect(),
    };
    config.validate().map_err(|e| e.to_string())?;
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
                if name.contains(".lora_") {
                    return;
                }
                let mut part = param.val();
                let (dims, rows) = (part.dims(), part.dims()[0].min(COUNTED));
                for other in 1..D {
                    part = part.narrow(other, 0, 1);
                }
                let part = part.narrow(0, 0, rows).reshape([rows]);
                self.parts.push((format!("{name} {dims:?}"), part));
            }
        }
        let mut visitor = Visitor { path: PathStack::default(), parts: vec![] };
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
            write(CONFIG, &format!("{:#}\n", write_config(config, how.base)))?;
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
        let failed = |path: &Path, what: String, hint: &str| Error::Model {
            path: path.to_owned(),
            what,
            hint: hint.into(),
        };
        if self.lora().is_some() {
            let what = "the model has adapters already".into();
            return Err(failed(folder, what, "Merge them first"));
        }
        let path = folder.join(CONFIG);
        let text = read_if_there(&path)?.ok_or_else(|| {
            let hint = "Give the folder of an adapter in PEFT's format";
            failed(folder, format!("it has no {CONFIG}"), hint)
        })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| failed(&path, format!("it is not JSON: {e}"), "Mend the file"))?;
        let config = read_config(&json)
            .map_err(|what| failed(&path, what, "Only plain LoRA adapters are read"))?;
        let path = folder.join(WEIGHTS);
        let base =
            json["base_model_name_or_path"].as_str().unwrap_or("a model that it does not name");
        let other = format!("It was made for {base}; give that model");
        let mut files = WeightFiles::open_file(path.clone())?;
        let held: BTreeMap<String, Vec<usize>> =
            files.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        let expected = shapes(self.config(), &config);
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
        let extra = held.keys().filter(|name| !expected.contains_key(*name));
        problems.extend(extra.map(|name| format!("{name} is not of this model")));
        if !problems.is_empty() {
            let what = format!("its tensors do not fit the model: {}", listed(&problems));
            return Err(failed(&path, what, &other));
        }
        if let Some(made_for) = files.metadata(BASE_KEY)?
            && made_for != self.fingerprint()?
        {
            let what = "the weights of its base model are not those of this model".to_owned();
            return Err(failed(&path, what, &other));
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
