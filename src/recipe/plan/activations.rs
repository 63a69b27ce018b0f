//! The memory of a micro-batch in a step: what the operations in `src/ops/` keep for the backward pass, and
//! their temporaries.

use super::held::Held;
use crate::model::{
    BaseType, BaseWeights, DecoderConfig, LINEAR_ATTENTION, LayerLora, LoraTargets, NormPlacement,
    Precision, QkNorm,
};
use crate::ops::{attention_parts, loss_block, pieces};
use serde::Serialize;

/// The size of a micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MicroBatch {
    /// Number of rows; 1 if examples are packed.
    pub rows: usize,
    /// Positions per row, including padding.
    pub length: usize,
    /// Input tokens of the longest example.
    pub longest: usize,
    /// Number of trained targets.
    pub trained: usize,
}

impl MicroBatch {
    /// Returns the largest piece of the micro-batch that the feed-forward part processes at a time with
    /// activation checkpointing.
    pub(super) fn largest_piece(&self) -> Self {
        let length = pieces(self.positions()).map(|piece| piece.len()).max().unwrap_or(0);
        Self { rows: 1, length, ..*self }
    }

    /// Returns the number of positions, including padding.
    pub fn positions(&self) -> usize {
        self.rows * self.length
    }
}

/// A block of the decoder, and how it is trained and computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer<'a> {
    pub shape: &'a DecoderConfig,
    /// The index of the block, from 0.
    pub number: usize,
    /// The layers with adapters and the modules trained in full. `None` if all weights are trained.
    pub targets: Option<&'a LoraTargets>,
    pub precision: Precision,
    /// The storage type of the head.
    pub head: BaseType,
    /// Whether the kernels of this crate are used, not the portable implementations.
    pub has_kernels: bool,
    pub threads: usize,
}

/// The widths of a decoder's tensors.
struct Widths {
    model: usize,
    query: usize,
    key_value: usize,
    inner: usize,
}

