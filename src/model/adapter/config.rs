//! PEFT's `adapter_config.json`.

use crate::model::hf_config::Refusal;
use crate::model::lora::{LoraConfig, LoraTargets, ModuleNames, Patterns, WITHIN};
use serde_json::{Map, Value, json};
use std::path::Path;

/// PEFT settings that do not affect the computation, or that this module handles.
const KNOWN: [&str; 32] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // PEFT ignores it for `torch.nn.Linear`, the only type of layer here.
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
    "lora_ga_config",
];

/// Initializations that do not change the base model's weights.
const INITIALIZATIONS: [&str; 4] = ["eva", "gaussian", "mica", "orthogonal"];

/// Returns the adapter's settings. In a vision-language model (`is_part`), only the text part has adapters.
pub(super) fn write_config(
    config: &LoraConfig,
    targets: &LoraTargets,
    is_part: bool,
    base: &str,
) -> Value {
    // A hub name may include a revision, which PEFT stores separately.
    let (base, revision) = match base.split_once('@') {
        Some((name, revision)) if !Path::new(base).exists() => (name, Some(revision)),
        _ => (base, None),
    };
    let mut all = json!({
        "revision": revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.use_dora,
        "lora_bias": config.lora_bias,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "ensure_weight_tying": config.ensure_weight_tying,
    });
    let chosen = if is_part { chosen_of_part(config, targets) } else { chosen(config) };
    if let (Some(all), Value::Object(chosen)) = (all.as_object_mut(), chosen) {
        all.extend(chosen);
    }
    all
}

/// Returns the list, or null if it is empty, as PEFT writes it.
fn list_or_null<T: serde::Serialize>(list: &[T]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// Returns the choice of modules, as the settings state it.
fn chosen(config: &LoraConfig) -> Value {
    let excluded = &config.exclude_modules;
    json!({
        "target_modules": config.target_modules,
        "exclude_modules": if excluded.is_empty() { Value::Null } else { json!(excluded) },
        "layers_to_transform": list_or_null(&config.layers_to_transform),
        "layers_pattern": list_or_null(&config.layers_pattern),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "modules_to_save": list_or_null(&config.modules_to_save),
    })
}

/// Returns the choice of modules, as paths in the whole vision-language model.
fn chosen_of_part(config: &LoraConfig, targets: &LoraTargets) -> Value {
    let whole = |path: &str| match path.strip_prefix("model.") {
        Some(rest) => format!("{WITHIN}{rest}"),
        None => path.to_owned(),
    };
    let is_plain = config.exclude_modules.is_empty()
        && config.layers_to_transform.is_empty()
        && config.target_modules.list().iter().all(|name| !name.contains('.'));
    let target_modules = match &config.target_modules {
        ModuleNames::List(names) if is_plain => {
            json!(format!(r".*\.language_model\..*\.({})", names.join("|")))
        }
        _ => json!(targets.layers.keys().map(|path| whole(path)).collect::<Vec<_>>()),
    };
    // Patterns of the settings may match paths within the text part, so list each layer.
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (path, layer) in &targets.layers {
        let key = format!("^{}", whole(path).replace('.', r"\."));
        if layer.rank != config.rank {
            ranks.insert(key.clone(), layer.rank.into());
        }
        if layer.alpha != config.alpha {
            alphas.insert(key, layer.alpha.into());
        }
    }
    let module = |tensor: &String| {
        whole(tensor.rsplit_once('.').map_or(tensor.as_str(), |(module, _)| module))
    };
    let mut saved: Vec<String> = targets.saved.iter().map(module).collect();
    saved.dedup();
    json!({
        "target_modules": target_modules,
        "exclude_modules": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": list_or_null(&saved),
    })
}

/// Hint for an adapter with an unsupported feature.
const MERGE: &str = "Merge it with PEFT (`AutoPeftModelForCausalLM.from_pretrained(ADAPTER)\
                     .merge_and_unload().save_pretrained(FOLDER)`) and use FOLDER as the model, or \
                     train an adapter without this feature";

/// Hint if PEFT cannot merge the adapter either.
const TRAIN: &str = "Train an adapter without this feature; PEFT cannot merge it either";

/// Returns the feature that a PEFT setting turns on, for the most common ones.
fn meaning(key: &str) -> Option<&'static str> {
    Some(match key {
        "arrow_config" => "adapters routed by token",
        "kasa_config" => "singular values between A and B",
        "layer_replication" => "repeated layers",
        "megatron_config" => "Megatron layers",
        "monteclora_config" => "sampled adapters",
        "target_parameters" => "adapters on parameters",
        "trainable_token_indices" => "trained embedding rows",
        "use_bdlora" => "block-diagonal adapters",
        "use_qalora" => "quantized adapters",
        "velora_config" => "compressed activations",
        _ => return None,
    })
}

/// Refuses an adapter with an unsupported feature.
pub(super) fn merge(what: String) -> Refusal {
    Refusal { what, hint: MERGE }
}

/// Refuses invalid settings.
fn mend(what: String) -> Refusal {
    Refusal { what, hint: "Fix the file, or save the adapter again" }
}

type Read<T> = std::result::Result<T, Refusal>;

