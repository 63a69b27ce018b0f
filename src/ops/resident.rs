//! Long-lived tensors, such as weights, in the memory that kernels read fastest.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};

/// Creates a tensor from values. On flex, tensors of the size of weights are copied to huge pages, if the
/// system has them, which saves 5% of the time per token in generation. On other backends, this is
/// `Tensor::from_data`.
///
/// # Panics
/// If the shape has a different number of elements.
pub(crate) fn resident<const D: usize>(
    values: Vec<f32>,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(data(values, shape.into(), device), device)
}

/// Returns a bf16 matrix in memory like that of [`resident`].
pub(crate) fn resident_bf16(values: &[f32], shape: [usize; 2], device: &Device) -> Tensor<2> {
    let options = (device, DType::BF16);
    #[cfg(feature = "flex")]
    if values.len() >= LEAST
        && values.len().is_multiple_of(2)
        && device.clone().inner() == Device::flex()
    {
        let bits = |value: f32| u32::from(half::bf16::from_f32(value).to_bits());
        let pairs = values.as_chunks::<2>().0.iter();
        let pairs = pairs.map(|[low, high]| f32::from_bits(bits(*low) | bits(*high) << 16));
        let data = super::kernel::Buffer::lasting_of(values.len() / 2, pairs);
        return Tensor::from_data(data.into_data(shape.into(), DType::BF16), options);
    }
    Tensor::from_data(TensorData::new(values.to_vec(), shape), options)
}

/// Returns 32-bit words in memory like that of [`resident`].
pub(super) fn words(values: Vec<i32>, count: usize, device: &Device) -> TensorData {
    #[cfg(feature = "flex")]
    if values.len() >= LEAST && device.clone().inner() == Device::flex() {
        let bits = values.iter().map(|word| f32::from_bits(*word as u32));
        let buffer = super::kernel::Buffer::lasting_of(values.len(), bits);
        return buffer.into_data([count].into(), DType::I32);
    }
    let _ = device;
    TensorData::new(values, [count])
}

/// Copying smaller tensors does not pay.
#[cfg(feature = "flex")]
const LEAST: usize = 16 * 1024;

#[cfg(feature = "flex")]
fn data(values: Vec<f32>, shape: Shape, device: &Device) -> TensorData {
    if values.len() >= LEAST && device.clone().inner() == Device::flex() {
        super::kernel::Buffer::lasting_copy(&values).into_data(shape, DType::F32)
    } else {
        TensorData::new(values, shape)
    }
}

#[cfg(not(feature = "flex"))]
fn data(values: Vec<f32>, shape: Shape, _: &Device) -> TensorData {
    TensorData::new(values, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_are() {
        let values: Vec<f32> = (0..60_000).map(|i| i as f32).collect();
        let large = vec![3.0; 3_000_000];
        for device in crate::device::compiled() {
            let device = crate::device::by_name(device).unwrap();
            for device in [device.clone(), device.autodiff()] {
                let tensor: Tensor<2> = resident(values.clone(), [300, 200], &device);
                assert_eq!(tensor.device(), device);
                let sum = resident::<1>(large.clone(), [3_000_000], &device).sum();
                assert_eq!(sum.try_into_scalar::<f32>().unwrap(), 9e6);
                // Written in place, and read through a view.
                let turned = tensor.clone().swap_dims(0, 1).slice([3..4, 10..12]);
                assert_eq!(turned.into_data().try_to_vec::<f32>().unwrap(), [2003.0, 2203.0]);
                assert_eq!((tensor + 0.0).into_data().try_to_vec::<f32>().unwrap(), values);
            }
        }
    }
}
