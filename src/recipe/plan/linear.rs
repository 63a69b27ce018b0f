//! Memory and operations of linear attention; see [`GatedDeltaNetConfig`].

use super::activations::{Layer, MicroBatch};
use super::held::Held;
use crate::model::GatedDeltaNetConfig;
use crate::ops::DELTA_CHUNK as CHUNK;

impl Layer<'_> {
    /// Returns the layer's linear attention, if it has one.
    pub(super) fn linear(&self) -> Option<GatedDeltaNetConfig> {
        self.shape.linear_attention(self.number)
    }

    /// Returns what linear attention keeps for the backward pass: input and output of the convolution, the
    /// output of the rule and its normalized form, the gate, one number per head for the norm, and the inputs
    /// of the gates.
    pub(super) fn kept_by_linear(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        let values = self.activation(batch, linear.value_width());
        let product = if self.keeps_input("out_proj") { 1.0 } else { 0.0 };
        self.activation(batch, linear.channels()) * 2.0
            + values * (3.0 + product)
            + Held::values(batch.positions() * linear.num_value_heads) * 9.0
    }

    /// Returns the temporaries of its backward pass: the gradients of the gate and of its factor; of queries,
    /// keys, and values, once each and once as a part of the convolution's output; and of the convolution's
    /// input.
    pub(super) fn linear_backward(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        self.activation(batch, self.shape.hidden_size)
            + self.activation(batch, linear.value_width()) * 2.0
            + self.activation(batch, linear.channels()) * 4.0
    }

    /// Returns the temporaries of a forward pass that keeps nothing: input and output of the convolution,
    /// gate, and result.
    pub(super) fn linear_forward(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        self.activation(batch, self.shape.hidden_size)
            + self.activation(batch, linear.channels()) * 2.0
            + self.activation(batch, linear.value_width()) * 2.0
    }

    /// States and chunks of the rule: on a CPU, those of one sequence and key head in each thread; elsewhere,
    /// all at once.
    pub(super) fn linear_scratch(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        let (keys, values) = (linear.key_head_dim, linear.value_head_dim);
        let state = keys * values;
        let chunk = CHUNK * (8 * keys + 8 * values + 8 * CHUNK);
        if self.has_kernels {
            let group = linear.num_value_heads / linear.num_key_heads.max(1);
            let chunks = batch.longest.div_ceil(CHUNK);
            return Held::values((chunks + 2) * group * state + chunk) * self.threads as f64;
        }
        let chunks = batch.positions().div_ceil(CHUNK) + batch.rows;
        Held::values(chunks * linear.num_value_heads * (3 * state + chunk))
    }
}

/// Returns the number of floating-point operations of the rule per position in the forward pass: products
/// with states and within chunks.
pub(super) fn flops_of_rule(linear: &GatedDeltaNetConfig) -> f64 {
    let (keys, values) = (linear.key_head_dim as f64, linear.value_head_dim as f64);
    let of_head = 3.0 * keys * values + CHUNK as f64 * (2.0 * keys + values);
    2.0 * linear.num_value_heads as f64 * of_head
}
