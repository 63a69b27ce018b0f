//! Public datasets are read without flags: rows of our own in their columns (`data_sets/`, made by
//! `make_data_sets.py`), as JSONL and as Parquet. `docs/data.md` is the table of what is read.

use std::path::{Path, PathBuf};

use mixdistill::data::{
    ColumnMap, Join, MAX_LEFT_OUT, Pairs, Records, Source, read_prompts, read_records,
};
use mixdistill::eval::Benchmark;

use crate::assert_adds_up;

fn file(name: &str, ending: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reading/data_sets");
    folder.join(format!("{name}.{ending}"))
}

/// The kinds of files that this build reads.
fn endings() -> &'static [&'static str] {
    if cfg!(feature = "parquet") { &["jsonl", "parquet"] } else { &["jsonl"] }
}

fn read_with(name: &str, ending: &str, columns: &str) -> Records {
    let map = match columns {
        "" => ColumnMap::default(),
        text => ColumnMap::parse(text).unwrap(),
    };
    let records = read_records(file(name, ending), &map, MAX_LEFT_OUT);
    let records = records.unwrap_or_else(|error| panic!("{name}.{ending}: {error}"));
    assert_adds_up(&records);
    records
}

fn source(role: &str, name: &str, ending: &str, max_left_out: f64) -> Source {
    Source::read(role, &file(name, ending), &ColumnMap::default(), max_left_out)
        .unwrap_or_else(|error| panic!("{name}.{ending}: {error}"))
}

fn problem(n: usize) -> String {
    format!("What is {n} + {n}?")
}

fn human(n: usize) -> String {
    format!("We add: ${n} + {n} = \\boxed{{{}}}$.", 2 * n)
}

/// An answer of a reasoning model.
fn reasoned(n: usize) -> String {
    format!("<think>\n{n} and {n}.\n</think>\n\nThe sum is \\boxed{{{}}}.", 2 * n)
}

/// One row's solution and gold answer, by its number.
type Expected = fn(usize) -> (String, Option<String>);

fn gold(n: usize) -> Option<String> {
    Some((2 * n).to_string())
}

#[track_caller]
fn assert_rows(name: &str, source: &Source, expected: Expected) {
    assert_eq!(source.records().len(), 5, "{name}");
    for (index, record) in source.records().iter().enumerate() {
        let n = index + 1;
        let found = (record.problem.clone(), record.solution.clone(), record.answer.clone());
        let (solution, answer) = expected(n);
        assert_eq!(found, (problem(n), solution, answer), "{name}");
        assert_eq!(record.system, None, "{name}");
    }
}

#[test]
fn long_answers_are_read_of_each_data_set() {
    let sets: [(&str, Expected); 11] = [
        ("gsm8k", |n| {
            let sum = 2 * n;
            (format!("{n} + {n} = <<{n}+{n}={sum}>>{sum}\n#### {sum}"), None)
        }),
        ("math500", |n| (human(n), gold(n))),
        ("openthoughts", |n| (reasoned(n), None)),
        ("openthoughts_metadata", |n| (reasoned(n), Some(human(n)).filter(|_| n < 4))),
        ("bespoke_stratos", |n| (reasoned(n), None)),
        ("s1k_1_1", |n| (reasoned(n), gold(n))),
        ("s1k", |n| (reasoned(n), gold(n))),
        ("limo", |n| (human(n), gold(n))),
        ("numina_math_cot", |n| (human(n), None)),
        ("openmathreasoning", |n| (reasoned(n), gold(n))),
        ("rsr_data", |n| (reasoned(n), None)),
    ];
    for ending in endings() {
        for (name, expected) in sets {
            assert_rows(name, &source("long", name, ending, MAX_LEFT_OUT), expected);
        }
    }
}

#[test]
fn of_several_answers_the_first_that_is_right_and_complete_is_read() {
    for ending in endings() {
        let records = read_with("openr1_math", ending, "");
        let texts: Vec<&str> = records.records.iter().map(|r| r.solution.as_str()).collect();
        let text = |n, letter| format!("<think>\n{letter}\n</think>\n\n{n}: {letter}");
        assert_eq!(texts, [text(1, 'a'), text(2, 'b'), text(3, 'b')]);
        assert_eq!((records.wrong, records.without_verdict, records.read), (1, 1, 5));
        assert_eq!(records.records[0].answer.as_deref(), Some("2"));
        assert_eq!(records.records[0].id.as_deref(), Some("uuid-1"));
        assert_eq!(
            records.columns.to_string(),
            "problem=problem, solution=generations, answer=answer, id=uuid, \
             correct=correctness_math_verify|correctness_llama|is_reasoning_complete"
        );
        assert!(records.columns.notes[0].contains("solution=solution reads `solution`"));
        // What is named is read, whatever else there is.
        let records = read_with("openr1_math", ending, "solution=solution");
        assert_eq!((records.records.len(), &records.records[4].solution), (5, &human(5)));
        let first = "solution=generations.0,correct=correctness_math_verify.0";
        let records = read_with("openr1_math", ending, first);
        assert_eq!((records.records.len(), records.wrong, records.without_verdict), (1, 3, 1));
    }
}

