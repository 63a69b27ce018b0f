//! Scores from a decoder that keeps the keys and values of the tokens so far.

use super::answer::{Generation, StopConditions, TokenObserver};
use super::config::GenerateConfig;
use super::limits::TokenLimits;
use super::model::Generate;
use super::rows::{RowScores, answer_prompts};
use crate::data::{Batch, TopTokens};
use crate::error::Result;
use crate::model::blocks::{CacheStep, VisibleKeys};
use crate::model::cache::LayerCache;
use crate::model::decoder::DecoderLm;
use crate::model::precision::in_f32;
use crate::ops::{linear, rotary_table};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;

/// Added to the score of a key that a query must not see.
const HIDDEN: f32 = -1e9;

/// New tokens for which a cache has room at first.
const FIRST_ROOM: usize = 128;

impl Generate for DecoderLm {
    fn limits(&self) -> TokenLimits {
        let config = self.config();
        TokenLimits { vocabulary: config.vocab_size, context: config.max_position_embeddings }
    }

    fn device(&self) -> Device {
        DecoderLm::device(self)
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        DecoderLm::logits(self, ids)
    }

    /// With a cache of keys and values. Scores may differ in their last bits between batches of up to
    /// 32 rows and larger ones.
    fn generate_as(
        &self,
        prompts: &[Vec<u32>],
        numbers: &[u64],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        let model = self.clone().valid();
        let begin = |prompts| CachedRows::new(&model, prompts, config.max_new_tokens);
        let limits = self.limits();
        answer_prompts(limits, prompts, numbers, stop_conditions, config, observe, begin)
    }

    /// `[tokens, vocabulary]` exists for a few hundred tokens at a time.
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
    /// As [`Generate::generate`], which needs not be in scope for it.
    ///
    /// # Errors
    /// As there.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        stop_conditions: StopConditions<'_>,
        config: &GenerateConfig,
        observe: &mut TokenObserver<'_>,
    ) -> Result<Vec<Generation>> {
        Generate::generate(self, prompts, stop_conditions, config, observe)
    }

    /// Scores of the token after the last new one, `[rows, vocabulary]`; the new tokens
    /// `[rows, new]` go into the caches.
    fn logits_cached(
        &self,
        ids: Tensor<2, Int>,
        step: &CacheStep,
        caches: &mut [LayerCache],
    ) -> Tensor<2> {
        let [rows, new] = ids.dims();
        let mut x = self.embed(ids);
        for (layer, cache) in self.model.layers.iter().zip(caches) {
            x = layer.forward_cached(x, step, cache);
        }
        let width = self.config.hidden_size;
        let last = x.reshape([rows, new, width]).narrow(1, new - 1, 1).reshape([rows, width]);
        linear(in_f32(self.model.norm.forward(last)), self.head())
    }
}

/// A batch of rows with their cache.
///
/// ```text
/// row a   . . P P P | A A          prompts are padded on the left, so that all rows write their
/// row b   P P P P P | A A          next token to the same place
/// ```
struct CachedRows<'a> {
    model: &'a DecoderLm,
    device: Device,
    /// The prompts, until they are in the cache.
    prompts: Vec<Vec<u32>>,
    /// Padding before each row.
    paddings: Vec<usize>,
    caches: Vec<LayerCache>,
    frequencies: Vec<f64>,
    /// Positions that `rotation` has.
    positions: usize,
    rotation: [Tensor<2>; 2],
    /// Places that are filled.
    filled: usize,
}

impl<'a> CachedRows<'a> {
    fn new(model: &'a DecoderLm, prompts: Vec<Vec<u32>>, max_new_tokens: usize) -> Self {
        let (shape, device) = (model.config(), model.device());
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let sizes = [
            prompts.len(),
            shape.num_attention_heads,
            shape.num_key_value_heads,
            longest + FIRST_ROOM.min(max_new_tokens),
            shape.head_dim(),
        ];
        let frequencies = shape.rope_frequencies();
        let positions = sizes[3];
        let rotation = rotary_table(positions, &frequencies, &device);
        let dtype = model.activation_type();
        let caches =
            (0..shape.num_hidden_layers).map(|_| LayerCache::new(sizes, dtype, &device)).collect();
        let paddings = prompts.iter().map(|prompt| longest - prompt.len()).collect();
        let filled = 0;
        Self { model, device, prompts, paddings, caches, frequencies, positions, rotation, filled }
    }

    /// Positions of `new` tokens after `start` earlier places, and what they see.
    fn step(&self, start: usize, new: usize) -> CacheStep {
        let (rows, keys, device) = (self.paddings.len(), start + new, &self.device);
        let places = || {
            self.paddings
                .iter()
                .flat_map(|padding| (start..keys).map(move |place| (*padding, place)))
        };
        let ints = |values: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(values, [rows * new]), device)
        };
        let positions = places().map(|(padding, place)| place.saturating_sub(padding) as i32);
        let visible = if start == 0 {
            // A prompt is a row whose padding is an example of its own.
            let starts = places().map(|(padding, place)| if place < padding { 0 } else { padding });
            VisibleKeys::Rows(ints(starts.map(|start| start as i32).collect()))
        } else {
            let mut mask = Vec::with_capacity(rows * new * keys);
            for (padding, place) in places() {
                mask.extend((0..keys).map(|key| match key >= padding && key <= place {
                    true => 0.0,
                    false => HIDDEN,
                }));
            }
            let mask = TensorData::new(mask, [rows, 1, new, keys]);
            VisibleKeys::Mask(Tensor::from_data(mask, device))
        };
        CacheStep { table: self.rotation.clone(), positions: ints(positions.collect()), visible }
    }
}

impl RowScores for CachedRows<'_> {
    fn next(&mut self, new: Option<&[u32]>) -> Result<Tensor<2>> {
        let input: Vec<u32> = match new {
            Some(new) => new.to_vec(),
            None => {
                let prompts = std::mem::take(&mut self.prompts);
                let rows = prompts.into_iter().zip(&self.paddings);
                rows.flat_map(|(prompt, padding)| std::iter::repeat_n(0, *padding).chain(prompt))
                    .collect()
            }
        };
        let rows = self.paddings.len();
        let new = input.len() / rows;
        if self.filled + new > self.positions {
            self.positions *= 2;
            self.rotation = rotary_table(self.positions, &self.frequencies, &self.device);
        }
        let step = self.step(self.filled, new);
        let ids: Vec<i32> = input.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, new]), &self.device);
        let logits = self.model.logits_cached(ids, &step, &mut self.caches);
        self.filled += new;
        Ok(logits)
    }

    /// Where half of them are finished: dropping them copies the cache.
    fn drops(&self, active: usize, rows: usize) -> bool {
        active * 2 <= rows
    }

    fn keep(&mut self, rows: &[usize]) {
        let places: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let places = TensorData::new(places, [rows.len()]);
        let places = Tensor::<1, Int>::from_data(places, &self.device);
        self.caches.iter_mut().for_each(|cache| cache.select(&places));
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
        // Two rows of unequal length, then tokens one by one, beyond the first capacity.
        let mut texts = vec![vec![3u32, 1, 4], vec![1, 5, 9, 2, 6]];
        let mut rows = CachedRows::new(&model, texts.clone(), 1);
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
                // f32 sums in another order.
                assert!(error < 1e-5 * scale, "row {row}, round {round}: {error} of {scale}");
                text.push((7 * round + row as u32) % 19);
            }
            new = Some(texts.iter().map(|text| text[text.len() - 1]).collect());
        }
    }
}
