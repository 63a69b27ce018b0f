//! The shape of a decoder; field names follow Hugging Face's `config.json`.

use super::architecture::{Architecture, WindowRule};
use super::blocks::{
    DecoderLayerConfig, GatedDeltaNetConfig, MlpConfig, QkNorm, RmsNormConfig, SelfAttentionConfig,
    check_number, check_parameters, check_size, refuse,
};
use super::lora::{LINEAR_ATTENTION, PROJECTIONS};
use super::rope::{RopeScaling, RopeType};
use crate::error::Result;
use crate::ops::Activation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most layers of a decoder: four times the deepest model in use. What a configuration names is listed
/// layer by layer.
pub(super) const MOST_LAYERS: usize = 512;

/// What a layer's tokens see; the names are those of `layer_types` in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All of their example before them.
    FullAttention,
    /// As many keys as the sliding window has.
    SlidingAttention,
    /// A state that the tokens before them wrote to, in place of attention.
    LinearAttention,
}

impl LayerType {
    pub(super) fn of(slides: bool) -> Self {
        if slides { Self::SlidingAttention } else { Self::FullAttention }
    }
}

/// A decoder-only transformer: RMSNorm, rotate-half RoPE, grouped-query attention, a gated feed-forward
/// part. Fields that are `None` or empty are as its family has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// The family, which says what is computed; see [`Architecture::properties`].
    pub architecture: Architecture,
    /// Tokens in the vocabulary; 0 in a run's configuration means the tokenizer's.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides the heads of the queries.
    pub num_key_value_heads: usize,
    /// Width of a head; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// The gate's activation: `silu` or `gelu_pytorch_tanh`; `None` is the family's.
    pub hidden_act: Option<Activation>,
    /// Longest row that the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// Keys that a token sees in layers with a sliding window, itself among them; `None` is no window.
    pub sliding_window: Option<usize>,
    /// Which layers have that window, or linear attention, one by one; empty is as the family has them.
    pub layer_types: Vec<LayerType>,
    /// Tokens that the convolution of linear attention sees, including the token itself; `None` is 4.
    pub linear_conv_kernel_dim: Option<usize>,
    /// Width of a key head of linear attention; `None` is that of a head.
    pub linear_key_head_dim: Option<usize>,
    /// Width of a value head of linear attention; `None` is that of a head.
    pub linear_value_head_dim: Option<usize>,
    /// Heads of queries and keys of linear attention; `None` is as many as of keys and values.
    pub linear_num_key_heads: Option<usize>,
    /// Heads of values of linear attention, a multiple of those of keys; `None` is as many as of queries.
    pub linear_num_value_heads: Option<usize>,
    /// 0 for each layer without RoPE, 1 for each with it; empty is as the family has them.
    pub no_rope_layers: Vec<u8>,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies.
    pub rope_theta: f64,
    /// The same base in layers with a sliding window; `None` is the family's, or that of all layers.
    pub rope_local_base_freq: Option<f64>,
    /// Share of a head's values that are rotated, from the first on; 1 by default, whatever the family.
    pub partial_rotary_factor: f64,
    /// Scaling of those frequencies; `None` leaves them as they are.
    pub rope_scaling: Option<RopeScaling>,
    /// What embeddings are multiplied by; `None` is the family's.
    pub embedding_multiplier: Option<f64>,
    /// What scores are multiplied by; `None` is 1 over the root of `head_dim`.
    pub attention_multiplier: Option<f64>,
    /// What attention and feed-forward are multiplied by before they are added to the residual stream.
    pub residual_multiplier: f64,
    /// What logits are divided by.
    pub logits_scaling: f64,
    /// Whether the head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl Default for DecoderConfig {
    /// A student of about a million parameters.
    fn default() -> Self {
        Self {
            architecture: Architecture::Llama,
            vocab_size: 0,
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 5,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: None,
            hidden_act: None,
            max_position_embeddings: 2048,
            sliding_window: None,
            layer_types: vec![],
            linear_conv_kernel_dim: None,
            linear_key_head_dim: None,
            linear_value_head_dim: None,
            linear_num_key_heads: None,
            linear_num_value_heads: None,
            no_rope_layers: vec![],
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_local_base_freq: None,
            partial_rotary_factor: 1.0,
            rope_scaling: None,
            embedding_multiplier: None,
            attention_multiplier: None,
            residual_multiplier: 1.0,
            logits_scaling: 1.0,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }
}

