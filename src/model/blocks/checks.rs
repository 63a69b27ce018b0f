//! Range checks for the model's settings.

use crate::error::{Error, Result};

/// Returns the error for an invalid setting of the model.
pub(in crate::model) fn refuse<T>(key: &str, what: String, hint: &str) -> Result<T> {
    Err(Error::config(format!("model.{key}"), what, hint))
}

/// Refuses sizes that no model has.
pub(in crate::model) fn check_size(key: &str, value: usize) -> Result<()> {
    /// Larger than in any model; a typo must not allocate terabytes.
    const LARGEST: usize = 1 << 24;
    if value == 0 {
        return refuse(key, "it is 0".into(), "Use a positive number");
    }
    if value > LARGEST {
        return refuse(key, format!("{value} is too large"), "Use at most 16777216");
    }
    Ok(())
}

/// Refuses models with more parameters than the crate is made for.
pub(in crate::model) fn check_parameters(parameters: u128) -> Result<()> {
    /// The crate targets models of up to 3 billion parameters.
    const MOST: u128 = 16_000_000_000;
    if parameters > MOST {
        let what = format!("the sizes give {parameters} parameters");
        return refuse("hidden_size", what, "Choose a model of at most 16 billion parameters");
    }
    Ok(())
}

/// Refuses values that are not positive and finite.
pub(in crate::model) fn check_number(key: &str, value: f64) -> Result<()> {
    if !value.is_finite() || value <= 0.0 {
        return refuse(key, format!("it is {value}"), "Use a positive number");
    }
    Ok(())
}
