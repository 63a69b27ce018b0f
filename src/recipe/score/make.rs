//! Scores answers, reusing stored scores.

use super::file::{ScoreFile, part_of};
use super::join::ScoredAnswer;
use super::steps::{answer_steps, mean_log_probabilities, step_rows};
use super::{LEAST_NLL, LalpConfig, MOST_RANK, NO_TOKENS_RSR, RowScores, ScoreOptions};
use crate::context::{Context, Task};
use crate::data::batching::row_key;
use crate::data::{Batch, Row};
use crate::device;
use crate::error::{Error, Result};
use crate::files::{PartRecord, grouped};
use crate::model::{DecoderLm, Precision, TargetScore, TextInterface};
use crate::part::Part;
use crate::recipe::config::RunConfig;
use crate::recipe::prepare::Prepared;
use crate::recipe::student;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ops::Range;

/// Scores and the work that they took.
pub(super) struct Made {
    pub rows: Vec<RowScores>,
    /// Number of answers that were scored earlier.
    pub before: usize,
    /// Tokens that the student has read.
    pub read_tokens: u64,
}

/// Scores all answers of a run's data with its untuned student, in order.
///
/// # Errors
/// See [`write_scores`](super::write_scores).
pub(crate) fn score_run(
    config: &RunConfig,
    prepared: &Prepared,
    options: &ScoreOptions,
    context: &Context<'_>,
) -> Result<Vec<RowScores>> {
    scored(config, prepared, options, context).map(|made| made.rows)
}

/// Like [`score_run`]. With a file, reuses its scores and appends new ones; the student is loaded only if
/// scores are missing. An answer without tokens to score has 0 tokens and [`NO_TOKENS_RSR`]; a notice reports
/// how many there are.
pub(super) fn scored(
    config: &RunConfig,
    prepared: &Prepared,
    options: &ScoreOptions,
    context: &Context<'_>,
) -> Result<Made> {
    let identity = student_identity(config, prepared)?;
    let ScoreOptions { file, lalp, part } = options;
    let mut store = ScoreFile::open(file.as_deref(), &identity, *lalp, *part)?;
    let mut answers = all_answers(prepared, &store, context)?;
    if let Some(part) = part {
        // The answers to a problem stay in the same part: some may be equal.
        let problems = grouped(answers, |a, b| a.problem == b.problem);
        if let Some(file) = file {
            part_record(*part, &identity, &problems, prepared)?.keep(&part_of(file))?;
        }
        let own = problems.into_iter().enumerate().filter(|(index, _)| part.holds(*index));
        answers = own.flat_map(|(_, answers)| answers).collect();
    }
    tell_others(&answers, &store, context)?;
    let (total, before) = (answers.len(), answers.iter().filter(|a| a.was_there).count());
    let text = prepared.text_interface();
    let reader = match before < total {
        true => {
            let model = untuned(config, prepared, context)?;
            Some(Reader { model, text: &text, lalp: *lalp })
        }
        false => None,
    };
    let mut progress = context.resumed_task(Task::Score, total as u64, before as u64);
    let (mut places, mut done, mut read_tokens) = (Vec::with_capacity(total), before, 0);
    let stopped = |error, store: &ScoreFile, done| match error {
        Error::Stopped { .. } => Error::stopped(store.kept(done, total)),
        error => error,
    };
    for answer in &answers {
        // Two sources may have the same answer.
        let scores = match (store.get(&answer.key), &reader) {
            (Some(known), _) => known.clone(),
            (None, Some(reader)) => {
                let Some(row) = prepared.row_of(answer.source, answer.record) else { continue };
                let (scores, read) =
                    reader.scores(&row, context).map_err(|error| stopped(error, &store, done))?;
                progress.add_tokens(read);
                read_tokens += read;
                scores
            }
            (None, None) => continue,
        };
        places.push(store.put(answer.named(prepared, scores))?);
        if !answer.was_there {
            done += 1;
            progress.update(done as u64).map_err(|error| stopped(error, &store, done))?;
        }
    }
    store.finish()?;
    // Stored lines may have the labels of an earlier file of the source.
    let rows = store.into_rows(&places).into_iter().zip(&answers);
    let rows: Vec<RowScores> = rows.map(|(row, answer)| answer.named(prepared, row)).collect();
    let without = rows.iter().filter(|row| row.tokens == 0).count();
    if without > 0 {
        let answers =
            if without == 1 { "1 answer has" } else { &format!("{without} answers have") };
        context.notice(format!("warning: {answers} no tokens to score"))?;
    }
    Ok(Made { rows, before, read_tokens })
}

