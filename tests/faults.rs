//! Promise: an error with the disk or the directory is reported with what is safe. Once it is fixed, the resumed
//! run produces the same bits as a run without the error.

mod common;

use common::{command, program, toy_run};
use mixdistill::recipe::RunConfig;
use mixdistill::train::{Metric, read_metrics};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run of the toy corpus that takes a second or so, with a checkpoint at every other step.
fn small(out: &Path) -> RunConfig {
    let mut config = toy_run(out);
    config.train.steps = Some(20);
    config.train.evaluate_every = 5;
    config.train.checkpoint_every = 2;
    config.train.keep_checkpoints = 3;
    config.evaluation.questions = 0;
    config
}

/// Writes the settings beside the run directory; gives their path.
fn settings(config: &RunConfig) -> String {
    let path = config.out.with_extension("toml");
    std::fs::write(&path, config.to_toml().unwrap()).unwrap();
    path.display().to_string()
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model/model.safetensors")).unwrap()
}

/// The weights of a run without faults.
fn undisturbed(folder: &Path) -> Vec<u8> {
    let config = small(&folder.join("undisturbed"));
    let path = settings(&config);
    let status = command("train")
        .args(["--config", &path])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    weights(&config.out)
}

/// A process whose checkpoints are written slowly.
fn slow(config: &RunConfig, milliseconds: &str) -> Child {
    command("train")
        .args(["--config", &settings(config)])
        .env("MIXDISTILL_TEST_LINGER_MS", milliseconds)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(path: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a process said, and whether it went well.
fn ended(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn resume(out: &Path) -> (bool, String) {
    let child = command("train")
        .args(["--resume", "--out", &out.display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    ended(child)
}

#[test]
fn killed_on_a_slow_disk_in_the_middle_of_a_checkpoint_the_one_before_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let config = small(&folder.path().join("run"));
    let mut child = slow(&config, "700");
    let checkpoints = config.out.join("checkpoints");
    wait_for(&checkpoints.join(".writing-step-000004"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoints.join("step-000002").is_dir());
    assert!(!checkpoints.join("step-000004").exists());
    let (good, said) = resume(&config.out);
    assert!(good, "{said}");
    assert!(weights(&config.out) == expected);
}

#[test]
fn what_is_removed_under_the_run_is_made_again_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());

    // Its metrics: the run goes on, says so, and the lines from there on are in a new file.
    let config = small(&folder.path().join("metrics"));
    let child = slow(&config, "150");
    wait_for(&config.out.join("checkpoints/step-000002"));
    std::fs::remove_file(config.out.join("metrics.jsonl")).unwrap();
    let (good, said) = ended(child);
    assert!(good && said.contains("metrics.jsonl was removed; a new one begins"), "{said}");
    let metrics = read_metrics(&config.out.join("metrics.jsonl")).unwrap();
    let last = metrics.iter().filter_map(|metric| match metric {
        Metric::Step(step) => Some(step.step),
        _ => None,
    });
    let steps: Vec<usize> = last.collect();
    assert!(steps[0] >= 3 && steps.last() == Some(&20), "{steps:?}");
    assert!(weights(&config.out) == expected);

    // Its checkpoints: later ones are made as ever.
    let config = small(&folder.path().join("checkpoints"));
    let child = slow(&config, "150");
    wait_for(&config.out.join("checkpoints/step-000002/manifest.json"));
    // The process may be at work in there.
    while std::fs::remove_dir_all(config.out.join("checkpoints")).is_err() {}
    let (good, said) = ended(child);
    if good {
        assert!(config.out.join("checkpoints/step-000020").is_dir(), "{said}");
    } else {
        // It was removed in the middle of a write; what to do is said, and works.
        assert!(said.contains("error: cannot") && said.contains("reached step"), "{said}");
        assert!(resume(&config.out).0);
    }
    assert!(weights(&config.out) == expected);

    // The whole directory: there is nothing left to go on with.
    let config = small(&folder.path().join("all"));
    let child = slow(&config, "150");
    wait_for(&config.out.join("checkpoints/step-000002/manifest.json"));
    std::fs::rename(&config.out, folder.path().join("elsewhere")).unwrap();
    let (good, said) = ended(child);
    assert!(
        !good && said.contains("removed or moved during the run") && said.contains("new location"),
        "{said}"
    );
    // Moved and not removed, it goes on at its new place.
    let (good, said) = resume(&folder.path().join("elsewhere"));
    assert!(good, "{said}");
    assert!(weights(&folder.path().join("elsewhere")) == expected);
}

/// Runs a script with a small file system of its own at `$DISK`, or gives `None`, with a message,
/// where that is not allowed.
#[cfg(target_os = "linux")]
fn with_disk(folder: &Path, size: &str, script: &str) -> Option<(bool, String)> {
    let disk = folder.join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    let with_root = |script: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-ec", script])
            .env("DISK", &disk)
            .env("PROGRAM", program())
            .env("KEPT", folder)
            .output()
    };
    let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$DISK\"\n");
    if !with_root(&mount).is_ok_and(|output| output.status.success()) {
        common::say("skipped: no file system of one's own can be mounted here");
        return None;
    }
    let output = with_root(&(mount + script)).unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Settings of a run on that file system.
#[cfg(target_os = "linux")]
fn on_disk(folder: &Path) -> (PathBuf, RunConfig) {
    let config = small(&folder.join("disk/run"));
    let path = folder.join("settings.toml");
    std::fs::write(&path, config.to_toml().unwrap()).unwrap();
    (path, config)
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_with_room_again_the_run_ends_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let (path, _) = on_disk(folder.path());
    let script = format!(
        "if \"$PROGRAM\" train --config {} >/dev/null 2>\"$KEPT/full.txt\"; then exit 9; fi
         ls -a \"$DISK/run/checkpoints\" > \"$KEPT/left.txt\"
         mount -o remount,size=64m \"$DISK\"
         \"$PROGRAM\" train --resume --out \"$DISK/run\" >/dev/null
         cp \"$DISK/run/model/model.safetensors\" \"$KEPT/weights\"",
        path.display()
    );
    // Room for two checkpoints and half of another.
    let Some((good, said)) = with_disk(folder.path(), "600k", &script) else { return };
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (full, left) = (read("full.txt"), read("left.txt"));
    assert!(good, "{said}\n{full}\n{left}");
    assert!(full.contains("error: cannot") && full.contains("Safe on disk:"), "{full}");
    // What it calls safe is there.
    let safe = full.split("Safe on disk: ").nth(1).unwrap().split("; fix").next().unwrap();
    let safe = Path::new(safe).file_name().unwrap().to_str().unwrap();
    assert!(left.lines().any(|name| name == safe), "{safe}: {left}");
    assert!(!left.contains(".writing"), "what was begun does not fill the disk: {left}");
    assert!(std::fs::read(folder.path().join("weights")).unwrap() == expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_between_checkpoints_names_what_is_safe() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let (path, mut config) = on_disk(folder.path());
    // Long enough for the disk to fill after the first checkpoint and before the next.
    config.train.checkpoint_every = 10;
    config.train.steps = Some(20);
    std::fs::write(&path, config.to_toml().unwrap()).unwrap();
    let script = format!(
        "(while ! [ -d \"$DISK/run/checkpoints/step-000010\" ]; do sleep 0.002; done
          dd if=/dev/zero of=\"$DISK/fill\" bs=4k 2>/dev/null || true) &
         if MIXDISTILL_TEST_LINGER_MS=400 \"$PROGRAM\" train --config {} >/dev/null 2>\"$KEPT/full.txt\"
         then exit 9; fi
         wait; rm \"$DISK/fill\"
         \"$PROGRAM\" train --resume --out \"$DISK/run\" >/dev/null
         cp \"$DISK/run/model/model.safetensors\" \"$KEPT/weights\"",
        path.display()
    );
    let Some((good, said)) = with_disk(folder.path(), "8m", &script) else { return };
    let full = std::fs::read_to_string(folder.path().join("full.txt")).unwrap();
    assert!(good, "{said}\n{full}");
    assert!(full.contains("No space left") && full.contains("step-000010"), "{full}");
    assert!(full.contains("Safe on disk:"), "{full}");
    assert!(std::fs::read(folder.path().join("weights")).unwrap() == expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_became_read_only_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let (path, mut config) = on_disk(folder.path());
    // Stopped half way, it finds its directory read-only, and later writable again.
    config.train.steps = Some(20);
    let script = format!(
        "\"$PROGRAM\" train --config {} >/dev/null 2>&1 &
         while ! [ -d \"$DISK/run/checkpoints/step-000006\" ]; do sleep 0.01; done
         kill -INT $!; wait $! || [ $? = 75 ] || exit 8
         mount -o remount,ro \"$DISK\"
         if \"$PROGRAM\" train --resume --out \"$DISK/run\" >/dev/null 2>\"$KEPT/ro.txt\"; then exit 9; fi
         if \"$PROGRAM\" train --config {} --out \"$DISK/new\" >/dev/null 2>\"$KEPT/new.txt\"; then exit 9; fi
         mount -o remount,rw \"$DISK\"
         \"$PROGRAM\" train --resume --out \"$DISK/run\" >/dev/null
         cp \"$DISK/run/model/model.safetensors\" \"$KEPT/weights\"",
        path.display(),
        path.display()
    );
    let Some((good, said)) = with_disk(folder.path(), "64m", &script) else { return };
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(good, "{said}\n{}\n{}", read("ro.txt"), read("new.txt"));
    assert!(read("ro.txt").contains("error: cannot write "), "{}", read("ro.txt"));
    assert!(read("ro.txt").contains("Read-only"), "{}", read("ro.txt"));
    assert!(read("new.txt").contains("error: cannot create"), "{}", read("new.txt"));
    assert!(std::fs::read(folder.path().join("weights")).unwrap() == expected);
}
