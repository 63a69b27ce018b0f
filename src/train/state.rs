//! The state of a learner at a step, which checkpoints store.

use super::optimizer::Optimizer;
use super::selection::Selection;
use crate::model::CausalLm;
use crate::ranks::Ranks;

/// Everything that the next step depends on, besides settings and data.
pub(super) struct LearnerState<M> {
    pub(super) model: Option<M>,
    pub(super) optimizer: Box<dyn Optimizer<M>>,
    /// Steps made so far.
    pub(super) step: usize,
    pub(super) selection: Selection,
    /// Whether the evaluation of this step is still due.
    pub(super) evaluation_due: bool,
    /// The step of the newest checkpoint that was written or read.
    pub(super) saved: Option<usize>,
    /// Whether the checkpoint of the best step is kept.
    pub(super) keep_best: bool,
    /// The ranks that train together.
    pub(super) ranks: Ranks,
    /// Whether the optimizer state is sharded.
    pub(super) shards: bool,
}

impl<M: CausalLm> LearnerState<M> {
    /// Returns the model in its current state.
    ///
    /// # Panics
    /// If an earlier step panicked.
    pub(super) fn model(&self) -> &M {
        self.model.as_ref().expect("the model is put back after each step")
    }
}
