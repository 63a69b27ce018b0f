//! The linear layers' products, the embedding, sums of squares, and attention to a cache.

use super::panics::assert_panics;
use super::support::{Case, cases, check_composition, check_reference, numbers, values};
use super::{input, reference};
use burn::prelude::*;
use burn::tensor::TensorData;
use mixdistill::ops::{
    Activation, cached_attention, embedding, gated_linear_add, linear, linear_add, sum_of_squares,
    swiglu,
};

/// `x w` for `x` `[tokens, inner]` in f64.
fn product(x: &[f64], w: &[f64], inner: usize) -> Vec<f64> {
    let cols = w.len() / inner;
    let element = |row: &[f64], col: usize| -> f64 {
        row.iter().enumerate().map(|(k, x)| x * w[k * cols + col]).sum()
    };
    x.chunks(inner).flat_map(|row| (0..cols).map(move |col| element(row, col))).collect()
}

#[test]
fn linear_is_the_product_and_has_its_gradients() {
    for case in cases() {
        check_reference(
            "linear",
            [input(1, [4, 5], 1.0), input(2, [5, 7], 1.0)],
            &case,
            |[x, w]| linear(x, w),
            |[x, w]| product(x, w, 5),
        );
        let residual = input(3, [4, 7], 1.0);
        check_reference(
            "linear_add",
            [input(1, [4, 5], 1.0), input(2, [5, 7], 1.0), residual],
            &case,
            |[x, w, residual]| linear_add(x, w, residual),
            |[x, w, residual]| product(x, w, 5).iter().zip(residual).map(|(y, r)| y + r).collect(),
        );
    }
}

#[test]
fn swiglu_and_linear_together_are_both_in_turn() {
    for case in cases() {
        check_reference(
            "gated_linear_add",
            [[4, 5], [4, 5], [5, 7], [4, 7]].map(|shape| input(shape[1] as u64, shape, 1.0)),
            &case,
            |[gate, up, w, residual]| gated_linear_add(gate, up, w, residual, Activation::Silu),
            |[gate, up, w, residual]| {
                let gated: Vec<f64> =
                    gate.iter().zip(up).map(|(g, u)| reference::silu(*g) * u).collect();
                product(&gated, w, 5).iter().zip(residual).map(|(y, r)| y + r).collect()
            },
        );
        // One tensor in several places: nothing may be overwritten.
        check_composition(
            "gated_linear_add, shared",
            [input(1, [64, 64], 1.0)],
            &case,
            |[x]| gated_linear_add(x.clone(), x.clone(), x.clone(), x, Activation::Silu),
            |[x]| linear_add(swiglu(x.clone(), x.clone()), x.clone(), x),
        );
    }
}

#[test]
fn linear_agrees_with_matmul_for_all_layouts_and_numbers_of_rows() {
    for case in cases() {
        // On flex up to 32 rows have a kernel of their own, for large matrices.
        for rows in [1, 3, 16, 32, 33] {
            let inputs = || [input(1, [rows, 130], 1.0), input(2, [130, 150], 1.0)];
            check_composition(
                "linear",
                inputs(),
                &case,
                |[x, w]| linear(x, w),
                |[x, w]| x.matmul(w),
            );
            let turned = || [input(1, [130, rows], 1.0), input(2, [150, 130], 1.0)];
            check_composition(
                "linear, transposed and shared",
                turned(),
                &case,
                |[x, w]| {
                    let (x, w) = (x.transpose(), w.transpose());
                    linear_add(x.clone(), w.clone(), linear(x, w))
                },
                |[x, w]| x.transpose().matmul(w.transpose()) * 2.0,
            );
        }
    }
}

#[test]
fn a_product_without_rows_is_empty() {
    for case in cases().iter().filter(|case| case.name == "flex f32") {
        for inner in [3, 5000] {
            let weight = case.tensor(&vec![1.0; inner * 4], [4, inner]).transpose();
            assert_eq!(linear(case.tensor(&[], [0, inner]), weight).dims(), [0, 4]);
        }
    }
}

#[test]
fn a_frozen_weight_leaves_the_gradient_of_the_input_as_it_was() {
    for case in cases() {
        let case = case.autodiff();
        let tensor = |(values, shape): (Vec<f64>, [usize; 2])| case.tensor(&values, shape);
        let [x, w] = [tensor(input(1, [5, 6], 1.0)), tensor(input(2, [6, 4], 1.0))];
        let gradient = |weight: Tensor<2>| {
            let x = x.clone().require_grad();
            let grads = linear(x.clone(), weight).square().sum().backward();
            values(x.grad(&grads).expect("x is tracked"))
        };
        assert_eq!(gradient(w.clone()), gradient(w.clone().require_grad()));
    }
}

