//! The names that most programs need, for `use mixdistill::prelude::*`.
//!
//! ```
//! use mixdistill::prelude::*;
//!
//! let records = |answer: &str| {
//!     let record = |n: usize| CotRecord {
//!         problem: format!("What is {n} + {n}?"),
//!         solution: format!("{answer} {}", n + n),
//!         ..CotRecord::default()
//!     };
//!     (0..10).map(record).collect()
//! };
//! let sources = vec![Source::new("long", records("Twice that is")), Source::new("short", records("It is"))];
//! let (pairs, _) = Pairs::join(sources, Join::Inner)?;
//! assert_eq!(pairs.len(), 10);
//! # Ok::<(), Error>(())
//! ```

pub use crate::context::{Context, Event, Observer, StopFlag};
pub use crate::data::{
    CotRecord, Encoded, Join, LengthLimit, MixDistillation, MixedRows, MixtureConfig,
    MixtureOptions, Pairs, PlainTemplate, PromptTemplate, Source, TextTokenizer,
};
pub use crate::error::{Error, Result};
pub use crate::model::{CausalLm, DecoderConfig, DecoderLm, Generate, GenerateConfig};
pub use crate::recipe::{RunConfig, RunMode, run};
pub use crate::train::{FitOptions, Learner, TrainConfig};
