//! Promise: the parts of `evaluate`, `score`, `logits`, and `pairs`, made by independent processes, join to what
//! one process writes, except for wall times. If the parts are not exactly one whole job, the error says why,
//! and nothing is written.

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "teacher")]
mod pairs;
#[cfg(feature = "teacher")]
#[path = "../chat_servers/server.rs"]
#[allow(dead_code, reason = "the tests of servers use all of it")]
mod server;

use common::chat_folder::ChatFolder;
use common::{command, tiny, toy_run};
use mixdistill::context::Context;
use mixdistill::data::TextTokenizer;
use mixdistill::eval::EvaluationDirectory;
use mixdistill::model::{Architecture, DecoderConfig, SaveFolder};
use mixdistill::recipe::{RunMode, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A job that can be divided.
struct Job {
    command: &'static str,
    folder: TempDir,
    flags: Vec<String>,
    /// What outputs are called behind their names.
    ending: &'static str,
}

impl Job {
    fn new(command: &'static str, ending: &'static str, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { command, folder: tempfile::tempdir().unwrap(), flags, ending }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}{}", self.ending))
    }

    fn call(&self, flags: &[&str], out: &str, more: &[&str]) -> Output {
        let mut call = command(self.command);
        call.args(flags).args(more).arg("--out").arg(self.place(out)).output().unwrap()
    }

    fn work(&self, out: &str, more: &[&str]) -> Output {
        self.call(&self.flags.iter().map(String::as_str).collect::<Vec<_>>(), out, more)
    }

    fn part(&self, part: &str, out: &str) {
        good(&self.work(out, &["--part", part]));
    }

    fn join(&self, parts: &[&str], out: &str) -> Output {
        let parts: Vec<String> =
            parts.iter().map(|part| self.place(part).display().to_string()).collect();
        let join = ["--join"].into_iter().chain(parts.iter().map(String::as_str));
        self.call(&join.collect::<Vec<_>>(), out, &[])
    }

    /// Refuses with these words and writes nothing.
    fn refuses(&self, output: &dyn Fn() -> Output, expected: &[&str]) {
        let before = snapshot(self.folder.path());
        let output = output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(expected.iter().all(|text| said.contains(text)), "{expected:?}: {said}");
        let after = snapshot(self.folder.path());
        let changed: Vec<&PathBuf> =
            after.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(before == after, "{expected:?}: {changed:?}");
    }
}

fn good(output: &Output) -> String {
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// All files below a folder, without locks.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.to_string_lossy().ends_with("lock") {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// The same by their names in the folder.
fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = snapshot(folder).into_iter();
    files
        .map(|(path, bytes)| (path.strip_prefix(folder).unwrap().display().to_string(), bytes))
        .collect()
}

