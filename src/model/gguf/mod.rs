//! Models as GGUF files, for llama.cpp and Ollama.
//!
//! ```text
//! families   llama.cpp's families                settings, read_settings      the configuration
//! names      names of tensors                    vocabulary, read_vocabulary  the tokenizer
//! tensors    changes to tensors                  export, adapter, modelfile   written files
//! model      a file in place of a folder         pre_tokenizers, fingerprints pre-tokenizers
//! stored     blocks in a frozen base model
//! ```
//!
//! The format is that of llama.cpp's converter. Sources: `conversion/` and `src/models/` of llama.cpp, in the
//! version of llama-cpp-python 0.3.36.

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
