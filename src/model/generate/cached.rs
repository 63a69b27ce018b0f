//! Generation with a decoder and its caches.

use super::answer::{Generation, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use super::model::Generate;
use super::rows::{RowScores, answer_prompts};
use crate::data::{Batch, TopTokens};
use crate::error::Result;
use crate::model::blocks::{
    BlockStep, CacheStep, GatedDeltaNetConfig, SelfAttentionConfig, Stream, TokenPlaces,
    VisibleKeys, int_tensor,
};
use crate::model::cache::{CacheShape, LayerCache};
use crate::model::decoder::DecoderLm;
use crate::model::linear_cache::{LinearCache, LinearStep};
use crate::model::precision::in_f32;
use crate::ops::{keep_awake, linear};
use burn::prelude::*;
use burn::tensor::TensorData;
use std::cell::OnceCell;
use std::rc::Rc;

/// Added to the score of a key that a query must not attend to.
const HIDDEN: f32 = -1e9;

/// Initial room for new tokens in a cache.
const FIRST_ROOM: usize = 128;

impl Generate for DecoderLm {
    fn limits(&self) -> TokenLimits {
        let config = self.config();
        TokenLimits { vocabulary: config.vocab_size, context: config.context() }
    }

    fn device(&self) -> Device {
        DecoderLm::device(self)
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        DecoderLm::logits(self, ids)
    }

    /// Uses a key-value cache and computes a prefix that all prompts share only once. The last bits of the
    /// logits may differ between batches of up to 32 rows and larger ones, and between prompts with a shared
    /// prefix and the same prompts alone.
    fn generate_as(
        &self,
        prompts: &[Vec<u32>],
        numbers: &[u64],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let model = self.for_answers();
        // Computed lazily, after the prompts are checked.
        let prefix = OnceCell::new();
        let begin = |first| {
            let prefix = prefix.get_or_init(|| SharedPrefix::of(&model, prompts));
            CachedRows::new(&model, first, config.max_new_tokens, prefix.clone())
        };
        let limits = self.limits();
        answer_prompts(limits, prompts, numbers, stop_conditions, config, observe, begin)
    }

    /// Computes the logits of a few hundred tokens at a time.
    fn top_tokens(
        &self,
        batch: &Batch,
        k: usize,
        temperature: f64,
        vocabulary: usize,
    ) -> Result<TopTokens> {
        DecoderLm::top_tokens(self, batch, k, temperature, vocabulary)
    }
}

impl DecoderLm {
    /// Like [`Generate::generate`], without the trait in scope.
    ///
    /// # Errors
    /// See [`Generate::generate`].
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        Generate::generate(self, prompts, stop_conditions, config, observe)
    }

    /// Logits after the last new token, `[rows, vocabulary]`. The new tokens, `[rows, new]`, are appended to
    /// the caches.
    fn logits_cached(&self, ids: Tensor<2, Int>, rows: &mut CachedKinds) -> Tensor<2> {
        let [of_batch, new] = ids.dims();
        let mut stream = Stream::new(self.embed(ids));
        for ((layer, cache), kind) in
            self.model.layers.iter().zip(&mut rows.caches).zip(&rows.of_layer)
        {
            let step = match (cache, &rows.linear_step) {
                (BlockCache::Full(cache), _) => BlockStep::Full(&rows.steps[*kind], cache),
                (BlockCache::Linear(cache), Some(step)) => BlockStep::Linear(step, cache),
                (BlockCache::Linear(_), None) => unreachable!("made for layers that are linear"),
            };
            stream = layer.forward_cached(stream, step);
        }
        let width = self.config.hidden_size;
        let last = stream.value().reshape([of_batch, new, width]).narrow(1, new - 1, 1);
        linear(in_f32(self.normalized(last.reshape([of_batch, width]))), self.head())
    }
}

/// A prefix that all prompts share.
struct SharedPrefix {
    /// Length in tokens.
    tokens: usize,
    /// Its caches, with one row.
    caches: Vec<BlockCache>,
}

