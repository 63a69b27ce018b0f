//! `mixdistill completions`: shell completions.

use super::common::{Ended, Session};
use clap::{Args, Command};
use clap_complete::{Shell, generate};

const EXAMPLES: &str = "\
Examples:
  mixdistill completions bash > ~/.local/share/bash-completion/completions/mixdistill
  mixdistill completions zsh > \"${fpath[1]}/_mixdistill\"
  mixdistill completions fish > ~/.config/fish/completions/mixdistill.fish";

/// Print the completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Shell to generate completions for
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(flags: &Flags, session: &Session, mut program: Command) -> Ended {
    let mut script = vec![];
    generate(flags.shell, &mut program, "mixdistill", &mut script);
    session.print(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}
