//! Times greedy generation and prints one line of JSON. The prompts are those of benches/peers/generate.py.
//!
//! ```text
//! cargo run --example bench_generate -- --model SmolLM2-135M-Instruct --batch 16
//! cargo run --example bench_generate -- --model SmolLM2-135M-Instruct --bench gsm8k.jsonl --limit 64 --new 512
//! ```
//!
//! With `--bench`, the prompts are benchmark problems in the model's chat template, and answers end at an end
//! token, as in an evaluation without the grading.

use clap::Parser;
use mixdistill::Result;
use mixdistill::context::{Context, StopFlag, Task};
use mixdistill::device::{self, peak_memory_mib};
use mixdistill::eval::{Benchmark, BenchmarkProblem};
use mixdistill::model::{
    BaseType, BaseWeights, DecoderLm, GenerateConfig, LoadOptions, StopConditions, TextModel,
    TextModelFiles,
};
use mixdistill::terminal::Terminal;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Times greedy generation and prints one line of JSON
#[derive(Parser)]
struct Flags {
    /// Model folder, or owner/name in a build with the feature hub
    #[arg(long)]
    model: String,
    /// Prompts per batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens per prompt
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// New tokens per prompt; answers end earlier only with --bench
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Benchmark file with problems to use instead of synthetic prompts
    #[arg(long)]
    bench: Option<PathBuf>,
    /// Use only the first N problems of the benchmark
    #[arg(long, default_value_t = 64)]
    limit: usize,
    /// How the weights are stored
    #[arg(long, default_value = "f32", value_parser = BaseType::NAMES)]
    base_type: String,
    /// How the embedding and the head are stored; by default f32 if --base-type is f32, otherwise bf16
    #[arg(long, value_parser = ["f32", "bf16", "int8"])]
    embedding_type: Option<String>,
    /// Threads of the CPU backends; one per core by default
    #[arg(long)]
    threads: Option<usize>,
    /// cuda, metal, rocm, vulkan, wgpu, flex, or ndarray; auto is the first one that is compiled in
    #[arg(long, default_value = "auto")]
    backend: String,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
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

fn run(flags: &Flags) -> Result<serde_json::Value> {
    device::use_threads(flags.threads)?;
    let device = device::by_name(&flags.backend)?;
    let context = Context::new(Terminal::default(), &StopFlag::default());
    let base = BaseWeights {
        base_type: BaseType::by_name(&flags.base_type).unwrap_or_default(),
        embeddings: flags.embedding_type.as_deref().and_then(BaseType::by_name),
        double_quantization: false,
    };
    let options = LoadOptions { base, ..LoadOptions::default() };
    let files = TextModelFiles::open(&flags.model, &options, &context)?;
    let TextModel { model, files } = files.load(&device, &context)?;
    let text = files.text_interface();
    let vocabulary = model.config().vocab_size;
    let token =
        |row: usize, place: usize| ((row * 7919 + place * 104_729 + 13) % vocabulary) as u32;
    let (prompts, ends): (Vec<Vec<u32>>, &[u32]) = match &flags.bench {
        None => {
            let row = |i| (0..flags.prompt).map(|j| token(i, j)).collect();
            ((0..flags.batch).map(row).collect(), &[])
        }
        Some(path) => {
            let benchmark = Benchmark::read(path)?;
            let problems = benchmark.problems.iter().take(flags.limit);
            let prompt = |p: &BenchmarkProblem| {
                text.template.prompt(text.tokenizer, p.problem.as_str().into())
            };
            (problems.map(prompt).collect::<Result<_>>()?, text.end_tokens)
        }
    };
    let run = |prompts: &[Vec<u32>], new| {
        let stop = StopConditions { tokens: ends, tokenizer: text.tokenizer };
        generate(&model, stop, prompts, flags.batch, new, &context)
    };
    run(&prompts[..prompts.len().min(flags.batch)], 4)?;
    let start = Instant::now();
    let answers = run(&prompts, flags.new)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.iter().map(Vec::len).sum();
    let first = answers.first().map_or(&[][..], |answer| &answer[..answer.len().min(8)]);
    Ok(json!({
        "who": format!("mixdistill {} {}", env!("CARGO_PKG_VERSION"), flags.backend),
        "seconds": (seconds * 1e4).round() / 1e4,
        "tokens_per_s": (tokens as f64 / seconds * 100.0).round() / 100.0,
        "peak_rss_mib": peak_memory_mib().map(f64::round),
        "answers": answers.len(),
        "longest": answers.iter().map(Vec::len).max(),
        "first": first,
    }))
}

/// Generates answers and returns their tokens.
fn generate(
    model: &DecoderLm,
    stop_conditions: StopConditions<'_>,
    prompts: &[Vec<u32>],
    batch_size: usize,
    new: usize,
    context: &Context<'_>,
) -> Result<Vec<Vec<u32>>> {
    let config = GenerateConfig {
        max_new_tokens: new,
        batch_size,
        temperature: 0.0,
        ..GenerateConfig::default()
    };
    let mut progress = context.task(Task::Answer, prompts.len() as u64);
    let answers = model.generate(prompts, stop_conditions, &config, &mut |token| {
        progress.add_tokens(1);
        match progress.update(token.finished as u64) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    Ok(answers.into_iter().map(|answer| answer.tokens).collect())
}
