//! What training reports: steps, evaluations, graded answers, the outcome.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the step's trained tokens: the cross-entropy in nats, with what the objective
    /// adds to it.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Rows of the step.
    pub rows: usize,
    /// Input tokens of the step, padding left out.
    pub tokens: usize,
    /// Trained tokens of the step.
    pub trained_tokens: usize,
    /// Padding of the step, in positions.
    pub padding: usize,
    /// Wall time of the step.
    pub seconds: f64,
}

/// Held-out loss of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// The source's name.
    pub name: String,
    /// Rows evaluated.
    pub rows: usize,
    /// Trained tokens of those rows.
    pub trained_tokens: usize,
    /// Mean cross-entropy of those tokens, in nats.
    pub loss: f64,
}

/// Held-out losses after a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// The step, counted from 1; 0 is before training.
    pub step: usize,
    /// One line for each source.
    pub sources: Vec<SourceLoss>,
    /// Wall time of the evaluation.
    pub seconds: f64,
}

/// Answers to held-out problems during training, graded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradedReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Problems that were asked.
    pub questions: usize,
    /// Right answers.
    pub correct: usize,
    /// Mean tokens of an answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit ended.
    pub hit_limit: f64,
    /// Wall time of answering.
    pub seconds: f64,
}

/// An answer to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleAnswer {
    /// The step, counted from 1.
    pub step: usize,
    /// The problem.
    pub problem: String,
    /// What the model wrote.
    pub text: String,
    /// The reference answer.
    pub reference: String,
    /// Whether it was reached.
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

/// How training ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps made in total.
    pub step: usize,
    /// Steps asked for.
    pub total_steps: usize,
    /// Whether it was asked to stop before its end.
    pub stopped: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Steps of this process that were left out because their loss or gradient was not finite.
    pub skipped: Vec<usize>,
    /// The step with the lowest held-out loss.
    pub best: Option<BestStep>,
    /// Input tokens seen in this process, padding left out.
    pub tokens: u64,
    /// Trained tokens seen in this process.
    pub trained_tokens: u64,
    /// Wall time of training in this process.
    pub seconds: f64,
}

/// Right answers, counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Questions.
    pub questions: usize,
    /// Right answers.
    pub correct: usize,
    /// Share of right answers, 0 to 1.
    pub accuracy: f64,
    /// Its 95 % interval (Wilson).
    pub interval: (f64, f64),
    /// Mean tokens of an answer.
    pub mean_tokens: f64,
    /// Share of answers that the length limit ended.
    pub hit_limit: f64,
    /// Share of answers that state no final answer.
    pub without_answer: f64,
}

impl fmt::Display for Accuracy {
    /// The grade in one sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval;
        write!(
            f,
            "{} of {} right = {:.1} % (95 % interval {:.1} to {:.1} %), {:.0} tokens an answer, \
             {:.1} % at the length limit, {:.1} % without a final answer",
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

/// How far the asking of two teachers is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairsProgress {
    /// Problems whose fate is known, each once for each teacher.
    pub done: usize,
    /// All of them.
    pub of: usize,
    /// Problems with a correct answer so far: of the long and of the short teacher.
    pub correct: [usize; 2],
    /// Tokens answered in this run, by both.
    pub new_tokens: u64,
    /// Tokens asked and answered in this run, by both.
    pub tokens: [u64; 2],
    /// What this run's tokens cost.
    pub cost: f64,
    /// Seconds that the asking has taken.
    pub seconds: f64,
}

impl PairsProgress {
    /// In words.
    pub fn message(&self) -> String {
        let [long, short] = self.correct;
        let speed = self.new_tokens as f64 / self.seconds.max(1e-3);
        let [asked, answered] = self.tokens;
        let mut text = format!(
            "correct {long} + {short}, {speed:.0} tokens/s, {asked} tokens asked, {answered} answered"
        );
        if self.cost > 0.0 {
            text.push_str(&format!(", cost {:.2}", self.cost));
        }
        text
    }
}
