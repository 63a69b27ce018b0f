//! Writes adapters as GGUF files for llama.cpp's `--lora`.

use super::export::{unwritten, write_new};
use super::families::GgufFamily;
use super::names::gguf_name;
use super::tensors::Change;
use crate::context::{Context, Event};
use crate::error::{Error, Result};
use crate::gguf::{GgufValue, NewTensor, TensorType, quantize};
use crate::model::adapter::AdapterFiles;
use crate::model::folder::check_new_place;
use crate::model::text_model::{LoadOptions, TextModelFiles};
use std::path::Path;

/// Writes an adapter without its base model as a new GGUF file, for llama.cpp's `--lora`. `model` and
/// `adapter` are as in [`TextModelFiles::open`]. Returns the length of the file in bytes.
///
/// # Errors
/// See [`TextModelFiles::open`]. [`Error::Config`] if there is no adapter or the type is not supported.
/// [`Error::Model`] if the file exists, llama.cpp does not support the family, or the adapter has more than A
/// and B in a layer. [`Error::Io`] if the file cannot be written; [`Error::Stopped`] if the context was
/// stopped.
pub fn export_gguf_adapter(
    model: &str,
    adapter: Option<&Path>,
    out: &Path,
    kind: TensorType,
    context: &Context<'_>,
) -> Result<u64> {
    check_new_place(out, "file")?;
    if ![TensorType::F32, TensorType::F16, TensorType::Bf16, TensorType::Q8_0].contains(&kind) {
        let what = format!("adapters cannot be written as {}", kind.name());
        return Err(Error::config("tensor_type", what, "Use f32, f16, bf16, or q8_0"));
    }
    let load = LoadOptions { adapter: adapter.map(Path::to_owned), ..LoadOptions::default() };
    let files = TextModelFiles::read(model, &load, context)?;
    let config = files.folder().config();
    let Some(folder) = files.adapter() else {
        let what = format!("{model} has no adapter");
        return Err(Error::config(
            "adapter",
            what,
            "Pass the adapter's folder, or the run that trained it",
        ));
    };
    let failed = |what: String, hint: &str| Error::Model {
        path: folder.to_owned(),
        what,
        hint: hint.into(),
    };
    let family = GgufFamily::of(config.architecture).ok_or_else(|| {
        let what = format!("llama.cpp does not support {}", config.architecture.properties().class);
        failed(what, "Serve the adapter with vLLM or transformers")
    })?;
    let mut adapter = AdapterFiles::open(folder, config)?;
    let layers = adapter.low_rank().map_err(|what| {
        failed(
            format!("{what}, but an adapter file for llama.cpp has only two matrices per layer"),
            "Remove --adapter-only, which merges the adapter into the model",
        )
    })?;
    // The file has one alpha for all layers: scale times rank. Layers with another alpha get a scaled B.
    let alpha = layers.first().map_or(1.0, |layer| layer.scale * layer.rank as f64);
    let mut tensors = vec![];
    for layer in layers {
        let [mut a, mut b] = adapter.matrices(&layer.path)?;
        let weight = format!("{}.weight", layer.path);
        let name = gguf_name(config, &weight)
            .ok_or_else(|| unwritten(&weight, "llama.cpp has no name for this tensor".into()))?;
        let change = Change::of(config, family, &weight);
        match change.is_of_columns() {
            true => a = change.apply(a),
            false => b = change.apply(b),
        }
        let factor = (layer.scale * layer.rank as f64 / alpha) as f32;
        if factor != 1.0 {
            b.values.iter_mut().for_each(|value| *value *= factor);
        }
        for (part, matrix) in [("lora_a", a), ("lora_b", b)] {
            let columns = matrix.shape[1];
            let kind = if columns.is_multiple_of(kind.block()) { kind } else { TensorType::F32 };
            let (name, shape) = (format!("{name}.{part}"), matrix.shape);
            let told = name.clone();
            let bytes = Box::new(move || {
                quantize(&matrix.values, kind).map_err(|what| unwritten(&told, what))
            });
            tensors.push(NewTensor { name, shape, kind, bytes });
        }
    }
    let entries: [(&str, GgufValue); 5] = [
        ("general.architecture", family.name.into()),
        ("general.type", "adapter".into()),
        ("general.file_type", kind.file_type().into()),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", (alpha as f32).into()),
    ];
    let metadata = entries.map(|(key, value)| (key.to_owned(), value));
    let bytes = write_new(out, &metadata, tensors, context)?;
    context.emit(&Event::Written { what: "the GGUF adapter", path: out })?;
    Ok(bytes)
}
