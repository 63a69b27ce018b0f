//! Times the data path from records to packed batches and prints one line of JSON.
//!
//! ```text
//! cargo run --example bench_data -- --long L.jsonl --short S.jsonl --model SmolLM2-135M-Instruct
//! cargo run --example bench_data -- --synthetic 1000000
//! ```
//!
//! With files, it encodes every answer in the model's chat format, chooses one answer per problem (20% long),
//! and packs the rows into batches of at most 2,048 tokens. Reading the files is timed separately. With
//! `--synthetic`, it measures only the mixing, its memory, and reading one epoch in order, for any number of
//! problems.

use clap::Parser;
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::{
    BatchLayout, ChatFormat, ChatTemplate, ColumnMap, CotRecord, Encoded, Join, LengthLimit,
    MixDistillation, MixedRows, MixtureConfig, MixtureOptions, Packing, Pairs, RowStream, Source,
    TextTokenizer,
};
use mixdistill::device::{peak_memory_mib, use_threads};
use mixdistill::terminal::Terminal;
use mixdistill::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Positions in a packed batch.
const LENGTH: usize = 2048;
/// Rows that are packed at a time.
const ROWS: usize = 1000;

/// Times the data path from records to packed batches and prints one line of JSON
#[derive(Parser)]
struct Flags {
    /// JSONL file with long answers
    #[arg(long, requires_all = ["short", "model"], required_unless_present = "synthetic")]
    long: Option<PathBuf>,
    /// JSONL file with short answers
    #[arg(long)]
    short: Option<PathBuf>,
    /// Folder with a tokenizer and a chat template
    #[arg(long)]
    model: Option<PathBuf>,
    /// Mix this number of synthetic problems instead
    #[arg(long, conflicts_with = "long")]
    synthetic: Option<usize>,
    /// Threads; one per core by default
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Err(error) = use_threads(flags.threads) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let result = match (&flags.long, &flags.short, &flags.model, flags.synthetic) {
        (_, _, _, Some(problems)) => synthetic(problems),
        (Some(long), Some(short), Some(model), _) => files(long, short, model),
        _ => unreachable!("clap requires all three flags"),
    };
    match result {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn files(long: &Path, short: &Path, model: &Path) -> Result<Value> {
    let tokenizer = TextTokenizer::from_folder(model, None)?;
    let no_template = || Error::config("model", "it has no chat template", "Use another folder");
    let template = ChatTemplate::from_folder(model)?.ok_or_else(no_template)?;
    let format = ChatFormat::new(template, &tokenizer, None)?;
    let reading = Instant::now();
    let long = Source::read("long", long, &ColumnMap::default(), 0.0)?;
    let short = Source::read("short", short, &ColumnMap::default(), 0.0)?;
    let read_s = reading.elapsed().as_secs_f64();

    let start = Instant::now();
    let (pairs, mut ledger) = Pairs::join(vec![long, short], Join::Inner)?;
    let answers = 2 * pairs.len();
    let limit = LengthLimit::drop_beyond(LENGTH);
    let context = Context::new(Terminal::default(), &StopFlag::default());
    let encoded = Arc::new(Encoded::encode(&pairs, &tokenizer, &format, limit, &context)?);
    let encode_s = start.elapsed().as_secs_f64();
    let pairs = Arc::new(encoded.fitting(&pairs, &mut ledger));
    let lengths = Some(Arc::new(encoded.lengths()));
    let options = MixtureOptions { lengths, ..MixtureOptions::default() };
    let mixture = MixDistillation::new(pairs, MixtureConfig::long_short(0.2), options)?;
    let (batches, tokens) = pack(&mut MixedRows::new(mixture, encoded))?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "who": format!("mixdistill {}", env!("CARGO_PKG_VERSION")),
        "rows": answers,
        "seconds": round(seconds, 3),
        "rows_per_s": round(answers as f64 / seconds, 1),
        "read_s": round(read_s, 3),
        "encode_s": round(encode_s, 3),
        "packed_rows": batches,
        "tokens": tokens,
        "peak_rss_mib": peak_memory_mib().map(f64::round),
    }))
}

/// Packs an epoch. Returns the number of batches and of tokens in them.
fn pack(rows: &mut MixedRows) -> Result<(usize, usize)> {
    let layout = BatchLayout {
        rows_per_batch: 1,
        tokens_per_batch: Some(LENGTH),
        packing: Packing::On,
        multiple: 1,
        bucket: false,
    };
    let all = rows.rows_per_epoch() as u64;
    let (mut batches, mut tokens) = (0, 0);
    for first in (0..all).step_by(ROWS) {
        let packed = layout.batches(&rows.rows(first..(first + ROWS as u64).min(all))?);
        batches += packed.len();
        tokens += packed.iter().map(|batch| batch.tokens).sum::<usize>();
    }
    Ok((batches, tokens))
}

fn synthetic(problems: usize) -> Result<Value> {
    let before = peak_memory_mib();
    let source = |name: &str| {
        let record = |id: usize| CotRecord {
            system: None,
            earlier: vec![],
            id: None,
            problem: id.to_string(),
            solution: "0".into(),
            answer: None,
        };
        Source::new(name, (0..problems).map(record).collect())
    };
    let sources = vec![source("long"), source("short")];
    let records = peak_memory_mib();
    let start = Instant::now();
    let (pairs, _) = Pairs::join(sources, Join::Inner)?;
    let join_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (config, options) = (MixtureConfig::long_short(0.2), MixtureOptions::default());
    let mixture = MixDistillation::new(Arc::new(pairs), config, options)?;
    let report = mixture.report();
    let mix_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let order = mixture.order(0);
    let chosen = order.iter().map(|&problem| mixture.row(problem as usize).source_index());
    let long = chosen.filter(|source| *source == 0).count();
    let read_s = start.elapsed().as_secs_f64();
    let per_problem = |seconds: f64| round(seconds / problems as f64 * 1e9, 1);
    Ok(json!({
        "problems": problems,
        "long": long,
        "reported_long": report.sources[0].rows,
        "join_ns_per_problem": per_problem(join_s),
        "mix_ns_per_problem": per_problem(mix_s),
        "epoch_ns_per_problem": per_problem(read_s),
        "mixture_bytes_per_problem": round(mixture.index_bytes() as f64 / problems as f64, 2),
        "start_rss_mib": before.map(f64::round),
        "records_rss_mib": records.map(f64::round),
        "peak_rss_mib": peak_memory_mib().map(f64::round),
    }))
}

fn round(x: f64, places: i32) -> f64 {
    (x * 10f64.powi(places)).round() / 10f64.powi(places)
}
