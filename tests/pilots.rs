//! Promise: `mixture.share = "auto"` finds a share with pilots within its budget, reports its confidence, can
//! be resumed, and fails with a clear error if it is not possible.

mod common;

use common::{command, toy_run};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{
    ChoiceBy, ChoiceConfig, MixDistillation, MixtureConfig, MixtureOptions, Pairs, Schedule, Share,
    Source,
};
use mixdistill::recipe::{
    Plan, Prepared, Preview, RunConfig, RunMode, ShareProposal, SourceConfig, TeacherLogitsOptions,
    compare, propose_share, run, write_teacher_logits,
};
use std::path::Path;
use std::sync::Arc;

/// A toy run of 48 steps with `mixture.share = "auto"` and pilots of three shares.
fn auto(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.mixture.share = Share::Auto;
    config.train.steps = Some(48);
    config.train.checkpoint_every = 4;
    config.train.evaluate_every = 0;
    config.evaluation.questions = 4;
    config.generate.max_new_tokens = 8;
    config.pilots.shares = vec![0.0, 1.0];
    config.pilots.questions = 10;
    config
}

/// The stored proposal.
fn stored(out: &Path) -> ShareProposal {
    serde_json::from_str(&std::fs::read_to_string(out.join("pilots.json")).unwrap()).unwrap()
}

#[test]
fn a_run_finds_its_share_and_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = auto(&out);
    let summary = run(&config, RunMode::New, &Context::default()).unwrap();
    let proposal = summary.pilots.clone().unwrap();

    // Students of this size answer nothing correctly, so the pilots cannot tell shares apart.
    assert!(proposal.pilots().all(|pilot| pilot.right == 0), "{proposal}");
    assert_eq!((proposal.share, proposal.is_clear()), (0.2, false));
    assert_eq!(summary.mixture.sources[0].requested, 0.2);
    assert_eq!(summary.config.mixture, MixtureConfig::long_short(0.2));
    assert_eq!(proposal.mixture(&config.mixture), summary.config.mixture);
    assert!(proposal.line().contains("0.2"), "{}", proposal.line());

    // 3 shares, then 2, including the fallback. The dropped share says why.
    let rounds: Vec<Vec<f64>> =
        proposal.rounds.iter().map(|r| r.pilots.iter().map(|p| p.share).collect()).collect();
    assert_eq!(rounds[0], [0.0, 0.2, 1.0]);
    assert!(rounds.len() == 2 && rounds[1].len() == 2 && rounds[1].contains(&0.2), "{rounds:?}");
    let given_up: Vec<_> = proposal.pilots().filter(|pilot| pilot.given_up.is_some()).collect();
    assert!(given_up.len() == 1 && !rounds[1].contains(&given_up[0].share));
    assert!(given_up[0].given_up.as_ref().unwrap().contains("round 1: place 3 of 3"));

    // Each pilot has its own directory and a schedule scaled to its length.
    assert_eq!((proposal.problems, proposal.questions), (50, 10));
    for (number, round) in proposal.rounds.iter().enumerate() {
        for pilot in &round.pilots {
            let name = format!("pilots/round-{}/share-{}", number + 1, pilot.share);
            let path = out.join(name).join("summary.json");
            let of_pilot: mixdistill::recipe::Summary =
                serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            assert_eq!(of_pilot.outcome.step, round.steps);
            assert_eq!(of_pilot.trained_tokens, pilot.trained_tokens);
            assert!(of_pilot.config.train.warmup_steps <= round.steps);
            assert_eq!(of_pilot.config.seed, config.seed);
            assert_eq!(pilot.losses.len(), 2);
            let mean = (pilot.losses[0].1 + pilot.losses[1].1) / 2.0;
            assert!((pilot.loss - mean).abs() < 1e-12);
        }
    }
    // The budget is one training run, averaged over the shares.
    let whole = |share: f64| -> u64 {
        let mut of_share = config.clone();
        of_share.mixture = MixtureConfig::long_short(share);
        let prepared = Prepared::new(&of_share, &Context::default()).unwrap();
        prepared.seen(48 * 8).iter().map(|source| source.trained_tokens).sum()
    };
    assert_eq!(proposal.training, (whole(0.0) + whole(0.2) + whole(1.0)) / 3);
    assert_eq!(proposal.budget, proposal.training);
    assert!(proposal.trained_tokens() <= proposal.budget && proposal.trained_tokens() > 0);
    // Pilots are not graded on the run's held-out problems.
    let answers = |path: &str| -> Vec<String> {
        let text = std::fs::read_to_string(out.join(path)).unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|answer| answer["problem"].as_str().unwrap().to_owned()).collect()
    };
    let graded_on = answers("pilots/round-1/share-0.2/after.jsonl");
    assert_eq!(graded_on.len(), 10);
    assert!(answers("after.jsonl").iter().all(|problem| !graded_on.contains(problem)));

    // The proposal is in `pilots.json` and in the model card, and the stored settings have the found share.
    let mut written = stored(&out);
    written.rounds.iter_mut().flat_map(|r| &mut r.pilots).for_each(|p| p.hits = vec![]);
    assert_eq!((written.share, written.gain), (proposal.share, proposal.gain));
    let resolved = RunConfig::read(&out.join("config.toml")).unwrap();
    assert_eq!(resolved.mixture, MixtureConfig::long_short(0.2));
    let card = std::fs::read_to_string(out.join("model/README.md")).unwrap();
    assert!(
        card.contains(&proposal.line()) && card.contains("trained tokens (one training run"),
        "{card}"
    );
    assert!(summary.conclusion().to_string().contains(&proposal.line()));

    // The run is bit-identical to a run with that share.
    let plain = RunConfig { out: folder.path().join("plain"), ..config.clone() };
    let plain = RunConfig { mixture: MixtureConfig::long_short(0.2), ..plain };
    let same = run(&plain, RunMode::New, &Context::default()).unwrap();
    assert_eq!((same.data, same.last_loss), (summary.data.clone(), summary.last_loss));
    assert!(same.pilots.is_none());

    // Resuming with either the original or the stored settings runs no pilots again and gives the same
    // result.
    let pilot = out.join("pilots/round-1/share-0/metrics.jsonl");
    let before = std::fs::metadata(&pilot).unwrap().modified().unwrap();
    for config in [config.clone(), resolved] {
        let again = run(&config, RunMode::Resume, &Context::default()).unwrap();
        assert_eq!(again.last_loss, summary.last_loss);
    }
    assert_eq!(std::fs::metadata(&pilot).unwrap().modified().unwrap(), before);
    // Overwriting with a fixed share removes all files of the pilots.
    let anew = RunConfig { mixture: MixtureConfig::long_short(0.5), ..config };
    run(&anew, RunMode::Overwrite, &Context::default()).unwrap();
    assert!(!out.join("pilots.json").exists() && !out.join("pilots").exists());
}

