//! Tensors that stay, such as weights, in the memory that the kernels read fastest.

use burn::tensor::{Device, Shape, Tensor, TensorData};

/// A tensor of these values. On flex those of weights' size are copied to large pages, where the
/// system has them, which saves a twentieth of a token's time in generation; elsewhere this is
/// `Tensor::from_data`.
///
/// # Panics
/// If the shape has not as many elements.
pub(crate) fn resident<const D: usize>(
    values: Vec<f32>,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(data(values, shape.into(), device), device)
}

#[cfg(feature = "flex")]
fn data(values: Vec<f32>, shape: Shape, device: &Device) -> TensorData {
    /// Smaller ones cost less than their copies.
    const LEAST: usize = 16 * 1024;
    if values.len() >= LEAST && device.clone().inner() == Device::flex() {
        super::kernel::Buffer::lasting_copy(&values).into_data(shape)
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
                // Written in place, and as a view.
                let turned = tensor.clone().swap_dims(0, 1).slice([3..4, 10..12]);
                assert_eq!(turned.into_data().try_to_vec::<f32>().unwrap(), [2003.0, 2203.0]);
                assert_eq!((tensor + 0.0).into_data().try_to_vec::<f32>().unwrap(), values);
            }
        }
    }
}
