//! Promise: answers of two teachers are requested, graded, and kept, whatever the servers do. No answer is
//! requested twice, and the written data can be trained on. The same holds for a judge's verdicts.
#![cfg(feature = "teacher")]

#[path = "../common/mod.rs"]
mod common;
mod judge;
mod real;
mod server;
mod trouble;

use mixdistill::context::{Context, Event, Observer, StopFlag};
use mixdistill::data::{ColumnMap, Join, Pairs, Source};
use mixdistill::teacher::{
    ChatConfig, Failure, Keep, MakePairsConfig, PairsDirectory, PairsReport, Pick, ReasoningForm,
    Response, Teacher, TeacherConfig, TeacherPrompt, TeacherSample, make_pairs, make_pairs_with,
};
use serde_json::{Value, json};
use server::{Manner, Server, long_answer, numbers, says, short_answer};
use std::collections::BTreeSet;
use std::path::Path;

/// Writes sums with their answers, and settings that ask these servers for them.
fn sums(folder: &Path, count: usize, servers: [&Server; 2]) -> MakePairsConfig {
    let row = |i: usize| {
        let (a, b) = (i + 1, 7 * i + 2);
        json!({ "id": format!("s{i}"), "problem": format!("What is {a} + {b}?"), "answer": a + b })
            .to_string()
            + "\n"
    };
    let problems = folder.join("problems.jsonl");
    std::fs::write(&problems, (0..count).map(row).collect::<String>()).unwrap();
    let [long, short] = servers.map(|server| TeacherConfig {
        concurrency: 4,
        server: Some(ChatConfig {
            url: server.url.clone(),
            key_variable: "MIXDISTILL_TEST_NO_KEY".into(),
            timeout: 5,
            retries: 2,
            ..ChatConfig::default()
        }),
        ..TeacherConfig::default()
    });
    MakePairsConfig { problems, long, short, ..MakePairsConfig::default() }
}

fn set(config: &mut MakePairsConfig, set: impl Fn(&mut ChatConfig)) {
    for teacher in [&mut config.long, &mut config.short] {
        set(teacher.server.as_mut().unwrap());
    }
}

fn run(config: &MakePairsConfig, out: &Path) -> mixdistill::Result<PairsReport> {
    run_saying(config, out, true).0
}

/// What is said, and how often it is told how far the asking is.
#[derive(Default)]
struct Said {
    notices: Vec<String>,
    pairs: usize,
}

impl Observer for Said {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Notice(text) => self.notices.push((*text).to_owned()),
            Event::Pairs(_) => self.pairs += 1,
            _ => {}
        }
        Ok(())
    }
}

