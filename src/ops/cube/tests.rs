//! Compares each GPU kernel with the portable body of its operation in f64, in each type that the device
//! supports, at sizes that vectors divide and at others.

use super::CubeBackend;
use super::testing::{Exact, Input, assert_close, ints, types};
use crate::ops::adamw::{AdamW, AdamWKernel};
use crate::ops::cached_attention::CachedAttentionKernel;
use crate::ops::decoding::DecodingKernel;
use crate::ops::embedding::EmbeddingKernel;
use crate::ops::encoding::{EncodedValues, Encoding};
use crate::ops::gated::{Activation, GatedKernel};
use crate::ops::rms_norm::RmsNormKernel;
use crate::ops::rotary::{RotaryKernel, Rotation};
use crate::ops::sampling::{Draws, Sampling, SamplingKernel};
use crate::ops::sum_of_squares::SumOfSquaresKernel;
use crate::ops::token_loss::{Distillation, Divergence, TokenLoss, TokenLossKernel};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, TensorData};
use burn_cubecl::ops::into_data_sync;
use burn_flex::FlexTensor;

type Gpu = CubeBackend;

#[test]
fn norms() {
    for (dtype, tolerance) in types() {
        for (rows, width) in [(5, 19), (33, 64), (3, 1100)] {
            let input = |seed, rows| Input::new(seed, &[rows, width], 2.0, dtype);
            let (x, grad) = (input(1, rows), input(2, rows));
            let weight = Input::new(3, &[width], 1.0, dtype);
            let added = input(4, rows);
            let (sum, y, rstd) = Gpu::add_rms_norm_forward(
                x.cube(dtype),
                added.cube(dtype),
                weight.cube(dtype),
                1e-3,
            );
            let (exact_sum, exact_y, exact_rstd) =
                Exact::add_rms_norm_forward(x.flex(), added.flex(), weight.flex(), 1e-3);
            assert_close("sum", sum.clone(), exact_sum.clone(), tolerance);
            assert_close("norm of sum", y, exact_y, tolerance);
            let above = input(5, rows);
            let (grad_x, grad_weight) = Gpu::rms_norm_backward_add(
                grad.cube(dtype),
                sum,
                weight.cube(dtype),
                rstd,
                above.cube(dtype),
            );
            let (exact_x, exact_weight) = Exact::rms_norm_backward_add(
                grad.flex(),
                exact_sum,
                weight.flex(),
                exact_rstd,
                above.flex(),
            );
            assert_close("norm of sum, grad x", grad_x, exact_x, tolerance);
            assert_close("norm of sum, grad weight", grad_weight, exact_weight, tolerance);
            let (y, rstd) = Gpu::rms_norm_forward(x.cube(dtype), weight.cube(dtype), 1e-3);
            let (exact_y, exact_rstd) = Exact::rms_norm_forward(x.flex(), weight.flex(), 1e-3);
            assert_close("norm", y, exact_y, tolerance);
            assert_close("norm, rstd", rstd.clone(), exact_rstd.clone(), tolerance);
            let (grad_x, grad_weight) =
                Gpu::rms_norm_backward(grad.cube(dtype), x.cube(dtype), weight.cube(dtype), rstd);
            let (exact_x, exact_weight) =
                Exact::rms_norm_backward(grad.flex(), x.flex(), weight.flex(), exact_rstd);
            assert_close("norm, grad x", grad_x, exact_x, tolerance);
            assert_close("norm, grad weight", grad_weight, exact_weight, tolerance);
        }
    }
}

#[test]
fn gates() {
    for (dtype, tolerance) in types() {
        for activation in [Activation::Silu, Activation::GeluPytorchTanh] {
            for width in [45, 64] {
                let [gate, up, grad] =
                    [5.0, 1.0, 1.0].map(|scale| Input::new(width, &[7, width], scale, dtype));
                let [g, u, d] = [&gate, &up, &grad].map(|input| input.cube(dtype));
                let [eg, eu, ed] = [&gate, &up, &grad].map(Input::flex);
                let out = Gpu::gated_forward(g.clone(), u.clone(), activation);
                let exact = Exact::gated_forward(eg.clone(), eu.clone(), activation);
                assert_close("gate", out, exact, tolerance);
                let (of_gate, of_up) = Gpu::gated_backward(d, g, u, activation);
                let (exact_gate, exact_up) = Exact::gated_backward(ed, eg, eu, activation);
                assert_close("gate, grad gate", of_gate, exact_gate, tolerance);
                assert_close("gate, grad up", of_up, exact_up, tolerance);
            }
        }
    }
}

