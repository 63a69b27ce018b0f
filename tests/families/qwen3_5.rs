//! Qwen3.5: comparison with transformers, ignored parts of a published folder, and thinking that
//! can be switched.

use super::common::chat_folder::{ChatFolder, template};
use super::common::{Said, adapter_of, generate, shaken, tiny};
use super::parity_support::{folder_for_transformers, logits, with_random_b, write_logits};
use super::{compare, devices, family, open};
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::TextTokenizer;
use mixdistill::model::{
    Architecture, DecoderConfig, GenerateConfig, LINEAR_ATTENTION, LayerType, LoadOptions,
    LoraConfig, ModelFolder, PROJECTIONS, SaveFolder, TextModel, TextModelFiles, named_tensors,
};
use mixdistill::recipe::{RunConfig, RunMode, run};
use mixdistill::settings::Layers;
use serde_json::{Value, json};
use std::path::Path;

/// Two models: text alone, with rows of more than a chunk, and the text part of one with images.
#[test]
fn gives_what_transformers_gives() {
    for device in devices() {
        compare(&["qwen3_5", "qwen3_5_text"], &device);
    }
}

#[test]
fn other_parts_are_set_aside_and_said_once() {
    let mut said = Said::default();
    let device = devices().remove(0);
    let folder = open(&family("qwen3_5"));
    folder.load_with(&device, &Context::new(&mut said, &StopFlag::default())).unwrap();
    let lines: Vec<&String> = said.0.iter().filter(|line| line.contains("are ignored")).collect();
    assert_eq!(lines.len(), 1, "{:?}", said.0);
    assert!(lines[0].contains("model.visual (") && lines[0].contains("mtp (2)"), "{}", lines[0]);
    // The same of a model of text alone, as it may be published.
    let mut said = Said::default();
    let alone = open(&family("qwen3_5_text"));
    alone.load_with(&device, &Context::new(&mut said, &StopFlag::default())).unwrap();
    assert!(!said.contains("are ignored"), "{:?}", said.0);
}

