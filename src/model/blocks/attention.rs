//! Grouped-query attention with RoPE, and the metadata of the tokens that it mixes.

use super::checks::{check_number, check_parameters, check_size, refuse};
use super::rms_norm::{RmsNorm, RmsNormConfig};
use crate::data::Batch;
use crate::error::Result;
use crate::model::cache::LayerCache;
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::precision::like;
use crate::model::rope::{RopeScaling, frequencies};
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::attention::AttentionShape;
use crate::ops::{Sequences, causal_attention_within, rotary_partial, rotary_table};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::sigmoid;
use std::sync::Arc;

/// Normalization of queries and keys before RoPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Per head, with a weight as wide as a head (Qwen3, Gemma 3).
    Heads,
    /// All heads together, with a weight as wide as the projection (OLMo 2).
    Whole,
}

/// Configuration of a [`SelfAttention`].
#[derive(Clone, Debug, PartialEq)]
pub struct SelfAttentionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads. Must divide `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head. The rotated part of it must be even.
    pub head_dim: usize,
    /// Whether the query, key, and value projections have biases.
    pub attention_bias: bool,
    /// Whether the query, key, and value projections are one matrix, `qkv_proj` (Phi-3).
    pub fused: bool,
    /// Normalization of queries and keys before RoPE.
    pub qk_norm: QkNorm,
    /// Settings of the query and key norms and of the block's norms. `width` is ignored.
    pub norm: RmsNormConfig,
    /// Scale of the attention scores. `None`: `1 / sqrt(head_dim)`.
    pub score_scale: Option<f64>,
    /// Number of keys that a token attends to, including its own. `None`: all up to it in its example.
    pub sliding_window: Option<usize>,
    /// Whether queries and keys are rotated.
    pub rotated: bool,
    /// Share of each head's values that is rotated, starting with the first.
    pub partial_rotary_factor: f64,
    /// Whether `q_proj` outputs a gate after each head's query, of the same width, whose sigmoid multiplies
    /// the head's output (Qwen3.5). Excludes `fused`.
    pub output_gate: bool,
    /// Base of RoPE's frequencies.
    pub rope_theta: f64,
    /// Scaling of RoPE's frequencies. `None`: unscaled.
    pub rope_scaling: Option<RopeScaling>,
    /// Standard deviation of the initial weights of `q_proj`, `k_proj`, and `v_proj`.
    pub initializer_range: f64,
    /// The same for `o_proj`, which writes to the residual stream.
    pub output_initializer_range: f64,
}

impl SelfAttentionConfig {
    /// Returns multi-head attention whose heads share the width: no biases, no query and key norms, no
    /// window, a RoPE base of 10,000, and initial weights with a standard deviation of 0.02.
    pub fn new(hidden_size: usize, num_attention_heads: usize) -> Self {
        Self {
            hidden_size,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: hidden_size / num_attention_heads.max(1),
            attention_bias: false,
            fused: false,
            qk_norm: QkNorm::None,
            norm: RmsNormConfig::new(hidden_size),
            score_scale: None,
            sliding_window: None,
            rotated: true,
            partial_rotary_factor: 1.0,
            output_gate: false,
            rope_theta: 10_000.0,
            rope_scaling: None,
            initializer_range: 0.02,
            output_initializer_range: 0.02,
        }
    }

    /// Returns the total width of the query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Returns the total width of the key heads, which is also that of the value heads.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Returns the number of rotated values per head.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Returns the angle per position of each rotated pair of values, in radians (`rotary_dim / 2` numbers).
    pub fn rope_frequencies(&self) -> Vec<f64> {
        frequencies(self.rotary_dim(), self.rope_theta, self.rope_scaling.as_ref())
    }

    /// Cosines and sines of the first positions, `[positions, rotary_dim / 2]`. `None` without RoPE.
    pub(in crate::model) fn rotary_table(
        &self,
        positions: usize,
        device: &Device,
    ) -> Option<[Tensor<2>; 2]> {
        let factor = self.rope_scaling.as_ref().map_or(1.0, RopeScaling::attention_factor);
        let table = || {
            let table = rotary_table(positions, &self.rope_frequencies(), device);
            if factor == 1.0 { table } else { table.map(|part| part * factor) }
        };
        self.rotated.then(table)
    }

    /// Returns the factors of the queries, `[tokens, 1]`, for kernels that scale scores by `1 /
    /// sqrt(head_dim)`. `None` if all are 1.
    pub(in crate::model) fn query_scale(
        &self,
        positions: &[u32],
        device: &Device,
    ) -> Option<Tensor<2>> {
        let of_all = self.score_scale.map_or(1.0, |scale| scale * (self.head_dim as f64).sqrt());
        let by_position = self.rope_scaling.as_ref().filter(|s| s.llama_4_scaling_beta.is_some());
        if of_all == 1.0 && by_position.is_none() {
            return None;
        }
        let scale = |position: &u32| by_position.map_or(1.0, |s| s.query_scale(*position));
        let scales = positions.iter().map(|position| (of_all * scale(position)) as f32);
        let scales = TensorData::new(scales.collect(), [positions.len(), 1]);
        Some(Tensor::from_data(scales, device))
    }

    /// Returns the first key that the token at `place` of its row attends to, if its example begins at
    /// `start`.
    pub(in crate::model) fn first_key(&self, place: usize, start: usize) -> usize {
        match self.sliding_window {
            Some(window) => start.max((place + 1).saturating_sub(window)),
            None => start,
        }
    }

    /// Checks the sizes and numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first invalid size or number.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        sizes.into_iter().try_for_each(|(key, value)| check_size(key, value))?;
        let heads = self.num_attention_heads;
        if !heads.is_multiple_of(self.num_key_value_heads) {
            let what = format!(
                "{} key-value heads do not divide {heads} query heads",
                self.num_key_value_heads
            );
            return refuse("num_key_value_heads", what, "Choose a divisor");
        }
        let share = self.partial_rotary_factor;
        if !(0.0..=1.0).contains(&share) {
            let what = format!("it is {share}");
            return refuse("partial_rotary_factor", what, "Use a share above 0, up to 1");
        }
        let rotated = self.rotary_dim();
        if self.rotated && (rotated == 0 || !rotated.is_multiple_of(2)) {
            let (head, whole) = (self.head_dim, share == 1.0);
            let key = if whole { "head_dim" } else { "partial_rotary_factor" };
            let what =
                format!("{rotated} of {head} values are rotated, but RoPE needs an even number");
            return refuse(key, what, "Choose an even number");
        }
        if self.sliding_window == Some(0) {
            return refuse(
                "sliding_window",
                "it is 0".into(),
                "Remove it, or set it to a number of tokens",
            );
        }
        if self.output_gate && self.fused {
            let what = "it cannot be combined with fused projections".into();
            return refuse("output_gate", what, "Use only one of them");
        }
        let gates = if self.output_gate { self.query_width() } else { 0 };
        let widths = (2 * (self.query_width() + self.key_value_width()) + gates) as u128;
        check_parameters(self.hidden_size as u128 * widths)?;
        check_number("rms_norm_eps", self.norm.eps)?;
        check_number("rope_theta", self.rope_theta)?;
        check_number("attention_multiplier", self.score_scale.unwrap_or(1.0))?;
        check_number("initializer_range", self.initializer_range)?;
        check_number("output_initializer_range", self.output_initializer_range)?;
        let Some(scaling) = &self.rope_scaling else { return Ok(()) };
        scaling.validate(rotated)?;
        let finite = scaling.attention_factor().is_finite()
            && self.rope_frequencies().iter().all(|frequency| frequency.is_finite());
        if !finite {
            let what = "it leads to frequencies that are not finite".to_owned();
            return refuse("rope_scaling", what, "Check rope_theta and the original context");
        }
        Ok(())
    }

    /// Initializes random weights. A seed gives the same weights on every backend.
    ///
    /// # Errors
    /// See [`SelfAttentionConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<SelfAttention> {
        self.validate()?;
        self.build(&mut RandomWeights::new(seed, device), "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<SelfAttention> {
        let (width, query) = (self.hidden_size, self.query_width());
        let key_value = self.key_value_width();
        let mut norm_of = |part: &str, whole: usize| {
            let width = match self.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::Heads => self.head_dim,
                QkNorm::Whole => whole,
            };
            RmsNormConfig { width, ..self.norm }.build(source, &path(prefix, part)).map(Some)
        };
        let (q_norm, k_norm) = (norm_of("q_norm", query)?, norm_of("k_norm", key_value)?);
        let (std, output, bias) =
            (self.initializer_range, self.output_initializer_range, self.attention_bias);
        let mut linear = |part: &str, sizes, deviation, bias| {
            LoraLinear::build(source, &path(prefix, part), sizes, deviation, bias)
        };
        let mut input = |part: &str, columns: usize, is_there: bool| {
            is_there.then(|| linear(part, [width, columns], std, bias)).transpose()
        };
        Ok(SelfAttention {
            q_proj: input("q_proj", if self.output_gate { 2 * query } else { query }, !self.fused)?,
            k_proj: input("k_proj", key_value, !self.fused)?,
            v_proj: input("v_proj", key_value, !self.fused)?,
            qkv_proj: input("qkv_proj", query + 2 * key_value, self.fused)?,
            o_proj: linear("o_proj", [query, width], output, false)?,
            q_norm,
            k_norm,
            widths: [query, key_value],
            head_dim: self.head_dim,
            output_gate: self.output_gate,
        })
    }
}

