//! A decoder block: attention and feed-forward, each with a norm before it, after it, or both, and each added
//! to the residual stream.
//!
//! ```text
//!          attention                                   feed-forward
//! Before   x + attention(input(x))                     x + mlp(post_attention(x))
//! After    x + post_attention(attention(x))            x + post_feedforward(mlp(x))
//! Both     x + post_attention(attention(input(x)))     x + post_feedforward(mlp(pre_feedforward(x)))
//! ```
//!
//! Norms have their names in weight files, without `_layernorm`.

use super::attention::{AttentionMetadata, CacheStep, SelfAttention, SelfAttentionConfig};
use super::checks::{check_number, refuse};
use super::gated_delta_net::{GatedDeltaNet, GatedDeltaNetConfig};
use super::mlp::{Mlp, MlpConfig};
use super::rms_norm::{RmsNorm, RmsNormConfig};
use super::stream::Stream;
use crate::error::Result;
use crate::model::cache::LayerCache;
use crate::model::linear_cache::{LinearCache, LinearStep};
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::sums_in_norms;
use burn::prelude::*;

/// Position of the norms in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and feed-forward (Llama).
    #[default]
    Before,
    /// After them, before the residual addition (OLMo 2).
    After,
    /// Before and after them (Gemma 3).
    Both,
}

impl NormPlacement {
    /// Returns the block's norms, by their names in weight files. `post_attention_layernorm` has different
    /// positions.
    pub(crate) fn norms(self) -> &'static [&'static str] {
        match self {
            Self::Before => &["input_layernorm", "post_attention_layernorm"],
            Self::After => &["post_attention_layernorm", "post_feedforward_layernorm"],
            Self::Both => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
        }
    }
}

/// Configuration of a [`DecoderLayer`].
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderLayerConfig {
    /// Attention.
    pub attention: SelfAttentionConfig,
    /// Linear attention, which replaces `attention` if it is set.
    pub linear: Option<GatedDeltaNetConfig>,
    /// Feed-forward part, of the same width.
    pub mlp: MlpConfig,
    /// Position of the norms, whose settings are `attention.norm`.
    pub norm_placement: NormPlacement,
    /// Factor of the attention and feed-forward outputs before the residual addition (Granite).
    pub residual_multiplier: f64,
}

impl DecoderLayerConfig {
    /// Returns a block with these parts and norms before them.
    pub fn new(attention: SelfAttentionConfig, mlp: MlpConfig) -> Self {
        let norm_placement = NormPlacement::Before;
        Self { attention, linear: None, mlp, norm_placement, residual_multiplier: 1.0 }
    }

    /// Initializes random weights. A seed gives the same weights on every backend.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if sizes or numbers are out of range or do not fit together.
    pub fn init(&self, seed: u64, device: &Device) -> Result<DecoderLayer> {
        self.attention.validate()?;
        self.mlp.validate()?;
        check_number("residual_multiplier", self.residual_multiplier)?;
        let width = self.attention.hidden_size;
        let others = [
            ("feed-forward part", Some(self.mlp.hidden_size)),
            ("linear attention", self.linear.as_ref().map(|linear| linear.hidden_size)),
        ];
        for (part, other) in others.into_iter().filter_map(|(part, other)| Some((part, other?))) {
            if width != other {
                let what = format!("it is {width} in the attention and {other} in the {part}");
                return refuse("hidden_size", what, "Use the same width for both");
            }
        }
        self.linear.iter().try_for_each(GatedDeltaNetConfig::validate)?;
        self.build(&mut RandomWeights::new(seed, device), "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<DecoderLayer> {
        let norm = RmsNormConfig { width: self.attention.hidden_size, ..self.attention.norm };
        let at = |part: &str| path(prefix, part);
        let norms = self.norm_placement.norms();
        let mut norm_if_there =
            |part: &str| norms.contains(&part).then(|| norm.build(source, &at(part))).transpose();
        Ok(DecoderLayer {
            input_layernorm: norm_if_there("input_layernorm")?,
            post_attention_layernorm: norm_if_there("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm_if_there("pre_feedforward_layernorm")?,
            post_feedforward_layernorm: norm_if_there("post_feedforward_layernorm")?,
            self_attn: match self.linear {
                None => Some(self.attention.build(source, &at("self_attn"))?),
                Some(_) => None,
            },
            linear_attn: self
                .linear
                .as_ref()
                .map(|linear| linear.build(source, &at("linear_attn")))
                .transpose()?,
            mlp: self.mlp.build(source, &at("mlp"))?,
            placement: self.norm_placement,
            residual_multiplier: self.residual_multiplier,
        })
    }
}

/// The part of a block that mixes tokens.
enum Mixer<'a> {
    Full(&'a SelfAttention),
    Linear(&'a GatedDeltaNet),
}

/// Inputs and cache of a generation step, by kind of attention.
pub(in crate::model) enum BlockStep<'a> {
    Full(&'a CacheStep, &'a mut LayerCache),
    Linear(&'a LinearStep, &'a mut LinearCache),
}

/// A decoder block.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: Option<RmsNorm>,
    self_attn: Option<SelfAttention>,
    /// Replaces `self_attn`.
    linear_attn: Option<GatedDeltaNet>,
    post_attention_layernorm: Option<RmsNorm>,
    pre_feedforward_layernorm: Option<RmsNorm>,
    pub(in crate::model) mlp: Mlp,
    post_feedforward_layernorm: Option<RmsNorm>,
    #[module(skip)]
    placement: NormPlacement,
    #[module(skip)]
    residual_multiplier: f64,
}

impl DecoderLayer {
    /// Applies the block to the tokens that `metadata` describes.
    ///
    /// # Shapes
    /// `x` and result: `[tokens, hidden_size]`.
    pub fn forward(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        self.forward_stream(Stream::new(x), metadata).value()
    }

