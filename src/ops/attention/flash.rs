//! Attention in one pass over tiles of keys, for GPUs, as in FlashAttention-2 (arXiv 2307.08691). Only the
//! scores of one tile exist at a time.
//!
//! A cube handles one tile of queries of a head, or, for the gradients of keys and values, one tile of keys
//! of a key and value head. It goes through the other side tile by tile, always in the same order. Its units
//! share the rows of its tile: `lanes` units per row, each with every `lanes`-th vector.

use super::super::cube::{
    CubeTensor, cubecl, cubes, element, unwritten, vector_of, vector_total, zero_sums,
};
use super::cube::LEAST;
use super::{AttentionShape, Extent};
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Sizes of a call for the kernels.
#[derive(CubeType, CubeLaunch, Clone)]
struct Sizes {
    /// Number of tiles on the side that is divided among cubes.
    count: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    /// Maximum number of keys that a query sees.
    longest: usize,
    scale: f32,
    /// See [`Division`].
    #[cube(comptime)]
    tile: usize,
    #[cube(comptime)]
    lanes: usize,
    #[cube(comptime)]
    vectors: usize,
}

/// A cube's tile and a unit's place in it.
#[derive(CubeType, Clone)]
struct Tile {
    /// The index of the head among all rows of the batch, within its row, and the index of its key and value
    /// head.
    of_all: usize,
    head: usize,
    kv_head: usize,
    /// The index of the row's first token among all rows.
    base: usize,
    /// The tile's first token, its end, and the unit's own token, within the row.
    first: usize,
    end: usize,
    own: usize,
    row: usize,
    lane: usize,
}

#[cube]
impl Sizes {
    fn tile(&self, heads: usize) -> Tile {
        let tiles = self.seq.div_ceil(self.tile);
        let of_all = CUBE_POS / tiles;
        let first = CUBE_POS % tiles * self.tile;
        let row = UNIT_POS as usize / self.lanes;
        Tile {
            of_all,
            head: of_all % heads,
            kv_head: of_all % heads / (heads / self.kv_heads),
            base: of_all / heads * self.seq,
            first,
            end: min(first + self.tile, self.seq),
            own: first + row,
            row,
            lane: UNIT_POS as usize % self.lanes,
        }
    }

    /// Returns shared memory for the rows of a tile.
    fn rows<N: Size>(&self) -> Shared<[Vector<f32, N>]> {
        Shared::<[Vector<f32, N>]>::new_slice(comptime!(self.tile * self.vectors))
    }

    /// Returns zero sums for a unit's columns.
    fn no_sums<N: Size>(&self) -> Array<Vector<f32, N>> {
        zero_sums(comptime!(self.vectors / self.lanes))
    }

    /// Loads rows of a head into shared memory, starting at token `first`; rows from `end` on are zeros.
    fn load<F: Float, N: Size>(
        &self,
        from: &Tensor<Vector<F, N>>,
        to: &mut Shared<[Vector<f32, N>]>,
        first: usize,
        end: usize,
        heads: usize,
        head: usize,
    ) {
        let (vectors, units) = (self.vectors, comptime!(self.tile * self.lanes));
        for at in range_stepped(UNIT_POS as usize, self.tile * vectors, units) {
            let token = first + at / vectors;
            let mut value = Vector::<f32, N>::new(0.0);
            if token < end {
                value = Vector::cast_from(from[(token * heads + head) * vectors + at % vectors]);
            }
            to[at] = value;
        }
    }

    /// Returns the product of two rows in shared memory.
    fn dot<N: Size>(
        &self,
        a: &Shared<[Vector<f32, N>]>,
        a_row: usize,
        b: &Shared<[Vector<f32, N>]>,
        b_row: usize,
    ) -> f32 {
        let mut sum = Vector::<f32, N>::new(0.0);
        for i in 0..self.vectors {
            sum += a[a_row * self.vectors + i] * b[b_row * self.vectors + i];
        }
        vector_total(sum)
    }

    /// Multiplies the sums by `scale` and adds the rows of the other side, weighted by the factors of the
    /// unit's row.
    fn add<N: Size>(
        &self,
        sums: &mut Array<Vector<f32, N>>,
        scale: f32,
        factors: &Shared<[f32]>,
        others: &Shared<[Vector<f32, N>]>,
        tile: &Tile,
    ) {
        for o in 0..comptime!(self.vectors / self.lanes) {
            let column = tile.lane + o * self.lanes;
            let mut sum = sums[o] * Vector::new(scale);
            for j in 0..self.tile {
                let factor = Vector::<f32, N>::new(factors[tile.row * self.tile + j]);
                sum += others[j * self.vectors + column] * factor;
            }
            sums[o] = sum;
        }
    }

