//! The sum of the squares of a tensor's elements, in one pass.

#[cfg(feature = "fusion")]
use super::backends::wide;
use super::backends::{dispatched, for_ndarray, kernel_trait, widen};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{Slice, Tensor};

kernel_trait! {
    /// On plain backend tensors.
    trait SumOfSquaresKernel {
        /// `[1]`, in f32 (f64 for f64).
        #[fusion(meta = |x| TensorSpec::new([1].into(), wide(x.dtype).into()))]
        fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
            portable::<Self>(x)
        }
    }
}

for_ndarray! { SumOfSquaresKernel }

/// Elements that may be summed in one chain.
///
/// A backend may sum all elements of a tensor in one loop of one unit, which in f32 loses digits with
/// every element; Mesa's software driver for Vulkan ends such a loop after 65,536 rounds, whatever
/// is left.
const CHAIN: usize = 4096;

fn portable<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = widen::<B>(x);
    sum::<B>(B::float_mul(x.clone(), x))
}

/// The sums of chains of elements, then of those sums.
fn sum<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let len = x.shape().num_elements();
    if len <= CHAIN {
        return B::float_sum(x);
    }
    let whole = len - len % CHAIN;
    let x = B::float_reshape(x, [len].into());
    let part = |from: usize, to: usize| B::float_slice(x.clone(), &[Slice::from(from..to)]);
    let chains = if whole == len { x.clone() } else { part(0, whole) };
    let chains = B::float_reshape(chains, [whole / CHAIN, CHAIN].into());
    let sums = sum::<B>(B::float_sum_dim(chains, 1));
    if whole == len { sums } else { B::float_add(sums, B::float_sum(part(whole, len))) }
}

// Of gradients, which are off the autodiff graph.
dispatched! {
    []
    trait SumOfSquaresOps {
        fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
            <Self as SumOfSquaresKernel>::squares(x)
        }
    }
}

/// The sum of the squares of all elements, in f32 (f64 for f64); flex sums in f64.
///
/// # Shapes
/// `x`: any, off the autodiff graph; result: `[1]`.
///
/// # Panics
/// If `x` is on an autodiff device.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as SumOfSquaresOps>::sum_of_squares(x.into_dispatch()))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, simd_fn};
    use super::*;
    use burn::backend::Flex;
    use rayon::prelude::*;

    /// Elements in one parallel task.
    const BLOCK: usize = 32 * 1024;

    impl SumOfSquaresKernel for Flex {
        fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
            if !kernel::all_f32([&x]) {
                return portable::<Self>(x);
            }
            let x = kernel::contiguous(x);
            let sums: Vec<f64> = x.storage::<f32>().par_chunks(BLOCK).map(block_sum).collect();
            kernel::from_vec(vec![sums.iter().sum::<f64>() as f32], [1])
        }
    }

    simd_fn! {
        fn block_sum(values: &[f32]) -> f64 {
            /// Short enough that f32 lanes lose nothing that matters.
            const SHORT: usize = 1024;
            values.chunks(SHORT).map(|x| f64::from(kernel::dot(x, x))).sum()
        }
    }
}
