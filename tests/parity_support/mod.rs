//! Helpers for the tests that compare with transformers and PEFT: reading references and measuring differences.
#![allow(dead_code, reason = "each test program uses only some of it")]

use crate::common::{adapter_of, ids, say};
use burn::tensor::Device;
use mixdistill::data::{Batch, Example};
use mixdistill::model::{DecoderLm, HostTensor, named_tensors, with_named_tensors};
use mixdistill::train::{named_gradients, step_gradients};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Number of prompt tokens in the reference example.
pub const PROMPT: usize = 10;

/// Tolerances for logits, losses, and gradients (relative).
pub const LOGITS: f64 = 1e-3;
pub const LOSS: f64 = 1e-4;
pub const GRADIENT: f64 = 1e-3;

/// A file with results of transformers or PEFT.
pub struct Reference(Vec<u8>);

impl Reference {
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        data.data().as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)).collect()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }

    pub fn doubles(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        data.data().as_chunks::<8>().0.iter().map(|w| f64::from_le_bytes(*w)).collect()
    }

    pub fn tokens(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        data.data().as_chunks::<8>().0.iter().map(|w| i64::from_le_bytes(*w) as u32).collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

pub fn norm_of(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

pub fn norm(tensor: &HostTensor) -> f64 {
    norm_of(tensor.values.iter().copied())
}

pub fn logits(model: &DecoderLm, tokens: &[u32], device: &Device) -> Vec<f32> {
    let tokens = ids(tokens, [1, tokens.len()], device);
    model.logits(tokens).try_into_vec_as::<f32>().unwrap()
}

/// The mean loss, and the gradients by Hugging Face name.
pub fn loss_and_gradients(
    model: &DecoderLm,
    tokens: &[u32],
    prompt: usize,
) -> (f64, BTreeMap<String, HostTensor>) {
    let batch = Batch::new([Example { tokens, prompt, ..Example::default() }], 1);
    let step = step_gradients(model, &[batch]).unwrap();
    let mut gradients = named_gradients(model, &step.gradients).unwrap();
    for (name, gradient) in &mut gradients {
        // mixdistill stores linear layers as `[input, output]`.
        if gradient.shape.len() == 2 && !name.contains("embed_tokens") {
            *gradient = transposed(gradient);
        }
    }
    (step.loss, gradients)
}

fn transposed(matrix: &HostTensor) -> HostTensor {
    let [rows, columns] = matrix.shape[..] else { panic!("{:?} is not a matrix", matrix.shape) };
    let place = |i: usize| matrix.values[i % rows * columns + i / rows];
    HostTensor { shape: vec![columns, rows], values: (0..rows * columns).map(place).collect() }
}

/// Prints one line of the table. Returns whether the value is within the limit.
pub fn line(what: &str, ours: f64, limit: f64) -> bool {
    let holds = ours <= limit;
    println!(
        "{what:52} {ours:>10.2e}   allowed {limit:.0e}{}",
        if holds { "" } else { "  FAILED" }
    );
    holds
}

/// mixdistill's name of a parameter: its name in transformers or PEFT without the enclosing models.
pub fn our_name(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    name.replace("model.language_model.", "model.")
}

/// Fills the adapters' B matrices, which start at zero, so that the adapters have an effect.
pub fn with_random_b(model: DecoderLm) -> DecoderLm {
    let mut tensors = named_tensors(&model).unwrap();
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = ((i * 7 + name.len()) % 11) as f32 / 20.0 - 0.25;
        }
    }
    with_named_tensors(model, &mut |name| tensors.remove(name)).unwrap()
}

/// The folder that `MIXDISTILL_PARITY_OUT` names, for files that `check_ours.py` reads. If it is not set,
/// `None`, with a message.
pub fn folder_for_transformers() -> Option<PathBuf> {
    let out = std::env::var_os("MIXDISTILL_PARITY_OUT").map(PathBuf::from);
    if out.is_none() {
        say("skipped: MIXDISTILL_PARITY_OUT does not name a folder");
    }
    out
}

/// Writes an adapter for `check_ours.py`, with the name of its base's folder and mixdistill's logits.
pub fn write_adapter(folder: &Path, model: &DecoderLm, base: &str, tokens: &[u32]) {
    model.save_adapter(folder, &adapter_of("a-small-model")).unwrap();
    std::fs::write(folder.join("base.txt"), base).unwrap();
    write_logits(folder, tokens, &logits(model, tokens, &model.device()));
}