#[test]
fn rotations() {
    for (dtype, tolerance) in types() {
        // Whole heads, partial heads, and sizes that no vector divides.
        for (heads, head_dim, half) in [(3, 16, 8), (2, 24, 4), (3, 10, 3)] {
            let x = Input::new(1, &[9, heads * head_dim], 1.0, dtype);
            let [cos, sin] = [2, 3].map(|seed| Input::new(seed, &[20, half], 1.0, DType::F32));
            let (positions, exact_positions) = ints(&[0, 3, 19, 7, 7, 1, 2, 11, 4], &[9]);
            for inverse in [false, true] {
                let rotation = Rotation { head_dim, inverse };
                let [c, s] = [&cos, &sin].map(|table| table.cube(DType::F32));
                let out = Gpu::rotate(x.cube(dtype), c, s, positions.clone(), rotation);
                let (c, s) = (cos.flex(), sin.flex());
                let exact = Exact::rotate(x.flex(), c, s, exact_positions.clone(), rotation);
                assert_close("rotation", out, exact, tolerance);
            }
        }
    }
}

#[test]
fn updates() {
    let factors = AdamW::default().factors(1e-2, 3, 0.5);
    for (dtype, _) in types() {
        for count in [517, 1024] {
            let input = |seed, scale, dtype| Input::new(seed, &[count], scale, dtype);
            let (param, grad) = (input(1, 1.0, DType::F32), input(2, 1.0, dtype));
            let m = input(3, 0.1, DType::F32);
            // Squares, so that they are not negative.
            let number = |i: usize| ((i * 37 + 5) % 101) as f64 / 1010.0;
            let squares = (0..count).map(|i| number(i) * number(i)).collect();
            let v = Input::of(squares, &[count], DType::F32);
            let [p, first, second] = [&param, &m, &v].map(|input| input.cube(DType::F32));
            let found = Gpu::adamw_update(p, grad.cube(dtype), first, second, factors);
            let [p, g, first, second] = [&param, &grad, &m, &v].map(Input::flex);
            let exact = Exact::adamw_update(p, g, first, second, factors);
            // The parameter and the moments are f32 for every type of gradient.
            assert_close("update, parameter", found.0, exact.0, 1e-6);
            assert_close("update, first moment", found.1, exact.1, 1e-6);
            assert_close("update, second moment", found.2, exact.2, 1e-6);
        }
    }
}

#[test]
fn embeddings() {
    let ids = [3, 0, 3, 9, 3, 0, 5, 9, 9, 9];
    for (dtype, tolerance) in types() {
        for width in [7, 64] {
            let grad = Input::new(1, &[10, width], 1.0, dtype);
            let weight = Input::new(2, &[11, width], 1.0, dtype);
            let (on_gpu, exact_ids) = ints(&ids, &[10]);
            let found = Gpu::embedding_grad(grad.cube(dtype), on_gpu, weight.cube(dtype));
            let exact = Exact::embedding_grad(grad.flex(), exact_ids, weight.flex());
            assert_close("embedding", found, exact, tolerance);
        }
    }
}

#[test]
fn squares() {
    for (dtype, tolerance) in types() {
        for count in [1, 1000, 200_001] {
            let x = Input::new(1, &[count], 1.0, dtype);
            // The sums are f32 for every type of elements; the numbers around them are unchanged.
            let sums = Input::of(vec![3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0], &[7], DType::F32);
            let found = Gpu::squares(x.cube(dtype), sums.cube(DType::F32), 2);
            let exact = Exact::float_sum(Exact::squares(x.flex(), sums.flex(), 2));
            assert_close("squares", Gpu::float_sum(found), exact, tolerance.min(5e-6));
        }
    }
}