/// Rows and positions of the tokens in a forward pass, shared by all layers with the same attention.
#[derive(Clone, Debug)]
pub struct AttentionMetadata {
    shape: AttentionShape,
    /// Upper bound of the keys that a token attends to.
    longest: usize,
    place: TokenPlaces,
    /// Index in its row of the first key that each token attends to, `[tokens]`.
    first_keys: Tensor<1, Int>,
    /// The examples, without padding.
    sequences: Sequences,
    /// Keys of the adapters' dropout, in training.
    dropout: Option<DropoutKeys>,
}

/// Inputs to the rotation and scaling of queries and keys.
#[derive(Clone, Debug)]
pub(in crate::model) struct TokenPlaces {
    /// Position of each token in its example, `[tokens]`.
    pub positions: Tensor<1, Int>,
    /// Cosines and sines, `[positions, rotary_dim / 2]`. `None` without RoPE.
    pub table: Option<[Tensor<2>; 2]>,
    /// Factors of the queries, `[tokens, 1]`. `None` if all are 1.
    pub query_scale: Option<Tensor<2>>,
}

impl AttentionMetadata {
    /// Returns the metadata of `rows` rows of `length` tokens, each a single example from position 0. Pad
    /// shorter rows on the right; no earlier token attends to the padding.
    pub fn rows(config: &SelfAttentionConfig, rows: usize, length: usize, device: &Device) -> Self {
        let positions: Vec<u32> = (0..length as u32).collect::<Vec<_>>().repeat(rows);
        let starts = vec![0; rows * length];
        let sequences = Sequences::rows(rows, length);
        Self::new(config, [rows, length], [&positions, &starts], length, sequences, device)
    }

