//! The gated delta rule and the causal convolution, compared with recurrences in f64.

use super::input;
use super::reference::silu;
use super::support::{Case, cases, check_reference, error, numbers, run, values};
use burn::prelude::*;
use mixdistill::ops::{
    DeltaShape, Sequences, causal_conv, gated_delta_rule, gated_delta_rule_from,
};
use std::ops::Range;

/// One token after the other.
fn delta_reference(
    [q, k, v, log_decay, beta]: [&[f64]; 5],
    ranges: &[Range<usize>],
    shape: DeltaShape,
) -> Vec<f64> {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
    let mut out = vec![0.0; v.len()];
    for (range, head) in
        ranges.iter().flat_map(|range| (0..value_heads).map(move |head| (range, head)))
    {
        let mut state = vec![0.0; key_dim * value_dim];
        for token in range.clone() {
            let key = (token * key_heads + head * key_heads / value_heads) * key_dim;
            let unit = |x: &[f64]| -> Vec<f64> {
                let x = &x[key..key + key_dim];
                let norm = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                x.iter().map(|x| x / norm).collect()
            };
            let (q, k) = (unit(q), unit(k));
            let gate = token * value_heads + head;
            state.iter_mut().for_each(|x| *x *= log_decay[gate].exp());
            for j in 0..value_dim {
                let place = gate * value_dim + j;
                let says: f64 = (0..key_dim).map(|i| k[i] * state[i * value_dim + j]).sum();
                let change = beta[gate] * (v[place] - says);
                (0..key_dim).for_each(|i| state[i * value_dim + j] += k[i] * change);
                let read: f64 = (0..key_dim).map(|i| q[i] * state[i * value_dim + j]).sum();
                out[place] = read / (key_dim as f64).sqrt();
            }
        }
    }
    out
}

/// Decays and betas are squares times these.
const DECAY: f64 = -0.2;
const BETA: f64 = 0.3;

fn gated([q, k, v, a, b]: [Tensor<2>; 5]) -> [Tensor<2>; 5] {
    [q, k, v, a.square() * DECAY, b.square() * BETA]
}

fn rule(inputs: [Tensor<2>; 5], sequences: &Sequences, shape: DeltaShape) -> Tensor<2> {
    gated_delta_rule(gated(inputs), sequences, shape)
}

fn inputs_of(tokens: usize, shape: DeltaShape) -> [(Vec<f64>, [usize; 2]); 5] {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
    let keys = key_heads * key_dim;
    let widths = [keys, keys, value_heads * value_dim, value_heads, value_heads];
    let mut seed = 30;
    widths.map(|width| {
        seed += 1;
        input(seed, [tokens, width], 1.0)
    })
}

const SMALL: DeltaShape = DeltaShape { key_heads: 2, value_heads: 4, key_dim: 5, value_dim: 3 };

#[test]
fn gated_delta_rule_is_its_recurrence_and_has_its_gradients() {
    // Shorter and longer than a chunk, of one token, with and without tokens between them.
    let many = Sequences::new(90, vec![2..3, 3..70, 72..84]);
    let one_head = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 3, value_dim: 7 };
    for case in cases() {
        for (sequences, shape) in [
            (many.clone(), SMALL),
            (Sequences::rows(2, 3), SMALL),
            // One long and many short ones.
            (many_short(), SMALL),
            (Sequences::rows(1, 64), one_head),
            (Sequences::rows(1, 130), one_head),
        ] {
            check_reference(
                "gated delta rule",
                inputs_of(sequences.tokens(), shape),
                &case,
                |inputs| rule(inputs, &sequences, shape),
                |[q, k, v, a, b]| {
                    let gate = |x: &[f64], factor: f64| -> Vec<f64> {
                        x.iter().map(|x| x * x * factor).collect()
                    };
                    let (a, b) = (gate(a, DECAY), gate(b, BETA));
                    delta_reference([q, k, v, &a, &b], sequences.ranges(), shape)
                },
            );
        }
    }
}

/// 33 tokens, and 20 times two.
fn many_short() -> Sequences {
    let short = (0..20).map(|i| 33 + 2 * i..35 + 2 * i);
    Sequences::new(73, std::iter::once(0..33).chain(short).collect())
}

