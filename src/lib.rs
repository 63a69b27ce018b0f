//! Mix Distillation on Burn: fine-tunes small language models on mixtures of reasoning traces.
//!
//! Small students (up to about 3B parameters) often learn less from long chains of thought than
//! from short answers; a mixture of 20 % long and 80 % short, with one answer for each problem, did
//! better than either in "Small Models Struggle to Learn from Strong Reasoners" (arXiv 2502.12143).
//! This crate builds such mixtures, trains on them and measures what came of it, with the same
//! code on CPU, CUDA, Vulkan, Metal and DX12.
//!
//! # The stages
//!
//! | module | what it does |
//! | --- | --- |
//! | [`data`] | records from files, paired by problem, mixed, encoded, batched |
//! | [`ops`] | differentiable operations with CPU kernels and portable bodies |
//! | [`model`] | a decoder-only transformer, adapters, generation, model folders |
//! | [`train`] | the [`Learner`](train::Learner), optimizers, checkpoints, metrics, plots |
//! | [`eval`] | final answers extracted, compared and counted; benchmarks |
//! | [`recipe`] | all of it in one call: a configuration in, a run directory out |
//! | [`settings`] | settings from files and single values: checked, explained, printed |
//! | [`study`] | the learnability-gap experiment: students, mixtures, seeds, a report |
//! | [`text`] | durations, tables and paragraphs as people read them |
//! | [`context`] | what long calls tell, and how they are stopped |
//! | `teacher` | teachers behind servers or in folders, and pairs of their answers; a judge (feature `teacher`) |
//! | [`gguf`] | the file format of llama.cpp |
//! | `hub` | models and datasets from the Hugging Face Hub, and students pushed there (feature `hub`) |
//! | `terminal` | events as bars and lines (feature `cli`) |
//!
//! [`prelude`] has the names that most programs need. The programs in `examples/` teach the rest, one
//! subject each; the program `mixdistill` (feature `cli`) is made of the same parts.
//!
//! No function outside [`ops`] and [`device`] names a backend; everything takes a Burn `Device`.
//! The library prints nothing: long calls take a [`Context`](context::Context) and tell it typed
//! events.
//!
//! # A program
//!
//! ```
//! use mixdistill::data::arith;
//! use mixdistill::prelude::*;
//! use std::sync::Arc;
//!
//! # fn main() -> Result<()> {
//! // Nobody is told what happens, and nobody stops it; `Context::new` takes who does.
//! let context = Context::default();
//!
//! // Two teachers' answers to the same problems; `Source::read` takes them from files.
//! let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 40, 0, 1);
//! let long = corpus.train.iter().enumerate().map(|(id, p)| p.long_record(id)).collect();
//! let short = corpus.train.iter().enumerate().map(|(id, p)| p.short_record(id)).collect();
//! let sources = vec![Source::new("long", long), Source::new("short", short)];
//! let (pairs, mut ledger) = Pairs::join(sources, Join::Inner)?;
//!
//! // Tokens, with the answer and its end token trained; what does not fit is in the ledger.
//! let words = arith::vocabulary();
//! let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str))?;
//! let template = PlainTemplate::default();
//! let limit = LengthLimit::drop_beyond(512);
//! let encoded = Arc::new(Encoded::encode(&pairs, &tokenizer, &template, limit, &context)?);
//! let pairs = Arc::new(encoded.fitting(&pairs, &mut ledger));
//!
//! // One answer for each problem, a fifth of them long.
//! let lengths = Some(Arc::new(encoded.lengths()));
//! let options = MixtureOptions { lengths, ..Default::default() };
//! let mixture = MixDistillation::new(pairs, MixtureConfig::long_short(0.2), options)?;
//! println!("{ledger}\n{}", mixture.report());
//! assert_eq!(mixture.report().sources[0].rows, 8);
//!
//! // A student, and a few steps of training.
//! let device = mixdistill::device::by_name("auto")?.autodiff();
//! let vocab_size = tokenizer.vocabulary_size();
//! let model = DecoderConfig { vocab_size, hidden_size: 32, ..Default::default() };
//! let config = TrainConfig { steps: Some(3), learning_rate: 1e-3, ..Default::default() };
//! let mut learner = Learner::new(model.init(1, &device)?, config)?;
//! let outcome = learner.fit(&mut MixedRows::new(mixture, encoded), FitOptions::default())?;
//! assert_eq!(outcome.step, 3);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod chart;
pub mod context;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod files;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod model;
pub mod ops;
mod part;
pub mod prelude;
mod random;
pub mod ranks;
pub mod recipe;
pub mod settings;
pub mod study;
#[cfg(feature = "teacher")]
pub mod teacher;
#[cfg(feature = "cli")]
pub mod terminal;
pub mod text;
pub mod train;

pub use error::{Error, Place, Result};
pub use part::Part;

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
