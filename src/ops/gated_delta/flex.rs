//! The kernel for flex. A task has a sequence and a key head with the value heads that share it, and goes through
//! the sequence chunk by chunk. The backward pass goes through it twice: forward to the state before each chunk,
//! then backward.

use super::super::backends::cast;
use super::super::kernel::{self, Buffer, Matrix, MatrixMut, SharedMut, Threads, simd_fn};
use super::{CHUNK, DeltaCall, DeltaShape, GatedDeltaKernel, Inputs, NORM_EPS, portable};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Rows that are solved for together, between products of matrices.
const SOLVED: usize = 16;

impl GatedDeltaKernel for Flex {
    fn delta_forward(
        inputs: Inputs<Self>,
        state: Option<FloatTensor<Self>>,
        call: &DeltaCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let dtype = inputs[2].dtype();
        if inputs.iter().chain(&state).any(|tensor| tensor.dtype() == DType::F64) {
            return portable::forward::<Self>(inputs, state, call);
        }
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = call.shape;
        let inputs = inputs.map(in_f32);
        let inputs = inputs.each_ref().map(|tensor| tensor.storage::<f32>());
        let sequences = call.sequences.ranges().len();
        let is_new = state.is_none();
        let mut states = match state {
            // In place, where nothing else holds them.
            Some(state) => in_f32(state),
            None => {
                let shape = [sequences, value_heads, key_dim, value_dim];
                Buffer::zeros(shape.iter().product()).into_tensor(shape)
            }
        };
        let tokens = call.sequences.tokens();
        let mut out = Buffer::zeros(tokens * call.shape.value_width());
        let (out_all, states_all) = (out.shared(), SharedMut::new(states.storage_mut::<f32>()));
        (0..sequences * key_heads).into_par_iter().with_max_len(1).for_each_init(
            || Scratch::new(call),
            |scratch, index| {
                let task = Task::new(call, inputs, index);
                // SAFETY: the states of a sequence's key head belong to one task alone.
                let states = unsafe { states_all.slice(task.states()) };
                task.forward(states, is_new, scratch, out_all);
            },
        );
        let out = out.into_tensor([tokens, call.shape.value_width()]);
        (cast::<Self>(out, dtype.into()), states)
    }

    fn delta_backward(
        grad: FloatTensor<Self>,
        inputs: Inputs<Self>,
        call: &DeltaCall,
    ) -> Inputs<Self> {
        let dtypes = inputs.each_ref().map(|tensor| tensor.dtype());
        if dtypes.contains(&DType::F64) {
            return portable::backward::<Self>(grad, inputs, call);
        }
        let widths = inputs.each_ref().map(|tensor| tensor.shape().dims::<2>()[1]);
        let (grad, inputs) = (in_f32(grad), inputs.map(in_f32));
        let (grad, inputs) =
            (grad.storage::<f32>(), inputs.each_ref().map(|tensor| tensor.storage::<f32>()));
        let tokens = call.sequences.tokens();
        let mut grads = widths.map(|width| Buffer::zeros(tokens * width));
        let grads_all = grads.each_mut().map(Buffer::shared);
        (0..call.sequences.ranges().len() * call.shape.key_heads)
            .into_par_iter()
            .with_max_len(1)
            .for_each_init(
                || (Scratch::new(call), BackwardScratch::new(call)),
                |(scratch, more), index| {
                    Task::new(call, inputs, index).backward(grad, scratch, more, grads_all);
                },
            );
        let mut rest = widths.into_iter().zip(dtypes);
        grads.map(|grad| {
            let (width, dtype) = rest.next().expect("as many as inputs");
            cast::<Self>(grad.into_tensor([tokens, width]), dtype.into())
        })
    }
}

fn in_f32(tensor: FlexTensor) -> FlexTensor {
    kernel::contiguous(cast::<Flex>(tensor, FloatDType::F32))
}

