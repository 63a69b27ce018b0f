//! Adapter files from elsewhere: unsupported, misleading, and damaged ones.

use super::*;

/// An adapter of one of the cases, changed.
struct Changed {
    name: &'static str,
    folder: tempfile::TempDir,
}

impl Changed {
    fn of(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(case(name).join(file), folder.path().join(file)).unwrap();
        }
        Self { name, folder }
    }

    fn setting(self, key: &str, value: Value) -> Self {
        let path = self.folder.path().join("adapter_config.json");
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json[key] = value;
        std::fs::write(path, json.to_string()).unwrap();
        self
    }

    /// Tensors, each as its name, shape and bytes.
    fn tensors(self, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) -> Self {
        use safetensors::tensor::{Dtype, TensorView};
        let path = self.folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, shape, data)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    fn error(&self) -> String {
        let model = base(self.name).load(&devices()[0]).unwrap();
        let error = model.with_adapter(self.folder.path()).unwrap_err();
        assert!(matches!(error, mixdistill::Error::Model { .. }), "{error:?}");
        error.to_string()
    }
}

#[test]
fn hostile_adapters_end_with_an_error_that_names_what_is_wrong() {
    let start = std::time::Instant::now();
    let rank = u64::from(u32::MAX);
    for (changed, said) in [
        (Changed::of("patterns").setting("r", json!(rank)), "lora.rank"),
        (Changed::of("patterns").setting("rank_pattern", json!({"q_proj": 1e30})), "not a size"),
        (
            Changed::of("patterns").setting("rank_pattern", json!({"q_proj": rank})),
            "rank_pattern.q_proj",
        ),
        (Changed::of("patterns").setting("rank_pattern", json!([1])), "not a table"),
        (
            Changed::of("patterns").setting("rank_pattern", json!({"(": 2})),
            "not a regular expression",
        ),
        (Changed::of("patterns").setting("alpha_pattern", json!({"x": -1})), "alpha_pattern.x"),
        (Changed::of("patterns").setting("alpha_pattern", json!({"x": "y"})), "not a number"),
        (
            Changed::of("patterns").setting("layers_to_transform", json!([99])),
            "no layer of the model",
        ),
        (Changed::of("patterns").setting("layers_to_transform", json!("a")), "not the number"),
        (Changed::of("patterns").setting("layers_to_transform", json!([-1])), "not the number"),
        (Changed::of("patterns").setting("layers_to_transform", Value::Null), "layers_pattern"),
        (
            Changed::of("patterns").setting("layers_pattern", json!("blocks")),
            "no layer of the model",
        ),
        (Changed::of("patterns").setting("exclude_modules", json!(3)), "`exclude_modules` is 3"),
        (Changed::of("patterns").setting("exclude_modules", json!(".*")), "no layer of the model"),
        (
            Changed::of("full_paths")
                .setting("target_modules", json!(["model.layers.9.mlp.up_proj"])),
            "no layer of the model",
        ),
        (Changed::of("full_paths").setting("target_modules", json!([])), "no layer of the model"),
        // Expressions that would take for ever, or all memory.
        (
            Changed::of("regex_bias").setting("target_modules", json!(r"(?=m)((.+)+)+\.x_proj")),
            "target_modules",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!(r"((\w{900}){900}){900}")),
            "not a regular expression",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!("(".repeat(90_000))),
            "not a regular expression",
        ),
        (
            Changed::of("regex_bias").setting("target_modules", json!("a".repeat(1 << 20))),
            "1048576 bytes",
        ),
        (
            Changed::of("patterns").setting(
                "rank_pattern",
                (0..5000)
                    .map(|i| (format!("x{i}"), json!(1)))
                    .collect::<serde_json::Map<_, _>>()
                    .into(),
            ),
            "5000 entries",
        ),
        (Changed::of("dora_rslora").setting("lora_bias", json!(true)), "lora_bias"),
        (
            Changed::of("dora_rslora").setting("use_dora", json!(false)),
            "lora_magnitude_vector.weight does not belong to this model",
        ),
        (
            Changed::of("regex_bias").setting("lora_bias", json!(false)),
            "lora_B.bias does not belong to this model",
        ),
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                tensors.retain(|t| !t.0.ends_with("0.self_attn.k_proj.lora_magnitude_vector"))
            }),
            "0.self_attn.k_proj.lora_magnitude_vector.weight is missing",
        ),
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                let magnitude =
                    tensors.iter_mut().find(|t| t.0.ends_with("magnitude_vector")).unwrap();
                magnitude.1 = vec![1, magnitude.1[0]];
            }),
            "lora_magnitude_vector.weight is [1, ",
        ),
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                let magnitude =
                    tensors.iter_mut().find(|t| t.0.ends_with("magnitude_vector")).unwrap();
                magnitude.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            "not finite",
        ),
        (
            Changed::of("saved").setting("modules_to_save", json!(["lm_head", "v_proj"])),
            "model.layers.0.self_attn.v_proj",
        ),
        (Changed::of("saved").setting("modules_to_save", json!(["("])), "not a regular expression"),
        (Changed::of("saved").setting("modules_to_save", json!({"a": 1})), "not a list of names"),
        (
            Changed::of("saved").setting("modules_to_save", json!(["lm_head", "embed_tokens"])),
            "norm.weight does not belong to this model",
        ),
        (
            Changed::of("saved").tensors(|tensors| {
                let head = tensors.iter_mut().find(|t| t.0.ends_with("lm_head.weight")).unwrap();
                head.1[0] += 8;
                head.2.extend(vec![0; 4 * 8 * head.1[1]]);
            }),
            "resize_token_embeddings(115)",
        ),
        (
            Changed::of("saved_tied").tensors(|tensors| {
                let head = tensors.iter_mut().find(|t| t.0.ends_with("lm_head.weight")).unwrap();
                head.2[..4].copy_from_slice(&7f32.to_le_bytes());
            }),
            "differs from the embedding",
        ),
        (
            Changed::of("full_paths").tensors(|tensors| {
                let (name, shape, data) = tensors[0].clone();
                let name = name.replace("model.layers", "model.extra.layers");
                tensors.push((name, shape, data));
            }),
            "does not belong to this model",
        ),
        (
            Changed::of("full_paths").tensors(|tensors| {
                let (_, shape, data) = tensors[0].clone();
                let name = "base_model.model.model.embed_tokens.lora_embedding_A".to_owned();
                tensors.push((name, shape, data));
            }),
            "adapters on the embedding or the head",
        ),
    ] {
        let error = changed.error();
        assert!(error.contains(said), "{said}: {error}");
    }
    assert!(start.elapsed().as_secs() < 100, "{:?}", start.elapsed());
}

