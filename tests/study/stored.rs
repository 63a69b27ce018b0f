//! Promise: the stored results of finished cells are enough to resume and to report, hold no
//! problem and no answer, and are never mistaken for cells of other settings, data, or problems.

use super::{Told, common, config, files, quiet, toml_string};
use mixdistill::Part;
use mixdistill::context::{Context, StopFlag};
use mixdistill::recipe::{RunMode, run};
use mixdistill::study::{Cell, StudyConfig, join, study, study_part};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A study of one seed with a benchmark file.
fn with_benchmark(folder: &Path) -> StudyConfig {
    files(folder);
    let sums = toml_string(&folder.join("sums.jsonl"));
    let change = |text: String| {
        text.replace("seeds = [1, 2]", &format!("seeds = [1]\nbenchmarks = [{sums}]"))
    };
    config(folder, change).1
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

fn without_folders(config: &StudyConfig) {
    for name in ["cells", "untuned", "scores"] {
        let folder = config.out.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}

fn result_file(config: &StudyConfig, number: usize) -> PathBuf {
    let cell: &Cell = &config.cells()[number];
    config.result_file(cell)
}

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_study_goes_on_from_its_stored_results_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = with_benchmark(folder.path());
    let stop = StopFlag::default();
    let whole = quiet(&config, &stop).unwrap();
    let results = below(&config.out.join("results"));
    // Three arms and the untuned student, of two students.
    assert_eq!(results.len(), 2 * 4);
    for path in &results {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains("What is") && !text.contains("starts with"), "{text}");
        let stored: Value = serde_json::from_str(&text).unwrap();
        let answers = stored["answers"].as_array().unwrap();
        let hits = |number: usize| answers[number]["hits"].as_array().unwrap().len();
        assert_eq!((hits(0), hits(1)), (12, 2), "{text}");
    }

    // The cells are gone, and so is one of the results: that cell alone is trained, and the time that it
    // takes is known from the others.
    without_folders(&config);
    std::fs::remove_file(result_file(&config, 1)).unwrap();
    let mut told = Told::default();
    let again = study(&config, "the command", &Context::new(&mut told, &stop)).unwrap();
    assert_eq!(again.comparisons, whole.comparisons);
    assert!(told.left[1].is_some(), "{:?}", told.left);
    assert!(config.cell_folder(&config.cells()[1]).is_dir());
    assert!(!config.cell_folder(&config.cells()[0]).exists());
    let warned = |text: &str| again.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("7 cells are read from results/"), "{:?}", again.warnings);
    // Tokens of what is not here have no ranks.
    assert!(whole.style.len() == 4 && again.style.is_empty());
    // Nothing is trained the third time, and the results are as they were.
    let before = results.iter().map(|path| std::fs::read_to_string(path).unwrap());
    let before: Vec<String> = before.collect();
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, whole.comparisons);
    let after = results.iter().map(|path| std::fs::read_to_string(path).unwrap());
    assert_eq!(after.collect::<Vec<_>>(), before);
}

#[test]
fn stored_results_of_something_else_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = with_benchmark(folder.path());
    let stop = StopFlag::default();
    quiet(&config, &stop).unwrap();
    without_folders(&config);
    let refused = |config: &StudyConfig, expected: &str| {
        let error = quiet(config, &stop).unwrap_err().to_string();
        let is_named = error.contains("results") && error.contains("remove this file");
        assert!(error.contains(expected) && is_named, "{error}");
        assert!(!config.out.join("cells").exists(), "nothing is trained");
    };
    let set = |table: &str, key: &str, value: toml::Value| {
        let mut other = config.clone();
        other.run[table].as_table_mut().unwrap().insert(key.into(), value);
        other
    };
    refused(&set("train", "learning_rate", 0.5.into()), "train.learning_rate was");
    refused(&set("generate", "max_new_tokens", 9.into()), "max_new_tokens was 8, is 9");
    // Other data with the same settings, and other problems of the benchmark.
    let sums = folder.path().join("sums.jsonl");
    let text = std::fs::read_to_string(&sums).unwrap();
    std::fs::write(&sums, text.replace("93", "94")).unwrap();
    refused(&config, "sums.problems was");
    // The same problems with a system's text.
    let with_system = text.replace('{', "{\"system\": \"Be short.\", ");
    std::fs::write(&sums, with_system).unwrap();
    refused(&config, "sums.problems was");
    std::fs::write(&sums, text).unwrap();
    for (change, expected) in [
        (
            (|stored| stored["summary"]["data"] = "0".into()) as fn(&mut Value),
            "the data have changed",
        ),
        (|stored| stored["summary"] = Value::Null, "another kind of cell"),
        (|stored| *stored = Value::Bool(true), "not a finished cell"),
        (
            |stored| stored["answers"] = Value::Array(vec![]),
            "answers are not to the current test problems",
        ),
    ] {
        let path = result_file(&config, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        edit(&path, change);
        refused(&config, expected);
        std::fs::write(&path, text).unwrap();
    }
    quiet(&config, &stop).unwrap();
}