    /// Like [`DecoderLayer::forward`], for a [`Stream`] between blocks.
    pub(in crate::model) fn forward_stream(
        &self,
        stream: Stream,
        metadata: &AttentionMetadata,
    ) -> Stream {
        self.add_mlp(self.add_attention(stream, metadata), metadata.dropout())
    }

    /// Adds the attention to the residual stream. This is the first half of the block, in which tokens
    /// interact.
    pub(in crate::model) fn add_attention(
        &self,
        stream: Stream,
        metadata: &AttentionMetadata,
    ) -> Stream {
        let attention = |h, residual| match self.mixer() {
            Mixer::Full(attention) => attention.forward_to(h, residual, metadata),
            Mixer::Linear(attention) => attention.forward_to(h, residual, metadata),
        };
        self.add(self.attention_norms(), stream, attention)
    }

    /// Applies the block to new tokens, which attend to the cache and are appended to it.
    pub(in crate::model) fn forward_cached(&self, stream: Stream, step: BlockStep<'_>) -> Stream {
        let attention = |h, residual| match (self.mixer(), step) {
            (Mixer::Full(attention), BlockStep::Full(step, cache)) => {
                attention.forward_cached(h, residual, step, cache)
            }
            (Mixer::Linear(attention), BlockStep::Linear(step, cache)) => {
                attention.forward_cached(h, residual, step, cache)
            }
            _ => unreachable!("a cache is of its layer's kind"),
        };
        let stream = self.add(self.attention_norms(), stream, attention);
        self.add_mlp(stream, None)
    }

    fn mixer(&self) -> Mixer<'_> {
        match (&self.self_attn, &self.linear_attn) {
            (Some(attention), None) => Mixer::Full(attention),
            (None, Some(attention)) => Mixer::Linear(attention),
            _ => unreachable!("a block has one attention"),
        }
    }

    /// Returns the linear layers, by path within the block.
    pub(in crate::model) fn linear_layers_mut(&mut self) -> Vec<(String, &mut LoraLinear)> {
        let full = self.self_attn.iter_mut().flat_map(SelfAttention::linear_layers_mut);
        let linear = self.linear_attn.iter_mut().flat_map(GatedDeltaNet::linear_layers_mut);
        let of = |part: &'static str| move |(name, layer)| (format!("{part}.{name}"), layer);
        full.map(of("self_attn"))
            .chain(linear.map(of("linear_attn")))
            .chain(self.mlp.linear_layers_mut().into_iter().map(of("mlp")))
            .collect()
    }

    /// Returns the norms before and after the attention.
    fn attention_norms(&self) -> [Option<&RmsNorm>; 2] {
        let after = match self.placement {
            NormPlacement::Before => None,
            NormPlacement::After | NormPlacement::Both => self.post_attention_layernorm.as_ref(),
        };
        [self.input_layernorm.as_ref(), after]
    }

    /// Returns the norms before and after the feed-forward part.
    fn mlp_norms(&self) -> [Option<&RmsNorm>; 2] {
        let before = match self.placement {
            NormPlacement::Before => self.post_attention_layernorm.as_ref(),
            NormPlacement::After | NormPlacement::Both => self.pre_feedforward_layernorm.as_ref(),
        };
        [before, self.post_feedforward_layernorm.as_ref()]
    }

