//! Training: the [`Learner`], its optimizer step, checkpoints and observers.

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
