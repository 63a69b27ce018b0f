//! How training goes: one home for every option.

use crate::data::{Batch, BatchLayout, Packing, Row};
use crate::error::{Error, Result};
use crate::model::{Objective, StepOptions};
use serde::{Deserialize, Serialize};

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Half a cosine down to the smallest rate.
    #[default]
    Cosine,
    /// A line down to the smallest rate.
    Linear,
    /// The peak rate to the end.
    Constant,
    /// Warm-up-stable-decay: the peak rate, then a line down over the last fifth of the steps.
    WarmupStableDecay,
}

/// How AdamW keeps its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentType {
    /// 32 bits each: 8 bytes for each trained parameter.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 8 bits each in blocks of 256 with a scale, as bitsandbytes has them: 2 bytes for each trained
    /// parameter. Those of tensors of fewer than 4,096 elements stay f32.
    #[serde(rename = "8bit")]
    EightBit,
}

/// What happens at a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNotFinite {
    /// Training ends with an error that names the rows of the step.
    #[default]
    Stop,
    /// The step changes nothing and is counted; more than ten in a row end the training.
    Skip,
    /// Training goes back to the newest checkpoint and leaves the step out when it comes again;
    /// more than ten times end the training.
    RollBack,
}

/// Parameters with settings of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Texts of which a parameter's name holds one, such as `embed_tokens` or `lora_B`; the name is
    /// its path in files of weights.
    pub names: Vec<String>,
    /// Its weight decay, norms and biases included; without it the usual one.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// Its learning rate is the schedule's times this; without it 1.
    #[serde(default)]
    pub learning_rate_factor: Option<f64>,
}

impl ParameterGroup {
    /// Whether it is the parameter's.
    pub fn holds(&self, name: &str) -> bool {
        self.names.iter().any(|part| name.contains(part))
    }
}

/// Settings of the [`Learner`](super::Learner).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the data. The last optimizer step may be smaller; no row is lost.
    pub epochs: f64,
    /// Optimizer steps; set, it takes the place of `epochs`.
    pub steps: Option<usize>,
    /// Rows in a micro-batch: what is on the device at one time.
    pub batch_size: usize,
    /// Micro-batches in an optimizer step.
    pub accumulate: usize,
    /// Runs of micro-batches whose gradients are added up by themselves before they are added together:
    /// a power of two. It decides the order of a step's sums and so its last bits, which are then the
    /// same on any number of ranks. With 1 they are those of one process; as many lanes as ranks, or more,
    /// let each rank send one sum in place of one for each micro-batch.
    pub lanes: usize,
    /// Each rank keeps the optimizer's state of its own part of the parameters only (ZeRO-1), in place of all
    /// of it; the weights are the same bits.
    pub shard_optimizer: bool,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Optimizer steps over which the rate rises linearly from 0; the first has `1 / warmup_steps`
    /// of the peak.
    pub warmup_steps: usize,
    /// The rate after the warm-up.
    pub lr_schedule: LrSchedule,
    /// The smallest rate, as a share of the peak.
    pub min_lr_ratio: f64,
    /// AdamW: decay of the first moment.
    pub beta_1: f64,
    /// AdamW: decay of the second moment.
    pub beta_2: f64,
    /// AdamW: added to the root of the second moment.
    pub epsilon: f64,
    /// AdamW: weight decay, on matrices only (not on norms and biases).
    pub weight_decay: f64,
    /// AdamW: the type of its moments, `f32` or `8bit`, which takes a quarter of the memory; those of
    /// tensors of fewer than 4,096 elements stay f32.
    pub moments: MomentType,
    /// Parameters that have settings of their own; the first group that names a parameter counts.
    pub parameter_groups: Vec<ParameterGroup>,
    /// What is trained for, beside the cross-entropy.
    pub objective: Objective,
    /// The gradient is scaled down to this global norm; 0 leaves it alone.
    pub max_grad_norm: f64,
    /// Keep only each block's input for the backward pass and compute the rest once more: less
    /// memory, the same gradients, and one more forward pass, which is about a third of the time of
    /// a step that trains all weights, and half of one that trains adapters.
    pub activation_checkpointing: bool,
    /// What happens at a step whose loss or gradient is not finite.
    pub on_not_finite: OnNotFinite,
    /// Training ends after this many evaluations in a row without a lower mean of the sources'
    /// held-out losses; 0 goes on to the end.
    pub early_stopping: usize,
    /// Make and keep a checkpoint of the step with the lowest held-out loss, and end with its
    /// weights.
    pub keep_best: bool,
    /// Optimizer steps between evaluations; 0 evaluates at the end only.
    pub evaluate_every: usize,
    /// Optimizer steps between checkpoints; 0 saves at the end only.
    pub checkpoint_every: usize,
    /// Checkpoints kept; older ones are removed after a new one is complete.
    pub keep_checkpoints: usize,
    /// Lengths are padded to a multiple of this.
    pub pad_multiple: usize,
    /// Pad lengths further, so that there are at most eight between a power of two and the next: a
    /// GPU then tunes its kernels for few shapes. Costs up to an eighth of the positions.
    pub bucket_lengths: bool,
    /// Whether the examples of a micro-batch are laid out one after the other.
    pub packing: Packing,
    /// Most positions of a micro-batch; set, it takes the place of `batch_size` in dividing a step,
    /// which still has `batch_size * accumulate` rows.
    pub tokens_per_batch: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 2.0,
            steps: None,
            batch_size: 8,
            accumulate: 2,
            lanes: 1,
            shard_optimizer: false,
            learning_rate: 1e-5,
            warmup_steps: 10,
            lr_schedule: LrSchedule::Cosine,
            min_lr_ratio: 0.0,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            moments: MomentType::F32,
            parameter_groups: vec![],
            objective: Objective::default(),
            max_grad_norm: 1.0,
            activation_checkpointing: false,
            on_not_finite: OnNotFinite::Stop,
            early_stopping: 0,
            keep_best: false,
            evaluate_every: 100,
            checkpoint_every: 200,
            keep_checkpoints: 2,
            pad_multiple: 16,
            bucket_lengths: false,
            packing: Packing::Auto,
            tokens_per_batch: None,
        }
    }
}

