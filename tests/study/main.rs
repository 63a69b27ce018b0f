//! Promise: a study runs to its report, can be resumed, and states what a reader must know. The report opens in
//! a browser without errors.

#[path = "../common/mod.rs"]
mod common;
mod pretraining;
mod stored;

use common::command;
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::study::{ArmKind, Study, StudyConfig, study};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SETTINGS: &str = r#"
seeds = [1, 2]
resamples = 200
style_answers = 3

[[comparisons]]
name = "Long"
strong = "long"
weak = "short"
alphas = [0.5]

[[students]]
name = "small"
kind = "tiny"
[students.run.model]
hidden_size = 16
intermediate_size = 24

[[students]]
name = "large"
kind = "tiny"
[students.run.model]
hidden_size = 32
intermediate_size = 48

[run.model]
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[run.data]
toy_problems = 60
toy_test_problems = 12
[run.train]
evaluate_every = 0
checkpoint_every = 3
[run.generate]
max_new_tokens = 8
[run.evaluation]
questions = 12
loss_problems = 4
"#;

fn config(folder: &Path, change: impl Fn(String) -> String) -> (PathBuf, StudyConfig) {
    let path = folder.join("study.toml");
    let out = toml_string(&folder.join("out"));
    std::fs::write(&path, change(format!("out = {out}\n{SETTINGS}"))).unwrap();
    let config = StudyConfig::read(&path).unwrap();
    (path, config)
}

fn toml_string(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn quiet(config: &StudyConfig, stop: &StopFlag) -> mixdistill::Result<Study> {
    study(config, "the command", &Context::new((), stop))
}

#[test]
fn a_study_runs_to_its_report_and_skips_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = config(folder.path(), |text| text);
    assert_eq!(config.cells().len(), 2 * 2 * 3);
    let stop = StopFlag::default();
    let study = quiet(&config, &stop).unwrap();
    assert_eq!(study.comparisons[0].benchmarks, [("held-out".to_owned(), 12)]);
    assert_eq!((study.students.len(), study.comparisons.len()), (2, 1));
    let result = &study.comparisons[0].students[0];
    let alphas: Vec<f64> = result.mixtures.iter().map(|m| m.alpha).collect();
    assert_eq!(alphas, [0.0, 0.5, 1.0]);
    let [weak, mix, strong] = result.mixtures.as_slice() else { panic!() };
    assert!((result.gap.value - (strong.score.value - weak.score.value)).abs() < 1e-12);
    assert!((result.gains[0].1.value - (mix.score.value - weak.score.value)).abs() < 1e-12);
    assert_eq!(weak.by_seed.len(), 2);
    assert!(result.gap.low <= result.gap.value && result.gap.value <= result.gap.high);
    // The budgets are the same but for the tokens, which is said.
    let budgets = &study.comparisons[0].budgets;
    assert!(budgets.iter().all(|budget| budget.updates == budgets[0].updates));
    assert_eq!(budgets[1].strong_rows, 0.5);
    assert!(study.warnings.iter().any(|w| w.contains("trained tokens")), "{:?}", study.warnings);
    assert!(study.warnings.iter().any(|w| w.contains("there is little room for a gap")));
    assert_eq!(study.style.len(), 2 * 2);
    let out = &config.out;
    for name in ["report.html", "report.md", "study.json", "settings.toml", "figures/gap-long.svg"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
    let markdown = std::fs::read_to_string(out.join("report.md")).unwrap();
    for part in ["Δ Long", "α = 0.5", "held-out (12)", "the command", "Budgets", "Style shift"] {
        assert!(markdown.contains(part), "{part}");
    }
    // Every row of a table has a cell for each name in its header.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let tables: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|')).collect();
    assert!(tables.len() > 30);
    for pair in markdown.lines().collect::<Vec<_>>().windows(2) {
        if pair.iter().all(|line| line.starts_with('|')) {
            assert_eq!(cells(pair[0]), cells(pair[1]), "{pair:?}");
        }
    }
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    // But for the names of namespaces it mentions no address.
    let addresses = html.replace("http://www.w3.org", "");
    assert!(!addresses.contains("http://") && !addresses.contains("https://"), "self-contained");
    assert!(!html.contains("<script") && !html.contains("src="), "nothing is loaded");

    // Again: the same numbers, and nothing is trained anew.
    let summary = out.join("cells/small/Long-0.50/seed-2/summary.json");
    let before = std::fs::metadata(&summary).unwrap().modified().unwrap();
    let again = quiet(&config, &stop).unwrap();
    assert_eq!(again.comparisons, study.comparisons);
    assert_eq!(std::fs::metadata(&summary).unwrap().modified().unwrap(), before);
    // One more share trains only what is new.
    let mut more = config.clone();
    more.comparisons[0].alphas.push(0.2);
    let wider = quiet(&more, &stop).unwrap();
    assert_eq!(wider.comparisons[0].students[0].mixtures.len(), 4);
    assert_eq!(std::fs::metadata(&summary).unwrap().modified().unwrap(), before);
    // Other settings for what is there are refused by name.
    let mut other = config.clone();
    other
        .run
        .entry("train")
        .or_insert(toml::Table::new().into())
        .as_table_mut()
        .unwrap()
        .insert("learning_rate".into(), 0.5.into());
    let error = quiet(&other, &stop).unwrap_err().to_string();
    assert!(error.contains("train.learning_rate was") && error.contains("(out)"), "{error}");
    // What changes no answer is no other setting.
    let mut smaller = config.clone();
    let generate = smaller.run.get_mut("generate").unwrap().as_table_mut().unwrap();
    generate.insert("batch_size".into(), 3.into());
    assert_eq!(quiet(&smaller, &stop).unwrap().comparisons, study.comparisons);
    // Answers that are gone are missed, and not counted as something else.
    let answers = out.join("cells/small/Long-0.50/seed-2/after.jsonl");
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, text.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>())
        .unwrap();
    let error = quiet(&config, &stop).unwrap_err().to_string();
    assert!(error.contains("not to the held-out problems"), "{error}");
}

