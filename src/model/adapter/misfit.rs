//! Explains why an adapter's tensors do not match its settings and the model.

use super::config::{base_of, merge};
use super::{CONFIG, PREFIX, shape_in};
use crate::model::config::DecoderConfig;
use crate::model::lora::{EMBEDDING, HEAD};
use crate::model::weights::listed;
use serde_json::Value;
use std::collections::BTreeMap;

/// Returns the problem and a hint.
pub(super) fn misfit(
    settings: &Value,
    model: &DecoderConfig,
    held: &BTreeMap<String, Vec<usize>>,
    extra: &[&str],
    problems: &[String],
) -> (String, String) {
    for name in [EMBEDDING, HEAD] {
        let shapes = (held.get(&format!("{PREFIX}{name}")), shape_in(model, name));
        if let (Some(held), Some(of_model)) = shapes
            && let ([rows, width], [known, of_width]) = (&held[..], &of_model[..])
            && width == of_width
            && rows != known
        {
            let what = format!("its {name} has {rows} rows, but the model's has {known}");
            let hint = format!(
                "Resize the base model to the adapter's vocabulary with transformers \
                 (`model.resize_token_embeddings({rows})`), save it, and use that model"
            );
            return (what, hint);
        }
    }
    let not_done = |name: &&str| {
        let ends = ["lora_embedding_A", "lora_embedding_B", "trainable_tokens_delta"];
        ends.iter().any(|end| name.contains(end))
            || (name.contains(".lora_") && [EMBEDDING, HEAD].iter().any(|of| is_of(name, of)))
    };
    let not_done: Vec<&str> = extra.iter().filter(|name| not_done(name)).copied().collect();
    if !not_done.is_empty() {
        let listed = listed(&not_done);
        let what = format!(
            "it has {listed}: adapters on the embedding or the head, which are not supported"
        );
        let refusal = merge(what);
        return (refusal.what, refusal.hint.into());
    }
    let what = format!("its tensors do not fit the model: {}", listed(problems));
    // A name alone does not show whether this is the right base model.
    let hint = format!(
        "Check that this is the adapter's base model and that {CONFIG} matches its tensors; {CONFIG} says \
         it was made for {}",
        base_of(settings)
    );
    (what, hint)
}

/// Returns whether an adapter tensor belongs to the module of a model tensor.
fn is_of(name: &str, tensor: &str) -> bool {
    let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
    name.strip_prefix(PREFIX).is_some_and(|path| path.starts_with(module))
}
