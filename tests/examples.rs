//! The programs in examples/ are short and do what they say.

mod common;

use common::toy_run;
use mixdistill::context::Context;
use mixdistill::data::arith::{ArithConfig, ArithCorpus, sources};
use mixdistill::recipe::{RunConfig, RunMode, SourceConfig, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Lines of code that someone reads in one go.
const LINES: usize = 100;

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => source_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn every_example_is_short_and_says_how_it_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = source_files(&folder);
    assert!(files.len() >= 6, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().map(str::trim);
        let code = code.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        assert!(code <= LINES, "{} has {code} lines of code", path.display());
        if text.contains("fn main()") {
            let name = match path.file_stem().unwrap().to_str().unwrap() {
                "main" => path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned(),
                stem => stem.to_owned(),
            };
            let command = format!("//! cargo run --example {name}");
            assert!(text.contains(&command), "{} does not say `{command}`", path.display());
        }
    }
}

/// Runs an example, and returns what it printed.
fn example(name: &str, arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(common::example(name));
    command.args(arguments).current_dir(folder).env("PROBLEMS", "100").env("STEPS", "3");
    command.output().unwrap()
}

/// Standard output of an example that must succeed.
fn succeeds(name: &str, arguments: &[&str], folder: &Path) -> String {
    let output = example(name, arguments, folder);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Lines of metrics without the times.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds");
        line
    });
    lines.collect()
}

/// Holds a run of `train_mix` against one of the library, as `mixdistill train` makes it.
fn same_run(ours: &Path, whole: &Path) {
    let read = |run: &Path, name: &str| fs::read(run.join(name)).unwrap();
    let json = |run: &Path, name| -> Value { serde_json::from_slice(&read(run, name)).unwrap() };
    assert_eq!(metrics(ours), metrics(whole));
    for name in ["model/model.safetensors", "model/config.json", "model/tokenizer.json"] {
        assert!(read(ours, name) == read(whole, name), "{name} differs");
    }
    for name in ["after.jsonl", "before.jsonl", "ledger.json", "mixture.json"] {
        let [ours, whole] = [ours, whole].map(|run| String::from_utf8(read(run, name)).unwrap());
        assert_eq!(ours, whole, "{name}");
    }
    let (ours, whole) = (json(ours, "summary.json"), json(whole, "summary.json"));
    for key in ["before", "after", "mixture", "ledger"] {
        assert_eq!(ours[key], whole[key], "{key}");
    }
    assert_eq!(ours["outcome"]["step"], whole["outcome"]["step"]);
}

#[test]
fn train_mix_ends_with_the_numbers_of_a_run_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let printed = succeeds("train_mix", &["--steps", "6", "--out", "ours"], folder.path());
    assert!(printed.contains("before training: 0 of 200 correct"), "{printed}");
    let mut config = RunConfig { out: folder.path().join("whole"), ..RunConfig::toy() };
    config.train.steps = Some(6);
    run(&config, RunMode::New, &Context::default()).unwrap();
    let ours = folder.path().join("ours");
    same_run(&ours, &config.out);
    for name in ["config.toml", "loss.svg", "checkpoints", "tensorboard"] {
        assert!(ours.join(name).exists(), "{name}");
    }

    // What is there already stays, unless the command says otherwise.
    let refused = example("train_mix", &["--out", "ours"], folder.path());
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("already holds a run"), "{error}");
    let resumed = example("train_mix", &["--resume", "--out", "ours"], folder.path());
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("this run is finished"));
    same_run(&ours, &config.out);

    // The student talks.
    let answers = succeeds("generation", &["ours/model", "What is 1 + 2?"], folder.path());
    assert!(answers.starts_with("> What is 1 + 2?\n"), "{answers}");
    assert_eq!(answers.matches("  states ").count(), 1, "{answers}");
}

/// A model of the toy corpus in a folder, and its problems in two files.
fn model_and_files(folder: &Path) -> [PathBuf; 3] {
    let toy = toy_run(&folder.join("toy"));
    run(&toy, RunMode::New, &Context::default()).unwrap();
    let corpus = ArithCorpus::generate(&ArithConfig::default(), 400, 0, 7);
    let files = sources(&corpus.train).into_iter().map(|source| {
        let lines = source.records().iter().map(|record| serde_json::to_string(record).unwrap());
        let path = folder.join(format!("{}.jsonl", source.name()));
        fs::write(&path, lines.map(|line| line + "\n").collect::<String>()).unwrap();
        path
    });
    let files: Vec<PathBuf> = files.collect();
    [toy.out.join("model"), files[0].clone(), files[1].clone()]
}

#[cfg(unix)]
#[test]
fn train_mix_fine_tunes_a_model_on_files_and_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let [model, long, short] = model_and_files(folder.path());
    let mut config = RunConfig::fine_tune(model.to_str().unwrap());
    config.out = folder.path().join("whole");
    config.train.steps = Some(300);
    config.data.sources = [("long", &long), ("short", &short)]
        .map(|(name, path)| SourceConfig {
            name: name.into(),
            path: path.clone(),
            ..SourceConfig::default()
        })
        .into();
    run(&config, RunMode::New, &Context::default()).unwrap();

    let [model, long, short] = [&model, &long, &short].map(|path| path.to_str().unwrap());
    let mut child = Command::new(common::example("train_mix"))
        .args(["--model", model, "--long", long, "--short", short, "--steps", "300"])
        .args(["--out", "ours"])
        .current_dir(folder.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ours = folder.path().join("ours");
    while !ours.join("checkpoints/step-000050").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let interrupted =
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(!ours.join("model").exists());
    succeeds("train_mix", &["--resume", "--out", "ours"], folder.path());
    same_run(&ours, &config.out);
}

#[test]
fn the_other_examples_run() {
    let folder = tempfile::tempdir().unwrap();
    let printed = succeeds("own_data", &[], folder.path());
    assert!(printed.contains("expert") && printed.contains("3 steps"), "{printed}");
    let printed = succeeds("own_model", &[], folder.path());
    assert!(printed.contains("correct"), "{printed}");
    let printed = succeeds("distillation", &[], folder.path());
    assert!(folder.path().join("logits/teacher.json").is_file());
    assert!(printed.contains("100 rows of logits") && printed.contains("with the teacher"));
    let printed = succeeds("own_observer", &["table.csv"], folder.path());
    let steps = fs::read_to_string(folder.path().join("table.csv")).unwrap().lines().count();
    assert!(printed.contains(&format!("ended after {steps} steps")), "{printed}");
    assert!(printed.contains("stopped by the observer"), "{printed}");
    let refused = example("own_observer", &["table.csv"], folder.path());
    assert!(!refused.status.success(), "a table that was there stays");
}

#[test]
fn auto_share_refuses_before_the_study_what_would_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let study = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/auto-share.toml");
    let study = study.display().to_string();
    for (setting, what) in [
        ("name=../x", "\"../x\" is not the name of a folder"),
        ("name=", "\"\" is not the name of a folder"),
        ("name=cells", "the study itself writes \"cells\""),
        ("name=Report", "the study itself writes \"Report\""),
        ("pilots.shares=[0, 0.3]", "pilots may propose 0.3"),
        ("pilots.budget=0", "pilots.budget"),
    ] {
        let refused = example("auto_share", &[&study, setting, "out=study"], folder.path());
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{setting}");
        // Debug output escapes quotes.
        assert!(error.replace("\\\"", "\"").contains(what), "{setting}: {error}");
        assert!(!error.contains("panicked"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{setting}");
    }
}
