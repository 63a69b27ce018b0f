//! The peak memory of a run, by part.
//!
//! The peak may occur in several phases of a step: when the loss is computed, when the backward pass begins,
//! and when it ends. Reading the weights, held-out losses, and answers are phases, too.
//!
//! ```text
//!                      gradients     activations                                logits
//! loss                 (earlier)     all layers + hidden states of the targets  a block
//! backward begins      head          all layers + a layer's gradients
//! backward ends        all, head +   a layer's gradients
//!                      embedding
//! ```
//!
//! With activation checkpointing, "all layers" is the residual stream between layers and one layer.

use super::activations::{Layer, MicroBatch};
use super::held::Held;
use super::tensors::Tensors;
use crate::error::Result;
use crate::model::{BaseType, BaseWeights, DecoderConfig, LoraConfig, Precision};
use crate::train::MomentType;
use serde::Serialize;
use std::ops::Add;

/// What a run's memory depends on.
#[derive(Clone, Debug)]
pub struct MemorySetup<'a> {
    /// The student's shape.
    pub shape: &'a DecoderConfig,
    /// The adapters. `None` if all weights are trained.
    pub lora: Option<&'a LoraConfig>,
    /// How frozen weights are stored.
    pub base: BaseWeights,
    /// The number type of the computation.
    pub precision: Precision,
    /// How the optimizer stores its moments.
    pub moments: MomentType,
    /// Whether activations are recomputed in the backward pass.
    pub activation_checkpointing: bool,
    /// Whether a step sums the gradients of several micro-batches.
    pub accumulates: bool,
    /// The largest micro-batch of training.
    pub batch: MicroBatch,
    /// The largest micro-batch of the held-out rows.
    pub held_out: MicroBatch,
    /// Number of questions answered together, and the maximum tokens of each.
    pub answers: Option<[usize; 2]>,
    /// Whether weights are read from files. Random weights are drawn in place.
    pub reads_weights: bool,
    /// Whether the backend is flex, which uses the kernels of this crate.
    pub has_kernels: bool,
    /// Number of CPU threads.
    pub threads: usize,
    /// Bytes of the program, its tokenizer, and the data, before any weights.
    pub program: f64,
    /// Bytes of the data, as a part of `program`.
    pub data: f64,
    /// Bytes of a teacher that runs during training.
    pub teacher: f64,
}

/// The peak memory of a run by part, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// The program: code, tokenizer, threads.
    pub program: f64,
    /// Records and their tokens.
    pub data: f64,
    /// Weights, including adapters.
    pub weights: f64,
    /// A teacher that runs during training.
    pub teacher: f64,
    /// Both moments of the optimizer.
    pub moments: f64,
    /// Gradients. This and the following parts are those in the phase of the peak.
    pub gradients: f64,
    /// What the layers keep for the backward pass, and their temporaries.
    pub activations: f64,
    /// A block of logits and other tensors of the loss.
    pub logits: f64,
    /// Attention scores and matrix panels of the kernels, file buffers, key-value caches of answers, and holes
    /// between the moments.
    pub working: f64,
    /// Memory of other phases that the kernels keep for reuse.
    pub kept: f64,
    /// The peak: the sum of the parts above.
    pub peak: f64,
    /// The peak of training, which may be below the peak of reading.
    pub training: f64,
    /// The peak of reading the weights; 0 if none are read.
    pub reading: f64,
    /// The phase of the peak.
    pub when: Phase,
}

/// The phases in which the peak may occur.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The weights are read.
    Reading,
    /// The loss of a micro-batch is computed.
    #[default]
    Loss,
    /// The backward pass begins.
    BackwardBegins,
    /// The backward pass ends, and all gradients exist.
    BackwardEnds,
    /// Held-out losses are computed.
    HeldOut,
    /// Held-out problems are answered.
    Answers,
}

impl Phase {
    /// Returns the phase in words, as in "the peak is when ...".
    pub fn name(self) -> &'static str {
        match self {
            Self::Reading => "the weights are read",
            Self::Loss => "the loss is computed",
            Self::BackwardBegins => "the backward pass begins",
            Self::BackwardEnds => "the backward pass ends",
            Self::HeldOut => "held-out losses are computed",
            Self::Answers => "held-out problems are answered",
        }
    }
}

