//! The residual stream, to which each part of a block adds its output.

use super::rms_norm::RmsNorm;
use burn::prelude::*;

/// The residual stream between two parts: a value, and a pending addend. On GPUs, the next norm adds it
/// ([`RmsNorm::forward_sum`]).
pub(in crate::model) struct Stream {
    value: Tensor<2>,
    added: Option<Tensor<2>>,
}

impl Stream {
    pub(in crate::model) fn new(value: Tensor<2>) -> Self {
        Self { value, added: None }
    }

    /// Returns a stream with a pending addend.
    pub(super) fn with(value: Tensor<2>, added: Tensor<2>) -> Self {
        Self { value, added: Some(added) }
    }

    /// Returns the value, including the addend.
    pub(in crate::model) fn value(self) -> Tensor<2> {
        match self.added {
            Some(added) => self.value + added,
            None => self.value,
        }
    }

    /// Returns the value, and the normalized value.
    pub(super) fn normed(self, norm: Option<&RmsNorm>) -> (Tensor<2>, Tensor<2>) {
        match (self.added, norm) {
            (Some(added), Some(norm)) => norm.forward_sum(self.value, added),
            (added, norm) => {
                let value = Self { value: self.value, added }.value();
                let normed = match norm {
                    Some(norm) => norm.forward(value.clone()),
                    None => value.clone(),
                };
                (value, normed)
            }
        }
    }
}