/// Also what was said meanwhile.
fn run_saying(
    config: &MakePairsConfig,
    out: &Path,
    asks: bool,
) -> (mixdistill::Result<PairsReport>, Vec<String>) {
    let mut said = Said::default();
    let directory = PairsDirectory::open(out).unwrap();
    let context = Context::new(&mut said, &StopFlag::default());
    let result = make_pairs(config, &directory, asks, &context);
    drop(context);
    (result, said.notices)
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(path: &Path) -> BTreeSet<String> {
    rows(path).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// The number of the problem that is asked.
fn number(prompt: &str) -> u64 {
    numbers(prompt).0 - 1
}

#[test]
fn correct_answers_are_kept_in_pairs_and_all_others_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pairs");
    // Twelve problems. The long teacher: 0 is wrong, 1 states nothing, 2 is cut although it is right,
    // 3 is empty, 4 is refused. The short teacher: 5 is wrong.
    let long = Server::start(|request| match number(&request.prompt) {
        0 => Manner::Says("<think>no</think>\\boxed{1}".into()),
        1 => Manner::Says("I do not know.".into()),
        2 => Manner::Json(says(&long_answer(&request.prompt), "length")),
        3 => Manner::Json(says("<think>never ends", "stop")),
        4 => Manner::Status(400, String::new(), "the prompt is too long".into()),
        _ => Manner::Says(long_answer(&request.prompt)),
    });
    let short = Server::start(|request| match number(&request.prompt) {
        5 => Manner::Says("\\boxed{0}".into()),
        _ => Manner::Says(short_answer(&request.prompt)),
    });
    let mut config = sums(folder.path(), 12, [&long, &short]);
    config.short.server.as_mut().unwrap().system = "Be brief.".into();
    let report = run(&config, &out).unwrap();
    assert_eq!((report.pairs, report.rows), (6, [6, 6]));
    let counts = &report.long;
    assert_eq!(counts.model, "the-model");
    let found = [counts.correct, counts.wrong, counts.unstated, counts.cut, counts.empty];
    // The sixth may be skipped, since the short teacher has it wrong.
    let skipped = counts.skipped;
    assert!(skipped <= 1, "{counts:?}");
    assert_eq!(found, [7 - skipped, 1, 1, 1, 1]);
    assert_eq!((counts.with_correct, counts.without_correct), (7 - skipped, 4));
    assert_eq!((counts.refused, counts.not_answered), (1, 0));
    assert!(counts.reason.as_ref().unwrap().contains("the prompt is too long"), "{counts:?}");
    let all = [&report.long, &report.short].map(|c| {
        assert_eq!(c.answers, c.correct + c.wrong + c.unstated + c.cut + c.empty);
        c.with_correct + c.without_correct + c.refused + c.not_answered + c.skipped
    });
    assert_eq!(all, [12, 12]);

    let expected: BTreeSet<String> = (6..12).map(|i| format!("s{i}")).collect();
    assert_eq!(ids(&out.join("pairs.jsonl")), expected);
    let pair = &rows(&out.join("pairs.jsonl"))[0];
    let (a, b) = (7, 44);
    assert_eq!(pair["answer"], "51");
    assert_eq!(
        pair["long"],
        format!("<think>\n{a} and {b}, let me see.\n</think>\n\nThe sum is \\boxed{{51}}.")
    );
    assert_eq!(pair["short"], "\\boxed{51}");
    // What is asked: the problem with the instruction, and the system's message where there is one.
    let requests = short.requests();
    let messages = &requests[0].body["messages"];
    assert_eq!(messages[0], json!({ "role": "system", "content": "Be brief." }));
    assert!(messages[1]["content"].as_str().unwrap().contains("?\nPlease reason step by step"));
    assert!(requests.iter().all(|request| !request.head.contains("authorization")));

    // The files are what training reads.
    let read = |name: &str| {
        Source::read(name, &out.join(format!("{name}.jsonl")), &ColumnMap::default(), 0.0).unwrap()
    };
    let (pairs, _) = Pairs::join(vec![read("long"), read("short")], Join::Inner).unwrap();
    assert_eq!(pairs.len(), 6);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in ["6 problems", "the-model", "temperature 0", "\"Be brief.\"", "| wrong |"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(!card.contains("127.0.0.1"), "{card}");

    // Again: nothing is asked but what was refused, and the files are the same.
    let before = std::fs::read(out.join("pairs.jsonl")).unwrap();
    long.requests();
    let (again, said) = run_saying(&config, &out, true);
    let again = again.unwrap();
    let asked: Vec<u64> = long.requests().iter().map(|r| number(&r.prompt)).collect();
    assert!(asked.iter().all(|i| *i == 4), "{asked:?}");
    // What the long teacher refused, the short one may have been spared before.
    assert!(short.requests().iter().all(|request| number(&request.prompt) == 4));
    assert_eq!((again.pairs, again.long.requests_new), (6, 0));
    assert!(said.iter().any(|text| text.contains("responses of earlier runs")), "{said:?}");
    assert_eq!(std::fs::read(out.join("pairs.jsonl")).unwrap(), before);

    // Without servers, the model's name being known: the same.
    drop((long, short));
    let (offline, _) = run_saying(&config, &out, false);
    let offline = offline.unwrap();
    assert_eq!((offline.pairs, offline.long.not_answered), (6, 1));
    // Other forms of the same answers need no server either.
    config.long.reasoning = ReasoningForm::Plain;
    run_saying(&config, &out, false).0.unwrap();
    let pair = &rows(&out.join("pairs.jsonl"))[0];
    assert_eq!(pair["long"], "7 and 44, let me see.\n\nThe sum is \\boxed{51}.");
}

#[test]
fn a_run_that_keeps_nothing_leaves_the_rows_of_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pairs");
    let right = |request: &server::Request| Manner::Says(short_answer(&request.prompt));
    let (long, short) = (Server::start(right), Server::start(right));
    let mut config = sums(folder.path(), 3, [&long, &short]);
    assert_eq!(run(&config, &out).unwrap().rows, [3, 3]);
    let files = || {
        ["long.jsonl", "short.jsonl", "pairs.jsonl", "report.json", "README.md", "config.toml"]
            .map(|name| std::fs::read(out.join(name)).unwrap())
    };
    let before = files();
    // With another prompt all requests are others, and nobody is asked.
    set(&mut config, |server| server.system = "Be brief.".into());
    let (report, said) = run_saying(&config, &out, false);
    let report = report.unwrap();
    assert_eq!((report.pairs, report.rows), (0, [0, 0]));
    assert!(said.iter().any(|text| text.contains("stay as they are")), "{said:?}");
    assert!(files() == before);
    // One answer is enough to write them anew.
    config.limit = Some(1);
    assert_eq!(run(&config, &out).unwrap().rows, [1, 1]);
    assert_eq!(rows(&out.join("long.jsonl")).len(), 1);
}

#[test]
fn samples_are_asked_until_one_is_correct() {
    let folder = tempfile::tempdir().unwrap();
    // Problem i is right from sample i % 4 on, of at most three; each sample has a seed of its own.
    let tries = |request: &server::Request| {
        let sample = request.body["seed"].as_u64().unwrap() - 100;
        match sample >= number(&request.prompt) % 4 {
            true => Manner::Says(long_answer(&request.prompt)),
            false => Manner::Says("\\boxed{0}".into()),
        }
    };
    let long = Server::start(tries);
    let short = Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let mut config = sums(folder.path(), 16, [&long, &short]);
    (config.samples, config.seed) = (3, 100);
    let error = run(&config, &folder.path().join("refused")).unwrap_err().to_string();
    assert!(error.contains("long.server.temperature"), "{error}");
    set(&mut config, |server| server.temperature = 0.7);
    let report = run(&config, &folder.path().join("pairs")).unwrap();
    assert_eq!((report.pairs, report.long.without_correct), (12, 4));
    // 1 + 2 + 3 + 3 samples for each four problems.
    assert_eq!(long.requests().len(), 36);
    assert_eq!((report.long.correct, report.long.wrong), (12, 24));
    assert!(short.requests().len() <= 16);
}

#[test]
fn the_shortest_or_the_longest_of_all_samples_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        // Of several choices at once the third is the shortest right one, the second the longest.
        Server::start(|request| {
            let right = short_answer(&request.prompt);
            assert_eq!(request.body["n"], 4);
            let texts =
                [format!("Sure: {right}"), format!("Certainly: {right}"), right, "7".to_owned()];
            let choices: Vec<Value> =
                texts.iter().map(|text| says(text, "stop")["choices"][0].clone()).collect();
            Manner::Json(json!({ "choices": choices, "usage": { "completion_tokens": 40 } }))
        })
    };
    let (long, short) = (start(), start());
    let mut config = sums(folder.path(), 3, [&long, &short]);
    (config.samples, config.pick) = (4, Pick::Shortest);
    (config.long.n, config.short.n) = (4, 8);
    config.long.price = [0.0, 1000.0];
    set(&mut config, |server| server.temperature = 1.0);
    let out = folder.path().join("pairs");
    let report = run(&config, &out).unwrap();
    assert_eq!((report.long.answers, report.long.correct, report.long.unstated), (12, 9, 3));
    assert_eq!((report.long.tokens, report.short.requests_new), ([0, 120], 3));
    assert!((report.long.cost - 0.12).abs() < 1e-12);
    assert_eq!(rows(&out.join("pairs.jsonl"))[0]["long"], "\\boxed{3}");
    config.pick = Pick::Longest;
    let report = run(&config, &out).unwrap();
    assert_eq!((report.long.requests_new, report.long.requests_known), (0, 3));
    assert_eq!(rows(&out.join("pairs.jsonl"))[0]["long"], "Certainly: \\boxed{3}");
}

