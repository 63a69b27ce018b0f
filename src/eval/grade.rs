//! Asking a model questions and counting its right answers.

use super::benchmark::AnswerKind;
use super::evaluate::Answering;
use super::interval::wilson;
use super::math::same_answer;
use crate::error::Result;
use crate::model::{DecoderLm, Endings, GenerateConfig};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// A problem and its reference answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The problem.
    pub problem: String,
    /// The reference answer, as [`final_answer`](super::final_answer) gives it.
    pub reference: String,
}

/// A model's answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The problem.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// What the model wrote.
    pub text: String,
    /// Its tokens, the end token left out.
    pub tokens: usize,
    /// Whether the length limit ended it.
    pub hit_limit: bool,
    /// The final answer that it states, if any.
    pub stated: Option<String>,
    /// Whether that is the reference answer.
    pub correct: bool,
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

impl Accuracy {
    /// Counts answers.
    pub fn of(answers: &[Answer]) -> Self {
        let count = |test: &dyn Fn(&Answer) -> bool| answers.iter().filter(|a| test(a)).count();
        let share = |n: usize| n as f64 / answers.len().max(1) as f64;
        let correct = count(&|answer| answer.correct);
        Self {
            questions: answers.len(),
            correct,
            accuracy: share(correct),
            interval: wilson(correct, answers.len()),
            mean_tokens: share(answers.iter().map(|answer| answer.tokens).sum()),
            hit_limit: share(count(&|answer| answer.hit_limit)),
            without_answer: share(count(&|answer| answer.stated.is_none())),
        }
    }
}

/// Lets a model answer questions and grades the answers, which are looked for as `kind` says; an answer
/// stops at one of the end tokens.
///
/// `progress` is called with the answers finished so far; where it breaks, those that are not
/// finished end as they are.
///
/// # Errors
/// As [`DecoderLm::generate`]; what template and tokenizer give.
pub fn ask(
    model: &DecoderLm,
    answering: &Answering<'_>,
    questions: &[Question],
    kind: AnswerKind,
    config: &GenerateConfig,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Answer>> {
    let Answering { tokenizer, template, end_tokens } = *answering;
    let prompts = questions
        .iter()
        .map(|question| template.prompt(tokenizer, &question.problem))
        .collect::<Result<Vec<_>>>()?;
    let endings = Endings { tokens: end_tokens, tokenizer };
    let answers =
        model.generate(&prompts, endings, config, &mut |token| progress(token.finished))?;
    questions
        .iter()
        .zip(answers)
        .map(|(question, answer)| {
            let text = answer.text(tokenizer)?;
            let stated = kind.answer(&text);
            let correct = stated.as_ref().is_some_and(|s| same_answer(&question.reference, s));
            Ok(Answer {
                problem: question.problem.clone(),
                reference: question.reference.clone(),
                text,
                tokens: answer.tokens.len(),
                hit_limit: answer.hit_limit(),
                stated,
                correct,
            })
        })
        .collect()
}
