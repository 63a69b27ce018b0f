//! The kernel for flex. A task handles one head of one batch row in blocks of queries; the scores
//! of a block see only the keys from the start of the block's first segment to its last query.

use super::super::kernel::{self, Buffer, Matrix, MatrixMut, SharedMut, Threads, simd_fn};
use super::{AttentionKernel, AttentionShape, Extent, Saved, portable};
use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use rayon::prelude::*;
use std::ops::Range;

/// Queries in one block.
const QUERY_BLOCK: usize = 64;

impl AttentionKernel for Flex {
    /// The log-sum-exp is `[batch, heads, seq]`.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        segment_starts: IntTensor<Self>,
        extent: Extent,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = extent.shape;
        let starts = segments(segment_starts.clone(), shape);
        if !kernel::all_f32([&q, &k, &v]) {
            let whole = Extent { shape, longest: shape.seq };
            return portable::forward::<Self>(q, k, v, segment_starts, whole);
        }
        let [q, k, v] = [q, k, v].map(kernel::contiguous);
        let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.storage::<f32>());
        let mut out = Buffer::any(shape.tokens() * shape.width());
        let mut log_sum_exp = vec![0.0; shape.tokens() * shape.heads];
        let out_all = out.shared();
        // One run of `seq` per batch row and head.
        log_sum_exp.par_chunks_exact_mut(shape.seq).enumerate().for_each_init(
            || Buffer::any(QUERY_BLOCK * shape.seq),
            |scores, (task, log_sum_exp)| {
                let (row, head) = (task / shape.heads, task % shape.heads);
                let task = Task { shape, starts: &starts[row * shape.seq..], row, head };
                task.forward([q, k, v], scores, out_all, log_sum_exp);
            },
        );
        let out = out.into_tensor([shape.tokens(), shape.width()]);
        (out, kernel::from_vec(log_sum_exp, [shape.batch, shape.heads, shape.seq]))
    }

    fn attention_backward(
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        extent: Extent,
    ) -> [FloatTensor<Self>; 3] {
        if !kernel::all_f32([&grad, &saved.q, &saved.k, &saved.v]) {
            let whole = Extent { longest: extent.shape.seq, ..extent };
            return portable::backward::<Self>(grad, saved, whole);
        }
        let shape = extent.shape;
        let Saved { q, k, v, segment_starts, out, log_sum_exp } = saved;
        let starts = segments(segment_starts, shape);
        let inputs = [q, k, v, out, grad, log_sum_exp].map(kernel::contiguous);
        let inputs = inputs.each_ref().map(|tensor| tensor.storage::<f32>());
        let mut grad_q = Buffer::any(shape.tokens() * shape.width());
        let mut grad_k = Buffer::zeros(shape.tokens() * shape.kv_width());
        let mut grad_v = Buffer::zeros(shape.tokens() * shape.kv_width());
        let outputs = [grad_q.shared(), grad_k.shared(), grad_v.shared()];
        // A task owns a key-value head, so that its gradients are summed in one order.
        (0..shape.batch * shape.kv_heads).into_par_iter().for_each_init(
            || [0, 1].map(|_| Buffer::any(QUERY_BLOCK * shape.seq)),
            |scratch, task| {
                let (row, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
                for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
                    let task = Task { shape, starts: &starts[row * shape.seq..], row, head };
                    task.backward(inputs, scratch, outputs);
                }
            },
        );
        let grad_q = grad_q.into_tensor([shape.tokens(), shape.width()]);
        let kv_size = [shape.tokens(), shape.kv_width()];
        [grad_q, grad_k.into_tensor(kv_size), grad_v.into_tensor(kv_size)]
    }
}

