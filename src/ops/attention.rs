//! Causal attention with grouped key and value heads, over packed sequences.
//!
//! A packed row holds several sequences (*segments*) one after the other. Each token carries the
//! index within its row of its segment's first token, and sees the keys from there to itself:
//!
//! ```text
//! token           0  1  2  3  4  5       keys:  0 1 2 3 4 5
//! segment_starts  0  0  0  3  3  5     query 0  x
//!                                            1  x x
//!                                            2  x x x
//!                                            3        x
//!                                            4        x x
//!                                            5            x
//! ```
//!
//! A sliding window is told in the same way: where token `i` sees `window` keys at most, its first one is
//! `i - window + 1` or that of its segment, whichever comes later. What is out of sight costs nothing
//! but the keys that other queries of a block see.
//!
//! Works on the layout that the projections produce, `[tokens, heads * head_dim]`. Queries are
//! taken in blocks, and the key and value heads are never repeated for their groups of query heads.
//! What is kept for the backward pass is the output and one log-sum-exp per query and head; the
//! probabilities are computed again, as in FlashAttention (arXiv 2205.14135).

#[cfg(feature = "fusion")]
use super::backends::wide;
use super::backends::{dispatched, for_ndarray, kernel_trait};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType};
use burn::tensor::{Int, Tensor};

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod flash;
#[cfg(feature = "flex")]
mod flex;
mod portable;

/// Sizes of an attention call.
///
/// `tokens`, the first dimension of the tensors, is `batch * seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens in a row.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`. Query head `h` uses key and value head
    /// `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Values in a head; scores are divided by its square root.
    pub head_dim: usize,
}

impl AttentionShape {
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// Query heads of one key and value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Sizes of a call, and how far a query looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    shape: AttentionShape,
    /// Most keys that a query sees: tokens of the longest segment, or the window where that is less;
    /// `shape.seq` where it is not known.
    longest: usize,
}

#[cfg(feature = "fusion")]
impl Extent {
    /// What the fusing backend is told of the log-sum-exp: portable code and kernels for GPUs have one order.
    fn log_sum_exp(&self, q: &TensorSpec) -> TensorSpec {
        let AttentionShape { batch, seq, kv_heads, .. } = self.shape;
        let shape = [batch, kv_heads, self.shape.group(), seq, 1].into();
        TensorSpec::new(shape, wide(q.dtype).into())
    }
}

/// Sums of the gradients of keys and values that the backward pass on flex has, for so many rows, tokens
/// in a row, and heads of queries and of keys and values.
pub(crate) fn parts_of(batch: usize, seq: usize, [heads, kv_heads]: [usize; 2]) -> usize {
    parts(AttentionShape { batch, seq, heads, kv_heads, head_dim: 1 })
}

/// Queries in one block on flex: few, because a block sees more keys than each of its queries does, but
/// with the heads that share keys enough that these are worth preparing.
fn queries_in_block(shape: AttentionShape) -> usize {
    /// Most scores of a block, while it has more than the least rows.
    const SCORES: usize = 192 * 2048;
    let rows = (SCORES / shape.seq.max(1)).clamp(64, 192);
    (rows / shape.group()).clamp(1, 64)
}

/// Parts that the blocks of a task are dealt out to in the backward pass on flex, where tasks are few.
/// It depends on the shape alone, as does what is summed in which order.
fn parts(shape: AttentionShape) -> usize {
    /// Tasks that keep many threads about equally busy.
    const ENOUGH: usize = 16;
    // Each part has gradients of its own for all keys and values: together little more than those of the
    // queries.
    let most = (shape.group() + 1).min(4);
    let blocks = shape.seq.div_ceil(queries_in_block(shape));
    let tasks = (shape.batch * shape.kv_heads).max(1);
    ENOUGH.div_ceil(tasks).min(most).min(blocks).max(1)
}

/// What an implementation's backward pass needs.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub(crate) struct Saved<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    segment_starts: IntTensor<B>,
    out: FloatTensor<B>,
    log_sum_exp: FloatTensor<B>,
}

kernel_trait! {
    /// Forward and backward on plain backend tensors, shaped as in [`causal_attention`].
    trait AttentionKernel {
        /// The output, like `q`, and the log-sum-exp of the scores of each query and head, in an order
        /// that only the implementation knows.
        #[fusion(meta = |q, _k, _v, _starts, extent| (q.clone(), extent.log_sum_exp(q)))]
        fn attention_forward(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            segment_starts: IntTensor<Self>,
            extent: Extent,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            portable::forward::<Self>(q, k, v, segment_starts, extent)
        }

        /// The gradients of `q`, `k` and `v`.
        #[fusion(meta = |_grad, saved, _extent| (saved.q.clone(), saved.k.clone(), saved.v.clone()))]
        fn attention_backward(
            grad: FloatTensor<Self>,
            #[extension_type] saved: Saved<Self>,
            extent: Extent,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            portable::backward::<Self>(grad, saved, extent)
        }
    }
}

