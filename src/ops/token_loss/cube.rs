//! GPU kernels: one cube per token. One kernel computes the divergence from a teacher, if there is one; the
//! other computes the rest of the loss and the complete gradient.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_max, cube_sum, cubecl, cubes, element, in_rows,
    units_of, unwritten, vector_of, vector_total,
};
use super::{
    Distillation, Divergence, LEAST_LOG_REST, TINY, TokenLoss, TokenLossKernel,
    portable_loss_and_grad,
};
use burn::tensor::{DType, FloatDType};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any logit. Finite, because WGSL has no infinity.
const LEAST: f32 = -1e30;

/// Returns the largest element of a row, and the sum of `exp((x - largest) * factor)`.
#[cube]
fn exponential_sum<L: Float, N: Size>(
    logits: &Tensor<Vector<L, N>>,
    first: usize,
    vectors: usize,
    factor: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> (f32, f32) {
    let factors = Vector::<f32, N>::new(factor);
    let mut largest = Vector::<f32, N>::new(LEAST);
    let mut sums = Vector::<f32, N>::new(0.0);
    for i in range_stepped(UNIT_POS as usize, vectors, units) {
        let x = Vector::<f32, N>::cast_from(logits[first + i]);
        let before = largest;
        largest = max(before, x);
        sums = sums * ((before - largest) * factors).exp() + ((x - largest) * factors).exp();
    }
    let mut most = largest.extract(0usize);
    #[unroll]
    for j in 1..N::value() {
        most = max(most, largest.extract(j));
    }
    let most = cube_max(most, scratch, units);
    let sums = sums * ((largest - Vector::new(most)) * factors).exp();
    (most, cube_sum(vector_total(sums), scratch, units))
}

/// Returns the target's logit relative to the largest one, in the unit that has it; 0 in the others.
#[cube]
fn of_target<L: Float, N: Size>(
    logits: &Tensor<Vector<L, N>>,
    first: usize,
    target: usize,
    most: f32,
    #[comptime] units: usize,
) -> f32 {
    let target_vector = target / N::value();
    let mut picked = 0.0f32;
    if target_vector % units == UNIT_POS as usize {
        let x = Vector::<f32, N>::cast_from(logits[first + target_vector]);
        #[unroll]
        for j in 0..N::value() {
            if target_vector * N::value() + j == target {
                picked = x.extract(j) - most;
            }
        }
    }
    picked
}

#[cube(launch_unchecked)]
fn loss_kernel<L: Float, G: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<L, N>>,
    targets: &Tensor<I>,
    token_weights: &Tensor<f32>,
    // The teacher's part of each token's loss and its gradient; any tensors if there is no teacher.
    taught_losses: &Tensor<f32>,
    taught_grads: &Tensor<Vector<f32, N>>,
    losses: &mut Tensor<f32>,
    grads: &mut Tensor<Vector<G, N>>,
    rows: usize,
    vectors: usize,
    hard: f32,
    smoothing: f32,
    z_loss: f32,
    #[comptime] is_taught: bool,
    #[comptime] wants_grad: bool,
    #[comptime] units: usize,
    #[define(L, G, I)] _elements: [ElemType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let first = row * vectors;
    let (most, sum) = exponential_sum(logits, first, vectors, 1.0, &mut scratch, units);
    // The target's logit, which one unit finds, and the sum of all logits, relative to the largest one.
    let target = usize::cast_from(targets[row]);
    let target_vector = target / N::value();
    let mut total = Vector::<f32, N>::new(0.0);
    if smoothing != 0.0 {
        for i in range_stepped(UNIT_POS as usize, vectors, units) {
            total += Vector::<f32, N>::cast_from(logits[first + i]) - Vector::new(most);
        }
    }
    let picked = of_target(logits, first, target, most, units);
    let picked = cube_sum(picked, &mut scratch, units);
    let total = cube_sum(vector_total(total), &mut scratch, units);

    let count = f32::cast_from(vectors * N::value());
    let weight = token_weights[row];
    let log_sum = sum.ln();
    let log_sum_exp = most + log_sum;
    let cross_entropy = log_sum - (1.0 - smoothing) * picked - smoothing * total / count;
    let mut loss = hard * cross_entropy + z_loss * log_sum_exp * log_sum_exp;
    if comptime!(is_taught) {
        loss += taught_losses[row];
    }
    if UNIT_POS == 0 {
        losses[row] = loss * weight;
    }
    if comptime!(wants_grad) {
        let of_probs = Vector::<f32, N>::new((hard + 2.0 * z_loss * log_sum_exp) * weight / sum);
        let everywhere = Vector::<f32, N>::new(hard * smoothing / count * weight);
        let of_target = hard * (1.0 - smoothing) * weight;
        for i in range_stepped(UNIT_POS as usize, vectors, units) {
            let x = Vector::<f32, N>::cast_from(logits[first + i]);
            let mut grad = (x - Vector::new(most)).exp() * of_probs - everywhere;
            if comptime!(is_taught) {
                grad += taught_grads[first + i] * Vector::new(weight);
            }
            if i == target_vector {
                #[unroll]
                for j in 0..N::value() {
                    if i * N::value() + j == target {
                        let other = grad.extract(j) - of_target;
                        grad.insert(j, other);
                    }
                }
            }
            grads[first + i] = Vector::cast_from(grad);
        }
    }
}

