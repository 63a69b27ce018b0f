//! The decoder: one file, whole.
//!
//! Special here: activations are `[tokens, width]`, rows one after the other, so that a weight's
//! gradient is one matrix product; normalisation, rotation, attention, SwiGLU and the loss are the
//! crate's own operations ([`crate::ops`]). Module fields carry the names that Hugging Face gives
//! the tensors.

use super::cache::LayerCache;
use super::config::{Architecture, DecoderConfig};
use super::lora::{DropoutKeys, LoraConfig, LoraLinear};
use super::precision::in_f32;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::ops::attention::AttentionShape;
use crate::ops::{
    causal_attention, causal_attention_within, embedding, linear, resident, rms_norm, rotary,
    rotary_table,
};
use crate::random::Stream;
use burn::module::Param;
use burn::nn::{Embedding, Linear};
use burn::prelude::*;
use burn::tensor::{FloatDType, TensorData};
use std::sync::Arc;

/// Root-mean-square normalisation with a learned scale.
#[derive(Module, Debug)]
pub struct RmsNorm {
    weight: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.val(), self.eps as f32)
    }

    /// Normalises each head: `[tokens, heads * width]` to the same.
    fn forward_heads(&self, x: Tensor<2>) -> Tensor<2> {
        let [tokens, total] = x.dims();
        let [width] = self.weight.dims();
        self.forward(x.reshape([tokens * total / width, width])).reshape([tokens, total])
    }
}

/// Where the tokens of a forward pass stand; shared by all layers.
#[derive(Clone, Debug)]
pub struct Placement {
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

impl Placement {
    /// Rows of one example each, all starting at position 0.
    pub fn rows(config: &DecoderConfig, rows: usize, length: usize, device: &Device) -> Self {
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
    pub fn batch(config: &DecoderConfig, batch: &Batch, device: &Device) -> Self {
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
}

impl Placement {
    /// The same on the device without autodiff.
    pub(super) fn inner(&self) -> Self {
        Self {
            table: self.table.clone().map(Tensor::inner),
            positions: self.positions.clone().inner(),
            segment_starts: self.segment_starts.clone().inner(),
            ..self.clone()
        }
    }
}

fn attention_shape(config: &DecoderConfig, rows: usize, length: usize) -> AttentionShape {
    AttentionShape {
        batch: rows,
        seq: length,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim(),
    }
}

pub(super) fn int_tensor(
    values: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    let count = values.len();
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Grouped-query attention.
#[derive(Module, Debug)]
pub struct SelfAttention {
    q_proj: LoraLinear,
    k_proj: LoraLinear,
    v_proj: LoraLinear,
    o_proj: LoraLinear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
}

impl SelfAttention {
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

    /// `residual` with the attention of `x` added.
    fn forward(&self, x: Tensor<2>, residual: Tensor<2>, placement: &Placement) -> Tensor<2> {
        let dropout = placement.dropout.as_ref();
        let [q, k, v] = self.heads(x, &placement.table, &placement.positions, dropout);
        let starts = placement.segment_starts.clone();
        let mixed = causal_attention_within(q, k, v, starts, placement.shape, placement.longest);
        self.o_proj.forward_add(mixed, residual, dropout)
    }

    /// Attention of new tokens to the cache, which takes them in.
    fn forward_cached(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        step: &CacheStep,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        let [q, k, v] = self.heads(x, &step.table, &step.positions, None);
        let mixed = match &step.seen {
            Seen::Rows(starts) => {
                cache.append(k.clone(), v.clone());
                causal_attention(q, k, v, starts.clone(), cache.shape())
            }
            Seen::Mask(mask) => cache.attend([q, k, v], mask.clone()),
        };
        self.o_proj.forward_add(mixed, residual, None)
    }
}

/// What all layers need to know of a step of generation.
pub(super) struct CacheStep {
    /// Cosine and sine, `[positions, head_dim / 2]`.
    pub table: [Tensor<2>; 2],
    /// Positions of the new tokens, `[rows * new]`.
    pub positions: Tensor<1, Int>,
    /// What they see.
    pub seen: Seen,
}

/// What new tokens see of the tokens in the cache and of each other.
pub(super) enum Seen {
    /// At the beginning, each its own row from here on, `[rows * new]`; the cache is empty.
    Rows(Tensor<1, Int>),
    /// Later: added to the scores, `[rows, 1, new, keys]`, 0 where visible, else very negative.
    Mask(Tensor<4>),
}

/// SwiGLU feed-forward.
#[derive(Module, Debug)]
pub struct Mlp {
    gate_proj: LoraLinear,
    up_proj: LoraLinear,
    down_proj: LoraLinear,
}

impl Mlp {
    /// `residual` with the output for `x` added.
    fn forward(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), dropout);
        let up = self.up_proj.forward(x, dropout);
        self.down_proj.forward_gated_add(gate, up, residual, dropout)
    }
}

/// One block.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl DecoderLayer {
    /// The block on tokens that stand so.
    pub(super) fn forward_placed(&self, x: Tensor<2>, placement: &Placement) -> Tensor<2> {
        let dropout = placement.dropout.as_ref();
        self.forward(x, dropout, |h, x| self.self_attn.forward(h, x, placement))
    }

