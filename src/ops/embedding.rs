//! Embedding lookup whose gradient is summed in parallel, row by row in a fixed order.

use super::backends::{dispatched, for_ndarray, kernel_trait};
use super::decoding::DecodingKernel;
use super::weight::{Weight, WeightPrimitive};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Int, Tensor};

kernel_trait! {
    /// Forward and backward on plain backend tensors; `weight` is `[vocabulary, width]`, `ids` is
    /// `[tokens]`.
    trait EmbeddingKernel: DecodingKernel {
        /// Looks up rows, `[tokens, width]`.
        #[fusion(default)]
        fn embedding_rows(
            #[extension_type] weight: WeightPrimitive<Self>,
            ids: IntTensor<Self>,
        ) -> FloatTensor<Self> {
            weight.rows(ids)
        }

        /// Returns the gradient of `weight`, `[vocabulary, width]`.
        #[fusion(dtype = weight, shape = weight)]
        fn embedding_grad(
            grad: FloatTensor<Self>,
            ids: IntTensor<Self>,
            weight: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            portable_grad::<Self>(grad, ids, weight)
        }
    }
}

for_ndarray! { EmbeddingKernel }

fn portable_grad<B: Backend>(
    grad: FloatTensor<B>,
    ids: IntTensor<B>,
    weight: FloatTensor<B>,
) -> FloatTensor<B> {
    let [tokens] = ids.shape().dims();
    B::embedding_backward(weight, grad, B::int_reshape(ids, [1, tokens].into()))
}

dispatched! {
    [Autodiff]
    trait EmbeddingOps {
        fn embedding_lookup(
            #[extension_type] weight: WeightPrimitive<Self>,
            ids: IntTensor<Self>,
        ) -> FloatTensor<Self> {
            <Self as EmbeddingKernel>::embedding_rows(weight, ids)
        }
    }
}

impl<B: EmbeddingKernel, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn embedding_lookup(weight: WeightPrimitive<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let (weight, numbers) = weight.split();
        let (numbers, node) = numbers.into_parts();
        let out = B::embedding_rows(weight, ids.clone());
        match EmbeddingBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((ids, numbers), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct EmbeddingBackward;

impl<B: EmbeddingKernel> Backward<B, 1> for EmbeddingBackward {
    type State = (IntTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, weight) = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::embedding_grad(grad, ids, weight));
        }
    }
}

/// Looks up the rows of `weight` given by `ids`.
///
/// # Shapes
/// - `weight`: `[vocabulary, width]`
/// - `ids`: `[tokens]`, each in `0..vocabulary`
/// - result: `[tokens, width]`, f32 if `weight` is quantized or has 16 bits
///
/// # Panics
/// If there are no tokens. On flex also if an ID is outside the vocabulary; other backends rely on their own
/// indexing checks, because reading values from a GPU would require waiting for it.
pub fn embedding(weight: impl Into<Weight>, ids: Tensor<1, Int>) -> Tensor<2> {
    assert!(ids.dims()[0] > 0, "embedding: no tokens");
    Tensor::from_dispatch(<Dispatch as EmbeddingOps>::embedding_lookup(
        weight.into().into_dispatch(),
        ids.into_dispatch(),
    ))
}

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer};
    use super::*;
    use burn::backend::Flex;
    use rayon::prelude::*;

    impl EmbeddingKernel for Flex {
        fn embedding_rows(
            weight: WeightPrimitive<Self>,
            ids: IntTensor<Self>,
        ) -> FloatTensor<Self> {
            let [vocabulary, width] = weight.row_sizes();
            let indices = kernel::indices(ids.clone(), vocabulary, "embedding: token");
            let Some(weight) = kernel::Rows::new(&weight) else { return weight.rows(ids) };
            let mut out = Buffer::any(indices.len() * width);
            let all = out.shared();
            kernel::par_row_blocks(indices.len(), |block| {
                for token in block {
                    // SAFETY: the tokens' rows are disjoint.
                    let row = unsafe { all.slice(token * width..(token + 1) * width) };
                    weight.read(indices[token], row);
                }
            });
            out.into_tensor([indices.len(), width])
        }

        fn embedding_grad(
            grad: FloatTensor<Self>,
            ids: IntTensor<Self>,
            weight: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&grad, &weight]) {
                return portable_grad::<Self>(grad, ids, weight);
            }
            let [vocabulary, width] = weight.shape().dims();
            let indices = kernel::indices(ids, vocabulary, "embedding: token");
            let grad = kernel::contiguous(grad);
            let grad = grad.storage::<f32>();
            let mut out = Buffer::zeros(vocabulary * width);
            let all = out.shared();
            // The positions of each ID, in order.
            let mut places: Vec<usize> = (0..indices.len()).collect();
            places.sort_by_key(|place| indices[*place]);
            let of_one_id: Vec<&[usize]> =
                places.chunk_by(|a, b| indices[*a] == indices[*b]).collect();
            of_one_id.par_iter().with_min_len(8).for_each(|places| {
                let id = indices[places[0]];
                // SAFETY: each ID has its own row and is handled by one task.
                let row = unsafe { all.slice(id * width..(id + 1) * width) };
                for place in *places {
                    let grad = &grad[place * width..][..width];
                    row.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
                }
            });
            out.into_tensor([vocabulary, width])
        }
    }
}