#[test]
fn losses() {
    let teacher = |divergence| Some(Distillation { divergence, weight: 0.6, temperature: 1.5 });
    let smoothed = TokenLoss { label_smoothing: 0.1, z_loss: 1e-2, ..TokenLoss::default() };
    let terms = [
        TokenLoss::default(),
        smoothed,
        TokenLoss { distillation: teacher(Divergence::ForwardKl), ..smoothed },
        TokenLoss { distillation: teacher(Divergence::ReverseKl), ..TokenLoss::default() },
        TokenLoss { distillation: teacher(Divergence::Jsd(0.3)), ..TokenLoss::default() },
    ];
    let (rows, k) = (5, 3);
    for (dtype, tolerance) in types() {
        for vocabulary in [37, 300] {
            let logits = Input::new(1, &[rows, vocabulary], 6.0, DType::F32);
            let weights = Input::new(2, &[rows, 1], 1.0, DType::F32);
            let targets = [3, 0, vocabulary as i64 - 1, 7, 7];
            let (targets, exact_targets) = ints(&targets, &[rows, 1]);
            let chosen: Vec<i64> = (0..rows as i64 * 3).map(|i| i * 5 % 37).collect();
            let (chosen, exact_chosen) = ints(&chosen, &[rows, k]);
            let log_probs = [0.5f64, 0.2, 0.2, 0.1].map(f64::ln).repeat(rows);
            let log_probs = Input::of(log_probs, &[rows, k + 1], DType::F32);
            for terms in terms {
                for wants_grad in [true, false] {
                    let (loss, grad) = Gpu::token_loss(
                        logits.cube(DType::F32),
                        targets.clone(),
                        weights.cube(DType::F32),
                        chosen.clone(),
                        log_probs.cube(DType::F32),
                        terms,
                        FloatDType::from(dtype),
                        wants_grad,
                    );
                    let (exact_loss, exact_grad) = Exact::token_loss(
                        logits.flex(),
                        exact_targets.clone(),
                        weights.flex(),
                        exact_chosen.clone(),
                        log_probs.flex(),
                        terms,
                        FloatDType::F64,
                        wants_grad,
                    );
                    assert_close(&format!("{terms:?}"), loss, exact_loss, 5e-6);
                    if wants_grad {
                        assert_close(&format!("{terms:?}, grad"), grad, exact_grad, tolerance);
                    }
                }
            }
        }
    }
}

#[test]
fn cached_attention() {
    for (dtype, tolerance) in types() {
        // The last case has more vectors per head than units per cube.
        for (new, keys, first, heads, kv_heads, dim) in
            [(1, 150, 3, 4, 2, 8), (3, 7, 0, 2, 2, 6), (1, 9, 2, 3, 1, 131)]
        {
            let (rows, capacity) = (2, 160);
            let q = Input::new(1, &[rows * new, heads * dim], 1.0, dtype);
            let [k, v] =
                [2, 3].map(|seed| Input::new(seed, &[rows, kv_heads, capacity, dim], 1.0, dtype));
            // The first two keys are hidden from each query.
            let mask = (0..rows * new * keys).map(|i| if i % keys < 2 { -1e9 } else { 0.0 });
            let mask = Input::of(mask.collect(), &[rows, 1, new, keys], DType::F32);
            let [gq, gk, gv] = [&q, &k, &v].map(|input| input.cube(dtype));
            let found = Gpu::attend_to_cache(gq, gk, gv, mask.cube(DType::F32), first);
            let exact = Exact::attend_to_cache(q.flex(), k.flex(), v.flex(), mask.flex(), first);
            assert_close("cached attention", found, exact, tolerance);
        }
    }
}

