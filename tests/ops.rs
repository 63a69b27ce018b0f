//! Promise: the library's operations compute what their documentation says, forward and backward, on every
//! backend that is compiled in, with any number of threads.
//!
//! Each operation is compared with its formula in f64 loops (gradients with finite differences) and, at larger
//! sizes, with a composition of Burn's own operations.

#[path = "ops/delta.rs"]
mod delta;
#[path = "ops/moments.rs"]
mod moments;
#[path = "ops/panics.rs"]
mod panics;
#[path = "ops/products.rs"]
mod products;
#[path = "ops/reference.rs"]
mod reference;
#[path = "ops/stored.rs"]
mod stored;
#[path = "ops/support.rs"]
mod support;
#[path = "ops/token_loss.rs"]
mod token_loss;
#[path = "ops/variants.rs"]
mod variants;

use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, TensorData};
use mixdistill::ops::{
    AdamW, AttentionShape, cached_attention, causal_attention, causal_attention_within, embedding,
    linear, linear_add, linear_cross_entropy, rms_norm, rotary, rotary_frequencies, rotary_table,
    sum_of_squares, swiglu,
};
use support::{Case, cases, check_composition, check_reference, error, numbers, run, values};

fn input(seed: u64, shape: [usize; 2], scale: f64) -> (Vec<f64>, [usize; 2]) {
    let values = numbers(seed, shape[0] * shape[1]);
    (values.into_iter().map(|x| x * scale).collect(), shape)
}

#[test]
fn rms_norm_divides_by_the_root_mean_square_and_has_its_gradients() {
    for case in cases() {
        let op = |[x, w]: [Tensor<2>; 2]| rms_norm(x, w.reshape([-1]), 1e-3);
        check_reference(
            "rms_norm",
            [input(1, [5, 19], 1.0), input(2, [1, 19], 1.0)],
            &case,
            op,
            |[x, w]| reference::rms_norm(x, w, f64::from(1e-3f32)),
        );
        let composition = |[x, w]: [Tensor<2>; 2]| {
            x.clone() / (x.square().mean_dim(1) + f64::from(1e-3f32)).sqrt() * w
        };
        let inputs = [input(3, [67, 83], 2.0), input(4, [1, 83], 1.0)];
        check_composition("rms_norm", inputs, &case, op, composition);
    }
}

#[test]
fn swiglu_gates_and_has_its_gradients() {
    for case in cases() {
        check_reference(
            "swiglu",
            [input(1, [3, 23], 4.0), input(2, [3, 23], 1.0)],
            &case,
            |[gate, up]| swiglu(gate, up),
            |[gate, up]| gate.iter().zip(up).map(|(g, u)| reference::silu(*g) * u).collect(),
        );
        // Strided inputs that are used twice: nothing may be overwritten in place.
        check_composition(
            "swiglu, strided and shared",
            [input(3, [83, 67], 6.0)],
            &case,
            |[x]| swiglu(x.clone().transpose(), x.clone().transpose()).matmul(x),
            |[x]| {
                // Burn's own `silu` goes through f32.
                let y = x.clone().transpose();
                (y.clone() / (y.clone().neg().exp() + 1.0) * y).matmul(x)
            },
        );
    }
}

#[test]
fn rotary_rotates_halves_by_position_and_has_its_gradient() {
    let positions = [0, 1, 2, 0, 9, 5];
    for case in cases() {
        let table = rotary_table(10, &rotary_frequencies(6, 10000.0), &case.device);
        let table_values = table.clone().map(values);
        check_reference(
            "rotary",
            [input(1, [6, 24], 1.0)],
            &case,
            |[x]| rotary(x, table.clone(), case.ints(&positions)),
            |[x]| reference::rotary(x, &table_values, &positions, 3),
        );
        // The input has another use, so it may not be rotated in place.
        check_composition(
            "rotary, input shared",
            [input(2, [6, 24], 1.0)],
            &case,
            |[x]| rotary(x.clone(), table.clone(), case.ints(&positions)) * x,
            |[x]| {
                let rows = |t: Tensor<2>| {
                    let rows = t.select(0, case.ints(&positions)).reshape([6, 1, 3]);
                    rows.cast(case.dtype)
                };
                let [cos, sin] = table.clone().map(rows);
                let heads = x.clone().reshape([6, 4, 6]);
                let (a, b) = (heads.clone().narrow(2, 0, 3), heads.narrow(2, 3, 3));
                let first = a.clone() * cos.clone() - b.clone() * sin.clone();
                let second = b * cos + a * sin;
                Tensor::cat(vec![first, second], 2).reshape([6, 24]) * x
            },
        );
    }
}

