//! Promise: benchmarks are read in the shapes that they are met in, a model's answers to them are the
//! same however they are batched or interrupted, and answers from elsewhere are graded alike.

mod answers;
#[path = "../common/mod.rs"]
mod common;

use common::{command, devices, toy_run};
use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{ColumnMap, PlainTemplate, PromptTemplate, TextTokenizer, arith};
use mixdistill::eval::{
    AnswerKind, AnswerOptions, Benchmark, BenchmarkProblem, EvaluateConfig, EvaluationDirectory,
    GradedAnswer, Scores, TestedModel, evaluate, grade_answers, read_benchmarks,
};
use mixdistill::model::{DecoderConfig, DecoderLm, GenerateConfig, TextInterface};
use mixdistill::recipe::{RunMode, run};
use mixdistill::{Error, Result};
use std::path::Path;

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
        (serde_json::json!(texts), serde_json::json!(4), "`4` is none of its options ABCD"),
        (serde_json::json!(texts), serde_json::json!(-1), "`-1` is none of"),
        (serde_json::json!(texts), serde_json::json!("E"), "`E` is none of"),
        (serde_json::json!(texts), serde_json::json!("pink"), "`pink` is none of"),
        (serde_json::json!(["red", "red"]), serde_json::json!("red"), "several of its options"),
        (serde_json::json!([["red"], "blue"]), serde_json::json!("B"), "option A is no text"),
        (named, serde_json::json!("A"), "the label \"1\" of its options is no letter"),
    ] {
        let row = serde_json::json!({ "question": "Which?", "options": options, "answer": answer });
        let error = read(row).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(":1"), "{error}");
        assert!(error.contains("place counted from 0"), "{error}");
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
    assert!(read("").contains("holds no records"));
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

struct Student {
    model: DecoderLm,
    tokenizer: TextTokenizer,
    template: PlainTemplate,
}

impl Student {
    fn new() -> Self {
        let words = arith::vocabulary();
        let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str)).unwrap();
        let config = DecoderConfig {
            vocab_size: tokenizer.vocabulary_size(),
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            initializer_range: 0.3,
            ..DecoderConfig::default()
        };
        let model = config.init(3, &devices()[0]).unwrap();
        Self { model, tokenizer, template: PlainTemplate::default() }
    }

    /// One that is made for rows of this many tokens.
    fn of_length(max_position_embeddings: usize) -> Self {
        let student = Self::new();
        let config = DecoderConfig { max_position_embeddings, ..student.model.config().clone() };
        Self { model: config.init(3, &devices()[0]).unwrap(), ..student }
    }

    fn answer(&self, config: &EvaluateConfig, store: &Path) -> Vec<GradedAnswer> {
        let end = [self.tokenizer.end_token()];
        let answering = TextInterface {
            tokenizer: &self.tokenizer,
            template: &self.template,
            end_tokens: &end,
        };
        let context = Context::default();
        evaluate(&self.model, &answering, &benchmark(), config, store, &context).unwrap()
    }
}

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

/// Asks for a stop once so many answers are there.
struct StopsAt<'a>(u64, &'a StopFlag);

impl Observer for StopsAt<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if matches!(event, Event::Task { progress, .. } if progress.done >= self.0) {
            self.1.request();
        }
        Ok(())
    }
}

fn config(batch_size: usize, samples: usize, temperature: f64) -> EvaluateConfig {
    let generate =
        GenerateConfig { max_new_tokens: 9, batch_size, temperature, ..Default::default() };
    EvaluateConfig { samples, generate, ..EvaluateConfig::default() }
}

fn untimed(mut answers: Vec<GradedAnswer>) -> Vec<GradedAnswer> {
    answers.iter_mut().for_each(|answer| answer.seconds = 0.0);
    answers
}