#[test]
fn embedding_takes_rows_and_sums_their_gradients() {
    for case in cases() {
        let ids = [3i64, 0, 3, 3, 6, 0];
        check_reference(
            "embedding",
            [input(1, [7, 5], 1.0)],
            &case,
            |[weight]| embedding(weight, case.ints(&ids)),
            |[weight]| ids.iter().flat_map(|id| weight[*id as usize * 5..][..5].to_vec()).collect(),
        );
        // More tokens than a block.
        let ids: Vec<i64> = (0..300).map(|i| i * i % 41).collect();
        check_composition(
            "embedding",
            [input(2, [41, 33], 1.0)],
            &case,
            |[weight]| embedding(weight, case.ints(&ids)),
            |[weight]| weight.select(0, case.ints(&ids)),
        );
    }
}

#[test]
fn sum_of_squares_is_exact_for_many_elements() {
    for case in cases() {
        // The last is more than one chain of sums of chains.
        for len in [1, 1000, 8192, 100_003, 20_000_000] {
            let x = numbers(len as u64, len);
            let expected: f64 = x.iter().map(|x| x * x).sum();
            let found = values(sum_of_squares(case.tensor(&x, [len])))[0];
            case.assert_close("sum_of_squares", &[found], &[expected]);
        }
    }
}

/// The inputs of attention to a cache: q, k, v and the mask.
fn cache(case: &Case, new: usize) -> (Tensor<2>, [Tensor<4>; 2], Tensor<4>, usize) {
    let [rows, kv_heads, group, capacity, dim, keys] = [2, 2, 3, 11, 6, 9];
    let q = case.tensor(&numbers(1, rows * new * 36), [rows * new, kv_heads * group * dim]);
    let size = [rows, kv_heads, capacity, dim];
    let cached = [2, 3].map(|seed| case.tensor(&numbers(seed, size.iter().product()), size));
    let mask: Vec<f64> = (0..rows * new * keys)
        .map(|i| {
            let (row, token, key) = (i / (new * keys), i / keys % new, i % keys);
            if key >= 2 * row && key <= keys - new + token { 0.0 } else { -1e9 }
        })
        .collect();
    (q, cached, case.tensor(&mask, [rows, 1, new, keys]), keys)
}

#[test]
fn attention_to_a_cache_is_that_to_its_visible_keys() {
    for case in cases() {
        for new in [1, 3] {
            let (q, [k, v], mask, keys) = cache(&case, new);
            let [rows, kv_heads, _, dim] = k.dims();
            let group = 3;
            let all = [&q, &mask.clone().reshape([rows * new, keys])].map(|t| values(t.clone()));
            let [q_values, mask_values] = all;
            let [k_values, v_values] = [&k, &v].map(|t| values(t.clone()));
            let mut expected = vec![];
            for token in 0..rows * new {
                for head in 0..kv_heads * group {
                    let q = &q_values[(token * kv_heads * group + head) * dim..][..dim];
                    let start = (token / new * kv_heads + head / group) * 11 * dim;
                    let line = |all: &[f64], key: usize| all[start + key * dim..][..dim].to_vec();
                    let score = |key: usize| -> f64 {
                        let dot: f64 = q.iter().zip(line(&k_values, key)).map(|(q, k)| q * k).sum();
                        dot / (dim as f64).sqrt() + mask_values[token * keys + key]
                    };
                    expected.extend(reference::softmax_mean(
                        (0..keys).map(|key| (score(key), line(&v_values, key))),
                    ));
                }
            }
            let found = values(cached_attention(q, k, v, mask, 0));
            case.assert_close("cached_attention", &found, &expected);
        }
    }
}

#[test]
fn products_that_do_not_fit_panic_with_their_names() {
    let case = &cases()[0];
    let matrix = |shape: [usize; 2]| case.tensor(&vec![1.0; shape[0] * shape[1]], shape);
    assert_panics("linear: the width of x differs", || {
        drop(linear(matrix([2, 3]), matrix([2, 3])))
    });
    assert_panics("linear_add: the residual is not like", || {
        drop(linear_add(matrix([2, 3]), matrix([3, 4]), matrix([4, 2])));
    });
    assert_panics("embedding: no tokens", || {
        let none = Tensor::from_data(TensorData::new(Vec::<i64>::new(), [0]), &case.device);
        drop(embedding(matrix([2, 3]), none));
    });
    if case.name.starts_with("flex") {
        assert_panics("embedding: token 2 of token 0 is outside 0..2", || {
            drop(embedding(matrix([2, 3]), case.ints(&[2])));
        });
    }
    let (q, [k, v], mask, _) = cache(case, 1);
    assert_panics("cached_attention: a mask", || {
        let twice = q.clone().repeat_dim(0, 2);
        drop(cached_attention(twice, k.clone(), v.clone(), mask.clone(), 0));
    });
    // The cache has room for two keys after those of the mask.
    assert_panics("cached_attention: a mask", || {
        drop(cached_attention(q.clone(), k.clone(), v.clone(), mask.clone(), 3));
    });
    assert_panics("cached_attention: the width 35", || {
        drop(cached_attention(q.narrow(1, 0, 35), k, v, mask, 0));
    });
}
