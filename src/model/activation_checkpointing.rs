//! Activation checkpointing (arXiv 1604.06174): gradients with less memory.
//!
//! The forward pass keeps only each block's input. The backward pass recomputes one block at a time, this
//! time with gradients, and then frees it. The feed-forward part has the widest activations, so it processes
//! long rows in pieces. The gradients are the same; the cost is one extra forward pass.

use super::blocks::{AttentionMetadata, DecoderLayer, Stream};
use super::decoder::{DecoderLm, LayerMetadata};
use super::objective::Objective;
use crate::data::Batch;
use crate::ops::pieces;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Gradients, Tensor};
use std::ops::Range;

/// Backpropagates the gradient of `y` to the inputs of `y`.
fn through(y: Tensor<2>, gradient: Tensor<2>) -> Gradients {
    (y * Tensor::from_inner(gradient)).sum().backward()
}

/// Returns the gradient of a block's input, given the gradient of its output (`above`). Parameter gradients
/// go to `add`. The feed-forward part processes the tokens in pieces.
fn through_block(
    layer: &DecoderLayer,
    input: &Tensor<2>,
    above: Tensor<2>,
    metadata: &AttentionMetadata,
    pieces: impl Iterator<Item = Range<usize>>,
    add: &mut impl FnMut(Gradients),
) -> Option<Tensor<2>> {
    let x = Tensor::from_inner(input.clone()).require_grad();
    let middle = layer.add_attention(Stream::new(x.clone()), metadata).value();
    let of_pieces = pieces.filter_map(|piece| {
        let part = |of: &Tensor<2>| of.clone().slice([piece.clone()]);
        let x = Tensor::from_inner(part(&middle.clone().inner())).require_grad();
        let dropout = metadata.dropout().map(|keys| keys.slice(piece.clone()));
        let y = layer.add_mlp(Stream::new(x.clone()), dropout.as_ref()).value();
        let gradients = through(y, part(&above));
        let gradient = x.grad(&gradients);
        add(gradients);
        gradient
    });
    let of_middle = Tensor::cat(of_pieces.collect(), 0);
    drop(above);
    let gradients = through(middle, of_middle);
    let gradient = x.grad(&gradients);
    add(gradients);
    gradient
}

impl DecoderLm {
    /// Returns the loss of a micro-batch, as in [`CausalLm::objective_sum`](super::CausalLm::objective_sum)
    /// but on the device without autodiff, and its gradients.
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
        let mut add = |gradients: Gradients| {
            all.accumulate(self, GradientsParams::from_grads(gradients, self));
        };
        // Nothing below this block is trained.
        let first = if self.trains_embedding() { 0 } else { self.first_trained_block() };
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
            let Some(above) = gradient.take().filter(|_| number >= first) else { break };
            let pieces = pieces(above.dims()[0]);
            gradient = through_block(layer, input, above, metadata.of(number), pieces, &mut add);
        }
        if let Some(above) = gradient.filter(|_| self.trains_embedding()) {
            add(through(self.embed_batch(batch, objective), above));
        }
        (value, all.grads())
    }

    /// Returns the inputs of all blocks and the output of the last one, on the device without autodiff.
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::lora::DropoutKeys;
    use crate::model::tensors::HostTensor;
    use crate::model::{DecoderLayerConfig, LoraConfig, MlpConfig, SelfAttentionConfig};
    use crate::train::named_gradients;
    use burn::tensor::{Device, Distribution};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn pieces_change_no_bit_of_a_gradient() {
        const TOKENS: usize = 4200;
        let device = Device::flex().autodiff();
        let attention = SelfAttentionConfig::new(64, 2);
        let config = DecoderLayerConfig::new(attention.clone(), MlpConfig::new(64, 112));
        let whole = config.init(1, &device).unwrap();
        let mut adapted = whole.clone().no_grad();
        let lora = LoraConfig { rank: 4, dropout: 0.2, ..LoraConfig::default() };
        for (name, linear) in adapted.mlp.linear_layers_mut() {
            linear.attach(&lora.of_layer(), name, 3);
            // Move B away from its initial zeros.
            linear.lora_B = linear.lora_B.take().map(|mut b| {
                b.weight = b
                    .weight
                    .map(|b| b.clone().random_like(Distribution::Default).detach().require_grad());
                b
            });
        }
        let tokens = (0..TOKENS as u32).map(|place| (7, place)).collect();
        // Rows of 100 tokens keep attention cheap.
        let metadata = AttentionMetadata::rows(&attention, TOKENS / 100, 100, &device)
            .with_dropout(DropoutKeys { tokens: Arc::new(tokens) });
        for layer in [whole, adapted] {
            let random = || {
                Tensor::<2>::random([TOKENS, 64], Distribution::Default, &device.clone().inner())
            };
            let (input, above) = (random(), random());
            let gradients = |pieces: Vec<Range<usize>>| {
                let mut all = GradientsAccumulator::new();
                let mut add = |gradients: Gradients| {
                    all.accumulate(&layer, GradientsParams::from_grads(gradients, &layer));
                };
                let of_input = through_block(
                    &layer,
                    &input,
                    above.clone(),
                    &metadata,
                    pieces.into_iter(),
                    &mut add,
                );
                let of_input = of_input.unwrap().into_data().try_to_vec::<f32>().unwrap();
                (of_input, named_gradients(&layer, &all.grads()).unwrap())
            };
            let whole: (Vec<f32>, BTreeMap<String, HostTensor>) =
                gradients(std::iter::once(0..TOKENS).collect());
            let in_pieces = gradients(pieces(TOKENS).collect());
            assert_eq!(pieces(TOKENS).count(), 2);
            assert!(whole.0 == in_pieces.0, "the input's gradient");
            assert!(whole.1.keys().eq(in_pieces.1.keys()) && whole.1.len() > 2);
            for (name, gradient) in &whole.1 {
                assert!(*gradient == in_pieces.1[name], "{name}");
            }
        }
    }
}