/// Returns the record that identifies a part and its answers.
fn part_record(
    part: Part,
    student: &Value,
    problems: &[Vec<Answer>],
    prepared: &Prepared,
) -> Result<PartRecord<Vec<ScoredAnswer>>> {
    let sources = prepared.mixture.pairs().sources().iter();
    let job = json!({ "sources": sources.map(|source| source.name()).collect::<Vec<_>>() });
    let scored = |answer: &Answer| {
        let RowScores { row, source, id, label, .. } = answer.named(prepared, RowScores::default());
        ScoredAnswer { row, source, id, label }
    };
    let all = problems.iter().map(|answers| answers.iter().map(scored).collect());
    PartRecord::new(part, json!({ "student": student }), job, all)
}

/// Returns the student of a run before training.
fn untuned(config: &RunConfig, prepared: &Prepared, context: &Context<'_>) -> Result<DecoderLm> {
    // Untrained adapters have no effect.
    let untuned = RunConfig { lora: None, ..config.clone() };
    let device = device::by_name(&config.backend)?;
    student(&untuned, prepared, &device, context)?.with_precision(config.precision)
}

/// An answer to score, without its tokens.
struct Answer {
    problem: usize,
    source: usize,
    record: usize,
    /// Key of the row.
    key: String,
    /// Whether the file already has complete scores.
    was_there: bool,
}

impl Answer {
    /// Scores with the source, id, and label of the answer.
    fn named(&self, prepared: &Prepared, scores: RowScores) -> RowScores {
        let source = &prepared.mixture.pairs().sources()[self.source];
        RowScores {
            row: self.key.clone(),
            source: source.name().to_owned(),
            id: source.records()[self.record].id.clone(),
            label: source.label(self.record),
            ..scores
        }
    }
}

/// Returns all answers in order.
fn all_answers(
    prepared: &Prepared,
    store: &ScoreFile,
    context: &Context<'_>,
) -> Result<Vec<Answer>> {
    let mut all = vec![];
    for (problem, source, record) in prepared.answer_places() {
        context.check()?;
        let Some(row) = prepared.row_of(source, record) else { continue };
        let key = row_key(&row.example());
        let was_there = store.get(&key).is_some();
        all.push(Answer { problem, source, record, key, was_there });
    }
    Ok(all)
}

/// Warns if most scores in a file belong to other rows.
fn tell_others(answers: &[Answer], store: &ScoreFile, context: &Context<'_>) -> Result<()> {
    let Some(path) = store.path().filter(|_| store.rows() > 0) else { return Ok(()) };
    let known = answers.iter().filter(|answer| store.knows(&answer.key)).map(|a| a.key.as_str());
    let (count, rows) = (known.clone().count(), known.collect::<HashSet<_>>().len());
    // An incomplete file has few of the answers, but no others.
    if 2 * count >= answers.len() || 2 * rows >= store.rows() {
        return Ok(());
    }
    let (total, others, path) = (answers.len(), store.rows() - rows, path.display());
    context.notice(format!(
        "warning: {count} of {total} answers are in {path}, which has the scores of {others} other rows. \
         They may come from other data, or from another chat template, system text, length limit, or \
         date. Missing answers are scored and added"
    ))
}

/// Stores scores that were computed without a file, so that [`score_run`] finds them.
///
/// # Errors
/// See [`write_scores`](super::write_scores).
pub(crate) fn keep_scores(
    config: &RunConfig,
    prepared: &Prepared,
    options: &ScoreOptions,
    rows: &[RowScores],
) -> Result<()> {
    let identity = student_identity(config, prepared)?;
    let mut store = ScoreFile::open(options.file.as_deref(), &identity, options.lalp, None)?;
    rows.iter().try_for_each(|row| store.put(row.clone()).map(drop))?;
    store.finish()
}

/// Returns the identity of a run's untuned student, computed without loading it: a fingerprint of its weight
/// files or the seed of random weights, its shape, and its number types.
pub(crate) fn student_identity(config: &RunConfig, prepared: &Prepared) -> Result<Value> {
    let mut identity = match &prepared.base {
        Some(folder) => json!({ "weights": folder.files_fingerprint()? }),
        None => json!({ "seed": config.seed }),
    };
    identity["shape"] = json!(prepared.model);
    if !config.base.is_f32() {
        identity["base"] = json!(config.base);
    }
    if config.precision != Precision::F32 {
        identity["precision"] = json!(config.precision);
    }
    Ok(identity)
}

/// A student that reads answers.
struct Reader<'a> {
    model: DecoderLm,
    text: &'a TextInterface<'a>,
    lalp: Option<LalpConfig>,
}

