//! The mixture: exact shares, one answer per problem, and a reproducible order.

use burn::data::dataset::Dataset;
use mixdistill::Error;
use mixdistill::data::{
    CotRecord, Join, Length, Lengths, MixDistillation, MixtureConfig, MixtureOptions, Pairs,
    Schedule, Share, Source,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn record(problem: usize, solution: &str) -> CotRecord {
    CotRecord {
        system: None,
        earlier: vec![],
        id: Some(format!("p{problem}")),
        problem: format!("What is {problem} + {problem}?"),
        solution: solution.into(),
        answer: None,
    }
}

/// Sources named `s0`, `s1`, ... in which source `s` answers the problems for which `has(p, s)`.
fn pairs(problems: usize, sources: usize, has: impl Fn(usize, usize) -> bool) -> Arc<Pairs> {
    let sources = (0..sources)
        .map(|s| {
            let records = (0..problems).filter(|p| has(*p, s));
            let text = "word ".repeat(10 * (s + 1));
            Source::new(format!("s{s}"), records.map(|p| record(p, &text)).collect())
        })
        .collect();
    Arc::new(Pairs::join(sources, Join::Outer).expect("join").0)
}

fn weights(values: &[f64]) -> BTreeMap<String, f64> {
    values.iter().enumerate().map(|(s, w)| (format!("s{s}"), *w)).collect()
}

fn config(values: &[f64], share: Share) -> MixtureConfig {
    MixtureConfig { weights: weights(values), share, ..MixtureConfig::default() }
}

fn seeded(seed: u64) -> MixtureOptions {
    MixtureOptions { seed, ..MixtureOptions::default() }
}

fn rows(mixture: &MixDistillation) -> Vec<usize> {
    mixture.report().sources.iter().map(|source| source.rows).collect()
}

proptest! {
    #[test]
    fn exact_shares_are_within_one_row_and_sum_to_all_problems(
        problems in 1usize..400,
        values in prop::collection::vec(0.0f64..1.0, 1..5),
        seed in any::<u64>(),
    ) {
        prop_assume!(values.iter().sum::<f64>() > 1e-3);
        let pairs = pairs(problems, values.len(), |_, _| true);
        let mixture = MixDistillation::new(pairs, config(&values, Share::Exact), seeded(seed)).unwrap();
        let counts = rows(&mixture);
        let sum: f64 = values.iter().sum();
        prop_assert_eq!(counts.iter().sum::<usize>(), problems);
        for (count, value) in counts.iter().zip(&values) {
            let exact = problems as f64 * value / sum;
            prop_assert!((*count as f64 - exact).abs() < 1.0, "{} for {}", count, exact);
        }
    }

    #[test]
    fn every_problem_has_exactly_one_answer_of_a_source_that_has_one(
        problems in 1usize..200,
        seed in any::<u64>(),
        holes in any::<u64>(),
        share in prop::sample::select(vec![Share::Exact, Share::Bernoulli]),
    ) {
        let has = |p: usize, s: usize| s == p % 3 || (holes >> ((p * 3 + s) % 64)) & 1 == 1;
        let pairs = pairs(problems.max(3), 3, has);
        let mixture = MixDistillation::new(pairs.clone(), config(&[0.2, 0.3, 0.5], share), seeded(seed)).unwrap();
        prop_assert_eq!(Dataset::len(&mixture), pairs.len());
        for problem in 0..pairs.len() {
            let Ok(row) = mixture.get(problem);
            prop_assert_eq!(row.problem_index(), problem);
            let answered = pairs.record_index(problem, row.source_index());
            prop_assert_eq!(answered, Some(row.record_index()));
        }
        prop_assert_eq!(rows(&mixture).iter().sum::<usize>(), pairs.len());
    }

    #[test]
    fn the_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(
        problems in 1usize..300,
        seed in any::<u64>(),
        epoch in 0u64..1000,
    ) {
        let make = || {
            let pairs = pairs(problems, 2, |_, _| true);
            MixDistillation::new(pairs, config(&[0.2, 0.8], Share::Exact), seeded(seed)).unwrap()
        };
        let order = make().order(epoch);
        prop_assert_eq!(&order, &make().at_epoch(epoch / 2).order(epoch));
        let mut sorted = order;
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..problems as u32));
    }
}

#[test]
fn epochs_and_seeds_have_different_orders_and_draws() {
    let pairs = pairs(100, 2, |_, _| true);
    let make = |seed, redraw| {
        let config = MixtureConfig { redraw, ..config(&[0.2, 0.8], Share::Exact) };
        MixDistillation::new(pairs.clone(), config, seeded(seed)).unwrap()
    };
    let chosen = |mixture: &MixDistillation| -> Vec<usize> {
        (0..100).map(|problem| mixture.row(problem).source_index()).collect()
    };
    let mixture = make(1, false);
    assert_ne!(mixture.order(0), mixture.order(1));
    assert_ne!(mixture.order(0), make(2, false).order(0));
    assert_ne!(chosen(&mixture), chosen(&make(2, false)));
    assert_eq!(chosen(&mixture), chosen(&mixture.at_epoch(1)), "no redraw unless asked");
    let redrawn = make(1, true);
    assert_ne!(chosen(&redrawn), chosen(&redrawn.at_epoch(1)));
    assert_eq!(chosen(&redrawn), chosen(&redrawn.at_epoch(1).at_epoch(0)));
    assert_eq!(rows(&redrawn.at_epoch(7)), [20, 80], "the shares stay exact");
}

