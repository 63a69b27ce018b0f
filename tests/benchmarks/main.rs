//! Promise: benchmarks are read in their published formats, a model's answers do not depend on batches or
//! interruptions, and answers from other programs are graded in the same way.

mod answers;
mod asking;
#[path = "../common/mod.rs"]
mod common;

use mixdistill::data::arith;
use mixdistill::eval::{AnswerKind, AnswerOptions, Benchmark, GradedAnswer, Scores, grade_answers};

/// Problems of the toy corpus.
fn benchmark() -> Benchmark {
    let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 7, 0, 1);
    let problems = corpus.train.iter().enumerate().map(|(id, problem)| {
        let record = problem.short_record(id);
        serde_json::json!({ "id": id, "question": record.problem, "answer": record.answer })
    });
    let text: String = problems.map(|problem| format!("{problem}\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.jsonl");
    std::fs::write(&path, text).unwrap();
    Benchmark::read(&path).unwrap()
}

#[test]
fn every_benchmark_is_read_with_problem_and_answer() {
    let Some(bench) = common::shared("bench") else { return };
    let expected = [
        ("aime24", 30, AnswerKind::Stated, "204"),
        ("amc23", 40, AnswerKind::Stated, "27"),
        ("gaokao2023en", 383, AnswerKind::Stated, "$\\{x|-2\\leq x < 1\\}$"),
        ("math500", 500, AnswerKind::Stated, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("mawps", 2065, AnswerKind::LastNumber, "43"),
        ("minerva_math", 272, AnswerKind::Stated, "1.6"),
        ("olympiadbench", 675, AnswerKind::Stated, "2"),
        ("sat_math", 32, AnswerKind::Choice, "A"),
        ("svamp", 1000, AnswerKind::LastNumber, "145"),
    ];
    for (name, rows, kind, first) in expected {
        let benchmark = Benchmark::read(&bench.join(format!("{name}.jsonl"))).unwrap();
        assert_eq!((benchmark.name.as_str(), benchmark.problems.len()), (name, rows));
        let problem = &benchmark.problems[0];
        assert_eq!((problem.kind, problem.reference.as_str()), (kind, first), "{name}");
        let ids: std::collections::BTreeSet<&str> =
            benchmark.problems.iter().map(|problem| problem.id.as_str()).collect();
        assert_eq!(ids.len(), rows, "{name}: ids are unique");
        // Two rows of GaoKao have an empty answer.
        let left_out = if name == "gaokao2023en" { vec![168, 193] } else { vec![] };
        assert_eq!(benchmark.without_answer, left_out, "{name}");
    }
    let gsm8k = Benchmark::read(&bench.join("../gsm8k/test.jsonl")).unwrap();
    assert_eq!(gsm8k.problems.len(), 1319);
    let first = &gsm8k.problems[0];
    assert_eq!((first.reference.as_str(), first.kind), ("18", AnswerKind::LastNumber));
    // SVAMP's question comes after its text, SAT's options after the question.
    let of = |name: &str| Benchmark::read(&bench.join(format!("{name}.jsonl"))).unwrap();
    let svamp = &of("svamp").problems[0].problem;
    assert!(svamp.starts_with("There are 87 oranges"), "{svamp}");
    assert!(svamp.ends_with("93 groups. How big is each group of bananas?"), "{svamp}");
    assert!(of("sat_math").problems[0].problem.contains("\nA) $f(-6)=0$"));
}

/// The graded answers of a file.
fn graded(benchmark: &Benchmark, path: &std::path::Path) -> Vec<GradedAnswer> {
    grade_answers(benchmark, path, &AnswerOptions::default()).unwrap().answers
}

#[test]
fn reference_solutions_of_gsm8k_are_all_right() {
    let Some(path) = common::shared("gsm8k/test.jsonl") else { return };
    let benchmark = Benchmark::read(&path).unwrap();
    // The file's own answers as those of another program.
    let folder = tempfile::tempdir().unwrap();
    let answers = folder.path().join("answers.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap().replace("\"answer\":", "\"text\":");
    std::fs::write(&answers, lines).unwrap();
    let scores = Scores::of(&benchmark, &graded(&benchmark, &answers));
    assert_eq!((scores.problems, scores.accuracy), (1319, 1.0));
    assert_eq!((scores.without_answer, scores.without_box), (0.0, 1.0));
}

#[test]
fn an_answer_is_looked_for_where_the_benchmark_has_it() {
    let of = |kind: AnswerKind, text: &str| kind.answer(text);
    assert_eq!(of(AnswerKind::Stated, "It is 7."), None);
    assert_eq!(of(AnswerKind::LastNumber, "It is 7 apples."), Some("7".into()));
    assert_eq!(of(AnswerKind::LastNumber, r"Of 8, \boxed{5}; not 9."), Some("5".into()));
    assert_eq!(of(AnswerKind::Choice, "The answer is (B) 12."), Some("B".into()));
    assert_eq!(of(AnswerKind::Choice, r"\boxed{C}"), Some("C".into()));
}

#[test]
fn a_word_at_the_start_of_a_line_is_no_choice() {
    let choice = |text: &str| AnswerKind::Choice.answer(text);
    for (text, letter) in [
        ("I think the correct choice is (B).", Some("B")),
        ("A train goes 60 km in an hour.\nSo the correct choice is (D).", Some("D")),
        ("A. 1\nB. 2\nC. 3\nThe correct choice is (B).", Some("B")),
        ("The answer is: I think (C)", Some("C")),
        // Cut at the length limit.
        ("A train leaves Chicago at 5 pm and", None),
        ("A 45-year-old man is tired.\n\nA $k$-coloring is. I think that it", None),
        ("I’m not sure. A train leaves", None),
        // Labels of a line.
        ("B.", Some("B")),
        ("It takes 5 hours.\n**C**\n", Some("C")),
        ("**D) 12**\nsince 3 * 4 = 12", Some("D")),
        ("**A**: twelve", Some("A")),
        ("D. it can't be A or B", Some("D")),
        ("B。不是 A", Some("B")),
        ("B不是 A", Some("B")),
        ("(C) Paris, since (A) is wrong", Some("C")),
        ("A. 1\nB. 2\nC. 3\nso it must be\nC", Some("C")),
        ("I. Setup\nWe add. II. Then (B).", Some("B")),
        ("B is correct because A and C are even.", Some("B")),
        ("B, because A and D are too small.", Some("B")),
        ("B - Paris. A is the capital of Italy.", Some("B")),
        ("C is correct. Option A is wrong.", Some("C")),
        ("**B** is right; **A** is not.", Some("B")),
        ("D.\nExplanation: (A) is false, (B) is false.", Some("D")),
        ("B) Paris\n(A) is wrong, for it is in Italy.", Some("B")),
        ("B. because P(A) = 0.3", Some("B")),
        ("(A) is too small.\nTherefore I choose (C).", Some("C")),
        ("A) 3\nB) 4\nC) 5\nD) 6\nThe correct choice is B.", Some("B")),
        ("A) 3\nB) 4\nC) 5\nD) 6\nSo B", Some("B")),
        ("C = 2*pi*r = 12, so the correct option is D.", Some("D")),
        ("A, B and C are on a line, so it is D", Some("D")),
        ("I choose B", Some("B")),
        ("The right choice is B since P(A)=0.3", Some("B")),
        // What follows the letter is no answer of its own.
        ("Answer: B) 12", Some("B")),
        ("The answer is (B) 3 mg of morphine", Some("B")),
        ("A: Paris", Some("A")),
        ("The answer is A because 2 + 2 = 4.", Some("A")),
        ("The answer is 12", Some("12")),
        ("B. It is twelve.\nC. It is not.", Some("B")),
        // Letters that are no label and no word.
        ("A is correct", Some("A")),
        ("Of these I would choose A for it fits", Some("A")),
        ("The answer is A as shown", Some("A")),
    ] {
        assert_eq!(choice(text).as_deref(), letter, "{text}");
    }
}

#[test]
fn answers_to_choices_are_letters_whatever_the_file_names_them_by() {
    let folder = tempfile::tempdir().unwrap();
    let read = |row: serde_json::Value| {
        let path = folder.path().join("b.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        Benchmark::read(&path).map(|benchmark| benchmark.problems[0].clone())
    };
    let (texts, digits) = (["red", "green", "blue", "grey"], ["4", "3", "2", "1"]);
    let keyed = serde_json::json!({ "C": "blue", "A": "red", "D": "grey", "B": "green" });
    for (options, answer, letter) in [
        // MMLU: a place, be the texts numbers or not.
        (serde_json::json!(texts), serde_json::json!(2), "C"),
        (serde_json::json!(texts), serde_json::json!(0), "A"),
        (serde_json::json!(texts), serde_json::json!(3.0), "D"),
        (serde_json::json!(digits), serde_json::json!(1), "B"),
        (serde_json::json!(texts), serde_json::json!("2"), "C"),
        // Digits in text, and numbers among numbers, are options where they can be.
        (serde_json::json!(digits), serde_json::json!("1"), "D"),
        (serde_json::json!(digits), serde_json::json!(4), "A"),
        (serde_json::json!([10, 1, 7]), serde_json::json!(1), "B"),
        (serde_json::json!([10, 15, 7]), serde_json::json!(1), "B"),
        (serde_json::json!(texts), serde_json::json!("grey"), "D"),
        (serde_json::json!(["$1$", "$2$", "$3$", "$4$"]), serde_json::json!("3"), "C"),
        (serde_json::json!(["$\\frac12$", "$2$"]), serde_json::json!("\\frac{1}{2}"), "A"),
        // MedQA: options by letter, the answer by text.
        (keyed.clone(), serde_json::json!("green"), "B"),
        (keyed.clone(), serde_json::json!("D"), "D"),
        (keyed, serde_json::json!(2), "C"),
        // Letters stay letters, those of a text too.
        (serde_json::json!(texts), serde_json::json!("(B) green"), "B"),
        (serde_json::json!(texts), serde_json::json!("c"), "C"),
        (serde_json::json!(["B", "A"]), serde_json::json!("A"), "A"),
    ] {
        let row = serde_json::json!({ "question": "Which?", "choices": options, "answer": answer });
        let problem = read(row.clone()).unwrap();
        assert_eq!(
            (problem.kind, problem.reference.as_str()),
            (AnswerKind::Choice, letter),
            "{row}"
        );
        let right =
            GradedAnswer::of(&problem, 0, format!("It is so, hence \\boxed{{{letter}}}."), false);
        assert!(right.correct, "{row}");
    }
    let missing = serde_json::json!({ "A": "red", "B": "green", "E": null });
    for options in [serde_json::json!(["red", "green"]), missing] {
        let row = serde_json::json!({ "question": "Which?", "options": options, "answer": "red" });
        assert_eq!(read(row).unwrap().problem, "Which?\nA) red\nB) green");
    }
    let open = serde_json::json!({ "question": "Which?", "options": [], "answer": "red" });
    assert_eq!(read(open).unwrap().kind, AnswerKind::Stated);

    let arc = serde_json::json!({ "text": ["red", "green"], "label": ["A", "B"] });
    let arc = serde_json::json!({ "question": "Which?", "choices": arc, "answerKey": "B" });
    let arc = read(arc).unwrap();
    assert_eq!((arc.problem.as_str(), arc.reference.as_str()), ("Which?\nA) red\nB) green", "B"));

    let named = serde_json::json!({ "text": ["red"], "label": ["1"] });
    for (options, answer, what) in [
        (serde_json::json!(texts), serde_json::json!(4), "`4` is not one of its options ABCD"),
        (serde_json::json!(texts), serde_json::json!(-1), "`-1` is not one of"),
        (serde_json::json!(texts), serde_json::json!("E"), "`E` is not one of"),
        (serde_json::json!(texts), serde_json::json!("pink"), "`pink` is not one of"),
        (serde_json::json!(["red", "red"]), serde_json::json!("red"), "several of its options"),
        (serde_json::json!([["red"], "blue"]), serde_json::json!("B"), "option A is not text"),
        (named, serde_json::json!("A"), "the label \"1\" of its options is not a letter"),
    ] {
        let row = serde_json::json!({ "question": "Which?", "options": options, "answer": answer });
        let error = read(row).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(":1"), "{error}");
        assert!(error.contains("index from 0"), "{error}");
    }
}

#[test]
fn files_that_are_no_benchmark_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        let path = folder.path().join("b.jsonl");
        std::fs::write(&path, text).unwrap();
        Benchmark::read(&path).unwrap_err().to_string()
    };
    assert!(read("").contains("has no records"));
    let bad = read("{\"question\": \"1+1?\", \"answer\": 2}\nnothing\n12");
    assert!(bad.contains(":2") && bad.contains("2 of 3 rows cannot be used"), "{bad}");
    assert!(read("{\"answer\": 2}").contains("no problem"));
    assert!(read("{\"question\": \"1+1?\"}").contains("no row has an answer"));
    let unboxed = "{\"question\": \"1+1?\", \"solution\": \"two\"}";
    assert!(read(unboxed).contains("the first is line 1"));
    assert!(read("[1]").contains("expected a record as a JSON object"));
    let missing = Benchmark::read(&folder.path().join("none.jsonl")).unwrap_err().to_string();
    assert!(missing.contains("none.jsonl"), "{missing}");
}

