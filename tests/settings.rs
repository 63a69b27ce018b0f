//! Promise: settings take effect. The error for an unknown setting gives its name, its place, and the closest
//! known name.

mod common;

use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::eval::EvaluateConfig;
use mixdistill::model::{GenerateConfig, LoraConfig};
use mixdistill::ops::Divergence;
use mixdistill::recipe::{LogitTeacherConfig, RunConfig, RunMode, run};
use mixdistill::settings::{Key, Layers, Settings, table_of, to_toml};
use mixdistill::study::StudyConfig;
use proptest::prelude::*;
use std::fmt::Debug;

fn layers() -> Layers<RunConfig> {
    Layers::new().unwrap()
}

/// The settings after some assignments.
fn set(assignments: &[&str]) -> RunConfig {
    let mut layers = layers();
    for assignment in assignments {
        layers.set(assignment).unwrap();
    }
    layers.settings().unwrap()
}

fn refused(assignment: &str) -> String {
    layers().set(assignment).unwrap_err().to_string()
}

/// The error of a text of settings.
fn wrong(text: &str) -> String {
    RunConfig::from_toml(text).unwrap_err().to_string()
}

#[test]
fn single_values_are_set_by_dotted_paths() {
    let config = set(&[
        "train.learning_rate=1e-4",
        "train.steps = 12",
        "train.epochs=2",
        "train.lr_schedule=linear",
        "data.too_long=\"cut\"",
        "evaluation.before=false",
        "seed=7",
        "out=2024",
        "data.template.between= Answer: ",
        "data.toy.operations=3,4",
        "generate.stop=a,b",
    ]);
    let mut expected = RunConfig::toy();
    expected.train.learning_rate = 1e-4;
    expected.train.steps = Some(12);
    expected.train.epochs = 2.0;
    expected.train.lr_schedule = mixdistill::train::LrSchedule::Linear;
    expected.data.too_long = mixdistill::data::TooLong::Cut;
    expected.evaluation.before = false;
    expected.seed = 7;
    expected.out = "2024".into();
    expected.data.template.between = " Answer: ".into();
    expected.data.toy.operations = (3, 4);
    expected.generate.stop = vec!["a".into(), "b".into()];
    assert_eq!(config, expected);
}

#[test]
fn entries_of_lists_are_set_by_number_or_name() {
    let by_number = set(&[
        "data.sources.0.name=long",
        "data.sources.0.path=l.jsonl",
        "data.sources.1.name=short",
        "data.sources.1.path=s.jsonl",
        "data.sources.1.columns.problem=title",
    ]);
    let by_name = set(&[
        "data.sources.long.path=l.jsonl",
        "data.sources.short.path=s.jsonl",
        "data.sources.short.columns.problem=title",
    ]);
    assert_eq!(by_number, by_name);
    let [long, short] = &by_name.data.sources[..] else { panic!("two sources") };
    assert_eq!((long.name.as_str(), long.path.to_str()), ("long", Some("l.jsonl")));
    assert_eq!(short.columns.problem.as_deref(), Some("title"));
    assert!(refused("data.sources.1.path=x").contains("there is no such entry"));
    // An entry that was made by a slip of the pen is named, and those that were meant.
    let mut slipped = Layers::<RunConfig>::new().unwrap();
    for set in ["long.path=l", "short.path=s", "longg.template_variables.x=1"] {
        slipped.set(&format!("data.sources.{set}")).unwrap();
    }
    let error = slipped.settings().unwrap_err().to_string();
    let named = "it is missing in the entry `longg`; `data.sources` also has `long`, `short`";
    assert!(error.contains(named), "{error}");
    let error = RunConfig::from_toml("[data.sources]").unwrap_err().to_string();
    assert!(error.contains("[[data.sources]]") && error.contains("[data.sources.NAME]"), "{error}");
    // A list that has defaults keeps its other entries.
    let groups = set(&["data.toy.operations.1=5"]);
    assert_eq!(groups.data.toy.operations, (2, 5));
    // A source without a path is no source.
    let mut layers = layers();
    layers.set("data.sources.long.columns.id=none").unwrap();
    let error = layers.settings().unwrap_err().to_string();
    assert!(error.contains("`data.sources.0.path`: it is missing"), "{error}");
}