#[test]
fn what_peft_does_not_mind_is_no_error() {
    let device = devices().remove(0);
    for (changed, kept) in [
        // Patterns for layers that are not there.
        (Changed::of("full_paths").setting("rank_pattern", json!({"layers.77": 5})), "full_paths"),
        (Changed::of("full_paths").setting("modules_to_save", json!(["classifier"])), "full_paths"),
        (Changed::of("full_paths").setting("exclude_modules", json!(["vision"])), "full_paths"),
        (Changed::of("full_paths").setting("ensure_weight_tying", json!(true)), "full_paths"),
        (
            // One number, and one name.
            Changed::of("patterns").setting("layers_pattern", json!(["blocks", "layers"])),
            "patterns",
        ),
        // One of the two names of a matrix.
        (
            Changed::of("saved_tied")
                .tensors(|tensors| tensors.retain(|t| !t.0.contains("lm_head"))),
            "saved_tied",
        ),
        (
            Changed::of("saved_tied")
                .tensors(|tensors| tensors.retain(|t| !t.0.contains("embed_tokens"))),
            "saved_tied",
        ),
        // As some versions of PEFT write it.
        (
            Changed::of("dora_rslora").tensors(|tensors| {
                for tensor in tensors.iter_mut().filter(|t| t.0.ends_with("magnitude_vector")) {
                    tensor.0.push_str(".weight");
                }
            }),
            "dora_rslora",
        ),
    ] {
        let model = base(kept).load(&device).unwrap().with_adapter(changed.folder.path()).unwrap();
        let tokens = reference(kept).tokens("input_ids");
        let expected = logits(&adapted(kept, &device), &tokens, &device);
        assert!(logits(&model, &tokens, &device) == expected, "{kept}");
    }
}
