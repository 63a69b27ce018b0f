//! Promise: the scripts in examples/cluster do what they say, with the program as it is.

#![cfg(unix)]

mod common;

use common::{command, program};
use mixdistill::context::Context;
use mixdistill::study::{Study, StudyConfig, study};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Three cells and one student before any training.
const SETTINGS: &str = r#"
seeds = [1]
resamples = 100

[[comparisons]]
name = "Long"
strong = "long"
weak = "short"
alphas = [0.5]

[[students]]
name = "small"

[run.model]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[run.data]
toy_problems = 40
toy_test_problems = 8
[run.train]
steps = 4
evaluate_every = 0
[run.generate]
max_new_tokens = 8
[run.evaluation]
questions = 8
loss_problems = 4
"#;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster").join(name)
}

/// A folder with settings and a folder `bin` with the program in it.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("study.toml"), SETTINGS).unwrap();
    fs::create_dir(folder.path().join("bin")).unwrap();
    symlink(program(), folder.path().join("bin/mixdistill")).unwrap();
    folder
}

/// A command in a place, which finds its programs first.
fn in_place(folder: &Path, program: &str) -> Command {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(program);
    command.current_dir(folder).env("PATH", format!("{}:{path}", folder.join("bin").display()));
    command
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    output
}

/// The numbers of one process, and those of a report.
fn same_numbers(folder: &Path, report: &str) {
    let mut config = StudyConfig::read(&folder.join("study.toml")).unwrap();
    config.out = folder.join("alone");
    let expected = study(&config, "the command", &Context::default()).unwrap();
    let text = fs::read_to_string(folder.join(report).join("study.json")).unwrap();
    let made: Study = serde_json::from_str(&text).unwrap();
    assert_eq!(made.comparisons, expected.comparisons);
}

#[test]
fn scripts_are_sound_shell() {
    for name in ["slurm.sbatch", "ssh.sh"] {
        succeeds(Command::new("bash").arg("-n").arg(script(name)));
    }
}

#[test]
fn tasks_of_a_slurm_array_make_parts_of_a_report() {
    let folder = place();
    // What Slurm gives to each task of --array=1-2.
    for task in ["1", "2"] {
        let mut call = in_place(folder.path(), "bash");
        call.arg(script("slurm.sbatch")).arg("study.toml");
        call.env("SLURM_ARRAY_TASK_ID", task).env("SLURM_ARRAY_TASK_COUNT", "2");
        call.env("SLURM_ARRAY_TASK_MIN", "1").env("SLURM_ARRAY_TASK_STEP", "1");
        let output = succeeds(&mut call);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(&format!("part {task}/2 is done")), "{told}");
    }
    // The call for the report is the one that the script names.
    let text = fs::read_to_string(script("slurm.sbatch")).unwrap();
    let call = "mixdistill study --config study.toml --report study-parts/part-*";
    assert!(text.contains(&format!("#   {call}")));
    succeeds(in_place(folder.path(), "bash").args(["-c", call]));
    same_numbers(folder.path(), "study");
}

#[test]
fn pods_of_an_indexed_job_make_parts_of_a_report() {
    let folder = place();
    let yaml = fs::read_to_string(script("kubernetes.yaml")).unwrap();
    // The command of a pod: the block of text below `args`.
    let mut lines = yaml.lines().skip_while(|line| line.trim() != "args:").skip(1);
    assert_eq!(lines.next().map(str::trim), Some("- |"));
    let block: Vec<&str> = lines.take_while(|line| line.starts_with("              ")).collect();
    assert!(block.len() >= 3, "{block:?}");
    let place = folder.path().display().to_string();
    let text = block.join("\n").replace("/study/", &format!("{place}/"));
    for index in ["0", "1"] {
        let mut call = in_place(folder.path(), "sh");
        call.args(["-c", &text]).env("JOB_COMPLETION_INDEX", index);
        succeeds(call.env("PARTS", "2").env("THREADS", "2"));
    }
    let value = |key: &str| yaml.lines().find(|line| line.trim().starts_with(key)).unwrap().trim();
    assert_eq!(value("completions:"), "completions: 8");
    assert!(yaml.contains("- name: PARTS\n              value: \"8\""), "as many as completions");
    let call = "mixdistill study --config /study/study.toml --report /study/parts/part-* --out \
                /study/report";
    assert!(yaml.contains(call));
    let call = call.replace("/study/", &format!("{place}/"));
    succeeds(in_place(folder.path(), "sh").args(["-c", &call]));
    same_numbers(folder.path(), "report");
}

#[test]
fn hosts_that_share_nothing_make_parts_over_ssh() {
    let folder = place();
    // Each host is a home directory here.
    let ssh = "#!/bin/bash\nset -e\nmkdir -p \"$HOSTS/$1\"\ncd \"$HOSTS/$1\"\nshift\n\
               exec bash -c \"$*\"\n";
    let fake = folder.path().join("bin/ssh");
    fs::write(&fake, ssh).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let call = |hosts: &[&str]| {
        let mut call = in_place(folder.path(), "bash");
        call.arg(script("ssh.sh")).arg("study.toml").args(hosts);
        call.env("HOSTS", folder.path().join("hosts"));
        call
    };
    // One that cannot make its part is told, with what it said.
    let broken = folder.path().join("hosts/beta/study-parts");
    fs::create_dir_all(broken.parent().unwrap()).unwrap();
    fs::write(&broken, "in the way").unwrap();
    let output = call(&["alpha", "beta"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("part 2 failed"), "{told}");
    assert!(!folder.path().join("study").exists());
    // The same call goes on.
    fs::remove_file(&broken).unwrap();
    succeeds(&mut call(&["alpha", "beta"]));
    assert!(folder.path().join("hosts/alpha/study-parts/1-of-2/part/cells").is_dir());
    assert!(!folder.path().join("study-parts/part-1/cells").exists(), "models stay where they are");
    same_numbers(folder.path(), "study");
    let usage = call(&[]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn the_help_names_the_flags_of_the_scripts() {
    let output = command("study").arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in ["--share", "--dead-after", "--part", "--report", "--config", "--out", "--threads"]
    {
        assert!(help.contains(flag), "{flag}");
    }
}
