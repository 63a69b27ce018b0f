//! Output layer and loss in one operation, over blocks of tokens: the cross-entropy and the additional terms
//! of [`TokenLoss`].
//!
//! The logits of one block are computed, turned into their own gradient in place, and multiplied into the
//! gradients of the hidden states and the weight before the next block starts. The `[tokens, vocabulary]`
//! matrix never exists, and the backward pass only scales the gradients.

use super::backends::{cast, dispatched, for_ndarray, wide};
use super::decoding::DecodingKernel;
use super::token_loss::{TeacherPart, TeacherTokens, TokenLoss, TokenLossKernel};
use super::weight::{Weight, WeightPrimitive};
use super::wide_product::{WideProductKernel, wide_product};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata};
use burn::tensor::{Int, Slice, Tensor};

/// The number of logits that exist at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Maximum number of elements.
    logits: usize,
    /// Maximum number of tokens.
    tokens: usize,
}

impl Block {
    /// Fewer tokens make the matrix product inefficient.
    const LEAST: usize = 32;

    fn tokens(self, vocabulary: usize) -> usize {
        (self.logits / vocabulary.max(1)).clamp(Self::LEAST, self.tokens)
    }
}

/// 64 MiB in f32. More tokens do not help.
const CPU: Block = Block { logits: 16 * 1024 * 1024, tokens: 512 };

/// Tokens whose logits exist at a time on the CPU.
pub(crate) fn tokens_per_block(vocabulary: usize) -> usize {
    CPU.tokens(vocabulary)
}

/// The inputs of the forward pass.
pub(crate) struct Inputs<B: Backend> {
    hidden: FloatTensor<B>,
    weight: WeightPrimitive<B>,
    targets: IntTensor<B>,
    token_weights: FloatTensor<B>,
    teacher: Option<TeacherPart<B>>,
}

/// The results of the forward pass.
#[derive(Clone, Debug)]
pub(crate) struct LossAndGrads<F> {
    /// `[1]`, in f32 (f64 for f64 input).
    loss: F,
    /// The gradient of the loss with respect to the hidden states, if requested, in their type.
    grad_hidden: Option<F>,
    /// The gradient with respect to the weight, if requested.
    grad_weight: Option<F>,
}

/// The forward pass, with gradients, on plain backend tensors.
pub(crate) trait LinearCrossEntropyKernel:
    TokenLossKernel + WideProductKernel + DecodingKernel
{
    /// Returns how many logits exist at a time.
    fn block(_device: &Self::Device) -> Block {
        CPU
    }

    /// Computes `sum_i token_weights[i] * loss(hidden[i] @ weight, targets[i], teacher[i])`.
    ///
    /// `hidden` is `[tokens, width]` and `weight` is `[width, vocabulary]` (any strides). The last argument
    /// tells whether to compute the gradients of `hidden` and of `weight`.
    fn linear_cross_entropy_forward(
        inputs: Inputs<Self>,
        terms: TokenLoss,
        wants_grads: [bool; 2],
    ) -> LossAndGrads<FloatTensor<Self>> {
        portable_forward::<Self>(inputs, terms, wants_grads)
    }

    /// Computes `tensor * factor`, where `tensor` is a gradient from the forward pass and `factor` is `[1]`.
    fn scale_matrix(tensor: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        portable_scale::<Self>(tensor, factor)
    }
}

for_ndarray! { LinearCrossEntropyKernel }

#[cfg(feature = "cube")]
impl LinearCrossEntropyKernel for burn::backend::Cube {
    /// Returns a block of 1 GiB in f32. With fewer tokens, a block's weight gradient costs more than its
    /// products.
    fn block(device: &Self::Device) -> Block {
        let most = super::cube::most_elements(&device.client(), burn::tensor::DType::F32);
        Block { logits: most.min(256 * 1024 * 1024), tokens: 64 * 1024 }
    }
}