/// The segment starts, checked: the blocks below rely on them to stay within their row.
fn segments(segment_starts: IntTensor<Flex>, shape: AttentionShape) -> Vec<usize> {
    let starts = kernel::indices(segment_starts, shape.seq, "causal_attention: segment start");
    for (row, starts) in starts.chunks_exact(shape.seq).enumerate() {
        let mut before = 0;
        for (token, &start) in starts.iter().enumerate() {
            assert!(
                start <= token,
                "causal_attention: segment start {start} of token {token} in row {row} lies \
                 after the token"
            );
            assert!(
                start >= before,
                "causal_attention: segment start {start} of token {token} in row {row} lies \
                 before that of the token before it, {before}"
            );
            before = start;
        }
    }
    starts
}

/// One head of one batch row.
struct Task<'a> {
    shape: AttentionShape,
    /// Segment starts of this row's tokens (and of the rows after it).
    starts: &'a [usize],
    row: usize,
    head: usize,
}

/// Some consecutive queries of a task.
struct Block {
    /// Indices within the batch row.
    queries: Range<usize>,
    /// Keys that some query of the block sees.
    keys: Range<usize>,
    /// Place of the first query's head in `q`, the output and their gradients.
    q_offset: usize,
    /// Place of the first key's head in `k`, `v` and their gradients.
    kv_offset: usize,
}