/// Lines of JSON without wall times, in the order of their texts.
fn untimed(text: &[u8]) -> Vec<String> {
    let lines = std::str::from_utf8(text).unwrap().lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line["seconds"] = Value::Null;
        line.to_string()
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// What every command refuses. Of the job the outputs p1, p2 and p3 of three parts are there; `other` are flags of
/// another job, `more` of the same with other data, and `spoil` takes some of the work from an output.
fn refuses_what_is_no_whole(job: &Job, other: &[&str], more: &[&str], spoil: &dyn Fn(&Path)) {
    let join = |parts: &'static [&'static str]| move || job.join(parts, "joined");
    job.refuses(&join(&["p1", "p3"]), &["part 2/3 is missing", "(--join)"]);
    job.refuses(&join(&["p3"]), &["parts 1/3, 2/3 are missing"]);
    job.refuses(&join(&["p1", "p2", "p3", "p2"]), &["it is part 2/3, and so is ", "p2"]);
    job.refuses(&join(&["p1", "p2", "p3", "none"]), &["cannot read", "none"]);
    good(&job.work("other", &[other, &["--part", "2/3"]].concat()));
    job.refuses(&join(&["p1", "other", "p3"]), &["other", "it belongs to another job than "]);
    good(&job.work("data", &[more, &["--part", "2/3"]].concat()));
    job.refuses(&join(&["p1", "data", "p3"]), &["data", "its data differ"]);
    job.part("2/4", "four");
    job.refuses(
        &join(&["p1", "four", "p3"]),
        &["four", "it is part 2/4, and that one is part 1/3"],
    );
    // An output stays what it is.
    let work = |out: &'static str, part: &'static [&'static str]| move || job.work(out, part);
    job.refuses(&work("p2", &["--part", "3/3"]), &["it is part 2/3, not part 3/3"]);
    job.refuses(&work("p2", &[]), &["it is part 2/3 of a divided job"]);
    job.refuses(
        &work("whole", &["--part", "1/3"]),
        &["its content is not a part of a divided job"],
    );
    job.refuses(&|| job.join(&["p1", "p2", "p3"], "p2"), &["p2"]);
    job.refuses(&join(&["p1", "whole", "p3"]), &["whole", "it is not a part of a divided job"]);
    // A part that was killed, and goes on.
    spoil(&job.place("p2"));
    let out = format!("--part 2/3 --out {}", job.place("p2").display());
    job.refuses(&join(&["p1", "p2", "p3"]), &["part 2/3 is not finished", &out]);
    job.part("2/3", "p2");
    good(&job.join(&["p1", "p2", "p3"], "again"));
    let wrong = job.work("unused", &["--join", "p1"]);
    assert_eq!(wrong.status.code(), Some(2), "with other flags");
    assert_eq!(job.work("unused", &["--part", "4/3"]).status.code(), Some(2));
    assert!(!job.place("unused").exists());
}

/// A student with random weights in a folder.
fn student(folder: &Path) -> String {
    let special = ["<|user|>", "<|bot|>", "<|end|>"];
    let chat = ChatFolder::new(&special, &[], false, json!({"eos_token": "<|end|>"}));
    let template = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                    {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}";
    let file = chat.path().join("tokenizer.json");
    let tokenizer = TextTokenizer::from_file(&file, Some("<|end|>")).unwrap();
    let config =
        DecoderConfig { vocab_size: tokenizer.vocabulary_size(), ..tiny(Architecture::Qwen3) };
    let how = SaveFolder { chat_template: Some(template), ..SaveFolder::new(&tokenizer) };
    let path = folder.join("student");
    config.init(3, &common::devices()[0]).unwrap().save(&path, &how).unwrap();
    path.display().to_string()
}

/// Problems in a file.
fn problems(folder: &Path, name: &str, count: usize) -> String {
    let row = |i: usize| json!({ "id": format!("s{i}"), "problem": format!("What is {} + {}?", i + 1, 7 * i + 2), "answer": 8 * i + 3 });
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, (0..count).map(|i| format!("{}\n", row(i))).collect::<String>()).unwrap();
    path.display().to_string()
}

/// Cuts the last of a file's lines in its middle.
fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 20]).unwrap();
}

/// An evaluation of 7 and of 4 problems, twice each with draws.
fn evaluation() -> Job {
    let mut job = Job::new("evaluate", "", &[]);
    let folder = job.folder.path();
    let bench = [problems(folder, "sums.jsonl", 7), problems(folder, "few.jsonl", 4)];
    let asked = ["--samples", "2", "--temperature", "0.9", "--max-new-tokens", "9"];
    job.flags = ["--model", &student(folder), "--bench", &bench[0], &bench[1]]
        .into_iter()
        .chain(asked)
        .map(str::to_owned)
        .collect();
    job
}

/// Lets every other stored answer be right, so that there is something to score: answers are graded by their texts.
fn mend(folder: &Path) {
    for name in ["sums.jsonl", "few.jsonl"] {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else { continue };
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let id: usize = line["id"].as_str().unwrap()[1..].parse().unwrap();
            if (id + line["sample"].as_u64().unwrap() as usize).is_multiple_of(3) {
                let reference = line["reference"].as_str().unwrap().to_owned();
                line["text"] = format!("\\boxed{{{reference}}}").into();
                (line["stated"], line["correct"]) = (reference.into(), true.into());
            }
            format!("{line}\n")
        });
        std::fs::write(folder.join(name), lines.collect::<String>()).unwrap();
    }
}

