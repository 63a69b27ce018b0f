//! Root-mean-square normalization.

use super::checks::{check_number, check_size};
use crate::error::Result;
use crate::model::weight_source::{RandomWeights, WeightSource, path};
use crate::ops::{add_rms_norm, rms_norm};
use burn::module::Param;
use burn::prelude::*;

/// Configuration of an [`RmsNorm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormConfig {
    /// Number of values that are normalized together.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the scale is `1 + weight` instead of `weight` (Gemma).
    pub weight_plus_one: bool,
}

impl RmsNormConfig {
    /// Returns a norm over `width` values that scales by its weight and has an epsilon of 1e-5.
    pub fn new(width: usize) -> Self {
        Self { width, eps: 1e-5, weight_plus_one: false }
    }

    /// Initializes a norm with a scale of 1.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the size or the epsilon is out of range.
    pub fn init(&self, device: &Device) -> Result<RmsNorm> {
        check_size("hidden_size", self.width)?;
        check_number("rms_norm_eps", self.eps)?;
        self.build(&mut RandomWeights::new(0, device), "")
    }

    pub(in crate::model) fn build(
        &self,
        source: &mut impl WeightSource,
        prefix: &str,
    ) -> Result<RmsNorm> {
        let start = if self.weight_plus_one { 0.0 } else { 1.0 };
        let weight = source.vector(&path(prefix, "weight"), self.width, start)?;
        let weight = Param::from_tensor(weight);
        Ok(RmsNorm { weight, eps: self.eps, weight_plus_one: self.weight_plus_one })
    }
}

/// Root-mean-square normalization with a learned scale.
#[derive(Module, Debug)]
pub struct RmsNorm {
    weight: Param<Tensor<1>>,
    eps: f64,
    weight_plus_one: bool,
}

impl RmsNorm {
    /// Normalizes and scales each row.
    ///
    /// # Shapes
    /// `x` and result: `[rows, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.scale(), self.eps as f32)
    }

    /// Returns the sum, for the residual stream, and the normalized sum.
    pub(super) fn forward_sum(&self, x: Tensor<2>, added: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        add_rms_norm(x, added, self.scale(), self.eps as f32)
    }

    fn scale(&self) -> Tensor<1> {
        let weight = self.weight.val();
        if self.weight_plus_one { weight + 1.0 } else { weight }
    }

    /// Normalizes parts that are as wide as the weight, such as heads: `[tokens, parts * width]` to the same.
    pub(super) fn forward_parts(&self, x: Tensor<2>) -> Tensor<2> {
        let [tokens, total] = x.dims();
        let [width] = self.weight.dims();
        self.forward(x.reshape([tokens * total / width, width])).reshape([tokens, total])
    }
}
