//! Public datasets, if they are beside the repository.

use std::path::PathBuf;

use mixdistill::data::{ColumnMap, MAX_LEFT_OUT, Records, read_records};

use crate::assert_adds_up;

/// A file of the shared data, or `None` with a message where there is none.
fn shared(file: &str) -> Option<PathBuf> {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if !shared.is_dir() {
        println!("skipped: no ../shared beside the crate for {file}");
        return None;
    }
    Some(shared.join("data").join(file))
}

fn read(file: &str, columns: &str) -> Option<Records> {
    let map = match columns {
        "" => ColumnMap::default(),
        text => ColumnMap::parse(text).unwrap(),
    };
    let records =
        read_records(shared(file)?, &map, MAX_LEFT_OUT).unwrap_or_else(|error| panic!("{error}"));
    assert_adds_up(&records);
    Some(records)
}

#[track_caller]
fn assert_file(file: &str, columns: &str, rows: usize, shown: &str) {
    let Some(records) = read(file, columns) else { return };
    assert_eq!(records.read, rows, "{file}");
    assert_eq!(records.records.len(), rows, "{file}");
    assert_eq!(records.columns.to_string(), shown, "{file}");
}

#[test]
fn long_and_short_chains_of_thought_are_read_whole() {
    let shown = "problem=question, solution=solution, answer=gold_answer, id=id";
    for (file, rows) in [
        ("deepseek-r1-distill-qwen-32b", 291),
        ("qwen2.5-32b-instruct", 497),
        ("official-solution", 497),
        ("aime_journey_685", 685),
    ] {
        assert_file(&format!("longcot_example/{file}.jsonl"), "", rows, shown);
    }
}

#[test]
fn lists_of_responses_are_read_by_a_dotted_path() {
    for file in ["math500_distill_tree_3k", "math500_exp6_jl_only_wait"] {
        assert_file(
            &format!("longcot_example/{file}.jsonl"),
            "problem=question,solution=generated_responses.0",
            500,
            "problem=question, solution=generated_responses.0, answer=gold_answer",
        );
    }
    assert_file(
        "gsm8k/example_model_solutions.jsonl",
        "solution=175b_verification.solution",
        1319,
        "problem=question, solution=175b_verification.solution, answer=ground_truth",
    );
}

#[test]
fn gsm8k_is_read_without_a_map() {
    assert_file("gsm8k/train.jsonl", "", 7473, "problem=question, solution=answer");
    assert_file("gsm8k/test.jsonl", "", 1319, "problem=question, solution=answer");
    assert_file("gsm8k/test_socratic.jsonl", "", 1319, "problem=question, solution=answer");
}

#[test]
fn math_is_read_from_a_json_array_and_from_jsonl() {
    let file = "math/deepscaler_train_math.json";
    if let Some(records) = read(file, "") {
        assert_eq!(records.columns.to_string(), "problem=problem, solution=answer");
        // It has answers only: two of them are blank and two are null.
        assert_eq!((records.read, records.empty_solutions), (7474, 4));
        assert_eq!(records.records.len(), 7470);
    }
    assert_file("math/tora_math_test.jsonl", "", 5000, "problem=problem, solution=solution");
    assert_file(
        "bench/math500.jsonl",
        "",
        500,
        "problem=problem, solution=solution, answer=answer, id=unique_id",
    );
}

#[test]
fn a_list_of_solutions_is_refused_with_the_path_to_name() {
    let Some(path) = shared("bench/olympiadbench.jsonl") else { return };
    let error = read_records(&path, &ColumnMap::default(), MAX_LEFT_OUT).unwrap_err().to_string();
    assert!(error.contains("olympiadbench.jsonl:1: column `solution`: found a list of 1"));
    assert!(error.ends_with("Name one element of the list, for example solution=solution.0"));
    let map = ColumnMap::parse("solution=solution.0,answer=final_answer.0").unwrap();
    let records = read_records(&path, &map, MAX_LEFT_OUT).unwrap();
    assert_eq!(records.records.len(), 675);
}
