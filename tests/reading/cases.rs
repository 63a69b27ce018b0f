//! Small inputs modeled on reports of other tools' users, if they are beside the repository: rows
//! and their expected results.

use std::path::PathBuf;

use mixdistill::data::{ColumnMap, Join, MAX_LEFT_OUT, Pairs, Records, Source, read_records};

use crate::assert_adds_up;

fn case(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/cases/rows").join(file);
    if !path.is_file() {
        println!("skipped: no {}", path.display());
        return None;
    }
    Some(path)
}

fn columns(text: &str) -> ColumnMap {
    if text.is_empty() { ColumnMap::default() } else { ColumnMap::parse(text).unwrap() }
}

fn read(file: &str, map: &str) -> Option<Records> {
    let records = read_records(case(file)?, &columns(map), MAX_LEFT_OUT);
    let records = records.unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_adds_up(&records);
    Some(records)
}

/// The whole answer to the first problem.
const WHOLE: &str = "<think>\nI add the two numbers. 0 and 1 are next to each other, so the sum is twice \
                     0 and one more, which is 1.\n</think>\n\nThe sum is \\boxed{1}.";

#[test]
fn every_row_has_its_whole_answer() {
    for (file, map, rows) in [
        ("01-reasoning_content--long.jsonl", "", 10),
        ("01-thinking--long.jsonl", "", 10),
        ("05-verdict-null--long.jsonl", "solution=generations.0,correct=correctness.0", 9),
        ("06-missing-optional--long.jsonl", "", 10),
        ("08-content-parts--long.jsonl", "", 10),
        ("10-system-turn--long.jsonl", "", 10),
        ("10b-system-column--long.jsonl", "", 10),
        ("12b-nan-in-array--long.json", "", 10),
        ("13-big-ids--long.jsonl", "", 10),
        ("17-stringified-messages--long.jsonl", "", 10),
        ("19-context-column--long.jsonl", "", 10),
        ("20-s1k--long.jsonl", "", 10),
        ("22-query-column--long.jsonl", "", 10),
    ] {
        let Some(records) = read(file, map) else { return };
        assert_eq!(records.records.len(), rows, "{file}");
        assert_eq!(records.records[0].solution, WHOLE, "{file}");
        let system = records.records[0].system.is_some();
        assert_eq!(system, file.starts_with("10"), "{file}");
    }
}

#[test]
fn answers_of_reasoning_alone_and_answers_without_a_verdict_end_with_the_reason() {
    let Some(path) = case("01b-content-null--long.jsonl") else { return };
    let error = read_records(&path, &ColumnMap::default(), 1.0).unwrap_err().to_string();
    assert!(error.contains("10 of 10 rows cannot be used: 10 x no answer, only reasoning ("));
    let Some(path) = case("05-verdict-null--long.jsonl") else { return };
    let map = columns("solution=generations.1,correct=correctness.1");
    let source = Source::read("long", &path, &map, MAX_LEFT_OUT).unwrap();
    let error = Pairs::join(vec![source], Join::Inner).unwrap_err().to_string();
    assert!(error.contains("of its 10 records, 10 without a verdict"), "{error}");
}

#[test]
fn half_a_character_is_counted_and_no_row_is_lost() {
    let Some(records) = read("11-lone-surrogate--long.jsonl", "") else { return };
    assert_eq!((records.records.len(), records.broken_characters), (10, 1));
    assert!(records.records[4].solution.starts_with("<think>\n\u{fffd} I add"));
}

#[test]
fn ids_beyond_any_machine_number_stay_apart() {
    let Some(records) = read("13-big-ids--long.jsonl", "") else { return };
    let ids: std::collections::BTreeSet<_> =
        records.records.iter().map(|record| record.id.clone()).collect();
    assert_eq!(ids.len(), 10);
    assert!(ids.contains(&Some("123456789012345678901".into())));
    assert_eq!(records.records[0].answer.as_deref(), Some("99999999999999999990"));
}

#[test]
fn all_pair_with_their_partner() {
    for file in [
        "01-reasoning_content--long.jsonl",
        "10-system-turn--long.jsonl",
        "12b-nan-in-array--long.json",
        "13-big-ids--long.jsonl",
        "17-stringified-messages--long.jsonl",
        "20-s1k--long.jsonl",
        "22-query-column--long.jsonl",
    ] {
        let (Some(long), Some(short)) = (case(file), case("short.jsonl")) else { return };
        let source = |name, path: &PathBuf| {
            Source::read(name, path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap()
        };
        let (pairs, ledger) =
            Pairs::join(vec![source("long", &long), source("short", &short)], Join::Inner).unwrap();
        assert_eq!((pairs.len(), ledger.sources[0].duplicates), (10, 0), "{file}");
        assert!(ledger.adds_up());
    }
}

#[test]
fn problems_with_a_context_are_no_duplicates_of_one_another() {
    let Some(path) = case("19-context-column--long.jsonl") else { return };
    let source = Source::read("long", &path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap();
    let (pairs, ledger) = Pairs::join(vec![source], Join::Inner).unwrap();
    assert_eq!((pairs.len(), ledger.sources[0].duplicates), (10, 0));
    assert_eq!(
        pairs.problem(1),
        "There are 1 red balls and 2 blue balls. How many are there in all?"
    );
}
