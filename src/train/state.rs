//! What a learner has at a step, and checkpoints hold.

use super::optimizer::Optimizer;
use super::selection::Selection;
use crate::model::CausalLm;
use crate::ranks::Ranks;

/// Everything that the next step depends on, beside settings and data.
pub(super) struct LearnerState<M> {
    pub(super) model: Option<M>,
    pub(super) optimizer: Box<dyn Optimizer<M>>,
    /// Steps made so far.
    pub(super) step: usize,
    pub(super) selection: Selection,
    /// Whether the evaluation of this step is still to be made.
    pub(super) evaluation_due: bool,
    /// The step of the newest checkpoint that was made or read.
    pub(super) saved: Option<usize>,
    /// Whether the checkpoint of the best step is kept.
    pub(super) keep_best: bool,
    /// Who else trains it.
    pub(super) ranks: Ranks,
    /// Whether each rank has the optimizer's state of its own parameters only.
    pub(super) shards: bool,
}

impl<M: CausalLm> LearnerState<M> {
    /// The model as it stands.
    ///
    /// # Panics
    /// If an earlier step panicked half way.
    pub(super) fn model(&self) -> &M {
        self.model.as_ref().expect("the model is put back after each step")
    }
}
