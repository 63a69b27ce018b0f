//! Promise: the memory that `mixdistill plan` reports is within 15% of what the run uses, and a run that does
//! not fit says so before it reads a weight.
#![cfg(feature = "cli")]

mod common;

use common::chat_folder::ChatFolder;
use common::{Said, say, toy_run};
use mixdistill::context::{Context, StopFlag};
use mixdistill::device::peak_memory_mib;
use mixdistill::model::{
    Architecture, BaseType, BaseWeights, DecoderConfig, LoraConfig, Precision, SaveFolder,
};
use mixdistill::recipe::plan::{MemoryPlan, MemorySetup, MicroBatch};
use mixdistill::recipe::{Plan, RunConfig};
use mixdistill::train::MomentType;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Largest allowed difference from the measured peak, as a fraction of it.
const WITHIN: f64 = 0.15;

/// A combination of model, rows, and training settings.
#[derive(Clone, Copy, Debug)]
struct Combination {
    family: Architecture,
    /// Width, layers, heads, key-value heads, feed-forward width, vocabulary.
    shape: [usize; 6],
    tied: bool,
    /// Tokens per row, and rows per micro-batch.
    rows: [usize; 2],
    packing: &'static str,
    accumulate: usize,
    rank: Option<usize>,
    checkpointing: bool,
    /// `base.type`.
    base: &'static str,
    /// `train.moments`.
    moments: &'static str,
}

const SMALL: [usize; 6] = [256, 6, 8, 4, 704, 4096];
const LARGER: [usize; 6] = [384, 8, 6, 2, 1024, 8192];

/// The base of all combinations.
const USUAL: Combination = Combination {
    family: Architecture::Llama,
    shape: SMALL,
    tied: true,
    rows: [512, 4],
    packing: "on",
    accumulate: 1,
    rank: None,
    checkpointing: false,
    base: "f32",
    moments: "f32",
};

const COMBINATIONS: [Combination; 14] = [
    USUAL,
    Combination { checkpointing: true, rows: [512, 8], ..USUAL },
    Combination { shape: LARGER, tied: false, rows: [128, 8], packing: "off", ..USUAL },
    Combination { shape: LARGER, rows: [2048, 1], ..USUAL },
    Combination { shape: LARGER, rows: [2048, 1], checkpointing: true, ..USUAL },
    Combination { shape: LARGER, rows: [256, 2], accumulate: 3, moments: "8bit", ..USUAL },
    Combination { shape: LARGER, rows: [512, 2], rank: Some(16), base: "nf4", ..USUAL },
    Combination {
        shape: LARGER,
        rows: [2048, 3],
        rank: Some(8),
        checkpointing: true,
        base: "int8",
        ..USUAL
    },
    Combination {
        rows: [1024, 2],
        packing: "off",
        rank: Some(16),
        accumulate: 2,
        base: "bf16",
        moments: "8bit",
        ..USUAL
    },
    Combination { family: Architecture::Qwen3, rows: [1024, 1], ..USUAL },
    Combination { family: Architecture::Gemma3Text, rows: [512, 2], rank: Some(8), ..USUAL },
    Combination { family: Architecture::Olmo2, shape: LARGER, rows: [256, 4], ..USUAL },
    Combination { family: Architecture::Qwen35Text, rows: [1024, 2], ..USUAL },
    Combination {
        family: Architecture::Qwen35Text,
        rows: [2048, 1],
        rank: Some(8),
        checkpointing: true,
        ..USUAL
    },
];

impl Combination {
    fn config(&self) -> DecoderConfig {
        let [hidden_size, layers, heads, kv_heads, inner, vocab_size] = self.shape;
        DecoderConfig {
            architecture: self.family,
            vocab_size,
            hidden_size,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            max_position_embeddings: 4096,
            tie_word_embeddings: self.tied,
            ..DecoderConfig::default()
        }
    }

