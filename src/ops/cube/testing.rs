//! Compares a GPU kernel with the same operation in f64 on the CPU, in each type that the device supports.

use super::{CubeBackend, CubeTensor};
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::{Backend, Flex};
use burn::tensor::{DType, TensorData};
use burn_cubecl::CubeDevice;
use burn_cubecl::ops::into_data_sync;
use burn_flex::FlexTensor;

/// Types, and the largest allowed difference relative to the largest magnitude.
pub const TYPES: [(DType, f64); 3] = [(DType::F32, 5e-6), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

/// Returns the types of [`TYPES`] that the device supports.
pub fn types() -> impl Iterator<Item = (DType, f64)> {
    let device = CubeDevice::default();
    TYPES.into_iter().filter(move |(dtype, _)| CubeBackend::supports_dtype(&device, *dtype))
}

/// The same numbers for both sides, rounded to the type.
#[derive(Clone)]
pub struct Input {
    values: Vec<f64>,
    shape: Vec<usize>,
}

impl Input {
    /// Numbers of about unit size times `scale`, the same in every run.
    pub fn new(seed: usize, shape: &[usize], scale: f64, dtype: DType) -> Self {
        let count: usize = shape.iter().product();
        let number = |i: usize| ((i * 7919 + seed * 1237) % 2003) as f64 / 1001.0 - 1.0;
        Self::of((0..count).map(|i| number(i) * scale).collect(), shape, dtype)
    }

    /// Returns the given numbers.
    pub fn of(values: Vec<f64>, shape: &[usize], dtype: DType) -> Self {
        let rounded = TensorData::new(values, shape.to_vec()).convert_dtype(dtype);
        Self { values: rounded.iter().collect(), shape: shape.to_vec() }
    }

    pub fn cube(&self, dtype: DType) -> CubeTensor {
        let data = TensorData::new(self.values.clone(), self.shape.clone()).convert_dtype(dtype);
        CubeBackend::float_from_data(data, &CubeDevice::default())
    }

    pub fn flex(&self) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(self.values.clone(), self.shape.clone()))
    }
}

/// Integers for both sides.
pub fn ints(values: &[i64], shape: &[usize]) -> (CubeTensor, FlexTensor) {
    let short: Vec<i32> = values.iter().map(|x| *x as i32).collect();
    let data = TensorData::new(short, shape.to_vec());
    let on_cube = CubeBackend::int_from_data(data, &CubeDevice::default());
    (on_cube, FlexTensor::from_data(TensorData::new(values.to_vec(), shape.to_vec())))
}

/// Panics if the tensors differ by more than `tolerance`.
pub fn assert_close(what: &str, found: CubeTensor, expected: FlexTensor, tolerance: f64) {
    let dtype = found.dtype;
    let found: Vec<f64> = into_data_sync(found).iter().collect();
    let expected: Vec<f64> = expected.into_data().iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}: the sizes differ");
    let largest = expected.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
    let far = found.iter().zip(&expected).map(|(a, b)| ((a - b) / largest).abs());
    let far = far.fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
    println!("{what}, {dtype:?}: {far:.1e}");
    assert!(far <= tolerance, "{what}, {dtype:?}: off by {far:e}");
}

/// The backend of the reference computation.
pub type Exact = Flex;
