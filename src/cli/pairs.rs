//! `mixdistill pairs`: two teachers solve problems, and their correct answers are kept.

use super::common::{
    Ended, Failure, Json, Session, TemplateVariable, quoted, say, tell_part, usual_out,
};
use super::run_flags::add_assignments;
use clap::Args;
use mixdistill::settings::Layers;
use mixdistill::teacher::{
    MakePairsConfig, PairsDirectory, PairsReport, TeacherConfig, join_pairs, make_pairs,
};
use mixdistill::{Error, Part, Result};
use std::path::{Path, PathBuf};
use toml::Value;

const EXAMPLES: &str = "\
Examples:
  mixdistill pairs --problems gsm8k.jsonl --long-url http://localhost:8000/v1 \\
      --short-url http://localhost:8001/v1 --out pairs
  mixdistill pairs --problems gsm8k.jsonl --long-folder R1-DISTILL --short-folder INSTRUCT
  mixdistill pairs --config pairs/config.toml --set pick=shortest --ask-nothing
  mixdistill pairs --config pairs.toml --part 2/8 --out part2
  mixdistill pairs --join part? --out pairs

Each response is saved when it arrives. To resume a stopped command, run it again. docs/parts.md
explains how to divide the problems among several machines.";

/// Ask two teachers to solve problems and keep pairs of correct answers
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// Problems with known answers, in the published format of GSM8K, MATH, and others: a file, or a
    /// dataset on the Hugging Face Hub, such as owner/name:train
    #[arg(long, value_name = "FILE", help_heading = "Problems")]
    problems: Option<PathBuf>,
    /// Benchmarks whose problems are excluded [default: none]
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Problems")]
    benchmarks: Vec<PathBuf>,
    /// Use only the first N problems [default: all]
    #[arg(long, value_name = "N", help_heading = "Problems")]
    limit: Option<u64>,
    /// Base URL of the long teacher's server (OpenAI-compatible chat completions), such as
    /// http://localhost:8000/v1
    #[arg(
        id = "long.server.url",
        long = "long-url",
        value_name = "URL",
        help_heading = "Teachers"
    )]
    long_url: Option<String>,
    /// Model name on the long teacher's server [default: the only model that the server lists]
    #[arg(
        id = "long.server.model",
        long = "long-model",
        value_name = "NAME",
        help_heading = "Teachers"
    )]
    long_model: Option<String>,
    /// Run the long teacher in this process: a model folder, or owner/name on the Hugging Face Hub
    #[arg(id = "long.local.model", long = "long-folder", value_name = "MODEL",
        conflicts_with_all = ["long.server.url", "long.server.model"], help_heading = "Teachers")]
    long_folder: Option<String>,
    /// Variable for the long teacher's chat template, such as enable_thinking=true; may be repeated. A
    /// server receives it in chat_template_kwargs [default: none]
    #[arg(
        id = "long.local.template_variables",
        long = "long-template-variable",
        value_name = "NAME=VALUE",
        help_heading = "Teachers"
    )]
    long_variables: Vec<TemplateVariable>,
    /// Base URL of the short teacher's server
    #[arg(
        id = "short.server.url",
        long = "short-url",
        value_name = "URL",
        help_heading = "Teachers"
    )]
    short_url: Option<String>,
    /// Model name on the short teacher's server [default: the only model that the server lists]
    #[arg(
        id = "short.server.model",
        long = "short-model",
        value_name = "NAME",
        help_heading = "Teachers"
    )]
    short_model: Option<String>,
    /// Run the short teacher in this process, in the same forms as --long-folder
    #[arg(id = "short.local.model", long = "short-folder", value_name = "MODEL",
        conflicts_with_all = ["short.server.url", "short.server.model"],
        help_heading = "Teachers")]
    short_folder: Option<String>,
    /// Variable for the short teacher's chat template, such as enable_thinking=false
    #[arg(
        id = "short.local.template_variables",
        long = "short-template-variable",
        value_name = "NAME=VALUE",
        help_heading = "Teachers"
    )]
    short_variables: Vec<TemplateVariable>,
    /// Maximum number of answers to request from each teacher per problem [default: 1]
    #[arg(long, value_name = "N", help_heading = "Asking")]
    samples: Option<u64>,
    /// Sampling temperature of both teachers; --samples above 1 requires more than 0 [default: 0]
    #[arg(long, value_name = "T", help_heading = "Asking")]
    temperature: Option<f64>,
    /// Maximum length of both teachers' answers in tokens [default: 8192 for a server, 2048 for a
    /// folder]
    #[arg(long, value_name = "TOKENS", help_heading = "Asking")]
    max_tokens: Option<u64>,
    /// Number of concurrent requests to each server [default: 8]
    #[arg(long, value_name = "N", help_heading = "Asking")]
    concurrency: Option<u64>,
    /// Ask no teacher; make pairs from the saved responses
    #[arg(long, help_heading = "Asking")]
    ask_nothing: bool,
    /// TOML file of settings; flags override it
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Set any setting, such as keep=either or long.server.key_variable=MY_KEY. Overrides flags and
    /// --config; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Settings")]
    set: Vec<String>,
    /// Ask only this part of the problems, such as 2/8; array takes the part from the environment of a
    /// Slurm job array [default: all]
    #[arg(long, value_name = "I/N", help_heading = "Parts")]
    part: Option<Part>,
    /// Join the directories of all parts and make pairs, without asking a teacher
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Parts", conflicts_with_all = [
        "problems", "benchmarks", "limit", "long.server.url", "long.server.model", "long.local.model",
        "long.local.template_variables", "short.server.url", "short.server.model", "short.local.model",
        "short.local.template_variables", "samples", "temperature", "max_tokens", "concurrency",
        "ask_nothing", "config", "set", "part",
    ])]
    join: Vec<PathBuf>,
    /// Directory of responses and pairs; an existing one is resumed [default: pairs, or with --part
    /// pairs-part-I-of-N]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(flags: &Flags, session: &Session) -> Ended {
    let out = flags.out.clone().unwrap_or_else(|| usual_out("pairs", flags.part));
    if !flags.join.is_empty() {
        let report = join_pairs(&flags.join, &out, &session.context)?;
        say!(session, "joined {} parts\n", flags.join.len());
        return tell(&report, &out, session);
    }
    let layers = flags.layers()?;
    layers.notices().iter().for_each(|notice| session.warn(notice));
    let config = layers.settings()?;
    config.validate().map_err(|error| layers.locate(error))?;
    let directory = match flags.part {
        Some(part) => PairsDirectory::open_part(&out, part)?,
        None => PairsDirectory::open(&out)?,
    };
    let report = make_pairs(&config, &directory, !flags.ask_nothing, &session.context)?;
    let Some(part) = flags.part else { return tell(&report, &out, session) };
    say!(session, "{}", report.to_markdown());
    tell_reasons(&report, session);
    tell_part(part, session);
    let told = serde_json::json!({ "out": out, "part": part, "report": report });
    Ok(session.result(&told)?)
}