    /// Adds the feed-forward part to the residual stream. This is the second half, which is per token.
    pub(in crate::model) fn add_mlp(
        &self,
        stream: Stream,
        dropout: Option<&DropoutKeys>,
    ) -> Stream {
        let mlp = |h, residual| self.mlp.forward_to(h, residual, dropout);
        self.add(self.mlp_norms(), stream, mlp)
    }

    /// Adds a part of the block to the residual stream. On GPUs, the next norm performs the addition;
    /// elsewhere, the part itself does if nothing comes between the two.
    fn add(
        &self,
        [before, after]: [Option<&RmsNorm>; 2],
        stream: Stream,
        part: impl FnOnce(Tensor<2>, Option<Tensor<2>>) -> Tensor<2>,
    ) -> Stream {
        let (x, h) = stream.normed(before);
        let later = sums_in_norms(&x.device());
        if !later && after.is_none() && self.residual_multiplier == 1.0 {
            return Stream::new(part(h, Some(x)));
        }
        let y = part(h, None);
        let y = match after {
            Some(norm) => norm.forward(y),
            None => y,
        };
        let y = if self.residual_multiplier == 1.0 { y } else { y * self.residual_multiplier };
        if later { Stream::with(x, y) } else { Stream::new(x + y) }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::blocks::QkNorm;
    use burn::tensor::Distribution;

    fn error(x: Tensor<2>, y: Tensor<2>) -> f32 {
        (x - y).abs().max().into_scalar::<f32>()
    }

    fn config() -> DecoderLayerConfig {
        let attention = SelfAttentionConfig {
            num_key_value_heads: 2,
            head_dim: 6,
            qk_norm: QkNorm::Heads,
            attention_bias: true,
            ..SelfAttentionConfig::new(16, 4)
        };
        DecoderLayerConfig::new(attention, MlpConfig::new(16, 20))
    }

    #[test]
    fn a_block_is_made_of_its_parts() {
        let (device, config) = (Device::flex(), config());
        let layer = config.init(3, &device).unwrap();
        let x = Tensor::<2>::random([8, 16], Distribution::Default, &device);
        let metadata = AttentionMetadata::rows(&config.attention, 2, 4, &device);
        let norm = |norm: &Option<RmsNorm>, x| norm.as_ref().unwrap().forward(x);
        let h = norm(&layer.input_layernorm, x.clone());
        let middle = x.clone() + layer.self_attn.as_ref().unwrap().forward(h, &metadata);
        let h = norm(&layer.post_attention_layernorm, middle.clone());
        let expected = middle.clone() + layer.mlp.forward(h);
        let found = layer.forward(x.clone(), &metadata);
        assert!(error(found.clone(), expected) < 1e-6);
        // Rows do not interact, and no token attends to later ones.
        let changed = x.clone().slice_assign([3..4, 0..16], Tensor::ones([1, 16], &device));
        let after = layer.forward(changed, &metadata);
        let places = |y: &Tensor<2>, places: [usize; 2]| {
            y.clone().narrow(0, places[0], places[1] - places[0])
        };
        assert!(error(places(&found, [0, 3]), places(&after, [0, 3])) < 1e-6);
        assert!(error(places(&found, [4, 8]), places(&after, [4, 8])) < 1e-6);
        assert!(error(places(&found, [3, 4]), places(&after, [3, 4])) > 1e-3);
        // The same seed gives the same weights.
        assert_eq!(error(config.init(3, &device).unwrap().forward(x, &metadata), found), 0.0);
    }

    #[test]
    fn sizes_that_do_not_fit_together_are_refused() {
        let (device, good) = (Device::flex(), config());
        let attention = |change: &dyn Fn(&mut SelfAttentionConfig)| {
            let mut config = good.clone();
            change(&mut config.attention);
            config
        };
        for (config, key) in [
            (attention(&|a| a.num_key_value_heads = 3), "num_key_value_heads"),
            (attention(&|a| a.head_dim = 5), "head_dim"),
            (attention(&|a| a.head_dim = usize::MAX), "head_dim"),
            (attention(&|a| a.hidden_size = 18), "hidden_size"),
            (attention(&|a| a.rope_theta = f64::NAN), "rope_theta"),
            (
                DecoderLayerConfig { mlp: MlpConfig::new(16, 0), ..good.clone() },
                "intermediate_size",
            ),
            (attention(&|a| a.norm.eps = 0.0), "rms_norm_eps"),
        ] {
            let error = config.init(1, &device).unwrap_err().to_string();
            assert!(error.contains(&format!("model.{key}`")), "{error}");
        }
        let huge = MlpConfig::new(1 << 20, 1 << 20).init(1, &device).unwrap_err().to_string();
        assert!(huge.contains("parameters"), "{huge}");
        assert!(RmsNormConfig::new(0).init(&device).is_err());
    }
}
