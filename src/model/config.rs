//! Configuration of a decoder. Field names follow Hugging Face's `config.json`.

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

/// Maximum number of layers, four times the deepest model in use. Code that lists layers relies on a bound.
pub(super) const MOST_LAYERS: usize = 512;

/// The attention of a layer, by its name in `layer_types` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// Attention to all preceding tokens of the example.
    FullAttention,
    /// Attention to the keys in the sliding window.
    SlidingAttention,
    /// Linear attention (the gated delta rule) over a recurrent state.
    LinearAttention,
}

impl LayerType {
    pub(super) fn of(slides: bool) -> Self {
        if slides { Self::SlidingAttention } else { Self::FullAttention }
    }
}

/// Configuration of a decoder-only transformer: RMSNorm, rotate-half RoPE, grouped-query attention, and a
/// gated feed-forward part. Fields that are `None` or empty take the family's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// The model family, which determines what the model computes.
    pub architecture: Architecture,
    /// Number of tokens in the vocabulary. In a run, 0 means the size of the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream. Must be a multiple of `model.num_attention_heads` unless
    /// `model.head_dim` is set.
    pub hidden_size: usize,
    /// Width of the feed-forward part's hidden layer.
    pub intermediate_size: usize,
    /// Number of blocks, at most 512.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads. Must divide `model.num_attention_heads`. Fewer heads make the key-value
    /// cache smaller (grouped-query attention).
    pub num_key_value_heads: usize,
    /// Width of an attention head. Unset means `model.hidden_size / model.num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Activation of the feed-forward gate: `silu` or `gelu_pytorch_tanh`. Unset means the family's
    /// activation.
    pub hidden_act: Option<Activation>,
    /// Context length: the maximum length of a row, in tokens.
    pub max_position_embeddings: usize,
    /// Number of keys that a token attends to in layers with a sliding window, including its own. Unset means
    /// no sliding window.
    pub sliding_window: Option<usize>,
    /// Attention of each layer, one entry per layer. Empty means the family's pattern. `sliding_attention`
    /// has no effect without `model.sliding_window`; `linear_attention` requires the family `qwen3_5_text`.
    pub layer_types: Vec<LayerType>,
    /// Number of tokens that the convolution of linear attention covers, including the current one. Unset
    /// means 4.
    pub linear_conv_kernel_dim: Option<usize>,
    /// Width of a query or key head of linear attention. Unset means the width of an attention head.
    pub linear_key_head_dim: Option<usize>,
    /// Width of a value head of linear attention. Unset means the width of an attention head.
    pub linear_value_head_dim: Option<usize>,
    /// Number of query and key heads of linear attention. Unset means `model.num_key_value_heads`.
    pub linear_num_key_heads: Option<usize>,
    /// Number of value heads of linear attention, a multiple of the number of key heads. Unset means
    /// `model.num_attention_heads`.
    pub linear_num_value_heads: Option<usize>,
    /// RoPE in each layer, one entry per layer: 1 with RoPE, 0 without. Empty means the family's pattern.
    pub no_rope_layers: Vec<u8>,
    /// Epsilon of RMSNorm, added to the mean square.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies. A larger base suits a longer context.
    pub rope_theta: f64,
    /// Base of RoPE's frequencies in layers with a sliding window. If it is set, these layers ignore
    /// `model.rope_scaling`. Unset means the family's base, or `model.rope_theta` if the family has none.
    pub rope_local_base_freq: Option<f64>,
    /// Share of each head's values that RoPE rotates, starting with the first: above 0, up to 1. The default
    /// is 1 for every family.
    pub partial_rotary_factor: f64,
    /// Scaling of RoPE's frequencies, for a context longer than in pretraining. Unset means no scaling.
    pub rope_scaling: Option<RopeScaling>,
    /// Factor of the embeddings. Unset means the family's factor: the square root of `model.hidden_size` for
    /// `gemma3_text`, and 1 for the others.
    pub embedding_multiplier: Option<f64>,
    /// Scale of the attention scores. Unset means 1 divided by the square root of the head's width.
    pub attention_multiplier: Option<f64>,
    /// Factor of the attention and feed-forward outputs before they are added to the residual stream. 1
    /// changes nothing.
    pub residual_multiplier: f64,
    /// Divisor of the logits. 1 changes nothing.
    pub logits_scaling: f64,
    /// Whether the head shares the embedding's matrix, which saves `vocab_size * hidden_size` parameters.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights. Matrices that write to the residual stream use this value
    /// divided by the square root of twice the number of blocks.
    pub initializer_range: f64,
}