#[test]
fn rotary_table_holds_the_angles_of_rope() {
    for case in cases() {
        let [cos, sin] = rotary_table(300, &rotary_frequencies(8, 500.0), &case.device).map(values);
        let angle = |i: usize| (i / 4) as f64 / 500f64.powf(2.0 * (i % 4) as f64 / 8.0);
        let expected = |f: fn(f64) -> f64| (0..1200).map(|i| f(angle(i))).collect::<Vec<_>>();
        // The table is rounded to f32, and no more than that.
        assert!(error(&cos, &expected(f64::cos)) < 6e-8, "{} cosines", case.name);
        assert!(error(&sin, &expected(f64::sin)) < 6e-8, "{} sines", case.name);
    }
}

/// The start of each token's segment, for one row in which segments start at `starts`.
fn segment_starts(seq: usize, starts: &[i64]) -> Vec<i64> {
    let start = |i: i64| *starts.iter().rev().find(|s| **s <= i).expect("the first start is 0");
    (0..seq as i64).map(start).collect()
}

#[test]
fn attention_sees_only_its_own_segment_and_has_its_gradients() {
    for case in cases() {
        for (shape, starts) in [
            (
                AttentionShape { batch: 2, seq: 7, heads: 4, kv_heads: 2, head_dim: 3 },
                &[0, 3, 5][..],
            ),
            (AttentionShape { batch: 1, seq: 1, heads: 2, kv_heads: 2, head_dim: 4 }, &[0]),
            // More than one block of queries, segments that cross it, one of one token.
            (
                AttentionShape { batch: 1, seq: 68, heads: 2, kv_heads: 1, head_dim: 2 },
                &[0, 40, 67],
            ),
        ] {
            let starts = segment_starts(shape.seq, starts);
            let (tokens, width, kv_width) = (
                shape.batch * shape.seq,
                shape.heads * shape.head_dim,
                shape.kv_heads * shape.head_dim,
            );
            let inputs = [
                input(1, [tokens, width], 1.5),
                input(2, [tokens, kv_width], 1.5),
                input(3, [tokens, kv_width], 1.0),
            ];
            check_reference(
                &format!("attention, {} tokens", shape.seq),
                inputs,
                &case,
                |[q, k, v]| {
                    causal_attention(q, k, v, case.ints(&starts.repeat(shape.batch)), shape)
                },
                |inputs| reference::attention(inputs, &starts, shape),
            );
        }
    }
}

/// Attention with repeated key heads and a full mask, as one would write it in Burn.
fn plain_attention([q, k, v]: [Tensor<2>; 3], starts: &[i64], shape: AttentionShape) -> Tensor<2> {
    let AttentionShape { batch, seq, heads, kv_heads, head_dim } = shape;
    let hidden: Vec<bool> =
        (0..seq * seq).map(|i| i % seq > i / seq || ((i % seq) as i64) < starts[i / seq]).collect();
    let hidden =
        Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, seq, seq]), &q.device());
    let split = |x: Tensor<2>, heads| x.reshape([batch, seq, heads, head_dim]).swap_dims(1, 2);
    let repeat = |x: Tensor<2>| {
        split(x, kv_heads)
            .reshape([batch, kv_heads, 1, seq, head_dim])
            .repeat_dim(2, heads / kv_heads)
            .reshape([batch, heads, seq, head_dim])
    };
    let (q, k, v) = (split(q, heads), repeat(k), repeat(v));
    let scores = q.matmul(k.swap_dims(2, 3)) * (head_dim as f64).powf(-0.5);
    let probs = softmax(scores.mask_fill(hidden, -1e9), 3);
    probs.matmul(v).swap_dims(1, 2).reshape([batch * seq, heads * head_dim])
}

#[test]
fn attention_agrees_with_repeated_heads_and_a_full_mask() {
    for case in cases() {
        for starts in [&[0][..], &[0, 1, 70, 128, 150]] {
            let shape = AttentionShape { batch: 2, seq: 200, heads: 6, kv_heads: 3, head_dim: 24 };
            let starts = segment_starts(shape.seq, starts);
            check_composition(
                "attention, 200 tokens",
                [input(1, [400, 144], 1.0), input(2, [400, 72], 1.0), input(3, [400, 72], 1.0)],
                &case,
                |[q, k, v]| causal_attention(q, k, v, case.ints(&starts.repeat(2)), shape),
                |inputs| plain_attention(inputs, &starts, shape),
            );
        }
    }
}

