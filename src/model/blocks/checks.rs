//! Bounds of sizes and numbers that configurations give.

use crate::error::{Error, Result};

/// A setting of the model that cannot be used.
pub(in crate::model) fn refuse<T>(key: &str, what: String, hint: &str) -> Result<T> {
    Err(Error::config(format!("model.{key}"), what, hint))
}

/// Refuses sizes that no model has.
pub(in crate::model) fn check_size(key: &str, value: usize) -> Result<()> {
    /// Above any model in use; keeps a typing error from asking for terabytes.
    const LARGEST: usize = 1 << 24;
    if value == 0 {
        return refuse(key, "it is 0".into(), "Give a positive number");
    }
    if value > LARGEST {
        return refuse(key, format!("{value} is too large"), "At most 16777216");
    }
    Ok(())
}

/// Refuses sizes that together make more parameters than the crate is for.
pub(in crate::model) fn check_parameters(parameters: u128) -> Result<()> {
    /// The crate is for models of up to 3 billion parameters.
    const MOST: u128 = 16_000_000_000;
    if parameters > MOST {
        let what = format!("the sizes make {parameters} parameters");
        return refuse("hidden_size", what, "Choose a model of at most 16 billion");
    }
    Ok(())
}

/// Refuses what is no positive number.
pub(in crate::model) fn check_number(key: &str, value: f64) -> Result<()> {
    if !value.is_finite() || value <= 0.0 {
        return refuse(key, format!("it is {value}"), "Give a positive number");
    }
    Ok(())
}