for_ndarray! { AttentionKernel }

dispatched! {
    [Autodiff]
    trait AttentionOps {
        fn causal_attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            segment_starts: IntTensor<Self>,
            extent: Extent,
        ) -> FloatTensor<Self> {
            <Self as AttentionKernel>::attention_forward(q, k, v, segment_starts, extent).0
        }
    }
}

impl<B: AttentionKernel, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        segment_starts: IntTensor<Self>,
        extent: Extent,
    ) -> FloatTensor<Self> {
        let (q, q_node) = q.into_parts();
        let (k, k_node) = k.into_parts();
        let (v, v_node) = v.into_parts();
        let (out, log_sum_exp) =
            B::attention_forward(q.clone(), k.clone(), v.clone(), segment_starts.clone(), extent);
        let nodes = [q_node, k_node, v_node];
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = Saved { q, k, v, segment_starts, out: out.clone(), log_sum_exp };
                prep.finish((saved, extent), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: AttentionKernel> Backward<B, 3> for AttentionBackward {
    type State = (Saved<B>, Extent);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (saved, extent) = ops.state;
        let (grad_q, grad_k, grad_v) = B::attention_backward(grad, saved, extent);
        for (node, value) in ops.parents.into_iter().zip([grad_q, grad_k, grad_v]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, value);
            }
        }
    }
}

/// Attention of each query to the keys at or before it in its own segment:
/// `softmax(q k^T / sqrt(head_dim)) v`, with the softmax in f32 (f64 for f64 input).
///
/// The scores exist for a block of queries at a time. What that costs in memory: on flex, 64 to 192
/// queries of heads that share keys in each thread (64 of them in long rows), and in the backward pass
/// up to four sums of the gradients of keys and values; elsewhere, up to 256 MiB for each of a
/// few temporaries.
///
/// # Shapes
/// With `tokens = batch * seq`, row after row:
/// - `q`: `[tokens, heads * head_dim]`
/// - `k`, `v`: `[tokens, kv_heads * head_dim]`
/// - `segment_starts`: `[tokens]`, the index within its row (`0..seq`) of the first key that each token
///   sees: the first token of its segment, or with a sliding window a later one; never above the
///   token's own index, and never falling along a row. All 0 for rows that are not packed.
/// - result: like `q`
///
/// # Panics
/// If a tensor's shape does not fit `shape`, a size is 0, `heads` is not a multiple of `kv_heads`,
/// or the element types of `q`, `k` and `v` differ. On flex also if `segment_starts` breaks its
/// rules; other backends then return values without meaning, since values on a GPU cannot be
/// looked at without waiting for it.
pub fn causal_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    segment_starts: Tensor<1, Int>,
    shape: AttentionShape,
) -> Tensor<2> {
    causal_attention_within(q, k, v, segment_starts, shape, shape.seq)
}

/// As [`causal_attention`], where it is known that no token sees more than `longest` keys: for short
/// examples in a long row, and for sliding windows, time and memory then grow with the row and not with
/// its square.
///
/// # Shapes
/// As there.
///
/// # Panics
/// As there, and if `longest` is 0. Where a token sees more keys, flex takes all of them in; other
/// backends may leave out the first ones.
pub fn causal_attention_within(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    segment_starts: Tensor<1, Int>,
    shape: AttentionShape,
    longest: usize,
) -> Tensor<2> {
    let AttentionShape { batch, seq, heads, kv_heads, head_dim } = shape;
    assert!(
        [batch, seq, heads, kv_heads, head_dim, longest].iter().all(|&size| size > 0),
        "causal_attention: a size is 0 in {shape:?}"
    );
    assert!(
        heads.is_multiple_of(kv_heads),
        "causal_attention: {heads} heads are not a multiple of {kv_heads} kv_heads"
    );
    let kv_dims = [shape.tokens(), shape.kv_width()];
    for (name, dims, expected) in [
        ("q", q.dims(), [shape.tokens(), shape.width()]),
        ("k", k.dims(), kv_dims),
        ("v", v.dims(), kv_dims),
    ] {
        assert_eq!(dims, expected, "causal_attention: the shape of {name} does not fit {shape:?}");
    }
    assert_eq!(
        segment_starts.dims(),
        [shape.tokens()],
        "causal_attention: segment_starts are not one per token"
    );
    assert!(
        q.dtype() == k.dtype() && q.dtype() == v.dtype(),
        "causal_attention: the element types of q, k and v differ"
    );
    Tensor::from_dispatch(<Dispatch as AttentionOps>::causal_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        segment_starts.into_dispatch(),
        Extent { shape, longest: longest.min(seq) },
    ))
}
