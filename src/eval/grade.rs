//! Asks a model questions and counts its correct answers.

use super::interval::wilson;
use super::math::{AnswerKind, same_answer};
use super::question::Question;
use crate::context::{Accuracy, Context, Task};
use crate::data::chat::reasoning::ends_in_reasoning;
use crate::data::{EarlierTurn, Prompt, TextTokenizer};
use crate::error::Result;
use crate::model::{Generate, GenerateConfig, StopConditions, TextInterface};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// Returns whether a prompt ends with an opened reasoning, so that an answer starts inside it.
///
/// # Errors
/// Errors of the tokenizer.
pub fn opens_reasoning(tokenizer: &TextTokenizer, prompt: &[u32]) -> Result<bool> {
    /// More tokens than the marker and the white space after it take in any tokenizer.
    const LAST: usize = 24;
    let text = tokenizer.decode_all(&prompt[prompt.len().saturating_sub(LAST)..])?;
    Ok(ends_in_reasoning(&text))
}

/// A model's answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The system message, if the problem comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The earlier turns of a conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// The text of the model.
    pub text: String,
    /// Whether the prompt opened the reasoning, so that the text starts inside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning_opened: bool,
    /// Number of tokens without the end token.
    pub tokens: usize,
    /// Whether the length limit truncated the answer.
    pub hit_limit: bool,
    /// The final answer that the text states, if any.
    pub stated: Option<String>,
    /// Whether the stated answer equals the reference.
    pub correct: bool,
}

impl Answer {
    /// Returns the prompt of the question.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), earlier: &self.earlier, problem: &self.problem }
    }

    /// Grades the answer again and replaces the earlier grade.
    pub fn graded_anew(mut self, kind: AnswerKind) -> Self {
        self.stated = kind.answer_after(&self.text, self.reasoning_opened);
        self.correct = self.stated.as_ref().is_some_and(|s| same_answer(&self.reference, s));
        self
    }
}

impl Accuracy {
    /// Returns the accuracy of answers, with their statistics.
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

/// Lets a model answer questions and grades the answers. `kind` says where to look for the final answer.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); errors of [`Generate::generate`], the template, and the
/// tokenizer.
pub fn ask(
    model: &dyn Generate,
    text: &TextInterface<'_>,
    questions: &[Question],
    kind: AnswerKind,
    config: &GenerateConfig,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let numbers: Vec<u64> = (0..questions.len() as u64).collect();
    ask_as(model, text, questions, &numbers, kind, config, context)
}

/// Same as [`ask`], for questions with the given numbers, which determine their random draws.
pub(crate) fn ask_as(
    model: &dyn Generate,
    text: &TextInterface<'_>,
    questions: &[Question],
    numbers: &[u64],
    kind: AnswerKind,
    config: &GenerateConfig,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let TextInterface { tokenizer, template, end_tokens } = *text;
    let prompts = questions
        .iter()
        .map(|question| template.prompt(tokenizer, question.prompt()))
        .collect::<Result<Vec<_>>>()?;
    let opened = prompts
        .iter()
        .map(|prompt| opens_reasoning(tokenizer, prompt))
        .collect::<Result<Vec<_>>>()?;
    let stop_conditions = StopConditions { tokens: end_tokens, tokenizer };
    let mut progress = context.task(Task::Answer, questions.len() as u64);
    let mut given_up = None;
    let answers = model.generate_as(&prompts, numbers, stop_conditions, config, &mut |token| {
        progress.add_tokens(1);
        match progress.update(token.finished as u64) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                given_up = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = given_up {
        return Err(error);
    }
    questions
        .iter()
        .zip(answers)
        .zip(opened)
        .map(|((question, answer), reasoning_opened)| {
            let answer = Answer {
                system: question.system.clone(),
                earlier: question.earlier.clone(),
                problem: question.problem.clone(),
                reference: question.reference.clone(),
                text: answer.text(tokenizer)?,
                reasoning_opened,
                tokens: answer.tokens.len(),
                hit_limit: answer.hit_limit(),
                stated: None,
                correct: false,
            };
            Ok(answer.graded_anew(kind))
        })
        .collect()
}
