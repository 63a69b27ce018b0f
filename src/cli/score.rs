//! `mixdistill score`: scores how well each answer of each source suits the untuned student.

use super::common::{Ended, Failure, Json, Session, quoted, say, tell_part};
use super::run_flags::{FlagSource, add_assignments, set_sources};
use clap::Args;
use mixdistill::recipe::{
    LalpConfig, RunConfig, ScoreOptions, SourceScores, WrittenScores, join_scores, score_table,
    write_scores,
};
use mixdistill::settings::Layers;
use mixdistill::terminal::Terminal;
use mixdistill::{Error, Part, Result};
use std::path::PathBuf;
use toml::Value;

const EXAMPLES: &str = "\
Examples:
  mixdistill score --config run.toml --out scores.jsonl
  mixdistill score --model STUDENT --source r1=r1.jsonl --source qwq=qwq.jsonl \\
      --source short=short.jsonl --out scores.jsonl
  mixdistill score --config run.toml --part 2/8 --out part2.jsonl
  mixdistill score --join part?.jsonl --out scores.jsonl
  mixdistill score --config run.toml --out scores.jsonl --lalp --window 4

The untuned student reads each answer of each source once, including answers that a mixture would
not use. No problem is held out. Each line is written as soon as its answer is scored. To resume a
stopped command, run it again. docs/choosing.md explains the numbers, and docs/parts.md how to
divide the work among several machines.
--lalp reads each step again with the problem and its window, at several times the tokens and time.";

/// Score how well each teacher's answers suit the untuned student: NLL, rank, Rank-Surprisal Ratio
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Student: a folder in Hugging Face format, a GGUF file, or owner/name on the Hugging Face Hub
    /// [default: base_model from the settings, else a small student with random weights]
    #[arg(
        id = "base_model",
        long = "model",
        value_name = "MODEL",
        help_heading = "Data and model"
    )]
    model: Option<String>,
    /// A teacher's answers under a name, instead of the sources of the settings; may be repeated
    #[arg(long, value_name = "NAME=FILE", help_heading = "Data and model")]
    source: Vec<String>,
    /// Same as --source long=FILE
    #[arg(
        id = "data.sources.long.path",
        long = "long",
        value_name = "FILE",
        help_heading = "Data and model"
    )]
    long: Option<PathBuf>,
    /// Same as --source short=FILE
    #[arg(
        id = "data.sources.short.path",
        long = "short",
        value_name = "FILE",
        help_heading = "Data and model"
    )]
    short: Option<PathBuf>,
    /// Column names of a source that are not recognized automatically, as
    /// SOURCE=problem=NAME,solution=NAME [default: those that the settings have for that source]
    #[arg(long, value_name = "NAME=MAP", help_heading = "Data and model")]
    columns: Vec<String>,
    /// Maximum length of a row in tokens; longer answers are left out, as in training [default: the
    /// setting, or 2048 with --model, else 512]
    #[arg(
        id = "data.max_length",
        long = "max-length",
        value_name = "TOKENS",
        help_heading = "Data and model"
    )]
    max_length: Option<u64>,
    /// TOML file of the run's settings [default: those of the toy run]
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Set any setting of the run, such as data.max_length=1024. Overrides flags and --config; may be
    /// repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    set: Vec<String>,
    /// Also score each step given the problem and a window of the steps before it (LALP), at several
    /// times the cost
    #[arg(long, help_heading = "Scores")]
    lalp: bool,
    /// Number of steps in the LALP window [default: 4]
    #[arg(long, value_name = "N", requires = "lalp", help_heading = "Scores")]
    window: Option<usize>,
    /// Score only the answers to this part of the problems, such as 2/8; array takes the part from the
    /// environment of a Slurm job array [default: all]
    #[arg(long, value_name = "I/N", help_heading = "Parts")]
    part: Option<Part>,
    /// Join the files of all parts, without loading the student
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Parts", conflicts_with_all = [
        "base_model", "source", "data.sources.long.path", "data.sources.short.path", "columns",
        "data.max_length", "config", "set", "lalp", "window", "part",
    ])]
    join: Vec<PathBuf>,
    /// File to write, .jsonl or (with the feature parquet) .parquet; an existing one is resumed
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    if !flags.join.is_empty() {
        let written = join_scores(&flags.join, &flags.out)?;
        let (parts, count, out) = (flags.join.len(), written.rows.len(), flags.out.display());
        say!(session, "joined {parts} parts: {count} answers in {out}\n");
        tell_sources(&written, session);
        let scores = written.file.as_deref().unwrap_or(&flags.out).to_string_lossy();
        let scores = quoted(&format!("mixture.choice.scores={scores}"));
        say!(session, "\nnext: train with\n  --set mixture.choice.by=rsr --set {scores}");
        session.result(&serde_json::json!({ "out": flags.out, "scores": written }))?;
        return Ok(());
    }
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
    let options = ScoreOptions { file: Some(flags.out.clone()), lalp, part: flags.part };
    let written = write_scores(&config, &options, &session.context);
    let written = written.map_err(|error| layers.locate(error))?;
    if let Some(part) = flags.part {
        let (count, before, out) = (written.rows.len(), written.before, flags.out.display());
        say!(session, "{count} answers in {out}, {before} from an earlier call");
        tell_part(part, session);
        let told = serde_json::json!({ "out": flags.out, "part": part, "answers": count,
            "before": before, "read_tokens": written.read_tokens });
        return Ok(session.result(&told)?);
    }
    tell(flags, &written, &next(flags, &layers, &written, session), session);
    session.result(&serde_json::json!({ "out": flags.out, "scores": written }))?;
    Ok(())
}

