//! Rows that grow token by token, whatever computes their scores.

use super::answer::{EndReason, Generation, NewToken, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use super::sample::{most_probable, penalize, sample};
use crate::error::{Error, Result};
use crate::random::Stream;
use burn::tensor::Tensor;
use std::ops::ControlFlow;

/// Computes the scores of a batch of rows.
pub(super) trait RowScores {
    /// Adds a token to each row, but at the first call, where the rows are the prompts; the scores of
    /// the token that follows each row, `[rows, vocabulary]`.
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>>;

    /// Whether it pays to drop the finished rows where only `active` of all `rows` are not finished.
    fn drops(&self, active: usize, rows: usize) -> bool;

    /// Keeps the given rows only, in this order.
    fn keep(&mut self, rows: &[usize]);
}

/// Answers prompts in batches; `begin` makes the scores of a batch from its prompts.
///
/// # Errors
/// As [`Generate::generate_as`](super::Generate::generate_as).
pub(super) fn answer_prompts<S: RowScores>(
    limits: TokenLimits,
    prompts: &[Vec<u32>],
    numbers: &[u64],
    stop_conditions: StopConditions<'_>,
    config: &GenerateConfig,
    observe: &mut TokenObserver<'_>,
    begin: impl Fn(Vec<Vec<u32>>) -> S,
) -> Result<Vec<Generation>> {
    config.validate()?;
    check_prompts(limits, prompts, numbers)?;
    // Similar lengths go together, which saves padding.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| prompts[*index].len());
    let interrupted = Generation { tokens: vec![], end: EndReason::Interrupted };
    let mut answers = vec![interrupted; prompts.len()];
    let mut finished = 0;
    for chunk in order.chunks(config.batch_size) {
        let rows = chunk.iter().map(|&index| {
            Some(ActiveRow {
                index,
                tokens: vec![],
                room: limits.context - prompts[index].len(),
                random: Stream::new(config.seed, "generate", numbers[index]),
            })
        });
        let decoding =
            Decoding { prompts, rows: rows.collect(), stop_conditions, config, finished };
        let scores = begin(chunk.iter().map(|&index| prompts[index].clone()).collect());
        let (results, flow) = decoding.run(scores, observe)?;
        finished += results.len();
        for (index, generation) in results {
            answers[index] = generation;
        }
        if flow.is_break() {
            break;
        }
    }
    Ok(answers)
}

/// Refuses prompts that the model cannot be given.
fn check_prompts(limits: TokenLimits, prompts: &[Vec<u32>], numbers: &[u64]) -> Result<()> {
    if numbers.len() != prompts.len() {
        let what = format!("{} numbers for {} prompts", numbers.len(), prompts.len());
        return Err(Error::config("generate", what, "Give one for each"));
    }
    let TokenLimits { vocabulary, context: longest } = limits;
    for (index, prompt) in prompts.iter().enumerate() {
        let bad = prompt.iter().find(|token| **token as usize >= vocabulary);
        if prompt.is_empty() || bad.is_some() {
            let what = match bad {
                Some(token) => format!("prompt {index} has token {token} of {vocabulary}"),
                None => format!("prompt {index} is empty"),
            };
            return Err(Error::config("generate", what, "Give at least one known token"));
        }
        if prompt.len() >= longest {
            let what = format!("prompt {index} has {} tokens", prompt.len());
            let hint = format!("The model is made for {longest} tokens, the answer included");
            return Err(Error::config("generate", what, hint));
        }
    }
    Ok(())
}

/// An answer and the number of its prompt.
type Finished = (usize, Generation);

/// A row whose answer is not finished.
struct ActiveRow {
    /// Number of the prompt.
    index: usize,
    /// The answer so far.
    tokens: Vec<u32>,
    /// Tokens that the model's positions leave for the answer.
    room: usize,
    random: Stream,
}

/// One batch on its way.
struct Decoding<'a> {
    prompts: &'a [Vec<u32>],
    /// The rows that scores are computed for; finished ones stay until they are dropped there.
    rows: Vec<Option<ActiveRow>>,
    stop_conditions: StopConditions<'a>,
    config: &'a GenerateConfig,
    /// Answers of earlier batches.
    finished: usize,
}

