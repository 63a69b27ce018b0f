//! The rule in backend operations.
//!
//! The chunks of all sequences are laid out step by step: the first chunks of all sequences, then the second
//! chunks of the sequences that have one, and so on, with the longest sequences first. Work within chunks is
//! done for all chunks at once, `[chunks, heads, ...]`. Only the states and what is written to them are
//! computed step by step. A sequence's last chunk is padded with tokens that change nothing.
//!
//! ```text
//! sequence a  aaaa aaaa aa..      step 0: a b c   1: a b   2: a
//! sequence b  bbbb b...
//! sequence c  cc..
//! ```

use super::super::backends::{cast, wide, widen};
use super::{CHUNK, DeltaCall, DeltaShape, Inputs, NORM_EPS};
use burn::backend::tensor::{Device, FloatTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Slice, TensorData};
use std::ops::Range;

/// Added before the exponential where a token must not see another one. Finite, because WGSL has no infinity.
const HIDDEN: f32 = -1e30;

fn add<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(a, b)
}

fn sub<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sub(a, b)
}

fn mul<B: Backend>(a: &FloatTensor<B>, b: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(a.clone(), b.clone())
}

fn matmul<B: Backend>(a: &FloatTensor<B>, b: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(a.clone(), b.clone())
}

/// Swaps the last two dimensions.
fn transposed<B: Backend>(x: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_transpose(x.clone())
}

/// Sums over the last dimension.
fn of_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum_dim(x, 3)
}

/// Returns a range of the first dimension.
fn part<B: Backend>(x: &FloatTensor<B>, range: Range<usize>) -> FloatTensor<B> {
    B::float_slice(x.clone(), &[Slice::from(range)])
}

/// Gathers rows by index. The index after the last row selects zeros.
fn rows<B: Backend>(x: FloatTensor<B>, index: &[usize]) -> FloatTensor<B> {
    let ([_, width], device) = (x.shape().dims(), x.device());
    let zeros = B::float_zeros([1, width].into(), &device, x.dtype().into());
    let index: Vec<i32> = index.iter().map(|row| *row as i32).collect();
    let count = index.len();
    let index = B::int_from_data(TensorData::new(index, [count]), &device);
    B::float_select(B::float_cat(vec![x, zeros], 0), 0, index)
}

/// How the chunks of a call are arranged.
struct Layout {
    shape: DeltaShape,
    /// Positions per chunk, a power of two.
    size: usize,
    /// The sequences, those with the most chunks first.
    order: Vec<usize>,
    /// Number of chunks in each step.
    counts: Vec<usize>,
    /// The token at each position, or the number of tokens if there is none.
    tokens: Vec<usize>,
    /// The position of each token, or the number of positions if it has none.
    places: Vec<usize>,
}

