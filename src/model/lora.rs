//! Low-rank adapters (LoRA, arXiv 2106.09685): `y = x W + s (x A) B` with a frozen `W`.

#![allow(non_snake_case, reason = "lora_A and lora_B are PEFT's names in files")]

mod config;
mod dora;
mod names;
mod regex;
mod targets;

pub use config::LoraConfig;
pub use dora::Magnitude;
pub(crate) use names::TEXT_OR_LIST;
pub use names::{ModuleNames, Patterns};
pub(super) use targets::{EMBEDDING, HEAD, OLD_WITHIN, WITHIN};
pub(crate) use targets::{LayerLora, LoraSource, LoraTargets};

use super::base_weights::BaseWeights;
use super::matrix::{EncodedMatrix, MatrixRole, NewMatrix, numbers_of, restored, weight_of};
use super::precision::like;
use super::weight_source::{WeightSource, path};
use crate::error::Result;
use crate::ops::{
    Activation, DropoutFactors, SharedInput, Weight, dropout_linear, gated, gated_linear_add,
    linear_add,
};
use crate::random::Stream;
use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType, TensorData};
use std::ops::Range;
use std::sync::Arc;

/// PEFT's name for all linear layers.
const ALL_LINEAR: &str = "all-linear";

/// Names of a block's linear layers, as in PEFT. Some models fuse several of them; see [`FUSED`].
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Names of the linear layers of linear attention, which replace the first four of [`PROJECTIONS`] in some
/// layers (Qwen3.5).
pub const LINEAR_ATTENTION: [&str; 5] =
    ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"];

/// Fused linear layers of some models (Phi-3), and the [`PROJECTIONS`] that they replace.
pub const FUSED: [(&str, &[&str]); 2] =
    [("qkv_proj", &["q_proj", "k_proj", "v_proj"]), ("gate_up_proj", &["gate_proj", "up_proj"])];

/// Keys of the dropout's random streams. Dropout depends on the row and the position of a token, so a row's
/// dropout does not depend on its batch and is the same after a resume.
#[derive(Clone, Debug)]
pub(super) struct DropoutKeys {
    /// Row number and position of each token in the batch.
    pub tokens: Arc<Vec<(u64, u32)>>,
}

impl DropoutKeys {
    /// Returns the keys of some tokens.
    pub fn slice(&self, tokens: Range<usize>) -> Self {
        Self { tokens: Arc::new(self.tokens[tokens].to_vec()) }
    }
}

/// Settings of a layer's adapter.
#[derive(Clone, Debug)]
struct Adapter {
    /// Path of the layer, which names its random stream.
    name: String,
    scale: f64,
    dropout: f64,
    seed: u64,
}

/// The tensors of an adapter.
pub(super) struct AdapterTensors {
    /// `[input, rank]`.
    pub a: Tensor<2>,
    /// `[rank, output]`.
    pub b: Tensor<2>,
    /// Bias of B, `[output]`.
    pub bias: Option<Tensor<1>>,
    /// DoRA's magnitudes, `[output]`.
    pub magnitude: Option<Tensor<1>>,
}

/// A linear layer, `x W + b`, that may have an adapter.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// `[input, output]`. Frozen if there is an adapter.
    pub(super) weight: Option<Param<Tensor<2>>>,
    /// Replaces it in a quantized base.
    encoded: Option<EncodedMatrix>,
    pub(super) bias: Option<Param<Tensor<1>>>,
    /// `[input, rank]`.
    pub(super) lora_A: Option<Linear>,
    /// `[rank, output]`.
    pub(super) lora_B: Option<Linear>,
    /// DoRA's magnitudes.
    pub(super) lora_magnitude_vector: Option<Magnitude>,
    #[module(skip)]
    adapter: Option<Adapter>,
}

impl LoraLinear {
    /// Returns a layer of size `[input, output]` without an adapter. The bias starts at 0.
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

    /// Returns a layer with only this matrix.
    pub(super) fn new(matrix: NewMatrix) -> Self {
        let (weight, encoded) = matrix.into_parts();
        let (lora_A, lora_B, lora_magnitude_vector) = (None, None, None);
        Self { weight, encoded, bias: None, lora_A, lora_B, lora_magnitude_vector, adapter: None }
    }

