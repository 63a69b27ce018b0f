//! Which step was the best by held-out loss, and whether it is long ago.

use super::observer::EvaluationReport;
use serde::{Deserialize, Serialize};

/// A step and its held-out loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step, counted from 1.
    pub step: usize,
    /// Mean of the sources' held-out losses.
    pub loss: f64,
}

/// What early stopping remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Selection {
    pub best: Option<Best>,
    /// Evaluations since then.
    pub since: usize,
}

impl Selection {
    /// Takes note of an evaluation; says whether it is the best so far.
    pub fn note(&mut self, report: &EvaluationReport) -> bool {
        if report.sources.is_empty() {
            return false;
        }
        let sum: f64 = report.sources.iter().map(|source| source.loss).sum();
        let loss = sum / report.sources.len() as f64;
        if self.best.is_none_or(|best| loss < best.loss) {
            *self = Self { best: Some(Best { step: report.step, loss }), since: 0 };
            return true;
        }
        self.since += 1;
        false
    }
}
