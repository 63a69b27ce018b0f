//! A judge for what the rules call wrong: another model that is shown problem, reference and answer.
//!
//! As in the paper, only misses go to the judge: answers that state something and that no rule finds
//! equal to the reference. Its verdicts are kept apart, so that both shares can be reported.

use super::evaluate::Judged;
use crate::error::{Error, Place, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Says whether an answer is the reference answer.
pub trait Judge {
    /// Who it is, such as its model's name: verdicts of others are not taken for its own.
    fn name(&self) -> &str;

    /// Whether `stated` answers `problem` as `reference` does; `None` where the judge does not say.
    ///
    /// # Errors
    /// Whatever asking it may give.
    fn agrees(&mut self, problem: &str, reference: &str, stated: &str) -> Result<Option<bool>>;
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
/// [`Judged::by_judge`]. Each verdict is appended to `store` as it comes, and what it holds already of
/// this judge is not asked again. `progress` is called with the answers judged so far, and all. Returns how many
/// the judge said nothing clear of.
///
/// # Errors
/// As [`Judge::agrees`]; verdicts up to there stay. [`Error::Io`]; [`Error::Data`] where `store` holds
/// something else, which is then left as it is.
pub fn judge_misses(
    answers: &mut [Judged],
    judge: &mut dyn Judge,
    store: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<usize> {
    let mut known = HashMap::new();
    let name = judge.name().to_owned();
    let bytes = match std::fs::read(store) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
        Err(e) => return Err(Error::io("read", store, e)),
    };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole == 0 && !bytes.is_empty() {
        let hint = "If it is of an evaluation that was killed at its beginning, remove it";
        return Err(Error::data(Place::file(store), "it holds no whole line", hint));
    }
    let lines = bytes[..whole].split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let verdict: Verdict = serde_json::from_slice(line).map_err(|e| {
            let hint = "Name another directory, or remove this file to ask again";
            Error::data(Place::line(store, index + 1), format!("it is no verdict: {e}"), hint)
        })?;
        if verdict.judge == name {
            known.insert((verdict.problem, verdict.reference, verdict.stated), verdict.agrees);
        }
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(store)
        .map_err(|e| Error::io("open", store, e))?;
    if whole < bytes.len() {
        // Cut off by a kill; it is asked again.
        let cut = OpenOptions::new().write(true).open(store);
        cut.and_then(|file| file.set_len(whole as u64))
            .map_err(|e| Error::io("write", store, e))?;
    }
    let of = answers.iter().filter(|a| !a.correct && a.stated.is_some()).count();
    let (mut done, mut unclear) = (0, 0);
    for answer in answers.iter_mut().filter(|answer| !answer.correct) {
        let Some(stated) = &answer.stated else { continue };
        let key = (answer.problem.clone(), answer.reference.clone(), stated.clone());
        let agrees = match known.get(&key) {
            Some(agrees) => *agrees,
            None => {
                let agrees = judge.agrees(&key.0, &key.1, &key.2)?;
                let (problem, reference, stated) = key.clone();
                let verdict = Verdict { judge: name.clone(), problem, reference, stated, agrees };
                let line = serde_json::to_string(&verdict)
                    .map_err(|e| Error::io("write", store, std::io::Error::other(e)))?;
                file.write_all((line + "\n").as_bytes())
                    .map_err(|e| Error::io("write", store, e))?;
                known.insert(key, agrees);
                agrees
            }
        };
        answer.by_judge = agrees;
        unclear += usize::from(agrees.is_none());
        done += 1;
        progress(done, of);
    }
    Ok(unclear)
}
