//! The kernel for flex. A task handles the query heads that share a key-value head, in blocks of queries. The
//! scores of a block cover only the keys from the start of the block's first segment to its last query. The
//! heads of a block form one matrix, so its keys and values are prepared only once for all of them.

use super::super::kernel::{self, Buffer, Matrix, MatrixMut, SharedMut, Threads, simd_fn};
use super::{AttentionKernel, AttentionShape, Extent, Saved, parts, portable, queries_in_block};
use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use rayon::prelude::*;
use std::ops::Range;

impl AttentionKernel for Flex {
    /// Returns the log-sum-exp as `[batch, heads, seq]`.
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
        let inputs = [q, k, v].map(kernel::contiguous);
        let inputs = inputs.each_ref().map(|tensor| tensor.storage::<f32>());
        let mut out = Buffer::any(shape.tokens() * shape.width());
        let mut log_sum_exp = Buffer::any(shape.tokens() * shape.heads);
        let outputs = [out.shared(), log_sum_exp.shared()];
        let blocks = shape.seq.div_ceil(queries_in_block(shape));
        (0..shape.batch * shape.kv_heads * blocks).into_par_iter().with_max_len(1).for_each_init(
            || Scratch::new(shape, 1),
            |scratch, index| {
                let task = Task::new(shape, &starts, index / blocks);
                let block = task.blocks().nth(index % blocks).expect("there are so many blocks");
                task.forward(&block, inputs, scratch, outputs);
            },
        );
        let out = out.into_tensor([shape.tokens(), shape.width()]);
        (out, log_sum_exp.into_tensor([shape.batch, shape.heads, shape.seq]))
    }

    fn attention_backward(
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        extent: Extent,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
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
        let parts = parts(shape);
        let zeros = || Buffer::zeros(shape.tokens() * shape.kv_width());
        // The gradients of keys and values that each part sums.
        let mut sums: Vec<[Buffer; 2]> = (0..parts).map(|_| [zeros(), zeros()]).collect();
        let grad_q_all = grad_q.shared();
        let sums_all: Vec<[SharedMut; 2]> =
            sums.iter_mut().map(|sums| sums.each_mut().map(Buffer::shared)).collect();
        (0..shape.batch * shape.kv_heads * parts).into_par_iter().with_max_len(1).for_each_init(
            || Scratch::new(shape, 2),
            |scratch, index| {
                let (part, task) = (index % parts, Task::new(shape, &starts, index / parts));
                for block in task.blocks().skip(part).step_by(parts) {
                    task.backward(&block, inputs, scratch, grad_q_all, sums_all[part]);
                }
            },
        );
        let sums =
            sums.into_iter().reduce(|[k, v], [more_k, more_v]| [add(k, &more_k), add(v, &more_v)]);
        let [grad_k, grad_v] = sums.expect("there is a part");
        let kv_size = [shape.tokens(), shape.kv_width()];
        let grad_q = grad_q.into_tensor([shape.tokens(), shape.width()]);
        (grad_q, grad_k.into_tensor(kv_size), grad_v.into_tensor(kv_size))
    }
}

/// Computes `sum + more`.
fn add(mut sum: Buffer, more: &[f32]) -> Buffer {
    /// Elements per parallel task.
    const BLOCK: usize = 16 * 1024;
    sum.par_chunks_mut(BLOCK).zip(more.par_chunks(BLOCK)).for_each(|(sum, more)| {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    });
    sum
}

/// Memory for a block of all heads that share keys.
struct Scratch {
    /// `[group * queries, keys]`, one or two matrices.
    scores: Vec<Buffer>,
    /// `[group * queries, head_dim]`: queries, gradients of the outputs, and results.
    rows: [Buffer; 3],
}

impl Scratch {
    fn new(shape: AttentionShape, scores: usize) -> Self {
        let rows = shape.group() * queries_in_block(shape);
        Self {
            scores: (0..scores).map(|_| Buffer::any(rows * shape.seq)).collect(),
            rows: [(); 3].map(|()| Buffer::any(rows * shape.head_dim)),
        }
    }
}