impl DecoderConfig {
    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim()
    }

    /// Width of all key (or value) heads.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }

    /// The gate's activation.
    pub fn activation(&self) -> Activation {
        self.hidden_act.unwrap_or(self.architecture.properties().activation)
    }

    /// What embeddings are multiplied by.
    pub fn embedding_scale(&self) -> f64 {
        let of_family = match self.architecture.properties().scales_embedding {
            true => (self.hidden_size as f64).sqrt(),
            false => 1.0,
        };
        self.embedding_multiplier.unwrap_or(of_family)
    }

    /// What scores are multiplied by.
    pub fn score_scale(&self) -> f64 {
        self.attention_multiplier.unwrap_or_else(|| (self.head_dim() as f64).powf(-0.5))
    }

    /// Base of RoPE's frequencies in layers with a sliding window.
    pub(super) fn rope_local_base(&self) -> f64 {
        let of_family = self.architecture.properties().rope_local_base_freq;
        self.rope_local_base_freq.or(of_family).unwrap_or(self.rope_theta)
    }

    /// Tokens of the longest row: that of the model, or where LongRoPE was decided for short rows, of its
    /// original context.
    pub fn context(&self) -> usize {
        let longest = self.max_position_embeddings;
        match &self.rope_scaling {
            Some(scaling) if scaling.rope_type == RopeType::LongRope && !scaling.long => {
                longest.min(scaling.original_max_position_embeddings)
            }
            _ => longest,
        }
    }

    /// The same for rows of up to so many tokens. LongRoPE has other frequencies where rows go beyond the
    /// original context; this decides it once, for all rows. Nothing else depends on the length.
    #[must_use]
    pub fn for_length(mut self, tokens: usize) -> Self {
        if let Some(scaling) = &mut self.rope_scaling
            && scaling.rope_type == RopeType::LongRope
        {
            scaling.long = tokens > scaling.original_max_position_embeddings;
        }
        self
    }

    /// The type of each layer.
    pub(super) fn all_layer_types(&self) -> Vec<LayerType> {
        let kind = |layer| match self.is_linear(layer) {
            true => LayerType::LinearAttention,
            false => LayerType::of(self.slides(layer)),
        };
        (0..self.num_hidden_layers).map(kind).collect()
    }

    /// Whether a layer is linear attention.
    pub(crate) fn is_linear(&self, layer: usize) -> bool {
        let interval = self.architecture.properties().full_attention_interval;
        let usual = || interval.is_some_and(|interval| !(layer + 1).is_multiple_of(interval));
        let named = self.layer_types.get(layer).map(|kind| *kind == LayerType::LinearAttention);
        named.unwrap_or_else(usual)
    }

    /// Whether any layer is.
    pub(crate) fn has_linear(&self) -> bool {
        (0..self.num_hidden_layers).any(|layer| self.is_linear(layer))
    }

    /// Whether a layer has the sliding window.
    fn slides(&self, layer: usize) -> bool {
        let usual = || match self.architecture.properties().window {
            WindowRule::WithoutRope => !self.is_rotated(layer),
            WindowRule::AllButEachSixth => !(layer + 1).is_multiple_of(6),
            WindowRule::Never | WindowRule::All | WindowRule::FromLayer => true,
        };
        let named = self.layer_types.get(layer).map(|kind| *kind == LayerType::SlidingAttention);
        self.sliding_window.is_some() && named.unwrap_or_else(usual)
    }

    /// Whether queries and keys of a layer are rotated.
    pub(super) fn is_rotated(&self, layer: usize) -> bool {
        let usual = || {
            let interval = self.architecture.properties().no_rope_interval;
            interval.is_none_or(|interval| !(layer + 1).is_multiple_of(interval))
        };
        self.no_rope_layers.get(layer).map_or_else(usual, |rotated| *rotated != 0)
    }

    /// The attention of a layer, from 0 on.
    ///
    /// Initial weights are normal with `initializer_range`, those that write to the residual stream
    /// divided by the root of twice the number of blocks (GPT-2's rule).
    pub fn attention(&self, layer: usize) -> SelfAttentionConfig {
        let properties = self.architecture.properties();
        let slides = self.slides(layer);
        let of_family = properties.rope_local_base_freq;
        let local = slides && self.rope_local_base_freq.or(of_family).is_some();
        SelfAttentionConfig {
            hidden_size: self.hidden_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim(),
            attention_bias: properties.attention_bias,
            fused: properties.fused_projections,
            qk_norm: properties.qk_norm,
            norm: self.final_norm(),
            score_scale: self.attention_multiplier,
            sliding_window: self.sliding_window.filter(|_| slides),
            rotated: self.is_rotated(layer),
            partial_rotary_factor: self.partial_rotary_factor,
            output_gate: properties.output_gate,
            rope_theta: if slides { self.rope_local_base() } else { self.rope_theta },
            // A base of their own comes without the scaling of the others.
            rope_scaling: self.rope_scaling.clone().filter(|_| !local),
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        }
    }

    /// What a layer has in place of attention, where it is linear.
    pub fn linear_attention(&self, layer: usize) -> Option<GatedDeltaNetConfig> {
        self.is_linear(layer).then(|| GatedDeltaNetConfig {
            hidden_size: self.hidden_size,
            num_key_heads: self.linear_num_key_heads.unwrap_or(self.num_key_value_heads),
            num_value_heads: self.linear_num_value_heads.unwrap_or(self.num_attention_heads),
            key_head_dim: self.linear_key_head_dim.unwrap_or(self.head_dim()),
            value_head_dim: self.linear_value_head_dim.unwrap_or(self.head_dim()),
            conv_kernel_dim: self.linear_conv_kernel_dim.unwrap_or(4),
            rms_norm_eps: self.rms_norm_eps,
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        })
    }

    /// That of any of its layers; those that are linear have the same.
    pub(crate) fn any_linear_attention(&self) -> Option<GatedDeltaNetConfig> {
        (0..self.num_hidden_layers).find_map(|layer| self.linear_attention(layer))
    }

    /// The different attentions of its layers, and which of them each layer has; for one that is linear, that which
    /// it would have.
    pub(super) fn attentions(&self) -> (Vec<SelfAttentionConfig>, Vec<usize>) {
        let mut kinds: Vec<SelfAttentionConfig> = vec![];
        let of_layer = (0..self.num_hidden_layers).map(|layer| {
            let attention = self.attention(layer);
            kinds.iter().position(|kind| *kind == attention).unwrap_or_else(|| {
                kinds.push(attention);
                kinds.len() - 1
            })
        });
        let of_layer = of_layer.collect();
        (kinds, of_layer)
    }

    /// The feed-forward part of its layers.
    pub fn mlp(&self) -> MlpConfig {
        MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            activation: self.activation(),
            fused: self.architecture.properties().fused_projections,
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        }
    }

    /// A layer, from 0 on.
    pub fn layer(&self, layer: usize) -> DecoderLayerConfig {
        DecoderLayerConfig {
            attention: self.attention(layer),
            linear: self.linear_attention(layer),
            mlp: self.mlp(),
            norm_placement: self.architecture.properties().norm_placement,
            residual_multiplier: self.residual_multiplier,
        }
    }

    /// The norm before the head; all others are like it but for their width.
    pub fn final_norm(&self) -> RmsNormConfig {
        let weight_plus_one = self.architecture.properties().norm_weight_plus_one;
        RmsNormConfig { width: self.hidden_size, eps: self.rms_norm_eps, weight_plus_one }
    }

    fn output_initializer_range(&self) -> f64 {
        self.initializer_range / (2.0 * self.num_hidden_layers as f64).sqrt()
    }

    /// Elements of the matrices, about all of the model.
    fn parameters(&self) -> u128 {
        let [width, inner, vocabulary, layers, query, key_value] = [
            self.hidden_size,
            self.intermediate_size,
            self.vocab_size,
            self.num_hidden_layers,
            self.query_width(),
            self.key_value_width(),
        ]
        .map(|size| size as u128);
        let gates = u128::from(self.architecture.properties().output_gate) * query;
        let linear = self.any_linear_attention();
        // At most: of each layer the larger one.
        let mixer = (2 * query + gates + 2 * key_value)
            .max(linear.map_or(0, |linear| linear.row_width() as u128));
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        layers * width * (mixer + 3 * inner) + heads * vocabulary * width
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the name of the first field that does not.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim()),
        ];
        sizes.into_iter().try_for_each(|(key, value)| check_size(key, value))?;
        if self.num_hidden_layers > MOST_LAYERS {
            let what = format!("{} is too large", self.num_hidden_layers);
            return refuse("num_hidden_layers", what, "At most 512");
        }
        if let Some(linear) = self.any_linear_attention() {
            linear.validate()?;
        }
        check_parameters(self.parameters())?;
        let heads = self.num_attention_heads;
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let what = format!("{heads} heads do not divide a width of {}", self.hidden_size);
            return refuse("num_attention_heads", what, "Change one of them, or set head_dim");
        }
        for (key, length) in
            [("layer_types", self.layer_types.len()), ("no_rope_layers", self.no_rope_layers.len())]
        {
            if length != 0 && length != self.num_hidden_layers {
                let what = format!("it names {length} of {} layers", self.num_hidden_layers);
                return refuse(key, what, "Name all layers, or leave it out");
            }
        }
        if self.no_rope_layers.iter().any(|rotated| *rotated > 1) {
            let what = "it holds other numbers than 0 and 1".into();
            return refuse("no_rope_layers", what, "Give 0 for layers without RoPE, else 1");
        }
        for (key, value) in [
            ("initializer_range", self.initializer_range),
            ("embedding_multiplier", self.embedding_multiplier.unwrap_or(1.0)),
            ("residual_multiplier", self.residual_multiplier),
            ("logits_scaling", self.logits_scaling),
            ("rope_local_base_freq", self.rope_local_base()),
        ] {
            check_number(key, value)?;
        }
        let properties = self.architecture.properties();
        let is_linear = |kind: &LayerType| *kind == LayerType::LinearAttention;
        if properties.full_attention_interval.is_none() && self.layer_types.iter().any(is_linear) {
            let what = "it has \"linear_attention\", which this family does not have".into();
            return refuse("layer_types", what, "Leave it out, or choose another family");
        }
        if properties.full_attention_interval.is_some() {
            let slides = self.layer_types.contains(&LayerType::SlidingAttention);
            if slides || self.sliding_window.is_some() {
                let key = if slides { "layer_types" } else { "sliding_window" };
                let what = "this family has no sliding windows".into();
                return refuse(key, what, "Leave it out, or choose another family");
            }
            if self.activation() != Activation::Silu {
                let what = "linear attention has `silu` for its activation, and no other".into();
                return refuse("hidden_act", what, "Leave it out, or choose another family");
            }
        }
        self.attentions().0.iter().try_for_each(SelfAttentionConfig::validate)
    }

    /// The names and shapes of all tensors, as files hold them: matrices are `[output, input]`.
    pub fn tensor_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (width, inner, head) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (query, key_value) = (self.query_width(), self.key_value_width());
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, width]),
            ("model.norm.weight".to_owned(), vec![width]),
        ]);
        if !self.tie_word_embeddings {
            shapes.insert("lm_head.weight".into(), vec![self.vocab_size, width]);
        }
        let properties = self.architecture.properties();
        let gated = if properties.output_gate { 2 } else { 1 };
        for layer in 0..self.num_hidden_layers {
            let linear = self.linear_attention(layer);
            let is_full = linear.is_none();
            if let Some(linear) = &linear {
                shapes.extend(linear.tensor_shapes(&format!("model.layers.{layer}.linear_attn")));
            }
            let mut add = |part: &str, shape: Vec<usize>, is_there: bool| {
                if is_there && (is_full || !part.starts_with("self_attn")) {
                    shapes.insert(format!("model.layers.{layer}.{part}"), shape);
                }
            };
            for norm in properties.norm_placement.norms() {
                add(&format!("{norm}.weight"), vec![width], true);
            }
            let fused = properties.fused_projections;
            for (name, output, is_there) in [
                ("q", gated * query, !fused),
                ("k", key_value, !fused),
                ("v", key_value, !fused),
                ("qkv", query + 2 * key_value, fused),
            ] {
                let bias = is_there && properties.attention_bias;
                add(&format!("self_attn.{name}_proj.weight"), vec![output, width], is_there);
                add(&format!("self_attn.{name}_proj.bias"), vec![output], bias);
            }
            add("self_attn.o_proj.weight", vec![width, query], true);
            for (name, whole) in [("q", query), ("k", key_value)] {
                let width = if properties.qk_norm == QkNorm::Heads { head } else { whole };
                let is_there = properties.qk_norm != QkNorm::None;
                add(&format!("self_attn.{name}_norm.weight"), vec![width], is_there);
            }
            add("mlp.gate_proj.weight", vec![inner, width], !fused);
            add("mlp.up_proj.weight", vec![inner, width], !fused);
            add("mlp.gate_up_proj.weight", vec![2 * inner, width], fused);
            add("mlp.down_proj.weight", vec![width, inner], true);
        }
        shapes
    }

    /// The names of a layer's linear layers, as [`LoraConfig`](super::LoraConfig) targets them.
    pub(crate) fn linear_layers(&self) -> Vec<&'static str> {
        if self.architecture.properties().fused_projections {
            return vec!["qkv_proj", "o_proj", "gate_up_proj", "down_proj"];
        }
        let (attention, feed_forward) = PROJECTIONS.split_at(4);
        let has_full = (0..self.num_hidden_layers).any(|layer| !self.is_linear(layer));
        let full = attention.iter().filter(|_| has_full);
        let linear = LINEAR_ATTENTION.iter().filter(|_| self.has_linear());
        full.chain(linear).chain(feed_forward).copied().collect()
    }
}
