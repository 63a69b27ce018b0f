//! A judge for what the rules call wrong: another model that is shown problem, reference and answer.
//!
//! As in the paper, only misses go to the judge: answers that state something and that no rule finds
//! equal to the reference. Its verdicts are kept apart, so that both shares can be reported.

use super::evaluate::GradedAnswer;
use crate::context::{Context, Task};
use crate::error::{Error, Place, Result};
use crate::files::JsonlLog;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Says whether an answer is the reference answer.
pub trait Judge {
    /// Who it is, such as its model's name: verdicts of others are not taken for its own.
    fn name(&self) -> &str;

    /// Whether `stated` answers `problem` as `reference` does; `None` where the judge does not say.
    ///
    /// # Errors
    /// [`Error::Stopped`] where a stop was asked for meanwhile; whatever asking it may give.
    fn agrees(
        &mut self,
        problem: &str,
        reference: &str,
        stated: &str,
        context: &Context<'_>,
    ) -> Result<Option<bool>>;
}

/// What a judge is asked; it answers with yes or no.
pub fn judge_prompt(problem: &str, reference: &str, stated: &str) -> String {
    format!(
        "Problem:\n{problem}\n\nReference answer:\n{reference}\n\nA student's final answer:\n\
         {stated}\n\nIs the student's final answer equivalent to the reference answer? Answer with \
         one word, yes or no."
    )
}

/// The verdict in a judge's reply: its last "yes" or "no" as a word; `None` where it has neither.
///
/// ```
/// use mixdistill::eval::judge_verdict;
/// assert_eq!(judge_verdict("No wait. The answer is: **Yes**."), Some(true));
/// assert_eq!(judge_verdict("I know nothing."), None);
/// ```
pub fn judge_verdict(reply: &str) -> Option<bool> {
    let words = reply.split(|c: char| !c.is_alphanumeric());
    words.rev().find_map(|word| match word.to_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    })
}

/// A verdict as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    #[serde(default)]
    judge: String,
    problem: String,
    reference: String,
    stated: String,
    /// `None` where the judge did not say.
    agrees: Option<bool>,
}

/// Asks a judge about the answers that state something and are wrong by the rules, and sets
/// [`GradedAnswer::by_judge`]. Each verdict is appended to `store` as it comes, and what it holds already of
/// this judge is not asked again. Returns how many the judge said nothing clear of.
///
/// # Errors
/// [`Error::Stopped`] and what [`Judge::agrees`] gives: verdicts up to there stay. [`Error::Io`];
/// [`Error::Data`] where `store` holds something else, which is then left as it is.
pub fn judge_misses(
    answers: &mut [GradedAnswer],
    judge: &mut dyn Judge,
    store: &Path,
    context: &Context<'_>,
) -> Result<usize> {
    let name = judge.name().to_owned();
    let mut known = HashMap::new();
    let mut store = JsonlLog::open(store, &mut |line| {
        let verdict: Verdict = line.parse().map_err(|e| {
            let hint = "Name another directory, or remove this file to ask again";
            Error::data(Place::line(store, line.number), format!("it is no verdict: {e}"), hint)
        })?;
        if verdict.judge == name {
            known.insert((verdict.problem, verdict.reference, verdict.stated), verdict.agrees);
        }
        Ok(())
    })?;
    store.refuse_without_whole_line()?;
    // Cut off by a kill; it is asked again.
    store.cut_torn()?;
    let total = answers.iter().filter(|a| !a.correct && a.stated.is_some()).count();
    let mut progress = context.task(Task::Judge, total as u64);
    let (mut done, mut unclear) = (0, 0);
    for answer in answers.iter_mut().filter(|answer| !answer.correct) {
        let Some(stated) = &answer.stated else { continue };
        let key = (answer.problem.clone(), answer.reference.clone(), stated.clone());
        let agrees = match known.get(&key) {
            Some(agrees) => *agrees,
            None => {
                let agrees = judge.agrees(&key.0, &key.1, &key.2, context);
                let agrees = agrees.map_err(|error| verdicts_stay(error, done))?;
                let (problem, reference, stated) = key.clone();
                let verdict = Verdict { judge: name.clone(), problem, reference, stated, agrees };
                store.append(&[verdict])?;
                known.insert(key, agrees);
                agrees
            }
        };
        answer.by_judge = agrees;
        unclear += usize::from(agrees.is_none());
        done += 1;
        progress.update(done).map_err(|error| verdicts_stay(error, done))?;
    }
    Ok(unclear)
}

/// What a stop leaves.
fn verdicts_stay(error: Error, done: u64) -> Error {
    match error {
        Error::Stopped { .. } => Error::stopped(format!("{done} verdicts are stored")),
        error => error,
    }
}
