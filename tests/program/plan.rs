//! `plan`.

use super::call;
use serde_json::Value;

const SMALL: [&str; 10] = [
    "--set",
    "data.toy_problems=60",
    "--set",
    "model.hidden_size=32",
    "--set",
    "model.intermediate_size=48",
    "--set",
    "model.num_hidden_layers=1",
    "--steps",
    "6",
];

#[test]
fn memory_disk_and_time_are_told_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let plan = |more: &[&str]| call(&[&["plan", "--out", &out], &SMALL[..], more].concat()).with(0);
    let said = plan(&[]).out;
    for part in [
        "student: from random weights, ",
        "device memory",
        "program",
        "activations",
        "peak",
        "longest rows (tokens): `long` record ",
        "disk: ",
        " for 6 steps, ",
        "(assumed: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.lines().all(|line| !line.ends_with(' ')), "{said}");
    let json: Value = serde_json::from_str(&plan(&["--json", "--measure"]).out).unwrap();
    assert_eq!((&json["from_data"], &json["time"]["is_measured"]), (&true.into(), &true.into()));
    assert_eq!(json["time"]["steps"], 6);
    let memory = json["memory"].as_object().unwrap();
    let sums = ["peak", "training", "reading"];
    let parts = memory.iter().filter(|(name, _)| !sums.contains(&name.as_str()));
    let sum: f64 = parts.filter_map(|(_, bytes)| bytes.as_f64()).sum();
    assert!((sum - json["memory"]["peak"].as_f64().unwrap()).abs() < 1.0, "{memory:?}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn what_cannot_be_planned_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    for (words, expected) in [
        (&["--model", "nowhere"][..], "there is no such folder"),
        (&["--model", &empty], "it has no config.json"),
        (&["--long", "no.jsonl", "--short", "no.jsonl"], "no.jsonl"),
        (&["--set", "train.batch_size=0"], "train.batch_size"),
    ] {
        let said = call(&[&["plan"], words].concat()).with(1).err;
        assert!(said.contains(expected), "{words:?}: {said}");
    }
}