    fn forward(
        &self,
        x: Tensor<2>,
        dropout: Option<&DropoutKeys>,
        attend: impl FnOnce(Tensor<2>, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let x = attend(self.input_layernorm.forward(x.clone()), x);
        let h = self.post_attention_layernorm.forward(x.clone());
        self.mlp.forward(h, x, dropout)
    }
}

/// Embedding, blocks and final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    pub(super) embed_tokens: Embedding,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) norm: RmsNorm,
}

/// A decoder with its head.
#[derive(Module, Debug)]
pub struct DecoderLm {
    pub(super) model: Decoder,
    /// `None` where the head is the embedding, transposed.
    lm_head: Option<Linear>,
    #[module(skip)]
    pub(super) config: DecoderConfig,
    /// Set where the linear layers have adapters.
    #[module(skip)]
    lora: Option<LoraConfig>,
    /// What activations are computed in, where that is not f32.
    #[module(skip)]
    pub(super) compute: Option<FloatDType>,
}

/// Where the weights of a new decoder come from.
pub(super) trait WeightSource {
    /// An embedding or a vector. `deviation` is that of random matrices; vectors begin at `start`.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        deviation: f64,
        start: f32,
    ) -> Result<Tensor<D>>;

    /// The matrix of a linear layer, `[input, output]`.
    fn linear(&mut self, name: &str, sizes: [usize; 2], deviation: f64) -> Result<Tensor<2>>;
}

/// Initial weights: normal, each tensor from its own stream, so that they do not depend on the
/// backend, on threads, or on which other tensors exist.
struct RandomWeights<'a> {
    seed: u64,
    device: &'a Device,
}

impl WeightSource for RandomWeights<'_> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        deviation: f64,
        start: f32,
    ) -> Result<Tensor<D>> {
        if D == 1 {
            return Ok(Tensor::full(shape, start, self.device));
        }
        let mut random = Stream::new(self.seed, name, 0);
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            values.extend(random.normal_pair().map(|x| (x * deviation) as f32));
        }
        values.truncate(count);
        Ok(resident(values, shape, self.device))
    }

    fn linear(&mut self, name: &str, sizes: [usize; 2], deviation: f64) -> Result<Tensor<2>> {
        self.tensor(name, sizes, deviation, 0.0)
    }
}

