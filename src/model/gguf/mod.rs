//! Models as GGUF files, which llama.cpp and Ollama read.
//!
//! ```text
//! families   what llama.cpp has, as a table      settings, read_settings      a model's shape
//! names      of tensors                          vocabulary, read_vocabulary  a tokenizer
//! tensors    what is done to their numbers       export, adapter, modelfile   what is written
//! model      a file in place of a folder         pre_tokenizers, fingerprints
//! stored     blocks in a frozen base
//! ```
//!
//! Read and written here is what llama.cpp's own converter writes; sources are its `conversion/` and
//! `src/models/`, in the version that llama-cpp-python 0.3.36 has.

mod adapter;
mod export;
mod families;
mod fingerprints;
mod model;
mod modelfile;
mod names;
mod pre_tokenizers;
mod read_settings;
mod read_vocabulary;
mod sentence_piece;
mod settings;
mod stored;
mod tensors;
mod vocabulary;

pub use adapter::export_gguf_adapter;
pub use export::{GgufOptions, GgufReport, export_gguf};
pub(super) use model::GgufModel;
pub(super) use stored::StoredBlocks;
