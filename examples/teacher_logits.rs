//! Writes what a teacher finds likely at each trained token, for training on its logits.
//!
//! ```text
//! cargo run --example train_mix -- --long L.jsonl --short S.jsonl --model STUDENT --print-config > run.toml
//! cargo run --example teacher_logits -- --config run.toml --teacher TEACHER --out logits
//! cargo run --example train_mix -- --config run.toml --teacher logits
//! ```
//!
//! A process that is stopped goes on where it ended when it is called again.

use clap::Parser;
use mixdistill::data::{Batch, Row, TopTokens};
use mixdistill::recipe::{Prepared, RunConfig, load_teacher};
use mixdistill::train::{Progress, TeacherHeader, TeacherLogitsWriter};
use mixdistill::{Result, device};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a teacher's likeliest tokens for the rows of a run.
#[derive(Parser)]
struct Flags {
    /// Settings of the run as TOML (`train_mix --print-config`); without it the toy run's
    #[arg(long)]
    config: Option<PathBuf>,
    /// The teacher: a model folder with the student's tokens
    #[arg(long)]
    teacher: String,
    /// Tokens kept for each trained token
    #[arg(long, default_value_t = 64)]
    top_k: usize,
    /// What logits are divided by; training must use the same
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
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

fn main() -> ExitCode {
    match work(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(flags: &Flags) -> Result<()> {
    let mut config = match &flags.config {
        Some(path) => RunConfig::read(path)?,
        None => RunConfig::default(),
    };
    // What the run says of its own teacher does not matter here.
    (config.teacher, config.train.objective.distillation) = (None, None);
    let prepared = Prepared::new(&config)?;
    let device = device::by_name(flags.backend.as_deref().unwrap_or(&config.backend))?;
    let model = load_teacher(&flags.teacher, &prepared, &device)?;
    let vocabulary = model.config().vocab_size;
    let fingerprint = model.fingerprint()?;
    let header = TeacherHeader::new(
        &flags.teacher,
        fingerprint,
        vocabulary,
        flags.top_k,
        flags.temperature,
    )?;
    let mut writer = TeacherLogitsWriter::open(&flags.out, header)?;
    let rows = if flags.all { prepared.all_answers() } else { prepared.used_rows(&config)? };
    let missing: Vec<Row> = rows.iter().filter(|row| !writer.holds(row)).cloned().collect();
    let before = rows.len() - missing.len();
    let mut progress = Progress::resumed("teach", rows.len() as u64, before as u64);
    let mut part: Vec<(Row, TopTokens)> = vec![];
    let (mut bytes, mut trained) = (0, 0);
    for (done, row) in missing.into_iter().enumerate() {
        /// A part of this size takes a while to compute and no time to write.
        const PART_BYTES: usize = 32 << 20;
        let batch = Batch::new([row.example()], 1);
        let top = model.top_tokens(&batch, flags.top_k, flags.temperature)?;
        bytes += 4 * (top.tokens.len() + top.log_probs.len());
        trained += batch.trained;
        part.push((row, top));
        if bytes >= PART_BYTES {
            writer.write(&part)?;
            part.clear();
            bytes = 0;
        }
        progress.update((before + done + 1) as u64, || format!("{trained} tokens"));
    }
    if !part.is_empty() {
        writer.write(&part)?;
    }
    progress.finish();
    let _ = writeln!(
        std::io::stdout(),
        "{} rows in {}, {before} of them from before; train on them with --teacher {}",
        rows.len(),
        flags.out.display(),
        flags.out.display()
    );
    Ok(())
}
