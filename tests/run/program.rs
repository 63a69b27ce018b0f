//! Runs by the program `mixdistill train`: signals, exit statuses, pipes, and which setting counts.

use crate::common::command;
use crate::small;
use mixdistill::recipe::RunConfig;
use std::path::Path;
use std::process::{Command, Output};

fn train(arguments: &[&str]) -> Output {
    command("train").args(arguments).output().unwrap()
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_a_checkpoint_and_the_run_goes_on_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut config = small(&out);
    config.train.steps = Some(400);
    config.train.evaluate_every = 0;
    config.evaluation.questions = 0;
    let settings = folder.path().join("c.toml");
    std::fs::write(&settings, config.to_toml().unwrap()).unwrap();
    let child = command("train")
        .arg("--config")
        .arg(&settings)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Once a few steps are done.
    let metrics = out.join("metrics.jsonl");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 5 {
        assert!(std::time::Instant::now() < deadline, "no step was made");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    let again = format!("resume with: mixdistill train --resume --out {}", out.display());
    assert!(text.contains("a checkpoint is saved") && text.contains(&again), "{text}");
    let output = train(&["--resume", "--out", &out.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("resuming from"));
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let summary: mixdistill::recipe::Summary = serde_json::from_str(&summary).unwrap();
    assert_eq!((summary.outcome.step, summary.outcome.stopped), (400, false));
}

#[test]
fn the_program_fails_with_one_line_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let config = folder.path().join("c.toml");
    std::fs::write(&config, "color = 1\n").unwrap();
    let config = config.display().to_string();
    for (arguments, message) in [
        (vec!["--share", "1.5"], "setting `mixture.weights` (--share): it is 1.5"),
        (vec!["--share", "-0.5"], "setting `mixture.weights` (--share): it is -0.5"),
        (vec!["--backend", "abacus"], "there is no such backend"),
        (vec!["--set", "data.too_long=maybe"], "data.too_long"),
        (vec!["--config", &config], "color"),
        (vec!["--resume"], "holds no run"),
        (vec!["--long", "a.jsonl", "--short", "b.jsonl"], "data.tokenizer"),
        (vec!["--long", "a.jsonl"], "--short"),
        (vec!["--steps", "0"], "train.steps"),
    ] {
        let output = train(&[&arguments[..], &["--out", &out]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(message), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        assert!(!Path::new(&out).join("config.toml").exists());
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let settings = folder.path().join("c.toml");
    std::fs::write(&settings, small(&out).to_toml().unwrap()).unwrap();
    let mut child = command("train")
        .arg("--config")
        .arg(&settings)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(out.join("summary.json").is_file());
}

#[test]
fn flags_count_more_than_the_settings_file_and_assignments_most() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml").display().to_string();
    let mut config = small(&folder.path().join("run"));
    (config.seed, config.train.steps, config.train.batch_size) = (7, Some(9), 3);
    std::fs::write(&path, config.to_toml().unwrap()).unwrap();
    let words = ["--config", &path, "--steps", "2", "--seed", "8", "--share", "0.5"];
    let output = train(&[&words[..], &["--set", "seed=9"]].concat());
    assert!(output.status.success());
    let config = RunConfig::read(&config.out.join("config.toml")).unwrap();
    assert_eq!((config.seed, config.train.steps, config.train.batch_size), (9, Some(2), 3));
    assert_eq!(config.mixture.weights["long"], 0.5);
}
