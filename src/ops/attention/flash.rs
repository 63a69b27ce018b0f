//! Attention in one pass over tiles of keys, for GPUs: no scores in memory but those of a tile, in the manner of
//! FlashAttention-2 (arXiv 2307.08691).
//!
//! A cube has a tile of queries of a head, or in the pass for their gradients a tile of keys of a key and value
//! head, and goes through the other side tile by tile, always in the same order. Its units share the rows of its
//! tile: `lanes` of them each row, of which they have every `lanes`-th vector.

use super::super::cube::{CubeTensor, cubecl, cubes, element, unwritten, vector_of, vector_total};
use super::{AttentionShape, Extent};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, since WGSL has no infinity.
const LEAST: f32 = -1e30;

/// Reads some rows of a head to shared memory, those from `end` on as zeros.
#[cube]
fn load<F: Float, N: Size>(
    from: &Tensor<Vector<F, N>>,
    to: &mut Shared<[Vector<f32, N>]>,
    // The first row's token, the tokens that there are, heads of a token, and which it is.
    first: usize,
    end: usize,
    heads: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
) {
    for at in range_stepped(UNIT_POS as usize, rows * vectors, units) {
        let token = first + at / vectors;
        let mut value = Vector::<f32, N>::new(0.0);
        if token < end {
            value = Vector::cast_from(from[(token * heads + head) * vectors + at % vectors]);
        }
        to[at] = value;
    }
}

/// The product of two rows in shared memory.
#[cube]
fn dot<N: Size>(
    a: &Shared<[Vector<f32, N>]>,
    a_row: usize,
    b: &Shared<[Vector<f32, N>]>,
    b_row: usize,
    #[comptime] vectors: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in 0..vectors {
        sum += a[a_row * vectors + i] * b[b_row * vectors + i];
    }
    vector_total(sum)
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    out: &mut Tensor<Vector<F, N>>,
    log_sum_exps: &mut Tensor<f32>,
    count: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tile: usize,
    #[comptime] lanes: usize,
    #[comptime] vectors: usize,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let units = comptime!(tile * lanes);
    let own = comptime!(vectors / lanes);
    let tiles = seq.div_ceil(tile);
    let (batch_head, first_query) = (CUBE_POS / tiles, CUBE_POS % tiles * tile);
    let (head, base) = (batch_head % heads, batch_head / heads * seq);
    let kv_head = head / (heads / kv_heads);
    let (row, lane) = (UNIT_POS as usize / lanes, UNIT_POS as usize % lanes);
    let query = first_query + row;
    let end = min(first_query + tile, seq);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut others = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut probs = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    let mut of_lanes = Shared::<[f32]>::new_slice(units);
    load(q, &mut queries, base + first_query, base + seq, heads, head, tile, vectors, units);

    let mut mixed = Array::<Vector<f32, N>>::new(own);
    for o in 0..own {
        mixed[o] = Vector::new(0.0);
    }
    let start = usize::cast_from(starts[base + min(query, seq - 1)]);
    let mut most = f32::new(LEAST);
    let mut sum = 0.0f32;
    // No later query of the tile sees an earlier key than the first.
    let mut first_key = usize::cast_from(starts[base + first_query]);
    while first_key < end {
        load(k, &mut others, base + first_key, base + end, kv_heads, kv_head, tile, vectors, units);
        sync_cube();
        let mut of_lane = f32::new(LEAST);
        for j in range_stepped(lane, tile, lanes) {
            let key = first_key + j;
            let mut score = f32::new(LEAST);
            if key >= start && key <= query && key < end {
                score = dot(&queries, row, &others, j, vectors) * scale;
            }
            probs[row * tile + j] = score;
            of_lane = max(of_lane, score);
        }
        of_lanes[UNIT_POS as usize] = of_lane;
        sync_cube();
        let before = most;
        for other in 0..lanes {
            most = max(most, of_lanes[row * lanes + other]);
        }
        let factor = (before - most).exp();
        sum *= factor;
        for j in range_stepped(lane, tile, lanes) {
            let score = probs[row * tile + j];
            let mut prob = 0.0f32;
            if score > LEAST * 0.5 {
                prob = (score - most).exp();
            }
            probs[row * tile + j] = prob;
            sum += prob;
        }
        load(v, &mut others, base + first_key, base + end, kv_heads, kv_head, tile, vectors, units);
        sync_cube();
        for o in 0..own {
            let mut value = mixed[o] * Vector::new(factor);
            for j in 0..tile {
                value +=
                    others[j * vectors + lane + o * lanes] * Vector::new(probs[row * tile + j]);
            }
            mixed[o] = value;
        }
        sync_cube();
        first_key += tile;
    }
    of_lanes[UNIT_POS as usize] = sum;
    sync_cube();
    let mut total = 0.0f32;
    for other in 0..lanes {
        total += of_lanes[row * lanes + other];
    }
    if query < seq {
        let share = Vector::<f32, N>::new(1.0 / total);
        let place = ((base + query) * heads + head) * vectors + lane;
        for o in 0..own {
            out[place + o * lanes] = Vector::cast_from(mixed[o] * share);
        }
        if lane == 0 {
            log_sum_exps[batch_head * seq + query] = most + total.ln();
        }
    }
}