#[test]
fn an_empty_value_takes_away_what_may_be_missing() {
    let mut layers = layers();
    layers.text("base_model = \"x\"\n[lora]\nrank = 4\n[train]\nsteps = 3\n").unwrap();
    let before = layers.settings().unwrap();
    assert_eq!((before.train.steps, before.train.learning_rate), (Some(3), 1e-4));
    layers.set("train.steps=").unwrap();
    layers.set("lora=").unwrap();
    let after = layers.settings().unwrap();
    assert_eq!((after.train.steps, &after.lora), (None, &None));
    assert_eq!(after.train.learning_rate, 1e-5, "defaults follow what is given");
    layers.set("lora.rank=2").unwrap();
    let lora = layers.settings().unwrap().lora.unwrap();
    assert_eq!(lora, LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() });
    let error = layers.set("train.batch_size=").unwrap_err().to_string();
    assert!(error.contains("it has no value. Give a whole number, 0 or more"), "{error}");
}

#[test]
fn values_that_are_one_choice_together_are_replaced_together() {
    let mut layers = layers();
    layers.set("mixture.weights.a=1").unwrap();
    layers.set("mixture.weights.b=3").unwrap();
    layers.set("mixture.schedule.linear.to.a=0.5").unwrap();
    let config = layers.settings().unwrap();
    assert_eq!(config.mixture.weights, [("a".into(), 1.0), ("b".into(), 3.0)].into());
    assert_eq!(
        config.mixture.schedule,
        mixdistill::data::Schedule::Linear { to: [("a".into(), 0.5)].into() }
    );
    for (value, expected) in [
        ("reverse_kl", Divergence::ReverseKl),
        ("jsd", Divergence::Jsd(0.5)),
        ("{ jsd = 0.25 }", Divergence::Jsd(0.25)),
    ] {
        layers.set("teacher.path=t").unwrap();
        layers.set(&format!("train.objective.distillation.divergence={value}")).unwrap();
        let part = layers.settings().unwrap().train.objective.distillation.unwrap();
        assert_eq!(part.divergence, expected, "{value}");
    }
    assert!(layers.set("train.objective.distillation.divergence={ jsd = \"x\" }").is_err());
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    for (assignment, suggestion) in [
        ("train.learning_rat=1", "Did you mean `train.learning_rate`?"),
        ("learning_rate=1", "Did you mean `train.learning_rate`?"),
        ("share=0.2", "Did you mean `mixture.weights`?"),
        ("step=3", "Did you mean `train.steps`?"),
        ("sede=3", "Did you mean `seed`?"),
        ("train.step=3", "Did you mean `train.steps`?"),
        ("data.seeds=3", "Did you mean `data.seed`?"),
        ("batch_size=3", "Did you mean `train.batch_size` or `generate.batch_size`?"),
        ("model=x", "Did you mean `base_model`?"),
        ("lr=1", "Did you mean `train.learning_rate`?"),
        ("data.sources.long.colums.id=x", "Did you mean `data.sources.0.columns`?"),
        ("data.sources.long.columns.problm=x", "Did you mean `data.sources.0.columns.problem`?"),
        ("evaluation.xyzzy=1", "The settings of `evaluation` are loss_problems, questions,"),
        ("train.steps.x=1", "Give a whole number"),
        ("seed", "Write it as key=value"),
        ("=1", "is not the path"),
        ("a\n[b]\nc=1", "is not the path"),
    ] {
        let error = refused(assignment);
        assert!(error.contains(suggestion), "{assignment}: {error}");
    }
    // As flags are written.
    assert_eq!(set(&["train.batch-size=3"]).train.batch_size, 3);
}

