//! Promise: the grader agrees with a careful person. The rows of the shared file are graded as
//! `evaluate` grades them, and whole texts are written by hand in `texts.txt`.

use super::common;
use mixdistill::eval::{
    AnswerKind, Extractor, equal_to_decimals, extract, final_answer, grade, same_answer,
};
use serde_json::Value;

fn by_kind(kind: AnswerKind, reference: &str, text: &str) -> bool {
    kind.answer(text).is_some_and(|stated| same_answer(reference, &stated))
}

/// With the extractors that ask for one kind of match, as in `figures.rs`.
fn by_extractors(extractors: &[Extractor], reference: &str, text: &str) -> bool {
    let reference = extract(reference, extractors).unwrap_or(reference.to_owned());
    extract(text, extractors).is_some_and(|answer| equal_to_decimals(&reference, &answer, 6))
}

fn verdict(form: &str, reference: &str, text: &str) -> bool {
    use Extractor::{Boxed, FinalAnswerPhrase, Formula, Last, LastNumber, Whole};
    let extractors = |wanted: &[Extractor]| by_extractors(wanted, reference, text);
    match form {
        "stated" => by_kind(AnswerKind::Stated, reference, text),
        "number" => by_kind(AnswerKind::LastNumber, reference, text),
        "choice" => by_kind(AnswerKind::Choice, reference, text),
        "graded" => grade(reference, text).correct,
        "pair" => {
            let same = same_answer(reference, text);
            assert_eq!(same, same_answer(text, reference), "not symmetric: {reference}, {text}");
            same
        }
        "any" => extractors(&[Boxed, FinalAnswerPhrase, Whole, Last]),
        "plain" => extractors(&[FinalAnswerPhrase, Whole, LastNumber]),
        "latex" => extractors(&[Boxed, FinalAnswerPhrase, Formula]),
        "letters" => {
            let letters = Extractor::Choice("ABCD".chars().collect());
            extract(text, &[letters]).as_deref() == Some(reference)
        }
        _ => panic!("unknown form {form}"),
    }
}

#[test]
fn texts() {
    let (mut count, mut wrong) = (0, vec![]);
    for line in include_str!("texts.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line[2..].split(" ;; ");
        let (form, reference, text) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        if verdict(form, reference, &text.replace('⏎', "\n")) != line.starts_with("= ") {
            wrong.push(line);
        }
        count += 1;
    }
    println!("{count} texts");
    assert!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The reference of a row: text, or the digits of a number exactly as they are written.
fn reference(line: &str, row: &Value) -> String {
    if let Some(text) = row["reference"].as_str() {
        return text.to_owned();
    }
    let (_, number) = line.split_once("\"reference\":").unwrap();
    number.trim_start().split([',', '}']).next().unwrap().trim().to_owned()
}

#[test]
fn shared_rows() {
    let Some(file) = common::shared("../cases/grading.jsonl") else { return };
    let text = std::fs::read_to_string(file).unwrap();
    let (mut count, mut wrong) = (0, vec![]);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let row: Value = serde_json::from_str(line).unwrap();
        let reference = reference(line, &row);
        // A reference with its working, as the reader of benchmarks takes it.
        let (kind, reference) = match row["form"].as_str() {
            Some("gsm8k") => (AnswerKind::LastNumber, final_answer(&reference).unwrap()),
            _ => (AnswerKind::Stated, reference),
        };
        let answer = row["answer"].as_str().unwrap();
        if Some(by_kind(kind, &reference, answer)) != row["right"].as_bool() {
            wrong.push(line.to_owned());
        }
        count += 1;
    }
    println!("shared cases: {} of {count} as a careful person says", count - wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
