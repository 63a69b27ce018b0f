//! Kernels for GPUs: what lies between the matrix products of attention, row by row.
//!
//! Queries are taken in blocks. A block's scores are one product; softmax with its mask, or the slopes of the
//! scores, are one pass over them. Queries, keys and values are laid out by key and value head before, so that
//! heads that share keys are rows of one matrix.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubes, element, in_rows, product, units, units_of,
    unwritten, vector_of,
};
use super::{AttentionKernel, AttentionShape, Extent, Saved, flash, portable};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::zeros_client;
use std::ops::Range;

mod kernels;

/// Most scores of a block, in elements (256 MiB in f32).
const SCORES: usize = 64 * 1024 * 1024;
/// Blocks of a long row: a block's products are as wide as its last query sees, so that more blocks compute less
/// that nobody sees, and fewer are started faster.
const BLOCKS: usize = 4;
/// Queries of a block, where the row has as many, that keep a GPU busy.
const QUERIES: usize = 256;

/// Queries of a block.
fn query_block(Extent { shape, longest }: Extent) -> usize {
    let wanted = shape.seq.div_ceil(BLOCKS).max(QUERIES).min(longest.max(QUERIES));
    let keys = (wanted + longest).min(shape.seq);
    let most = SCORES / (shape.batch * shape.heads * keys).max(1);
    wanted.min(most).clamp(1, shape.seq)
}

fn blocks(extent: Extent) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let (seq, block) = (extent.shape.seq, query_block(extent));
    (0..seq.div_ceil(block)).map(move |i| i * block..((i + 1) * block).min(seq))
}

/// One call's sizes, and what its kernels are given.
struct Call {
    extent: Extent,
    shape: AttentionShape,
    starts: CubeTensor,
    /// Type of the inputs and of the matrix products' factors.
    dtype: DType,
}

impl Call {
    fn new(extent: Extent, starts: CubeTensor, dtype: DType) -> Self {
        Self { extent, shape: extent.shape, starts, dtype }
    }

    fn matrices(&self) -> usize {
        self.shape.batch * self.shape.kv_heads
    }

    /// The keys that queries may see: none after the last, none before the longest segment that ends
    /// with the first.
    fn keys_of(&self, queries: &Range<usize>) -> Range<usize> {
        (queries.start + 1).saturating_sub(self.extent.longest)..queries.end
    }

    /// Some rows of `[tokens, heads * dim]` as `[batch * kv_heads, group * rows, dim]`.
    fn by_head(&self, x: &CubeTensor, heads: usize, rows: &Range<usize>) -> CubeTensor {
        let (dim, group) = (self.shape.head_dim, heads / self.shape.kv_heads);
        let out = unwritten(x, [self.matrices(), group * rows.len(), dim], x.dtype);
        let vector = vector_of(dim, [x]);
        let count = self.shape.batch * heads * rows.len() * dim / vector;
        let (cube_count, cube_dim) = units(count, x);
        // SAFETY: a unit writes its own vector, and reads one of a token and head that are there.
        unsafe {
            kernels::gather_kernel::launch_unchecked(
                &x.client,
                cube_count,
                cube_dim,
                vector,
                x.clone().into_tensor_arg(),
                out.clone().into_tensor_arg(),
                count,
                self.shape.seq,
                rows.start,
                rows.len(),
                heads,
                dim / vector,
                element(x),
            );
        }
        out
    }

    /// Writes rows, as [`Call::by_head`] has them, to their places in `out`.
    fn to_tokens(&self, x: CubeTensor, out: &CubeTensor, heads: usize, rows: &Range<usize>) {
        let [x] = in_rows([x]);
        let dim = self.shape.head_dim;
        let vector = vector_of(dim, [&x, out]);
        let count = self.shape.batch * heads * rows.len() * dim / vector;
        let (cube_count, cube_dim) = units(count, &x);
        let elements = [element(&x), element(out)];
        // SAFETY: a unit reads its own vector, and writes that of its token and head, as no other does.
        unsafe {
            kernels::scatter_kernel::launch_unchecked(
                &out.client,
                cube_count,
                cube_dim,
                vector,
                x.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                count,
                self.shape.seq,
                rows.start,
                rows.len(),
                heads,
                dim / vector,
                elements,
            );
        }
    }

    /// Some rows of `[batch * kv_heads, seq, dim]`.
    fn rows_of(&self, x: &CubeTensor, rows: &Range<usize>) -> CubeTensor {
        slice(x.clone(), &[0..self.matrices(), rows.clone(), 0..self.shape.head_dim])
    }

