//! What linear attention holds and computes: see [`GatedDeltaNetConfig`].

use super::activations::{Layer, MicroBatch};
use super::held::Held;
use crate::model::GatedDeltaNetConfig;
use crate::ops::DELTA_CHUNK as CHUNK;

impl Layer<'_> {
    /// Its linear attention, where it has that.
    pub(super) fn linear(&self) -> Option<GatedDeltaNetConfig> {
        self.shape.linear_attention(self.number)
    }

    /// What the inside of linear attention keeps for the backward pass: input and output of the convolution, output
    /// of the rule, that normalized, and the gate; a number for each head's norm, and what the gates are made of.
    pub(super) fn kept_by_linear(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        let values = self.activation(batch, linear.value_width());
        let product = if self.keeps_input("out_proj") { 1.0 } else { 0.0 };
        self.activation(batch, linear.channels()) * 2.0
            + values * (3.0 + product)
            + Held::values(batch.positions() * linear.num_value_heads) * 9.0
    }

    /// What its backward pass has in hand: the gradients of the gate and what it is multiplied with, those of
    /// queries, keys and values, each once more as a part of the convolution's output, and that of its input.
    pub(super) fn linear_backward(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        self.activation(batch, self.shape.hidden_size)
            + self.activation(batch, linear.value_width()) * 2.0
            + self.activation(batch, linear.channels()) * 4.0
    }

    /// What it has in hand where nothing is kept: input and output of the convolution, gate and result.
    pub(super) fn linear_forward(&self, linear: &GatedDeltaNetConfig, batch: &MicroBatch) -> Held {
        self.activation(batch, self.shape.hidden_size)
            + self.activation(batch, linear.channels()) * 2.0
            + self.activation(batch, linear.value_width()) * 2.0
    }

    /// States and chunks in the rule's hands: on the CPU in each thread those of one sequence and key head,
    /// elsewhere of all at once.
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

/// Floating-point operations of the rule for each position, forward: products with states and within chunks.
pub(super) fn flops_of_rule(linear: &GatedDeltaNetConfig) -> f64 {
    let (keys, values) = (linear.key_head_dim as f64, linear.value_head_dim as f64);
    let of_head = 3.0 * keys * values + CHUNK as f64 * (2.0 * keys + values);
    2.0 * linear.num_value_heads as f64 * of_head
}
