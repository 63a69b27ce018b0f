//! GPU kernels for the steps between the matrix products of attention, row by row.
//!
//! Queries are processed in blocks. A block's scores are one product. The masked softmax, or the gradients of
//! the scores, are one pass over them. Queries, keys, and values are first rearranged by key and value head,
//! so that heads that share keys are rows of one matrix.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cubecl::prelude::TensorArg, cubes, element, in_rows,
    most_elements, product, product_to, units, units_of, unwritten, vector_of, zeroed,
};
use super::{AttentionKernel, AttentionShape, Extent, Saved, flash, portable};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::kernel::slice;
use std::ops::Range;

mod kernels;
pub(super) use kernels::LEAST;

/// Maximum scores per block, in elements (256 MiB in f32).
const SCORES: usize = 64 * 1024 * 1024;
/// Blocks of a long row. A block's products are as wide as what its last query sees, so more blocks waste
/// less work on hidden scores, and fewer blocks launch faster.
const BLOCKS: usize = 4;
/// Queries per block that keep a GPU busy, if the row has as many.
const QUERIES: usize = 256;

/// Returns the number of queries per block: a multiple of `step`, so that blocks start at aligned addresses,
/// with at most `most` scores unless a single step has more.
fn query_block(Extent { shape, longest }: Extent, step: usize, most: usize) -> usize {
    let wanted = shape.seq.div_ceil(BLOCKS).max(QUERIES).min(longest.max(QUERIES));
    let keys = (wanted + longest).min(shape.seq);
    let most = most / (shape.batch * shape.heads * keys).max(1);
    let block = match wanted <= most {
        true => wanted.next_multiple_of(step),
        false => most / step * step,
    };
    block.max(step).min(shape.seq)
}

/// Sizes of a call and the arguments of its kernels.
struct Call {
    extent: Extent,
    shape: AttentionShape,
    starts: CubeTensor,
    /// Type of the inputs and of the factors of matrix products.
    dtype: DType,
    /// Queries per block.
    block: usize,
}

impl Call {
    fn new(extent: Extent, starts: CubeTensor, dtype: DType) -> Self {
        let shape = extent.shape;
        let alignment = starts.client.properties().memory.alignment;
        // The fewest queries whose rows, over all heads, end at an aligned address.
        let of_query = shape.batch * shape.heads * shape.head_dim * dtype.size();
        let step = (1..alignment as usize)
            .find(|step| (of_query * step).is_multiple_of(alignment as usize))
            .unwrap_or(alignment as usize);
        let most = SCORES.min(most_elements(&starts.client, DType::F32));
        let block = query_block(extent, step, most);
        Self { extent, shape: extent.shape, starts, dtype, block }
    }

    fn blocks(&self) -> impl DoubleEndedIterator<Item = Range<usize>> {
        let (seq, block) = (self.shape.seq, self.block);
        (0..seq.div_ceil(block)).map(move |i| i * block..((i + 1) * block).min(seq))
    }

    fn matrices(&self) -> usize {
        self.shape.batch * self.shape.kv_heads
    }

    /// Returns the keys that queries may see: none after the last query, and none before the longest segment
    /// that ends with the first query.
    fn keys_of(&self, queries: &Range<usize>) -> Range<usize> {
        (queries.start + 1).saturating_sub(self.extent.longest)..queries.end
    }

    /// Returns the layout by head, with vectors of `vector` elements and blocks of `block` tokens.
    fn layout(&self, heads: usize, block: usize, vector: usize) -> kernels::ByHeadLaunch {
        let AttentionShape { batch, seq, head_dim, .. } = self.shape;
        let vectors = head_dim / vector;
        let count = batch * heads * seq * vectors;
        let of_block = batch * heads * block * vectors;
        kernels::ByHeadLaunch::new(count, seq, block, of_block, heads, vectors)
    }

    /// Rearranges one or two tensors `[tokens, heads * dim]` by head, to `[batch * heads * seq, dim]`, or
    /// back with `to_tokens`.
    fn lay_out<const N: usize>(
        &self,
        tensors: [&CubeTensor; N],
        heads: usize,
        block: usize,
        to_tokens: bool,
    ) -> [CubeTensor; N] {
        const { assert!(N == 1 || N == 2, "the kernel takes one or two") };
        let AttentionShape { batch, seq, head_dim, .. } = self.shape;
        let size = match to_tokens {
            true => [batch * seq, heads * head_dim],
            false => [batch * heads * seq, head_dim],
        };
        let outs = tensors.map(|x| unwritten(x, size, self.dtype));
        let (first, first_out) = (tensors[0], &outs[0]);
        let vector = vector_of(head_dim, [first, first_out]);
        let (cube_count, cube_dim) = units(batch * heads * seq * head_dim / vector, first);
        let second_out = match outs.get(1) {
            Some(out) => out.clone().into_tensor_arg(),
            None => first_out.as_tensor_alias(2),
        };
        // SAFETY: each unit reads one existing vector and writes the vector at its new place.
        unsafe {
            kernels::lay_out_kernel::launch_unchecked(
                &first.client,
                cube_count,
                cube_dim,
                vector,
                first.clone().into_tensor_arg(),
                tensors[N - 1].clone().into_tensor_arg(),
                first_out.clone().into_tensor_arg(),
                second_out,
                self.layout(heads, block, vector),
                N == 2,
                to_tokens,
                [element(first), element(first_out)],
            );
        }
        outs
    }

