//! Promise: training is the same on every backend. Losses and gradients agree with flex on padded and packed
//! rows, 20 training steps have the same losses, and generation produces the same tokens.
//!
//! With the default features, there is only flex; `.ci/run` builds these tests with `ndarray` and `wgpu`, with
//! and without fusion. Run them on a GPU before you rely on it: see docs/gpus.md.
#![cfg(feature = "flex")]

mod common;
#[path = "../benches/parity.rs"]
mod parity;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use common::{Rows, backends, tiny};
use mixdistill::Error;
use mixdistill::data::{Batch, Example, Row};
use mixdistill::model::{
    Architecture, CausalLm, DecoderConfig, DecoderLm, Objective, RopeScaling, RopeType,
    StepOptions, named_tensors,
};
use mixdistill::train::{CheckpointStore, FitOptions, Learner, TrainConfig};
use parity::{Distance, rows};
use std::cell::Cell;

/// Largest difference of a gradient, in units of the largest magnitude in its tensor. f32 rounds at
/// 6e-8; sums of some hundred terms through two blocks stay two orders above it.
const GRADIENT: f64 = 2e-5;
/// Largest difference of a loss.
const LOSS: f64 = 2e-6;
/// Largest difference of the losses of 20 steps, in which Adam makes the most of small differences.
const COURSE: f64 = 2e-4;
/// CUDA and ROCm may compute products of f32 matrices in TF32, which rounds at 5e-4.
const TF32: f64 = 200.0;

/// The same of gradients of linear attention, which divides what queries read by its norm.
const LINEAR_ATTENTION: f64 = 5.0;

/// What the tolerances are multiplied by on a backend.
fn slack(name: &str) -> f64 {
    if ["cuda", "rocm"].contains(&name) { TF32 } else { 1.0 }
}

/// Two layers at a size at which GPUs work in more than one block.
fn model() -> DecoderConfig {
    model_of(Architecture::Qwen3)
}

fn model_of(architecture: Architecture) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 67,
        hidden_size: 64,
        intermediate_size: 96,
        head_dim: Some(16),
        initializer_range: 0.1,
        ..tiny(architecture)
    }
}