    /// Writes a unit's columns, times `scale`, if its row has a token.
    fn write<F: Float, N: Size>(
        &self,
        sums: &Array<Vector<f32, N>>,
        scale: f32,
        out: &mut Tensor<Vector<F, N>>,
        tile: &Tile,
        heads: usize,
    ) {
        if tile.own < self.seq {
            let row = (tile.base + tile.own) * heads + tile.head;
            for o in 0..comptime!(self.vectors / self.lanes) {
                let place = row * self.vectors + tile.lane + o * self.lanes;
                out[place] = Vector::cast_from(sums[o] * Vector::new(scale));
            }
        }
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    out: &mut Tensor<Vector<F, N>>,
    log_sum_exps: &mut Tensor<f32>,
    sizes: Sizes,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= sizes.count {
        terminate!();
    }
    let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
    let tile = sizes.tile(heads);
    let (base, row, query, end) = (tile.base, tile.row, tile.own, tile.end);

    let mut queries = sizes.rows::<N>();
    let mut others = sizes.rows::<N>();
    let mut probs = Shared::<[f32]>::new_slice(comptime!(sizes.tile * sizes.tile));
    let mut of_lanes = Shared::<[f32]>::new_slice(comptime!(sizes.tile * sizes.lanes));
    sizes.load(q, &mut queries, base + tile.first, base + end, heads, tile.head);

    let mut mixed = sizes.no_sums::<N>();
    let start = usize::cast_from(starts[base + min(query, sizes.seq - 1)]);
    let mut most = f32::new(LEAST);
    let mut sum = 0.0f32;
    // No later query of the tile sees an earlier key than the first query.
    let mut first_key = usize::cast_from(starts[base + tile.first]);
    while first_key < end {
        sizes.load(k, &mut others, base + first_key, base + end, kv_heads, tile.kv_head);
        sync_cube();
        let mut of_lane = f32::new(LEAST);
        for j in range_stepped(tile.lane, sizes.tile, sizes.lanes) {
            let key = first_key + j;
            let mut score = f32::new(LEAST);
            if key >= start && key <= query && key < end {
                score = sizes.dot(&queries, row, &others, j) * sizes.scale;
            }
            probs[row * sizes.tile + j] = score;
            of_lane = max(of_lane, score);
        }
        of_lanes[UNIT_POS as usize] = of_lane;
        sync_cube();
        let before = most;
        for other in 0..sizes.lanes {
            most = max(most, of_lanes[row * sizes.lanes + other]);
        }
        let factor = (before - most).exp();
        sum *= factor;
        for j in range_stepped(tile.lane, sizes.tile, sizes.lanes) {
            let score = probs[row * sizes.tile + j];
            let mut prob = 0.0f32;
            if score > LEAST * 0.5 {
                prob = (score - most).exp();
            }
            probs[row * sizes.tile + j] = prob;
            sum += prob;
        }
        sizes.load(v, &mut others, base + first_key, base + end, kv_heads, tile.kv_head);
        sync_cube();
        sizes.add(&mut mixed, factor, &probs, &others, &tile);
        sync_cube();
        first_key += sizes.tile;
    }
    of_lanes[UNIT_POS as usize] = sum;
    sync_cube();
    let mut total = 0.0f32;
    for other in 0..sizes.lanes {
        total += of_lanes[row * sizes.lanes + other];
    }
    sizes.write(&mixed, 1.0 / total, out, &tile, heads);
    if query < sizes.seq && tile.lane == 0 {
        log_sum_exps[tile.of_all * sizes.seq + query] = most + total.ln();
    }
}

/// Computes the gradient of the queries.
#[cube(launch_unchecked)]
fn query_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    // For each query: its log-sum-exp, and the sum over the keys of each probability times its gradient.
    query_sums: &Tensor<f32>,
    grad_q: &mut Tensor<Vector<F, N>>,
    sizes: Sizes,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= sizes.count {
        terminate!();
    }
    let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
    let tile = sizes.tile(heads);
    let (base, row, query, end) = (tile.base, tile.row, tile.own, tile.end);

