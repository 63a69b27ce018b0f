//! Fine-tuning a model from a folder, whole or with adapters, and using the result in the examples.

mod common;

use common::{devices, shared, smollm2};
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::{ChatFormat, PromptTemplate, TextTokenizer, arith};
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, LoraConfig, ModelFolder, SaveFolder, named_tensors,
};
use mixdistill::recipe::{RunConfig, RunMode, SourceConfig, Summary, run};
use mixdistill::settings::Layers;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use tempfile::TempDir;

const TEMPLATE: &str = "{{ date_string | default(strftime_now('%Y-%m-%d')) }}\n\
                        {% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

/// A small model with a chat template, and files of teachers' answers.
struct Setting(TempDir);

impl Setting {
    fn new() -> Self {
        let setting = Self(tempfile::tempdir().unwrap());
        let words = arith::vocabulary();
        let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
        let config = DecoderConfig {
            architecture: Architecture::Qwen3,
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            initializer_range: 0.1,
            ..DecoderConfig::default()
        };
        let model = config.init(3, &devices()[0]).unwrap();
        let how = SaveFolder { chat_template: Some(TEMPLATE), ..SaveFolder::new(&tokenizer) };
        model.save(&setting.path("base"), &how).unwrap();
        let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 40, 0, 1);
        for (name, long) in [("long.jsonl", true), ("short.jsonl", false)] {
            let lines: String = corpus
                .train
                .iter()
                .enumerate()
                .map(|(id, p)| if long { p.long_record(id) } else { p.short_record(id) })
                .map(|r| {
                    let line = json!({
                        "problem": r.problem, "solution": r.solution, "answer": r.answer,
                    });
                    format!("{line}\n")
                })
                .collect();
            std::fs::write(setting.path(name), lines).unwrap();
        }
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn config(&self, out: &str, lora: Option<LoraConfig>) -> RunConfig {
        let source = |name: &str| SourceConfig {
            name: name.into(),
            path: self.path(&format!("{name}.jsonl")),
            ..SourceConfig::default()
        };
        let config = RunConfig::fine_tune(self.text("base"));
        let mut config = match lora {
            Some(lora) => config.with_lora(lora),
            None => config,
        };
        config.out = self.path(out);
        config.data.sources = vec![source("long"), source("short")];
        config.data.hold_out = 0.2;
        config.train.steps = Some(8);
        config.train.learning_rate = 3e-3;
        config.train.warmup_steps = 1;
        config.train.checkpoint_every = 4;
        config.evaluation.questions = 2;
        config.generate.max_new_tokens = 6;
        config
    }
}

fn quiet(config: &RunConfig, mode: RunMode) -> mixdistill::Result<Summary> {
    run(config, mode, &Context::default())
}

