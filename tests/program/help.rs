//! Help, usage, and completions.

use super::call;

const COMMANDS: [&str; 16] = [
    "train",
    "preview",
    "plan",
    "compare",
    "generate",
    "chat",
    "evaluate",
    "pairs",
    "logits",
    "score",
    "merge",
    "export",
    "push",
    "study",
    "config",
    "completions",
];

/// Whether this build has a command.
fn has(command: &str) -> bool {
    (command != "pairs" || cfg!(feature = "teacher"))
        && (command != "push" || cfg!(feature = "hub"))
}

#[test]
fn every_command_has_help_with_groups_defaults_and_examples() {
    let overview = call(&["--help"]).with(0).out;
    for command in COMMANDS {
        assert!(overview.contains(&format!("\n  {command} ")), "{command}: {overview}");
        if !has(command) {
            continue;
        }
        let help = call(&[command, "--help"]).with(0).out;
        assert_eq!(call(&[command, "-h"]).with(0).out, help);
        let examples = help.split_once("\nExamples:\n").expect(command).1;
        let calls: Vec<&str> =
            examples.lines().filter(|line| line.starts_with("  mixdistill ")).collect();
        assert!(calls.len() >= 3, "{help}");
        let own = format!("  mixdistill {command}");
        assert!(calls.iter().any(|call| call.starts_with(&own)), "{help}");
        for global in ["--quiet", "--verbose", "--backend", "--threads", "--help", "--version"] {
            assert!(help.contains(global), "{global}: {help}");
        }
        assert!(help.contains("\nGlobal options:\n"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[test]
fn the_flags_of_training_are_grouped_and_say_their_defaults() {
    let help = call(&["train", "--help"]).with(0).out;
    for group in ["Data and model:", "Training:", "Settings:", "Run directory:"] {
        assert!(help.contains(&format!("\n{group}\n")), "{group}: {help}");
    }
    // Lines may wrap between words.
    let help: String = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for default in [
        "[default: the built-in toy corpus]",
        "[default: 2048 with --model, else 512]",
        "[default: 2 with --model, else 1]",
        "[default: 1e-5 with --model, 1e-4 with adapters, else 2e-3]",
        "[default: 0 with --model, else 200]",
        "[default: run]",
    ] {
        assert!(help.contains(default), "{default}: {help}");
    }
}

/// The defaults in the help are those of the settings.
#[test]
fn defaults_in_the_help_are_those_of_the_settings() {
    let value = |words: &[&str], key: &str| {
        let said = call(&[&["config", "explain", key], words].concat()).with(0).out;
        said.lines().next().unwrap().split_once(" = ").unwrap().1.to_owned()
    };
    let model = ["--set", "base_model=x"];
    let adapters = ["--set", "base_model=x", "--set", "lora.rank=16"];
    let number = |text: String| text.parse::<f64>().unwrap();
    for (words, key, expected) in [
        (&[][..], "data.max_length", 512.0),
        (&model[..], "data.max_length", 2048.0),
        (&[], "train.epochs", 1.0),
        (&model, "train.epochs", 2.0),
        (&[], "train.learning_rate", 2e-3),
        (&model, "train.learning_rate", 1e-5),
        (&adapters, "train.learning_rate", 1e-4),
        (&[], "evaluation.questions", 200.0),
        (&model, "evaluation.questions", 0.0),
        (&[], "seed", 1.0),
    ] {
        assert_eq!(number(value(words, key)), expected, "{key} with {words:?}");
    }
    assert_eq!(value(&[], "out"), "\"run\"");
    let weights = value(&[], "mixture.weights");
    assert!(weights.contains("long = 0.2"), "{weights}");
}

#[test]
fn the_version_is_told_with_and_without_a_command() {
    let version = format!("mixdistill {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(call(&["--version"]).with(0).out.trim(), version);
    let of_command = call(&["train", "--version"]).with(0).out;
    assert!(of_command.contains(env!("CARGO_PKG_VERSION")), "{of_command}");
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    for words in [
        &["--colour"][..],
        &["trian"],
        &["train", "--learning-rat", "1"],
        &["train", "--long", "a.jsonl"],
        &["train", "--steps", "1", "--epochs", "1"],
        &["train", "--resume", "--overwrite"],
        &["train", "--allow-changes"],
        &["train", "--share", "1.5"],
        &["train", "--share", "-0.5"],
        &["train", "-q", "-v"],
        &["train", "--threads", "0"],
        &["generate", "--model", "x"],
        &["generate", "--model", "x", "--prompt", "a", "--prompts", "b"],
        &["merge", "--model", "x"],
        &["config", "check", "--set", "nothing"],
    ] {
        let ended = call(words).with(2);
        assert!(ended.err.contains("--help"), "{words:?}: {}", ended.err);
        assert!(ended.out.is_empty(), "{}", ended.out);
    }
    // A similar name is suggested.
    assert!(call(&["trian"]).err.contains("train"));
    assert!(call(&["train", "--learning-rat", "1"]).err.contains("--learning-rate"));
}

#[test]
fn completions_know_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = call(&["completions", shell]).with(0).out;
        for word in ["train", "learning-rate", "max-new-tokens"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    call(&["completions", "abacus"]).with(2);
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_dataset_on_the_hub_says_how_to_get_it() {
    for words in [
        &["preview", "--long", "owner/name:long", "--short", "owner/name:short"][..],
        &["evaluate", "--model", "x", "--bench", "hf://datasets/owner/name/test.jsonl"],
        &["generate", "--model", "x", "--prompts", "owner/name@v1:test", "--out", "x"],
    ] {
        let said = call(words).with(1).err;
        assert!(
            said.contains("there is no such file") && said.contains("--features hub"),
            "{said}"
        );
    }
}

#[test]
fn a_command_that_the_build_lacks_says_how_to_get_it() {
    for (command, feature) in [("pairs", "teacher"), ("push", "hub")] {
        if has(command) {
            continue;
        }
        for words in [&[command][..], &[command, "--out", "x", "-q"], &[command, "--help"]] {
            let said = call(words).with(1).err;
            let what = format!("built without the feature `{feature}`, which {command} needs");
            assert!(said.contains(&what), "{said}");
            assert_eq!(said.matches(&format!("--features {feature}")).count(), 1, "{said}");
        }
    }
}