/// Prints the scores and the next command.
fn tell(flags: &Flags, written: &WrittenScores, next: &str, session: &Session) {
    let (count, before, out) = (written.rows.len(), written.before, flags.out.display());
    say!(session, "{count} answers in {out}, {before} from an earlier call\n");
    tell_sources(written, session);
    say!(session, "\nnext:\n  {next}");
}

/// Prints the scores by source.
fn tell_sources(written: &WrittenScores, session: &Session) {
    say!(session, "{}", score_table(&written.sources).to_text(Terminal::width()));
    if let Some(line) = lowest(&written.sources) {
        say!(session, "\n{}", Terminal::fitted(&line));
    }
}

/// Returns the command that trains with a choice by these scores, with all given flags.
fn next(
    flags: &Flags,
    layers: &Layers<RunConfig>,
    written: &WrittenScores,
    session: &Session,
) -> String {
    let mut words: Vec<String> = vec!["mixdistill".into(), "train".into()];
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), quoted(&value)]);
    if let Some(path) = &flags.config {
        add("--config", path.to_string_lossy().into_owned());
    }
    if let Some(backend) = &session.global.backend {
        add("--backend", backend.clone());
    }
    if let Some(model) = &flags.model {
        add("--model", model.clone());
    }
    if let Some(tokens) = flags.max_length {
        add("--max-length", tokens.to_string());
    }
    // The final sources, with the changes of `--set`.
    let sources = layers.given().get("data").and_then(|data| data.get("sources"));
    let sources = sources.filter(|_| flags.names_sources());
    let is_of_sources = |set: &&String| set.trim_start().starts_with("data.sources");
    for set in flags.set.iter().filter(|set| sources.is_none() || !is_of_sources(set)) {
        add("--set", set.clone());
    }
    if let Some(sources) = sources {
        add("--set", format!("data.sources={sources}"));
    }
    // A choice by LALP uses the default window.
    let window = flags.window.unwrap_or(LalpConfig::default().window);
    let by_lalp = flags.lalp && window == LalpConfig::default().window;
    let scores = written.file.as_deref().unwrap_or(&flags.out).to_string_lossy();
    add("--set", format!("mixture.choice.by={}", if by_lalp { "lalp" } else { "rsr" }));
    add("--set", format!("mixture.choice.scores={scores}"));
    words.join(" ")
}

