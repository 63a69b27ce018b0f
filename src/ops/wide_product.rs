//! Products of 16-bit matrices that return their f32 sums without rounding.

use super::backends::{for_each_backend_without_kernels, kernel_trait, wide, widen};
use burn::backend::TensorMetadata;
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;

kernel_trait! {
    /// Products of plain backend tensors.
    trait WideProductKernel {
        /// Computes `a b` in f32 (f64 for f64); `a` is `[rows, inner]`, `b` is `[inner, columns]`, of one
        /// type.
        #[fusion(meta = |a, b| {
            TensorSpec::new([a.shape[0], b.shape[1]].into(), wide(a.dtype).into())
        })]
        fn wide_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
            widen::<Self>(Self::float_matmul(a, b))
        }
    }
}

for_each_backend_without_kernels! { WideProductKernel }

/// Computes `a b` in f32 (f64 for f64). If that is already the type, this is the backend's own product.
pub(super) fn wide_product<B: WideProductKernel>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = a.dtype();
    if dtype == wide(dtype).into() { B::float_matmul(a, b) } else { B::wide_product(a, b) }
}

#[cfg(feature = "cube")]
mod cube {
    use super::super::cube::{CubeBackend, CubeTensor, product};
    use super::*;
    use burn::tensor::DType;

    impl WideProductKernel for CubeBackend {
        fn wide_product(a: CubeTensor, b: CubeTensor) -> CubeTensor {
            product(a, b, DType::F32)
        }
    }
}