/// The cache of a layer.
enum BlockCache {
    Full(LayerCache),
    Linear(LinearCache),
}

impl BlockCache {
    /// See [`LayerCache::insert`].
    fn insert(&mut self, rows: &[usize], from: &Self, lengths: &[usize]) {
        match (self, from) {
            (Self::Full(cache), Self::Full(from)) => cache.insert(rows, from, lengths),
            (Self::Linear(cache), Self::Linear(from)) => cache.insert(rows, from),
            _ => unreachable!("caches of one layer are of one kind"),
        }
    }

    /// See [`LayerCache::keep_last`]. A state has no positions to drop.
    fn keep_last(&mut self, tokens: usize) {
        if let Self::Full(cache) = self {
            cache.keep_last(tokens);
        }
    }

    fn select(&mut self, rows: &Tensor<1, Int>) {
        match self {
            Self::Full(cache) => cache.select(rows),
            Self::Linear(cache) => cache.select(rows),
        }
    }
}

impl SharedPrefix {
    /// Computes the prefix. Returns `None` if it is short or a small share of the longest prompt, because
    /// whole prompts are then faster to compute. Also `None` with linear attention, whose state cannot be
    /// truncated to a shorter prefix.
    fn of(model: &DecoderLm, prompts: &[Vec<u32>]) -> Option<Rc<Self>> {
        /// Minimum length in tokens, and minimum share of the longest prompt, as a divisor.
        const LEAST: usize = 16;
        const LEAST_SHARE: usize = 4;
        if model.config().has_linear() {
            return None;
        }
        let (first, others) = prompts.split_first()?;
        let alike = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        let lengths = || prompts.iter().map(Vec::len);
        let (shortest, longest) = (lengths().min()?, lengths().max()?);
        // Each prompt keeps at least one token, to compute its logits.
        let tokens = others.iter().map(alike).min()?.min(shortest - 1);
        if tokens < LEAST.max(longest / LEAST_SHARE) {
            return None;
        }
        let mut rows = CachedRows::new(model, vec![first[..tokens].to_vec()], 0, None);
        rows.next(None).ok()?;
        Some(Rc::new(Self { tokens, caches: rows.kinds.caches }))
    }
}

/// A batch of rows with their caches.
///
/// ```text
/// row a   . . P P P | A A          prompts are padded on the left, so all rows write their
/// row b   P P P P P | A A          next token to the same position
/// ```
struct CachedRows<'a> {
    model: &'a DecoderLm,
    device: Device,
    /// The prompts, until they are in the caches.
    prompts: Vec<Vec<u32>>,
    /// Padding before each row.
    paddings: Vec<usize>,
    /// The distinct attentions of the layers.
    attentions: Vec<SelfAttentionConfig>,
    /// The linear attention, if layers have one.
    linear: Option<GatedDeltaNetConfig>,
    /// Cosines and sines for each attention.
    tables: Vec<Option<[Tensor<2>; 2]>>,
    /// Number of positions in the tables.
    positions: usize,
    kinds: CachedKinds,
    /// Number of filled positions.
    filled: usize,
    prefix: Option<Rc<SharedPrefix>>,
    /// Maximum number of attention scores at a time.
    most_scores: usize,
}

/// 128 MiB of f32.
const MOST_SCORES: usize = 32 << 20;

/// The caches of all layers, and the inputs of a step.
struct CachedKinds {
    caches: Vec<BlockCache>,
    /// Index of each layer's attention.
    of_layer: Vec<usize>,
    /// One per attention.
    steps: Vec<CacheStep>,
    /// For layers with linear attention.
    linear_step: Option<LinearStep>,
}

