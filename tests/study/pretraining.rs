//! Students of a study that are pretrained on their own data.

use super::*;

/// A student that is pretrained on problems of one operation, and what is laid over its settings.
fn with_pretraining(text: String) -> String {
    text.replace("style_answers = 3", "").replace(
        "[[students]]\nname = \"large\"",
        "[students.pretraining]\nseed = 7\n\
         [students.pretraining.mixture.weights]\nlong = 0.0\nshort = 1.0\n\
         [students.pretraining.data]\ntoy_problems = 40\ntoy_test_problems = 10\n\
         [students.pretraining.data.toy]\noperations = [1, 1]\n\
         [students.pretraining.train]\nsteps = 12\nwarmup_steps = 1\n\
         [students.pretraining.evaluation]\nbefore = false\nquestions = 10\n\
         [[students]]\nname = \"large\"",
    )
}

#[test]
fn a_student_is_pretrained_once_and_every_cell_begins_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut config) = config(folder.path(), with_pretraining);
    config.pretrained_cache = Some(folder.path().join("cache"));
    let stop = StopFlag::default();
    let study = quiet(&config, &stop).unwrap();
    // It says how it was pretrained and what it can do.
    let [line] = study.pretrained.as_slice() else { panic!("{:?}", study.pretrained) };
    assert_eq!((line.student.as_str(), line.problems, line.updates), ("small", 40, 12));
    assert_eq!(line.asked, 10);
    assert!(line.data.contains("1 to 1 operations") && line.data.contains("100% short"));
    let markdown = std::fs::read_to_string(config.out.join("report.md")).unwrap();
    assert!(markdown.contains("## Pretraining") && markdown.contains("1 to 1 operations"));

    // Every cell of the student begins with that model, and the untuned one is read once.
    let pretraining = config.pretraining(0).unwrap().unwrap();
    assert!(config.pretraining(1).unwrap().is_none());
    let model = pretraining.out.join("model");
    assert!(pretraining.out.starts_with(folder.path().join("cache")) && model.is_dir());
    for cell in config.cells() {
        let base = config.run_config(&cell).unwrap().base_model;
        assert_eq!(base, (cell.student == 0).then(|| model.display().to_string()));
    }
    let untuned = |student: &str| {
        std::fs::read_dir(config.out.join("untuned").join(student).join("Long")).unwrap().count()
    };
    assert_eq!((untuned("small"), untuned("large")), (1, 2));
    // It is the same in each seed, and every arm is held against it.
    let read = &study.comparisons[0].students[0];
    assert_eq!(read.untuned_by_seed, [read.untuned.value; 2]);
    let gains = read.differences.iter().filter(|d| d.other == ArmKind::Untuned);
    let gains: Vec<_> = gains.map(|d| (d.arm, d.by_seed.clone(), d.p)).collect();
    assert_eq!(gains.len(), 3);
    for ((arm, by_seed, p), mixture) in gains.iter().zip(&read.mixtures) {
        assert_eq!(*arm, ArmKind::Share(mixture.alpha));
        let by_hand = mixture.by_seed.iter().map(|score| score - read.untuned.value);
        assert_eq!(*by_seed, by_hand.collect::<Vec<_>>());
        assert!(*p > 0.0 && *p <= 1.0);
    }
    // A first loss of a cell is that of a model that has learned something.
    let first = |student: &str| {
        let path = config.out.join(format!("cells/{student}/Long-0.00/seed-1/summary.json"));
        let summary: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        summary["evaluations"][0]["sources"][1]["loss"].as_f64().unwrap()
    };
    assert!(first("small") < first("large") - 0.1, "{} {}", first("small"), first("large"));

    // Neither the same study nor another one with the same settings trains it again.
    let summary = pretraining.out.join("summary.json");
    let written = || std::fs::metadata(&summary).unwrap().modified().unwrap();
    let before = written();
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, study.comparisons);
    let mut other = config.clone();
    other.out = folder.path().join("other");
    other.students.truncate(1);
    other.students[0].name = "same".into();
    let of_other = quiet(&other, &stop).unwrap();
    assert_eq!(
        of_other.comparisons[0].students[0].mixtures,
        study.comparisons[0].students[0].mixtures
    );
    assert_eq!(written(), before);

    // A student that was lost is trained anew to the same model, and that is told.
    std::fs::remove_dir_all(&pretraining.out).unwrap();
    let mut told = Told::default();
    let again = mixdistill::study::study(&config, "it", &Context::new(&mut told, &stop)).unwrap();
    assert_eq!(again.comparisons, study.comparisons);
    let anew = |notice: &String| notice.contains("is pretrained again");
    assert!(told.before.iter().any(anew), "{:?}", told.before);
    // Another model in its place is refused, whatever it was made from.
    let (weights, aside) = (model.join("model.safetensors"), folder.path().join("aside"));
    let mut bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&aside, &bytes).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let error = quiet(&config, &stop).unwrap_err().to_string();
    for part in ["`small` is not the one that the study's cells started from", "pretrained-models"]
    {
        assert!(error.contains(part), "{error}");
    }
    std::fs::copy(&aside, &weights).unwrap();
    assert_eq!(quiet(&config, &stop).unwrap().comparisons, study.comparisons);

    // Other settings of the pretraining are another student, which finished cells are not of.
    let train = config.students[0].pretraining.as_mut().unwrap()["train"].as_table_mut().unwrap();
    train.insert("steps".into(), 5.into());
    let error = quiet(&config, &stop).unwrap_err().to_string();
    assert!(error.contains("base_model was"), "{error}");
}