    /// Converts the weight to this type if it is frozen and not quantized.
    pub(super) fn store_frozen(&mut self, dtype: FloatDType) {
        let Some(weight) = &self.weight else { return };
        if weight.val().is_require_grad() || weight.val().dtype() == DType::from(dtype) {
            return;
        }
        let frozen = weight.clone().map(|weight| weight.detach().cast(dtype));
        self.weight = Some(frozen.no_grad());
        if self.lora_magnitude_vector.is_some() {
            let squares = self.squares();
            self.lora_magnitude_vector.iter_mut().for_each(|m| m.set_squares(squares.clone()));
        }
    }

    /// Converts the weight to f32 from any storage type.
    pub(super) fn store_numbers(&mut self) {
        let numbers = numbers_of(self.weight.as_ref(), self.encoded.as_ref(), MatrixRole::Linear);
        (self.weight, self.encoded) = (Some(Param::from_tensor(numbers).no_grad()), None);
    }

    /// Returns the squared norm of each output's weights, `[output]`.
    fn squares(&self) -> Tensor<1> {
        let numbers = numbers_of(self.weight.as_ref(), self.encoded.as_ref(), MatrixRole::Linear);
        numbers.square().sum_dim(0).squeeze_dim(0)
    }

    /// Converts the weight to the storage type of `base`.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) if the device cannot be read.
    pub(super) fn store(&mut self, role: MatrixRole, base: &BaseWeights) -> Result<()> {
        if let Some(weight) = &self.weight {
            (self.weight, self.encoded) = restored(weight.val(), role, base)?.into_parts();
        }
        Ok(())
    }

    /// Returns the matrix as it is stored.
    pub(super) fn matrix(&self) -> Weight {
        weight_of(self.weight.as_ref(), self.encoded.as_ref())
    }

    /// Returns the matrix for these activations: f32 weights are cast to their type.
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

    /// Returns the outputs of layers with the same input, whose adapters share one product with it.
    ///
    /// # Shapes
    /// See [`LoraLinear::forward`].
    pub(super) fn forward_all<const N: usize>(
        layers: [&Self; N],
        x: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> [Tensor<2>; N] {
        let input = SharedInput::new(x);
        let mut inner = Self::inner(layers, &input, dropout).into_iter();
        layers.map(|layer| {
            let inner = inner.next().flatten();
            if let Some(magnitude) = &layer.lora_magnitude_vector {
                return layer.forward_dora(magnitude, &input, inner, dropout);
            }
            let y = input.linear(layer.matrix_for(&input.tensor()));
            layer.complete(y, inner)
        })
    }

    /// Returns the dropout factors of the adapter's inputs, if it has dropout.
    fn factors(&self, dropout: Option<&DropoutKeys>) -> Option<DropoutFactors> {
        let (adapter, keys) = (self.adapter.as_ref()?, dropout?);
        (adapter.dropout > 0.0).then(|| adapter.factors(keys))
    }

    /// Returns the product of the input and A for each layer, `[tokens, rank]`.
    fn inner<const N: usize>(
        layers: [&Self; N],
        input: &SharedInput,
        dropout: Option<&DropoutKeys>,
    ) -> [Option<Tensor<2>>; N] {
        let a = |layer: &Self| {
            let a = layer.lora_A.as_ref()?;
            Some(like(a.weight.val(), &input.tensor()))
        };
        let factors = layers.map(|layer| layer.factors(dropout));
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

    /// Returns the output plus `residual`.
    ///
    /// # Shapes
    /// `[tokens, input]` and `[tokens, output]` to `[tokens, output]`.
    pub(super) fn forward_add(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        if self.lora_magnitude_vector.is_some() {
            return residual + self.forward(x, dropout);
        }
        let weight = self.matrix_for(&x);
        let input = SharedInput::new(x);
        let [inner] = Self::inner([self], &input, dropout);
        self.complete(input.linear_add(weight, residual), inner)
    }

    /// Returns the output, plus `residual` if it is given.
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

    /// Returns the output for `gated(gate, up, activation)`, plus `residual`.
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

    /// Adds the bias and the adapter to `y`. `inner` is the product of the input and A.
    fn complete(&self, y: Tensor<2>, inner: Option<Tensor<2>>) -> Tensor<2> {
        let y = self.with_bias(y);
        match inner {
            Some(inner) => self.with_adapter(y, inner),
            None => y,
        }
    }

    /// Adds the layer's own bias to `y`.
    fn with_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => {
                let bias = like(bias.val(), &y);
                y + bias.unsqueeze()
            }
            None => y,
        }
    }