/// Prints the report and the next command.
fn tell(report: &PairsReport, out: &Path, session: &Session) -> Ended {
    say!(session, "{}", report.to_markdown());
    tell_reasons(report, session);
    session.result(report)?;
    tell_next(report, out, session)
}

/// Warns about unanswered problems.
fn tell_reasons(report: &PairsReport, session: &Session) {
    for teacher in [&report.long, &report.short] {
        if let Some(reason) = &teacher.reason {
            session.warn(&format!("{} did not answer all problems: {reason}", teacher.model));
        }
    }
}

impl Flags {
    /// Returns the settings: the file, then flags, then `--set`.
    fn layers(&self) -> Result<Layers<MakePairsConfig>, Failure> {
        let mut layers = Layers::<MakePairsConfig>::new()?;
        if let Some(path) = &self.config {
            layers.file(path)?;
        }
        self.add_flags(&mut layers).map_err(Failure::Usage)?;
        add_assignments(&mut layers, &self.set)?;
        Ok(layers)
    }

    fn add_flags(&self, layers: &mut Layers<MakePairsConfig>) -> Result<()> {
        let text = |path: &PathBuf| Value::from(path.to_string_lossy().into_owned());
        if let Some(path) = &self.problems {
            layers.set_value("problems", text(path))?;
        }
        if !self.benchmarks.is_empty() {
            let paths: Vec<Value> = self.benchmarks.iter().map(text).collect();
            layers.set_value("benchmarks", paths)?;
        }
        for (key, value) in [("limit", self.limit), ("samples", self.samples)] {
            if let Some(value) = value {
                layers.set_value(key, whole(value))?;
            }
        }
        let long = [&self.long_url, &self.long_model, &self.long_folder];
        self.add_teacher(layers, "long", long, &self.long_variables, |config| &config.long)?;
        let short = [&self.short_url, &self.short_model, &self.short_folder];
        self.add_teacher(layers, "short", short, &self.short_variables, |config| &config.short)
    }

