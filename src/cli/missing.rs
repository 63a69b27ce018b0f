//! Commands that this build lacks. They are listed and explain how to get them.

use super::common::{Ended, Session};
use clap::Args;
use mixdistill::Error;
use std::ffi::OsString;

/// Accepts whatever the command would accept.
#[derive(Args, Debug)]
pub struct Flags {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    _rest: Vec<OsString>,
}

/// Reports how to get a command.
///
/// # Errors
/// Always.
pub fn run(command: &str, feature: &str, _session: &Session) -> Ended {
    // The code that prints the message adds how to get the feature.
    let what =
        format!("this program was built without the feature `{feature}`, which {command} needs");
    Err(Error::Training { what, hint: "All other commands work without it".into() }.into())
}