#[test]
fn attention_that_knows_the_longest_segment_is_the_same() {
    for case in cases() {
        let shape = AttentionShape { batch: 2, seq: 150, heads: 4, kv_heads: 2, head_dim: 8 };
        let starts = segment_starts(150, &[0, 40, 70, 75, 118]).repeat(2);
        let inputs = [input(1, [300, 32], 2.0), input(2, [300, 16], 2.0), input(3, [300, 16], 1.0)];
        for longest in [43, 64, 1000] {
            check_composition(
                "attention within the longest segment",
                inputs.clone(),
                &case,
                |[q, k, v]| causal_attention_within(q, k, v, case.ints(&starts), shape, longest),
                |[q, k, v]| causal_attention(q, k, v, case.ints(&starts), shape),
            );
        }
    }
}

#[test]
fn loss_is_the_weighted_cross_entropy_and_has_its_gradients() {
    let targets = [3, 0, 10, 10, 7];
    let token_weights = [0.5, 0.0, 1.0, 0.0, 0.25];
    for case in cases() {
        let fused = |h, w| {
            linear_cross_entropy(h, w, case.ints(&targets), case.tensor(&token_weights, [5]))
        };
        let inputs = || [input(1, [5, 6], 1.0), input(2, [6, 11], 1.0)];
        let expected = |h: &[f64], w: &[f64]| reference::loss(h, w, &targets, &token_weights);
        // The factor is a gradient other than 1 that arrives from above.
        check_reference(
            "loss",
            inputs(),
            &case,
            |[h, w]| fused(h, w) * 3.0,
            |[h, w]| vec![expected(h, w) * 3.0],
        );
        let [hidden, weight] = inputs();
        check_reference(
            "loss, weight transposed",
            [hidden, (weight.0, [11, 6])],
            &case,
            |[h, w]| fused(h, w.transpose()),
            |[h, w]| {
                let w: Vec<f64> = (0..66).map(|i| w[i % 11 * 6 + i / 11]).collect();
                vec![expected(h, &w)]
            },
        );
    }
}

#[test]
fn loss_agrees_with_log_softmax_over_more_than_one_block_of_tokens() {
    let (tokens, width, vocabulary) = (700, 40, 333);
    let targets: Vec<i64> = (0..tokens).map(|i| (i * i % vocabulary) as i64).collect();
    let token_weights: Vec<f64> = (0..tokens).map(|i| (i % 4) as f64 / 512.0).collect();
    for case in cases() {
        check_composition(
            "loss, 700 tokens",
            [input(1, [tokens, width], 1.0), input(2, [width, vocabulary], 1.0)],
            &case,
            |[h, w]| {
                let token_weights = case.tensor(&token_weights, [tokens]);
                linear_cross_entropy(h, w, case.ints(&targets), token_weights)
            },
            |[h, w]| {
                let log_probs = log_softmax(h.matmul(w), 1);
                let picked = log_probs.gather(1, case.ints(&targets).unsqueeze_dim(1));
                -(picked * case.tensor(&token_weights, [tokens, 1])).sum()
            },
        );
    }
}

#[test]
fn loss_of_masked_tokens_alone_is_zero_and_so_are_its_gradients() {
    for case in cases() {
        let inputs = [input(1, [4, 6], 1.0), input(2, [6, 11], 1.0)];
        let (loss, grads) = run(&case, &inputs, |[h, w]| {
            linear_cross_entropy(h, w, case.ints(&[0, 1, 2, 3]), case.tensor(&[0.0; 4], [4]))
        });
        assert_eq!(loss, [0.0], "{}", case.name);
        assert_eq!(grads, [vec![0.0; 24], vec![0.0; 66]], "{}", case.name);
    }
}

#[test]
fn loss_takes_a_single_token() {
    for case in cases() {
        check_reference(
            "loss, one token",
            [input(1, [1, 6], 1.0), input(2, [6, 11], 1.0)],
            &case,
            |[h, w]| linear_cross_entropy(h, w, case.ints(&[4]), case.tensor(&[2.0], [1])),
            |[h, w]| vec![reference::loss(h, w, &[4], &[2.0])],
        );
    }
}