/// Processes one block of tokens after the other. Matrix products have the type of `hidden`; the softmax, the
/// loss, and the sum of the blocks' weight gradients are f32 (f64 for f64).
///
/// Tokens of weight 0 are computed like the others. Skipping them would require waiting for the device to
/// find them, and would give every batch matrices of a different size.
fn portable_forward<B: LinearCrossEntropyKernel>(
    inputs: Inputs<B>,
    terms: TokenLoss,
    [wants_hidden, wants_weight]: [bool; 2],
) -> LossAndGrads<FloatTensor<B>> {
    let Inputs { hidden, weight, targets, token_weights, teacher } = inputs;
    let [tokens, _] = hidden.shape().dims::<2>();
    let [_, vocabulary] = weight.sizes();
    let dtype = hidden.dtype();
    let weight_dtype = match &weight {
        WeightPrimitive::Dense(weight) => weight.dtype(),
        WeightPrimitive::Encoded { .. } => dtype,
    };
    let weight = weight.dense(dtype);
    let token_weights = cast::<B>(token_weights, wide(dtype));
    let block = B::block(&hidden.device()).tokens(vocabulary);
    let mut loss = None;
    let mut grad_hidden = vec![];
    let mut grad_weight = None;
    let add = |sum: &mut Option<_>, x| {
        *sum = Some(match sum.take() {
            Some(sum) => B::float_add(sum, x),
            None => x,
        });
    };
    for start in (0..tokens).step_by(block) {
        let end = (start + block).min(tokens);
        let rows = Slice::from(start..end);
        let column = [end - start, 1];
        let all = |tensor: &FloatTensor<B>| {
            let width = tensor.shape()[1];
            B::float_slice(tensor.clone(), &[rows, Slice::from(0..width)])
        };
        let hidden = all(&hidden);
        let targets = B::int_slice(targets.clone(), &[rows]);
        let targets = B::int_reshape(targets, column.into());
        let token_weights = B::float_slice(token_weights.clone(), &[rows]);
        let token_weights = B::float_reshape(token_weights, column.into());
        let teacher = teacher.as_ref().map(|(tokens, log_probs)| {
            let k = tokens.shape()[1];
            (B::int_slice(tokens.clone(), &[rows, Slice::from(0..k)]), all(log_probs))
        });

        let logits = wide_product::<B>(hidden.clone(), weight.clone());
        let wants_grad = wants_hidden || wants_weight;
        // Placeholders for a missing teacher are ignored.
        let (tokens, log_probs) =
            teacher.unwrap_or_else(|| (targets.clone(), token_weights.clone()));
        let (losses, grad_logits) = B::token_loss(
            logits,
            targets,
            token_weights,
            tokens,
            log_probs,
            terms,
            dtype.into(),
            wants_grad,
        );
        add(&mut loss, B::float_sum(losses));
        if !wants_grad {
            continue;
        }
        if wants_hidden {
            let weight = B::float_transpose(weight.clone());
            grad_hidden.push(B::float_matmul(grad_logits.clone(), weight));
        }
        if wants_weight {
            let hidden = B::float_transpose(hidden);
            add(&mut grad_weight, wide_product::<B>(hidden, grad_logits));
        }
    }
    LossAndGrads {
        loss: B::float_reshape(loss.expect("at least one token"), [1].into()),
        grad_hidden: wants_hidden.then(|| B::float_cat(grad_hidden, 0)),
        grad_weight: grad_weight.map(|grad| cast::<B>(grad, weight_dtype.into())),
    }
}

