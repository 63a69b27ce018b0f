//! The interface that training requires of a model.

use super::objective::{Objective, StepOptions};
use crate::data::Batch;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// A causal language model that a [`Learner`](crate::train::Learner) can train.
pub trait CausalLm: Module {
    /// Returns the number of tokens in the vocabulary.
    fn vocabulary_size(&self) -> usize;

    /// Returns the weighted sum of the trained targets' cross-entropies (in nats), times `scale`, in f32:
    /// `scale * sum_i weights[i] * -log p(targets[i] | ids[..=i])`.
    ///
    /// # Shapes
    /// Result: `[1]`.
    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1>;

    /// Returns the training loss: the sum of [`CausalLm::loss_sum`], with the objective's terms added to each
    /// trained token's cross-entropy. By default, there is only the cross-entropy. Models that implement
    /// other objectives must override [`CausalLm::supports`] too.
    fn objective_sum(&self, batch: &Batch, scale: f64, objective: &Objective) -> Tensor<1> {
        let _ = objective;
        self.loss_sum(batch, scale)
    }

    /// Returns whether the model implements an objective.
    fn supports(&self, objective: &Objective) -> bool {
        objective.is_cross_entropy()
    }

    /// Returns the training loss, on the device without autodiff, and its gradients. A model may recompute
    /// activations in the backward pass if `options` asks for it; the default never does.
    fn loss_and_gradients(
        &self,
        batch: &Batch,
        scale: f64,
        options: &StepOptions,
    ) -> (Tensor<1>, GradientsParams) {
        loss_and_gradients(self, batch, scale, &options.objective)
    }
}

/// Computes loss and gradients in one pass.
pub(super) fn loss_and_gradients<M: CausalLm>(
    model: &M,
    batch: &Batch,
    scale: f64,
    objective: &Objective,
) -> (Tensor<1>, GradientsParams) {
    let loss = model.objective_sum(batch, scale, objective);
    let value = loss.clone().inner();
    (value, GradientsParams::from_grads(loss.backward(), model))
}