/// The gradient of the queries.
#[cube(launch_unchecked)]
fn query_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    // Of each query: its log-sum-exp, and the sum over the keys of each probability times its gradient.
    query_sums: &Tensor<f32>,
    grad_q: &mut Tensor<Vector<F, N>>,
    count: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tile: usize,
    #[comptime] lanes: usize,
    #[comptime] vectors: usize,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let units = comptime!(tile * lanes);
    let own = comptime!(vectors / lanes);
    let tiles = seq.div_ceil(tile);
    let (batch_head, first_query) = (CUBE_POS / tiles, CUBE_POS % tiles * tile);
    let (head, base) = (batch_head % heads, batch_head / heads * seq);
    let kv_head = head / (heads / kv_heads);
    let (row, lane) = (UNIT_POS as usize / lanes, UNIT_POS as usize % lanes);
    let query = first_query + row;
    let end = min(first_query + tile, seq);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut grads = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut keys = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut values = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    load(q, &mut queries, base + first_query, base + seq, heads, head, tile, vectors, units);
    load(grad, &mut grads, base + first_query, base + seq, heads, head, tile, vectors, units);

    let mut sums = Array::<Vector<f32, N>>::new(own);
    for o in 0..own {
        sums[o] = Vector::new(0.0);
    }
    let last = min(query, seq - 1);
    let start = usize::cast_from(starts[base + last]);
    let log_sum_exp = query_sums[2 * (batch_head * seq + last)];
    let mean = query_sums[2 * (batch_head * seq + last) + 1];
    let mut first_key = usize::cast_from(starts[base + first_query]);
    while first_key < end {
        load(k, &mut keys, base + first_key, base + end, kv_heads, kv_head, tile, vectors, units);
        load(v, &mut values, base + first_key, base + end, kv_heads, kv_head, tile, vectors, units);
        sync_cube();
        for j in range_stepped(lane, tile, lanes) {
            let key = first_key + j;
            let mut slope = 0.0f32;
            if key >= start && key <= query && key < end {
                let score = dot(&queries, row, &keys, j, vectors) * scale;
                let prob_grad = dot(&grads, row, &values, j, vectors);
                slope = (score - log_sum_exp).exp() * (prob_grad - mean) * scale;
            }
            slopes[row * tile + j] = slope;
        }
        sync_cube();
        for o in 0..own {
            let mut sum = sums[o];
            for j in 0..tile {
                sum += keys[j * vectors + lane + o * lanes] * Vector::new(slopes[row * tile + j]);
            }
            sums[o] = sum;
        }
        sync_cube();
        first_key += tile;
    }
    if query < seq {
        let place = ((base + query) * heads + head) * vectors + lane;
        for o in 0..own {
            grad_q[place + o * lanes] = Vector::cast_from(sums[o]);
        }
    }
}