/// Writes the logits that `check_ours.py` compares.
pub fn write_logits(folder: &Path, tokens: &[u32], logits: &[f32]) {
    let ids: Vec<u8> = tokens.iter().flat_map(|t| i64::from(*t).to_le_bytes()).collect();
    let values: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (length, vocabulary) = (tokens.len(), logits.len() / tokens.len());
    let tensors = [
        ("input_ids", TensorView::new(Dtype::I64, vec![1, length], &ids).unwrap()),
        ("logits", TensorView::new(Dtype::F32, vec![1, length, vocabulary], &values).unwrap()),
    ];
    safetensors::serialize_to_file(tensors, None, &folder.join("ours.safetensors")).unwrap();
}

/// What is compared, the difference, and the tolerance.
pub type Figure = (&'static str, f64, f64);

/// The figures of all cases, one line per case.
pub struct Table {
    text: String,
    holds: bool,
}

impl Table {
    pub fn new(title: &str) -> Self {
        Self { text: format!("\n{title}\n"), holds: true }
    }

    pub fn add(&mut self, name: &str, figures: &[Figure]) {
        if self.text.lines().count() == 2 {
            let heads: String = figures.iter().map(|(head, ..)| format!("{head:>15}")).collect();
            let limits: String =
                figures.iter().map(|(_, _, limit)| format!("{limit:>15.0e}")).collect();
            self.text.push_str(&format!("{:28}{heads}\n{:28}{limits}\n", "", "allowed"));
        }
        self.text.push_str(&format!("{name:28}"));
        for (head, found, limit) in figures {
            self.text.push_str(&format!("{found:>15.1e}"));
            if found > limit || found.is_nan() {
                self.text.push_str(&format!(" ({head} FAILED)"));
                self.holds = false;
            }
        }
        self.text.push('\n');
    }

    /// Prints the table even if the test passes: output written this way is not captured.
    pub fn show(&self) {
        std::io::stdout().write_all(self.text.as_bytes()).unwrap();
        assert!(self.holds, "see the table");
    }
}

pub fn logits_off(model: &DecoderLm, reference: &Reference, device: &Device) -> f64 {
    let ours = logits(model, &reference.tokens("input_ids"), device);
    largest_difference(&ours, &reference.floats("logits"))
}

/// The differences of loss and gradients from the reference.
pub fn training(what: &str, model: &DecoderLm, reference: &Reference) -> [Figure; 2] {
    let tokens = reference.tokens("input_ids");
    let (loss, gradients) = loss_and_gradients(model, &tokens, PROMPT);
    let difference = (loss - f64::from(reference.floats("loss")[0])).abs();
    let (error, tensor) = worst_gradient(&gradients, reference);
    if error > GRADIENT {
        println!("{what}: the gradient of {tensor} differs most");
    }
    [("loss", difference, LOSS), ("gradients", error, GRADIENT)]
}

/// The largest relative error of a gradient, and the name of its tensor. Both sides must have gradients of the
/// same tensors.
pub fn worst_gradient(ours: &BTreeMap<String, HostTensor>, reference: &Reference) -> (f64, String) {
    let names = reference.names();
    let theirs: BTreeMap<String, &str> = names
        .iter()
        .filter_map(|name| Some((our_name(name.strip_prefix("grad.")?), name.as_str())))
        .collect();
    assert!(ours.keys().eq(theirs.keys()), "{:?} and {:?}", ours.keys(), theirs.keys());
    let gradients: BTreeMap<&str, Vec<f32>> =
        theirs.iter().map(|(name, theirs)| (name.as_str(), reference.floats(theirs))).collect();
    let total = norm_of(gradients.values().flatten().copied());
    // Some gradients are 0 except for rounding: a key bias shifts all scores equally.
    let near_zero = 1e-4 * total;
    ours.iter()
        .map(|(name, ours)| {
            assert_eq!(ours.shape, reference.shape(theirs[name.as_str()]), "{name}");
            let theirs = &gradients[name.as_str()];
            assert!(norm(ours).is_finite(), "{name}");
            let difference = norm_of(ours.values.iter().zip(theirs).map(|(a, b)| a - b));
            (difference / norm_of(theirs.iter().copied()).max(near_zero), name.clone())
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
}
