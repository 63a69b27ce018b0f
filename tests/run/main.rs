//! A whole run: its results, its directory, and bad input, which is refused before training.

#[path = "../common/mod.rs"]
mod common;
mod ledger;
mod program;

use common::{Said, toy_run};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{ColumnMap, Schedule, Share, TooLong};
use mixdistill::recipe::{RunConfig, RunMode, SourceConfig, compare, run};
use std::path::Path;

/// A toy run that takes about a second.
fn small(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.train.steps = Some(6);
    config.train.evaluate_every = 3;
    config.train.checkpoint_every = 2;
    config.generate.max_new_tokens = 12;
    config.evaluation.questions = 5;
    config
}

fn quiet(config: &RunConfig, mode: RunMode) -> mixdistill::Result<mixdistill::recipe::Summary> {
    run(config, mode, &Context::default())
}

/// The error of a run that must be refused without starting a run in its directory.
fn refused(config: &RunConfig) -> String {
    let error = quiet(config, RunMode::New).expect_err("this must be refused").to_string();
    assert!(!config.out.join("config.toml").exists(), "nothing was started");
    error
}

const FILES: [&str; 10] = [
    "config.toml",
    "ledger.json",
    "mixture.json",
    "metrics.jsonl",
    "loss.svg",
    "before.jsonl",
    "after.jsonl",
    "summary.json",
    "model/model.safetensors",
    "model/tokenizer.json",
];

#[test]
fn a_run_fills_its_directory_and_its_summary_holds_what_it_printed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    let mut said = Said::default();
    let stop = StopFlag::default();
    let summary = run(&small(&out), RunMode::New, &Context::new(&mut said, &stop)).unwrap();
    for file in FILES {
        assert!(out.join(file).metadata().unwrap().len() > 0, "{file}");
    }
    assert!(out.join("checkpoints/step-000006/manifest.json").is_file());
    assert!(!out.join("checkpoints/step-000002").exists(), "two are kept");
    let text = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let stored: mixdistill::recipe::Summary = serde_json::from_str(&text).unwrap();
    assert_eq!(stored.mixture, summary.mixture);
    assert_eq!(stored.after, summary.after);
    assert!(summary.ledger.adds_up());
    assert!(
        said.contains(&summary.mixture.to_string()) && said.contains("before training: 0 of 5")
    );
    assert_eq!(summary.evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 3, 6]);
    assert_eq!(summary.after.unwrap().questions, 5);
    assert_eq!(stored.config, small(&out));
    let svg = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("held out: long"));
    let config = RunConfig::read(&out.join("config.toml")).unwrap();
    assert_eq!(config, small(&out), "the settings come back from their file");
}

#[test]
fn a_directory_that_holds_a_run_is_only_touched_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    quiet(&small(&out), RunMode::New).unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let before = std::fs::read(out.join("summary.json")).unwrap();

    let error = quiet(&small(&out), RunMode::New).unwrap_err().to_string();
    assert!(error.contains("already holds a run") && error.contains("overwrite it"), "{error}");
    assert_eq!(std::fs::read(out.join("summary.json")).unwrap(), before);

    let other = RunConfig { seed: 2, ..small(&out) };
    let error = quiet(&other, RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("seed was 1, is 2"), "{error}");
    let finished = quiet(&small(&out), RunMode::Resume).unwrap();
    assert_eq!(finished.outcome.step, 6);
    assert!(finished.training_seconds > 0.0, "the figures of the finished run");
    assert_eq!(std::fs::read(out.join("summary.json")).unwrap(), before);

    quiet(&other, RunMode::Overwrite).unwrap();
    assert_ne!(std::fs::read(out.join("summary.json")).unwrap(), before);
    assert_eq!(std::fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn an_overwrite_that_cannot_start_leaves_the_old_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    quiet(&small(&out), RunMode::New).unwrap();
    let mut bad = small(&out);
    bad.data.max_length = 3;
    assert!(quiet(&bad, RunMode::Overwrite).unwrap_err().to_string().contains("no row fits"));
    assert!(FILES.iter().all(|file| out.join(file).is_file()));
}

