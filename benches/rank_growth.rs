//! Simulates how training scales with ranks. For students of 135M to 3B parameters, whole and with adapters,
//! it prints the fewest tokens per rank and step for 80% efficiency.
//!
//! ```text
//! cargo run --example rank_growth                            tables for two CPU cores and for a GPU
//! cargo run --example rank_growth -- --flops 40              tables for this speed of a rank, in TFLOP/s
//! mpirun -np 2 ... rank_growth --link                        measures the link between two processes
//! ```
//!
//! `--link` needs a build with the feature `mpi`.

use clap::Parser;
use mixdistill::Result;
use mixdistill::text::{DISPLAY_WIDTH, Table};
use mixdistill::train::{Link, StepLoad, efficiency, fewest_micro_batches, simulated_step};

/// Name; width, layers, query width, key-value width, feed-forward width, vocabulary; whether the head is tied
/// to the embedding.
type Shape = (&'static str, [u64; 6], bool);

const SHAPES: [Shape; 5] = [
    ("SmolLM2-135M", [576, 30, 576, 192, 1536, 49_152], true),
    ("Qwen2.5-0.5B", [896, 24, 896, 128, 4864, 151_936], true),
    ("Llama-3.2-1B", [2048, 16, 2048, 512, 8192, 128_256], true),
    ("SmolLM2-1.7B", [2048, 24, 2048, 2048, 8192, 49_152], true),
    ("Llama-3.2-3B", [3072, 28, 3072, 1024, 8192, 128_256], true),
];
/// Rank of the adapters.
const RANK: u64 = 16;
/// Tokens of a micro-batch.
const TOKENS: u64 = 1024;
/// The efficiency to reach.
const LEAST: f64 = 0.8;

#[derive(Parser)]
struct Flags {
    /// Speed of a rank in a step, in TFLOP/s
    #[arg(long)]
    flops: Option<f64>,
    /// Measure the link between two processes instead of printing the tables
    #[arg(long)]
    link: bool,
}

/// Returns the number of parameters, and of adapter parameters on all layers.
fn parameters(&(_, sizes, tied): &Shape) -> [u64; 2] {
    let [width, layers, query, key_value, inner, vocabulary] = sizes;
    let products = [
        (width, query),
        (width, key_value),
        (width, key_value),
        (query, width),
        (width, inner),
        (width, inner),
        (inner, width),
    ];
    let whole: u64 = products.iter().map(|(from, to)| from * to).sum();
    let adapters: u64 = products.iter().map(|(from, to)| RANK * (from + to)).sum();
    let heads = if tied { 1 } else { 2 };
    [layers * whole + heads * vocabulary * width, layers * adapters]
}

/// Returns the load of one micro-batch. Forward and backward pass take 6 FLOP per parameter and token, or 4
/// if the weights are frozen.
fn load(whole: u64, trained: u64, flops: f64) -> StepLoad {
    let operations = if trained < whole { 4.0 } else { 6.0 };
    StepLoad {
        parameters: trained,
        micro_batches: 1,
        lanes: 1,
        micro_batch_seconds: operations * whole as f64 * TOKENS as f64 / (flops * 1e12),
        // The update reads and writes 28 bytes per parameter.
        update_seconds: 28.0 * trained as f64 / (flops * 1e12 / 10.0),
        shard_optimizer: false,
    }
}

fn tables(flops: f64, links: &[(&str, Link)]) {
    println!("A rank reaches {flops} TFLOP/s; micro-batches of {TOKENS} tokens.");
    let names = links.iter().map(|(name, _)| (*name).to_owned());
    println!("Fewest tokens per rank and step for an efficiency of {LEAST}, on 2 / 4 / 16 ranks:");
    let header = ["student", "gradients, MB"].map(str::to_owned).into_iter();
    let mut table = Table::new(header.chain(names));
    for shape in &SHAPES {
        let [whole, adapters] = parameters(shape);
        for (what, trained) in [("whole", whole), ("adapters", adapters)] {
            let load = load(whole, trained, flops);
            let fewest = |ranks, link| match fewest_micro_batches(&load, ranks, link, LEAST) {
                Some(count) => (count as u64 * TOKENS).to_string(),
                None => "-".into(),
            };
            let of_links = links
                .iter()
                .map(|(_, link)| [2, 4, 16].map(|ranks| fewest(ranks, link)).join(" / "));
            let megabytes = format!("{:.0}", 4e-6 * trained as f64);
            let row = [format!("{}, {what}", shape.0), megabytes];
            table.row(row.into_iter().chain(of_links));
        }
    }
    println!("{}", table.to_markdown());
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    if flags.link {
        return measured_link();
    }
    let networks = [1.0, 10.0, 100.0].map(Link::gigabits);
    let nvlink = Link { bytes_per_second: 300e9, latency: 10e-6 };
    let links = [
        ("1 Gb/s", networks[0]),
        ("10 Gb/s", networks[1]),
        ("100 Gb/s", networks[2]),
        ("NVLink", nvlink),
    ];
    match flags.flops {
        Some(flops) => tables(flops, &links),
        // The two cores in docs/performance.md, and a GPU at a third of its bf16 peak.
        None => [0.25, 50.0].into_iter().for_each(|flops| tables(flops, &links)),
    }
    let mut table =
        Table::new(["SmolLM2-135M, whole, 8 micro-batches per rank", "efficiency", "step, s"]);
    let [whole, _] = parameters(&SHAPES[0]);
    for ranks in [1usize, 2, 4, 8, 16, 32] {
        let lanes = ranks;
        let load = StepLoad { micro_batches: 8 * ranks, lanes, ..load(whole, whole, 0.25) };
        let time = simulated_step(&load, ranks, &networks[1]).total();
        let efficient = efficiency(&load, ranks, &networks[1]);
        table.row([
            format!("{ranks} ranks, 10 Gb/s"),
            format!("{efficient:.2}"),
            format!("{time:.1}"),
        ]);
    }
    println!("{}", table.to_text(DISPLAY_WIDTH));
    Ok(())
}

#[cfg(not(feature = "mpi"))]
fn measured_link() -> Result<()> {
    Err(mixdistill::Error::Ranks {
        what: "this build has no MPI".into(),
        hint: "Build with the feature `mpi`".into(),
    })
}

/// Sends messages in both directions at once, as a step does.
#[cfg(feature = "mpi")]
fn measured_link() -> Result<()> {
    use mixdistill::ranks::{Communicator, Mpi};
    use std::time::Instant;
    let mpi = Mpi::start()?;
    if mpi.ranks() != 2 {
        return Err(mixdistill::Error::Ranks {
            what: format!("there are {} processes", mpi.ranks()),
            hint: "Start two processes with mpirun -np 2".into(),
        });
    }
    let other = 1 - mpi.rank();
    let exchange = |bytes: usize, rounds: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..rounds {
            mpi.send(other, vec![1; bytes])?;
            mpi.receive(other, None)?;
        }
        Ok(start.elapsed().as_secs_f64() / rounds as f64)
    };
    exchange(1 << 20, 3)?;
    let mut table = Table::new(["bytes each way", "seconds", "MB/s each way"]);
    for bytes in [1usize, 1 << 16, 1 << 20, 1 << 24, 1 << 28] {
        let seconds = exchange(bytes, if bytes > 1 << 24 { 3 } else { 20 })?;
        let speed = format!("{:.0}", bytes as f64 / seconds / 1e6);
        table.row([bytes.to_string(), format!("{seconds:.6}"), speed]);
    }
    if mpi.rank() == 0 {
        println!("{}", table.to_text(DISPLAY_WIDTH));
    }
    Ok(())
}