/// Requests a stop at a step of a pilot or of the run.
struct StopAt<'a> {
    stop: &'a StopFlag,
    part: Option<usize>,
    now: Option<usize>,
    step: usize,
}

impl Observer for StopAt<'_> {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Part { number, .. } => self.now = Some(*number),
            Event::Overview(_) => self.now = None,
            Event::Step(report) if report.step == self.step && self.now == self.part => {
                self.stop.request();
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn stopped_in_a_pilot_or_in_the_training_it_ends_in_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let straight = auto(&folder.path().join("straight"));
    let expected = run(&straight, RunMode::New, &Context::default()).unwrap();
    let expected_pilots = expected.pilots.clone().unwrap();
    let strip = |proposal: &ShareProposal| {
        let mut proposal = proposal.clone();
        for pilot in proposal.rounds.iter_mut().flat_map(|round| &mut round.pilots) {
            (pilot.seconds, pilot.evaluation_seconds) = (0.0, 0.0);
            pilot.hits.clear();
        }
        proposal
    };
    let out = folder.path().join("stopped");
    let config = auto(&out);
    let attempt = |part: Option<usize>, step: usize, config: &RunConfig| {
        let mode = if out.exists() { RunMode::Resume } else { RunMode::New };
        let stop = StopFlag::default();
        let observer = StopAt { stop: &stop, part, now: None, step };
        run(config, mode, &Context::new(observer, &stop))
    };
    // Stopped in the second pilot: the first is kept.
    let error = attempt(Some(2), 1, &config).unwrap_err();
    assert!(matches!(&error, Error::Stopped { .. }), "{error}");
    assert!(error.to_string().contains("finished pilots are kept"), "{error}");
    let first = out.join("pilots/round-1/share-0/metrics.jsonl");
    let before = std::fs::metadata(&first).unwrap().modified().unwrap();
    assert!(!out.join("pilots.json").exists());
    // The stored settings still have `auto`. Then a stop during training, and finally to the end.
    let asked = RunConfig::read(&out.join("config.toml")).unwrap();
    assert_eq!(asked.mixture.share, Share::Auto);
    let stopped = attempt(None, 6, &asked).unwrap();
    assert!(stopped.outcome.stopped);
    assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), before);
    let resolved = RunConfig::read(&out.join("config.toml")).unwrap();
    let ended = attempt(Some(99), 0, &resolved).unwrap();
    assert_eq!(ended.last_loss, expected.last_loss);
    assert_eq!(strip(&stored(&out)), strip(&expected_pilots));
    assert_eq!(strip(ended.pilots.as_ref().unwrap()), strip(&expected_pilots));
}