#[test]
fn loss_of_logits_in_the_thousands_is_finite() {
    for case in cases() {
        let inputs = [(vec![1000.0, -1000.0], [2, 1]), (vec![2.0, 1.0, -1.0], [1, 3])];
        let (loss, grads) = run(&case, &inputs, |[h, w]| {
            linear_cross_entropy(h, w, case.ints(&[1, 2]), case.tensor(&[1.0; 2], [2]))
        });
        // Token 0: logits 2000, 1000, -1000 and target 1000. Token 1: its target is the largest.
        case.assert_close("loss, large logits", &loss, &[1000.0]);
        // (prob - one_hot) @ weight^T = 2 - 1, and nothing for token 1.
        case.assert_close("gradient, large logits", &grads[0], &[1.0 * factor_of_loss(), 0.0]);
    }
}

/// What `run` multiplies the only element of a loss by.
fn factor_of_loss() -> f64 {
    13.0 / 50.0 - 1.0
}

#[test]
fn frozen_head_leaves_the_gradient_of_the_hidden_states_as_it_was() {
    for case in cases() {
        let weight = input(2, [6, 11], 1.0);
        let loss = |h, w| {
            linear_cross_entropy(h, w, case.ints(&[1, 5, 3, 0]), case.tensor(&[1.0; 4], [4]))
        };
        let hidden = [input(1, [4, 6], 1.0)];
        let both = [hidden[0].clone(), weight.clone()];
        let (_, [expected, _]) = run(&case, &both, |[h, w]| loss(h, w));
        let autodiff = case.autodiff();
        let frozen = autodiff.tensor(&weight.0, weight.1);
        let (_, [grad]) = run(&case, &hidden, |[h]| loss(h, frozen.clone()));
        assert_eq!(grad, expected, "{}", case.name);
    }
}

#[test]
fn operations_work_without_autodiff() {
    for case in cases() {
        let evaluate = |case: &Case| {
            let x = case.tensor(&numbers(1, 128), [8, 16]);
            let y = rms_norm(swiglu(x.clone(), x), case.tensor(&numbers(2, 16), [16]), 1e-5);
            let table = rotary_table(8, &rotary_frequencies(8, 10000.0), &case.device);
            let y = rotary(y, table, case.ints(&[0, 1, 2, 3, 0, 1, 2, 3]));
            let shape = AttentionShape { batch: 2, seq: 4, heads: 2, kv_heads: 1, head_dim: 8 };
            let kv = case.tensor(&numbers(3, 64), [8, 8]);
            let y = causal_attention(y, kv.clone(), kv, case.ints(&[0; 8]), shape);
            let weight = case.tensor(&numbers(4, 80), [16, 5]);
            let ones = case.tensor(&[1.0; 8], [8]);
            values(linear_cross_entropy(y, weight, case.ints(&[0, 1, 2, 3, 4, 0, 1, 2]), ones))
        };
        let (plain, autodiff) = (evaluate(&case), evaluate(&case.autodiff()));
        assert_eq!(plain, autodiff, "{}", case.name);
        // Eight tokens at about the logarithm of five choices.
        assert!((4.0..40.0).contains(&plain[0]), "{} {plain:?}", case.name);
    }
}

#[test]
fn bf16_input_is_summed_in_f32() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        let half = Case { dtype: DType::BF16, ..case.clone() };
        if !supports_bf16(&half) {
            continue;
        }
        // In bf16, whose sums stop growing at 256 times the term, 8192 losses of ln 4 sum to less
        // than 512.
        let tokens = 8192;
        let loss = linear_cross_entropy(
            half.tensor(&vec![0.0; tokens * 2], [tokens, 2]),
            half.tensor(&numbers(1, 8), [2, 4]),
            half.ints(&vec![1; tokens]),
            half.tensor(&vec![1.0; tokens], [tokens]),
        );
        assert_eq!(loss.dtype(), DType::F32, "{}", half.name);
        case.assert_close("bf16 loss", &values(loss), &[tokens as f64 * 4f64.ln()]);
        // The square of 1 + 2^-7 is not a bf16 number, and bf16 cannot count 300 of them.
        let x = half.tensor(&[1.0 + 1.0 / 128.0; 300], [1, 300]);
        let y = rms_norm(x, half.tensor(&[1.0; 300], [300]), 0.0);
        assert_eq!(values(y), [1.0; 300], "{}", half.name);
    }
}