#[test]
fn decoded_values() {
    for (dtype, tolerance) in types() {
        // Sizes with and without whole words and blocks.
        for size in [[3, 64], [5, 7], [4, 96]] {
            let encodings =
                [Encoding::nf4(false), Encoding::int8(size[1]), Encoding::q8_0(), Encoding::q4_0()];
            for encoding in encodings {
                let values: Vec<f32> =
                    (0..size[0] * size[1]).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
                let EncodedValues { codes, scales, .. } = EncodedValues::of(&values, encoding);
                let words: Vec<i64> = codes.iter().map(|word| i64::from(*word)).collect();
                let (words, exact_words) = ints(&words, &[words.len()]);
                let exact_scales =
                    FlexTensor::from_data(TensorData::new(scales.clone(), [scales.len()]));
                let scales: Vec<f64> = scales.into_iter().map(f64::from).collect();
                let scales = Input::of(scales.clone(), &[scales.len()], DType::F32);
                let scales = scales.cube(DType::F32);
                let found = Gpu::decode(words, scales, encoding, size, dtype.into());
                let exact =
                    Exact::decode(exact_words, exact_scales, encoding, size, FloatDType::F32);
                assert_close(&format!("{encoding:?}, {size:?}"), found, exact, tolerance);
            }
        }
    }
}

#[test]
fn drawn_tokens() {
    let plain =
        Sampling { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let penalized = Sampling { repetition_penalty: 1.7, ..plain };
    let all = [
        plain,
        Sampling { temperature: 0.3, ..plain },
        Sampling { top_k: 5, ..plain },
        Sampling { top_p: 0.7, ..plain },
        Sampling { min_p: 0.4, ..plain },
        Sampling { top_k: 9, top_p: 0.8, min_p: 0.2, temperature: 2.0, ..penalized },
        Sampling { temperature: 0.0, ..plain },
        Sampling { temperature: 0.0, ..penalized },
    ];
    let rows = 8;
    // With steps of 0.5, many tokens are equally probable.
    for (vocabulary, step) in [(37, 0.0), (300, 0.5), (1100, 0.0)] {
        let number = |i: usize| ((i * 7919 + 11) % 2003) as f64 / 300.0 - 3.3;
        let round = |x: f64| if step > 0.0 { (x / step).round() * step } else { x };
        let logits: Vec<f64> = (0..rows * vocabulary).map(|i| round(number(i))).collect();
        let logits = Input::of(logits, &[rows, vocabulary], DType::F32);
        for sampling in all {
            let earlier = match sampling.repetition_penalty {
                1.0 => vec![],
                _ => (0..rows as u32).map(|row| (0..row * 4).collect()).collect(),
            };
            let points = (0..rows).map(|row| (row as f64 + 0.37) / rows as f64).collect();
            same_tokens(&logits, Draws { sampling, points, earlier });
        }
    }
    // Few or no choices.
    let tiny = Sampling { temperature: 1e-300, ..plain };
    for (logits, sampling) in [
        (vec![0.5], plain),
        (vec![1.0, 3.0, 2.0], Sampling { top_k: 7, ..plain }),
        (vec![1.0, 3.0, 2.0], Sampling { top_p: 1e-50, ..plain }),
        (vec![1.0, 3.0, 2.0], tiny),
        (vec![2.0; 5], Sampling { top_k: 2, ..plain }),
        (vec![2.0; 5], Sampling { min_p: 1.0, ..plain }),
        (vec![f64::NEG_INFINITY, 1.0, f64::NEG_INFINITY, 0.0], plain),
    ] {
        for point in [0.0, 0.3, 1.0 - f64::EPSILON / 2.0] {
            let input = Input::of(logits.clone(), &[1, logits.len()], DType::F32);
            same_tokens(&input, Draws { sampling, points: vec![point], earlier: vec![] });
        }
    }
    // The result is a token of the vocabulary for any scores.
    let nothing = Input::of(vec![f64::NAN; 6], &[2, 3], DType::F32);
    let draws = Draws { sampling: plain, points: vec![0.4; 2], earlier: vec![] };
    let found = into_data_sync(Gpu::draw(nothing.cube(DType::F32), draws));
    assert!(found.iter::<i64>().all(|token| (0..3).contains(&token)));
}

fn same_tokens(logits: &Input, draws: Draws) {
    let found = Gpu::draw(logits.cube(DType::F32), draws.clone());
    let found: Vec<i64> = into_data_sync(found).iter().collect();
    let expected = Exact::draw(logits.flex(), draws.clone());
    let expected: Vec<i64> = expected.into_data().iter().collect();
    assert_eq!(found, expected, "{draws:?}");
}