#[test]
fn the_library_proposes_a_share_that_a_run_then_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = auto(&folder.path().join("run"));
    config.mixture = MixtureConfig::default();
    let proposal = propose_share(&config, &Context::default()).unwrap();
    assert!(!config.out.join("model").exists());
    assert_eq!(
        format!("{proposal:80}").lines().filter(|line| line.contains("was dropped after")).count(),
        1
    );
    config.mixture.share = Share::Auto;
    let summary = run(&config, RunMode::Resume, &Context::default()).unwrap();
    assert_eq!(summary.pilots.unwrap().gain, proposal.gain);
}

#[test]
fn pilots_that_cannot_be_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let refused = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = auto(&out);
        change(&mut config);
        run(&config, RunMode::New, &Context::default()).unwrap_err().to_string()
    };
    let error = refused(&|config| config.pilots.budget = 0.001);
    assert!(error.contains("pilots.budget") && error.contains("one step of each"), "{error}");
    let _ = std::fs::remove_dir_all(&out);
    for (change, what) in [
        (&(|c: &mut RunConfig| c.pilots.budget = 0.0) as &dyn Fn(&mut RunConfig), "pilots.budget"),
        (&|c: &mut RunConfig| c.pilots.shares = vec![1.5], "pilots.shares"),
        (&|c: &mut RunConfig| c.pilots.shares = vec![0.2], "at least one besides 0.2"),
        (&|c: &mut RunConfig| c.pilots.growth = 0.5, "pilots.growth"),
        (&|c: &mut RunConfig| c.pilots.questions = 0, "pilots.questions"),
    ] {
        let error = refused(change);
        assert!(error.contains(what), "{what}: {error}");
        assert!(!out.exists());
    }
    // Three sources, and one source.
    let line = |text: &str| {
        format!("{{\"problem\": \"What is 1 + {text}?\", \"solution\": \"{text}\"}}\n")
    };
    let rows: String = (0..40).map(|n| line(&n.to_string())).collect();
    for count in [3, 1] {
        let mut sources = vec![];
        for name in ["long", "middle", "short"].iter().take(count) {
            let path = folder.path().join(format!("{name}.jsonl"));
            std::fs::write(&path, &rows).unwrap();
            sources.push(mixdistill::recipe::SourceConfig {
                name: (*name).to_owned(),
                path,
                ..Default::default()
            });
        }
        let error = refused(&|config| {
            config.data.sources = sources.clone();
            config.data.tokenizer = Some(tokenizer(folder.path()));
        });
        assert!(
            error.contains("mixture.share") && error.contains(&format!("there are {count}")),
            "{error}"
        );
    }
    // A mixture alone cannot run pilots, and a comparison sets its own shares.
    let source = |name: &str| {
        Source::read(name, &folder.path().join("long.jsonl"), &Default::default(), 0.0)
    };
    let pairs =
        Pairs::join(vec![source("long").unwrap(), source("short").unwrap()], Default::default());
    let config = MixtureConfig { share: Share::Auto, ..MixtureConfig::default() };
    let error = MixDistillation::new(Arc::new(pairs.unwrap().0), config, MixtureOptions::default());
    assert!(error.unwrap_err().to_string().contains("propose_share"));
    let error = compare(&auto(&out), RunMode::New, &Context::default()).unwrap_err().to_string();
    assert!(error.contains("mixture.share"), "{error}");
}

