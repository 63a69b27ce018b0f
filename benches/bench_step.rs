//! Times one optimizer step of a decoder of any shape and prints one line of JSON.
//!
//! ```text
//! cargo run --example bench_step -- --shape 256 6 8 4 704 4096 256 8
//! cargo run --example bench_step -- --shape 576 30 9 3 1536 49152 256 2 --trained-share 0.5
//! cargo run --example bench_step -- --model SmolLM2-135M-Instruct --lora-rank 8 --seq 600 --batch 4
//! cargo run --example bench_step -- --products
//! cargo run --example bench_step -- --mixer linear --shape 512 4 4 4 1408 4096 16384 1
//! cargo run --example bench_step --features wgpu -- --backend wgpu --launches
//! ```
//!
//! `--products` times only the matrix products of a step and prints their GFLOP/s, which shows how much of a
//! step is left for everything else on the machine.
//!
//! Model and step are the library's own: [`Learner::train_step`] with loss, gradients, gradient norm, clipping,
//! and AdamW. Tokens are random. `peak_device_mib` is the memory that the device's pool has reserved at the
//! end, including its free parts.
//!
//! `--launches` counts the kernels that a step launches on a GPU, without running them, so the counts do not
//! depend on the device's speed. With CubeCL patched by docs/upstream/launch-bytes.patch, it also counts the
//! bytes of the kernels' buffers. `--profile` runs the kernels of a step and prints the name of each with the
//! time that the device measured.

use burn::tensor::{Device, Distribution, Tensor};
use clap::Parser;
use mixdistill::context::{Context, Event, Observer};
use mixdistill::data::Row;
use mixdistill::device::{self, peak_memory_mib};
use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderConfig, LayerType, LoraConfig, ModelFolder,
    Precision, model_folder,
};
use mixdistill::ops::linear;
use mixdistill::terminal::Terminal;
use mixdistill::train::{Learner, TrainConfig};
use mixdistill::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// Times one optimizer step of a decoder of any shape and prints one line of JSON
#[derive(Parser)]
pub struct Flags {
    /// Width, layers, heads, key-value heads, feed-forward width, vocabulary, tokens per row, and rows
    #[arg(
        long,
        num_args = 8,
        value_names = ["D", "LAYERS", "HEADS", "KV_HEADS", "FF", "VOCAB", "SEQ", "BATCH"],
        default_values_t = [256, 6, 8, 4, 704, 4096, 256, 8]
    )]
    shape: Vec<usize>,
    /// Timed steps
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Untimed steps before the timed ones, in which kernels are compiled and tuned
    #[arg(long, default_value_t = 2)]
    warm_up: usize,
    /// Threads of the CPU backends; one per core by default
    #[arg(long)]
    threads: Option<usize>,
    /// cuda, metal, rocm, vulkan, wgpu, flex, or ndarray; auto is the first one that is compiled in
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Use a Qwen3.5 decoder with full attention, linear attention, or three linear layers per full layer, all
    /// with the same number and width of heads
    #[arg(long, value_parser = ["full", "linear", "hybrid"], conflicts_with = "products")]
    mixer: Option<String>,
    /// Train only this share of each row's positions, at its end, as with masked prompts
    #[arg(long, default_value_t = 1.0)]
    trained_share: f64,
    /// f32, or bf16 for activations
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    precision: String,
    /// Recompute activations in the backward pass (activation checkpointing)
    #[arg(long)]
    recompute: bool,
    /// Model folder to use instead of random weights, or owner/name in a build with the feature hub
    #[arg(long)]
    model: Option<String>,
    /// Tokens per row; overrides --shape
    #[arg(long)]
    seq: Option<usize>,
    /// Rows; overrides --shape
    #[arg(long)]
    batch: Option<usize>,
    /// Train low-rank adapters of this rank on all linear layers
    #[arg(long)]
    lora_rank: Option<usize>,
    /// How the frozen weights are stored
    #[arg(long, default_value = "f32", value_parser = BaseType::NAMES)]
    base_type: String,
    /// Time only the matrix products of a step
    #[arg(long)]
    products: bool,
    /// Count the kernels that a step launches on a GPU, without running them
    #[arg(long)]
    launches: bool,
    /// Time each kernel that a step launches on a GPU
    #[arg(long)]
    profile: bool,
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

