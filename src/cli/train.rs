//! `mixdistill train`: one run.

use super::common::{Ended, Json, Session, TemplateVariable, quoted, say};
use super::run_flags::{Asked, RunFlags};
use clap::Args;
use mixdistill::recipe::{self, RunConfig, RunMode, Summary};
use mixdistill::terminal::Terminal;
use mixdistill::{Error, Result};
use std::path::Path;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  mixdistill train                              the toy corpus; a minute or two on a CPU
  mixdistill train --model DIR --long L.jsonl --short S.jsonl --lora-rank 16 \\
      --set mixture.share=tokens --set data.hold_out=0.1 --out run1
  mixdistill train --resume --out run1          resumes a stopped run
  mpirun -np 4 mixdistill train --model DIR --set train.accumulate=8 --set train.lanes=4
                                                four processes (needs the feature mpi)";

/// Train a student on a mixture of long and short answers
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    #[command(flatten)]
    run: RunFlags,
    /// Number of devices of this machine to train on, in one process. For several machines, use mpirun or
    /// srun [default: 1]
    #[arg(long, value_name = "N", help_heading = "Several devices",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranks: Option<u16>,
    /// Seconds that a rank waits for another rank before the run aborts
    #[arg(long, value_name = "SECONDS", help_heading = "Several devices", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..=604_800))]
    rank_timeout: u64,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let Asked { mut config, mode, layers } = flags.run.asked(session)?;
    config.backend = session.together.device(&config.backend);
    let ended = trained(flags, &config, mode, session).map_err(|e| layers.locate(e));
    let Some(ended) = ended.transpose() else { return Ok(()) };
    if let Some(command) = RunFlags::to_go_on("train", &config) {
        session.go_on_with(command);
    }
    let summary = ended?;
    if summary.outcome.stopped {
        session.result(&summary)?;
        return Err(Error::stopped(kept(&config.out)).into());
    }
    say!(session, "{}", Terminal::fitted(&summary.conclusion().to_string()));
    say!(session, "\nnext:{}", next(&config));
    session.result(&summary)?;
    Ok(())
}

/// Returns the summary of the run, on the rank that prints.
fn trained(
    flags: &Flags,
    config: &RunConfig,
    mode: RunMode,
    session: &Session,
) -> Result<Option<Summary>> {
    let (together, context) = (&session.together, &session.context);
    let patience = Duration::from_secs(flags.rank_timeout);
    match flags.ranks.map(usize::from) {
        Some(2..) if together.are_several() => Err(Error::Ranks {
            what: "--ranks cannot be combined with mpirun or srun".into(),
            hint: "Leave out --ranks and start one process for each device".into(),
        }),
        Some(count @ 2..) => {
            recipe::run_on_threads(config, mode, count, patience, context).map(Some)
        }
        _ => recipe::run_on_ranks(config, mode, &together.ranks(patience), context),
    }
}

/// Returns what a stopped run has saved.
pub fn kept(out: &Path) -> String {
    let checkpoints = out.join("checkpoints");
    match checkpoints.is_dir() {
        true => format!("a checkpoint is saved in {}", checkpoints.display()),
        false => format!("finished work is in {}", out.display()),
    }
}

/// Returns the commands to run next, one per line.
fn next(config: &RunConfig) -> String {
    let run = quoted(&config.out.to_string_lossy());
    let system = config.data.system_prompt.as_ref();
    let system = system.map_or(String::new(), |text| format!(" --system {}", quoted(text)));
    let variables = config.asked_with();
    let variables: String = variables
        .iter()
        .map(|(name, value)| format!(" {}", TemplateVariable::flag(name, value)))
        .collect();
    let mut lines = vec![format!("mixdistill chat --model {run}{system}{variables}")];
    if config.lora.is_some() {
        lines.push(format!("mixdistill merge --model {run} --out merged"));
    }
    if config.data.sources.is_empty() {
        lines.push("mixdistill compare --out compare1".into());
        lines.push("mixdistill train --share 0.5 --out half".into());
        lines.push("mixdistill train --help".into());
    } else {
        let settings = quoted(&config.out.join("config.toml").to_string_lossy());
        if config.mixture.choice.is_some() {
            // The same run with random choice by the weights.
            let by_chance = format!("mixdistill train --config {settings} --set mixture.choice=");
            lines.push(format!("{by_chance} --out by-chance"));
            return lines.iter().map(|line| format!("\n  {line}")).collect();
        }
        lines
            .push(format!("mixdistill compare --config {settings} --questions 100 --out compare1"));
        lines.push(format!(
            "mixdistill train --config {settings} --set mixture.share=tokens --out tokens"
        ));
    }
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
