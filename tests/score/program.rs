//! What `mixdistill score` prints, and which files and sources it refuses.

use super::{Heard, StopAt, common, lines, to_file};
use common::chat_folder::ChatFolder;
use mixdistill::context::{Context, StopFlag};
use mixdistill::model::{DecoderConfig, SaveFolder};
use mixdistill::recipe::{RowScores, RunConfig, SourceConfig, read_scores, write_scores};
use serde_json::{Value, json};

/// A student in a folder, and three teachers' files.
struct Teachers(ChatFolder);

impl Teachers {
    fn new() -> Self {
        let special = ["<|user|>", "<|bot|>", "<|end|>"];
        let folder = ChatFolder::new(&special, &[], false, json!({"eos_token": "<|end|>"}));
        let template = "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>\
                        {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}";
        let tokenizer = mixdistill::data::TextTokenizer::from_file(
            &folder.path().join("tokenizer.json"),
            Some("<|end|>"),
        )
        .unwrap();
        let config = DecoderConfig {
            vocab_size: tokenizer.vocabulary_size(),
            ..common::tiny(mixdistill::model::Architecture::Qwen3)
        };
        let how = SaveFolder { chat_template: Some(template), ..SaveFolder::new(&tokenizer) };
        let model = config.init(3, &common::devices()[0]).unwrap();
        model.save(&folder.path().join("student"), &how).unwrap();
        let teachers = Self(folder);
        teachers.write("a.jsonl", &|i| Some(format!("{i} twice. It is {}.\nDone", 2 * i)));
        teachers.write("b.jsonl", &|i| Some(format!("{}", 2 * i)));
        // Another teacher answers some problems, one of them in the words of the second.
        teachers.write("c.jsonl", &|i| match i {
            1 => Some("2".into()),
            2..=4 => Some(format!("The answer: {}", 2 * i)),
            _ => None,
        });
        teachers
    }

    fn write(&self, name: &str, answer: &dyn Fn(usize) -> Option<String>) {
        let line = |i: usize| {
            let solution = answer(i)?;
            let row = json!({"id": format!("p{i}"), "problem": format!("{i} + {i}?"), "solution": solution});
            Some(format!("{row}\n"))
        };
        std::fs::write(self.0.path().join(name), (1..9).filter_map(line).collect::<String>())
            .unwrap();
    }