#[test]
fn a_comparison_that_cannot_start_leaves_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    quiet(&small(&out), RunMode::New).unwrap();
    let mut bad = small(&out);
    bad.data.max_length = 3;
    let attempt = |config: &RunConfig, mode| {
        compare(config, mode, &Context::default()).unwrap_err().to_string()
    };
    assert!(attempt(&bad, RunMode::Overwrite).contains("no row fits"));
    let mut nothing_to_ask = small(&out);
    nothing_to_ask.evaluation.questions = 0;
    assert!(attempt(&nothing_to_ask, RunMode::Overwrite).contains("a comparison grades answers"));
    // Questions are requested, but no problem is held out.
    nothing_to_ask.evaluation.questions = 5;
    nothing_to_ask.data.toy_test_problems = 0;
    nothing_to_ask.data.hold_out = 0.0;
    assert!(attempt(&nothing_to_ask, RunMode::Overwrite).contains("nothing can be compared"));
    std::fs::create_dir(out.join("mix")).unwrap();
    std::fs::write(out.join("mix/song.txt"), "la").unwrap();
    assert!(attempt(&small(&out), RunMode::Overwrite).contains("not a run's"));
    assert!(FILES.iter().all(|file| out.join(file).is_file()));
    let fresh = folder.path().join("fresh");
    bad.out = fresh.clone();
    assert!(attempt(&bad, RunMode::New).contains("no row fits"));
    assert!(!fresh.join("config.toml").exists(), "the corrected command can use the directory");
}

#[test]
fn a_run_that_was_killed_as_it_began_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    quiet(&small(&out), RunMode::New).unwrap();
    for file in ["config.toml", "ledger.json", "summary.json"] {
        std::fs::remove_file(out.join(file)).unwrap();
    }
    let error = quiet(&small(&out), RunMode::New).unwrap_err().to_string();
    assert!(error.contains("overwrite it"), "{error}");
    quiet(&small(&out), RunMode::Overwrite).unwrap();
}

#[test]
fn a_finished_run_is_not_passed_off_for_one_on_other_data() {
    let folder = tempfile::tempdir().unwrap();
    let config = with_files(folder.path(), &lines(20, "long answer"), &lines(20, "the answer"));
    quiet(&config, RunMode::New).unwrap();
    quiet(&config, RunMode::Resume).unwrap();
    let config = with_files(folder.path(), &lines(19, "long answer"), &lines(20, "the answer"));
    let error = quiet(&config, RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("data have changed"), "{error}");
}

#[test]
fn a_run_without_checkpoints_is_not_thrown_away_by_resuming_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    quiet(&small(&out), RunMode::New).unwrap();
    std::fs::remove_dir_all(out.join("checkpoints")).unwrap();
    std::fs::remove_file(out.join("summary.json")).unwrap();
    let error = quiet(&small(&out), RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("no checkpoint to resume from, but it has model"), "{error}");
    assert!(out.join("model/model.safetensors").is_file());
}

/// Requests a stop after a step.
struct StopAtStep(StopFlag);

impl Observer for StopAtStep {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Step(_) = event {
            self.0.request();
        }
        Ok(())
    }
}

#[test]
fn a_stop_before_training_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run1");
    let stop = StopFlag::default();
    stop.request();
    let error = run(&small(&out), RunMode::New, &Context::new((), &stop)).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }) && !out.exists(), "{error}");
}

#[test]
fn a_stopped_run_is_resumed_to_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let straight = folder.path().join("straight");
    quiet(&small(&straight), RunMode::New).unwrap();
    let out = folder.path().join("stopped");
    let stop = StopFlag::default();
    let at_first_step = StopAtStep(stop.clone());
    let summary = run(&small(&out), RunMode::New, &Context::new(at_first_step, &stop)).unwrap();
    assert!(summary.outcome.stopped && summary.outcome.step == 1 && summary.after.is_none());
    assert!(!out.join("model").exists());
    let summary = quiet(&small(&out), RunMode::Resume).unwrap();
    assert!(!summary.outcome.stopped && summary.before.is_some());
    assert_eq!(summary.tokens, quiet(&small(&straight), RunMode::Resume).unwrap().tokens);
    let model = |out: &Path| std::fs::read(out.join("model/model.safetensors")).unwrap();
    assert_eq!(model(&out), model(&straight));
}