impl Layout {
    fn new(call: &DeltaCall) -> Self {
        let (sequences, tokens) = (call.sequences.ranges(), call.sequences.tokens());
        let size = chunk_size(sequences, call.sequences.longest());
        let chunks = |sequence: usize| sequences[sequence].len().div_ceil(size);
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|sequence| std::cmp::Reverse(chunks(*sequence)));
        let steps = order.first().map_or(0, |longest| chunks(*longest));
        let count = |step| order.iter().take_while(|sequence| chunks(**sequence) > step).count();
        let counts: Vec<usize> = (0..steps).map(count).collect();
        let mut token_of = vec![];
        for (step, count) in counts.iter().enumerate() {
            for sequence in &order[..*count] {
                let range = &sequences[*sequence];
                let first = range.start + step * size;
                token_of.extend((first..first + size).map(|token| match token < range.end {
                    true => token,
                    false => tokens,
                }));
            }
        }
        let mut places = vec![token_of.len(); tokens];
        for (place, token) in token_of.iter().enumerate().filter(|(_, token)| **token < tokens) {
            places[*token] = place;
        }
        Self { shape: call.shape, size, order, counts, tokens: token_of, places }
    }

    fn chunks(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Returns the chunks of each step.
    fn steps(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let step = |count: &usize| {
            end += count;
            end - count..end
        };
        self.counts.iter().map(step).collect()
    }

    /// Rearranges `[tokens, heads * width]` to `[chunks, heads, size, width]`.
    fn to_chunks<B: Backend>(&self, x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
        let width = x.shape().dims::<2>()[1] / heads;
        let x = rows::<B>(x, &self.tokens);
        let x = B::float_reshape(x, [self.chunks(), self.size, heads, width].into());
        B::float_permute(x, &[0, 2, 1, 3])
    }

    /// Reverses [`Layout::to_chunks`].
    fn to_tokens<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [chunks, heads, size, width] = x.shape().dims();
        let x = B::float_permute(x, &[0, 2, 1, 3]);
        rows::<B>(B::float_reshape(x, [chunks * size, heads * width].into()), &self.places)
    }

    /// Repeats a key head's values for each of its value heads: `[chunks, key_heads, size, width]` to
    /// `[chunks, value_heads, size, width]`.
    fn for_values<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [chunks, heads, size, width] = x.shape().dims();
        let group = self.shape.group();
        if group == 1 {
            return x;
        }
        let x = B::float_reshape(x, [chunks, heads, 1, size, width].into());
        let x = B::float_expand(x, [chunks, heads, group, size, width].into());
        B::float_reshape(x, [chunks, heads * group, size, width].into())
    }

    /// Returns the transpose of [`Layout::for_values`].
    fn for_keys<B: Backend>(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [chunks, heads, size, width] = x.shape().dims();
        let group = self.shape.group();
        if group == 1 {
            return x;
        }
        let x = B::float_reshape(x, [chunks, heads / group, group, size, width].into());
        B::float_reshape(B::float_sum_dim(x, 2), [chunks, heads / group, size, width].into())
    }

    /// Returns a number for each pair of positions in a chunk, `[1, 1, size, size]`.
    fn pairs<B: Backend>(
        &self,
        device: &Device<B>,
        dtype: FloatDType,
        of: impl Fn(usize, usize) -> f32,
    ) -> FloatTensor<B> {
        let size = self.size;
        let values = (0..size).flat_map(|i| (0..size).map(move |j| (i, j)));
        let values: Vec<f32> = values.map(|(i, j)| of(i, j)).collect();
        let data = TensorData::new(values, [1, 1, size, size]);
        cast::<B>(B::float_from_data(data, device), dtype)
    }
}

/// Positions per chunk, a power of two. Chunks are smaller if sequences are so short that most positions
/// would be empty.
fn chunk_size(sequences: &[Range<usize>], longest: usize) -> usize {
    const LEAST: usize = 8;
    let tokens: usize = sequences.iter().map(Range::len).sum();
    let places = |size: usize| -> usize {
        sequences.iter().map(|range| range.len().next_multiple_of(size)).sum()
    };
    let mut size = longest.next_power_of_two().min(CHUNK);
    while size > LEAST && places(size) > 2 * tokens {
        size /= 2;
    }
    size
}

/// Queries or keys divided by their norms, by key head, and the reciprocal norms.
struct Units<B: Backend> {
    values: FloatTensor<B>,
    factors: FloatTensor<B>,
}

impl<B: Backend> Units<B> {
    fn new(x: FloatTensor<B>) -> Self {
        let squares = of_rows::<B>(mul::<B>(&x, &x));
        let factors = B::float_recip(B::float_sqrt(B::float_add_scalar(squares, NORM_EPS.into())));
        Self { values: mul::<B>(&x, &factors), factors }
    }

    /// Returns the gradient of the input of the division, from that of the result.
    fn backward(&self, grad: FloatTensor<B>) -> FloatTensor<B> {
        let along = of_rows::<B>(mul::<B>(&self.values, &grad));
        let grad = sub::<B>(grad, mul::<B>(&self.values, &along));
        mul::<B>(&grad, &self.factors)
    }
}

