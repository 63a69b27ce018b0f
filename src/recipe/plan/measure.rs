//! Measures the speed of a few steps.

use super::batches::RowLength;
use super::tensors::Tensors;
use super::{Case, Plan, TimePlan};
use crate::context::{Context, Event, Outcome};
use crate::data::Row;
use crate::device;
use crate::error::Result;
use crate::model::DecoderLm;
use crate::random::Stream;
use crate::train::{Learner, TrainConfig};
use burn::tensor::Device;
use std::time::Instant;

/// Stop after this many seconds.
const SECONDS: f64 = 4.0;
/// Maximum number of steps.
const STEPS: usize = 20;

impl Case<'_> {
    /// Runs steps of a median-size micro-batch with random weights and tokens, and uses their speed for the
    /// whole run. Does nothing if the run does not fit.
    pub(super) fn measure(&self, plan: &mut Plan, context: &Context<'_>) -> Result<()> {
        if plan.fits == Some(false) {
            return context.notice("the speed is not measured, since the run does not fit");
        }
        let config = self.config;
        let device = device::by_name(&config.backend)?.autodiff();
        context.notice(format!(
            "measuring the speed: {} random parameters, then a few steps",
            self.shape.tensor_shapes().values().map(|s| s.iter().product::<usize>()).sum::<usize>()
        ))?;
        let model = self.random_model(&device)?;
        let rows = self.middle_rows();
        let train = TrainConfig { batch_size: rows.len(), accumulate: 1, ..config.train.clone() };
        // Assumes that a teacher computes as fast as the student.
        let train =
            TrainConfig { objective: Default::default(), parameter_groups: vec![], ..train };
        let tensors = Tensors::of(
            &self.shape,
            config.lora.as_ref(),
            config.base,
            config.precision,
            train.moments,
        )?;
        let flops_of = |rows: &[RowLength]| {
            let order = super::Order { rows: rows.to_vec(), steps: None };
            self.flops(&tensors, &order.batches(&train, usize::MAX))
        };
        // Uses a part of a large micro-batch, so that even the first step takes only a few seconds.
        let most = SECONDS / 2.0 * plan.time.flops_per_second;
        let rows = part_of(&rows, (most / flops_of(&rows).max(1.0)).min(1.0));
        let flops = flops_of(&rows);
        let rate = rate(Learner::new(model, train)?, &self.random_rows(&rows), flops, context)?;
        plan.time = TimePlan::at(rate, true, plan.time.flops_per_step, plan.time.steps);
        Ok(())
    }

    fn random_model(&self, device: &Device) -> Result<DecoderLm> {
        let config = self.config;
        let mut model = self.shape.init_stored(config.seed, &config.base, device)?;
        let base = self.prepared.and_then(|prepared| prepared.base.as_ref());
        model.set_part(base.is_some_and(|base| base.is_part()));
        let model = match &config.lora {
            Some(lora) => model.with_lora(lora, config.seed)?,
            None => model,
        };
        model.with_precision(config.precision)
    }

    /// Returns the rows of the median-size micro-batch of the first step.
    fn middle_rows(&self) -> Vec<RowLength> {
        let train = &self.config.train;
        let step = &self.order.rows[..self.order.rows.len().min(train.rows_per_step())];
        let inputs: Vec<usize> = step.iter().map(|row| row.inputs as usize).collect();
        let mut sizes = train.layout().sizes(&inputs);
        sizes.sort_by_key(|size| size.positions());
        let middle = sizes.get(sizes.len() / 2);
        middle.map_or(vec![], |size| size.members.iter().map(|row| step[*row]).collect())
    }

    fn random_rows(&self, lengths: &[RowLength]) -> Vec<Row> {
        let vocabulary = self.shape.vocab_size as u64;
        let row = |(number, length): (usize, &RowLength)| {
            let mut random = Stream::new(self.config.seed, "plan", number as u64);
            let tokens = (0..=length.inputs).map(|_| (random.next_u64() % vocabulary) as u32);
            let prompt = 1 + (length.inputs - length.trained) as usize;
            Row { tokens: tokens.collect(), prompt, number: number as u64, ..Row::default() }
        };
        lengths.iter().enumerate().map(row).collect()
    }
}

/// Returns the first rows, the last one possibly truncated, with about this share of all tokens.
fn part_of(rows: &[RowLength], share: f64) -> Vec<RowLength> {
    /// Fewer tokens are too few to measure.
    const LEAST: u32 = 64;
    let all: f64 = rows.iter().map(|row| f64::from(row.inputs)).sum();
    let mut left = ((all * share) as u32).max(LEAST);
    let mut part = vec![];
    for row in rows {
        let inputs = row.inputs.min(left);
        left -= inputs;
        if inputs > 0 {
            part.push(RowLength { inputs, trained: row.trained.min(inputs), ..*row });
        }
    }
    part
}

/// Measures floating-point operations per second, for steps of `flops` operations each.
fn rate(
    mut learner: Learner<DecoderLm>,
    rows: &[Row],
    flops: f64,
    context: &Context<'_>,
) -> Result<f64> {
    let total_steps = STEPS + 1;
    context.emit(&Event::Start { step: 0, total_steps })?;
    let mut step = || {
        context.check()?;
        context.emit(&Event::Step(&learner.train_step(rows, total_steps)?))
    };
    // The first step allocates memory and tunes kernels.
    step()?;
    let (start, mut steps) = (Instant::now(), 0);
    while steps < STEPS && (steps == 0 || start.elapsed().as_secs_f64() < SECONDS) {
        step()?;
        steps += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    context.emit(&Event::End(&Outcome::default()))?;
    Ok(flops * steps as f64 / seconds.max(1e-9))
}
