//! Backends to test, numbers to test with, and the comparisons.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

/// A backend in one element type, and how far its results may be off.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub device: Device,
    pub dtype: DType,
    /// Largest difference, in units of the largest magnitude in the tensor.
    pub tolerance: f64,
}

// Which of these is used depends on the features.

/// f32 rounds at 6e-8, and the sums of these tests have up to some hundred terms whose errors add
/// up like a random walk; the worst seen is 1e-6.
#[allow(dead_code)]
pub const F32: f64 = 5e-6;
/// The finite differences that f64 gradients are held to are good to a few 1e-10; what the
/// operations themselves add is 1e-15.
#[allow(dead_code)]
pub const F64: f64 = 5e-9;
/// Autotune may choose TF32 for products of f32 matrices on CUDA, which rounds at 5e-4.
#[allow(dead_code)]
pub const TF32: f64 = 5e-3;

/// Every backend that the features compile in; those on the CPU in f64 too, where flex runs the
/// portable bodies and not its kernels.
pub fn cases() -> Vec<Case> {
    #[allow(unused_mut)]
    let mut cases = vec![];
    #[allow(unused_variables)]
    let mut add = |name, device: Device, dtype, tolerance| {
        cases.push(Case { name, device, dtype, tolerance });
    };
    #[cfg(feature = "flex")]
    {
        add("flex f32", Device::flex(), DType::F32, F32);
        add("flex f64", Device::flex(), DType::F64, F64);
    }
    #[cfg(feature = "ndarray")]
    #[allow(deprecated)]
    {
        add("ndarray f32", Device::ndarray(), DType::F32, F32);
        add("ndarray f64", Device::ndarray(), DType::F64, F64);
    }
    #[cfg(feature = "cuda")]
    add("cuda", Device::cuda(0), DType::F32, TF32);
    #[cfg(feature = "rocm")]
    add("rocm", Device::rocm(0), DType::F32, TF32);
    #[cfg(feature = "vulkan")]
    add("vulkan", Device::vulkan(burn::tensor::DeviceKind::DefaultDevice), DType::F32, F32);
    #[cfg(feature = "metal")]
    add("metal", Device::metal(burn::tensor::DeviceKind::DefaultDevice), DType::F32, F32);
    #[cfg(all(feature = "wgpu", not(feature = "vulkan"), not(feature = "metal")))]
    add("wgpu", Device::wgpu(burn::tensor::DeviceKind::DefaultDevice), DType::F32, F32);
    cases
}

/// Numbers of about unit size that f32 holds exactly, the same in every run.
pub fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    (0..len).map(|_| f64::from((2.0 * (uniform() + uniform() + uniform())) as f32)).collect()
}

impl Case {
    pub fn tensor<const D: usize>(&self, values: &[f64], shape: [usize; D]) -> Tensor<D> {
        let device = self.device.clone();
        Tensor::from_data(TensorData::new(values.to_vec(), shape), (&device, self.dtype))
    }

    pub fn ints(&self, values: &[i64]) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &self.device)
    }

    /// The same case with an autodiff device.
    pub fn autodiff(&self) -> Self {
        Self { device: self.device.clone().autodiff(), ..self.clone() }
    }

    /// Panics if the values are farther apart than the tolerance.
    pub fn assert_close(&self, what: &str, found: &[f64], expected: &[f64]) {
        let error = error(found, expected);
        println!("{} {what}: {error:.1e}", self.name);
        assert!(error <= self.tolerance, "{} {what}: off by {error:e}", self.name);
    }
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Largest difference over the largest magnitude, infinite if there is a NaN or an infinity.
pub fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    if found.iter().chain(expected).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let scale = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let scale = if scale == 0.0 { 1.0 } else { scale };
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f64::max)
}

/// Another factor for each element of an output, so that no gradient hides behind another.
fn factors(len: usize) -> Vec<f64> {
    (0..len).map(|i| ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0).collect()
}

/// The output of an operation, and the gradient of each input of `sum(output * factors)`.
pub fn run<const N: usize, const D: usize>(
    case: &Case,
    inputs: &[(Vec<f64>, [usize; 2]); N],
    op: impl Fn([Tensor<2>; N]) -> Tensor<D>,
) -> (Vec<f64>, [Vec<f64>; N]) {
    let case = case.autodiff();
    let inputs = inputs.each_ref().map(|(x, shape)| case.tensor(x, *shape).require_grad());
    let out = op(inputs.clone());
    let shape = out.dims();
    let factors = case.tensor(&factors(shape.iter().product()), shape);
    let grads = (out.clone() * factors).sum().backward();
    let grads = inputs.map(|x| values(x.grad(&grads).expect("every input is tracked")));
    (values(out.inner()), grads)
}

/// Holds an operation to a function in f64, and its gradients to that function's finite
/// differences.
pub fn check_reference<const N: usize, const D: usize>(
    name: &str,
    inputs: [(Vec<f64>, [usize; 2]); N],
    case: &Case,
    op: impl Fn([Tensor<2>; N]) -> Tensor<D>,
    reference: impl Fn([&[f64]; N]) -> Vec<f64>,
) {
    let (out, grads) = run(case, &inputs, op);
    let mut points = inputs.map(|(x, _)| x);
    let expected = reference(points.each_ref().map(Vec::as_slice));
    case.assert_close(&format!("{name}, output"), &out, &expected);
    let factors = factors(expected.len());
    // The cube root of f64's rounding error balances the errors of rounding and of the difference.
    let step = 6e-6;
    for (input, grad) in grads.iter().enumerate() {
        let mut value = |i: usize, shift: f64| {
            let before = points[input][i];
            points[input][i] = before + shift;
            let out = reference(points.each_ref().map(Vec::as_slice));
            points[input][i] = before;
            out.iter().zip(&factors).map(|(x, factor)| x * factor).sum::<f64>()
        };
        let expected: Vec<f64> =
            (0..grad.len()).map(|i| (value(i, step) - value(i, -step)) / (2.0 * step)).collect();
        case.assert_close(&format!("{name}, gradient {input}"), grad, &expected);
    }
}

/// Holds an operation to a composition of Burn's own, forward and gradients.
pub fn check_composition<const N: usize, const D: usize>(
    name: &str,
    inputs: [(Vec<f64>, [usize; 2]); N],
    case: &Case,
    op: impl Fn([Tensor<2>; N]) -> Tensor<D>,
    composition: impl Fn([Tensor<2>; N]) -> Tensor<D>,
) {
    let (out, grads) = run(case, &inputs, op);
    let (expected_out, expected_grads) = run(case, &inputs, composition);
    case.assert_close(&format!("{name}, output, composition"), &out, &expected_out);
    for (input, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        case.assert_close(&format!("{name}, gradient {input}, composition"), grad, expected);
    }
}