    /// Returns the metadata of a micro-batch, packed or not.
    pub fn batch(config: &SelfAttentionConfig, batch: &Batch, device: &Device) -> Self {
        let positions = batch.positions.iter().max().map_or(1, |last| *last as usize + 1);
        // Rounded up, because some backends compile kernels for each new shape.
        let longest = positions.next_multiple_of(64);
        let (size, of_tokens) = ([batch.rows, batch.length], [&batch.positions, &batch.starts]);
        let of_tokens = of_tokens.map(Vec::as_slice);
        let metadata = Self::new(config, size, of_tokens, longest, examples(batch), device);
        let dropout = device.is_autodiff().then(|| {
            let numbers = batch.numbers.iter().copied();
            let tokens = numbers.zip(batch.positions.iter().copied()).collect();
            DropoutKeys { tokens: Arc::new(tokens) }
        });
        Self { dropout, ..metadata }
    }

    /// Builds the metadata from the position of each token, and the index in its row of the first token of
    /// its example.
    fn new(
        config: &SelfAttentionConfig,
        [rows, length]: [usize; 2],
        [positions, starts]: [&[u32]; 2],
        longest: usize,
        sequences: Sequences,
        device: &Device,
    ) -> Self {
        let last = positions.iter().max().map_or(1, |last| *last as usize + 1);
        let first_key = |(token, start): (usize, &u32)| {
            config.first_key(token % length, *start as usize) as u32
        };
        Self {
            shape: AttentionShape {
                batch: rows,
                seq: length,
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            longest: longest.min(config.sliding_window.unwrap_or(usize::MAX)),
            place: TokenPlaces {
                positions: int_tensor(positions.iter().copied(), device),
                table: config.rotary_table(last, device),
                query_scale: config.query_scale(positions, device),
            },
            first_keys: int_tensor(starts.iter().enumerate().map(first_key), device),
            sequences,
            dropout: None,
        }
    }

    /// Returns the same metadata on the device without autodiff.
    pub(in crate::model) fn inner(&self) -> Self {
        Self {
            place: TokenPlaces {
                positions: self.place.positions.clone().inner(),
                table: self.place.table.clone().map(|table| table.map(Tensor::inner)),
                query_scale: self.place.query_scale.clone().map(Tensor::inner),
            },
            first_keys: self.first_keys.clone().inner(),
            ..self.clone()
        }
    }

    /// Adds dropout of the adapters' inputs.
    #[cfg(test)]
    pub(in crate::model) fn with_dropout(self, dropout: DropoutKeys) -> Self {
        Self { dropout: Some(dropout), ..self }
    }

    pub(in crate::model) fn dropout(&self) -> Option<&DropoutKeys> {
        self.dropout.as_ref()
    }

    pub(super) fn sequences(&self) -> &Sequences {
        &self.sequences
    }
}

/// Returns the examples of a batch.
fn examples(batch: &Batch) -> Sequences {
    let (mut ranges, mut token) = (vec![], 0);
    while token < batch.lengths.len() {
        // Padding has length 0.
        let length = batch.lengths[token] as usize;
        if length > 0 {
            ranges.push(token..token + length);
        }
        token += length.max(1);
    }
    Sequences::new(batch.lengths.len(), ranges)
}

pub(in crate::model) fn int_tensor(
    values: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    let count = values.len();
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Inputs of a generation step, shared by all layers with the same attention.
pub(in crate::model) struct CacheStep {
    /// Positions of the new tokens.
    pub place: TokenPlaces,
    /// Keys that they attend to.
    pub visible: VisibleKeys,
}

/// Which keys new tokens attend to, in the cache and among themselves.
pub(in crate::model) enum VisibleKeys {
    /// First step, with an empty cache: the first key of each token, `[rows * new]`, and the largest number
    /// of keys.
    Rows(Tensor<1, Int>, usize),
    /// Later steps: a mask that is added to the scores of the last keys, `[rows, 1, new, keys]`: 0 if
    /// visible, very negative otherwise.
    Mask(Tensor<4>),
}

/// Multiplies the heads' output by the sigmoid of their gate, if there is one.
fn gated(y: Tensor<2>, gate: Option<Tensor<2>>) -> Tensor<2> {
    match gate {
        Some(gate) => y * sigmoid(gate),
        None => y,
    }
}

/// Grouped-query attention.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use mixdistill::model::{AttentionMetadata, SelfAttentionConfig};
///
/// # fn main() -> mixdistill::Result<()> {
/// let device = mixdistill::device::by_name("auto")?;
/// let config = SelfAttentionConfig { num_key_value_heads: 2, ..SelfAttentionConfig::new(32, 4) };
/// let attention = config.init(1, &device)?;
/// // Two concatenated rows of five tokens.
/// let x = Tensor::<2>::random([10, 32], Distribution::Default, &device);
/// let metadata = AttentionMetadata::rows(&config, 2, 5, &device);
/// assert_eq!(attention.forward(x, &metadata).dims(), [10, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct SelfAttention {
    q_proj: Option<LoraLinear>,
    k_proj: Option<LoraLinear>,
    v_proj: Option<LoraLinear>,
    /// Replaces those three.
    qkv_proj: Option<LoraLinear>,
    o_proj: LoraLinear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    /// Total widths of the query heads and of the key heads.
    #[module(skip)]
    widths: [usize; 2],
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    output_gate: bool,
}

/// Queries, keys, and values, and the gate of the output.
struct Heads {
    qkv: [Tensor<2>; 3],
    gate: Option<Tensor<2>>,
}

impl SelfAttention {
    /// Applies attention to the tokens that `metadata` describes, which must come from the same
    /// configuration.
    ///
    /// # Shapes
    /// `x` and result: `[tokens, hidden_size]`.
    pub fn forward(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        self.forward_to(x, None, metadata)
    }

