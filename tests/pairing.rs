//! Joining sources by problem: every lost record is counted in the ledger.

use mixdistill::data::{CotRecord, Join, Ledger, Pairs, Source};
use proptest::prelude::*;

fn record(id: Option<&str>, problem: &str) -> CotRecord {
    CotRecord {
        system: None,
        earlier: vec![],
        id: id.map(str::to_owned),
        problem: problem.into(),
        solution: format!("solved {problem}"),
        answer: None,
    }
}

fn join(a: Vec<CotRecord>, b: Vec<CotRecord>, how: Join) -> (Pairs, Ledger) {
    let (pairs, ledger) =
        Pairs::join(vec![Source::new("a", a), Source::new("b", b)], how).expect("join");
    assert!(ledger.adds_up(), "{ledger}");
    (pairs, ledger)
}

#[test]
fn problems_are_joined_by_text_whatever_its_white_space() {
    let (pairs, _) = join(
        vec![record(None, "1 + 1?"), record(None, "  2\n+ 2? ")],
        vec![record(None, "2 + 2?"), record(None, "1 + 1?")],
        Join::Inner,
    );
    assert_eq!(pairs.len(), 2);
    assert_eq!(pairs.record_index(0, 1), Some(1));
    assert_eq!(pairs.record_index(1, 1), Some(0));
}

#[test]
fn an_id_joins_problems_that_agree_but_for_spaces_and_case() {
    let (pairs, ledger) = join(
        vec![record(Some("7"), "Find $x$ .")],
        vec![record(Some("7"), "find $x$.")],
        Join::Inner,
    );
    assert_eq!(pairs.len(), 1);
    assert_eq!(ledger.sources[1].id_conflicts, 0);
}

#[test]
fn an_id_does_not_join_different_problems() {
    let (pairs, ledger) = join(
        vec![record(Some("1"), "first"), record(Some("2"), "second")],
        vec![record(Some("1"), "second"), record(Some("3"), "third")],
        Join::Inner,
    );
    assert_eq!(pairs.len(), 1, "only `second` is in both, by its text");
    assert_eq!(pairs.problem(0), "second");
    assert_eq!(ledger.sources[1].id_conflicts, 1);
}

#[test]
fn duplicates_and_unmatched_records_are_counted() {
    let (pairs, ledger) = join(
        vec![record(None, "x"), record(None, "x"), record(None, "y"), record(None, "z")],
        vec![record(None, "x"), record(None, "w")],
        Join::Inner,
    );
    assert_eq!(pairs.len(), 1);
    let a = &ledger.sources[0];
    assert_eq!((a.read, a.duplicates, a.unmatched, a.usable), (4, 1, 2, 1));
    let b = &ledger.sources[1];
    assert_eq!((b.read, b.duplicates, b.unmatched, b.usable), (2, 0, 1, 1));
    assert_eq!(pairs.record_index(0, 0), Some(0), "the first answer is kept");
}

#[test]
fn an_outer_join_keeps_problems_of_one_source() {
    let (pairs, ledger) = join(
        vec![record(None, "x"), record(None, "y")],
        vec![record(None, "y"), record(None, "z")],
        Join::Outer,
    );
    assert_eq!((pairs.len(), pairs.available(0), pairs.available(1)), (3, 2, 2));
    assert_eq!(ledger.sources[0].unmatched, 0);
}

#[test]
fn an_empty_join_shows_the_first_key_of_each_side() {
    let sources = vec![
        Source::new("long", vec![record(Some("1"), "how many apples?")]),
        Source::new("short", vec![record(None, "how many pears?")]),
    ];
    let error = Pairs::join(sources, Join::Inner).unwrap_err().to_string();
    assert!(error.contains("`long`: id 1, \"how many apples?\""), "{error}");
    assert!(error.contains("`short`: \"how many pears?\""), "{error}");
}

#[test]
fn sources_that_cannot_be_joined_are_refused() {
    let one = || vec![record(None, "x")];
    let empty = CotRecord { solution: " \n".into(), ..record(None, "x") };
    for (sources, message) in [
        (vec![], "no source"),
        (vec![Source::new("a", one()), Source::new("a", one())], "two sources are called `a`"),
        (vec![Source::new("a", vec![])], "`a` has no usable record"),
        (vec![Source::new("a", vec![empty])], "`a` has no usable record"),
    ] {
        let error = Pairs::join(sources, Join::Inner).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn held_out_problems_and_training_problems_are_all_problems() {
    let records: Vec<CotRecord> = (0..50).map(|i| record(None, &format!("p{i}"))).collect();
    let (pairs, _) = join(records.clone(), records, Join::Inner);
    let (train, held) = pairs.split(12, 9);
    let mut all: Vec<&str> = (0..train.len()).map(|p| train.problem(p)).collect();
    all.extend((0..held.len()).map(|p| held.problem(p)));
    all.sort_unstable();
    all.dedup();
    assert_eq!((train.len(), held.len(), all.len()), (38, 12, 50));
    let again = pairs.split(12, 9).1;
    assert!((0..12).all(|p| again.problem(p) == held.problem(p)));
    let other = pairs.split(12, 10).1;
    assert!((0..12).any(|p| other.problem(p) != held.problem(p)));
}

proptest! {
    #[test]
    fn every_record_is_counted_once(
        a in prop::collection::vec((prop::option::of(0u8..6), 0u8..8), 1..40),
        b in prop::collection::vec((prop::option::of(0u8..6), 0u8..8), 1..40),
        outer in any::<bool>(),
    ) {
        let records = |list: &[(Option<u8>, u8)]| -> Vec<CotRecord> {
            let make = |(id, text): &(Option<u8>, u8)| {
                let problem = if *text == 0 { String::new() } else { format!("p {text}") };
                record(id.map(|id| id.to_string()).as_deref(), &problem)
            };
            list.iter().map(make).collect()
        };
        let how = if outer { Join::Outer } else { Join::Inner };
        let sources = vec![Source::new("a", records(&a)), Source::new("b", records(&b))];
        if let Ok((pairs, ledger)) = Pairs::join(sources, how) {
            prop_assert!(ledger.adds_up(), "{}", ledger);
            prop_assert_eq!(ledger.joined, pairs.len());
            let answers = (0..2).map(|s| pairs.available(s)).sum::<usize>();
            prop_assert_eq!(answers, ledger.sources.iter().map(|s| s.usable).sum::<usize>());
        }
    }
}
