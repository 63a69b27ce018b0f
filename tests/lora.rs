//! Low-rank adapters: trained parameters, dropout, saved files, and refused settings.

mod common;

use burn::module::Module;
use common::{adapter_of, devices, relative_error, rows, shaken, tiny};
use mixdistill::Error;
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::{Batch, BatchLayout, Packing, Row, RowStream};
use mixdistill::model::{Architecture, DecoderLm, LoraConfig, PROJECTIONS, named_tensors};
use mixdistill::recipe::RunConfig;
use mixdistill::train::{
    CheckpointStore, FitOptions, Learner, TrainConfig, named_gradients, step_gradients,
};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;

/// A model with adapters of rank 3 that are not at their beginning.
fn adapted(config: &LoraConfig) -> DecoderLm {
    let device = devices().remove(0).autodiff();
    let model = shaken(&tiny(Architecture::Qwen2), &device).with_lora(config, 7).unwrap();
    // One large step moves B away from zero.
    let settings = TrainConfig { learning_rate: 0.1, warmup_steps: 0, ..TrainConfig::default() };
    let mut learner = Learner::new(model, settings).unwrap();
    learner.train_step(&rows(&[(9, 3), (14, 5)]), 1).unwrap();
    learner.into_model()
}

fn lora(rank: usize) -> LoraConfig {
    LoraConfig { rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() }
}

fn learner(model: DecoderLm, config: &TrainConfig) -> Learner<DecoderLm> {
    Learner::new(model, config.clone()).unwrap()
}

fn logits(model: &DecoderLm) -> Vec<f32> {
    let device = devices().remove(0);
    let tokens: Vec<u32> = (0..12).map(|i| i * 5 % 23).collect();
    let tokens = common::ids(&tokens, [1, 12], &device);
    model.clone().valid().logits(tokens).try_into_vec_as::<f32>().unwrap()
}

