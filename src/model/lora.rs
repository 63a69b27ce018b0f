//! Low-rank adapters (LoRA, arXiv 2106.09685): `y = x W + s (x A) B` beside a frozen `W`.

#![allow(non_snake_case, reason = "lora_A and lora_B are PEFT's names, which files have")]

use super::base_weights::BaseWeights;
use super::matrix::{EncodedMatrix, MatrixRole, NewMatrix, restored, weight_of};
use super::precision::{in_f32, like};
use super::weight_source::{WeightSource, path};
use crate::error::{Error, Result};
use crate::ops::{
    Activation, DropoutFactors, SharedInput, Weight, dropout_linear, gated, gated_linear_add,
    linear, linear_add,
};
use crate::random::Stream;
use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType, TensorData};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// The linear layers of a block, by the names that PEFT calls them. Some models have several of them as
/// one; see [`FUSED`].
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Linear layers that stand for several of [`PROJECTIONS`] in some models (Phi-3), and for which ones.
pub const FUSED: [(&str, &[&str]); 2] =
    [("qkv_proj", &["q_proj", "k_proj", "v_proj"]), ("gate_up_proj", &["gate_proj", "up_proj"])];

/// Which layers get adapters, and of what kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenLora")]
pub struct LoraConfig {
    /// Width between A and B.
    pub rank: usize,
    /// The adapter's output is scaled by `alpha / rank`; settings without it have twice the rank.
    pub alpha: f64,
    /// Share of the adapter's inputs that are set to 0 in training, 0 to below 1.
    pub dropout: f64,
    /// Scale by `alpha / sqrt(rank)` instead (rsLoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// The layers, of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`. In a
    /// model that has several of them as one (`qkv_proj`, `gate_up_proj`), all of these or none.
    pub target_modules: Vec<String>,
}

/// As settings give it. They know it by the name of what it becomes.
#[derive(Deserialize)]
#[serde(rename = "LoraConfig", deny_unknown_fields, default)]
struct GivenLora {
    rank: usize,
    alpha: Option<f64>,
    dropout: f64,
    rslora: bool,
    target_modules: Vec<String>,
}

impl Default for GivenLora {
    fn default() -> Self {
        let LoraConfig { rank, alpha: _, dropout, rslora, target_modules } = LoraConfig::default();
        Self { rank, alpha: None, dropout, rslora, target_modules }
    }
}

impl From<GivenLora> for LoraConfig {
    fn from(given: GivenLora) -> Self {
        let GivenLora { rank, alpha, dropout, rslora, target_modules } = given;
        let alpha = alpha.unwrap_or(2.0 * rank as f64);
        Self { rank, alpha, dropout, rslora, target_modules }
    }
}

impl Default for LoraConfig {
    /// Rank 16 on all linear layers, scaled by 2.
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            target_modules: PROJECTIONS.map(str::to_owned).to_vec(),
        }
    }
}

impl LoraConfig {
    /// What the adapter's output is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// The same for a model with these linear layers: where the model has several of the targets as one
    /// layer, that one is the target.
    ///
    /// # Errors
    /// [`Error::Config`] for targets that the model does not have.
    pub(crate) fn for_layers(&self, layers: &[&str]) -> Result<Self> {
        let mut targets: Vec<&str> = self.target_modules.iter().map(String::as_str).collect();
        for (one, several) in FUSED.iter().filter(|(one, _)| layers.contains(one)) {
            if several.iter().all(|part| targets.contains(part)) {
                targets.retain(|target| !several.contains(target));
                targets.push(one);
            }
        }
        if let Some(unknown) = targets.iter().find(|target| !layers.contains(target)) {
            return Err(Error::config(
                "lora.target_modules",
                format!("the model has no linear layer `{unknown}` of its own"),
                format!("Choose of {}", layers.join(", ")),
            ));
        }
        let target_modules = targets.into_iter().map(str::to_owned).collect();
        Ok(Self { target_modules, ..self.clone() })
    }

