//! Plans a run: memory by part, disk, and time, from its settings and data, without reading weights.
//!
//! [`MemoryPlan`] contains the arithmetic of memory; `tests/plan.rs` compares it with measured peaks.

mod activations;
mod advice;
mod batches;
mod held;
mod linear;
mod machine;
mod measure;
mod memory;
mod tensors;
mod text;
mod work;

pub use activations::MicroBatch;
pub use advice::{LongRow, Saving, ShorterRows};
pub use machine::Machine;
pub use memory::{MemoryPlan, MemorySetup, Phase};
pub use work::TimePlan;

use super::config::RunConfig;
use super::directory::RunMode;
use super::pilots::tell_unknown;
use super::prepare::Prepared;
use super::run::dated;
use super::summary::backend_name;
use crate::context::Context;
use crate::data::BatchLayout;
use crate::error::Result;
use crate::model::{
    DecoderConfig, FileType, ModelFolder, Precision, folder_without_weights, model_folder,
};
use crate::recipe::teacher::teacher_shape;
use crate::train::TeacherLogits;
use batches::{Batches, Order};
use serde::Serialize;
use std::path::Path;
use tensors::Tensors;

/// Activations and peak memory for a micro-batch of some length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ByLength {
    /// Share of all micro-batches that are not larger.
    pub share: f64,
    /// The micro-batch.
    pub batch: MicroBatch,
    /// Bytes of its activations at the time of the peak.
    pub activations: f64,
    /// Peak memory in bytes if it were the largest micro-batch.
    pub peak: f64,
}

/// Disk space that a run needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiskPlan {
    /// One checkpoint: the trained weights and their moments.
    pub checkpoint: f64,
    /// Maximum number of checkpoints at a time: those that are kept, the best one with `train.keep_best`, and
    /// one that is being written.
    pub checkpoints: usize,
    /// The trained student or its adapters.
    pub result: f64,
    /// The sum.
    pub total: f64,
}

/// The memory, disk space, and time that a run needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The student: a model's name, or random weights.
    pub student: String,
    /// The backend.
    pub backend: String,
    /// Whether row lengths come from the data. Otherwise, every row is assumed to have `data.max_length`
    /// tokens.
    pub from_data: bool,
    /// Number of parameters, including adapters.
    pub parameters: usize,
    /// Number of trained parameters.
    pub trained_parameters: usize,
    /// The largest micro-batch.
    pub batch: MicroBatch,
    /// Peak device memory, by part.
    pub memory: MemoryPlan,
    /// Memory for micro-batches of other lengths, shortest first.
    pub by_length: Vec<ByLength>,
    /// The memory of this machine. `None` for a GPU, whose memory Burn does not report.
    pub machine: Option<Machine>,
    /// Whether the run fits, if that is known.
    pub fits: Option<bool>,
    /// The longest training rows.
    pub longest_rows: Vec<LongRow>,
    /// What a lower length limit would save.
    pub shorter_rows: Vec<ShorterRows>,
    /// Settings that would save memory, each on its own, and all of them together.
    pub savings: Vec<Saving>,
    /// Disk space.
    pub disk: DiskPlan,
    /// Time.
    pub time: TimePlan,
}

/// The inputs of a plan, also used to plan changed settings.
pub(super) struct Case<'a> {
    pub config: &'a RunConfig,
    pub prepared: Option<&'a Prepared>,
    shape: DecoderConfig,
    order: Order,
    held_out: MicroBatch,
    /// Number of questions answered together, and tokens of each.
    answers: Option<[usize; 2]>,
    machine: Machine,
    /// Bytes of the program including its data, and of the data alone.
    program: [f64; 2],
    teacher: f64,
}

/// Assumed tokens of a prompt if none is known.
const USUAL_PROMPT: usize = 256;

/// Bytes of the program without tokenizer, data, and tensors while it trains: code, thread stacks, graphs,
/// and the allocator. Measured (`tests/plan.rs`).
const PROGRAM: f64 = (12 << 20) as f64;

