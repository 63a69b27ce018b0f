//! Answers from a model: batched, with a key-value cache.

use super::cache::LayerCache;
use super::decoder::{CacheStep, DecoderLm, Seen};
use super::generate_config::GenerateConfig;
use crate::data::TextTokenizer;
use crate::error::{Error, Result};
use crate::ops::rotary_table;
use crate::random::Stream;
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use std::ops::ControlFlow;

/// Added to the score of a key that a query must not see.
const HIDDEN: f32 = -1e9;

/// New tokens for which a cache has room at first.
const FIRST_ROOM: usize = 128;

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended it with this token.
    EndToken(u32),
    /// This one of the stop texts appeared.
    Stop(String),
    /// The length limit was reached.
    Limit,
    /// The observer asked for a stop.
    Interrupted,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The answer's tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: EndReason,
}

impl Generation {
    /// Whether the length limit ended the answer.
    pub fn hit_limit(&self) -> bool {
        self.end == EndReason::Limit
    }

    /// The answer's text, without a stop text and what follows it.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn text(&self, tokenizer: &TextTokenizer) -> Result<String> {
        let mut text = tokenizer.decode(&self.tokens)?;
        if let EndReason::Stop(stop) = &self.end
            && let Some(at) = text.find(stop.as_str())
        {
            text.truncate(at);
        }
        Ok(text)
    }
}

/// What ends an answer before its length limit.
#[derive(Clone, Copy, Debug)]
pub struct Endings<'a> {
    /// Tokens, any of which ends it.
    pub tokens: &'a [u32],
    /// Turns tokens to text, to find [`GenerateConfig::stop`] in it.
    pub tokenizer: &'a TextTokenizer,
}

/// A new token of one answer, as an observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    /// Number of the prompt.
    pub prompt: usize,
    /// The answer so far, without an end token.
    pub tokens: &'a [u32],
    /// Set with the last token.
    pub end: Option<&'a EndReason>,
    /// Answers finished so far, this one included.
    pub finished: usize,
}

/// Sees every new token, and may end the work.
pub type TokenObserver<'a> = dyn FnMut(&NewToken<'_>) -> ControlFlow<()> + 'a;

impl DecoderLm {
    /// Answers prompts, in their order.
    ///
    /// `observe` is called with every new token; where it breaks, all unfinished answers end as
    /// they are.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range or an empty prompt; [`Error::Training`] where
    /// the device fails.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        endings: Endings<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let numbers: Vec<u64> = (0..prompts.len() as u64).collect();
        self.generate_as(prompts, &numbers, endings, config, observe)
    }

    /// As [`DecoderLm::generate`], with a number for each prompt, which its random draws depend on:
    /// the same number and prompt have the same draws in any call. Scores may differ in their last bits
    /// between batches of up to 32 rows and larger ones.
    ///
    /// # Errors
    /// As [`DecoderLm::generate`]; [`Error::Config`] where numbers and prompts are not as many.
    pub fn generate_as(
        &self,
        prompts: &[Vec<u32>],
        numbers: &[u64],
        endings: Endings<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        config.validate()?;
        if numbers.len() != prompts.len() {
            let what = format!("{} numbers for {} prompts", numbers.len(), prompts.len());
            return Err(Error::config("generate", what, "Give one for each"));
        }
        let vocabulary = self.config().vocab_size;
        for (index, prompt) in prompts.iter().enumerate() {
            let bad = prompt.iter().find(|token| **token as usize >= vocabulary);
            if prompt.is_empty() || bad.is_some() {
                let what = match bad {
                    Some(token) => format!("prompt {index} has token {token} of {vocabulary}"),
                    None => format!("prompt {index} is empty"),
                };
                return Err(Error::config("generate", what, "Give at least one known token"));
            }
            let longest = self.config().max_position_embeddings;
            if prompt.len() >= longest {
                let what = format!("prompt {index} has {} tokens", prompt.len());
                let hint = format!("The model is made for {longest} tokens, the answer included");
                return Err(Error::config("generate", what, hint));
            }
        }
        let model = self.clone().valid();
        // Similar lengths go together, which saves padding.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|index| prompts[*index].len());
        let interrupted = Generation { tokens: vec![], end: EndReason::Interrupted };
        let mut answers = vec![interrupted; prompts.len()];
        let mut finished = 0;
        for chunk in order.chunks(config.batch_size) {
            let rows: Vec<ActiveRow> = chunk
                .iter()
                .map(|&index| ActiveRow {
                    index,
                    tokens: vec![],
                    padding: 0,
                    room: self.config().max_position_embeddings - prompts[index].len(),
                    random: Stream::new(config.seed, "generate", numbers[index]),
                })
                .collect();
            let decoding = Decoding::new(&model, prompts, rows, finished);
            let (results, flow) = decoding.run(endings, config, observe)?;
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
}

/// An answer and the number of its prompt.
type Finished = (usize, Generation);

/// A row whose answer is not finished.
struct ActiveRow {
    /// Number of the prompt.
    index: usize,
    /// The answer so far.
    tokens: Vec<u32>,
    /// Padding before the prompt.
    padding: usize,
    /// Tokens that the model's positions leave for the answer.
    room: usize,
    random: Stream,
}

/// One batch on its way.
struct Decoding<'a> {
    model: &'a DecoderLm,
    prompts: &'a [Vec<u32>],
    /// The rows of the cache; finished ones stay until the cache is made smaller.
    rows: Vec<Option<ActiveRow>>,
    paddings: Vec<usize>,
    longest: usize,
    /// Answers of earlier batches.
    finished: usize,
}

