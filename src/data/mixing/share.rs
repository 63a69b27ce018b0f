//! The unit of the weights of a mixture.

use serde::{Deserialize, Serialize};

/// What a weight is a share of, and how exactly it is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Share of rows, met exactly: counts by largest remainders, within one row of the weight. The seed
    /// decides which problems get which source.
    #[default]
    Exact,
    /// Share of rows, met in expectation: each problem's source is drawn at random.
    Bernoulli,
    /// Share of trained tokens, met as closely as whole rows allow.
    Tokens,
    /// Share of rows, met exactly, with the share that short pilot runs find before training (`pilots`).
    /// `mixture.weights` is ignored.
    Auto,
}