#[test]
fn bf16_input_gives_the_f32_results_within_bf16_rounding() {
    let shape = AttentionShape { batch: 2, seq: 9, heads: 4, kv_heads: 2, head_dim: 4 };
    let starts = segment_starts(9, &[0, 4]).repeat(2);
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        // bf16 rounds at 2^-9; a few roundings follow each other, and differences of probabilities
        // lose some more.
        let half = Case { dtype: DType::BF16, tolerance: 0.02, ..case.clone() };
        if !supports_bf16(&half) {
            continue;
        }
        let op = |case: &Case| {
            let case = case.clone();
            let starts = case.ints(&starts);
            move |[x, k, v, w]: [Tensor<2>; 4]| {
                let table = rotary_table(18, &rotary_frequencies(4, 100.0), &case.device);
                let positions: Vec<i64> = (0..18).collect();
                let weight = case.tensor(&[1.0; 16], [16]);
                let x = rms_norm(swiglu(x.clone(), x), weight, 1e-5);
                let x = rotary(x, table, case.ints(&positions));
                let x = causal_attention(x, k, v, starts.clone(), shape);
                let targets: Vec<i64> = (0..18).map(|i| i % 7).collect();
                let token_weights = case.tensor(&[1.0 / 16.0; 18], [18]);
                linear_cross_entropy(x, w, case.ints(&targets), token_weights).cast(case.dtype)
            }
        };
        // Numbers that bf16 holds exactly, so that both see the same input.
        let inputs = [(1, [18, 16]), (2, [18, 8]), (3, [18, 8]), (4, [16, 7])]
            .map(|(seed, shape)| (rounded(&input(seed, shape, 1.0).0), shape));
        let (out, grads) = run(&half, &inputs, op(&half));
        let (expected, expected_grads) = run(&case, &inputs, op(&case));
        half.assert_close("bf16 chain", &out, &expected);
        for (grad, expected) in grads.iter().zip(&expected_grads) {
            half.assert_close("bf16 chain, gradient", grad, expected);
        }
    }
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| (x * 64.0).round() / 64.0).collect()
}

fn supports_bf16(case: &Case) -> bool {
    case.device.supports_dtype(DType::BF16)
}

#[cfg(feature = "flex")]
#[test]
fn results_are_the_same_to_the_bit_with_one_and_two_threads() {
    let case = cases().into_iter().find(|case| case.name == "flex f32").expect("flex");
    let shape = AttentionShape { batch: 2, seq: 150, heads: 4, kv_heads: 2, head_dim: 16 };
    let starts = segment_starts(150, &[0, 70, 140]).repeat(2);
    let positions: Vec<i64> = (0..300).map(|i| i % 150).collect();
    let targets: Vec<i64> = (0..300).map(|i| i * 7 % 90).collect();
    let inputs = [
        input(1, [300, 64], 1.0),
        input(2, [300, 32], 1.0),
        input(3, [300, 32], 1.0),
        input(4, [64, 90], 1.0),
        input(5, [1, 64], 1.0),
    ];
    let step = || {
        run(&case, &inputs, |[x, k, v, w, norm]| {
            let x = linear_add(x.clone(), w.clone().narrow(1, 0, 64), x);
            let x = rms_norm(swiglu(x.clone(), x), norm.reshape([64]), 1e-5);
            let x = rotary(
                x,
                rotary_table(150, &rotary_frequencies(16, 1e4), &case.device),
                case.ints(&positions),
            );
            let x = causal_attention(x, k, v, case.ints(&starts), shape);
            let token_weights = case.tensor(&[1.0; 300], [300]);
            linear_cross_entropy(x, w, case.ints(&targets), token_weights)
        })
    };
    let update = || {
        let params = case.tensor(&numbers(6, 100_000), [100_000]);
        let grads = case.tensor(&numbers(7, 100_000), [100_000]);
        values(AdamW::default().step(1e-3, params, grads, None).0)
    };
    let others = || {
        let x = case.tensor(&numbers(8, 20 * 200), [20, 200]);
        let w = case.tensor(&numbers(9, 200 * 300), [200, 300]);
        let few_rows = linear(x.clone(), w.clone());
        let turned = linear(few_rows.clone(), w.transpose());
        let ids = case.autodiff().ints(&targets);
        let table = case.autodiff().tensor(&numbers(10, 90 * 40), [90, 40]).require_grad();
        let grads = embedding(table.clone(), ids).square().sum().backward();
        let table = values(table.grad(&grads).expect("tracked"));
        // Products with many rows, and with a transposed matrix of many.
        let long = case.tensor(&numbers(11, 40 * 5000), [40, 5000]);
        let many =
            linear(long.clone(), case.tensor(&numbers(12, 20 * 5000), [20, 5000]).transpose());
        let added = linear_add(
            long.clone().transpose(),
            many.clone(),
            long.clone().transpose().narrow(1, 0, 20),
        );
        let cached = cached_attention(
            case.tensor(&numbers(13, 4 * 48), [4, 48]),
            case.tensor(&numbers(14, 4 * 2 * 70 * 8), [4, 2, 70, 8]),
            case.tensor(&numbers(15, 4 * 2 * 70 * 8), [4, 2, 70, 8]),
            case.tensor(&[0.0; 4 * 60], [4, 1, 1, 60]),
            5,
        );
        [few_rows, turned, many, added, cached]
            .map(values)
            .into_iter()
            .chain([table, values(sum_of_squares(x))])
            .collect::<Vec<_>>()
    };
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        pool.install(|| (step(), update(), others()))
    };
    let one = with_threads(1);
    for threads in [2, 3] {
        // Equal as f64, into which f32 goes without rounding: equal to the bit.
        assert!(with_threads(threads) == one, "{threads} threads change the result");
    }
}

