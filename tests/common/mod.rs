//! Helpers shared by the tests.
#![allow(dead_code, reason = "each test program uses only some of it")]

pub mod chat_folder;
pub mod thinking;

use burn::tensor::{Device, Int, Tensor, TensorData};
use mixdistill::context::{Event, Moment, Observer};
use mixdistill::data::{Example, Row, RowStream, TextTokenizer};
use mixdistill::model::{
    Architecture, DecoderConfig, DecoderLm, GenerateConfig, Generation, LayerType, RopeScaling,
    RopeType, SaveAdapter, StopConditions, named_tensors, with_named_tensors,
};
use mixdistill::recipe::RunConfig;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The CPU backends of this build.
#[allow(deprecated, reason = "Burn deprecates ndarray in favor of flex")]
pub fn devices() -> Vec<Device> {
    [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
    ]
    .to_vec()
}

/// Every backend of this build, by name. A GPU backend needs a GPU or a software driver.
pub fn backends() -> Vec<(&'static str, Device)> {
    mixdistill::device::compiled()
        .into_iter()
        .map(|name| (name, mixdistill::device::by_name(name).expect("the backend starts")))
        .collect()
}

/// A tiny configuration: two layers, four query heads, two key-value heads.
pub fn tiny(architecture: Architecture) -> DecoderConfig {
    DecoderConfig {
        architecture,
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: Some(6),
        tie_word_embeddings: architecture == Architecture::Llama,
        initializer_range: 0.3,
        ..of_family(architecture)
    }
}

/// The defaults plus the settings that only this family has, with values that matter at this size.
fn of_family(architecture: Architecture) -> DecoderConfig {
    let usual = DecoderConfig::default();
    let [sliding, full] = [LayerType::SlidingAttention, LayerType::FullAttention];
    let linear = LayerType::LinearAttention;
    match architecture {
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Olmo2 => {
            usual
        }
        Architecture::Mistral => DecoderConfig { sliding_window: Some(7), ..usual },
        Architecture::Smollm3 => DecoderConfig {
            no_rope_layers: vec![1, 0],
            sliding_window: Some(11),
            layer_types: vec![full, sliding],
            ..usual
        },
        Architecture::Granite => DecoderConfig {
            embedding_multiplier: Some(3.0),
            attention_multiplier: Some(0.3),
            residual_multiplier: 0.6,
            logits_scaling: 0.5,
            ..usual
        },
        Architecture::Phi3 => DecoderConfig {
            partial_rotary_factor: 0.75,
            rope_scaling: Some(RopeScaling {
                rope_type: RopeType::LongRope,
                factor: 8.0,
                original_max_position_embeddings: 256,
                short_factor: vec![1.0, 1.5],
                long_factor: vec![2.0, 9.0],
                ..RopeScaling::default()
            }),
            ..usual
        },
        Architecture::Gemma3Text => DecoderConfig {
            sliding_window: Some(5),
            layer_types: vec![sliding, full],
            attention_multiplier: Some(10f64.powf(-0.5)),
            rope_theta: 1_000_000.0,
            rope_local_base_freq: Some(10_000.0),
            ..usual
        },
        Architecture::Qwen35Text => DecoderConfig {
            layer_types: vec![linear, full],
            partial_rotary_factor: 0.34,
            linear_conv_kernel_dim: Some(4),
            linear_key_head_dim: Some(5),
            linear_value_head_dim: Some(3),
            linear_num_key_heads: Some(2),
            linear_num_value_heads: Some(4),
            ..usual
        },
        Architecture::Ministral3 => DecoderConfig {
            max_position_embeddings: 256,
            rope_theta: 50.0,
            rope_scaling: Some(RopeScaling {
                rope_type: RopeType::Yarn,
                factor: 8.0,
                original_max_position_embeddings: 32,
                llama_4_scaling_beta: Some(0.4),
                ..RopeScaling::default()
            }),
            ..usual
        },
    }
}

/// Rows with these lengths and prompt lengths, with tokens below 23. Token 0, which is also the padding, occurs
/// in them, so masking by token would be noticed.
pub fn rows(shapes: &[(usize, usize)]) -> Vec<Row> {
    shapes
        .iter()
        .enumerate()
        .map(|(index, &(length, prompt))| Row {
            tokens: (0..length).map(|i| ((i * i * 7 + index * 5 + i) % 23) as u32).collect(),
            prompt,
            label: format!("row {index}"),
            number: index as u64,
            ..Row::default()
        })
        .collect()
}

/// A stream that repeats its rows.
pub struct Rows(pub Vec<Row>);

impl RowStream for Rows {
    fn rows_per_epoch(&self) -> usize {
        self.0.len()
    }

    fn rows(&mut self, range: Range<u64>) -> mixdistill::Result<Vec<Row>> {
        Ok(range.map(|n| self.0[n as usize % self.0.len()].clone()).collect())
    }
}

