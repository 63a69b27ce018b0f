//! Promise: loading a folder and loading a run find tokenizer, template, and end tokens in the same way. Errors
//! name what does not fit before any weights are read.

mod common;

use common::{adapter_of, devices, generate, shaken, tiny, toy_run};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{Message, PlainTemplate, PromptTemplate, TextTokenizer};
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, GenerateConfig, LoadOptions, LoraConfig, MergeOptions,
    SaveFolder, TextModel, TextModelFiles, merge_adapter, named_tensors, with_named_tensors,
};
use mixdistill::recipe::{Prepared, load_teacher};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n\
    {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// A folder for models and runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a model, and returns it.
    fn model(&self, name: &str, chat_template: Option<&str>) -> DecoderLm {
        let tokenizer = tokenizer();
        let vocab_size = tokenizer.vocabulary_size();
        let config = DecoderConfig { vocab_size, ..tiny(Architecture::Qwen2) };
        let model = shaken(&config, &devices()[0]);
        let how = SaveFolder { chat_template, ..SaveFolder::new(&tokenizer) };
        model.save(&self.path(name), &how).unwrap();
        model
    }

    /// Writes the adapter of a model into a run, and returns the adapted model.
    fn adapter(&self, base: &str, run: &str, model: DecoderLm) -> DecoderLm {
        let lora = LoraConfig { rank: 2, alpha: 9.0, ..LoraConfig::default() };
        let adapted = model.with_lora(&lora, 3).unwrap();
        let mut tensors = named_tensors(&adapted).unwrap();
        for (name, tensor) in &mut tensors {
            if name.contains("lora_B") {
                tensor.values.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32 - 3.0);
            }
        }
        let adapted = with_named_tensors(adapted, &mut |name| tensors.remove(name)).unwrap();
        std::fs::create_dir_all(self.path(run)).unwrap();
        let base = self.name(base);
        self.settings(run, &format!("base_model = {base:?}\n"));
        adapted.save_adapter(&self.path(run).join("adapter"), &adapter_of(&base)).unwrap();
        adapted
    }

    fn settings(&self, run: &str, text: &str) {
        std::fs::create_dir_all(self.path(run)).unwrap();
        std::fs::write(self.path(run).join("config.toml"), text).unwrap();
    }

    fn error(&self, name: &str, adapter: Option<&str>) -> String {
        let adapter = adapter.map(|adapter| self.path(adapter));
        let options = LoadOptions { adapter, ..LoadOptions::default() };
        let opened = TextModelFiles::open(&self.name(name), &options, &Context::default());
        opened.unwrap_err().to_string()
    }
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::builtin([" word"]).unwrap()
}

/// Keeps the notices.
#[derive(Default)]
struct Notices(Vec<String>);

impl Observer for Notices {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Notice(text) = event {
            self.0.push((*text).to_owned());
        }
        Ok(())
    }
}

fn open(name: &str, options: &LoadOptions) -> mixdistill::Result<(TextModelFiles, Vec<String>)> {
    let mut notices = Notices::default();
    let files =
        TextModelFiles::open(name, options, &Context::new(&mut notices, &StopFlag::default()))?;
    Ok((files, notices.0))
}

fn answer(model: &DecoderLm) -> Vec<u32> {
    let config = GenerateConfig { max_new_tokens: 30, ..GenerateConfig::default() };
    generate(model, &[vec![300, 301]], &[], &config).unwrap().remove(0).tokens
}

#[test]
fn a_template_lays_out_prompts_and_without_one_the_built_in_layout_is_told() {
    let place = Place::new();
    place.model("plain", None);
    place.model("chat", Some(TEMPLATE));
    let options = LoadOptions::default();

    let (files, notices) = open(&place.name("plain"), &options).unwrap();
    assert!(notices.len() == 1 && notices[0].contains("has no chat template"), "{notices:?}");
    let tokenizer = tokenizer();
    let text = files.text_interface();
    let expected = PlainTemplate::default().prompt(&tokenizer, "1 + 1?".into()).unwrap();
    assert_eq!(text.template.prompt(text.tokenizer, "1 + 1?".into()).unwrap(), expected);
    assert_eq!(text.end_tokens, [tokenizer.end_token()]);
    let error = files.conversation(&[Message::new("user", "Hello")]).unwrap_err();
    assert!(matches!(error, Error::Template { .. }), "{error}");

    let (files, notices) = open(&place.name("chat"), &options).unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    let decoded = |tokens: Vec<u32>| tokenizer.decode_all(&tokens).unwrap();
    let prompt = files.template().prompt(&tokenizer, "1 + 1?".into()).unwrap();
    assert_eq!(decoded(prompt), "<user>1 + 1?\n<assistant>");
    let said = ["user", "assistant", "user"].map(|role| Message::new(role, "Hi"));
    let conversation = decoded(files.conversation(&said).unwrap());
    assert_eq!(conversation, "<user>Hi\n<assistant>Hi\n<user>Hi\n<assistant>");

    let system = LoadOptions { system: Some("Be brief.".into()), ..options.clone() };
    let (files, _) = open(&place.name("chat"), &system).unwrap();
    let with_own = [Message::new("system", "Be long."), Message::new("user", "Hi")];
    let conversation = decoded(files.conversation(&with_own).unwrap());
    assert_eq!(conversation, "<system>Be brief.\n<user>Hi\n<assistant>");

    // `none` is asked for, so that there is nothing to tell.
    let none = LoadOptions { chat_template: Some("none".into()), ..options };
    let (files, notices) = open(&place.name("chat"), &none).unwrap();
    assert!(files.chat_template().is_none() && notices.is_empty());
}

