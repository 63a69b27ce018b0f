//! Selects the problems to ask: without duplicates and without problems of benchmarks.

use super::report::ProblemCounts;
use crate::context::{Context, Task};
use crate::data::{OverlapKind, TrainingProblems, near_duplicates_watched, plain};
use crate::error::Result;
use crate::eval::{Benchmark, BenchmarkProblem, same_answer};
use std::collections::HashMap;

/// A problem that is left out, and why; written to `left-out.jsonl`.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct LeftOut {
    id: String,
    problem: String,
    because: &'static str,
    /// The problem that it duplicates.
    like: String,
}

/// Returns the problems to ask in order, those that are left out, and the counts.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped).
pub(super) fn sieve(
    problems: Vec<BenchmarkProblem>,
    benchmarks: &[Benchmark],
    threshold: f64,
    context: &Context<'_>,
) -> Result<(Vec<BenchmarkProblem>, Vec<LeftOut>, ProblemCounts)> {
    let mut counts = ProblemCounts { read: problems.len(), ..ProblemCounts::default() };
    let mut left_out = vec![];
    let mut out = |problem: &BenchmarkProblem, because, like: String| {
        let (id, text) = (problem.id.clone(), problem.problem.clone());
        left_out.push(LeftOut { id, problem: text, because, like });
    };

    let mut first_of: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<BenchmarkProblem> = vec![];
    for problem in problems {
        match first_of.get(&plain(&problem.problem)) {
            Some(first) => {
                let first = &kept[*first];
                counts.duplicates += 1;
                let same = same_answer(&first.reference, &problem.reference);
                counts.contradictions += usize::from(!same);
                out(&problem, "same text", first.id.clone());
            }
            None => {
                first_of.insert(plain(&problem.problem), kept.len());
                kept.push(problem);
            }
        }
    }

    let mut drop = vec![false; kept.len()];
    let texts = kept.iter().map(|problem| problem.problem.as_str());
    let pairs = {
        let mut progress = context.task(Task::FindNearDuplicates, kept.len() as u64);
        near_duplicates_watched(texts, threshold, &mut |done| progress.update(done))?
    };
    for alike in pairs.chunk_by(|a, b| a.text == b.text) {
        let problem = &kept[alike[0].text];
        // With another answer, it is another problem made from the same template.
        let same = alike.iter().find(|pair| {
            !drop[pair.earlier] && same_answer(&kept[pair.earlier].reference, &problem.reference)
        });
        match same {
            Some(pair) => {
                counts.near_duplicates += 1;
                drop[pair.text] = true;
                let like = kept[pair.earlier].id.clone();
                out(problem, "nearly the same text and the same answer", like);
            }
            None if alike.iter().any(|pair| !drop[pair.earlier]) => counts.variants += 1,
            None => {}
        }
    }
    in_benchmarks(&kept, benchmarks, context, &mut |asked, because, like| {
        let is_new = !std::mem::replace(&mut drop[asked], true);
        if is_new {
            counts.in_benchmarks += 1;
            out(&kept[asked], because, like);
        }
    })?;
    let mut keep = drop.iter().map(|drop| !drop);
    kept.retain(|_| keep.next().unwrap_or(true));
    counts.asked = kept.len();
    Ok((kept, left_out, counts))
}

/// Calls `found` for each problem that is in a benchmark, with its index, why, and the benchmark problem.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped).
fn in_benchmarks(
    kept: &[BenchmarkProblem],
    benchmarks: &[Benchmark],
    context: &Context<'_>,
    found: &mut dyn FnMut(usize, &'static str, String),
) -> Result<()> {
    let of_benchmarks: usize = benchmarks.iter().map(|benchmark| benchmark.problems.len()).sum();
    let compared = of_benchmarks + benchmarks.len() * kept.len();
    let mut progress = context.task(Task::FindOverlaps, compared as u64);
    for benchmark in benchmarks {
        let mut index = TrainingProblems::default();
        for problem in &benchmark.problems {
            index.add(&problem.problem);
            progress.advance()?;
        }
        for (asked, problem) in kept.iter().enumerate() {
            progress.advance()?;
            let Some(overlap) = index.overlap(asked, &problem.problem) else { continue };
            let because = match overlap.kind {
                OverlapKind::SameText => "same text as in a benchmark",
                OverlapKind::SharedWords => "thirteen words in a row as in a benchmark",
            };
            let like = &benchmark.problems[overlap.training];
            found(overlap.test, because, format!("{} {}", benchmark.name, like.id));
        }
    }
    Ok(())
}