/// Bytes of a tokenizer in memory per byte of its `tokenizer.json`. Measured for SmolLM2.
const TOKENIZER_FACTOR: f64 = 14.0;

impl Plan {
    /// Plans a run. If the settings name data, reads and encodes them. With a model and no data, a
    /// `config.json` is enough, and every row is assumed to have `data.max_length` tokens. With `measure`,
    /// runs a few steps for a few seconds and uses their speed.
    ///
    /// # Errors
    /// See [`Prepared::new`] and [`ModelFolder::open`]; [`Error::Stopped`](crate::Error::Stopped).
    pub fn new(config: &RunConfig, measure: bool, context: &Context<'_>) -> Result<Self> {
        let mut config = dated(config, RunMode::New);
        config.validate()?;
        tell_unknown(&config, context)?;
        let named = config.base_model.take();
        if let Some(name) = &named {
            // The weights of a model on the Hub are not downloaded.
            let folder = folder_without_weights(name, context)?;
            config.base_model = Some(folder.to_string_lossy().into_owned());
        }
        let (config, is_unscored) = &config.unscored();
        if *is_unscored {
            context.notice(
                "the choice of answers needs the student's scores, which are not computed yet; the plan \
                 assumes equal shares of the sources",
            )?;
        }
        let without_data = config.data.sources.is_empty() && config.base_model.is_some();
        let prepared = match without_data {
            true => None,
            false => Some(Prepared::new(config, context)?),
        };
        let case = Case::new(config, prepared.as_ref(), context)?;
        let mut plan = case.plan()?;
        if let Some(name) = named {
            plan.student = name;
        }
        if measure {
            case.measure(&mut plan, context)?;
        }
        Ok(plan)
    }

    /// Plans a run with prepared data.
    pub(super) fn of_run(
        config: &RunConfig,
        prepared: &Prepared,
        context: &Context<'_>,
    ) -> Result<Self> {
        Case::new(config, Some(prepared), context)?.plan()
    }
}

impl<'a> Case<'a> {
    fn new(
        config: &'a RunConfig,
        prepared: Option<&'a Prepared>,
        context: &Context<'_>,
    ) -> Result<Self> {
        let machine = Machine::here();
        let (shape, tokenizer) = match (prepared, &config.base_model) {
            (Some(prepared), _) => (prepared.model.clone(), None),
            (None, Some(name)) => {
                let folder = ModelFolder::open(&model_folder(name, context)?)?;
                let folder = folder.for_length(config.data.max_length, context)?;
                (folder.config().clone(), folder.tokenizer_bytes().map(|bytes| bytes as f64))
            }
            (None, None) => (config.model.clone(), None),
        };
        let order = match prepared {
            Some(prepared) => Order::of(config, prepared),
            None => Order::of_longest(config),
        };
        let data = prepared.map_or(0.0, data_bytes);
        // If the data are loaded, the memory of this process includes program and data.
        let program = match (prepared, machine.used) {
            (Some(_), Some(used)) => used as f64 + PROGRAM,
            _ => 4.0 * PROGRAM + TOKENIZER_FACTOR * tokenizer.unwrap_or_default() + data,
        };
        let answers = prepared.filter(|prepared| !prepared.questions.is_empty()).map(|prepared| {
            let rows = config.generate.batch_size.min(prepared.questions.len());
            let prompts = prepared.held_out.iter().flat_map(|source| &source.rows);
            let prompt = prompts.map(|row| row.prompt).max().unwrap_or(USUAL_PROMPT);
            [rows, prompt + config.generate.max_new_tokens]
        });
        let held_out = prepared.map_or(MicroBatch::default(), |p| held_out_batch(config, p));
        let teacher = teacher_shape(config)?;
        if let (Some(named), None) = (&config.teacher, &teacher)
            && !TeacherLogits::is_in(Path::new(&named.path))
        {
            let name = &named.path;
            context.notice(format!(
                "the plan leaves out the teacher {name}: it is not a local folder"
            ))?;
        }
        let teacher = teacher.map_or(Ok(0.0), |shape| -> Result<f64> {
            let tensors =
                Tensors::of(&shape, None, config.base, Precision::F32, config.train.moments)?;
            Ok(4.0 * tensors.parameters as f64)
        })?;
        let program = [program, data];
        Ok(Self { config, prepared, shape, order, held_out, answers, machine, program, teacher })
    }

