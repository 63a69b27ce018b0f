//! Promise: the program's commands, flags, messages, and exit statuses match its help.

mod asking;
#[path = "../common/mod.rs"]
mod common;
mod help;
mod plan;
mod preview;
mod settings;
mod training;

use std::io::Write;
use std::process::{Command, Stdio};

/// The result of a call.
#[derive(Debug)]
struct Ended {
    status: i32,
    out: String,
    err: String,
}

impl Ended {
    /// Checks the exit status.
    #[track_caller]
    fn with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}\n{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }
}

/// Runs the program with these arguments and this standard input.
fn call_with(words: &[&str], input: &str) -> Ended {
    let mut child = Command::new(common::program())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        status: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn call(words: &[&str]) -> Ended {
    call_with(words, "")
}

/// A toy run that takes about a second: six steps, with a checkpoint every two steps.
fn train(out: &str, more: &[&str]) -> Ended {
    let mut words = vec!["train", "--out", out, "--steps", "6"];
    for setting in [
        "data.toy_problems=60",
        "data.toy_test_problems=8",
        "model.hidden_size=32",
        "model.intermediate_size=48",
        "model.num_hidden_layers=1",
        "train.checkpoint_every=2",
        "train.evaluate_every=3",
        "evaluation.questions=4",
        "generate.max_new_tokens=8",
    ] {
        words.extend(["--set", setting]);
    }
    words.extend(more);
    call(&words)
}
