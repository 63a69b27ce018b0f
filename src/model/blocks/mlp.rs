//! The feed-forward part of a block.

use super::checks::{check_number, check_parameters, check_size};
use crate::error::Result;
use crate::model::lora::{DropoutKeys, LoraLinear};
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::swiglu;
use burn::prelude::*;

/// The shape of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside.
    pub intermediate_size: usize,
    /// Standard deviation of the initial weights of `gate_proj` and `up_proj`.
    pub initializer_range: f64,
    /// The same of `down_proj`, which writes to the residual stream.
    pub output_initializer_range: f64,
}

impl MlpConfig {
    /// Initial weights have the standard deviation 0.02.
    pub fn new(hidden_size: usize, intermediate_size: usize) -> Self {
        let (initializer_range, output_initializer_range) = (0.02, 0.02);
        Self { hidden_size, intermediate_size, initializer_range, output_initializer_range }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) with the first that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_size("hidden_size", self.hidden_size)?;
        check_size("intermediate_size", self.intermediate_size)?;
        check_number("initializer_range", self.initializer_range)?;
        check_number("output_initializer_range", self.output_initializer_range)?;
        check_parameters(3 * self.hidden_size as u128 * self.intermediate_size as u128)
    }

    /// Random weights; the same seed gives the same weights on every backend.
    ///
    /// # Errors
    /// As [`MlpConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Mlp> {
        self.validate()?;
        self.build(&mut RandomWeights { seed, device }, "")
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
        Ok(Mlp {
            gate_proj: linear("gate_proj", [width, inner], std)?,
            up_proj: linear("up_proj", [width, inner], std)?,
            down_proj: linear("down_proj", [inner, width], output)?,
        })
    }
}

/// SwiGLU feed-forward: `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    pub(in crate::model) gate_proj: LoraLinear,
    pub(in crate::model) up_proj: LoraLinear,
    pub(in crate::model) down_proj: LoraLinear,
}

impl Mlp {
    /// # Shapes
    /// `[tokens, hidden_size]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), None);
        let up = self.up_proj.forward(x, None);
        self.down_proj.forward(swiglu(gate, up), None)
    }

    /// `residual` with the output for `x` added, in one operation.
    pub(super) fn forward_add(
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