    /// Rearranges queries, or tensors of the same layout, by head in blocks.
    fn queries<const N: usize>(&self, tensors: [&CubeTensor; N]) -> [CubeTensor; N] {
        self.lay_out(tensors, self.shape.heads, self.block, false)
    }

    /// Rearranges keys and values by head, `[batch * kv_heads, seq, dim]`.
    fn keys_and_values(&self, tensors: [&CubeTensor; 2]) -> [CubeTensor; 2] {
        let AttentionShape { seq, kv_heads, head_dim, .. } = self.shape;
        let size = [self.matrices(), seq, head_dim];
        self.lay_out(tensors, kv_heads, seq, false).map(|x| with_shape(x, size))
    }

    /// Returns a block of the result of [`Call::queries`] as `[batch * kv_heads, group * rows, dim]`, in the
    /// same memory.
    fn block_of(&self, x: &CubeTensor, queries: &Range<usize>) -> CubeTensor {
        let AttentionShape { batch, heads, head_dim, .. } = self.shape;
        let start = batch * heads * queries.start * head_dim * x.dtype.size();
        let mut block = x.clone();
        block.handle = block.handle.offset_start(start as u64);
        with_shape(block, [self.matrices(), self.shape.group() * queries.len(), head_dim])
    }

    /// Returns a range of rows of `[batch * kv_heads, seq, dim]`.
    fn rows_of(&self, x: &CubeTensor, rows: &Range<usize>) -> CubeTensor {
        slice(x.clone(), &[0..self.matrices(), rows.clone(), 0..self.shape.head_dim])
    }

    /// Adds rows to two f32 sums, which start as zeros if there are none.
    fn add_rows(
        &self,
        sums: Option<[CubeTensor; 2]>,
        parts: [CubeTensor; 2],
        rows: &Range<usize>,
    ) -> [CubeTensor; 2] {
        let (seq, dim) = (self.shape.seq, self.shape.head_dim);
        if sums.is_none() && *rows == (0..seq) {
            return parts;
        }
        let zeros = |part| zeroed(part, [self.matrices(), seq, dim], DType::F32);
        let sums = sums.unwrap_or_else(|| [zeros(&parts[0]), zeros(&parts[1])]);
        let vector = vector_of(dim, [&parts[0]]);
        let count = self.matrices() * rows.len() * dim / vector;
        let (cube_count, cube_dim) = units(count, &parts[0]);
        let client = parts[0].client.clone();
        let [first, second] = parts.map(CubeTensor::into_tensor_arg);
        let [first_sums, second_sums] = sums.clone().map(CubeTensor::into_tensor_arg);
        // SAFETY: each unit adds to the vector of its own matrix and row.
        unsafe {
            kernels::add_kernel::launch_unchecked(
                &client,
                cube_count,
                cube_dim,
                vector,
                first,
                second,
                first_sums,
                second_sums,
                count,
                seq,
                rows.start,
                rows.len(),
                dim / vector,
            );
        }
        sums
    }

    /// Returns the products of a block's queries and keys, in f32.
    fn products(&self, queries: &CubeTensor, keys: &CubeTensor) -> CubeTensor {
        product(queries.clone(), CubeBackend::float_transpose(keys.clone()), DType::F32)
    }

    /// Returns the scores of a block, in vectors of `vector` keys.
    fn scores(&self, queries: &Range<usize>, vector: usize) -> kernels::ScoresLaunch {
        let AttentionShape { seq, heads, .. } = self.shape;
        let (keys, scale) = (self.keys_of(queries), self.shape.scale() as f32);
        let (rows, vectors) = (queries.len(), keys.len() / vector);
        kernels::ScoresLaunch::new(seq, heads, queries.start, rows, keys.start, vectors, scale)
    }

    /// Returns the output tensor of a pass over an f32 product, and its kernel argument. If the type allows,
    /// the output overwrites the product, which is argument `at` of the kernel.
    fn written_over(&self, x: &CubeTensor, at: usize) -> (CubeTensor, TensorArg) {
        if self.dtype == DType::F32 {
            return (x.clone(), x.as_tensor_alias(at));
        }
        let out = unwritten(x, x.meta.shape().clone(), self.dtype);
        (out.clone(), out.into_tensor_arg())
    }