    /// The arguments of the program, for both `train` and `plan`.
    fn words(&self, folder: &Path, base: &Path) -> Vec<String> {
        let path = |name: &str| folder.join(name).display().to_string();
        let [length, rows] = self.rows;
        let mut words: Vec<String> =
            ["-q", "--json", "--steps", "2", "--questions", "0"].map(str::to_owned).to_vec();
        words.extend(["--model".into(), base.display().to_string()]);
        words.extend(["--long".into(), path("long.jsonl"), "--short".into(), path("short.jsonl")]);
        words.extend(["--max-length".into(), length.to_string(), "--out".into(), path("run")]);
        words.extend(self.rank.iter().flat_map(|r| ["--lora-rank".into(), r.to_string()]));
        for setting in [
            "data.too_long=cut".to_owned(),
            "data.chat_template=none".to_owned(),
            "data.hold_out=0.025".to_owned(),
            format!("train.batch_size={rows}"),
            format!("train.accumulate={}", self.accumulate),
            format!("train.packing={}", self.packing),
            format!("train.activation_checkpointing={}", self.checkpointing),
            format!("base.type={}", self.base),
            format!("train.moments={}", self.moments),
        ] {
            words.extend(["--set".into(), setting]);
        }
        words
    }
}

/// Runs the program and parses the JSON line that it prints.
fn called(command: &str, words: &[String]) -> Value {
    let output = Command::new(common::program()).arg(command).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Writes rows with more bytes than any limit here. Each byte is a token.
fn write_rows(folder: &Path) {
    for name in ["long", "short"] {
        let row = |id: usize| {
            let solution = format!("{id} and on. ").repeat(400);
            json!({"id": id, "problem": format!("Problem {id}?"), "solution": solution})
        };
        let lines: String = (0..40).map(|id| format!("{}\n", row(id))).collect();
        std::fs::write(folder.join(format!("{name}.jsonl")), lines).unwrap();
    }
}

#[test]
fn planned_memory_is_within_15_percent_of_the_measured_peak() {
    if peak_memory_mib().is_none() {
        say("skipped: this system does not tell the peak of a process's memory");
        return;
    }
    let device = mixdistill::device::by_name("auto").unwrap();
    let mut wrong = vec![];
    for (number, combination) in COMBINATIONS.iter().enumerate() {
        let settings = json!({"eos_token": "<s>"});
        let folder = ChatFolder::new(&["<s>"], &[], false, settings);
        write_rows(folder.path());
        let base = folder.path().join("base");
        let model = combination.config().init(1, &device).unwrap();
        model.save(&base, &SaveFolder::new(&folder.tokenizer())).unwrap();
        let words = combination.words(folder.path(), &base);
        let plan = called("plan", &words);
        let planned = plan["memory"]["peak"].as_f64().unwrap() / 1024.0 / 1024.0;
        let summary = called("train", &words);
        let measured = summary["peak_memory_mib"].as_f64().unwrap();
        assert_eq!(plan["parameters"], summary["parameters"], "{combination:?}");
        assert_eq!(plan["trained_parameters"], summary["trained_parameters"], "{combination:?}");
        let off = planned / measured - 1.0;
        let line = format!(
            "{number}: planned {planned:.0} MiB, measured {measured:.0}: {:+.1}% ({}) {}",
            100.0 * off,
            plan["memory"]["when"].as_str().unwrap_or_default(),
            plan["memory"],
        );
        say(&line);
        if off.abs() > WITHIN {
            wrong.push(format!("{line}\n{combination:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The memory plan of a shape with rows of this length, for eight threads.
fn memory(shape: &DecoderConfig, length: usize, change: fn(&mut MemorySetup<'_>)) -> MemoryPlan {
    let batch = MicroBatch { rows: 1, length, longest: length, trained: length };
    let mut setup = MemorySetup { batch, ..setup(shape) };
    change(&mut setup);
    MemoryPlan::of(&setup).unwrap()
}

fn setup(shape: &DecoderConfig) -> MemorySetup<'_> {
    MemorySetup {
        shape,
        lora: None,
        base: BaseWeights::default(),
        precision: Precision::F32,
        moments: MomentType::F32,
        activation_checkpointing: false,
        accumulates: false,
        batch: MicroBatch::default(),
        held_out: MicroBatch::default(),
        answers: None,
        reads_weights: true,
        has_kernels: true,
        threads: 8,
        program: 0.0,
        data: 0.0,
        teacher: 0.0,
    }
}

#[test]
fn the_parts_add_up_and_what_saves_memory_saves_it() {
    let shape = Combination { shape: LARGER, ..USUAL }.config();
    for length in [64, 1000, 20_000] {
        let plan = memory(&shape, length, |_| {});
        let sum: f64 = plan.parts().iter().map(|(_, bytes)| bytes).sum();
        assert!((sum - plan.peak).abs() < 2.0, "{length}: {plan:?}");
        let summed = memory(&shape, length, |setup| setup.accumulates = true);
        assert!(summed.peak > plan.peak);
    }
    // Each setting lowers a different part.
    let peak = |change| memory(&shape, 20_000, change).peak;
    let whole = peak(|_| {});
    assert!(peak(|setup| setup.activation_checkpointing = true) < 0.6 * whole);
    let adapted = |base_type, moments| {
        let lora = LoraConfig::default();
        let batch = MicroBatch { rows: 1, length: 64, longest: 64, trained: 64 };
        let setup = MemorySetup {
            lora: Some(&lora),
            base: BaseWeights { base_type, ..BaseWeights::default() },
            moments,
            batch,
            reads_weights: false,
            ..setup(&shape)
        };
        MemoryPlan::of(&setup).unwrap()
    };
    let [f32, int8, nf4] =
        [BaseType::F32, BaseType::Int8, BaseType::Nf4].map(|base| adapted(base, MomentType::F32));
    assert!(nf4.peak < int8.peak && int8.peak < f32.peak);
    assert!(nf4.weights < int8.weights && int8.weights < 0.5 * f32.weights);
    let eight_bit = adapted(BaseType::F32, MomentType::EightBit);
    assert!(eight_bit.moments < 0.3 * adapted(BaseType::F32, MomentType::F32).moments);
    let peak = |length| memory(&shape, length, |_| {}).peak;
    assert!(peak(4000) > 1.5 * peak(1000) && peak(1000) > peak(500));
}

#[test]
fn a_folder_with_config_json_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0, "max_position_embeddings": 131_072, "tie_word_embeddings": true,
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut run = RunConfig::fine_tune(folder.path().display().to_string());
    run = run.with_lora(LoraConfig::default());
    let plan = Plan::new(&run, false, &Context::default()).unwrap();
    // Llama 3.2 1B, with rank 16 on all linear layers.
    assert_eq!(plan.parameters - plan.trained_parameters, 1_235_814_400);
    assert_eq!(plan.trained_parameters, 11_272_192);
    assert!(!plan.from_data && plan.longest_rows.is_empty());
    assert!(plan.savings.iter().any(|saving| saving.settings == ["base.type=nf4"]));
    assert!(plan.to_string().contains("(assumed: "));
    // A missing model is an error.
    run.base_model = Some(folder.path().join("x").display().to_string());
    let error = Plan::new(&run, false, &Context::default()).unwrap_err().to_string();
    assert!(error.contains("there is no such folder"), "{error}");
}

#[test]
fn a_run_tells_its_plan_before_any_weight_and_warns_where_it_will_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let mut config: RunConfig = toy_run(&folder.path().join("run"));
    config.train.steps = Some(1);
    config.evaluation.questions = 0;
    let mut said = Said::default();
    let stop = StopFlag::default();
    mixdistill::recipe::run(
        &config,
        mixdistill::recipe::RunMode::New,
        &Context::new(&mut said, &stop),
    )
    .unwrap();
    assert!(said.contains("planned memory: ") && said.contains("(assumed: "), "{said:?}");
    assert!(!said.contains("will not fit"), "{said:?}");
    let plan = Plan::new(&config, false, &Context::default()).unwrap();
    assert_eq!(plan.warning(), None);
    if peak_memory_mib().is_none() {
        return;
    }
    assert_eq!(plan.fits, Some(true));
    // No machine has enough memory for a million tokens at this width.
    config.model.num_hidden_layers = 16;
    config.model.hidden_size = 8192;
    config.model.intermediate_size = 16_384;
    config.train.batch_size = 1 << 13;
    let plan = Plan::new(&config, false, &Context::default()).unwrap();
    assert_eq!(plan.fits, Some(false), "{plan}");
    let warning = plan.warning().unwrap();
    assert!(warning.starts_with("this run will not fit: it needs about "), "{warning}");
    assert!(warning.contains("train.activation_checkpointing=true"), "{warning}");
}