/// The gradient of the values, or with `of_keys` that of the keys: two passes, since a kernel may have eight buffers at
/// most on some devices.
#[cube(launch_unchecked)]
fn key_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    query_sums: &Tensor<f32>,
    grad_keys: &mut Tensor<Vector<F, N>>,
    count: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    // Most keys that a query sees.
    longest: usize,
    scale: f32,
    #[comptime] of_keys: bool,
    #[comptime] tile: usize,
    #[comptime] lanes: usize,
    #[comptime] vectors: usize,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let units = comptime!(tile * lanes);
    let own = comptime!(vectors / lanes);
    let tiles = seq.div_ceil(tile);
    let (batch_head, first_key) = (CUBE_POS / tiles, CUBE_POS % tiles * tile);
    let (kv_head, row_of_batch) = (batch_head % kv_heads, batch_head / kv_heads);
    let (base, group) = (row_of_batch * seq, heads / kv_heads);
    let (row, lane) = (UNIT_POS as usize / lanes, UNIT_POS as usize % lanes);
    let key = first_key + row;
    // The last query that may see the last key of the tile.
    let end = min(first_key + tile - 1 + longest, seq);

    let mut keys = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut values = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    let mut grads = Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile * vectors));
    // Of each query, for each key of the tile.
    let mut factors = Shared::<[f32]>::new_slice(comptime!(tile * tile));
    load(k, &mut keys, base + first_key, base + seq, kv_heads, kv_head, tile, vectors, units);
    load(v, &mut values, base + first_key, base + seq, kv_heads, kv_head, tile, vectors, units);

    let mut sums = Array::<Vector<f32, N>>::new(own);
    for o in 0..own {
        sums[o] = Vector::new(0.0);
    }
    for of_group in 0..group {
        let head = kv_head * group + of_group;
        let first_row = (row_of_batch * heads + head) * seq;
        let mut first_query = first_key;
        while first_query < end {
            load(
                q,
                &mut queries,
                base + first_query,
                base + end,
                heads,
                head,
                tile,
                vectors,
                units,
            );
            load(
                grad,
                &mut grads,
                base + first_query,
                base + end,
                heads,
                head,
                tile,
                vectors,
                units,
            );
            sync_cube();
            for i in range_stepped(lane, tile, lanes) {
                let query = first_query + i;
                let mut factor = 0.0f32;
                let start = usize::cast_from(starts[base + min(query, end - 1)]);
                if query < end && key <= query && key >= start {
                    let score = dot(&queries, i, &keys, row, vectors) * scale;
                    let prob = (score - query_sums[2 * (first_row + query)]).exp();
                    factor = prob;
                    if comptime!(of_keys) {
                        let prob_grad = dot(&grads, i, &values, row, vectors);
                        let mean = query_sums[2 * (first_row + query) + 1];
                        factor = prob * (prob_grad - mean) * scale;
                    }
                }
                factors[i * tile + row] = factor;
            }
            sync_cube();
            for o in 0..own {
                let mut sum = sums[o];
                let column = lane + o * lanes;
                for i in 0..tile {
                    let factor = Vector::<f32, N>::new(factors[i * tile + row]);
                    if comptime!(of_keys) {
                        sum += queries[i * vectors + column] * factor;
                    } else {
                        sum += grads[i * vectors + column] * factor;
                    }
                }
                sums[o] = sum;
            }
            sync_cube();
            first_query += tile;
        }
    }
    if key < seq {
        let place = ((base + key) * kv_heads + kv_head) * vectors + lane;
        for o in 0..own {
            grad_keys[place + o * lanes] = Vector::cast_from(sums[o]);
        }
    }
}

/// How a call is divided.
#[derive(Clone, Copy, Debug)]
struct Division {
    /// Queries or keys of a tile.
    tile: usize,
    /// Units of a row.
    lanes: usize,
    /// Elements of a vector, and vectors of a head.
    vector: usize,
    vectors: usize,
}

impl Division {
    /// `None` where not even a small tile fits the device.
    fn new(shape: AttentionShape, x: &CubeTensor) -> Option<Self> {
        let hardware = &x.client.properties().hardware;
        // In shared memory a vector's elements are in f32.
        let vector = vector_of(shape.head_dim, [x]).min(4);
        let vectors = shape.head_dim / vector;
        let lanes = [4, 2].into_iter().find(|lanes| vectors.is_multiple_of(*lanes)).unwrap_or(1);
        let fits = |tile: &usize| {
            let floats = 4 * tile * shape.head_dim + tile * tile + tile * lanes;
            4 * floats <= hardware.max_shared_memory_size
                && tile * lanes <= hardware.max_units_per_cube as usize
        };
        let tile = [32, 16, 8, 4].into_iter().find(fits)?;
        Some(Self { tile, lanes, vector, vectors })
    }
}

