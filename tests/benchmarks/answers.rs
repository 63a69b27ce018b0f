//! Benchmarks and answers in the forms that other programs write.

use crate::graded;
use mixdistill::eval::{AnswerOptions, Benchmark, GradedAnswer, Scores, grade_answers};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn write_text(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Writes a file of JSON lines.
fn write_rows(folder: &Path, name: &str, rows: &[Value]) -> PathBuf {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write_text(folder, name, &text)
}

#[test]
fn benchmarks_and_answers_are_read_as_training_files_are() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_text(folder.path(), name, text);
    let rows = r#"{"problem":"1+1?","answer":2},{"problem":"2+2?","answer":4,"score":NaN}"#;
    let answers =
        r#"{"problem":"1+1?","text":"\\boxed{2}"},{"problem":"2+2?","text":"\\boxed{5}"}"#;
    for (form, begin, between, end) in
        [("bom.jsonl", "\u{feff}", "\r\n", ""), ("list.json", "\u{feff}[", ",\n", "]")]
    {
        let text =
            |rows: &str| format!("{begin}{}{end}", rows.replace("},{", &format!("}}{between}{{")));
        let bench = Benchmark::read(&write(form, &text(rows))).unwrap();
        assert_eq!(bench.problems.len(), 2, "{form}");
        let answers = write(&format!("answers-{form}"), &text(answers));
        let scores = Scores::of(&bench, &graded(&bench, &answers));
        assert_eq!((scores.problems, scores.accuracy), (2, 0.5), "{form}");
    }
    // Columns are named as in training.
    let named = write("named.jsonl", r#"{"q":"1+1?","meta":{"gold":2,"name":"a"},"ctx":"So:"}"#);
    let map = |text: &str| mixdistill::data::ColumnMap::parse(text).unwrap();
    let columns = map("problem=q,answer=meta.gold,id=meta.name,context=ctx");
    let bench = Benchmark::read_with(&named, &columns).unwrap();
    let problem = &bench.problems[0];
    assert_eq!((problem.problem.as_str(), problem.id.as_str()), ("So: 1+1?", "a"));
    assert_eq!((problem.reference.as_str(), bench.has_ids), ("2", true));
    let replies =
        write("replies.jsonl", r#"{"key":"a","reply":["\\boxed{2}"],"text":"\\boxed{3}"}"#);
    let options = AnswerOptions { columns: map("solution=reply.0,id=key"), ..Default::default() };
    assert!(grade_answers(&bench, &replies, &options).unwrap().answers[0].correct);
    // Problems and references of datasets as they are published.
    let dapo = write(
        "dapo.jsonl",
        r#"{"prompt":[{"role":"user","content":"1+1?"}],"reward_model":{"ground_truth":"2"}}"#,
    );
    let problem = Benchmark::read(&dapo).unwrap().problems.remove(0);
    assert_eq!((problem.problem.as_str(), problem.reference.as_str()), ("1+1?", "2"));
    let om = r#"{"problem":"Find x.","expected_answer":"4","generated_solution":"So \\boxed{5}"}"#;
    let om = Benchmark::read(&write("om.jsonl", om)).unwrap();
    assert_eq!(om.problems[0].reference, "4");
    let text = write("a.jsonl", r#"{"text": "\\boxed{4}"}"#);
    assert_eq!(Scores::of(&om, &graded(&om, &text)).accuracy, 1.0);
}

#[test]
fn long_integers_are_exact_references() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.jsonl");
    for number in ["12345678901234567", "123456789012345678901", "99999999999999999999"] {
        std::fs::write(&path, format!("{{\"problem\": \"?\", \"answer\": {number}}}")).unwrap();
        let problem = Benchmark::read(&path).unwrap().problems.remove(0);
        assert_eq!(problem.reference, number);
        let grade =
            |text: &str| GradedAnswer::of(&problem, 0, format!("\\boxed{{{text}}}"), false).correct;
        assert!(grade(number));
        let other = format!("{}8", &number[..number.len() - 1]);
        assert!(!grade(&other), "{other}");
    }
}

#[test]
fn answers_to_rows_without_a_usable_reference_are_counted_and_do_not_end_the_grading() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| write_rows(folder.path(), name, rows);
    let json = |text: &str| serde_json::from_str(text).unwrap();
    let bench = write(
        "b.jsonl",
        &[
            json(r#"{"id": "a", "problem": "1+1?", "answer": 2}"#),
            json(r#"{"id": "b", "problem": "Why?", "solution": "It has no box."}"#),
            json(r#"{"id": "c", "problem": "Which?", "options": ["x", "y"], "answer": "z"}"#),
            json(r#"{"id": "d", "problem": "3+6?", "solution": "It is \\boxed 9."}"#),
        ],
    );
    let benchmark = Benchmark::read(&bench).unwrap();
    assert_eq!((benchmark.problems.len(), benchmark.without_answer.len()), (2, 1));
    assert_eq!(benchmark.left_out.rows_for("answer not among the options"), 1);
    // MATH's own form of a box.
    assert_eq!(benchmark.problems[1].reference, "9");
    let boxed = |n: usize| format!("\\boxed{{{n}}}");
    let by_id = ["a", "b", "c", "d"]
        .map(|id| serde_json::json!({ "id": id, "text": boxed(if id == "d" { 9 } else { 2 }) }));
    let by_text = ["1+1?", "Why?", "Which?\nA) x\nB) y", "3+6?"]
        .map(|text| serde_json::json!({ "problem": text, "text": boxed(if text == "3+6?" { 9 } else { 2 }) }));
    let by_order = [2, 0, 0, 9].map(|n| serde_json::json!({ "text": boxed(n) }));
    for rows in [&by_id, &by_text, &by_order] {
        let path = write("answers.jsonl", rows);
        let graded = grade_answers(&benchmark, &path, &AnswerOptions::default());
        let graded = graded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((graded.answers.len(), graded.without_reference), (2, 2));
        assert!(graded.answers.iter().all(|answer| answer.correct));
    }
}

#[test]
fn outputs_of_generate_and_samples_of_lm_evaluation_harness_are_answers() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| write_rows(folder.path(), name, rows);
    let questions = ["1+1?", "2+2?", "3+3?"];
    let rows: Vec<_> = questions
        .iter()
        .enumerate()
        .map(|(n, q)| serde_json::json!({ "question": q, "answer": format!("#### {}", 2 * n + 2) }))
        .collect();
    let benchmark = Benchmark::read(&write("gsm8k.jsonl", &rows)).unwrap();
    let generated: Vec<_> = questions
        .iter()
        .enumerate()
        .map(|(n, q)| {
            serde_json::json!({ "index": n, "problem": q, "answer": format!("It is {}.", 2 * n + 2),
                "tokens": 5 + n, "ended": "at the length limit" })
        })
        .collect();
    let answers = graded(&benchmark, &write("generated.jsonl", &generated));
    assert!(answers.iter().all(|answer| answer.correct && answer.hit_limit));
    assert_eq!(answers[2].tokens, 7);
    // The harness writes a row for each filter, and may shuffle or limit the documents.
    let sample = |n: usize, filter: &str| {
        serde_json::json!({
            "doc_id": n, "doc": { "question": questions[n], "answer": "#### 0" }, "target": "0",
            "arguments": { "gen_args_0": { "arg_0": "Q: ...", "arg_1": {} } },
            "resps": [[format!("It is {}.", 2 * n + 2)]], "filtered_resps": ["0"], "filter": filter,
            "exact_match": 0.0, "doc_hash": "x",
        })
    };
    let samples = [
        (2, "strict-match"),
        (0, "strict-match"),
        (2, "flexible-extract"),
        (0, "flexible-extract"),
    ]
    .map(|(n, filter)| sample(n, filter));
    let answers = graded(&benchmark, &write("samples.jsonl", &samples));
    let ids: Vec<&str> = answers.iter().map(|answer| answer.id.as_str()).collect();
    assert_eq!(ids, ["3", "1"]);
    assert!(answers.iter().all(|answer| answer.correct));
    // Several responses to a document are several answers; a problem in another wording is found by
    // its number.
    let mut several = sample(1, "none");
    several["resps"] = serde_json::json!([["It is 4.", "It is 5."]]);
    several["doc"] = serde_json::json!({ "text": "2+2?" });
    let answers = graded(&benchmark, &write("several.jsonl", &[several]));
    let found: Vec<_> = answers.iter().map(|a| (a.id.as_str(), a.sample, a.correct)).collect();
    assert_eq!(found, [("2", 0, true), ("2", 1, false)]);
}

#[test]
fn guesses_within_a_reasoning_that_the_prompt_has_opened_are_no_answers() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_text(folder.path(), name, text);
    let bench = Benchmark::read(&write("b.jsonl", r#"{"problem":"?","answer":"12"}"#)).unwrap();
    let grade = |text: &str, reasoning_opened: bool| {
        let row = serde_json::json!({ "text": text }).to_string();
        let options = AnswerOptions { reasoning_opened, ..Default::default() };
        let graded = grade_answers(&bench, &write("a.jsonl", &row), &options).unwrap();
        let answer = &graded.answers[0];
        assert_eq!(answer.reasoning_opened, reasoning_opened);
        (answer.stated.clone(), answer.correct)
    };
    let whole = r"Maybe \boxed{11}? No.</think>So \boxed{12}.";
    assert_eq!(grade(whole, true), (Some("12".into()), true));
    assert_eq!(grade(whole, false), (Some("12".into()), true));
    let cut = r"Maybe \boxed{12}? Let me see";
    assert_eq!(grade(cut, true), (None, false));
    assert_eq!(grade(cut, false), (Some("12".into()), true));
}

#[test]
fn a_reference_beside_an_answer_is_never_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_text(folder.path(), name, text);
    let row = |n: usize, more: &str| {
        format!("{{\"question\": \"{n}?\", \"answer\": \"so #### {n}\"{more}}}\n")
    };
    let rows =
        |more: &dyn Fn(usize) -> String| -> String { (0..10).map(|n| row(n, &more(n))).collect() };
    let bench = Benchmark::read(&write("b.jsonl", &rows(&|_| String::new()))).unwrap();
    let grade = |more: &dyn Fn(usize) -> String| {
        let path = write("a.jsonl", &rows(more));
        grade_answers(&bench, &path, &AnswerOptions::default())
    };
    // One answer is missing: it is left out, and not the reference in its place.
    let one = grade(&|n| match n {
        3 => r#", "response": null"#.to_owned(),
        _ => r#", "response": "dunno""#.to_owned(),
    });
    let one = one.unwrap();
    assert_eq!((one.answers.len(), one.left_out.rows_for("no answer")), (9, 1));
    assert!(one.answers.iter().all(|answer| !answer.correct));
    for more in [r#", "response": null"#, r#", "reply": "dunno""#, ""] {
        let error = grade(&|_| more.to_owned()).unwrap_err().to_string();
        assert!(error.contains("answer"), "{error}");
    }
    for name in ["generated_text", "model_output"] {
        let graded = grade(&|_| format!(", \"{name}\": \"dunno\"")).unwrap();
        assert!(graded.answers.iter().all(|answer| !answer.correct && answer.text == "dunno"));
    }
    // A list of texts is several answers.
    let lists = grade(&|n| format!(", \"response\": [\"It is {n}.\", \"dunno\"]")).unwrap();
    assert_eq!(lists.answers.len(), 20);
    assert_eq!(lists.answers.iter().filter(|answer| answer.correct).count(), 10);
}

#[test]
fn names_and_places_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_text(folder.path(), name, text);
    let map = |text: &str| mixdistill::data::ColumnMap::parse(text).unwrap();
    let path = write("b.jsonl", r#"{"problem":"1+1?","answer":2}"#);
    for (columns, what) in [
        ("options=optz", "no row has it"),
        ("context=nope", "no row has it"),
        ("correct=zzz", "`correct` is not a column of benchmarks"),
        ("reasoning=yyy", "`reasoning` is not a column of benchmarks"),
    ] {
        let error = Benchmark::read_with(&path, &map(columns)).unwrap_err().to_string();
        assert!(error.contains(what), "{columns}: {error}");
    }
    let bench = Benchmark::read(&path).unwrap();
    let answers = write("a.jsonl", r#"{"problem":"1+1?","text":"2"}"#);
    for (columns, what) in
        [("problem=qq", "no row has it"), ("id=pid", "no row has it"), ("answer=x", "not a column")]
    {
        let options = AnswerOptions { columns: map(columns), ..Default::default() };
        let error = grade_answers(&bench, &answers, &options).unwrap_err().to_string();
        assert!(error.contains(what), "{columns}: {error}");
    }
    let far = write("far.jsonl", r#"{"resps":[["x"]],"doc_id":18446744073709551615}"#);
    assert!(
        grade_answers(&bench, &far, &AnswerOptions::default()).is_ok_and(|g| g.answers.len() == 1)
    );
    let within = write("data.json", r#"{"data": [{"problem":"1+1?","answer":2}]}"#);
    let error = Benchmark::read(&within).unwrap_err().to_string();
    assert!(error.contains("whose key `data` has a list of 1 records"), "{error}");
    let error = grade_answers(&bench, &within, &AnswerOptions::default()).unwrap_err().to_string();
    assert!(error.contains("whose key `data` has a list of 1 records"), "{error}");
    let many: Vec<String> = (0..30).map(|n| format!("\"o{n}\"")).collect();
    let many = format!("{{\"problem\":\"Which?\",\"options\":[{}],\"answer\":28}}", many.join(","));
    let error = Benchmark::read(&write("many.jsonl", &many)).unwrap_err().to_string();
    assert!(error.contains("it has 30 options, but there are only 26 letters"), "{error}");
    let odd = write("odd.jsonl", r#"{"problem":"?","answer":1,"context":["p1","p2"]}"#);
    let error = Benchmark::read(&odd).unwrap_err().to_string();
    assert!(error.contains("its context is a list of 2, expected text"), "{error}");
}
