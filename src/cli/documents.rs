//! Promise: the commands in documents and help parse, and their settings exist.

#[path = "../../tests/common/commands.rs"]
mod commands;

use super::Cli;
use super::config::is_within;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use mixdistill::eval::EvaluateConfig;
use mixdistill::recipe::RunConfig;
use mixdistill::settings::{Layers, Settings};
use mixdistill::study::StudyConfig;

/// Returns the problem with a command, if any.
fn wrong(words: &[String]) -> Option<String> {
    if let Err(error) = Cli::try_parse_from(words)
        && !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
    {
        return Some(error.to_string());
    }
    let set = words.windows(2).filter(|pair| pair[0] == "--set").map(|pair| pair[1].as_str());
    let set: Vec<&str> = set.collect();
    let is_study = words.iter().any(|word| word == "--study");
    let asked: &[String] = match words {
        [_, config, explain, asked @ ..] if config == "config" && explain == "explain" => {
            let end = asked.iter().position(|word| word.starts_with("--"));
            &asked[..end.unwrap_or(asked.len())]
        }
        _ => &[],
    };
    match words.get(1)?.as_str() {
        "evaluate" => unknown::<EvaluateConfig>(&set, asked),
        "study" => unknown::<StudyConfig>(&set, asked),
        "config" if is_study => unknown::<StudyConfig>(&set, asked),
        // Without its feature, a command accepts any arguments.
        #[cfg(not(feature = "teacher"))]
        "pairs" => None,
        #[cfg(feature = "teacher")]
        "pairs" => unknown::<mixdistill::teacher::MakePairsConfig>(&set, asked),
        "push" => None,
        _ => unknown::<RunConfig>(&set, asked),
    }
}

/// Returns why a setting cannot be set, or that a key is unknown.
fn unknown<T: Settings>(set: &[&str], asked: &[String]) -> Option<String> {
    let mut layers = match Layers::<T>::new() {
        Ok(layers) => layers,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(error) = set.iter().find_map(|assignment| layers.set(assignment).err()) {
        return Some(error.to_string());
    }
    let keys = layers.keys().unwrap();
    let name = asked.iter().find(|name| !keys.iter().any(|key| is_within(key, name)))?;
    Some(format!("there is no setting {name}"))
}

#[test]
fn commands_in_the_documents_are_commands_of_the_program() {
    let mut count = 0;
    let mut failures = vec![];
    for shown in commands::shown() {
        let Some(words) = shown.of_program() else { continue };
        count += 1;
        // In running text, a command's name alone mentions it, as in "`mixdistill study` writes a report".
        let is_named = |name| Cli::command().find_subcommand(name).is_some();
        if shown.is_in_text && words.len() == 2 && is_named(&words[1]) {
            continue;
        }
        failures.extend(wrong(&words).map(|what| format!("{}: {words:?}\n{what}", shown.place)));
    }
    assert!(
        failures.is_empty(),
        "{} of {count} commands:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count > 100, "{count} commands were found");
}

#[test]
fn commands_in_the_help_are_commands_of_the_program() {
    let program = Cli::command();
    let mut count = 0;
    for command in std::iter::once(&program).chain(program.get_subcommands()) {
        let Some(examples) = command.get_after_help() else { continue };
        let examples = examples.to_string();
        let joined = examples.split("\\\n").map(str::trim_start).collect::<String>();
        for line in joined.lines().filter(|line| line.trim_start().starts_with("mixdistill ")) {
            // A description follows the command.
            let line = line.trim().split("   ").next().unwrap();
            for shown in commands::commands(command.get_name(), line) {
                assert_eq!(wrong(&shown.words), None, "{}: {line}", command.get_name());
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count} commands were found");
}
