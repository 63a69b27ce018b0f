//! The feed-forward part of a block.

use super::checks::{check_number, check_parameters, check_size};
use crate::error::Result;
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::{Activation, gated};
use burn::prelude::*;

/// Configuration of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the hidden layer.
    pub intermediate_size: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Whether the gate and up projections are one matrix, `gate_up_proj` (Phi-3).
    pub fused: bool,
    /// Standard deviation of the initial weights of the gate and up projections.
    pub initializer_range: f64,
    /// The same for `down_proj`, which writes to the residual stream.
    pub output_initializer_range: f64,
}

impl MlpConfig {
    /// Returns SwiGLU with separate projections and initial weights with a standard deviation of 0.02.
    pub fn new(hidden_size: usize, intermediate_size: usize) -> Self {
        Self {
            hidden_size,
            intermediate_size,
            activation: Activation::Silu,
            fused: false,
            initializer_range: 0.02,
            output_initializer_range: 0.02,
        }
    }

    /// Checks the sizes and numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("hidden_size", self.hidden_size)?;
        check_size("intermediate_size", self.intermediate_size)?;
        check_number("initializer_range", self.initializer_range)?;
        check_number("output_initializer_range", self.output_initializer_range)?;
        check_parameters(3 * self.hidden_size as u128 * self.intermediate_size as u128)
    }

    /// Initializes random weights. A seed gives the same weights on every backend.
    ///
    /// # Errors
    /// See [`MlpConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Mlp> {
        self.validate()?;
        self.build(&mut RandomWeights::new(seed, device), "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<Mlp> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let (std, output) = (self.initializer_range, self.output_initializer_range);
        let mut linear = |part: &str, sizes, deviation| {
            LoraLinear::build(source, &path(prefix, part), sizes, deviation, false)
        };
        let mut input = |part: &str, columns: usize, is_there: bool| {
            is_there.then(|| linear(part, [width, columns], std)).transpose()
        };
        Ok(Mlp {
            gate_proj: input("gate_proj", inner, !self.fused)?,
            up_proj: input("up_proj", inner, !self.fused)?,
            gate_up_proj: input("gate_up_proj", 2 * inner, self.fused)?,
            down_proj: linear("down_proj", [inner, width], output)?,
            activation: self.activation,
        })
    }
}

/// Gated feed-forward: `down(activation(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    gate_proj: Option<LoraLinear>,
    up_proj: Option<LoraLinear>,
    /// Replaces those two.
    gate_up_proj: Option<LoraLinear>,
    down_proj: LoraLinear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// Applies the feed-forward part to each token.
    ///
    /// # Shapes
    /// `x` and result: `[tokens, hidden_size]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.forward_to(x, None, None)
    }

    /// Like [`Mlp::forward`], plus `residual`, if given, in one operation.
    pub(super) fn forward_to(
        &self,
        x: Tensor<2>,
        residual: Option<Tensor<2>>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        let [gate, up] = self.gate_and_up(x, dropout);
        match residual {
            Some(residual) => {
                self.down_proj.forward_gated_add([gate, up], self.activation, residual, dropout)
            }
            None => self.down_proj.forward(gated(gate, up, self.activation), dropout),
        }
    }

    fn gate_and_up(&self, x: Tensor<2>, dropout: Option<&DropoutKeys>) -> [Tensor<2>; 2] {
        match (&self.gate_up_proj, &self.gate_proj, &self.up_proj) {
            (Some(both), _, _) => {
                let both = both.forward(x, dropout);
                let inner = both.dims()[1] / 2;
                [0, inner].map(|start| both.clone().narrow(1, start, inner))
            }
            (None, Some(gate), Some(up)) => LoraLinear::forward_all([gate, up], x, dropout),
            _ => unreachable!("the projections are one or two"),
        }
    }

    /// Returns the linear layers, by name.
    pub(in crate::model) fn linear_layers_mut(&mut self) -> Vec<(&'static str, &mut LoraLinear)> {
        let layers = [
            ("gate_proj", self.gate_proj.as_mut()),
            ("up_proj", self.up_proj.as_mut()),
            ("gate_up_proj", self.gate_up_proj.as_mut()),
            ("down_proj", Some(&mut self.down_proj)),
        ];
        layers.into_iter().filter_map(|(name, layer)| Some((name, layer?))).collect()
    }
}
