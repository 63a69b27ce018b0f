//! Grouped-query attention with rotary positions, and where the tokens that it mixes stand.

use super::checks::{check_number, check_parameters, check_size, refuse};
use super::rms_norm::{RmsNorm, RmsNormConfig};
use crate::data::Batch;
use crate::error::Result;
use crate::model::cache::LayerCache;
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::rope::{RopeScaling, frequencies};
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::attention::AttentionShape;
use crate::ops::{causal_attention, causal_attention_within, rotary, rotary_table};
use burn::prelude::*;
use burn::tensor::TensorData;
use std::sync::Arc;

/// The shape of a [`SelfAttention`], and how its queries and keys are rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfAttentionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides the heads of the queries.
    pub num_key_value_heads: usize,
    /// Width of a head, an even number.
    pub head_dim: usize,
    /// Whether the projections to q, k and v have biases.
    pub attention_bias: bool,
    /// Whether each head of q and k is normalized before it is rotated.
    pub qk_norm: bool,
    /// Added to the mean square in those norms.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies.
    pub rope_theta: f64,
    /// Scaling of those frequencies; `None` leaves them as they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Standard deviation of the initial weights of `q_proj`, `k_proj` and `v_proj`.
    pub initializer_range: f64,
    /// The same of `o_proj`, which writes to the residual stream.
    pub output_initializer_range: f64,
}

impl SelfAttentionConfig {
    /// As many heads of keys and values as of queries, which share the width; neither biases nor
    /// norms; a base of 10,000; initial weights with the standard deviation 0.02.
    pub fn new(hidden_size: usize, num_attention_heads: usize) -> Self {
        Self {
            hidden_size,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: hidden_size / num_attention_heads.max(1),
            attention_bias: false,
            qk_norm: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            initializer_range: 0.02,
            output_initializer_range: 0.02,
        }
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Angle per position of each pair of a head's values, in radians: `head_dim / 2` numbers.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        frequencies(self.head_dim, self.rope_theta, self.rope_scaling)
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the first that does not.
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
        if !self.head_dim.is_multiple_of(2) {
            let what = format!("{} is odd, and RoPE rotates halves", self.head_dim);
            return refuse("head_dim", what, "Choose an even width");
        }
        let widths = (self.query_width() + self.key_value_width()) as u128;
        check_parameters(2 * self.hidden_size as u128 * widths)?;
        check_number("rms_norm_eps", self.rms_norm_eps)?;
        check_number("rope_theta", self.rope_theta)?;
        check_number("initializer_range", self.initializer_range)?;
        check_number("output_initializer_range", self.output_initializer_range)?;
        let Some(scaling) = &self.rope_scaling else { return Ok(()) };
        let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
        let fits = scaling.factor >= 1.0 && scaling.factor.is_finite() && low > 0.0;
        if !fits || !high.is_finite() || high <= low {
            let what = format!("{scaling:?} is out of range");
            return refuse("rope_scaling", what, "factor >= 1, 0 < low < high");
        }
        if scaling.original_max_position_embeddings == 0 {
            return refuse("rope_scaling", "its context is 0".into(), "Give its tokens");
        }
        Ok(())
    }

    /// Random weights; the same seed gives the same weights on every backend.
    ///
    /// # Errors
    /// As [`SelfAttentionConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<SelfAttention> {
        self.validate()?;
        self.build(&mut RandomWeights { seed, device }, "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<SelfAttention> {
        let (width, query) = (self.hidden_size, self.query_width());
        let key_value = self.key_value_width();
        let norm = RmsNormConfig { width: self.head_dim, eps: self.rms_norm_eps };
        let mut head_norm = |part: &str| match self.qk_norm {
            true => norm.build(source, &path(prefix, part)).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let (std, output, bias) =
            (self.initializer_range, self.output_initializer_range, self.attention_bias);
        let mut linear = |part: &str, sizes, deviation, bias| {
            LoraLinear::build(source, &path(prefix, part), sizes, deviation, bias)
        };
        Ok(SelfAttention {
            q_proj: linear("q_proj", [width, query], std, bias)?,
            k_proj: linear("k_proj", [width, key_value], std, bias)?,
            v_proj: linear("v_proj", [width, key_value], std, bias)?,
            o_proj: linear("o_proj", [query, width], output, false)?,
            q_norm,
            k_norm,
        })
    }
}

/// Where the tokens of a forward pass stand; shared by all layers with the same attention.
#[derive(Clone, Debug)]
pub struct AttentionMetadata {
    shape: AttentionShape,
    /// Tokens of the longest example.
    longest: usize,
    /// Cosine and sine, `[positions, head_dim / 2]`.
    table: [Tensor<2>; 2],
    /// Position of each token in its example, `[tokens]`.
    positions: Tensor<1, Int>,
    /// Index in its row of the first token of each token's example, `[tokens]`.
    segment_starts: Tensor<1, Int>,
    /// In training, what the adapters' dropout depends on.
    dropout: Option<DropoutKeys>,
}

impl AttentionMetadata {
    /// `rows` rows of `length` tokens, one example each, all starting at position 0. A row that is
    /// shorter is padded on the right, where nothing before it sees the padding.
    pub fn rows(config: &SelfAttentionConfig, rows: usize, length: usize, device: &Device) -> Self {
        Self {
            shape: attention_shape(config, rows, length),
            longest: length,
            table: rotary_table(length, &config.rope_frequencies(), device),
            positions: Tensor::<1, Int>::arange(0..length as i64, device).repeat_dim(0, rows),
            segment_starts: Tensor::zeros([rows * length], device),
            dropout: None,
        }
    }