/// Memory for a chunk of one key head and one of its value heads. Matrices are dense, with as many rows as the chunk
/// has tokens.
struct Scratch {
    /// `[size, key_dim]`: queries, times their scale, and keys, divided by their norms; and another.
    q: Buffer,
    k: Buffer,
    scaled: Buffer,
    /// 1 over the norms of queries and keys.
    factors: [Vec<f32>; 2],
    /// `[size, size]`: `q k^T` and `k k^T`.
    queries_keys: Buffer,
    keys_keys: Buffer,
    /// `G`, `exp(G)`, `exp(G_end - G)` and beta.
    sums: Vec<f32>,
    from_start: Vec<f32>,
    to_end: Vec<f32>,
    beta: Vec<f32>,
    /// `[size, size]`: `D`, `-A` and `P`.
    decays: Buffer,
    minus_a: Buffer,
    seen: Buffer,
    /// `[size, value_dim]`: what is read of the state, `v - exp(G) k S`, and `U`.
    read: Buffer,
    errors: Buffer,
    written: Buffer,
}

impl Scratch {
    fn new(call: &DeltaCall) -> Self {
        let DeltaShape { key_dim, value_dim, .. } = call.shape;
        let size = CHUNK.min(call.sequences.longest());
        let keys = || Buffer::any(size * key_dim);
        let values = || Buffer::any(size * value_dim);
        let pairs = || Buffer::any(size * size);
        let numbers = || vec![0.0; size];
        Self {
            q: keys(),
            k: keys(),
            scaled: keys(),
            factors: [numbers(), numbers()],
            queries_keys: pairs(),
            keys_keys: pairs(),
            sums: numbers(),
            from_start: numbers(),
            to_end: numbers(),
            beta: numbers(),
            decays: pairs(),
            minus_a: pairs(),
            seen: pairs(),
            read: values(),
            errors: values(),
            written: values(),
        }
    }
}

/// What the backward pass needs beside.
struct BackwardScratch {
    /// The states before each chunk, `[chunks, group, key_dim, value_dim]`.
    states: Buffer,
    /// The gradients of the states after a chunk, `[group, key_dim, value_dim]`, and of one before it.
    after: Buffer,
    before: Buffer,
    /// `[size, size]`: the gradients of `P` and `A`.
    of_seen: Buffer,
    of_a: Buffer,
    /// `[size, value_dim]`: the gradient of `U`, which becomes that of `beta (v - exp(G) k S)`, and of what is read.
    solved: Buffer,
    of_read: Buffer,
    /// `[size, key_dim]`: the gradients of queries and keys, and another.
    of_q: Buffer,
    of_k: Buffer,
    product: Buffer,
    /// That of `G`.
    of_sums: Vec<f32>,
}

