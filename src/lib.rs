//! Mix Distillation on Burn.
#![warn(missing_docs)]

pub mod data;
pub mod error;
pub mod ops;
mod random;

pub use error::{Error, Place, Result};
