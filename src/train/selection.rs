//! Tracks the best step by held-out loss.

use crate::context::{BestStep, EvaluationReport};
use serde::{Deserialize, Serialize};

/// State for early stopping and `keep_best`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Selection {
    pub best: Option<BestStep>,
    /// Evaluations since the best one.
    pub since: usize,
}

impl Selection {
    /// Records an evaluation. Returns whether it is the best so far.
    pub fn note(&mut self, report: &EvaluationReport) -> bool {
        if report.sources.is_empty() {
            return false;
        }
        let sum: f64 = report.sources.iter().map(|source| source.loss).sum();
        let loss = sum / report.sources.len() as f64;
        if self.best.is_none_or(|best| loss < best.loss) {
            *self = Self { best: Some(BestStep { step: report.step, loss }), since: 0 };
            return true;
        }
        self.since += 1;
        false
    }
}