#[test]
fn adamw_scales_gradients_within_the_update() {
    for case in cases() {
        let [param, grad] = [1, 2].map(|seed| case.tensor(&numbers(seed, 1000), [1000]));
        let adamw = AdamW::default();
        let (mut scaled, mut plain) = (None, None);
        let (mut x, mut y) = (param.clone(), param);
        for _ in 0..3 {
            let (new, state) = adamw.update(1e-2, x, grad.clone(), 0.37, scaled.take());
            (x, scaled) = (new, Some(state));
            let (new, state) = adamw.update(1e-2, y, grad.clone() * 0.37, 1.0, plain.take());
            (y, plain) = (new, Some(state));
        }
        case.assert_close("adamw, scaled gradient", &values(x), &values(y));
        let moments = [scaled, plain].map(|state| values(state.expect("three steps").moment_2));
        case.assert_close("adamw, scaled gradient, second moment", &moments[0], &moments[1]);
    }
}

#[test]
fn adamw_takes_the_steps_of_its_paper() {
    for case in cases() {
        let start = numbers(1, 1500);
        let grads: Vec<Vec<f64>> = (0..5).map(|i| numbers(10 + i, 1500)).collect();
        let optimizer = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let (mut params, mut state) = (case.tensor(&start, [3, 500]), None);
        for grad in &grads {
            let grad = case.tensor(grad, [3, 500]);
            (params, state) = optimizer.step(1e-2, params, grad, state);
        }
        let expected = reference::adamw(&start, &grads, 1e-2, 0.1);
        case.assert_close("adamw, 5 steps", &values(params), &expected);
        assert_eq!(state.expect("state").time, 5);
    }
}

#[test]
fn adamw_defaults_are_those_of_pytorch() {
    let expected = AdamW { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 };
    assert_eq!(AdamW::default(), expected);
}

#[test]
fn adamw_updates_modules_like_burns_own() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        let device = case.device.clone().autodiff();
        let module = nn::LinearConfig::new(7, 5).init(&device);
        let train = |mut optimizer: burn::optim::ModuleOptimizer| {
            let mut module = module.clone();
            for step in 0..4 {
                let x = case.autodiff().tensor(&numbers(step, 21), [3, 7]);
                let grads = module.forward(x).square().sum().backward();
                let grads = GradientsParams::from_grads(grads, &module);
                module = optimizer.step(1e-2, module, grads);
            }
            values(module.weight.val().inner())
        };
        let burns = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(1e-2);
        let found = train(AdamW::default().init());
        case.assert_close("adamw, module", &found, &train(burns.init()));
    }
}

#[test]
fn adamw_leaves_tensors_alone_that_others_hold() {
    for case in cases() {
        let (params, grads) = (case.tensor(&numbers(1, 8), [8]), case.tensor(&numbers(2, 8), [8]));
        let (first, state) = AdamW::default().step(0.1, params.clone(), grads.clone(), None);
        let kept = state.clone().expect("state").moment_1;
        let before = values(kept.clone());
        let _ = AdamW::default().step(0.1, first, grads.clone(), state);
        assert_eq!(values(params), numbers(1, 8), "{}", case.name);
        assert_eq!(values(grads), numbers(2, 8), "{}", case.name);
        assert_eq!(values(kept), before, "{}", case.name);
    }
}