    /// Like [`SelfAttention::forward`], plus `residual`, if given, in one operation.
    pub(super) fn forward_to(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        metadata: &AttentionMetadata,
    ) -> Tensor<2> {
        self.o_proj.forward_to(self.mixed(x, metadata), residual, metadata.dropout())
    }

    /// Returns the output of the heads, `[tokens, heads * head_dim]`.
    fn mixed(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        let Heads { qkv: [q, k, v], gate } =
            self.heads(x, &metadata.place, metadata.dropout.as_ref());
        let first_keys = metadata.first_keys.clone();
        let y = causal_attention_within(q, k, v, first_keys, metadata.shape, metadata.longest);
        gated(y, gate)
    }

    /// Returns the queries, keys, and values, normalized and rotated.
    fn heads(&self, x: Tensor<2>, place: &TokenPlaces, dropout: Option<&DropoutKeys>) -> Heads {
        let [q, k, v] = self.projected(x, dropout);
        let (q, gate) = self.without_gate(q);
        let norm = |norm: &Option<RmsNorm>, x| match norm {
            Some(norm) => norm.forward_parts(x),
            None => x,
        };
        let rotate = |x| match &place.table {
            Some(table) => rotary_partial(x, table.clone(), place.positions.clone(), self.head_dim),
            None => x,
        };
        let (q, k) = (rotate(norm(&self.q_norm, q)), rotate(norm(&self.k_norm, k)));
        let q = match &place.query_scale {
            Some(scale) => {
                let scale = like(scale.clone(), &q);
                q * scale
            }
            None => q,
        };
        Heads { qkv: [q, k, v], gate }
    }