    /// Turns products into probabilities and writes the log-sum-exp of each query.
    fn softmax(
        &self,
        scores: CubeTensor,
        log_sum_exps: &CubeTensor,
        queries: &Range<usize>,
    ) -> CubeTensor {
        let keys = self.keys_of(queries).len();
        let all_rows = self.shape.batch * self.shape.heads * queries.len();
        let (probs, probs_arg) = self.written_over(&scores, 0);
        let vector = vector_of(keys, [&scores, &probs]);
        let units = units_of(keys / vector, &scores);
        let (cube_count, cube_dim) = cubes(all_rows, units, &scores);
        // SAFETY: each cube stays within its row of scores and writes where its own units have read.
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
                self.scores(queries, vector),
                units,
                [element(&probs), element(&self.starts)],
            );
        }
        probs
    }

    /// Computes the probabilities and the gradients of the products of queries and keys.
    fn slopes(
        &self,
        [scores, grads]: [CubeTensor; 2],
        sums: &CubeTensor,
        queries: &Range<usize>,
    ) -> [CubeTensor; 2] {
        let keys = self.keys_of(queries).len();
        let (probs, probs_arg) = self.written_over(&scores, 0);
        let (slopes, slopes_arg) = self.written_over(&grads, 1);
        let vector = vector_of(keys, [&scores, &probs]);
        let count = self.shape.batch * self.shape.heads * queries.len() * keys / vector;
        let (cube_count, cube_dim) = units(count, &scores);
        // SAFETY: each unit reads and writes only its own vectors.
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
                self.scores(queries, vector),
                [element(&probs), element(&self.starts)],
            );
        }
        [probs, slopes]
    }

    /// Returns what the backward pass needs for each query and head: its log-sum-exp, and the sum over its
    /// keys of each probability times its gradient.
    fn sums(&self, grad: &CubeTensor, out: CubeTensor, log_sum_exps: CubeTensor) -> CubeTensor {
        let AttentionShape { batch, seq, heads, head_dim, .. } = self.shape;
        let sums = unwritten(grad, [batch, heads, seq, 2], DType::F32);
        let vector = vector_of(head_dim, [grad]);
        let (cube_count, cube_dim) = units(batch * heads * seq, grad);
        // SAFETY: each unit reads its token's head in both tensors and writes its own sums.
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
                self.layout(heads, seq, vector),
                element(grad),
            );
        }
        sums
    }

    /// Computes the output and the log-sum-exps, block by block.
    fn forward(&self, [q, k, v]: [CubeTensor; 3]) -> (CubeTensor, CubeTensor) {
        let shape = self.shape;
        let [keys, values] = self.keys_and_values([&k, &v]);
        let [rows] = self.queries([&q]);
        let mixed = unwritten(&rows, rows.meta.shape().clone(), self.dtype);
        let sizes = [shape.batch, shape.kv_heads, shape.group(), shape.seq, 1];
        let log_sum_exps = unwritten(&q, sizes, DType::F32);
        for queries in self.blocks() {
            let seen = self.keys_of(&queries);
            let rows = self.block_of(&rows, &queries);
            let scores = self.products(&rows, &self.rows_of(&keys, &seen));
            let probs = self.softmax(scores, &log_sum_exps, &queries);
            product_to(probs, self.rows_of(&values, &seen), self.block_of(&mixed, &queries));
        }
        let [out] = self.lay_out([&mixed], shape.heads, self.block, true);
        (out, log_sum_exps)
    }

    /// Computes the gradients of queries, keys, and values, block by block.
    fn backward(
        &self,
        [q, k, v, grad]: [CubeTensor; 4],
        sums: &CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let shape = self.shape;
        let [keys, values] = self.keys_and_values([&k, &v]);
        let [rows, row_grads] = self.queries([&q, &grad]);
        let grad_rows = unwritten(&rows, rows.meta.shape().clone(), self.dtype);
        let mut grad_sums = None;
        // Starts with the last block. It may see all keys, so that the sums have their full size from the
        // start.
        for queries in self.blocks().rev() {
            let seen = self.keys_of(&queries);
            let [rows, row_grads] = [&rows, &row_grads].map(|x| self.block_of(x, &queries));
            let [keys, values] = [&keys, &values].map(|x| self.rows_of(x, &seen));
            let scores = self.products(&rows, &keys);
            let prob_grads = self.products(&row_grads, &values);
            let [probs, slopes] = self.slopes([scores, prob_grads], sums, &queries);
            let transposed = |x: &CubeTensor| CubeBackend::float_transpose(x.clone());
            let parts = [
                product(transposed(&slopes), rows, DType::F32),
                product(transposed(&probs), row_grads, DType::F32),
            ];
            grad_sums = Some(self.add_rows(grad_sums, parts, &seen));
            product_to(slopes, keys, self.block_of(&grad_rows, &queries));
        }
        let [grad_q] = self.lay_out([&grad_rows], shape.heads, self.block, true);
        let [keys, values] = grad_sums.expect("a row has a block of queries");
        let [grad_k, grad_v] = self.lay_out([&keys, &values], shape.kv_heads, shape.seq, true);
        (grad_q, grad_k, grad_v)
    }
}

/// Reshapes a contiguous tensor.
fn with_shape(x: CubeTensor, shape: [usize; 3]) -> CubeTensor {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// Returns whether to compute the scores of long rows in tiles instead of in blocks in memory.
///
/// Products of blocks use 16-bit matrix hardware, which tiles do not; in f32 both use ordinary arithmetic.
/// This is a fixed rule instead of a measurement, so that the same row gives the same bits in every run.
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
