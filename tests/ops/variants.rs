//! Operations for model families other than Llama: GEGLU, partial rotation of heads, and sliding
//! windows.

use super::support::{cases, check_composition, check_reference, numbers, values};
use super::{input, plain_attention, reference, segment_starts};
use mixdistill::ops::{
    Activation, AttentionShape, cached_attention, causal_attention, causal_attention_within, gated,
    gated_linear_add, linear_add, rotary_frequencies, rotary_partial, rotary_table,
};

#[test]
fn geglu_gates_and_has_its_gradients() {
    let gelu = Activation::GeluPytorchTanh;
    for case in cases() {
        check_reference(
            "geglu",
            [input(1, [3, 23], 4.0), input(2, [3, 23], 1.0)],
            &case,
            |[gate, up]| gated(gate, up, gelu),
            |[gate, up]| gate.iter().zip(up).map(|(g, u)| reference::gelu(*g) * u).collect(),
        );
        // Where the exponential of either end is 0 or infinite.
        let far = vec![-200.0, -30.0, -9.0, 0.0, 9.0, 30.0, 200.0];
        let expected: Vec<f64> = far.iter().map(|x| reference::gelu(*x)).collect();
        let found = gated(case.tensor(&far, [7]), case.tensor(&[1.0; 7], [7]), gelu);
        case.assert_close("geglu, far out", &values(found), &expected);
        check_composition(
            "geglu and linear",
            [[4, 5], [4, 5], [5, 7], [4, 7]].map(|shape| input(shape[1] as u64, shape, 1.0)),
            &case,
            |[gate, up, w, residual]| gated_linear_add(gate, up, w, residual, gelu),
            |[gate, up, w, residual]| linear_add(gated(gate, up, gelu), w, residual),
        );
    }
}

#[test]
fn a_part_of_each_head_is_rotated_and_the_rest_stays() {
    // Three heads of ten values, of which six are rotated.
    let (head_dim, positions) = (10, [0i64, 3, 1, 7]);
    for case in cases() {
        let table = rotary_table(8, &rotary_frequencies(6, 50.0), &case.device);
        let angles = table.clone().map(values);
        check_reference(
            "rotary_partial",
            [input(1, [4, 30], 1.0)],
            &case,
            |[x]| rotary_partial(x, table.clone(), case.ints(&positions), head_dim),
            |[x]| {
                let heads = x.chunks(head_dim).enumerate().flat_map(|(head, x)| {
                    let position = &positions[head / 3..][..1];
                    let mut all = reference::rotary(&x[..6], &angles, position, 3);
                    all.extend(&x[6..]);
                    all
                });
                heads.collect()
            },
        );
    }
}

/// The first key that each token of a row sees in segments that start at `starts`.
fn first_keys(seq: usize, starts: &[i64], window: i64) -> Vec<i64> {
    let starts = segment_starts(seq, starts).into_iter().enumerate();
    starts.map(|(token, start)| start.max(token as i64 + 1 - window)).collect()
}

#[test]
fn a_window_is_that_of_the_formula_and_has_its_gradients() {
    let shape = AttentionShape { batch: 2, seq: 9, heads: 4, kv_heads: 2, head_dim: 3 };
    for case in cases() {
        for window in [1, 2, 4, 9] {
            let keys = first_keys(shape.seq, &[0, 5], window as i64);
            let all = keys.repeat(2);
            let inputs = [input(1, [18, 12], 1.5), input(2, [18, 6], 1.5), input(3, [18, 6], 1.0)];
            check_reference(
                &format!("a window of {window}"),
                inputs,
                &case,
                |[q, k, v]| causal_attention_within(q, k, v, case.ints(&all), shape, window),
                |inputs| reference::attention(inputs, &keys, shape),
            );
        }
    }
}

#[test]
fn windows_across_blocks_of_queries_agree_with_a_full_mask() {
    let shape = AttentionShape { batch: 2, seq: 200, heads: 6, kv_heads: 3, head_dim: 24 };
    for case in cases() {
        for (window, starts) in [(7, &[0][..]), (70, &[0, 1, 70, 128]), (199, &[0])] {
            let keys = first_keys(shape.seq, starts, window as i64);
            check_composition(
                &format!("a window of {window} over 200 tokens"),
                [input(1, [400, 144], 1.0), input(2, [400, 72], 1.0), input(3, [400, 72], 1.0)],
                &case,
                |[q, k, v]| {
                    causal_attention_within(q, k, v, case.ints(&keys.repeat(2)), shape, window)
                },
                |inputs| plain_attention(inputs, &keys, shape),
            );
        }
    }
}

#[test]
fn attention_to_the_last_keys_of_a_cache_is_that_to_these_alone() {
    let [rows, kv_heads, group, capacity, dim] = [2, 2, 3, 11, 6];
    for case in cases() {
        let size = [rows, kv_heads, capacity, dim];
        let cached = [2, 3].map(|seed| case.tensor(&numbers(seed, size.iter().product()), size));
        let q = case.tensor(&numbers(1, rows * 36), [rows, kv_heads * group * dim]);
        for (first, keys) in [(0, 11), (3, 5), (10, 1)] {
            let mask = || case.tensor(&vec![0.0; rows * keys], [rows, 1, 1, keys]);
            let [k, v] = cached.clone();
            let found = cached_attention(q.clone(), k, v, mask(), first);
            let [k, v] = cached.clone().map(|all| all.narrow(2, first, keys));
            let alone = cached_attention(q.clone(), k, v, mask(), 0);
            case.assert_close("the last keys", &values(found), &values(alone));
        }
    }
}

#[test]
fn a_window_as_long_as_the_row_changes_no_bit() {
    let shape = AttentionShape { batch: 1, seq: 130, heads: 2, kv_heads: 1, head_dim: 8 };
    for case in cases().iter().filter(|case| case.name.starts_with("flex")) {
        let tensors = || {
            [(1, 16), (2, 8), (3, 8)]
                .map(|(seed, width)| case.tensor(&numbers(seed, 130 * width), [130, width]))
        };
        let starts = case.ints(&[0; 130]);
        let [q, k, v] = tensors();
        let whole = values(causal_attention(q, k, v, starts.clone(), shape));
        let [q, k, v] = tensors();
        assert!(values(causal_attention_within(q, k, v, starts, shape, 130)) == whole);
    }
}