impl<'a> Decoding<'a> {
    fn new(
        model: &'a DecoderLm,
        prompts: &'a [Vec<u32>],
        mut rows: Vec<ActiveRow>,
        finished: usize,
    ) -> Self {
        let longest = rows.iter().map(|row| prompts[row.index].len()).max().unwrap_or(0);
        for row in &mut rows {
            row.padding = longest - prompts[row.index].len();
        }
        let paddings = rows.iter().map(|row| row.padding).collect();
        let rows = rows.into_iter().map(Some).collect();
        Self { model, prompts, rows, paddings, longest, finished }
    }

    fn run(
        mut self,
        endings: Endings<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<(Vec<Finished>, ControlFlow<()>)> {
        let shape = self.model.config();
        let device = self.model.device();
        let sizes = [
            self.rows.len(),
            shape.num_attention_heads,
            shape.num_key_value_heads,
            self.longest + FIRST_ROOM.min(config.max_new_tokens),
            shape.head_dim(),
        ];
        let frequencies = shape.rope_frequencies();
        let table = |positions| rotary_table(positions, &frequencies, &device);
        let mut positions = sizes[3];
        let mut rotation = table(positions);
        let dtype = self.model.activation_type();
        let mut caches: Vec<LayerCache> =
            (0..shape.num_hidden_layers).map(|_| LayerCache::new(sizes, dtype, &device)).collect();
        let mut finished = vec![];
        let mut flow = ControlFlow::Continue(());
        let mut input: Vec<u32> = vec![];
        for (row, padding) in self.rows.iter().flatten().zip(&self.paddings) {
            input.extend(std::iter::repeat_n(0, *padding));
            input.extend(&self.prompts[row.index]);
        }
        let mut start = 0;
        loop {
            let new = input.len() / self.rows.len();
            if start + new > positions {
                positions *= 2;
                rotation = table(positions);
            }
            let step = self.step(start, new, &rotation, &device);
            let ids: Vec<i32> = input.iter().map(|id| *id as i32).collect();
            let ids = TensorData::new(ids, [self.rows.len(), new]);
            let ids = Tensor::<2, Int>::from_data(ids, &device);
            let logits = self.model.logits_cached(ids, &step, &mut caches);
            start += new;
            let next = self.choose(logits, config)?;
            for (slot, token) in self.rows.iter_mut().zip(&next) {
                let Some(row) = slot else { continue };
                let end = row.take(*token, endings, config)?;
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
            input = next;
            if active * 2 <= self.rows.len() {
                self.compact(&mut caches, &mut input, &device);
            }
        }
    }

    /// Positions of `new` tokens after `start` earlier places, and what they see.
    fn step(&self, start: usize, new: usize, table: &[Tensor<2>; 2], device: &Device) -> CacheStep {
        let (rows, keys) = (self.rows.len(), start + new);
        let places = || {
            self.paddings
                .iter()
                .flat_map(|padding| (start..keys).map(move |place| (*padding, place)))
        };
        let ints = |values: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(values, [rows * new]), device)
        };
        let positions = places().map(|(padding, place)| place.saturating_sub(padding) as i32);
        let seen = if start == 0 {
            // A prompt is a row whose padding is an example of its own.
            let starts = places().map(|(padding, place)| if place < padding { 0 } else { padding });
            Seen::Rows(ints(starts.map(|start| start as i32).collect()))
        } else {
            let mut mask = Vec::with_capacity(rows * new * keys);
            for (padding, place) in places() {
                mask.extend((0..keys).map(|key| match key >= padding && key <= place {
                    true => 0.0,
                    false => HIDDEN,
                }));
            }
            let mask = TensorData::new(mask, [rows, 1, new, keys]);
            Seen::Mask(Tensor::from_data(mask, device))
        };
        CacheStep { table: table.clone(), positions: ints(positions.collect()), seen }
    }