/// Relations between the tokens of each chunk. The names follow the formulas of the module.
struct Chunks<B: Backend> {
    units: [Units<B>; 2],
    /// Queries and keys by value head, `[chunks, value_heads, size, key_dim]`.
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    /// `[chunks, value_heads, size, 1]`.
    beta: FloatTensor<B>,
    /// `exp(G)` and `exp(G_end - G)`, of the same shape, and `exp(G_end)`, `[chunks, value_heads, 1, 1]`.
    from_start: FloatTensor<B>,
    to_end: FloatTensor<B>,
    whole: FloatTensor<B>,
    /// `D`, `A / beta`, `(1 + A)^-1`, and `P`, `[chunks, value_heads, size, size]`.
    decays: FloatTensor<B>,
    overlaps: FloatTensor<B>,
    inverse: FloatTensor<B>,
    seen: FloatTensor<B>,
}

impl<B: Backend> Chunks<B> {
    fn new(inputs: Inputs<B>, layout: &Layout) -> Self {
        let DeltaShape { key_heads, value_heads, .. } = layout.shape;
        let [q, k, v, log_decay, beta] = inputs.map(widen::<B>);
        let (device, dtype) = (v.device(), wide(v.dtype()));
        let pairs = |of: &dyn Fn(usize, usize) -> f32| layout.pairs::<B>(&device, dtype, of);
        let units = [q, k].map(|x| Units::<B>::new(layout.to_chunks::<B>(x, key_heads)));
        let [q, k] = units.each_ref().map(|units| layout.for_values::<B>(units.values.clone()));
        let q = B::float_mul_scalar(q, layout.shape.scale().into());
        let [v, beta, log_decay] =
            [v, beta, log_decay].map(|x| layout.to_chunks::<B>(x, value_heads));
        let sums = B::float_cumsum(log_decay, 2);
        let [chunks, heads, size, _] = sums.shape().dims();
        let all = [0..chunks, 0..heads, size - 1..size, 0..1].map(Slice::from);
        let end = B::float_slice(sums.clone(), &all);
        let later = pairs(&|i, j| if j > i { HIDDEN } else { 0.0 });
        let between = sub::<B>(sums.clone(), transposed::<B>(&sums));
        let decays = B::float_exp(add::<B>(between, later));
        let earlier = pairs(&|i, j| f32::from(j < i));
        let overlaps = matmul::<B>(&k, &transposed::<B>(&k));
        let overlaps = mul::<B>(&mul::<B>(&overlaps, &decays), &earlier);
        let seen = mul::<B>(&matmul::<B>(&q, &transposed::<B>(&k)), &decays);
        Self {
            units,
            inverse: inverse::<B>(mul::<B>(&overlaps, &beta), layout),
            q,
            k,
            v,
            beta,
            to_end: B::float_exp(sub::<B>(end.clone(), sums.clone())),
            from_start: B::float_exp(sums),
            whole: B::float_exp(end),
            decays,
            overlaps,
            seen,
        }
    }

    /// Returns `beta exp(G) k`, which reads the state at the start of a chunk.
    fn reading_keys(&self) -> FloatTensor<B> {
        mul::<B>(&mul::<B>(&self.k, &self.from_start), &self.beta)
    }

    /// Returns `exp(G_end - G) k`, which writes to the state at the end of a chunk.
    fn writing_keys(&self) -> FloatTensor<B> {
        mul::<B>(&self.k, &self.to_end)
    }

    /// Returns `exp(G) q`.
    fn reading_queries(&self) -> FloatTensor<B> {
        mul::<B>(&self.q, &self.from_start)
    }
}

