//! `mixdistill config`: prints, checks, and explains settings.

use super::common::{Ended, Failure, Session, say};
use super::run_flags::add_assignments;
use clap::{Args, Subcommand};
use mixdistill::Error;
use mixdistill::recipe::RunConfig;
use mixdistill::settings::{Key, Layers, Settings, to_toml};
use mixdistill::study::StudyConfig;
use mixdistill::terminal::Terminal;
use mixdistill::text::wrapped;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  mixdistill config > run.toml                  every setting with its default
  mixdistill config check --config run.toml --set train.steps=100
  mixdistill config explain train.learning_rate";

/// Print, check, or explain the settings of train and compare
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Flags {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    layers: LayerFlags,
    /// Print a comment above each setting that explains it
    #[arg(long, help_heading = "Settings")]
    explained: bool,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Check settings and report what is wrong with them
    Check(LayerFlags),
    /// Explain settings: what each one does, the values it accepts, and its current value
    Explain {
        /// A setting or a table of them, such as train.learning_rate or data [default: all]
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        #[command(flatten)]
        layers: LayerFlags,
    },
}

#[derive(Args, Debug)]
struct LayerFlags {
    /// TOML file of settings
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Set any setting, such as train.batch_size=4. Overrides --config; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    set: Vec<String>,
    /// Use the settings of a study instead of those of a run
    #[arg(long, help_heading = "Settings")]
    study: bool,
}

impl LayerFlags {
    fn layers<T: Settings>(&self, session: &Session) -> Result<Layers<T>, Failure> {
        let mut layers = Layers::<T>::new()?;
        if let Some(path) = &self.config {
            layers.file(path)?;
        }
        add_assignments(&mut layers, &self.set)?;
        layers.notices().iter().for_each(|notice| session.warn(notice));
        Ok(layers)
    }
}

/// Settings that can be checked.
trait Checked: Settings {
    fn check(&self) -> mixdistill::Result<()>;
}

impl Checked for RunConfig {
    fn check(&self) -> mixdistill::Result<()> {
        self.validate()
    }
}

impl Checked for StudyConfig {
    fn check(&self) -> mixdistill::Result<()> {
        self.validate()
    }
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let layers = match &flags.what {
        None => &flags.layers,
        Some(What::Check(layers) | What::Explain { layers, .. }) => layers,
    };
    match layers.study {
        true => act::<StudyConfig>(flags, layers, session),
        false => act::<RunConfig>(flags, layers, session),
    }
}

fn act<T: Checked>(flags: &Flags, given: &LayerFlags, session: &Session) -> Ended {
    let layers = given.layers::<T>(session)?;
    match &flags.what {
        Some(What::Explain { keys, .. }) => explain(&layers, keys, session),
        what => {
            let settings = layers.settings()?;
            settings.check().map_err(|error| layers.locate(error))?;
            match what {
                None => session.print(to_toml(&settings, flags.explained)?.trim_end()),
                _ => say!(session, "the settings are valid"),
            }
            Ok(())
        }
    }
}

/// Returns whether a key has this name, or is in the table of this name.
pub(super) fn is_within(key: &Key, name: &str) -> bool {
    let rest = key.path.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn explain<T: Settings>(layers: &Layers<T>, asked: &[String], session: &Session) -> Ended {
    let keys = layers.keys()?;
    for name in asked {
        if !keys.iter().any(|key| is_within(key, name)) {
            // The error of setting it suggests the nearest key.
            let mut named = Layers::<T>::new()?;
            let error = named.set(&format!("{name}=")).err();
            let error = error.unwrap_or_else(|| {
                Error::config(
                    name.as_str(),
                    "there is no such setting",
                    "Run `mixdistill config explain` to list all settings",
                )
            });
            return Err(Failure::Usage(error));
        }
    }
    let wanted = |key: &&Key| asked.is_empty() || asked.iter().any(|name| is_within(key, name));
    for key in keys.iter().filter(wanted) {
        session.print(&explanation(key));
    }
    Ok(())
}

/// Returns the explanation of a key, wrapped to the width of the terminal.
fn explanation(key: &Key) -> String {
    let width = Terminal::width();
    let mut text = key.path.clone();
    match (&key.value, key.required) {
        (Some(value), _) => text.push_str(&format!(" = {value}")),
        (None, true) => text.push_str(" (required)"),
        (None, false) if key.is_table => {}
        (None, false) => text.push_str(" (not set)"),
    }
    let mut paragraph = |words: &str, indent: usize| {
        for line in wrapped(words, width.saturating_sub(indent)).lines() {
            text.push_str(&format!("\n{:indent$}{line}", ""));
        }
    };
    paragraph(&key.about, 4);
    match key.choices.is_empty() {
        true => paragraph(&format!("takes: {}", key.kind), 4),
        false => paragraph("takes:", 4),
    }
    for choice in &key.choices {
        paragraph(&format!("{}: {}", choice.name, choice.about), 6);
    }
    text
}