    /// Adds the adapter to `y`. `inner` is the product of the input and A.
    fn with_adapter(&self, y: Tensor<2>, inner: Tensor<2>) -> Tensor<2> {
        let (Some(b), Some(adapter)) = (&self.lora_B, &self.adapter) else { return y };
        let weight = like(b.weight.val(), &y);
        let y = linear_add(inner * adapter.scale, weight, y);
        match &b.bias {
            Some(bias) => {
                let bias = like(bias.val() * adapter.scale, &y);
                y + bias.unsqueeze()
            }
            None => y,
        }
    }

    /// Adds an adapter that does not change the output: A is uniform, as in PyTorch's linear layers, B and
    /// its bias are 0, and DoRA's magnitudes are the norms of the weights. Replaces an earlier adapter.
    pub(super) fn attach(&mut self, lora: &LayerLora, name: &str, seed: u64) {
        let [input, output] = self.matrix().sizes();
        let bound = 1.0 / (input as f64).sqrt();
        let mut random = Stream::new(seed, &format!("{name}.lora_A"), 0);
        let values: Vec<f32> =
            (0..input * lora.rank).map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32).collect();
        let device = self.matrix().device();
        let a = Tensor::from_data(TensorData::new(values, [input, lora.rank]), &device);
        let tensors = AdapterTensors {
            a,
            b: Tensor::zeros([lora.rank, output], &device),
            bias: lora.has_bias.then(|| Tensor::zeros([output], &device)),
            magnitude: lora.has_magnitude.then(|| self.squares().sqrt()),
        };
        self.set_adapter(lora, name, seed, tensors);
    }

    /// Sets the adapter.
    pub(super) fn set_adapter(
        &mut self,
        lora: &LayerLora,
        name: &str,
        seed: u64,
        tensors: AdapterTensors,
    ) {
        let AdapterTensors { a, b, bias, magnitude } = tensors;
        let linear = |weight, bias: Option<Tensor<1>>| Linear {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
        };
        self.lora_A = Some(linear(a, None));
        self.lora_B = Some(linear(b, bias));
        self.lora_magnitude_vector =
            magnitude.map(|magnitude| Magnitude::new(magnitude, self.squares()));
        let (scale, dropout) = (lora.scale, lora.dropout);
        self.adapter = Some(Adapter { name: name.to_owned(), scale, dropout, seed });
    }

    /// Returns the adapter's changes of the weight, `[input, output]`, and of the bias.
    fn change(&self) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        let (a, b) = (self.lora_A.as_ref()?, self.lora_B.as_ref()?);
        let scale = self.adapter.as_ref()?.scale;
        let bias = b.bias.as_ref().map(|bias| bias.val() * scale);
        Some((a.weight.val().matmul(b.weight.val()) * scale, bias))
    }

    /// Merges the adapter into the weight.
    pub(super) fn merge(&mut self) {
        let Some((change, bias)) = self.change() else { return };
        let numbers = numbers_of(self.weight.as_ref(), self.encoded.as_ref(), MatrixRole::Linear);
        let mut merged = numbers + change;
        if let Some(magnitude) = &self.lora_magnitude_vector {
            merged = magnitude.scaled(merged);
        }
        self.weight = Some(Param::from_tensor(merged.detach()));
        if let Some(change) = bias {
            let bias = self.bias.take().map(|bias| bias.val());
            let bias = bias.map_or_else(|| change.clone(), |bias| bias + change.clone());
            self.bias = Some(Param::from_tensor(bias.detach()));
        }
        (self.lora_A, self.lora_B, self.lora_magnitude_vector) = (None, None, None);
        (self.encoded, self.adapter) = (None, None);
    }
}

impl Adapter {
    /// Returns the factors of the adapter's inputs: 0, or the factor that preserves the expectation.
    fn factors(&self, keys: &DropoutKeys) -> DropoutFactors {
        let kept = (1.0 / (1.0 - self.dropout)) as f32;
        // A draw uses 16 bits.
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