    /// Separates the queries from the gate that follows each head's query.
    fn without_gate(&self, q: Tensor<2>) -> (Tensor<2>, Option<Tensor<2>>) {
        if !self.output_gate {
            return (q, None);
        }
        let ([tokens, _], [width, _], dim) = (q.dims(), self.widths, self.head_dim);
        let both = q.reshape([tokens, width / dim, 2 * dim]);
        let part = |start| both.clone().narrow(2, start, dim).reshape([tokens, width]);
        (part(0), Some(part(dim)))
    }

    /// Returns the queries, keys, and values, as projected.
    fn projected(&self, x: Tensor<2>, dropout: Option<&DropoutKeys>) -> [Tensor<2>; 3] {
        if let Some(all) = &self.qkv_proj {
            let all = all.forward(x, dropout);
            let [query, key_value] = self.widths;
            let part = |start, width| all.clone().narrow(1, start, width);
            return [part(0, query), part(query, key_value), part(query + key_value, key_value)];
        }
        let (Some(q), Some(k), Some(v)) = (&self.q_proj, &self.k_proj, &self.v_proj) else {
            unreachable!("the projections are one or three")
        };
        LoraLinear::forward_all([q, k, v], x, dropout)
    }

    /// Computes the attention of new tokens, which are appended to the cache. The result includes `residual`,
    /// if given.
    pub(super) fn forward_cached(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        step: &CacheStep,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        self.o_proj.forward_to(self.mixed_cached(x, step, cache), residual, None)
    }

    fn mixed_cached(&self, x: Tensor<2>, step: &CacheStep, cache: &mut LayerCache) -> Tensor<2> {
        let Heads { qkv: [q, k, v], gate } = self.heads(x, &step.place, None);
        let y = match &step.visible {
            VisibleKeys::Rows(first_keys, longest) => {
                cache.append(k.clone(), v.clone());
                let shape = cache.shape();
                causal_attention_within(q, k, v, first_keys.clone(), shape, *longest)
            }
            VisibleKeys::Mask(mask) => cache.attend([q, k, v], mask.clone()),
        };
        gated(y, gate)
    }

    /// Returns the linear layers, by name.
    pub(in crate::model) fn linear_layers_mut(&mut self) -> Vec<(&'static str, &mut LoraLinear)> {
        let layers = [
            ("q_proj", self.q_proj.as_mut()),
            ("k_proj", self.k_proj.as_mut()),
            ("v_proj", self.v_proj.as_mut()),
            ("qkv_proj", self.qkv_proj.as_mut()),
            ("o_proj", Some(&mut self.o_proj)),
        ];
        layers.into_iter().filter_map(|(name, layer)| Some((name, layer?))).collect()
    }
}