fn portable_scale<B: Backend>(tensor: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B> {
    let factor = cast::<B>(factor, tensor.dtype().into());
    B::float_mul(tensor, B::float_reshape(factor, [1, 1].into()))
}

dispatched! {
    [Autodiff]
    trait LinearCrossEntropyOps {
        fn linear_cross_entropy(
            hidden: FloatTensor<Self>,
            #[extension_type] weight: WeightPrimitive<Self>,
            targets: IntTensor<Self>,
            token_weights: FloatTensor<Self>,
            terms: TokenLoss,
        ) -> FloatTensor<Self> {
            let inputs = Inputs { hidden, weight, targets, token_weights, teacher: None };
            let wants_grads = [false; 2];
            <Self as LinearCrossEntropyKernel>::linear_cross_entropy_forward(
                inputs,
                terms,
                wants_grads,
            )
            .loss
        }
    }
}

// A separate trait, because dispatch does not support optional tensors.
dispatched! {
    [Autodiff]
    trait LinearDistillationOps {
        fn linear_distillation(
            hidden: FloatTensor<Self>,
            #[extension_type] weight: WeightPrimitive<Self>,
            targets: IntTensor<Self>,
            token_weights: FloatTensor<Self>,
            teacher_tokens: IntTensor<Self>,
            teacher_log_probs: FloatTensor<Self>,
            terms: TokenLoss,
        ) -> FloatTensor<Self> {
            let teacher = Some((teacher_tokens, teacher_log_probs));
            let inputs = Inputs { hidden, weight, targets, token_weights, teacher };
            let wants_grads = [false; 2];
            <Self as LinearCrossEntropyKernel>::linear_cross_entropy_forward(
                inputs,
                terms,
                wants_grads,
            )
            .loss
        }
    }
}

impl<B: LinearCrossEntropyKernel, C: CheckpointStrategy> LinearCrossEntropyOps for Autodiff<B, C> {
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        targets: IntTensor<Self>,
        token_weights: FloatTensor<Self>,
        terms: TokenLoss,
    ) -> FloatTensor<Self> {
        tracked::<B, C>(hidden, weight, targets, token_weights, terms, None)
    }
}

impl<B: LinearCrossEntropyKernel, C: CheckpointStrategy> LinearDistillationOps for Autodiff<B, C> {
    fn linear_distillation(
        hidden: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        targets: IntTensor<Self>,
        token_weights: FloatTensor<Self>,
        teacher_tokens: IntTensor<Self>,
        teacher_log_probs: FloatTensor<Self>,
        terms: TokenLoss,
    ) -> FloatTensor<Self> {
        let teacher = Some((teacher_tokens, teacher_log_probs.into_primitive()));
        tracked::<B, C>(hidden, weight, targets, token_weights, terms, teacher)
    }
}

/// Returns the loss, and a backward step with precomputed gradients.
fn tracked<B: LinearCrossEntropyKernel, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    weight: WeightPrimitive<Autodiff<B, C>>,
    targets: IntTensor<B>,
    token_weights: FloatTensor<Autodiff<B, C>>,
    terms: TokenLoss,
    teacher: Option<TeacherPart<B>>,
) -> FloatTensor<Autodiff<B, C>> {
    // A frozen head skips the product for the weight's gradient.
    let (weight, numbers) = weight.split();
    let wants_grads = [hidden.is_tracked(), numbers.is_tracked()];
    let (hidden, hidden_node) = hidden.into_parts();
    let (_, weight_node) = numbers.into_parts();
    let token_weights = token_weights.into_primitive();
    let inputs = Inputs { hidden, weight, targets, token_weights, teacher };
    let out = B::linear_cross_entropy_forward(inputs, terms, wants_grads);
    let nodes = [hidden_node, weight_node];
    match LinearCrossEntropyBackward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((out.grad_hidden, out.grad_weight), out.loss),
        OpsKind::UnTracked(prep) => prep.finish(out.loss),
    }
}

#[derive(Debug)]
struct LinearCrossEntropyBackward;

impl<B: LinearCrossEntropyKernel> Backward<B, 2> for LinearCrossEntropyBackward {
    type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (grad_hidden, grad_weight) = ops.state;
        for (node, value) in ops.parents.into_iter().zip([grad_hidden, grad_weight]) {
            if let (Some(node), Some(value)) = (node, value) {
                grads.register::<B>(node.id, B::scale_matrix(value, grad.clone()));
            }
        }
    }
}