    /// Adds rows to a sum in f32, which is all zeros where there is none.
    fn add_rows(&self, sum: &mut Option<CubeTensor>, part: CubeTensor, rows: &Range<usize>) {
        let (seq, dim) = (self.shape.seq, self.shape.head_dim);
        let [part] = in_rows([part]);
        if sum.is_none() && *rows == (0..seq) {
            *sum = Some(part);
            return;
        }
        let sum = sum.get_or_insert_with(|| {
            let size = [self.matrices(), seq, dim].into();
            zeros_client(part.client.clone(), part.device.clone(), size, DType::F32)
        });
        let vector = vector_of(dim, [&part]);
        let count = self.matrices() * rows.len() * dim / vector;
        let (cube_count, cube_dim) = units(count, &part);
        // SAFETY: a unit adds to the vector of its matrix and row, as no other does.
        unsafe {
            kernels::add_kernel::launch_unchecked(
                &part.client.clone(),
                cube_count,
                cube_dim,
                vector,
                part.into_tensor_arg(),
                sum.clone().into_tensor_arg(),
                count,
                seq,
                rows.start,
                rows.len(),
                dim / vector,
            );
        }
    }

    /// The products of a block's queries and keys, in f32.
    fn products(&self, queries: &CubeTensor, keys: &CubeTensor) -> CubeTensor {
        product(queries.clone(), CubeBackend::float_transpose(keys.clone()), DType::F32)
    }

    /// Probabilities of the products; writes the log-sum-exp of the queries.
    fn softmax(
        &self,
        scores: CubeTensor,
        log_sum_exps: &CubeTensor,
        queries: &Range<usize>,
    ) -> CubeTensor {
        let (heads, keys) = (self.shape.heads, self.keys_of(queries));
        let all_rows = self.shape.batch * heads * queries.len();
        let [scores] = in_rows([scores]);
        let in_place = self.dtype == DType::F32;
        let probs = match in_place {
            true => scores.clone(),
            false => unwritten(&scores, scores.meta.shape().clone(), self.dtype),
        };
        let vector = vector_of(keys.len(), [&scores, &probs]);
        let units = units_of(keys.len() / vector, &scores);
        let (cube_count, cube_dim) = cubes(all_rows, units, &scores);
        let elements = [element(&probs), element(&self.starts)];
        let probs_arg = match in_place {
            true => probs.as_tensor_alias(0),
            false => probs.clone().into_tensor_arg(),
        };
        // SAFETY: a cube stays within its row of scores, and writes where its units have read.
        unsafe {
            kernels::softmax_kernel::launch_unchecked(
                &scores.client.clone(),
                cube_count,
                cube_dim,
                vector,
                scores.into_tensor_arg(),
                self.starts.clone().into_tensor_arg(),
                probs_arg,
                log_sum_exps.clone().into_tensor_arg(),
                all_rows,
                self.shape.seq,
                heads,
                queries.start,
                queries.len(),
                keys.start,
                keys.len() / vector,
                self.shape.scale() as f32,
                units,
                elements,
            );
        }
        probs
    }

    /// Probabilities, and the gradients of the products of queries and keys.
    fn slopes(
        &self,
        [scores, grads]: [CubeTensor; 2],
        sums: &CubeTensor,
        queries: &Range<usize>,
    ) -> [CubeTensor; 2] {
        let (heads, keys) = (self.shape.heads, self.keys_of(queries));
        let [scores, grads] = in_rows([scores, grads]);
        let in_place = self.dtype == DType::F32;
        let [probs, slopes] = [&scores, &grads].map(|x| match in_place {
            true => x.clone(),
            false => unwritten(x, x.meta.shape().clone(), self.dtype),
        });
        let vector = vector_of(keys.len(), [&scores, &probs]);
        let count = self.shape.batch * heads * queries.len() * keys.len() / vector;
        let (cube_count, cube_dim) = units(count, &scores);
        let elements = [element(&probs), element(&self.starts)];
        let [probs_arg, slopes_arg] = match in_place {
            true => [probs.as_tensor_alias(0), slopes.as_tensor_alias(1)],
            false => [probs.clone().into_tensor_arg(), slopes.clone().into_tensor_arg()],
        };
        // SAFETY: a unit reads and writes its own vectors.
        unsafe {
            kernels::slopes_kernel::launch_unchecked(
                &scores.client.clone(),
                cube_count,
                cube_dim,
                vector,
                scores.into_tensor_arg(),
                grads.into_tensor_arg(),
                self.starts.clone().into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                probs_arg,
                slopes_arg,
                count,
                self.shape.seq,
                heads,
                queries.start,
                queries.len(),
                keys.start,
                keys.len() / vector,
                self.shape.scale() as f32,
                elements,
            );
        }
        [probs, slopes]
    }

    /// What the backward pass needs to know of each query and head: its log-sum-exp, and the sum over its keys of each
    /// probability times its gradient.
    fn sums(&self, grad: &CubeTensor, out: CubeTensor, log_sum_exps: CubeTensor) -> CubeTensor {
        let AttentionShape { batch, seq, heads, head_dim, .. } = self.shape;
        let sums = unwritten(grad, [batch, heads, seq, 2], DType::F32);
        let vector = vector_of(head_dim, [grad]);
        let count = batch * heads * seq;
        let (cube_count, cube_dim) = units(count, grad);
        // SAFETY: a unit reads its token's head in both, and writes its own sums.
        unsafe {
            kernels::sums_kernel::launch_unchecked(
                &grad.client,
                cube_count,
                cube_dim,
                vector,
                grad.clone().into_tensor_arg(),
                out.into_tensor_arg(),
                log_sum_exps.into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                count,
                seq,
                heads,
                head_dim / vector,
                element(grad),
            );
        }
        sums
    }