impl Task<'_> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let shape = self.shape;
        let kv_head = self.head / shape.group();
        (0..shape.seq).step_by(QUERY_BLOCK).map(move |first| {
            let end = (first + QUERY_BLOCK).min(shape.seq);
            let key = self.starts[first];
            let token = self.row * shape.seq;
            Block {
                queries: first..end,
                keys: key..end,
                q_offset: (token + first) * shape.width() + self.head * shape.head_dim,
                kv_offset: (token + key) * shape.kv_width() + kv_head * shape.head_dim,
            }
        })
    }

    /// For each query of the block, its index and the range of its keys within the block's.
    fn visible(&self, block: &Block) -> impl Iterator<Item = (usize, Range<usize>)> {
        let first = block.keys.start;
        block
            .queries
            .clone()
            .map(move |query| (query, self.starts[query] - first..query + 1 - first))
    }

    /// The block's queries in a tensor like `q`.
    fn queries<'b>(&self, data: &'b [f32], block: &Block) -> Matrix<'b> {
        let size = [block.queries.len(), self.shape.head_dim];
        Matrix::new(&data[block.q_offset..], size, [self.shape.width(), 1])
    }

    /// The block's keys in a tensor like `k`.
    fn keys<'b>(&self, data: &'b [f32], block: &Block) -> Matrix<'b> {
        let size = [block.keys.len(), self.shape.head_dim];
        Matrix::new(&data[block.kv_offset..], size, [self.shape.kv_width(), 1])
    }

    /// Writes this head's columns of the row's outputs, and its log-sum-exps.
    fn forward(
        &self,
        [q, k, v]: [&[f32]; 3],
        scores: &mut [f32],
        out: SharedMut,
        log_sum_exp: &mut [f32],
    ) {
        let (width, dim) = (self.shape.width(), self.shape.head_dim);
        let scale = self.shape.scale() as f32;
        for block in self.blocks() {
            let size @ [rows, cols] = [block.queries.len(), block.keys.len()];
            let scores = &mut scores[..rows * cols];
            MatrixMut::dense(scores, size).set_product(
                scale,
                self.queries(q, &block),
                self.keys(k, &block).transposed(),
                Threads::One,
            );
            let mut sums = [0.0; QUERY_BLOCK];
            let queries = scores.chunks_exact_mut(cols).zip(self.visible(&block));
            for ((scores, (query, visible)), sum) in queries.zip(&mut sums) {
                let max = exp_scores(scores, visible.start, visible.end, sum);
                log_sum_exp[query] = max + sum.ln();
            }
            // SAFETY: this head's columns of these queries belong to this task alone.
            let outputs = unsafe { out.matrix(block.q_offset, [rows, dim], width) };
            let probs = Matrix::dense(scores, size);
            outputs.set_product(1.0, probs, self.keys(v, &block), Threads::One);
            for (index, sum) in sums[..rows].iter().enumerate() {
                let start = block.q_offset + index * width;
                // SAFETY: as above, and the product has written them.
                let outputs = unsafe { out.slice(start..start + dim) };
                outputs.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }

    /// Writes this head's columns of the row's query gradients, and adds to those of its
    /// key-value head.
    fn backward(
        &self,
        [q, k, v, out, grad, log_sum_exp]: [&[f32]; 6],
        [probs, slopes]: &mut [Buffer; 2],
        [grad_q, grad_k, grad_v]: [SharedMut; 3],
    ) {
        let shape = self.shape;
        let (width, kv_width, dim) = (shape.width(), shape.kv_width(), shape.head_dim);
        let scale = shape.scale() as f32;
        let log_sum_exp = &log_sum_exp[(self.row * shape.heads + self.head) * shape.seq..];
        for block in self.blocks() {
            let size @ [rows, cols] = [block.queries.len(), block.keys.len()];
            let (probs, slopes) = (&mut probs[..rows * cols], &mut slopes[..rows * cols]);
            let (queries, keys) = (self.queries(q, &block), self.keys(k, &block));
            let (grads, values) = (self.queries(grad, &block), self.keys(v, &block));
            MatrixMut::dense(probs, size).set_product(
                scale,
                queries,
                keys.transposed(),
                Threads::One,
            );
            MatrixMut::dense(slopes, size).set_product(
                scale,
                grads,
                values.transposed(),
                Threads::One,
            );
            for (index, (query, visible)) in self.visible(&block).enumerate() {
                let start = block.q_offset + index * width;
                let (out, grad) = (&out[start..start + dim], &grad[start..start + dim]);
                let mean = kernel::dot(out, grad) * scale;
                let scores = index * cols..(index + 1) * cols;
                let (probs, slopes) = (&mut probs[scores.clone()], &mut slopes[scores]);
                score_grads(probs, slopes, [visible.start, visible.end], log_sum_exp[query], mean);
            }
            let (probs, slopes) = (Matrix::dense(probs, size), Matrix::dense(slopes, size));
            // SAFETY: this head's columns of `grad_q`, and its key-value head's columns of
            // `grad_k` and `grad_v`, which started as zeros, belong to this task alone.
            let [grad_q, grad_k, grad_v] = unsafe {
                [
                    grad_q.matrix(block.q_offset, [rows, dim], width),
                    grad_k.matrix(block.kv_offset, [cols, dim], kv_width),
                    grad_v.matrix(block.kv_offset, [cols, dim], kv_width),
                ]
            };
            grad_v.add_product(probs.transposed(), grads, Threads::One);
            grad_k.add_product(slopes.transposed(), queries, Threads::One);
            grad_q.set_product(1.0, slopes, keys, Threads::One);
        }
    }
}

simd_fn! {
    /// Replaces the scores in `start..end` by `exp(score - max)` and the others by 0; returns `max`.
    fn exp_scores(scores: &mut [f32], start: usize, end: usize, sum: &mut f32) -> f32 {
        scores[..start].fill(0.0);
        scores[end..].fill(0.0);
        let scores = &mut scores[start..end];
        let max = kernel::max(scores);
        *sum = kernel::exp_sum(scores, max);
        max
    }
}

simd_fn! {
    /// Turns scores into probabilities, and the (scaled) gradient of the probabilities into that
    /// of the scores; `mean` is the (scaled) sum of the probabilities times their gradients.
    fn score_grads(
        probs: &mut [f32],
        slopes: &mut [f32],
        range: [usize; 2],
        log_sum_exp: f32,
        mean: f32,
    ) {
        let [start, end] = range;
        for row in [&mut *probs, &mut *slopes] {
            row[..start].fill(0.0);
            row[end..].fill(0.0);
        }
        for (prob, slope) in probs[start..end].iter_mut().zip(&mut slopes[start..end]) {
            *prob = kernel::exp(*prob - log_sum_exp);
            *slope = *prob * (*slope - mean);
        }
    }
}
