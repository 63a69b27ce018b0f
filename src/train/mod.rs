//! Training: the loop, the optimizer, losses, checkpoints, and the files that record a run.
//!
//! - [`Learner`] trains a model. [`Learner::fit`] runs a whole training over a
//!   [`RowStream`](crate::data::RowStream), with the optional inputs in [`FitOptions`]. [`TrainConfig`] holds
//!   the settings.
//! - [`CheckpointStore`] writes, verifies, and reads checkpoints.
//! - [`Optimizer`] is the interface of optimizers. The default is [`FusedAdamW`].
//! - [`MetricsFile`], [`SamplesFile`], [`LossPlot`], and [`TensorBoard`] are observers that write files.
//! - [`LogitTeacher`] provides a teacher's most likely tokens for logit distillation: from a model
//!   ([`ModelTeacher`]) or from files ([`TeacherLogits`]).
//! - [`simulated_step`] predicts the time of a step on several ranks.
//!
//! ```
//! use mixdistill::data::Row;
//! use mixdistill::model::DecoderConfig;
//! use mixdistill::train::{Learner, TrainConfig};
//!
//! let device = mixdistill::device::by_name("auto")?.autodiff();
//! let model = DecoderConfig { vocab_size: 16, hidden_size: 32, ..Default::default() }.init(1, &device)?;
//! let config =
//!     TrainConfig { steps: Some(2), warmup_steps: 0, learning_rate: 1e-3, ..Default::default() };
//! let mut learner = Learner::new(model, config)?;
//!
//! // Two rows with a prompt of two tokens. The loss applies to the tokens after it.
//! let row = |tokens: &[u32]| Row { tokens: tokens.to_vec(), prompt: 2, ..Row::default() };
//! let rows = [row(&[1, 2, 3, 4]), row(&[5, 6, 7])];
//! let first = learner.train_step(&rows, 2)?;
//! let second = learner.train_step(&rows, 2)?;
//! assert_eq!((first.rows, first.trained_tokens), (2, 3));
//! assert!(second.loss < first.loss && learner.step() == 2);
//! # Ok::<(), mixdistill::Error>(())
//! ```

mod checkpoint;
mod checkpoint_ranks;
mod config;
mod growth;
mod learner;
mod learner_ranks;
mod losses;
mod metrics;
mod moments;
mod optimizer;
mod plot;
mod ranked;
mod recovery;
mod reduce;
mod selection;
mod slots;
mod state;
mod step_log;
mod teacher;
mod teacher_logits;
mod tensorboard;

pub use checkpoint::CheckpointStore;
pub use config::{LrSchedule, MomentType, OnNotFinite, ParameterGroup, TrainConfig};
pub use growth::{Link, StepLoad, StepTime, efficiency, fewest_micro_batches, simulated_step};
pub use learner::{FitOptions, Grader, Learner};
pub use losses::{HeldOut, StepGradients, held_out_losses, step_gradients, step_gradients_with};
pub use metrics::{Metric, MetricsFile, SamplesFile, read_metrics};
pub(crate) use moments::LEAST_8BIT;
pub use optimizer::{FusedAdamW, Optimizer, SavedPart, global_norm, named_gradients};
pub use plot::{Curve, LossPlot, draw_curves, loss_curves};
pub use step_log::ResumePoint;
pub use teacher::{DistillationRows, LogitTeacher, ModelTeacher, WatchedTeacher};
pub(crate) use teacher_logits::KeyedRow;
pub use teacher_logits::{TeacherLogits, TeacherLogitsHeader, TeacherLogitsWriter};
pub use tensorboard::TensorBoard;