/// Computes `(1 + a)^-1` for matrices that are 0 on and above the diagonal. Diagonal blocks are inverted,
/// doubling in size each time: if `L` and `R` are the inverses of two neighboring blocks and `C` is the block
/// below the first, the inverse of both has `-R C L` in the place of `C`.
fn inverse<B: Backend>(a: FloatTensor<B>, layout: &Layout) -> FloatTensor<B> {
    let (device, dtype) = (a.device(), FloatDType::from(a.dtype()));
    let below = |half: usize| {
        let is_below = |i: usize, j: usize| (i / half) % 2 == 1 && j / half + 1 == i / half;
        let mask = layout.pairs::<B>(&device, dtype, |i, j| f32::from(is_below(i, j)));
        mul::<B>(&a, &mask)
    };
    let one = layout.pairs::<B>(&device, dtype, |i, j| f32::from(i == j));
    let mut inverse = sub::<B>(one, below(1));
    let mut half = 2;
    while half < layout.size {
        let product = matmul::<B>(&matmul::<B>(&inverse, &below(half)), &inverse);
        inverse = sub::<B>(inverse, product);
        half *= 2;
    }
    inverse
}

/// The states of a call.
struct States<B: Backend> {
    /// The state before each chunk, `[chunks, value_heads, key_dim, value_dim]`.
    before: FloatTensor<B>,
    /// `U`, `[chunks, value_heads, size, value_dim]`.
    written: FloatTensor<B>,
    /// The state after each sequence, in the original order.
    after: FloatTensor<B>,
}

impl<B: Backend> Chunks<B> {
    /// Computes the states, starting from `state` or zeros.
    fn states(&self, state: Option<FloatTensor<B>>, layout: &Layout) -> States<B> {
        let DeltaShape { value_heads, key_dim, value_dim, .. } = layout.shape;
        let (device, dtype) = (self.v.device(), FloatDType::from(self.v.dtype()));
        let width = value_heads * key_dim * value_dim;
        let flat = |x: FloatTensor<B>| {
            let count = x.shape()[0];
            B::float_reshape(x, [count, width].into())
        };
        let of_heads = |x: FloatTensor<B>| {
            let count = x.shape()[0];
            B::float_reshape(x, [count, value_heads, key_dim, value_dim].into())
        };
        let count = layout.order.len();
        let mut state = match state {
            Some(state) => of_heads(rows::<B>(flat(widen::<B>(state)), &layout.order)),
            None => B::float_zeros([count, value_heads, key_dim, value_dim].into(), &device, dtype),
        };
        let reading = matmul::<B>(&self.inverse, &self.reading_keys());
        let values = matmul::<B>(&self.inverse, &mul::<B>(&self.v, &self.beta));
        let writing = transposed::<B>(&self.writing_keys());
        let (mut before, mut written, mut ended) = (vec![], vec![], vec![]);
        for chunks in layout.steps() {
            let of = |x: &FloatTensor<B>| part::<B>(x, chunks.clone());
            // Sequences without further chunks.
            let there = state.shape()[0];
            if chunks.len() < there {
                ended.push(part::<B>(&state, chunks.len()..there));
                state = part::<B>(&state, 0..chunks.len());
            }
            let new = sub::<B>(of(&values), matmul::<B>(&of(&reading), &state));
            before.push(state.clone());
            state = add::<B>(mul::<B>(&state, &of(&self.whole)), matmul::<B>(&of(&writing), &new));
            written.push(new);
        }
        ended.push(state);
        ended.reverse();
        let mut own_order = vec![0; count];
        for (place, sequence) in layout.order.iter().enumerate() {
            own_order[*sequence] = place;
        }
        States {
            before: B::float_cat(before, 0),
            written: B::float_cat(written, 0),
            after: of_heads(rows::<B>(flat(B::float_cat(ended, 0)), &own_order)),
        }
    }
}

