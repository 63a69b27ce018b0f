//! Promise: `mpirun -np N mixdistill train` produces the same bits as one process. If a rank dies,
//! hangs, or differs, all end with one clear error, and the last checkpoint is safe.

use super::common::{program, say};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `mpirun`, which may start as root here and use a core more than once.
fn mpirun() -> Option<Command> {
    let found = Command::new("mpirun").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        say("skipped: there is no mpirun");
        return None;
    }
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    Some(command)
}

/// A training of 40 steps of eight micro-batches.
fn training(out: &Path) -> Vec<String> {
    let settings = [
        "data.toy_problems=60",
        "data.toy_test_problems=4",
        "model.hidden_size=16",
        "model.intermediate_size=24",
        "model.num_hidden_layers=1",
        "generate.max_new_tokens=4",
        "train.batch_size=1",
        "train.accumulate=8",
        "train.lanes=4",
        "train.checkpoint_every=5",
        "evaluation.before=false",
    ];
    let flags = ["train", "--steps", "40", "--questions", "2", "--threads", "1", "--out"];
    let mut all: Vec<String> = flags.map(str::to_owned).to_vec();
    all.push(out.display().to_string());
    all.extend(settings.into_iter().flat_map(|s| ["--set".to_owned(), s.to_owned()]));
    all
}

fn start(ranks: usize, more: &[&str], out: &Path) -> Option<Child> {
    let mut command = mpirun()?;
    command.args(["-np", &ranks.to_string()]).arg(program()).args(training(out)).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command.spawn().unwrap())
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part));
    format!("{out}{err}")
}

/// Runs to its end.
fn finish(ranks: usize, more: &[&str], out: &Path) -> Option<()> {
    let output = start(ranks, more, out)?.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    Some(())
}

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model/model.safetensors")).unwrap()
}

/// Waits until a run has a checkpoint of this step or a later one.
fn wait_for(out: &Path, step: usize) {
    let start = Instant::now();
    let has = || {
        let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut steps = names.filter_map(|n| n.strip_prefix("step-")?.parse::<usize>().ok());
        steps.any(|found| found >= step)
    };
    while !has() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint of step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes of the ranks, in their order.
fn processes(mpirun: u32) -> Vec<String> {
    let rank = |process: &str| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let found = environment.split('\0').find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK="));
        found.and_then(|rank| rank.parse::<usize>().ok())
    };
    let children = Command::new("pgrep").args(["-P", &mpirun.to_string()]).output().unwrap();
    let children = String::from_utf8_lossy(&children.stdout).into_owned();
    let mut ranked: Vec<(usize, String)> =
        children.lines().filter_map(|process| Some((rank(process)?, process.to_owned()))).collect();
    ranked.sort();
    ranked.into_iter().map(|(_, process)| process).collect()
}

fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

#[test]
fn any_number_of_processes_comes_to_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let plain = Command::new(program()).args(training(&out("plain"))).output().unwrap();
    assert!(plain.status.success(), "{}", text(&plain));
    let expected = model(&out("plain"));
    for (ranks, more) in
        [(1, &[][..]), (2, &[]), (4, &[]), (3, &["--set", "train.shard_optimizer=true"])]
    {
        let out = out(&format!("ranks-{ranks}"));
        if finish(ranks, more, &out).is_none() {
            return;
        }
        assert!(model(&out) == expected, "{ranks} ranks");
    }
}

#[test]
fn killed_on_four_it_goes_on_on_one_and_then_on_two() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    if finish(2, &[], &whole).is_none() {
        return;
    }
    // A rank that is no leader is killed: all end, with a status that says so.
    let four = start(4, &[], &parts).unwrap();
    wait_for(&parts, 5);
    signal("-KILL", &processes(four.id())[2]);
    assert!(!four.wait_with_output().unwrap().status.success());
    assert!(!parts.join("model").exists());
    // The same of a rank that is asked to stop, which is agreed on.
    let one = start(1, &["--resume"], &parts).unwrap();
    wait_for(&parts, 15);
    signal("-TERM", &processes(one.id())[0]);
    let output = one.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    let two = start(2, &["--resume"], &parts).unwrap();
    wait_for(&parts, 25);
    signal("-TERM", &processes(two.id())[1]);
    let output = two.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert_eq!(text(&output).matches("resume with:").count(), 1, "{}", text(&output));
    finish(4, &["--resume"], &parts).unwrap();
    assert!(model(&parts) == model(&whole));
}