    /// The rows of a micro-batch, packed or not.
    pub fn batch(config: &SelfAttentionConfig, batch: &Batch, device: &Device) -> Self {
        let positions = batch.positions.iter().max().map_or(1, |last| *last as usize + 1);
        Self {
            shape: attention_shape(config, batch.rows, batch.length),
            // Few different numbers, since some backends prepare each shape anew.
            longest: positions.next_multiple_of(64),
            table: rotary_table(positions, &config.rope_frequencies(), device),
            positions: int_tensor(batch.positions.iter().copied(), device),
            segment_starts: int_tensor(batch.starts.iter().copied(), device),
            dropout: device.is_autodiff().then(|| {
                let numbers = batch.numbers.iter().copied();
                let tokens = numbers.zip(batch.positions.iter().copied()).collect();
                DropoutKeys { tokens: Arc::new(tokens) }
            }),
        }
    }

    /// The same on the device without autodiff.
    pub(in crate::model) fn inner(&self) -> Self {
        Self {
            table: self.table.clone().map(Tensor::inner),
            positions: self.positions.clone().inner(),
            segment_starts: self.segment_starts.clone().inner(),
            ..self.clone()
        }
    }

    pub(super) fn dropout(&self) -> Option<&DropoutKeys> {
        self.dropout.as_ref()
    }
}

fn attention_shape(config: &SelfAttentionConfig, rows: usize, length: usize) -> AttentionShape {
    AttentionShape {
        batch: rows,
        seq: length,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

pub(in crate::model) fn int_tensor(
    values: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    let count = values.len();
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// What all layers need to know of a step of generation.
pub(in crate::model) struct CacheStep {
    /// Cosine and sine, `[positions, head_dim / 2]`.
    pub table: [Tensor<2>; 2],
    /// Positions of the new tokens, `[rows * new]`.
    pub positions: Tensor<1, Int>,
    /// What they see.
    pub visible: VisibleKeys,
}

/// What new tokens see of the tokens in the cache and of each other.
pub(in crate::model) enum VisibleKeys {
    /// At the beginning, each its own row from here on, `[rows * new]`; the cache is empty.
    Rows(Tensor<1, Int>),
    /// Later: added to the scores, `[rows, 1, new, keys]`, 0 where visible, else very negative.
    Mask(Tensor<4>),
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
/// // Two rows of five tokens, one after the other.
/// let x = Tensor::<2>::random([10, 32], Distribution::Default, &device);
/// let metadata = AttentionMetadata::rows(&config, 2, 5, &device);
/// assert_eq!(attention.forward(x, &metadata).dims(), [10, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct SelfAttention {
    pub(in crate::model) q_proj: LoraLinear,
    pub(in crate::model) k_proj: LoraLinear,
    pub(in crate::model) v_proj: LoraLinear,
    pub(in crate::model) o_proj: LoraLinear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
}

impl SelfAttention {
    /// # Shapes
    /// `[tokens, hidden_size]` to the same; `metadata` is of the same configuration and says which
    /// rows and positions the tokens have.
    pub fn forward(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        self.o_proj.forward(self.mixed(x, metadata), metadata.dropout())
    }

    /// `residual` with the attention of `x` added, in one operation.
    pub(super) fn forward_add(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        metadata: &AttentionMetadata,
    ) -> Tensor<2> {
        self.o_proj.forward_add(self.mixed(x, metadata), residual, metadata.dropout())
    }

    /// What the heads make of the tokens, `[tokens, heads * head_dim]`.
    fn mixed(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        let [q, k, v] =
            self.heads(x, &metadata.table, &metadata.positions, metadata.dropout.as_ref());
        let starts = metadata.segment_starts.clone();
        causal_attention_within(q, k, v, starts, metadata.shape, metadata.longest)
    }

    /// Queries, keys and values, rotated.
    fn heads(
        &self,
        x: Tensor<2>,
        table: &[Tensor<2>; 2],
        positions: &Tensor<1, Int>,
        dropout: Option<&DropoutKeys>,
    ) -> [Tensor<2>; 3] {
        let norm = |norm: &Option<RmsNorm>, x| match norm {
            Some(norm) => norm.forward_heads(x),
            None => x,
        };
        let q = norm(&self.q_norm, self.q_proj.forward(x.clone(), dropout));
        let k = norm(&self.k_norm, self.k_proj.forward(x.clone(), dropout));
        let v = self.v_proj.forward(x, dropout);
        let rotate = |x| rotary(x, table.clone(), positions.clone());
        [rotate(q), rotate(k), v]
    }

    /// `residual` with the attention of new tokens to the cache added; it takes them in.
    pub(super) fn forward_cached(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        step: &CacheStep,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        let [q, k, v] = self.heads(x, &step.table, &step.positions, None);
        let mixed = match &step.visible {
            VisibleKeys::Rows(starts) => {
                cache.append(k.clone(), v.clone());
                causal_attention(q, k, v, starts.clone(), cache.shape())
            }
            VisibleKeys::Mask(mask) => cache.attend([q, k, v], mask.clone()),
        };
        self.o_proj.forward_add(mixed, residual, None)
    }
}