#[test]
fn a_stopped_study_goes_on_to_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (_, straight) = config(folder.path(), |text| text.replace("[1, 2]", "[1]"));
    let expected = quiet(&straight, &StopFlag::default()).unwrap();
    let mut stopped = straight.clone();
    stopped.out = folder.path().join("stopped");
    // A stop that was asked for before a cell ends the study there; what was done stays.
    let stop = StopFlag::default();
    struct StopAtThird<'a>(&'a StopFlag);
    impl Observer for StopAtThird<'_> {
        fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
            if let Event::Part { number: 3, of: 6, .. } = event {
                self.0.request();
            }
            Ok(())
        }
    }
    let first = study(&stopped, "the command", &Context::new(StopAtThird(&stop), &stop));
    assert!(matches!(first.unwrap_err(), Error::Stopped { .. }));
    assert!(stopped.out.join("cells/small/Long-0.00/seed-1/summary.json").is_file());
    assert!(!stopped.out.join("report.html").exists());
    let second = quiet(&stopped, &StopFlag::default()).unwrap();
    assert_eq!(second.comparisons[0].students, expected.comparisons[0].students);
}

#[test]
fn killed_at_many_moments_a_study_ends_in_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (_, straight) = config(folder.path(), |text| text.replace("[1, 2]", "[1]"));
    let expected = quiet(&straight, &StopFlag::default()).unwrap();
    let out = folder.path().join("killed");
    let start = || {
        command("study")
            .args(["--config", &folder.path().join("study.toml").display().to_string()])
            .args(["--out", &out.display().to_string()])
            .env("MIXDISTILL_TEST_LINGER_MS", "4")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    // Each process gets a little further than the one before.
    let mut kills = 0;
    let output = loop {
        let mut child = start();
        let end = Instant::now() + Duration::from_millis(30 + 25 * kills);
        while child.try_wait().unwrap().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_some() {
            break child.wait_with_output().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(out.join("study.json")).unwrap();
    let study: Study = serde_json::from_str(&text).unwrap();
    assert_eq!(study.comparisons[0].students, expected.comparisons[0].students);
    assert_eq!(study.style, expected.style);
    println!("{kills} kills");
    assert!(kills >= 1, "{kills}");
}

#[test]
fn studies_that_cannot_be_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("study.toml");
    let refused = |from: &str, to: &str| {
        assert!(SETTINGS.contains(from), "{from}");
        std::fs::write(&path, SETTINGS.replace(from, to)).unwrap();
        StudyConfig::read(&path).unwrap_err().to_string()
    };
    for (from, to, what) in [
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "twice"),
        ("seeds = [1, 2]", "sedes = [1]", "sedes"),
        ("name = \"small\"", "name = \"../small\"", "cannot be a folder name"),
        ("name = \"small\"", "name = \"large\"", "twice"),
        ("alphas = [0.5]", "alphas = [1.5]", "shares from 0 to 1"),
        ("weak = \"short\"", "weak = \"long\"", "Use two different sources"),
        ("questions = 12", "questions = 0", "no test problems"),
        ("hidden_size = 16", "hidden_sice = 16", "hidden_sice"),
        ("resamples = 200", "resamples = 0", "resamples"),
        ("[run.evaluation]", "[run.evaluation]\nbefore = true", "run.evaluation.before"),
        ("name = \"small\"", "name = \"LARGE\"", "twice"),
    ] {
        let error = refused(from, to);
        assert!(error.contains(what), "{to}: {error}");
    }
    // A directory with other things in it stays as it is.
    let (_, mut config) = config(folder.path(), |text| text);
    config.out = folder.path().to_owned();
    let error = quiet(&config, &StopFlag::default()).unwrap_err().to_string();
    assert!(error.contains("not a study's"), "{error}");
}