#[test]
fn files_are_refused_with_the_line_and_all_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "seed = 1\nshare = 0.2\n\n[train]\nlearning_rate = \"fast\"\n").unwrap();
    let error = RunConfig::read(&path).unwrap_err();
    let Error::Several(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 2);
    let error = error.to_string();
    let file = path.display();
    assert!(
        error.contains(&format!("setting `share`: {file}: line 2: there is no such")),
        "{error}"
    );
    let rate =
        format!("`train.learning_rate`: {file}: line 5: it is the text \"fast\". Give a number");
    assert!(error.contains(&rate), "{error}");

    for (text, parts) in [
        ("[train]\nsteps = 1.5", ["line 2", "it is 1.5. Give a whole number, 0 or more"]),
        ("[train]\nsteps = -1", ["line 2", "it is -1. Give a whole number, 0 or more"]),
        ("[train]\nepochs = true", ["line 2", "it is true. Give a number"]),
        ("[data]\ntoo_long = \"maybe\"", ["line 2", "Give \"drop\", \"error\" or \"cut\""]),
        (
            "[data]\ndate = 2024-05-06",
            ["line 2", "it is the date 2024-05-06. Give text, in quotes"],
        ),
        ("evaluation = 3", ["line 1", "Give a table with the settings loss_problems"]),
        ("[[train.parameter_groups]]\nnames = \"x\"", ["line 2", "Give a list of texts"]),
        ("[mixture]\nschedule = \"linea\"", ["line 2", "{ linear = "]),
        ("[[data.sources]]\nname = \"a\"", ["line 1", "`data.sources.0.path`"]),
        ("[mixture\n", ["settings:1", "Write settings as TOML"]),
        ("seed = 99999999999999999999999999", ["settings:1", "Write settings as TOML"]),
    ] {
        let error = wrong(text);
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!error.contains("f64") && !error.contains("usize"), "{error}");
    }
    // What only `validate` finds has its line too, unless it was set since.
    let mut layers = layers();
    layers.text("\n[train]\nepochs = -1.0\n").unwrap();
    let invalid = |layers: &Layers<RunConfig>| {
        let error = layers.settings().unwrap().validate().unwrap_err();
        layers.locate(error).to_string()
    };
    assert!(invalid(&layers).contains("`train.epochs`: line 3: it is -1"), "{}", invalid(&layers));
    layers.set("train.epochs=-2").unwrap();
    assert!(invalid(&layers).contains("`train.epochs`: it is -2"), "{}", invalid(&layers));
}

#[test]
fn a_later_layer_counts_more_table_by_table() {
    let mut layers = layers();
    layers
        .text("seed = 3\n[train]\nepochs = 3.0\nsteps = 5\n[mixture.weights]\na = 1.0\n")
        .unwrap();
    layers.text("[train]\nsteps = 6\n[mixture.weights]\nb = 1.0\n").unwrap();
    layers.set_value("train.batch_size", 2).unwrap();
    let config = layers.settings().unwrap();
    assert_eq!((config.seed, config.train.epochs), (3, 3.0));
    assert_eq!((config.train.steps, config.train.batch_size), (Some(6), 2));
    assert_eq!(config.mixture.weights, [("b".into(), 1.0)].into());
}

/// Every key has a sentence, and each value that it has can be set to what it is.
fn explained<T: Settings + Clone + PartialEq + Debug>(layers: &Layers<T>) {
    let keys = layers.keys().unwrap();
    assert!(keys.len() > 8);
    for key in &keys {
        assert!(key.about.ends_with(['.', ':']), "{}: {}", key.path, key.about);
        assert!(!key.kind.is_empty() && !key.kind.contains("f64"), "{}: {}", key.path, key.kind);
        for choice in &key.choices {
            assert!(choice.about.ends_with('.'), "{} {}: {}", key.path, choice.name, choice.about);
        }
    }
    let Ok(settings) = layers.settings() else { return };
    let all = table_of(&settings).unwrap();
    let is_there = |path: &str| {
        let mut steps = path.split('.');
        let first = steps.next().and_then(|step| all.get(step));
        steps.fold(first, |value, step| value?.get(step)).is_some()
    };
    let there: Vec<&Key> = keys.iter().filter(|key| is_there(&key.path)).collect();
    let mut set = 0;
    for key in there.iter().filter(|key| !key.is_table && !key.required) {
        let value = key.value.as_deref().unwrap_or_else(|| panic!("{} has a value", key.path));
        let mut again = layers.clone();
        again.set(&format!("{}={value}", key.path)).unwrap();
        assert_eq!(again.settings().unwrap(), settings, "{}={value}", key.path);
        set += 1;
    }
    assert!(set > 3, "{set}");
}