/// See [`super::GatedDeltaKernel::delta_forward`].
pub(super) fn forward<B: Backend>(
    inputs: Inputs<B>,
    state: Option<FloatTensor<B>>,
    call: &DeltaCall,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = inputs[2].dtype();
    let layout = Layout::new(call);
    if layout.counts.is_empty() {
        let DeltaShape { value_heads, key_dim, value_dim, .. } = layout.shape;
        let (device, states) = (inputs[2].device(), [0, value_heads, key_dim, value_dim]);
        let states = B::float_zeros(states.into(), &device, wide(dtype));
        return (B::float_zeros(inputs[2].shape(), &device, dtype.into()), states);
    }
    let chunks = Chunks::<B>::new(inputs, &layout);
    let states = chunks.states(state, &layout);
    let of_states = matmul::<B>(&chunks.reading_queries(), &states.before);
    let out = add::<B>(of_states, matmul::<B>(&chunks.seen, &states.written));
    (cast::<B>(layout.to_tokens::<B>(out), dtype.into()), states.after)
}

/// Gradients that pass from chunk to chunk.
struct StateGradients<B: Backend> {
    /// The gradient of the state after each chunk.
    after: FloatTensor<B>,
    /// The gradient of `U`.
    written: FloatTensor<B>,
}

impl<B: Backend> Chunks<B> {
    /// Computes gradients from the last chunks to the first; `grad` is the gradient of the output, in chunks.
    fn state_gradients(&self, grad: &FloatTensor<B>, layout: &Layout) -> StateGradients<B> {
        let of_reading = matmul::<B>(&transposed::<B>(&self.reading_queries()), grad);
        let of_seen = matmul::<B>(&transposed::<B>(&self.seen), grad);
        let reading = matmul::<B>(&self.inverse, &self.reading_keys());
        let (reading, writing) = (transposed::<B>(&reading), self.writing_keys());
        let (mut after, mut written) = (vec![], vec![]);
        let mut state: Option<FloatTensor<B>> = None;
        for chunks in layout.steps().into_iter().rev() {
            let of = |x: &FloatTensor<B>| part::<B>(x, chunks.clone());
            // Nothing depends on the state after a sequence.
            let zeros = |count: usize| {
                let shape = of(&of_reading).shape();
                let shape = [count, shape[1], shape[2], shape[3]];
                B::float_zeros(shape.into(), &grad.device(), grad.dtype().into())
            };
            let above = match state.take() {
                None => zeros(chunks.len()),
                Some(state) if state.shape()[0] == chunks.len() => state,
                Some(state) => {
                    let missing = chunks.len() - state.shape()[0];
                    B::float_cat(vec![state, zeros(missing)], 0)
                }
            };
            let new = add::<B>(of(&of_seen), matmul::<B>(&of(&writing), &above));
            let kept = add::<B>(mul::<B>(&above, &of(&self.whole)), of(&of_reading));
            state = Some(sub::<B>(kept, matmul::<B>(&of(&reading), &new)));
            after.push(above);
            written.push(new);
        }
        after.reverse();
        written.reverse();
        StateGradients { after: B::float_cat(after, 0), written: B::float_cat(written, 0) }
    }
}