#[test]
fn the_report_opens_in_a_browser_without_an_error() {
    let browser = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    let Some(browser) = browser else {
        common::say("skipped: there is no Chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = config(folder.path(), |text| text.replace("[1, 2]", "[1]"));
    let status = command("study")
        .args(["--config", &path.display().to_string()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let report = config.out.join("report.html");
    let open = |arguments: &[&str]| {
        Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .args(arguments)
            .arg(format!("file://{}", report.display()))
            .output()
            .unwrap()
    };
    let output = open(&["--dump-dom"]);
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && page.contains("</html>"), "{page}");
    // What the browser made of it: all tables and figures, and nothing that it complained of.
    assert!(page.matches("<svg").count() >= 4 && page.matches("<table").count() >= 5);
    let errors = String::from_utf8_lossy(&output.stderr);
    let console: Vec<&str> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let picture = folder.path().join("report.png");
    let screenshot = format!("--screenshot={}", picture.display());
    assert!(open(&[&screenshot, "--window-size=1100,2400"]).status.success());
    // A blank page of this size has some ten kilobytes.
    assert!(std::fs::metadata(&picture).unwrap().len() > 30_000);
}

/// Two sources of answers in one file, of which some are wrong, and a benchmark that shares a problem
/// with it.
fn files(folder: &Path) {
    let mut text = String::new();
    for n in 0..40 {
        let sum = n + 3;
        let row = serde_json::json!({
            "problem": format!("What is {n} + 3?"),
            "gold": sum,
            "large": {
                "text": format!("{n} + 3 = {sum}. The answer is \\boxed{{{sum}}}."),
                "ok": n % 5 != 0,
            },
            "small": { "text": format!("The answer is \\boxed{{{sum}}}."), "ok": true },
        });
        text.push_str(&format!("{row}\n"));
    }
    std::fs::write(folder.join("answers.jsonl"), text).unwrap();
    let bench = "{\"question\": \"What is 7 + 3?\", \"answer\": 10}\n\
                 {\"question\": \"What is 90 + 3?\", \"answer\": 93}\n";
    std::fs::write(folder.join("sums.jsonl"), bench).unwrap();
}

#[test]
fn students_in_folders_learn_from_files_and_are_tested_on_benchmarks() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    // A student to begin with.
    let mut base = common::toy_run(&folder.path().join("base"));
    base.train.steps = Some(2);
    base.evaluation.questions = 0;
    mixdistill::recipe::run(&base, mixdistill::recipe::RunMode::New, &Context::default()).unwrap();
    let path = |name: &str| toml_string(&folder.path().join(name));
    let source = |name: &str| {
        format!(
            "[[comparisons.run.data.sources]]\nname = \"{name}\"\npath = {}\n\
             columns = {{ problem = \"problem\", solution = \"{name}.text\", \
             correct = \"{name}.ok\", answer = \"gold\" }}\n",
            path("answers.jsonl")
        )
    };
    let settings = format!(
        "out = {out}\nseeds = [1]\nresamples = 100\nbenchmarks = [{sums}]\ninstruct = true\n\
         [[comparisons]]\nname = \"Large\"\nstrong = \"large\"\nweak = \"small\"\n\
         alphas = [0.2]\n{large}{small}\
         [[students]]\nname = \"whole\"\n[students.run]\nbase_model = {model}\n\
         [[students]]\nname = \"adapters\"\n[students.run]\nbase_model = {model}\n\
         [students.run.lora]\nrank = 2\nalpha = 4.0\n\
         [run.data]\nmax_length = 64\nhold_out = 0.3\n\
         [run.train]\nsteps = 2\nevaluate_every = 0\n\
         [run.generate]\nmax_new_tokens = 8\n\
         [run.evaluation]\nquestions = 20\nkind = \"last_number\"\n",
        out = path("study"),
        sums = path("sums.jsonl"),
        large = source("large"),
        small = source("small"),
        model = path("base/model"),
    );
    let file = folder.path().join("study.toml");
    std::fs::write(&file, settings).unwrap();
    let config = StudyConfig::read(&file).unwrap();
    let stop = StopFlag::default();
    let study = quiet(&config, &stop).unwrap();
    let comparison = &study.comparisons[0];
    assert_eq!(comparison.ledger.sources[0].wrong, 8);
    let names: Vec<&str> = comparison.benchmarks.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["held-out", "sums"]);
    assert!(comparison.students.iter().all(|s| s.untuned_by_benchmark.len() == 2));
    let trained = study.students.iter().map(|s| s.trained_parameters < s.parameters);
    assert_eq!(trained.collect::<Vec<_>>(), [false, true]);
    let shared = |w: &String| w.contains("in sums are training problems");
    let held = |w: &String| w.contains("held-out set are training problems");
    // 7 + 3 is trained on, unless it is held out.
    assert!(study.warnings.iter().any(shared) || comparison.benchmarks[0].1 > 0);
    assert!(!study.warnings.iter().any(held), "{:?}", study.warnings);
    assert!(study.warnings.iter().any(|w| w.contains("one seed")));
    let markdown = std::fs::read_to_string(config.out.join("report.md")).unwrap();
    assert!(markdown.contains("Accuracy by benchmark") && !markdown.contains(" \\* "));
    // It is taken up as it is, and other settings of generation are not mixed in.
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, study.comparisons);
    let mut longer = config.clone();
    let generate = longer.run.get_mut("generate").unwrap().as_table_mut().unwrap();
    generate.insert("max_new_tokens".into(), 9.into());
    let error = quiet(&longer, &stop).unwrap_err().to_string();
    assert!(error.contains("max_new_tokens was 8, is 9"), "{error}");
}