/// Runs the measurement and returns the line to print.
pub fn run(flags: &Flags) -> Result<serde_json::Value> {
    let refuse = |key: &str, what: String, hint: &str| Err(Error::config(key, what, hint));
    let [hidden_size, layers, heads, kv_heads, inner, vocab_size, seq, rows] = flags.shape[..]
    else {
        return refuse("shape", format!("{} numbers", flags.shape.len()), "Give eight");
    };
    let (seq, rows) = (flags.seq.unwrap_or(seq), flags.batch.unwrap_or(rows));
    if seq == 0 || rows == 0 || flags.steps == 0 {
        return refuse("shape", "no tokens, rows, or steps".into(), "Use at least one of each");
    }
    if !(0.0..=1.0).contains(&flags.trained_share) {
        let what = format!("it is {}", flags.trained_share);
        return refuse("trained_share", what, "Use a number from 0 to 1");
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
        ..of_mixer(flags.mixer.as_deref(), layers)
    };
    let device = device::by_name(&flags.backend)?.autodiff();
    let base_type = BaseType::by_name(&flags.base_type).unwrap_or_default();
    let base = BaseWeights { base_type, ..BaseWeights::default() };
    let model = match &flags.model {
        Some(name) => {
            let folder = model_folder(name, &Context::default())?;
            ModelFolder::open(&folder)?.with_base_weights(base)?.load(&device)?
        }
        None => config.init_stored(0, &base, &device)?,
    };
    let config = model.config().clone();
    let vocab_size = config.vocab_size;
    if flags.products {
        return Ok(products(&config, seq * rows, flags.steps, &device.inner()));
    }
    let precision = if flags.precision == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let params = model.parameter_count();
    let model = match flags.lora_rank {
        Some(rank) => {
            let lora = LoraConfig { rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() };
            model.with_lora(&lora, 0)?
        }
        None => model,
    };
    let model = model.with_precision(precision)?;
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
    let total = flags.warm_up + flags.steps;
    let mut random_rows = || -> Vec<Row> {
        let row = |number| Row {
            // One more token than positions: the last one is only a target.
            tokens: (0..=seq).map(|_| random.random_range(0..vocab_size as u32)).collect(),
            prompt: seq + 1 - trained,
            number,
            ..Row::default()
        };
        (0..rows as u64).map(row).collect()
    };
    if flags.launches || flags.profile {
        let step = || learner.train_step(&random_rows(), total).map(|_| ());
        return if flags.launches { launches::count(step) } else { launches::profile(step) };
    }
    let mut terminal = Terminal::default();
    terminal.observe(&Event::Start { step: 0, total_steps: total })?;
    for step in 0..total {
        let rows = random_rows();
        let start = Instant::now();
        let report = learner.train_step(&rows, total)?;
        loss = report.loss;
        device.sync().map_err(|error| Error::Training {
            what: format!("the device failed: {error}"),
            hint: "Use a smaller shape".into(),
        })?;
        if step >= flags.warm_up {
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

#[path = "launches.rs"]
pub mod launches;

/// Returns the default configuration, or one of Qwen3.5 with layers of this kind.
fn of_mixer(mixer: Option<&str>, layers: usize) -> DecoderConfig {
    let Some(mixer) = mixer else { return DecoderConfig::default() };
    let kind = |layer: usize| match mixer {
        "full" => LayerType::FullAttention,
        "hybrid" if (layer + 1).is_multiple_of(4) => LayerType::FullAttention,
        _ => LayerType::LinearAttention,
    };
    DecoderConfig {
        architecture: Architecture::Qwen35Text,
        layer_types: (0..layers).map(kind).collect(),
        partial_rotary_factor: 0.25,
        ..DecoderConfig::default()
    }
}

/// Times only the matrix products of a step, forward and backward, weighted by how often a step has each.
fn products(
    config: &DecoderConfig,
    tokens: usize,
    rounds: usize,
    device: &Device,
) -> serde_json::Value {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let query = config.num_attention_heads * config.head_dim();
    let key_value = config.num_key_value_heads * config.head_dim();
    let layers = config.num_hidden_layers;
    // Input width, output width, and number of the linear layers.
    let shapes = [
        (width, query, layers),
        (width, key_value, 2 * layers),
        (query, width, layers),
        (width, inner, 2 * layers),
        (inner, width, layers),
        (width, config.vocab_size, 1),
    ];
    let (mut seconds, mut flops) = (0.0, 0.0);
    for (from, to, count) in shapes {
        let random = |shape| Tensor::<2>::random(shape, Distribution::Default, device);
        let (x, w, dy) = (random([tokens, from]), random([from, to]), random([tokens, to]));
        let one = || {
            let start = Instant::now();
            // The output, the gradient of the input, and the gradient of the weight.
            let all = [
                linear(x.clone(), w.clone()),
                linear(dy.clone(), w.clone().transpose()),
                linear(x.clone().transpose(), dy.clone()),
            ];
            let _ = device.sync();
            drop(all);
            start.elapsed().as_secs_f64()
        };
        one();
        let mut times: Vec<f64> = (0..rounds).map(|_| one()).collect();
        times.sort_by(f64::total_cmp);
        seconds += times[times.len() / 2] * count as f64;
        flops += 6.0 * (tokens * from * to * count) as f64;
    }
    json!({"products_s": seconds, "gflops": (flops / seconds / 1e9).round()})
}
