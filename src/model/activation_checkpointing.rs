//! Gradients with little memory: activation checkpointing (arXiv 1604.06174).
//!
//! The forward pass keeps each block's input only. Backwards, block by block, the block is computed
//! once more, with gradients this time, and let go of again. The result is the same; the price is
//! one more forward pass.

use super::decoder::{DecoderLm, LayerMetadata};
use super::objective::Objective;
use crate::data::Batch;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;

impl DecoderLm {
    /// The loss of a micro-batch as [`CausalLm::objective_sum`](super::CausalLm::objective_sum) gives
    /// it, on the device without autodiff, and its gradients.
    pub(super) fn checkpointed_gradients(
        &self,
        batch: &Batch,
        scale: f64,
        objective: &Objective,
    ) -> (Tensor<1>, GradientsParams) {
        let device = self.device();
        let metadata = LayerMetadata::batch(self.config(), batch, &device);
        let inputs = self.block_inputs(batch, &metadata, objective);
        let mut all = GradientsAccumulator::new();
        let mut add = |gradients| {
            all.accumulate(self, GradientsParams::from_grads(gradients, self));
        };
        // The gradient that a tensor's consumer gives it, carried on to what the tensor is made of.
        let through = |y: Tensor<2>, gradient: Tensor<2>| (y * Tensor::from_inner(gradient)).sum();

        let [blocks @ .., last] = inputs.as_slice() else {
            unreachable!("the output of the last block is always there")
        };
        let x = Tensor::from_inner(last.clone()).require_grad();
        let loss = self.loss_of_blocks(x.clone(), batch, scale, objective.token_loss());
        let value = loss.clone().inner();
        let gradients = loss.backward();
        let mut gradient = x.grad(&gradients);
        add(gradients);
        for (number, (layer, input)) in self.layers().iter().zip(blocks).enumerate().rev() {
            let Some(above) = gradient else { break };
            let x = Tensor::from_inner(input.clone()).require_grad();
            let y = layer.forward(x.clone(), metadata.of(number));
            let gradients = through(y, above).backward();
            gradient = x.grad(&gradients);
            add(gradients);
        }
        if let Some(above) = gradient.filter(|_| self.trains_embedding()) {
            add(through(self.embed_batch(batch, objective), above).backward());
        }
        (value, all.grads())
    }

    /// The inputs of all blocks, and the output of the last, on the device without autodiff.
    fn block_inputs(
        &self,
        batch: &Batch,
        metadata: &LayerMetadata,
        objective: &Objective,
    ) -> Vec<Tensor<2>> {
        let plain = self.valid();
        let metadata = metadata.inner();
        let mut inputs = vec![plain.embed_batch(batch, objective)];
        for (number, layer) in plain.layers().iter().enumerate() {
            let x = inputs[inputs.len() - 1].clone();
            inputs.push(layer.forward(x, metadata.of(number)));
        }
        inputs
    }
}
