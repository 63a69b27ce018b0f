//! The program that `benches/gpu.sh` runs on a GPU: parity with flex, steps, and generation. Each call prints
//! one line of JSON.
//!
//! ```text
//! cargo run --example gpu --features cuda -- parity --backend cuda
//! cargo run --example gpu --features cuda -- step --backend cuda --shape 576 30 9 3 1536 49152 2048 8
//! cargo run --example gpu --features cuda -- generate --backend cuda --batch 16
//! cargo run --example gpu --features cuda -- generate --backend cuda --launches
//! ```

#[allow(dead_code, reason = "its `main` is another program's")]
#[path = "bench_step.rs"]
mod bench_step;
#[path = "parity.rs"]
mod parity;

use bench_step::launches;
use clap::{Args, Parser};
use mixdistill::data::{Batch, Row, TextTokenizer, arith};
use mixdistill::device;
use mixdistill::model::{Architecture, DecoderConfig, GenerateConfig, StepOptions, StopConditions};
use mixdistill::{Error, Result};
use parity::Distance;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

/// Measures a GPU and prints one line of JSON
#[derive(Parser)]
enum Command {
    /// Compare losses, gradients, twenty steps, and generated tokens with flex
    Parity(Parity),
    /// Time a training step
    Step(bench_step::Flags),
    /// Time greedy generation with random weights
    Generate(Generate),
}

#[derive(Args)]
struct Parity {
    /// cuda, metal, rocm, vulkan, or wgpu
    #[arg(long)]
    backend: String,
    /// Largest relative difference allowed for a loss; gradients may differ by 10 times, the losses of twenty
    /// steps by 100 times as much. The default fits matrix products in f32; in TF32 they differ by 5e-4
    #[arg(long, default_value_t = 2e-6)]
    tolerance: f64,
}

#[derive(Args)]
struct Generate {
    /// cuda, metal, rocm, vulkan, or wgpu
    #[arg(long)]
    backend: String,
    /// Width, layers, heads, key-value heads, feed-forward width, and vocabulary
    #[arg(long, num_args = 6, default_values_t = [576, 30, 9, 3, 1536, 49152])]
    shape: Vec<usize>,
    /// Prompts per batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens per prompt
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// New tokens per prompt
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// 0 takes the most probable token; higher values sample
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Count the kernels that the last new token launches, without running them
    #[arg(long)]
    launches: bool,
}