#[test]
fn either_teachers_problems_are_kept_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let unless = |bad: u64| {
        Server::start(move |request| match number(&request.prompt) % 3 == bad {
            true => Manner::Says("\\boxed{0}".into()),
            false => Manner::Says(short_answer(&request.prompt)),
        })
    };
    let (long, short) = (unless(0), unless(1));
    let mut config = sums(folder.path(), 9, [&long, &short]);
    config.keep = Keep::Either;
    let out = folder.path().join("pairs");
    let report = run(&config, &out).unwrap();
    assert_eq!((report.pairs, report.rows), (3, [6, 6]));
    // Nothing is skipped, since each answer counts by itself.
    assert_eq!((long.requests().len(), short.requests().len()), (9, 9));
    let all: BTreeSet<String> = (0..9).map(|i| format!("s{i}")).collect();
    let (long, short) = (ids(&out.join("long.jsonl")), ids(&out.join("short.jsonl")));
    assert_eq!(&long | &short, all);
    assert_eq!(&long & &short, ids(&out.join("pairs.jsonl")));
}

/// The same model may be both teachers, thinking and not.
#[test]
fn each_teachers_chat_template_is_given_its_own_variables() {
    let folder = tempfile::tempdir().unwrap();
    let server = || Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let (long, short) = (server(), server());
    let config = sums(folder.path(), 2, [&long, &short]);
    let path = |name: &str| folder.path().join(name);
    let call = |more: &[&str]| {
        let mut command = common::command("pairs");
        command.arg("--problems").arg(&config.problems).arg("--out").arg(path("pairs"));
        command.args(["--set", "long.server.key_variable=MIXDISTILL_TEST_NO_KEY"]);
        command.args(["--set", "short.server.key_variable=MIXDISTILL_TEST_NO_KEY"]);
        command.args(more).output().unwrap()
    };
    let servers = ["--long-url", &long.url, "--short-url", &short.url];
    let variables = [
        "--long-template-variable=enable_thinking=true",
        "--long-template-variable=budget=7",
        "--short-template-variable=enable_thinking=false",
        "--set",
        "short.server.extra.top_k=3",
    ];
    let output = call(&[&servers[..], &variables].concat());
    assert!(output.status.success(), "{output:?}");
    let [long_body, short_body] = [&long, &short].map(|server| server.requests()[0].body.clone());
    let given = |body: &Value| body["chat_template_kwargs"].clone();
    assert_eq!(given(&long_body), json!({"enable_thinking": true, "budget": 7}));
    assert_eq!(given(&short_body), json!({"enable_thinking": false}));
    assert_eq!(short_body["top_k"], 3);
    // A teacher in a folder has them as a setting, which is kept with the others.
    let text = "[long.local]\nmodel = \"m\"\ntemplate_variables = { enable_thinking = true }";
    let config = MakePairsConfig::from_toml(text).unwrap();
    assert_eq!(config.long.local.unwrap().template_variables["enable_thinking"], true);
    let output = call(&["--long-url", &long.url, "--long-template-variable", "x=null"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("settings cannot hold"), "{said}");
}

#[test]
fn each_problem_is_asked_once_and_none_that_a_benchmark_has() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| Manner::Says(long_answer(&request.prompt)));
    let short = Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let mut config = sums(folder.path(), 0, [&long, &short]);
    let story = |a: u64, b: u64, end: &str| {
        let text = format!(
            "In the old town by the river there are {a} green boats, and at noon {b} more of them \
             arrive from the sea. How many boats are there in the old town then{end}"
        );
        json!({ "problem": text, "answer": a + b }).to_string() + "\n"
    };
    let rows = [
        story(3, 4, "?"),
        // The same but for white space and case; nearly the same; with other numbers.
        story(3, 4, "?").replace("In the", "IN  the"),
        story(3, 4, "?").replace("\"answer\":7", "\"answer\":8"),
        story(3, 4, ", altogether?"),
        story(5, 6, "?"),
        json!({ "problem": "What is 1 + 1?", "answer": "2" }).to_string() + "\n",
        json!({ "problem": "What is 2 + 2?" }).to_string() + "\n",
    ];
    std::fs::write(&config.problems, rows.concat()).unwrap();
    let benchmark = folder.path().join("benchmark.jsonl");
    std::fs::write(&benchmark, json!({ "problem": "what is  1 + 1?", "answer": 2 }).to_string())
        .unwrap();
    config.benchmarks = vec![benchmark];
    config.near_duplicates = 0.6;
    let out = folder.path().join("pairs");
    let report = run(&config, &out).unwrap();
    let counts = &report.problems;
    assert_eq!((counts.read, counts.without_answer, counts.asked), (6, 1, 2), "{counts:?}");
    assert_eq!((counts.duplicates, counts.contradictions), (2, 1), "{counts:?}");
    assert_eq!((counts.near_duplicates, counts.variants), (1, 1), "{counts:?}");
    assert_eq!((counts.in_benchmarks, report.pairs), (1, 2), "{counts:?}");
    assert_eq!(rows_of(&out, "left-out.jsonl"), 4);
    assert_eq!(long.requests().len(), 2);
}