#[test]
fn new_adapters_change_nothing_and_only_they_are_trained() {
    let device = devices().remove(0).autodiff();
    let config = LoraConfig { target_modules: ["q_proj", "down_proj"].into(), ..lora(3) };
    let plain = shaken(&tiny(Architecture::Qwen2), &device);
    let model = plain.clone().with_lora(&config, 7).unwrap();
    assert_eq!(logits(&plain), logits(&model));

    let step =
        step_gradients(&model, &[Batch::new(common::examples(&rows(&[(9, 3)])), 1)]).unwrap();
    let gradients = named_gradients(&model, &step.gradients).unwrap();
    let expected: Vec<String> = (0..2)
        .flat_map(|layer| ["mlp.down_proj", "self_attn.q_proj"].map(move |part| (layer, part)))
        .flat_map(|(layer, part)| {
            ["A", "B"].map(|ab| format!("model.layers.{layer}.{part}.lora_{ab}.weight"))
        })
        .collect();
    assert_eq!(gradients.keys().cloned().collect::<Vec<_>>(), expected);

    // A step moves the adapters and nothing else.
    let before = named_tensors(&model).unwrap();
    let mut learner = learner(model, &TrainConfig { learning_rate: 0.1, ..Default::default() });
    learner.train_step(&rows(&[(9, 3)]), 1).unwrap();
    let after = named_tensors(learner.model()).unwrap();
    for (name, tensor) in &after {
        // A has no gradient while B is zero.
        assert_eq!(*tensor != before[name], name.contains("lora_B"), "{name}");
    }
    learner.train_step(&rows(&[(9, 3)]), 1).unwrap();
    let last = named_tensors(learner.model()).unwrap();
    for (name, tensor) in &last {
        assert_eq!(*tensor != after[name], name.contains("lora_"), "{name}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let config = lora(2);
    let model = adapted(&config);
    let batches = [Batch::new(common::examples(&rows(&[(9, 3), (6, 2)])), 1)];
    let loss = |model: &DecoderLm| step_gradients(model, &batches).unwrap().loss;
    let step = step_gradients(&model, &batches).unwrap();
    let gradients = named_gradients(&model, &step.gradients).unwrap();
    let tensors = named_tensors(&model).unwrap();
    for part in ["self_attn.k_proj.lora_A", "mlp.up_proj.lora_B", "self_attn.o_proj.lora_A"] {
        let name = format!("model.layers.0.{part}.weight");
        let gradient = &gradients[&name];
        // In the file's layout a matrix is transposed.
        let [rows, columns] = [gradient.shape[0], gradient.shape[1]];
        let (row, column) = (rows / 2, columns / 2);
        let expected = f64::from(gradient.values[row * columns + column]);
        let moved = |by: f32| {
            let mut tensors = tensors.clone();
            tensors.get_mut(&name).unwrap().values[column * rows + row] += by;
            let trained = |name: &str| tensors.remove(name);
            let mut trained = trained;
            loss(&mixdistill::model::with_named_tensors(model.clone(), &mut trained).unwrap())
        };
        let h = 5e-3;
        let difference = (moved(h) - moved(-h)) / f64::from(2.0 * h);
        // Losses in f32 leave some 1e-7 / h of the difference uncertain.
        assert!(
            (difference - expected).abs() < 2e-4 + 0.02 * expected.abs(),
            "{name}: {difference} {expected}"
        );
    }
}

#[test]
fn merging_gives_the_same_model_without_adapters() {
    for config in [lora(3), LoraConfig { rslora: true, ..lora(4) }] {
        let model = adapted(&config);
        let merged = model.clone().merged();
        assert!(merged.lora().is_none());
        let names: Vec<String> = named_tensors(&merged).unwrap().into_keys().collect();
        let plain = tiny(Architecture::Qwen2).tensor_shapes().into_keys().collect::<Vec<_>>();
        assert_eq!(names, plain);
        assert!(relative_error(&logits(&merged), &logits(&model)) < 1e-5);
        let base = shaken(&tiny(Architecture::Qwen2), &devices()[0]);
        assert!(
            relative_error(&logits(&base), &logits(&model)) > 1e-2,
            "the adapter does something"
        );
        let again = model.clone().with_lora(&config, 1).unwrap_err().to_string();
        assert!(again.contains("already has adapters"), "{again}");
        assert_eq!(model.fingerprint().unwrap(), base.fingerprint().unwrap());
        assert_ne!(merged.fingerprint().unwrap(), base.fingerprint().unwrap());
    }
}

#[test]
fn dropout_is_a_function_of_the_row_and_not_of_its_batch() {
    let config = LoraConfig { dropout: 0.3, ..lora(3) };
    let model = adapted(&config);
    let data = rows(&[(9, 3), (14, 5), (7, 2), (20, 4)]);
    let gradients = |data: &[Row], per_batch: usize, packing: Packing| {
        let batches = BatchLayout::rows(per_batch, 4, packing).batches(data);
        let step = step_gradients(&model, &batches).unwrap();
        let named = named_gradients(&model, &step.gradients).unwrap();
        (step.loss, named.into_values().flat_map(|g| g.values).collect::<Vec<f32>>())
    };
    let (loss, whole) = gradients(&data, 4, Packing::Off);
    for (per_batch, packing) in
        [(1, Packing::Off), (3, Packing::Off), (4, Packing::On), (2, Packing::On)]
    {
        let (other, split) = gradients(&data, per_batch, packing);
        assert!((other / loss - 1.0).abs() < 1e-6, "{per_batch} {packing:?}");
        assert!(relative_error(&split, &whole) < 1e-5, "{per_batch} {packing:?}");
    }
    // The next epoch's rows, which have other numbers, lose other inputs.
    let later: Vec<Row> = data.iter().cloned().map(|r| Row { number: r.number + 4, ..r }).collect();
    assert!((gradients(&later, 4, Packing::Off).0 / loss - 1.0).abs() > 1e-4);
    // Held-out losses know no dropout, and it is right in expectation.
    let held_out = |config: &LoraConfig| {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("adapter");
        model.save_adapter(&place, &adapter_of("base")).unwrap();
        let path = place.join("adapter_config.json");
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json["lora_dropout"] = json!(config.dropout);
        std::fs::write(path, json.to_string()).unwrap();
        let device = devices().remove(0).autodiff();
        let base = shaken(&tiny(Architecture::Qwen2), &device).with_adapter(&place).unwrap();
        assert_eq!(base.lora().unwrap().dropout, config.dropout);
        let rows = vec![data[1].clone()];
        let held_out = [mixdistill::train::HeldOut { name: "x".into(), rows }];
        let train = TrainConfig::default();
        mixdistill::train::held_out_losses(&base, &held_out, &train, &Context::default()).unwrap()
            [0]
        .loss
    };
    let none = LoraConfig { dropout: 0.0, ..config.clone() };
    assert_eq!(held_out(&config), held_out(&none));
    let mean: f64 = (0..400)
        .map(|i| {
            let row = Row { number: i, ..data[1].clone() };
            step_gradients(&model, &[Batch::new([row.example()], 1)]).unwrap().loss
        })
        .sum::<f64>()
        / 400.0;
    let held_out = held_out(&config);
    // Dropout adds a little loss, as noise does; it must not change its scale.
    assert!((mean / held_out - 1.0).abs() < 0.1, "{mean} {held_out}");
}

/// Rows without end.
struct Endless(Vec<Row>);

impl RowStream for Endless {
    fn rows_per_epoch(&self) -> usize {
        self.0.len()
    }

    fn rows(&mut self, range: Range<u64>) -> mixdistill::Result<Vec<Row>> {
        let row = |number: u64| {
            let row = &self.0[number as usize % self.0.len()];
            Row { number, ..row.clone() }
        };
        Ok(range.map(row).collect())
    }
}

#[test]
fn a_resumed_run_with_dropout_gives_the_same_bits_and_stores_the_adapters_only() {
    let config = LoraConfig { dropout: 0.2, ..lora(3) };
    let data = || Endless(rows(&[(9, 3), (14, 5), (7, 2), (20, 4), (5, 2)]));
    let train = TrainConfig {
        steps: Some(6),
        batch_size: 2,
        accumulate: 2,
        learning_rate: 0.01,
        warmup_steps: 1,
        checkpoint_every: 3,
        packing: Packing::On,
        ..TrainConfig::default()
    };
    let start = || {
        let device = devices().remove(0).autodiff();
        shaken(&tiny(Architecture::Qwen3), &device).with_lora(&config, 7).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(folder.path(), 9, json!({}));
    let fit = |learner: &mut Learner<DecoderLm>| {
        let stop = StopFlag::default();
        let surroundings =
            FitOptions { stop: stop.clone(), checkpoints: Some(&store), ..FitOptions::default() };
        learner.fit(&mut data(), surroundings).unwrap();
    };
    let mut whole = learner(start(), &train);
    fit(&mut whole);
    let expected = named_tensors(whole.model()).unwrap();

    std::fs::remove_dir_all(folder.path().join("step-000006")).unwrap();
    let mut resumed = learner(start(), &train);
    resumed.resume(&store).unwrap();
    assert_eq!(resumed.step(), 3);
    fit(&mut resumed);
    assert!(named_tensors(resumed.model()).unwrap() == expected, "the bits differ");

    let bytes = std::fs::read(folder.path().join("step-000003/model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(stored.len(), 2 * 7 * 2);
    assert!(stored.names().iter().all(|name| name.contains("lora_")));
    let bytes = std::fs::read(folder.path().join("step-000003/optimizer.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(stored.len(), 2 * 2 * 7 * 2);
}

#[test]
fn a_saved_adapter_comes_back() {
    let config = LoraConfig {
        dropout: 0.1,
        rslora: true,
        target_modules: ["gate_proj", "v_proj"].into(),
        ..lora(3)
    };
    let model = adapted(&config);
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("adapter");
    model.save_adapter(&folder, &adapter_of("base")).unwrap();
    let base = shaken(&tiny(Architecture::Qwen2), &devices()[0]);
    let read = base.clone().with_adapter(&folder).unwrap();
    assert!(named_tensors(&read).unwrap() == named_tensors(&model).unwrap());
    assert!(logits(&read) == logits(&model));
    let settings = read.lora().unwrap();
    assert_eq!((settings.rank, settings.rslora, settings.dropout), (3, true, 0.1));
    let error = model.save_adapter(&folder, &adapter_of("base")).unwrap_err().to_string();
    assert!(error.contains("it already exists"), "{error}");
    let error = base.save_adapter(&parent.path().join("none"), &adapter_of("base")).unwrap_err();
    assert!(error.to_string().contains("has no adapters"), "{error}");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let model = adapted(&lora(3));
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("adapter");
    model.save_adapter(&folder, &adapter_of("the-base")).unwrap();
    let device = &devices()[0];
    let base = shaken(&tiny(Architecture::Qwen2), device);
    let error = |base: &DecoderLm, folder: &Path| {
        let error = base.clone().with_adapter(folder).unwrap_err();
        assert!(matches!(error, Error::Model { .. } | Error::Io { .. }), "{error}");
        error.to_string()
    };
    // The same shapes, other weights.
    let other = tiny(Architecture::Qwen2).init(99, device).unwrap();
    let message = error(&other, &folder);
    assert!(message.contains("base model with other weights") && message.contains("the-base"));
    // Other shapes.
    let mut wide = tiny(Architecture::Qwen2);
    wide.intermediate_size += 2;
    let message = error(&wide.init(1, device).unwrap(), &folder);
    assert!(message.contains("mlp.up_proj.lora_B.weight is [20, 3], not [22, 3]"), "{message}");
    let mut deep = tiny(Architecture::Qwen2);
    deep.num_hidden_layers = 3;
    let message = error(&deep.init(1, device).unwrap(), &folder);
    assert!(message.contains("layers.2.mlp.down_proj.lora_A.weight is missing"), "{message}");

    let path = folder.join("adapter_config.json");
    let original = std::fs::read_to_string(&path).unwrap();
    let cases = [
        ("peft_type", json!("IA3"), "`peft_type` is \"IA3\""),
        ("use_dora", json!(true), "q_proj.lora_magnitude_vector.weight is missing"),
        ("use_dora", json!("yes"), "`use_dora` is \"yes\""),
        ("bias", json!("all"), "`bias` is \"all\""),
        ("modules_to_save", json!(["lm_head"]), "model.lm_head.weight is missing"),
        ("rank_pattern", json!({"q_proj": 4}), "q_proj.lora_A.weight is [3, 16], not [4, 16]"),
        (
            "layers_to_transform",
            json!([1]),
            "layers.0.mlp.down_proj.lora_A.weight does not belong to this",
        ),
        ("init_lora_weights", json!("pissa"), "`init_lora_weights`"),
        ("something_new", json!("x"), "`something_new`"),
        ("r", json!(0), "rank"),
        ("r", json!(1e30), "`r` is"),
        ("r", json!(4), "is [3, 16], not [4, 16]"),
        ("lora_alpha", json!("big"), "`lora_alpha`"),
        ("lora_dropout", json!(1.5), "dropout"),
        ("target_modules", json!(["lm_head"]), "only layers of blocks can have adapters"),
        ("target_modules", json!(["lm_heads"]), "no layer of the model matches"),
        ("target_modules", json!(["q_proj"]), "does not belong to this model"),
        ("target_modules", json!(3), "not a list of layers"),
        ("target_modules", Value::Null, "not a list of layers"),
        ("target_modules", json!([3]), "not a list of names"),
    ];
    for (key, value, message) in cases {
        let mut config: Value = serde_json::from_str(&original).unwrap();
        config[key] = value.clone();
        std::fs::write(&path, config.to_string()).unwrap();
        let error = error(&base, &folder);
        assert!(error.contains(message), "{key} = {value}: {error}");
    }
    std::fs::write(&path, "{").unwrap();
    error(&base, &folder);
    std::fs::write(&path, &original).unwrap();
    let weights = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    error(&base, &folder);
    std::fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid x\n").unwrap();
    assert!(error(&base, &folder).contains("is a Git LFS pointer"));
    std::fs::rename(&weights, folder.join("adapter_model.bin")).unwrap();
    let message = error(&base, &folder);
    assert!(message.contains("adapter_model.bin") && message.contains("save_file"), "{message}");
    std::fs::remove_file(folder.join("adapter_model.bin")).unwrap();
    assert!(error(&base, &folder).contains("it has no adapter_model.safetensors"));
    let page = "<html>Not found</html>";
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, page).unwrap();
    assert!(error(&base, &folder).contains("is a web page"));
    std::fs::write(&path, text).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(error(&base, &folder).contains("it has no adapter_config.json"));
}

/// What PEFT can and this build cannot: each setting is named with what it holds and what to do.
#[test]
fn what_is_not_supported_says_what_to_do() {
    let model = adapted(&lora(3));
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("adapter");
    model.save_adapter(&folder, &adapter_of("org/the-base")).unwrap();
    let base = shaken(&tiny(Architecture::Qwen2), &devices()[0]);
    let path = folder.join("adapter_config.json");
    let original = std::fs::read_to_string(&path).unwrap();
    for (key, value, held) in [
        ("bias", json!("lora_only"), "lora_only"),
        ("init_lora_weights", json!("olora"), "olora"),
        ("init_lora_weights", json!("pissa_niter_4"), "pissa_niter_4"),
        ("trainable_token_indices", json!([1, 2]), "[1,2]"),
        ("target_parameters", json!(["w"]), "[\"w\"]"),
        ("kasa_config", json!({"beta": 1}), "{\"beta\":1}"),
    ] {
        let mut config: Value = serde_json::from_str(&original).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = base.clone().with_adapter(&folder).unwrap_err().to_string();
        for said in [key, held, "supported", "merge_and_unload"] {
            assert!(error.contains(said), "{key}: {error}");
        }
    }
    // PEFT does not merge these.
    for (key, value) in [
        ("alora_invocation_tokens", json!([1])),
        ("layer_replication", json!([[0, 1]])),
        ("use_qalora", json!(true)),
    ] {
        let mut config: Value = serde_json::from_str(&original).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = base.clone().with_adapter(&folder).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("PEFT cannot merge it"), "{key}: {error}");
    }
    // What PEFT itself takes no notice of, and initializations that leave the base as it is.
    for (key, value) in [
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("orthogonal")),
        ("init_lora_weights", json!("eva")),
        ("rank_pattern", json!({"layers.0": 9})),
        ("exclude_modules", json!(["lm_head"])),
        ("target_modules", json!(r".*\.layers\..*_proj")),
        ("target_modules", json!("ALL-linear")),
    ] {
        let mut config: Value = serde_json::from_str(&original).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let read = base.clone().with_adapter(&folder).unwrap();
        assert_eq!(logits(&read), logits(&model), "{key}");
    }
    // Whether this is the model that it names cannot be told: nobody is told to give "that model".
    let mut config: Value = serde_json::from_str(&original).unwrap();
    config["revision"] = json!("v2");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut deep = tiny(Architecture::Qwen2);
    deep.num_hidden_layers = 3;
    let deep = deep.init(1, &devices()[0]).unwrap();
    let error = deep.with_adapter(&folder).unwrap_err().to_string();
    assert!(error.contains("matches its tensors") && error.contains("(revision v2)"), "{error}");
    assert!(!error.contains("use that model"), "{error}");
    std::fs::write(&path, &original).unwrap();
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |config: LoraConfig, key: &str| {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(&format!("lora.{key}")), "{error}");
    };
    refused(LoraConfig { rank: 0, ..lora(3) }, "rank");
    refused(LoraConfig { rank: 1 << 40, ..lora(3) }, "rank");
    refused(LoraConfig { alpha: f64::NAN, ..lora(3) }, "alpha");
    refused(LoraConfig { alpha: 0.0, ..lora(3) }, "alpha");
    refused(LoraConfig { dropout: 1.0, ..lora(3) }, "dropout");
    let none: [&str; 0] = [];
    refused(LoraConfig { target_modules: none.into(), ..lora(3) }, "target_modules");
    refused(LoraConfig { target_modules: ["lm_head"].into(), ..lora(3) }, "target_modules");
    assert_eq!(LoraConfig::default().target_modules, PROJECTIONS.into());
}

#[test]
fn settings_without_alpha_scale_by_two() {
    let read = |text: &str| RunConfig::from_toml(text).unwrap().lora.unwrap();
    let base = "base_model = \"m\"\n[lora]\n";
    assert_eq!(read(&format!("{base}rank = 8")).alpha, 16.0);
    assert_eq!(read(base).alpha, 32.0);
    let given = read(&format!("{base}rank = 8\nalpha = 8\ntarget_modules = [\"q_proj\"]"));
    assert_eq!((given.alpha, given.scale(), given.target_modules.list().len()), (8.0, 1.0, 1));
    assert!(RunConfig::from_toml(&format!("{base}ranks = 8")).is_err());
}
