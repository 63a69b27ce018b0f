//! A judge for what the rules call wrong: another model that is shown problem, reference and answer.
//!
//! As in the paper, only misses go to the judge: answers that state something and that no rule finds
//! equal to the reference. Its verdicts are kept apart, so that both shares can be reported.

use super::benchmark::Benchmark;
use super::evaluate::Judged;
use crate::error::Result;
use std::collections::HashMap;

/// Says whether an answer is the reference answer.
pub trait Judge {
    /// Whether `stated` answers `problem` as `reference` does.
    ///
    /// # Errors
    /// Whatever asking it may give.
    fn agrees(&mut self, problem: &str, reference: &str, stated: &str) -> Result<bool>;
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

/// Asks a judge about the answers that state something and are wrong by the rules, and sets
/// [`Judged::by_judge`]. `progress` is called with the answers judged so far, and all.
///
/// # Errors
/// As [`Judge::agrees`]; verdicts up to there stay.
pub fn judge_misses(
    benchmark: &Benchmark,
    answers: &mut [Judged],
    judge: &mut dyn Judge,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let problems: HashMap<&str, &str> = benchmark
        .problems
        .iter()
        .map(|problem| (problem.id.as_str(), problem.problem.as_str()))
        .collect();
    let is_miss = |answer: &Judged| !answer.correct && answer.by_judge.is_none();
    let of = answers.iter().filter(|a| is_miss(a) && a.stated.is_some()).count();
    let mut done = 0;
    for answer in answers.iter_mut().filter(|answer| is_miss(answer)) {
        let (Some(stated), Some(problem)) = (&answer.stated, problems.get(answer.id.as_str()))
        else {
            continue;
        };
        answer.by_judge = Some(judge.agrees(problem, &answer.reference, stated)?);
        done += 1;
        progress(done, of);
    }
    Ok(())
}
