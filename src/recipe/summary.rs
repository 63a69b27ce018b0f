//! The summary of a run, from its metrics and measurements.

use super::config::{RunConfig, stored};
use super::pilots::ShareProposal;
use super::prepare::{Prepared, SeenOfSource};
use crate::context::{Accuracy, BestStep, EvaluationReport, Outcome, StepReport};
use crate::data::{Ledger, MixtureReport};
use crate::device;
use crate::error::Result;
use crate::eval::Answer;
use crate::model::DecoderLm;
use crate::model::tensors::{NamedTensor, lazy_tensors};
use crate::train::{Metric, read_metrics};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// All figures of a run, as in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The settings.
    #[serde(deserialize_with = "stored")]
    pub config: RunConfig,
    /// The backend.
    pub backend: String,
    /// Number of parameters of the student, including adapters.
    pub parameters: usize,
    /// Number of trained parameters.
    pub trained_parameters: usize,
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// SHA-256 of the training tokens.
    pub data: String,
    /// What happened to every record.
    pub ledger: Ledger,
    /// The mixture in its first epoch.
    pub mixture: MixtureReport,
    /// The proposal of the pilots, if they found the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pilots: Option<ShareProposal>,
    /// Grades of the answers to held-out problems before training.
    pub before: Option<Accuracy>,
    /// Grades of the answers to held-out problems after training.
    pub after: Option<Accuracy>,
    /// Mean training loss of the first steps, up to ten.
    pub first_loss: f64,
    /// Mean training loss of the last steps, up to ten.
    pub last_loss: f64,
    /// Input tokens of all steps, without padding.
    pub tokens: u64,
    /// Trained tokens of all steps.
    pub trained_tokens: u64,
    /// Padding positions of all steps.
    pub padding: u64,
    /// What training has seen of each source. Empty in summaries of earlier versions.
    #[serde(default)]
    pub seen: Vec<SeenOfSource>,
    /// Wall time of all steps in seconds.
    pub training_seconds: f64,
    /// Input tokens per second of the steps' wall time.
    pub tokens_per_second: f64,
    /// Held-out losses before training and at each evaluation.
    pub evaluations: Vec<EvaluationReport>,
    /// How training ended in the last process of the run.
    pub outcome: Outcome,
    /// The first answers to held-out problems after training.
    pub samples: Vec<Answer>,
    /// Peak memory of the last process in MiB, without GPU memory. Known on Linux only.
    pub peak_memory_mib: Option<f64>,
    /// Total wall time of the last process in seconds.
    pub seconds: f64,
}

impl Summary {
    /// Returns the evaluation of the final weights: the last one, or that of the best step with
    /// `train.keep_best`.
    pub fn final_evaluation(&self) -> Option<&EvaluationReport> {
        let best = self.outcome.best.filter(|_| self.config.train.keep_best);
        let of_best = |best: BestStep| self.evaluations.iter().find(|e| e.step == best.step);
        best.and_then(of_best).or(self.evaluations.last())
    }
}

/// The number of a student's parameters, and of those that are trained.
#[derive(Clone, Copy)]
pub(super) struct Parameters {
    pub all: usize,
    pub trained: usize,
}

impl Parameters {
    pub fn of(model: &DecoderLm) -> Self {
        let size = |tensor: &NamedTensor| tensor.shape.iter().product::<usize>();
        Self {
            all: model.parameter_count(),
            trained: lazy_tensors(model, true).iter().map(size).sum(),
        }
    }
}

/// Measurements of a run that are not in its metrics file.
pub(super) struct Measured {
    pub before: Option<Accuracy>,
    pub after: Option<Accuracy>,
    pub samples: Vec<Answer>,
    pub outcome: Outcome,
    pub parameters: Parameters,
    pub start: Instant,
}

impl Summary {
    /// Returns the summary of a run, given its metrics file.
    ///
    /// # Errors
    /// See [`read_metrics`].
    pub(super) fn of(
        config: &RunConfig,
        prepared: &Prepared,
        metrics: &Path,
        measured: Measured,
    ) -> Result<Self> {
        let (mut steps, mut evaluations) = (vec![], vec![]);
        let stored = if metrics.exists() { read_metrics(metrics)? } else { vec![] };
        for metric in stored {
            match metric {
                Metric::Step(step) => steps.push(step),
                Metric::Evaluation(evaluation) => evaluations.push(evaluation),
                Metric::Graded(_) => {}
            }
        }
        let mean_loss = |part: &[StepReport]| {
            part.iter().map(|step| step.loss).sum::<f64>() / part.len().max(1) as f64
        };
        // The first and last steps must not overlap.
        let edge = (steps.len() / 2).clamp(1, 10).min(steps.len());
        let sum =
            |part: fn(&StepReport) -> usize| steps.iter().map(|s| part(s) as u64).sum::<u64>();
        let training_seconds = steps.iter().map(|step| step.seconds).sum::<f64>();
        let tokens = sum(|step| step.tokens);
        Ok(Self {
            backend: backend_name(config),
            parameters: measured.parameters.all,
            trained_parameters: measured.parameters.trained,
            vocabulary: prepared.model.vocab_size,
            data: prepared.fingerprint.clone(),
            ledger: prepared.ledger.clone(),
            mixture: prepared.report.clone(),
            pilots: prepared.pilots.as_deref().cloned(),
            before: measured.before,
            after: measured.after,
            first_loss: mean_loss(&steps[..edge]),
            last_loss: mean_loss(&steps[steps.len() - edge..]),
            tokens,
            trained_tokens: sum(|step| step.trained_tokens),
            padding: sum(|step| step.padding),
            seen: prepared.seen(sum(|step| step.rows)),
            training_seconds,
            tokens_per_second: tokens as f64 / training_seconds.max(1e-9),
            evaluations,
            outcome: measured.outcome,
            samples: measured.samples,
            peak_memory_mib: device::peak_memory_mib(),
            seconds: measured.start.elapsed().as_secs_f64(),
            config: config.clone(),
        })
    }
}

/// Returns the name of the backend, with `auto` resolved.
pub(super) fn backend_name(config: &RunConfig) -> String {
    device::resolved(&config.backend).to_owned()
}
