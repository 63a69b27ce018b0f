//! Models and datasets of the Hugging Face Hub, and models pushed there.
//!
//! `owner/name@revision` comes into the usual cache and is a folder, or files, like any other from
//! there on. The cache is the one of Hugging Face's own tools, so what they fetched is not fetched
//! again. The variables `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean
//! what they mean there.

mod cache;
mod client;
mod data_card;
mod dataset;
mod fetch;
mod model;
mod names;
mod push;
mod push_files;
mod splits;

pub use client::HubOptions;
pub use dataset::{FetchedDataset, HubDataset};
pub use model::HubModel;
pub use push::{PushOptions, Pushed, push};
