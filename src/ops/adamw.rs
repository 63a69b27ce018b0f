//! AdamW whose update is one parallel in-place pass over each parameter, with the semantics and defaults of
//! PyTorch's `torch.optim.AdamW`.
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.

use super::backends::{cast, dispatched, for_ndarray, kernel_trait, wide};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::optim::{AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, FloatDType, Tensor};

/// Factors of one update, including the bias corrections. They are f64 so that each is rounded once:
/// `1 - beta_2` with a rounded `beta_2` would be off by 5e-5.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    beta_1: f64,
    beta_2: f64,
    /// `lr / (1 - beta_1^t)`
    step_size: f64,
    /// `1 / sqrt(1 - beta_2^t)`
    root_correction: f64,
    epsilon: f64,
    /// `1 - lr * weight_decay`
    decay: f64,
    /// Multiplies the gradient before everything else.
    grad_scale: f64,
}

/// The parameter, first moment, and second moment, before or after an update.
pub(super) type Updated<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

kernel_trait! {
    /// The update on plain backend tensors of equal shape. Moments are f32 (f64 with an f64 gradient).
    trait AdamWKernel {
        /// Returns the new parameter, first moment, and second moment.
        #[fusion(meta = |param, _grad, m, v, _factors| (param.clone(), m.clone(), v.clone()))]
        fn adamw_update(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            moment_1: FloatTensor<Self>,
            moment_2: FloatTensor<Self>,
            factors: Factors,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            portable_update::<Self>(param, grad, moment_1, moment_2, factors)
        }
    }
}

for_ndarray! { AdamWKernel }

pub(super) fn portable_update<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    factors: Factors,
) -> Updated<B> {
    let (dtype, wide) = (param.dtype(), FloatDType::from(moment_1.dtype()));
    let (param, grad) = (cast::<B>(param, wide), cast::<B>(grad, wide));
    let scale = |x, factor: f64| B::float_mul_scalar(x, factor.into());
    let grad = if factors.grad_scale == 1.0 { grad } else { scale(grad, factors.grad_scale) };
    let squared = B::float_mul(grad.clone(), grad.clone());
    let m = B::float_add(scale(moment_1, factors.beta_1), scale(grad, 1.0 - factors.beta_1));
    let v = B::float_add(scale(moment_2, factors.beta_2), scale(squared, 1.0 - factors.beta_2));
    let root = scale(B::float_sqrt(v.clone()), factors.root_correction);
    let root = B::float_add_scalar(root, factors.epsilon.into());
    let update = scale(B::float_div(m.clone(), root), factors.step_size);
    let param = B::float_sub(scale(param, factors.decay), update);
    (cast::<B>(param, dtype.into()), m, v)
}

// Updates happen off the autodiff graph.
dispatched! {
    []
    trait AdamWOps {
        fn adamw_step(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            moment_1: FloatTensor<Self>,
            moment_2: FloatTensor<Self>,
            factors: Factors,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            <Self as AdamWKernel>::adamw_update(param, grad, moment_1, moment_2, factors)
        }
    }
}

/// Adam with decoupled weight decay.
///
/// For gradient `g` at step `t` (from 1), with both moments 0 at the start:
///
/// ```text
/// m = beta_1 m + (1 - beta_1) g
/// v = beta_2 v + (1 - beta_2) g^2
/// parameter = (1 - lr weight_decay) parameter
///           - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
/// ```
///
/// The factors are computed in f64. Moments are f32 even for bf16 parameters. The defaults are PyTorch's;
/// Burn's own AdamW has epsilon 1e-5 and weight decay 1e-4. Weight decay applies to every parameter, so put
/// norms and biases into a separate group without it.
///
/// Source: arXiv 1711.05101.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rate of the first moment per step, 0.9 by default.
    pub beta_1: f64,
    /// Decay rate of the second moment per step, 0.999 by default.
    pub beta_2: f64,
    /// Added to the square root of the second moment, 1e-8 by default.
    pub epsilon: f64,
    /// Fraction of a parameter that is removed per step, in units of the learning rate; 1e-2 by default.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 }
    }
}

impl AdamW {
    /// Creates an optimizer for a whole module.
    pub fn init(self) -> ModuleOptimizer {
        self.into()
    }

