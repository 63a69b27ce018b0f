//! Times one optimizer step of a decoder of any shape; prints one line of JSON.
//!
//! ```text
//! cargo run --example bench_step -- --shape 256 6 8 4 704 4096 256 8
//! cargo run --example bench_step -- --shape 576 30 9 3 1536 49152 256 2 --trained-share 0.5
//! ```
//!
//! The model is the library's own, and so is the step: [`Learner::train_step`], with loss,
//! gradients, their norm, clipping and AdamW. Tokens are random. `peak_device_mib` is what the
//! device's memory pool has reserved at the end, free room in it included.

use burn::module::Module;
use clap::Parser;
use mixdistill::context::{Event, Observer};
use mixdistill::data::Row;
use mixdistill::device::{self, peak_memory_mib};
use mixdistill::model::{DecoderConfig, Precision};
use mixdistill::terminal::Terminal;
use mixdistill::train::{Learner, TrainConfig};
use mixdistill::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// Steps before those that are timed: kernels are compiled and tuned in them.
const WARM_UP: usize = 2;

/// Times one optimizer step of a decoder of any shape; prints one line of JSON.
#[derive(Parser)]
struct Flags {
    /// Width, layers, heads, key-value heads, width of the SwiGLU, vocabulary, tokens in a row, rows
    #[arg(
        long,
        num_args = 8,
        value_names = ["D", "LAYERS", "HEADS", "KV_HEADS", "FF", "VOCAB", "SEQ", "BATCH"],
        default_values_t = [256, 6, 8, 4, 704, 4096, 256, 8]
    )]
    shape: Vec<usize>,
    /// Steps that are timed, after two that are not
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Threads of the CPU backends; as many as cores without it
    #[arg(long)]
    threads: Option<usize>,
    /// cuda, metal, rocm, vulkan, wgpu, flex or ndarray; auto is the first that is compiled in
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Only the last share of each row's positions is trained, as where prompts are masked
    #[arg(long, default_value_t = 1.0)]
    trained_share: f64,
    /// f32, or bf16 for the activations
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    precision: String,
    /// Compute the activations anew in the backward pass
    #[arg(long)]
    recompute: bool,
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
    let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
    let [hidden_size, layers, heads, kv_heads, inner, vocab_size, seq, rows] = flags.shape[..]
    else {
        return refuse("shape", format!("{} numbers", flags.shape.len()), "Give eight");
    };
    if seq == 0 || rows == 0 || flags.steps == 0 {
        return refuse("shape", "no tokens, rows or steps".into(), "Give at least one of each");
    }
    if !(0.0..=1.0).contains(&flags.trained_share) {
        let what = format!("it is {}", flags.trained_share);
        return refuse("trained_share", what, "Give a share, 0 to 1");
    }
    device::use_threads(flags.threads)?;
    let config = DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        max_position_embeddings: seq + 1,
        tie_word_embeddings: false,
        ..DecoderConfig::default()
    };
    let device = device::by_name(&flags.backend)?.autodiff();
    let precision = if flags.precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let model = config.init(0, &device)?.with_precision(precision)?;
    let params = model.num_params();
    let train = TrainConfig {
        batch_size: rows,
        accumulate: 1,
        learning_rate: 1e-3,
        activation_checkpointing: flags.recompute,
        ..TrainConfig::default()
    };
    let mut learner = Learner::new(model, train)?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let trained = ((seq as f64 * flags.trained_share).round() as usize).max(1);
    let mut seconds = vec![];
    let mut loss = f64::NAN;
    let total = WARM_UP + flags.steps;
    let mut terminal = Terminal::default();
    terminal.observe(&Event::Start { step: 0, total_steps: total })?;
    for step in 0..total {
        let rows: Vec<Row> = (0..rows as u64)
            .map(|number| Row {
                // One token more than positions: the last is a target only.
                tokens: (0..=seq).map(|_| random.random_range(0..vocab_size as u32)).collect(),
                prompt: seq + 1 - trained,
                number,
                ..Row::default()
            })
            .collect();
        let start = Instant::now();
        let report = learner.train_step(&rows, total)?;
        loss = report.loss;
        device.sync().map_err(|error| Error::Training {
            what: format!("the device failed: {error}"),
            hint: "Try a smaller shape".into(),
        })?;
        if step >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
        terminal.observe(&Event::Step(&report))?;
    }
    drop(terminal);
    seconds.sort_by(f64::total_cmp);
    let middle = seconds.len() / 2;
    let median = match seconds.len() % 2 {
        0 => (seconds[middle - 1] + seconds[middle]) / 2.0,
        _ => seconds[middle],
    };
    let round = |x: f64, places: i32| (x * 10f64.powi(places)).round() / 10f64.powi(places);
    Ok(json!({
        "who": format!("mixdistill {} {}", env!("CARGO_PKG_VERSION"), flags.backend),
        "params": params,
        "step_s": round(median, 4),
        "tokens_per_s": round((rows * seq) as f64 / median, 1),
        "loss": round(loss, 4),
        "peak_rss_mib": peak_memory_mib().map(f64::round),
        "peak_device_mib": device.memory_pool_usage().map(|usage| usage.bytes_reserved >> 20),
    }))
}
