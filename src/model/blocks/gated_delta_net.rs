//! Linear attention with the gated delta rule, as in Qwen3.5: projections, a short convolution over queries,
//! keys, and values, the rule, and a gated norm.
//!
//! Source: Yang, Kautz, and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464. Names and details follow
//! transformers' `Qwen3_5GatedDeltaNet`.

#![allow(non_snake_case, reason = "A_log is the name in weight files")]

use super::attention::AttentionMetadata;
use super::checks::{check_number, check_parameters, check_size, refuse};
use super::rms_norm::{RmsNorm, RmsNormConfig};
use crate::error::Result;
use crate::model::linear_cache::{LinearCache, LinearStep};
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::precision::in_f32;
use crate::model::weight_source::{RandomWeights, WeightSource, normal, path};
use crate::ops::{
    Activation, DeltaShape, causal_conv, gated, gated_delta_rule, gated_delta_rule_from,
};
use burn::module::Param;
use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, sigmoid};
use std::collections::BTreeMap;

/// Configuration of a [`GatedDeltaNet`].
#[derive(Clone, Debug, PartialEq)]
pub struct GatedDeltaNetConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of query heads, and of key heads.
    pub num_key_heads: usize,
    /// Number of value heads. Must be a multiple of `num_key_heads`.
    pub num_value_heads: usize,
    /// Width of a query or key head.
    pub key_head_dim: usize,
    /// Width of a value head.
    pub value_head_dim: usize,
    /// Tokens that the convolution covers, including the current one.
    pub conv_kernel_dim: usize,
    /// Epsilon of the norm of the rule's output.
    pub rms_norm_eps: f64,
    /// Standard deviation of the initial weights of the projections.
    pub initializer_range: f64,
    /// The same for `out_proj`, which writes to the residual stream.
    pub output_initializer_range: f64,
}

impl GatedDeltaNetConfig {
    /// Returns a layer with equally many key and value heads, which share the width, a convolution over four
    /// tokens, and initial weights with a standard deviation of 0.02.
    pub fn new(hidden_size: usize, num_heads: usize) -> Self {
        let dim = hidden_size / num_heads.max(1);
        Self {
            hidden_size,
            num_key_heads: num_heads,
            num_value_heads: num_heads,
            key_head_dim: dim,
            value_head_dim: dim,
            conv_kernel_dim: 4,
            rms_norm_eps: 1e-6,
            initializer_range: 0.02,
            output_initializer_range: 0.02,
        }
    }

    /// Returns the sizes of the heads.
    pub fn delta_shape(&self) -> DeltaShape {
        DeltaShape {
            key_heads: self.num_key_heads,
            value_heads: self.num_value_heads,
            key_dim: self.key_head_dim,
            value_dim: self.value_head_dim,
        }
    }

    /// Returns the total width of the key heads.
    pub fn key_width(&self) -> usize {
        self.num_key_heads * self.key_head_dim
    }

