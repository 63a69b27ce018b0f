//! Shared by the tests that compare with transformers and PEFT: what they gave, and how far it is
//! from what we get.
#![allow(dead_code, reason = "each test program uses a part")]

use crate::common::{adapter_of, ids};
use burn::tensor::Device;
use mixdistill::data::{Batch, Example};
use mixdistill::model::{DecoderLm, HostTensor, named_tensors, with_named_tensors};
use mixdistill::train::{named_gradients, step_gradients};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Prompt tokens of the references' supervised example.
pub const PROMPT: usize = 10;

/// What transformers gave.
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

/// Mean loss and the gradients, by Hugging Face's names.
pub fn loss_and_gradients(
    model: &DecoderLm,
    tokens: &[u32],
    prompt: usize,
) -> (f64, BTreeMap<String, HostTensor>) {
    let batch = Batch::new([Example { tokens, prompt, ..Example::default() }], 1);
    let step = step_gradients(model, &[batch]).unwrap();
    let mut gradients = named_gradients(model, &step.gradients).unwrap();
    for (name, gradient) in &mut gradients {
        // Linear layers are `[input, output]` here.
        if gradient.shape.len() == 2 && !name.contains("embed_tokens") {
            *gradient = transposed(gradient);
        }
    }
    (step.loss, gradients)
}

fn transposed(matrix: &HostTensor) -> HostTensor {
    let [rows, columns] = matrix.shape[..] else { panic!("{:?} is no matrix", matrix.shape) };
    let place = |i: usize| matrix.values[i % rows * columns + i / rows];
    HostTensor { shape: vec![columns, rows], values: (0..rows * columns).map(place).collect() }
}

/// One line of the table, and whether it holds.
pub fn line(what: &str, ours: f64, limit: f64) -> bool {
    let holds = ours <= limit;
    println!(
        "{what:52} {ours:>10.2e}   allowed {limit:.0e}{}",
        if holds { "" } else { "  FAILED" }
    );
    holds
}

/// Our name of a parameter: that of transformers and PEFT without the models around the decoder.
pub fn our_name(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    name.replace("model.language_model.", "model.")
}

/// The model, whose adapters do something: B starts at zero.
pub fn with_random_b(model: DecoderLm) -> DecoderLm {
    let mut tensors = named_tensors(&model).unwrap();
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = ((i * 7 + name.len()) % 11) as f32 / 20.0 - 0.25;
        }
    }
    with_named_tensors(model, &mut |name| tensors.remove(name)).unwrap()
}

/// An adapter as `check_ours.py` reads it: with its base's folder, beside it, and our logits.
pub fn write_adapter(folder: &Path, model: &DecoderLm, base: &str, tokens: &[u32]) {
    model.save_adapter(folder, &adapter_of("a-small-model")).unwrap();
    std::fs::write(folder.join("base.txt"), base).unwrap();
    write_logits(folder, tokens, &logits(model, tokens, &model.device()));
}

/// The logits that `check_ours.py` compares.
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