/// The scores without speeds.
fn scores(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("scores.json")).unwrap();
    let mut scores: Value = serde_json::from_str(&text).unwrap();
    for score in scores["scores"].as_array_mut().unwrap() {
        score["tokens_per_second"] = Value::Null;
    }
    scores
}

#[test]
fn an_evaluation_in_parts_is_that_of_one_process() {
    let job = evaluation();
    let told = good(&job.work("p1", &["--part", "1/3"]));
    assert!(
        told.contains("sums: 3 of 7 problems are answered") && told.contains("--join"),
        "{told}"
    );
    assert!(!told.contains("95%"), "a part has no scores: {told}");
    let json = job.work("p1", &["--part", "1/3", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let counts = json!({ "benchmark": "few", "problems": 1, "of": 4, "answers": 2 });
    assert_eq!((&json["part"], &json["benchmarks"][1]), (&json!("1/3"), &counts));
    // As a task of an array, and with a stop by a limit of time in between.
    let mut task = command("evaluate");
    let array = [("ID", "12"), ("MIN", "11"), ("STEP", "1"), ("COUNT", "3")];
    task.envs(array.map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value)));
    task.current_dir(job.folder.path()).args(&job.flags).args(["--part", "array"]);
    good(&task.output().unwrap());
    assert!(job.place("scores-part-2-of-3").join("sums.jsonl").is_file());
    std::fs::rename(job.place("scores-part-2-of-3"), job.place("p2")).unwrap();
    // However many are answered at the same time.
    good(&job.work("p3", &["--part", "3/3", "--batch-size", "2"]));
    good(&job.work("whole", &["--batch-size", "5"]));
    ["whole", "p1", "p2", "p3"].iter().for_each(|name| mend(&job.place(name)));
    good(&job.work("whole", &[]));
    let told = good(&job.join(&["p3", "p1", "p2"], "joined"));
    assert!(told.contains("joined 3 parts") && told.contains("95% interval"), "{told}");

    let [whole, joined] = ["whole", "joined"].map(|name| files_in(&job.place(name)));
    assert!(whole.keys().eq(joined.keys()), "{:?} {:?}", whole.keys(), joined.keys());
    for name in ["sums.jsonl", "few.jsonl"] {
        // Each text has as many draws as its sample: parts change none.
        assert_eq!(untimed(&whole[name]), untimed(&joined[name]), "{name}");
    }
    for name in ["settings.json", "weights.json"] {
        assert!(whole[name] == joined[name], "{name}");
    }
    let [whole, joined] = ["whole", "joined"].map(|name| scores(&job.place(name)));
    assert_eq!(whole, joined);
    assert!(whole["scores"][0]["accuracy"].as_f64().unwrap() > 0.2, "{whole}");
    let md = std::fs::read_to_string(job.place("joined").join("scores.md")).unwrap();
    assert!(md.contains("| sums") && md.contains("| few"), "{md}");
    // Answers are in the order of problems and samples, and the whole goes on with them.
    let before = snapshot(&job.place("joined"));
    let text = String::from_utf8(before[&job.place("joined").join("few.jsonl")].clone()).unwrap();
    let order = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        format!("{} {}", line["id"].as_str().unwrap(), line["sample"])
    });
    assert!(order.eq((0..8).map(|i| format!("s{} {}", i / 2, i % 2))));
    good(&job.work("joined", &[]));
    assert_eq!(before, snapshot(&job.place("joined")), "nothing is asked twice");
    // Joined once more it is the same; over other answers nothing is written.
    good(&job.join(&["p1", "p2", "p3"], "joined"));
    assert_eq!(before, snapshot(&job.place("joined")));
    let join = || job.join(&["p1", "p2", "p3"], "whole");
    job.refuses(&join, &["the file exists with other content"]);

    refuses_what_is_no_whole(&job, &["--set", "generate.top_p=0.5"], &["--limit", "3"], &|part| {
        cut(&part.join("sums.jsonl"));
    });
}