impl BackwardScratch {
    fn new(call: &DeltaCall) -> Self {
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

/// A sequence and a key head.
struct Task<'a> {
    shape: DeltaShape,
    /// Tokens of the sequence.
    tokens: Range<usize>,
    sequence: usize,
    key_head: usize,
    inputs: [&'a [f32]; 5],
}

impl<'a> Task<'a> {
    /// Task `index`, of as many as there are sequences and key heads.
    fn new(call: &DeltaCall, inputs: [&'a [f32]; 5], index: usize) -> Self {
        let shape = call.shape;
        let (sequence, key_head) = (index / shape.key_heads, index % shape.key_heads);
        let tokens = call.sequences.ranges()[sequence].clone();
        Self { shape, tokens, sequence, key_head, inputs }
    }

    fn chunks(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator {
        let tokens = self.tokens.clone();
        (0..tokens.len().div_ceil(CHUNK)).map(move |chunk| {
            let first = tokens.start + chunk * CHUNK;
            first..(first + CHUNK).min(tokens.end)
        })
    }

    /// The value heads.
    fn heads(&self) -> Range<usize> {
        let group = self.shape.group();
        self.key_head * group..(self.key_head + 1) * group
    }

    /// Elements of a state.
    fn state_size(&self) -> usize {
        self.shape.key_dim * self.shape.value_dim
    }

    /// Place of the task's states among all.
    fn states(&self) -> Range<usize> {
        let first = self.sequence * self.shape.value_heads + self.heads().start;
        first * self.state_size()..(first + self.shape.group()) * self.state_size()
    }

    /// Place of a token's key head in `q`, `k` and their gradients.
    fn key_place(&self, token: usize) -> Range<usize> {
        let start = token * self.shape.key_width() + self.key_head * self.shape.key_dim;
        start..start + self.shape.key_dim
    }

    /// Place of a token's value head in `v`, the output and their gradients.
    fn value_place(&self, token: usize, head: usize) -> Range<usize> {
        let start = token * self.shape.value_width() + head * self.shape.value_dim;
        start..start + self.shape.value_dim
    }

    /// Place of a token's value head in decays and betas.
    fn place(&self, token: usize, head: usize) -> usize {
        token * self.shape.value_heads + head
    }

    /// A head's values of a chunk in a tensor like `v`.
    fn values<'b>(&self, data: &'b [f32], chunk: &Range<usize>, head: usize) -> Matrix<'b> {
        let start = self.value_place(chunk.start, head).start;
        let size = [chunk.len(), self.shape.value_dim];
        Matrix::new(&data[start..], size, [self.shape.value_width(), 1])
    }

    /// Writes the outputs, and the states after the sequence over those before it; `is_new` says that these are
    /// zeros.
    fn forward(&self, states: &mut [f32], is_new: bool, scratch: &mut Scratch, out: SharedMut) {
        if self.tokens.len() == 1 {
            return self.one_token(states, scratch, out);
        }
        for (number, chunk) in self.chunks().enumerate() {
            self.load_keys(&chunk, scratch);
            for (head, state) in self.heads().zip(states.chunks_exact_mut(self.state_size())) {
                let is_zero = is_new && number == 0;
                self.load_head(&chunk, head, scratch);
                self.write_values(&chunk, head, (!is_zero).then_some(&*state), scratch);
                self.write_outputs(&chunk, head, (!is_zero).then_some(&*state), scratch, out);
                self.next_state(chunk.len(), state, scratch);
            }
        }
    }

    /// Queries and keys of a chunk divided by their norms, and their products.
    fn load_keys(&self, chunk: &Range<usize>, scratch: &mut Scratch) {
        let (size, dim) = (chunk.len(), self.shape.key_dim);
        let scales = [self.shape.scale() as f32, 1.0];
        let parts = [&mut scratch.q, &mut scratch.k];
        for (((data, out), factors), scale) in
            self.inputs.iter().zip(parts).zip(&mut scratch.factors).zip(scales)
        {
            for ((token, out), factor) in chunk.clone().zip(out.chunks_exact_mut(dim)).zip(factors)
            {
                let row = &data[self.key_place(token)];
                *factor = 1.0 / (kernel::dot(row, row) + NORM_EPS as f32).sqrt();
                scale_row(out, row, *factor * scale);
            }
        }
        let keys = Matrix::dense(&scratch.k, [size, dim]);
        let queries = Matrix::dense(&scratch.q, [size, dim]);
        for (out, left) in [(&mut scratch.queries_keys, queries), (&mut scratch.keys_keys, keys)] {
            let out = MatrixMut::dense(out, [size, size]);
            out.set_product(1.0, left, keys.transposed(), Threads::One);
        }
    }

    /// What a head's gates make of a chunk.
    fn load_head(&self, chunk: &Range<usize>, head: usize, scratch: &mut Scratch) {
        let [_, _, _, log_decay, beta] = self.inputs;
        let mut sum = 0.0;
        for (token, (total, own)) in
            chunk.clone().zip(scratch.sums.iter_mut().zip(&mut scratch.beta))
        {
            sum += log_decay[self.place(token, head)];
            (*total, *own) = (sum, beta[self.place(token, head)]);
        }
        let size = chunk.len();
        for ((start, end), total) in
            scratch.from_start.iter_mut().zip(&mut scratch.to_end).zip(&scratch.sums[..size])
        {
            (*start, *end) = (kernel::exp(*total), kernel::exp(sum - total));
        }
        let products = [&scratch.queries_keys[..], &scratch.keys_keys];
        let gates = [&scratch.sums[..size], &scratch.beta[..size]];
        let out = [&mut scratch.decays[..], &mut scratch.minus_a, &mut scratch.seen];
        decayed(products, gates, out);
    }

    /// `U`, and what it is made of; without a state that is zeros.
    fn write_values(
        &self,
        chunk: &Range<usize>,
        head: usize,
        state: Option<&[f32]>,
        scratch: &mut Scratch,
    ) {
        let DeltaShape { key_dim, value_dim, .. } = self.shape;
        let size = chunk.len();
        let len = size * value_dim;
        match state {
            None => scratch.read[..len].fill(0.0),
            Some(state) => {
                let keys = Matrix::dense(&scratch.k, [size, key_dim]);
                let state = Matrix::dense(state, [key_dim, value_dim]);
                let read = MatrixMut::dense(&mut scratch.read, [size, value_dim]);
                read.set_product(1.0, keys, state, Threads::One);
            }
        }
        let rows = scratch.errors.chunks_exact_mut(value_dim).zip(
            scratch.written.chunks_exact_mut(value_dim).zip(scratch.read.chunks_exact(value_dim)),
        );
        for (index, (token, (errors, (written, read)))) in chunk.clone().zip(rows).enumerate() {
            let values = &self.inputs[2][self.value_place(token, head)];
            let factors = [scratch.from_start[index], scratch.beta[index]];
            errors_of(errors, written, [values, read], factors);
        }
        solve(&scratch.minus_a, size, &mut scratch.written[..len]);
    }

    /// `exp(G) q S + P U`.
    fn write_outputs(
        &self,
        chunk: &Range<usize>,
        head: usize,
        state: Option<&[f32]>,
        scratch: &mut Scratch,
        out: SharedMut,
    ) {
        let DeltaShape { key_dim, value_dim, .. } = self.shape;
        let size = chunk.len();
        let (start, stride) = (self.value_place(chunk.start, head).start, self.shape.value_width());
        // SAFETY: the columns of this head and sequence belong to this task alone.
        let matrix = || unsafe { out.matrix(start, [size, value_dim], stride) };
        let written = Matrix::dense(&scratch.written, [size, value_dim]);
        let seen = Matrix::dense(&scratch.seen, [size, size]);
        matrix().set_product(1.0, seen, written, Threads::One);
        if let Some(state) = state {
            let queries = &scratch.q[..size * key_dim];
            scale_rows(&mut scratch.scaled, queries, &scratch.from_start[..size]);
            let queries = Matrix::dense(&scratch.scaled, [size, key_dim]);
            let state = Matrix::dense(state, [key_dim, value_dim]);
            matrix().add_product(queries, state, Threads::One);
        }
    }

    /// `S <- exp(G_end) S + (exp(G_end - G) k)^T U`.
    fn next_state(&self, size: usize, state: &mut [f32], scratch: &mut Scratch) {
        let DeltaShape { key_dim, value_dim, .. } = self.shape;
        scale_in_place(state, scratch.from_start[size - 1]);
        let keys = &scratch.k[..size * key_dim];
        scale_rows(&mut scratch.scaled, keys, &scratch.to_end[..size]);
        let keys = Matrix::dense(&scratch.scaled, [size, key_dim]);
        let written = Matrix::dense(&scratch.written, [size, value_dim]);
        let state = MatrixMut::dense(state, [key_dim, value_dim]);
        state.add_product(keys.transposed(), written, Threads::One);
    }

    /// A sequence of one token, as in generation: the states are read twice and written once.
    fn one_token(&self, states: &mut [f32], scratch: &mut Scratch, out: SharedMut) {
        let [q, k, v, log_decay, beta] = self.inputs;
        let token = self.tokens.start;
        let scales = [self.shape.scale() as f32, 1.0];
        for ((data, out), scale) in [q, k].iter().zip([&mut scratch.q, &mut scratch.k]).zip(scales)
        {
            let row = &data[self.key_place(token)];
            let factor = 1.0 / (kernel::dot(row, row) + NORM_EPS as f32).sqrt();
            scale_row(&mut out[..self.shape.key_dim], row, factor * scale);
        }
        let dim = self.shape.key_dim;
        let units = [&scratch.q[..dim], &scratch.k[..dim]];
        for (head, state) in self.heads().zip(states.chunks_exact_mut(self.state_size())) {
            let place = self.place(token, head);
            let gates = [kernel::exp(log_decay[place]), beta[place]];
            let values = &v[self.value_place(token, head)];
            // SAFETY: the place belongs to this task alone.
            let out = unsafe { out.slice(self.value_place(token, head)) };
            let written = &mut scratch.written[..self.shape.value_dim];
            step(state, units, [values, &gates], written, out);
        }
    }
}

impl Task<'_> {
    /// Writes the gradients of the task's inputs.
    fn backward(
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

    /// The gradients of queries and keys, from those of what they were divided into.
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
                // SAFETY: the place belongs to this task alone.
                let out = unsafe { out.slice(self.key_place(token)) };
                unit_gradient(out, &units[here.clone()], &grad[here], [factors[index], scale]);
            }
        }
    }
}