#[test]
fn the_same_file_gives_long_answers_and_short_ones() {
    for ending in endings() {
        for (name, rows) in [("openr1_math", 3), ("openthoughts_metadata", 3)] {
            let long = source("long", name, ending, 1.0);
            let short = source("short", name, ending, 1.0);
            for record in short.records() {
                let n = short.records().iter().position(|other| other == record).unwrap() + 1;
                assert_eq!((&record.problem, &record.solution), (&problem(n), &human(n)), "{name}");
            }
            let (pairs, ledger) = Pairs::join(vec![long, short], Join::Inner).unwrap();
            assert_eq!(pairs.len(), rows, "{name}");
            assert!(ledger.adds_up());
            assert!(pairs.answer(0).is_some_and(|answer| answer.contains('2')));
        }
    }
}

#[test]
fn reasoning_in_marks_of_its_own_is_read_as_reasoning_unless_it_is_to_stand() {
    for name in ["openthoughts", "bespoke_stratos"] {
        for ending in endings() {
            let records = read_with(name, ending, "");
            assert!(records.columns.notes[0].starts_with("5 answers have reasoning between"));
            assert_eq!(records.with_system, 0);
            let records = read_with(name, ending, "reasoning=none");
            assert!(records.records[0].solution.starts_with("<|begin_of_thought|>\n\n1 and 1."));
            assert_eq!((records.with_system, records.columns.notes.len()), (5, 0));
            let records = read_with(name, ending, "system=none");
            assert_eq!((&records.records[1].solution, records.with_system), (&reasoned(2), 0));
        }
    }
}

#[test]
fn grades_in_words_are_verdicts() {
    for ending in endings() {
        let records = read_with("s1k_1_1", ending, "correct=deepseek_grade");
        assert_eq!((records.records.len(), records.wrong), (3, 2));
    }
}

#[test]
fn references_are_read_of_each_data_set_that_has_them() {
    for ending in endings() {
        for (name, rows) in [
            ("gsm8k", 5),
            ("math500", 5),
            ("openr1_math", 5),
            ("openthoughts_metadata", 3),
            ("s1k_1_1", 5),
            ("s1k", 5),
            ("limo", 5),
            ("numina_math_cot", 5),
            ("openmathreasoning", 5),
            ("dapo_math", 5),
        ] {
            let benchmark = Benchmark::read(&file(name, ending));
            let benchmark = benchmark.unwrap_or_else(|error| panic!("{name}.{ending}: {error}"));
            let references: Vec<&str> =
                benchmark.problems.iter().map(|problem| problem.reference.as_str()).collect();
            assert_eq!(references, ["2", "4", "6", "8", "10"][..rows], "{name}");
            assert_eq!(benchmark.rows(), 5, "{name}");
            assert!(benchmark.problems[1].problem.contains(&problem(2)), "{name}");
            assert_eq!(benchmark.name, name);
        }
    }
}

#[test]
fn problems_without_answers_are_said_to_be_for_making_pairs() {
    for ending in endings() {
        let error = read_records(file("dapo_math", ending), &ColumnMap::default(), MAX_LEFT_OUT);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("no column is recognized as the solution")
                && error.contains("`mixdistill pairs --problems FILE` creates answers"),
            "{error}"
        );
    }
}

#[test]
fn problems_of_each_data_set_can_be_asked() {
    for ending in endings() {
        for name in [
            "gsm8k",
            "math500",
            "openr1_math",
            "openthoughts",
            "openthoughts_metadata",
            "bespoke_stratos",
            "s1k_1_1",
            "s1k",
            "limo",
            "numina_math_cot",
            "openmathreasoning",
            "dapo_math",
            "rsr_data",
        ] {
            let read = read_prompts(&file(name, ending), &ColumnMap::default());
            let read = read.unwrap_or_else(|error| panic!("{name}.{ending}: {error}"));
            assert_eq!(read.prompts.len(), 5, "{name}");
            for (index, row) in read.prompts.iter().enumerate() {
                assert!(row.problem.contains(&problem(index + 1)), "{name}");
            }
        }
    }
}