/// Returns the weighted sum of cross-entropies, in nats, of the logits `hidden @ weight` and `targets`:
/// `sum_i token_weights[i] * -log softmax(hidden[i] @ weight)[targets[i]]`.
///
/// For a mean, divide `token_weights` by their sum. A weight of 0 masks a token. If all weights are 0, so are
/// the loss and the gradients. `token_weights` gets no gradient.
///
/// The logits exist for only one block of tokens at a time, at most 512 on a CPU. If `hidden` or `weight` is
/// tracked, the forward pass computes the gradients together with the loss, so it does the work of the
/// backward pass. The loss is f32, also for bf16 and f16 input, and f64 for f64 input. Flex sums the tokens'
/// losses in f64.
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `weight`: `[width, vocabulary]`. Pass a tied embedding `[vocabulary, width]` transposed; on flex neither
///   it nor its gradient is copied for that.
/// - `targets`: `[tokens]`, each in `0..vocabulary`, including those of masked tokens
/// - `token_weights`: `[tokens]`
/// - result: `[1]`
///
/// # Panics
/// If the shapes do not match or there are no tokens. On flex also if a target is outside the vocabulary;
/// other backends rely on their own indexing checks, because reading values from a GPU would require waiting
/// for it.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: impl Into<Weight>,
    targets: Tensor<1, Int>,
    token_weights: Tensor<1>,
) -> Tensor<1> {
    linear_token_loss(hidden, weight, targets, token_weights, TokenLoss::default(), None)
}

/// Like [`linear_cross_entropy`], with the loss per token defined by `terms`.
///
/// # Shapes
/// See [`linear_cross_entropy`]. The teacher's tensors have a row for each token; the tokens in a row are in
/// `0..vocabulary` and all different.
///
/// # Panics
/// See [`linear_cross_entropy`]; also if `terms` has distillation but there is no teacher, or the reverse.
pub fn linear_token_loss(
    hidden: Tensor<2>,
    weight: impl Into<Weight>,
    targets: Tensor<1, Int>,
    token_weights: Tensor<1>,
    terms: TokenLoss,
    teacher: Option<TeacherTokens>,
) -> Tensor<1> {
    let weight = weight.into();
    let ([tokens, width], [rows, vocabulary]) = (hidden.dims(), weight.sizes());
    assert_eq!(
        width, rows,
        "linear_cross_entropy: the width of hidden differs from the rows of weight"
    );
    assert!(
        tokens > 0 && width > 0 && vocabulary > 0,
        "linear_cross_entropy: no tokens ({tokens}), width ({width}) or vocabulary ({vocabulary})"
    );
    assert_eq!(
        targets.dims(),
        [tokens],
        "linear_cross_entropy: targets are not one per token of hidden"
    );
    assert_eq!(
        token_weights.dims(),
        [tokens],
        "linear_cross_entropy: token_weights are not one per token of hidden"
    );
    assert_eq!(
        teacher.is_some(),
        terms.distillation.is_some(),
        "linear_cross_entropy: a teacher's part in the loss without a teacher, or none with one"
    );
    if let Some(TeacherTokens { tokens: chosen, log_probs }) = &teacher {
        let [rows, k] = chosen.dims();
        assert!(
            rows == tokens && (1..=vocabulary).contains(&k) && log_probs.dims() == [tokens, k + 1],
            "linear_cross_entropy: the teacher's tokens {:?} and log-probabilities {:?} do not fit \
             {tokens} tokens of a vocabulary of {vocabulary}",
            chosen.dims(),
            log_probs.dims()
        );
    }
    let (hidden, weight) = (hidden.into_dispatch(), weight.into_dispatch());
    let (targets, token_weights) = (targets.into_dispatch(), token_weights.into_dispatch());
    Tensor::from_dispatch(match teacher {
        None => <Dispatch as LinearCrossEntropyOps>::linear_cross_entropy(
            hidden,
            weight,
            targets,
            token_weights,
            terms,
        ),
        Some(teacher) => <Dispatch as LinearDistillationOps>::linear_distillation(
            hidden,
            weight,
            targets,
            token_weights,
            teacher.tokens.into_dispatch(),
            teacher.log_probs.into_dispatch(),
            terms,
        ),
    })
}

