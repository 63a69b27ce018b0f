//! `generate`, `chat` and `merge`.

use super::{call, call_with, train};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// A toy student and one of its test problems.
fn student() -> (TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    train(&out.display().to_string(), &[]).with(0);
    let answers = std::fs::read_to_string(out.join("after.jsonl")).unwrap();
    let answer: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    let problem = answer["problem"].as_str().unwrap().to_owned();
    (folder, out.display().to_string(), problem)
}

#[test]
fn one_prompt_is_answered_on_standard_output() {
    let (_folder, run, problem) = student();
    let model = format!("{run}/model");
    let words = ["generate", "--model", &model, "--prompt", &problem, "--max-new-tokens", "6"];
    let words = [&words[..], &["--temperature", "1", "--seed", "3"]].concat();
    let ended = call(&words).with(0);
    assert!(ended.err.contains("tokens/s; "), "{}", ended.err);
    assert_eq!(call(&words).out, ended.out, "the seed decides");
    // A run directory is accepted as its model.
    let of_run: Vec<&str> =
        words.iter().map(|word| if *word == model { &run } else { *word }).collect();
    assert_eq!(call(&of_run).with(0).out, ended.out);

    let json = call(&[&words[..], &["--json"]].concat()).with(0);
    assert_eq!(json.out.lines().count(), 1, "{}", json.out);
    let answer: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(answer["answer"].as_str().unwrap().trim(), ended.out.trim());
    assert!(answer["tokens"].as_u64().unwrap() <= 6 && answer["ended"].is_string());

    let said = call(&[&words[..], &["--top-p", "7"]].concat()).with(1).err;
    assert!(said.contains("setting `generate.top_p` (--top-p)"), "{said}");
}

#[test]
fn variables_reach_the_chat_template_wherever_a_model_is_asked() {
    let (folder, run, problem) = student();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let switch = "{{ messages[-1].content }}{{ ' + 1 + 1 + 1' if enable_thinking }}";
    std::fs::write(path("switch.jinja"), switch).unwrap();
    let template = path("switch.jinja");
    let asked = ["--model", &run, "--chat-template", &template, "--max-new-tokens", "2"];
    let tokens = |more: &[&str]| {
        let words = [&["generate", "--prompt", &problem, "--json"], &asked[..], more].concat();
        let json: Value = serde_json::from_str(&call(&words).with(0).out).unwrap();
        json["prompt_tokens"].as_u64().unwrap()
    };
    let (on, off) = ("enable_thinking=true", "enable_thinking=false");
    assert_eq!(tokens(&["--template-variable", off]), tokens(&[]));
    // The last of two flags counts.
    let twice = ["--template-variable", off, "--template-variable", on];
    assert!(tokens(&twice) > tokens(&[]));
    let chat = [&["chat", "--template-variable", on], &asked[..]].concat();
    call_with(&chat, &problem).with(0);
    let said = call(&[&chat[..], &["--template-variable", "2 = 3"]].concat()).with(2).err;
    assert!(said.contains("is not a valid name"), "{said}");

    // Answers with other settings are not resumed.
    let (bench, out) = (path("bench.jsonl"), path("scores"));
    std::fs::write(&bench, format!("{{\"problem\": {problem:?}, \"answer\": 1}}\n")).unwrap();
    let evaluate = |more: &[&str]| {
        let words = ["evaluate", "--bench", &bench, "--out", &out];
        call(&[&words[..], &asked[..], more].concat())
    };
    evaluate(&["--template-variable", on]).with(0);
    evaluate(&["--template-variable", on]).with(0);
    let said = evaluate(&["--template-variable", off]).with(1).err;
    assert!(said.contains("template_variables.enable_thinking was true, is false"), "{said}");
}

#[test]
fn a_file_of_prompts_is_answered_in_its_order_and_never_overwritten() {
    let (folder, run, problem) = student();
    let path = |name: &str| -> (PathBuf, String) {
        let path = folder.path().join(name);
        (path.clone(), path.display().to_string())
    };
    let ((prompts, from), (out, to)) = (path("prompts.txt"), path("answers.jsonl"));
    std::fs::write(&prompts, format!("{problem}\n").repeat(5)).unwrap();
    let words = ["generate", "--model", &run, "--prompts", &from, "--out", &to];
    let words = [&words[..], &["--max-new-tokens", "4", "--batch-size", "2"]].concat();
    let said = call(&words).with(0).out;
    assert!(said.contains("5 of 5 answers"), "{said}");
    let written = std::fs::read_to_string(&out).unwrap();
    let index = |line: &str| serde_json::from_str::<Value>(line).unwrap()["index"].as_u64();
    let order: Vec<u64> = written.lines().filter_map(index).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    let said = call(&words).with(1).err;
    assert!(said.contains("answers.jsonl"), "{said}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), written);

    // A prompt that does not fit is named before anything is generated, and no file is left.
    std::fs::write(&prompts, format!("{problem}\n{}\n", "1 ".repeat(5_000))).unwrap();
    let to = path("long.jsonl").1;
    let words = ["generate", "--model", &run, "--prompts", &from, "--out", &to];
    let said = call(&words).with(1).err;
    assert!(said.contains("prompt 2 of the file") && said.contains("tokens"), "{said}");
    assert!(!folder.path().join("long.jsonl").exists());
}

#[test]
fn a_chat_goes_on_after_a_message_that_does_not_fit() {
    let (_folder, run, problem) = student();
    let long = "1 ".repeat(5_000);
    let input = format!("{problem}\n\n{long}\n{problem}\n/new\n{problem}");
    let words = ["chat", "--model", &run, "--max-new-tokens", "5"];
    let ended = call_with(&words, &input).with(0);
    assert!(ended.err.contains("not sent: ") && ended.err.contains("tokens"), "{}", ended.err);
    assert_eq!(ended.err.matches("tokens/s; ").count(), 3, "{}", ended.err);
    assert!(ended.err.contains("tokens of conversation"), "{}", ended.err);
    assert!(ended.err.contains("started a new conversation"), "{}", ended.err);
    // Input after /quit is ignored.
    let ended = call_with(&words, &format!("/quit\n{problem}\n")).with(0);
    assert!(!ended.err.contains("tokens/s"), "{}", ended.err);
}

#[test]
fn what_cannot_be_loaded_is_named_before_weights_are_read() {
    let (folder, run, _) = student();
    let out = folder.path().join("merged").display().to_string();
    let said = call(&["merge", "--model", &run, "--out", &out]).with(1).err;
    assert!(said.contains("adapter"), "{said}");
    assert!(!folder.path().join("merged").exists());
    let said = call(&["generate", "--model", "no/such", "--prompt", "x"]).with(1).err;
    assert!(said.contains("no/such"), "{said}");
    if !cfg!(feature = "hub") {
        assert!(said.contains("--features hub"), "{said}");
    }
    let said = call(&["chat", "--model", &run, "--adapter", "no/adapter"]).with(1).err;
    assert!(said.contains("no/adapter"), "{said}");
    let said = call(&["chat", "--model", &run, "--system", "Be brief"]).with(1).err;
    assert!(said.contains("leaves out the system text \"Be brief\""), "{said}");
}
