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
//! | [`train`] | the [`Learner`](train::Learner), checkpoints, progress, metrics, plots |
//! | [`eval`] | final answers extracted, compared and counted |
//! | [`recipe`] | all of it in one call: a configuration in, a run directory out |
//! | [`study`] | the learnability-gap experiment: students, mixtures, seeds, a report |
//! | `teacher` | teachers behind servers or in folders, and pairs of their answers; a judge (feature `teacher`) |
//! | `hub` | models from the Hugging Face Hub (feature `hub`) |
//!
//! No function outside [`ops`] and [`device`] names a backend; everything takes a Burn `Device`.
//! The library prints progress to standard error and nothing else.
//!
//! # A program
//!
//! ```
//! use mixdistill::data::{
//!     Encoded, Join, MixDistillation, MixedRows, MixtureConfig, Pairs, PlainTemplate, Source,
//!     TextTokenizer, TooLong, arith,
//! };
//! use mixdistill::model::DecoderConfig;
//! use mixdistill::train::{Learner, StopFlag, Surroundings, TrainConfig};
//! use std::sync::Arc;
//!
//! # fn main() -> mixdistill::Result<()> {
//! // Two teachers' answers to the same problems; `Source::read` takes them from files.
//! let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 40, 0, 1);
//! let problems = || corpus.train.iter().enumerate();
//! let long = Source::new("long", problems().map(|(id, p)| p.long_record(id)).collect());
//! let short = Source::new("short", problems().map(|(id, p)| p.short_record(id)).collect());
//! let (pairs, mut ledger) = Pairs::join(vec![long, short], Join::Inner)?;
//!
//! // Tokens, with the answer and its end token trained; what does not fit is in the ledger.
//! let words = arith::vocabulary();
//! let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str))?;
//! let template = PlainTemplate::default();
//! let encoded = Encoded::encode(&pairs, &tokenizer, &template, 512, TooLong::Drop, &|_| {})?;
//! let encoded = Arc::new(encoded);
//! let pairs = Arc::new(encoded.fitting(&pairs, &mut ledger));
//!
//! // One answer for each problem, a fifth of them long.
//! let lengths = Some(Arc::new(encoded.lengths()));
//! let mixture = MixDistillation::new(pairs, MixtureConfig::long_short(0.2), lengths)?;
//! println!("{ledger}\n{}", mixture.report());
//! assert_eq!(mixture.report().sources[0].rows, 8);
//!
//! // A student, and a few steps of training.
//! let device = mixdistill::device::by_name("auto")?.autodiff();
//! let vocab_size = tokenizer.vocabulary_size();
//! let model = DecoderConfig { vocab_size, hidden_size: 32, ..Default::default() };
//! let config = TrainConfig { steps: Some(3), learning_rate: 1e-3, ..Default::default() };
//! let mut learner = Learner::new(model.init(1, &device)?, config)?;
//! let outcome = learner.fit(
//!     &mut MixedRows::new(mixture, encoded),
//!     Surroundings {
//!         held_out: &[],
//!         grader: None,
//!         observer: &mut (),
//!         stop: &StopFlag::default(),
//!         checkpoints: None,
//!     },
//! )?;
//! assert_eq!(outcome.step, 3);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub mod data;
pub mod device;
pub mod error;
pub mod eval;
mod files;
#[cfg(feature = "hub")]
pub mod hub;
pub mod model;
pub mod ops;
mod random;
pub mod recipe;
pub mod study;
#[cfg(feature = "teacher")]
pub mod teacher;
pub mod train;

pub use error::{Error, Place, Result};

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