impl<'a> CachedRows<'a> {
    /// Creates the rows. All prompts must start with the prefix.
    fn new(
        model: &'a DecoderLm,
        prompts: Vec<Vec<u32>>,
        max_new_tokens: usize,
        prefix: Option<Rc<SharedPrefix>>,
    ) -> Self {
        let (config, device) = (model.config(), model.device());
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let (attentions, of_layer) = config.attentions();
        let positions = longest + FIRST_ROOM.min(max_new_tokens);
        let cache = |(layer, kind): (usize, &usize)| {
            if let Some(linear) = config.linear_attention(layer) {
                let dtype = model.activation_type();
                return BlockCache::Linear(LinearCache::new(
                    &linear,
                    prompts.len(),
                    dtype,
                    &device,
                ));
            }
            let attention = &attentions[*kind];
            let shape = CacheShape {
                rows: prompts.len(),
                heads: attention.num_attention_heads,
                kv_heads: attention.num_key_value_heads,
                head_dim: attention.head_dim,
                capacity: positions,
                window: attention.sliding_window,
            };
            BlockCache::Full(LayerCache::new(shape, model.activation_type(), &device))
        };
        let caches = of_layer.iter().enumerate().map(cache).collect();
        let tables = attentions.iter().map(|kind| kind.rotary_table(positions, &device)).collect();
        let paddings = prompts.iter().map(|prompt| longest - prompt.len()).collect();
        let kinds = CachedKinds { caches, of_layer, steps: vec![], linear_step: None };
        let filled = 0;
        Self {
            model,
            device,
            prompts,
            paddings,
            attentions,
            linear: config.any_linear_attention(),
            tables,
            positions,
            kinds,
            filled,
            prefix,
            most_scores: MOST_SCORES,
        }
    }

    /// Copies the prefix, which fills as many positions of each row as it has tokens. Shorter prompts start
    /// at a later position, so the rest of their prefix is recomputed.
    fn take_prefix(&mut self) {
        let Some(prefix) = &self.prefix else { return };
        let of_row = |padding: &usize| prefix.tokens.saturating_sub(*padding);
        let lengths: Vec<usize> = self.paddings.iter().map(of_row).collect();
        for (cache, of_prefix) in self.kinds.caches.iter_mut().zip(&prefix.caches) {
            let (BlockCache::Full(cache), BlockCache::Full(of_prefix)) = (cache, of_prefix) else {
                unreachable!("there is no prefix where a layer is linear")
            };
            cache.begin_with(of_prefix, prefix.tokens, &lengths);
        }
        self.filled = prefix.tokens;
    }

    /// Returns the number of new tokens to compute together: all if the cache is empty. Otherwise, their
    /// scores with all cached tokens must fit the limit.
    fn tokens_at_a_time(&self, new: usize) -> usize {
        if self.filled == 0 {
            return new;
        }
        let heads = self.attentions.iter().map(|kind| kind.num_attention_heads).max();
        let of_token = self.paddings.len() * heads.unwrap_or(1) * (self.filled + new);
        (self.most_scores / of_token).clamp(1, new)
    }

    /// Returns the inputs of `new` tokens after `start` positions, for linear attention.
    fn linear_step(&self, start: usize, new: usize) -> Option<LinearStep> {
        let linear = self.linear.as_ref()?;
        Some(match start {
            0 => LinearStep::prompts(linear, &self.paddings, new, &self.device),
            _ => LinearStep::later(linear, self.paddings.len(), new),
        })
    }