#[test]
fn a_rank_that_hangs_ends_all_with_one_error() {
    let folder = tempfile::tempdir().unwrap();
    for silent in [1, 0] {
        let out = folder.path().join(format!("silent-{silent}"));
        let Some(child) = start(3, &["--rank-timeout", "3"], &out) else { return };
        wait_for(&out, 5);
        let stopped = processes(child.id())[silent].clone();
        signal("-STOP", &stopped);
        let output = child.wait_with_output().unwrap();
        // mpirun may have left it.
        let _ = Command::new("kill").args(["-KILL", &stopped]).stderr(Stdio::null()).status();
        assert!(!output.status.success());
        let text = text(&output);
        assert!(text.contains("has not answered for 3 s"), "{text}");
        let errors = text.lines().filter(|line| line.starts_with("error:")).count();
        // A leader that was silent is woken by mpirun, which then ends it, and may say so itself.
        assert!((1..=1 + usize::from(silent == 0)).contains(&errors), "{text}");
        assert!(out.join("checkpoints").is_dir());
    }
}

/// Two ranks that are started differently: what they say.
fn differently(first: &[&str], second: &[&str], folders: [&Path; 2]) -> Option<String> {
    let mut command = mpirun()?;
    let out = folders[0].join("run");
    for (number, more) in [first, second].into_iter().enumerate() {
        if number > 0 {
            command.arg(":");
        }
        command.args(["-np", "1", "-wdir"]).arg(folders[number]).arg(program());
        command.args(training(&out)).args(more);
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(!out.join("model").exists());
    let text = text(&output);
    assert_eq!(text.lines().filter(|line| line.starts_with("error:")).count(), 1, "{text}");
    Some(text)
}

/// Two files of answers; those of one folder differ in a word.
fn answers(folder: &Path, word: &str) -> PathBuf {
    for (name, more) in [("long", "We count, and count again. "), ("short", "")] {
        let row = |n: usize| {
            let solution = format!("{more}{word} is \\\\boxed{{{}}}.", n + 1);
            format!("{{\"problem\": \"{n} and 1?\", \"solution\": \"{solution}\"}}\n")
        };
        let rows: String = (0..30).map(row).collect();
        std::fs::write(folder.join(format!("{name}.jsonl")), rows).unwrap();
    }
    folder.to_owned()
}

#[test]
fn ranks_that_differ_are_refused_by_name() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let folders = [a.path(), b.path()];
    let Some(said) = differently(&[], &["--set", "seed=2"], folders) else { return };
    assert!(said.contains("the program or settings of rank 1 differ from rank 0"), "{said}");
    assert!(said.contains("settings.seed was 1, is 2"), "{said}");
    answers(folders[0], "It");
    answers(folders[1], "That");
    // Their tokenizer is that of a student.
    let plain = Command::new(program()).args(training(&folders[0].join("plain"))).output().unwrap();
    assert!(plain.status.success(), "{}", text(&plain));
    let student = folders[0].join("plain/model").display().to_string();
    let files = [
        "--model",
        &student,
        "--long",
        "long.jsonl",
        "--short",
        "short.jsonl",
        "--set",
        "data.hold_out=0.2",
    ];
    let said = differently(&files, &files, folders).unwrap();
    assert!(said.contains("the data or models of rank 1 differ from rank 0"), "{said}");
    // Wrong usage, once.
    let said = differently(&["--set", "train.lanes=3"], &["--set", "train.lanes=3"], folders);
    assert!(said.unwrap().contains("power of two"));
}

#[test]
fn a_command_of_one_process_is_refused_under_mpirun() {
    let Some(mut command) = mpirun() else { return };
    let output = command.args(["-np", "2"]).arg(program()).arg("config").output().unwrap();
    let text = text(&output);
    assert!(text.contains("runs in one process") && text.contains("--part"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error:")).count(), 1, "{text}");
    assert!(!output.status.success());
}
