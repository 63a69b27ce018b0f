//! DoRA (arXiv 2402.09353): `y = m / |W + s A B| (x W + s (x A) B) + b`, which trains the norm of each
//! output's weights separately from their direction. As in PEFT (and in section 4.3 of the paper), the
//! gradient does not flow through the norm in the denominator.

use super::{DropoutKeys, LoraLinear};
use crate::model::precision::{in_f32, like};
use crate::model::tensors::off_graph;
use crate::ops::{SharedInput, linear};
use burn::module::Param;
use burn::prelude::*;

/// Lower bound of the norms, which are denominators.
const LEAST: f32 = 1e-15;

/// DoRA's trained norms.
#[derive(Module, Debug)]
pub struct Magnitude {
    /// `[output]`.
    weight: Param<Tensor<1>>,
    /// Squared norm of each output's frozen weights, `[output]`, without gradient.
    #[module(skip)]
    squares: Tensor<1>,
    /// Factors of the outputs, `[output]`, precomputed for weights that do not change.
    #[module(skip)]
    fixed: Option<Tensor<1>>,
}

impl Magnitude {
    /// Creates the norms. `squares` has the squared norm of each output's frozen weights.
    pub(super) fn new(weight: Tensor<1>, squares: Tensor<1>) -> Self {
        let squares = off_graph(squares);
        Self { weight: Param::from_tensor(weight), squares, fixed: None }
    }

    pub(super) fn set_squares(&mut self, squares: Tensor<1>) {
        (self.squares, self.fixed) = (off_graph(squares), None);
    }

    /// Scales weights, `[input, output]`, to the trained norm of each output.
    pub(super) fn scaled(&self, weights: Tensor<2>) -> Tensor<2> {
        let lengths = weights.clone().square().sum_dim(0).clamp_min(LEAST * LEAST).sqrt();
        weights * (self.weight.val().unsqueeze::<2>() / lengths)
    }
}

impl LoraLinear {
    /// Returns the norm of each output's weights including the adapter, `[output]`, without gradient.
    /// Computed as `|w + s d|^2 = |w|^2 + 2 s w d + s^2 |d|^2` with `d = A b`, which needs neither `A B` nor
    /// dequantized weights.
    fn lengths(&self, magnitude: &Magnitude) -> Tensor<1> {
        let squares = magnitude.squares.clone();
        let parts = (&self.lora_A, &self.lora_B, &self.adapter);
        let (Some(a), Some(b), Some(adapter)) = parts else { return squares.sqrt() };
        let (a, b) = (a.weight.val().detach(), b.weight.val().detach());
        let of_rank = a.clone().transpose();
        let mixed = off_graph(linear(of_rank.clone(), self.matrix()).detach());
        let (a, b, of_rank) = (off_graph(a), off_graph(b), off_graph(of_rank));
        let sum = |product: Tensor<2>| product.sum_dim(0).squeeze_dim::<1>(0);
        let mixed = sum(in_f32(mixed) * b.clone());
        let square = sum(of_rank.matmul(a).matmul(b.clone()) * b);
        let scale = adapter.scale;
        (squares + mixed * (2.0 * scale) + square * (scale * scale)).clamp_min(LEAST * LEAST).sqrt()
    }

    /// Returns the factors of the outputs, `[output]`.
    fn output_scale(&self, magnitude: &Magnitude) -> Tensor<1> {
        let weight = magnitude.weight.val();
        let on_graph = |tensor: Tensor<1>| match weight.device().is_autodiff() {
            true => Tensor::from_inner(tensor),
            false => tensor,
        };
        match &magnitude.fixed {
            Some(fixed) => on_graph(fixed.clone()),
            None => weight.clone() / on_graph(self.lengths(magnitude)),
        }
    }

    /// Precomputes the factors of the outputs. The weights must not change afterwards.
    pub(in crate::model) fn fix_output_scale(&mut self) {
        let Some(magnitude) = &self.lora_magnitude_vector else { return };
        let fixed = off_graph(self.output_scale(magnitude));
        self.lora_magnitude_vector.iter_mut().for_each(|m| m.fixed = Some(fixed.clone()));
    }

    /// Returns the output. `inner` is the product of the input and A.
    pub(super) fn forward_dora(
        &self,
        magnitude: &Magnitude,
        input: &SharedInput,
        inner: Option<Tensor<2>>,
        dropout: Option<&DropoutKeys>,
    ) -> Tensor<2> {
        let y = input.linear(self.matrix_for(&input.tensor()));
        let scale: Tensor<2> = like(self.output_scale(magnitude), &y).unsqueeze();
        // In training, dropout also applies to the input of the scaled part of the layer, as in PEFT.
        let (y, scaled) = match self.factors(dropout) {
            None => (None, y),
            Some(factors) => {
                let x = input.tensor();
                let left = x.clone() * factors.tensor(&x);
                let z = linear(left, self.matrix_for(&x));
                (Some(y - z.clone()), z)
            }
        };
        let scaled = match inner {
            Some(inner) => self.with_adapter(scaled, inner),
            None => scaled,
        };
        let scaled = scaled * scale;
        self.with_bias(match y {
            Some(y) => y + scaled,
            None => scaled,
        })
    }
}