pub fn examples(rows: &[Row]) -> impl Iterator<Item = Example<'_>> {
    rows.iter().map(Row::example)
}

/// The largest difference, relative to the largest magnitude in `b`.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-12f64, |m, x| m.max(f64::from(x.abs())));
    let worst = a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max(f64::from((x - y).abs())));
    if a.iter().chain(b).all(|x| x.is_finite()) { worst / scale } else { f64::INFINITY }
}

/// A model whose norms and biases differ from their trivial initial values.
pub fn shaken(config: &DecoderConfig, device: &Device) -> DecoderLm {
    let model = config.init(5, device).unwrap();
    let mut tensors = named_tensors(&model).unwrap();
    for (index, (name, tensor)) in tensors.iter_mut().enumerate() {
        if name.contains("norm") || name.ends_with("bias") {
            for (i, value) in tensor.values.iter_mut().enumerate() {
                *value += 0.3 * (((i * 7 + index * 3) % 11) as f32 / 5.0 - 1.0);
            }
        }
    }
    with_named_tensors(model, &mut |name| tensors.remove(name)).unwrap()
}

pub fn ids(tokens: &[u32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Generates answers that end at one of the `end` tokens. The tokenizer is a placeholder.
pub fn generate(
    model: &DecoderLm,
    prompts: &[Vec<u32>],
    end: &[u32],
    config: &GenerateConfig,
) -> mixdistill::Result<Vec<Generation>> {
    let tokenizer = TextTokenizer::builtin([" word"]).unwrap();
    let stop_conditions = StopConditions { tokens: end, tokenizer: &tokenizer };
    model.generate(prompts, stop_conditions, config, &mut |_| ControlFlow::Continue(()))
}

/// A run on the toy corpus that takes about a second.
pub fn toy_run(out: &Path) -> RunConfig {
    let mut config = RunConfig { out: out.to_owned(), ..RunConfig::toy() };
    config.data.toy_problems = 60;
    config.data.toy_test_problems = 8;
    config.model.hidden_size = 32;
    config.model.intermediate_size = 48;
    config.model.num_hidden_layers = 1;
    config
}

/// A command of the program that `cargo test` builds with the tests.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program());
    command.arg(name);
    command
}

/// The path of the program, which needs the feature `cli`.
pub fn program() -> &'static str {
    let Some(program) = option_env!("CARGO_BIN_EXE_mixdistill") else {
        panic!("the tests of the program need the feature `cli`");
    };
    program
}

/// The program of an example, which `cargo test` builds with the tests.
pub fn example(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let profile = deps.parent().unwrap().parent().unwrap();
    let program = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "build it with `cargo build --examples`");
    program
}

/// Settings to save an adapter of this base.
pub fn adapter_of(base: &str) -> SaveAdapter<'_> {
    SaveAdapter { base, ..SaveAdapter::default() }
}

/// Prints a line that shows even if the test passes.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A path in the sample data next to the checkout, or `None`, with a message, if it is missing.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if !path.exists() {
        say(&format!("skipped: {} is missing", path.display()));
        return None;
    }
    Some(path)
}

/// The folder of SmolLM2-135M-Instruct that `MIXDISTILL_SMOLLM2` names. If it is not set,
/// `None`, with a message.
pub fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("MIXDISTILL_SMOLLM2").map(PathBuf::from);
    if folder.is_none() {
        say("skipped: MIXDISTILL_SMOLLM2 does not name the folder of SmolLM2-135M-Instruct");
    }
    folder
}

/// The events of a run as lines of text.
#[derive(Debug, Default)]
pub struct Said(pub Vec<String>);

impl Said {
    /// Returns whether a line contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }
}

impl Observer for Said {
    fn observe(&mut self, event: &Event<'_>) -> mixdistill::Result<()> {
        match event {
            Event::Overview(overview) => {
                self.0.push(format!("data: {}", overview.data));
                self.0.extend([overview.ledger.to_string(), overview.mixture.to_string()]);
                self.0.extend(overview.lines.iter().cloned());
            }
            Event::Accuracy { moment: Moment::Before, accuracy } => {
                self.0.push(format!("before training: {accuracy}"));
            }
            Event::Accuracy { moment: Moment::After, accuracy } => {
                self.0.push(format!("after training: {accuracy}"));
            }
            Event::Resuming { path, skipped } => {
                self.0.extend(skipped.iter().cloned());
                self.0.push(format!("resuming from {}", path.display()));
            }
            Event::AlreadyFinished => self.0.push("this run is finished".into()),
            Event::Part { name, about, number, of, .. } => {
                self.0.push(format!("{name}: {about} ({number} of {of})"));
            }
            Event::Notice(text) => self.0.push((*text).to_owned()),
            _ => {}
        }
        Ok(())
    }
}
