//! The precision of a model's computation.
//!
//! ```text
//!              weights           activations     norms, softmax, loss     gradients of weights
//! f32          f32               f32             f32                      f32
//! bf16         f32, cast to      bf16            f32                      f32
//!              bf16 where used;
//!              frozen ones bf16
//! ```

use crate::device;
use crate::error::{Error, Result};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// Precision of activations and matrix products. Trained weights, optimizer moments, and the loss are always
/// f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, with 8 significant bits. Halves the memory of activations and of frozen matrices. Faster on
    /// hardware that supports it; a CPU emulates it, which is slower than f32.
    Bf16,
}

impl Precision {
    /// Returns the type of activations and frozen matrices.
    pub(super) fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }

    /// Checks that a device supports the precision.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not.
    pub(super) fn check(self, device: &Device) -> Result<()> {
        check_support(self == Self::F32 || device.supports_dtype(self.dtype()))
    }
}

/// Refuses bf16 if it is not supported, and lists the devices that support it.
fn check_support(supported: bool) -> Result<()> {
    if supported {
        return Ok(());
    }
    let compiled = device::compiled().join(", ");
    let hint = format!(
        "Use f32, or another device: cuda, metal, rocm, and flex can, ndarray cannot, vulkan and wgpu mostly \
         cannot (compiled in: {compiled})"
    );
    Err(Error::config("precision", "this device cannot compute in bf16", hint))
}

/// Casts a tensor to the type of another. Its gradient keeps its own type.
pub(super) fn like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    in_type(x, other.dtype())
}

/// Casts a tensor to f32.
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
