//! What the weights of a mixture are shares of.

use serde::{Deserialize, Serialize};

/// What a weight is a share of, and how exactly it is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Of rows: largest-remainder counts; which problems is a seeded permutation.
    #[default]
    Exact,
    /// Of rows, in expectation: one draw for each problem.
    Bernoulli,
    /// Of trained tokens, as closely as whole rows allow. Needs [`Lengths`](super::Lengths).
    Tokens,
    /// Of rows, exact, where small pilots find the weights before training
    /// ([`propose_share`](crate::recipe::propose_share)). A mixture itself needs weights that are known.
    Auto,
}