#[test]
fn directories_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("photos");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("cat.jpg"), "cat").unwrap();
    assert!(refused(&small(&out)).contains("files that are not a run's"));
    let error = quiet(&small(&out), RunMode::Overwrite).unwrap_err().to_string();
    assert!(error.contains("files that are not a run's"), "{error}");
    let error =
        quiet(&small(&folder.path().join("none")), RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("holds no run"), "{error}");
    // A directory with the user's own settings is not a run.
    let mine = folder.path().join("mine");
    std::fs::create_dir_all(mine.join("model")).unwrap();
    std::fs::write(mine.join("config.toml"), "seed = 3\n").unwrap();
    std::fs::write(mine.join("model/model.safetensors"), "weights").unwrap();
    for mode in [RunMode::New, RunMode::Overwrite, RunMode::Resume] {
        quiet(&small(&mine), mode).expect_err("it is not a run");
    }
    assert_eq!(std::fs::read_to_string(mine.join("config.toml")).unwrap(), "seed = 3\n");
    assert!(mine.join("model/model.safetensors").is_file());
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(refused(&small(&file)).contains("not a directory"));
    // Nobody, not even root, can create a directory below a file.
    assert!(refused(&small(&file.join("run"))).contains("cannot"));
}

/// A run on a long and a short file with these lines, with the tokenizer of the toy corpus.
fn with_files(folder: &Path, long: &[u8], short: &[u8]) -> RunConfig {
    let words = mixdistill::data::arith::vocabulary();
    let tokenizer = mixdistill::data::TextTokenizer::builtin(words.iter().map(String::as_str));
    let tokenizer_path = folder.join("tokenizer.json");
    std::fs::write(&tokenizer_path, tokenizer.unwrap().to_json().unwrap()).unwrap();
    let mut config = small(&folder.join("run"));
    config.data.tokenizer = Some(tokenizer_path);
    for (name, bytes) in [("long", long), ("short", short)] {
        let path = folder.join(format!("{name}.jsonl"));
        std::fs::write(&path, bytes).unwrap();
        let columns = ColumnMap::default();
        config.data.sources.push(SourceConfig {
            name: name.into(),
            path,
            columns,
            ..SourceConfig::default()
        });
    }
    config
}

fn lines(count: usize, solution: &str) -> Vec<u8> {
    let line = |i: usize| {
        let gold = i + i;
        format!(
            "{{\"question\": \"{i} + {i}?\", \"solution\": \"{solution}\", \"gold_answer\": {gold}}}\n"
        )
    };
    (0..count).map(line).collect::<String>().into_bytes()
}

#[test]
fn a_run_on_files_trains_and_accounts_for_every_record() {
    let folder = tempfile::tempdir().unwrap();
    let long = lines(30, "one step, and one more step, and the answer");
    let short = [
        lines(40, "the answer"),
        b"{\"question\": \"0 + 0?\", \"solution\": \"again\", \"gold_answer\": 0}\n".to_vec(),
    ]
    .concat();
    let mut config = with_files(folder.path(), &long, &short);
    config.data.hold_out = 0.2;
    let summary = quiet(&config, RunMode::New).unwrap();
    let [long, short] = &summary.ledger.sources[..] else { panic!("two sources") };
    assert_eq!((long.read, long.usable, long.unmatched), (30, 30, 0));
    assert_eq!((short.read, short.usable, short.unmatched, short.duplicates), (41, 30, 10, 1));
    assert_eq!((summary.ledger.training, summary.ledger.held_out), (24, 6));
    assert!(summary.ledger.adds_up());
    assert_eq!(summary.before.unwrap().questions, 5);
}

