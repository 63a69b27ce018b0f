//! Sums of squares of several tensors, each computed in one pass, in one tensor that needs only one read.

use super::backends::{cast, dispatched, for_ndarray, kernel_trait, wide, widen};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{DType, Device, Slice, Tensor};

/// Elements per sum.
const OF_SUM: usize = 64 * 1024;

/// Returns the number of sums for a number of elements.
fn sums_for(elements: usize) -> usize {
    elements.div_ceil(OF_SUM).max(1)
}

kernel_trait! {
    /// Sums of squares on plain backend tensors.
    trait SumOfSquaresKernel {
        /// Writes the sums for `x` to `sums` `[n]`, starting at `at`. They add up to the sum of all squares.
        #[fusion(dtype = sums, shape = sums)]
        fn squares(
            x: FloatTensor<Self>,
            sums: FloatTensor<Self>,
            at: usize,
        ) -> FloatTensor<Self> {
            portable::<Self>(x, sums, at)
        }
    }
}

for_ndarray! { SumOfSquaresKernel }

/// Maximum number of elements in one chain of additions.
///
/// A backend may sum a whole tensor in one loop of one unit, which in f32 loses precision with every element.
/// Mesa's software Vulkan driver also aborts such a loop after 65,536 iterations.
const CHAIN: usize = 4096;

/// Puts the total in the first sum and leaves the others at zero.
fn portable<B: Backend>(x: FloatTensor<B>, sums: FloatTensor<B>, at: usize) -> FloatTensor<B> {
    let x = widen::<B>(x);
    let all = cast::<B>(sum::<B>(B::float_mul(x.clone(), x)), sums.dtype().into());
    B::float_slice_assign(sums, &[Slice::from(at..at + 1)], all)
}

/// Sums chains of elements, then the sums of the chains.
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

// For gradients, which are off the autodiff graph.
dispatched! {
    []
    trait SumOfSquaresOps {
        fn squares_at(
            x: FloatTensor<Self>,
            sums: FloatTensor<Self>,
            at: usize,
        ) -> FloatTensor<Self> {
            <Self as SumOfSquaresKernel>::squares(x, sums, at)
        }
    }
}

/// Sums of squares of several tensors on one device.
#[derive(Default)]
pub struct SumsOfSquares {
    /// Device and type of the sums.
    options: Option<(Device, DType)>,
    tensors: Vec<Deferred>,
    /// Total number of sums.
    count: usize,
}

/// Writes the sums of one tensor to its place.
type Deferred = Box<dyn FnOnce(Tensor<1>) -> Tensor<1>>;

impl SumsOfSquares {
    /// Adds a tensor, which must be off the autodiff graph.
    pub fn add<const D: usize>(&mut self, x: Tensor<D>) {
        self.options.get_or_insert_with(|| (x.device(), wide(x.dtype()).into()));
        let at = self.count;
        self.count += sums_for(x.shape().num_elements());
        self.tensors.push(Box::new(move |sums| {
            let (x, sums) = (x.into_dispatch(), sums.into_dispatch());
            Tensor::from_dispatch(<Dispatch as SumOfSquaresOps>::squares_at(x, sums, at))
        }));
    }

    /// Returns one or more sums per tensor, in order, in f32 (f64 if the first tensor is f64). Together they
    /// are the sum of all squares. `None` if there are no tensors.
    ///
    /// # Panics
    /// If the tensors are on several devices or on an autodiff device.
    pub fn sums(self) -> Option<Tensor<1>> {
        let (device, dtype) = self.options?;
        let sums = Tensor::zeros([self.count], (&device, dtype));
        Some(self.tensors.into_iter().fold(sums, |sums, write| write(sums)))
    }
}

/// Returns the sum of the squares of all elements, in f32 (f64 for f64 input). Flex adds in f64.
///
/// # Shapes
/// `x`: any, off the autodiff graph; result: `[1]`.
///
/// # Panics
/// If `x` is on an autodiff device.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let mut squares = SumsOfSquares::default();
    squares.add(x);
    squares.sums().expect("there is a tensor").sum()
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, simd_fn};
    use super::*;
    use burn::backend::Flex;
    use rayon::prelude::*;

    /// Elements per parallel task.
    const BLOCK: usize = 32 * 1024;

    impl SumOfSquaresKernel for Flex {
        fn squares(x: FloatTensor<Self>, sums: FloatTensor<Self>, at: usize) -> FloatTensor<Self> {
            if !kernel::all_f32([&x, &sums]) {
                return portable::<Self>(x, sums, at);
            }
            let (x, mut sums) = (kernel::contiguous(x), kernel::contiguous(sums));
            let blocks: Vec<f64> = x.storage::<f32>().par_chunks(BLOCK).map(block_sum).collect();
            sums.storage_mut::<f32>()[at] = blocks.iter().sum::<f64>() as f32;
            sums
        }
    }

    simd_fn! {
        fn block_sum(values: &[f32]) -> f64 {
            /// Short enough for f32 lanes to be accurate.
            const SHORT: usize = 1024;
            values.chunks(SHORT).map(|x| f64::from(kernel::dot(x, x))).sum()
        }
    }
}
