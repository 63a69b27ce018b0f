//! Measures how far a backend is from flex: loss and gradients of a batch, losses of twenty steps, and
//! generated tokens.

use burn::tensor::Device;
use mixdistill::Result;
use mixdistill::data::{Batch, Row, TextTokenizer, arith};
use mixdistill::model::{
    DecoderConfig, GenerateConfig, LoraConfig, NewToken, StepOptions, StopConditions,
};
use mixdistill::train::{Learner, TrainConfig, named_gradients, step_gradients_with};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Number of different tokens in rows.
const VOCABULARY: u64 = 67;

/// Returns the rows with something to learn: each counts up in its own steps. `length` maps a row's number to
/// its length.
pub fn rows(first: u64, count: u64, length: impl Fn(u64) -> usize) -> Vec<Row> {
    (first..first + count)
        .map(|number| {
            let (step, length) = (1 + number % 3, length(number) as u64);
            Row {
                tokens: (0..length).map(|i| ((number + i * step) % VOCABULARY) as u32).collect(),
                prompt: 3,
                label: format!("row {number}"),
                number,
                ..Row::default()
            }
        })
        .collect()
}

/// Returns the largest magnitude; infinite if a value is not finite.
fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |largest, x| match x.is_finite() {
        true => f64::from(x.abs()).max(largest),
        false => f64::INFINITY,
    })
}

/// Loss and gradients of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub loss: f64,
    pub gradients: BTreeMap<String, Vec<f32>>,
}

/// Computes loss and gradients of a batch on a device, for the whole model or for adapters.
pub fn step(
    config: &DecoderConfig,
    device: &Device,
    batch: &Batch,
    options: &StepOptions,
    lora: bool,
) -> Result<Step> {
    let mut decoder = config.init(5, &device.clone().autodiff())?;
    if lora {
        let config = LoraConfig { rank: 4, dropout: 0.1, ..LoraConfig::default() };
        decoder = decoder.with_lora(&config, 1)?;
    }
    let batches = std::slice::from_ref(batch);
    let step = step_gradients_with(&decoder, batches, options, &mut |_| Ok(()))?;
    let named = named_gradients(&decoder, &step.gradients)?;
    let gradients = named.into_iter().map(|(name, tensor)| (name, tensor.values)).collect();
    Ok(Step { loss: step.loss, gradients })
}

/// How far apart two steps are.
#[derive(Clone, Debug)]
pub struct Distance {
    /// The relative difference of the losses.
    pub loss: f64,
    /// The largest difference of a gradient, relative to the largest magnitude in its tensor; infinite if the
    /// steps have gradients of different tensors.
    pub gradient: f64,
    /// The parameter with that gradient.
    pub parameter: String,
}

impl Distance {
    pub fn of(found: &Step, expected: &Step) -> Self {
        let loss = (found.loss - expected.loss).abs() / expected.loss;
        let none = Self { loss, gradient: 0.0, parameter: String::new() };
        if !found.gradients.keys().eq(expected.gradients.keys()) {
            return Self { gradient: f64::INFINITY, ..none };
        }
        let mut worst = none;
        for (parameter, expected) in &expected.gradients {
            let found = &found.gradients[parameter];
            let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            // An adapter's B starts at 0, so the gradient of A is 0.
            let unit = if largest(expected) == 0.0 { 1.0 } else { largest(expected) };
            let gradient = match found.len() == expected.len() {
                true => largest(&difference) / unit,
                false => f64::INFINITY,
            };
            if gradient >= worst.gradient {
                worst = Self { gradient, parameter: parameter.clone(), ..worst };
            }
        }
        worst
    }
}

/// Returns the losses of twenty steps.
pub fn course(config: &DecoderConfig, device: &Device) -> Result<Vec<f64>> {
    let train = TrainConfig {
        batch_size: 2,
        accumulate: 2,
        learning_rate: 3e-3,
        warmup_steps: 2,
        ..TrainConfig::default()
    };
    let model = config.init(5, &device.clone().autodiff())?;
    let mut learner = Learner::new(model, train)?;
    (0..20u64).map(|i| Ok(learner.train_step(&rows(4 * i, 4, |_| 25), 20)?.loss)).collect()
}

/// Returns the largest relative difference of the losses; NaN if one is NaN.
pub fn farthest(found: &[f64], expected: &[f64]) -> f64 {
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b);
    off.fold(0.0, |worst: f64, x| if x.is_nan() { x } else { worst.max(x) })
}

/// Twelve tokens for each of three prompts: greedy, then sampled with a repetition penalty.
pub fn tokens(config: &DecoderConfig, device: &Device) -> Result<Vec<Vec<u32>>> {
    let words = arith::vocabulary();
    let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str))?;
    let prompts = vec![vec![3u32, 1, 4], vec![1, 5, 9, 2, 6, 5], vec![35]];
    let plain = GenerateConfig { max_new_tokens: 12, batch_size: 3, ..Default::default() };
    let drawn = GenerateConfig {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.9,
        repetition_penalty: 1.3,
        ..plain.clone()
    };
    let model = config.init(5, device)?;
    let mut tokens = vec![];
    for settings in [plain, drawn] {
        let stop = StopConditions { tokens: &[], tokenizer: &tokenizer };
        let go_on = &mut |_: &NewToken<'_>| ControlFlow::Continue(());
        let answers = model.generate(&prompts, stop, &settings, go_on)?;
        tokens.extend(answers.into_iter().map(|answer| answer.tokens));
    }
    Ok(tokens)
}
