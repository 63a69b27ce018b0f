//! Adapters trained by this crate.

use super::*;

#[test]
fn new_adapters_of_any_kind_change_nothing_and_are_trained_with_what_stands_beside() {
    let device = devices().remove(0).autodiff();
    for architecture in [Architecture::Qwen2, Architecture::Llama, Architecture::Gemma3Text] {
        for tied in [true, false] {
            let shape = mixdistill::model::DecoderConfig {
                tie_word_embeddings: tied,
                ..tiny(architecture)
            };
            let plain = shaken(&shape, &device);
            for (kind, config) in kinds() {
                let what = format!("{architecture:?} {tied} {kind}");
                let model = plain.clone().with_lora(&config, 7).unwrap();
                assert!(relative_error(&new_logits(&model), &new_logits(&plain)) < 1e-5, "{what}");
                let before = named_tensors(&model).unwrap();
                let trained = trained_names(&model);
                let settings = TrainConfig { learning_rate: 0.05, ..TrainConfig::default() };
                let mut learner = Learner::new(model, settings).unwrap();
                let loss = |learner: &mut Learner<DecoderLm>| {
                    learner.train_step(&rows(&[(9, 3)]), 9).unwrap().loss
                };
                let losses: Vec<f64> = (0..4).map(|_| loss(&mut learner)).collect();
                assert!(losses[3] < losses[1], "{what}: {losses:?}");
                for (name, tensor) in named_tensors(learner.model()).unwrap() {
                    assert_eq!(tensor != before[&name], trained.contains(&name), "{what}: {name}");
                }
                let is_saved = |name: &&String| !name.contains(".lora_");
                let saved: Vec<&str> =
                    trained.iter().filter(is_saved).map(String::as_str).collect();
                let norm = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
                let expected: &[&str] = match (kind, tied) {
                    ("saved", true) => &["model.embed_tokens.weight", norm[0], norm[1]],
                    ("saved", false) => {
                        &["lm_head.weight", "model.embed_tokens.weight", norm[0], norm[1]]
                    }
                    ("saved_apart", _) => &["lm_head.weight"],
                    _ => &[],
                };
                assert_eq!(saved, expected, "{what}");
            }
        }
    }
}

#[test]
fn merging_and_writing_give_the_same_model_with_any_kind() {
    let device = devices().remove(0).autodiff();
    let place = tempfile::tempdir().unwrap();
    let plain_shape = |tied| mixdistill::model::DecoderConfig {
        tie_word_embeddings: tied,
        ..tiny(Architecture::Qwen2)
    };
    for tied in [true, false] {
        for (kind, config) in kinds() {
            let plain = shaken(&plain_shape(tied), &device);
            let model = moved(&plain.clone().with_lora(&config, 7).unwrap());
            let expected = new_logits(&model);
            assert!(relative_error(&new_logits(&plain), &expected) > 1e-2, "{kind} does something");
            let merged = model.clone().merged();
            assert!(relative_error(&new_logits(&merged), &expected) < 1e-5, "{kind}");
            let folder = place.path().join(format!("{kind}-{tied}"));
            model.save_adapter(&folder, &adapter_of("base")).unwrap();
            let read = plain.clone().valid().with_adapter(&folder).unwrap();
            assert!(new_logits(&read) == expected, "{kind}");
            assert!(named_tensors(&read).unwrap() == named_tensors(&model).unwrap(), "{kind}");
            // As a folder; a head that has become another one comes back.
            let whole = place.path().join(format!("{kind}-{tied}-merged"));
            let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
            merged.save(&whole, &SaveFolder::new(&tokenizer)).unwrap();
            let again = DecoderLm::load(&whole, &devices()[0]).unwrap();
            // Products with it are summed in another order.
            assert!(relative_error(&new_logits(&again), &new_logits(&merged)) < 1e-5, "{kind}");
        }
    }
}

#[test]
fn dropout_with_dora_is_a_function_of_the_row_and_not_of_its_batch() {
    let device = devices().remove(0).autodiff();
    let config = LoraConfig { dropout: 0.3, use_dora: true, rank: 3, ..LoraConfig::default() };
    let plain = shaken(&tiny(Architecture::Qwen2), &device);
    let model = moved(&plain.with_lora(&config, 7).unwrap());
    let data = rows(&[(9, 3), (14, 5), (7, 2)]);
    let gradients = |per_batch: usize| {
        let batches: Vec<Batch> =
            data.chunks(per_batch).map(|rows| Batch::new(common::examples(rows), 1)).collect();
        let step = step_gradients(&model, &batches).unwrap();
        let named = named_gradients(&model, &step.gradients).unwrap();
        (step.loss, named.into_values().flat_map(|g| g.values).collect::<Vec<f32>>())
    };
    let (loss, whole) = gradients(3);
    let (other, split) = gradients(1);
    assert!((other / loss - 1.0).abs() < 1e-6, "{other} {loss}");
    assert!(relative_error(&split, &whole) < 1e-5);
    let again = StepOptions { activation_checkpointing: true, ..StepOptions::default() };
    assert!(gradients_off(&model, [&StepOptions::default(), &again]) < 1e-4);
    // What is left of an input is scaled, so that it is right in expectation.
    let without = LoraConfig { dropout: 0.0, ..config };
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("adapter");
    model.save_adapter(&folder, &adapter_of("base")).unwrap();
    let path = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json["lora_dropout"] = json!(without.dropout);
    std::fs::write(&path, json.to_string()).unwrap();
    let plain = shaken(&tiny(Architecture::Qwen2), &device).with_adapter(&folder).unwrap();
    let exact = step_gradients(&plain, &[Batch::new([data[1].example()], 1)]).unwrap().loss;
    let of_number = |number| {
        let row = mixdistill::data::Row { number, ..data[1].clone() };
        step_gradients(&model, &[Batch::new([row.example()], 1)]).unwrap().loss
    };
    let mean = (0..300).map(of_number).sum::<f64>() / 300.0;
    assert!((mean / exact - 1.0).abs() < 0.15, "{mean} {exact}");
    assert!(mean != exact);
}