/// A value head of a task's chunk, with its state before it.
struct HeadOfChunk<'a> {
    task: &'a Task<'a>,
    chunk: &'a Range<usize>,
    head: usize,
    state: &'a [f32],
}

impl HeadOfChunk<'_> {
    /// Adds to the gradients of the chunk's queries and keys, writes those of its values and gates, and goes from
    /// the gradient of the state after it to that before it, at `here` of `more.after`.
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
        // G sums up: each decay is in its own sum and all later ones.
        for (index, token) in self.chunk.clone().enumerate().rev() {
            sum += more.of_sums[index];
            let place = self.task.place(token, self.head);
            // SAFETY: the place belongs to this task alone.
            let (of_decay, of_beta) =
                unsafe { (of_decay.slice(place..place + 1), of_beta.slice(place..place + 1)) };
            of_decay[0] = sum;
            of_beta[0] += of_pairs[index];
        }
    }

    /// Sizes of a chunk's keys, pairs and values, and of a state.
    fn sizes(&self) -> [[usize; 2]; 4] {
        let DeltaShape { key_dim, value_dim, .. } = self.task.shape;
        let size = self.chunk.len();
        [[size, key_dim], [size, size], [size, value_dim], [key_dim, value_dim]]
    }

    /// The gradients of U, from the outputs and from the state after the chunk; from it those of
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

    /// The gradients that come through `k k^T` and `q k^T`; gives those of betas.
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

    /// The gradients that come through the states before and after the chunk; gives that of the sum of all its
    /// decays.
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

    /// Writes the gradients of values, and what they and what is read are of those of betas; begins that of G.
    fn value_gradients(
        &self,
        scratch: &Scratch,
        more: &mut BackwardScratch,
        [of_v, of_beta]: [SharedMut; 2],
    ) {
        let dim = self.task.shape.value_dim;
        for (index, token) in self.chunk.clone().enumerate() {
            let (row, place) = (index * dim..(index + 1) * dim, self.task.place(token, self.head));
            // SAFETY: the places belong to this task alone.
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

simd_fn! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        kernel::dot(a, b)
    }
}

