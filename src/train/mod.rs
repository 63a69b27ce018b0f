//! Training: the [`Learner`], its optimizer step, checkpoints and observers.

mod checkpoint;
mod config;
mod learner;
mod metrics;
mod observer;
mod optimizer;
mod plot;
mod progress;
mod selection;

pub use checkpoint::CheckpointStore;
pub(crate) use checkpoint::differences;
pub use config::{LrSchedule, OnNotFinite, TrainConfig};
pub use learner::{
    HeldOut, Learner, StepGradients, StopFlag, Surroundings, checkpointed_step_gradients,
    held_out_losses, step_gradients,
};
pub use metrics::{Metric, MetricsFile, read_metrics};
pub use observer::{EvaluationReport, Event, Observer, Outcome, SourceLoss, StepReport};
pub use optimizer::{ModuleAdamW, global_norm, named_gradients, scaled};
pub use plot::{Curve, LossPlot, draw_curves, loss_curves};
pub use progress::{Progress, ProgressObserver};
pub use selection::Best;
