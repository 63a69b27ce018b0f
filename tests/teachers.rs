//! Promise: a run learns from a teacher's logits in files, or from a teacher that runs beside it. A teacher that
//! does not fit is refused before training.

mod common;

use common::{command, toy_run};
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::ops::Distillation;
use mixdistill::recipe::{LogitTeacherConfig, RunConfig, RunMode, Summary, run};
use std::path::Path;

fn small(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.train.steps = Some(6);
    config.train.epochs = 1.0;
    config.train.evaluate_every = 0;
    config.evaluation.questions = 0;
    config
}

fn quiet(config: &RunConfig) -> mixdistill::Result<Summary> {
    run(config, RunMode::New, &Context::default())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// A teacher of another width, trained for a moment.
fn teacher(folder: &Path) -> String {
    let mut config = small(&folder.join("teacher"));
    config.model.hidden_size = 48;
    config.seed = 9;
    quiet(&config).unwrap();
    path(&config.out.join("model"))
}

fn teacher_logits(arguments: &[&str]) -> (bool, String) {
    let output = command("logits").args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn weights(config: &RunConfig) -> Vec<u8> {
    std::fs::read(config.out.join("model/model.safetensors")).unwrap()
}

#[test]
fn a_run_learns_the_same_from_a_teacher_in_files_as_from_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = teacher(folder.path());
    let settings = path(&folder.path().join("settings.toml"));
    let config = small(&folder.path().join("plain"));
    std::fs::write(&settings, config.to_toml().unwrap()).unwrap();
    let logits = path(&folder.path().join("logits"));
    let arguments = ["--config", &settings, "--teacher", &model, "--top-k", "8", "--out", &logits];
    let (good, said) = teacher_logits(&arguments);
    // Six steps of eight rows; each problem is in one of them.
    assert!(
        good && said.contains("48 rows in") && said.contains(" 0 from an earlier call"),
        "{said}"
    );
    let (good, said) = teacher_logits(&arguments);
    assert!(good && said.contains("48 from an earlier call"), "{said}");
    let (good, said) = teacher_logits(&[&arguments[..], &["--all"]].concat());
    assert!(good && said.contains("120 rows in"), "{said}");

    quiet(&config).unwrap();
    let taught = |name: &str, path: &str| {
        let mut config = small(&folder.path().join(name));
        config.set_teacher(LogitTeacherConfig { path: path.into(), top_k: 8 });
        quiet(&config).unwrap();
        config
    };
    let from_files = taught("files", &logits);
    let from_model = taught("model", &model);
    assert!(weights(&from_files) == weights(&from_model));
    assert!(weights(&from_files) != weights(&config));

    // The flags of the program come to the same.
    let out = path(&folder.path().join("flags"));
    let status = command("train")
        .args(["--config", &settings, "--set", &format!("teacher.path={logits}"), "--out", &out])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let flags = small(&folder.path().join("flags"));
    assert!(weights(&flags) == weights(&from_files));
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let model = teacher(folder.path());
    let settings = path(&folder.path().join("settings.toml"));
    let config = small(&folder.path().join("plain"));
    std::fs::write(&settings, config.to_toml().unwrap()).unwrap();
    let logits = path(&folder.path().join("logits"));
    let (good, said) =
        teacher_logits(&["--config", &settings, "--teacher", &model, "--out", &logits]);
    assert!(good, "{said}");
    let refused = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = small(&folder.path().join("refused"));
        change(&mut config);
        quiet(&config).expect_err("it does not fit").to_string()
    };
    let set = |config: &mut RunConfig, path: &str| {
        config.set_teacher(LogitTeacherConfig { path: path.into(), top_k: 8 });
    };
    let error = refused(&|config| {
        config.train.objective.distillation = Some(Distillation::default());
    });
    assert!(error.contains("there is no teacher"), "{error}");
    let error = refused(&|config| {
        set(config, &logits);
        let part = config.train.objective.distillation.as_mut().unwrap();
        part.temperature = 2.0;
    });
    assert!(error.contains("has temperature 1"), "{error}");
    let error = refused(&|config| {
        set(config, &logits);
        config.train.objective.distillation = None;
    });
    assert!(error.contains("the loss does not use it"), "{error}");
    // An old run stays where the teacher of a new one is none.
    let old = small(&folder.path().join("old"));
    quiet(&old).unwrap();
    let before = weights(&old);
    for top_k in [0, 100_000] {
        let mut config = old.clone();
        config.set_teacher(LogitTeacherConfig { path: model.clone(), top_k });
        let error = run(&config, RunMode::Overwrite, &Context::default());
        assert!(error.unwrap_err().to_string().contains("top_k"));
    }
    assert!(weights(&old) == before && old.out.join("summary.json").is_file());
    let error = refused(&|config| set(config, "no such folder"));
    assert!(error.contains("no such folder"), "{error}");
    // Rows that the files do not have.
    let error = refused(&|config| {
        set(config, &logits);
        config.mixture.weights =
            [("long".to_owned(), 1.0), ("short".to_owned(), 0.0)].into_iter().collect();
    });
    assert!(error.contains("it lacks") && error.contains("`long` record"), "{error}");
    // A teacher with other tokens.
    let tokenizer = Path::new(&model).join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    let changed = text.replace("apples", "oranges");
    assert!(text != changed, "the toy corpus has apples");
    std::fs::write(&tokenizer, changed).unwrap();
    let error = refused(&|config| set(config, &model));
    assert!(error.contains("differ in token"), "{error}");
    let (good, said) = teacher_logits(&["--config", &settings, "--teacher", &model, "--out", "x"]);
    assert!(!good && said.contains("differ in token"), "{said}");
    let arguments = ["--config", &settings, "--teacher", &model, "--top-k", "0", "--out", "x"];
    let (good, said) = teacher_logits(&arguments);
    assert!(!good && said.contains("top_k"), "{said}");
}

/// What was told of a teacher's rows; asks for a stop in the middle of a step's.
struct Taught<'a> {
    rows: Vec<u64>,
    stop_at: Option<(usize, &'a StopFlag)>,
}

impl Observer for Taught<'_> {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Task { task: Task::TeacherLogits, progress } = event {
            self.rows.push(progress.done);
            if let Some((at, stop)) = self.stop_at
                && self.rows.len() == at
            {
                stop.request();
            }
        }
        Ok(())
    }
}

#[test]
fn a_teacher_beside_the_training_is_told_row_by_row_and_a_stop_within_it_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = teacher(folder.path());
    let with = |name: &str| {
        let mut config = small(&folder.path().join(name));
        config.set_teacher(LogitTeacherConfig { path: model.clone(), top_k: 8 });
        config
    };
    let straight = with("straight");
    let mut told = Taught { rows: vec![], stop_at: None };
    run(&straight, RunMode::New, &Context::new(&mut told, &StopFlag::default())).unwrap();
    // Six steps of eight rows, each told from 0 on.
    let expected: Vec<u64> = (0..6).flat_map(|_| 0..=8).collect();
    assert_eq!(told.rows, expected);
    // In the third step, after four of its rows.
    let stopped = with("stopped");
    let stop = StopFlag::default();
    let mut told = Taught { rows: vec![], stop_at: Some((2 * 9 + 5, &stop)) };
    let summary = run(&stopped, RunMode::New, &Context::new(&mut told, &stop)).unwrap();
    assert!(summary.outcome.stopped && summary.outcome.step == 2, "{:?}", summary.outcome);
    assert_eq!(told.rows.len(), 2 * 9 + 5);
    run(&stopped, RunMode::Resume, &Context::default()).unwrap();
    assert!(weights(&stopped) == weights(&straight));
}
