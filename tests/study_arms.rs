//! Promise: a study compares choices by score with their controls on the same problems, and its report gives the
//! confidence of each difference.

mod common;

use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::data::ChoiceBy;
use mixdistill::recipe::Summary;
use mixdistill::study::{ArmKind, Study, StudyConfig, study};
use mixdistill::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const SETTINGS: &str = r#"
seeds = [1, 2]
resamples = 400
style_answers = 2

[[comparisons]]
name = "Long"
strong = "long"
weak = "short"
alphas = [0.2]
[[comparisons.choices]]
by = "shortest"
ceiling = { short = 0.7 }
inverse = true

[[students]]
name = "small"
[students.run.model]
hidden_size = 16
intermediate_size = 24

[run.model]
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[run.data]
toy_problems = 61
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

fn toml_string(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn read(folder: &Path, settings: &str) -> Result<StudyConfig> {
    let path = folder.join("study.toml");
    std::fs::write(&path, settings).unwrap();
    StudyConfig::read(&path)
}

fn config(folder: &Path) -> StudyConfig {
    read(folder, &format!("out = {}\n{SETTINGS}", toml_string(&folder.join("out")))).unwrap()
}

fn quiet(config: &StudyConfig) -> Result<Study> {
    study(config, "the command", &Context::default())
}

fn summary_path(config: &StudyConfig, arm: &str, seed: u64) -> PathBuf {
    config.out.join(format!("cells/small/{arm}/seed-{seed}/summary.json"))
}

fn summary(config: &StudyConfig, arm: &str, seed: u64) -> Summary {
    let text = std::fs::read_to_string(summary_path(config, arm, seed)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Rows of the long and of the short answers.
fn rows(config: &StudyConfig, arm: &str, seed: u64) -> [usize; 2] {
    let sources = summary(config, arm, seed).mixture.sources;
    ["long", "short"].map(|name| sources.iter().find(|s| s.name == name).unwrap().rows)
}

/// Asks for a stop where a run with this number begins.
struct StopAt<'a>(usize, &'a StopFlag);

impl Observer for StopAt<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Part { number, .. } = event
            && *number == self.0
        {
            self.1.request();
        }
        Ok(())
    }
}