/// Sizes as models have them, beside the portable body in f64.
#[test]
fn gated_delta_rule_of_wide_heads_is_that_of_f64() {
    let shape = DeltaShape { key_heads: 2, value_heads: 4, key_dim: 64, value_dim: 48 };
    let sequences = Sequences::new(210, vec![0..20, 20..180, 181..210]);
    let inputs = inputs_of(210, shape);
    let all = cases();
    let Some(exact) = all.iter().find(|case| case.name.ends_with("f64")) else { return };
    let expected = run(exact, &inputs, |inputs| rule(inputs, &sequences, shape));
    for case in &all {
        let found = run(case, &inputs, |inputs| rule(inputs, &sequences, shape));
        case.assert_close("wide gated delta rule, output", &found.0, &expected.0);
        for (found, expected) in found.1.iter().zip(&expected.1) {
            case.assert_close("wide gated delta rule, gradient", found, expected);
        }
    }
}

/// Tokens of the same key, which are corrected again and again, and states that are forgotten at once.
#[test]
fn gated_delta_rule_is_stable_where_keys_repeat() {
    let shape = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 8, value_dim: 4 };
    let tokens = 200;
    let repeated: Vec<f64> = numbers(3, 8).repeat(tokens);
    let v = numbers(4, tokens * 4);
    let sequences = Sequences::rows(1, tokens);
    for case in cases() {
        for (decay, beta) in [(0.0, 1.0), (-60.0, 0.9), (-1e-3, 0.999)] {
            let (decay, beta) = (vec![decay; tokens], vec![beta; tokens]);
            let of = |x: &[f64], width| case.tensor(x, [tokens, width]);
            let inputs =
                [of(&repeated, 8), of(&repeated, 8), of(&v, 4), of(&decay, 1), of(&beta, 1)];
            let found = values(gated_delta_rule(inputs, &sequences, shape));
            let inputs = [&repeated[..], &repeated, &v, &decay, &beta];
            let expected = delta_reference(inputs, sequences.ranges(), shape);
            case.assert_close("repeated keys", &found, &expected);
        }
    }
}

/// A token that forgets all among others that forget little: sums of decays are then large, and their differences
/// small.
#[test]
fn gated_delta_rule_keeps_small_decays_beside_large_ones() {
    for case in cases().into_iter().filter(|case| case.name.starts_with("flex")) {
        let tokens = 60;
        let inputs = inputs_of(tokens, SMALL);
        let decays: Vec<f64> = (0..tokens * 4)
            .map(|i| if i / 4 % 20 == 5 { -3000.0 } else { -0.01 * ((i % 7) as f64) })
            .collect();
        let betas: Vec<f64> = inputs[4].0.iter().map(|x| x * x * BETA).collect();
        let of = |x: &[f64], width| case.tensor(x, [tokens, width]);
        let [q, k, v, ..] = &inputs;
        let tensors = [of(&q.0, 10), of(&k.0, 10), of(&v.0, 12), of(&decays, 4), of(&betas, 4)];
        let sequences = Sequences::rows(1, tokens);
        let found = values(gated_delta_rule(tensors, &sequences, SMALL));
        let inputs = [&q.0[..], &k.0, &v.0, &decays, &betas];
        case.assert_close(
            "large decays",
            &found,
            &delta_reference(inputs, sequences.ranges(), SMALL),
        );
    }
}

/// Padding alone, and nothing else.
#[test]
fn tokens_of_no_sequence_give_zeros() {
    for case in cases() {
        let none = Sequences::new(5, vec![]);
        let (out, gradients) = run(&case, &inputs_of(5, SMALL), |x| rule(x, &none, SMALL));
        assert!(out.iter().chain(gradients.iter().flatten()).all(|x| *x == 0.0), "{}", case.name);
    }
}

#[test]
fn gated_delta_rule_goes_on_from_its_states() {
    let shape = SMALL;
    let (rows, length) = (3, 150);
    let inputs = inputs_of(rows * length, shape);
    for case in cases() {
        let tensors = inputs.each_ref().map(|(x, shape)| case.tensor(x, *shape));
        let whole = gated_delta_rule(gated(tensors.clone()), &Sequences::rows(rows, length), shape);
        let DeltaShape { value_heads, key_dim, value_dim, .. } = shape;
        let mut state = case.tensor(
            &vec![0.0; rows * value_heads * key_dim * value_dim],
            [rows, value_heads, key_dim, value_dim],
        );
        let mut start = 0;
        for piece in [1, 1, 70, 5, 1, 64, 8] {
            let of_rows = |x: &Tensor<2>| {
                let width = x.dims()[1];
                let x = x.clone().reshape([rows, length, width]).narrow(1, start, piece);
                x.reshape([rows * piece, width])
            };
            let inputs = gated(tensors.each_ref().map(of_rows));
            let sequences = Sequences::rows(rows, piece);
            let (out, next) = gated_delta_rule_from(inputs, state, &sequences, shape);
            state = next;
            case.assert_close("pieces", &values(out), &values(of_rows(&whole)));
            start += piece;
        }
        assert_eq!(start, length);
    }
}

