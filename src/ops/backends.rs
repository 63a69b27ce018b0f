//! Where an operation meets Burn's backends: the one list of them, and helpers for the bodies that
//! run on all of them.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType};

/// Declares a trait of one method that Burn's run-time `Dispatch` backend routes to the backend
/// its tensors live on, and gives every backend that the features compile in the same body.
///
/// An argument that is an enum or a struct of tensors has `#[extension_type]` in front.
///
/// `[Autodiff]` in front routes tracked tensors to `Autodiff<B, C>`, whose implementation the
/// operation writes itself. With an empty `[]` only tensors off the autodiff graph are accepted.
///
/// There is no selector for `Fusion`: with that feature, `Cube` *is* the fusing backend
/// (`Fusion<CubeBackend>`), and a body made of backend operations is recorded into its stream like
/// any other code.
///
/// The backends are those of this crate's features. A backend that is only enabled in Burn itself
/// makes the operation panic with "Backend not supported", so enable it here.
macro_rules! dispatched {
    (
        [$($autodiff:ident)?]
        $(#[$meta:meta])*
        trait $name:ident {
            fn $method:ident(
                $($(#[$attribute:meta])? $arg:ident: $ty:ident $(<$of:tt>)?),* $(,)?
            ) -> $output:tt $(<$parameter:tt>)? $body:block
        }
    ) => {
        #[burn::backend::backend_extension(
            Flex: cfg(feature = "flex"),
            NdArray: cfg(feature = "ndarray"),
            Cube: cfg(feature = "cube"),
            $($autodiff)?
        )]
        $(#[$meta])*
        pub(crate) trait $name: burn::backend::Backend {
            // Burn deprecated the whole of burn-ndarray, so naming the backend warns.
            #[cfg_attr(feature = "ndarray", allow(deprecated))]
            fn $method($($(#[$attribute])? $arg: $ty $(<$of>)?),*) -> $output $(<$parameter>)?;
        }

        $crate::ops::backends::for_each_backend! {
            $name { fn $method($($arg: $ty $(<$of>)?),*) -> $output $(<$parameter>)? $body }
        }
    };
}
pub(crate) use dispatched;

/// Declares a kernel trait that has kernels of its own for GPUs: `CubeBackend` implements it, and with the
/// feature `fusion` what it implements is an operation of the fusing backend, whose results `fusion(meta = ..)`
/// describes. Nothing calls the implementation for `Dispatch` that Burn's macro adds.
macro_rules! kernel_trait {
    ($(#[$meta:meta])* trait $name:ident $(: $also:ident)? { $($items:tt)* }) => {
        #[burn::backend::backend_extension(
            Flex: cfg(feature = "flex"),
            Cube: cfg(feature = "cube"),
            Fusion: cfg(feature = "fusion")
        )]
        $(#[$meta])*
        pub(crate) trait $name: burn::backend::Backend $(+ $also)? { $($items)* }
    };
}
pub(crate) use kernel_trait;

/// Implements a trait with the bodies that it has for flex and ndarray.
macro_rules! for_each_backend_without_kernels {
    ($name:ident) => {
        #[cfg(feature = "flex")]
        impl $name for burn::backend::Flex {}
        $crate::ops::backends::for_ndarray! { $name }
    };
}
pub(crate) use for_each_backend_without_kernels;

/// Implements a trait for ndarray, which has no kernels of its own.
macro_rules! for_ndarray {
    ($name:ident) => {
        #[cfg(feature = "ndarray")]
        // Burn deprecated the whole of burn-ndarray, so naming the backend warns.
        #[allow(deprecated)]
        impl $name for burn::backend::NdArray {}
    };
}
pub(crate) use for_ndarray;

/// Implements a trait alike for every backend that the features compile in.
macro_rules! for_each_backend {
    ($name:ident { $($items:tt)* }) => {
        #[cfg(feature = "flex")]
        impl $name for burn::backend::Flex { $($items)* }

        $crate::ops::backends::for_each_portable_backend! { $name { $($items)* } }
    };
}
pub(crate) use for_each_backend;

/// The same for the backends that have no kernels of their own: all but flex.
macro_rules! for_each_portable_backend {
    ($name:ident { $($items:tt)* }) => {
        #[cfg(feature = "ndarray")]
        // Burn deprecated the whole of burn-ndarray, so naming the backend warns.
        #[allow(deprecated)]
        impl $name for burn::backend::NdArray { $($items)* }

        #[cfg(feature = "cube")]
        impl $name for burn::backend::Cube { $($items)* }
    };
}
pub(crate) use for_each_portable_backend;

/// What the fusing backend is told of one number for each row of `x`.
#[cfg(feature = "fusion")]
pub(crate) fn per_row(
    x: &burn::backend::fusion::custom::TensorSpec,
) -> burn::backend::fusion::custom::TensorSpec {
    let shape = [x.shape[0], 1].into();
    burn::backend::fusion::custom::TensorSpec::new(shape, wide(x.dtype).into())
}

/// The type in which sums over elements of `dtype` are taken: f64 for f64, f32 for all others.
pub(crate) fn wide(dtype: DType) -> FloatDType {
    if dtype == DType::F64 { FloatDType::F64 } else { FloatDType::F32 }
}

/// `tensor` in the type `dtype`; itself if it has that type already.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if FloatDType::from(tensor.dtype()) == dtype { tensor } else { B::float_cast(tensor, dtype) }
}

/// `tensor` in the type in which sums are taken.
pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = wide(tensor.dtype());
    cast::<B>(tensor, dtype)
}
