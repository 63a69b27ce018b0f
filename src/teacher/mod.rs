//! Servers that speak OpenAI's chat completions: a judge of answers.

mod client;

pub use client::{ChatClient, ChatConfig, Completion};
