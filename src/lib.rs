//! Fine-tuning small language models on mixtures of long and short reasoning traces, on [Burn](burn).
//!
//! Small students (up to about 3B parameters) often learn less from long chains of thought than from short answers.
//! A mixture of 20% long and 80% short answers, with one answer per problem, beat both in "Small Models Struggle to
//! Learn from Strong Reasoners" (arXiv 2502.12143). This crate builds such mixtures, trains on them, and measures the
//! result. The same code is built for CPU, CUDA, Vulkan, Metal, and DX12; so far it has run on CPUs, and on a software
//! driver for Vulkan.
//!
//! # The whole way
//!
//! From two teachers' answers to a trained student in a folder that transformers, vLLM, and this crate can load:
//!
//! ```
//! use mixdistill::data::arith;
//! use mixdistill::eval::{AnswerKind, Question, ask};
//! use mixdistill::model::{LoadOptions, SaveFolder, TextInterface, TextModel};
//! use mixdistill::prelude::*;
//! use std::sync::Arc;
//!
//! # fn main() -> Result<()> {
//! // Long calls report progress to a context. This one has no observer.
//! let context = Context::default();
//!
//! // Two teachers' answers to the same problems. `Source::read` reads them from files.
//! let corpus = arith::ArithCorpus::generate(&arith::ArithConfig::default(), 40, 0, 1);
//! let long = corpus.train.iter().enumerate().map(|(id, p)| p.long_record(id)).collect();
//! let short = corpus.train.iter().enumerate().map(|(id, p)| p.short_record(id)).collect();
//! let sources = vec![Source::new("long", long), Source::new("short", short)];
//! let (pairs, mut ledger) = Pairs::join(sources, Join::Inner)?;
//!
//! // Encode them. Loss applies to the answer and its end token only. The ledger counts rows that do not fit.
//! let words = arith::vocabulary();
//! let tokenizer = TextTokenizer::builtin(words.iter().map(String::as_str))?;
//! let template = PlainTemplate::default();
//! let limit = LengthLimit::drop_beyond(512);
//! let encoded = Arc::new(Encoded::encode(&pairs, &tokenizer, &template, limit, &context)?);
//! let pairs = Arc::new(encoded.fitting(&pairs, &mut ledger));
//!
//! // Mix: one answer per problem, exactly a fifth of them long.
//! let lengths = Some(Arc::new(encoded.lengths()));
//! let options = MixtureOptions { lengths, ..Default::default() };
//! let mixture = MixDistillation::new(pairs, MixtureConfig::long_short(0.2), options)?;
//! println!("{ledger}\n{}", mixture.report());
//! assert_eq!(mixture.report().sources[0].rows, 8);
//!
//! // Train a student from random weights for a few steps.
//! let device = mixdistill::device::by_name("auto")?.autodiff();
//! let vocab_size = tokenizer.vocabulary_size();
//! let model = DecoderConfig { vocab_size, hidden_size: 32, ..Default::default() };
//! let config = TrainConfig { steps: Some(3), learning_rate: 1e-3, ..Default::default() };
//! let mut learner = Learner::new(model.init(1, &device)?, config)?;
//! let outcome = learner.fit(&mut MixedRows::new(mixture, encoded), FitOptions::default())?;
//! assert_eq!(outcome.step, 3);
//! let student = learner.into_model();
//!
//! // Ask it a problem, and grade the answer.
//! let end_tokens = [tokenizer.end_token()];
//! let text = TextInterface { tokenizer: &tokenizer, template: &template, end_tokens: &end_tokens };
//! let question =
//!     Question { problem: "What is 3 + 4?".into(), reference: "7".into(), ..Default::default() };
//! let generate = GenerateConfig { max_new_tokens: 8, ..Default::default() };
//! let answers = ask(&student, &text, &[question], AnswerKind::LastNumber, &generate, &context)?;
//! println!("correct: {}", answers[0].correct);
//!
//! // Save it with its tokenizer and chat template, and load it again.
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("student");
//! let layout = template.to_jinja(&tokenizer, false);
//! let how = SaveFolder {
//!     end_tokens: &end_tokens,
//!     chat_template: Some(&layout),
//!     ..SaveFolder::new(&tokenizer)
//! };
//! student.save(&path, &how)?;
//! let name = path.display().to_string();
//! let loaded = TextModel::load(&name, &LoadOptions::default(), &context)?;
//! assert_eq!(loaded.text_interface().tokenizer.vocabulary_size(), vocab_size);
//! # Ok(())
//! # }
//! ```
//!
//! [`recipe::run`] does all of this in one call, with checkpoints, resume, grading, and reports. The program
//! `mixdistill` (feature `cli`) is built on the same public API.
//!
//! # The modules
//!
//! | module | purpose | main types |
//! | --- | --- | --- |
//! | [`data`] | read records, pair them by problem, mix, encode, batch | [`Source`](data::Source), [`Pairs`](data::Pairs), [`MixDistillation`](data::MixDistillation), [`MixedRows`](data::MixedRows) |
//! | [`model`] | a decoder-only transformer of eleven families, adapters, generation, model folders | [`DecoderConfig`](model::DecoderConfig), [`DecoderLm`](model::DecoderLm), [`LoraConfig`](model::LoraConfig), [`TextModel`](model::TextModel) |
//! | [`train`] | the training loop, optimizer, checkpoints, metrics | [`Learner`](train::Learner), [`TrainConfig`](train::TrainConfig), [`CheckpointStore`](train::CheckpointStore) |
//! | [`eval`] | extract, compare, and grade answers; benchmarks; statistics | [`ask`](eval::ask), [`evaluate`](eval::evaluate()), [`Scores`](eval::Scores) |
//! | [`recipe`] | a whole run: settings in, run directory out | [`RunConfig`](recipe::RunConfig), [`run`](recipe::run()), [`Summary`](recipe::Summary) |
//! | [`study`] | students x arms x seeds, with intervals and a report | [`StudyConfig`](study::StudyConfig), [`study`](study::study()) |
//! | `teacher` (feature `teacher`) | training pairs from teachers behind servers or in folders; a judge | `MakePairsConfig`, `make_pairs` |
//! | `hub` (feature `hub`) | models and datasets of the Hugging Face Hub | `HubModel`, `HubDataset`, `push` |
//! | [`gguf`] | the file format of llama.cpp | [`GgufFile`](gguf::GgufFile) |
//! | [`settings`] | settings from defaults, files, and single values; explained and checked | [`Layers`](settings::Layers) |
//! | [`context`] | progress events, and how to stop a long call | [`Context`](context::Context), [`Observer`](context::Observer), [`StopFlag`](context::StopFlag) |
//! | [`ops`] | differentiable operations with hand-written gradients and kernels | [`causal_attention`](ops::causal_attention()), [`linear_cross_entropy`](ops::linear_cross_entropy()) |
//! | [`ranks`] | training on several devices and machines | [`Communicator`](ranks::Communicator) |
//! | [`device`] | Burn devices by backend name | [`by_name`](device::by_name) |
//! | `terminal` (feature `cli`) | progress bars for a terminal | `Terminal` |
//! | [`files`], [`text`], [`error`] | atomic writes, tables and durations, the error type | [`Error`] |
//!
//! [`prelude`] holds the names that most programs need. The programs in `examples/` each teach one task.
//!
//! Only [`ops`] and [`device`] name backends; everything else takes a Burn `Device`. The library prints nothing.
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `flex` (default) | the CPU backend, pure Rust |
//! | `cli` (default) | the program `mixdistill`, and the module `terminal` |
//! | `cuda`, `vulkan`, `wgpu`, `metal`, `rocm` | GPU backends; any number of them |
//! | `cube` | what the GPU backends share; they turn it on |
//! | `fusion` | fuses element-wise operations on GPU backends |
//! | `ndarray` | Burn's older CPU backend |
//! | `parquet` | reads Parquet files |
//! | `hub` | the module `hub`; names of the Hugging Face Hub in place of paths |
//! | `teacher` | the module `teacher` |
//! | `mpi` | [`ranks`] in several processes and on several machines |
//!
//! The library without the program: `default-features = false, features = ["flex"]`.
//!
//! # Versions
//!
//! The crate follows semantic versioning. Before 1.0 a minor version (0.x) may change the API. Within a minor version:
//!
//! - Run directories, checkpoints, adapters, GGUF files, and studies that an earlier patch version wrote stay readable.
//! - Unknown settings are errors; a setting that is removed is still accepted in stored runs and ignored with a notice.
//! - Results are bit-identical for the same version, settings, seed, and CPU type. A patch version that changes them says so in
//!   the changelog.
//! - The minimum supported Rust version is 1.95. Raising it is a minor version.
//! - Burn's types are part of the API, so a new Burn version is a minor version.
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