impl Reader<'_> {
    /// Returns the scores of a row without source, id, and label, and the number of tokens read.
    fn scores(&self, row: &Row, context: &Context<'_>) -> Result<(RowScores, u64)> {
        let example = row.example();
        let (batch, trained) = (Batch::new([example], 1), example.trained_ranges());
        let answers: Vec<Range<usize>> =
            trained.iter().map(|range| without_end(row, range, self.text.end_tokens)).collect();
        let all = self.model.target_scores(&batch)?;
        let mut all = all.into_iter();
        let mut scored = vec![];
        for (trained, answer) in trained.iter().zip(&answers) {
            let of_answer = all.by_ref().take(trained.len());
            scored.extend(of_answer.collect::<Vec<_>>().into_iter().take(answer.len()));
        }
        let mut read = (batch.rows * batch.length) as u64;
        let mut scores = RowScores { prompt_tokens: row.prompt, ..summed(&scored) };
        if let Some(config) = self.lalp {
            let (mut sum, mut count) = (0.0, 0);
            for answer in answers.iter().filter(|answer| !answer.is_empty()) {
                let steps = answer_steps(&row.tokens[answer.clone()], self.text.tokenizer)?;
                let rows = step_rows(row, answer, &steps, config);
                let (of_answer, tokens) = mean_log_probabilities(&self.model, &rows, context)?;
                (sum, count, read) = (sum + of_answer, count + steps.len(), read + tokens);
            }
            scores.steps = Some(count);
            scores.lalp = Some(if count == 0 { 0.0 } else { sum / count as f64 });
        }
        Ok((scores, read))
    }
}

/// Returns the tokens of a trained range without the end of the turn.
fn without_end(row: &Row, trained: &Range<usize>, ends: &[u32]) -> Range<usize> {
    let ends_turn =
        trained.clone().next_back().is_some_and(|last| ends.contains(&row.tokens[last]));
    trained.start..trained.end - usize::from(ends_turn)
}

/// Aggregates the scores of an answer's tokens.
fn summed(scored: &[TargetScore]) -> RowScores {
    let count = scored.len() as f64;
    let nll: f64 = scored.iter().map(|score| score.nll).sum();
    let ranks: u64 = scored.iter().map(|score| u64::from(score.rank.min(MOST_RANK))).sum();
    let above = scored.iter().filter(|score| score.rank > MOST_RANK).count();
    if scored.is_empty() {
        return RowScores { perplexity: 1.0, rsr: NO_TOKENS_RSR, ..RowScores::default() };
    }
    RowScores {
        tokens: scored.len(),
        nll: nll / count,
        // Finite for any loss.
        perplexity: (nll / count).exp().min(f64::MAX),
        rank: ranks as f64 / count,
        rsr: ranks as f64 / nll.max(LEAST_NLL),
        above_100: above as f64 / count,
        ..RowScores::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(pairs: &[(f64, u32)]) -> RowScores {
        let of = |(nll, rank): &(f64, u32)| TargetScore { nll: *nll, rank: *rank };
        summed(&pairs.iter().map(of).collect::<Vec<_>>())
    }

    #[test]
    fn the_scores_of_an_answer_are_sums_over_its_tokens() {
        // By hand: ranks 1, 3, 100 and 100 of 100, 101; NLLs 0.5, 1.5, 6, 8.
        let scores = scored(&[(0.5, 1), (1.5, 3), (6.0, 100), (8.0, 101)]);
        assert_eq!((scores.tokens, scores.nll, scores.rank), (4, 4.0, 51.0));
        assert_eq!((scores.rsr, scores.above_100), (204.0 / 16.0, 0.25));
        assert_eq!(scores.perplexity, 4.0f64.exp());
    }

    #[test]
    fn no_score_is_infinite_or_no_number() {
        // Every token is certain: the divisor is the lower bound of the published code.
        let certain = scored(&[(0.0, 1), (0.0, 1)]);
        assert_eq!((certain.rsr, certain.nll), (2.0 / LEAST_NLL, 0.0));
        // No tokens to score: no ratio is larger.
        let none = scored(&[]);
        assert_eq!((none.tokens, none.rsr), (0, NO_TOKENS_RSR));
        assert!(scored(&[(1e-300, 100)]).rsr <= none.rsr && certain.rsr < none.rsr);
        let worst = scored(&[(2e38, 9)]);
        for scores in [certain, none, worst] {
            let text = serde_json::to_string(&scores).unwrap();
            assert!(!text.contains("null"), "{text}");
            assert_eq!(serde_json::from_str::<RowScores>(&text).unwrap(), scores);
        }
    }

    #[test]
    fn the_end_of_each_turn_is_left_out() {
        let row = |tokens: &[u32]| Row { tokens: tokens.to_vec(), prompt: 2, ..Row::default() };
        // An end token within the answer does not end it.
        let whole = row(&[5, 6, 9, 7, 9]);
        assert_eq!(without_end(&whole, &(2..5), &[8, 9]), 2..4);
        assert_eq!(without_end(&whole, &(2..4), &[8, 9]), 2..4);
        assert_eq!(without_end(&whole, &(2..3), &[8, 9]), 2..2);
        let turns = Row { untrained: std::iter::once(3..4).collect(), ..whole.clone() };
        assert_eq!(turns.example().trained_ranges(), [2..3, 4..5]);
        assert!(whole.example().trained_ranges().into_iter().eq(std::iter::once(2..5)));
        // The first token of a row is never a target.
        let row = Row { prompt: 0, ..whole };
        assert!(row.example().trained_ranges().into_iter().eq(std::iter::once(1..5)));
    }
}