/// Reads and checks the segment starts. The blocks rely on them to stay within their row.
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

/// The query heads of one batch row that share a key-value head.
struct Task<'a> {
    shape: AttentionShape,
    /// Segment starts of this row's tokens (and of the rows after it).
    starts: &'a [usize],
    row: usize,
    kv_head: usize,
}

/// A range of consecutive queries of a task.
struct Block {
    /// Indices within the batch row.
    queries: Range<usize>,
    /// Keys that some query of the block sees.
    keys: Range<usize>,
    /// Index of the first key's head in `k`, `v`, and their gradients.
    kv_offset: usize,
}

impl<'a> Task<'a> {
    /// Creates task `index`, of one for each row and key-value head.
    fn new(shape: AttentionShape, starts: &'a [usize], index: usize) -> Self {
        let (row, kv_head) = (index / shape.kv_heads, index % shape.kv_heads);
        Self { shape, starts: &starts[row * shape.seq..], row, kv_head }
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let (shape, queries) = (self.shape, queries_in_block(self.shape));
        (0..shape.seq).step_by(queries).map(move |first| {
            let end = (first + queries).min(shape.seq);
            let key = self.starts[first];
            let kv_offset = (self.row * shape.seq + key) * shape.kv_width();
            Block {
                queries: first..end,
                keys: key..end,
                kv_offset: kv_offset + self.kv_head * shape.head_dim,
            }
        })
    }