    pub(super) fn factors(&self, lr: f64, time: usize, grad_scale: f64) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powi(time as i32);
        Factors {
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            step_size: lr / correction(self.beta_1),
            root_correction: correction(self.beta_2).sqrt().recip(),
            epsilon: self.epsilon,
            decay: 1.0 - lr * self.weight_decay,
            grad_scale,
        }
    }

    /// Makes one update with the gradient multiplied by `grad_scale`, as for clipping. The parameter and the
    /// gradient must be off the autodiff graph.
    ///
    /// # Panics
    /// If the shapes of the parameter, the gradient, and the state's moments differ.
    pub fn update<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        grad_scale: f64,
        state: Option<AdaptiveMomentumState<D>>,
    ) -> (Tensor<D>, AdaptiveMomentumState<D>) {
        let mut state = state.unwrap_or_else(|| {
            let zeros = || grad.zeros_like().cast(wide(grad.dtype()));
            AdaptiveMomentumState::new(0, zeros(), zeros())
        });
        for (what, dims) in [
            ("gradient", grad.dims()),
            ("first moment", state.moment_1.dims()),
            ("second moment", state.moment_2.dims()),
        ] {
            assert_eq!(tensor.dims(), dims, "AdamW: the shapes of parameter and {what} differ");
        }
        state.time += 1;
        let (param, moment_1, moment_2) = <Dispatch as AdamWOps>::adamw_step(
            tensor.into_dispatch(),
            grad.into_dispatch(),
            state.moment_1.into_dispatch(),
            state.moment_2.into_dispatch(),
            self.factors(lr, state.time, grad_scale),
        );
        state.moment_1 = Tensor::from_dispatch(moment_1);
        state.moment_2 = Tensor::from_dispatch(moment_2);
        (Tensor::from_dispatch(param), state)
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    /// Like [`AdamW::update`] with the unscaled gradient.
    ///
    /// # Panics
    /// See [`AdamW::update`].
    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (tensor, state) = self.update(lr, tensor, grad, 1.0, state);
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
pub(super) mod flex {
    use super::super::kernel::{self, SharedMut, simd_fn};
    use super::*;
    use burn::backend::Flex;

    /// Elements per parallel task.
    const BLOCK: usize = 32 * 1024;

    impl AdamWKernel for Flex {
        fn adamw_update(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            moment_1: FloatTensor<Self>,
            moment_2: FloatTensor<Self>,
            factors: Factors,
        ) -> Updated<Self> {
            if !kernel::all_f32([&param, &grad, &moment_1, &moment_2]) {
                return portable_update::<Self>(param, grad, moment_1, moment_2, factors);
            }
            let grad = kernel::contiguous(grad);
            let grads = grad.storage::<f32>();
            let mut outputs = [param, moment_1, moment_2].map(kernel::contiguous);
            // In place if nothing else holds a tensor, otherwise on a copy.
            let shared = outputs.each_mut().map(|t| SharedMut::new(t.storage_mut::<f32>()));
            kernel::par_blocks(grads.len(), BLOCK, |block| {
                // SAFETY: the blocks are disjoint.
                let [param, m, v] = shared.map(|all| unsafe { all.slice(block.clone()) });
                update_block(param, &grads[block], m, v, factors);
            });
            let [param, moment_1, moment_2] = outputs;
            (param, moment_1, moment_2)
        }
    }

    simd_fn! {
        fn update_block(
            params: &mut [f32],
            grads: &[f32],
            m: &mut [f32],
            v: &mut [f32],
            factors: Factors,
        ) {
            update(params, grads, m, v, factors);
        }
    }

    /// Updates slices of equal length, for functions that are compiled for several instruction sets.
    #[inline(always)]
    pub(in super::super) fn update(
        params: &mut [f32],
        grads: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        factors: Factors,
    ) {
        let [beta_1, rest_1] = [factors.beta_1 as f32, (1.0 - factors.beta_1) as f32];
        let [beta_2, rest_2] = [factors.beta_2 as f32, (1.0 - factors.beta_2) as f32];
        let [decay, step_size] = [factors.decay as f32, factors.step_size as f32];
        let [correction, epsilon] = [factors.root_correction as f32, factors.epsilon as f32];
        let grad_scale = factors.grad_scale as f32;
        for (((param, grad), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            let grad = grad * grad_scale;
            *m = *m * beta_1 + grad * rest_1;
            *v = *v * beta_2 + grad * grad * rest_2;
            *param = *param * decay - step_size * *m / (v.sqrt() * correction + epsilon);
        }
    }
}
