//! The backward pass of a task.

use super::super::super::kernel::{Buffer, Matrix, MatrixMut, SharedMut, Threads};
use super::super::{CHUNK, DeltaCall, DeltaShape};
use super::rows::{
    dot, pair_gradients, scale_row, scale_rows, scaled_gradients, solve_transposed, unit_gradient,
};
use super::{Scratch, Task};
use std::ops::Range;

/// Additional memory of the backward pass.
pub(super) struct BackwardScratch {
    /// The state before each chunk, `[chunks, group, key_dim, value_dim]`.
    states: Buffer,
    /// The gradients of the states after a chunk, `[group, key_dim, value_dim]`, and of one state before it.
    after: Buffer,
    before: Buffer,
    /// `[size, size]`: the gradients of `P` and `A`.
    of_seen: Buffer,
    of_a: Buffer,
    /// `[size, value_dim]`: the gradient of `U`, which is replaced by that of `beta (v - exp(G) k S)`, and
    /// the gradient of what is read.
    solved: Buffer,
    of_read: Buffer,
    /// `[size, key_dim]`: the gradients of queries and keys, and scratch space.
    of_q: Buffer,
    of_k: Buffer,
    product: Buffer,
    /// The gradient of `G`.
    of_sums: Vec<f32>,
}

impl BackwardScratch {
    pub(super) fn new(call: &DeltaCall) -> Self {
        let DeltaShape { key_dim, value_dim, .. } = call.shape;
        let longest = call.sequences.longest();
        let size = CHUNK.min(longest);
        let state = key_dim * value_dim;
        let states = call.shape.group() * state;
        let keys = || Buffer::any(size * key_dim);
        let values = || Buffer::any(size * value_dim);
        let pairs = || Buffer::any(size * size);
        Self {
            states: Buffer::any(longest.div_ceil(CHUNK) * states),
            after: Buffer::any(states),
            before: Buffer::any(state),
            of_seen: pairs(),
            of_a: pairs(),
            solved: values(),
            of_read: values(),
            of_q: keys(),
            of_k: keys(),
            product: keys(),
            of_sums: vec![0.0; size],
        }
    }
}

impl Task<'_> {
    /// Writes the gradients of the task's inputs.
    pub(super) fn backward(
        &self,
        grad: &[f32],
        scratch: &mut Scratch,
        more: &mut BackwardScratch,
        grads: [SharedMut; 5],
    ) {
        let states = self.shape.group() * self.state_size();
        let chunks = self.chunks().len();
        let mut all = std::mem::replace(&mut more.states, Buffer::any(0));
        all[..states].fill(0.0);
        for (number, chunk) in self.chunks().enumerate().take(chunks - 1) {
            self.load_keys(&chunk, scratch);
            let (before, after) = all.split_at_mut((number + 1) * states);
            after[..states].copy_from_slice(&before[number * states..]);
            for (head, state) in self.heads().zip(after.chunks_exact_mut(self.state_size())) {
                self.load_head(&chunk, head, scratch);
                self.write_values(&chunk, head, (number > 0).then_some(&*state), scratch);
                self.next_state(chunk.len(), state, scratch);
            }
        }
        more.after.fill(0.0);
        for (number, chunk) in self.chunks().enumerate().rev() {
            self.load_keys(&chunk, scratch);
            let keys = chunk.len() * self.shape.key_dim;
            more.of_q[..keys].fill(0.0);
            more.of_k[..keys].fill(0.0);
            let before = &all[number * states..][..states];
            for (index, head) in self.heads().enumerate() {
                let here = index * self.state_size()..(index + 1) * self.state_size();
                self.load_head(&chunk, head, scratch);
                self.write_values(&chunk, head, Some(&before[here.clone()]), scratch);
                let head =
                    HeadOfChunk { task: self, chunk: &chunk, head, state: &before[here.clone()] };
                head.backward(grad, scratch, more, here, grads);
            }
            self.key_gradients(&chunk, scratch, more, grads);
        }
        more.states = all;
    }

    /// Computes the gradients of queries and keys from those of the unit vectors.
    fn key_gradients(
        &self,
        chunk: &Range<usize>,
        scratch: &Scratch,
        more: &BackwardScratch,
        [of_q, of_k, ..]: [SharedMut; 5],
    ) {
        let dim = self.shape.key_dim;
        let scales = [self.shape.scale() as f32, 1.0];
        let parts = [(&scratch.q, &more.of_q, of_q), (&scratch.k, &more.of_k, of_k)];
        for (((units, grad, out), factors), scale) in
            parts.into_iter().zip(&scratch.factors).zip(scales)
        {
            for (index, token) in chunk.clone().enumerate() {
                let here = index * dim..(index + 1) * dim;
                // SAFETY: this range belongs to this task only.
                let out = unsafe { out.slice(self.key_place(token)) };
                unit_gradient(out, &units[here.clone()], &grad[here], [factors[index], scale]);
            }
        }
    }
}

