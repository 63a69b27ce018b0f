//! A judge for answers that the rules grade as wrong: another model that sees the problem, the reference, and
//! the answer.
//!
//! As in the paper, only misses go to the judge: answers that state a final answer that no rule finds equal
//! to the reference. Its verdicts are stored separately, so that both accuracies can be reported.

use super::evaluate::GradedAnswer;
use crate::context::{Context, Task};
use crate::error::{Error, Place, Result};
use crate::files::JsonlLog;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Decides whether an answer is equivalent to the reference answer.
pub trait Judge {
    /// Returns the judge's name, such as its model. Only stored verdicts of the same name are reused.
    fn name(&self) -> &str;

    /// Returns whether `stated` is equivalent to `reference` as an answer to `problem`. `None` if the judge
    /// gives no clear verdict.
    ///
    /// # Errors
    /// [`Error::Stopped`] if a stop was requested; errors of asking the judge.
    fn agrees(
        &mut self,
        problem: &str,
        reference: &str,
        stated: &str,
        context: &Context<'_>,
    ) -> Result<Option<bool>>;
}

/// Returns the prompt for a judge, which asks for yes or no.
pub fn judge_prompt(problem: &str, reference: &str, stated: &str) -> String {
    format!(
        "Problem:\n{problem}\n\nReference answer:\n{reference}\n\nA student's final answer:\n\
         {stated}\n\nIs the student's final answer equivalent to the reference answer? Answer with \
         one word, yes or no."
    )
}

/// Returns the verdict in a judge's reply: the last word "yes" or "no", or `None` if it has neither.
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

/// A stored verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    #[serde(default)]
    judge: String,
    problem: String,
    reference: String,
    stated: String,
    /// `None` if the verdict was not clear.
    agrees: Option<bool>,
}

/// Asks a judge about answers that state a final answer and are wrong by the rules, and sets
/// [`GradedAnswer::by_judge`]. Appends each verdict to `store` and reuses this judge's verdicts in it.
/// Returns the number of unclear verdicts.
///
/// # Errors
/// [`Error::Stopped`] and errors of [`Judge::agrees`]: earlier verdicts stay in `store`. [`Error::Io`];
/// [`Error::Data`] if `store` holds something else, which then stays unchanged.
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
            let hint = "Choose another directory, or remove this file to ask again";
            Error::data(Place::line(store, line.number), format!("it is not a verdict: {e}"), hint)
        })?;
        if verdict.judge == name {
            known.insert((verdict.problem, verdict.reference, verdict.stated), verdict.agrees);
        }
        Ok(())
    })?;
    store.refuse_without_whole_line()?;
    // An incomplete line after a crash; its question is asked again.
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

/// Adds to a stop how many verdicts are saved.
fn verdicts_stay(error: Error, done: u64) -> Error {
    match error {
        Error::Stopped { .. } => Error::stopped(format!("{done} verdicts are saved")),
        error => error,
    }
}