#[test]
fn answers_are_the_same_in_any_batches_and_after_an_interruption() {
    let (student, folder) = (Student::new(), tempfile::tempdir().unwrap());
    let store = |name: &str| folder.path().join(name);
    for (samples, temperature) in [(1, 0.0), (3, 1.0)] {
        let ask = |batch_size, name: &str| {
            untimed(student.answer(&config(batch_size, samples, temperature), &store(name)))
        };
        let whole = ask(100, &format!("whole{samples}"));
        assert_eq!(whole.len(), 7 * samples);
        assert!(whole == ask(2, &format!("small{samples}")));
        // The first five answers, and one that was cut off.
        let text = std::fs::read_to_string(store(&format!("small{samples}"))).unwrap();
        let kept: Vec<&str> = text.lines().take(5).collect();
        let cut = format!("{}\n{}", kept.join("\n"), &text.lines().nth(5).unwrap()[..20]);
        std::fs::write(store("cut"), cut).unwrap();
        assert!(whole == ask(2, "cut"));
        assert_eq!(std::fs::read_to_string(store("cut")).unwrap().lines().count(), 7 * samples);
        std::fs::remove_file(store("cut")).unwrap();
        if samples == 3 {
            let first = |sample| whole.iter().find(|a| a.id == "0" && a.sample == sample);
            assert_ne!(first(0).unwrap().text, first(1).unwrap().text, "samples differ");
            let other = EvaluateConfig {
                generate: GenerateConfig { seed: 1, ..config(2, 3, 1.0).generate },
                ..config(2, 3, 1.0)
            };
            assert!(whole != untimed(student.answer(&other, &store("seed"))));
        }
    }
    // Fewer problems and samples are asked for: those that are there count.
    let fewer = EvaluateConfig { limit: Some(3), ..config(2, 2, 1.0) };
    let some = untimed(student.answer(&fewer, &store("whole3")));
    assert_eq!(some.len(), 6);
    assert!(some.iter().all(|a| a.sample < 2 && ["0", "1", "2"].contains(&a.id.as_str())));
    // More samples: the first ones are those that were there.
    let more = untimed(student.answer(&config(3, 4, 1.0), &store("whole3")));
    let whole = untimed(student.answer(&config(100, 4, 1.0), &store("four")));
    assert!(more == whole);
    // A stop keeps what has ended.
    let end = [student.tokenizer.end_token()];
    let answering = TextInterface {
        tokenizer: &student.tokenizer,
        template: &student.template,
        end_tokens: &end,
    };
    let ask = |name: &str, most: usize| {
        let stop = StopFlag::default();
        let context = Context::new(StopsAt(most as u64, &stop), &stop);
        let (config, store) = (config(2, 1, 0.0), store(name));
        evaluate(&student.model, &answering, &benchmark(), &config, &store, &context)
    };
    assert!(matches!(ask("stopped", 3), Err(Error::Stopped { .. })));
    let kept = std::fs::read_to_string(store("stopped")).unwrap_or_default().lines().count();
    assert!((3..7).contains(&kept), "{kept}");
    assert!(untimed(ask("stopped", 99).unwrap()).len() == 7);
    // What is none of ours stays as it is, down to its last byte.
    let bench = std::fs::read(store("whole1")).unwrap();
    for (foreign, what) in [
        (
            &b"{\"question\": \"1+1?\", \"answer\": 2}\n{\"question\": \"2+2?\""[..],
            "no answer that was stored",
        ),
        (b"my only line", "no whole line"),
        (&[&bench[..], &bench[..]].concat(), "twice"),
    ] {
        std::fs::write(store("foreign"), foreign).unwrap();
        let error = ask("foreign", 99).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(std::fs::read(store("foreign")).unwrap(), foreign);
    }
    // Answers to other problems are not mixed in; a line cut in the middle of a character is.
    let text = String::from_utf8(bench.clone()).unwrap();
    std::fs::write(store("foreign"), text.replace("\"id\":\"0\"", "\"id\":\"99\"")).unwrap();
    let error = ask("foreign", 99).unwrap_err().to_string();
    assert!(error.contains("problem 99 is not of toy"), "{error}");
    std::fs::write(store("torn"), [&bench[..], b"{\"id\":\"caf\xc3"].concat()).unwrap();
    assert_eq!(ask("torn", 99).unwrap().len(), 7);
    assert_eq!(std::fs::read(store("torn")).unwrap(), bench);
    let greedy = config(2, 2, 0.0).validate().unwrap_err().to_string();
    assert!(greedy.contains("greedy"), "{greedy}");
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
        (serde_json::json!({ "id": 77, "text": "x" }), "`77` is no problem"),
        (serde_json::json!({ "id": 1 }), "no column is recognized as the answer"),
        (serde_json::json!({ "question": "Who?", "text": "I" }), "`Who?` is no problem"),
        (
            serde_json::json!({ "id": 1, "question": benchmark.problems[2].problem, "text": "I" }),
            "is of another problem",
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
fn the_program_scores_a_model_goes_on_and_keeps_models_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = toy_run(&folder.path().join("run"));
    config.train.steps = Some(3);
    config.evaluation.questions = 0;
    run(&config, RunMode::New, &Context::default()).unwrap();
    let bench = folder.path().join("toy.jsonl");
    let text: String = benchmark()
        .problems
        .iter()
        .map(|p| {
            format!("{}\n", serde_json::json!({ "question": p.problem, "answer": p.reference }))
        })
        .collect();
    std::fs::write(&bench, text).unwrap();
    let path = |path: &Path| path.display().to_string();
    let (model, out) = (path(&config.out.join("model")), path(&folder.path().join("scores")));
    let evaluate = |more: &[&str]| {
        let output = command("evaluate")
            .args(["--bench", &path(&bench), "--out", &out])
            .args(match more.contains(&"--max-new-tokens") {
                true => &[][..],
                false => &["--max-new-tokens", "6"],
            })
            .args(more)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let at = |name: &str| folder.path().join("scores").join(name).display().to_string();
    let ask = ["--model", model.as_str(), "--no-instruction"];
    let (good, said) = evaluate(&ask);
    assert!(good && said.contains("toy") && said.contains("95 % interval"), "{said}");
    let stored = std::fs::read_to_string(folder.path().join("scores/toy.jsonl")).unwrap();
    assert_eq!(stored.lines().count(), 7);
    // Where the results are, and what to do about answers that were cut off.
    assert!(said.contains(&at("toy.jsonl")) && said.contains(&at("scores.md")), "{said}");
    assert!(said.contains("raise generate.max_new_tokens (--max-new-tokens)"), "{said}");
    let (good, said) = evaluate(&[&ask[..], &["--json"]].concat());
    assert!(good && said.contains("{\"out\":") && said.contains("\"accuracy\":"), "{said}");
    let again = std::fs::read_to_string(folder.path().join("scores/toy.jsonl")).unwrap();
    assert_eq!(stored, again, "nothing is asked twice");
    let (good, said) = evaluate(&["--model", &model]);
    assert!(!good && said.contains("other settings: instruct was false, is true"), "{said}");
    let (good, said) = evaluate(&[&ask[..], &["--max-new-tokens", "7"]].concat());
    assert!(
        !good && said.contains("generate.max_new_tokens (--max-new-tokens) was 6, is 7"),
        "{said}"
    );
    for name in ["scores.md", "scores.json", "settings.json"] {
        assert!(folder.path().join("scores").join(name).is_file(), "{name}");
    }
    // The stored answers can be graded by themselves.
    let answers = path(&folder.path().join("scores/toy.jsonl"));
    let (good, said) = evaluate(&["--answers", &answers]);
    assert!(good && said.contains("toy"), "{said}");
    assert!(folder.path().join("scores/toy.graded.jsonl").is_file());
    // Those from elsewhere do not take their place.
    let elsewhere = folder.path().join("elsewhere.jsonl");
    std::fs::copy(&answers, &elsewhere).unwrap();
    let (good, said) = evaluate(&["--answers", &path(&elsewhere)]);
    assert!(!good && said.contains("other settings"), "{said}");
    // A directory with other things in it is refused, and stays as it is.
    let mine = path(folder.path());
    let output = command("evaluate")
        .args(["--bench", &path(&bench), "--out", &mine, "--answers", &answers])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not an evaluation's"), "{output:?}");
}

#[test]
fn a_directory_of_answers_needs_no_model_for_what_it_holds() {
    let (student, folder) = (Student::new(), tempfile::tempdir().unwrap());
    let out = EvaluationDirectory::open(&folder.path().join("scores")).unwrap();
    let benchmarks = [benchmark()];
    let end = [student.tokenizer.end_token()];
    let text = TextInterface {
        tokenizer: &student.tokenizer,
        template: &student.template,
        end_tokens: &end,
    };
    let (config, context) = (config(2, 1, 0.0), Context::default());
    let tested = |name: &str| TestedModel { fingerprint: name.into(), ..Default::default() };
    let mut loaded = 0;
    let mut ask = |benchmarks: &[Benchmark], name: &str, config: &EvaluateConfig| {
        let mut load = || {
            loaded += 1;
            Ok(student.model.clone())
        };
        let answers = out.evaluate(benchmarks, config, &tested(name), &text, &mut load, &context);
        (answers, loaded)
    };
    let (answers, loads) = ask(&benchmarks, "m", &config);
    let answers = answers.unwrap();
    assert_eq!((answers[0].len(), loads), (7, 1));
    let (again, loads) = ask(&benchmarks, "m", &config);
    assert!((again.unwrap(), loads) == (answers.clone(), 1));
    // Several benchmarks load it once.
    let more = ["a", "b"].map(|name| Benchmark { name: name.into(), ..benchmark() });
    assert_eq!(ask(&more, "m", &config).1, 2);
    let error = ask(&benchmarks, "other", &config).0.unwrap_err().to_string();
    assert!(error.contains("other settings: model was \"m\", is \"other\""), "{error}");
    let scores = out.write_scores(&benchmarks, &answers, Some(3)).unwrap();
    assert_eq!((scores.scores[0].problems, scores.scores[0].of), (3, 3));
    // Two files of one name would share their answers.
    let paths = ["x/toy.jsonl", "y/TOY.jsonl"].map(|name| folder.path().join(name));
    for path in &paths {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{\"problem\": \"1+1?\", \"answer\": 2}\n").unwrap();
    }
    let error = read_benchmarks(&paths, &ColumnMap::default(), &context).unwrap_err();
    assert!(error.to_string().contains("two files are called TOY"), "{error}");
}

#[test]
fn a_problem_that_leaves_no_room_for_an_answer_is_one_that_the_model_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let student = Student::new();
    let length = |problem: &BenchmarkProblem| {
        student.template.prompt(&student.tokenizer, (&problem.problem).into()).unwrap().len()
    };
    let benchmark = benchmark();
    let longest = benchmark.problems.iter().map(length).max().unwrap();
    let short = Student::of_length(longest);
    let answers = short.answer(&config(3, 1, 0.0), &folder.path().join("answers"));
    assert_eq!(answers.len(), 7);
    for (problem, answer) in benchmark.problems.iter().zip(&answers) {
        let fits = length(problem) < longest;
        assert_eq!(answer.text.is_empty() && answer.tokens == 0, !fits, "{answer:?}");
        assert!(fits || (answer.hit_limit && !answer.correct));
    }
    // It is stored like any other.
    let again = short.answer(&config(3, 1, 0.0), &folder.path().join("answers"));
    assert!(untimed(again) == untimed(answers));
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
    assert!(error.contains("`5` is that of line 1"), "{error}");
}