    /// Whether the layer of this path gets an adapter.
    pub(crate) fn targets(&self, path: &str) -> bool {
        let name = path.rsplit('.').next().unwrap_or(path);
        self.target_modules.iter().any(|target| target == name)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one that is out of range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, what: String, hint: &str| {
            Err(Error::config(format!("lora.{key}"), what, hint))
        };
        /// Far above any rank in use; keeps a typing error from asking for terabytes.
        const LARGEST_RANK: usize = 1 << 16;
        if self.rank == 0 || self.rank > LARGEST_RANK {
            return refuse("rank", format!("it is {}", self.rank), "Give 1 to 65536; 16 is usual");
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return refuse("alpha", format!("it is {}", self.alpha), "Give a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("it is {}", self.dropout);
            return refuse("dropout", what, "Give a share, 0 to below 1");
        }
        let known =
            |name: &str| PROJECTIONS.contains(&name) || FUSED.iter().any(|(one, _)| *one == name);
        let unknown = self.target_modules.iter().find(|name| !known(name));
        if let Some(unknown) = unknown {
            let what = format!("there is no linear layer `{unknown}`");
            return refuse(
                "target_modules",
                what,
                &format!("Choose of {}", PROJECTIONS.join(", ")),
            );
        }
        if self.target_modules.is_empty() {
            return refuse("target_modules", "it is empty".into(), "Name at least one layer");
        }
        Ok(())
    }
}

/// What dropout depends on: which token of which row stands where. The same row loses the same
/// inputs however it is batched, and after a resume too.
#[derive(Clone, Debug)]
pub(super) struct DropoutKeys {
    /// Number of the row and position in it, of each token of the batch.
    pub tokens: Arc<Vec<(u64, u32)>>,
}

impl DropoutKeys {
    /// Those of some tokens.
    pub fn slice(&self, tokens: Range<usize>) -> Self {
        Self { tokens: Arc::new(self.tokens[tokens].to_vec()) }
    }
}

/// How a layer uses its adapter.
#[derive(Clone, Debug)]
struct Adapter {
    /// The layer's path, which names its random stream.
    name: String,
    scale: f64,
    dropout: f64,
    seed: u64,
}

/// A linear layer, `x W + b`, that may have an adapter.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `[input, output]`; frozen where there is an adapter.
    pub(super) weight: Option<Param<Tensor<2>>>,
    /// In place of it, of a frozen base.
    encoded: Option<EncodedMatrix>,
    pub(super) bias: Option<Param<Tensor<1>>>,
    /// `[input, rank]`.
    pub(super) lora_A: Option<Linear>,
    /// `[rank, output]`.
    pub(super) lora_B: Option<Linear>,
    #[module(skip)]
    adapter: Option<Adapter>,
}

impl LoraLinear {
    /// A layer of `[input, output]`, without an adapter; the bias begins at 0.
    pub(super) fn build(
        source: &mut impl WeightSource,
        prefix: &str,
        sizes: [usize; 2],
        deviation: f64,
        has_bias: bool,
    ) -> Result<Self> {
        let name = path(prefix, "weight");
        let mut layer = Self::new(source.matrix(&name, sizes, MatrixRole::Linear, deviation)?);
        if has_bias {
            let bias = source.vector(&path(prefix, "bias"), sizes[1], 0.0)?;
            layer.bias = Some(Param::from_tensor(bias));
        }
        Ok(layer)
    }

    /// A layer of this matrix alone.
    pub(super) fn new(matrix: NewMatrix) -> Self {
        let (weight, encoded) = matrix.into_parts();
        Self { weight, encoded, bias: None, lora_A: None, lora_B: None, adapter: None }
    }

    /// Keeps the weight in this type where it is numbers that are frozen.
    pub(super) fn store_frozen(&mut self, dtype: FloatDType) {
        let Some(weight) = &self.weight else { return };
        if weight.val().is_require_grad() || weight.val().dtype() == DType::from(dtype) {
            return;
        }
        let frozen = weight.clone().map(|weight| weight.detach().cast(dtype));
        self.weight = Some(frozen.no_grad());
    }

