//! Connects operations to Burn's backends: the list of backends, and helpers for bodies that run on all of
//! them.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType};

/// Declares a trait with one method that Burn's run-time `Dispatch` backend routes to the backend of its
/// tensors, and implements it with the same body for every backend that the features enable.
///
/// An argument that is an enum or struct of tensors needs `#[extension_type]` in front.
///
/// `[Autodiff]` in front routes tracked tensors to `Autodiff<B, C>`, for which the operation provides its own
/// implementation. With an empty `[]`, only tensors off the autodiff graph are accepted.
///
/// There is no selector for `Fusion`: with that feature, `Cube` *is* the fusion backend
/// (`Fusion<CubeBackend>`), and a body made of backend operations is recorded into its stream like any other
/// code.
///
/// The backends are those of this crate's features. A backend that is enabled only in Burn makes the
/// operation panic with "Backend not supported", so enable it in this crate.
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
            // All of burn-ndarray is deprecated, so naming the backend warns.
            #[cfg_attr(feature = "ndarray", allow(deprecated))]
            fn $method($($(#[$attribute])? $arg: $ty $(<$of>)?),*) -> $output $(<$parameter>)?;
        }

        $crate::ops::backends::for_each_backend! {
            $name { fn $method($($arg: $ty $(<$of>)?),*) -> $output $(<$parameter>)? $body }
        }
    };
}
pub(crate) use dispatched;

/// Declares a kernel trait with its own GPU kernels. `CubeBackend` implements it. With the feature `fusion`,
/// the implementation is an operation of the fusion backend, whose results `fusion(meta = ..)` describes.
/// Nothing calls the `Dispatch` implementation that Burn's macro adds.
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

/// Implements a trait with its default bodies for flex and ndarray.
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
        // All of burn-ndarray is deprecated, so naming the backend warns.
        #[allow(deprecated)]
        impl $name for burn::backend::NdArray {}
    };
}
pub(crate) use for_ndarray;

/// Implements a trait identically for every backend that the features enable.
macro_rules! for_each_backend {
    ($name:ident { $($items:tt)* }) => {
        #[cfg(feature = "flex")]
        impl $name for burn::backend::Flex { $($items)* }

        $crate::ops::backends::for_each_portable_backend! { $name { $($items)* } }
    };
}
pub(crate) use for_each_backend;

/// The same for backends without their own kernels: all except flex.
macro_rules! for_each_portable_backend {
    ($name:ident { $($items:tt)* }) => {
        #[cfg(feature = "ndarray")]
        // All of burn-ndarray is deprecated, so naming the backend warns.
        #[allow(deprecated)]
        impl $name for burn::backend::NdArray { $($items)* }

        #[cfg(feature = "cube")]
        impl $name for burn::backend::Cube { $($items)* }
    };
}
pub(crate) use for_each_portable_backend;

/// Describes one number per row of `x` to the fusion backend.
#[cfg(feature = "fusion")]
pub(crate) fn per_row(
    x: &burn::backend::fusion::custom::TensorSpec,
) -> burn::backend::fusion::custom::TensorSpec {
    let shape = [x.shape[0], 1].into();
    burn::backend::fusion::custom::TensorSpec::new(shape, wide(x.dtype).into())
}

/// Returns the type of sums over elements of `dtype`: f64 for f64, f32 for all others.
pub(crate) fn wide(dtype: DType) -> FloatDType {
    if dtype == DType::F64 { FloatDType::F64 } else { FloatDType::F32 }
}

/// Converts `tensor` to the type `dtype`, if necessary.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if FloatDType::from(tensor.dtype()) == dtype { tensor } else { B::float_cast(tensor, dtype) }
}

/// Converts `tensor` to the type of sums.
pub(crate) fn widen<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = wide(tensor.dtype());
    cast::<B>(tensor, dtype)
}
