//! The parts of a job that makes pairs: the record of each part, its outcome, and joining them.

use super::TeacherPrompt;
use super::collect::Collected;
use super::config::MakePairsConfig;
use super::make::{CONFIG, Files, LEFT_OUT, PairsDirectory, RESPONSES};
use super::report::{AnswerCounts, PairsReport, ProblemCounts};
use super::round::{Chosen, Role};
use super::store::{Line, RequestHash, Store, from_hex, to_hex};
use crate::context::Context;
use crate::data::reading::Datasets;
use crate::error::{Error, Place, Result};
use crate::eval::BenchmarkProblem;
use crate::files::{
    JsonlLog, Output, PART, PartRecord, Parts, in_order, refused, remove_file, unfinished,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const OUTCOME: &str = "outcome.json";
const ANEW: &str = "Run the command of the part again, then join again";

/// The outcome of a part's problems.
#[derive(Serialize, Deserialize)]
struct Outcome {
    /// Counts over all problems of the job, before they were divided.
    problems: ProblemCounts,
    long: OfTeacher,
    short: OfTeacher,
}

#[derive(Serialize, Deserialize)]
struct OfTeacher {
    /// For each problem, the request and the sample of the kept answer.
    chosen: Vec<Option<(String, usize)>>,
    counts: AnswerCounts,
}

impl OfTeacher {
    fn of(collected: &Collected) -> Self {
        let chosen = collected.chosen.iter();
        let chosen =
            chosen.map(|of| of.map(|Chosen { request, sample }| (to_hex(&request), sample)));
        Self { chosen: chosen.collect(), counts: collected.counts.clone() }
    }

    /// Returns the kept answers; `None` if any of them is not stored.
    fn chosen(
        &self,
        problems: usize,
        stored: &HashSet<RequestHash>,
    ) -> Option<Vec<Option<Chosen>>> {
        let found = |(request, sample): &(String, usize)| {
            let request = from_hex(request).filter(|request| stored.contains(request))?;
            Some(Chosen { request, sample: *sample })
        };
        let chosen = self.chosen.iter().map(|of| match of {
            None => Some(None),
            Some(of) => found(of).map(Some),
        });
        chosen.collect::<Option<Vec<_>>>().filter(|chosen| chosen.len() == problems)
    }
}

/// Returns the problems of a directory: all of them, or those of its part, whose record it writes.
pub(super) fn own_problems(
    problems: Vec<BenchmarkProblem>,
    config: &MakePairsConfig,
    roles: &[Role<'_>; 2],
    out: &PairsDirectory,
) -> Result<Vec<BenchmarkProblem>> {
    let Some(part) = out.part() else { return Ok(problems) };
    // URLs, threads, and batches do not affect answers.
    let teacher = |role: &Role<'_>| {
        let nothing = TeacherPrompt {
            system: None,
            prompt: String::new(),
            seed: config.seed,
            n: role.config.n,
        };
        json!({
            "request": role.teacher.request(&nothing),
            "reasoning": role.config.reasoning,
            "price": role.config.price,
        })
    };
    let job = json!({
        "instruct": config.instruct,
        "samples": config.samples,
        "pick": config.pick,
        "keep": config.keep,
        "seed": config.seed,
        "long": teacher(&roles[0]),
        "short": teacher(&roles[1]),
    });
    let record = PartRecord::new(part, json!({}), job, problems)?;
    record.keep(&out.files().join(PART))?;
    // The outcome of an earlier call does not hold for this one.
    remove_file(&out.files().join(OUTCOME))?;
    Ok(record.own)
}

/// Writes the outcome of a part's problems, which marks the part as finished.
pub(super) fn keep_outcome(
    problems: &ProblemCounts,
    [long, short]: &[Collected; 2],
    left_out: &str,
    out: &PairsDirectory,
) -> Result<()> {
    out.files().write(LEFT_OUT, left_out)?;
    let (long, short) = (OfTeacher::of(long), OfTeacher::of(short));
    let outcome = Outcome { problems: problems.clone(), long, short };
    out.files().write_jsonl(OUTCOME, &[outcome])
}

/// A finished part.
struct Ended {
    outcome: Outcome,
    left_out: String,
    /// The kept answers of the long and the short teacher.
    chosen: [Vec<Option<Chosen>>; 2],
}

/// Joins the responses of all parts in a new or existing directory and writes rows, pairs, report, and card,
/// as if one process had asked. Asks no teacher and loads no model. The parts stay unchanged.
///
/// # Errors
/// All errors at once, with nothing written: [`Error::RunDirectory`] for a directory that is not a part,
/// belongs to another job, is given twice, or is not finished; [`Error::Config`] for missing parts;
/// [`Error::Server`] if a teacher refused all problems; same as [`make_pairs`](super::make_pairs) for the
/// contents of `out`.
pub fn join_pairs(parts: &[PathBuf], out: &Path, context: &Context<'_>) -> Result<PairsReport> {
    let parts = Parts::<BenchmarkProblem>::read(parts, |path| path.join(PART))?;
    let ended = parts.each(ended)?;
    for (part, ended_part) in parts.iter().zip(&ended) {
        same_left_out(&parts, &ended[0], part, ended_part)?;
    }
    let collected = [0, 1].map(|role| {
        let chosen = ended.iter().map(|part| part.chosen[role].clone()).collect();
        let mut counts = ended[0].counts(role).clone();
        ended.iter().skip(1).for_each(|part| counts.add(part.counts(role)));
        Collected { chosen: in_order(chosen).collect(), counts }
    });
    if let Some(Collected { counts, .. }) = collected.iter().find(|all| all.counts.all_refused()) {
        return Err(Error::Server {
            url: counts.model.clone(),
            what: format!("it refused all problems: {}", counts.reason.clone().unwrap_or_default()),
            hint: "Change its settings, run all parts again with them, then join again".into(),
        });
    }
    let config = MakePairsConfig::read(&parts.first().path.join(CONFIG))?;
    let out = PairsDirectory::open(out)?;
    let store = Store::open(&out.files().join(RESPONSES), context)?;
    let earlier = out.take_settings(&config, |is_other| {
        let mut chosen = collected.iter().flat_map(|part| part.chosen.iter().flatten());
        !is_other || store.len() == 0 || chosen.any(|chosen| store.holds(&chosen.request))
    })?;
    for part in parts.iter() {
        take_responses(&part.path, &store, context)?;
    }
    store.flush()?;
    Datasets::of(&parts.first().path)?.write(out.files())?;
    let own = parts.iter().map(|part| part.record.own.clone()).collect();
    let problems: Vec<BenchmarkProblem> = in_order(own).collect();
    let files = Files::new(&config, &out, &store, &problems, collected);
    let Ended { outcome, left_out, .. } = &ended[0];
    files.finish(outcome.problems.clone(), left_out, earlier, context)
}

impl Ended {
    fn counts(&self, role: usize) -> &AnswerCounts {
        if role == 0 { &self.outcome.long.counts } else { &self.outcome.short.counts }
    }
}

/// Reads a finished part without changing it.
fn ended(part: &Output<BenchmarkProblem>) -> Result<Ended> {
    PairsDirectory::check(&part.path)?;
    let problems = part.record.own.len();
    let path = part.path.join(OUTCOME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("not all of its {problems} problems were asked");
            return Err(unfinished(part, what));
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let outcome: Outcome = serde_json::from_str(&text).map_err(|e| {
        Error::data(Place::file(&path), format!("it is not the outcome of a part: {e}"), ANEW)
    })?;
    let mut stored = HashSet::new();
    each_response(&part.path, &mut |request, _| {
        stored.insert(request);
        Ok(())
    })?;
    let chosen = [&outcome.long, &outcome.short].map(|of| of.chosen(problems, &stored));
    let [Some(long), Some(short)] = chosen else {
        let what = "responses have disappeared since it finished";
        return Err(refused(&part.path, what, ANEW));
    };
    let path = part.path.join(LEFT_OUT);
    let left_out = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    Ok(Ended { outcome, left_out, chosen: [long, short] })
}

/// Refuses a part that left out other problems.
fn same_left_out(
    parts: &Parts<BenchmarkProblem>,
    first: &Ended,
    part: &Output<BenchmarkProblem>,
    ended: &Ended,
) -> Result<()> {
    if first.outcome.problems == ended.outcome.problems && first.left_out == ended.left_out {
        return Ok(());
    }
    let other = parts.first().path.display();
    let what = format!("it belongs to another job than {other}: other problems were left out");
    Err(refused(&part.path, what, "Join the parts of one job"))
}

/// Calls `each` for the responses of a part. An incomplete last line is skipped.
fn each_response(
    folder: &Path,
    each: &mut dyn FnMut(RequestHash, Line) -> Result<()>,
) -> Result<()> {
    let path = folder.join(RESPONSES);
    JsonlLog::open(&path, &mut |line| {
        let failed = |what: String| Error::data(Place::line(&path, line.number), what, ANEW);
        let response: Line =
            line.parse().map_err(|error| failed(format!("it is not a response: {error}")))?;
        let request = from_hex(&response.request)
            .ok_or_else(|| failed("its `request` is not a SHA-256 hash".into()))?;
        each(request, response)
    })
    .map(drop)
}

/// Copies the responses of a part that a store lacks.
fn take_responses(folder: &Path, store: &Store, context: &Context<'_>) -> Result<()> {
    each_response(folder, &mut |request, response| {
        context.check()?;
        match store.holds(&request) {
            true => Ok(()),
            false => store.put(&request, response),
        }
    })
}