/// A run of the toy corpus whose settings are a kind's.
fn run_of(base: &Path, out: &Path, lora: LoraConfig) -> RunConfig {
    let mut config = RunConfig::fine_tune(base.to_string_lossy()).with_lora(lora);
    config.out = out.to_owned();
    config.data.toy_problems = 40;
    config.data.toy_test_problems = 8;
    config.data.max_length = 128;
    config.train.steps = Some(4);
    config.train.checkpoint_every = 2;
    config.train.keep_checkpoints = 9;
    config.train.learning_rate = 1e-2;
    config
}

#[test]
fn a_run_of_each_kind_resumes_in_the_same_bits_and_is_asked_and_merged() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let mut toy = common::toy_run(&path("toy"));
    toy.model.num_hidden_layers = 2;
    toy.model.tie_word_embeddings = true;
    toy.train.steps = Some(8);
    toy.evaluation.questions = 0;
    recipe::run(&toy, RunMode::New, &Context::default()).unwrap();
    let base = path("toy").join("model");
    for (kind, mut lora) in kinds() {
        // A Llama has no biases.
        if kind == "regex_bias" {
            lora.lora_bias = false;
        }
        let config = run_of(&base, &path(kind), lora);
        recipe::run(&config, RunMode::New, &Context::default()).unwrap();
        let adapter = path(kind).join("adapter");
        let file = || std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
        let whole = file();
        // From its second step on once more.
        std::fs::remove_dir_all(path(kind).join("checkpoints/step-000004")).unwrap();
        std::fs::remove_file(path(kind).join("summary.json")).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        recipe::run(&config, RunMode::Resume, &Context::default()).unwrap();
        assert!(file() == whole, "{kind}: a resumed run has other bits");
        // The settings come back from the run's directory.
        let read = RunConfig::read(&path(kind).join("config.toml")).unwrap();
        assert_eq!(read.lora, config.lora, "{kind}");

        let run = |name: &str, words: &[&str]| {
            let output = common::command(name).args(words).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let [of, merged, adapter] = [&base, &path(&format!("{kind}-merged")), &adapter]
            .map(|path| path.to_string_lossy().into_owned());
        run("merge", &["--model", &of, "--adapter", &adapter, "--out", &merged]);
        let ask = ["--prompt", "1 + 1?", "--max-new-tokens", "8", "--model"];
        let with = run("generate", &[&ask[..], &[&of, "--adapter", &adapter]].concat());
        assert_eq!(with, run("generate", &[&ask[..], &[&merged]].concat()), "{kind}");
        let shape = ModelFolder::open(Path::new(&merged)).unwrap();
        assert_eq!(shape.config().tie_word_embeddings, kind != "saved_apart", "{kind}");
    }
}

#[test]
fn biases_of_adapters_are_merged_where_the_layer_has_one() {
    let device = devices().remove(0).autodiff();
    let (_, config) = kinds().into_iter().find(|(kind, _)| *kind == "regex_bias").unwrap();
    let place = tempfile::tempdir().unwrap();
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let plain = shaken(&tiny(Architecture::Llama), &device);
    let merged = moved(&plain.with_lora(&config, 7).unwrap()).merged();
    let folder = place.path().join("merged");
    let error = merged.save(&folder, &SaveFolder::new(&tokenizer)).unwrap_err().to_string();
    assert!(error.contains("lora_bias") && error.contains("self_attn.k_proj.bias"), "{error}");
    assert!(!folder.exists());
}

/// What is written says what PEFT must know of a head that stays the embedding.
#[test]
fn a_tied_head_stays_so_unless_it_is_told_otherwise() {
    let device = devices().remove(0).autodiff();
    let place = tempfile::tempdir().unwrap();
    for (tying, held) in [(true, 2), (false, 1)] {
        let config = LoraConfig {
            modules_to_save: vec!["embed_tokens".into()],
            ensure_weight_tying: tying,
            ..LoraConfig::default()
        };
        let model = shaken(&tiny(Architecture::Llama), &device).with_lora(&config, 1).unwrap();
        let folder = place.path().join(tying.to_string());
        model.save_adapter(&folder, &adapter_of("base")).unwrap();
        let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ensure_weight_tying"], json!(tying));
        assert_eq!(json["modules_to_save"], json!(["embed_tokens"]));
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let whole = file.names().iter().filter(|name| !name.contains(".lora_")).count();
        assert_eq!(whole, held);
        assert_eq!(model.clone().merged().config().tie_word_embeddings, tying);
    }
}
