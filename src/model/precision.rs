//! The type of numbers that a model computes in.
//!
//! ```text
//!              weights           activations     norms, softmax, loss     gradients of weights
//! f32          f32               f32             f32                      f32
//! bf16         f32, cast to      bf16            f32                      f32
//!              bf16 where used;
//!              frozen ones bf16
//! ```

use super::decoder::DecoderLm;
use super::lora::LoraLinear;
use crate::device;
use crate::error::{Error, Result};
use burn::module::Module;
use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// What matrix products are computed in. Trained weights, optimizer moments and the loss are f32
/// with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with 8 significant ones (bfloat16): half the memory of activations and of frozen
    /// matrices. Faster where the hardware has it; a CPU emulates it, which is slower than f32.
    Bf16,
}

impl DecoderLm {
    /// The model computing in this precision. Frozen matrices of linear layers are kept in it;
    /// trained weights stay f32.
    ///
    /// # Errors
    /// [`Error::Config`] where the device cannot compute in it.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        let dtype = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(FloatDType::BF16),
        };
        if let Some(dtype) = dtype {
            check_support(self.device().supports_dtype(dtype))?;
        }
        self.compute = dtype;
        let stored = dtype.unwrap_or(FloatDType::F32);
        for (_, layer) in self.linear_layers_mut() {
            layer.store_frozen(stored);
        }
        Ok(self)
    }

    /// The type of its activations.
    pub(super) fn activation_type(&self) -> DType {
        self.compute.map_or(DType::F32, DType::from)
    }

    /// What the model computes in.
    pub fn precision(&self) -> Precision {
        match self.compute {
            Some(_) => Precision::Bf16,
            None => Precision::F32,
        }
    }
}

/// Refuses bf16 where a device does not compute in it, and says which do.
fn check_support(supported: bool) -> Result<()> {
    if supported {
        return Ok(());
    }
    let compiled = device::compiled().join(", ");
    let hint = format!(
        "cuda, metal, rocm and flex can, ndarray cannot, vulkan and wgpu mostly cannot (compiled in: \
         {compiled}); or use f32"
    );
    Err(Error::config("precision", "this device cannot compute in bf16", hint))
}

impl LoraLinear {
    fn store_frozen(&mut self, dtype: FloatDType) {
        if self.weight.val().is_require_grad() || self.weight.val().dtype() == DType::from(dtype) {
            return;
        }
        let frozen = self.weight.clone().map(|weight| weight.detach().cast(dtype));
        self.weight = frozen.no_grad();
    }
}

/// A tensor in the type of another, with a gradient in its own.
pub(super) fn like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    in_type(x, other.dtype())
}

/// A tensor in f32.
pub(super) fn in_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    in_type(x, DType::F32)
}

fn in_type<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_device_that_cannot_is_refused_with_those_that_can() {
        assert!(super::check_support(true).is_ok());
        let error = super::check_support(false).unwrap_err().to_string();
        assert!(error.contains("cannot compute in bf16") && error.contains("cuda"), "{error}");
    }
}