#[test]
fn drawn_shares_are_met_in_expectation() {
    let pairs = pairs(20_000, 2, |_, _| true);
    let mixture = MixDistillation::new(pairs, config(&[0.2, 0.8], Share::Bernoulli), seeded(3));
    let long = rows(&mixture.unwrap())[0] as f64;
    // Five standard deviations of a binomial count.
    assert!((long - 4000.0).abs() < 5.0 * (20_000.0f64 * 0.2 * 0.8).sqrt(), "{long}");
    assert_ne!(long, 4000.0, "drawn, not counted");
}

/// Long answers of 40 to 140 trained tokens, short ones of 5 to 14.
fn lengths(problems: usize) -> Arc<Lengths> {
    let source = |base: u32, spread: u32| {
        (0..problems as u32)
            .map(|p| {
                let trained = base + p * 7919 % spread;
                Some(Length { tokens: trained + 10, trained })
            })
            .collect()
    };
    Arc::new(Lengths::new(vec![source(40, 101), source(5, 10)]))
}

#[test]
fn a_share_of_tokens_is_met_as_closely_as_whole_rows_allow() {
    for (problems, share) in [(50, 0.2), (300, 0.5), (1000, 0.05), (1000, 0.9)] {
        let mixture = MixDistillation::new(
            pairs(problems, 2, |_, _| true),
            config(&[share, 1.0 - share], Share::Tokens),
            MixtureOptions { lengths: Some(lengths(problems)), ..seeded(5) },
        );
        let report = mixture.unwrap().report();
        let total = report.total().trained_tokens as f64;
        let realized = report.sources[0].trained_tokens as f64 / total;
        // Exchanging answers of different length leaves less than half of a short answer.
        assert!((realized - share).abs() <= 14.0 / total, "{realized} for {share} of {total}");
        assert_eq!(report.total().rows, problems);
    }
}

#[test]
fn a_linear_schedule_goes_from_one_share_to_the_other() {
    let problems = 1000;
    let config = MixtureConfig {
        schedule: Schedule::Linear { to: weights(&[1.0, 0.0]) },
        ..config(&[0.0, 1.0], Share::Exact)
    };
    let options = MixtureOptions { planned_rows: Some(2 * problems as u64), ..seeded(1) };
    let mixture = MixDistillation::new(pairs(problems, 2, |_, _| true), config, options).unwrap();
    assert!((mixture.report().sources[0].requested - 0.25).abs() < 1e-9);
    assert!(mixture.at_epoch(3).report().shortfalls.is_empty());
    let long_in = |epoch: u64, range: std::ops::Range<usize>| -> usize {
        let mixture = mixture.at_epoch(epoch);
        let order = mixture.order(epoch);
        order[range].iter().filter(|p| mixture.row(**p as usize).source_index() == 0).count()
    };
    // The weight of the first source is row / 2000.
    for (epoch, range, expected) in
        [(0, 0..100, 2.5), (0, 900..1000, 47.5), (1, 0..100, 52.5), (1, 900..1000, 97.5)]
    {
        let long = long_in(epoch, range.clone()) as f64;
        assert!((long - expected).abs() <= 1.0, "epoch {epoch} rows {range:?}: {long}");
    }
}

#[test]
fn a_curriculum_starts_short_and_has_the_asked_mean() {
    let problems = 1000;
    let config =
        MixtureConfig { schedule: Schedule::ShortToLong, ..config(&[0.8, 0.2], Share::Exact) };
    let options = MixtureOptions { planned_rows: Some(problems as u64), ..seeded(1) };
    // `s1` has the longer answers.
    let mixture = MixDistillation::new(pairs(problems, 2, |_, _| true), config, options).unwrap();
    let order = mixture.order(0);
    let long = |range: std::ops::Range<usize>| {
        order[range].iter().filter(|p| mixture.row(**p as usize).source_index() == 1).count()
    };
    assert!((199..=201).contains(&long(0..1000)));
    assert!(long(0..100) <= 3, "{} at the start", long(0..100));
    assert!((37..=39).contains(&long(900..1000)), "{} at the end", long(900..1000));
}

