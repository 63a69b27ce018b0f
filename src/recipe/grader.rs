//! Held-out questions, answered and graded: before, during and after training.

use super::config::RunConfig;
use super::directory::RunDirectory;
use super::prepare::Prepared;
use crate::error::{Error, Result};
use crate::eval::{Answer, AnswerKind, Question, ask};
use crate::model::DecoderLm;
use crate::train::{GradedReport, Grader, Progress, Sample};
use std::ops::ControlFlow;
use std::time::Instant;

/// Asks some of the held-out questions during training.
pub(super) struct QuestionGrader<'a> {
    pub config: &'a RunConfig,
    pub prepared: &'a Prepared,
}

impl Grader<DecoderLm> for QuestionGrader<'_> {
    fn grade(
        &mut self,
        model: &DecoderLm,
        step: usize,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(GradedReport, Vec<Sample>)>> {
        let start = Instant::now();
        let evaluation = &self.config.evaluation;
        let count = evaluation.during_training.min(self.prepared.questions.len());
        let questions = &self.prepared.questions[..count];
        let mut given_up = false;
        let answers = asked(self.config, self.prepared, model, questions, &mut |done| {
            given_up |= !progress(done, count) && done < count;
            if given_up { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if given_up {
            return Ok(None);
        }
        let share = |sum: usize| sum as f64 / count.max(1) as f64;
        let report = GradedReport {
            step,
            questions: count,
            correct: answers.iter().filter(|answer| answer.correct).count(),
            mean_tokens: share(answers.iter().map(|answer| answer.tokens).sum()),
            hit_limit: share(answers.iter().filter(|answer| answer.hit_limit).count()),
            seconds: start.elapsed().as_secs_f64(),
        };
        let samples = answers.into_iter().take(evaluation.samples).map(|answer| Sample {
            step,
            problem: answer.problem,
            text: answer.text,
            reference: answer.reference,
            correct: answer.correct,
        });
        Ok(Some((report, samples.collect())))
    }
}

fn asked(
    config: &RunConfig,
    prepared: &Prepared,
    model: &DecoderLm,
    questions: &[Question],
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Answer>> {
    ask(model, &prepared.answering(), questions, config.evaluation.kind, &config.generate, progress)
}

/// Lets the model answer the held-out questions, and stores the answers.
pub(super) fn graded(
    config: &RunConfig,
    prepared: &Prepared,
    model: &DecoderLm,
    directory: &RunDirectory,
    name: &str,
) -> Result<Vec<Answer>> {
    let mut progress = Progress::new("answer", prepared.questions.len() as u64);
    let answers = asked(config, prepared, model, &prepared.questions, &mut |done| {
        progress.update(done as u64, String::new);
        ControlFlow::Continue(())
    })?;
    drop(progress);
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
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let parse = |(index, line): (usize, &str)| {
        let answer = serde_json::from_str(line).map(|answer: Answer| answer.graded_anew(kind));
        answer.map_err(|e| {
            let place = crate::error::Place::line(&path, index + 1);
            Error::data(place, e.to_string(), "Remove the file")
        })
    };
    text.lines().enumerate().map(parse).collect()
}
