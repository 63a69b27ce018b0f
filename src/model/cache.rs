//! Keys and values of the tokens so far, for generation.
//!
//! ```text
//! row a   . . P P P | A A          prompts are padded on the left, so that all rows write their
//! row b   P P P P P | A A          next token to the same place
//! ```

use crate::ops::{AttentionShape, cached_attention};
use burn::prelude::*;
use burn::tensor::DType;

/// Keys and values of one layer, `[rows, kv_heads, capacity, head_dim]`; the capacity doubles when
/// it is used up, so that a generous length limit costs nothing.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Option<Tensor<4>>,
    values: Option<Tensor<4>>,
    filled: usize,
    heads: usize,
}

impl LayerCache {
    pub(super) fn new(
        [rows, heads, kv_heads, capacity, head_dim]: [usize; 5],
        dtype: DType,
        device: &Device,
    ) -> Self {
        let empty = || Some(Tensor::zeros([rows, kv_heads, capacity, head_dim], (device, dtype)));
        Self { keys: empty(), values: empty(), filled: 0, heads }
    }

    /// The shape of attention among the tokens in the cache.
    pub(super) fn shape(&self) -> AttentionShape {
        let keys = self.keys.as_ref().expect("a cache is put back after each use");
        let [batch, kv_heads, _, head_dim] = keys.dims();
        AttentionShape { batch, seq: self.filled, heads: self.heads, kv_heads, head_dim }
    }

    /// Takes in new keys and values, `[rows * new, kv_heads * head_dim]`.
    pub(super) fn append(&mut self, k: Tensor<2>, v: Tensor<2>) {
        let start = self.filled;
        let mut new = 0;
        for (all, x) in [(&mut self.keys, k), (&mut self.values, v)] {
            let mut old = all.take().expect("a cache is put back after each use");
            let [rows, kv_heads, capacity, dim] = old.dims();
            new = x.dims()[0] / rows;
            let keys = start + new;
            if capacity < keys {
                let more = capacity.max(keys - capacity);
                let like_old = (&old.device(), old.dtype());
                let room = Tensor::zeros([rows, kv_heads, more, dim], like_old);
                old = Tensor::cat(vec![old, room], 2);
            }
            let x = x.reshape([rows, new, kv_heads, dim]).swap_dims(1, 2);
            // The old tensor is owned here, so that it is written in place.
            *all = Some(old.slice_assign([0..rows, 0..kv_heads, start..keys, 0..dim], x));
        }
        self.filled += new;
    }

    /// Takes in new keys and values and lets the new queries attend to all of them.
    ///
    /// # Shapes
    /// `q`: `[rows * new, heads * head_dim]`; `k`, `v`: `[rows * new, kv_heads * head_dim]`;
    /// `mask`: `[rows, 1, new, keys]`, added to the scores; result: like `q`.
    pub(super) fn attend(&mut self, [q, k, v]: [Tensor<2>; 3], mask: Tensor<4>) -> Tensor<2> {
        self.append(k, v);
        let all = |cached: &Option<Tensor<4>>| {
            cached.clone().expect("a cache is put back after each use")
        };
        cached_attention(q, all(&self.keys), all(&self.values), mask)
    }

    /// Keeps the given rows only.
    pub(super) fn select(&mut self, rows: &Tensor<1, Int>) {
        for all in [&mut self.keys, &mut self.values] {
            *all = all.take().map(|all| all.select(0, rows.clone()));
        }
    }
}
