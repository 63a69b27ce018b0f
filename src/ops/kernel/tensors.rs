//! Conversions between flex tensors and kernels.

use crate::ops::backends::cast;
use burn::backend::Flex;
use burn::tensor::{DType, FloatDType, Shape};
use burn_flex::FlexTensor;

/// Returns whether all tensors are f32, the only type that the kernels support.
pub(crate) fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Returns a row-major tensor that fills its whole buffer. The handle stays unique if the argument's was.
///
/// `storage` ignores offset and strides, so every kernel reads its inputs through this function.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    // `to_contiguous` may return a second handle to the same buffer; while the first one lives, `storage_mut`
    // would copy.
    let view = tensor.to_contiguous();
    drop(tensor);
    view
}

/// Like [`contiguous`], converted to f32.
pub(crate) fn in_f32(tensor: FlexTensor) -> FlexTensor {
    contiguous(cast::<Flex>(tensor, FloatDType::F32))
}

/// Wraps numbers as a row-major `f32` tensor.
pub(crate) fn from_vec(data: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let layout = burn_flex::Layout::contiguous(shape.into());
    FlexTensor::new(burn::tensor::Bytes::from_elems(data), layout, DType::F32)
}

/// Reads an integer tensor whose values must lie in `0..bound`.
///
/// # Panics
/// If a value is out of range; `what` names it in the message.
pub(crate) fn indices(tensor: FlexTensor, bound: usize, what: &str) -> Vec<usize> {
    let check = |(at, value): (usize, i64)| match usize::try_from(value) {
        Ok(index) if index < bound => index,
        _ => panic!("{what} {value} of token {at} is outside 0..{bound}"),
    };
    let tensor = contiguous(tensor);
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().iter().copied().enumerate().map(check).collect(),
        DType::I32 => {
            tensor.storage::<i32>().iter().map(|&i| i64::from(i)).enumerate().map(check).collect()
        }
        dtype => panic!("{what}: expected i32 or i64 indices, got {dtype:?}"),
    }
}
