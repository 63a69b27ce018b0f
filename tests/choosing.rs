//! Choosing answers by score: the best one, within bounds, within shares, and among several of one source.

mod common;

use common::{chat_folder::ChatFolder, toy_run};
use mixdistill::Error;
use mixdistill::context::{Context, Event, Observer, StopFlag, Task};
use mixdistill::data::{
    AnswerScores, AnswersKept, ChoiceBy, ChoiceConfig, ColumnMap, CotRecord, Join, Length, Lengths,
    MixDistillation, MixtureConfig, MixtureOptions, Pairs, Prefer, RowStream, Schedule, Share,
    Source,
};
use mixdistill::recipe::{
    Prepared, RunConfig, RunMode, ScoreOptions, SourceConfig, compare, read_scores, run,
    write_scores,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

fn record(problem: usize, solution: String) -> CotRecord {
    CotRecord {
        id: Some(format!("p{problem}")),
        problem: format!("What is {problem} + {problem}?"),
        solution,
        ..CotRecord::default()
    }
}

/// A number from 0 to below 1 that depends only on the arguments.
fn noise(a: usize, b: usize, c: usize) -> f64 {
    // SplitMix64 (Steele, Lea, and Flood, 2014).
    let mut x = [a, b, c].into_iter().fold(0u64, |x, part| {
        (x ^ part as u64).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    });
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Sources `long` and `short`, with `answers` answers to each problem. Candidate `c` of a problem is
/// record `problem * answers + c`.
fn pairs(problems: usize, answers: usize) -> Arc<Pairs> {
    let source = |name: &str| {
        let records = (0..problems * answers)
            .map(|place| record(place / answers, format!("{name} answer {}", place % answers)));
        Source::new(name, records.collect())
    };
    let sources = vec![source("long"), source("short")];
    let (pairs, ledger) = Pairs::join_keeping(sources, Join::Inner, AnswersKept::All).unwrap();
    assert!(ledger.adds_up());
    Arc::new(pairs)
}

/// Scores of these records, mostly lower for `short`.
fn scores(problems: usize, answers: usize) -> Arc<AnswerScores> {
    let of = |source: usize| {
        let records = 0..problems * answers;
        records.map(|r| Some(noise(r, source, 1) + if source == 0 { 0.2 } else { 0.0 })).collect()
    };
    Arc::new(AnswerScores::new((0..2).map(of).collect()))
}

fn options(seed: u64, scores: &Arc<AnswerScores>) -> MixtureOptions {
    MixtureOptions { seed, scores: Some(scores.clone()), ..MixtureOptions::default() }
}

fn by(choice: ChoiceConfig) -> MixtureConfig {
    MixtureConfig { choice: Some(choice), ..MixtureConfig::default() }
}

fn rows(mixture: &MixDistillation) -> Vec<usize> {
    mixture.report().sources.iter().map(|source| source.rows).collect()
}

#[test]
fn the_answer_with_the_best_score_of_all_candidates_is_taken() {
    let (pairs, scores) = (pairs(60, 3), scores(60, 3));
    for prefer in [None, Some(Prefer::Highest)] {
        let choice = ChoiceConfig { prefer, ..ChoiceConfig::by(ChoiceBy::Rsr) };
        let mixture = MixDistillation::new(pairs.clone(), by(choice), options(1, &scores)).unwrap();
        for problem in 0..pairs.len() {
            let row = mixture.row(problem);
            let taken = scores.get(row.source_index(), row.record_index()).unwrap();
            for source in 0..2 {
                assert_eq!(pairs.candidates(problem, source).count(), 3);
                for record in pairs.candidates(problem, source) {
                    let other = scores.get(source, record).unwrap();
                    let better = if prefer.is_none() { other >= taken } else { other <= taken };
                    assert!(better, "problem {problem}: {taken} {other}");
                }
            }
        }
        let report = mixture.report();
        let choice = report.choice.as_ref().expect("a report of the choice");
        assert_eq!(choice.problems_with_choice, 60);
        assert!(choice.deviations().unwrap() > 5.0, "{choice:?}");
        let best: f64 = choice.sources.iter().map(|source| source.best).sum();
        assert!((best - 1.0).abs() < 1e-9);
        // Without bounds, the best answers are chosen.
        for (source, line) in choice.sources.iter().zip(&report.sources) {
            assert!((source.best - line.rows as f64 / 60.0).abs() < 1e-9);
            assert_eq!((source.answers, source.percentiles.len()), (180, 21));
        }
        let text = report.to_string();
        assert!(text.contains("chosen by RSR") && text.contains("better than chance"), "{text}");
        assert!(!text.contains("requested shares: "), "{text}");
    }
}

#[test]
fn within_a_share_the_scores_say_which_problems_and_never_how_many() {
    let (pairs, scores) = (pairs(250, 1), scores(250, 1));
    let choice = ChoiceConfig { within_share: true, ..ChoiceConfig::by(ChoiceBy::Nll) };
    let mixture =
        MixDistillation::new(pairs.clone(), by(choice.clone()), options(3, &scores)).unwrap();
    assert_eq!(rows(&mixture), [50, 200]);
    // The fifty problems with the smallest difference get the long answer.
    let difference = |p: usize| scores.get(0, p).unwrap() - scores.get(1, p).unwrap();
    let mut sorted: Vec<usize> = (0..250).collect();
    sorted.sort_by(|a, b| difference(*a).total_cmp(&difference(*b)));
    let mut long: Vec<usize> = (0..250).filter(|p| mixture.row(*p).source() == "long").collect();
    let mut expected = sorted[..50].to_vec();
    expected.sort_unstable();
    long.sort_unstable();
    assert_eq!(long, expected);
    // The inverse choice takes the other end.
    let inverse = ChoiceConfig { prefer: Some(Prefer::Highest), ..choice };
    let mixture = MixDistillation::new(pairs, by(inverse), options(3, &scores)).unwrap();
    assert_eq!(rows(&mixture), [50, 200]);
    assert!(sorted[200..].iter().all(|p| mixture.row(*p).source() == "long"));
}

#[test]
fn floors_and_ceilings_bind_exactly() {
    let (pairs, scores) = (pairs(200, 1), scores(200, 1));
    let free = ChoiceConfig::by(ChoiceBy::Rsr);
    let of = |choice: ChoiceConfig| {
        rows(&MixDistillation::new(pairs.clone(), by(choice), options(1, &scores)).unwrap())
    };
    let [long, short] = of(free.clone())[..] else { panic!() };
    assert!(long > 20 && short > long, "{long} {short}");
    let bound = |floor: Option<f64>, ceiling: Option<f64>| {
        let map = |share: Option<f64>| share.map(|share| ("long".to_owned(), share));
        ChoiceConfig {
            floor: map(floor).into_iter().collect(),
            ceiling: map(ceiling).into_iter().collect(),
            ..free.clone()
        }
    };
    assert_eq!(of(bound(Some(0.7), None)), [140, 60]);
    assert_eq!(of(bound(None, Some(0.05))), [10, 190]);
    // Bounds that are met anyway change nothing.
    assert_eq!(of(bound(Some(0.01), Some(0.99))), [long, short]);
    assert_eq!(of(bound(Some(0.333), Some(0.333))), [67, 133]);
    // Two halves of an odd number of problems: each may be off by less than one row.
    let halves: BTreeMap<String, f64> = ["long", "short"].map(|name| (name.to_owned(), 0.5)).into();
    let odd = self::pairs(61, 1);
    for choice in [
        ChoiceConfig { floor: halves.clone(), ..free.clone() },
        ChoiceConfig { ceiling: halves, ..free.clone() },
    ] {
        let mixture = MixDistillation::new(odd.clone(), by(choice), options(1, &scores)).unwrap();
        assert!(rows(&mixture).iter().all(|count| (30..=31).contains(count)));
        assert!(mixture.report().shortfalls.is_empty());
    }
    // A floor that the answers cannot fill is missed by as little as possible and reported.
    let source = |name: &str, count: usize| {
        Source::new(name, (0..count).map(|p| record(p, format!("{name} answer"))).collect())
    };
    let (few, _) = Pairs::join(vec![source("long", 6), source("short", 40)], Join::Outer).unwrap();
    let mixture =
        MixDistillation::new(Arc::new(few), by(bound(Some(0.5), None)), options(1, &scores))
            .unwrap();
    assert_eq!(rows(&mixture), [6, 34]);
    let told = mixture.report().shortfalls;
    assert_eq!(told, ["`long` answers 6 of 40 problems: its share is 15.0%, not 50.0%"]);
}

#[test]
fn chance_with_the_realized_shares_is_a_control() {
    let (pairs, scores) = (pairs(120, 3), scores(120, 3));
    let chosen = MixDistillation::new(
        pairs.clone(),
        by(ChoiceConfig::by(ChoiceBy::Rsr)),
        options(5, &scores),
    )
    .unwrap();
    let realized: BTreeMap<String, f64> = chosen
        .report()
        .sources
        .iter()
        .map(|source| (source.name.clone(), source.rows as f64))
        .collect();
    let control = MixtureConfig { weights: realized, ..by(ChoiceConfig::by(ChoiceBy::Chance)) };
    let of = |seed| MixDistillation::new(pairs.clone(), control.clone(), options(seed, &scores));
    let (one, other) = (of(5).unwrap(), of(6).unwrap());
    assert_eq!(rows(&one), rows(&chosen));
    assert_eq!(rows(&other), rows(&chosen));
    let records = |mixture: &MixDistillation| -> Vec<(usize, usize)> {
        (0..120).map(|p| (mixture.row(p).source_index(), mixture.row(p).record_index())).collect()
    };
    assert_ne!(records(&one), records(&other));
    assert_eq!(records(&one), records(&of(5).unwrap()));
    // Each answer of a source is drawn sometimes.
    let mut drawn = [0; 3];
    records(&one).iter().for_each(|(_, record)| drawn[record % 3] += 1);
    assert!(drawn.iter().all(|count| *count > 20), "{drawn:?}");
    assert!(one.report().choice.is_none());
}

#[test]
fn lengths_and_columns_need_no_student() {
    let pairs = pairs(40, 2);
    let length = |source: usize, record: usize| {
        let trained = 5 + (100.0 * noise(record, source, 2)) as u32;
        Some(Length { tokens: trained + 3, trained })
    };
    let all = |source| (0..80).map(|record| length(source, record)).collect();
    let lengths = Arc::new(Lengths::new(vec![all(0), all(1)]));
    let options = MixtureOptions { lengths: Some(lengths.clone()), ..MixtureOptions::default() };
    for (choice, is_better) in [
        (ChoiceBy::Shortest, (|a, b| a <= b) as fn(u32, u32) -> bool),
        (ChoiceBy::Longest, |a, b| a >= b),
    ] {
        let mixture =
            MixDistillation::new(pairs.clone(), by(ChoiceConfig::by(choice)), options.clone())
                .unwrap();
        for problem in 0..40 {
            let row = mixture.row(problem);
            let taken = lengths.get(row.source_index(), row.record_index()).unwrap().trained;
            for source in 0..2 {
                for record in pairs.candidates(problem, source) {
                    assert!(is_better(taken, lengths.get(source, record).unwrap().trained));
                }
            }
        }
    }
    // A column of the user: the long source is better on every other problem.
    let source = |name: &str, parity: usize| {
        let records = (0..30).map(|p| record(p, format!("{name} answer"))).collect();
        Source::new(name, records)
            .with_scores((0..30).map(|p| Some(f64::from(u8::from(p % 2 == parity)))).collect())
    };
    let sources = vec![source("long", 0), source("short", 1)];
    let (scored, _) = Pairs::join(sources, Join::Inner).unwrap();
    let choice =
        ChoiceConfig { prefer: Some(Prefer::Highest), ..ChoiceConfig::by(ChoiceBy::Column) };
    let mixture =
        MixDistillation::new(Arc::new(scored), by(choice), MixtureOptions::default()).unwrap();
    for problem in 0..30 {
        assert_eq!(mixture.row(problem).source_index(), problem % 2);
    }
}

#[test]
fn what_a_choice_cannot_be_made_by_is_refused() {
    let (pairs, scores) = (pairs(10, 1), scores(10, 1));
    let refused = |config: MixtureConfig, options: MixtureOptions| match MixDistillation::new(
        pairs.clone(),
        config,
        options,
    ) {
        Err(Error::Config { key, what, .. }) => format!("{key}: {what}"),
        other => panic!("{other:?}"),
    };
    let rsr = ChoiceConfig::by(ChoiceBy::Rsr);
    let without = refused(by(rsr.clone()), MixtureOptions::default());
    assert!(without.contains("`long` record 1") && without.contains("no score"), "{without}");
    let broken = AnswerScores::new(vec![vec![Some(f64::NAN); 10], vec![Some(1.0); 10]]);
    let broken = refused(by(rsr.clone()), options(1, &Arc::new(broken)));
    assert!(broken.contains("NaN"), "{broken}");
    let shares = |pairs: &[(&str, f64)]| -> BTreeMap<String, f64> {
        pairs.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
    };
    for (choice, key) in [
        (
            ChoiceConfig { floor: shares(&[("medium", 0.1)]), ..rsr.clone() },
            "floor: there is no source",
        ),
        (ChoiceConfig { floor: shares(&[("long", 1.5)]), ..rsr.clone() }, "floor: "),
        (ChoiceConfig { floor: shares(&[("long", f64::NAN)]), ..rsr.clone() }, "floor: "),
        (
            ChoiceConfig { floor: shares(&[("long", 0.6), ("short", 0.6)]), ..rsr.clone() },
            "floor: ",
        ),
        (
            ChoiceConfig { ceiling: shares(&[("long", 0.4), ("short", 0.4)]), ..rsr.clone() },
            "ceiling: ",
        ),
        (
            ChoiceConfig {
                floor: shares(&[("long", 0.4)]),
                ceiling: shares(&[("long", 0.3)]),
                ..rsr.clone()
            },
            "above its ceiling",
        ),
        (
            ChoiceConfig { within_share: true, floor: shares(&[("long", 0.4)]), ..rsr.clone() },
            "the weights already determine",
        ),
        (ChoiceConfig::by(ChoiceBy::Column), "prefer: "),
        (
            ChoiceConfig { prefer: Some(Prefer::Lowest), ..ChoiceConfig::by(ChoiceBy::Chance) },
            "prefer: ",
        ),
    ] {
        let what = refused(by(choice), options(1, &scores));
        assert!(what.contains(key), "{what}");
    }
    for config in [
        MixtureConfig { share: Share::Bernoulli, ..by(rsr.clone()) },
        MixtureConfig { redraw: true, ..by(rsr.clone()) },
        MixtureConfig { schedule: Schedule::ShortToLong, ..by(rsr) },
    ] {
        let what = refused(config, options(1, &scores));
        assert!(what.starts_with("mixture.choice.by: "), "{what}");
    }
}

#[test]
fn of_several_answers_those_that_differ_are_candidates_and_the_others_duplicates() {
    let answers = ["one", "two", "one ", "three", "two"];
    let long = answers.iter().map(|text| record(0, (*text).to_owned())).collect();
    let short = vec![record(0, "short".to_owned()), record(1, "alone".to_owned())];
    let sources =
        || vec![Source::new("long", Clone::clone(&long)), Source::new("short", short.clone())];
    let (all, ledger) = Pairs::join_keeping(sources(), Join::Inner, AnswersKept::All).unwrap();
    assert_eq!(all.candidates(0, 0).collect::<Vec<_>>(), [0, 1, 3]);
    let [long_line, short_line] = &ledger.sources[..] else { panic!() };
    assert_eq!((long_line.duplicates, long_line.usable), (2, 3));
    assert_eq!((short_line.unmatched, short_line.usable), (1, 1));
    assert!(ledger.adds_up());
    // A dropped answer is no longer a candidate, and the others stay.
    let (kept, dropped) = all.retain(|source, record| source == 1 || record != 1);
    assert_eq!((kept.candidates(0, 0).collect::<Vec<_>>(), dropped), (vec![0, 3], 0));
    let (kept, _) = all.retain(|source, record| source == 1 || record != 0);
    assert_eq!(kept.candidates(0, 0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(kept.record_index(0, 0), Some(1));
    let (first, ledger) = Pairs::join(sources(), Join::Inner).unwrap();
    assert_eq!(first.candidates(0, 0).collect::<Vec<_>>(), [0]);
    assert_eq!(ledger.sources[0].duplicates, 4);
}

/// A run with a choice of answers, on twelve problems.
fn chosen(out: &Path, by: ChoiceBy) -> RunConfig {
    let mut config = toy_run(out);
    config.data.toy_problems = 12;
    config.mixture.choice = Some(ChoiceConfig::by(by));
    config
}

#[test]
fn a_run_scores_what_it_chooses_by_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = chosen(&out, ChoiceBy::Rsr);
    let summary = run(&config, RunMode::New, &Context::default()).unwrap();
    let scores = read_scores(&out.join("scores.jsonl")).unwrap();
    assert_eq!(scores.len(), 24);
    assert!(
        std::fs::read_to_string(out.join("scores.svg")).unwrap().contains("RSR of the answers")
    );
    let choice = summary.mixture.choice.as_ref().expect("a report of the choice");
    assert_eq!((choice.by, choice.problems_with_choice), (ChoiceBy::Rsr, 12));
    // Of each problem's two answers, the one with the lower ratio is chosen.
    let prepared = Prepared::new(&config, &Context::default()).unwrap();
    let rows = prepared.rows().rows(0..12).unwrap();
    let all = prepared.all_answers();
    for pair in all.chunks(2).zip(scores.chunks(2)) {
        let ((answers, scores), lower) = (pair, usize::from(pair.1[1].rsr < pair.1[0].rsr));
        assert_eq!(scores[0].label, answers[0].row.label);
        let [taken, left] = [lower, 1 - lower].map(|place| &answers[place].row.label);
        assert!(rows.iter().any(|row| row.label == *taken), "{taken}");
        assert!(rows.iter().all(|row| row.label != *left), "{left}");
    }
    // The resumed run uses its stored scores and does not load a student to score.
    let mut longer = config.clone();
    longer.train.steps = Some(3);
    let flag = StopFlag::default();
    let context = Context::new(Refuse(Task::Score), &flag);
    run(&longer, RunMode::ResumeChanged, &context).unwrap();
    // An existing file of scores is used, and missing scores are added.
    let file = folder.path().join("scores.jsonl");
    std::fs::copy(out.join("scores.jsonl"), &file).unwrap();
    let settings = "scores.jsonl.settings.json";
    std::fs::copy(out.join(settings), folder.path().join(settings)).unwrap();
    let mut with_file = chosen(&folder.path().join("other"), ChoiceBy::Rsr);
    with_file.mixture.choice.as_mut().unwrap().scores = Some(file.clone());
    let other = run(&with_file, RunMode::New, &context).unwrap();
    assert_eq!(other.mixture, summary.mixture);
    assert!(!folder.path().join("other/scores.jsonl").exists());
    let kept: String = lines(&file)[..10].join("\n") + "\n";
    std::fs::write(&file, kept).unwrap();
    run(&with_file, RunMode::Overwrite, &Context::default()).unwrap();
    assert_eq!(read_scores(&file).unwrap().len(), 24);
    // Scores of another student are refused.
    with_file.seed += 1;
    let error = run(&with_file, RunMode::Overwrite, &Context::default()).unwrap_err();
    assert!(matches!(error, Error::Data { .. }), "{error}");
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// Stops a run after a number of scored answers.
struct StopAt(u64, StopFlag);

impl Observer for StopAt {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        if matches!(event, Event::Task { task: Task::Score, progress } if progress.done >= self.0) {
            self.1.request();
        }
        Ok(())
    }
}

#[test]
fn a_run_that_is_stopped_while_it_scores_goes_on_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    let expected = run(&chosen(&whole, ChoiceBy::Lalp), RunMode::New, &Context::default()).unwrap();
    let flag = StopFlag::default();
    let context = Context::new(StopAt(9, flag.clone()), &flag);
    let config = chosen(&stopped, ChoiceBy::Lalp);
    let error = run(&config, RunMode::New, &context).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    let kept = read_scores(&stopped.join("scores.jsonl")).unwrap().len();
    assert!((9..24).contains(&kept), "{kept}");
    // Resumed with the stored settings, as the program does.
    let stored = RunConfig::read(&stopped.join("config.toml")).unwrap();
    let resumed = run(&stored, RunMode::Resume, &Context::default()).unwrap();
    assert_eq!(resumed.mixture, expected.mixture);
    let weights = |out: &Path| std::fs::read(out.join("model/model.safetensors")).unwrap();
    assert!(weights(&stopped) == weights(&whole));
    // Another window gives other scores: they are computed again if the change is allowed.
    let mut other = config.clone();
    other.mixture.choice.as_mut().unwrap().window = Some(1);
    run(&other, RunMode::ResumeChanged, &Context::default()).unwrap();
}

#[test]
fn what_is_wrong_with_a_choice_shows_before_anything_is_scored() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let flag = StopFlag::default();
    let context = Context::new(Refuse(Task::Score), &flag);
    let bounds = |name: &str| BTreeMap::from([(name.to_owned(), 0.1)]);
    let mut floor = chosen(&out, ChoiceBy::Rsr);
    floor.mixture.choice.as_mut().unwrap().floor = bounds("medium");
    let mut weights = chosen(&out, ChoiceBy::Rsr);
    weights.mixture.choice.as_mut().unwrap().within_share = true;
    weights.mixture.weights = bounds("medium");
    let mut window = chosen(&out, ChoiceBy::Rsr);
    window.mixture.choice.as_mut().unwrap().window = Some(2);
    for config in [floor, weights, window] {
        let error = run(&config, RunMode::New, &context).unwrap_err();
        assert!(matches!(error, Error::Config { .. } | Error::Several(_)), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn scores_of_all_answers_serve_runs_that_hold_problems_out() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = ChatFolder::new(&["<end>"], &[], false, serde_json::json!({}));
    let source = |name: &str, answered: std::ops::Range<usize>| {
        let path = folder.path().join(format!("{name}.jsonl"));
        let line = |p: usize| {
            let system = if p.is_multiple_of(2) { ", \"system\": \"Be brief.\"" } else { "" };
            let long = "and so on ".repeat(if name == "long" { p % 7 } else { 0 });
            (0..2).map(|answer| format!(
                "{{\"problem\": \"What is {p} + 1?\", \"solution\": \"{name} {answer} {long}: {}.\"{system}}}\n",
                p + 1
            )).collect::<String>()
        };
        std::fs::write(&path, answered.map(line).collect::<String>()).unwrap();
        SourceConfig { name: name.into(), path, ..SourceConfig::default() }
    };
    let sources = vec![source("long", 0..20), source("short", 5..25)];
    let file = folder.path().join("scores.jsonl");
    let mut config = toy_run(&folder.path().join("run"));
    config.data.sources = sources;
    config.data.tokenizer = Some(tokenizer.path().join("tokenizer.json"));
    config.data.end_token = Some("<end>".into());
    config.evaluation.questions = 0;
    let options = ScoreOptions { file: Some(file.clone()), ..ScoreOptions::default() };
    let written = write_scores(&config, &options, &Context::default()).unwrap();
    assert_eq!(written.rows.len(), 80);
    let flag = StopFlag::default();
    for (number, (join, complete, seed)) in
        [(Join::Inner, true, None), (Join::Outer, false, Some(3))].into_iter().enumerate()
    {
        let mut run_config = config.clone();
        run_config.out = folder.path().join(number.to_string());
        (run_config.data.join, run_config.data.complete) = (join, complete);
        (run_config.data.hold_out, run_config.data.seed) = (0.3, seed);
        run_config.data.problems = Some(8);
        let choice = ChoiceConfig { scores: Some(file.clone()), ..ChoiceConfig::by(ChoiceBy::Rsr) };
        run_config.mixture.choice = Some(choice);
        let context = Context::new(Refuse(Task::Score), &flag);
        let summary = run(&run_config, RunMode::New, &context).unwrap();
        let rows: usize = summary.mixture.sources.iter().map(|source| source.rows).sum();
        assert_eq!((rows, summary.ledger.not_taken > 0), (8, true));
        assert!(summary.ledger.adds_up());
    }
}

/// Fails when a kind of task starts.
struct Refuse(Task);

impl Observer for Refuse {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Task { task, progress } if *task == self.0 && progress.done < progress.total => {
                panic!("{task:?} begins")
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn every_method_of_choice_trains_and_goes_on_only_as_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = vec![];
    for by in
        [ChoiceBy::Nll, ChoiceBy::Lalp, ChoiceBy::Shortest, ChoiceBy::Longest, ChoiceBy::Chance]
    {
        let out = folder.path().join(by.name());
        let summary = run(&chosen(&out, by), RunMode::New, &Context::default()).unwrap();
        rows.push(summary.mixture.sources.iter().map(|source| source.rows).collect::<Vec<_>>());
    }
    // Toy long answers have more tokens. `chance` has the shares of the weights.
    assert_eq!(rows[2..], [vec![0, 12], vec![12, 0], vec![2, 10]]);
    let out = folder.path().join("nll");
    let mut other = chosen(&out, ChoiceBy::Nll);
    other.mixture.choice.as_mut().unwrap().prefer = Some(Prefer::Highest);
    let error = run(&other, RunMode::Resume, &Context::default()).unwrap_err();
    assert!(matches!(error, Error::RunDirectory { .. }), "{error}");
    // `column` requires a score column.
    let mut column = chosen(&folder.path().join("column"), ChoiceBy::Column);
    column.mixture.choice.as_mut().unwrap().prefer = Some(Prefer::Highest);
    let error = run(&column, RunMode::New, &Context::default()).unwrap_err();
    assert!(error.to_string().contains("no score"), "{error}");
    let error = compare(
        &chosen(&folder.path().join("compared"), ChoiceBy::Rsr),
        RunMode::New,
        &Context::default(),
    );
    assert!(error.unwrap_err().to_string().contains("mixture.choice"));
}

#[test]
fn a_column_of_scores_is_read_and_chosen_by() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = ChatFolder::new(&["<end>"], &[], false, serde_json::json!({}));
    let source = |name: &str, scores: [&str; 4]| {
        let path = folder.path().join(format!("{name}.jsonl"));
        let line = |(number, score): (usize, &str)| {
            format!(
                "{{\"problem\": \"What is {number} + 1?\", \"solution\": \"{name}: {}.\", \
                 \"quality\": {score}}}\n",
                number + 1
            )
        };
        let text: String = scores.into_iter().enumerate().map(line).collect();
        std::fs::write(&path, text).unwrap();
        let columns = ColumnMap { score: Some("quality".into()), ..ColumnMap::default() };
        SourceConfig { name: name.into(), path, columns, ..SourceConfig::default() }
    };
    let config = |long: [&str; 4]| {
        let mut config = chosen(&folder.path().join("run"), ChoiceBy::Column);
        config.data.sources =
            vec![source("long", long), source("short", ["1", "2", "\"3.5\"", "4"])];
        config.data.tokenizer = Some(tokenizer.path().join("tokenizer.json"));
        config.data.end_token = Some("<end>".into());
        config.data.hold_out = 0.0;
        config.mixture.choice.as_mut().unwrap().prefer = Some(Prefer::Highest);
        config
    };
    let prepared = Prepared::new(&config(["2", "1", "4.5", "0"]), &Context::default()).unwrap();
    let taken: Vec<usize> = (0..4).map(|p| prepared.mixture.row(p).source_index()).collect();
    assert_eq!(taken, [0, 1, 0, 1]);
    assert!(prepared.ledger.to_string().contains("score=quality"));
    // A row without a number is an error that names it. A row with another type is unusable.
    let error =
        Prepared::new(&config(["2", "null", "4.5", "0"]), &Context::default()).err().unwrap();
    assert!(error.to_string().contains("`long` line 2"), "{error}");
    let prepared =
        Prepared::new(&config(["2", "\"good\"", "4.5", "0"]), &Context::default()).unwrap();
    assert_eq!((prepared.ledger.sources[0].unusable(), prepared.mixture.pairs().len()), (1, 3));
}