#[test]
fn a_control_has_the_shares_of_its_choice_and_a_stopped_study_goes_on_to_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let made = quiet(&config).unwrap();
    for seed in [1, 2] {
        // Of 61 rows 70% at most are short, which the score would take without the ceiling.
        let chosen = rows(&config, "Long-by-shortest", seed);
        assert_eq!(chosen, [19, 42]);
        assert_eq!(rows(&config, "Long-by-shortest-control", seed), chosen);
        assert_eq!(rows(&config, "Long-by-shortest-inverse", seed), [61, 0]);
        assert_eq!(rows(&config, "Long-0.20", seed), [12, 49]);
    }
    // The control is drawn by chance: it saw other tokens.
    let tokens = |arm: &str, seed: u64| summary(&config, arm, seed).trained_tokens;
    assert!(tokens("Long-by-shortest", 1) < tokens("Long-by-shortest-control", 1));
    assert_ne!(tokens("Long-by-shortest-control", 1), tokens("Long-by-shortest-control", 2));
    let result = &made.comparisons[0].students[0];
    let [choice] = &result.choices[..] else { panic!("one choice") };
    let control = choice.control.as_ref().unwrap();
    assert_eq!((choice.choice.title.as_str(), choice.choice.alpha), ("by shortest", 19.0 / 61.0));
    assert_eq!(control.shares[0].rows, choice.choice.shares[0].rows);
    assert_eq!(result.arms().count(), 6);
    // The decisive difference is the first, and each is the difference of two scores.
    let names: Vec<&str> = result.differences.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "by shortest − random at the share of shortest",
            "by shortest − short alone",
            "by shortest − long alone",
            "by shortest − 20% long",
            "by shortest − by shortest, inverse",
            "long alone − short alone",
            "20% long − short alone",
            "20% long − long alone",
            "short alone − untuned",
            "20% long − untuned",
            "long alone − untuned",
            "by shortest − untuned",
            "random at the share of shortest − untuned",
            "by shortest, inverse − untuned",
        ]
    );
    let decisive = &result.differences[0];
    assert_eq!((decisive.arm, decisive.other), (ArmKind::Choice(0), ArmKind::Control(0)));
    let by_hand = choice.choice.score.value - control.score.value;
    assert!((decisive.estimate.value - by_hand).abs() < 1e-12);
    assert!(result.differences.iter().all(|d| d.p > 0.0 && d.p_holm >= d.p && d.p_holm <= 1.0));
    // The untuned student is an arm: one for each seed, where it begins with random weights.
    let gained = result.differences.iter().find(|d| d.name == "by shortest − untuned").unwrap();
    assert_eq!((gained.arm, gained.other), (ArmKind::Choice(0), ArmKind::Untuned));
    assert!(
        (gained.estimate.value - (choice.choice.score.value - result.untuned.value)).abs() < 1e-12
    );
    assert_eq!((result.untuned_by_seed.len(), gained.by_seed.len()), (2, 2));
    // Style is that of each source alone and of the choice.
    let styles: Vec<&str> = made.style.iter().map(|shift| shift.source.as_str()).collect();
    assert_eq!(styles, ["long", "short", "by shortest"]);
    let report = std::fs::read_to_string(config.out.join("report.md")).unwrap();
    for part in ["random at the share of shortest", "p (Holm)", "all 14 tests", "31.1"] {
        assert!(report.contains(part), "{part}");
    }

    // Two seeds have no star, and the report says what they are worth.
    assert!(!report.contains("A star marks") && report.contains("no difference has a star"));
    assert!(report.contains("5% / 14") && report.contains("mixes two effects"));
    // The inverse has one source only; whole epochs have the shares of the choice.
    let of_inverse = "by shortest, inverse selects only long answers";
    assert!(made.warnings.iter().any(|w| w.contains(of_inverse)), "{:?}", made.warnings);
    assert!(!made.warnings.iter().any(|w| w.contains("whole number of epochs")));

    // The scores by source, as numbers and as a picture.
    let scores = choice.report.as_ref().expect("a report of the choice");
    assert_eq!((scores.by, scores.sources.len()), (ChoiceBy::Shortest, 2));
    assert!(report.contains("chosen by trained tokens") && report.contains("figures/scores-long-"));
    let pictures = std::fs::read_dir(config.out.join("figures")).unwrap();
    let names = pictures.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(
        names.into_iter().any(|name| name.starts_with("scores-long-") && name.ends_with(".svg"))
    );

    // Stopped before a control, which is taken up with the shares of a choice that is done.
    let mut stopped = config.clone();
    stopped.out = folder.path().join("stopped");
    let stop = StopFlag::default();
    let first = study(&stopped, "the command", &Context::new(StopAt(5, &stop), &stop));
    assert!(matches!(first.unwrap_err(), Error::Stopped { .. }));
    assert!(summary_path(&stopped, "Long-by-shortest", 1).is_file());
    assert!(!summary_path(&stopped, "Long-by-shortest-control", 1).exists());
    let second = quiet(&stopped).unwrap();
    assert_eq!(second.comparisons[0].students, made.comparisons[0].students);
    assert_eq!(rows(&stopped, "Long-by-shortest-control", 1), [19, 42]);
}

#[test]
fn a_study_of_shares_takes_choices_up_later_and_its_file_can_still_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.seeds = vec![1];
    let mut shares = config.clone();
    shares.comparisons[0].choices.clear();
    let before = quiet(&shares).unwrap();
    let written =
        |path: PathBuf| -> SystemTime { std::fs::metadata(path).unwrap().modified().unwrap() };
    let cell = || written(summary_path(&config, "Long-0.20", 1));
    let first = cell();
    // The settings of a cell are those of earlier versions.
    let path = config.out.join("cells/small/Long-0.20/seed-1/config.toml");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.lines().any(|line| line.starts_with("choice") || line.starts_with("answers")));
    let after = quiet(&config).unwrap();
    assert_eq!(cell(), first, "what is there is not trained anew");
    let mixtures = |study: &Study| study.comparisons[0].students[0].mixtures.clone();
    assert_eq!(mixtures(&after), mixtures(&before));
    // A file that an earlier version wrote has less in it.
    let mut old = serde_json::to_value(&before).unwrap();
    fn without(value: &mut serde_json::Value) {
        const NEW: [&str; 6] =
            ["title", "shares", "choices", "differences", "left_out", "untuned_by_seed"];
        match value {
            serde_json::Value::Object(map) => {
                let is_study = map.contains_key("command");
                map.retain(|key, _| (is_study && key == "title") || !NEW.contains(&key.as_str()));
                map.values_mut().for_each(without);
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(without),
            _ => {}
        }
    }
    without(&mut old);
    let old: Study = serde_json::from_value(old).unwrap();
    assert_eq!(old.comparisons[0].students[0].gap, before.comparisons[0].students[0].gap);
    assert!(old.comparisons[0].students[0].differences.is_empty());
}