impl DecoderConfig {
    /// A decoder with random weights; the same seed gives the same weights on every backend.
    ///
    /// Weights are normal with `initializer_range`, those that write to the residual stream
    /// divided by the root of twice the number of blocks (GPT-2's rule).
    ///
    /// # Errors
    /// As [`DecoderConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<DecoderLm> {
        self.build(&mut RandomWeights { seed, device })
    }

    /// A decoder with the weights of `source`.
    ///
    /// # Errors
    /// As [`DecoderConfig::validate`], and what `source` gives.
    pub(super) fn build(&self, source: &mut impl WeightSource) -> Result<DecoderLm> {
        self.validate()?;
        let std = self.initializer_range;
        let residual = std / (2.0 * self.num_hidden_layers as f64).sqrt();
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key_value) = (self.query_width(), self.key_value_width());
        let bias = self.architecture == Architecture::Qwen2;
        let head_norms = self.architecture == Architecture::Qwen3;
        let mut layers = vec![];
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let mut norm = |part: &str, width| -> Result<RmsNorm> {
                let weight = source.tensor(&name(&format!("{part}.weight")), [width], 0.0, 1.0)?;
                Ok(RmsNorm { weight: Param::from_tensor(weight), eps: self.rms_norm_eps })
            };
            let input_layernorm = norm("input_layernorm", width)?;
            let post_attention_layernorm = norm("post_attention_layernorm", width)?;
            let mut head_norm = |part: &str| -> Result<Option<RmsNorm>> {
                if head_norms { norm(part, self.head_dim()).map(Some) } else { Ok(None) }
            };
            let (q_norm, k_norm) = (head_norm("self_attn.q_norm")?, head_norm("self_attn.k_norm")?);
            let mut linear = |part: &str, sizes: [usize; 2], deviation, bias| {
                let weight = source.linear(&name(&format!("{part}.weight")), sizes, deviation)?;
                let bias = match bias {
                    true => {
                        let name = name(&format!("{part}.bias"));
                        let bias = source.tensor(&name, [sizes[1]], 0.0, 0.0)?;
                        Some(Param::from_tensor(bias))
                    }
                    false => None,
                };
                Ok::<_, Error>(LoraLinear::new(Param::from_tensor(weight), bias))
            };
            layers.push(DecoderLayer {
                input_layernorm,
                self_attn: SelfAttention {
                    q_proj: linear("self_attn.q_proj", [width, query], std, bias)?,
                    k_proj: linear("self_attn.k_proj", [width, key_value], std, bias)?,
                    v_proj: linear("self_attn.v_proj", [width, key_value], std, bias)?,
                    o_proj: linear("self_attn.o_proj", [query, width], residual, false)?,
                    q_norm,
                    k_norm,
                },
                post_attention_layernorm,
                mlp: Mlp {
                    gate_proj: linear("mlp.gate_proj", [width, inner], std, false)?,
                    up_proj: linear("mlp.up_proj", [width, inner], std, false)?,
                    down_proj: linear("mlp.down_proj", [inner, width], residual, false)?,
                },
            });
        }
        let vocabulary = [self.vocab_size, width];
        let embedding = source.tensor("model.embed_tokens.weight", vocabulary, std, 0.0)?;
        let norm = source.tensor("model.norm.weight", [width], 0.0, 1.0)?;
        let lm_head = match self.tie_word_embeddings {
            true => None,
            false => {
                let weight = source.linear("lm_head.weight", [width, self.vocab_size], std)?;
                Some(Linear { weight: Param::from_tensor(weight), bias: None })
            }
        };
        let model = Decoder {
            embed_tokens: Embedding { weight: Param::from_tensor(embedding) },
            layers,
            norm: RmsNorm { weight: Param::from_tensor(norm), eps: self.rms_norm_eps },
        };
        Ok(DecoderLm { model, lm_head, config: self.clone(), lora: None, compute: None })
    }
}

impl DecoderLm {
    /// The shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The adapters' settings, where the linear layers have adapters.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Freezes all weights and adds adapters, the only parameters that are trained from then on.
    /// They change nothing yet; the same seed gives the same A, and the same dropout in training.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`]; [`Error::Config`] where the model has adapters already.
    pub fn with_lora(self, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        if self.lora.is_some() {
            let what = "the model has adapters already";
            return Err(Error::config("lora", what, "Merge them first"));
        }
        let mut model = self.no_grad();
        for (name, layer) in model.linear_layers_mut() {
            if config.targets(&name) {
                layer.attach(config, &name, seed);
            }
        }
        model.lora = Some(config.clone());
        Ok(model)
    }

