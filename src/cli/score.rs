//! `mixdistill score`: how well each answer of each source suits the untuned student.

use super::common::{Ended, Failure, Json, Session, quoted, say};
use super::run_flags::add_assignments;
use clap::Args;
use mixdistill::recipe::{
    LalpConfig, RunConfig, ScoreOptions, SourceScores, WrittenScores, score_table, write_scores,
};
use mixdistill::settings::Layers;
use mixdistill::terminal::Terminal;
use mixdistill::{Error, Result};
use std::path::{Path, PathBuf};
use toml::Value;

const EXAMPLES: &str = "\
Examples:
  mixdistill score --config run.toml --out scores.jsonl
  mixdistill score --model STUDENT --source r1=r1.jsonl --source qwq=qwq.jsonl \\
      --source short=short.jsonl --out scores.jsonl
  mixdistill score --config run.toml --out scores.jsonl --lalp --window 4

Every answer of every source is read once by the student as it is before training, also those that a
mixture does not take; no problem is held out. A line is written for each answer as soon as it is
scored: the same call goes on where one was stopped. docs/CHOOSING.md says what each number is.
--lalp reads each step again with the problem and its window: several times the tokens and the time.";

/// Score how well each teacher's answers suit the untuned student: NLL, rank, Rank-Surprisal Ratio
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// The student: a folder in Hugging Face's format, a GGUF file, or owner/name on the Hugging Face
    /// Hub [default: that of the settings, or none, a small student from random weights]
    #[arg(
        id = "base_model",
        long = "model",
        value_name = "MODEL",
        help_heading = "Data and model"
    )]
    model: Option<String>,
    /// A teacher's answers under a name, in place of the sources of the settings; may be given more
    /// than once
    #[arg(long, value_name = "NAME=FILE", help_heading = "Data and model")]
    source: Vec<String>,
    /// The same as --source long=FILE
    #[arg(
        id = "data.sources.long.path",
        long = "long",
        value_name = "FILE",
        help_heading = "Data and model"
    )]
    long: Option<PathBuf>,
    /// The same as --source short=FILE
    #[arg(
        id = "data.sources.short.path",
        long = "short",
        value_name = "FILE",
        help_heading = "Data and model"
    )]
    short: Option<PathBuf>,
    /// Length limit of a row in tokens; longer answers are left out, as in training [default: that of
    /// the settings, or 2048 with --model, else 512]
    #[arg(
        id = "data.max_length",
        long = "max-length",
        value_name = "TOKENS",
        help_heading = "Data and model"
    )]
    max_length: Option<u64>,
    /// Settings of the run as TOML [default: the toy run's]
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Any setting of the run, such as data.max_length=1024; may be given more than once and counts
    /// most
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    set: Vec<String>,
    /// Also score each step given the problem and a window of steps before it (LALP), at several
    /// times the cost
    #[arg(long, help_heading = "Scores")]
    lalp: bool,
    /// Steps in that window [default: 4]
    #[arg(long, value_name = "N", requires = "lalp", help_heading = "Scores")]
    window: Option<usize>,
    /// File to write, or to go on with: .jsonl, or .parquet with that feature
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let mut layers = Layers::<RunConfig>::new()?;
    if let Some(path) = &flags.config {
        layers.file(path)?;
    }
    flags.add_to(&mut layers, session.global.backend.as_deref()).map_err(Failure::Usage)?;
    add_assignments(&mut layers, &flags.set)?;
    layers.notices().iter().for_each(|notice| session.warn(notice));
    let config = layers.settings()?;
    let window = flags.window.unwrap_or(LalpConfig::default().window);
    let lalp = flags.lalp.then_some(LalpConfig { window });
    let options = ScoreOptions { file: Some(flags.out.clone()), lalp };
    let written = write_scores(&config, &options, &session.context);
    let written = written.map_err(|error| layers.locate(error))?;
    tell(flags, &written, session);
    session.result(&serde_json::json!({ "out": flags.out, "scores": written }))?;
    Ok(())
}

/// What a person wants to know of the scores, and what to do next.
fn tell(flags: &Flags, written: &WrittenScores, session: &Session) {
    let (count, before, out) = (written.rows.len(), written.before, flags.out.display());
    say!(session, "{count} answers in {out}, {before} of them from before\n");
    say!(session, "{}", score_table(&written.sources).to_text(Terminal::width()));
    if let Some(line) = lowest(&written.sources) {
        say!(session, "\n{}", Terminal::fitted(&line));
    }
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let config = flags.config.as_deref().map_or("run.toml".to_owned(), path);
    let scores = path(written.file.as_deref().unwrap_or(&flags.out));
    say!(
        session,
        "\nnext:\n  mixdistill train --config {config} --set mixture.choice.by=rsr \
         --set mixture.choice.scores={scores}"
    );
}

/// Which source has the lowest ratio.
fn lowest(sources: &[SourceScores]) -> Option<String> {
    let mut scored: Vec<&SourceScores> = sources.iter().filter(|source| source.rows > 0).collect();
    scored.sort_by(|a, b| a.rsr.total_cmp(&b.rsr));
    let (first, others) = scored.split_first()?;
    if others.is_empty() {
        return None;
    }
    let others: Vec<String> =
        others.iter().map(|source| format!("{:.3} of {}", source.rsr, source.name)).collect();
    Some(format!(
        "The Rank-Surprisal Ratio is lowest for {}: {:.3}, against {}. A lower one suits the student \
         more.",
        first.name,
        first.rsr,
        others.join(", ")
    ))
}

impl Flags {
    fn add_to(&self, layers: &mut Layers<RunConfig>, backend: Option<&str>) -> Result<()> {
        if let Some(backend) = backend {
            layers.set_value("backend", backend)?;
        }
        if let Some(model) = &self.model {
            layers.set_value("base_model", model.as_str())?;
        }
        if let Some(tokens) = self.max_length {
            layers.set_value("data.max_length", i64::try_from(tokens).unwrap_or(i64::MAX))?;
        }
        let sources = self.sources()?;
        if sources.is_empty() {
            return Ok(());
        }
        let table = |(name, path): (String, String)| {
            Value::Table(
                [("name".into(), name.into()), ("path".into(), path.into())].into_iter().collect(),
            )
        };
        layers.set_value("data.sources", sources.into_iter().map(table).collect::<Vec<_>>())
    }

    /// Names and files of the sources that flags name.
    fn sources(&self) -> Result<Vec<(String, String)>> {
        let flag = |name: &str, path: &Option<PathBuf>| {
            Some((name.to_owned(), path.as_ref()?.to_string_lossy().into_owned()))
        };
        let mut sources: Vec<(String, String)> =
            [flag("long", &self.long), flag("short", &self.short)].into_iter().flatten().collect();
        for source in &self.source {
            let parts = source.split_once('=').filter(|(name, path)| {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                !name.is_empty() && name.chars().all(plain) && !path.is_empty()
            });
            let Some((name, path)) = parts else {
                let what = format!("--source is `{source}`");
                let hint = "Write NAME=FILE, the name in letters, digits, -, _ and .";
                return Err(Error::config("data.sources", what, hint));
            };
            if sources.iter().any(|(known, _)| known == name) {
                let what = format!("there are two sources called `{name}`");
                return Err(Error::config("data.sources", what, "Give each a name of its own"));
            }
            sources.push((name.to_owned(), path.to_owned()));
        }
        Ok(sources)
    }
}
