//! Quantized weights: products, embeddings, and losses equal those with the decoded numbers, which
//! equal those of bitsandbytes.

use super::support::{self, Case, cases, error, numbers, values};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use mixdistill::ops::{
    Activation, Distillation, EncodedWeight, TeacherTokens, TokenLoss, Weight, embedding,
    gated_linear_add, linear, linear_add, linear_cross_entropy, linear_token_loss,
};
use safetensors::SafeTensors;

/// A weight that is stored in fewer bits, and the numbers that it stands for, `[input, output]`.
struct Stored {
    name: &'static str,
    weight: Weight,
    numbers: Tensor<2>,
}

fn f32s(seed: u64, count: usize) -> Vec<f32> {
    numbers(seed, count).into_iter().map(|x| x as f32).collect()
}

/// All kinds of storage of one matrix `[output, input]` that a device has.
fn stored(case: &Case, size: [usize; 2]) -> Vec<Stored> {
    let values = f32s(7, size[0] * size[1]);
    let device = &case.device;
    let encoded = |name, weight: EncodedWeight| {
        let numbers = weight.decoded().transpose();
        Stored { name, weight: Weight::from(weight), numbers }
    };
    let mut all = vec![
        encoded("int8", EncodedWeight::int8(&values, size, device)),
        encoded("nf4", EncodedWeight::nf4(&values, size, false, device)),
        encoded("nf4, double", EncodedWeight::nf4(&values, size, true, device)),
    ];
    if device.supports_dtype(DType::BF16) {
        let data = TensorData::new(values, size);
        let short = Tensor::<2>::from_data(data, (device, DType::BF16)).transpose();
        let numbers = short.clone().cast(burn::tensor::FloatDType::F32);
        all.push(Stored { name: "bf16", weight: Weight::Dense(short), numbers });
    }
    all
}

/// The value of an operation and the gradients of its inputs, with a weight and with its numbers.
fn check<const N: usize>(
    case: &Case,
    what: &str,
    stored: &Stored,
    inputs: &[(Vec<f64>, [usize; 2]); N],
    op: impl Fn([Tensor<2>; N], Weight) -> Tensor<2>,
) {
    let dense = Weight::Dense(stored.numbers.clone());
    let [found, expected] = [&stored.weight, &dense].map(|weight| {
        support::run(case, inputs, |inputs| {
            let inner = inputs[0].device() == case.device;
            let weight = match weight.clone() {
                Weight::Dense(weight) if !inner => Weight::Dense(Tensor::from_inner(weight)),
                weight => weight,
            };
            op(inputs, weight)
        })
    });
    case.assert_close(&format!("{what} with {}", stored.name), &found.0, &expected.0);
    for (found, expected) in found.1.iter().zip(&expected.1) {
        case.assert_close(&format!("{what}'s gradient with {}", stored.name), found, expected);
    }
}

#[test]
fn operations_give_what_the_decoded_weights_give() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        // Blocks that end with rows and that do not; products of a few rows, and by panels.
        for size in [[5, 7], [64, 128], [67, 192], [70, 131], [1700, 700]] {
            let [output, input] = size;
            for stored in stored(&case, size) {
                for count in [1, 3, 16, 33, 100] {
                    let x = || (numbers(1, count * input), [count, input]);
                    let residual = || (numbers(2, count * output), [count, output]);
                    let what = |name: &str| format!("{name} {count} x {size:?}");
                    check(&case, &what("linear"), &stored, &[x()], |[x], w| linear(x, w));
                    if count > 1 && count < 100 {
                        continue;
                    }
                    check(
                        &case,
                        &what("linear_add"),
                        &stored,
                        &[x(), residual()],
                        |[x, residual], w| linear_add(x, w, residual),
                    );
                    check(
                        &case,
                        &what("gated_linear_add"),
                        &stored,
                        &[x(), x(), residual()],
                        |[gate, up, residual], w| {
                            gated_linear_add(gate, up, w, residual, Activation::Silu)
                        },
                    );
                    let targets: Vec<i64> = (0..count).map(|i| (i * 7 % output) as i64).collect();
                    check(&case, &what("loss"), &stored, &[x()], |[x], w| {
                        let device = x.device();
                        let data = TensorData::new(targets.clone(), [count]);
                        let targets = Tensor::<1, Int>::from_data(data, &device);
                        let weights = Tensor::<1>::ones([count], &device);
                        linear_cross_entropy(x * 0.1, w, targets, weights).reshape([1, 1])
                    });
                }
            }
        }
    }
}