simd_fn! {
    /// `out = row * factor`
    fn scale_row(out: &mut [f32], row: &[f32], factor: f32) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = x * factor;
        }
    }
}

simd_fn! {
    fn scale_in_place(values: &mut [f32], factor: f32) {
        for x in values {
            *x *= factor;
        }
    }
}

simd_fn! {
    /// Each row times its factor; there are as many rows as factors.
    fn scale_rows(out: &mut [f32], rows: &[f32], factors: &[f32]) {
        let width = (rows.len() / factors.len()).max(1);
        let rows = rows.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((row, out), factor) in rows.zip(factors) {
            for (out, x) in out.iter_mut().zip(row) {
                *out = x * factor;
            }
        }
    }
}

simd_fn! {
    /// `D`, `-A` and `P` from `q k^T` and `k k^T`; `sums` are `G`.
    fn decayed(
        products: [&[f32]; 2],
        gates: [&[f32]; 2],
        out: [&mut [f32]; 3],
    ) {
        let ([queries_keys, keys_keys], [sums, beta]) = (products, gates);
        let [decays, minus_a, seen] = out;
        let size = sums.len();
        for i in 0..size {
            let row = i * size..(i + 1) * size;
            let (decays, minus_a, seen) =
                (&mut decays[row.clone()], &mut minus_a[row.clone()], &mut seen[row.clone()]);
            let (queries_keys, keys_keys) = (&queries_keys[row.clone()], &keys_keys[row]);
            for j in 0..=i {
                decays[j] = kernel::exp(sums[i] - sums[j]);
                minus_a[j] = -beta[i] * keys_keys[j] * decays[j];
                seen[j] = queries_keys[j] * decays[j];
            }
            minus_a[i] = 0.0;
            for all in [decays, minus_a, seen] {
                all[i + 1..].fill(0.0);
            }
        }
    }
}