impl Layer<'_> {
    fn widths(&self) -> Widths {
        Widths {
            model: self.shape.hidden_size,
            query: self.shape.query_width(),
            key_value: self.shape.key_value_width(),
            inner: self.shape.intermediate_size,
        }
    }

    /// Returns an activation with `width` values per position, in the number type of the computation.
    pub(super) fn activation(&self, batch: &MicroBatch, width: usize) -> Held {
        let bytes = match self.precision {
            Precision::F32 => 4.0,
            Precision::Bf16 => 2.0,
        };
        Held::tensor(bytes * (batch.positions() * width) as f64)
    }

    /// Returns the path of a linear layer.
    fn path(&self, name: &str) -> String {
        let part = if name.starts_with("gate") || name.starts_with("up") || name.starts_with("down")
        {
            "mlp"
        } else if LINEAR_ATTENTION.contains(&name) {
            "linear_attn"
        } else {
            "self_attn"
        };
        format!("model.layers.{}.{part}.{name}", self.number)
    }

    /// Returns the adapter of a linear layer.
    fn adapter(&self, name: &str) -> Option<LayerLora> {
        self.targets?.layers.get(&self.path(name)).copied()
    }

    /// Returns whether the weight of a linear layer is trained.
    fn is_trained(&self, name: &str) -> bool {
        let saved =
            |targets: &LoraTargets| targets.saved.contains(&format!("{}.weight", self.path(name)));
        self.targets.is_none_or(saved)
    }

    /// Returns whether a linear layer keeps its input, for the gradient of its weight or of its adapter's A.
    pub(super) fn keeps_input(&self, name: &str) -> bool {
        self.is_trained(name) || self.adapter(name).is_some()
    }

    /// Returns whether gradients reach the block, because it or an earlier one has trained weights.
    pub fn is_reached(&self) -> bool {
        let Some(targets) = self.targets else { return true };
        let before = |path: &str| {
            let number = path.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            match number.and_then(|number| number.parse::<usize>().ok()) {
                Some(number) => number <= self.number,
                None => path.starts_with("model.embed_tokens"),
            }
        };
        targets.layers.keys().chain(&targets.saved).any(|path| before(path))
    }

    /// Returns what the block keeps for the backward pass without checkpointing.
    pub fn kept(&self, batch: &MicroBatch) -> Held {
        let Widths { model, query, key_value, .. } = self.widths();
        let activation = |width| self.activation(batch, width);
        let of_tokens = |count: usize| Held::values(batch.positions() * count);
        let properties = self.shape.architecture.properties();
        let placement = properties.norm_placement;
        let linear = self.linear();
        let inputs = match linear {
            None => ["q_proj", "k_proj", "v_proj", "qkv_proj"],
            Some(_) => ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"],
        };
        let gates = ["gate_proj", "up_proj", "gate_up_proj"];
        let keep = |names: &[&str]| names.iter().any(|name| self.keeps_input(name));
        let mut kept = Held::default();
        // Each norm keeps its input and one number per token (`rms_norm`).
        kept += (activation(model) + of_tokens(1)) * placement.norms().len() as f64;
        // The inputs of the linear layers: outputs of the norms before them, or without such norms the stream
        // itself.
        let made = placement != NormPlacement::After;
        for is_there in [keep(&inputs), keep(&gates)] {
            kept += if is_there && made { activation(model) } else { Held::default() };
        }
        if placement == NormPlacement::After {
            kept += activation(model) * 2.0;
        }
        let rest = |kept| kept + self.kept_by_feed_forward(batch) + self.kept_by_adapters(batch);
        if let Some(linear) = &linear {
            return rest(kept + self.kept_by_linear(linear, batch));
        }
        // Attention keeps queries, keys, values, its output, and one log-sum-exp per head
        // (`attention::Saved`). Rotation happens in place.
        kept += activation(query) * 2.0 + activation(key_value) * 2.0;
        kept += of_tokens(self.shape.num_attention_heads);
        if properties.qk_norm != QkNorm::None {
            kept += activation(query) + activation(key_value);
        }
        if properties.output_gate {
            // The gate, its sigmoid, and the input of `o_proj`.
            kept += activation(query) * 3.0;
        }
        rest(kept)
    }

    /// Returns what the feed-forward part keeps: gate and up (`gated_linear_add`), and their product if
    /// `down_proj` has an adapter or is a separate operation.
    pub fn kept_by_feed_forward(&self, batch: &MicroBatch) -> Held {
        let inner = self.activation(batch, self.shape.intermediate_size);
        let placement = self.shape.architecture.properties().norm_placement;
        let alone = placement != NormPlacement::Before || self.shape.residual_multiplier != 1.0;
        let product = match self.targets {
            Some(_) => self.keeps_input("down_proj"),
            None => alone,
        };
        inner * if product { 3.0 } else { 2.0 }
    }

    /// Returns what the adapters of the block keep: the input of each B, the As that are multiplied together,
    /// and for DoRA the outputs before scaling and the inputs after dropout.
    fn kept_by_adapters(&self, batch: &MicroBatch) -> Held {
        let mut kept = Held::default();
        // Shapes as in files, `[output, input]`.
        let shapes = self.targets.map(|_| self.shape.tensor_shapes()).unwrap_or_default();
        for name in self.shape.linear_layers() {
            let Some(lora) = self.adapter(name) else { continue };
            let shape = shapes.get(&format!("{}.weight", self.path(name))).map(Vec::as_slice);
            let Some(&[output, input]) = shape else { continue };
            kept += self.activation(batch, lora.rank);
            let joins = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].contains(&name)
                || name.starts_with("in_proj");
            kept += if joins { Held::values(input * lora.rank) } else { Held::default() };
            if lora.has_magnitude {
                kept += self.activation(batch, output);
                kept += match lora.dropout > 0.0 {
                    true => self.activation(batch, input) * 2.0,
                    false => Held::default(),
                };
            }
        }
        kept
    }

    /// Returns the peak temporaries in the backward pass of the block, besides what it keeps: the gradient of
    /// the stream, and one tensor as wide as the feed-forward part (`gated_backward` overwrites gate and up).
    pub fn backward(&self, batch: &MicroBatch) -> Held {
        let Widths { model, inner, .. } = self.widths();
        let copies = if self.has_kernels { 1.0 } else { 5.0 };
        self.activation(batch, model) + self.activation(batch, inner) * copies
    }

    /// Returns the peak temporaries in the backward pass of its attention, when the feed-forward part is
    /// already freed.
    pub fn attention_backward(&self, batch: &MicroBatch) -> Held {
        if let Some(linear) = self.linear() {
            return self.linear_backward(&linear, batch);
        }
        let Widths { model, query, key_value, .. } = self.widths();
        let parts = match self.has_kernels {
            true => attention_parts(batch.rows, batch.length, self.heads()),
            false => 1,
        };
        // Gradients of output and queries, and partial sums of the gradients of keys and values.
        self.activation(batch, model)
            + self.activation(batch, query) * 2.0
            + self.activation(batch, key_value) * (2 * parts) as f64
    }

    fn heads(&self) -> [usize; 2] {
        [self.shape.num_attention_heads, self.shape.num_key_value_heads]
    }

    /// Returns the peak temporaries of a forward pass that keeps nothing: the stream, gate, up, and their
    /// product.
    pub fn forward(&self, batch: &MicroBatch) -> Held {
        let Widths { model, inner, .. } = self.widths();
        let of_feed_forward = self.activation(batch, model) + self.activation(batch, inner) * 3.0;
        match self.linear() {
            Some(linear) => of_feed_forward.max(self.linear_forward(&linear, batch)),
            None => of_feed_forward,
        }
    }

    /// Returns the residual stream between two blocks.
    pub fn stream(&self, batch: &MicroBatch) -> Held {
        self.activation(batch, self.shape.hidden_size)
    }

    /// Returns the hidden states of the trained tokens and their gradient, and those of one block of tokens
    /// (`linear_token_loss`).
    pub fn loss_states(&self, batch: &MicroBatch) -> Held {
        let width = self.shape.hidden_size;
        let of_block = self.loss_block(batch) * width;
        Held::values(batch.trained * width) * 2.0 + Held::values(of_block) * 2.0
    }

    /// Returns one block of logits, which are overwritten by their gradient.
    pub fn logits(&self, batch: &MicroBatch) -> Held {
        let vocabulary = self.shape.vocab_size;
        let logits = Held::values(self.loss_block(batch) * vocabulary);
        // Without the kernels, the softmax has temporaries, and bf16 needs a copy of the head.
        let copies = if self.has_kernels && self.precision == Precision::F32 { 1.0 } else { 4.0 };
        let head = match self.precision {
            Precision::F32 => Held::default(),
            Precision::Bf16 if self.head == BaseType::Bf16 => Held::default(),
            Precision::Bf16 => Held::tensor(2.0 * (vocabulary * self.shape.hidden_size) as f64),
        };
        logits * copies + head
    }

    /// Returns the temporaries of decoding quantized weights. In f32, the kernels decode small panels.
    /// Otherwise, whole matrices are decoded, with about three 4-byte values per weight.
    pub fn decoded(&self, base: BaseWeights) -> Held {
        if self.has_kernels && self.precision == Precision::F32 {
            return Held::default();
        }
        let Widths { model, query, inner, .. } = self.widths();
        let linear = self.shape.any_linear_attention();
        let query = query * if self.shape.architecture.properties().output_gate { 2 } else { 1 };
        let query = query.max(linear.map_or(0, |linear| linear.channels()));
        let is_coded = |kind: BaseType| matches!(kind, BaseType::Int8 | BaseType::Nf4);
        let of_layer = if is_coded(base.base_type) { model * query.max(inner) } else { 0 };
        let of_head =
            if is_coded(base.embedding_type()) { self.shape.vocab_size * model } else { 0 };
        Held::tensor(12.0 * of_layer.max(of_head) as f64)
    }

    fn loss_block(&self, batch: &MicroBatch) -> usize {
        loss_block(self.shape.vocab_size).min(batch.trained.max(1))
    }

    /// Returns the attention scores: with the kernels, in each thread; elsewhere, as `causal_attention`
    /// documents.
    pub fn scores(&self, batch: &MicroBatch) -> Held {
        if let Some(linear) = self.linear() {
            return self.linear_scratch(&linear, batch);
        }
        if !self.has_kernels {
            return Held::tensor((3u64 << 27) as f64);
        }
        // Up to 192 queries of heads that share keys; one matrix in the forward pass, two in the backward
        // pass.
        let [heads, kv_heads] = self.heads();
        let rows = (192 * 2048 / batch.length.max(1)).clamp(64, 192).max(heads / kv_heads.max(1));
        let one = Held::values(2 * rows * batch.length + 3 * rows * self.shape.head_dim());
        one * self.threads as f64
    }
}