    fn text(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn call(&self, out: &str, more: &[&str]) -> (i32, String, String) {
        let output = common::command("score")
            .args([
                "--model",
                &self.text("student"),
                "--max-length",
                "200",
                "--out",
                &self.text(out),
            ])
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn any_number_of_teachers_is_scored_and_told_by_source() {
    let teachers = Teachers::new();
    let source = |name: &str| format!("{name}={}", teachers.text(&format!("{name}.jsonl")));
    let sources: Vec<String> = ["a", "b", "c"].map(source).to_vec();
    let words: Vec<&str> = sources.iter().flat_map(|source| ["--source", source]).collect();
    let (status, out, err) = teachers.call("scores.jsonl", &words);
    assert_eq!(status, 0, "{err}");
    for shown in [
        "20 answers in ",
        "\nsource  answers  tokens    NLL  perplexity",
        "\nThe Rank-Surprisal Ratio is lowest for ",
        "\nnext:\n  mixdistill train --model ",
        " --max-length 200 --set ",
        " --set mixture.choice.by=rsr --set mixture.choice.scores=",
    ] {
        assert!(out.contains(shown), "{shown:?} in {out}");
    }
    let rows = read_scores(&teachers.0.path().join("scores.jsonl")).unwrap();
    let of = |name: &str| rows.iter().filter(|row| row.source == name).collect::<Vec<_>>();
    assert_eq!([of("a").len(), of("b").len(), of("c").len()], [8, 8, 4]);
    // The same answer of two teachers has the same scores, and a line for each.
    let [b, c] = [of("b")[0], of("c")[0]];
    assert_eq!((b.row.as_str(), b.id.as_deref()), (c.row.as_str(), Some("p1")));
    let renamed = RowScores { source: "c".into(), label: c.label.clone(), ..b.clone() };
    assert_eq!(&renamed, c);
    // All problems count, and as JSON all is there.
    let (status, out, _) = teachers.call("scores.jsonl", &[&words[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &json["scores"]["before"]), (0, &json!(20)));
    let names: Vec<&Value> =
        json["scores"]["sources"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
    // The means by hand.
    let mean = |of: &dyn Fn(&RowScores) -> f64| {
        of_rows(&rows, "c").iter().map(|row| of(row)).sum::<f64>() / 4.0
    };
    let (nll, rank) = (mean(&|row| row.nll), mean(&|row| row.rank));
    let c = &json["scores"]["sources"][2];
    assert!((c["nll"].as_f64().unwrap() - nll).abs() < 1e-12);
    assert!((c["rsr"].as_f64().unwrap() - rank / nll).abs() < 1e-12);
}

#[test]
fn equal_answers_count_in_progress_and_equal_ratios_are_told() {
    let teachers = Teachers::new();
    let mut config = RunConfig::fine_tune(teachers.text("student"));
    let source = |name: &str, file: &str| SourceConfig {
        name: name.into(),
        path: teachers.text(file).into(),
        ..SourceConfig::default()
    };
    config.data.sources =
        vec![source("b", "b.jsonl"), source("c", "c.jsonl"), source("d", "b.jsonl")];
    let out = teachers.0.path().join("same.jsonl");
    let heard = Heard::default();
    let context = Context::new(heard.clone(), &StopFlag::default());
    write_scores(&config, &to_file(&out), &context).unwrap();
    let heard = heard.0.lock().unwrap();
    assert_eq!((heard.1, heard.2), (20, 20));
    // Four rows of the first problem and one of the second are there, in one line each.
    let path = teachers.0.path().join("part.jsonl");
    let flag = StopFlag::default();
    let context = Context::new(StopAt(4, flag.clone()), &flag);
    let stopped = write_scores(&config, &to_file(&path), &context).unwrap_err().to_string();
    assert!(stopped.contains("4 of 20 answers are in"), "{stopped}");
    assert_eq!(lines(&path).len(), 4);
    // As the program tells it.
    let source = |name: &str, file: &str| format!("{name}={}", teachers.text(file));
    let [b, c, d] = [source("b", "b.jsonl"), source("c", "one.jsonl"), source("d", "b.jsonl")];
    teachers.write("one.jsonl", &|i| (i == 1).then(|| "none of it, a a a a".into()));
    let (status, said, err) = teachers.call("two.jsonl", &["--source", &b, "--source", &d]);
    assert_eq!(status, 0, "{err}");
    assert!(said.contains("The Rank-Surprisal Ratios of b and d are equal: "), "{said}");
    let (_, said, _) =
        teachers.call("three.jsonl", &["--source", &b, "--source", &d, "--source", &c]);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("c (one answer)") && said.contains("b and d"), "{said}");
}

/// The command under "next:", run in place of a person.
#[cfg(unix)]
fn paste(said: &str, more: &str) -> (bool, String) {
    let (_, next) = said.split_once("\nnext:\n  mixdistill ").expect("what is next");
    let line = format!("{} {next} {more}", common::program()).replace('\n', " ");
    let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    (output.status.success(), format!("{line}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[cfg(unix)]
#[test]
fn the_next_command_trains_with_the_scores() {
    let teachers = Teachers::new();
    let source = |name: &str| format!("{name}={}", teachers.text(&format!("{name}.jsonl")));
    let [a, b] = [source("a"), source("b")];
    // The columns of one file are not those that are usual.
    let odd = std::fs::read_to_string(teachers.text("a.jsonl")).unwrap();
    std::fs::write(teachers.text("odd.jsonl"), odd.replace("solution", "odd one")).unwrap();
    let [odd, short] = [teachers.text("odd.jsonl"), teachers.text("b.jsonl")];
    let config = teachers.0.path().join("my run.toml");
    let settings = "[data.sources.long]\npath = \"no\"\ncolumns = { solution = \"odd one\" }\n";
    std::fs::write(&config, settings).unwrap();
    let config = config.display().to_string();
    let calls: [(&str, Vec<&str>); 3] = [
        ("rsr", vec!["--source", &a, "--source", &b, "--set", "data.system_prompt=It is \"so\""]),
        ("lalp", vec!["--config", &config, "--long", &odd, "--short", &short, "--lalp"]),
        ("rsr", vec!["--long", &odd, "--short", &short, "--columns", "long=solution=odd one"]),
    ];
    for (number, (by, words)) in calls.iter().enumerate() {
        let out = format!("scores {number}.jsonl");
        let (status, said, err) = teachers.call(&out, words);
        assert_eq!(status, 0, "{err}");
        assert!(said.contains(&format!("mixture.choice.by={by} ")), "{said}");
        let scores = std::fs::read(teachers.text(&out)).unwrap();
        let run = teachers.text(&format!("run{number}"));
        let more = format!("--steps 1 --set data.hold_out=0 --out '{run}'");
        let (is_well, told) = paste(&said, &more);
        assert!(is_well, "{told}");
        // Every row is one that the scores are of.
        assert!(std::fs::read(teachers.text(&out)).unwrap() == scores, "{told}");
    }
    // No choice takes LALP of another window.
    let words = ["--source", &a, "--source", &b, "--lalp", "--window", "1"];
    let (_, said, _) = teachers.call("window.jsonl", &words);
    assert!(said.contains("mixture.choice.by=rsr "), "{said}");
    let (status, _, err) = teachers.call("x.jsonl", &["--source", &a, "--columns", "b=id=x"]);
    assert!(status == 2 && err.contains("--columns names `b`, which is not a source"), "{err}");
    let (status, _, err) = teachers.call("x.jsonl", &["--source", &a, "--columns", "a"]);
    assert!(status == 2 && err.contains("Write NAME=MAP"), "{err}");
    let (status, _, err) = teachers.call("a.jsonl", &["--source", &a]);
    assert!(status == 1 && err.contains("a.jsonl: it is one of the sources"), "{err}");
}

fn of_rows<'a>(rows: &'a [RowScores], name: &str) -> Vec<&'a RowScores> {
    rows.iter().filter(|row| row.source == name).collect()
}

#[test]
fn another_student_s_file_and_wrong_sources_are_refused_by_the_program() {
    let teachers = Teachers::new();
    let source = format!("a={}", teachers.text("a.jsonl"));
    assert_eq!(teachers.call("scores.jsonl", &["--source", &source]).0, 0);
    // One number of the weights is another.
    let weights = teachers.0.path().join("student/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let (status, _, err) = teachers.call("scores.jsonl", &["--source", &source]);
    assert!(status == 1 && err.contains("student.weights was "), "{err}");
    for (words, expected) in [
        (&["--source", "a"][..], "Write NAME=FILE"),
        (&["--source", "=a"], "Write NAME=FILE"),
        (&["--source", &source, "--source", &source], "two sources are named `a`"),
        (&["--window", "3"], "--lalp"),
    ] {
        let (status, _, err) = teachers.call("other.jsonl", words);
        assert!(status == 2 && err.contains(expected), "{words:?}: {err}");
    }
    let (status, _, err) = teachers.call("x.parquet", &["--source", &source]);
    match cfg!(feature = "parquet") {
        true => assert_eq!(status, 0, "{err}"),
        false => assert!(status == 1 && err.contains("--features parquet"), "{err}"),
    }
}