simd_fn! {
    /// `v - exp(G) read`, and that times beta.
    fn errors_of(errors: &mut [f32], written: &mut [f32], rows: [&[f32]; 2], factors: [f32; 2]) {
        let ([values, read], [decay, beta]) = (rows, factors);
        for ((errors, written), (value, read)) in
            errors.iter_mut().zip(written).zip(values.iter().zip(read))
        {
            *errors = value - decay * read;
            *written = beta * *errors;
        }
    }
}

simd_fn! {
    /// A token of a head: `values` are `v`, then the decay and beta.
    fn step(
        state: &mut [f32],
        units: [&[f32]; 2],
        values: [&[f32]; 2],
        written: &mut [f32],
        out: &mut [f32],
    ) {
        let ([q, k], [values, gates]) = (units, values);
        let (decay, beta) = (gates[0], gates[1]);
        let width = values.len();
        written.fill(0.0);
        out.fill(0.0);
        for (row, k) in state.chunks_exact(width).zip(k) {
            for (written, x) in written.iter_mut().zip(row) {
                *written += k * x;
            }
        }
        for (written, value) in written.iter_mut().zip(values) {
            *written = beta * (value - decay * *written);
        }
        for ((row, k), q) in state.chunks_exact_mut(width).zip(k).zip(q) {
            for ((x, written), out) in row.iter_mut().zip(&*written).zip(&mut *out) {
                *x = decay * *x + k * written;
                *out += q * *x;
            }
        }
    }
}

/// `x <- (1 + A)^-1 x` in place, with `-A`, `[size, size]`.
fn solve(minus_a: &[f32], size: usize, x: &mut [f32]) {
    let width = x.len() / size;
    for first in (0..size).step_by(SOLVED) {
        let end = (first + SOLVED).min(size);
        let (above, rest) = x.split_at_mut(first * width);
        let block = &mut rest[..(end - first) * width];
        if first > 0 {
            let a = Matrix::new(&minus_a[first * size..], [end - first, first], [size, 1]);
            let above = Matrix::dense(above, [first, width]);
            let out = MatrixMut::dense(block, [end - first, width]);
            out.add_product(a, above, Threads::One);
        }
        solve_block(&minus_a[first * size + first..], size, block, width);
    }
}

simd_fn! {
    /// The same for a block of rows, whose `-A` begins rows `stride` apart.
    fn solve_block(minus_a: &[f32], stride: usize, x: &mut [f32], width: usize) {
        for i in 1..x.len() / width {
            let (above, row) = x.split_at_mut(i * width);
            let row = &mut row[..width];
            for (j, above) in above.chunks_exact(width).enumerate() {
                let a = minus_a[i * stride + j];
                for (x, above) in row.iter_mut().zip(above) {
                    *x += a * above;
                }
            }
        }
    }
}