#[test]
fn every_key_is_explained_and_takes_the_value_that_it_has() {
    let mut fine_tuning = layers();
    fine_tuning.set("base_model=x").unwrap();
    fine_tuning.set("lora.rank=4").unwrap();
    explained(&layers());
    explained(&fine_tuning);
    explained(&Layers::<StudyConfig>::new().unwrap());
    explained(&Layers::<EvaluateConfig>::new().unwrap());
    explained(&Layers::<GenerateConfig>::new().unwrap());
    #[cfg(feature = "teacher")]
    explained(&Layers::<mixdistill::teacher::MakePairsConfig>::new().unwrap());

    let keys = fine_tuning.keys().unwrap();
    let key =
        |path: &str| keys.iter().find(|key| key.path == path).unwrap_or_else(|| panic!("{path}"));
    assert_eq!(key("train.learning_rate").value.as_deref(), Some("0.0001"));
    assert_eq!(
        (key("train.steps").kind.as_str(), &key("train.steps").value),
        ("whole number", &None)
    );
    assert!(key("data.sources.*.path").required && key("data.sources").is_table);
    let choices: Vec<&str> =
        key("mixture.share").choices.iter().map(|choice| choice.name.as_str()).collect();
    assert_eq!(choices, ["\"exact\"", "\"bernoulli\"", "\"tokens\"", "\"auto\""]);
    assert_eq!(key("model.rope_scaling.factor").kind, "number");
    // Of a table that is not there, the values that it would have.
    let toy = layers().keys().unwrap();
    let rank = toy.iter().find(|key| key.path == "lora.rank").unwrap();
    assert_eq!(rank.value.as_deref(), Some("16"));
}

/// What is printed is read back.
fn read_back<T: Settings + PartialEq + Debug>(settings: &T) -> [String; 2] {
    [false, true].map(|explained| {
        let text = to_toml(settings, explained).unwrap();
        let mut layers = Layers::<T>::new().unwrap();
        layers.text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(layers.settings().unwrap(), *settings, "{text}");
        text
    })
}

#[test]
fn printed_settings_show_what_is_not_set_and_are_read_back() {
    let [plain, explained] = read_back(&RunConfig::toy());
    for line in ["# steps = <whole number>", "# tokenizer = <text>", "# [lora]", "# rank = 16"] {
        assert!(plain.lines().any(|there| there == line), "{line} in {plain}");
    }
    for line in ["# [teacher]", "# path = <text>", "# top_k = 64", "# [[data.sources]]"] {
        assert!(plain.lines().any(|there| there == line), "{line} in {plain}");
    }
    let above =
        "# Number of optimizer steps. If unset, `epochs` decides.\n# steps = <whole number>\n";
    assert!(explained.contains(above), "{explained}");
    assert!(explained.lines().all(|line| line.chars().count() <= 120), "{explained}");

    let adapters = LoraConfig { rank: 4, ..LoraConfig::default() };
    let mut config = RunConfig::fine_tune("x").with_lora(adapters);
    config.set_teacher(LogitTeacherConfig { path: "t".into(), top_k: 8 });
    config.data.template.before = "two\nlines \"quoted\" \\ and \u{e9}".into();
    config.data.template_variables.insert("a b.c".into(), serde_json::json!({"x": [1, "y"]}));
    config.mixture.schedule =
        mixdistill::data::Schedule::Linear { to: config.mixture.weights.clone() };
    config.data.sources = set(&["data.sources.a.path=x", "data.sources.b.path=y"]).data.sources;
    let group = "train.parameter_groups=[{ names = ['x'] }, { names = ['y'], weight_decay = 0.5 }]";
    config.train.parameter_groups = set(&[group]).train.parameter_groups;
    read_back(&config);
    read_back(&EvaluateConfig::default());
    read_back(&GenerateConfig { stop: vec!["\n".into()], ..GenerateConfig::default() });
    #[cfg(feature = "teacher")]
    {
        use mixdistill::teacher::{ChatConfig, MakePairsConfig};
        let mut pairs = MakePairsConfig { problems: "p".into(), ..MakePairsConfig::default() };
        read_back(&pairs);
        pairs.long.server = Some(ChatConfig::default());
        read_back(&pairs);
    }
}

const STUDY: &str = "\
seeds = [1]
[[comparisons]]
name = \"Long\"
strong = \"long\"
weak = \"short\"
[[students]]
name = \"small\"
[students.run.model]
hidden_size = 16
[run.train]
steps = 2
";

