//! Generation of answers, token by token.
//!
//! ```text
//! answer  answers and what ends them           whole_rows  any model: recomputes rows for each token
//! model   the interface of a model             cached      decoders: caches keys and values
//! rows    the loop over a batch of rows        config      the settings
//! ```

mod answer;
mod cached;
mod config;
mod limits;
mod model;
mod rows;
mod whole_rows;

pub use answer::{EndReason, Generation, NewToken, StopConditions, TokenObserver};
pub use config::GenerateConfig;
pub use limits::TokenLimits;
pub use model::Generate;