/// The same sequence in other company, to the bit on flex.
#[test]
fn gated_delta_rule_of_a_sequence_does_not_depend_on_its_neighbors() {
    for case in cases().into_iter().filter(|case| case.name == "flex f32") {
        let inputs = inputs_of(80, SMALL);
        let op = |sequences: Sequences| move |inputs| rule(inputs, &sequences, SMALL);
        let alone = run(&case, &inputs, op(Sequences::rows(1, 80)));
        let padded = inputs.each_ref().map(|(x, [tokens, width])| {
            let before = numbers(9, 37 * width);
            ([before, x.clone()].concat(), [tokens + 37, *width])
        });
        let packed = run(&case, &padded, op(Sequences::new(117, vec![1..37, 37..117])));
        let width = SMALL.value_width();
        assert!(packed.0[37 * width..] == alone.0[..]);
    }
}

#[test]
fn gated_delta_rule_and_convolution_have_one_result_with_any_threads() {
    for case in cases().into_iter().filter(|case| case.name == "flex f32") {
        let sequences = Sequences::new(200, vec![0..3, 3..130, 140..200]);
        let conv = [input(1, [200, 150], 1.0), input(2, [150, 4], 1.0)];
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let delta = run(&case, &inputs_of(200, SMALL), |x| rule(x, &sequences, SMALL));
                let conv = run(&case, &conv, |[x, w]| causal_conv(x, w, &sequences));
                (delta, conv)
            })
        };
        let one = with_threads(1);
        assert!(with_threads(2) == one && with_threads(3) == one);
    }
}

fn conv_reference([x, weight]: [&[f64]; 2], ranges: &[Range<usize>], taps: usize) -> Vec<f64> {
    let channels = weight.len() / taps;
    let mut out = vec![0.0; x.len()];
    for (range, channel) in
        ranges.iter().flat_map(|range| (0..channels).map(move |channel| (range, channel)))
    {
        for token in range.clone() {
            let sum: f64 = (0..taps)
                .filter_map(|tap| Some((tap, (token + tap + 1).checked_sub(taps)?)))
                .filter(|(_, from)| range.contains(from))
                .map(|(tap, from)| weight[channel * taps + tap] * x[from * channels + channel])
                .sum();
            out[token * channels + channel] = silu(sum);
        }
    }
    out
}

#[test]
fn causal_convolution_sees_its_sequence_and_has_its_gradients() {
    for case in cases() {
        for (sequences, taps) in [
            (Sequences::new(23, vec![1..2, 2..4, 5..19]), 4),
            (Sequences::rows(2, 5), 1),
            (Sequences::rows(1, 2), 6),
        ] {
            check_reference(
                "causal convolution",
                [input(1, [sequences.tokens(), 7], 1.5), input(2, [7, taps], 1.0)],
                &case,
                |[x, w]| causal_conv(x, w, &sequences),
                |inputs| conv_reference(inputs, sequences.ranges(), taps),
            );
        }
        let wide = [input(3, [70, 130], 1.0), input(4, [130, 4], 1.0)];
        let sequences = Sequences::new(70, vec![0..33, 33..70]);
        let (out, _) = run(&case, &wide, |[x, w]| causal_conv(x, w, &sequences));
        let expected = conv_reference([&wide[0].0, &wide[1].0], sequences.ranges(), 4);
        case.assert_close("wide convolution", &out, &expected);
    }
}

/// Where the device computes in bf16, states and sums are in f32.
#[test]
fn bf16_inputs_are_summed_in_f32() {
    let is_f32 = |case: &Case| case.dtype == burn::tensor::DType::F32;
    for case in cases().into_iter().filter(|case| is_f32(case) && super::supports_bf16(case)) {
        let sequences = Sequences::rows(1, 100);
        let rounded = inputs_of(100, SMALL).map(|(x, shape)| (super::rounded(&x), shape));
        let of = |(x, shape): &(Vec<f64>, [usize; 2])| case.tensor(x, *shape);
        let inputs = gated(rounded.each_ref().map(of));
        let expected = values(gated_delta_rule(inputs.clone(), &sequences, SMALL));
        let [q, k, v, a, b] = inputs;
        let half = |x: Tensor<2>| x.cast(burn::tensor::FloatDType::BF16);
        let found = values(gated_delta_rule([half(q), half(k), half(v), a, b], &sequences, SMALL));
        // One rounding, at the end.
        assert!(error(&found, &expected) < 4e-3);
    }
}
