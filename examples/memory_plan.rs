//! Computes how much memory fine-tuning takes for the shapes of three models: adapters on a base in
//! NF4, for several row lengths. It needs no model.
//!
//! ```text
//! cargo run --example memory_plan
//! ```
//!
//! The command `mixdistill plan --model DIR` does the same for a folder with a `config.json`, and adds
//! the memory of each part, disk space, and time.

use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderConfig, LoraConfig, Precision,
};
use mixdistill::prelude::*;
use mixdistill::recipe::plan::{MemoryPlan, MemorySetup, MicroBatch};
use mixdistill::text::{DISPLAY_WIDTH, Table};
use mixdistill::train::MomentType;

/// Name, family, and hidden size, layers, heads, key-value heads, head size, MLP size, vocabulary.
type Shape = (&'static str, Architecture, [usize; 7]);

const SHAPES: [Shape; 3] = [
    ("Llama-3.2-1B", Architecture::Llama, [2048, 16, 32, 8, 64, 8192, 128_256]),
    ("Qwen3-1.7B", Architecture::Qwen3, [2048, 28, 16, 8, 128, 6144, 151_936]),
    ("Llama-3.2-3B", Architecture::Llama, [3072, 28, 24, 8, 128, 8192, 128_256]),
];

fn decoder((_, architecture, sizes): Shape) -> DecoderConfig {
    let [hidden_size, layers, heads, kv_heads, head, intermediate_size, vocab_size] = sizes;
    DecoderConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: Some(head),
        ..DecoderConfig::default()
    }
}

fn main() -> Result<()> {
    let lora = LoraConfig::default();
    let mut table = Table::new(["GB at most", "tokens", "training, f32", "bf16", "reading"]);
    for shape in SHAPES {
        let decoder = decoder(shape);
        for length in [2048, 8192, 16_384] {
            let plan = |precision| {
                MemoryPlan::of(&MemorySetup {
                    shape: &decoder,
                    lora: Some(&lora),
                    base: BaseWeights { base_type: BaseType::Nf4, ..BaseWeights::default() },
                    precision,
                    moments: MomentType::EightBit,
                    activation_checkpointing: true,
                    accumulates: false,
                    batch: MicroBatch { rows: 1, length, longest: length, trained: length },
                    held_out: MicroBatch::default(),
                    answers: None,
                    reads_weights: true,
                    has_kernels: true,
                    threads: 2,
                    program: 100e6,
                    data: 0.0,
                    teacher: 0.0,
                })
            };
            let [full, half] = [plan(Precision::F32)?, plan(Precision::Bf16)?];
            let gb = |bytes: f64| format!("{:.1}", bytes / 1e9);
            table.row([
                shape.0.to_owned(),
                length.to_string(),
                gb(full.training),
                gb(half.training),
                gb(full.reading),
            ]);
        }
    }
    println!("{}", table.to_text(DISPLAY_WIDTH));
    Ok(())
}