    let mut queries = sizes.rows::<N>();
    let mut grads = sizes.rows::<N>();
    let mut keys = sizes.rows::<N>();
    let mut values = sizes.rows::<N>();
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(sizes.tile * sizes.tile));
    sizes.load(q, &mut queries, base + tile.first, base + end, heads, tile.head);
    sizes.load(grad, &mut grads, base + tile.first, base + end, heads, tile.head);

    let mut sums = sizes.no_sums::<N>();
    let last = min(query, sizes.seq - 1);
    let start = usize::cast_from(starts[base + last]);
    let log_sum_exp = query_sums[2 * (tile.of_all * sizes.seq + last)];
    let mean = query_sums[2 * (tile.of_all * sizes.seq + last) + 1];
    let mut first_key = usize::cast_from(starts[base + tile.first]);
    while first_key < end {
        sizes.load(k, &mut keys, base + first_key, base + end, kv_heads, tile.kv_head);
        sizes.load(v, &mut values, base + first_key, base + end, kv_heads, tile.kv_head);
        sync_cube();
        for j in range_stepped(tile.lane, sizes.tile, sizes.lanes) {
            let key = first_key + j;
            let mut slope = 0.0f32;
            if key >= start && key <= query && key < end {
                let score = sizes.dot(&queries, row, &keys, j) * sizes.scale;
                let prob_grad = sizes.dot(&grads, row, &values, j);
                slope = (score - log_sum_exp).exp() * (prob_grad - mean) * sizes.scale;
            }
            slopes[row * sizes.tile + j] = slope;
        }
        sync_cube();
        sizes.add(&mut sums, 1.0, &slopes, &keys, &tile);
        sync_cube();
        first_key += sizes.tile;
    }
    sizes.write(&sums, 1.0, grad_q, &tile, heads);
}

/// Computes the gradient of the values, or of the keys with `of_keys`. Two passes, because on some devices a
/// kernel can have at most eight buffers.
#[cube(launch_unchecked)]
fn key_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    starts: &Tensor<I>,
    query_sums: &Tensor<f32>,
    grad_keys: &mut Tensor<Vector<F, N>>,
    sizes: Sizes,
    #[comptime] of_keys: bool,
    #[define(F, I)] _elements: [ElemType; 2],
) {
    if CUBE_POS >= sizes.count {
        terminate!();
    }
    let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
    let tile = sizes.tile(kv_heads);
    let (base, row, key) = (tile.base, tile.row, tile.own);
    let group = heads / kv_heads;
    // The end of the queries that may see the last key of the tile.
    let end = min(tile.first + sizes.tile - 1 + sizes.longest, sizes.seq);

    let mut keys = sizes.rows::<N>();
    let mut values = sizes.rows::<N>();
    let mut queries = sizes.rows::<N>();
    let mut grads = sizes.rows::<N>();
    // A factor for each query and each key of the tile.
    let mut factors = Shared::<[f32]>::new_slice(comptime!(sizes.tile * sizes.tile));
    sizes.load(k, &mut keys, base + tile.first, base + tile.end, kv_heads, tile.head);
    if comptime!(of_keys) {
        sizes.load(v, &mut values, base + tile.first, base + tile.end, kv_heads, tile.head);
    }

    let mut sums = sizes.no_sums::<N>();
    for of_group in 0..group {
        let head = tile.head * group + of_group;
        let first_row = (tile.of_all * group + of_group) * sizes.seq;
        let mut first_query = tile.first;
        while first_query < end {
            sizes.load(q, &mut queries, base + first_query, base + end, heads, head);
            sizes.load(grad, &mut grads, base + first_query, base + end, heads, head);
            sync_cube();
            for i in range_stepped(tile.lane, sizes.tile, sizes.lanes) {
                let query = first_query + i;
                let mut factor = 0.0f32;
                let start = usize::cast_from(starts[base + min(query, end - 1)]);
                if query < end && key <= query && key >= start {
                    let score = sizes.dot(&queries, i, &keys, row) * sizes.scale;
                    factor = (score - query_sums[2 * (first_row + query)]).exp();
                    if comptime!(of_keys) {
                        let prob_grad = sizes.dot(&grads, i, &values, row);
                        let mean = query_sums[2 * (first_row + query) + 1];
                        factor *= (prob_grad - mean) * sizes.scale;
                    }
                }
                factors[row * sizes.tile + i] = factor;
            }
            sync_cube();
            if comptime!(of_keys) {
                sizes.add(&mut sums, 1.0, &factors, &queries, &tile);
            } else {
                sizes.add(&mut sums, 1.0, &factors, &grads, &tile);
            }
            sync_cube();
            first_query += sizes.tile;
        }
    }
    sizes.write(&sums, 1.0, grad_keys, &tile, kv_heads);
}

/// How a call is divided.
#[derive(Clone, Copy, Debug)]
struct Division {
    /// Queries or keys per tile.
    tile: usize,
    /// Units per row.
    lanes: usize,
    /// Elements per vector, and vectors per head.
    vector: usize,
    vectors: usize,
}

