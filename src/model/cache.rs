//! Key-value cache for generation.
//!
//! ```text
//! row a   . . P P P | A A          prompts are padded on the left, so all rows write their
//! row b   P P P P P | A A          next token to the same position
//! ```

use crate::ops::{AttentionShape, cached_attention};
use burn::prelude::*;
use burn::tensor::DType;
use std::ops::Range;

/// Minimum room for new tokens in a cache that drops old ones.
const LEAST_ROOM: usize = 64;

/// Tokens per block. A cache grows by whole blocks.
const BLOCK: usize = 128;

/// Keys and values of one layer, `[rows, kv_heads, capacity, head_dim]`. A full cache grows by half, in
/// blocks, so a generous length limit costs nothing. With a sliding window, a full cache instead drops tokens
/// that no later token attends to, so its size depends on the window and not on the row.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Option<Tensor<4>>,
    values: Option<Tensor<4>>,
    /// Tokens in the cache.
    filled: usize,
    heads: usize,
    window: Option<usize>,
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheShape {
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Initial capacity in tokens.
    pub capacity: usize,
    /// Keys that a token attends to. `None`: all.
    pub window: Option<usize>,
}

impl LayerCache {
    pub(super) fn new(shape: CacheShape, dtype: DType, device: &Device) -> Self {
        let CacheShape { rows, heads, kv_heads, head_dim, capacity, window } = shape;
        let empty = || Some(Tensor::zeros([rows, kv_heads, capacity, head_dim], (device, dtype)));
        Self { keys: empty(), values: empty(), filled: 0, heads, window }
    }

    /// Returns the shape of attention among the tokens in the cache.
    pub(super) fn shape(&self) -> AttentionShape {
        let keys = self.keys.as_ref().expect("a cache is put back after each use");
        let [batch, kv_heads, _, head_dim] = keys.dims();
        AttentionShape { batch, seq: self.filled, heads: self.heads, kv_heads, head_dim }
    }

    /// Appends new keys and values, `[rows * new, kv_heads * head_dim]`.
    pub(super) fn append(&mut self, k: Tensor<2>, v: Tensor<2>) {
        let (mut start, mut new) = (self.filled, 0);
        for (all, x) in [(&mut self.keys, k), (&mut self.values, v)] {
            let mut old = all.take().expect("a cache is put back after each use");
            let [rows, kv_heads, capacity, dim] = old.dims();
            new = x.dims()[0] / rows;
            start = self.filled;
            if capacity < start + new {
                // The first new token attends to the last `window - 1` tokens in the cache.
                let kept = self.window.map_or(start, |window| start.min(window - 1));
                let more = match kept < start {
                    true => kept.max(LEAST_ROOM) + new,
                    false => (capacity / 2).max(start + new - capacity).next_multiple_of(BLOCK),
                };
                if kept < start {
                    old = old.narrow(2, start - kept, kept);
                    start = kept;
                }
                let like_old = (&old.device(), old.dtype());
                let room = Tensor::zeros([rows, kv_heads, more, dim], like_old);
                old = Tensor::cat(vec![old, room], 2);
            }
            let x = x.reshape([rows, new, kv_heads, dim]).swap_dims(1, 2);
            // The old tensor is owned here, so it is written in place.
            *all = Some(old.slice_assign([0..rows, 0..kv_heads, start..start + new, 0..dim], x));
        }
        self.filled = start + new;
    }

    /// Appends new keys and values and computes the attention of the new queries.
    ///
    /// # Shapes
    /// `q`: `[rows * new, heads * head_dim]`; `k`, `v`: `[rows * new, kv_heads * head_dim]`;
    /// `mask`: `[rows, 1, new, keys]`, added to the scores of the last `keys` keys; result: like `q`.
    pub(super) fn attend(&mut self, [q, k, v]: [Tensor<2>; 3], mask: Tensor<4>) -> Tensor<2> {
        self.append(k, v);
        let all = |cached: &Option<Tensor<4>>| {
            cached.clone().expect("a cache is put back after each use")
        };
        let first = self.filled - mask.dims()[3];
        cached_attention(q, all(&self.keys), all(&self.values), mask, first)
    }

    /// Replaces rows with those of another cache. The last `lengths` tokens of the other rows, as far as the
    /// two caches reach, become the last tokens here. Anything before them is stale.
    pub(super) fn insert(&mut self, rows: &[usize], from: &Self, lengths: &[usize]) {
        for (all, of_new) in [(&mut self.keys, &from.keys), (&mut self.values, &from.values)] {
            let mut old = all.take().expect("a cache is put back after each use");
            let of_new = of_new.as_ref().expect("a cache is put back after each use");
            for (index, (row, length)) in rows.iter().zip(lengths).enumerate() {
                let length = (*length).min(self.filled).min(from.filled);
                let there = from.filled - length..from.filled;
                old = with_tokens(old, [*row, self.filled], of_new, index, there);
            }
            *all = Some(old);
        }
    }

    /// Fills the first `places` positions of an empty cache. In each row, the last `lengths[row]` of them
    /// become the first tokens of the other cache's first row. Anything before them is undefined.
    pub(super) fn begin_with(&mut self, from: &Self, places: usize, lengths: &[usize]) {
        for (all, first) in [(&mut self.keys, &from.keys), (&mut self.values, &from.values)] {
            let mut old = all.take().expect("a cache is put back after each use");
            let first = first.as_ref().expect("a cache is put back after each use");
            for (row, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
                old = with_tokens(old, [row, places], first, 0, 0..*length);
            }
            *all = Some(old);
        }
        self.filled = places;
    }

    /// Keeps at most the last `tokens` tokens, with room for new ones.
    pub(super) fn keep_last(&mut self, tokens: usize) {
        let kept = self.filled.min(tokens);
        for all in [&mut self.keys, &mut self.values] {
            let old = all.take().expect("a cache is put back after each use");
            let [rows, kv_heads, _, dim] = old.dims();
            let like_old = (&old.device(), old.dtype());
            let room = Tensor::zeros([rows, kv_heads, kept.max(LEAST_ROOM), dim], like_old);
            let old = old.narrow(2, self.filled - kept, kept);
            *all = Some(Tensor::cat(vec![old, room], 2));
        }
        self.filled = kept;
    }

    /// Keeps only the given rows.
    pub(super) fn select(&mut self, rows: &Tensor<1, Int>) {
        for all in [&mut self.keys, &mut self.values] {
            *all = all.take().map(|all| all.select(0, rows.clone()));
        }
    }
}

/// Copies tokens from a row of another tensor into row `row`, so that they end before position `end`.
fn with_tokens(
    all: Tensor<4>,
    [row, end]: [usize; 2],
    from: &Tensor<4>,
    from_row: usize,
    tokens: Range<usize>,
) -> Tensor<4> {
    let [_, kv_heads, _, dim] = all.dims();
    let here = end - tokens.len()..end;
    let x = from.clone().slice([from_row..from_row + 1, 0..kv_heads, tokens, 0..dim]);
    all.slice_assign([row..row + 1, 0..kv_heads, here, 0..dim], x)
}