#[cfg(feature = "flex")]
mod flex {
    use super::super::kernel::{self, Buffer, Matrix, MatrixMut, Threads, WeightMatrix};
    use super::super::token_loss::flex::{Taught, loss_and_logit_grads};
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::FloatDType;
    use rayon::prelude::*;

    impl LinearCrossEntropyKernel for Flex {
        /// Skips tokens of weight 0, so they cost nothing.
        fn linear_cross_entropy_forward(
            inputs: Inputs<Self>,
            terms: TokenLoss,
            wants_grads: [bool; 2],
        ) -> LossAndGrads<FloatTensor<Self>> {
            let [tokens, width] = inputs.hidden.shape().dims();
            let [_, vocabulary] = inputs.weight.sizes();
            let checked =
                |tensor: &IntTensor<Self>, what| kernel::indices(tensor.clone(), vocabulary, what);
            let indices = checked(&inputs.targets, "linear_cross_entropy: target");
            let chosen = inputs
                .teacher
                .as_ref()
                .map(|(chosen, _)| checked(chosen, "linear_cross_entropy: token of the teacher"));
            let Inputs { hidden, weight, targets, token_weights, teacher } = inputs;
            // There is no kernel for the gradient of a trained 16-bit head.
            let weight = match wants_grads[1] && !weight.is_f32() {
                true => Err(weight),
                false => WeightMatrix::new(weight, &[&hidden, &token_weights]),
            };
            let weight = match weight {
                Ok(weight) => weight,
                Err(weight) => {
                    let inputs = Inputs { hidden, weight, targets, token_weights, teacher };
                    return portable_forward::<Self>(inputs, terms, wants_grads);
                }
            };
            let log_probs = teacher
                .map(|(_, log_probs)| kernel::contiguous(cast::<Self>(log_probs, FloatDType::F32)));
            let taught = |i: usize| {
                let (chosen, log_probs) = (chosen.as_ref()?, log_probs.as_ref()?);
                let k = chosen.len() / tokens;
                Some(Taught {
                    tokens: &chosen[i * k..][..k],
                    log_probs: &log_probs.storage::<f32>()[i * (k + 1)..][..k + 1],
                })
            };
            let (hidden, token_weights) =
                (kernel::contiguous(hidden), kernel::contiguous(token_weights));
            let (hidden, token_weights) = (hidden.storage::<f32>(), token_weights.storage::<f32>());
            let used: Vec<usize> = (0..tokens).filter(|&i| token_weights[i] != 0.0).collect();
            let block = tokens_per_block(vocabulary).min(used.len().max(1));
            let mut inputs = Vec::with_capacity(block * width);
            let sizes = [tokens, width, vocabulary];
            let mut grads = Grads::new(wants_grads, sizes, block, used.is_empty());
            // Allocated after longer-lived buffers, because it takes any free block.
            let mut logits = Buffer::scratch(block * vocabulary);
            let mut loss = 0.0;

            for (index, used) in used.chunks(block).enumerate() {
                inputs.clear();
                used.iter().for_each(|&i| inputs.extend_from_slice(&hidden[i * width..][..width]));
                let input = Matrix::dense(&inputs, [used.len(), width]);
                let logits = &mut logits[..used.len() * vocabulary];
                let logits_size = [used.len(), vocabulary];
                weight.set_product(MatrixMut::dense(logits, logits_size), input);
                let losses: Vec<f64> = logits
                    .par_chunks_exact_mut(vocabulary)
                    .zip(used)
                    .map_init(Vec::new, |scratch, (row, &i)| {
                        let weight = token_weights[i];
                        loss_and_logit_grads(row, indices[i], weight, &terms, taught(i), scratch)
                    })
                    .collect();
                loss += losses.iter().sum::<f64>();

                grads.add(index, used, input, Matrix::dense(logits, logits_size), &weight);
            }
            let loss = kernel::from_vec(vec![loss as f32], [1]);
            let [grad_hidden, grad_weight] = grads.into_tensors(&weight);
            LossAndGrads { loss, grad_hidden, grad_weight }
        }