/// `x <- (1 + A)^-T x` in place.
fn solve_transposed(minus_a: &[f32], size: usize, x: &mut [f32]) {
    let width = x.len() / size;
    for first in (0..size).step_by(SOLVED).rev() {
        let end = (first + SOLVED).min(size);
        let (rest, below) = x.split_at_mut(end * width);
        let block = &mut rest[first * width..];
        if end < size {
            let rows = size - end;
            let a = Matrix::new(&minus_a[end * size + first..], [rows, end - first], [size, 1]);
            let below = Matrix::dense(below, [rows, width]);
            let out = MatrixMut::dense(block, [end - first, width]);
            out.add_product(a.transposed(), below, Threads::One);
        }
        solve_block_transposed(&minus_a[first * size + first..], size, block, width);
    }
}

simd_fn! {
    fn solve_block_transposed(minus_a: &[f32], stride: usize, x: &mut [f32], width: usize) {
        for i in (0..x.len() / width).rev() {
            let (row, below) = x.split_at_mut((i + 1) * width);
            let row = &mut row[i * width..];
            for (j, below) in below.chunks_exact(width).enumerate() {
                let a = minus_a[(i + 1 + j) * stride + i];
                for (x, below) in row.iter_mut().zip(below) {
                    *x += a * below;
                }
            }
        }
    }
}

simd_fn! {
    /// The gradients of `A` and `P` become those of `k k^T` and `q k^T`; adds what comes to the sums `G`, and to
    /// beta.
    fn pair_gradients(
        gradients: [&mut [f32]; 2],
        gates: [&[f32]; 2],
        terms: [&[f32]; 2],
        out: [&mut [f32]; 2],
    ) {
        let ([of_a, of_seen], [decays, beta]) = (gradients, gates);
        let ([keys_keys, seen], [of_sums, of_beta]) = (terms, out);
        let size = of_sums.len();
        for i in 0..size {
            let row = i * size..(i + 1) * size;
            let (of_a, of_seen) = (&mut of_a[row.clone()], &mut of_seen[row.clone()]);
            let (decays, keys_keys, seen) =
                (&decays[row.clone()], &keys_keys[row.clone()], &seen[row]);
            of_a[i..].fill(0.0);
            of_seen[i + 1..].fill(0.0);
            let (mut sum, mut of_own_beta) = (0.0, 0.0);
            for j in 0..=i {
                let of_decayed = of_a[j] * decays[j];
                let of_overlap = of_decayed * keys_keys[j];
                of_own_beta += of_overlap;
                let of_log = of_overlap * beta[i] + of_seen[j] * seen[j];
                sum += of_log;
                of_sums[j] -= of_log;
                of_a[j] = of_decayed * beta[i];
                of_seen[j] *= decays[j];
            }
            of_sums[i] += sum;
            of_beta[i] = of_own_beta;
        }
    }
}

simd_fn! {
    /// The gradients of rows that were multiplied by factors, the exponentials of sums: `rows[0]` are those of the
    /// products; the rows' own are added to `rows[1]`, and `sign` times the factors' logarithms' to `of_sums`. Gives
    /// the sum of the latter without their sign.
    fn scaled_gradients(
        rows: [&mut [f32]; 2],
        of: &[f32],
        factors: &[f32],
        of_sums: &mut [f32],
        sign: f32,
    ) -> f32 {
        let [products, out] = rows;
        let width = (products.len() / of_sums.len()).max(1);
        let mut total = 0.0;
        for (((product, out), (x, factor)), of_sum) in products
            .chunks_exact_mut(width)
            .zip(out.chunks_exact_mut(width))
            .zip(of.chunks_exact(width).zip(factors))
            .zip(of_sums)
        {
            for (product, out) in product.iter_mut().zip(out) {
                *product *= factor;
                *out += *product;
            }
            let of_log = kernel::dot(product, x);
            *of_sum += sign * of_log;
            total += of_log;
        }
        total
    }
}

simd_fn! {
    /// The gradient of a row from that of the row divided by its norm, and multiplied by a scale.
    fn unit_gradient(out: &mut [f32], units: &[f32], grad: &[f32], factors: [f32; 2]) {
        let [factor, scale] = factors;
        // `units` are multiplied by the scale too.
        let along = kernel::dot(units, grad) / scale;
        for ((out, unit), grad) in out.iter_mut().zip(units).zip(grad) {
            *out = factor * (grad * scale - unit * along);
        }
    }
}