    /// Returns, for each row of a block's matrices, its head, its query, and the range of its keys within the
    /// block's keys.
    fn rows(&self, block: &Block) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        let (first, group) = (block.keys.start, self.shape.group());
        let heads = self.kv_head * group..(self.kv_head + 1) * group;
        let queries = block.queries.clone();
        heads
            .flat_map(move |head| queries.clone().map(move |query| (head, query)))
            .map(move |(head, query)| (head, query, self.starts[query] - first..query + 1 - first))
    }

    /// Returns the range of a query's head in `q`, the output, and their gradients.
    fn place(&self, head: usize, query: usize) -> Range<usize> {
        let (shape, token) = (self.shape, self.row * self.shape.seq + query);
        let start = token * shape.width() + head * shape.head_dim;
        start..start + shape.head_dim
    }

    /// Returns the index of a query's log-sum-exp.
    fn place_of_sum(&self, head: usize, query: usize) -> usize {
        (self.row * self.shape.heads + head) * self.shape.seq + query
    }

    /// Gathers the block's rows of a tensor like `q` contiguously.
    fn gather<'b>(&self, data: &[f32], block: &Block, out: &'b mut [f32]) -> Matrix<'b> {
        let dim = self.shape.head_dim;
        let mut count = 0;
        for ((head, query, _), out) in self.rows(block).zip(out.chunks_exact_mut(dim)) {
            out.copy_from_slice(&data[self.place(head, query)]);
            count += 1;
        }
        Matrix::dense(&out[..count * dim], [count, dim])
    }

    /// Returns the block's keys in a tensor like `k`.
    fn keys<'b>(&self, data: &'b [f32], block: &Block) -> Matrix<'b> {
        let size = [block.keys.len(), self.shape.head_dim];
        Matrix::new(&data[block.kv_offset..], size, [self.shape.kv_width(), 1])
    }

    /// Writes the block's outputs and log-sum-exps.
    fn forward(
        &self,
        block: &Block,
        [q, k, v]: [&[f32]; 3],
        Scratch { scores, rows: [queries, _, outputs] }: &mut Scratch,
        [out, log_sum_exp]: [SharedMut; 2],
    ) {
        let dim = self.shape.head_dim;
        let size @ [rows, cols] = [self.shape.group() * block.queries.len(), block.keys.len()];
        let scores = &mut scores[0][..rows * cols];
        let queries = self.gather(q, block, queries);
        let keys = self.keys(k, block).transposed();
        let scale = self.shape.scale() as f32;
        MatrixMut::dense(scores, size).set_product(scale, queries, keys, Threads::One);
        // The outputs are divided by the sums when they are written.
        let mut sums = vec![0.0; rows];
        for ((scores, sum), (head, query, visible)) in
            scores.chunks_exact_mut(cols).zip(&mut sums).zip(self.rows(block))
        {
            let max = exp_scores(scores, visible.start, visible.end, sum);
            let place = self.place_of_sum(head, query);
            // SAFETY: each index belongs to one row, and each row to one task.
            let log_sum_exp = unsafe { log_sum_exp.slice(place..place + 1) };
            log_sum_exp[0] = max + sum.ln();
        }
        let outputs = &mut outputs[..rows * dim];
        let probs = Matrix::dense(scores, size);
        MatrixMut::dense(outputs, [rows, dim]).set_product(
            1.0,
            probs,
            self.keys(v, block),
            Threads::One,
        );
        for ((values, sum), (head, query, _)) in
            outputs.chunks_exact(dim).zip(sums).zip(self.rows(block))
        {
            // SAFETY: as above.
            let out = unsafe { out.slice(self.place(head, query)) };
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value / sum);
        }
    }

    /// Writes the gradients of the block's queries, and adds to those of its keys and values.
    fn backward(
        &self,
        block: &Block,
        [q, k, v, out, grad, log_sum_exp]: [&[f32]; 6],
        Scratch { scores, rows: [queries, grads, grad_queries] }: &mut Scratch,
        grad_q: SharedMut,
        [grad_k, grad_v]: [SharedMut; 2],
    ) {
        let shape = self.shape;
        let (kv_width, dim) = (shape.kv_width(), shape.head_dim);
        let scale = shape.scale() as f32;
        let size @ [rows, cols] = [shape.group() * block.queries.len(), block.keys.len()];
        let [probs, slopes] = &mut scores[..] else { unreachable!("two matrices of scores") };
        let (probs, slopes) = (&mut probs[..rows * cols], &mut slopes[..rows * cols]);
        let (queries, grads) = (self.gather(q, block, queries), self.gather(grad, block, grads));
        let (keys, values) = (self.keys(k, block), self.keys(v, block));
        for (out, left, right) in [(&mut *probs, queries, keys), (&mut *slopes, grads, values)] {
            MatrixMut::dense(out, size).set_product(scale, left, right.transposed(), Threads::One);
        }
        let scores = probs.chunks_exact_mut(cols).zip(slopes.chunks_exact_mut(cols));
        for ((probs, slopes), (head, query, visible)) in scores.zip(self.rows(block)) {
            let place = self.place(head, query);
            let mean = kernel::dot(&out[place.clone()], &grad[place]) * scale;
            let log_sum_exp = log_sum_exp[self.place_of_sum(head, query)];
            score_grads(probs, slopes, [visible.start, visible.end], log_sum_exp, mean);
        }
        let (probs, slopes) = (Matrix::dense(probs, size), Matrix::dense(slopes, size));
        // SAFETY: in this part's `grad_k` and `grad_v`, which start as zeros, the columns of this key-value
        // head and row belong to this task only.
        let [grad_k, grad_v] = [grad_k, grad_v]
            .map(|grad| unsafe { grad.matrix(block.kv_offset, [cols, dim], kv_width) });
        grad_v.add_product(probs.transposed(), grads, Threads::One);
        grad_k.add_product(slopes.transposed(), queries, Threads::One);
        let grad_queries = &mut grad_queries[..rows * dim];
        MatrixMut::dense(grad_queries, [rows, dim]).set_product(1.0, slopes, keys, Threads::One);
        for (values, (head, query, _)) in grad_queries.chunks_exact(dim).zip(self.rows(block)) {
            // SAFETY: each range belongs to one row, and each row to one task.
            unsafe { grad_q.slice(self.place(head, query)) }.copy_from_slice(values);
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
    /// Turns scores into probabilities, and the (scaled) gradient of the probabilities into that of the
    /// scores; `mean` is the (scaled) sum of the probabilities times their gradients.
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