#[test]
fn choices_that_cannot_be_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[[comparisons.choices]]\nby = \"shortest\"\n\n[[students]]\nname = \"small\"";
    for (from, to, what) in [
        ("by = \"shortest\"", "by = \"chance\"", "comparisons.choices.by"),
        ("by = \"shortest\"", "by = \"best\"", "\"best\""),
        ("by = \"shortest\"", "by = \"column\"", "comparisons.choices.prefer"),
        ("short = 0.7", "short = 1.7", "comparisons.choices.ceiling"),
        ("inverse = true", "within_share = 0.2", "comparisons.choices.ceiling"),
        ("ceiling = { short = 0.7 }", "within_share = 0.123", "hundredths"),
        ("ceiling = { short = 0.7 }", "name = \"a/b\"", "cannot be a folder name"),
        ("ceiling = { short = 0.7 }", "control = true\nfloors = { short = 0.7 }", "floors"),
        ("[[students]]\nname = \"small\"", more, "two arms would use the folder"),
        ("[run.model]", "[run.mixture]\nredraw = true\n[run.model]", "mixture.choice.by"),
        ("[run.model]", "[run.mixture.choice]\nby = \"rsr\"\n[run.model]", "the study sets it"),
    ] {
        assert!(SETTINGS.contains(from), "{from}");
        let error = read(folder.path(), &SETTINGS.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(what), "{to}: {error}");
    }
    // What only the data can tell shows before any training, whether the student decides or not.
    for by in ["shortest", "rsr"] {
        let settings = SETTINGS.replace("shortest", by).replace("short = 0.7", "brief = 0.7");
        let settings = format!("out = {}\n{settings}", toml_string(&folder.path().join(by)));
        let error = quiet(&read(folder.path(), &settings).unwrap()).unwrap_err().to_string();
        assert!(error.contains("comparisons.choices.ceiling"), "{error}");
        assert!(!folder.path().join(by).join("untuned").exists());
    }
}

#[test]
fn scores_are_made_once_for_each_student_and_for_each_seed_of_random_weights() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let [choice] = &mut config.comparisons[0].choices[..] else { panic!("one choice") };
    choice.by = mixdistill::data::ChoiceBy::Rsr;
    config.comparisons[0].alphas.clear();
    config.style_answers = 0;
    let mut told = Told::default();
    study(&config, "it", &Context::new(&mut told, &StopFlag::default())).unwrap();
    assert!(told.tasks.contains(Task::Score.name()), "{:?}", told.tasks);
    let scores = |seed: u64| config.out.join(format!("scores/small/Long-seed-{seed}.jsonl"));
    let texts = [1, 2].map(|seed| std::fs::read_to_string(scores(seed)).unwrap());
    assert!(texts.iter().all(|text| text.lines().count() == 2 * 61) && texts[0] != texts[1]);
    for seed in [1, 2] {
        let chosen = rows(&config, "Long-by-rsr", seed);
        assert_eq!(rows(&config, "Long-by-rsr-control", seed), chosen);
    }
    // Moved, the study is taken up with the scores that it has, and nothing is made anew.
    let moved = folder.path().join("moved");
    std::fs::rename(&config.out, &moved).unwrap();
    config.out = moved;
    let mut told = Told::default();
    study(&config, "it", &Context::new(&mut told, &StopFlag::default())).unwrap();
    assert!(!told.tasks.contains(Task::Answer.name()), "{:?}", told.tasks);
    let kept = config.out.join("scores/small/Long-seed-1.jsonl");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), texts[0]);
}