    /// Returns the inputs of `new` tokens after `start` positions, for an attention.
    fn step(&self, kind: usize, start: usize, new: usize) -> CacheStep {
        let (rows, keys, device) = (self.paddings.len(), start + new, &self.device);
        let attention = &self.attentions[kind];
        let places = || {
            self.paddings
                .iter()
                .flat_map(|padding| (start..keys).map(move |place| (*padding, place)))
        };
        let positions = places().map(|(padding, place)| place.saturating_sub(padding) as u32);
        let positions: Vec<u32> = positions.collect();
        let visible = if start == 0 {
            // The padding of a row counts as a separate example.
            let first_key = |(padding, place)| {
                attention.first_key(place, if place < padding { 0 } else { padding }) as u32
            };
            let first_keys: Vec<u32> = places().map(first_key).collect();
            let longest = attention.sliding_window.unwrap_or(new).min(new);
            VisibleKeys::Rows(int_tensor(first_keys.into_iter(), device), longest)
        } else {
            // No new token attends to earlier keys than this one.
            let padding = self.paddings.iter().min().copied().unwrap_or(0);
            let first = attention.first_key(start, padding).min(start);
            let mut mask = Vec::with_capacity(rows * new * (keys - first));
            for (padding, place) in places() {
                // Padding attends to itself.
                let seen = attention.first_key(place, padding).min(place)..=place;
                mask.extend((first..keys).map(|key| match seen.contains(&key) {
                    true => 0.0,
                    false => HIDDEN,
                }));
            }
            let mask = TensorData::new(mask, [rows, 1, new, keys - first]);
            VisibleKeys::Mask(Tensor::from_data(mask, device))
        };
        let place = TokenPlaces {
            table: self.tables[kind].clone(),
            query_scale: attention.query_scale(&positions, device),
            positions: int_tensor(positions.into_iter(), device),
        };
        CacheStep { place, visible }
    }
}

impl CachedRows<'_> {
    /// Drops positions that are padding in all rows, if they are the majority.
    fn trim(&mut self) {
        let padding = self.paddings.iter().min().copied().unwrap_or(0);
        let kept = self.filled - padding;
        if padding < kept.max(FIRST_ROOM) {
            return;
        }
        self.kinds.caches.iter_mut().for_each(|cache| cache.keep_last(kept));
        self.paddings.iter_mut().for_each(|of_row| *of_row -= padding);
        self.filled = kept;
    }
}