/// The seconds left that each run was told with, and the notices after the last run.
#[derive(Default)]
struct Told {
    left: Vec<Option<f64>>,
    notices: Vec<String>,
    /// Those before the first run.
    before: Vec<String>,
}

impl Observer for Told {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Part { number: 1.., seconds_left, .. } => {
                if self.left.is_empty() {
                    self.before.clone_from(&self.notices);
                }
                self.left.push(*seconds_left);
                self.notices.clear();
            }
            Event::Notice(text) => self.notices.push((*text).to_owned()),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_study_tells_how_long_it_takes_and_its_warnings_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = config(folder.path(), |text| text.replace("[1, 2]", "[1]"));
    let tell = || {
        let mut told = Told::default();
        let stop = StopFlag::default();
        let made = study(&config, "the command", &Context::new(&mut told, &stop)).unwrap();
        (told, made)
    };
    let (told, made) = tell();
    // Three runs of each student: the time is known once the second one was trained.
    let known: Vec<bool> = told.left.iter().map(Option::is_some).collect();
    assert_eq!(known, [false, false, false, false, true, true]);
    assert!(told.left[4].unwrap() > told.left[5].unwrap() && told.left[5].unwrap() > 0.0);
    // The warnings are the last that is told.
    let warnings: Vec<String> = made.warnings.iter().map(|w| format!("warning: {w}")).collect();
    assert!(!warnings.is_empty() && told.notices.ends_with(&warnings), "{:?}", told.notices);
    // One run is made anew: how long that takes is known from the others, and nothing is left then.
    for part in ["cells", "results"] {
        std::fs::remove_dir_all(config.out.join(part).join("large/Long-0.50")).unwrap();
    }
    let (told, again) = tell();
    let known: Vec<bool> = told.left.iter().map(Option::is_some).collect();
    assert_eq!(known, [true, true, true, true, true, false]);
    assert_eq!(again.comparisons, made.comparisons);
}
