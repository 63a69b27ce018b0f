//! The shape of a decoder; field names follow Hugging Face's `config.json`.

use super::architecture::Architecture;
use super::blocks::{
    DecoderLayerConfig, MlpConfig, RmsNormConfig, SelfAttentionConfig, check_number,
    check_parameters, check_size, refuse,
};
use super::rope::RopeScaling;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A decoder-only transformer: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// The family, which says what is computed; see [`Architecture::properties`].
    pub architecture: Architecture,
    /// Tokens in the vocabulary; 0 in a run's configuration means the tokenizer's.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the SwiGLU.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides the heads of the queries.
    pub num_key_value_heads: usize,
    /// Width of a head; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Longest row that the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of RoPE's frequencies.
    pub rope_theta: f64,
    /// Scaling of those frequencies; `None` leaves them as they are.
    pub rope_scaling: Option<RopeScaling>,
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
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
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

    /// Angle per position of each pair of a head's values, in radians: `head_dim / 2` numbers.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        self.attention().rope_frequencies()
    }

    /// The attention of its layers.
    ///
    /// Initial weights are normal with `initializer_range`, those that write to the residual stream
    /// divided by the root of twice the number of blocks (GPT-2's rule).
    pub fn attention(&self) -> SelfAttentionConfig {
        let properties = self.architecture.properties();
        SelfAttentionConfig {
            hidden_size: self.hidden_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim(),
            attention_bias: properties.attention_bias,
            qk_norm: properties.qk_norm,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            rope_scaling: self.rope_scaling,
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        }
    }

    /// The feed-forward part of its layers.
    pub fn mlp(&self) -> MlpConfig {
        MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            initializer_range: self.initializer_range,
            output_initializer_range: self.output_initializer_range(),
        }
    }

    /// Its layers.
    pub fn layer(&self) -> DecoderLayerConfig {
        let (attention, mlp) = (self.attention(), self.mlp());
        DecoderLayerConfig { attention, mlp, rms_norm_eps: self.rms_norm_eps }
    }

    /// The norm before the head.
    pub fn final_norm(&self) -> RmsNormConfig {
        RmsNormConfig { width: self.hidden_size, eps: self.rms_norm_eps }
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
        let layer = width * (2 * query + 2 * key_value + 3 * inner);
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        layers * layer + heads * vocabulary * width
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
        /// Four times the deepest model in use; what a configuration names is listed layer by layer.
        const MOST_LAYERS: usize = 512;
        if self.num_hidden_layers > MOST_LAYERS {
            let what = format!("{} is too large", self.num_hidden_layers);
            return refuse("num_hidden_layers", what, "At most 512");
        }
        check_parameters(self.parameters())?;
        let heads = self.num_attention_heads;
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let what = format!("{heads} heads do not divide a width of {}", self.hidden_size);
            return refuse("num_attention_heads", what, "Change one of them, or set head_dim");
        }
        check_number("initializer_range", self.initializer_range)?;
        self.attention().validate()
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
        for layer in 0..self.num_hidden_layers {
            let mut add = |part: &str, shape: Vec<usize>| {
                shapes.insert(format!("model.layers.{layer}.{part}"), shape);
            };
            add("input_layernorm.weight", vec![width]);
            add("post_attention_layernorm.weight", vec![width]);
            add("self_attn.o_proj.weight", vec![width, query]);
            for (name, output) in [("q", query), ("k", key_value), ("v", key_value)] {
                add(&format!("self_attn.{name}_proj.weight"), vec![output, width]);
                if properties.attention_bias {
                    add(&format!("self_attn.{name}_proj.bias"), vec![output]);
                }
            }
            if properties.qk_norm {
                add("self_attn.q_norm.weight", vec![head]);
                add("self_attn.k_norm.weight", vec![head]);
            }
            add("mlp.gate_proj.weight", vec![inner, width]);
            add("mlp.up_proj.weight", vec![inner, width]);
            add("mlp.down_proj.weight", vec![width, inner]);
        }
        shapes
    }
}
