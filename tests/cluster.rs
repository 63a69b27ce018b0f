//! Promise: the scripts in examples/cluster work with the current program.

#![cfg(unix)]

mod common;

use common::{command, program};
use mixdistill::context::Context;
use mixdistill::study::{Study, StudyConfig, study};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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
    // What Slurm gives to the tasks of --array=1-2, and to one that is submitted again alone.
    for (task, count, min) in [("1", "2", "1"), ("2", "2", "1"), ("2", "1", "2")] {
        let mut call = in_place(folder.path(), "bash");
        call.arg(script("slurm.sbatch")).arg("study.toml").env("PARTS", "2");
        call.env("SLURM_ARRAY_TASK_ID", task).env("SLURM_ARRAY_TASK_COUNT", count);
        call.env("SLURM_ARRAY_TASK_MIN", min).env("SLURM_ARRAY_TASK_MAX", "2");
        call.env("SLURM_ARRAY_TASK_STEP", "1");
        let output = succeeds(&mut call);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(&format!("part {task}/2 is done")), "{told}");
    }
    // The call for the report is the one that the script names.
    let text = fs::read_to_string(script("slurm.sbatch")).unwrap();
    let call = "mixdistill study --config study.toml --report study-parts/part-*";
    assert!(text.contains(&format!("#   {call}")));
    assert!(text.contains("--array=1-8\n") && text.contains("${PARTS:-8}"), "as many as tasks");
    succeeds(in_place(folder.path(), "bash").args(["-c", call]));
    same_numbers(folder.path(), "study");
}

#[test]
fn pods_of_an_indexed_job_make_parts_of_a_report() {
    let folder = place();
    let place = folder.path().display().to_string();
    // The command of a pod: the block of text below `args`.
    let command_of = |yaml: &str| {
        let mut lines = yaml.lines().skip_while(|line| line.trim() != "args:").skip(1);
        assert_eq!(lines.next().map(str::trim), Some("- |"));
        let block: Vec<&str> =
            lines.take_while(|line| line.starts_with("              ")).collect();
        assert!(block.len() >= 2, "{block:?}");
        block.join("\n").replace("/study/", &format!("{place}/"))
    };
    let yaml = fs::read_to_string(script("kubernetes.yaml")).unwrap();
    let text = command_of(&yaml);
    for index in ["0", "1"] {
        let mut call = in_place(folder.path(), "sh");
        call.args(["-c", &text]).env("JOB_COMPLETION_INDEX", index);
        succeeds(call.env("PARTS", "2").env("THREADS", "2"));
    }
    let value = |key: &str| yaml.lines().find(|line| line.trim().starts_with(key)).unwrap().trim();
    assert_eq!(value("completions:"), "completions: 8");
    assert!(yaml.contains("- name: PARTS\n              value: \"8\""), "as many as completions");
    let report = fs::read_to_string(script("kubernetes-report.yaml")).unwrap();
    assert!(yaml.contains("kubernetes-report.yaml"));
    for job in [&yaml, &report] {
        assert!(job.contains("workingDir: /study\n") && job.contains("claimName: study\n"));
    }
    succeeds(in_place(folder.path(), "sh").args(["-c", &command_of(&report)]));
    same_numbers(folder.path(), "report");
}

/// As [`place`], with an ssh for which each host is a home directory here.
fn place_with_hosts() -> tempfile::TempDir {
    let folder = place();
    let ssh = "#!/bin/bash\nset -e\nwhile [ \"$1\" = -o ]; do shift 2; done\n\
               mkdir -p \"$HOSTS/$1\"\ncd \"$HOSTS/$1\"\nshift\nexec bash -c \"$*\"\n";
    let fake = folder.path().join("bin/ssh");
    fs::write(&fake, ssh).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn call_of_hosts(folder: &Path, hosts: &[&str]) -> Command {
    let mut call = in_place(folder, "bash");
    call.arg(script("ssh.sh")).arg("study.toml").args(hosts).env("HOSTS", folder.join("hosts"));
    call
}

#[test]
fn an_interrupt_stops_the_hosts_and_the_same_call_goes_on() {
    let folder = place_with_hosts();
    let part = |number: usize, host: &str| {
        folder.path().join(format!("hosts/{host}/study-parts/{number}-of-2"))
    };
    let mut call = call_of_hosts(folder.path(), &["alpha", "beta"]);
    // So slow that it does not end by itself.
    let mut script = call.env("MIXDISTILL_TEST_LINGER_MS", "3000").spawn().unwrap();
    let begun = Instant::now();
    let wait_for = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let hosts = [(1, "alpha"), (2, "beta")];
    wait_for(&|| hosts.iter().all(|(n, host)| part(*n, host).join("part/cells").exists()));
    let process = |(number, host): (usize, &str)| {
        fs::read_to_string(part(number, host).join("process")).unwrap().trim().to_owned()
    };
    let processes = hosts.map(process);
    let id = script.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(script.wait().unwrap().code(), Some(130));
    for process in processes {
        let is_there = Command::new("kill").args(["-0", &process]).output().unwrap();
        assert!(!is_there.status.success(), "a host goes on");
    }
    assert!(!folder.path().join("study").exists());
    succeeds(&mut call_of_hosts(folder.path(), &["alpha", "beta"]));
    same_numbers(folder.path(), "study");
}

#[test]
fn hosts_that_share_nothing_make_parts_over_ssh() {
    let folder = place_with_hosts();
    // Problems in a file, whose path is relative.
    let text = format!("benchmarks = [\"data/some sums.jsonl\"]\n{SETTINGS}");
    fs::write(folder.path().join("study.toml"), text).unwrap();
    let problem = |n: usize| format!("{{\"problem\": \"1 + {n}?\", \"answer\": \"{}\"}}\n", n + 1);
    for home in ["", "hosts/alpha/my work", "hosts/beta/my work"] {
        let data = folder.path().join(home).join("data");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("some sums.jsonl"), problem(1) + &problem(2)).unwrap();
    }
    let call = |hosts: &[&str]| {
        let mut call = call_of_hosts(folder.path(), hosts);
        call.env("DIRECTORY", "my work").env("REMOTE", "parts 'of' it");
        call
    };
    // One that cannot make its part is told, with what it said.
    let broken = folder.path().join("hosts/beta/my work/parts 'of' it");
    fs::write(&broken, "in the way").unwrap();
    let output = call(&["alpha", "beta"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("part 2 failed"), "{told}");
    assert!(!folder.path().join("study").exists());
    // The same call goes on.
    fs::remove_file(&broken).unwrap();
    succeeds(&mut call(&["alpha", "beta"]));
    assert!(folder.path().join("hosts/alpha/my work/parts 'of' it/1-of-2/part/cells").is_dir());
    assert!(!folder.path().join("study-parts/part-1/cells").exists(), "models stay where they are");
    let text = fs::read_to_string(folder.path().join("study/study.json")).unwrap();
    let made: Study = serde_json::from_str(&text).unwrap();
    let mut alone = in_place(folder.path(), "mixdistill");
    alone.args(["study", "--config", "study.toml", "--out", "alone", "--json"]);
    let alone: Study = serde_json::from_slice(&succeeds(&mut alone).stdout).unwrap();
    assert_eq!(made.comparisons, alone.comparisons);
    assert_eq!(made.comparisons[0].benchmarks.len(), 2);
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
