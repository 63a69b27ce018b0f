//! The kernel for flex. A task handles one sequence and one key head with its value heads, chunk by chunk.
//! The backward pass goes through the sequence twice: forward to compute the state before each chunk, then
//! backward.

use super::super::backends::cast;
use super::super::kernel::{self, Buffer, Matrix, MatrixMut, SharedMut, Threads};
use super::{CHUNK, DeltaCall, DeltaShape, GatedDeltaKernel, Inputs, NORM_EPS, portable};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;
use rayon::prelude::*;
use rows::{decay, decayed, errors_of, scale_in_place, scale_row, scale_rows, solve, step};
use std::ops::Range;

mod backward;
mod rows;

use backward::BackwardScratch;

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
        let inputs = inputs.map(kernel::in_f32);
        let inputs = inputs.each_ref().map(|tensor| tensor.storage::<f32>());
        let sequences = call.sequences.ranges().len();
        let is_new = state.is_none();
        let mut states = match state {
            // In place if nothing else holds the states.
            Some(state) => kernel::in_f32(state),
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
                // SAFETY: the states of a sequence's key head belong to this task only.
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
        let (grad, inputs) = (kernel::in_f32(grad), inputs.map(kernel::in_f32));
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

/// Memory for a chunk of one key head and one of its value heads. Matrices are dense, with one row per token
/// of the chunk.
struct Scratch {
    /// `[size, key_dim]`: scaled unit queries, unit keys, and scratch space.
    q: Buffer,
    k: Buffer,
    scaled: Buffer,
    /// Reciprocal norms of queries and keys.
    factors: [Vec<f32>; 2],
    /// `[size, size]`: `q k^T` and `k k^T`.
    queries_keys: Buffer,
    keys_keys: Buffer,
    /// `G`, `exp(G)`, `exp(G_end - G)`, and beta. The sums are f64, because their differences are small
    /// compared with the sums.
    sums: Vec<f64>,
    from_start: Vec<f32>,
    to_end: Vec<f32>,
    beta: Vec<f32>,
    /// `[size, size]`: `D`, `-A`, and `P`.
    decays: Buffer,
    minus_a: Buffer,
    seen: Buffer,
    /// `[size, value_dim]`: what is read from the state, `v - exp(G) k S`, and `U`.
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
            sums: vec![0.0; size],
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

/// One sequence and one key head.
struct Task<'a> {
    shape: DeltaShape,
    /// The sequence's tokens.
    tokens: Range<usize>,
    sequence: usize,
    key_head: usize,
    inputs: [&'a [f32]; 5],
}

impl<'a> Task<'a> {
    /// Creates task `index`, of one for each sequence and key head.
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

    /// Returns the value heads of the task.
    fn heads(&self) -> Range<usize> {
        let group = self.shape.group();
        self.key_head * group..(self.key_head + 1) * group
    }

    /// Elements per state.
    fn state_size(&self) -> usize {
        self.shape.key_dim * self.shape.value_dim
    }

    /// Returns the range of the task's states.
    fn states(&self) -> Range<usize> {
        let first = self.sequence * self.shape.value_heads + self.heads().start;
        first * self.state_size()..(first + self.shape.group()) * self.state_size()
    }

    /// Returns the range of a token's key head in `q`, `k`, and their gradients.
    fn key_place(&self, token: usize) -> Range<usize> {
        let start = token * self.shape.key_width() + self.key_head * self.shape.key_dim;
        start..start + self.shape.key_dim
    }

    /// Returns the range of a token's value head in `v`, the output, and their gradients.
    fn value_place(&self, token: usize, head: usize) -> Range<usize> {
        let start = token * self.shape.value_width() + head * self.shape.value_dim;
        start..start + self.shape.value_dim
    }

    /// Returns the index of a token's value head in decays and betas.
    fn place(&self, token: usize, head: usize) -> usize {
        token * self.shape.value_heads + head
    }

    /// Returns the values of one head and chunk in a tensor like `v`.
    fn values<'b>(&self, data: &'b [f32], chunk: &Range<usize>, head: usize) -> Matrix<'b> {
        let start = self.value_place(chunk.start, head).start;
        let size = [chunk.len(), self.shape.value_dim];
        Matrix::new(&data[start..], size, [self.shape.value_width(), 1])
    }

    /// Writes the outputs and replaces the states with those after the sequence. `is_new` means that the
    /// states are zeros.
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

    /// Computes the unit queries and keys of a chunk and their products.
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

    /// Computes what depends on a head's gates in a chunk.
    fn load_head(&self, chunk: &Range<usize>, head: usize, scratch: &mut Scratch) {
        let [_, _, _, log_decay, beta] = self.inputs;
        let mut sum = 0f64;
        for (token, (total, own)) in
            chunk.clone().zip(scratch.sums.iter_mut().zip(&mut scratch.beta))
        {
            sum += f64::from(log_decay[self.place(token, head)]);
            (*total, *own) = (sum, beta[self.place(token, head)]);
        }
        let size = chunk.len();
        for ((start, end), total) in
            scratch.from_start.iter_mut().zip(&mut scratch.to_end).zip(&scratch.sums[..size])
        {
            *start = decay(*total as f32);
            *end = decay((sum - total) as f32);
        }
        let products = [&scratch.queries_keys[..], &scratch.keys_keys];
        let out = [&mut scratch.decays[..], &mut scratch.minus_a, &mut scratch.seen];
        decayed(products, &scratch.sums[..size], &scratch.beta[..size], out);
    }

    /// Computes `U` and its parts. Without a state, the state is zeros.
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

    /// Computes `exp(G) q S + P U`.
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
        // SAFETY: the columns of this head and sequence belong to this task only.
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

    /// Computes `S <- exp(G_end) S + (exp(G_end - G) k)^T U`.
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

    /// Handles a sequence of one token, as in generation: reads the states twice and writes them once.
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
            let gates = [decay(log_decay[place]), beta[place]];
            let values = &v[self.value_place(token, head)];
            // SAFETY: this range belongs to this task only.
            let out = unsafe { out.slice(self.value_place(token, head)) };
            let written = &mut scratch.written[..self.shape.value_dim];
            step(state, units, [values, &gates], written, out);
        }
    }
}
