//! The command-line program: its commands, its flags, and how it shows events.
//!
//! Each command has a file with its flags and a function `run`. A flag that sets a setting uses the
//! setting's key as its id, so that messages can name the flag (see [`messages`]).

mod chat;
mod common;
mod compare;
mod completions;
mod config;
#[cfg(test)]
mod documents;
mod evaluate;
mod export;
mod generate;
mod interrupts;
mod lines;
mod logits;
mod merge;
mod messages;
#[cfg(not(all(feature = "hub", feature = "teacher")))]
mod missing;
#[cfg(feature = "teacher")]
mod pairs;
mod plan;
mod preview;
#[cfg(feature = "hub")]
mod push;
mod ranks;
mod run_flags;
mod score;
mod speaker;
mod study;
mod train;

use clap::{CommandFactory, Parser, Subcommand};
use common::{Ended, Global, Session};
use messages::SettingFlags;
use mixdistill::device;
use mixdistill::eval::EvaluateConfig;
use mixdistill::recipe::RunConfig;
use mixdistill::study::StudyConfig;
use run_flags::settable;
use std::process::ExitCode;

/// Fine-tune small language models on mixtures of long and short reasoning traces (Mix Distillation).
#[derive(Parser)]
#[command(name = "mixdistill", version, about, propagate_version = true, max_term_width = 100)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

const EXAMPLES: &str = "\
Examples:
  mixdistill train                              the toy corpus; a minute or two on a CPU
  mixdistill train --model DIR --long L.jsonl --short S.jsonl --lora-rank 16
  mixdistill chat --model DIR --adapter run/adapter

Exit status: 0 on success, 1 on an error, 2 for wrong usage, 75 after a stop (Ctrl-C or SIGTERM).";

#[derive(Subcommand)]
enum Command {
    Train(train::Flags),
    Preview(preview::Flags),
    Plan(plan::Flags),
    Compare(compare::Flags),
    Generate(generate::Flags),
    Chat(chat::Flags),
    Evaluate(evaluate::Flags),
    #[cfg(feature = "teacher")]
    Pairs(pairs::Flags),
    /// Ask two teachers to solve problems and keep pairs of correct answers (not in this build)
    #[cfg(not(feature = "teacher"))]
    #[command(disable_help_flag = true)]
    Pairs(missing::Flags),
    Logits(logits::Flags),
    Score(score::Flags),
    Merge(merge::Flags),
    Export(export::Flags),
    #[cfg(feature = "hub")]
    Push(push::Flags),
    /// Push a model or an adapter, with its card, to the Hugging Face Hub (not in this build)
    #[cfg(not(feature = "hub"))]
    #[command(disable_help_flag = true)]
    Push(missing::Flags),
    Study(study::Flags),
    Config(config::Flags),
    Completions(completions::Flags),
}

impl Command {
    /// Returns whether to print results as JSON.
    fn json(&self) -> bool {
        match self {
            Self::Train(flags) => flags.json.json,
            Self::Preview(flags) => flags.json.json,
            Self::Plan(flags) => flags.json.json,
            Self::Compare(flags) => flags.json.json,
            Self::Generate(flags) => flags.json.json,
            Self::Evaluate(flags) => flags.json.json,
            #[cfg(feature = "teacher")]
            Self::Pairs(flags) => flags.json.json,
            Self::Logits(flags) => flags.json.json,
            Self::Score(flags) => flags.json.json,
            Self::Merge(flags) => flags.json.json,
            Self::Export(flags) => flags.json.json,
            #[cfg(feature = "hub")]
            Self::Push(flags) => flags.json.json,
            Self::Study(flags) => flags.json.json,
            _ => false,
        }
    }

    /// Returns the keys that the command's `--set` accepts.
    fn settable(&self) -> mixdistill::Result<Vec<String>> {
        match self {
            Self::Train(_)
            | Self::Preview(_)
            | Self::Plan(_)
            | Self::Compare(_)
            | Self::Logits(_)
            | Self::Score(_)
            | Self::Config(_) => settable::<RunConfig>(),
            Self::Evaluate(_) => settable::<EvaluateConfig>(),
            #[cfg(feature = "teacher")]
            Self::Pairs(_) => settable::<mixdistill::teacher::MakePairsConfig>(),
            Self::Study(_) => settable::<StudyConfig>(),
            _ => Ok(vec![]),
        }
    }

    fn run(&self, session: &Session) -> Ended {
        match self {
            Self::Train(flags) => train::run(flags, session),
            Self::Preview(flags) => preview::run(flags, session),
            Self::Plan(flags) => plan::run(flags, session),
            Self::Compare(flags) => compare::run(flags, session),
            Self::Generate(flags) => generate::run(flags, session),
            Self::Chat(flags) => chat::run(flags, session),
            #[cfg(not(feature = "teacher"))]
            Self::Pairs(_) => missing::run("pairs", "teacher", session),
            Self::Evaluate(flags) => evaluate::run(flags, session),
            #[cfg(feature = "teacher")]
            Self::Pairs(flags) => pairs::run(flags, session),
            Self::Logits(flags) => logits::run(flags, session),
            Self::Score(flags) => score::run(flags, session),
            Self::Merge(flags) => merge::run(flags, session),
            Self::Export(flags) => export::run(flags, session),
            #[cfg(feature = "hub")]
            Self::Push(flags) => push::run(flags, session),
            #[cfg(not(feature = "hub"))]
            Self::Push(_) => missing::run("push", "hub", session),
            Self::Study(flags) => study::run(flags, session),
            Self::Config(flags) => config::run(flags, session),
            Self::Completions(flags) => completions::run(flags, session, Cli::command()),
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let matches = Cli::command().try_get_matches();
    let read = matches.and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        <Cli as clap::FromArgMatches>::from_arg_matches(&matches).map(|cli| (name, cli))
    });
    let (name, Cli { command, global }) = match read {
        Ok(read) => read,
        Err(error) => ranks::end_with(&error),
    };
    let together = match ranks::Together::start(matches!(command, Command::Train(_))) {
        Ok(together) => together,
        Err(error) => {
            ranks::leave_it_to_the_first(1);
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let threads = global.threads.map(usize::from).or_else(|| together.threads());
    let session = command.settable().and_then(|settable| {
        let mut program = Cli::command();
        // Propagates the global flags to the commands.
        program.build();
        let flags = program.find_subcommand(&name).map(|flags| SettingFlags::of(flags, settable));
        Session::new(global, &name, command.json(), flags.unwrap_or_default(), together)
    });
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = device::use_threads(threads).map_err(Into::into);
    session.end(ended.and_then(|()| command.run(&session)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sound() {
        Cli::command().debug_assert();
    }
}