    fn is_cpu(&self) -> bool {
        ["flex", "ndarray", "none"].contains(&backend_name(self.config).as_str())
    }

    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }

    /// Returns the memory of given settings and a given largest micro-batch.
    fn memory(&self, config: &RunConfig, batch: MicroBatch) -> Result<MemoryPlan> {
        let train = &config.train;
        // The program is not in GPU memory. What a GPU holds besides tensors is unknown.
        let [program, data] = if self.is_cpu() { self.program } else { [0.0; 2] };
        MemoryPlan::of(&MemorySetup {
            shape: &self.shape,
            lora: config.lora.as_ref(),
            base: config.base,
            precision: config.precision,
            moments: train.moments,
            activation_checkpointing: train.activation_checkpointing,
            accumulates: train.accumulate > 1 || train.tokens_per_batch.is_some(),
            batch,
            held_out: self.held_out,
            answers: self.answers,
            reads_weights: config.base_model.is_some(),
            has_kernels: backend_name(config) == "flex",
            threads: self.threads(),
            program,
            data,
            teacher: self.teacher,
        })
    }

    /// Returns the memory that is available for the run on a CPU.
    fn room(&self) -> Option<f64> {
        let room = self.machine.for_process().filter(|_| self.is_cpu())?;
        Some(room as f64)
    }

    fn plan(&self) -> Result<Plan> {
        let config = self.config;
        let tensors = Tensors::of(
            &self.shape,
            config.lora.as_ref(),
            config.base,
            config.precision,
            config.train.moments,
        )?;
        let batches = self.order.batches(&config.train, usize::MAX);
        let batch = batches.largest();
        let memory = self.memory(config, batch)?;
        let fits = self.room().map(|room| memory.peak <= room);
        let by_length = self.by_length(&batches)?;
        Ok(Plan {
            student: config.base_model.clone().unwrap_or_else(|| "random weights".into()),
            backend: backend_name(config),
            from_data: self.prepared.is_some(),
            parameters: tensors.parameters,
            trained_parameters: tensors.trained,
            batch,
            by_length,
            machine: self.is_cpu().then_some(self.machine),
            fits,
            longest_rows: self.longest_rows(),
            shorter_rows: self.shorter_rows(&memory)?,
            savings: self.savings(&memory)?,
            disk: self.disk(&tensors),
            time: self.time(&tensors, &batches),
            memory,
        })
    }

    /// Returns the memory for the median, the 90th percentile, and the largest of the micro-batches. Without
    /// data: for fractions of the length limit.
    fn by_length(&self, batches: &Batches) -> Result<Vec<ByLength>> {
        let mut lines: Vec<ByLength> = vec![];
        for share in [0.25, 0.5, 0.9, 1.0] {
            let batch = match (self.prepared.is_some(), share) {
                (_, 1.0) => batches.largest(),
                (true, 0.25) | (false, 0.9) => continue,
                (true, share) => batches.quantile(share),
                (false, share) => batches.largest().shortened(share),
            };
            let memory = self.memory(self.config, batch)?;
            let line =
                ByLength { share, batch, activations: memory.activations, peak: memory.peak };
            // Keeps only the last of several lines of the same size.
            lines.retain(|other| other.batch.positions() != batch.positions());
            lines.push(line);
        }
        Ok(lines)
    }

    fn disk(&self, tensors: &Tensors) -> DiskPlan {
        let (config, train) = (self.config, &self.config.train);
        let checkpoint = tensors.trained_bytes + tensors.moment_bytes;
        let checkpoints = train.keep_checkpoints + usize::from(train.keep_best) + 1;
        let result = match (config.save.file_type, config.lora.is_some()) {
            (FileType::Bf16, false) => tensors.trained_bytes / 2.0,
            _ => tensors.trained_bytes,
        };
        let total = checkpoint * checkpoints as f64 + result;
        DiskPlan { checkpoint, checkpoints, result, total }
    }

    fn flops(&self, tensors: &Tensors, batches: &Batches) -> f64 {
        let train = &self.config.train;
        let checkpointing = train.activation_checkpointing;
        work::flops(&self.shape, tensors, checkpointing, batches)
    }

    fn time(&self, tensors: &Tensors, batches: &Batches) -> TimePlan {
        // The teacher's forward pass: two operations per weight; its weights are f32.
        let of_teacher = batches.positions * self.teacher / 2.0;
        let flops_per_step =
            (self.flops(tensors, batches) + of_teacher) / batches.steps.max(1) as f64;
        let rate = work::assumed_rate(self.is_cpu(), self.threads());
        TimePlan::at(rate, false, flops_per_step, self.order.steps)
    }
}