#[test]
fn answers_of_other_programs_are_found_by_id_by_text_and_by_order() {
    let folder = tempfile::tempdir().unwrap();
    let benchmark = benchmark();
    let grade = |lines: &[serde_json::Value]| {
        let path = folder.path().join("answers.jsonl");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        grade_answers(&benchmark, &path, &AnswerOptions::default()).map(|graded| graded.answers)
    };
    let right = |index: usize| format!("\\boxed{{{}}}", benchmark.problems[index].reference);
    let answers = grade(&[
        serde_json::json!({ "id": 3, "output": right(3) }),
        serde_json::json!({ "question": benchmark.problems[1].problem, "text": right(1) }),
        serde_json::json!({ "id": "3", "response": "I do not know" }),
    ])
    .unwrap();
    let found: Vec<_> = answers.iter().map(|a| (a.id.as_str(), a.sample, a.correct)).collect();
    assert_eq!(found, [("3", 0, true), ("1", 0, true), ("3", 1, false)]);
    let scores = Scores::of(&benchmark, &answers);
    assert_eq!((scores.problems, scores.of), (2, 7));
    assert_eq!(scores.accuracy, 0.75);
    // Of fewer problems: the answers to others do not count.
    let first = Scores::of(&benchmark.first(Some(2)), &answers);
    assert_eq!((first.problems, first.accuracy, first.without_answer), (1, 1.0, 0.0));
    // An id with a prompt that has more around the problem, or less.
    for text in [format!("Please! {}", benchmark.problems[1].problem), "Whatever".into()] {
        let key = if text == "Whatever" { "prompt" } else { "question" };
        let one = grade(&[serde_json::json!({ "id": 1, key: text, "text": right(1) })]).unwrap();
        assert!(one[0].correct && one[0].id == "1");
    }
    let in_order = grade(&[serde_json::json!({ "text": right(0) })]).unwrap();
    assert!(in_order[0].correct && in_order[0].id == "0");
    // Problems of unequal numbers of answers have an interval too.
    assert!(scores.interval.0 >= 0.0 && scores.interval.0 <= scores.interval.1);
    assert!(scores.interval.1 <= 1.0 && scores.interval.1 > 0.0, "{:?}", scores.interval);
    for (line, what) in [
        (serde_json::json!({ "id": 77, "text": "x" }), "`77` is not a problem"),
        (serde_json::json!({ "id": 1 }), "no column is recognized as the answer"),
        (serde_json::json!({ "question": "Who?", "text": "I" }), "`Who?` is not a problem"),
        (
            serde_json::json!({ "id": 1, "question": benchmark.problems[2].problem, "text": "I" }),
            "belongs to another problem",
        ),
        (
            serde_json::json!({ "id": 1, "question": "One of another file?", "text": "I" }),
            "is not the problem `1`",
        ),
    ] {
        let error = grade(&[line]).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(":1"), "{error}");
    }
}

