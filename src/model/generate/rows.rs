//! Rows that grow token by token, whatever computes their scores.

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

/// Computes the scores of a batch of rows.
pub(super) trait RowScores {
    /// Adds a token to each row, but at the first call, where the rows are the prompts; the scores of
    /// the token that follows each row, `[rows, vocabulary]`.
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>>;

    /// Whether it pays to drop the finished rows where only `active` of all `rows` are not finished.
    fn drops(&self, active: usize, rows: usize) -> bool;

    /// Keeps the given rows only, in this order.
    fn keep(&mut self, rows: &[usize]);

    /// Whether a prompt of so many tokens can take the place of a finished row now.
    fn fits(&self, tokens: usize) -> bool;

    /// Puts prompts that fit in the places of finished rows; the scores of the token that follows each
    /// of them, `[prompts, vocabulary]`.
    fn replace(&mut self, rows: &[usize], prompts: Vec<Vec<u32>>) -> Result<Tensor<2>>;
}

/// Answers prompts, as many at a time as `config.batch_size` says: where an answer ends, the next prompt
/// takes its place. `begin` makes the scores of the first prompts.
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
    // The longest first: all others then fit behind what is there.
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

/// Answers on their way.
struct Decoding<'a> {
    prompts: &'a [Vec<u32>],
    numbers: &'a [u64],
    /// Tokens of the longest row.
    context: usize,
    /// The rows that scores are computed for; finished ones stay until others take their places.
    rows: Vec<Option<ActiveRow>>,
    /// Prompts without a row yet.
    waiting: VecDeque<usize>,
    /// The answers, by the number of their prompt.
    answers: Vec<Generation>,
    /// How many of them have ended.
    finished: usize,
    stop_conditions: StopConditions<'a>,
    config: &'a GenerateConfig,
    /// What the observer said last.
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

    /// A new row for a prompt.
    fn row(&self, index: usize) -> ActiveRow {
        ActiveRow {
            index,
            tokens: vec![],
            room: self.context - self.prompts[index].len(),
            random: Stream::new(self.config.seed, "generate", self.numbers[index]),
        }
    }

    /// Lets waiting prompts take the places of finished rows, until there are no more of either.
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

    /// Takes the next token into each of these rows, whose scores are given; those that end are finished.
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

    /// The next token of each of these rows; those that are finished get any.
    fn choose(&mut self, logits: Tensor<2>, places: &[usize]) -> Result<Vec<u32>> {
        let config = self.config;
        let sampling = Sampling {
            repetition_penalty: config.repetition_penalty,
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
        };
        // A row that is finished gets any token.
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

    /// The tokens that a row holds already, each once.
    fn distinct_tokens(&self, place: usize) -> Vec<u32> {
        let Some(row) = &self.rows[place] else { return vec![] };
        let mut tokens = [&self.prompts[row.index][..], &row.tokens].concat();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
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