    /// The next token of each row; rows that are finished get any.
    fn choose(&mut self, logits: Tensor<2>, config: &GenerateConfig) -> Result<Vec<u32>> {
        let failed = |e: &dyn std::fmt::Display| Error::Training {
            what: format!("the device failed while generating: {e}"),
            hint: "Try a smaller generate.batch_size".into(),
        };
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

    /// Drops the finished rows from the caches.
    fn compact(&mut self, caches: &mut [LayerCache], input: &mut Vec<u32>, device: &Device) {
        let kept: Vec<usize> =
            (0..self.rows.len()).filter(|row| self.rows[*row].is_some()).collect();
        let places: Vec<i32> = kept.iter().map(|row| *row as i32).collect();
        let places = TensorData::new(places, [kept.len()]);
        let places = Tensor::<1, Int>::from_data(places, device);
        caches.iter_mut().for_each(|cache| cache.select(&places));
        *input = kept.iter().map(|row| input[*row]).collect();
        self.paddings = kept.iter().map(|row| self.paddings[*row]).collect();
        self.rows.retain(Option::is_some);
    }
}

impl ActiveRow {
    /// Takes a token into the answer; says whether and why that ends it.
    fn take(
        &mut self,
        token: u32,
        endings: Endings<'_>,
        config: &GenerateConfig,
    ) -> Result<Option<EndReason>> {
        if endings.tokens.contains(&token) {
            return Ok(Some(EndReason::EndToken(token)));
        }
        self.tokens.push(token);
        if let Some(longest) = config.stop.iter().map(String::len).max() {
            // A token is at least a byte, save for those that begin or end a character.
            let tail = self.tokens.len().saturating_sub(longest + 4);
            let text = endings.tokenizer.decode(&self.tokens[tail..])?;
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

/// Makes tokens that stand there already less probable.
fn penalize<'a>(logits: &mut [f32], earlier: impl Iterator<Item = &'a u32>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = vec![false; logits.len()];
    for token in earlier {
        let token = *token as usize;
        if !std::mem::replace(&mut seen[token], true) {
            let logit = &mut logits[token];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The most probable token; of equals the lowest.
fn most_probable(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), (token, logit): (u32, &f32)| {
        if *logit > best.1 { (token, *logit) } else { best }
    };
    (0u32..).zip(logits).fold((0, f32::NEG_INFINITY), better).0
}

/// The token at `point` (0 to 1) of the distribution that the settings leave.
fn sample(logits: &[f32], config: &GenerateConfig, point: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - max) / config.temperature).exp();
    let mut tokens: Vec<(f64, u32)> =
        logits.iter().zip(0u32..).map(|(x, token)| (weight(*x), token)).collect();
    // Most probable first; of equals the lower number, so that the order is defined.
    let order = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if config.top_k > 0 && config.top_k < tokens.len() {
        tokens.select_nth_unstable_by(config.top_k - 1, order);
        tokens.truncate(config.top_k);
    }
    tokens.sort_unstable_by(order);
    let total: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    let mut kept = 0.0;
    let mut count = 0;
    for (weight, _) in &tokens {
        // The highest weight is 1.
        if count > 0 && *weight < config.min_p {
            break;
        }
        kept += weight;
        count += 1;
        if kept >= config.top_p * total {
            break;
        }
    }
    let mut point = point * kept;
    for (weight, token) in &tokens[..count] {
        point -= weight;
        if point < 0.0 {
            return *token;
        }
    }
    tokens[count - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "flex")]
    use crate::model::{Architecture, DecoderConfig};

    #[cfg(feature = "flex")]
    #[test]
    fn cached_logits_equal_those_of_whole_rows() {
        let device = Device::flex();
        let config = DecoderConfig {
            architecture: Architecture::Qwen3,
            vocab_size: 19,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            initializer_range: 0.3,
            ..DecoderConfig::default()
        };
        let model = config.init(2, &device).unwrap();
        // Two rows of unequal length, then tokens one by one, beyond the first capacity.
        let mut texts = vec![vec![3u32, 1, 4], vec![1, 5, 9, 2, 6]];
        let active = |index| ActiveRow {
            index,
            tokens: vec![],
            padding: 0,
            room: 64,
            random: Stream::new(0, "test", 0),
        };
        let prompts = texts.clone();
        let decoding = Decoding::new(&model, &prompts, vec![active(0), active(1)], 0);
        let table = rotary_table(64, &config.rope_frequencies(), &device);
        let sizes = [2, 4, 2, 6, config.head_dim()];
        let cache = || LayerCache::new(sizes, model.activation_type(), &device);
        let mut caches = vec![cache(), cache()];
        let mut input = vec![0, 0, 3, 1, 4, 1, 5, 9, 2, 6];
        let mut start = 0;
        for round in 0..20 {
            let new = input.len() / 2;
            let step = decoding.step(start, new, &table, &device);
            let ids = Tensor::from_data(TensorData::new(input.clone(), [2, new]), &device);
            let logits = model.logits_cached(ids, &step, &mut caches);
            start += new;
            for (row, text) in texts.iter_mut().enumerate() {
                let ids: Vec<i32> = text.iter().map(|token| *token as i32).collect();
                let ids = Tensor::from_data(TensorData::new(ids, [1, text.len()]), &device);
                let whole = model.logits(ids).narrow(1, text.len() - 1, 1).reshape([1, 19]);
                let cached = logits.clone().narrow(0, row, 1);
                let error = (whole.clone() - cached).abs().max().into_scalar::<f32>();
                let scale = whole.abs().max().into_scalar::<f32>();
                // f32 sums in another order.
                assert!(error < 1e-5 * scale, "row {row}, round {round}: {error} of {scale}");
                text.push((7 * round + row as u32) % 19);
            }
            input = texts.iter().map(|text| text[text.len() - 1] as i32).collect();
        }
    }

    #[test]
    fn sampling_follows_its_settings() {
        let logits = [0.0, 2f32.ln(), 5f32.ln()]; // probabilities 1/8, 2/8, 5/8
        let config = GenerateConfig { temperature: 1.0, ..Default::default() };
        assert_eq!(
            [0.0, 0.62, 0.63, 0.87, 0.88, 0.999].map(|p| sample(&logits, &config, p)),
            [2, 2, 1, 1, 0, 0]
        );
        let nucleus = GenerateConfig { top_p: 0.8, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &nucleus, p)), [2, 2, 1, 1]);
        let two = GenerateConfig { top_k: 2, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &two, p)), [2, 2, 1, 1]);
        // Of 5/8, 2/8 and 1/8 the last is less than 0.3 of the first.
        let near = GenerateConfig { min_p: 0.3, ..config.clone() };
        assert_eq!([0.0, 0.71, 0.72, 0.999].map(|p| sample(&logits, &near, p)), [2, 2, 1, 1]);
        let cold = GenerateConfig { temperature: 0.01, ..config };
        assert_eq!([0.0, 0.5, 0.999].map(|p| sample(&logits, &cold, p)), [2, 2, 2]);
    }

    #[test]
    fn repetition_is_penalized_once_for_each_token() {
        let mut logits = [2.0, -2.0, 1.0, 0.0];
        penalize(&mut logits, [0, 1, 0, 3].iter(), 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0, 0.0]);
        assert_eq!(most_probable(&logits), 0);
    }
}
