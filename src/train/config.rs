//! Settings of a training run: [`TrainConfig`].

use crate::data::{Batch, BatchLayout, Packing, Row};
use crate::error::{Error, Result};
use crate::model::{Objective, StepOptions};
use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Falls along half a cosine to `min_lr_ratio` times the peak. A good default.
    #[default]
    Cosine,
    /// Falls linearly to `min_lr_ratio` times the peak.
    Linear,
    /// Stays at the peak; `min_lr_ratio` has no effect.
    Constant,
    /// Warmup-stable-decay: stays at the peak, then falls linearly to `min_lr_ratio` times the peak over the
    /// last fifth of the steps after the warmup.
    WarmupStableDecay,
}

/// How AdamW stores its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentType {
    /// 32 bits per value: 8 bytes of optimizer state per trained parameter.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 8 bits per value in blocks of 256 with one scale each, as in bitsandbytes: about 2 bytes of optimizer
    /// state per trained parameter. Tensors of fewer than 4,096 elements keep f32 moments.
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
    /// The step changes no weights and is counted as skipped. More than ten skipped steps in a row end
    /// training with an error.
    Skip,
    /// Training returns to the newest checkpoint and skips the step when it reaches it again. More than ten
    /// rollbacks, or no checkpoint, end training with an error.
    RollBack,
}

/// A group of parameters with its own weight decay and learning rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Parts of parameter names. The group applies to every trained parameter whose name contains one of
    /// them, such as `embed_tokens` or `lora_B`. Names are those in the weight files.
    pub names: Vec<String>,
    /// Weight decay of the group, including its norms and biases. If unset, `train.weight_decay` applies to
    /// matrices and 0 to norms and biases.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// The learning rate of the group is the scheduled rate times this factor. If unset, it is 1. 0 freezes
    /// the group.
    #[serde(default)]
    pub learning_rate_factor: Option<f64>,
}

impl ParameterGroup {
    /// Returns whether this group applies to the parameter named `name`.
    pub fn holds(&self, name: &str) -> bool {
        self.names.iter().any(|part| name.contains(part))
    }
}