impl Decoding<'_> {
    fn run(
        mut self,
        mut scores: impl RowScores,
        observe: &mut TokenObserver<'_>,
    ) -> Result<(Vec<Finished>, ControlFlow<()>)> {
        let mut finished = vec![];
        let mut flow = ControlFlow::Continue(());
        let mut new: Option<Vec<u32>> = None;
        loop {
            let logits = scores.next(new.as_deref())?;
            let mut next = self.choose(logits)?;
            for (slot, token) in self.rows.iter_mut().zip(&next) {
                let Some(row) = slot else { continue };
                let end = row.take(*token, self.stop_conditions, self.config)?;
                let event = NewToken {
                    prompt: row.index,
                    tokens: &row.tokens,
                    end: end.as_ref(),
                    finished: self.finished + finished.len() + usize::from(end.is_some()),
                };
                if flow.is_continue() {
                    flow = observe(&event);
                }
                if let Some(end) = end {
                    let tokens = std::mem::take(&mut row.tokens);
                    finished.push((row.index, Generation { tokens, end }));
                    *slot = None;
                }
            }
            if flow.is_break() {
                for row in self.rows.iter_mut().filter_map(Option::take) {
                    let end = EndReason::Interrupted;
                    finished.push((row.index, Generation { tokens: row.tokens, end }));
                }
            }
            let active = self.rows.iter().flatten().count();
            if active == 0 {
                return Ok((finished, flow));
            }
            if scores.drops(active, self.rows.len()) {
                let kept: Vec<usize> =
                    (0..self.rows.len()).filter(|row| self.rows[*row].is_some()).collect();
                scores.keep(&kept);
                next = kept.iter().map(|row| next[*row]).collect();
                self.rows.retain(Option::is_some);
            }
            new = Some(next);
        }
    }

    /// The next token of each row; rows that are finished get any.
    fn choose(&mut self, logits: Tensor<2>) -> Result<Vec<u32>> {
        let failed = |e: &dyn std::fmt::Display| Error::Training {
            what: format!("the device failed while generating: {e}"),
            hint: "Try a smaller generate.batch_size".into(),
        };
        let config = self.config;
        if config.temperature == 0.0 && config.repetition_penalty == 1.0 {
            let best = logits.argmax(1).try_into_vec_as::<i64>().map_err(|e| failed(&e))?;
            return Ok(best.into_iter().map(|token| token as u32).collect());
        }
        let [_, vocabulary] = logits.dims();
        let mut logits = logits.try_into_vec_as::<f32>().map_err(|e| failed(&e))?;
        let rows = self.rows.iter_mut().zip(logits.chunks_exact_mut(vocabulary));
        Ok(rows
            .map(|(row, logits)| {
                let Some(row) = row else { return 0 };
                let earlier = self.prompts[row.index].iter().chain(&row.tokens);
                penalize(logits, earlier, config.repetition_penalty as f32);
                match config.temperature {
                    0.0 => most_probable(logits),
                    _ => sample(logits, config, row.random.unit()),
                }
            })
            .collect())
    }
}

impl ActiveRow {
    /// Takes a token into the answer; says whether and why that ends it.
    fn take(
        &mut self,
        token: u32,
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
    ) -> Result<Option<EndReason>> {
        if stop_conditions.tokens.contains(&token) {
            return Ok(Some(EndReason::EndToken(token)));
        }
        self.tokens.push(token);
        if let Some(longest) = config.stop.iter().map(String::len).max() {
            // A token is at least a byte, save for those that begin or end a character.
            let tail = self.tokens.len().saturating_sub(longest + 4);
            let text = stop_conditions.tokenizer.decode(&self.tokens[tail..])?;
            let found =
                config.stop.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop)));
            if let Some((_, stop)) = found.min_by_key(|(at, _)| *at) {
                return Ok(Some(EndReason::Stop(stop.clone())));
            }
        }
        let full = self.tokens.len() == self.room.min(config.max_new_tokens);
        Ok(full.then_some(EndReason::Limit))
    }
}
