//! Downloads models and datasets from the Hugging Face Hub, and pushes models to it (feature `hub`).
//!
//! [`HubModel`] and [`HubDataset`] download into the cache that Hugging Face's own tools use, so nothing that
//! they downloaded is downloaded again, and return the local paths. [`push()`] uploads a model, an adapter,
//! or a GGUF file in one commit. The environment variables `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`,
//! `HF_TOKEN`, and `HF_HUB_OFFLINE` have their usual meaning; [`HubOptions`] overrides them.
//!
//! ```no_run
//! use mixdistill::context::Context;
//! use mixdistill::hub::{HubDataset, HubModel};
//!
//! # fn main() -> mixdistill::Result<()> {
//! let context = Context::default();
//! let folder = HubModel::parse("HuggingFaceTB/SmolLM2-135M-Instruct")?.fetch(&context)?;
//! println!("the model is in {}", folder.display());
//!
//! let fetched = HubDataset::parse("openai/gsm8k:main:train")?.fetch(&context)?;
//! println!("{} has the files {:?}", fetched.dataset, fetched.files);
//! # Ok(())
//! # }
//! ```

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
