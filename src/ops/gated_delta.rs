//! The gated delta rule: linear attention with a state that forgets through a gate and corrects what it
//! stores for a key.
//!
//! A head has a state `S`, `[key_dim, value_dim]`, which starts as zeros in each sequence. The query `q` and
//! the key `k` are divided by their norms, and `q` by the square root of `key_dim`. Then each token computes
//!
//! ```text
//! S <- exp(log_decay) S
//! S <- S + k (beta (v - S^T k))^T
//! o  = S^T q
//! ```
//!
//! Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464, with the sizes and
//! constants of Qwen3.5.
//!
//! Tokens are processed in chunks that start with their sequence, so the result of a sequence does not depend
//! on what it is packed with: bit for bit on flex, and up to rounding on other backends, where chunks are
//! smaller for short sequences. Within a chunk, `G` is the running sum of `log_decay` from the start of the
//! chunk, and `S` is the state before it:
//!
//! ```text
//! D[i, j] = exp(G[i] - G[j])                     for j <= i, else 0
//! A[i, j] = beta[i] (k[i] . k[j]) D[i, j]        for j < i, else 0
//! U       = (1 + A)^-1 beta (v - exp(G) k S)     what each token writes
//! P[i, j] = (q[i] . k[j]) D[i, j]
//! o       = exp(G) q S + P U
//! S      <- exp(G_end) S + (exp(G_end - G) k)^T U
//! ```
//!
//! Only the inputs are kept for the backward pass; the states between chunks are recomputed.

use super::backends::{dispatched, for_each_portable_backend};
use super::sequences::Sequences;
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch};
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
mod flex;
mod portable;

/// Tokens per chunk.
pub(crate) const CHUNK: usize = 64;

/// Added to the sum of squares when a query or a key is divided by its norm.
const NORM_EPS: f64 = 1e-6;

/// Sizes of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, each with its own state; a multiple of `key_heads`. Value head `h` uses the queries
    /// and keys of head `h / (value_heads / key_heads)`.
    pub value_heads: usize,
    /// Width of a query or key.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
}

impl DeltaShape {
    /// Returns the total width of the keys.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Returns the total width of the values.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Returns the number of value heads per key head.
    fn group(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Returns the factor of the queries.
    fn scale(&self) -> f64 {
        (self.key_dim as f64).powf(-0.5)
    }
}

/// The heads and sequences of a call.
#[derive(Clone, Debug)]
pub(crate) struct DeltaCall {
    shape: DeltaShape,
    sequences: Sequences,
}

/// The inputs: queries, keys, values, log decays, and betas.
type Inputs<B> = [FloatTensor<B>; 5];

/// Forward and backward on plain backend tensors, with the shapes of [`gated_delta_rule`].
pub(crate) trait GatedDeltaKernel: Backend {
    /// Returns the output and the states after the sequences, `[sequences, value_heads, key_dim, value_dim]`.
    /// The states start as `state` or as zeros.
    fn delta_forward(
        inputs: Inputs<Self>,
        state: Option<FloatTensor<Self>>,
        call: &DeltaCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::forward::<Self>(inputs, state, call)
    }

    /// Returns the gradients of the inputs, for states that start as zeros.
    fn delta_backward(
        grad: FloatTensor<Self>,
        inputs: Inputs<Self>,
        call: &DeltaCall,
    ) -> Inputs<Self> {
        portable::backward::<Self>(grad, inputs, call)
    }
}

for_each_portable_backend! { GatedDeltaKernel {} }

dispatched! {
    [Autodiff]
    trait GatedDeltaOps {
        fn gated_delta_rule(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            log_decay: FloatTensor<Self>,
            beta: FloatTensor<Self>,
            call: DeltaCall,
        ) -> FloatTensor<Self> {
            <Self as GatedDeltaKernel>::delta_forward([q, k, v, log_decay, beta], None, &call).0
        }
    }
}

impl<B: GatedDeltaKernel, C: CheckpointStrategy> GatedDeltaOps for Autodiff<B, C> {
    fn gated_delta_rule(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        call: DeltaCall,
    ) -> FloatTensor<Self> {
        let [(q, q_node), (k, k_node), (v, v_node), (log_decay, decay_node), (beta, beta_node)] =
            [q, k, v, log_decay, beta].map(|tensor| tensor.into_parts());
        let inputs = [q, k, v, log_decay, beta];
        let nodes = [q_node, k_node, v_node, decay_node, beta_node];
        let (out, _) = B::delta_forward(inputs.clone(), None, &call);
        match GatedDeltaBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inputs, call), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct GatedDeltaBackward;

impl<B: GatedDeltaKernel> Backward<B, 5> for GatedDeltaBackward {
    type State = (Inputs<B>, DeltaCall);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, call) = ops.state;
        let values = B::delta_backward(grad, inputs, &call);
        for (node, value) in ops.parents.into_iter().zip(values) {
            if let Some(node) = node {
                grads.register::<B>(node.id, value);
            }
        }
    }
}