#[test]
fn answers_are_matched_by_text_where_the_benchmark_has_no_ids() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, lines: &[serde_json::Value]| {
        let path = folder.path().join(name);
        let text: String = lines.iter().map(|line| format!("{line}\n\n")).collect();
        std::fs::write(&path, text).unwrap();
        path
    };
    // The second row has no answer, and lines between are blank.
    let bench = write(
        "b.jsonl",
        &[
            serde_json::json!({ "question": "1+1?", "answer": 2 }),
            serde_json::json!({ "question": "Why?", "answer": "" }),
            serde_json::json!({ "question": "2+2?", "answer": 4 }),
        ],
    );
    let benchmark = Benchmark::read(&bench).unwrap();
    assert_eq!((benchmark.problems.len(), benchmark.without_answer.clone()), (2, vec![3]));
    let boxed = |n: usize| format!("\\boxed{{{n}}}");
    // Numbers from 0, as other programs write them, are not this file's lines.
    let answers = write(
        "a.jsonl",
        &[
            serde_json::json!({ "idx": 0, "question": "1+1?", "text": boxed(2) }),
            serde_json::json!({ "idx": 2, "question": "2+2?", "text": boxed(4) }),
        ],
    );
    let scores = Scores::of(&benchmark, &graded(&benchmark, &answers));
    assert_eq!((scores.problems, scores.accuracy), (2, 1.0));
    // By order they are the file's rows, the one without an answer too.
    let answers = write("o.jsonl", &[2, 0, 4].map(|n| serde_json::json!({ "text": boxed(n) })));
    let scores = Scores::of(&benchmark, &graded(&benchmark, &answers));
    assert_eq!((scores.problems, scores.accuracy), (2, 1.0));
    let answers = write("m.jsonl", &[1, 2, 3, 4].map(|n| serde_json::json!({ "text": boxed(n) })));
    let options = AnswerOptions::default();
    let error = grade_answers(&benchmark, &answers, &options).unwrap_err().to_string();
    assert!(error.contains(":7") && error.contains("has 3 rows"), "{error}");
    let twice = write(
        "t.jsonl",
        &[1, 2].map(|n| serde_json::json!({ "id": 5, "question": n, "answer": n })),
    );
    let error = Benchmark::read(&twice).unwrap_err().to_string();
    assert!(error.contains("`5` is already used in line 1"), "{error}");
}
