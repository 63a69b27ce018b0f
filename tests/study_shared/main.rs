//! Promise: several processes that share a study, or make parts of it, produce the numbers of one process, even
//! if some of them are killed. Errors name parts that do not fit together.

#[path = "../common/mod.rs"]
mod common;
mod parts;

use common::command;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::study::{Cell, Sharing, Study, StudyConfig, join, study, study_part, study_shared};
use mixdistill::{Part, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// One student, two shares, a choice by the student's scores with its control, three seeds: 12 cells.
const SETTINGS: &str = r#"
seeds = [1, 2, 3]
resamples = 200

[[comparisons]]
name = "Long"
strong = "long"
weak = "short"
alphas = []

[[comparisons.choices]]
by = "rsr"

[[students]]
name = "small"

[run.model]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[run.data]
toy_problems = 40
toy_test_problems = 8
[run.train]
steps = 6
evaluate_every = 0
checkpoint_every = 2
[run.generate]
max_new_tokens = 8
[run.evaluation]
questions = 8
loss_problems = 4
"#;

/// A study, its file, and a directory that no other has.
fn config(folder: &Path, change: impl Fn(String) -> String) -> (PathBuf, StudyConfig) {
    let path = folder.join("study.toml");
    let out = format!("{:?}", folder.join("out").display().to_string());
    std::fs::write(&path, change(format!("out = {out}\n{SETTINGS}"))).unwrap();
    let config = StudyConfig::read(&path).unwrap();
    (path, config)
}

fn at(config: &StudyConfig, out: PathBuf) -> StudyConfig {
    StudyConfig { out, ..config.clone() }
}

fn alone(config: &StudyConfig) -> Study {
    study(config, "the command", &Context::default()).unwrap()
}

fn share(config: &StudyConfig) -> Result<Study> {
    let sharing = Sharing { dead_after: Duration::from_secs(3) };
    study_shared(config, &sharing, "the command", &Context::default())
}

fn parts(config: &StudyConfig, of: usize, folder: &Path) -> Vec<PathBuf> {
    let each = (1..=of).map(|number| {
        let out = folder.join(format!("part{number}"));
        let part = Part::new(number, of).unwrap();
        let made = study_part(&at(config, out.clone()), part, &Context::default()).unwrap();
        assert_eq!((made.part, made.all_cells), (part, config.cells().len()));
        out
    });
    each.collect()
}

fn part_of(config: &StudyConfig, number: usize, of: usize) -> Result<()> {
    study_part(config, Part::new(number, of).unwrap(), &Context::default()).map(drop)
}

/// Changes a stored cell.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn read(out: &Path) -> Study {
    serde_json::from_str(&std::fs::read_to_string(out.join("study.json")).unwrap()).unwrap()
}

/// A process of the program that works on the study, on its directory.
fn start(settings: &Path, out: &Path, flags: &[&str]) -> Child {
    command("study")
        .arg("--config")
        .arg(settings)
        .arg("--out")
        .arg(out)
        .args(flags)
        .env("MIXDISTILL_TEST_LINGER_MS", "60")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// All files below a folder, where there is one.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

/// Files of claims that are there.
fn claims(out: &Path) -> Vec<PathBuf> {
    let files = below(&out.join("claims")).into_iter();
    files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}

/// The output of a process, which must end within two minutes.
fn ended(process: Child) -> Output {
    let id = process.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(process.wait_with_output().unwrap()));
    receiver.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|_| {
        signal(id, "-KILL");
        panic!("process {id} does not end");
    })
}

fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// What a process claims and has not finished.
#[cfg(unix)]
fn unfinished_of(out: &Path, id: u32) -> Vec<PathBuf> {
    let mut found = claims(out);
    found.retain(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let claim: Value = serde_json::from_str(&text).unwrap_or_default();
        let result = out.join("results").join(path.strip_prefix(out.join("claims")).unwrap());
        claim["process"] == id && !result.exists()
    });
    found
}

/// Kills a process that has something to lose.
#[cfg(unix)]
fn kill_at_work(mut process: Child, out: &Path) -> Vec<PathBuf> {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "it claims nothing");
        assert!(process.try_wait().unwrap().is_none(), "it ended");
        signal(process.id(), "-STOP");
        std::thread::sleep(Duration::from_millis(20));
        let left = unfinished_of(out, process.id());
        if !left.is_empty() {
            process.kill().unwrap();
            process.wait().unwrap();
            return left;
        }
        signal(process.id(), "-CONT");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(unix)]
