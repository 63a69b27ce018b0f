//! GPU kernel: one cube per query and head, which goes through the keys tile by tile. Within a tile, each
//! unit first handles one key, and then some columns of the values for some of the keys.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_max, cube_sum, cubecl, cubes, element, in_rows,
    units_within, unwritten, vector_of, vector_total, zero_sums,
};
use super::{CachedAttentionKernel, Sizes, portable};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, because WGSL has no infinity.
const LEAST: f32 = -1e30;
/// Units per cube, if the device has as many.
const UNITS: usize = 128;

/// Sizes of a call for the kernel.
#[derive(CubeType, CubeLaunch, Clone)]
struct Call {
    /// Queries of all heads.
    count: usize,
    /// New tokens per row.
    new: usize,
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    first: usize,
    keys: usize,
    scale: f32,
}

#[cube]
impl Call {
    /// Returns the index of the first key of a cube's head in the cache.
    fn first_place(&self) -> usize {
        let (token, head) = (CUBE_POS / self.heads, CUBE_POS % self.heads);
        let kv_head = head / (self.heads / self.kv_heads);
        (token / self.new * self.kv_heads + kv_head) * self.capacity + self.first
    }
}

/// Returns the product of the query and the key at `first`.
#[cube]
fn dot<F: Float, N: Size>(
    query: &Shared<[Vector<f32, N>]>,
    keys: &Tensor<Vector<F, N>>,
    first: usize,
    #[comptime] vectors: usize,
) -> f32 {
    let mut dot = Vector::<f32, N>::new(0.0);
    for i in 0..vectors {
        dot += query[i] * Vector::cast_from(keys[first + i]);
    }
    vector_total(dot)
}

/// Adds to a column's sum the values of every `splits`-th key of a tile, starting at `split`; `first` is the
/// index of the first key.
#[cube]
fn with_values<F: Float, N: Size>(
    sum: Vector<f32, N>,
    values: &Tensor<Vector<F, N>>,
    first: usize,
    probs: &Shared<[f32]>,
    split: usize,
    end: usize,
    #[comptime] splits: usize,
    #[comptime] vectors: usize,
) -> Vector<f32, N> {
    let mut sum = sum;
    for j in range_stepped(split, end, splits) {
        let value = Vector::<f32, N>::cast_from(values[first + j * vectors]);
        sum += value * Vector::new(probs[j]);
    }
    sum
}

/// Adds the sums of the units that share a column.
#[cube]
fn sum_of_parts<N: Size>(
    parts: &Shared<[Vector<f32, N>]>,
    column: usize,
    #[comptime] splits: usize,
    #[comptime] vectors: usize,
) -> Vector<f32, N> {
    let mut sum = Vector::<f32, N>::new(0.0);
    for other in 0..splits {
        sum += parts[other * vectors + column];
    }
    sum
}

#[cube(launch_unchecked)]
fn attend_kernel<F: Float, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    mask: &Tensor<f32>,
    out: &mut Tensor<Vector<F, N>>,
    call: Call,
    #[comptime] units: usize,
    #[comptime] vectors: usize,
    // Units per column, and columns per unit, rounded up; one of them is 1.
    #[comptime] splits: usize,
    #[comptime] columns: usize,
    #[define(F)] _element: ElemType,
) {
    if CUBE_POS >= call.count {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (keys, token) = (call.keys, CUBE_POS / call.heads);
    let base = call.first_place() * vectors;
    let (split, column) = (unit / vectors, unit % vectors);

    let mut query = Shared::<[Vector<f32, N>]>::new_slice(vectors);
    let mut probs = Shared::<[f32]>::new_slice(units);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!(units * columns));
    for i in range_stepped(unit, vectors, units) {
        query[i] = Vector::cast_from(q[CUBE_POS * vectors + i]);
    }
    sync_cube();

    let mut mixed = zero_sums::<N>(columns);
    let mut most = f32::new(LEAST);
    let mut sum = 0.0f32;
    for first_key in range_stepped(0, keys, units) {
        let key = first_key + unit;
        let mut score = f32::new(LEAST);
        if key < keys {
            let product = dot(&query, k, base + key * vectors, vectors);
            score = product * call.scale + mask[token * keys + key];
        }
        let before = most;
        most = max(before, cube_max(score, &mut scratch, units));
        let factor = (before - most).exp();
        let mut prob = 0.0f32;
        if key < keys {
            prob = (score - most).exp();
        }
        probs[unit] = prob;
        sum = sum * factor + prob;
        sync_cube();
        let end = min(units, keys - first_key);
        if split < splits {
            for c in 0..columns {
                let i = column + c * units;
                if i < vectors {
                    let at = base + first_key * vectors + i;
                    let scaled = mixed[c] * Vector::new(factor);
                    mixed[c] = with_values(scaled, v, at, &probs, split, end, splits, vectors);
                }
            }
        }
        sync_cube();
    }
    let share = Vector::<f32, N>::new(1.0 / cube_sum(sum, &mut scratch, units));
    for c in 0..columns {
        parts[c * units + unit] = mixed[c];
    }
    sync_cube();
    if split == 0 {
        for c in 0..columns {
            let i = column + c * units;
            if i < vectors {
                let value = sum_of_parts(&parts, i, splits, vectors);
                out[CUBE_POS * vectors + i] = Vector::cast_from(value * share);
            }
        }
    }
}

impl CachedAttentionKernel for CubeBackend {
    fn attend_to_cache(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        mask: CubeTensor,
        first: usize,
    ) -> CubeTensor {
        let alike = q.dtype == k.dtype && q.dtype == v.dtype && mask.dtype == DType::F32;
        if !are_short([&q]) || !alike {
            return portable::<Self>(q, k, v, mask, first);
        }
        let [q, k, v, mask] = in_rows([q, k, v, mask]);
        let capacity = k.shape()[2];
        let Sizes { rows, new, keys, heads, kv_heads, dim } =
            Sizes::of(&q.shape(), &k.shape(), &mask.shape());
        let out = unwritten(&q, [rows * new, heads * dim], q.dtype);
        // In shared memory, the elements of a vector are f32.
        let vector = vector_of(dim, [&q]).min(4);
        let vectors = dim / vector;
        let units = units_within(UNITS, &q);
        let count = rows * new * heads;
        let (cube_count, cube_dim) = cubes(count, units, &q);
        let (kind, scale) = (element(&q), (dim as f32).powf(-0.5));
        let call = CallLaunch::new(count, new, heads, kv_heads, capacity, first, keys, scale);
        // SAFETY: keys from `first` on are in the cache, as the operation requires; each cube writes only its
        // own query and head.
        unsafe {
            attend_kernel::launch_unchecked(
                &q.client.clone(),
                cube_count,
                cube_dim,
                vector,
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                mask.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                call,
                units,
                vectors,
                (units / vectors).max(1),
                vectors.div_ceil(units),
                kind,
            );
        }
        out
    }
}