/// Returns the sources with the lowest ratio, to the digits shown.
fn lowest(sources: &[SourceScores]) -> Option<String> {
    let mut scored: Vec<&SourceScores> = sources.iter().filter(|source| source.rows > 0).collect();
    scored.sort_by(|a, b| a.rsr.total_cmp(&b.rsr));
    let shown = |source: &SourceScores| format!("{:.3}", source.rsr);
    let least = shown(scored.first()?);
    let (first, others): (Vec<&SourceScores>, Vec<&SourceScores>) =
        scored.iter().partition(|source| shown(source) == least);
    let named = |source: &&SourceScores| match source.rows {
        1 => format!("{} (one answer)", source.name),
        _ => source.name.clone(),
    };
    let names = first.iter().map(named).collect::<Vec<_>>().join(" and ");
    let others: Vec<String> =
        others.iter().map(|source| format!("{} for {}", shown(source), named(source))).collect();
    match (first.len(), others.is_empty()) {
        (1, true) => None,
        (_, true) => Some(format!("The Rank-Surprisal Ratios of {names} are equal: {least}.")),
        (count, false) => Some(format!(
            "The Rank-Surprisal Ratio is lowest for {names}: {least}{}, compared with {}. A lower ratio \
             suits the student better.",
            if count > 1 { " each" } else { "" },
            others.join(", ")
        )),
    }
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
        let (sources, columns) = (self.sources()?, self.columns_of()?);
        let columns_of = |name: &str| {
            let of = columns.iter().find(|(source, _)| *source == name);
            of.map(|(_, columns)| (*columns).to_owned())
        };
        let sources = sources.into_iter().map(|(name, path)| {
            let columns = columns_of(&name);
            FlagSource { name, path, columns }
        });
        let mut sources: Vec<FlagSource> = sources.collect();
        if sources.is_empty() && !columns.is_empty() {
            sources = set_already(layers);
            for source in &mut sources {
                source.columns = columns_of(&source.name);
            }
        }
        if let Some((name, _)) =
            columns.iter().find(|(name, _)| sources.iter().all(|source| source.name != *name))
        {
            let what = format!("--columns names `{name}`, which is not a source");
            return Err(Error::config("data.sources", what, "Use the name of a scored source"));
        }
        match sources.is_empty() {
            true => Ok(()),
            false => set_sources(layers, &sources),
        }
    }

    fn names_sources(&self) -> bool {
        !self.source.is_empty()
            || self.long.is_some()
            || self.short.is_some()
            || !self.columns.is_empty()
    }

    /// Returns the names of sources with the text of their columns.
    fn columns_of(&self) -> Result<Vec<(&str, &str)>> {
        let parts = |given: &'_ String| {
            given.split_once('=').is_some_and(|(name, map)| !name.is_empty() && !map.is_empty())
        };
        if let Some(wrong) = self.columns.iter().find(|given| !parts(given)) {
            let what = format!("--columns is `{wrong}`");
            let hint = "Write NAME=MAP, such as long=problem=question,solution=trace";
            return Err(Error::config("data.sources", what, hint));
        }
        Ok(self.columns.iter().filter_map(|given| given.split_once('=')).collect())
    }

    /// Returns the names and files of the sources that the flags give.
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
                let hint = "Write NAME=FILE, with letters, digits, -, _, and . in the name";
                return Err(Error::config("data.sources", what, hint));
            };
            if sources.iter().any(|(known, _)| known == name) {
                let what = format!("two sources are named `{name}`");
                return Err(Error::config("data.sources", what, "Give each source its own name"));
            }
            sources.push((name.to_owned(), path.to_owned()));
        }
        Ok(sources)
    }
}

/// Returns the sources in the settings.
fn set_already(layers: &Layers<RunConfig>) -> Vec<FlagSource> {
    let set = layers.given().get("data").and_then(|data| data.get("sources"));
    let of = |source: &Value| {
        let text = |key| source.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(FlagSource {
            name: text("name")?,
            path: text("path").unwrap_or_default(),
            columns: None,
        })
    };
    set.and_then(Value::as_array).into_iter().flatten().filter_map(of).collect()
}