#[test]
fn stored_results_of_early_versions_are_taken_and_those_of_another_one_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = with_benchmark(folder.path());
    let stop = StopFlag::default();
    let whole = quiet(&config, &stop).unwrap();
    without_folders(&config);
    let files: Vec<PathBuf> = below(&config.out.join("results"));
    let remove = |path: &PathBuf, key: &str| {
        edit(path, |stored| drop(stored.as_object_mut().unwrap().remove(key)));
    };
    let versions = |study: &mixdistill::study::Study| {
        let told = |w: &&String| w.contains("versions of mixdistill differ");
        study.warnings.iter().find(told).cloned()
    };
    assert_eq!(versions(&whole), None);
    files.iter().for_each(|path| remove(path, "version"));
    let early = quiet(&config, &stop).unwrap();
    assert_eq!(versions(&early), None);
    assert_eq!(early.comparisons, whole.comparisons);
    edit(&files[0], |stored| stored["version"] = "7.0.0".into());
    let told = versions(&quiet(&config, &stop).unwrap()).unwrap();
    assert!(told.contains("7.0.0 (1), unknown (7)"), "{told}");
}

#[test]
fn results_of_other_weights_under_the_same_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = |seed: u64| {
        let mut base = common::toy_run(&folder.path().join("base"));
        (base.train.steps, base.seed, base.evaluation.questions) = (Some(1), seed, 0);
        let _ = std::fs::remove_dir_all(&base.out);
        run(&base, RunMode::New, &Context::default()).unwrap();
    };
    base(1);
    let model = folder.path().join("base/model");
    let (_, config) = config(folder.path(), |text| {
        let one = text.replace("seeds = [1, 2]", "seeds = [1]").replace("style_answers = 3", "");
        let one = one.split("kind = \"tiny\"").next().unwrap().to_owned();
        let head = format!("[run]\nbase_model = {}\n[run.data]\n", toml_string(&model));
        one + &head
            + "toy_problems = 60\ntoy_test_problems = 12\n[run.train]\nsteps = 3\n\
               evaluate_every = 0\n[run.generate]\nmax_new_tokens = 8\n\
               [run.evaluation]\nquestions = 12\nloss_problems = 4\n"
    });
    let stop = StopFlag::default();
    let parts = [1, 2].map(|number| {
        let out = folder.path().join(format!("part{number}"));
        let part = StudyConfig { out: out.clone(), ..config.clone() };
        study_part(&part, Part::new(number, 2).unwrap(), &Context::default()).unwrap();
        out
    });
    let joined = |name: &str| {
        let config = StudyConfig { out: folder.path().join(name), ..config.clone() };
        join(&config, &parts, "the command", &Context::default())
    };
    let whole = joined("joined").unwrap();
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, whole.comparisons);
    without_folders(&config);
    let weights = model.join("model.safetensors");
    let first = std::fs::read(&weights).unwrap();
    base(2);
    let refused = |error: mixdistill::Error, more: &str| {
        let told = error.to_string();
        assert!(told.contains("other weights of the base model") && told.contains(more), "{told}");
    };
    refused(quiet(&config, &stop).unwrap_err(), "results");
    refused(joined("other").unwrap_err(), "part1");
    // Those of early versions say nothing of it.
    for path in below(&config.out.join("results")) {
        edit(&path, |stored| drop(stored.as_object_mut().unwrap().remove("base_weights")));
    }
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, whole.comparisons);
    // Where the weights are not here, the parts are held against each other.
    std::fs::remove_file(&weights).unwrap();
    joined("without").unwrap();
    let second = below(&parts[1].join("results"));
    let second = second.iter().find(|path| path.is_file()).unwrap();
    edit(second, |stored| stored["base_weights"] = "0".into());
    refused(joined("apart").unwrap_err(), "than ");
    std::fs::write(&weights, first).unwrap();
}