impl RowScores for CachedRows<'_> {
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>> {
        let input: Vec<u32> = match new {
            Some(new) => new.to_vec(),
            None => {
                self.take_prefix();
                let prompts = std::mem::take(&mut self.prompts);
                let padded = |(prompt, padding): (Vec<u32>, &usize)| {
                    std::iter::repeat_n(0, *padding).chain(prompt).skip(self.filled)
                };
                prompts.into_iter().zip(&self.paddings).flat_map(padded).collect()
            }
        };
        // Prompts keep the threads busy anyway.
        let _awake = new.and_then(|_| keep_awake(&self.device));
        let rows = self.paddings.len();
        let new = input.len() / rows;
        if self.filled + new > self.positions {
            self.positions *= 2;
            let table =
                |kind: &SelfAttentionConfig| kind.rotary_table(self.positions, &self.device);
            self.tables = self.attentions.iter().map(table).collect();
        }
        let ids: Vec<i32> = input.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, new]), &self.device);
        let (mut done, piece) = (0, self.tokens_at_a_time(new));
        loop {
            let count = piece.min(new - done);
            let kinds = 0..self.attentions.len();
            self.kinds.steps = kinds.map(|kind| self.step(kind, self.filled, count)).collect();
            self.kinds.linear_step = self.linear_step(self.filled, count);
            let ids = ids.clone().narrow(1, done, count);
            let logits = self.model.logits_cached(ids, &mut self.kinds);
            self.filled += count;
            done += count;
            if done == new {
                return Ok(logits);
            }
        }
    }

    /// Returns true if at least half of the rows are finished, because dropping them copies the caches.
    fn drops(&self, active: usize, rows: usize) -> bool {
        active * 2 <= rows
    }

    /// Returns whether a prompt is no longer than the filled positions, so that it can replace a padded one.
    fn fits(&self, tokens: usize) -> bool {
        tokens <= self.filled
    }

    fn replace(&mut self, rows: &[usize], prompts: Vec<Vec<u32>>) -> Result<Tensor<2>> {
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let mut new = Self::new(self.model, prompts, 0, self.prefix.clone());
        let logits = new.next(None)?;
        for (cache, of_new) in self.kinds.caches.iter_mut().zip(&new.kinds.caches) {
            cache.insert(rows, of_new, &lengths);
        }
        for (row, length) in rows.iter().zip(lengths) {
            self.paddings[*row] = self.filled - length;
        }
        self.trim();
        Ok(logits)
    }

    fn keep(&mut self, rows: &[usize]) {
        let places: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let places = TensorData::new(places, [rows.len()]);
        let places = Tensor::<1, Int>::from_data(places, &self.device);
        self.kinds.caches.iter_mut().for_each(|cache| cache.select(&places));
        self.paddings = rows.iter().map(|row| self.paddings[*row]).collect();
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::{Architecture, DecoderConfig};

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
        // Two rows of different lengths, then single tokens beyond the initial capacity.
        let mut texts = vec![vec![3u32, 1, 4], vec![1, 5, 9, 2, 6]];
        let mut rows = CachedRows::new(&model, texts.clone(), 1, None);
        let mut new: Option<Vec<u32>> = None;
        for round in 0..20 {
            let logits = rows.next(new.as_deref()).unwrap();
            for (row, text) in texts.iter_mut().enumerate() {
                let ids: Vec<i32> = text.iter().map(|token| *token as i32).collect();
                let ids = Tensor::from_data(TensorData::new(ids, [1, text.len()]), &device);
                let whole = model.logits(ids).narrow(1, text.len() - 1, 1).reshape([1, 19]);
                let cached = logits.clone().narrow(0, row, 1);
                let error = (whole.clone() - cached).abs().max().into_scalar::<f32>();
                let scale = whole.abs().max().into_scalar::<f32>();
                // f32 sums in a different order.
                assert!(error < 1e-5 * scale, "row {row}, round {round}: {error} of {scale}");
                text.push((7 * round + row as u32) % 19);
            }
            new = Some(texts.iter().map(|text| text[text.len() - 1]).collect());
        }
    }

    #[test]
    fn what_prompts_begin_with_changes_no_score() {
        let device = Device::flex();
        for architecture in [Architecture::Llama, Architecture::Gemma3Text] {
            let config = DecoderConfig {
                architecture,
                vocab_size: 19,
                hidden_size: 16,
                intermediate_size: 24,
                num_hidden_layers: 3,
                sliding_window: Some(6),
                initializer_range: 0.3,
                ..DecoderConfig::default()
            };
            let model = config.init(2, &device).unwrap();
            let first: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % 19).collect();
            let with = |rest: &[u32]| [&first[..], rest].concat();
            // The second starts after the prefix of the first, the third within it.
            let long: Vec<u32> = (0..30).map(|i| (i * i + 1) % 19).collect();
            let prompts = [with(&long), with(&[4]), with(&long[5..22])];
            let prefix = SharedPrefix::of(&model, &prompts).unwrap();
            assert_eq!(prefix.tokens, 20);
            // A single prompt, prompts without a common prefix, and a prompt that is the prefix.
            assert!(SharedPrefix::of(&model, &prompts[..1]).is_none());
            assert!(SharedPrefix::of(&model, &[with(&[]), vec![1; 30]]).is_none());
            assert_eq!(SharedPrefix::of(&model, &[with(&[]), with(&[1])]).unwrap().tokens, 19);
            let mut rows = CachedRows::new(&model, prompts.to_vec(), 1, Some(prefix));
            let mut plain = CachedRows::new(&model, prompts.to_vec(), 1, None);
            // A few tokens at a time.
            rows.most_scores = 4000;
            let mut new: Option<Vec<u32>> = None;
            for round in 0..8 {
                let found = rows.next(new.as_deref()).unwrap();
                let expected = plain.next(new.as_deref()).unwrap();
                assert_eq!(rows.filled, plain.filled);
                assert!((2..10).contains(&rows.tokens_at_a_time(30)));
                let error = (found - expected.clone()).abs().max().into_scalar::<f32>();
                let scale = expected.abs().max().into_scalar::<f32>();
                assert!(error < 1e-5 * scale, "{architecture:?}, round {round}: {error}");
                new = Some(vec![round, 2 * round, 18 - round]);
            }
        }
    }
}
