//! The shape of a decoder; field names follow Hugging Face's `config.json`.

use super::rope::RopeScaling;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which member of the Llama family a decoder is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama, SmolLM2.
    #[default]
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on each head of q and k.
    Qwen3,
}

impl Architecture {
    /// The class name in `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// A decoder-only transformer: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// Member of the Llama family.
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
    /// [`Error::Config`] with the name of the first field that does not.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim()),
        ];
        let refuse = |key: &str, what: String, hint: &str| {
            Err(Error::config(format!("model.{key}"), what, hint))
        };
        /// Above any model in use; keeps a typing error from asking for terabytes.
        const LARGEST: usize = 1 << 24;
        for (key, value) in positive {
            if value == 0 {
                return refuse(key, "it is 0".into(), "Give a positive number");
            }
            if value > LARGEST {
                return refuse(key, format!("{value} is too large"), "At most 16777216");
            }
        }
        /// Four times the deepest model in use; what a configuration names is listed layer by layer.
        const MOST_LAYERS: usize = 512;
        if self.num_hidden_layers > MOST_LAYERS {
            let what = format!("{} is too large", self.num_hidden_layers);
            return refuse("num_hidden_layers", what, "At most 512");
        }
        /// The crate is for models of up to 3 billion parameters.
        const MOST_PARAMETERS: u128 = 16_000_000_000;
        let parameters = self.parameters();
        if parameters > MOST_PARAMETERS {
            let what = format!("the sizes make {parameters} parameters");
            return refuse("hidden_size", what, "Choose a model of at most 16 billion");
        }
        let heads = self.num_attention_heads;
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let what = format!("{heads} heads do not divide a width of {}", self.hidden_size);
            return refuse("num_attention_heads", what, "Change one of them, or set head_dim");
        }
        if !heads.is_multiple_of(self.num_key_value_heads) {
            let what = format!(
                "{} key-value heads do not divide {heads} query heads",
                self.num_key_value_heads
            );
            return refuse("num_key_value_heads", what, "Choose a divisor");
        }
        if !self.head_dim().is_multiple_of(2) {
            let what = format!("{} is odd, and RoPE rotates halves", self.head_dim());
            return refuse("head_dim", what, "Choose an even width");
        }
        let numbers = [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ];
        for (key, value) in numbers {
            if !value.is_finite() || value <= 0.0 {
                return refuse(key, format!("it is {value}"), "Give a positive number");
            }
        }
        if let Some(scaling) = &self.rope_scaling {
            let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
            let fits = scaling.factor >= 1.0 && scaling.factor.is_finite() && low > 0.0;
            if !fits || !high.is_finite() || high <= low {
                let what = format!("{scaling:?} is out of range");
                return refuse("rope_scaling", what, "factor >= 1, 0 < low < high");
            }
            if scaling.original_max_position_embeddings == 0 {
                return refuse("rope_scaling", "its context is 0".into(), "Give its tokens");
            }
        }
        Ok(())
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
        for layer in 0..self.num_hidden_layers {
            let mut add = |part: &str, shape: Vec<usize>| {
                shapes.insert(format!("model.layers.{layer}.{part}"), shape);
            };
            add("input_layernorm.weight", vec![width]);
            add("post_attention_layernorm.weight", vec![width]);
            add("self_attn.o_proj.weight", vec![width, query]);
            for (name, output) in [("q", query), ("k", key_value), ("v", key_value)] {
                add(&format!("self_attn.{name}_proj.weight"), vec![output, width]);
                if self.architecture == Architecture::Qwen2 {
                    add(&format!("self_attn.{name}_proj.bias"), vec![output]);
                }
            }
            if self.architecture == Architecture::Qwen3 {
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