        /// Works in place if nothing else holds the tensor, otherwise on a copy.
        fn scale_matrix(
            mut tensor: FloatTensor<Self>,
            factor: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            if !kernel::all_f32([&tensor, &factor]) {
                return portable_scale::<Self>(tensor, factor);
            }
            let factor = kernel::contiguous(factor).storage::<f32>()[0];
            if factor != 1.0 {
                // Scales the whole buffer, in any order of its elements.
                tensor
                    .storage_mut::<f32>()
                    .par_chunks_mut(16 * 1024)
                    .for_each(|chunk| chunk.iter_mut().for_each(|x| *x *= factor));
            }
            tensor
        }
    }

    /// The gradients of the hidden states and the weight, filled block by block.
    struct Grads {
        wants: [bool; 2],
        /// Tokens, width, and vocabulary.
        sizes: [usize; 3],
        /// The gradients of a block's hidden states.
        inputs: Buffer,
        hidden: Buffer,
        weight: Buffer,
    }

    impl Grads {
        fn new(wants: [bool; 2], sizes: [usize; 3], block: usize, is_empty: bool) -> Self {
            let [wants_hidden, wants_weight] = wants;
            let [tokens, width, vocabulary] = sizes;
            let inputs = Buffer::any(if wants_hidden { block * width } else { 0 });
            let hidden = Buffer::zeros(if wants_hidden { tokens * width } else { 0 });
            let weight = match (wants_weight, is_empty) {
                (false, _) => Buffer::any(0),
                // The first block sets it.
                (true, false) => Buffer::any(width * vocabulary),
                (true, true) => Buffer::zeros(width * vocabulary),
            };
            Self { wants, sizes, inputs, hidden, weight }
        }

        /// Adds a block: its tokens, their hidden states, and the gradients of their logits.
        fn add(
            &mut self,
            index: usize,
            used: &[usize],
            input: Matrix<'_>,
            grad_logits: Matrix<'_>,
            weight: &WeightMatrix,
        ) {
            let [wants_hidden, wants_weight] = self.wants;
            let [_, width, vocabulary] = self.sizes;
            if wants_hidden {
                let grad_inputs = &mut self.inputs[..used.len() * width];
                let size = [used.len(), width];
                weight.set_input_gradient(MatrixMut::dense(grad_inputs, size), grad_logits);
                for (row, &i) in grad_inputs.chunks_exact(width).zip(used) {
                    self.hidden[i * width..][..width].copy_from_slice(row);
                }
            }
            if let (true, WeightMatrix::Dense(weight)) = (wants_weight, weight) {
                let grad = MatrixMut::new(&mut self.weight, [width, vocabulary], weight.strides());
                let input = input.transposed();
                if index == 0 {
                    grad.set_product(1.0, input, grad_logits, Threads::All);
                } else {
                    grad.add_product(input, grad_logits, Threads::All);
                }
            }
        }

        /// Returns the gradients of the hidden states and the weight, if requested.
        fn into_tensors(self, weight: &WeightMatrix) -> [Option<FloatTensor<Flex>>; 2] {
            let ([wants_hidden, wants_weight], [tokens, width, _]) = (self.wants, self.sizes);
            let of_weight = match weight {
                WeightMatrix::Dense(weight) if wants_weight => Some(weight.like(self.weight)),
                _ => None,
            };
            [wants_hidden.then(|| self.hidden.into_tensor([tokens, width])), of_weight]
        }
    }
}
