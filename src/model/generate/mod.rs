//! Answers from a model: tokens drawn one by one until something ends the answer.
//!
//! ```text
//! answer  what an answer is, what ends it      whole_rows  any model: each row anew for each token
//! model   what is asked of a model             cached      a decoder: keys and values are kept
//! rows    the loop, batch by batch             sample      from scores to the next token
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
