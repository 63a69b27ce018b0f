//! Compares attention on a GPU, in blocks and in tiles, with the portable body in f64.

use super::*;
use crate::ops::cube::testing::{Exact, Input, assert_close, ints, types};

/// Returns the start of each token's segment, or the first key of its window.
fn starts(seq: usize, segments: &[usize], window: usize) -> Vec<i64> {
    let start = |i: usize| *segments.iter().rev().find(|start| **start <= i).unwrap_or(&0);
    (0..seq).map(|i| start(i).max((i + 1).saturating_sub(window)) as i64).collect()
}

#[test]
fn blocks_and_tiles_have_the_output_and_the_gradients_of_the_portable_body() {
    let shape = |batch, seq, heads, kv_heads, head_dim| AttentionShape {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim,
    };
    for (shape, segments, window) in [
        (shape(1, 1, 2, 1, 4), &[0][..], 1000),
        (shape(2, 67, 4, 2, 6), &[0, 3, 40, 66], 1000),
        // More than one block; a segment across the boundary; a window.
        (shape(1, 300, 3, 1, 8), &[0, 100, 290], 1000),
        (shape(2, 300, 4, 2, 3), &[0], 37),
    ] {
        let all = starts(shape.seq, segments, window).repeat(shape.batch);
        let longest = window.min(shape.seq);
        let extent = Extent { shape, longest };
        for (dtype, tolerance) in types() {
            let input = |seed, width| Input::new(seed, &[shape.tokens(), width], 1.5, dtype);
            let [q, k, v, grad] =
                [shape.width(), shape.kv_width(), shape.kv_width(), shape.width()]
                    .map(|width| input(width + shape.seq, width));
            let (starts, exact_starts) = ints(&all, &[shape.tokens()]);
            let exact = [&q, &k, &v, &grad].map(Input::flex);
            let [eq, ek, ev, eg] = exact;
            let (out, log_sum_exp) = portable::forward::<Exact>(
                eq.clone(),
                ek.clone(),
                ev.clone(),
                exact_starts.clone(),
                extent,
            );
            let saved = Saved {
                q: eq,
                k: ek,
                v: ev,
                segment_starts: exact_starts,
                out: out.clone(),
                log_sum_exp: log_sum_exp.clone(),
            };
            let grads = portable::backward::<Exact>(eg, saved, extent);
            let [q, k, v, grad] = in_rows([q, k, v, grad].map(|input| input.cube(dtype)));
            // On a software driver, compiling and tuning the products of blocks is slow.
            let in_blocks = match dtype {
                DType::F32 => shape.seq == 300,
                _ => shape.seq == 67,
            };
            for tiled in if in_blocks { vec![false, true] } else { vec![true] } {
                let what = |name| format!("{name}, {shape:?}, window {window}, tiled: {tiled}");
                let call = Call::new(extent, starts.clone(), dtype);
                let inputs = [q.clone(), k.clone(), v.clone()];
                let (found, found_lse) = match tiled {
                    true => {
                        let [q, k, v] = inputs;
                        flash::forward([q, k, v, starts.clone()], extent)
                    }
                    false => call.forward(inputs),
                };
                assert_close(&what("output"), found.clone(), out.clone(), tolerance);
                assert_close(&what("lse"), found_lse.clone(), log_sum_exp.clone(), tolerance);
                let sums = call.sums(&grad, found, found_lse);
                let (q, k, v, grad) = (q.clone(), k.clone(), v.clone(), grad.clone());
                let found = match tiled {
                    true => flash::backward([q, k, v, grad, starts.clone(), sums], extent),
                    false => call.backward([q, k, v, grad], &sums),
                };
                let tolerance = 2.0 * tolerance;
                assert_close(&what("grad q"), found.0, grads.0.clone(), tolerance);
                assert_close(&what("grad k"), found.1, grads.1.clone(), tolerance);
                assert_close(&what("grad v"), found.2, grads.2.clone(), tolerance);
            }
        }
    }
}

#[test]
fn long_rows_go_through_tiles() {
    let of = |seq, dtype| {
        let x = Input::new(1, &[1, 8], 1.0, dtype).cube(dtype);
        let shape = AttentionShape { batch: 1, seq, heads: 2, kv_heads: 1, head_dim: 4 };
        is_tiled(Extent { shape, longest: seq }, &x)
    };
    assert_eq!([4095, 4096].map(|seq| of(seq, DType::F32)), [false, true]);
    assert_eq!([4096, 32 * 1024].map(|seq| of(seq, DType::F16)), [false, true]);
}
