//! Asks two teachers problems with known answers and keeps the answers that are correct: the two
//! files that a mixture starts from.
//!
//! ```text
//! cargo run --example make_pairs --features teacher -- --problems problems.jsonl \
//!     --long-url http://localhost:8000/v1 --short-url http://localhost:8001/v1 --out pairs
//! cargo run --example train_mix -- --model STUDENT --lora-rank 8 \
//!     --long pairs/long.jsonl --short pairs/short.jsonl
//! ```
//!
//! Every response is stored as it comes; the same command goes on where a process ended.

use clap::Parser;
use mixdistill::teacher::{
    ChatConfig, LocalConfig, MakePairsConfig, PairsDirectory, PairsEvent, TeacherConfig, make_pairs,
};
use mixdistill::train::{Progress, StopFlag};
use mixdistill::{Error, Result, device};
use serde::de::{DeserializeOwned, IntoDeserializer, value};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status after Ctrl-C: stopped in order, as in the other programs.
const STOPPED: u8 = 75;

/// Makes pairs of long and short answers.
#[derive(Parser)]
struct Flags {
    /// Settings as TOML; the flags below take their place
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the settings as TOML and stop; of teachers that are not named, those of a server
    #[arg(long)]
    print_config: bool,
    /// Problems with known answers, as JSONL (GSM8K, MATH and others as they are)
    #[arg(long)]
    problems: Option<PathBuf>,
    /// Directory of responses and pairs; one that is begun goes on
    #[arg(long, default_value = "pairs")]
    out: PathBuf,
    /// Ask nobody, and make pairs of the responses that are there
    #[arg(long)]
    ask_nothing: bool,
    /// Problems that are taken, from the first on
    #[arg(long)]
    limit: Option<usize>,
    /// Benchmarks whose problems must not be among them, as JSONL
    #[arg(long, num_args = 1..)]
    benchmarks: Option<Vec<PathBuf>>,
    /// Answers that each teacher is asked for to a problem, at most
    #[arg(long)]
    samples: Option<usize>,
    /// Which correct answer is kept: first, shortest or longest
    #[arg(long)]
    pick: Option<String>,
    /// Keep problems that both teachers answered correctly, or either
    #[arg(long)]
    keep: Option<String>,
    /// Ask the problem alone, without the instruction to reason and to box the answer
    #[arg(long)]
    no_instruction: bool,
    /// Seed of the first answer's draws
    #[arg(long)]
    seed: Option<u64>,
    /// Server of the long teacher, up to /chat/completions
    #[arg(long)]
    long_url: Option<String>,
    /// Its model; without it the one that the server has
    #[arg(long)]
    long_model: Option<String>,
    /// Folder of the long teacher, to run it here (with the feature hub also owner/name)
    #[arg(long, conflicts_with_all = ["long_url", "long_model"])]
    long_folder: Option<String>,
    /// Length limit of the long teacher's answers in tokens
    #[arg(long)]
    long_max_tokens: Option<usize>,
    /// Server of the short teacher, up to /chat/completions
    #[arg(long)]
    short_url: Option<String>,
    /// Its model; without it the one that the server has
    #[arg(long)]
    short_model: Option<String>,
    /// Folder of the short teacher, to run it here (with the feature hub also owner/name)
    #[arg(long, conflicts_with_all = ["short_url", "short_model"])]
    short_folder: Option<String>,
    /// Length limit of the short teacher's answers in tokens
    #[arg(long)]
    short_max_tokens: Option<usize>,
    /// Environment variable with the key of the long teacher's server; without it OPENAI_API_KEY for
    /// api.openai.com, and none for others
    #[arg(long)]
    long_key_variable: Option<String>,
    /// The same of the short teacher's
    #[arg(long)]
    short_key_variable: Option<String>,
    /// 0 takes the likeliest token; several answers to a problem need more
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw among the likeliest tokens whose probabilities sum to this
    #[arg(long)]
    top_p: Option<f64>,
    /// What becomes of reasoning in the rows: think (in <think> tags), plain or omit
    #[arg(long)]
    reasoning: Option<String>,
    /// Requests to a server at the same time
    #[arg(long)]
    concurrency: Option<usize>,
    /// Requests that a server gets in a minute, at most
    #[arg(long)]
    requests_per_minute: Option<f64>,
    /// Seconds to wait for an answer of a server
    #[arg(long)]
    timeout: Option<u64>,
    /// Tries after the first
    #[arg(long)]
    retries: Option<usize>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<ExitCode> {
    let mut config = settings(flags)?;
    if flags.print_config {
        for teacher in [&mut config.long, &mut config.short] {
            if teacher.local.is_none() {
                teacher.server.get_or_insert_default();
            }
        }
        let text = toml::to_string(&config).map_err(|e| Error::Config {
            key: "config".into(),
            what: e.to_string(),
            hint: "This is a defect; please report it".into(),
        })?;
        let _ = write!(std::io::stdout(), "{text}");
        return Ok(ExitCode::SUCCESS);
    }
    config.validate()?;
    let stop = StopFlag::default();
    let asked = stop.clone();
    // The first Ctrl-C waits for the answers on their way, which cost money; the second does not.
    let _ = ctrlc::set_handler(move || {
        if asked.request() {
            std::process::exit(130);
        }
        let _ = writeln!(
            std::io::stderr(),
            "\nstopping: answers on their way are waited for; again ends it at once"
        );
    });
    let out = PairsDirectory::open(&flags.out)?;
    // One bar at a time, of whatever is being done.
    let mut bar: Option<(&str, Progress)> = None;
    let mut show = |name: &'static str, done: u64, of: u64, message: String| {
        if bar.as_ref().is_none_or(|(shown, _)| *shown != name) {
            // What an earlier run did says nothing of the time that is left.
            let before = if name == "ask" { done } else { 0 };
            bar = Some((name, Progress::resumed(name, of, before)));
        }
        if let Some((_, bar)) = &mut bar {
            bar.update_of(done, of, || message);
        }
    };
    let report = make_pairs(&config, &out, !flags.ask_nothing, &stop, &mut |event| match event {
        PairsEvent::Notice(text) => {
            let _ = writeln!(std::io::stderr(), "\r{text}");
        }
        PairsEvent::Reading(done, of) => show("read", done, of, "bytes".into()),
        PairsEvent::Loading(done, of) => show("load", done as u64, of as u64, String::new()),
        PairsEvent::Looking(done, of) => show("look", done as u64, of as u64, String::new()),
        PairsEvent::Writing(done, of) => show("write", done as u64, of as u64, String::new()),
        PairsEvent::Asking(progress) => {
            show("ask", progress.done as u64, progress.of as u64, progress.message());
        }
    })?;
    drop(bar);
    let Some(report) = report else {
        let _ = writeln!(
            std::io::stderr(),
            "stopped: every response is in {}; the same command goes on from there, and \
             --ask-nothing makes pairs of what is there",
            flags.out.display()
        );
        return Ok(ExitCode::from(STOPPED));
    };
    let mut said = report.to_markdown();
    for teacher in [&report.long, &report.short] {
        if let Some(reason) = &teacher.reason {
            said.push_str(&format!("\n{} did not answer all: {reason}\n", teacher.model));
        }
    }
    let kept = report.rows != [0, 0];
    let folder = flags.out.display();
    said.push_str(&if kept {
        format!(
            "\n{} pairs are in {folder}. Train on them with\n\n  cargo run --example train_mix -- \
             --model STUDENT --lora-rank 8 --long {folder}/long.jsonl --short \
             {folder}/short.jsonl\n",
            report.pairs
        )
    } else {
        format!("\nno answer is kept; every response is in {folder}/responses.jsonl\n")
    });
    let _ = write!(std::io::stdout(), "{said}");
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The settings of the file, with those of the flags in their place.
fn settings(flags: &Flags) -> Result<MakePairsConfig> {
    let mut config = match &flags.config {
        Some(path) => MakePairsConfig::read(path)?,
        None => MakePairsConfig::default(),
    };
    set(&mut config.problems, &flags.problems);
    set(&mut config.benchmarks, &flags.benchmarks);
    set(&mut config.samples, &flags.samples);
    set(&mut config.seed, &flags.seed);
    set(&mut config.pick, &named("--pick", &flags.pick)?);
    set(&mut config.keep, &named("--keep", &flags.keep)?);
    config.limit = flags.limit.or(config.limit);
    config.instruct &= !flags.no_instruction;
    let named = [&flags.long_url, &flags.long_model, &flags.long_folder, &flags.long_key_variable];
    teacher(&mut config.long, flags, named, flags.long_max_tokens)?;
    let named =
        [&flags.short_url, &flags.short_model, &flags.short_folder, &flags.short_key_variable];
    teacher(&mut config.short, flags, named, flags.short_max_tokens)?;
    Ok(config)
}

fn teacher(
    config: &mut TeacherConfig,
    flags: &Flags,
    [url, model, folder, key_variable]: [&Option<String>; 4],
    max_tokens: Option<usize>,
) -> Result<()> {
    set(&mut config.concurrency, &flags.concurrency);
    set(&mut config.reasoning, &named("--reasoning", &flags.reasoning)?);
    if let Some(folder) = folder {
        config.server = None;
        config.local.get_or_insert_with(LocalConfig::default).model.clone_from(folder);
    }
    if let Some(url) = url {
        config.local = None;
        config.server.get_or_insert_with(ChatConfig::default).url.clone_from(url);
    }
    if let Some(server) = &mut config.server {
        set(&mut server.model, model);
        set(&mut server.key_variable, key_variable);
        set(&mut server.temperature, &flags.temperature);
        set(&mut server.top_p, &flags.top_p);
        set(&mut server.max_tokens, &max_tokens);
        set(&mut server.requests_per_minute, &flags.requests_per_minute);
        set(&mut server.timeout, &flags.timeout);
        set(&mut server.retries, &flags.retries);
    }
    if let Some(local) = &mut config.local {
        set(&mut local.temperature, &flags.temperature);
        set(&mut local.top_p, &flags.top_p);
        set(&mut local.max_tokens, &max_tokens);
    }
    Ok(())
}

fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        setting.clone_from(value);
    }
}

/// One of the names that a setting knows.
fn named<T: DeserializeOwned>(key: &str, name: &Option<String>) -> Result<Option<T>> {
    let Some(name) = name else { return Ok(None) };
    let value = T::deserialize(name.as_str().into_deserializer());
    value.map(Some).map_err(|error: value::Error| Error::Config {
        key: key.to_owned(),
        what: error.to_string(),
        hint: "Choose one of these".into(),
    })
}