/// Makes all stored answers of a share's pilots correct.
fn answer_right(out: &Path, share: f64) {
    for round in [1, 2] {
        let path = out.join(format!("pilots/round-{round}/share-{share}/after.jsonl"));
        let mut text = String::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let mut answer: serde_json::Value = serde_json::from_str(line).unwrap();
            let reference = answer["reference"].as_str().unwrap();
            answer["text"] = format!("The answer is \\boxed{{{reference}}}.").into();
            text += &format!("{answer}\n");
        }
        std::fs::write(&path, text).unwrap();
    }
}

/// The share in the last round that is not the fallback.
fn other_share(proposal: &ShareProposal) -> f64 {
    let last = proposal.rounds.last().unwrap();
    last.pilots.iter().map(|pilot| pilot.share).find(|share| *share != 0.2).unwrap()
}

#[test]
fn a_share_that_is_clearly_better_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let config = auto(&folder.path().join("run"));
    let before = propose_share(&config, &Context::default()).unwrap();
    assert!(before.line().ends_with("since no pilot answers any problem correctly"), "{before}");
    let share = other_share(&before);
    answer_right(&config.out, share);
    let summary = run(&config, RunMode::Resume, &Context::default()).unwrap();
    let proposal = summary.pilots.unwrap();
    assert_eq!((proposal.share, proposal.is_clear()), (share, true), "{proposal}");
    assert_eq!((proposal.gain.value, proposal.runner_up), (1.0, Some(0.2)));
    // The run is bit-identical to a run with that share.
    assert_eq!(summary.config.mixture, MixtureConfig::long_short(share));
    let mixture = MixtureConfig::long_short(share);
    let plain = RunConfig { out: folder.path().join("plain"), mixture, ..config };
    let plain = run(&plain, RunMode::New, &Context::default()).unwrap();
    assert_eq!(plain.last_loss, summary.last_loss);
}

#[test]
fn the_share_is_that_of_long_answers_wherever_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = auto(&folder.path().join("run"));
    config.data.tokenizer = Some(tokenizer(folder.path()));
    for (name, working) in [("short", ""), ("long", "We add them slowly, one by one, and look. ")] {
        let rows: String = (0..60)
            .map(|n| {
                let solution = format!("{working}The answer is \\\\boxed{{{}}}.", n + 1);
                let answer = n + 1;
                format!(
                    "{{\"problem\": \"What is {n} + 1?\", \"solution\": \"{solution}\", \
                     \"answer\": \"{answer}\"}}\n"
                )
            })
            .collect();
        let path = folder.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, rows).unwrap();
        config.data.sources.push(SourceConfig { name: name.into(), path, ..Default::default() });
    }
    let proposal = propose_share(&config, &Context::default()).unwrap();
    assert_eq!((proposal.source.as_str(), proposal.other.as_str()), ("long", "short"));
    // Long answers have more tokens.
    let tokens = |share: f64| {
        let mut pilots = proposal.rounds[0].pilots.iter();
        pilots.find(|pilot| pilot.share == share).unwrap().trained_tokens
    };
    assert!(tokens(1.0) > tokens(0.2) && tokens(0.2) > tokens(0.0), "{proposal}");
    let share = other_share(&proposal);
    answer_right(&config.out, share);
    let summary = run(&config, RunMode::Resume, &Context::default()).unwrap();
    assert_eq!(summary.config.mixture, MixtureConfig::long_short(share));
    let of = summary.mixture.sources.iter().find(|source| source.name == "long").unwrap();
    assert_eq!(of.requested, share);
    let rows: usize = summary.mixture.sources.iter().map(|source| source.rows).sum();
    assert_eq!(of.rows as f64, share * rows as f64);
}