/// Three sources that answer the same problems, and a benchmark of which some problems are among them.
fn files(folder: &Path) -> String {
    let mut text = String::new();
    let mut bench = String::new();
    for n in 0..40 {
        let sum = n + 3;
        let row = serde_json::json!({
            "problem": format!("What is {n} + 3?"),
            "gold": sum,
            "large": format!("{n} + 3 = {sum}, since 3 comes after {n}. The answer is {sum}."),
            "middle": format!("{n} + 3 = {sum}. The answer is {sum}."),
            "small": format!("The answer is {sum}."),
        });
        text.push_str(&format!("{row}\n"));
        for problem in [format!("what is  {n} + 3?"), format!("What is {n} + 50?")] {
            let row = serde_json::json!({ "id": problem, "question": problem, "answer": sum });
            bench.push_str(&format!("{row}\n"));
        }
    }
    std::fs::write(folder.join("answers.jsonl"), text).unwrap();
    std::fs::write(folder.join("sums.jsonl"), bench).unwrap();
    let source = |name: &str| {
        format!(
            "[[comparisons.run.data.sources]]\nname = \"{name}\"\npath = {}\n\
             columns = {{ problem = \"problem\", solution = \"{name}\", answer = \"gold\" }}\n",
            toml_string(&folder.join("answers.jsonl"))
        )
    };
    // A student to begin with.
    let mut base = common::toy_run(&folder.join("base"));
    base.train.steps = Some(2);
    base.evaluation.questions = 0;
    mixdistill::recipe::run(&base, mixdistill::recipe::RunMode::New, &Context::default()).unwrap();
    format!(
        "out = {out}\nseeds = [1]\nresamples = 100\nbenchmarks = [{sums}]\nbenchmark_problems = 5\n\
         leave_out_trained = true\n\
         [[comparisons]]\nname = \"Large\"\nstrong = \"large\"\nweak = \"small\"\nalphas = []\n\
         [[comparisons.choices]]\nby = \"shortest\"\nceiling = {{ small = 0.5 }}\n\
         [[comparisons.choices]]\nby = \"nll\"\nwithin_share = 0.25\ncontrol = false\n{}{}{}\
         [[students]]\nname = \"small\"\n[students.run]\nbase_model = {model}\n\
         [run.data]\nmax_length = 96\nhold_out = 0.3\n\
         [run.train]\nsteps = 2\nevaluate_every = 0\n\
         [run.generate]\nmax_new_tokens = 4\n\
         [run.evaluation]\nquestions = 6\nkind = \"last_number\"\n",
        source("large"),
        source("middle"),
        source("small"),
        out = toml_string(&folder.join("study")),
        sums = toml_string(&folder.join("sums.jsonl")),
        model = toml_string(&folder.join("base/model")),
    )
}

/// Work that was told of, and what was said.
#[derive(Default)]
struct Told {
    tasks: BTreeSet<&'static str>,
    notices: Vec<String>,
}