    /// Keeps the weight in the type that `base` says.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) where the device cannot be read.
    pub(super) fn store(&mut self, role: MatrixRole, base: &BaseWeights) -> Result<()> {
        if let Some(weight) = &self.weight {
            (self.weight, self.encoded) = restored(weight.val(), role, base)?.into_parts();
        }
        Ok(())
    }

    /// The matrix as it is.
    pub(super) fn matrix(&self) -> Weight {
        weight_of(self.weight.as_ref(), self.encoded.as_ref())
    }

    /// The matrix for activations such as these: trained numbers in their type.
    fn matrix_for(&self, x: &Tensor<2>) -> Weight {
        match self.matrix() {
            Weight::Dense(weight) if weight.dtype() == DType::F32 => Weight::Dense(like(weight, x)),
            stored => stored,
        }
    }

    /// # Shapes
    /// `[tokens, input]` to `[tokens, output]`.
    pub(super) fn forward(&self, x: Tensor<2>, dropout: Option<&DropoutKeys>) -> Tensor<2> {
        let [y] = Self::forward_all([self], x, dropout);
        y
    }

    /// The outputs of layers that have the same input. What their adapters make of it is one product.
    ///
    /// # Shapes
    /// As [`LoraLinear::forward`].
    pub(super) fn forward_all<const N: usize>(
        layers: [&Self; N],
        x: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> [Tensor<2>; N] {
        let input = SharedInput::new(x);
        let mut inner = Self::inner(layers, &input, dropout).into_iter();
        layers.map(|layer| {
            let y = input.linear(layer.matrix_for(&input.tensor()));
            layer.complete(y, inner.next().flatten())
        })
    }

    /// What the layers' adapters have between A and B, `[tokens, rank]` of each.
    fn inner<const N: usize>(
        layers: [&Self; N],
        input: &SharedInput,
        dropout: Option<&DropoutKeys>,
    ) -> [Option<Tensor<2>>; N] {
        let a = |layer: &Self| {
            let a = layer.lora_A.as_ref()?;
            Some(like(a.weight.val(), &input.tensor()))
        };
        let factors_of = |layer: &Self| {
            let (adapter, keys) = (layer.adapter.as_ref()?, dropout?);
            (adapter.dropout > 0.0).then(|| adapter.factors(keys))
        };
        let factors = layers.map(factors_of);
        if factors.iter().any(Option::is_some) {
            let mut factors = factors.into_iter();
            return layers.map(|layer| {
                Some(match factors.next().flatten() {
                    Some(factors) => dropout_linear(input.tensor(), a(layer)?, factors),
                    None => input.linear(a(layer)?),
                })
            });
        }
        let all: Vec<Tensor<2>> = layers.into_iter().filter_map(a).collect();
        if all.len() < 2 {
            return layers.map(|layer| Some(input.linear(a(layer)?)));
        }
        let together = input.linear(Tensor::cat(all, 1));
        let mut start = 0;
        layers.map(|layer| {
            let [_, rank] = layer.lora_A.as_ref()?.weight.shape().dims();
            start += rank;
            Some(together.clone().narrow(1, start - rank, rank))
        })
    }

    /// The output added to `residual`.
    ///
    /// # Shapes
    /// `[tokens, input]` and `[tokens, output]` to `[tokens, output]`.
    pub(super) fn forward_add(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        let weight = self.matrix_for(&x);
        let input = SharedInput::new(x);
        let [inner] = Self::inner([self], &input, dropout);
        self.complete(input.linear_add(weight, residual), inner)
    }

    /// The output, added to `residual` where there is one.
    pub(super) fn forward_to(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        match residual {
            Some(residual) => self.forward_add(x, residual, dropout),
            None => self.forward(x, dropout),
        }
    }

    /// The output for `gated(gate, up, activation)` added to `residual`.
    ///
    /// # Shapes
    /// `[tokens, input]` twice and `[tokens, output]` to `[tokens, output]`.
    pub(super) fn forward_gated_add(
        &self,
        [gate, up]: [Tensor<2>; 2],
        activation: Activation,
        residual: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        if self.bias.is_some() || self.adapter.is_some() {
            return self.forward_add(gated(gate, up, activation), residual, dropout);
        }
        let weight = self.matrix_for(&gate);
        gated_linear_add(gate, up, weight, residual, activation)
    }

    /// `y` with what bias and adapter add; `inner` is what the adapter has between A and B.
    fn complete(&self, y: Tensor<2>, inner: Option<Tensor<2>>) -> Tensor<2> {
        let y = match &self.bias {
            Some(bias) => {
                let bias = like(bias.val(), &y);
                y + bias.unsqueeze()
            }
            None => y,
        };
        let (Some(inner), Some(b), Some(adapter)) = (inner, &self.lora_B, &self.adapter) else {
            return y;
        };
        let b = like(b.weight.val(), &y);
        linear_add(inner * adapter.scale, b, y)
    }

    /// Adds an adapter that changes nothing yet: A is uniform as PyTorch's linear layers are, B is
    /// zero. Of an earlier adapter nothing remains.
    pub(super) fn attach(&mut self, config: &LoraConfig, name: &str, seed: u64) {
        let [input, output] = self.matrix().sizes();
        let bound = 1.0 / (input as f64).sqrt();
        let mut random = Stream::new(seed, &format!("{name}.lora_A"), 0);
        let values: Vec<f32> = (0..input * config.rank)
            .map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32)
            .collect();
        let device = self.matrix().device();
        let a = Tensor::from_data(TensorData::new(values, [input, config.rank]), &device);
        self.set_adapter(config, name, seed, a, Tensor::zeros([config.rank, output], &device));
    }