/// For each property that some families have and Qwen3 has not, one that has it.
fn properties() -> [(&'static str, DecoderConfig); 7] {
    let of = |architecture| DecoderConfig { rope_scaling: None, ..model_of(architecture) };
    let ministral = RopeScaling {
        rope_type: RopeType::Yarn,
        factor: 4.0,
        original_max_position_embeddings: 8,
        llama_4_scaling_beta: Some(0.4),
        ..RopeScaling::default()
    };
    let linear = RopeScaling { rope_type: RopeType::Linear, factor: 4.0, ..RopeScaling::default() };
    let longrope = RopeScaling {
        rope_type: RopeType::LongRope,
        factor: 4.0,
        original_max_position_embeddings: 8,
        short_factor: vec![1.0; 6],
        long_factor: vec![1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
        long: true,
        ..RopeScaling::default()
    };
    [
        ("sliding window", of(Architecture::Mistral)),
        (
            "partial rotary, LongRoPE, fused projections",
            DecoderConfig { rope_scaling: Some(longrope), ..of(Architecture::Phi3) },
        ),
        (
            "layers without RoPE, linear RoPE in the others",
            DecoderConfig { rope_scaling: Some(linear), ..of(Architecture::Smollm3) },
        ),
        ("norms after, whole q and k normalized", of(Architecture::Olmo2)),
        ("gelu, norms before and after", of(Architecture::Gemma3Text)),
        ("multipliers", of(Architecture::Granite)),
        (
            "YaRN, queries scaled by position",
            DecoderConfig { rope_scaling: Some(ministral), ..of(Architecture::Ministral3) },
        ),
    ]
}

#[test]
fn losses_and_gradients_are_those_of_flex() {
    let rows = rows(0, 5, |number| 12 + number as usize * 7 % 30);
    let examples = || rows.iter().map(Row::example).collect::<Vec<Example>>();
    let objective = Objective { label_smoothing: 0.1, z_loss: 1e-2, ..Objective::default() };
    let recomputed = StepOptions { activation_checkpointing: true, objective };
    // GPU backends compile their kernels for each: as few as show what there is to show.
    let padded = ("padded", Batch::new(examples(), 8));
    let packed = ("packed", Batch::packed(examples(), 8));
    for ((layout, batch), what, options, lora) in [
        (&padded, "cross-entropy", StepOptions::default(), false),
        (&packed, "recomputed, smoothed", recomputed, false),
        (&packed, "adapters", StepOptions::default(), true),
    ] {
        compare_gradients(&format!("{layout} {what}"), &model(), batch, &options, lora);
    }
}

/// Holds loss and gradients on each backend to those on flex.
fn compare_gradients(
    what: &str,
    config: &DecoderConfig,
    batch: &Batch,
    options: &StepOptions,
    lora: bool,
) {
    let expected = parity::step(config, &Device::flex(), batch, options, lora).unwrap();
    for (name, device) in backends() {
        let found = parity::step(config, &device, batch, options, lora).unwrap();
        let Distance { loss, gradient, parameter } = Distance::of(&found, &expected);
        println!("{name} {what}: loss {loss:.1e}, gradients {gradient:.1e}");
        assert!(loss <= LOSS * slack(name), "{name} {what}: loss off by {loss:e}");
        let is_linear = config.architecture == Architecture::Qwen35Text;
        let allowed = GRADIENT * if is_linear { LINEAR_ATTENTION } else { 1.0 };
        assert!(
            gradient <= allowed * slack(name),
            "{name} {what}: gradient of {parameter} off by {gradient:e}"
        );
    }
}

#[test]
fn each_property_of_a_family_is_what_it_is_on_flex() {
    let rows = rows(0, 3, |number| 12 + number as usize * 7 % 30);
    let packed = Batch::packed(rows.iter().map(Row::example), 8);
    for (property, config) in properties() {
        compare_gradients(property, &config, &packed, &StepOptions::default(), false);
        compare_generation(property, &config);
    }
}

/// Rows of more and of less than a chunk.
#[test]
fn linear_attention_is_what_it_is_on_flex() {
    let rows = rows(0, 3, |number| 30 + number as usize * 29);
    let packed = Batch::packed(rows.iter().map(Row::example), 8);
    let config = DecoderConfig {
        linear_key_head_dim: Some(16),
        linear_value_head_dim: Some(24),
        partial_rotary_factor: 0.25,
        ..model_of(Architecture::Qwen35Text)
    };
    compare_gradients("linear attention", &config, &packed, &StepOptions::default(), false);
    compare_generation("linear attention", &config);
}

#[test]
fn twenty_steps_have_the_course_they_have_on_flex() {
    let expected = parity::course(&model(), &Device::flex()).unwrap();
    assert!(expected[19] < 0.7 * expected[0], "nothing was learned: {expected:?}");
    for (name, device) in backends() {
        let found = parity::course(&model(), &device).unwrap();
        let worst = parity::farthest(&found, &expected);
        println!("{name}: losses of 20 steps off by at most {worst:.1e}");
        assert!(worst <= COURSE * slack(name), "{name}: off by {worst:e}: {found:?}");
    }
}

#[test]
fn generation_gives_the_tokens_of_flex() {
    compare_generation("Qwen3", &model());
}

/// Holds the tokens that each backend gives to those of flex.
fn compare_generation(what: &str, config: &DecoderConfig) {
    let expected = parity::tokens(config, &Device::flex()).unwrap();
    assert!(expected.iter().all(|tokens| tokens.len() == 12));
    for (name, device) in backends() {
        assert_eq!(parity::tokens(config, &device).unwrap(), expected, "{name} {what}");
    }
}

/// A model whose loss, at one step, needs more memory than any device has.
#[derive(Module, Debug)]
struct Wasteful {
    inner: DecoderLm,
    /// Losses until then.
    losses: usize,
}

thread_local! {
    static LOSSES: Cell<usize> = const { Cell::new(0) };
}

impl CausalLm for Wasteful {
    fn vocabulary_size(&self) -> usize {
        self.inner.vocabulary_size()
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        let loss = self.inner.loss_sum(batch, scale);
        match LOSSES.replace(LOSSES.get() + 1) == self.losses {
            true => loss.clone() + Tensor::<1>::zeros([1usize << 40], &loss.device()).sum(),
            false => loss,
        }
    }
}

#[test]
fn memory_that_runs_out_ends_a_training_and_its_last_checkpoint_goes_on() {
    let train = TrainConfig {
        batch_size: 2,
        accumulate: 1,
        steps: Some(4),
        checkpoint_every: 2,
        learning_rate: 3e-3,
        ..TrainConfig::default()
    };
    for (name, device) in backends() {
        // A processor's own memory is the system's affair.
        if ["flex", "ndarray"].contains(&name) {
            continue;
        }
        let learner = |losses| {
            LOSSES.set(0);
            let inner = model().init(5, &device.clone().autodiff()).unwrap();
            Learner::new(Wasteful { inner, losses }, train.clone()).unwrap()
        };
        let fit = |learner: &mut Learner<Wasteful>, store: &CheckpointStore| {
            let options = FitOptions { checkpoints: Some(store), ..FitOptions::default() };
            learner.fit(&mut Rows(rows(0, 8, |_| 25)), options)
        };
        let folder = tempfile::tempdir().unwrap();
        let store = |of| CheckpointStore::new(folder.path().join(of), 9, serde_json::Value::Null);

        let mut whole = learner(usize::MAX);
        fit(&mut whole, &store("whole")).unwrap();
        let store = store("failed");
        let error = fit(&mut learner(2), &store).unwrap_err();
        let text = error.to_string();
        println!("{name}: {text}");
        assert!(matches!(&error, Error::Interrupted { step: 2, .. }), "{name}: {text}");
        let parts = ["the device failed", "allocate", "train.batch_size", "step-000002"];
        assert!(parts.iter().all(|part| text.contains(part)), "{name}: {text}");
        assert!(!text.contains('\n') && text.len() < 500, "{name}: {text}");

        let mut resumed = learner(usize::MAX);
        resumed.resume(&store).unwrap();
        assert_eq!(resumed.step(), 2, "{name}");
        fit(&mut resumed, &store).unwrap();
        let weights = |learner: &Learner<Wasteful>| named_tensors(learner.model()).unwrap();
        assert_eq!(weights(&resumed), weights(&whole), "{name}: the resumed training");
    }
}
