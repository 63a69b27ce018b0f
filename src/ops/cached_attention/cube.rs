//! A kernel for GPUs: a cube for each query and head, which goes through the keys tile by tile. In a tile each unit has
//! a key; then each has some of the values' columns, for some of the tile's keys.

use super::super::cube::{
    CubeBackend, CubeTensor, are_short, cube_max, cube_sum, cubecl, cubes, element, in_rows,
    unwritten, vector_of, vector_total,
};
use super::{CachedAttentionKernel, Sizes, portable};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, since WGSL has no infinity.
const LEAST: f32 = -1e30;
/// Units of a cube, where the device has as many.
const UNITS: usize = 128;

#[cube(launch_unchecked)]
fn attend_kernel<F: Float, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    mask: &Tensor<f32>,
    out: &mut Tensor<Vector<F, N>>,
    count: usize,
    new: usize,
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    first: usize,
    keys: usize,
    scale: f32,
    #[comptime] units: usize,
    #[comptime] vectors: usize,
    // Units that share a column, and columns of a unit, rounded up: one of them is 1.
    #[comptime] splits: usize,
    #[comptime] columns: usize,
    #[define(F)] _element: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (token, head) = (CUBE_POS / heads, CUBE_POS % heads);
    let kv_head = head / (heads / kv_heads);
    let base = ((token / new * kv_heads + kv_head) * capacity + first) * vectors;
    let (split, column) = (unit / vectors, unit % vectors);

    let mut query = Shared::<[Vector<f32, N>]>::new_slice(vectors);
    let mut probs = Shared::<[f32]>::new_slice(units);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!(units * columns));
    for i in range_stepped(unit, vectors, units) {
        query[i] = Vector::cast_from(q[CUBE_POS * vectors + i]);
    }
    sync_cube();

    let mut mixed = Array::<Vector<f32, N>>::new(columns);
    for c in 0..columns {
        mixed[c] = Vector::new(0.0);
    }
    let mut most = f32::new(LEAST);
    let mut sum = 0.0f32;
    for first_key in range_stepped(0, keys, units) {
        let key = first_key + unit;
        let mut score = f32::new(LEAST);
        if key < keys {
            let mut dot = Vector::<f32, N>::new(0.0);
            for i in 0..vectors {
                dot += query[i] * Vector::cast_from(k[base + key * vectors + i]);
            }
            score = vector_total(dot) * scale + mask[token * keys + key];
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
                    let mut value = mixed[c] * Vector::new(factor);
                    for j in range_stepped(split, end, splits) {
                        let at = base + (first_key + j) * vectors + i;
                        value += Vector::<f32, N>::cast_from(v[at]) * Vector::new(probs[j]);
                    }
                    mixed[c] = value;
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
                let mut value = Vector::<f32, N>::new(0.0);
                for other in 0..splits {
                    value += parts[other * vectors + i];
                }
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
        // In shared memory a vector's elements are in f32.
        let vector = vector_of(dim, [&q]).min(4);
        let vectors = dim / vector;
        let most = q.client.properties().hardware.max_units_per_cube.max(1) as usize;
        let units = UNITS.min(1 << most.ilog2());
        let count = rows * new * heads;
        let (cube_count, cube_dim) = cubes(count, units, &q);
        let kind = element(&q);
        // SAFETY: keys from `first` on are in the cache, as the operation requires; a cube writes its own query
        // and head.
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
                count,
                new,
                heads,
                kv_heads,
                capacity,
                first,
                keys,
                (dim as f32).powf(-0.5),
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