#[test]
fn weights_that_make_no_shares_are_refused() {
    let pairs = pairs(10, 2, |_, _| true);
    let mut named = weights(&[0.5, 0.5]);
    named.insert("s9".into(), 0.5);
    let cases = [
        (weights(&[-0.1, 1.1]), "the weight of `s0` is -0.1"),
        (weights(&[f64::NAN, 1.0]), "the weight of `s0` is NaN"),
        (weights(&[f64::INFINITY, 1.0]), "the weight of `s0` is inf"),
        (weights(&[0.0, 0.0]), "the weights sum to 0"),
        (weights(&[1.0]), "source `s1` has no weight"),
        (named, "there is no source called `s9`"),
    ];
    for (weights, message) in cases {
        let config = MixtureConfig { weights, ..MixtureConfig::default() };
        let error = MixDistillation::new(pairs.clone(), config, seeded(0)).unwrap_err();
        assert!(matches!(error, Error::Config { .. }));
        assert!(error.to_string().contains(message), "{error}");
    }
    let refused = |config| MixDistillation::new(pairs.clone(), config, seeded(0)).unwrap_err();
    assert!(refused(config(&[0.5, 0.5], Share::Tokens)).to_string().contains("lengths"));
    let schedule = Schedule::ShortToLong;
    let unplanned = MixtureConfig { schedule, ..config(&[0.5, 0.5], Share::Exact) };
    assert!(refused(unplanned).to_string().contains("planned_rows"));
}

#[test]
fn a_share_that_a_source_cannot_fill_is_reported() {
    // `s0` answers 10 of 100 problems, and half of all rows are asked of it.
    let pairs = pairs(100, 2, |p, s| s == 1 || p < 10);
    let mixture =
        MixDistillation::new(pairs, config(&[0.5, 0.5], Share::Exact), seeded(1)).unwrap();
    let report = mixture.report();
    assert_eq!(rows(&mixture), [10, 90]);
    assert_eq!(report.shortfalls.len(), 1);
    let text = report.to_string();
    assert!(
        text.contains("`s0` answers 10 of 100 problems: its share is 10.0%, not 50.0%"),
        "{text}"
    );
}

#[test]
fn a_drawn_share_that_cannot_be_met_is_reported_too() {
    // `s1` answers only half of the problems, and 80% is asked of it.
    let pairs = pairs(1000, 2, |p, s| s == 0 || p % 2 == 0);
    let mixture = MixDistillation::new(pairs, config(&[0.2, 0.8], Share::Bernoulli), seeded(1));
    let report = mixture.unwrap().report();
    assert!(report.shortfalls[0].starts_with("`s1` answers 500 of 1000 problems"), "{report}");
}

#[test]
fn counts_stay_exact_where_some_problems_lack_an_answer() {
    let pairs = pairs(100, 2, |p, s| s == 1 || p < 30);
    let mixture =
        MixDistillation::new(pairs, config(&[0.2, 0.8], Share::Exact), seeded(1)).unwrap();
    assert_eq!(rows(&mixture), [20, 80]);
    assert!(mixture.report().shortfalls.is_empty());
}

#[test]
fn counts_stay_exact_where_thousands_of_problems_must_exchange_their_answers() {
    // `s1` answers all problems, `s0` and `s2` a part each. At first `s1` gives too much of its
    // share to problems that `s0` could serve, and some 20,000 others are left with nothing.
    let pairs = pairs(200_000, 3, |p, s| s == 1 || (s == 0) == (p % 10 < 3));
    let config = MixtureConfig { redraw: true, ..config(&[0.30, 0.65, 0.05], Share::Exact) };
    let mixture = MixDistillation::new(pairs, config, seeded(1)).unwrap();
    for mixture in [mixture.at_epoch(1), mixture] {
        assert_eq!(rows(&mixture), [60_000, 130_000, 10_000]);
        assert!(mixture.report().shortfalls.is_empty());
    }
}

#[test]
fn the_report_adds_up() {
    let pairs = pairs(97, 2, |_, _| true);
    let options = MixtureOptions { lengths: Some(lengths(97)), ..seeded(1) };
    let mixture = MixDistillation::new(pairs, config(&[0.2, 0.8], Share::Exact), options);
    let mixture = mixture.unwrap();
    let report = mixture.report();
    let (mut characters, mut tokens, mut trained) = (0, 0, 0);
    for problem in 0..97 {
        let row = mixture.row(problem);
        let length = lengths(97).get(row.source_index(), row.record_index()).unwrap();
        characters += row.record().solution.len() as u64;
        tokens += u64::from(length.tokens);
        trained += u64::from(length.trained);
    }
    let total = report.total();
    assert_eq!((total.rows, total.characters), (97, characters));
    assert_eq!((total.tokens, total.trained_tokens), (tokens, trained));
    let shares = report.sources.iter().map(|s| report.realized(s));
    let sums = shares.fold([0.0; 4], |sum, s| std::array::from_fn(|i| sum[i] + s[i]));
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{sums:?}");
}

#[test]
fn items_are_views_and_the_index_is_two_bytes_a_problem() {
    let pairs = pairs(100_000, 2, |_, _| true);
    let mixture = MixDistillation::new(pairs.clone(), config(&[0.2, 0.8], Share::Exact), seeded(1));
    let mixture = mixture.unwrap();
    let row = mixture.row(77_777);
    let stored = pairs.record(77_777, row.source_index()).unwrap();
    assert!(std::ptr::eq(row.record(), stored), "the text is not copied");
    // Ten million problems: 20 MB.
    assert!(mixture.index_bytes() <= 2 * 100_000 + 1024, "{}", mixture.index_bytes());
}