impl Division {
    /// Returns `None` if not even a small tile fits the device.
    fn new(shape: AttentionShape, x: &CubeTensor) -> Option<Self> {
        let hardware = &x.client.properties().hardware;
        // In shared memory, the elements of a vector are f32.
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

    /// Returns the kernels' sizes for a side with `heads` heads.
    fn sizes(self, Extent { shape, longest }: Extent, heads: usize) -> SizesLaunch {
        let count = shape.batch * heads * shape.seq.div_ceil(self.tile);
        SizesLaunch::new(
            count,
            shape.seq,
            shape.heads,
            shape.kv_heads,
            longest,
            shape.scale() as f32,
            self.tile,
            self.lanes,
            self.vectors,
        )
    }

    /// Returns one cube for each tile of a side with `heads` heads.
    fn cubes(self, shape: AttentionShape, heads: usize, x: &CubeTensor) -> (CubeCount, CubeDim) {
        cubes(shape.batch * heads * shape.seq.div_ceil(self.tile), self.tile * self.lanes, x)
    }
}

/// Returns whether the device supports this implementation.
pub(super) fn fits(shape: AttentionShape, x: &CubeTensor) -> bool {
    Division::new(shape, x).is_some()
}

/// Computes the output and the log-sum-exps, in the order of [`super::cube`]. The tensors must be contiguous.
pub(super) fn forward(
    [q, k, v, starts]: [CubeTensor; 4],
    extent: Extent,
) -> (CubeTensor, CubeTensor) {
    let shape = extent.shape;
    let division = Division::new(shape, &q).expect("asked before whether it fits");
    let out = unwritten(&q, [shape.tokens(), shape.width()], q.dtype);
    let sizes = [shape.batch, shape.kv_heads, shape.group(), shape.seq, 1];
    let log_sum_exps = unwritten(&q, sizes, DType::F32);
    let (cube_count, cube_dim) = division.cubes(shape, shape.heads, &q);
    let elements = [element(&q), element(&starts)];
    // SAFETY: rows past the last are neither read nor written; each cube writes only its own queries.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client.clone(),
            cube_count,
            cube_dim,
            division.vector,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            starts.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            log_sum_exps.clone().into_tensor_arg(),
            division.sizes(extent, shape.heads),
            elements,
        );
    }
    (out, log_sum_exps)
}

/// Computes the gradients of queries, keys, and values. The tensors must be contiguous.
pub(super) fn backward(
    [q, k, v, grad, starts, query_sums]: [CubeTensor; 6],
    extent: Extent,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let shape = extent.shape;
    let division = Division::new(shape, &q).expect("asked before whether it fits");
    let like = |width| unwritten(&q, [shape.tokens(), width], q.dtype);
    let [grad_q, grad_k, grad_v] = [shape.width(), shape.kv_width(), shape.kv_width()].map(like);
    let elements = [element(&q), element(&starts)];
    for (side, out) in [(Side::Queries, &grad_q), (Side::Keys, &grad_k), (Side::Values, &grad_v)] {
        let heads = if side == Side::Queries { shape.heads } else { shape.kv_heads };
        let (cube_count, cube_dim) = division.cubes(shape, heads, &q);
        let inputs = [&q, &k, &v, &grad, &starts, &query_sums];
        let [q_arg, k_arg, v_arg, grad_arg, starts_arg, sums_arg] =
            inputs.map(|x| x.clone().into_tensor_arg());
        let out = out.clone().into_tensor_arg();
        let sizes = division.sizes(extent, heads);
        // SAFETY: rows past the last are neither read nor written; each cube writes only its own queries,
        // keys, or values.
        unsafe {
            match side {
                Side::Queries => query_kernel::launch_unchecked(
                    &q.client,
                    cube_count,
                    cube_dim,
                    division.vector,
                    q_arg,
                    k_arg,
                    v_arg,
                    grad_arg,
                    starts_arg,
                    sums_arg,
                    out,
                    sizes,
                    elements,
                ),
                Side::Keys | Side::Values => key_kernel::launch_unchecked(
                    &q.client,
                    cube_count,
                    cube_dim,
                    division.vector,
                    q_arg,
                    k_arg,
                    v_arg,
                    grad_arg,
                    starts_arg,
                    sums_arg,
                    out,
                    sizes,
                    side == Side::Keys,
                    elements,
                ),
            }
        }
    }
    (grad_q, grad_k, grad_v)
}

/// Whose gradient a pass computes.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Queries,
    Keys,
    Values,
}