/// Whether a device can do it.
pub(super) fn fits(shape: AttentionShape, x: &CubeTensor) -> bool {
    Division::new(shape, x).is_some()
}

/// The output and the log-sum-exps, in the order that [`super::cube`] has; the tensors are row after row.
pub(super) fn forward(
    [q, k, v, starts]: [CubeTensor; 4],
    Extent { shape, .. }: Extent,
) -> (CubeTensor, CubeTensor) {
    let Division { tile, lanes, vector, vectors } =
        Division::new(shape, &q).expect("asked before whether it fits");
    let out = unwritten(&q, [shape.tokens(), shape.width()], q.dtype);
    let sizes = [shape.batch, shape.kv_heads, shape.group(), shape.seq, 1];
    let log_sum_exps = unwritten(&q, sizes, DType::F32);
    let count = shape.batch * shape.heads * shape.seq.div_ceil(tile);
    let (cube_count, cube_dim) = cubes(count, tile * lanes, &q);
    let elements = [element(&q), element(&starts)];
    // SAFETY: rows past the last are neither read nor written; a cube writes its own queries.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client.clone(),
            cube_count,
            cube_dim,
            vector,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            starts.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            log_sum_exps.clone().into_tensor_arg(),
            count,
            shape.seq,
            shape.heads,
            shape.kv_heads,
            shape.scale() as f32,
            tile,
            lanes,
            vectors,
            elements,
        );
    }
    (out, log_sum_exps)
}

/// The gradients of queries, keys and values; the tensors are row after row.
pub(super) fn backward(
    [q, k, v, grad, starts, query_sums]: [CubeTensor; 6],
    Extent { shape, longest }: Extent,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let Division { tile, lanes, vector, vectors } =
        Division::new(shape, &q).expect("asked before whether it fits");
    let like = |width| unwritten(&q, [shape.tokens(), width], q.dtype);
    let [grad_q, grad_k, grad_v] = [shape.width(), shape.kv_width(), shape.kv_width()].map(like);
    let tiles = shape.batch * shape.seq.div_ceil(tile);
    let elements = [element(&q), element(&starts)];
    let inputs = [&q, &k, &v, &grad, &starts, &query_sums];
    let inputs = || inputs.map(|x| x.clone().into_tensor_arg());
    {
        let [q_arg, k_arg, v_arg, grad_arg, starts_arg, sums_arg] = inputs();
        let count = tiles * shape.heads;
        let (cube_count, cube_dim) = cubes(count, tile * lanes, &q);
        // SAFETY: rows past the last are neither read nor written; a cube writes its own queries.
        unsafe {
            query_kernel::launch_unchecked(
                &q.client,
                cube_count,
                cube_dim,
                vector,
                q_arg,
                k_arg,
                v_arg,
                grad_arg,
                starts_arg,
                sums_arg,
                grad_q.clone().into_tensor_arg(),
                count,
                shape.seq,
                shape.heads,
                shape.kv_heads,
                shape.scale() as f32,
                tile,
                lanes,
                vectors,
                elements,
            );
        }
    }
    for (of_keys, out) in [(true, &grad_k), (false, &grad_v)] {
        let [q_arg, k_arg, v_arg, grad_arg, starts_arg, sums_arg] = inputs();
        let count = tiles * shape.kv_heads;
        let (cube_count, cube_dim) = cubes(count, tile * lanes, &q);
        // SAFETY: rows past the last are neither read nor written; a cube writes its own keys.
        unsafe {
            key_kernel::launch_unchecked(
                &q.client,
                cube_count,
                cube_dim,
                vector,
                q_arg,
                k_arg,
                v_arg,
                grad_arg,
                starts_arg,
                sums_arg,
                out.clone().into_tensor_arg(),
                count,
                shape.seq,
                shape.heads,
                shape.kv_heads,
                longest,
                shape.scale() as f32,
                of_keys,
                tile,
                lanes,
                vectors,
                elements,
            );
        }
    }
    (grad_q, grad_k, grad_v)
}