/// The kernel memory in use in one phase.
#[derive(Clone, Copy, Debug, Default)]
struct At {
    gradients: Held,
    activations: Held,
    logits: Held,
    working: Held,
}

impl At {
    fn all(&self) -> Held {
        self.gradients + self.activations + self.logits + self.working
    }
}

/// Bytes of the panels that matrix products prepare in each thread.
const PANELS: f64 = (4 << 20) as f64;

/// At most this many bytes are holes between the moments and other memory of the process, which both come
/// from the system allocator. Measured: 0 to 20 MiB, different from run to run.
const HOLES: f64 = (16 << 20) as f64;

impl MemoryPlan {
    /// Computes the peak memory.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for adapters that the shape has no layers for.
    pub fn of(setup: &MemorySetup<'_>) -> Result<Self> {
        let shape = setup.shape;
        let tensors = Tensors::of(shape, setup.lora, setup.base, setup.precision, setup.moments)?;
        let layer = |number| Layer {
            shape,
            number,
            targets: tensors.targets.as_ref(),
            precision: setup.precision,
            head: if tensors.trains_head { BaseType::F32 } else { setup.base.embedding_type() },
            has_kernels: setup.has_kernels,
            threads: setup.threads,
        };
        let layers: Vec<Layer<'_>> = (0..shape.num_hidden_layers).map(layer).collect();
        let phases = phases(setup, &tensors, &layers);
        let held = match setup.has_kernels {
            true => phases.iter().map(|(_, at)| at.all()).fold(Held::default(), Held::max),
            false => Held::default(),
        };
        let largest =
            |a: &&(Phase, At), b: &&(Phase, At)| a.1.all().bytes().total_cmp(&b.1.all().bytes());
        let (mut when, mut at) = *phases.iter().max_by(largest).expect("a step has phases");
        let mut kept = (held.bytes() - at.all().bytes()).max(0.0);
        // Writing a checkpoint holds its largest tensor three times: from the device, on the host, and in the
        // format of the file.
        let mut extra = PANELS * setup.threads as f64 + 12.0 * tensors.largest[1] as f64;
        let mut moment_bytes = tensors.moment_bytes;
        if setup.has_kernels {
            extra += HOLES.min(0.5 * moment_bytes);
        }
        let fixed = setup.program + setup.teacher + tensors.weight_bytes();
        let training = fixed + moment_bytes + extra + at.all().bytes() + kept;
        let reading = match setup.reads_weights {
            true => setup.program + setup.teacher + reading(&tensors),
            false => 0.0,
        };
        if training < reading {
            (when, at, kept) = (Phase::Reading, At::default(), 0.0);
            (moment_bytes, extra) = (0.0, (reading - fixed).max(0.0));
        }
        Ok(Self {
            program: setup.program - setup.data,
            data: setup.data,
            weights: tensors.weight_bytes(),
            teacher: setup.teacher,
            moments: moment_bytes,
            gradients: at.gradients.bytes(),
            activations: at.activations.bytes(),
            logits: at.logits.bytes(),
            working: at.working.bytes() + extra,
            kept,
            peak: training.max(reading),
            training,
            reading,
            when,
        })
    }
}

/// Returns the peak of reading weights: what has been read, up to 64 MiB of file pages, and one tensor in the
/// file's type (at most f32) and as f32 before it is converted (`WeightFile::read`). Embedding and head are
/// read first.
fn reading(tensors: &Tensors) -> f64 {
    let with = |read: f64, largest: usize| read + 8.0 * largest as f64;
    let first = with(tensors.vocabulary_bytes, tensors.largest[0]);
    let last = with(tensors.weight_bytes(), tensors.largest_of_layers);
    (64u64 << 20) as f64 + first.max(last)
}