fn rows_of(out: &Path, name: &str) -> usize {
    rows(&out.join(name)).len()
}

#[test]
fn a_directory_with_other_files_or_another_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = PairsDirectory::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("files that are not a pairs directory's"), "{error}");
    let out = folder.path().join("pairs");
    let _held = PairsDirectory::open(&out).unwrap();
    let error = PairsDirectory::open(&out).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    let error = PairsDirectory::open(&folder.path().join("thesis.tex")).unwrap_err().to_string();
    assert!(error.contains("not a directory"), "{error}");
}

#[test]
fn a_server_that_gives_fewer_answers_than_asked_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    // Right only with the fifth seed, and one answer whatever n is.
    let long = Server::start(|request| match request.body["seed"].as_u64().unwrap() {
        4 => Manner::Says(long_answer(&request.prompt)),
        _ => Manner::Says("\\boxed{0}".into()),
    });
    let short = Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let mut config = sums(folder.path(), 2, [&long, &short]);
    (config.samples, config.long.n) = (6, 4);
    set(&mut config, |server| server.temperature = 1.0);
    let report = run(&config, &folder.path().join("pairs")).unwrap();
    assert_eq!((report.pairs, report.long.answers), (2, 10));
    let asked: Vec<u64> =
        long.requests().iter().map(|r| r.body["n"].as_u64().unwrap_or(1)).collect();
    assert_eq!(asked.len(), 10);
    // Never for more than are missing.
    assert_eq!(asked.iter().sum::<u64>(), 2 * (4 + 4 + 4 + 3 + 2));
}