/// Reads PEFT's settings. The error names an unsupported or invalid setting.
pub(super) fn read_config(value: &Value) -> Read<LoraConfig> {
    let settings = value.as_object().ok_or_else(|| mend("it is not a JSON object".into()))?;
    refuse_others(value, settings)?;
    let rank =
        size(&value["r"]).ok_or_else(|| mend(format!("`r` is {}, not a size", value["r"])))?;
    let target_modules = names(value, "target_modules")?
        .ok_or_else(|| mend("`target_modules` is null, not a list of layers".into()))?;
    let config = LoraConfig {
        rank,
        alpha: value["lora_alpha"].as_f64().ok_or_else(|| {
            mend(format!("`lora_alpha` is {}, not a number", value["lora_alpha"]))
        })?,
        dropout: number_or(&value["lora_dropout"], 0.0, "lora_dropout")?,
        rslora: is_set(value, "use_rslora")?,
        target_modules,
        exclude_modules: names(value, "exclude_modules")?.unwrap_or_default(),
        layers_to_transform: numbers(value)?,
        layers_pattern: texts(value, "layers_pattern")?,
        rank_pattern: patterns(value, "rank_pattern", "a size", size)?,
        alpha_pattern: patterns(value, "alpha_pattern", "a number", Value::as_f64)?,
        modules_to_save: texts(value, "modules_to_save")?,
        ensure_weight_tying: is_set(value, "ensure_weight_tying")?,
        lora_bias: is_set(value, "lora_bias")?,
        use_dora: is_set(value, "use_dora")?,
    };
    config.validate_values().map_err(|e| mend(e.to_string().trim_end_matches('.').to_owned()))?;
    Ok(config)
}

/// Refuses settings of unsupported features.
fn refuse_others(value: &Value, settings: &Map<String, Value>) -> Read<()> {
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
            let what = format!("`{key}` is {value}{means}, which is not supported");
            return Err(match key.as_str() {
                // PEFT refuses to merge these.
                "layer_replication" | "arrow_config" | "use_qalora" => {
                    Refusal { what, hint: TRAIN }
                }
                _ => merge(what),
            });
        }
    }
    if !value["alora_invocation_tokens"].is_null() {
        let what = "`alora_invocation_tokens` is set (aLoRA, adapters activated by tokens), which is not \
                    supported";
        return Err(Refusal { what: what.into(), hint: TRAIN });
    }
    match value["bias"].as_str() {
        None | Some("none") => {}
        Some(other) => {
            let what = "(trained biases of the model); only \"none\" is supported";
            return Err(merge(format!("`bias` is \"{other}\" {what}")));
        }
    }
    match &value["init_lora_weights"] {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(name) if INITIALIZATIONS.contains(&name.as_str()) => Ok(()),
        // These change the base model's weights when the adapter is made.
        other => Err(merge(format!(
            "`init_lora_weights` is {other}, which changes the base model's weights and is not supported"
        ))),
    }
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|size| usize::try_from(size).ok())
}

fn number_or(value: &Value, usual: f64, key: &str) -> Read<f64> {
    match value {
        Value::Null => Ok(usual),
        value => value.as_f64().ok_or_else(|| mend(format!("`{key}` is {value}, not a number"))),
    }
}

fn is_set(value: &Value, key: &str) -> Read<bool> {
    match &value[key] {
        Value::Null => Ok(false),
        value => {
            value.as_bool().ok_or_else(|| mend(format!("`{key}` is {value}, not true or false")))
        }
    }
}

/// Reads names or a regular expression; returns `None` for null.
fn names(value: &Value, key: &str) -> Read<Option<ModuleNames>> {
    match &value[key] {
        Value::Null => Ok(None),
        Value::String(pattern) => Ok(Some(pattern.as_str().into())),
        Value::Array(_) => texts(value, key).map(|names| Some(names.into())),
        other => Err(mend(format!("`{key}` is {other}, not a list of layers"))),
    }
}

/// Reads a list of strings, or a single one.
fn texts(value: &Value, key: &str) -> Read<Vec<String>> {
    let wrong = |value: &Value| mend(format!("`{key}` is {value}, not a list of names"));
    match &value[key] {
        Value::Null => Ok(vec![]),
        Value::String(one) if one.is_empty() => Ok(vec![]),
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(list) => list
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or_else(|| wrong(one)))
            .collect(),
        other => Err(wrong(other)),
    }
}

/// Reads block numbers: a list, or a single one.
fn numbers(value: &Value) -> Read<Vec<usize>> {
    let value = &value["layers_to_transform"];
    let number = |value: &Value| {
        let wrong =
            || mend(format!("`layers_to_transform` has {value}, not the number of a block"));
        size(value).ok_or_else(wrong)
    };
    match value {
        Value::Null => Ok(vec![]),
        Value::Array(list) => list.iter().map(number).collect(),
        one => Ok(vec![number(one)?]),
    }
}

fn patterns<T>(
    value: &Value,
    key: &str,
    noun: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Read<Patterns<T>> {
    match &value[key] {
        Value::Null => Ok(Patterns::default()),
        Value::Object(map) => {
            let entry = |(pattern, value): (&String, &Value)| {
                let wrong = || mend(format!("`{key}` has {value} for `{pattern}`, not {noun}"));
                Ok((pattern.clone(), read(value).ok_or_else(wrong)?))
            };
            map.iter().map(entry).collect::<Read<_>>().map(Patterns)
        }
        other => Err(mend(format!("`{key}` is {other}, not a table of values by pattern"))),
    }
}

/// Returns the base model that the adapter's settings name.
pub(super) fn base_of(settings: &Value) -> String {
    match (settings["base_model_name_or_path"].as_str(), settings["revision"].as_str()) {
        (None | Some(""), _) => "an unnamed model".into(),
        (Some(base), None | Some("")) => base.to_owned(),
        (Some(base), Some(revision)) => format!("{base} (revision {revision})"),
    }
}
