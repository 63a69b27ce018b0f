//! Times greedy generation; prints one line of JSON. The prompts are those of
//! benches/peers/generate.py.
//!
//! ```text
//! cargo run --example bench_generate -- --model SmolLM2-135M-Instruct --batch 16
//! ```

use clap::Parser;
use mixdistill::Result;
use mixdistill::context::{Context, StopFlag, Task};
use mixdistill::data::TextTokenizer;
use mixdistill::device::{self, peak_memory_mib};
use mixdistill::model::{DecoderLm, GenerateConfig, ModelFolder, StopConditions, model_folder};
use mixdistill::terminal::Terminal;
use serde_json::json;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

/// Times greedy generation; prints one line of JSON.
#[derive(Parser)]
struct Flags {
    /// Folder of the model (with the feature hub also owner/name)
    #[arg(long)]
    model: String,
    /// Prompts that are answered together
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// New tokens for each prompt; nothing ends an answer earlier
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Threads of the CPU backends; as many as cores without it
    #[arg(long)]
    threads: Option<usize>,
    /// cuda, metal, rocm, vulkan, wgpu, flex or ndarray; auto is the first that is compiled in
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
    let path = model_folder(&flags.model, &context)?;
    let folder = ModelFolder::open(&path)?;
    let model = folder.load(&device)?;
    let tokenizer = TextTokenizer::from_folder(&path, None)?;
    let vocabulary = model.config().vocab_size;
    let token =
        |row: usize, place: usize| ((row * 7919 + place * 104_729 + 13) % vocabulary) as u32;
    let prompts: Vec<Vec<u32>> =
        (0..flags.batch).map(|i| (0..flags.prompt).map(|j| token(i, j)).collect()).collect();
    generate(&model, &tokenizer, &prompts, 4, &context)?;
    let start = Instant::now();
    let answers = generate(&model, &tokenizer, &prompts, flags.new, &context)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.iter().map(Vec::len).sum();
    let first = answers.first().map_or(&[][..], |answer| &answer[..answer.len().min(8)]);
    Ok(json!({
        "who": format!("mixdistill {} {}", env!("CARGO_PKG_VERSION"), flags.backend),
        "seconds": (seconds * 1e4).round() / 1e4,
        "tokens_per_s": (tokens as f64 / seconds * 100.0).round() / 100.0,
        "peak_rss_mib": peak_memory_mib().map(f64::round),
        "first": first,
    }))
}

/// The answers' tokens.
fn generate(
    model: &DecoderLm,
    tokenizer: &TextTokenizer,
    prompts: &[Vec<u32>],
    new: usize,
    context: &Context<'_>,
) -> Result<Vec<Vec<u32>>> {
    let config = GenerateConfig {
        max_new_tokens: new,
        batch_size: prompts.len(),
        temperature: 0.0,
        ..GenerateConfig::default()
    };
    let stop_conditions = StopConditions { tokens: &[], tokenizer };
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