    /// Returns the total width of the value heads.
    pub fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }

    /// Returns the channels of the convolution: all queries, keys, and values.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Returns the total width of the layer's matrices, without the residual stream's side.
    pub(in crate::model) fn row_width(&self) -> usize {
        self.channels() + 2 * self.value_width() + 2 * self.num_value_heads
    }

    /// Returns the sizes, by their keys in `config.json`.
    pub(in crate::model) fn config_json(&self) -> [(&'static str, usize); 5] {
        [
            ("linear_conv_kernel_dim", self.conv_kernel_dim),
            ("linear_key_head_dim", self.key_head_dim),
            ("linear_value_head_dim", self.value_head_dim),
            ("linear_num_key_heads", self.num_key_heads),
            ("linear_num_value_heads", self.num_value_heads),
        ]
    }

    /// Returns the input and output widths of the linear layers.
    pub(in crate::model) fn linear_layers(&self) -> [(&'static str, [usize; 2]); 5] {
        let (width, values, heads) = (self.hidden_size, self.value_width(), self.num_value_heads);
        [
            ("in_proj_qkv", [width, self.channels()]),
            ("in_proj_z", [width, values]),
            ("in_proj_b", [width, heads]),
            ("in_proj_a", [width, heads]),
            ("out_proj", [values, width]),
        ]
    }

    /// Returns the names and shapes of the tensors in weight files.
    pub(in crate::model) fn tensor_shapes(&self, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        let heads = self.num_value_heads;
        let matrices = self.linear_layers().map(|(name, [input, output])| {
            (format!("{prefix}.{name}.weight"), vec![output, input])
        });
        let others = [
            ("conv1d.weight", vec![self.channels(), 1, self.conv_kernel_dim]),
            ("dt_bias", vec![heads]),
            ("A_log", vec![heads]),
            ("norm.weight", vec![self.value_head_dim]),
        ];
        let others = others.map(|(name, shape)| (format!("{prefix}.{name}"), shape));
        matrices.into_iter().chain(others).collect()
    }

    /// Checks the sizes and numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first invalid size or number.
    pub fn validate(&self) -> Result<()> {
        check_size("hidden_size", self.hidden_size)?;
        self.config_json().into_iter().try_for_each(|(key, size)| check_size(key, size))?;
        let (keys, values) = (self.num_key_heads, self.num_value_heads);
        if !values.is_multiple_of(keys) {
            let what = format!("{keys} key heads do not divide {values} value heads");
            return refuse("linear_num_key_heads", what, "Choose a divisor");
        }
        // The size of a head's state is the product of the two widths.
        for (key, size, most) in [
            ("linear_conv_kernel_dim", self.conv_kernel_dim, 64),
            ("linear_key_head_dim", self.key_head_dim, 1024),
            ("linear_value_head_dim", self.value_head_dim, 1024),
            ("linear_num_value_heads", values, 1024),
        ] {
            if size > most {
                let hint = format!("Use at most {most}");
                return refuse(key, format!("{size} is too large"), &hint);
            }
        }
        let wide = |heads: usize, dim: usize| heads as u128 * dim as u128;
        let widths = 2 * wide(keys, self.key_head_dim) + 3 * wide(values, self.value_head_dim);
        check_parameters(self.hidden_size as u128 * widths)?;
        check_number("rms_norm_eps", self.rms_norm_eps)?;
        check_number("initializer_range", self.initializer_range)?;
        check_number("output_initializer_range", self.output_initializer_range)
    }

    /// Initializes random weights. A seed gives the same weights on every backend.
    ///
    /// # Errors
    /// See [`GatedDeltaNetConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<GatedDeltaNet> {
        self.validate()?;
        self.build(&mut RandomWeights::new(seed, device), "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<GatedDeltaNet> {
        let at = |part: &str| path(prefix, part);
        let (channels, taps, heads) = (self.channels(), self.conv_kernel_dim, self.num_value_heads);
        // The standard deviation of PyTorch's uniform initialization.
        let deviation = (3.0 * taps as f64).powf(-0.5);
        let weight = source.numbers(&at("conv1d.weight"), [channels, 1, taps], |random| {
            normal(random, channels * taps, deviation)
        })?;
        // As in transformers: `A` is uniform, here from 0.01 to 16.
        let A_log = source.numbers(&at("A_log"), [heads], |random| {
            (0..heads).map(|_| (0.01 + 15.99 * random.unit()).ln() as f32).collect()
        })?;
        let dt_bias = source.vector(&at("dt_bias"), heads, 1.0)?;
        let norm =
            RmsNormConfig { eps: self.rms_norm_eps, ..RmsNormConfig::new(self.value_head_dim) };
        let norm = norm.build(source, &at("norm"))?;
        let mut linear = |index: usize, deviation: f64| {
            let (name, sizes) = self.linear_layers()[index];
            LoraLinear::build(source, &at(name), sizes, deviation, false)
        };
        Ok(GatedDeltaNet {
            in_proj_qkv: linear(0, self.initializer_range)?,
            in_proj_z: linear(1, self.initializer_range)?,
            in_proj_b: linear(2, self.initializer_range)?,
            in_proj_a: linear(3, self.initializer_range)?,
            out_proj: linear(4, self.output_initializer_range)?,
            conv1d: ChannelConv { weight: Param::from_tensor(weight) },
            dt_bias: Param::from_tensor(dt_bias),
            A_log: Param::from_tensor(A_log),
            norm,
            shape: self.delta_shape(),
        })
    }
}

/// Weights of a depthwise convolution.
#[derive(Module, Debug)]
pub struct ChannelConv {
    /// `[channels, 1, taps]`, as in weight files.
    weight: Param<Tensor<3>>,
}

impl ChannelConv {
    /// Returns the taps, `[channels, taps]`.
    fn taps(&self) -> Tensor<2> {
        let weight = self.weight.val();
        let [channels, _, taps] = weight.dims();
        weight.reshape([channels, taps])
    }
}

/// Linear attention with the gated delta rule. States and gates are f32.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use mixdistill::model::{AttentionMetadata, GatedDeltaNetConfig, SelfAttentionConfig};
///
/// # fn main() -> mixdistill::Result<()> {
/// let device = mixdistill::device::by_name("auto")?;
/// let layer = GatedDeltaNetConfig::new(32, 4).init(1, &device)?;
/// // Two concatenated rows of five tokens.
/// let x = Tensor::<2>::random([10, 32], Distribution::Default, &device);
/// let rows = AttentionMetadata::rows(&SelfAttentionConfig::new(32, 4), 2, 5, &device);
/// assert_eq!(layer.forward(x, &rows).dims(), [10, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct GatedDeltaNet {
    in_proj_qkv: LoraLinear,
    in_proj_z: LoraLinear,
    in_proj_b: LoraLinear,
    in_proj_a: LoraLinear,
    conv1d: ChannelConv,
    dt_bias: Param<Tensor<1>>,
    A_log: Param<Tensor<1>>,
    norm: RmsNorm,
    out_proj: LoraLinear,
    #[module(skip)]
    shape: DeltaShape,
}

