//! Asks and grades held-out questions before, during, and after training.

use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use crate::context::{Context, GradedReport, SampleAnswer};
use crate::error::Result;
use crate::eval::{Answer, AnswerKind, Question, ask, ask_as};
use crate::files::{LastLine, read_values};
use crate::model::Generate;
use crate::ranks::{Ranks, Topic};
use crate::train::Grader;
use std::collections::VecDeque;
use std::time::Instant;

/// Asks some of the held-out questions at each evaluation.
pub(super) struct QuestionGrader<'a> {
    pub config: &'a RunConfig,
    pub prepared: &'a Prepared,
    pub ranks: &'a Ranks,
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
        let answers = asked(self.config, self.prepared, model, questions, self.ranks, context)?;
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

/// Returns the model's answers to questions. Ranks share the questions, and all of them get all answers.
pub(super) fn asked(
    config: &RunConfig,
    prepared: &Prepared,
    model: &dyn Generate,
    questions: &[Question],
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let (text, kind) = (prepared.text_interface(), config.evaluation.kind);
    if ranks.is_solo() {
        return ask(model, &text, questions, kind, &config.generate, context);
    }
    let own = (0..questions.len()).filter(|index| index % ranks.count() == ranks.rank());
    let numbers: Vec<u64> = own.clone().map(|index| index as u64).collect();
    let own: Vec<Question> = own.map(|index| questions[index].clone()).collect();
    let context = context.without_stop();
    let answers = ask_as(model, &text, &own, &numbers, kind, &config.generate, &context)?;
    let mut all = ranks.all_json(Topic::Answers, &VecDeque::from(answers))?;
    let in_turn = (0..questions.len()).filter_map(|index| all[index % ranks.count()].pop_front());
    Ok(in_turn.collect())
}

/// Asks the held-out questions and stores the answers.
pub(super) fn graded(
    config: &RunConfig,
    prepared: &Prepared,
    model: &dyn Generate,
    directory: &RunDirectory,
    name: &str,
    ranks: &Ranks,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let answers = asked(config, prepared, model, &prepared.questions, ranks, context)?;
    directory.write_jsonl(name, &answers)?;
    Ok(answers)
}

/// Returns the stored answers of a run, graded again by the rules of this version.
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