/// A configuration as it is published: nested, with the layers by name or by their interval.
#[test]
fn layers_are_named_or_counted() {
    let changed = |change: &dyn Fn(&mut Value)| {
        let folder = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(family("qwen3_5").join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(&mut config["text_config"]);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        ModelFolder::open(folder.path()).map(|folder| folder.config().clone())
    };
    let counted = changed(&|config| {
        config.as_object_mut().unwrap().remove("layer_types");
        config["full_attention_interval"] = 2.into();
    });
    let [linear, full] = [LayerType::LinearAttention, LayerType::FullAttention];
    assert_eq!(counted.unwrap().layer_types, [linear, full, linear]);
    let usual = changed(&|config| {
        config.as_object_mut().unwrap().remove("layer_types");
        config["num_hidden_layers"] = 5.into();
    });
    let usual = usual.unwrap();
    assert_eq!(usual.layer_types, [linear, linear, linear, full, linear]);
    assert_eq!(usual.partial_rotary_factor, 0.25);
    for (what, key, value) in [
        ("`full_attention_interval` is 0", "full_attention_interval", json!(0)),
        (
            "sliding_attention",
            "layer_types",
            json!(["sliding_attention", "full_attention", "full_attention"]),
        ),
        ("do not divide", "linear_num_key_heads", json!(3)),
        ("linear_key_head_dim", "linear_key_head_dim", json!(0)),
        ("Use at most 1024", "linear_value_head_dim", json!(126_000)),
        ("Use at most 64", "linear_conv_kernel_dim", json!(1 << 20)),
        ("`silu`", "hidden_act", json!("gelu_pytorch_tanh")),
    ] {
        let error = changed(&|config| {
            config.as_object_mut().unwrap().remove("layer_types");
            config[key] = value.clone();
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{key}: {error}");
    }
}

/// The names that adapters usually have stand for all attention in settings, and for themselves in PEFT's files.
#[test]
fn usual_adapters_mean_linear_attention_too_in_settings_and_not_in_files() {
    let device = devices().remove(0);
    let base = open(&family("qwen3_5_text"));
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let usual = base.load(&device).unwrap().with_lora(&lora, 1).unwrap();
    let names: Vec<String> = named_tensors(&usual).unwrap().into_keys().collect();
    let count = |part: &str| names.iter().filter(|name| name.contains(part)).count();
    // A and B of three layers, and of one.
    assert_eq!((count("in_proj_a.lora_A"), count("out_proj.lora_B")), (3, 3));
    assert_eq!(count("self_attn.q_proj.lora_A"), 1);

    let excluded = LoraConfig { exclude_modules: LINEAR_ATTENTION.into(), ..lora.clone() };
    let full = base.load(&device).unwrap().with_lora(&excluded, 1).unwrap();
    let full = with_random_b(full);
    let place = tempfile::tempdir().unwrap();
    let adapter = place.path().join("adapter");
    full.save_adapter(&adapter, &adapter_of("base")).unwrap();
    // As PEFT writes what was asked for by seven names.
    let path = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["target_modules"] = json!(PROJECTIONS);
    config["exclude_modules"] = Value::Null;
    std::fs::write(&path, config.to_string()).unwrap();
    let read = base.load(&device).unwrap().with_adapter(&adapter).unwrap();
    let tokens: Vec<u32> = (3..60).collect();
    assert_eq!(logits(&read, &tokens, &device), logits(&full, &tokens, &device));

    let all_linear = DecoderConfig {
        layer_types: vec![LayerType::LinearAttention; 2],
        ..tiny(Architecture::Qwen35Text)
    };
    let model = all_linear.init(1, &device).unwrap().with_lora(&lora, 1).unwrap();
    let names: Vec<String> = named_tensors(&model).unwrap().into_keys().collect();
    assert!(names.iter().any(|name| name.contains("linear_attn.in_proj_qkv.lora_A")));
}

/// A convolution of one tap, which keeps nothing, and prompts that take the places of others.
#[test]
fn rows_that_take_the_places_of_others_have_states_of_their_own() {
    let device = devices().remove(0);
    for taps in [1, 2, 4] {
        let config =
            DecoderConfig { linear_conv_kernel_dim: Some(taps), ..tiny(Architecture::Qwen35Text) };
        let model = shaken(&config, &device);
        let prompt = |length: u32| (0..length).map(|i| (i * i + length) % 23).collect::<Vec<u32>>();
        let prompts = [9, 1, 2, 70, 3, 12].map(prompt);
        let settings =
            |batch_size| GenerateConfig { max_new_tokens: 9, batch_size, ..Default::default() };
        let together = generate(&model, &prompts, &[4, 5, 6], &settings(2)).unwrap();
        for (prompt, found) in prompts.iter().zip(&together) {
            let alone = generate(&model, std::slice::from_ref(prompt), &[4, 5, 6], &settings(1));
            assert_eq!(found.tokens, alone.unwrap()[0].tokens, "{taps} taps, {}", prompt.len());
        }
    }
}

/// Sums of two digits: with their reasoning, and without.
fn sums() -> Vec<(String, String, String)> {
    let sum = |(a, b): (u32, u32)| {
        (format!("{a}+{b}?"), format!("{a} and {b} make {}.", a + b), (a + b).to_string())
    };
    (1..6).flat_map(|a| (1..6).map(move |b| (a, b))).map(sum).collect()
}

/// A student in a folder with Qwen3.5's template, and rows with reasoning and without in files.
fn write_folder(folder: &Path, source: &str) {
    let settings = json!({"eos_token": "<|im_end|>"});
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let chat = ChatFolder::new(&special, &["<think>", "</think>"], false, settings);
    let config = DecoderConfig {
        vocab_size: chat.tokenizer().vocabulary_size(),
        hidden_size: 48,
        intermediate_size: 96,
        head_dim: Some(16),
        partial_rotary_factor: 0.5,
        layer_types: vec![],
        num_hidden_layers: 4,
        linear_key_head_dim: Some(16),
        linear_value_head_dim: Some(16),
        initializer_range: 0.1,
        ..tiny(Architecture::Qwen35Text)
    };
    let base = folder.join("base");
    let model = shaken(&config, &devices().remove(0));
    model.save(&base, &SaveFolder::new(&chat.tokenizer())).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(chat.path().join(file), base.join(file)).unwrap();
    }
    std::fs::write(base.join("chat_template.jinja"), source).unwrap();
    let long = |(problem, reasoning, answer): &(String, String, String)| {
        json!({"messages": [
            {"role": "user", "content": problem},
            {"role": "assistant", "reasoning_content": reasoning, "content": answer},
        ]})
    };
    let short = |(problem, _, answer): &(String, String, String)| json!({"problem": problem, "solution": answer});
    for (name, row) in [("long", &long as &dyn Fn(&_) -> Value), ("short", &short)] {
        let lines: String = sums().iter().map(|sum| format!("{}\n", row(sum))).collect();
        std::fs::write(folder.join(format!("{name}.jsonl")), lines).unwrap();
    }
}

fn tuned(folder: &Path) -> String {
    let path = |name: &str| format!("{:?}", folder.join(name));
    let mut layers = Layers::<RunConfig>::new().unwrap();
    let text = format!(
        "out = {}\nbase_model = {}\n[data]\nhold_out = 0.04\nmax_length = 256\n\
         [data.sources.long]\npath = {}\ntemplate_variables = {{ enable_thinking = true }}\n\
         [data.sources.short]\npath = {}\ntemplate_variables = {{ enable_thinking = false }}\n\
         [mixture]\nweights = {{ long = 0.5, short = 0.5 }}\n",
        path("run"),
        path("base"),
        path("long.jsonl"),
        path("short.jsonl")
    );
    layers.text(&text).unwrap();
    let mut config = layers.settings().unwrap();
    config.train.steps = Some(80);
    config.train.batch_size = 12;
    config.train.learning_rate = 5e-3;
    config.train.evaluate_every = 0;
    config.train.checkpoint_every = 0;
    config.evaluation.questions = 0;
    run(&config, RunMode::New, &Context::default()).unwrap();
    folder.join("run").display().to_string()
}

/// Fine-tuned on rows with reasoning and without, by the template's own switch; transformers loads the result and
/// goes on with the same tokens (`check_ours.py`, where `MIXDISTILL_PARITY_OUT` says).
#[test]
fn a_tiny_model_learns_its_templates_switch() {
    let Some(source) = template("Qwen3.5-4B") else { return };
    let place = tempfile::tempdir().unwrap();
    write_folder(place.path(), &source);
    let name = tuned(place.path());
    let loaded = TextModel::load(&name, &LoadOptions::default(), &Context::default()).unwrap();
    let mut answers = vec![];
    for thinks in [true, false] {
        let variables = [("enable_thinking".to_owned(), thinks.into())].into();
        let options = LoadOptions { template_variables: variables, ..LoadOptions::default() };
        let files = TextModelFiles::open(&name, &options, &Context::default()).unwrap();
        let text = files.text_interface();
        let prompts: Vec<Vec<u32>> = sums()
            .iter()
            .map(|(problem, ..)| text.template.prompt(text.tokenizer, problem.into()).unwrap())
            .collect();
        let settings = GenerateConfig { max_new_tokens: 48, ..GenerateConfig::default() };
        let found = generate(&loaded.model, &prompts, text.end_tokens, &settings).unwrap();
        let texts: Vec<String> =
            found.iter().map(|answer| answer.text(text.tokenizer).unwrap()).collect();
        let switched =
            |text: &&String| text.contains("</think>\n\n") == thinks && !text.contains("<think>");
        let count = texts.iter().filter(switched).count();
        let right = texts
            .iter()
            .zip(sums())
            .filter(|(text, (.., answer))| text.trim().rsplit("\n").next() == Some(answer))
            .count();
        println!(
            "thinking {thinks}: {count} as told, {right} right of {}: {:?}",
            texts.len(),
            texts[0]
        );
        assert!(count >= 23, "thinking {thinks}: {texts:?}");
        // Of 25, where a guess is right about once in six times.
        assert!(right >= 8, "thinking {thinks}: {texts:?}");
        for index in [0, 7, 24] {
            let problem = &sums()[index].0;
            let tokens = &found[index].tokens;
            answers.push(json!({
                "messages": [{"role": "user", "content": problem}],
                "variables": {"enable_thinking": thinks},
                "prompt": prompts[index],
                "tokens": tokens,
            }));
        }
    }
    let Some(out) = folder_for_transformers() else { return };
    let folder = out.join("qwen3_5-thinking");
    let device = devices().remove(0);
    let tokenizer: &TextTokenizer = loaded.text_interface().tokenizer;
    let base = ModelFolder::open(&place.path().join("run/model")).unwrap();
    let how = SaveFolder { base: Some(&base), ..SaveFolder::new(tokenizer) };
    loaded.model.save(&folder, &how).unwrap();
    let tokens: Vec<u32> = (0..90).map(|i| i * 7 % 250).collect();
    write_logits(&folder, &tokens, &logits(&loaded.model, &tokens, &device));
    let said = json!({"class": "Qwen3_5ForCausalLM", "answers": answers});
    std::fs::write(folder.join("ours.json"), said.to_string()).unwrap();
}