/// Returns what a token or the bucket adds to the divergence, from the log probabilities of teacher and
/// student; and its `w`.
#[cube]
fn bin(log_p: f32, log_q: f32, beta: f32, #[comptime] kind: u32) -> (f32, f32) {
    let (p, q) = (log_p.exp(), log_q.exp());
    if comptime!(kind == FORWARD) {
        (p * (log_p - log_q), 0.0 - p)
    } else if comptime!(kind == REVERSE) {
        let w = q * (log_q - log_p);
        (w, w)
    } else {
        let log_m = max(p * beta + q * (1.0 - beta), TINY as f32).ln();
        let w = q * (log_q - log_m) * (1.0 - beta);
        (p * (log_p - log_m) * beta + w, w)
    }
}

/// Returns the largest logit of a row.
#[cube]
fn largest<L: Float>(
    logits: &Tensor<L>,
    first: usize,
    vocabulary: usize,
    scratch: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> f32 {
    let mut most = f32::new(LEAST);
    for i in range_stepped(UNIT_POS as usize, vocabulary, units) {
        most = max(most, f32::cast_from(logits[first + i]));
    }
    cube_max(most, scratch, units)
}

const FORWARD: u32 = 0;
const REVERSE: u32 = 1;
const JSD: u32 = 2;

#[cube(launch_unchecked)]
fn divergence_kernel<L: Float, I: Int>(
    logits: &Tensor<L>,
    teacher_tokens: &Tensor<I>,
    teacher_log_probs: &Tensor<f32>,
    losses: &mut Tensor<f32>,
    // Temporarily holds the exponentials of the other tokens, and at the teacher's tokens their negative
    // index.
    grads: &mut Tensor<f32>,
    // The gradients at the teacher's tokens.
    token_grads: &mut Tensor<f32>,
    rows: usize,
    vocabulary: usize,
    teacher_count: usize,
    temperature: f32,
    beta: f32,
    weight: f32,
    #[comptime] kind: u32,
    #[comptime] units: usize,
    #[define(L, I)] _elements: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let (first, first_bin) = (row * vocabulary, row * teacher_count);
    let factor = 1.0 / temperature;

    let most = largest(logits, first, vocabulary, &mut scratch, units);
    let mut sum = 0.0f32;
    for i in range_stepped(unit, vocabulary, units) {
        let exp = ((f32::cast_from(logits[first + i]) - most) * factor).exp();
        grads[first + i] = exp;
        sum += exp;
    }
    let log_sum = cube_sum(sum, &mut scratch, units).ln();
    sync_storage();
    for b in range_stepped(unit, teacher_count, units) {
        let token = usize::cast_from(teacher_tokens[first_bin + b]);
        grads[first + token] = 0.0 - f32::cast_from(b + 1);
    }
    sync_storage();
    let mut others = 0.0f32;
    for i in range_stepped(unit, vocabulary, units) {
        others += max(grads[first + i], 0.0);
    }
    let others = max(cube_sum(others, &mut scratch, units), TINY as f32);

    let log_rest = max(others.ln() - log_sum, LEAST_LOG_REST as f32);
    let first_log_p = row * (teacher_count + 1);
    let (rest_value, rest_w) =
        bin(teacher_log_probs[first_log_p + teacher_count], log_rest, beta, kind);
    let mut value = 0.0f32;
    let mut w_sum = 0.0f32;
    for b in range_stepped(unit, teacher_count, units) {
        let token = usize::cast_from(teacher_tokens[first_bin + b]);
        let log_q = (f32::cast_from(logits[first + token]) - most) * factor - log_sum;
        let (of_value, w) = bin(teacher_log_probs[first_log_p + b], log_q, beta, kind);
        value += of_value;
        w_sum += w;
    }
    let value = cube_sum(value, &mut scratch, units) + rest_value;
    let w_sum = cube_sum(w_sum, &mut scratch, units) + rest_w;
    if unit == 0 {
        losses[row] = value * weight * temperature;
    }
    for b in range_stepped(unit, teacher_count, units) {
        let token = usize::cast_from(teacher_tokens[first_bin + b]);
        let log_q = (f32::cast_from(logits[first + token]) - most) * factor - log_sum;
        let (_value, w) = bin(teacher_log_probs[first_log_p + b], log_q, beta, kind);
        token_grads[first_bin + b] = w - log_q.exp() * w_sum;
    }
    let of_others = (rest_w - log_rest.exp() * w_sum) / others;
    sync_storage();
    for i in range_stepped(unit, vocabulary, units) {
        let grad = of_logit(grads[first + i], token_grads, first_bin, of_others);
        grads[first + i] = grad * weight;
    }
}

/// Returns the gradient of a logit, from its exponential, or from the negative index of a teacher's token.
#[cube]
fn of_logit(exp: f32, token_grads: &mut Tensor<f32>, first_bin: usize, of_others: f32) -> f32 {
    let mut grad = exp * of_others;
    if exp < 0.0 {
        grad = token_grads[first_bin + usize::cast_from(0.0 - exp) - 1];
    }
    grad
}

/// Computes the teacher's part of each token's loss, `[tokens, 1]`, and its gradient, `[tokens, vocabulary]`,
/// in f32.
fn divergence(
    logits: &CubeTensor,
    [tokens, log_probs]: [CubeTensor; 2],
    distillation: Distillation,
) -> (CubeTensor, CubeTensor) {
    let ([rows, vocabulary], count) =
        ([logits.meta.shape()[0], logits.meta.shape()[1]], tokens.meta.shape()[1]);
    let losses = unwritten(logits, [rows, 1], DType::F32);
    let grads = unwritten(logits, [rows, vocabulary], DType::F32);
    let token_grads = unwritten(logits, [rows, count], DType::F32);
    let units = units_of(vocabulary, logits);
    let (cube_count, cube_dim) = cubes(rows, units, logits);
    let (kind, beta) = match distillation.divergence {
        Divergence::ForwardKl => (FORWARD, 0.0),
        Divergence::ReverseKl => (REVERSE, 0.0),
        Divergence::Jsd(beta) => (JSD, beta),
    };
    let elements = [element(logits), element(&tokens)];
    // SAFETY: each cube stays within its row of each tensor; the teacher's tokens are within the vocabulary,
    // as the operation requires.
    unsafe {
        divergence_kernel::launch_unchecked(
            &logits.client,
            cube_count,
            cube_dim,
            logits.clone().into_tensor_arg(),
            tokens.into_tensor_arg(),
            log_probs.into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            grads.clone().into_tensor_arg(),
            token_grads.into_tensor_arg(),
            rows,
            vocabulary,
            count,
            distillation.temperature as f32,
            beta as f32,
            (distillation.weight * distillation.temperature) as f32,
            kind,
            units,
            elements,
        );
    }
    (losses, grads)
}

impl TokenLossKernel for CubeBackend {
    fn token_loss(
        logits: CubeTensor,
        targets: CubeTensor,
        token_weights: CubeTensor,
        teacher_tokens: CubeTensor,
        teacher_log_probs: CubeTensor,
        terms: TokenLoss,
        dtype: FloatDType,
        wants_grad: bool,
    ) -> (CubeTensor, CubeTensor) {
        let are_right = are_short([&logits]) && token_weights.dtype == DType::F32;
        let teacher = [teacher_tokens, teacher_log_probs];
        if !are_right || dtype == FloatDType::F64 || teacher[1].dtype != DType::F32 {
            let [tokens, log_probs] = teacher;
            let teacher = terms.distillation.map(|_| (tokens, log_probs));
            let tokens = (targets, token_weights);
            return portable_loss_and_grad::<Self>(
                logits, tokens, terms, teacher, dtype, wants_grad,
            );
        }
        let [logits, targets, token_weights] = in_rows([logits, targets, token_weights]);
        let [rows, vocabulary] = [logits.meta.shape()[0], logits.meta.shape()[1]];
        // The gradient overwrites the logits if possible: each unit reads before it writes.
        let in_place =
            DType::from(dtype) == logits.dtype && logits.can_mut() && logits.is_nonoverlapping();
        let taught = terms.distillation.map(|distillation| {
            let teacher = in_rows(teacher);
            divergence(&logits, teacher, distillation)
        });
        let is_taught = taught.is_some();
        let (taught_losses, taught_grads) =
            taught.unwrap_or_else(|| (token_weights.clone(), logits.clone()));
        let losses = unwritten(&logits, [rows, 1], DType::F32);
        let grads = match in_place || !wants_grad {
            true => logits.clone(),
            false => unwritten(&logits, [rows, vocabulary], dtype.into()),
        };
        let grads_arg = match in_place || !wants_grad {
            true => grads.as_tensor_alias(0),
            false => grads.clone().into_tensor_arg(),
        };
        let vector = vector_of(vocabulary, [&logits, &taught_grads, &grads]);
        let units = units_of(vocabulary / vector, &logits);
        let (cube_count, cube_dim) = cubes(rows, units, &logits);
        let elements = [element(&logits), element(&grads), element(&targets)];
        // SAFETY: each cube stays within its row of each tensor.
        unsafe {
            loss_kernel::launch_unchecked(
                &logits.client.clone(),
                cube_count,
                cube_dim,
                vector,
                logits.into_tensor_arg(),
                targets.into_tensor_arg(),
                token_weights.into_tensor_arg(),
                taught_losses.into_tensor_arg(),
                taught_grads.into_tensor_arg(),
                losses.clone().into_tensor_arg(),
                grads_arg,
                rows,
                vocabulary / vector,
                terms.hard() as f32,
                terms.label_smoothing as f32,
                terms.z_loss as f32,
                is_taught,
                wants_grad,
                units,
                elements,
            );
        }
        (losses, grads)
    }
}