    /// Sets an adapter: `a` is `[input, rank]`, `b` is `[rank, output]`.
    pub(super) fn set_adapter(
        &mut self,
        config: &LoraConfig,
        name: &str,
        seed: u64,
        a: Tensor<2>,
        b: Tensor<2>,
    ) {
        let linear = |weight| Linear { weight: Param::from_tensor(weight), bias: None };
        self.lora_A = Some(linear(a));
        self.lora_B = Some(linear(b));
        let (scale, dropout) = (config.scale(), config.dropout);
        self.adapter = Some(Adapter { name: name.to_owned(), scale, dropout, seed });
    }

    /// Adds the adapter to the weight and removes it.
    pub(super) fn merge(&mut self) {
        let adapter = (self.lora_A.take(), self.lora_B.take(), self.adapter.take());
        let (Some(a), Some(b), Some(adapter)) = adapter else { return };
        let change = a.weight.val().matmul(b.weight.val()) * adapter.scale;
        let numbers = match self.matrix() {
            Weight::Dense(weight) => in_f32(weight),
            // Each row of the unit matrix picks a row.
            encoded => {
                linear(Tensor::eye(self.matrix().sizes()[0], &self.matrix().device()), encoded)
            }
        };
        self.weight = Some(Param::from_tensor((numbers + change).detach()));
        self.encoded = None;
    }
}

impl Adapter {
    /// What the adapter's inputs are multiplied by: 0, or what keeps their expectation.
    fn factors(&self, keys: &DropoutKeys) -> DropoutFactors {
        let kept = (1.0 / (1.0 - self.dropout)) as f32;
        // A draw has 16 bits.
        let threshold = (self.dropout * f64::from(1u32 << 16)).round() as u32;
        let (keys, name, seed) = (keys.clone(), self.name.clone(), self.seed);
        DropoutFactors::new(move |token, factors| {
            let (number, place) = keys.tokens[token];
            let mut random = Stream::new(seed, &format!("dropout {name} {place}"), number);
            for values in factors.chunks_mut(4) {
                let bits = random.next_u64();
                for (i, value) in values.iter_mut().enumerate() {
                    let draw = (bits >> (16 * i)) as u32 & 0xFFFF;
                    *value = if draw < threshold { 0.0 } else { kept };
                }
            }
        })
    }
}