impl TimePlan {
    /// Returns the time at `rate` operations per second.
    fn at(rate: f64, is_measured: bool, flops_per_step: f64, steps: Option<usize>) -> Self {
        let seconds_per_step = flops_per_step / rate.max(1.0);
        Self {
            steps,
            seconds_per_step,
            seconds: steps.map(|steps| seconds_per_step * steps as f64),
            flops_per_step,
            flops_per_second: rate,
            is_measured,
        }
    }
}

impl MicroBatch {
    /// Returns the micro-batch with each row shortened to a share of its tokens.
    fn shortened(self, share: f64) -> Self {
        let part = |count: usize| (count as f64 * share).round() as usize;
        Self {
            rows: self.rows,
            length: part(self.length),
            longest: part(self.longest),
            trained: part(self.trained),
        }
    }
}

/// Returns the size in bytes of prepared data: texts, tokens, and some numbers per record.
fn data_bytes(prepared: &Prepared) -> f64 {
    /// Bytes of a record without its texts and tokens, in its source, the pairs, and the mixture.
    const OF_RECORD: usize = 300;
    let sources = prepared.mixture.pairs().sources().iter().enumerate();
    let bytes = sources.map(|(index, source)| {
        let records = source.records().iter().enumerate();
        let of = |(record, text): (usize, &crate::data::CotRecord)| {
            let tokens = prepared.encoded.example(index, record);
            let tokens = 4 * tokens.map_or(0, |example| example.tokens.len());
            OF_RECORD + tokens + text.problem.len() + text.solution.len()
        };
        records.map(of).sum::<usize>()
    });
    bytes.sum::<usize>() as f64
}

/// Returns the largest micro-batch of the held-out rows.
fn held_out_batch(config: &RunConfig, prepared: &Prepared) -> MicroBatch {
    let layout: BatchLayout = config.train.layout();
    let batches = prepared.held_out.iter().flat_map(|source| {
        let inputs: Vec<usize> =
            source.rows.iter().map(|row| row.tokens.len().saturating_sub(1)).collect();
        let batch = |size: crate::data::BatchSize| MicroBatch {
            rows: size.rows,
            length: size.length,
            longest: size.members.iter().map(|row| inputs[*row]).max().unwrap_or(0),
            trained: size.members.iter().map(|row| source.rows[*row].example().targets()).sum(),
        };
        layout.sizes(&inputs).into_iter().map(batch).collect::<Vec<_>>()
    });
    batches.max_by_key(MicroBatch::positions).unwrap_or_default()
}
