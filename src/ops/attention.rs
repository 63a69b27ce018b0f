//! Causal attention with grouped key and value heads, over packed sequences.
//!
//! A packed row holds several sequences (*segments*) one after the other. Each token carries the index within
//! its row of its segment's first token, and sees the keys from there to itself:
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
//! A sliding window uses the same indices: if token `i` sees at most `window` keys, its first key is
//! `i - window + 1` or the first of its segment, whichever is later. Hidden keys cost nothing unless other
//! queries of the same block see them.
//!
//! The layout is that of the projections, `[tokens, heads * head_dim]`. Queries are processed in blocks, and
//! key and value heads are never repeated for their groups of query heads. The backward pass keeps the output
//! and one log-sum-exp per query and head, and recomputes the probabilities, as in FlashAttention (arXiv
//! 2205.14135).

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
    /// Tokens per row.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`. Query head `h` uses key and value head
    /// `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Values per head; scores are divided by its square root.
    pub head_dim: usize,
}

impl AttentionShape {
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// Returns the number of query heads per key and value head.
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

/// Sizes of a call, and how far queries see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    shape: AttentionShape,
    /// Maximum number of keys that a query sees: the length of the longest segment, or the window if that is
    /// smaller; `shape.seq` if unknown.
    longest: usize,
}

#[cfg(feature = "fusion")]
impl Extent {
    /// Returns the shape of the log-sum-exp for the fusion backend. Portable code and GPU kernels use the
    /// same order.
    fn log_sum_exp(&self, q: &TensorSpec) -> TensorSpec {
        let AttentionShape { batch, seq, kv_heads, .. } = self.shape;
        let shape = [batch, kv_heads, self.shape.group(), seq, 1].into();
        TensorSpec::new(shape, wide(q.dtype).into())
    }
}

/// Returns the number of gradient sums of keys and values in the backward pass on flex, for a number of rows,
/// tokens per row, and heads (of queries, and of keys and values).
pub(crate) fn parts_of(batch: usize, seq: usize, [heads, kv_heads]: [usize; 2]) -> usize {
    parts(AttentionShape { batch, seq, heads, kv_heads, head_dim: 1 })
}

/// Returns the number of queries per block on flex. It is small, because a block sees more keys than each of
/// its queries does; but large enough, together with the heads that share keys, to be worth preparing the
/// keys.
fn queries_in_block(shape: AttentionShape) -> usize {
    /// Target number of scores per block, as long as it has more than the minimum number of rows.
    const SCORES: usize = 192 * 2048;
    let rows = (SCORES / shape.seq.max(1)).clamp(64, 192);
    (rows / shape.group()).clamp(1, 64)
}

/// Returns the number of parts that a task's blocks are divided into in the backward pass on flex, if there
/// are few tasks. It depends only on the shape, so the order of sums does too.
fn parts(shape: AttentionShape) -> usize {
    /// Number of tasks that keep many threads evenly busy.
    const ENOUGH: usize = 16;
    // Each part has its own gradients for all keys and values, in total little more than those of the
    // queries.
    let most = (shape.group() + 1).min(4);
    let blocks = shape.seq.div_ceil(queries_in_block(shape));
    let tasks = (shape.batch * shape.kv_heads).max(1);
    ENOUGH.div_ceil(tasks).min(most).min(blocks).max(1)
}

/// What the backward pass of an implementation needs.
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
    /// Forward and backward on plain backend tensors, with the shapes of [`causal_attention`].
    trait AttentionKernel {
        /// Returns the output, like `q`, and the log-sum-exp of the scores of each query and head, in an
        /// order specific to the implementation.
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

        /// Returns the gradients of `q`, `k`, and `v`.
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

/// Computes the attention of each query to the keys at or before it in its own segment: `softmax(q k^T /
/// sqrt(head_dim)) v`, with the softmax in f32 (f64 for f64 input).
///
/// Scores exist for only one block of queries at a time. Memory: on flex, the scores of 64 to 192 queries of
/// heads that share keys per thread (64 in long rows), and in the backward pass up to four sums of the
/// gradients of keys and values; on other backends, up to 256 MiB for each of a few temporaries.
///
/// # Shapes
/// With `tokens = batch * seq`, row after row:
/// - `q`: `[tokens, heads * head_dim]`
/// - `k`, `v`: `[tokens, kv_heads * head_dim]`
/// - `segment_starts`: `[tokens]`, the index within its row (`0..seq`) of the first key that each token sees:
///   the first token of its segment, or a later one with a sliding window. It must not exceed the token's own
///   index and must not decrease along a row. All 0 for rows that are not packed.
/// - result: like `q`
///
/// # Panics
/// If a tensor's shape does not match `shape`, a size is 0, `heads` is not a multiple of `kv_heads`, or the
/// element types of `q`, `k`, and `v` differ. On flex also if `segment_starts` breaks its rules; other
/// backends then return meaningless values, because checking values on a GPU would require waiting for it.
pub fn causal_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    segment_starts: Tensor<1, Int>,
    shape: AttentionShape,
) -> Tensor<2> {
    causal_attention_within(q, k, v, segment_starts, shape, shape.seq)
}

/// Like [`causal_attention`], if no token sees more than `longest` keys. For short examples in a long row and
/// for sliding windows, time and memory are then linear in the length of the row instead of quadratic.
///
/// # Shapes
/// See [`causal_attention`].
///
/// # Panics
/// See [`causal_attention`]; also if `longest` is 0. If a token sees more keys than `longest`, flex uses all of
/// them; other backends may ignore the first ones.
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
