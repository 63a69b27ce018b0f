//! Models as folders: `config.json`, `generation_config.json`, `model.safetensors`,
//! `tokenizer.json`, as Hugging Face's tools read them.

use super::config::{Architecture, DecoderConfig};
use super::decoder::DecoderLm;
use super::tensors::{from_safetensors, named_tensors, to_safetensors, with_named_tensors};
use crate::data::TextTokenizer;
use crate::error::{Error, Result};
use burn::tensor::Device;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

impl DecoderLm {
    /// Writes the model and its tokenizer into a new folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] where the folder already holds a model.
    pub fn save(&self, folder: &Path, tokenizer: &TextTokenizer) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let weights = folder.join("model.safetensors");
        if weights.exists() {
            return Err(Error::Model {
                path: folder.to_owned(),
                what: "it already holds a model".into(),
                hint: "Choose another folder or move the old one away".into(),
            });
        }
        let config = serde_json::to_string_pretty(&self.config_json(tokenizer));
        let generation = serde_json::to_string_pretty(&json!({
            "eos_token_id": tokenizer.end_token(),
            "do_sample": false,
        }));
        let text = |json: serde_json::Result<String>| -> Result<String> {
            json.map_err(|e| Error::Model {
                path: folder.to_owned(),
                what: format!("its configuration cannot be written: {e}"),
                hint: "This is a defect; please report it".into(),
            })
        };
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::io("write", path, e))
        };
        write("config.json", text(config)?.as_bytes())?;
        write("generation_config.json", text(generation)?.as_bytes())?;
        write("tokenizer.json", tokenizer.to_json()?.as_bytes())?;
        let settings = serde_json::to_string_pretty(&json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.end_token_text(),
        }));
        write("tokenizer_config.json", text(settings)?.as_bytes())?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write("model.safetensors", &to_safetensors(&named_tensors(self)?, metadata, &weights)?)
    }

    fn config_json(&self, tokenizer: &TextTokenizer) -> Value {
        let config = self.config();
        json!({
            "architectures": [config.architecture.class()],
            "model_type": config.architecture.model_type(),
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim(),
            "max_position_embeddings": config.max_position_embeddings,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            "hidden_act": "silu",
            "attention_bias": false,
            "torch_dtype": "float32",
            "bos_token_id": null,
            "eos_token_id": tokenizer.end_token(),
        })
    }

    /// Reads a folder that [`DecoderLm::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] for a configuration or tensors that do not fit.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let failed = |what: String, hint: &str| Error::Model {
            path: folder.to_owned(),
            what,
            hint: hint.into(),
        };
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| failed(format!("config.json is not JSON: {e}"), "Mend the file"))?;
        let config = read_config(&value).map_err(|what| {
            failed(what, "Folders written by this crate are read; others come with chat models")
        })?;
        let weights = folder.join("model.safetensors");
        let mut tensors = from_safetensors(&weights)?;
        let model = config.init(0, device)?;
        let model = with_named_tensors(model, &mut |name| tensors.remove(name));
        let mut problems = model.as_ref().err().cloned().unwrap_or_default();
        problems.extend(tensors.keys().map(|name| format!("`{name}` is not of this model")));
        match model {
            Ok(model) if problems.is_empty() => Ok(model),
            _ => Err(Error::Model {
                path: weights,
                what: format!("its tensors do not fit config.json: {}", problems.join(", ")),
                hint: "Weights and configuration must be of one model".into(),
            }),
        }
    }
}

/// The decoder that a `config.json` describes; what the decoder does not do is refused by name.
fn read_config(value: &Value) -> std::result::Result<DecoderConfig, String> {
    let class = value["architectures"][0].as_str().unwrap_or("");
    let architecture = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3]
        .into_iter()
        .find(|architecture| architecture.class() == class)
        .ok_or_else(|| format!("architecture `{class}` is not supported"))?;
    let size = |key: &str| -> std::result::Result<usize, String> {
        let number = value[key].as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| format!("`{key}` is {}, not a size", value[key]))
    };
    let number = |key: &str| -> std::result::Result<f64, String> {
        value[key].as_f64().ok_or_else(|| format!("`{key}` is {}, not a number", value[key]))
    };
    let activation = value["hidden_act"].as_str().unwrap_or("silu");
    if activation != "silu" {
        return Err(format!("activation `{activation}` is not supported"));
    }
    for key in ["rope_scaling", "rope_parameters"] {
        if !value[key].is_null() {
            return Err(format!("`{key}` is not supported yet"));
        }
    }
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if value[key].as_bool() == Some(true) {
            return Err(format!("`{key}` is not supported"));
        }
    }
    Ok(DecoderConfig {
        architecture,
        vocab_size: size("vocab_size")?,
        hidden_size: size("hidden_size")?,
        intermediate_size: size("intermediate_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: size("num_attention_heads")?,
        num_key_value_heads: size("num_key_value_heads")?,
        head_dim: if value["head_dim"].is_null() { None } else { Some(size("head_dim")?) },
        max_position_embeddings: size("max_position_embeddings")?,
        rms_norm_eps: number("rms_norm_eps")?,
        rope_theta: number("rope_theta")?,
        tie_word_embeddings: value["tie_word_embeddings"].as_bool().unwrap_or(false),
        initializer_range: value["initializer_range"].as_f64().unwrap_or(0.02),
    })
}