impl Observer for Told {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Task { task, progress } if progress.done > 0 => {
                self.tasks.insert(task.name());
            }
            Event::Notice(text) => self.notices.push((*text).to_owned()),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn problems_that_are_trained_on_are_left_out_of_a_benchmark_for_all_arms() {
    let folder = tempfile::tempdir().unwrap();
    let config = read(folder.path(), &files(folder.path())).unwrap();
    let mut told = Told::default();
    let made = study(&config, "it", &Context::new(&mut told, &StopFlag::default())).unwrap();
    let comparison = &made.comparisons[0];
    // Each problem that is trained on is in the benchmark once.
    let trained = comparison.ledger.training;
    assert!((20..40).contains(&trained), "{trained}");
    assert_eq!(comparison.left_out, [("sums".to_owned(), trained)]);
    let counted = format!("{trained} of sums");
    assert!(
        told.notices.iter().any(|notice| notice.contains("are training problems and are left out"))
    );
    let report = std::fs::read_to_string(config.out.join("report.md")).unwrap();
    assert!(report.contains(&counted), "{report}");
    assert!(!made.warnings.iter().any(|w| w.contains("in sums are training problems")));
    assert!(report.contains("Tested on problems that no student was trained on"));
    // Two steps are no whole epoch: the control has seen other shares, by as much as is told.
    let seen = |arm: &str| {
        let seen = summary(&config, arm, 1).seen;
        let rows: u64 = seen.iter().map(|source| source.rows).sum();
        seen.iter().map(|source| source.rows as f64 / rows as f64).collect::<Vec<_>>()
    };
    let [chosen, random] = ["Large-by-shortest", "Large-by-shortest-control"].map(seen);
    let apart = chosen.iter().zip(&random).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let of_control = format!("up to {:.2} points from those of their choice", 100.0 * apart);
    assert!(
        apart > 0.0 && made.warnings.iter().any(|w| w.contains(&of_control)),
        "{:?}",
        made.warnings
    );
    assert!(made.warnings.iter().any(|w| w.contains("held-out has 6, sums has 5")));
    for task in [Task::FindOverlaps, Task::Score, Task::Resample] {
        assert!(told.tasks.contains(task.name()), "{:?}", told.tasks);
    }
    // All arms and the untuned student are asked the same first five of the others.
    let asked = |path: &str| -> Vec<String> {
        let text = std::fs::read_to_string(config.out.join(path).join("bench-sums.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut ids: Vec<String> =
            lines.map(|row: serde_json::Value| row["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let untuned = asked("untuned/small/Large/seed-1");
    assert_eq!(untuned.len(), 5);
    assert!(untuned.iter().filter(|id| id.contains("+ 50?")).count() >= 3, "{untuned:?}");
    for arm in ["Large-0.00", "Large-1.00", "Large-by-shortest", "Large-by-shortest-control"] {
        assert_eq!(asked(&format!("cells/small/{arm}/seed-1")), untuned, "{arm}");
    }
    // The choice is among three sources, and so is its control; a share is of two.
    let rows = |arm: &str| -> Vec<(String, usize)> {
        let sources = summary(&config, arm, 1).mixture.sources;
        sources.into_iter().map(|source| (source.name, source.rows)).collect()
    };
    let half = trained / 2;
    let chosen = rows("Large-by-shortest");
    assert_eq!(chosen.iter().map(|(_, rows)| *rows).collect::<Vec<_>>(), [0, trained - half, half]);
    assert_eq!(rows("Large-by-shortest-control"), chosen);
    assert_eq!(rows("Large-0.00")[1], ("middle".to_owned(), 0));
    // Scores decide which problems get the large answers, and the share is the one asked for.
    let within = rows("Large-by-nll");
    assert_eq!(within[0].1, (0.25 * trained as f64).round() as usize);
    assert_eq!(within[1].1, 0);
    let scores = std::fs::read_to_string(config.out.join("scores/small/Large.jsonl")).unwrap();
    assert_eq!(scores.lines().count(), 3 * trained);
    assert!(report.contains("middle") && report.contains("answers (% of rows)"));

    // Where it is all of a benchmark, nothing can be asked.
    let only: String = std::fs::read_to_string(folder.path().join("sums.jsonl"))
        .unwrap()
        .lines()
        .filter(|line| !line.contains("+ 50?"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(folder.path().join("sums.jsonl"), only).unwrap();
    let mut all = config.clone();
    all.out = folder.path().join("all");
    all.run.get_mut("data").unwrap().as_table_mut().unwrap().remove("hold_out");
    let hold = toml::Value::Float(0.0);
    all.run.get_mut("data").unwrap().as_table_mut().unwrap().insert("hold_out".into(), hold);
    let error = quiet(&all).unwrap_err().to_string();
    assert!(error.contains("leave_out_trained") && error.contains("sums"), "{error}");
}

#[test]
fn problems_that_a_student_was_pretrained_on_are_left_out_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = files(folder.path());
    let mut rows = String::new();
    for n in 0..3 {
        let problem = format!("What is {n} + 50?");
        let row =
            serde_json::json!({ "problem": problem, "solution": format!("It is {}.", n + 50) });
        rows.push_str(&format!("{row}\n"));
    }
    let before = folder.path().join("before.jsonl");
    std::fs::write(&before, rows).unwrap();
    text = text.replace(
        "[run.data]\n",
        &format!(
            "[[students.pretraining.data.sources]]\nname = \"before\"\npath = {}\n\
             [students.pretraining.data]\nhold_out = 0.0\n\
             [students.pretraining.mixture.weights]\nbefore = 1.0\n\
             [students.pretraining.evaluation]\nquestions = 0\n\
             [run.data]\n",
            toml_string(&before)
        ),
    );
    let mut config = read(folder.path(), &text).unwrap();
    config.comparisons[0].choices.clear();
    let made = quiet(&config).unwrap();
    let comparison = &made.comparisons[0];
    let left_out = comparison.ledger.training + 3;
    assert_eq!(comparison.left_out, [("sums".to_owned(), left_out)]);
    assert!(!made.warnings.iter().any(|w| w.contains("in sums are training problems")));
    let asked = std::fs::read_to_string(
        config.out.join("cells/small/Large-0.00/seed-1").join("bench-sums.jsonl"),
    );
    assert!(!asked.unwrap().contains("What is 1 + 50?"));
}