/// Settings of the [`Learner`](super::Learner).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the data; may be fractional. Every row is used: the last optimizer step has the rows that
    /// are left. Ignored if `steps` is set.
    pub epochs: f64,
    /// Number of optimizer steps. If unset, `epochs` decides.
    pub steps: Option<usize>,
    /// Rows in a micro-batch, the unit that is in device memory at one time. Lower it, and raise `accumulate`
    /// to match, if memory runs out. An optimizer step uses `batch_size` times `accumulate` rows.
    pub batch_size: usize,
    /// Micro-batches whose gradients are accumulated into one optimizer step. Raise it for a larger effective
    /// batch at the same memory use.
    pub accumulate: usize,
    /// Number of groups in which the gradients of a step's micro-batches are summed before the groups are
    /// added; a power of two. It fixes the order of the additions, so that any number of ranks gets
    /// bit-identical results. Changing it changes the last bits. For fast training on several ranks, use at
    /// least as many lanes as ranks: each rank then sends about one sum per step instead of one per
    /// micro-batch.
    pub lanes: usize,
    /// Shard the optimizer state across ranks (ZeRO-1): each rank keeps the state of its own parameters only.
    /// Saves memory; the resulting weights are bit-identical. Has no effect on one rank.
    pub shard_optimizer: bool,
    /// The peak learning rate, reached at the end of the warmup.
    pub learning_rate: f64,
    /// Optimizer steps over which the learning rate rises linearly to the peak; the first step has
    /// `1 / warmup_steps` of it. 0 starts at the peak.
    pub warmup_steps: usize,
    /// How the learning rate changes after the warmup.
    pub lr_schedule: LrSchedule,
    /// The lowest learning rate of the schedule as a fraction of the peak, from 0 to 1.
    pub min_lr_ratio: f64,
    /// AdamW: decay rate of the first moment.
    pub beta_1: f64,
    /// AdamW: decay rate of the second moment.
    pub beta_2: f64,
    /// AdamW: added to the square root of the second moment.
    pub epsilon: f64,
    /// AdamW: weight decay of matrices, including embeddings; norms and biases do not decay. 0 turns it off.
    pub weight_decay: f64,
    /// AdamW: storage of the moments, `f32` or `8bit`. `8bit` needs a quarter of the memory; tensors of fewer
    /// than 4,096 elements keep f32 moments.
    pub moments: MomentType,
    /// Parameters with their own weight decay or learning rate. If several groups match a parameter, the
    /// first applies.
    pub parameter_groups: Vec<ParameterGroup>,
    /// Terms that are added to the cross-entropy, such as distillation from a teacher's logits.
    pub objective: Objective,
    /// Gradients with a larger global norm are scaled down to this norm. 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Keep only the input of each block for the backward pass and recompute the rest: less memory and the
    /// same gradients, for one more forward pass. A step takes about a third longer if it trains all weights,
    /// and half longer if it trains adapters.
    pub activation_checkpointing: bool,
    /// What happens at a step whose loss or gradient is not finite: `stop`, `skip`, or `roll_back`.
    pub on_not_finite: OnNotFinite,
    /// Stop training after this many evaluations in a row without a new minimum of the held-out loss,
    /// averaged over sources. 0 turns early stopping off. Needs held-out rows and `evaluate_every`.
    pub early_stopping: usize,
    /// Save and keep a checkpoint whenever the held-out loss reaches a new minimum, and end with the weights
    /// of the best one.
    pub keep_best: bool,
    /// Optimizer steps between evaluations. 0 evaluates at the end only.
    pub evaluate_every: usize,
    /// Optimizer steps between checkpoints. 0 saves at the end only.
    pub checkpoint_every: usize,
    /// Number of recent checkpoints to keep. Older ones are removed after a new one is complete. The
    /// checkpoint that `keep_best` keeps is not counted.
    pub keep_checkpoints: usize,
    /// Sequence lengths are padded to a multiple of this many tokens.
    pub pad_multiple: usize,
    /// Pad lengths further, to at most eight different lengths between one power of two and the next, so that
    /// a GPU tunes its kernels for fewer shapes. Adds up to an eighth of the positions. Turn it on if lengths
    /// vary widely on a GPU.
    pub bucket_lengths: bool,
    /// Whether the examples of a micro-batch are packed into one row instead of padded: `on`, `off`, or
    /// `auto`.
    pub packing: Packing,
    /// Maximum positions, including padding, in a micro-batch. If set, it replaces `batch_size` in splitting
    /// a step, which still has `batch_size` times `accumulate` rows. A longer row forms its own micro-batch.
    /// Set it if lengths vary and memory is tight.
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
    /// Returns the number of rows in an optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    /// Returns the options for computing a step's gradients.
    pub fn step_options(&self) -> StepOptions {
        StepOptions {
            objective: self.objective,
            activation_checkpointing: self.activation_checkpointing,
        }
    }

    /// Splits rows into micro-batches.
    pub fn batches(&self, rows: &[Row]) -> Vec<Batch> {
        self.layout().batches(rows)
    }

    /// Returns how rows are split into micro-batches.
    pub fn layout(&self) -> BatchLayout {
        BatchLayout {
            rows_per_batch: self.batch_size,
            tokens_per_batch: self.tokens_per_batch,
            packing: self.packing,
            multiple: self.pad_multiple,
            bucket: self.bucket_lengths,
        }
    }

    /// Returns the total rows that training uses, given the rows per epoch.
    pub fn total_rows(&self, rows_per_epoch: usize) -> u64 {
        match self.steps {
            Some(steps) => (steps * self.rows_per_step()) as u64,
            None => (self.epochs * rows_per_epoch as f64).round() as u64,
        }
    }

    /// Returns the total optimizer steps, given the rows per epoch.
    pub fn total_steps(&self, rows_per_epoch: usize) -> usize {
        self.total_rows(rows_per_epoch).div_ceil(self.rows_per_step() as u64) as usize
    }

    /// Returns the learning rate of a step (counted from 1) of `total`.
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
    /// [`Error::Config`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, hint: &str| {
            Err(Error::config(format!("train.{key}"), format!("it is {value}"), hint))
        };
        // These bounds are far above practical values and keep products from overflowing.
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
                return refuse(key, &value, "Give a number from 0 to 1 (betas below 1)");
            }
        }
        let amounts = [
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ];
        for (key, value) in amounts {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(key, &value, "Give a number of at least 0");
            }
        }
        for (index, group) in self.parameter_groups.iter().enumerate() {
            let key = |key: &str| format!("parameter_groups[{index}].{key}");
            if group.names.is_empty() || group.names.iter().any(String::is_empty) {
                return refuse(&key("names"), &"empty", "Give parts of parameter names");
            }
            let numbers = [
                ("weight_decay", group.weight_decay),
                ("learning_rate_factor", group.learning_rate_factor),
            ];
            for (name, value) in numbers {
                if value.is_some_and(|value| !(value >= 0.0 && value.is_finite())) {
                    let value = value.unwrap_or_default();
                    return refuse(&key(name), &value, "Give a number of at least 0");
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