#[test]
fn the_runs_of_a_study_have_the_settings_of_a_run() {
    let mut layers = Layers::<StudyConfig>::new().unwrap();
    layers.text(STUDY).unwrap();
    layers.set("students.small.run.train.epochs=2").unwrap();
    layers.set("comparisons.0.alphas=0.2,0.5").unwrap();
    let study = layers.settings().unwrap();
    study.validate().unwrap();
    assert_eq!(study.comparisons[0].alphas, [0.2, 0.5]);
    let run = study.run_config(&study.cells()[0]).unwrap();
    assert_eq!((run.model.hidden_size, run.train.epochs, run.train.steps), (16, 2.0, Some(2)));
    let [plain, _] = read_back(&study);
    assert!(!plain.contains("# max_length"), "runs show only what is given: {plain}");
    for (assignment, suggestion) in [
        ("run.learning_rate=1", "Did you mean `run.train.learning_rate`?"),
        ("students.small.run.share=1", "Did you mean `students.0.run.mixture.weights`?"),
        ("run.train.steps=many", "Give a whole number"),
        ("resample=3", "Did you mean `resamples`?"),
    ] {
        let error = layers.set(assignment).unwrap_err().to_string();
        assert!(error.contains(suggestion), "{assignment}: {error}");
    }
    let error = Layers::<StudyConfig>::new().unwrap().settings().unwrap_err().to_string();
    assert!(error.contains("`comparisons`") && error.contains("`students`"), "{error}");
}

#[test]
fn settings_that_are_none_any_more_are_ignored_in_files_and_refused_elsewhere() {
    let mut layers = layers();
    layers.text("[mixture]\nredraw = true\nseed = 3\nplanned_rows = 9\n").unwrap();
    let mut expected = RunConfig::toy();
    expected.mixture.redraw = true;
    assert_eq!(layers.settings().unwrap(), expected);
    let [seed, rows] = layers.notices() else { panic!("two notices") };
    assert_eq!(seed, "line 3: setting `mixture.seed` is ignored: the mixture is drawn by `seed`");
    assert!(rows.starts_with("line 4: setting `mixture.planned_rows` is ignored"), "{rows}");
    let error = refused("mixture.seed=3");
    assert!(error.contains("this setting was removed") && error.contains("drawn by `seed`"));
}

/// Whether a run was finished before.
struct AlreadyFinished(bool);

impl Observer for AlreadyFinished {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        self.0 |= matches!(event, Event::AlreadyFinished);
        Ok(())
    }
}

#[test]
fn a_run_that_an_earlier_version_stored_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut config = common::toy_run(&out);
    config.train.steps = Some(2);
    config.evaluation.questions = 0;
    let first = run(&config, RunMode::New, &Context::default()).unwrap();
    // What a checkpoint holds of the mixture has the shape that it had then.
    let state = std::fs::read(out.join("checkpoints/step-000002/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let mixture = serde_json::json!({
        "weights": { "long": 0.2, "short": 0.8 },
        "share": "exact",
        "redraw": false,
        "schedule": "constant",
        "seed": 1,
        "planned_rows": 16,
    });
    assert_eq!(state["settings"]["mixture"], mixture);
    // Settings and summary as they were stored then.
    let path = out.join("config.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let old = text.replace("[mixture]\n", "[mixture]\nseed = 0\nplanned_rows = 0\n");
    assert_ne!(old, text);
    std::fs::write(&path, &old).unwrap();
    let path = out.join("summary.json");
    let mut summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    summary["config"]["mixture"]["seed"] = 0.into();
    summary["config"]["mixture"]["planned_rows"] = 0.into();
    std::fs::write(&path, summary.to_string()).unwrap();
    let config = RunConfig::read(&out.join("config.toml")).unwrap();
    let mut finished = AlreadyFinished(false);
    let stop = StopFlag::default();
    let again = run(&config, RunMode::Resume, &Context::new(&mut finished, &stop)).unwrap();
    assert!(finished.0, "it is not trained anew");
    assert_eq!(again, first);
}

proptest! {
    #[test]
    fn no_text_of_settings_panics(text in "[a-z\\[\\]=.\"{}0-9,# \n-]{0,80}", value in any::<String>()) {
        let mut layers = layers();
        let _ = layers.text(&text);
        let _ = layers.set(&text);
        let _ = layers.set(&format!("{text}={value}"));
        for key in ["data.sources", "data.sources.0", "mixture.weights.a", "lora", "train.steps", "out"] {
            let _ = layers.set(&format!("{key}={value}"));
        }
        let _ = layers.settings();
    }

    #[test]
    fn texts_are_set_as_they_are(text in "[^\"'\\s][^\"']*") {
        prop_assert_eq!(set(&[&format!("data.template.before={text}")]).data.template.before, text);
    }
}