/// A value head of a task's chunk, with the state before it.
struct HeadOfChunk<'a> {
    task: &'a Task<'a>,
    chunk: &'a Range<usize>,
    head: usize,
    state: &'a [f32],
}

impl HeadOfChunk<'_> {
    /// Adds to the gradients of the chunk's queries and keys, writes those of its values and gates, and
    /// replaces the gradient of the state after the chunk with that before it, at `here` of `more.after`.
    fn backward(
        &self,
        grad: &[f32],
        scratch: &mut Scratch,
        more: &mut BackwardScratch,
        here: Range<usize>,
        [_, _, of_v, of_decay, of_beta]: [SharedMut; 5],
    ) {
        let grad = self.task.values(grad, self.chunk, self.head);
        self.written_gradients(grad, scratch, more, here.clone());
        self.value_gradients(scratch, more, [of_v, of_beta]);
        let of_pairs = self.pair_gradients(scratch, more);
        let mut sum = self.state_gradients(grad, scratch, more, here);
        // G is a running sum: each decay is in its own sum and all later ones.
        for (index, token) in self.chunk.clone().enumerate().rev() {
            sum += more.of_sums[index];
            let place = self.task.place(token, self.head);
            // SAFETY: this index belongs to this task only.
            let (of_decay, of_beta) =
                unsafe { (of_decay.slice(place..place + 1), of_beta.slice(place..place + 1)) };
            of_decay[0] = sum;
            of_beta[0] += of_pairs[index];
        }
    }

    /// Sizes of a chunk's keys, pairs, and values, and of a state.
    fn sizes(&self) -> [[usize; 2]; 4] {
        let DeltaShape { key_dim, value_dim, .. } = self.task.shape;
        let size = self.chunk.len();
        [[size, key_dim], [size, size], [size, value_dim], [key_dim, value_dim]]
    }

    /// Computes the gradient of U from the outputs and the state after the chunk, then from it those of
    /// `beta (v - exp(G) k S)` and of A, and from the outputs that of P.
    fn written_gradients(
        &self,
        grad: Matrix,
        scratch: &mut Scratch,
        more: &mut BackwardScratch,
        here: Range<usize>,
    ) {
        let [keys, pairs, values, state] = self.sizes();
        let one = Threads::One;
        let (size, len) = (values[0], values[0] * values[1]);
        let seen = Matrix::dense(&scratch.seen, pairs);
        MatrixMut::dense(&mut more.solved, values).set_product(1.0, seen.transposed(), grad, one);
        scale_rows(&mut scratch.scaled, &scratch.k[..size * keys[1]], &scratch.to_end[..size]);
        let writing = Matrix::dense(&scratch.scaled, keys);
        let after = Matrix::dense(&more.after[here], state);
        MatrixMut::dense(&mut more.solved, values).add_product(writing, after, one);
        let written = Matrix::dense(&scratch.written, values).transposed();
        MatrixMut::dense(&mut more.of_seen, pairs).set_product(1.0, grad, written, one);
        solve_transposed(&scratch.minus_a, size, &mut more.solved[..len]);
        let solved = Matrix::dense(&more.solved, values);
        MatrixMut::dense(&mut more.of_a, pairs).set_product(-1.0, solved, written, one);
    }

    /// Computes the gradients through `k k^T` and `q k^T`. Returns those of the betas.
    fn pair_gradients(&self, scratch: &Scratch, more: &mut BackwardScratch) -> Vec<f32> {
        let [keys, pairs, ..] = self.sizes();
        let (size, one) = (keys[0], Threads::One);
        let mut betas = vec![0.0; size];
        pair_gradients(
            [&mut more.of_a, &mut more.of_seen],
            [&scratch.decays, &scratch.beta],
            [&scratch.keys_keys, &scratch.seen],
            [&mut more.of_sums[..size], &mut betas],
        );
        let (q, k) = (Matrix::dense(&scratch.q, keys), Matrix::dense(&scratch.k, keys));
        let (of_a, of_seen) =
            (Matrix::dense(&more.of_a, pairs), Matrix::dense(&more.of_seen, pairs));
        for (left, right) in [(of_a, k), (of_a.transposed(), k), (of_seen.transposed(), q)] {
            MatrixMut::dense(&mut more.of_k, keys).add_product(left, right, one);
        }
        MatrixMut::dense(&mut more.of_q, keys).add_product(of_seen, k, one);
        betas
    }

    /// Computes the gradients through the states before and after the chunk. Returns that of the sum of all
    /// decays in it.
    fn state_gradients(
        &self,
        grad: Matrix,
        scratch: &mut Scratch,
        more: &mut BackwardScratch,
        here: Range<usize>,
    ) -> f32 {
        let [keys, _, values, state_size] = self.sizes();
        let (size, one) = (keys[0], Threads::One);
        let (state, len) = (Matrix::dense(self.state, state_size), size * keys[1]);
        let of_read = Matrix::dense(&more.of_read, values);
        MatrixMut::dense(&mut more.of_k, keys).add_product(of_read, state.transposed(), one);
        // `exp(G) q` reads the state for the outputs.
        MatrixMut::dense(&mut more.product, keys).set_product(1.0, grad, state.transposed(), one);
        let of_sums = &mut more.of_sums[..size];
        let rows = [&mut more.product[..len], &mut more.of_q];
        scaled_gradients(rows, &scratch.q, &scratch.from_start, of_sums, 1.0);
        // `exp(G_end - G) k` writes to the state after the chunk.
        let after = Matrix::dense(&more.after[here.clone()], state_size);
        let written = Matrix::dense(&scratch.written, values);
        let product = MatrixMut::dense(&mut more.product, keys);
        product.set_product(1.0, written, after.transposed(), one);
        let of_sums = &mut more.of_sums[..size];
        let rows = [&mut more.product[..len], &mut more.of_k];
        let of_ends = scaled_gradients(rows, &scratch.k, &scratch.to_end, of_sums, -1.0);
        let whole = scratch.from_start[size - 1];
        let of_whole = dot(self.state, &more.after[here.clone()]) * whole;

        let before = &mut more.before[..];
        scale_row(before, &more.after[here.clone()], whole);
        scale_rows(&mut scratch.scaled, &scratch.q[..len], &scratch.from_start[..size]);
        let reading = Matrix::dense(&scratch.scaled, keys).transposed();
        MatrixMut::dense(before, state_size).add_product(reading, grad, one);
        let k = Matrix::dense(&scratch.k, keys).transposed();
        MatrixMut::dense(before, state_size).add_product(k, of_read, one);
        more.after[here].copy_from_slice(before);
        of_ends + of_whole
    }

    /// Writes the gradients of values, adds the contribution of values and reads to those of the betas, and
    /// starts that of G.
    fn value_gradients(
        &self,
        scratch: &Scratch,
        more: &mut BackwardScratch,
        [of_v, of_beta]: [SharedMut; 2],
    ) {
        let dim = self.task.shape.value_dim;
        for (index, token) in self.chunk.clone().enumerate() {
            let (row, place) = (index * dim..(index + 1) * dim, self.task.place(token, self.head));
            // SAFETY: these ranges belong to this task only.
            let (of_v, of_beta) = unsafe {
                (
                    of_v.slice(self.task.value_place(token, self.head)),
                    of_beta.slice(place..place + 1),
                )
            };
            let solved = &more.solved[row.clone()];
            let factor = scratch.beta[index] * scratch.from_start[index];
            of_beta[0] = dot(solved, &scratch.errors[row.clone()]);
            more.of_sums[index] = -factor * dot(solved, &scratch.read[row.clone()]);
            scale_row(of_v, solved, scratch.beta[index]);
            scale_row(&mut more.of_read[row], solved, -factor);
        }
    }
}