    /// Adds the flags of one teacher, and those that apply to both.
    fn add_teacher(
        &self,
        layers: &mut Layers<MakePairsConfig>,
        role: &str,
        [url, model, folder]: [&Option<String>; 3],
        variables: &[TemplateVariable],
        teacher: fn(&MakePairsConfig) -> &TeacherConfig,
    ) -> Result<()> {
        // A teacher is either a server or a folder. A flag overrides what the file says.
        if let Some(folder) = folder {
            layers.set(&format!("{role}.server="))?;
            layers.set_value(&format!("{role}.local.model"), folder.as_str())?;
        }
        if let Some(url) = url {
            layers.set(&format!("{role}.local="))?;
            layers.set_value(&format!("{role}.server.url"), url.as_str())?;
        }
        if let Some(model) = model {
            layers.set_value(&format!("{role}.server.model"), model.as_str())?;
        }
        if let Some(concurrency) = self.concurrency {
            layers.set_value(&format!("{role}.concurrency"), whole(concurrency))?;
        }
        let config = layers.settings()?;
        let teacher = teacher(&config);
        let places = [
            ("server", "extra.chat_template_kwargs", teacher.server.is_some()),
            ("local", "template_variables", teacher.local.is_some()),
        ];
        for (place, for_template, _) in places.into_iter().filter(|(_, _, is_there)| *is_there) {
            for TemplateVariable { name, value } in variables {
                let value = Value::try_from(value).map_err(|_| {
                    let what = format!("`{name}` is {value}, which settings cannot hold");
                    let key = format!("{role}.{place}.{for_template}");
                    Error::config(key, what, "Leave it out or give another value")
                })?;
                layers.set_value(&format!("{role}.{place}.{for_template}.{name}"), value)?;
            }
            if let Some(temperature) = self.temperature {
                layers.set_value(&format!("{role}.{place}.temperature"), temperature)?;
            }
            if let Some(tokens) = self.max_tokens {
                layers.set_value(&format!("{role}.{place}.max_tokens"), whole(tokens))?;
            }
        }
        Ok(())
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Prints the next command, or fails if no answer was kept.
fn tell_next(report: &PairsReport, out: &Path, session: &Session) -> Ended {
    if report.rows == [0, 0] {
        let hint = format!(
            "See the table above for the reasons; all responses are in {}",
            out.join("responses.jsonl").display()
        );
        return Err(Error::Training { what: "no answer was kept".into(), hint }.into());
    }
    let file = |name: &str| quoted(&out.join(name).to_string_lossy());
    say!(
        session,
        "\nnext:\n  mixdistill train --model STUDENT --lora-rank 8 --long {} --short {}",
        file("long.jsonl"),
        file("short.jsonl")
    );
    Ok(())
}