#[cfg(unix)]
#[test]
fn a_part_that_is_stopped_or_killed_goes_on() {
    let mut job = evaluation();
    let samples = job.flags.iter().position(|flag| flag == "--samples").unwrap() + 1;
    job.flags[samples] = "60".into();
    job.part("2/2", "p2");
    let lines = || {
        let text = std::fs::read(job.place("p1").join("sums.jsonl")).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    };
    let join = || job.join(&["p1", "p2"], "joined");
    for signal in ["-INT", "-KILL"] {
        let before = lines();
        let mut call = command("evaluate");
        call.args(&job.flags).args(["--batch-size", "1", "--part", "1/2", "--out"]);
        let call = call.arg(job.place("p1")).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = call.spawn().unwrap();
        while lines() < before + 3 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        if signal == "-INT" {
            assert_eq!(ended.status.code(), Some(75), "{said}");
            assert!(
                said.contains("resume with: mixdistill evaluate") && said.contains("--part 1/2"),
                "{said}"
            );
        }
        assert!(lines() < 4 * 60, "it was to be stopped before its end");
        job.refuses(&join, &["part 1/2 is not finished", " of 360 answers are done"]);
    }
    job.part("1/2", "p1");
    let held = EvaluationDirectory::open_part(&job.place("p1"), "1/2".parse().unwrap()).unwrap();
    job.refuses(&join, &["p1", "another process is using it"]);
    drop(held);
    good(&join());
    good(&job.work("whole", &[]));
    for name in ["sums.jsonl", "few.jsonl"] {
        let [whole, joined] =
            ["whole", "joined"].map(|out| std::fs::read(job.place(out).join(name)).unwrap());
        assert!(untimed(&whole) == untimed(&joined), "{name}");
    }
}

#[test]
fn more_parts_than_problems_leave_some_empty() {
    let mut job = evaluation();
    job.flags.extend(["--limit", "1"].map(str::to_owned));
    // One problem of each of two benchmarks for four parts.
    let parts = ["p1", "p2", "p3", "p4"];
    for (number, part) in parts.iter().enumerate() {
        let told = good(&job.work(part, &["--part", &format!("{}/4", number + 1)]));
        assert!(told.contains(if number == 0 { "sums: 1 of 1" } else { "sums: 0 of 1" }), "{told}");
    }
    good(&job.work("whole", &[]));
    good(&job.join(&parts, "joined"));
    assert_eq!(scores(&job.place("whole")), scores(&job.place("joined")));
    let score = scoring();
    let out: Vec<String> = (1..=14).map(|i| format!("p{i}")).collect();
    out.iter().enumerate().for_each(|(i, out)| score.part(&format!("{}/14", i + 1), out));
    assert_eq!(std::fs::read(score.place("p14")).unwrap(), b"");
    good(&score.work("whole", &[]));
    good(&score.join(&out.iter().map(String::as_str).collect::<Vec<_>>(), "joined"));
    assert!(
        std::fs::read(score.place("whole")).unwrap()
            == std::fs::read(score.place("joined")).unwrap()
    );
}

/// A toy run of a small student.
const TOY: [&str; 8] = [
    "--set",
    "data.toy_problems=12",
    "--set",
    "model.hidden_size=32",
    "--set",
    "model.intermediate_size=48",
    "--set",
    "model.num_hidden_layers=1",
];

fn scoring() -> Job {
    Job::new("score", ".jsonl", &TOY)
}