fn called(command: &str, arguments: &[&str]) -> Output {
    let mut child = common::command(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Two questions for a chat; the other uses read nothing.
    let _ = child.stdin.take().unwrap().write_all(b"What is 1 + 1?\nAnd 2 + 2?\n");
    child.wait_with_output().unwrap()
}

fn succeeded(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    (out, err)
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn held_out_falls(summary: &Summary) {
    let (first, last) = (&summary.evaluations[0], summary.evaluations.last().unwrap());
    assert_eq!(first.sources.len(), 2);
    for (before, after) in first.sources.iter().zip(&last.sources) {
        assert!(after.loss < before.loss, "{}: {} {}", after.name, before.loss, after.loss);
    }
}

#[test]
fn a_model_in_a_folder_is_tuned_as_a_whole() {
    let setting = Setting::new();
    let summary = quiet(&setting.config("run", None), RunMode::New).unwrap();
    held_out_falls(&summary);
    assert_eq!(summary.parameters, summary.trained_parameters);
    let folder = setting.path("run/model");
    assert_eq!(
        files(&folder),
        [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let both = |name: &str| {
        ["run/model", "base"]
            .map(|folder| std::fs::read_to_string(setting.path(folder).join(name)).unwrap())
    };
    for name in ["tokenizer.json", "chat_template.jinja"] {
        let [ours, base] = both(name);
        assert!(ours == base, "{name} is as it came");
    }
    // The template is in both places, and all else is as it came.
    let [mut ours, mut base] =
        both("tokenizer_config.json").map(|text| serde_json::from_str::<Value>(&text).unwrap());
    let template = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
    assert_eq!(ours["chat_template"].take(), template);
    base["chat_template"].take();
    assert_eq!(ours, base);
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for part in ["Trained from `base`", "| long |", "| optimizer steps | 8 |", "held-out loss"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(!card.contains(&setting.text("")), "where the base lies is not in the card");
    assert!(!card.contains("base_model:"), "a name that leads nowhere");
    let [tuned, base] =
        ["run/model", "base"].map(|name| DecoderLm::load(&setting.path(name), &devices()[0]));
    let [tuned, base] = [tuned, base].map(|model| named_tensors(&model.unwrap()).unwrap());
    assert!(tuned.iter().all(|(name, tensor)| *tensor != base[name]), "everything was trained");

    // What came out goes in.
    let mut again = setting.config("again", None);
    again.base_model = Some(setting.text("run/model"));
    again.train.steps = Some(1);
    let next = quiet(&again, RunMode::New).unwrap();
    assert_eq!(next.evaluations[0].sources, summary.evaluations.last().unwrap().sources);
}

#[test]
fn adapters_are_tuned_resumed_and_merged() {
    let setting = Setting::new();
    let lora = LoraConfig { rank: 4, alpha: 16.0, dropout: 0.1, ..LoraConfig::default() };
    let config = setting.config("run", Some(lora.clone()));
    let summary = quiet(&config, RunMode::New).unwrap();
    held_out_falls(&summary);
    assert!(summary.trained_parameters < summary.parameters / 2);
    let adapter = setting.path("run/adapter");
    assert_eq!(files(&adapter), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert!(!setting.path("run/model").exists());

    // A run that stopped half way and went on ends in the same file.
    let mut half = setting.config("half", Some(lora));
    half.train.steps = Some(8);
    quiet(&half, RunMode::New).unwrap();
    for name in ["checkpoints/step-000008", "adapter"] {
        std::fs::remove_dir_all(setting.path("half").join(name)).unwrap();
    }
    std::fs::remove_file(setting.path("half/summary.json")).unwrap();
    quiet(&half, RunMode::Resume).unwrap();
    let weights = |run: &str| {
        std::fs::read(setting.path(run).join("adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(weights("run") == weights("half"));

    // Merged by the program, the model answers as with the adapter beside it.
    let (base, out) = (setting.text("base"), setting.text("merged"));
    let adapter = adapter.display().to_string();
    let flags = ["--model", &base, "--adapter", &adapter];
    succeeded(&called("merge", &[&flags[..], &["--out", &out]].concat()));
    let tuned = ModelFolder::open(&setting.path("merged")).unwrap().load(&devices()[0]).unwrap();
    let beside = DecoderLm::load(&setting.path("base"), &devices()[0]).unwrap();
    let beside = beside.with_adapter(Path::new(&adapter)).unwrap().merged();
    assert!(named_tensors(&tuned).unwrap() == named_tensors(&beside).unwrap());
    let output = called("merge", &[&flags[..], &["--out", &out]].concat());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("it already exists"));

    let ask = |model: &str, more: &[&str]| {
        let flags = ["--model", model, "--prompt", "What is 1 + 1?", "--max-new-tokens", "12"];
        succeeded(&called("generate", &[&flags[..], more].concat())).0
    };
    assert_eq!(ask(&out, &[]), ask(&base, &["--adapter", &adapter]));
}

#[test]
fn the_end_of_turn_of_the_template_ends_answers_afterwards_too() {
    // A base model whose own end token is another than that of its chat template.
    let setting = Setting::new();
    let path = setting.path("base/generation_config.json");
    std::fs::write(path, "{\"eos_token_id\": 0}").unwrap();
    let path = setting.path("base/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["eos_token_id"] = json!(0);
    std::fs::write(path, config.to_string()).unwrap();
    let base = ModelFolder::open(&setting.path("base")).unwrap();
    assert_eq!(base.end_tokens(), [0]);
    let end = base.tokenizer(None).unwrap().token("<|end|>").unwrap();
    let mut config = setting.config("run", Some(LoraConfig { rank: 2, ..LoraConfig::default() }));
    config.train.steps = Some(1);
    // A template of one's own goes with the adapter, and into the merged folder.
    let template = TEMPLATE.replace("assistant: ", "assistant says: ");
    let template =
        template.replace("{{ m.role }}: ", "{{ m.role }}{{ ' says' if m.role == 'assistant' }}: ");
    std::fs::write(setting.path("own.jinja"), &template).unwrap();
    config.data.chat_template = Some(setting.text("own.jinja"));
    quiet(&config, RunMode::New).unwrap();
    let (base, adapter) = (setting.text("base"), setting.text("run/adapter"));
    let merged = setting.text("merged");
    let flags = ["--model", &base, "--adapter", &adapter, "--out", &merged];
    succeeded(&called("merge", &flags));
    assert_eq!(ModelFolder::open(Path::new(&merged)).unwrap().end_tokens(), [0, end]);
    let written = std::fs::read_to_string(setting.path("merged/chat_template.jinja")).unwrap();
    assert_eq!(written, template);
}

#[test]
fn a_base_that_can_only_be_read_is_no_obstacle() {
    let setting = Setting::new();
    for name in files(&setting.path("base")) {
        let path = setting.path("base").join(name);
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions).unwrap();
    }
    let mut config = setting.config("run", None);
    config.train.steps = Some(1);
    quiet(&config, RunMode::New).unwrap();
    for name in files(&setting.path("run/model")) {
        let metadata = std::fs::metadata(setting.path("run/model").join(&name)).unwrap();
        assert!(!metadata.permissions().readonly(), "{name}");
    }
}

#[test]
fn the_built_in_layout_goes_with_the_model_as_a_chat_template() {
    let setting = Setting::new();
    let mut config = setting.config("run", None);
    config.train.steps = Some(1);
    config.data.chat_template = Some("none".into());
    config.data.template.before = "Q \"x\" {{ 1 }}:\n".into();
    quiet(&config, RunMode::New).unwrap();
    let folder = ModelFolder::open(&setting.path("run/model")).unwrap();
    let tokenizer = folder.tokenizer(None).unwrap();
    let template = folder.chat_template().unwrap().unwrap();
    let chat = ChatFormat::new(template, &tokenizer, None).unwrap();
    let plain = &config.data.template;
    let row = |template: &dyn PromptTemplate| {
        template.row(&tokenizer, " What is 1 + 1? ".into(), "2\n").unwrap()
    };
    assert_eq!(row(&chat), row(plain));
}

#[test]
fn a_run_stopped_before_its_end_refuses_another_base() {
    let setting = Setting::new();
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let config = setting.config("run", Some(lora));
    quiet(&config, RunMode::New).unwrap();
    std::fs::remove_file(setting.path("run/summary.json")).unwrap();
    // The same shapes, other weights.
    let base = ModelFolder::open(&setting.path("base")).unwrap();
    let other = base.config().init(4, &devices()[0]).unwrap();
    let tokenizer = base.tokenizer(None).unwrap();
    std::fs::remove_dir_all(setting.path("base")).unwrap();
    let how = SaveFolder { chat_template: Some(TEMPLATE), ..SaveFolder::new(&tokenizer) };
    other.save(&setting.path("base"), &how).unwrap();
    let error = quiet(&config, RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("base_model was"), "{error}");
}

#[test]
fn settings_of_a_real_model_that_cannot_be_used_are_refused() {
    let setting = Setting::new();
    let refused = |change: &dyn Fn(&mut RunConfig), message: &str| {
        let mut config = setting.config("run", None);
        change(&mut config);
        let error = quiet(&config, RunMode::New).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
        assert!(!setting.path("run/config.toml").exists(), "nothing was started");
    };
    refused(&|c| c.base_model = Some("no/such".into()), "there is no such folder");
    refused(
        &|c| c.data.tokenizer = Some(setting.path("base/tokenizer.json")),
        "has its own tokenizer",
    );
    refused(&|c| c.data.max_length = 3000, "supports 2048 tokens");
    refused(&|c| c.data.date = Some("yesterday".into()), "YYYY-MM-DD");
    refused(&|c| c.save.max_shard_bytes = 0, "save.max_shard_bytes");
    refused(&|c| c.lora = Some(LoraConfig { rank: 0, ..LoraConfig::default() }), "lora.rank");
    let alone = |c: &mut RunConfig| (c.base_model, c.lora) = (None, Some(LoraConfig::default()));
    refused(&alone, "there is no model to add adapters to");
    refused(&|c| c.data.chat_template = Some(setting.text("none.jinja")), "cannot read");
    refused(
        &|c| {
            c.data.chat_template = Some("none".into());
            c.data.system_prompt = Some("Think.".into());
        },
        "there is no chat template to put it into",
    );
    std::fs::write(setting.path("begins.jinja"), format!("{TEMPLATE}Well, ")).unwrap();
    refused(
        &|c| c.data.chat_template = Some(setting.text("begins.jinja")),
        "does not begin with the same conversation",
    );
}

#[test]
fn an_answer_that_the_template_changes_is_named() {
    let setting = Setting::new();
    let dropping = TEMPLATE.replace("m.content", "m.content.split('###')[-1]");
    std::fs::write(setting.path("dropping.jinja"), dropping).unwrap();
    let line = json!({"problem": "one?", "solution": "1"}).to_string();
    let thought = json!({"problem": "two?", "solution": "1 + 1 ### 2"}).to_string();
    std::fs::write(setting.path("long.jsonl"), format!("{line}\n{thought}\n")).unwrap();
    std::fs::write(setting.path("short.jsonl"), format!("{line}\n{thought}\n")).unwrap();
    let mut config = setting.config("run", None);
    config.data.chat_template = Some(setting.text("dropping.jinja"));
    let error = quiet(&config, RunMode::New).unwrap_err().to_string();
    assert!(error.contains("leaves out or changes part of the answer"), "{error}");
    assert!(error.contains("`long` line 2"), "{error}");
}

#[test]
fn a_comparison_without_questions_says_how_to_ask_some() {
    let setting = Setting::new();
    let mut config = setting.config("run", None);
    config.evaluation.questions = 0;
    let stop = StopFlag::default();
    let error =
        mixdistill::recipe::compare(&config, RunMode::New, &Context::new((), &stop)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`evaluation.questions`: it is 0, but a comparison grades answers"),
        "{error}"
    );
}

#[test]
fn the_date_in_prompts_is_that_of_the_start() {
    let setting = Setting::new();
    let mut config = setting.config("run", None);
    config.data.date = Some("2024-07-26".into());
    config.train.steps = Some(1);
    let first = quiet(&config, RunMode::New).unwrap();
    config.data.date = None;
    // The run's own date is taken, so nothing has changed.
    let again = quiet(&config, RunMode::Resume).unwrap();
    assert_eq!(first.data, again.data);
    let mut today = setting.config("today", None);
    today.train.steps = Some(1);
    let other = quiet(&today, RunMode::New).unwrap();
    assert_ne!(other.data, first.data, "the date is in the tokens");
    assert!(other.config.data.date.is_some(), "and is kept with the settings");
}

#[test]
fn a_configuration_file_starts_from_the_defaults_of_what_it_trains() {
    let toy = RunConfig::from_toml("").unwrap();
    let whole = RunConfig::from_toml("base_model = \"x\"").unwrap();
    let lora = RunConfig::from_toml("base_model = \"x\"\n[lora]\nrank = 4").unwrap();
    assert_eq!((toy.train.learning_rate, whole.train.learning_rate), (2e-3, 1e-5));
    assert_eq!((lora.train.learning_rate, lora.lora.as_ref().unwrap().rank), (1e-4, 4));
    assert_eq!((toy.data.max_length, whole.data.max_length), (512, 2048));
    assert_eq!(RunConfig::from_toml(&lora.to_toml().unwrap()).unwrap(), lora);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "seed = 3").unwrap();
    let mut flags = Layers::<RunConfig>::new().unwrap();
    flags.file(&path).unwrap();
    flags.set("base_model=x").unwrap();
    flags.set("lora.rank=4").unwrap();
    let flags = flags.settings().unwrap();
    assert_eq!(flags, RunConfig { seed: 3, ..lora.clone() }, "a model given by a flag counts too");
    let config = RunConfig::fine_tune("x");
    assert_eq!(config, whole);
    let adapters = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    assert_eq!(config.with_lora(adapters), lora);
    let vars = "base_model = \"x\"\n[data.template_variables]\nenable_thinking = false";
    let vars = RunConfig::from_toml(vars).unwrap();
    assert_eq!(vars.data.template_variables["enable_thinking"], Value::Bool(false));
    assert_eq!(RunConfig::from_toml(&vars.to_toml().unwrap()).unwrap(), vars);
}

#[test]
fn the_program_answers_a_prompt_a_file_and_a_chat() {
    let setting = Setting::new();
    let base = setting.text("base");
    let flags = ["--model", &base, "--max-new-tokens", "8", "--temperature", "1", "--seed", "3"];
    let with = |more: &[&str]| called("generate", &[&flags[..], more].concat());
    let (first, err) = succeeded(&with(&["--prompt", "What is 3 + 4?"]));
    assert!(err.contains("tokens, ") && !first.trim().is_empty(), "{first} {err}");
    assert_eq!(succeeded(&with(&["--prompt", "What is 3 + 4?"])).0, first, "the seed decides");

    let (prompts, out) = (setting.text("long.jsonl"), setting.text("answers.jsonl"));
    let (said, _) = succeeded(&with(&["--prompts", &prompts, "--out", &out]));
    assert!(said.contains("40 of 40 answers"), "{said}");
    let answers = std::fs::read_to_string(&out).unwrap();
    assert_eq!(answers.lines().count(), 40);
    let answer: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    assert!(answer["tokens"].as_u64().unwrap() <= 8 && answer["problem"].is_string());
    let again = with(&["--prompts", &prompts, "--out", &out]);
    assert!(!again.status.success(), "answers are not overwritten");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), answers);

    let (said, err) = succeeded(&called("chat", &flags));
    assert!(said.lines().count() >= 2, "{said}");
    assert_eq!(err.matches("tokens, ").count(), 2, "{err}");

    let bad = |name: &str, rows: &str| {
        std::fs::write(setting.path("bad.jsonl"), rows).unwrap();
        with(&["--prompts", &setting.text("bad.jsonl"), "--out", &setting.text(name)])
    };
    // One row without a prompt is left out and told; more of them are an error.
    let (said, told) = succeeded(&bad("one.jsonl", "{\"problem\": \"x\"}\n{\"other\": 1}\n"));
    assert!(said.contains("1 of 1 answers"), "{said}");
    assert!(told.contains("left out: 1 row: 1 x no problem") && told.contains("bad.jsonl:2"));
    let bad = bad("two.jsonl", "{\"problem\": \"x\"}\n{\"other\": 1}\n12\n");
    let error = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success() && error.contains("bad.jsonl:2"), "{error}");
}

#[test]
fn the_program_takes_a_model_and_adapters_by_flags() {
    let setting = Setting::new();
    let (base, out) = (setting.text("base"), setting.text("run"));
    let (long, short) = (setting.text("long.jsonl"), setting.text("short.jsonl"));
    let flags = [
        "--model",
        &base,
        "--long",
        &long,
        "--short",
        &short,
        "--lora-rank",
        "2",
        "--set",
        "lora.target_modules=[\"q_proj\", \"v_proj\"]",
        "--steps",
        "2",
        "--out",
        &out,
    ];
    let (said, _) = succeeded(&called("train", &flags));
    assert!(said.contains("adapters of rank 2") && said.contains("mixdistill merge"), "{said}");
    let config = std::fs::read_to_string(setting.path("run/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4.0)));
    assert_eq!(config["target_modules"], json!(["q_proj", "v_proj"]));
}

/// The real model on real pairs, briefly: its chat template, its lengths, its gradients.
#[test]
fn smollm2_learns_from_real_pairs() {
    let (Some(base), Some(data)) = (smollm2(), shared("longcot_example")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let lora = LoraConfig { rank: 8, alpha: 16.0, ..LoraConfig::default() };
    let mut config = RunConfig::fine_tune(base.display().to_string()).with_lora(lora);
    config.out = folder.path().join("run");
    let source = |name: &str, file: &str| SourceConfig {
        name: name.into(),
        path: data.join(file),
        ..SourceConfig::default()
    };
    // Two teachers whose answers to many problems fit this limit.
    config.data.sources = vec![
        source("long", "qwen2.5-32b-instruct.jsonl"),
        source("short", "official-solution.jsonl"),
    ];
    config.data.max_length = 512;
    config.data.complete = true;
    config.data.hold_out = 0.2;
    config.evaluation.loss_problems = 3;
    config.train.steps = Some(2);
    config.train.batch_size = 1;
    config.train.accumulate = 1;
    config.train.warmup_steps = 0;
    config.train.learning_rate = 1e-3;
    let summary = quiet(&config, RunMode::New).unwrap();
    held_out_falls(&summary);
    assert_eq!(summary.vocabulary, 49_152);
    assert!(folder.path().join("run/adapter/adapter_model.safetensors").is_file());
}
