//! Held-out questions, answered and graded: before, during and after training.

use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use crate::context::{Context, GradedReport, SampleAnswer};
use crate::error::Result;
use crate::eval::{Answer, AnswerKind, Question, ask};
use crate::files::{LastLine, read_values};
use crate::model::Generate;
use crate::train::Grader;
use std::time::Instant;

/// Asks some of the held-out questions during training.
pub(super) struct QuestionGrader<'a> {
    pub config: &'a RunConfig,
    pub prepared: &'a Prepared,
}

impl<M: Generate> Grader<M> for QuestionGrader<'_> {
    fn grade(
        &mut self,
        model: &M,
        step: usize,
        context: &Context<'_>,
    ) -> Result<(GradedReport, Vec<SampleAnswer>)> {
        let start = Instant::now();
        let evaluation = &self.config.evaluation;
        let count = evaluation.during_training.min(self.prepared.questions.len());
        let questions = &self.prepared.questions[..count];
        let answers = asked(self.config, self.prepared, model, questions, context)?;
        let share = |sum: usize| sum as f64 / count.max(1) as f64;
        let report = GradedReport {
            step,
            questions: count,
            correct: answers.iter().filter(|answer| answer.correct).count(),
            mean_tokens: share(answers.iter().map(|answer| answer.tokens).sum()),
            hit_limit: share(answers.iter().filter(|answer| answer.hit_limit).count()),
            seconds: start.elapsed().as_secs_f64(),
        };
        let samples = answers.into_iter().take(evaluation.samples).map(|answer| SampleAnswer {
            step,
            problem: answer.problem,
            text: answer.text,
            reference: answer.reference,
            correct: answer.correct,
        });
        Ok((report, samples.collect()))
    }
}

fn asked(
    config: &RunConfig,
    prepared: &Prepared,
    model: &dyn Generate,
    questions: &[Question],
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    ask(
        model,
        &prepared.text_interface(),
        questions,
        config.evaluation.kind,
        &config.generate,
        context,
    )
}

/// Lets the model answer the held-out questions, and stores the answers.
pub(super) fn graded(
    config: &RunConfig,
    prepared: &Prepared,
    model: &dyn Generate,
    directory: &RunDirectory,
    name: &str,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let answers = asked(config, prepared, model, &prepared.questions, context)?;
    directory.write_jsonl(name, &answers)?;
    Ok(answers)
}

/// The answers that a run has stored, graded anew by the rules of this version.
pub(super) fn read_answers(
    directory: &RunDirectory,
    name: &str,
    kind: AnswerKind,
) -> Result<Vec<Answer>> {
    let path = directory.path(name);
    if !path.exists() {
        return Ok(vec![]);
    }
    let answers: Vec<Answer> = read_values(&path, LastLine::Counts, "Remove the file")?;
    Ok(answers.into_iter().map(|answer| answer.graded_anew(kind)).collect())
}