#[test]
fn teachers_of_the_callers_own_are_asked_and_must_answer_all() {
    struct Own(usize);
    impl Teacher for Own {
        fn name(&self) -> String {
            "own|\n".into()
        }
        fn place(&self) -> String {
            "here".into()
        }
        fn request(&self, question: &TeacherPrompt) -> Value {
            json!({ "prompt": question.prompt, "seed": question.seed })
        }
        fn batch(&self) -> usize {
            3
        }
        fn ask(&self, questions: &[TeacherPrompt], _: &StopFlag) -> Result<Vec<Response>, Failure> {
            let answer = |question: &TeacherPrompt| Response {
                samples: vec![TeacherSample::of_text(&short_answer(&question.prompt), None)],
                ..Response::default()
            };
            Ok(questions.iter().take(self.0).map(answer).collect())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let nobody = Server::start(|_| Manner::Dies);
    let mut config = sums(folder.path(), 7, [&nobody, &nobody]);
    (config.long.server, config.short.server) = (None, None);
    let make = |teachers: [&dyn Teacher; 2], name: &str| {
        let out = PairsDirectory::open(&folder.path().join(name)).unwrap();
        make_pairs_with(&config, teachers, &out, &Context::default())
    };
    assert_eq!(make([&Own(3), &Own(3)], "pairs").unwrap().pairs, 7);
    let card = std::fs::read_to_string(folder.path().join("pairs/README.md")).unwrap();
    assert!(card.contains("| long: own |"), "{card}");
    let error = make([&Own(3), &Own(2)], "fewer").unwrap_err().to_string();
    assert!(error.contains("2 responses to 3 questions"), "{error}");
}

#[test]
fn pairs_of_other_problems_are_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| Manner::Says(long_answer(&request.prompt)));
    let short = Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let mut config = sums(folder.path(), 3, [&long, &short]);
    let out = folder.path().join("pairs");
    run(&config, &out).unwrap();
    let row = |a: u64| json!({ "problem": format!("Add {a} and 1."), "answer": a + 1 }).to_string();
    let others = folder.path().join("others.jsonl");
    std::fs::write(&others, row(50) + "\n" + &row(60)).unwrap();
    let before = std::fs::read(out.join("pairs.jsonl")).unwrap();
    let first = std::mem::replace(&mut config.problems, others.clone());
    let error = run(&config, &out).unwrap_err().to_string();
    assert!(error.contains("other problems"), "{error}");
    assert_eq!(std::fs::read(out.join("pairs.jsonl")).unwrap(), before);
    // More problems beside the old ones are no others.
    let more = std::fs::read_to_string(&first).unwrap() + &row(70);
    std::fs::write(&others, more).unwrap();
    assert_eq!(run(&config, &out).unwrap().pairs, 4);
    config.limit = Some(0);
    assert!(run(&config, &out).unwrap_err().to_string().contains("limit"));
}

#[cfg(feature = "parquet")]
#[test]
fn pairs_are_written_as_parquet_too() {
    let folder = tempfile::tempdir().unwrap();
    let long = Server::start(|request| Manner::Says(long_answer(&request.prompt)));
    let short = Server::start(|request| Manner::Says(short_answer(&request.prompt)));
    let config = sums(folder.path(), 5, [&long, &short]);
    let out = folder.path().join("pairs");
    run(&config, &out).unwrap();
    for (role, solution) in [("long", "The sum is"), ("short", "boxed")] {
        let columns = ColumnMap { solution: Some(role.into()), ..ColumnMap::default() };
        let read =
            mixdistill::data::read_records(out.join("pairs.parquet"), &columns, 0.0).unwrap();
        let jsonl = mixdistill::data::read_records(out.join("pairs.jsonl"), &columns, 0.0).unwrap();
        assert_eq!(read.records, jsonl.records);
        assert_eq!(read.records.len(), 5);
        assert!(read.records.iter().all(|record| record.solution.contains(solution)));
    }
}
