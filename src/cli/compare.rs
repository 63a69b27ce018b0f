//! `mixdistill compare`: long only, short only, and the mixture.

use super::common::{Ended, Json, Session, quoted, say};
use super::run_flags::{Asked, RunFlags};
use super::train::kept;
use clap::Args;
use mixdistill::Error;
use mixdistill::recipe;

const EXAMPLES: &str = "\
Examples:
  mixdistill compare                            the toy corpus; a few minutes on a CPU
  mixdistill compare --model DIR --long L.jsonl --short S.jsonl --questions 100 --out c1
  mixdistill compare --resume --out c1          resumes a stopped comparison";

/// Train on long answers, on short answers, and on the mixture, and compare the results
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let Asked { config, mode, layers } = flags.run.asked(session)?;
    let ended = recipe::compare(&config, mode, &session.context).map_err(|e| layers.locate(e));
    if let Some(command) = RunFlags::to_go_on("compare", &config) {
        session.go_on_with(command);
    }
    let comparison = ended?;
    if comparison.stopped {
        session.result(&comparison)?;
        return Err(Error::stopped(kept(&config.out)).into());
    }
    say!(session, "\n{comparison}\n");
    let mix = quoted(&config.out.join("mix").to_string_lossy());
    say!(session, "results are in {}; the mixture's run is in {mix}", config.out.display());
    session.result(&comparison)?;
    Ok(())
}