impl TrainConfig {
    /// Rows in an optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    /// How a step's gradients are computed.
    pub fn step_options(&self) -> StepOptions {
        StepOptions {
            objective: self.objective,
            activation_checkpointing: self.activation_checkpointing,
        }
    }

    /// The micro-batches that rows are split into.
    pub fn batches(&self, rows: &[Row]) -> Vec<Batch> {
        self.layout().batches(rows)
    }

    /// How rows are split into micro-batches.
    pub fn layout(&self) -> BatchLayout {
        BatchLayout {
            rows_per_batch: self.batch_size,
            tokens_per_batch: self.tokens_per_batch,
            packing: self.packing,
            multiple: self.pad_multiple,
            bucket: self.bucket_lengths,
        }
    }

    /// Rows that a run over this data sees.
    pub fn total_rows(&self, rows_per_epoch: usize) -> u64 {
        match self.steps {
            Some(steps) => (steps * self.rows_per_step()) as u64,
            None => (self.epochs * rows_per_epoch as f64).round() as u64,
        }
    }

    /// Optimizer steps of a run over this data.
    pub fn total_steps(&self, rows_per_epoch: usize) -> usize {
        self.total_rows(rows_per_epoch).div_ceil(self.rows_per_step() as u64) as usize
    }

    /// The learning rate of a step, counted from 1.
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        if step <= self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let left = total.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - 1 - self.warmup_steps) as f64 / left).clamp(0.0, 1.0);
        let factor = match self.lr_schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            LrSchedule::WarmupStableDecay => ((1.0 - progress) / 0.2).min(1.0),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * factor)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, hint: &str| {
            Err(Error::config(format!("train.{key}"), format!("it is {value}"), hint))
        };
        // The bounds are far above any use and keep products of these from overflowing.
        let counts = [
            ("batch_size", self.batch_size, 1 << 16),
            ("accumulate", self.accumulate, 1 << 16),
            ("keep_checkpoints", self.keep_checkpoints, 1 << 16),
            ("pad_multiple", self.pad_multiple, 1 << 16),
            ("steps", self.steps.unwrap_or(1), 1 << 30),
            ("tokens_per_batch", self.tokens_per_batch.unwrap_or(1), 1 << 30),
        ];
        for (key, value, largest) in counts {
            if value == 0 || value > largest {
                return refuse(key, &value, &format!("Give a number from 1 to {largest}"));
            }
        }
        if !self.lanes.is_power_of_two() || self.lanes > 1 << 16 {
            return refuse("lanes", &self.lanes, "Give a power of two, such as 1 or 8");
        }
        if self.steps.is_none() && !(self.epochs > 0.0 && self.epochs <= 1e6) {
            return refuse("epochs", &self.epochs, "Give a positive number, or set steps");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return refuse("learning_rate", &self.learning_rate, "Give a positive number");
        }
        let shares =
            [("beta_1", self.beta_1), ("beta_2", self.beta_2), ("min_lr_ratio", self.min_lr_ratio)];
        for (key, value) in shares {
            if !(0.0..=1.0).contains(&value) || (value == 1.0 && key != "min_lr_ratio") {
                return refuse(key, &value, "Give a number from 0 to below 1");
            }
        }
        let amounts = [
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ];
        for (key, value) in amounts {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(key, &value, "Give a number, 0 or more");
            }
        }
        for (index, group) in self.parameter_groups.iter().enumerate() {
            let key = |key: &str| format!("parameter_groups[{index}].{key}");
            if group.names.is_empty() || group.names.iter().any(String::is_empty) {
                return refuse(&key("names"), &"empty", "Give parts of parameters' names");
            }
            let numbers = [
                ("weight_decay", group.weight_decay),
                ("learning_rate_factor", group.learning_rate_factor),
            ];
            for (name, value) in numbers {
                if value.is_some_and(|value| !(value >= 0.0 && value.is_finite())) {
                    let value = value.unwrap_or_default();
                    return refuse(&key(name), &value, "Give a number, 0 or more");
                }
            }
        }
        self.objective.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_the_peak_and_falls_along_its_curve() {
        let config = TrainConfig { learning_rate: 1.0, warmup_steps: 4, ..Default::default() };
        let rates: Vec<f64> = (1..=12).map(|step| config.learning_rate_at(step, 12)).collect();
        assert_eq!(rates[..4], [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(rates[4], 1.0);
        assert!((rates[8] - 0.5).abs() < 1e-12, "half way down after half of the steps");
        assert!(rates.windows(2).skip(4).all(|pair| pair[1] < pair[0]));
        let linear = TrainConfig { lr_schedule: LrSchedule::Linear, min_lr_ratio: 0.2, ..config };
        assert!((linear.learning_rate_at(9, 12) - 0.6).abs() < 1e-12);
        let past_the_end = linear.learning_rate_at(40, 12);
        assert!((past_the_end - 0.2).abs() < 1e-12, "it does not rise again");
    }
}
