//! Writes what a teacher finds likely at each trained token, for training on its logits.
//!
//! ```text
//! cargo run --example train_mix -- --long L.jsonl --short S.jsonl --model STUDENT --print-config > run.toml
//! cargo run --example teacher_logits -- --config run.toml --teacher TEACHER --out logits
//! cargo run --example train_mix -- --config run.toml --teacher logits
//! ```
//!
//! A process that is stopped (Ctrl-C) writes what it has, and goes on from there when it is called
//! again; one that is killed loses half a minute.

use clap::Parser;
use mixdistill::data::{Batch, Row, TopTokens};
use mixdistill::recipe::{Prepared, RunConfig, load_teacher};
use mixdistill::train::{Progress, StopFlag, TeacherHeader, TeacherLogitsWriter};
use mixdistill::{Error, Result, device};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Writes a teacher's likeliest tokens for the rows of a run.
#[derive(Parser)]
struct Flags {
    /// Settings of the run as TOML (`train_mix --print-config`); without it the toy run's
    #[arg(long)]
    config: Option<PathBuf>,
    /// The teacher: a model folder with the student's tokens
    #[arg(long)]
    teacher: String,
    /// Tokens kept for each trained token; without it the settings' teacher.top_k, or 64
    #[arg(long)]
    top_k: Option<usize>,
    /// What logits are divided by; without it the settings' temperature of distillation, or 1
    #[arg(long)]
    temperature: Option<f64>,
    /// All answers, and not only those that the mixture takes
    #[arg(long)]
    all: bool,
    /// Folder to write, or to go on with
    #[arg(long)]
    out: PathBuf,
    /// auto, or one of cuda, metal, rocm, vulkan, wgpu, flex, ndarray
    #[arg(long)]
    backend: Option<String>,
}

/// The exit status after a stop that was asked for.
const STOPPED: u8 = 75;
/// A part is written when it has this size, or after this time.
const PART_BYTES: usize = 32 << 20;
const PART_TIME: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let flags = Flags::parse();
    match device::use_threads(None).and_then(|()| work(&flags)) {
        Ok(status) => status,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<ExitCode> {
    let mut config = match &flags.config {
        Some(path) => RunConfig::read(path)?,
        None => RunConfig::default(),
    };
    let part = config.train.objective.distillation;
    let temperature = flags.temperature.or(part.map(|part| part.temperature)).unwrap_or(1.0);
    let usual = config.teacher.as_ref().map_or(64, |teacher| teacher.top_k);
    let top_k = flags.top_k.unwrap_or(usual);
    // Which teacher the settings name does not matter here.
    (config.teacher, config.train.objective.distillation) = (None, None);
    let prepared = Prepared::new(&config)?;
    let vocabulary = prepared.tokenizer.vocabulary_size();
    // Wrong numbers show before the teacher is read.
    TeacherHeader::new(&flags.teacher, "", vocabulary, top_k, temperature)?;
    let stop = stop_on_interrupt()?;
    let device = device::by_name(flags.backend.as_deref().unwrap_or(&config.backend))?;
    let model = load_teacher(&flags.teacher, &prepared, &device)?;
    let fingerprint = model.fingerprint()?;
    let header = TeacherHeader::new(&flags.teacher, fingerprint, vocabulary, top_k, temperature)?;
    let mut writer = TeacherLogitsWriter::open(&flags.out, header)?;
    let rows = if flags.all { prepared.all_answers() } else { prepared.used_rows(&config)? };
    let missing: Vec<&Row> = rows.iter().filter(|row| !writer.holds(row)).collect();
    let before = rows.len() - missing.len();
    let mut progress = Progress::resumed("teach", rows.len() as u64, before as u64);
    let mut part: Vec<(Row, TopTokens)> = vec![];
    let (mut bytes, mut trained, mut done) = (0, 0, before);
    let mut begun = Instant::now();
    for row in missing {
        if stop.is_requested() {
            break;
        }
        let batch = Batch::new([row.example()], 1);
        let top = model.top_tokens(&batch, top_k, temperature, vocabulary)?;
        bytes += 4 * (top.tokens.len() + top.log_probs.len());
        trained += batch.trained;
        done += 1;
        part.push((row.clone(), top));
        if bytes >= PART_BYTES || begun.elapsed() >= PART_TIME {
            writer.write(&part)?;
            part.clear();
            (bytes, begun) = (0, Instant::now());
        }
        progress.update(done as u64, || format!("{trained} tokens"));
    }
    if !part.is_empty() {
        writer.write(&part)?;
    }
    progress.finish();
    let out = flags.out.display();
    let (said, status) = if done < rows.len() {
        let said = format!("stopped: {done} of {} rows are in {out}; call it again", rows.len());
        (said, ExitCode::from(STOPPED))
    } else {
        let said = format!(
            "{} rows in {out}, {before} of them from before; train on them with --teacher {out}",
            rows.len()
        );
        (said, ExitCode::SUCCESS)
    };
    let _ = writeln!(std::io::stdout(), "{said}");
    Ok(status)
}

/// The first Ctrl-C lets the row finish and the part be written; the second ends at once.
fn stop_on_interrupt() -> Result<StopFlag> {
    let stop = StopFlag::default();
    let flag = stop.clone();
    let installed = ctrlc::set_handler(move || {
        if flag.request() {
            std::process::exit(130);
        }
    });
    installed.map_err(|e| Error::Training {
        what: format!("the handler for Ctrl-C cannot be installed: {e}"),
        hint: "Run the program in a terminal of its own".into(),
    })?;
    Ok(stop)
}
