//! One block of a decoder: attention and feed-forward, each after a norm, each added to the residual
//! stream.

use super::attention::{AttentionMetadata, CacheStep, SelfAttention, SelfAttentionConfig};
use super::checks::{check_number, refuse};
use super::mlp::{Mlp, MlpConfig};
use super::rms_norm::{RmsNorm, RmsNormConfig};
use crate::error::Result;
use crate::model::cache::LayerCache;
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use burn::prelude::*;

/// The shape of a [`DecoderLayer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderLayerConfig {
    /// Its attention.
    pub attention: SelfAttentionConfig,
    /// Its feed-forward part, of the same width.
    pub mlp: MlpConfig,
    /// Added to the mean square in its norms.
    pub rms_norm_eps: f64,
}

impl DecoderLayerConfig {
    /// A block of these parts, whose norms are like those within the attention.
    pub fn new(attention: SelfAttentionConfig, mlp: MlpConfig) -> Self {
        Self { attention, mlp, rms_norm_eps: attention.rms_norm_eps }
    }

    /// Random weights; the same seed gives the same weights on every backend.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for sizes or numbers that are out of range or do not
    /// fit together.
    pub fn init(&self, seed: u64, device: &Device) -> Result<DecoderLayer> {
        self.attention.validate()?;
        self.mlp.validate()?;
        check_number("rms_norm_eps", self.rms_norm_eps)?;
        let (width, other) = (self.attention.hidden_size, self.mlp.hidden_size);
        if width != other {
            let what =
                format!("it is {width} in the attention and {other} in the feed-forward part");
            return refuse("hidden_size", what, "Give both the same width");
        }
        self.build(&mut RandomWeights { seed, device }, "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<DecoderLayer> {
        let norm = RmsNormConfig { width: self.attention.hidden_size, eps: self.rms_norm_eps };
        let at = |part: &str| path(prefix, part);
        Ok(DecoderLayer {
            input_layernorm: norm.build(source, &at("input_layernorm"))?,
            post_attention_layernorm: norm.build(source, &at("post_attention_layernorm"))?,
            self_attn: self.attention.build(source, &at("self_attn"))?,
            mlp: self.mlp.build(source, &at("mlp"))?,
        })
    }
}

/// One block.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    pub(in crate::model) self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    pub(in crate::model) mlp: Mlp,
}

impl DecoderLayer {
    /// # Shapes
    /// `[tokens, hidden_size]` to the same; `metadata` says which rows and positions the tokens have.
    pub fn forward(&self, x: Tensor<2>, metadata: &AttentionMetadata) -> Tensor<2> {
        let h = self.input_layernorm.forward(x.clone());
        let x = self.self_attn.forward_add(h, x, metadata);
        let h = self.post_attention_layernorm.forward(x.clone());
        self.mlp.forward_add(h, x, metadata.dropout())
    }

    /// The block on new tokens, which see those in the cache; it takes them in.
    pub(in crate::model) fn forward_cached(
        &self,
        x: Tensor<2>,
        step: &CacheStep,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        let h = self.input_layernorm.forward(x.clone());
        let x = self.self_attn.forward_cached(h, x, step, cache);
        let h = self.post_attention_layernorm.forward(x.clone());
        self.mlp.forward_add(h, x, None)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn error(x: Tensor<2>, y: Tensor<2>) -> f32 {
        (x - y).abs().max().into_scalar::<f32>()
    }

    fn config() -> DecoderLayerConfig {
        let attention = SelfAttentionConfig {
            num_key_value_heads: 2,
            head_dim: 6,
            qk_norm: true,
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
        let h = layer.input_layernorm.forward(x.clone());
        let middle = x.clone() + layer.self_attn.forward(h, &metadata);
        let h = layer.post_attention_layernorm.forward(middle.clone());
        let expected = middle.clone() + layer.mlp.forward(h);
        let found = layer.forward(x.clone(), &metadata);
        assert!(error(found.clone(), expected) < 1e-6);
        // Rows do not see each other, and nothing sees what comes after it.
        let changed = x.clone().slice_assign([3..4, 0..16], Tensor::ones([1, 16], &device));
        let after = layer.forward(changed, &metadata);
        let places = |y: &Tensor<2>, places: [usize; 2]| {
            y.clone().narrow(0, places[0], places[1] - places[0])
        };
        assert!(error(places(&found, [0, 3]), places(&after, [0, 3])) < 1e-6);
        assert!(error(places(&found, [4, 8]), places(&after, [4, 8])) < 1e-6);
        assert!(error(places(&found, [3, 4]), places(&after, [3, 4])) > 1e-3);
        // The same seed, the same weights.
        assert_eq!(error(config.init(3, &device).unwrap().forward(x, &metadata), found), 0.0);
    }

    #[test]
    fn sizes_that_do_not_fit_together_are_refused() {
        let (device, good) = (Device::flex(), config());
        let attention = |change: &dyn Fn(&mut SelfAttentionConfig)| {
            let mut config = good;
            change(&mut config.attention);
            config
        };
        for (config, key) in [
            (attention(&|a| a.num_key_value_heads = 3), "num_key_value_heads"),
            (attention(&|a| a.head_dim = 5), "head_dim"),
            (attention(&|a| a.head_dim = usize::MAX), "head_dim"),
            (attention(&|a| a.hidden_size = 18), "hidden_size"),
            (attention(&|a| a.rope_theta = f64::NAN), "rope_theta"),
            (DecoderLayerConfig { mlp: MlpConfig::new(16, 0), ..good }, "intermediate_size"),
            (DecoderLayerConfig { rms_norm_eps: 0.0, ..good }, "rms_norm_eps"),
        ] {
            let error = config.init(1, &device).unwrap_err().to_string();
            assert!(error.contains(&format!("model.{key}`")), "{error}");
        }
        let huge = MlpConfig::new(1 << 20, 1 << 20).init(1, &device).unwrap_err().to_string();
        assert!(huge.contains("parameters"), "{huge}");
        assert!(RmsNormConfig::new(0).init(&device).is_err());
    }
}