fn main() -> ExitCode {
    let line = match Command::parse() {
        Command::Parity(flags) => compare(&flags),
        Command::Step(flags) => bench_step::run(&flags),
        Command::Generate(flags) => generate(&flags),
    };
    match line {
        Ok(line) => {
            println!("{line}");
            match line["passed"] == Value::Bool(false) {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all comparisons, even if one of them fails.
fn compare(flags: &Parity) -> Result<Value> {
    let (flex, gpu) = (device::by_name("flex")?, device::by_name(&flags.backend)?);
    let config = DecoderConfig {
        architecture: Architecture::Qwen3,
        vocab_size: 67,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: Some(16),
        initializer_range: 0.1,
        ..DecoderConfig::default()
    };
    let mut found = vec![];
    let mut add = |what: &str, off: f64, limit: f64, more: String| {
        found.push(json!({
            "what": what, "off": off, "limit": limit, "passed": off <= limit, "where": more,
        }));
    };
    let rows = parity::rows(0, 5, |number| 12 + number as usize * 7 % 30);
    // Widths that are not aligned: some devices pad their rows.
    let odd =
        DecoderConfig { hidden_size: 72, head_dim: Some(12), vocab_size: 101, ..config.clone() };
    let packed = || Batch::packed(rows.iter().map(Row::example), 8);
    for (what, config, batch, lora) in [
        ("padded rows", &config, Batch::new(rows.iter().map(Row::example), 8), false),
        ("packed rows, adapters", &config, packed(), true),
        ("odd widths", &odd, packed(), false),
    ] {
        let step = |device| parity::step(config, device, &batch, &StepOptions::default(), lora);
        let distance = Distance::of(&step(&gpu)?, &step(&flex)?);
        add(&format!("{what}: loss"), distance.loss, flags.tolerance, String::new());
        let limit = 10.0 * flags.tolerance;
        add(&format!("{what}: gradients"), distance.gradient, limit, distance.parameter);
        // A repeated step must produce identical bits.
        let again = u8::from(step(&gpu)? != step(&gpu)?);
        add(&format!("{what}: repeated"), f64::from(again), 0.0, String::new());
    }
    let off = parity::farthest(&parity::course(&config, &gpu)?, &parity::course(&config, &flex)?);
    add("twenty steps: losses", off, 100.0 * flags.tolerance, String::new());
    let (tokens, expected) = (parity::tokens(&config, &gpu)?, parity::tokens(&config, &flex)?);
    let pairs = tokens.iter().flatten().zip(expected.iter().flatten());
    let others = pairs.filter(|(a, b)| a != b).count();
    add("generated tokens: different", others as f64, 0.0, String::new());
    let passed = found.iter().all(|one| one["passed"] == Value::Bool(true));
    Ok(json!({ "backend": flags.backend, "passed": passed, "parity": found }))
}

fn generate(flags: &Generate) -> Result<Value> {
    let [hidden_size, layers, heads, kv_heads, inner, vocab_size] = flags.shape[..] else {
        return Err(Error::config("shape", format!("{} numbers", flags.shape.len()), "Give six"));
    };
    let config = DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        max_position_embeddings: flags.prompt + flags.new + 1,
        ..DecoderConfig::default()
    };
    let gpu = device::by_name(&flags.backend)?;
    let model = config.init(0, &gpu)?;
    let words = arith::vocabulary();
    let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str))?;
    let token =
        |row: usize, place: usize| ((row * 7919 + place * 104_729 + 13) % vocab_size) as u32;
    let prompts: Vec<Vec<u32>> = (0..flags.batch)
        .map(|row| (0..flags.prompt).map(|place| token(row, place)).collect())
        .collect();
    let run = |new| {
        let settings = GenerateConfig {
            max_new_tokens: new,
            batch_size: flags.batch,
            temperature: flags.temperature,
            ..Default::default()
        };
        let stop = StopConditions { tokens: &[], tokenizer: &tokenizer };
        model.generate(&prompts, stop, &settings, &mut |_| ControlFlow::Continue(()))
    };
    if flags.launches {
        let count = |new| launches::count(|| run(new).map(drop));
        return Ok(difference(&count(flags.new)?, &count(flags.new.saturating_sub(1).max(1))?));
    }
    run(flags.new.min(8))?;
    let start = Instant::now();
    let answers = run(flags.new)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    Ok(json!({
        "who": format!("mixdistill {} {}", env!("CARGO_PKG_VERSION"), flags.backend),
        "batch": flags.batch,
        "seconds": (seconds * 1e4).round() / 1e4,
        "tokens_per_s": (tokens as f64 / seconds * 100.0).round() / 100.0,
        "peak_device_mib": gpu.memory_pool_usage().map(|usage| usage.bytes_reserved >> 20),
    }))
}

/// Returns the launches of the longer run minus those of the shorter run.
fn difference(more: &Value, fewer: &Value) -> Value {
    let count = |of: &Value| of.as_u64().unwrap_or(0);
    let added = |key: &str| count(&more[key]).saturating_sub(count(&fewer[key]));
    let kernels = more["kernels"].as_object().into_iter().flatten();
    let kernels = kernels.filter_map(|(name, of)| {
        let added = count(&of[0]).saturating_sub(count(&fewer["kernels"][name][0]));
        (added > 0).then(|| (name.clone(), Value::from(added)))
    });
    let kernels: serde_json::Map<String, Value> = kernels.collect();
    json!({ "launches": added("launches"), "mib": added("mib"), "kernels": kernels })
}
