//! Commands that this build lacks: they are listed, and say how to get them.

use super::common::{Ended, Session};
use clap::Args;
use mixdistill::Error;
use std::ffi::OsString;

/// Takes whatever the command would take.
#[derive(Args, Debug)]
pub struct Flags {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    _rest: Vec<OsString>,
}

/// Says how to get a command.
///
/// # Errors
/// Always.
pub fn run(command: &str, feature: &str, _session: &Session) -> Ended {
    let what = format!("this program was built without what {command} needs");
    // How to get it is added where messages are told.
    let what = format!("{what} (feature `{feature}`)");
    Err(Error::Training { what, hint: "Everything else works without it".into() }.into())
}