#[test]
fn files_that_cannot_be_used_are_refused_with_their_place() {
    let good = || lines(20, "the answer");
    let folder = tempfile::tempdir().unwrap();
    let attempt = |long: &[u8]| {
        let mut config = with_files(folder.path(), long, &good());
        config.data.max_left_out = 0.0;
        refused(&config)
    };
    let after = |line: &[u8]| [lines(3, "the answer"), line.to_vec()].concat();
    let cases: [(&[u8], &[&str]); 6] = [
        (b"", &["long.jsonl"]),
        (&after(b"{\"question\": \"broken"), &["long.jsonl:4"]),
        (&after(b"{\"question\": \"\xff\", \"solution\": \"x\"}\n"), &["long.jsonl:4", "UTF-8"]),
        (b"{\"question\": \"no solution\"}\n", &["long.jsonl:1", "solution"]),
        (
            &after(b"{\"question\": \"q\", \"solution\": 12, \"gold_answer\": 1}\n"),
            &["long.jsonl:4", "`solution`", "12"],
        ),
        (&lines(20, " "), &["long.jsonl:1:", "20 of 20 rows cannot be used: 20 x no answer ("]),
    ];
    for (bytes, parts) in cases {
        let error = attempt(bytes);
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    let mut config = with_files(folder.path(), &good(), &good());
    config.data.sources[1].path = folder.path().join("none.jsonl");
    assert!(refused(&config).contains("none.jsonl"));
    let mut config = with_files(folder.path(), &good(), &good());
    config.data.tokenizer = None;
    assert!(refused(&config).contains("setting `data.tokenizer`"));
    let other = b"{\"question\": \"else\", \"solution\": \"x\"}\n";
    assert!(
        refused(&with_files(folder.path(), &good(), other))
            .contains("no problem is answered by every source")
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    type Change = fn(&mut RunConfig);
    let cases: [(Change, &str); 13] = [
        (|c| c.data.max_length = 1, "data.max_length"),
        (|c| c.data.max_length = 5, "no row fits 5 tokens"),
        (|c| c.data.hold_out = 1.0, "data.hold_out"),
        (|c| (c.train.steps, c.train.epochs) = (None, 1e-4), "less than one step"),
        (|c| c.model.vocab_size = 50, "the tokenizer has"),
        (|c| c.model.num_key_value_heads = 3, "num_key_value_heads"),
        (|c| c.model.hidden_size = 0, "model.hidden_size"),
        (|c| c.train.learning_rate = -1.0, "train.learning_rate"),
        (|c| c.generate.top_p = 2.0, "generate.top_p"),
        (|c| c.backend = "gpu".into(), "there is no such backend"),
        (|c| c.data.toy.operations = (3, 2), "data.toy.operations"),
        (
            |c| {
                c.mixture.weights.insert("long".into(), -0.2);
            },
            "the weight of `long` is -0.2",
        ),
        (
            |c| {
                c.mixture.weights.remove("long");
            },
            "source `long` has no weight",
        ),
    ];
    for (change, message) in cases {
        let mut config = small(&out);
        change(&mut config);
        let error = refused(&config);
        assert!(error.contains(message), "{message} in {error}");
    }
    let mut config = small(&out);
    for share in [-0.1, 1.1, f64::NAN] {
        assert!(config.set_share(share).unwrap_err().to_string().contains("0 to 1"));
    }
    if !cfg!(feature = "cuda") {
        config.backend = "cuda".into();
        assert!(refused(&config).contains("the feature `cuda`"));
    }
}

#[test]
fn held_out_problems_that_select_the_weights_must_be_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small(&folder.path().join("run"));
    config.train.keep_best = true;
    quiet(&config, RunMode::New).unwrap();
    std::fs::remove_file(config.out.join("summary.json")).unwrap();
    config.evaluation.loss_problems = 1;
    let error = quiet(&config, RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("held_out was"), "{error}");
    // Questions during training are never dropped silently.
    let mut idle = small(&folder.path().join("idle"));
    idle.evaluation.during_training = 6;
    assert!(refused(&idle).contains("evaluation.during_training"));
}

#[test]
fn an_unknown_key_or_value_in_the_settings_is_an_error_with_its_line() {
    for (text, parts) in [
        ("seed = 1\nsede = 2\n", ["line 2", "sede"]),
        ("[train]\nlearning_rat = 1\n", ["line 2", "learning_rat"]),
        ("[data]\ntoo_long = \"maybe\"\n", ["line 2", "maybe"]),
        ("[mixture\n", ["settings:1", "Write settings as TOML"]),
    ] {
        let error = RunConfig::from_toml(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    // A table with one key changes only that key.
    let mut expected = RunConfig::toy();
    expected.train.epochs = 3.0;
    expected.model.hidden_size = 64;
    expected.mixture.weights = std::collections::BTreeMap::from([("a".to_owned(), 1.0)]);
    let text = "[train]\nepochs = 3.0\n[model]\nhidden_size = 64\n[mixture.weights]\na = 1.0\n";
    assert_eq!(RunConfig::from_toml(text).unwrap(), expected);
    let mut config = RunConfig::toy();
    config.mixture.share = Share::Tokens;
    config.mixture.schedule = Schedule::Linear { to: config.mixture.weights.clone() };
    config.data.too_long = TooLong::Cut;
    assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn a_comparison_trains_all_three_with_the_same_updates() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("compare");
    let stop = StopFlag::default();
    let table = compare(&small(&out), RunMode::New, &Context::new((), &stop)).unwrap();
    let names: Vec<&str> = table.lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, ["untuned", "long", "short", "mix"]);
    assert!(table.lines[1..].iter().all(|line| line.steps == 6));
    let trained: Vec<u64> = table.lines.iter().map(|line| line.trained_tokens).collect();
    assert!(trained[1] > trained[3] && trained[3] > trained[2], "{trained:?}");
    assert!(out.join("compare.svg").is_file() && out.join("compare.json").is_file());
    let ledger = std::fs::read(out.join("mix/mixture.json")).unwrap();
    assert!(String::from_utf8(ledger).unwrap().contains("\"requested\": 0.2"));
    // Other settings are refused, and nothing changes.
    let other = RunConfig { seed: 9, ..small(&out) };
    let error = compare(&other, RunMode::Resume, &Context::new((), &stop)).unwrap_err().to_string();
    assert!(error.contains("seed was 1, is 9"), "{error}");
    // After moving the directory, all runs count as finished.
    let moved = folder.path().join("moved");
    std::fs::rename(&out, &moved).unwrap();
    let mut said = Said::default();
    let again = compare(&small(&moved), RunMode::Resume, &Context::new(&mut said, &stop));
    assert_eq!(again.unwrap(), table);
    assert_eq!(said.0.iter().filter(|line| *line == "this run is finished").count(), 3);
    let error = quiet(&small(&moved), RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("Resume a comparison with `compare`"), "{error}");
}

#[test]
fn a_run_goes_on_with_other_settings_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    quiet(&small(&out), RunMode::New).unwrap();
    let mut longer = small(&out);
    longer.train.steps = Some(9);
    longer.train.learning_rate = 1e-3;
    let error = quiet(&longer, RunMode::Resume).unwrap_err().to_string();
    assert!(error.contains("allow the change") && error.contains("train.steps"), "{error}");
    let summary = quiet(&longer, RunMode::ResumeChanged).unwrap();
    assert_eq!(summary.outcome.step, 9);
    assert_eq!(summary.evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert!(summary.peak_memory_mib.is_none_or(|mib| mib > 1.0));
    // Changed data are allowed as well.
    longer.seed = 2;
    longer.train.steps = Some(10);
    assert_eq!(quiet(&longer, RunMode::ResumeChanged).unwrap().outcome.step, 10);
}

#[test]
fn real_traces_are_accounted_for() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !data.is_dir() {
        println!("skipped: ../shared/data is not here");
        return;
    }
    let mut config = RunConfig::toy();
    config.data.tokenizer = Some(data.join("tokenizers/gpt2/tokenizer.json"));
    config.data.max_length = 2048;
    for (name, file) in
        [("long", "deepseek-r1-distill-qwen-32b"), ("short", "qwen2.5-32b-instruct")]
    {
        let path = data.join(format!("longcot_example/{file}.jsonl"));
        let columns = ColumnMap::default();
        config.data.sources.push(SourceConfig {
            name: name.into(),
            path,
            columns,
            ..SourceConfig::default()
        });
    }
    let prepared = mixdistill::recipe::Prepared::new(&config, &Context::default()).unwrap();
    let ledger = &prepared.ledger;
    assert!(ledger.adds_up(), "{ledger}");
    let [long, short] = &ledger.sources[..] else { panic!("two sources") };
    assert_eq!((long.read, short.read, ledger.joined), (291, 497, 291));
    assert_eq!(short.unmatched, 206);
    assert!(long.too_long > 100 && long.usable + long.too_long == 291, "{ledger}");
    // Too few long answers fit to fill a fifth of the rows: all are used, and the report says so.
    let long = &prepared.report.sources[0];
    assert_eq!(long.rows, long.available);
    assert!(prepared.report.shortfalls[0].contains("not 20.0%"), "{}", prepared.report);
    assert!(!prepared.questions.is_empty(), "gold answers become references");
}