    /// Adds the adapters to the weights and removes them. The result is on a device without
    /// autodiff.
    pub fn merged(self) -> Self {
        let mut model = self.valid();
        // Held no longer, each old weight goes when the new one is there.
        drop(self);
        model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.merge());
        model.lora = None;
        model
    }

    /// The linear layers of the blocks by their paths.
    pub(super) fn linear_layers_mut(&mut self) -> Vec<(String, &mut LoraLinear)> {
        let mut layers = vec![];
        for (number, layer) in self.model.layers.iter_mut().enumerate() {
            let (attention, mlp) = (&mut layer.self_attn, &mut layer.mlp);
            layers.extend(
                [
                    ("self_attn.q_proj", &mut attention.q_proj),
                    ("self_attn.k_proj", &mut attention.k_proj),
                    ("self_attn.v_proj", &mut attention.v_proj),
                    ("self_attn.o_proj", &mut attention.o_proj),
                    ("mlp.gate_proj", &mut mlp.gate_proj),
                    ("mlp.up_proj", &mut mlp.up_proj),
                    ("mlp.down_proj", &mut mlp.down_proj),
                ]
                .map(|(part, linear)| (format!("model.layers.{number}.{part}"), linear)),
            );
        }
        layers
    }

    pub(super) fn set_lora(&mut self, config: LoraConfig) {
        self.lora = Some(config);
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.weight.device()
    }

    /// The head's matrix, `[width, vocabulary]`.
    pub(super) fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.embed_tokens.weight.val().transpose(),
        }
    }

    /// Normalised output of the last block.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right; result: `[rows * length, width]`.
    pub fn hidden(&self, ids: Tensor<2, Int>, placement: &Placement) -> Tensor<2> {
        let mut x = self.embed(ids);
        for layer in &self.model.layers {
            x = layer.forward_placed(x, placement);
        }
        self.model.norm.forward(x)
    }

    /// Scores of every next token; for inspection and tests, since it holds them all.
    ///
    /// # Shapes
    /// `ids`: `[rows, length]`, padded on the right; result: `[rows, length, vocabulary]`.
    pub fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [rows, length] = ids.dims();
        let placement = Placement::rows(&self.config, rows, length, &ids.device());
        let logits = linear(in_f32(self.hidden(ids, &placement)), self.head());
        logits.reshape([rows, length, self.config.vocab_size])
    }

    /// Activations in the type that is computed in.
    pub(super) fn computed(&self, x: Tensor<2>) -> Tensor<2> {
        match self.compute {
            Some(dtype) => x.cast(dtype),
            None => x,
        }
    }

    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let [rows, length] = ids.dims();
        let weight = self.model.embed_tokens.weight.val();
        self.computed(embedding(weight, ids.reshape([rows * length])))
    }

    /// Scores of the token after the last new one, `[rows, vocabulary]`; the new tokens
    /// `[rows, new]` go into the caches.
    pub(super) fn logits_cached(
        &self,
        ids: Tensor<2, Int>,
        step: &CacheStep,
        caches: &mut [LayerCache],
    ) -> Tensor<2> {
        let [rows, new] = ids.dims();
        let mut x = self.embed(ids);
        for (layer, cache) in self.model.layers.iter().zip(caches) {
            x = layer.forward(x, None, |h, x| layer.self_attn.forward_cached(h, x, step, cache));
        }
        let width = self.config.hidden_size;
        let last = x.reshape([rows, new, width]).narrow(1, new - 1, 1).reshape([rows, width]);
        linear(in_f32(self.model.norm.forward(last)), self.head())
    }
}
