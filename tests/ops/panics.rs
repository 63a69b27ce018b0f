//! Invalid arguments that must panic: sizes that do not fit, and indices outside their tables.

use super::support::{Case, cases};
use burn::optim::Optimizer;
use mixdistill::ops::{
    AdamW, AttentionShape, causal_attention, linear_cross_entropy, rms_norm, rotary,
    rotary_frequencies, rotary_table, swiglu,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Fails unless `f` panics with a message that contains `expected`.
pub fn assert_panics(expected: &str, f: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err(expected);
    let message = match panic.downcast_ref::<String>() {
        Some(message) => message.as_str(),
        None => panic.downcast_ref::<&str>().copied().unwrap_or_default(),
    };
    assert!(message.contains(expected), "expected \"{expected}\", got \"{message}\"");
}

const SHAPE: AttentionShape =
    AttentionShape { batch: 2, seq: 3, heads: 4, kv_heads: 2, head_dim: 2 };

fn attend(case: &Case, q: [usize; 2], k: [usize; 2], starts: &[i64], shape: AttentionShape) {
    let zeros = |shape: [usize; 2]| case.tensor(&vec![0.0; shape[0] * shape[1]], shape);
    causal_attention(zeros(q), zeros(k), zeros(k), case.ints(starts), shape);
}

fn loss(case: &Case, weight_rows: usize, targets: &[i64], weights: usize) {
    linear_cross_entropy(
        case.tensor(&[0.0; 6], [2, 3]),
        case.tensor(&vec![0.0; weight_rows * 5], [weight_rows, 5]),
        case.ints(targets),
        case.tensor(&vec![1.0; weights], [weights]),
    );
}

#[test]
fn shapes_that_do_not_fit_panic_with_their_names() {
    for case in cases() {
        let vector = |len: usize| case.tensor(&vec![1.0; len], [len]);
        let matrix = |shape: [usize; 2]| case.tensor(&vec![1.0; shape[0] * shape[1]], shape);
        assert_panics("rms_norm: the last dimension of x [2, 3]", || {
            rms_norm(matrix([2, 3]), vector(2), 1e-5);
        });
        assert_panics("gated: the shapes of gate and up", || {
            swiglu(matrix([2, 3]), matrix([3, 2]));
        });
        let table = || rotary_table(5, &rotary_frequencies(4, 1e4), &case.device);
        assert_panics("rotary: the width 6 of x is not a multiple of head_dim 4", || {
            rotary(matrix([2, 6]), table(), case.ints(&[0, 1]));
        });
        assert_panics("rotary: positions are not one per token", || {
            rotary(matrix([2, 8]), table(), case.ints(&[0, 1, 2]));
        });
        assert_panics("rotary: the shapes of cos and sin", || {
            rotary(matrix([1, 8]), [matrix([5, 2]), matrix([4, 2])], case.ints(&[0]));
        });
        assert_panics("rotary_frequencies: head_dim 3 is not", || {
            rotary_table(5, &rotary_frequencies(3, 1e4), &case.device);
        });
        let starts = [0; 6];
        assert_panics("causal_attention: the shape of q", || {
            attend(&case, [6, 6], [6, 4], &starts, SHAPE);
        });
        assert_panics("causal_attention: the shape of k", || {
            attend(&case, [6, 8], [6, 8], &starts, SHAPE);
        });
        assert_panics("causal_attention: segment_starts are not one per token", || {
            attend(&case, [6, 8], [6, 4], &starts[..3], SHAPE);
        });
        assert_panics("causal_attention: 4 heads are not a multiple of 3", || {
            attend(&case, [6, 8], [6, 6], &starts, AttentionShape { kv_heads: 3, ..SHAPE });
        });
        assert_panics("causal_attention: a size is 0", || {
            attend(&case, [6, 8], [6, 4], &starts, AttentionShape { seq: 0, ..SHAPE });
        });
        assert_panics("linear_cross_entropy: the width of hidden", || {
            loss(&case, 4, &[0, 1], 2);
        });
        assert_panics("linear_cross_entropy: targets are not one per token", || {
            loss(&case, 3, &[0, 1, 2], 2);
        });
        assert_panics("linear_cross_entropy: token_weights are not one per token", || {
            loss(&case, 3, &[0, 1], 3);
        });
        assert_panics("AdamW: the shapes of parameter and gradient differ", || {
            AdamW::default().step(0.1, vector(3), vector(4), None);
        });
    }
}

#[cfg(feature = "flex")]
#[test]
fn indices_outside_of_their_tables_panic_on_flex() {
    for case in cases().into_iter().filter(|case| case.name.starts_with("flex")) {
        assert_panics("target 5 of token 1 is outside 0..5", || loss(&case, 3, &[0, 5], 2));
        assert_panics("target -1 of token 0 is outside 0..5", || loss(&case, 3, &[-1, 0], 2));
        let rotate = |positions: &[i64]| {
            let table = rotary_table(5, &rotary_frequencies(4, 1e4), &case.device);
            rotary(case.tensor(&[0.0; 8], [2, 4]), table, case.ints(positions));
        };
        assert_panics("position 5 of token 1 is outside 0..5", || rotate(&[4, 5]));
        assert_panics("position -2 of token 0 is outside 0..5", || rotate(&[-2, 0]));
        let attend = |starts: &[i64]| attend(&case, [6, 8], [6, 4], starts, SHAPE);
        assert_panics("segment start 2 of token 1 in row 1 lies after the token", || {
            attend(&[0, 0, 2, 0, 2, 2]);
        });
        assert_panics("segment start 0 of token 2 in row 0 lies before that of the token", || {
            attend(&[0, 1, 0, 0, 0, 0]);
        });
        assert_panics("segment start 3 of token 5 is outside 0..3", || {
            attend(&[0, 0, 0, 0, 0, 3]);
        });
    }
}