#[test]
fn pretraining_on_the_problems_of_the_test_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // Of so small numbers there are few problems, and both draw from all of them.
    let few = |text: String| {
        with_pretraining(text.replace("[1, 2]", "[1]"))
            .replace(
                "[run.train]",
                "[run.data.toy]\noperations = [1, 1]\nstart = 4\noperand = 4\n[run.train]",
            )
            .replace("toy_problems = 40", "toy_problems = 400")
    };
    let (_, config) = config(folder.path(), few);
    let study = quiet(&config, &StopFlag::default()).unwrap();
    let told = |w: &String| {
        w.contains("problems in the held-out set are training problems, word for word")
    };
    assert!(study.warnings.iter().any(told), "{:?}", study.warnings);
    let report = std::fs::read_to_string(config.out.join("report.md")).unwrap();
    assert!(report.contains("Tested on problems that include some training problems"));
    assert!(!report.contains("that no student was trained on"));
    // Without a cache it is in the study's directory.
    let out = config.pretraining(0).unwrap().unwrap().out;
    assert!(out.starts_with(config.out.join("pretrained/small")) && out.join("model").is_dir());
}

#[test]
fn a_base_model_that_is_written_again_is_another_pretraining() {
    let folder = tempfile::tempdir().unwrap();
    let base = |seed: u64| {
        let mut base = common::toy_run(&folder.path().join("base"));
        base.train.steps = Some(1);
        base.evaluation.questions = 0;
        base.seed = seed;
        let _ = std::fs::remove_dir_all(&base.out);
        mixdistill::recipe::run(&base, mixdistill::recipe::RunMode::New, &Context::default())
            .unwrap();
    };
    base(1);
    let model = toml_string(&folder.path().join("base/model"));
    let with_base = |text: String| {
        with_pretraining(text).replace("seed = 7", &format!("seed = 7\nbase_model = {model}"))
    };
    let (_, config) = config(folder.path(), with_base);
    let out = || config.pretraining(0).unwrap().unwrap().out;
    let first = out();
    assert_eq!(out(), first);
    base(2);
    assert_ne!(out(), first);
}

#[test]
fn pretraining_that_cannot_be_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("study.toml");
    let text = with_pretraining(SETTINGS.to_owned());
    for (from, to, what) in [
        ("seed = 7", "sede = 7", "sede"),
        ("seed = 7", "out = \"x\"", "pretraining.out"),
        ("seed = 7", "seed = 7\nlora = { rank = 2 }", "pretraining.lora"),
        ("steps = 12", "steps = 0", "students.small.pretraining.train.steps"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = StudyConfig::read(&path).unwrap_err().to_string();
        assert!(error.contains(what), "{to}: {error}");
    }
}
