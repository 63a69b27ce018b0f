//! `mixdistill push`: pushes a student to the Hugging Face Hub.

use super::common::{Ended, Json, Session, say};
use clap::Args;
use mixdistill::hub::{PushOptions, push};
use mixdistill::text::bytes;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mixdistill push owner/name                          the student of the run in run/
  mixdistill push owner/name --from run/adapter --message 'rank 16'
  mixdistill push owner/name --from student.gguf --public --json

HF_TOKEN must be a token with write access. The push is one commit: it replaces files of the same
name, whose old versions stay in the history, and keeps all other files.";

/// Push a model or an adapter, with its card, to the Hugging Face Hub
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Repository to push to; a new one is private
    #[arg(value_name = "OWNER/NAME")]
    repository: String,
    /// What to push: a run, a model folder, an adapter folder, or a .gguf file
    #[arg(long, value_name = "PATH", default_value = "run", help_heading = "Input")]
    from: PathBuf,
    /// Make a new repository public, or allow a push to one that is public
    #[arg(long, help_heading = "Repository")]
    public: bool,
    /// Commit message [default: a description of what is pushed]
    #[arg(long, value_name = "TEXT", help_heading = "Repository")]
    message: Option<String>,
    /// Branch to push to; created if it does not exist [default: main]
    #[arg(long, value_name = "BRANCH", help_heading = "Repository")]
    revision: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let options = PushOptions {
        public: flags.public,
        message: flags.message.clone(),
        revision: flags.revision.clone(),
        ..PushOptions::default()
    };
    let pushed = push(&flags.from, &flags.repository, &options, &session.context)?;
    let kind = if pushed.private { "private" } else { "public" };
    let made = if pushed.created { "new" } else { "existing" };
    let files = pushed.files.join(", ");
    say!(session, "{} ({kind}, {made}): {files}, {}", pushed.url, bytes(pushed.bytes as f64));
    say!(session, "commit {}", pushed.commit_url);
    session.result(&pushed)?;
    Ok(())
}