dispatched! {
    []
    trait GatedDeltaStateOps {
        fn gated_delta_rule_from(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            log_decay: FloatTensor<Self>,
            beta: FloatTensor<Self>,
            state: FloatTensor<Self>,
            call: DeltaCall,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let inputs = [q, k, v, log_decay, beta];
            <Self as GatedDeltaKernel>::delta_forward(inputs, Some(state), &call)
        }
    }
}

/// Applies the gated delta rule to the sequences of a batch. States are f32 (f64 for f64 input) and start as
/// zeros. The output is 0 for tokens outside all sequences.
///
/// Time and memory are linear in the number of tokens.
///
/// # Shapes
/// `inputs` are, in this order:
/// - `q`, `k`: `[tokens, key_heads * key_dim]`, not normalized
/// - `v`: `[tokens, value_heads * value_dim]`
/// - `log_decay`: `[tokens, value_heads]`, at most 0
/// - `beta`: `[tokens, value_heads]`
///
/// The result is like `v`. The types of the inputs may differ.
///
/// # Panics
/// If a tensor's shape does not match, a size is 0, or `value_heads` is not a multiple of `key_heads`.
pub fn gated_delta_rule(
    inputs: [Tensor<2>; 5],
    sequences: &Sequences,
    shape: DeltaShape,
) -> Tensor<2> {
    let call = checked(&inputs, sequences, shape);
    let [q, k, v, log_decay, beta] = inputs.map(Tensor::into_dispatch);
    let out = <Dispatch as GatedDeltaOps>::gated_delta_rule(q, k, v, log_decay, beta, call);
    Tensor::from_dispatch(out)
}

/// Like [`gated_delta_rule`], starting from given states. Also returns the states after the sequences, in f32
/// (f64 for f64 input). It has no gradients.
///
/// # Shapes
/// See [`gated_delta_rule`]; `state` and the second result are `[sequences, value_heads, key_dim, value_dim]`.
///
/// # Panics
/// See [`gated_delta_rule`]; also if a tensor is on the autodiff graph.
pub fn gated_delta_rule_from(
    inputs: [Tensor<2>; 5],
    state: Tensor<4>,
    sequences: &Sequences,
    shape: DeltaShape,
) -> (Tensor<2>, Tensor<4>) {
    let call = checked(&inputs, sequences, shape);
    let DeltaShape { value_heads, key_dim, value_dim, .. } = shape;
    assert_eq!(
        state.dims(),
        [sequences.ranges().len(), value_heads, key_dim, value_dim],
        "gated_delta_rule: the states do not fit the sequences and {shape:?}"
    );
    let [q, k, v, log_decay, beta] = inputs.map(Tensor::into_dispatch);
    let state = state.into_dispatch();
    let (out, state) = <Dispatch as GatedDeltaStateOps>::gated_delta_rule_from(
        q, k, v, log_decay, beta, state, call,
    );
    (Tensor::from_dispatch(out), Tensor::from_dispatch(state))
}

fn checked(inputs: &[Tensor<2>; 5], sequences: &Sequences, shape: DeltaShape) -> DeltaCall {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
    let tokens = sequences.tokens();
    assert!(
        [tokens, key_heads, value_heads, key_dim, value_dim].iter().all(|&size| size > 0),
        "gated_delta_rule: a size is 0 in {shape:?} and {tokens} tokens"
    );
    assert!(
        value_heads.is_multiple_of(key_heads),
        "gated_delta_rule: {value_heads} value heads are not a multiple of {key_heads} key heads"
    );
    let keys = shape.key_width();
    let widths = [keys, keys, shape.value_width(), value_heads, value_heads];
    for ((name, input), width) in
        ["q", "k", "v", "log_decay", "beta"].into_iter().zip(inputs).zip(widths)
    {
        assert_eq!(
            input.dims(),
            [tokens, width],
            "gated_delta_rule: the shape of {name} does not fit {shape:?} and {tokens} tokens"
        );
    }
    DeltaCall { shape, sequences: sequences.clone() }
}
