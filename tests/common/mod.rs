//! Shared by the tests of models and training.
#![allow(dead_code, reason = "each test program uses a part")]

use burn::tensor::Device;
use mixdistill::data::{Example, Row};
use mixdistill::model::{Architecture, DecoderConfig};

/// The backends that this build can run here without a GPU.
#[allow(deprecated, reason = "Burn deprecates ndarray in favour of flex")]
pub fn devices() -> Vec<Device> {
    [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
    ]
    .to_vec()
}

/// Two layers, four query heads on two key-value heads.
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
        ..DecoderConfig::default()
    }
}

/// Rows of tokens below 23 with these lengths and prompts; token 0 stands for padding too, so that
/// a mask by token would show.
pub fn rows(shapes: &[(usize, usize)]) -> Vec<Row> {
    shapes
        .iter()
        .enumerate()
        .map(|(index, &(length, prompt))| Row {
            tokens: (0..length).map(|i| ((i * i * 7 + index * 5 + i) % 23) as u32).collect(),
            prompt,
            label: format!("row {index}"),
        })
        .collect()
}

pub fn examples(rows: &[Row]) -> impl Iterator<Item = Example<'_>> {
    rows.iter().map(Row::example)
}

/// Largest difference over the largest magnitude.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-12f64, |m, x| m.max(f64::from(x.abs())));
    let worst = a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max(f64::from((x - y).abs())));
    worst / scale
}