#[test]
fn scores_in_parts_are_those_of_one_process() {
    let mut job = scoring();
    job.flags.push("--lalp".into());
    let told = good(&job.work("p1", &["--part", "1/3"]));
    assert!(told.contains("8 answers in ") && told.contains("part 1/3"), "{told}");
    let json = job.work("p2", &["--part", "2/3", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["part"], &json["answers"], &json["before"]),
        (&json!("2/3"), &json!(8), &json!(0))
    );
    job.part("3/3", "p3");
    let whole = job.work("whole", &["--json"]);
    let joined = job.join(&["p2", "p3", "p1"], "joined");
    assert!(good(&joined).contains("lowest for"), "{joined:?}");
    let read = |name: &str| std::fs::read(job.place(name)).unwrap();
    assert!(read("whole") == read("joined"), "byte for byte");
    let settings = |name: &str| {
        let name = format!("{}.settings.json", job.place(name).display());
        std::fs::read(name).unwrap()
    };
    assert_eq!(settings("whole"), settings("joined"));
    let parts = ["p1", "p2", "p3"].map(|part| job.place(part).display().to_string());
    let out = job.place("joined").display().to_string();
    let mut again = command("score");
    again.arg("--join").args(&parts).args(["--out", &out, "--json"]);
    let sources = |output: &Output| {
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["scores"]["sources"].clone()
    };
    assert_eq!(sources(&whole), sources(&again.output().unwrap()));
    // What chooses by scores takes no part for the whole.
    let mut train = command("train");
    let scores = format!("mixture.choice.scores={}", job.place("p1").display());
    train.args(TOY).args(["--set", "mixture.choice.by=rsr", "--set", &scores, "--out"]);
    let said = train.arg(job.folder.path().join("run")).output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("it is part 1/3 of a divided job"), "{said}");
    // A part without LALP goes with no part that has it.
    let plain = scoring();
    (1..=3).for_each(|i| plain.part(&format!("{i}/3"), &format!("p{i}")));
    for ending in ["", ".part.json", ".settings.json"] {
        let [from, to] = [plain.place("p2"), job.place("plain")]
            .map(|path| format!("{}{ending}", path.display()));
        std::fs::copy(from, to).unwrap();
    }
    job.refuses(
        &|| job.join(&["p1", "plain", "p3"], "joined2"),
        &["plain", "lalp was {\"window\":4}, is null"],
    );
    // With the flag it is read again, and goes with them.
    good(&job.work("plain", &["--part", "2/3"]));
    good(&job.join(&["p1", "plain", "p3"], "joined2"));
    assert!(read("whole") == read("joined2"));
    good(&plain.work("whole", &[]));
    let other = ["--set", "model.hidden_size=16"];
    refuses_what_is_no_whole(&plain, &other, &["--set", "data.toy_problems=13"], &cut);
    // Sources that give the same answer: each has a line, whichever part it falls to.
    let name = |name: &str| job.folder.path().join(name).display().to_string();
    for source in ["a.jsonl", "b.jsonl"] {
        let row = |i: usize| json!({ "problem": format!("{i} + {i}?"), "solution": format!("{}", 2 * i) });
        let rows = (1..6).map(|i| format!("{}\n", row(i))).collect::<String>();
        std::fs::write(name(source), rows.clone() + &format!("{}\n", row(3))).unwrap();
    }
    let [a, b] = ["a", "b"].map(|source| format!("{source}={}", name(&format!("{source}.jsonl"))));
    let model = student(job.folder.path());
    let doubled = Job {
        flags: ["--model", &model, "--source", &a, "--source", &b].map(str::to_owned).to_vec(),
        ..Job::new("score", ".jsonl", &[])
    };
    (1..=4).for_each(|i| doubled.part(&format!("{i}/4"), &format!("p{i}")));
    good(&doubled.work("whole", &[]));
    good(&doubled.join(&["p1", "p2", "p3", "p4"], "joined"));
    assert!(
        std::fs::read(doubled.place("whole")).unwrap()
            == std::fs::read(doubled.place("joined")).unwrap()
    );
}

#[cfg(feature = "parquet")]
#[test]
fn parts_that_are_written_as_parquet_are_joined_as_parquet() {
    let job = Job::new("score", ".parquet", &TOY);
    (1..=2).for_each(|i| job.part(&format!("{i}/2"), &format!("p{i}")));
    good(&job.work("whole", &[]));
    good(&job.join(&["p1", "p2"], "joined"));
    for ending in ["parquet", "jsonl"] {
        let [whole, joined] = ["whole", "joined"]
            .map(|name| std::fs::read(job.place(name).with_extension(ending)).unwrap());
        assert!(whole == joined, "{ending}");
    }
    std::fs::write(job.place("mine"), "mine").unwrap();
    job.refuses(&|| job.join(&["p1", "p2"], "mine"), &["mine.parquet: it exists"]);
}

