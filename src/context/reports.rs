//! Reports of training: steps, evaluations, graded answers, and the outcome.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the step's trained tokens: the cross-entropy in nats plus the terms of the objective.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Rows in the step.
    pub rows: usize,
    /// Input tokens in the step, without padding.
    pub tokens: usize,
    /// Trained tokens in the step.
    pub trained_tokens: usize,
    /// Padding positions in the step.
    pub padding: usize,
    /// Wall time of the step in seconds.
    pub seconds: f64,
}

/// Held-out loss of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// The source's name.
    pub name: String,
    /// Rows evaluated.
    pub rows: usize,
    /// Trained tokens in those rows.
    pub trained_tokens: usize,
    /// Mean cross-entropy over those tokens, in nats.
    pub loss: f64,
}

/// Held-out losses after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// The step, counted from 1; 0 is before training.
    pub step: usize,
    /// One entry per source.
    pub sources: Vec<SourceLoss>,
    /// Wall time of the evaluation in seconds.
    pub seconds: f64,
}

/// Graded answers to held-out problems during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Problems asked.
    pub questions: usize,
    /// Correct answers.
    pub correct: usize,
    /// Mean number of tokens per answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit truncated, from 0 to 1.
    pub hit_limit: f64,
    /// Wall time of answering in seconds.
    pub seconds: f64,
}

/// A sample answer to a held-out problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleAnswer {
    /// The step, counted from 1.
    pub step: usize,
    /// The problem.
    pub problem: String,
    /// The model's answer.
    pub text: String,
    /// The reference answer.
    pub reference: String,
    /// Whether the answer is correct.
    pub correct: bool,
}

/// A step and its held-out loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestStep {
    /// The step, counted from 1.
    pub step: usize,
    /// Mean of the sources' held-out losses.
    pub loss: f64,
}

/// The result of a training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps made in total.
    pub step: usize,
    /// Steps requested.
    pub total_steps: usize,
    /// Whether a stop request ended it early.
    pub stopped: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Steps that this process skipped because their loss or gradient was not finite.
    pub skipped: Vec<usize>,
    /// The step with the lowest held-out loss.
    pub best: Option<BestStep>,
    /// Input tokens used by this process, without padding.
    pub tokens: u64,
    /// Trained tokens used by this process.
    pub trained_tokens: u64,
    /// Wall time of training in this process, in seconds.
    pub seconds: f64,
}

/// Number and share of correct answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Questions asked.
    pub questions: usize,
    /// Correct answers.
    pub correct: usize,
    /// Share of correct answers, from 0 to 1.
    pub accuracy: f64,
    /// The 95% Wilson interval of the share.
    pub interval: (f64, f64),
    /// Mean number of tokens per answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit truncated.
    pub hit_limit: f64,
    /// Share of answers without a final answer.
    pub without_answer: f64,
}

impl fmt::Display for Accuracy {
    /// Writes one sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval;
        write!(
            f,
            "{} of {} correct = {:.1}% (95% interval {:.1} to {:.1}%), {:.0} tokens per answer, \
             {:.1}% truncated, {:.1}% without a final answer",
            self.correct,
            self.questions,
            100.0 * self.accuracy,
            100.0 * low,
            100.0 * high,
            self.mean_tokens,
            100.0 * self.hit_limit,
            100.0 * self.without_answer,
        )
    }
}

/// The progress of asking two teachers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairsProgress {
    /// Problems that are decided, each counted once per teacher.
    pub done: usize,
    /// All problems, each counted once per teacher.
    pub of: usize,
    /// Problems with a correct answer so far, for the long and the short teacher.
    pub correct: [usize; 2],
    /// Tokens that both teachers generated in this run.
    pub new_tokens: u64,
    /// Prompt tokens and generated tokens of both teachers in this run.
    pub tokens: [u64; 2],
    /// Cost of this run's tokens.
    pub cost: f64,
    /// Seconds spent asking.
    pub seconds: f64,
}

impl PairsProgress {
    /// Describes the progress in one line.
    pub fn message(&self) -> String {
        let [long, short] = self.correct;
        let speed = self.new_tokens as f64 / self.seconds.max(1e-3);
        let [asked, answered] = self.tokens;
        let mut text = format!(
            "correct {long} + {short}, {speed:.0} tokens/s, {asked} prompt tokens, {answered} generated"
        );
        if self.cost > 0.0 {
            text.push_str(&format!(", cost {:.2}", self.cost));
        }
        text
    }
}