#[test]
fn two_of_three_processes_are_killed_and_the_report_is_that_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, config) = config(folder.path(), |text| text);
    assert_eq!(config.cells().len(), 12);
    let expected = alone(&config);
    let out = folder.path().join("shared");
    let mut processes: Vec<Child> =
        (0..3).map(|_| start(&settings, &out, &["--share", "--dead-after", "2"])).collect();
    // Each at another moment in each run of this test; what holds then is told where it fails.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let moments = [now % 1_500, now / 1_500 % 1_500].map(|ms| Duration::from_millis(ms.into()));
    let begun = Instant::now();
    while claims(&out).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody claims anything");
    }
    let mut left = vec![];
    for moment in moments {
        std::thread::sleep(moment);
        left = kill_at_work(processes.remove(0), &out);
    }
    common::say(&format!("killed at {moments:?}, left {left:?}"));
    let output = ended(processes.remove(0));
    let told = text(&output);
    assert!(output.status.success(), "{moments:?}: {told}");
    let taken_over = told.matches("this process takes over its work").count();
    assert!(taken_over >= left.len(), "{moments:?}, left {left:?}: {told}");
    let made = read(&out);
    assert_eq!(made.comparisons, expected.comparisons, "{moments:?}");
    assert!(claims(&out).is_empty(), "{:?}", claims(&out));
    // Whoever comes now has nothing to do, and the report stays as it is.
    let written = |name: &str| std::fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let before = written("report.html");
    assert_eq!(share(&at(&config, out.clone())).unwrap(), made);
    assert_eq!(written("report.html"), before);
    // So has a process that works alone.
    assert_eq!(alone(&at(&config, out)).comparisons, expected.comparisons);
}

#[test]
fn processes_that_share_a_study_divide_its_cells_and_all_give_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, config) = config(folder.path(), |text| text.replace("[1, 2, 3]", "[1, 2]"));
    let expected = alone(&config);
    let out = folder.path().join("shared");
    let processes: Vec<Child> =
        (0..2).map(|_| start(&settings, &out, &["--share", "--json"])).collect();
    let outputs: Vec<Output> = processes.into_iter().map(ended).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(output));
        let study: Study = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(study.comparisons, expected.comparisons);
    }
    // Each cell is trained by one of them, and each trains some.
    let told: Vec<String> =
        outputs.iter().map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).collect();
    for seed in [1, 2] {
        for arm in ["0% long", "100% long", "by RSR, ", "random at the share"] {
            let cell = format!("=== small: Long, {arm}");
            let begun =
                |line: &str| line.starts_with(&cell) && line.contains(&format!("seed {seed} (run"));
            let trained = |text: &&String| text.lines().any(begun);
            let by = told.iter().filter(trained).count();
            assert!(told.iter().all(|text| text.contains("=== small: Long, ")), "{told:?}");
            assert_eq!(by, 1, "{arm}, seed {seed}:\n{}\n---\n{}", told[0], told[1]);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_process_that_was_suspended_for_too_long_ends_and_another_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, config) = config(folder.path(), |text| text.replace("[1, 2, 3]", "[1]"));
    let expected = alone(&config);
    let out = folder.path().join("shared");
    let flags = ["--share", "--dead-after", "1"];
    let first = start(&settings, &out, &flags);
    let begun = Instant::now();
    let trains = || below(&out.join("cells")).iter().any(|path| path.ends_with("metrics.jsonl"));
    while !trains() {
        std::thread::sleep(Duration::from_millis(2));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    signal(first.id(), "-STOP");
    let suspended = claims(&out);
    let second = start(&settings, &out, &flags);
    // The second one does what else there is, and takes the claims over.
    let has_all_but_one = || below(&out.join("results")).len() >= 4;
    while !has_all_but_one() {
        std::thread::sleep(Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", below(&out.join("results")));
    }
    std::thread::sleep(Duration::from_millis(2_500));
    signal(first.id(), "-CONT");
    let output = ended(first);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{suspended:?}: {told}");
    assert!(told.contains("has taken it over") && told.contains("--dead-after"), "{told}");
    let output = ended(second);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("no sign of life"), "{}", text(&output));
    assert_eq!(read(&out).comparisons, expected.comparisons);
}

#[test]
fn a_second_process_is_refused_unless_it_shares() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, config) = config(folder.path(), |text| text);
    let other_settings = folder.path().join("other.toml");
    let text_of = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&other_settings, text_of.replace("steps = 6", "steps = 7")).unwrap();
    for (first, refused) in [
        (vec![], vec![(&settings, vec![], "--share"), (&settings, vec!["--share"], "alone")]),
        (
            vec!["--share"],
            vec![
                (&settings, vec![], "--share"),
                (&settings, vec!["--part", "1/2"], "its own directory"),
                (&other_settings, vec!["--share"], "run.train.steps was 6, is 7"),
            ],
        ),
    ] {
        let out = folder.path().join(format!("first{}", first.len()));
        let mut process = start(&settings, &out, &first);
        let begun = Instant::now();
        while !out.join("cells").exists() {
            std::thread::sleep(Duration::from_millis(5));
            assert!(process.try_wait().unwrap().is_none(), "it ended");
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        for (settings, flags, expected) in refused {
            let output = ended(start(settings, &out, &flags));
            let told = text(&output);
            assert!(process.try_wait().unwrap().is_none(), "too late to tell");
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(told.contains("process") && told.contains(expected), "{flags:?}: {told}");
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // The settings may be others once nobody works on it: new seeds, say.
    let out = at(&config, folder.path().join("later"));
    share(&StudyConfig { seeds: vec![1], ..out.clone() }).unwrap();
    assert_eq!(share(&StudyConfig { seeds: vec![1, 2], ..out.clone() }).unwrap().seeds, [1, 2]);
    // Settings that do not fit what is done do not take the place of those that do.
    let written = || std::fs::read_to_string(out.out.join("settings.toml")).unwrap();
    let before = written();
    let mut other = out.clone();
    other.run["train"].as_table_mut().unwrap().insert("steps".into(), 7.into());
    for refused in [share(&other).map(drop), part_of(&other, 1, 2)] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("train.steps was") && error.contains("results"), "{error}");
        assert_eq!(written(), before);
    }
}

