//! The generation loop over a batch of rows, independent of how logits are computed.

use super::answer::{EndReason, Generation, NewToken, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use crate::device;
use crate::error::{Error, Result};
use crate::model::tensors::off_graph;
use crate::ops::{Draws, Sampling, draw_tokens};
use crate::random::Stream;
use burn::tensor::Tensor;
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Computes the logits of a batch of rows.
pub(super) trait RowScores {
    /// Appends a token to each row (on the first call, `None`: the rows are the prompts) and returns the
    /// logits of the next token, `[rows, vocabulary]`.
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>>;

    /// Returns whether dropping the finished rows pays off if `active` of `rows` rows are unfinished.
    fn drops(&self, active: usize, rows: usize) -> bool;

    /// Keeps only the given rows, in this order.
    fn keep(&mut self, rows: &[usize]);

    /// Returns whether a prompt of `tokens` tokens can replace a finished row now.
    fn fits(&self, tokens: usize) -> bool;

    /// Replaces finished rows by prompts that fit, and returns the logits of their next tokens,
    /// `[prompts, vocabulary]`.
    fn replace(&mut self, rows: &[usize], prompts: Vec<Vec<u32>>) -> Result<Tensor<2>>;
}

/// Answers prompts, `config.batch_size` at a time. When an answer ends, the next prompt takes its place.
/// `begin` creates the rows of the first prompts.
///
/// # Errors
/// See [`Generate::generate_as`](super::Generate::generate_as).
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
    // The longest prompts come first, so all others fit later.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(prompts[*index].len()));
    let interrupted = Generation { tokens: vec![], end: EndReason::Interrupted };
    let mut waiting: VecDeque<usize> = order.into();
    let first: Vec<usize> = waiting.drain(..config.batch_size.min(prompts.len())).collect();
    if first.is_empty() {
        return Ok(vec![]);
    }
    let scores = begin(first.iter().map(|index| prompts[*index].clone()).collect());
    let mut decoding = Decoding {
        prompts,
        numbers,
        context: limits.context,
        rows: vec![],
        waiting,
        answers: vec![interrupted; prompts.len()],
        finished: 0,
        stop_conditions,
        config,
        flow: ControlFlow::Continue(()),
    };
    decoding.rows = first.into_iter().map(|index| Some(decoding.row(index))).collect();
    decoding.run(scores, observe)?;
    Ok(decoding.answers)
}

/// Refuses prompts that the model does not accept.
fn check_prompts(limits: TokenLimits, prompts: &[Vec<u32>], numbers: &[u64]) -> Result<()> {
    if numbers.len() != prompts.len() {
        let what = format!("{} numbers for {} prompts", numbers.len(), prompts.len());
        return Err(Error::config("generate", what, "Pass one number per prompt"));
    }
    let TokenLimits { vocabulary, context: longest } = limits;
    for (index, prompt) in prompts.iter().enumerate() {
        let bad = prompt.iter().find(|token| **token as usize >= vocabulary);
        if prompt.is_empty() || bad.is_some() {
            let what = match bad {
                Some(token) => format!(
                    "prompt {index} has the token {token}, but the vocabulary has {vocabulary}"
                ),
                None => format!("prompt {index} is empty"),
            };
            return Err(Error::config(
                "generate",
                what,
                "Use at least one token, and only tokens of the vocabulary",
            ));
        }
        if prompt.len() >= longest {
            let what = format!("prompt {index} has {} tokens", prompt.len());
            let hint =
                format!("Shorten it; the model's context is {longest} tokens, answer included");
            return Err(Error::config("generate", what, hint));
        }
    }
    Ok(())
}

/// A row with an unfinished answer.
struct ActiveRow {
    /// Index of the prompt.
    index: usize,
    /// The answer so far.
    tokens: Vec<u32>,
    /// Tokens that the context leaves for the answer.
    room: usize,
    random: Stream,
}

/// The state of the generation.
struct Decoding<'a> {
    prompts: &'a [Vec<u32>],
    numbers: &'a [u64],
    /// Context length in tokens.
    context: usize,
    /// The rows of the batch. Finished ones are `None` until they are replaced or dropped.
    rows: Vec<Option<ActiveRow>>,
    /// Prompts without a row yet.
    waiting: VecDeque<usize>,
    /// The answers, by index of the prompt.
    answers: Vec<Generation>,
    /// Number of finished answers.
    finished: usize,
    stop_conditions: StopConditions<'a>,
    config: &'a GenerateConfig,
    /// The observer's last result.
    flow: ControlFlow<()>,
}