/// See [`super::GatedDeltaKernel::delta_backward`].
pub(super) fn backward<B: Backend>(
    grad: FloatTensor<B>,
    inputs: Inputs<B>,
    call: &DeltaCall,
) -> Inputs<B> {
    let dtypes = inputs.each_ref().map(|input| input.dtype());
    let layout = Layout::new(call);
    if layout.counts.is_empty() {
        let zeros = |x: FloatTensor<B>| B::float_zeros(x.shape(), &x.device(), x.dtype().into());
        return inputs.map(zeros);
    }
    let grad = layout.to_chunks::<B>(widen::<B>(grad), layout.shape.value_heads);
    let it = Chunks::<B>::new(inputs, &layout);
    let states = it.states(None, &layout);
    let above = it.state_gradients(&grad, &layout);
    let device = grad.device();
    let earlier = layout.pairs::<B>(&device, grad.dtype().into(), |i, j| f32::from(j < i));

    // U = (1 + A)^-1 beta x, with x = v - exp(G) k S.
    let solved = matmul::<B>(&transposed::<B>(&it.inverse), &above.written);
    let read = matmul::<B>(&it.k, &states.before);
    let x = sub::<B>(it.v.clone(), mul::<B>(&read, &it.from_start));
    let grad_v = mul::<B>(&solved, &it.beta);
    let of_read = mul::<B>(&grad_v, &it.from_start);
    let mut grad_beta = of_rows::<B>(mul::<B>(&solved, &x));
    // The gradient of G by position.
    let mut grad_sums = B::float_neg(of_rows::<B>(mul::<B>(&of_read, &read)));
    let mut grad_k = B::float_neg(matmul::<B>(&of_read, &transposed::<B>(&states.before)));

    // A = beta (k k^T) D below the diagonal.
    let of_a = B::float_neg(matmul::<B>(&solved, &transposed::<B>(&states.written)));
    let of_overlaps = mul::<B>(&of_a, &it.overlaps);
    grad_beta = add::<B>(grad_beta, of_rows::<B>(of_overlaps.clone()));
    let of_logs = mul::<B>(&of_overlaps, &it.beta);
    let of_products = mul::<B>(&mul::<B>(&mul::<B>(&of_a, &it.beta), &it.decays), &earlier);
    let both = add::<B>(of_products.clone(), transposed::<B>(&of_products));
    grad_k = add::<B>(grad_k, matmul::<B>(&both, &it.k));

    // P = (q k^T) D, and its effect through U.
    let of_seen = matmul::<B>(&grad, &transposed::<B>(&states.written));
    let of_logs = add::<B>(of_logs, mul::<B>(&of_seen, &it.seen));
    let of_products = mul::<B>(&of_seen, &it.decays);
    let mut grad_q = matmul::<B>(&of_products, &it.k);
    grad_k = add::<B>(grad_k, matmul::<B>(&transposed::<B>(&of_products), &it.q));
    // The logarithm of D is a difference of sums.
    let of_columns = transposed::<B>(&B::float_sum_dim(of_logs.clone(), 2));
    grad_sums = add::<B>(grad_sums, sub::<B>(of_rows::<B>(of_logs), of_columns));

    // exp(G) q S.
    let of_queries = matmul::<B>(&grad, &transposed::<B>(&states.before));
    let of_queries = mul::<B>(&of_queries, &it.from_start);
    grad_sums = add::<B>(grad_sums, of_rows::<B>(mul::<B>(&of_queries, &it.q)));
    grad_q = add::<B>(grad_q, of_queries);

    // exp(G_end) S + (exp(G_end - G) k)^T U.
    let of_keys = matmul::<B>(&states.written, &transposed::<B>(&above.after));
    let of_keys = mul::<B>(&of_keys, &it.to_end);
    let of_ends = of_rows::<B>(mul::<B>(&of_keys, &it.k));
    grad_k = add::<B>(grad_k, of_keys);
    grad_sums = sub::<B>(grad_sums, of_ends.clone());
    let of_whole = mul::<B>(&mul::<B>(&states.before, &above.after), &it.whole);
    let of_end =
        add::<B>(B::float_sum_dim(of_ends, 2), B::float_sum_dim(of_rows::<B>(of_whole), 2));

    // G is a running sum: each decay is in its own sum and all later ones.
    let total = B::float_sum_dim(grad_sums.clone(), 2);
    let earlier_ones = sub::<B>(B::float_cumsum(grad_sums.clone(), 2), grad_sums);
    let grad_decay = sub::<B>(add::<B>(total, of_end), earlier_ones);

    let grad_q = B::float_mul_scalar(grad_q, layout.shape.scale().into());
    let [of_q, of_k] = &it.units;
    let grad_q = of_q.backward(layout.for_keys::<B>(grad_q));
    let grad_k = of_k.backward(layout.for_keys::<B>(grad_k));
    let grads = [grad_q, grad_k, grad_v, grad_decay, grad_beta];
    let mut dtypes = dtypes.into_iter();
    grads.map(|grad| {
        let dtype = dtypes.next().expect("as many as inputs");
        cast::<B>(layout.to_tokens::<B>(grad), dtype.into())
    })
}
