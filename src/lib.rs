//! Mix Distillation on Burn.
#![warn(missing_docs)]

pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod model;
pub mod ops;
mod random;
pub mod recipe;
pub mod train;

pub use error::{Error, Place, Result};