/// Returns the memory in use in each phase of a run.
fn phases(setup: &MemorySetup<'_>, tensors: &Tensors, layers: &[Layer<'_>]) -> Vec<(Phase, At)> {
    let mut all = training(setup, tensors, layers);
    let Some(layer) = layers.last() else { return all };
    let most =
        |of: &dyn Fn(&Layer<'_>) -> Held| layers.iter().map(of).fold(Held::default(), Held::max);
    if setup.held_out.positions() > 0 {
        let batch = &setup.held_out;
        let logits = layer.logits(batch) + layer.loss_states(batch) * 0.5;
        let forward = most(&|layer| layer.forward(batch));
        let working = most(&|layer| layer.scores(batch));
        let at = At { activations: forward, working, ..At::default() };
        all.push((Phase::HeldOut, at));
        let at = At { activations: layer.stream(batch), logits, ..At::default() };
        all.push((Phase::HeldOut, at));
    }
    if let Some([rows, tokens]) = setup.answers {
        // Keys and values of all layers, with spare capacity, and the scores of a token.
        let keys = 2 * rows * tokens * setup.shape.key_value_width();
        let cache = |layer: &Layer<'_>| match layer.linear() {
            None => Held::values(keys),
            // A state per head, and the last inputs of the convolution.
            Some(linear) => {
                let state = linear.key_head_dim * linear.value_head_dim * linear.num_value_heads;
                Held::values(rows * (state + linear.channels() * linear.conv_kernel_dim))
            }
        };
        let working = layers.iter().map(cache).fold(Held::default(), Add::add);
        let logits = Held::values(rows * setup.shape.vocab_size) * 3.0;
        all.push((Phase::Answers, At { working, logits, ..At::default() }));
    }
    all
}

/// Returns the memory in use in the phases of a step, in its last micro-batch.
fn training(setup: &MemorySetup<'_>, tensors: &Tensors, layers: &[Layer<'_>]) -> Vec<(Phase, At)> {
    let (batch, shape, none) = (&setup.batch, setup.shape, Held::default());
    let checkpointing = setup.activation_checkpointing;
    let Some(layer) = layers.last() else { return vec![] };
    // Only layers that gradients reach keep activations. Any of them may be the largest one.
    let reached = || layers.iter().filter(|layer| layer.is_reached());
    let most = |of: &dyn Fn(&Layer<'_>) -> Held| reached().map(of).fold(none, Held::max);
    // The sum of the gradients of earlier micro-batches exists in addition to the new gradients.
    let earlier = if setup.accumulates { tensors.gradients } else { none };
    let embedding = match tensors.trains_head {
        true => Held::values(shape.vocab_size * shape.hidden_size),
        false => none,
    };
    let (head, all) = (earlier + embedding, earlier + tensors.gradients);
    let tied = if tensors.is_tied { embedding } else { none };
    let decoded = layer.decoded(setup.base);
    let stream = layer.stream(batch);
    let working = most(&|layer| layer.scores(batch)).max(layer.scores(batch)) + decoded;
    // With checkpointing: the inputs of all layers, which are kept to the end, and the output of the last
    // one.
    let kept = match checkpointing {
        false => reached().map(|layer| layer.kept(batch)).fold(stream, Add::add),
        true => stream * (layers.len() as f64 + 1.0),
    };
    // With checkpointing, the backward pass recomputes one layer at a time, its feed-forward part in pieces.
    // Passing the gradient to it takes two more tensors of the stream's size.
    let piece = &batch.largest_piece();
    let [backward, attention] = match checkpointing {
        false => {
            let rest = layer.kept_by_feed_forward(batch);
            [layer.backward(batch), most(&|layer| layer.attention_backward(batch)) - rest]
        }
        true => {
            let outside = most(&|layer| layer.kept(batch) - layer.kept_by_feed_forward(batch));
            let outside = outside + stream * 2.0;
            let inside = most(&|layer| layer.kept_by_feed_forward(piece) + layer.backward(piece));
            [outside + inside, outside + most(&|layer| layer.attention_backward(batch))]
        }
    };
    let [last_layer, end] = match checkpointing {
        false => [stream, stream],
        true => [kept + backward, kept + stream],
    };
    let at = |gradients, activations, working| At { gradients, activations, logits: none, working };
    let logits = layer.logits(batch) + layer.loss_states(batch);
    let loss = At { gradients: head, activations: kept + stream, logits, working: decoded };
    vec![
        (Phase::Loss, loss),
        (Phase::BackwardBegins, at(head, kept + backward, working)),
        (Phase::BackwardBegins, at(head, kept + attention, working)),
        (Phase::BackwardEnds, at(all, last_layer, working)),
        // The gradient of a tied embedding is the sum of two.
        (Phase::BackwardEnds, at(all + tied, end, none)),
    ]
}
