//! Training: the [`Learner`], its optimizer step, checkpoints and observers.

mod checkpoint;
mod config;
mod learner;
mod losses;
mod metrics;
mod observer;
mod optimizer;
mod plot;
mod progress;
mod selection;
mod step_lines;
mod teacher;
mod teacher_logits;
mod tensorboard;

pub use checkpoint::CheckpointStore;
pub(crate) use checkpoint::differences;
pub use config::{LrSchedule, OnNotFinite, ParameterGroup, TrainConfig};
pub use learner::{HeldOut, Learner, StopFlag, Surroundings};
pub use losses::{StepGradients, held_out_losses, step_gradients, step_gradients_with};
pub use metrics::{Metric, MetricsFile, SamplesFile, read_metrics};
pub use observer::{
    EvaluationReport, Event, GradedReport, Grader, Observer, Outcome, Sample, SourceLoss,
    StepReport,
};
pub use optimizer::{ModuleAdamW, global_norm, named_gradients};
pub use plot::{Curve, LossPlot, draw_curves, loss_curves};
pub use progress::{Progress, ProgressObserver};
pub use selection::Best;
pub use step_lines::Reached;
pub use teacher::{ModelTeacher, TaughtRows, Teacher};
pub use teacher_logits::{TeacherHeader, TeacherLogits, TeacherLogitsWriter};
pub use tensorboard::TensorBoard;
