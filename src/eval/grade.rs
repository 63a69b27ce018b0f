//! Asking a model questions and counting its right answers.

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

/// Whether a prompt ends within reasoning that it has opened, so that an answer begins there.
///
/// # Errors
/// What the tokenizer gives.
pub fn opens_reasoning(tokenizer: &TextTokenizer, prompt: &[u32]) -> Result<bool> {
    /// More tokens than the mark and the white space behind it have in any tokenizer.
    const LAST: usize = 24;
    let text = tokenizer.decode_all(&prompt[prompt.len().saturating_sub(LAST)..])?;
    Ok(ends_in_reasoning(&text))
}

/// A model's answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The system's text, where the problem comes with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The exchanges before the problem, in a conversation of several turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTurn>,
    /// The problem.
    pub problem: String,
    /// The reference answer.
    pub reference: String,
    /// What the model wrote.
    pub text: String,
    /// Whether the prompt had opened its reasoning, so that the text begins within it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning_opened: bool,
    /// Its tokens, the end token left out.
    pub tokens: usize,
    /// Whether the length limit ended it.
    pub hit_limit: bool,
    /// The final answer that it states, if any.
    pub stated: Option<String>,
    /// Whether that is the reference answer.
    pub correct: bool,
}

impl Answer {
    /// The prompt that it answers.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { system: self.system.as_deref(), earlier: &self.earlier, problem: &self.problem }
    }

    /// The same answer, graded anew: what an earlier version said of it is forgotten.
    pub fn graded_anew(mut self, kind: AnswerKind) -> Self {
        self.stated = kind.answer_after(&self.text, self.reasoning_opened);
        self.correct = self.stated.as_ref().is_some_and(|s| same_answer(&self.reference, s));
        self
    }
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
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); as [`Generate::generate`]; what template and tokenizer give.
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

/// As [`ask`], of questions that have these numbers among others: their random choices are those that
/// they have there.
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