#[test]
fn a_chat_template_is_given_the_variables_that_are_asked_with() {
    let place = Place::new();
    let switch = "{{ messages[-1].content }}{{ '<think>' if enable_thinking else '' }}";
    place.model("switch", Some(switch));
    place.model("plain", None);
    let open = |name: &str| {
        let template_variables = [("enable_thinking".to_owned(), true.into())].into();
        let options = LoadOptions { template_variables, ..LoadOptions::default() };
        open(&place.name(name), &options).map(|(files, _)| files)
    };
    let prompt = open("switch").unwrap().template().prompt(&tokenizer(), "2?".into()).unwrap();
    assert_eq!(tokenizer().decode_all(&prompt).unwrap(), "2?<think>");
    let error = open("plain").unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "template_variables"), "{error}");
}

#[test]
fn a_template_or_a_systems_text_that_cannot_be_used_is_an_error() {
    let place = Place::new();
    place.model("plain", None);
    let with = |template: Option<&str>, system: Option<&str>| {
        let chat_template = template.map(|text| {
            let path = place.path("template.jinja");
            std::fs::write(&path, text).unwrap();
            path
        });
        let system = system.map(str::to_owned);
        let options = LoadOptions { chat_template, system, ..LoadOptions::default() };
        open(&place.name("plain"), &options).map(|(files, _)| files)
    };
    assert!(
        matches!(with(None, Some("Be brief.")), Err(Error::Config { key, .. }) if key == "system")
    );
    let deaf = "{{ messages[-1].content }}";
    let error = with(Some(deaf), Some("Be brief.")).unwrap_err().to_string();
    assert!(error.contains("leaves out the system text \"Be brief.\""), "{error}");
    for broken in ["{% if %}", "{{ raise_exception('never') }}"] {
        assert!(matches!(with(Some(broken), None), Err(Error::Template { .. })), "{broken}");
    }
    // It begins the answer for the model, and not as answers begin: of no use in training.
    let begins = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                  {% if add_generation_prompt %}<assistant>Well, {% endif %}";
    let files = with(Some(begins), None).unwrap();
    let tokenizer = tokenizer();
    let prompt = files.template().prompt(&tokenizer, "1 + 1?".into()).unwrap();
    assert!(tokenizer.decode_all(&prompt).unwrap().ends_with("<assistant>Well, "));
    assert!(files.template().row(&tokenizer, "1 + 1?".into(), "2").is_err());
    let missing = LoadOptions { chat_template: Some("nowhere.jinja".into()), ..Default::default() };
    assert!(matches!(open(&place.name("plain"), &missing), Err(Error::Io { .. })));
}

#[test]
fn a_run_stands_for_its_model_or_for_its_adapter_on_the_base() {
    let place = Place::new();
    let base = place.model("base", Some(TEMPLATE));
    let adapted = place.adapter("base", "run", base.clone());
    place.settings("whole", "");
    let whole = place.model("whole/model", None);
    let (options, context) = (LoadOptions::default(), Context::default());
    let load = |name: &str, options: &LoadOptions| {
        TextModel::load(&place.name(name), options, &context).unwrap()
    };
    assert_ne!(answer(&base), answer(&adapted));
    assert_eq!(answer(&load("whole", &options).model), answer(&whole));
    let of_run = load("run", &options);
    assert_eq!(answer(&of_run.model), answer(&adapted));
    assert_eq!(of_run.files.adapter(), Some(place.path("run/adapter").as_path()));
    for adapter in ["run", "run/adapter"] {
        let options = LoadOptions { adapter: Some(place.path(adapter)), ..options.clone() };
        assert_eq!(answer(&load("base", &options).model), answer(&adapted));
    }
}

