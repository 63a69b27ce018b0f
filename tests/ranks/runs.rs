//! Promise: a run on several ranks writes the same results as a run on one rank.

use super::common::{command, toy_run};
use mixdistill::context::{Context, Outcome, StopFlag};
use mixdistill::data::{ChoiceBy, ChoiceConfig, Share};
use mixdistill::ranks::Ranks;
use mixdistill::recipe::{RunConfig, RunMode, Summary, run, run_on_threads};
use mixdistill::train::OnNotFinite;
use std::path::Path;

fn config(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.data.toy_problems = 40;
    config.data.toy_test_problems = 6;
    (config.train.steps, config.train.epochs) = (Some(6), 1.0);
    (config.train.batch_size, config.train.accumulate) = (2, 4);
    (config.train.evaluate_every, config.train.checkpoint_every) = (3, 2);
    (config.evaluation.questions, config.evaluation.during_training) = (5, 3);
    config.evaluation.before = true;
    config.generate.max_new_tokens = 6;
    config
}

/// A run on so many ranks.
fn on(count: usize, config: &RunConfig, mode: RunMode) -> mixdistill::Result<Summary> {
    match count {
        1 => run(config, mode, &Context::default()),
        _ => run_on_threads(config, mode, count, Ranks::PATIENCE, &Context::default()),
    }
}

/// The lines of a file of a run without times.
fn lines(out: &Path, name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join(name)).unwrap();
    let untimed = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("seconds");
        value
    };
    text.lines().map(untimed).collect()
}

fn assert_same(one: &Path, other: &Path) {
    for name in ["model/model.safetensors", "mixture.json", "ledger.json"] {
        let [a, b] = [one, other].map(|out| std::fs::read(out.join(name)).unwrap());
        assert!(a == b, "{name} of {}", other.display());
    }
    for name in ["metrics.jsonl", "samples.jsonl", "before.jsonl", "after.jsonl"] {
        assert_eq!(lines(one, name), lines(other, name), "{name} of {}", other.display());
    }
}

#[test]
fn a_run_on_several_ranks_writes_what_one_rank_writes() {
    let folder = tempfile::tempdir().unwrap();
    let of = |count: usize, change: fn(&mut RunConfig)| {
        let mut config = config(&folder.path().join(format!("ranks-{count}")));
        change(&mut config);
        let summary = on(count, &config, RunMode::New).unwrap();
        (config, summary.outcome)
    };
    for change in [
        (|_| {}) as fn(&mut RunConfig),
        |config| {
            config.generate.temperature = 0.8;
            config.train.shard_optimizer = true;
            config.train.lanes = 2;
        },
        |config| {
            config.train.early_stopping = 1;
            config.train.keep_best = true;
            config.train.evaluate_every = 1;
            config.train.learning_rate = 0.3;
        },
        |config| {
            config.train.on_not_finite = OnNotFinite::Skip;
            config.train.learning_rate = 1e20;
            config.train.warmup_steps = 3;
        },
        // The leader alone finds the share.
        |config| {
            config.mixture.share = Share::Auto;
            (config.pilots.shares, config.pilots.budget) = (vec![1.0], 2.0);
            config.pilots.questions = 5;
        },
        // The leader alone scores, and tells the others.
        |config| {
            config.mixture.weights.clear();
            config.mixture.choice = Some(ChoiceConfig::by(ChoiceBy::Rsr));
        },
    ] {
        let (one, expected) = of(1, change);
        let of_steps = |outcome: &Outcome| (outcome.step, outcome.best, outcome.skipped.clone());
        for count in [2, 3] {
            let (several, outcome) = of(count, change);
            assert_eq!(of_steps(&outcome), of_steps(&expected));
            assert_same(&one.out, &several.out);
            // It is finished, whoever asks.
            let again = on(if count == 2 { 3 } else { 1 }, &several, RunMode::Resume).unwrap();
            assert_eq!(again.outcome.step, expected.step);
            std::fs::remove_dir_all(&several.out).unwrap();
        }
        std::fs::remove_dir_all(&one.out).unwrap();
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let whole = config(&folder.path().join("whole"));
    on(1, &whole, RunMode::New).unwrap();
    for counts in [[1, 3], [3, 1], [2, 4]] {
        let parts = config(&folder.path().join(format!("parts-{counts:?}")));
        on(counts[0], &parts, RunMode::New).unwrap();
        // As a process leaves it that was killed after its second checkpoint.
        for name in ["summary.json", "after.jsonl", "model", "checkpoints/step-000006"] {
            let path = parts.out.join(name);
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
            removed.unwrap();
        }
        on(counts[1], &parts, RunMode::Resume).unwrap();
        assert_same(&whole.out, &parts.out);
    }
}

#[test]
fn what_is_wrong_is_said_once_and_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = config(&folder.path().join("wrong"));
    wrong.train.on_not_finite = OnNotFinite::Stop;
    wrong.train.learning_rate = 1e30;
    wrong.train.warmup_steps = 0;
    let error = on(3, &wrong, RunMode::New).unwrap_err().to_string();
    assert!(error.contains("is not finite") && !error.contains("rank"), "{error}");
    let mut no_data = config(&folder.path().join("none"));
    no_data.base_model = Some("nowhere".into());
    let error = on(2, &no_data, RunMode::New).unwrap_err().to_string();
    assert!(error.contains("nowhere") && !error.contains("rank"), "{error}");
}

#[test]
fn a_stop_before_the_training_is_a_stop_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder.path().join("stopped"));
    let stop = StopFlag::default();
    stop.request();
    let context = Context::new((), &stop);
    let error = run_on_threads(&config, RunMode::New, 3, Ranks::PATIENCE, &context).unwrap_err();
    assert!(matches!(error, mixdistill::Error::Stopped { .. }), "{error}");
}

#[test]
fn processes_that_cannot_talk_are_refused_by_the_program() {
    let output = command("train").env("WORLD_SIZE", "2").env("RANK", "0").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for word in ["WORLD_SIZE is 2", "mpirun", "srun"] {
        assert!(error.contains(word), "{error}");
    }
    // What does not train does not mind.
    let output =
        command("config").arg("explain").arg("train.lanes").env("WORLD_SIZE", "2").output();
    assert!(output.unwrap().status.success());
    #[cfg(not(feature = "mpi"))]
    {
        let mut started = command("train");
        started.env("OMPI_COMM_WORLD_RANK", "0").env("OMPI_COMM_WORLD_SIZE", "2");
        let output = started.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("feature `mpi`") && error.contains("mpirun"), "{error}");
    }
}

#[test]
fn the_program_trains_on_ranks_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let of = |ranks: &str| {
        let out = folder.path().join(format!("ranks-{ranks}"));
        let mut program = command("train");
        program.args(["--steps", "3", "--questions", "2", "--quiet", "--ranks", ranks, "--out"]);
        program.arg(&out);
        for setting in [
            "data.toy_problems=30",
            "data.toy_test_problems=3",
            "model.hidden_size=16",
            "model.intermediate_size=24",
            "model.num_hidden_layers=1",
            "generate.max_new_tokens=4",
            "train.batch_size=2",
            "train.accumulate=3",
        ] {
            program.args(["--set", setting]);
        }
        let output = program.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (out, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let [one, three, five] = ["1", "3", "5"].map(of);
    assert_same(&one.0, &three.0);
    assert_same(&one.0, &five.0);
    let told = "2 of 5 ranks compute nothing";
    assert!(five.1.contains(told) && !three.1.contains("compute nothing"), "{}", five.1);
}