#[test]
fn pretrained_students_are_shared_and_divided_too() {
    let folder = tempfile::tempdir().unwrap();
    let pretraining = "[students.pretraining]\nseed = 7\n[students.pretraining.train]\nsteps = 3\n";
    let (settings, config) = config(folder.path(), |text| {
        text.replace("[1, 2, 3]", "[1]")
            .replace("[run.model]", &format!("{pretraining}[run.model]"))
    });
    let expected = alone(&config);
    let out = folder.path().join("shared");
    let processes: Vec<Child> = (0..2).map(|_| start(&settings, &out, &["--share"])).collect();
    for output in processes.into_iter().map(ended) {
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(read(&out).comparisons, expected.comparisons);
    let parts = parts(&config, 2, folder.path());
    let joined = at(&config, folder.path().join("joined"));
    let made = join(&joined, &parts, "the command", &Context::default()).unwrap();
    assert_eq!(made.comparisons, expected.comparisons);
    // What began with another model is refused.
    let models = parts[1].join("pretrained-models/small.json");
    edit(&models, |models| {
        models.as_object_mut().unwrap().values_mut().for_each(|model| *model = "0".into());
    });
    let other = at(&config, folder.path().join("other"));
    let error = join(&other, &parts, "the command", &Context::default()).unwrap_err().to_string();
    assert!(error.contains("another model of the pretrained student `small`"), "{error}");
}

#[test]
fn a_stop_lets_claims_go() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = config(folder.path(), |text| text.replace("[1, 2, 3]", "[1]"));
    let stop = StopFlag::default();
    stop.request();
    let sharing = Sharing::default();
    let stopped = study_shared(&config, &sharing, "the command", &Context::new((), &stop));
    assert!(matches!(stopped.unwrap_err(), mixdistill::Error::Stopped { .. }));
    assert!(claims(&config.out).is_empty());
    let expected = alone(&at(&config, folder.path().join("alone")));
    assert_eq!(share(&config).unwrap().comparisons, expected.comparisons);
    // Claims of what is done are no more than files: nobody waits for them.
    let left = config.out.join("claims/small/Long-0.00/seed-1.json");
    std::fs::write(&left, "{}").unwrap();
    std::fs::remove_file(config.out.join("study.json")).unwrap();
    assert_eq!(share(&config).unwrap().comparisons, expected.comparisons);
    assert!(!left.exists());
}

#[test]
fn flags_that_exclude_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = config(folder.path(), |text| text);
    let called = |flags: &[&str]| command("study").args(flags).output().unwrap();
    let file = settings.display().to_string();
    for flags in [
        vec!["--config", &file, "--share", "--part", "1/2"],
        vec!["--config", &file, "--share", "--report", "a"],
        vec!["--config", &file, "--part", "1/2", "--report", "a"],
        vec!["--config", &file, "--dead-after", "5"],
        vec!["--config", &file, "--share", "--dead-after", "0"],
        vec!["--config", &file, "--part", "3/2"],
        vec!["--share"],
        vec!["--report", "a"],
    ] {
        let output = called(&flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", text(&output));
    }
    // A task of an array that makes everything is told so, before whatever else.
    let mut task = command("study");
    task.args(["--config", &file, "--set", "resamples=0"]).env("SLURM_ARRAY_TASK_ID", "1");
    let told = text(&task.output().unwrap());
    assert!(told.contains("use --part array") && told.contains("resamples"), "{told}");
    let told = text(&called(&["--config", &file, "--part", "array"]));
    assert!(told.contains("SLURM_ARRAY_TASK_ID is not set"), "{told}");
}
