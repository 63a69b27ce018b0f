//! `train` and `compare` on the toy corpus.

use super::{call, train};
use serde_json::Value;
use std::path::Path;

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model/model.safetensors")).unwrap()
}

#[test]
fn a_run_says_what_it_does_what_came_of_it_and_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let name = out.display().to_string();
    let ended = train(&name, &[]).with(0);
    for part in ["mixture:", "before training:", "training loss", "after training:", "\nnext:\n"] {
        assert!(ended.out.contains(part), "{part}: {}", ended.out);
    }
    assert!(ended.out.contains("  mixdistill compare"), "{}", ended.out);

    // The directory is not overwritten, and the error names the flags that help.
    let said = train(&name, &[]).with(1).err;
    assert!(said.contains("--resume") && said.contains("--overwrite"), "{said}");
    // Other settings are refused.
    let said = train(&name, &["--resume", "--seed", "2"]).with(1).err;
    assert!(said.contains("--allow-changes") && said.contains("seed"), "{said}");
    let again = call(&["train", "--resume", "--out", &name]).with(0).out;
    assert!(again.contains("this run is finished"), "{again}");

    // With -q, only warnings are printed.
    let ended = train(&folder.path().join("quiet").display().to_string(), &["-q"]).with(0);
    assert_eq!((ended.out.as_str(), ended.err.lines().count()), ("", 1));
    assert!(ended.err.contains("the learning rate reaches 6e-4, not its peak"), "{}", ended.err);
    let ended = train(&folder.path().join("loud").display().to_string(), &["-v"]).with(0);
    assert!(ended.err.contains("step 6: loss"), "{}", ended.err);
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parted] = ["whole", "parted"].map(|name| folder.path().join(name));
    for out in [&whole, &parted] {
        train(&out.display().to_string(), &[]).with(0);
    }
    // As if the run had been killed after its second checkpoint and then moved.
    let moved = folder.path().join("moved");
    std::fs::rename(&parted, &moved).unwrap();
    std::fs::remove_file(moved.join("summary.json")).unwrap();
    for name in ["model", "checkpoints/step-000006"] {
        std::fs::remove_dir_all(moved.join(name)).unwrap();
    }
    let said = call(&["train", "--resume", "--out", &moved.display().to_string()]).with(0).out;
    assert!(said.contains("resuming from") && said.contains("step-000004"), "{said}");
    assert!(weights(&moved) == weights(&whole));
}

#[test]
fn a_choice_beside_a_share_keeps_the_share() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let name = out.display().to_string();
    let rows = || -> Vec<u64> {
        let text = std::fs::read_to_string(out.join("mixture.json")).unwrap();
        let mixture: Value = serde_json::from_str(&text).unwrap();
        let sources = mixture["sources"].as_array().unwrap().iter();
        sources.map(|source| source["rows"].as_u64().unwrap()).collect()
    };
    // Alone it chooses the share as well: here every short answer.
    train(&name, &["--choose", "shortest"]).with(0);
    assert_eq!(rows(), [0, 60]);
    train(&name, &["--choose", "shortest", "--share", "0.25", "--overwrite"]).with(0);
    assert_eq!(rows(), [15, 45]);
    // A setting overrides what the flags imply.
    let free = ["--set", "mixture.choice.within_share=false"];
    let words = [&["--choose", "shortest", "--share", "0.25", "--overwrite"], &free[..]].concat();
    let said = train(&name, &words).with(2).err;
    assert!(said.contains("--share conflicts with mixture.choice"), "{said}");
}

#[test]
fn results_are_one_line_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let ended = train(&out, &["--json"]).with(0);
    assert_eq!(ended.out.lines().count(), 1, "{}", ended.out);
    let summary: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(summary["outcome"]["step"], 6);
    assert!(ended.err.contains("training loss"), "{}", ended.err);
    // With -q, only the JSON line is printed.
    let ended = call(&["train", "--resume", "--out", &out, "--json", "-q"]).with(0);
    assert_eq!((ended.out.lines().count(), ended.err.as_str()), (1, ""));

    let out = folder.path().join("compare").display().to_string();
    let mut words = vec!["compare", "--out", &out, "--steps", "2", "--questions", "2", "--json"];
    for setting in [
        "data.toy_problems=40",
        "data.toy_test_problems=4",
        "model.hidden_size=32",
        "model.intermediate_size=48",
        "model.num_hidden_layers=1",
        "generate.max_new_tokens=4",
    ] {
        words.extend(["--set", setting]);
    }
    let ended = call(&words).with(0);
    let comparison: Value = serde_json::from_str(ended.out.trim()).unwrap();
    let names: Vec<&str> = comparison["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["untuned", "long", "short", "mix"]);
    assert!(ended.err.contains("95% interval"), "{}", ended.err);
}

#[test]
fn a_model_that_is_not_there_is_named_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let words = ["train", "--model", "no/such/folder", "--lora-rank", "3", "--out", &out];
    let said = call(&words).with(1).err;
    assert!(said.contains("no/such/folder") && !Path::new(&out).exists(), "{said}");
}
