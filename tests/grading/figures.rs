//! The measured figures: how many labeled rows of other projects' test data get their label.
//! `MIXDISTILL_SHOW=1` prints every row that differs.

use super::common;
use mixdistill::eval::{
    ANY, Extractor, Tier, equal, equal_to_decimals, extract, final_answer, same_answer,
};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn rows(file: PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// The extractors that a row's `match_types` name; `None` where it asks for letters only.
fn extractors(row: &Value) -> Option<Vec<Extractor>> {
    let types = row.get("match_types").filter(|t| t.as_array().is_some_and(|t| !t.is_empty()));
    let types = types.unwrap_or(&row["extra"]["match_type"]);
    let has = |name: &str| types.as_array().is_some_and(|t| t.iter().any(|t| t == name));
    let mut chosen = vec![];
    if has("latex") {
        chosen.push(Extractor::Boxed);
    }
    if has("latex") || has("expr") {
        chosen.push(Extractor::FinalAnswerPhrase);
    }
    if has("expr") {
        chosen.push(Extractor::Whole);
    }
    if has("latex") || has("expr") {
        chosen.push(match (has("latex"), has("expr")) {
            (true, false) => Extractor::Formula,
            (false, true) => Extractor::LastNumber,
            _ => Extractor::Last,
        });
    }
    (!chosen.is_empty()).then_some(chosen)
}

fn by_match_types(row: &Value) -> Option<bool> {
    let extractors = extractors(row)?;
    let decimals = row["extra"]["precision"].as_u64().unwrap_or(6) as u32;
    // As in `grade`: a reference that states nothing expressly is the answer.
    let gold = extract(text(row, "gold"), &extractors).unwrap_or(text(row, "gold").to_owned());
    let Some(answer) = extract(text(row, "prediction"), &extractors) else { return Some(false) };
    Some(equal_to_decimals(&gold, &answer, decimals))
}

fn letters(row: &Value) -> Option<bool> {
    if extractors(row).is_some() {
        return None;
    }
    let choice = [Extractor::Choice("ABCD".chars().collect())];
    let gold = extract(text(row, "gold"), &choice)?;
    Some(extract(text(row, "prediction"), &choice).as_ref() == Some(&gold))
}

fn solution(row: &Value) -> Option<bool> {
    let answer = extract(text(row, "prediction"), &ANY);
    Some(answer.is_some_and(|answer| same_answer(text(row, "gold"), &answer)))
}

struct Count {
    asked: usize,
    agree: usize,
}

impl Count {
    fn share(&self) -> f64 {
        100.0 * self.agree as f64 / self.asked.max(1) as f64
    }
}

/// Prints a line of the table and gives the share of all rows.
fn measure(name: &str, file: PathBuf, goal: f64, verdict: &dyn Fn(&Value) -> Option<bool>) -> f64 {
    let show = std::env::var_os("MIXDISTILL_SHOW").is_some();
    let mut all = Count { asked: 0, agree: 0 };
    let mut time = Duration::ZERO;
    for (index, row) in rows(file).iter().enumerate() {
        let start = Instant::now();
        let verdict = verdict(row);
        time += start.elapsed();
        let Some(verdict) = verdict else { continue };
        let agrees = Some(verdict) == row["expected"].as_bool();
        all.asked += 1;
        all.agree += usize::from(agrees);
        if show && !agrees {
            let tail = |text: &str| {
                text.chars()
                    .rev()
                    .take(160)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<String>()
            };
            eprintln!(
                "  {name} {index}: expected {}, gold {:?}, answer {:?}",
                row["expected"],
                tail(text(row, "gold")),
                tail(text(row, "prediction")),
            );
        }
    }
    println!(
        "| {name:28} | {:5} | {:5} | {:6.2} | {goal:5.1} | {:8.1} |",
        all.asked,
        all.agree,
        all.share(),
        time.as_secs_f64() * 1e6 / all.asked.max(1) as f64,
    );
    all.share()
}

#[test]
fn labeled_rows() {
    let Some(grading) = common::shared("grading") else { return };
    println!("| file                         | asked | agree |      % |  goal | us / row |");
    println!("|------------------------------|-------|-------|--------|-------|----------|");
    type Verdict = Box<dyn Fn(&Value) -> Option<bool>>;
    let agreed = |row: &Value| row["math_verify_agrees"] == Value::Bool(true);
    let table: [(&str, &str, f64, Verdict); 12] = [
        ("math_verify", "math_verify", 95.0, Box::new(by_match_types)),
        ("lighteval, LaTeX or numbers", "lighteval_extractive", 95.0, Box::new(by_match_types)),
        ("lighteval, letters", "lighteval_extractive", 0.0, Box::new(letters)),
        (
            "hendrycks, its tier",
            "hendrycks_math_equivalence",
            100.0,
            Box::new(|row| {
                Some(equal(Tier::Hendrycks, text(row, "gold"), text(row, "prediction")))
            }),
        ),
        (
            "open_instruct strip_string",
            "open_instruct_strip_string",
            0.0,
            Box::new(|row| Some(same_answer(text(row, "gold"), text(row, "prediction")))),
        ),
        ("open_instruct gsm8k", "open_instruct_gsm8k", 0.0, Box::new(solution)),
        ("gsm8k_model_solutions", "gsm8k_model_solutions", 100.0, Box::new(solution)),
        (
            "math500, box",
            "math500_labelled_outputs",
            99.0,
            Box::new(move |row| agreed(row).then(|| solution(row)).flatten()),
        ),
        (
            "math500, box, mathematical",
            "math500_labelled_outputs",
            0.0,
            Box::new(move |row| {
                let answer = final_answer(text(row, "prediction"));
                agreed(row).then(|| {
                    answer.is_some_and(|a| equal(Tier::Mathematical, text(row, "gold"), &a))
                })
            }),
        ),
        (
            "math500, tail of the output",
            "math500_labelled_outputs",
            0.0,
            Box::new(move |row| {
                let answer = extract(text(row, "prediction_tail"), &ANY);
                agreed(row).then(|| answer.is_some_and(|a| same_answer(text(row, "gold"), &a)))
            }),
        ),
        ("qwen25_math_cot_100x8", "qwen25_math_cot_100x8", 99.0, Box::new(solution)),
        (
            "qwen25, mathematical",
            "qwen25_math_cot_100x8",
            0.0,
            Box::new(|row| {
                let answer = final_answer(text(row, "prediction"));
                Some(answer.is_some_and(|a| equal(Tier::Mathematical, text(row, "gold"), &a)))
            }),
        ),
    ];
    let mut missed = vec![];
    for (name, file, goal, verdict) in &table {
        let share = measure(name, grading.join(format!("{file}.jsonl")), *goal, verdict);
        if share < *goal {
            missed.push(format!("{name}: {share:.2} % of {goal} %"));
        }
    }
    assert!(missed.is_empty(), "below the goal: {missed:?}");
}

/// The gold answer of a row of a benchmark.
fn gold(row: &Value) -> Option<String> {
    for key in ["answer", "Answer", "target"] {
        if let Some(answer) = row[key].as_str() {
            return Some(answer.to_owned());
        }
        if row[key].is_number() {
            return Some(row[key].to_string());
        }
    }
    if let Some(answer) = row["final_answer"][0].as_str() {
        return Some(answer.to_owned());
    }
    final_answer(text(row, "solution"))
}

#[test]
fn golds_of_benchmarks() {
    let Some(bench) = common::shared("bench") else { return };
    println!("| benchmark        | golds | not themselves | equal pairs of different golds |");
    println!("|------------------|-------|----------------|--------------------------------|");
    let mut wrong = vec![];
    let files = [
        "aime24",
        "amc23",
        "gaokao2023en",
        "math500",
        "mawps",
        "minerva_math",
        "olympiadbench",
        "sat_math",
        "svamp",
    ];
    for file in files {
        let golds: std::collections::BTreeSet<String> =
            rows(bench.join(format!("{file}.jsonl"))).iter().filter_map(gold).collect();
        let golds: Vec<String> = golds.into_iter().filter(|gold| !gold.is_empty()).collect();
        let mut not_themselves = 0;
        for gold in &golds {
            let boxed = final_answer(&format!("So it is \\boxed{{{gold}}}."));
            if !boxed.is_some_and(|answer| same_answer(gold, &answer)) {
                not_themselves += 1;
                wrong.push(gold.clone());
            }
        }
        let mut pairs = vec![];
        for (at, a) in golds.iter().enumerate() {
            for b in &golds[..at] {
                let (one, other) = (same_answer(a, b), same_answer(b, a));
                assert_eq!(one, other, "not symmetric: {a} and {b}");
                if one {
                    pairs.push((b, a));
                }
            }
        }
        println!("| {file:16} | {:5} | {not_themselves:14} | {:30} |", golds.len(), pairs.len());
        if std::env::var_os("MIXDISTILL_SHOW").is_some() {
            pairs.iter().for_each(|pair| eprintln!("  {file}: {pair:?}"));
        }
    }
    assert!(wrong.is_empty(), "golds that do not equal themselves: {wrong:?}");
}