#[test]
fn logits_in_parts_are_those_of_one_process() {
    let mut job = Job::new("logits", "", &TOY);
    let mut teacher = toy_run(&job.folder.path().join("teacher"));
    (teacher.data.toy_problems, teacher.train.steps) = (12, Some(2));
    (teacher.evaluation.questions, teacher.train.evaluate_every) = (0, 0);
    run(&teacher, RunMode::New, &Context::default()).unwrap();
    let model = teacher.out.join("model").display().to_string();
    job.flags.extend(["--all", "--teacher", &model].map(str::to_owned));
    let told = good(&job.work("p1", &["--part", "1/3", "--top-k", "8"]));
    assert!(told.contains("8 rows in ") && told.contains("part 1/3"), "{told}");
    job.flags.extend(["--top-k", "8"].map(str::to_owned));
    let json = job.work("p2", &["--part", "2/3", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["part"], &json["written"]["rows"]), (&json!("2/3"), &json!(8)));
    job.part("3/3", "p3");
    // As where a process is killed that has just begun its part.
    for entry in std::fs::read_dir(job.place("p3")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("part.json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    job.part("3/3", "p3");
    good(&job.work("whole", &[]));
    let told = good(&job.join(&["p1", "p3", "p2"], "joined"));
    assert!(told.contains("24 rows in ") && told.contains("teacher.path="), "{told}");
    assert!(files_in(&job.place("whole")) == files_in(&job.place("joined")), "byte for byte");
    // What is there stays, and a folder that was begun goes on.
    let told = good(&job.join(&["p1", "p3", "p2"], "joined"));
    assert!(told.contains("24 from an earlier call"), "{told}");
    refuses_what_is_no_whole(
        &job,
        &["--temperature", "2"],
        &["--set", "data.toy_problems=13"],
        &|part| std::fs::remove_file(part.join("part-000000.safetensors")).unwrap(),
    );
    let other = Job { flags: job.flags.clone(), ..Job::new("logits", "", &[]) };
    good(&other.work("other", &["--temperature", "2"]));
    std::fs::rename(other.place("other"), job.place("warm")).unwrap();
    job.refuses(&|| job.join(&["p1", "p2", "p3"], "warm"), &["it holds other logits: temperature"]);
    // Without --all the rows are those of the mixture.
    let mut mixed = Job { flags: job.flags.clone(), ..Job::new("logits", "", &[]) };
    mixed.flags.retain(|flag| flag != "--all");
    (1..=4).for_each(|i| mixed.part(&format!("{i}/4"), &format!("p{i}")));
    assert!(good(&mixed.work("whole", &[])).contains("12 rows in "));
    good(&mixed.join(&["p1", "p2", "p3", "p4"], "joined"));
    assert!(files_in(&mixed.place("whole")) == files_in(&mixed.place("joined")));
    // What trains takes no part for the whole.
    let mut train = command("train");
    train.args(TOY).args(["--steps", "2", "--set", "train.objective.distillation.weight=0.5"]);
    let teacher = format!("teacher.path={}", mixed.place("p1").display());
    train.args(["--set", &teacher, "--out"]).arg(mixed.place("run"));
    let said = String::from_utf8_lossy(&train.output().unwrap().stderr).into_owned();
    assert!(said.contains("it is part 1/4 of a divided job"), "{said}");
    // More parts than rows.
    let few = Job::new("logits", "", &[]);
    let flags = [&job.flags[..], &["--set".into(), "data.toy_problems=1".into()]].concat();
    let few = Job { flags, ..few };
    (1..=3).for_each(|i| few.part(&format!("{i}/3"), &format!("p{i}")));
    good(&few.work("whole", &[]));
    good(&few.join(&["p1", "p2", "p3"], "joined"));
    assert!(files_in(&few.place("whole")) == files_in(&few.place("joined")));
}
