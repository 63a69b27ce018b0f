//! `mixdistill plan`: memory, disk, and time of a run, before it starts.

use super::common::{Ended, Json, Session, say};
use super::run_flags::{Asked, RunFlags};
use clap::Args;
use mixdistill::recipe::Plan;
use mixdistill::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  mixdistill plan --model DIR --long L.jsonl --short S.jsonl --lora-rank 16
  mixdistill plan --config run.toml --measure       also measures the time of a step
  mixdistill plan --model DIR --lora-rank 16 --max-length 8192 \\
      --set train.activation_checkpointing=true     without data; config.json is enough";

/// Estimate what a run needs: memory by component, disk, and time, and what would save memory
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Measure the speed: run a few steps with random weights, for a few seconds
    #[arg(long, help_heading = "Plan")]
    measure: bool,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let Asked { config, layers, .. } = flags.run.asked(session)?;
    session.go_on_with_nothing();
    let plan = Plan::new(&config, flags.measure, &session.context);
    let plan = plan.map_err(|error| layers.locate(error))?;
    let width = Terminal::width();
    say!(session, "{}", Terminal::fitted(&format!("{plan:width$}")));
    session.result(&plan)?;
    Ok(())
}
