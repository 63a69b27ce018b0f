//! The decoder's training loss for a micro-batch.
//!
//! The head is applied only to positions with trained targets, in chunks, so no `[tokens, vocabulary]` tensor
//! exists. Noise on embeddings is a function of the seed, the row, and the position, so it does not depend on
//! batching or resuming.

use super::blocks::{DecoderLayer, int_tensor};
use super::causal_lm::{CausalLm, loss_and_gradients};
use super::decoder::{DecoderLm, LayerMetadata};
use super::objective::{Objective, StepOptions};
use super::precision::in_f32;
use super::tensors::lazy_tensors;
use crate::data::Batch;
use crate::ops::{TeacherTokens, TokenLoss, linear_token_loss};
use crate::random::Stream;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use rayon::prelude::*;

impl CausalLm for DecoderLm {
    fn vocabulary_size(&self) -> usize {
        self.config.vocab_size
    }

    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1> {
        self.objective_sum(batch, scale, &Objective::default())
    }

    fn objective_sum(&self, batch: &Batch, scale: f64, objective: &Objective) -> Tensor<1> {
        let metadata = LayerMetadata::batch(&self.config, batch, &self.device());
        let x = self.through_blocks(self.embed_batch(batch, objective), &metadata);
        self.loss_of_blocks(x, batch, scale, objective.token_loss())
    }

    fn supports(&self, _objective: &Objective) -> bool {
        true
    }

    fn loss_and_gradients(
        &self,
        batch: &Batch,
        scale: f64,
        options: &StepOptions,
    ) -> (Tensor<1>, GradientsParams) {
        match options.activation_checkpointing {
            true => self.checkpointed_gradients(batch, scale, &options.objective),
            false => loss_and_gradients(self, batch, scale, &options.objective),
        }
    }
}

impl DecoderLm {
    pub(super) fn layers(&self) -> &[DecoderLayer] {
        &self.model.layers
    }

    /// Returns whether the embedding is trained.
    pub(super) fn trains_embedding(&self) -> bool {
        self.model.embed_tokens.is_trained()
    }

    /// Returns the index of the first block with trained parameters, or the number of blocks if there is
    /// none.
    pub(super) fn first_trained_block(&self) -> usize {
        let is_trained = |layer: &DecoderLayer| !lazy_tensors(layer, true).is_empty();
        self.layers().iter().position(is_trained).unwrap_or(self.layers().len())
    }

    /// Returns the embeddings of a micro-batch, `[tokens, width]`, with the objective's noise.
    pub(super) fn embed_batch(&self, batch: &Batch, objective: &Objective) -> Tensor<2> {
        let device = self.device();
        let ids = int_tensor(batch.ids.iter().copied(), &device);
        let embedded = self.model.embed_tokens.forward(ids);
        self.scaled_embedding(match objective.neftune_alpha {
            0.0 => embedded,
            _ => {
                let noise = noise(batch, self.config.hidden_size, objective);
                let noise = TensorData::new(noise, embedded.dims());
                embedded + Tensor::from_data(noise, &device)
            }
        })
    }

    /// Returns the normalized output of the last block at positions with trained targets, `[trained, width]`.
    /// `None` if there are none.
    pub(super) fn hidden_at_targets(&self, batch: &Batch) -> Option<Tensor<2>> {
        let device = self.device();
        let trained = trained_places(batch);
        if trained.is_empty() {
            return None;
        }
        let metadata = LayerMetadata::batch(&self.config, batch, &device);
        let x = self.through_blocks(self.embed_batch(batch, &Objective::default()), &metadata);
        let places = int_tensor(trained.iter().map(|i| *i as u32), &device);
        Some(self.normalized(x).select(0, places))
    }

    /// Returns the loss, given the output of the last block; see [`CausalLm::objective_sum`].
    pub(super) fn loss_of_blocks(
        &self,
        x: Tensor<2>,
        batch: &Batch,
        scale: f64,
        terms: TokenLoss,
    ) -> Tensor<1> {
        let device = self.device();
        let hidden = self.normalized(x);
        // Only these positions reach the head.
        let trained = trained_places(batch);
        if trained.is_empty() {
            return in_f32(hidden).sum() * 0.0;
        }
        let places = int_tensor(trained.iter().map(|i| *i as u32), &device);
        let targets = int_tensor(trained.iter().map(|i| batch.targets[*i]), &device);
        let weights: Vec<f32> =
            trained.iter().map(|i| (f64::from(batch.weights[*i]) * scale) as f32).collect();
        let weights = Tensor::from_data(TensorData::new(weights, [trained.len()]), &device);
        let teacher = terms.distillation.map(|_| teacher_tokens(batch, trained.len(), &device));
        let hidden = hidden.select(0, places);
        linear_token_loss(hidden, self.head(), targets, weights, terms, teacher)
    }
}

/// Returns the positions of a batch with trained targets.
fn trained_places(batch: &Batch) -> Vec<usize> {
    (0..batch.weights.len()).filter(|i| batch.weights[*i] != 0.0).collect()
}

/// Returns the teacher's tokens of a batch, on the device.
///
/// # Panics
/// If there are none; the learner refuses such batches.
fn teacher_tokens(batch: &Batch, trained: usize, device: &Device) -> TeacherTokens {
    let top = batch.teacher.as_ref().expect("a batch for distillation has its teacher's tokens");
    let tokens = int_tensor(top.tokens.iter().copied(), device).reshape([trained, top.k]);
    let log_probs = TensorData::new(top.log_probs.clone(), [trained, top.k + 1]);
    TeacherTokens { tokens, log_probs: Tensor::from_data(log_probs, device) }
}

/// Returns the noise on the embeddings of a batch, `[tokens * width]`: a function of the seed and of each
/// token's row and position.
fn noise(batch: &Batch, width: usize, objective: &Objective) -> Vec<f32> {
    let mut noise = vec![0f32; batch.ids.len() * width];
    noise.par_chunks_mut(width).enumerate().for_each(|(token, values)| {
        let length = batch.lengths[token];
        if length == 0 {
            return;
        }
        let bound = objective.neftune_alpha / (f64::from(length) * width as f64).sqrt();
        let purpose = format!("neftune {}", batch.positions[token]);
        let mut random = Stream::new(objective.noise_seed, &purpose, batch.numbers[token]);
        values.iter_mut().for_each(|x| *x = ((2.0 * random.unit() - 1.0) * bound) as f32);
    });
    noise
}