    /// The output and the log-sum-exps, block by block.
    fn forward(&self, [q, k, v]: [CubeTensor; 3]) -> (CubeTensor, CubeTensor) {
        let (shape, extent) = (self.extent.shape, self.extent);
        let [keys, values] = [k, v].map(|x| self.by_head(&x, shape.kv_heads, &(0..shape.seq)));
        let out = unwritten(&q, [shape.tokens(), shape.width()], q.dtype);
        let sizes = [shape.batch, shape.kv_heads, shape.group(), shape.seq, 1];
        let log_sum_exps = unwritten(&q, sizes, DType::F32);
        for queries in blocks(extent) {
            let seen = self.keys_of(&queries);
            let rows = self.by_head(&q, shape.heads, &queries);
            let scores = self.products(&rows, &self.rows_of(&keys, &seen));
            let probs = self.softmax(scores, &log_sum_exps, &queries);
            let mixed = product(probs, self.rows_of(&values, &seen), self.dtype);
            self.to_tokens(mixed, &out, shape.heads, &queries);
        }
        (out, log_sum_exps)
    }

    /// The gradients of queries, keys and values, block by block.
    fn backward(
        &self,
        [q, k, v, grad]: [CubeTensor; 4],
        sums: &CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (shape, extent) = (self.extent.shape, self.extent);
        let [keys, values] = [k, v].map(|x| self.by_head(&x, shape.kv_heads, &(0..shape.seq)));
        let grad_q = unwritten(&q, [shape.tokens(), shape.width()], q.dtype);
        let (mut grad_k, mut grad_v) = (None, None);
        // From the last block: where it sees all keys, the sums have their full size from the start.
        for queries in blocks(extent).rev() {
            let seen = self.keys_of(&queries);
            let of_block = |x: &CubeTensor| self.by_head(x, shape.heads, &queries);
            let (rows, row_grads) = (of_block(&q), of_block(&grad));
            let (keys, values) = (self.rows_of(&keys, &seen), self.rows_of(&values, &seen));
            let scores = self.products(&rows, &keys);
            let prob_grads = self.products(&row_grads, &values);
            let [probs, slopes] = self.slopes([scores, prob_grads], sums, &queries);
            let transposed = |x: &CubeTensor| CubeBackend::float_transpose(x.clone());
            let part = product(transposed(&probs), row_grads, DType::F32);
            self.add_rows(&mut grad_v, part, &seen);
            let part = product(transposed(&slopes), rows, DType::F32);
            self.add_rows(&mut grad_k, part, &seen);
            self.to_tokens(product(slopes, keys, self.dtype), &grad_q, shape.heads, &queries);
        }
        let [grad_k, grad_v] = [grad_k, grad_v].map(|sum| {
            let out = unwritten(&q, [shape.tokens(), shape.kv_width()], q.dtype);
            if let Some(sum) = sum {
                self.to_tokens(sum, &out, shape.kv_heads, &(0..shape.seq));
            }
            out
        });
        (grad_q, grad_k, grad_v)
    }
}

/// Whether the scores of long rows stay within tiles, and are not blocks in memory.
///
/// Products of blocks use what a GPU has for products of 16 bits, which the tiles' do not; in f32 both
/// are sums of units. A rule and no measurement, so that the same row has the same bits in every run.
fn is_tiled(Extent { shape, longest }: Extent, x: &CubeTensor) -> bool {
    let from = if x.dtype == DType::F32 { 4 * 1024 } else { 32 * 1024 };
    longest.min(shape.seq) >= from && flash::fits(shape, x)
}

impl AttentionKernel for CubeBackend {
    fn attention_forward(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        segment_starts: CubeTensor,
        extent: Extent,
    ) -> (CubeTensor, CubeTensor) {
        if !are_short([&q, &k, &v]) || q.dtype != k.dtype || q.dtype != v.dtype {
            return portable::forward::<Self>(q, k, v, segment_starts, extent);
        }
        let [q, k, v, starts] = in_rows([q, k, v, segment_starts]);
        match is_tiled(extent, &q) {
            true => flash::forward([q, k, v, starts], extent),
            false => Call::new(extent, starts, q.dtype).forward([q, k, v]),
        }
    }

    fn attention_backward(
        grad: CubeTensor,
        saved: Saved<Self>,
        extent: Extent,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let types = [&grad, &saved.q, &saved.k, &saved.v];
        if !are_short(types) || types.iter().any(|x| x.dtype != grad.dtype) {
            return portable::backward::<Self>(grad, saved, extent);
        }
        let Saved { q, k, v, segment_starts, out, log_sum_exp } = saved;
        let [q, k, v, starts] = in_rows([q, k, v, segment_starts]);
        let [grad, out, log_sum_exp] = in_rows([grad, out, log_sum_exp]);
        let call = Call::new(extent, starts, q.dtype);
        let sums = call.sums(&grad, out, log_sum_exp);
        match is_tiled(extent, &q) {
            true => flash::backward([q, k, v, grad, call.starts, sums], extent),
            false => call.backward([q, k, v, grad], &sums),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