#[test]
fn what_is_not_there_is_named_before_weights_are_read() {
    let place = Place::new();
    let base = place.model("base", None);
    place.adapter("base", "run", base);
    place.settings("whole", "");
    place.model("whole/model", None);
    place.settings("begun", "");
    place.settings("compared", "");
    place.settings("compared/mix", "");
    std::fs::write(place.path("file"), "").unwrap();
    std::fs::create_dir(place.path("empty")).unwrap();
    for (name, adapter, expected) in [
        ("nowhere", None, "there is no such folder"),
        ("file", None, "it is a file"),
        ("empty", None, "no config.json"),
        ("run/adapter", None, "this is an adapter"),
        ("begun", None, "has not written its student yet"),
        ("compared", None, "Pass one of its runs"),
        ("base", Some("nowhere"), "there is no such folder"),
        ("base", Some("file"), "it is a file"),
        ("base", Some("empty"), "no adapter_config.json"),
        ("base", Some("begun"), "has not written its student yet"),
        ("base", Some("whole"), "trained all weights"),
        ("nowhere", Some("gone"), "gone: there is no such folder"),
    ] {
        let error = place.error(name, adapter);
        assert!(error.contains(expected), "{name}, {adapter:?}: {error}");
    }
    // Another adapter beside the run's own.
    place.adapter("base", "other", DecoderLm::load(&place.path("base"), &devices()[0]).unwrap());
    assert!(place.error("run", Some("other")).contains("its own adapter"));
    // The weights are looked at, but not read.
    let weights = place.path("base/model.safetensors");
    std::fs::write(&weights, b"nothing of the kind").unwrap();
    assert!(place.error("run", None).contains("base/model.safetensors"));
    std::fs::remove_dir_all(place.path("base")).unwrap();
    let error = place.error("run", None);
    assert!(error.contains("run/adapter is the adapter of this model"), "{error}");
}

#[test]
fn a_merged_model_is_a_folder_that_answers_as_the_adapted_one() {
    let place = Place::new();
    let base = place.model("base", Some(TEMPLATE));
    let adapted = place.adapter("base", "run", base);
    let (options, context) = (MergeOptions::default(), Context::default());
    let merge = |name: &str, adapter: Option<&Path>, out: &str| {
        merge_adapter(&place.name(name), adapter, &place.path(out), &options, &context)
    };
    let lora = merge("run", None, "merged").unwrap();
    assert_eq!((lora.rank, lora.alpha), (2, 9.0));
    merge("base", Some(&place.path("run")), "again").unwrap();
    for name in ["merged", "again"] {
        let loaded = TextModel::load(&place.name(name), &LoadOptions::default(), &context).unwrap();
        assert!(loaded.model.lora().is_none());
        assert_eq!(answer(&loaded.model), answer(&adapted));
        assert_eq!(loaded.files.chat_template().map(|t| t.source()), Some(TEMPLATE));
    }
    assert!(merge("run", None, "merged").unwrap_err().to_string().contains("it already exists"));
    let error = merge("base", None, "third").unwrap_err().to_string();
    assert!(error.contains("has no adapter to merge"), "{error}");
    assert!(!place.path("third").exists());
}

#[test]
fn a_teacher_beside_the_training_may_be_a_run_with_its_adapter() {
    let place = Place::new();
    let context = Context::default();
    let config = toy_run(&place.path("out"));
    let prepared = Prepared::new(&config, &context).unwrap();
    let vocab_size = prepared.tokenizer.vocabulary_size();
    let shape = DecoderConfig { vocab_size, ..tiny(Architecture::Llama) };
    let base = shaken(&shape, &devices()[0]);
    base.save(&place.path("base"), &SaveFolder::new(&prepared.tokenizer)).unwrap();
    let adapted = place.adapter("base", "run", base.clone());
    let load = |name: &str| load_teacher(name, &prepared, &devices()[0], &context);
    let teacher = load(&place.name("run")).unwrap();
    assert!(teacher.lora().is_none());
    assert_eq!(answer(&teacher), answer(&adapted));
    assert_ne!(teacher.fingerprint().unwrap(), base.fingerprint().unwrap());
    assert_eq!(
        load(&place.name("base")).unwrap().fingerprint().unwrap(),
        base.fingerprint().unwrap()
    );
    std::fs::create_dir(place.path("empty")).unwrap();
    let error = load(&place.name("empty")).unwrap_err().to_string();
    assert!(error.contains("neither a model (config.json) nor logits"), "{error}");
    // Other tokens than the student's.
    place.model("other", None);
    let error = load(&place.name("other")).unwrap_err().to_string();
    assert!(error.contains("differ in token"), "{error}");
}