impl Decoding<'_> {
    fn run(&mut self, mut scores: impl RowScores, observe: &mut TokenObserver<'_>) -> Result<()> {
        let mut new: Option<Vec<u32>> = None;
        loop {
            let logits = scores.next(new.as_deref())?;
            let rows: Vec<usize> = (0..self.rows.len()).collect();
            let mut next = vec![0; rows.len()];
            self.advance(logits, &rows, &mut next, observe)?;
            self.refill(&mut scores, &mut next, observe)?;
            if self.flow.is_break() {
                for row in self.rows.iter_mut().filter_map(Option::take) {
                    let end = EndReason::Interrupted;
                    self.answers[row.index] = Generation { tokens: row.tokens, end };
                }
            }
            let active = self.rows.iter().flatten().count();
            if active == 0 {
                return Ok(());
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

    /// Returns a new row for a prompt.
    fn row(&self, index: usize) -> ActiveRow {
        ActiveRow {
            index,
            tokens: vec![],
            room: self.context - self.prompts[index].len(),
            random: Stream::new(self.config.seed, "generate", self.numbers[index]),
        }
    }

    /// Replaces finished rows by waiting prompts, until either runs out.
    fn refill(
        &mut self,
        scores: &mut impl RowScores,
        next: &mut [u32],
        observe: &mut TokenObserver<'_>,
    ) -> Result<()> {
        while self.flow.is_continue() {
            let free = (0..self.rows.len()).filter(|row| self.rows[*row].is_none());
            let mut taken = vec![];
            for row in free.collect::<Vec<_>>() {
                let Some(index) = self.waiting.front().copied() else { break };
                if !scores.fits(self.prompts[index].len()) {
                    break;
                }
                self.waiting.pop_front();
                self.rows[row] = Some(self.row(index));
                taken.push((row, index));
            }
            if taken.is_empty() {
                break;
            }
            let rows: Vec<usize> = taken.iter().map(|(row, _)| *row).collect();
            let prompts = taken.iter().map(|(_, index)| self.prompts[*index].clone()).collect();
            let logits = scores.replace(&rows, prompts)?;
            self.advance(logits, &rows, next, observe)?;
        }
        Ok(())
    }

    /// Appends the next token to each of these rows, given their logits, and finishes answers that end.
    fn advance(
        &mut self,
        logits: Tensor<2>,
        rows: &[usize],
        next: &mut [u32],
        observe: &mut TokenObserver<'_>,
    ) -> Result<()> {
        let tokens = self.choose(logits, rows)?;
        for (&place, token) in rows.iter().zip(tokens) {
            next[place] = token;
            let Some(row) = &mut self.rows[place] else { continue };
            let end = row.take(token, self.stop_conditions, self.config)?;
            self.finished += usize::from(end.is_some());
            let event = NewToken {
                prompt: row.index,
                tokens: &row.tokens,
                end: end.as_ref(),
                finished: self.finished,
            };
            if self.flow.is_continue() {
                self.flow = observe(&event);
            }
            if let Some(end) = end {
                let tokens = std::mem::take(&mut row.tokens);
                self.answers[row.index] = Generation { tokens, end };
                self.rows[place] = None;
            }
        }
        Ok(())
    }

    /// Returns the next token of each of these rows. Finished rows get an arbitrary one.
    fn choose(&mut self, logits: Tensor<2>, places: &[usize]) -> Result<Vec<u32>> {
        let config = self.config;
        let sampling = Sampling {
            repetition_penalty: config.repetition_penalty,
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
        };
        let mut point = |place: &usize| match &mut self.rows[*place] {
            Some(row) if config.temperature > 0.0 => row.random.unit(),
            _ => 0.0,
        };
        let points = places.iter().map(&mut point).collect();
        let earlier = match config.repetition_penalty {
            1.0 => vec![],
            _ => places.iter().map(|place| self.distinct_tokens(*place)).collect(),
        };
        let tokens = draw_tokens(off_graph(logits), Draws { sampling, points, earlier });
        let tokens = tokens.try_into_vec_as::<i64>().map_err(device::failure)?;
        Ok(tokens.into_iter().map(|token| token as u32).collect())
    }

    /// Returns the distinct tokens of a row.
    fn distinct_tokens(&self, place: usize) -> Vec<u32> {
        let Some(row) = &self.rows[place] else { return vec![] };
        let mut tokens = [&self.prompts[row.index][..], &row.tokens].concat();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

impl ActiveRow {
    /// Appends a token to the answer. Returns the reason if that ends it.
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
            // A token has at least one byte, except for parts of a character.
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