#[test]
fn changed_pilots_are_refused_by_name_or_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config = auto(&folder.path().join("run"));
    let mut notices = vec![];
    let stop = StopFlag::default();
    let first = run(&config, RunMode::New, &Context::new(AllNotices(&mut notices), &stop)).unwrap();
    // Before the first pilot, the run reports the work and warns that pilots are short.
    let told = |what: &str| notices.iter().filter(|text| text.contains(what)).count();
    assert_eq!(told("generate 50 answers to grade, 10 each"), 1, "{notices:?}");
    let first = first.pilots.unwrap();
    assert!(first.rounds[0].steps < 8 && first.warnings[0].contains("of round 1 have"));
    assert_eq!(told(&first.warnings[0]), 1, "{notices:?}");
    assert!(first.to_string().contains(&first.warnings[0]));

    // The suggested budget makes the first pilots long enough.
    let [_, budget] = first.warnings[0].split("pilots.budget=").collect::<Vec<_>>()[..] else {
        panic!("{:?}", first.warnings)
    };
    let budget: f64 = budget.split(' ').next().unwrap().parse().unwrap();
    let mut changed = config.clone();
    changed.pilots.budget = budget;
    let error = run(&changed, RunMode::Resume, &Context::default()).unwrap_err().to_string();
    assert!(error.contains("pilots.budget was 1.0, is") && error.contains("allow the change"));
    assert!(!error.contains("round-1"), "{error}");
    let path = config.out.join("pilots/round-1/share-0/metrics.jsonl");
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();

    // With the change allowed, all pilots run again.
    let stop = StopFlag::default();
    let mut notices = vec![];
    let anew = {
        let context = Context::new(AllNotices(&mut notices), &stop);
        run(&changed, RunMode::ResumeChanged, &context).unwrap().pilots.unwrap()
    };
    assert!(anew.rounds[0].steps >= 8 && anew.warnings.is_empty(), "{anew}");
    assert_ne!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
    let anew_of = notices.iter().filter(|text| text.contains("run again")).count();
    assert!(anew_of >= 3, "{notices:?}");
    let expected = RunConfig { out: folder.path().join("expected"), ..changed.clone() };
    let expected = propose_share(&expected, &Context::default()).unwrap();
    let grades = |proposal: &ShareProposal| -> Vec<_> {
        proposal.pilots().map(|pilot| (pilot.share, pilot.loss, pilot.trained_tokens)).collect()
    };
    assert_eq!(grades(&anew), grades(&expected));
}

#[test]
fn a_run_of_a_given_share_is_not_resumed_as_one_of_pilots() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = auto(&folder.path().join("run"));
    config.mixture = MixtureConfig::long_short(0.5);
    run(&config, RunMode::New, &Context::default()).unwrap();
    config.mixture.share = Share::Auto;
    let error = run(&config, RunMode::Resume, &Context::default()).unwrap_err().to_string();
    assert!(error.contains("mixture.share was \"exact\", is \"auto\""), "{error}");
    assert!(!config.out.join("pilots").exists());
}

#[test]
fn what_gives_the_share_another_meaning_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (change, what) in [
        (
            &(|c: &mut RunConfig| c.mixture.schedule = Schedule::ShortToLong)
                as &dyn Fn(&mut RunConfig),
            "mixture.schedule",
        ),
        (&|c: &mut RunConfig| c.mixture.redraw = true, "mixture.redraw"),
        (
            &|c: &mut RunConfig| c.mixture.choice = Some(ChoiceConfig::by(ChoiceBy::Shortest)),
            "mixture.choice",
        ),
    ] {
        let mut config = auto(&out);
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        let error = run(&config, RunMode::New, &Context::default()).unwrap_err().to_string();
        assert!(error.contains(what) && !out.exists(), "{what}: {error}");
        // Without `auto`, the setting is valid.
        config.mixture.share = Share::Exact;
        config.validate().unwrap();
    }
}