/// Outputs of the projections.
struct Projected {
    /// Queries, keys, and values, `[tokens, channels]`.
    mixed: Tensor<2>,
    /// Gate of the output, `[tokens, value_width]`.
    gate: Tensor<2>,
    /// `[tokens, value_heads]`, in f32.
    log_decay: Tensor<2>,
    beta: Tensor<2>,
}

impl GatedDeltaNet {
    /// Applies linear attention to the tokens that `metadata` describes.
    ///
    /// # Shapes
    /// `x` and result: `[tokens, hidden_size]`.
    pub fn forward(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        self.forward_to(x, None, metadata)
    }

    /// Like [`GatedDeltaNet::forward`], plus `residual`, if given, in one operation.
    pub(super) fn forward_to(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        metadata: &AttentionMetadata,
    ) -> Tensor<2> {
        let (sequences, dropout) = (metadata.sequences(), metadata.dropout());
        let Projected { mixed, gate, log_decay, beta } = self.projected(x, dropout);
        let mixed = causal_conv(mixed, self.conv1d.taps(), sequences);
        let [q, k, v] = self.split(mixed);
        let y = gated_delta_rule([q, k, v, log_decay, beta], sequences, self.shape);
        self.out_proj.forward_to(self.gated(y, gate), residual, dropout)
    }

    /// Like [`GatedDeltaNet::forward_to`], for new tokens, which continue the state of the cache.
    pub(super) fn forward_cached(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        step: &LinearStep,
        cache: &mut LinearCache,
    ) -> Tensor<2> {
        let Projected { mixed, gate, log_decay, beta } = self.projected(x, None);
        let mixed = cache
            .convolve(mixed, step, |x, sequences| causal_conv(x, self.conv1d.taps(), sequences));
        let [q, k, v] = self.split(mixed);
        let y = cache.advance(|state| {
            let inputs = [q, k, v, log_decay, beta];
            gated_delta_rule_from(inputs, state, step.sequences(), self.shape)
        });
        self.out_proj.forward_to(self.gated(y, gate), residual, None)
    }

    fn projected(&self, x: Tensor<2>, dropout: Option<&DropoutKeys>) -> Projected {
        let layers = [&self.in_proj_qkv, &self.in_proj_z, &self.in_proj_b, &self.in_proj_a];
        let [mixed, gate, b, a] = LoraLinear::forward_all(layers, x, dropout);
        let heads = self.shape.value_heads;
        let of_heads = |x: &Param<Tensor<1>>| in_f32(x.val().reshape([1, heads]));
        // softplus(x) = -log_sigmoid(-x)
        let time = -log_sigmoid(-(in_f32(a) + of_heads(&self.dt_bias)));
        let log_decay = -(of_heads(&self.A_log).exp() * time);
        Projected { mixed, gate, log_decay, beta: sigmoid(in_f32(b)) }
    }

    /// Returns the queries, keys, and values.
    fn split(&self, mixed: Tensor<2>) -> [Tensor<2>; 3] {
        let (keys, values) = (self.shape.key_width(), self.shape.value_width());
        [(0, keys), (keys, keys), (2 * keys, values)]
            .map(|(start, width)| mixed.clone().narrow(1, start, width))
    }

    /// Normalizes the rule's output per head and multiplies it by the activated gate.
    fn gated(&self, y: Tensor<2>, gate: Tensor<2>) -> Tensor<2> {
        gated(gate, self.norm.forward_parts(y), Activation::Silu)
    }

    /// Returns the linear layers, by name.
    pub(in crate::model) fn linear_layers_mut(&mut self) -> Vec<(&'static str, &mut LoraLinear)> {
        vec![
            ("in_proj_qkv", &mut self.in_proj_qkv),
            ("in_proj_z", &mut self.in_proj_z),
            ("in_proj_b", &mut self.in_proj_b),
            ("in_proj_a", &mut self.in_proj_a),
            ("out_proj", &mut self.out_proj),
        ]
    }
}