impl Default for DecoderConfig {
    /// Returns a Llama student of about a million parameters. `vocab_size` must still be set.
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
    /// Returns the width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Returns the total width of the query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim()
    }

    /// Returns the total width of the key heads, which is also that of the value heads.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }

    /// Returns the activation of the feed-forward gate.
    pub fn activation(&self) -> Activation {
        self.hidden_act.unwrap_or(self.architecture.properties().activation)
    }

    /// Returns the factor of the embeddings.
    pub fn embedding_scale(&self) -> f64 {
        let of_family = match self.architecture.properties().scales_embedding {
            true => (self.hidden_size as f64).sqrt(),
            false => 1.0,
        };
        self.embedding_multiplier.unwrap_or(of_family)
    }

    /// Returns the scale of the attention scores.
    pub fn score_scale(&self) -> f64 {
        self.attention_multiplier.unwrap_or_else(|| (self.head_dim() as f64).powf(-0.5))
    }

    /// Returns the base of RoPE's frequencies in layers with a sliding window.
    pub(super) fn rope_local_base(&self) -> f64 {
        let of_family = self.architecture.properties().rope_local_base_freq;
        self.rope_local_base_freq.or(of_family).unwrap_or(self.rope_theta)
    }

    /// Returns the maximum length of a row in tokens: the model's context, or with LongRoPE for short rows at
    /// most its original context.
    pub fn context(&self) -> usize {
        let longest = self.max_position_embeddings;
        match &self.rope_scaling {
            Some(scaling) if scaling.rope_type == RopeType::LongRope && !scaling.long => {
                longest.min(scaling.original_max_position_embeddings)
            }
            _ => longest,
        }
    }

    /// Returns the configuration for rows of up to `tokens` tokens. LongRoPE uses other frequencies for rows
    /// beyond the original context; this method selects one set for all rows. It changes nothing else.
    #[must_use]
    pub fn for_length(mut self, tokens: usize) -> Self {
        if let Some(scaling) = &mut self.rope_scaling
            && scaling.rope_type == RopeType::LongRope
        {
            scaling.long = tokens > scaling.original_max_position_embeddings;
        }
        self
    }

    /// Returns the attention of each layer.
    pub(super) fn all_layer_types(&self) -> Vec<LayerType> {
        let kind = |layer| match self.is_linear(layer) {
            true => LayerType::LinearAttention,
            false => LayerType::of(self.slides(layer)),
        };
        (0..self.num_hidden_layers).map(kind).collect()
    }

    /// Returns whether a layer has linear attention.
    pub(crate) fn is_linear(&self, layer: usize) -> bool {
        let interval = self.architecture.properties().full_attention_interval;
        let usual = || interval.is_some_and(|interval| !(layer + 1).is_multiple_of(interval));
        let named = self.layer_types.get(layer).map(|kind| *kind == LayerType::LinearAttention);
        named.unwrap_or_else(usual)
    }

    /// Returns whether any layer has linear attention.
    pub(crate) fn has_linear(&self) -> bool {
        (0..self.num_hidden_layers).any(|layer| self.is_linear(layer))
    }

    /// Returns whether a layer has a sliding window.
    fn slides(&self, layer: usize) -> bool {
        let usual = || match self.architecture.properties().window {
            WindowRule::WithoutRope => !self.is_rotated(layer),
            WindowRule::AllButEachSixth => !(layer + 1).is_multiple_of(6),
            WindowRule::Never | WindowRule::All | WindowRule::FromLayer => true,
        };
        let named = self.layer_types.get(layer).map(|kind| *kind == LayerType::SlidingAttention);
        self.sliding_window.is_some() && named.unwrap_or_else(usual)
    }

    /// Returns whether a layer has RoPE.
    pub(super) fn is_rotated(&self, layer: usize) -> bool {
        let usual = || {
            let interval = self.architecture.properties().no_rope_interval;
            interval.is_none_or(|interval| !(layer + 1).is_multiple_of(interval))
        };
        self.no_rope_layers.get(layer).map_or_else(usual, |rotated| *rotated != 0)
    }

    /// Returns the attention of a layer, counted from 0.
    ///
    /// Initial weights are normal with the standard deviation `initializer_range`. In matrices that write to
    /// the residual stream, it is divided by the square root of twice the number of blocks, as in GPT-2.
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
            // Scaling does not apply to layers with their own base.
            rope_scaling: self.rope_scaling.clone().filter(|_| !local),
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        }
    }

    /// Returns a layer's linear attention, if it has linear attention.
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

    /// Returns the linear attention, which is the same in all layers that have it.
    pub(crate) fn any_linear_attention(&self) -> Option<GatedDeltaNetConfig> {
        (0..self.num_hidden_layers).find_map(|layer| self.linear_attention(layer))
    }

    /// Returns the distinct attentions, and each layer's index into them. For a layer with linear attention,
    /// this is the attention that it replaces.
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

    /// Returns the feed-forward part, which is the same in all layers.
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

    /// Returns a layer, counted from 0.
    pub fn layer(&self, layer: usize) -> DecoderLayerConfig {
        DecoderLayerConfig {
            attention: self.attention(layer),
            linear: self.linear_attention(layer),
            mlp: self.mlp(),
            norm_placement: self.architecture.properties().norm_placement,
            residual_multiplier: self.residual_multiplier,
        }
    }

    /// Returns the norm before the head. All others differ from it only in width.
    pub fn final_norm(&self) -> RmsNormConfig {
        let weight_plus_one = self.architecture.properties().norm_weight_plus_one;
        RmsNormConfig { width: self.hidden_size, eps: self.rms_norm_eps, weight_plus_one }
    }

    fn output_initializer_range(&self) -> f64 {
        self.initializer_range / (2.0 * self.num_hidden_layers as f64).sqrt()
    }

    /// Returns the approximate number of parameters: the elements of all matrices.
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
        // An upper bound: the larger kind of attention in every layer.
        let mixer = (2 * query + gates + 2 * key_value)
            .max(linear.map_or(0, |linear| linear.row_width() as u128));
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        layers * width * (mixer + 3 * inner) + heads * vocabulary * width
    }

    /// Checks that all fields are in range and fit together.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first invalid field.
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
            return refuse("num_hidden_layers", what, "Use at most 512");
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
                return refuse(key, what, "List all layers, or remove it");
            }
        }
        if self.no_rope_layers.iter().any(|rotated| *rotated > 1) {
            let what = "it has values other than 0 and 1".into();
            return refuse(
                "no_rope_layers",
                what,
                "Use 0 for layers without RoPE and 1 for the others",
            );
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
            let what = "it has \"linear_attention\", which this family does not support".into();
            return refuse("layer_types", what, "Remove it, or choose another family");
        }
        if properties.full_attention_interval.is_some() {
            let slides = self.layer_types.contains(&LayerType::SlidingAttention);
            if slides || self.sliding_window.is_some() {
                let key = if slides { "layer_types" } else { "sliding_window" };
                let what = "this family has no sliding windows".into();
                return refuse(key, what, "Remove it, or choose another family");
            }
            if self.activation() != Activation::Silu {
                let what = "linear attention supports only the activation `silu`".into();
                return refuse("hidden_act", what, "Remove it, or choose another family");
            }
        }
        self.attentions().0.iter().try_for_each(SelfAttentionConfig::validate)
    }

    /// Returns the names and shapes of all tensors in weight files. Matrices are `[output, input]`.
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

    /// Returns the names of the linear layers, as targeted by [`LoraConfig`](super::LoraConfig).
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