#[test]
fn stored_logits_serve_pilots_where_they_hold_every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = folder.path().join("teacher");
    let mut of_teacher = toy_run(&teacher);
    of_teacher.train.steps = Some(1);
    of_teacher.evaluation.questions = 0;
    run(&of_teacher, RunMode::New, &Context::default()).unwrap();
    let teacher = teacher.join("model").display().to_string();
    let mut config = auto(&folder.path().join("run"));
    for all_answers in [false, true] {
        let logits = folder.path().join(format!("logits-{all_answers}"));
        let options = TeacherLogitsOptions {
            top_k: Some(4),
            all_answers,
            ..TeacherLogitsOptions::new(&logits)
        };
        let mut written = config.clone();
        // Without `all_answers`, the logits are those of a mixture with share 0.2.
        written.mixture.share = if all_answers { Share::Auto } else { Share::Exact };
        write_teacher_logits(&written, &teacher, &options, &Context::default()).unwrap();
        config.set_teacher(mixdistill::recipe::LogitTeacherConfig {
            path: logits.display().to_string(),
            top_k: 4,
        });
        let found = propose_share(&config, &Context::default());
        match all_answers {
            true => assert_eq!(found.unwrap().pilots().count(), 5),
            false => {
                let error = found.unwrap_err().to_string();
                assert!(
                    error.contains("teacher.path") && error.contains("of 120 answers"),
                    "{error}"
                );
                assert!(!config.out.join("pilots").exists());
            }
        }
        (config.teacher, config.train.objective.distillation) = (None, None);
    }
}

/// Collects notices.
struct AllNotices<'a>(&'a mut Vec<String>);

impl Observer for AllNotices<'_> {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if let Event::Notice(text) = event {
            self.0.push((*text).to_owned());
        }
        Ok(())
    }
}

/// The tokenizer file of a toy run.
fn tokenizer(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("toy/model/tokenizer.json");
    if !path.exists() {
        let mut config = toy_run(&folder.join("toy"));
        config.train.steps = Some(1);
        config.evaluation.questions = 0;
        run(&config, RunMode::New, &Context::default()).unwrap();
    }
    path
}

/// Collects notices, and panics if anything is trained.
struct Notices<'a>(&'a mut Vec<String>);

impl Observer for Notices<'_> {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Notice(text) => self.0.push((*text).to_owned()),
            Event::Step(_) => panic!("nothing is trained"),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn plan_and_preview_train_nothing_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = auto(&folder.path().join("run"));
    let mut notices = vec![];
    let stop = StopFlag::default();
    Plan::new(&config, false, &Context::new(Notices(&mut notices), &stop)).unwrap();
    Preview::new(&config, 1, &Context::new(Notices(&mut notices), &stop)).unwrap();
    let told = notices.iter().filter(|text| text.contains("pilots find the share before training"));
    assert_eq!(told.count(), 2, "{notices:?}");
    // Three shares, then two: five pilots.
    assert!(notices.iter().any(|text| text.contains("at most 50 answers")), "{notices:?}");
    assert!(!config.out.exists());
}

#[test]
fn the_program_takes_auto_and_a_number_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let small = [
        "--set",
        "data.toy_problems=60",
        "--set",
        "model.hidden_size=16",
        "--set",
        "model.num_hidden_layers=1",
        "--set",
        "generate.max_new_tokens=4",
        "--set",
        "pilots.questions=10",
        "--set",
        "pilots.shares=[0, 1]",
        "--steps",
        "48",
        "--questions",
        "4",
    ];
    let call = |flags: &[&str], out: &str| {
        let out = folder.path().join(out);
        let output =
            command("train").args(small).args(flags).arg("--out").arg(&out).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned(), out)
    };
    let (done, told, out) = call(&["--share", "auto"], "auto");
    assert!(done && told.contains("share of `long`"), "{told}");
    assert!(out.join("pilots.json").is_file());
    let settings = folder.path().join("auto.toml");
    std::fs::write(&settings, "mixture.share = \"auto\"\n").unwrap();
    let settings = settings.display().to_string();
    let (done, told, out) = call(&["--config", &settings, "--share", "0.5"], "half");
    assert!(done && !out.join("pilots.json").exists(), "{told}");
    let (done, told, _) = call(&["--share", "some"], "none");
    assert!(!done && told.contains("give a number or auto"), "{told}");
}