#[test]
fn embeddings_are_rows_of_the_decoded_weights() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        for size in [[11, 64], [300, 130]] {
            for Stored { name, weight, numbers } in stored(&case, size) {
                let ids: Vec<i64> = vec![3, 10, 0, 3, 7];
                // An embedding is not transposed.
                let weight = match weight {
                    Weight::Dense(weight) => Weight::Dense(weight.transpose()),
                    encoded => encoded,
                };
                let found = values(embedding(weight, case.ints(&ids)));
                let all = values(numbers.transpose());
                let row = |id: &i64| all[*id as usize * size[1]..][..size[1]].to_vec();
                let expected: Vec<f64> = ids.iter().flat_map(row).collect();
                assert_eq!(error(&found, &expected), 0.0, "{} {name}", case.name);
            }
        }
    }
}

#[test]
fn decoded_values_are_those_of_bitsandbytes() {
    let path =
        format!("{}/tests/parity/fixtures/quantized.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap();
        data.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        for name in ["plain", "ragged", "odd", "many"] {
            let weight = floats(&format!("{name}.weight"));
            let shape = file.tensor(&format!("{name}.weight")).unwrap().shape().to_vec();
            let size = [shape[0], shape[1]];
            let device = &case.device;
            for (kind, encoded, tolerance) in [
                ("nf4", EncodedWeight::nf4(&weight, size, false, device), 1e-6),
                ("int8", EncodedWeight::int8(&weight, size, device), 1e-6),
                // Scales of scales: the mean has its sums in another order.
                ("double", EncodedWeight::nf4(&weight, size, true, device), 1e-5),
            ] {
                if name == "many" && kind != "double" {
                    continue;
                }
                let expected = floats(&format!("{name}.{kind}.decoded"));
                let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
                let off = error(&values(encoded.decoded()), &expected);
                assert!(off < tolerance, "{} {name} {kind}: {off:e}", case.name);
            }
        }
    }
}

#[test]
fn in_bf16_they_are_the_products_with_the_decoded_weights_in_bf16() {
    let cases = cases().into_iter().filter(|case| case.dtype == DType::F32);
    for case in cases.filter(|case| case.device.supports_dtype(DType::BF16)) {
        let half = |x: Tensor<2>| x.cast(burn::tensor::FloatDType::BF16);
        let x = case.tensor(&numbers(1, 40 * 192), [40, 192]);
        for Stored { name, weight, numbers } in stored(&case, [67, 192]) {
            let found = values(linear(half(x.clone()), weight));
            let expected = values(linear(half(x.clone()), half(numbers)));
            // Rounded once or twice to 8 bits.
            assert!(error(&found, &expected) < 1e-2, "{} {name}", case.name);
        }
    }
}

#[test]
fn distillation_with_a_stored_head_is_that_with_the_decoded_one() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        let terms =
            TokenLoss { distillation: Some(Distillation::default()), ..TokenLoss::default() };
        for stored in stored(&case, [70, 131]) {
            let x = (numbers(1, 20 * 131), [20, 131]);
            check(&case, "distillation", &stored, &[x], |[x], w| {
                let device = x.device();
                let ints = |values: Vec<i64>, shape: [usize; 2]| {
                    Tensor::<2, Int>::from_data(TensorData::new(values, shape), &device)
                };
                let targets = ints((0..20).collect(), [20, 1]).reshape([20]);
                let tokens = ints((0..40).map(|i| i * 7 % 70).collect(), [20, 2]);
                let log_probs = Tensor::<2>::full([20, 3], (1f64 / 3.0).ln(), &device);
                let teacher = Some(TeacherTokens { tokens, log_probs });
                let weights = Tensor::<1>::ones([20], &device);
                linear_token_loss(x * 0.1, w, targets, weights, terms, teacher).reshape([1, 1])
            });
        }
    }
}
