//! What training asks of a model.

use super::objective::{Objective, StepOptions};
use crate::data::Batch;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// All that the [`Learner`](crate::train::Learner) knows of a model.
pub trait CausalLm: Module {
    /// Number of tokens that the model knows.
    fn vocabulary_size(&self) -> usize;

    /// `scale` times the sum of the cross-entropies (in nats) of the trained targets, each times
    /// its weight: `scale * sum_i weights[i] * -log p(targets[i] | ids[..=i])`, in f32.
    ///
    /// # Shapes
    /// Result: `[1]`.
    fn loss_sum(&self, batch: &Batch, scale: f64) -> Tensor<1>;

    /// The loss that is trained for: that sum, with what the objective adds to each trained
    /// token's cross-entropy. A model that takes objectives says so in [`CausalLm::supports`]; by
    /// default there is only the cross-entropy.
    fn objective_sum(&self, batch: &Batch, scale: f64, objective: &Objective) -> Tensor<1> {
        let _ = objective;
        self.loss_sum(batch, scale)
    }

    /// Whether the model can be trained for an objective.
    fn supports(&self, objective: &Objective) -> bool {
        objective.is_cross_entropy()
    }

    /// The loss that is trained for, on the device without autodiff, and its gradients. A model
    /// that can do so recomputes its activations in the backward pass where it is asked to; by
    /// default none is.
    fn loss_and_gradients(
        &self,
        batch: &Batch,
        scale: f64,
        options: &StepOptions,
    ) -> (Tensor<1>, GradientsParams) {
        loss_and_gradients(self, batch, scale, &options.objective)
    }
}

/// Loss and gradients in one pass.
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
