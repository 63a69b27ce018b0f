//! AdamW with moments of 8 bits: as bitsandbytes has them, and in checkpoints.

mod common;
mod parity_support;

use burn::tensor::{Tensor, TensorData};
use common::{devices, rows, tiny};
use mixdistill::Result;
use mixdistill::context::{Event, Observer, StopFlag};
use mixdistill::data::{Row, RowStream};
use mixdistill::model::{Architecture, DecoderConfig, DecoderLm, named_tensors};
use mixdistill::ops::{AdamW, Moments8Bit};
use mixdistill::train::{CheckpointStore, FitOptions, Learner, MomentType, TrainConfig};
use parity_support::{Reference, largest_difference, line};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// Numbers in -1..1, as `tests/parity/make_optimizer.py` makes them.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// As there: magnitudes over several powers of ten, and a first block of zeros at first.
fn gradient(name: &str, step: usize, count: usize) -> Vec<f32> {
    let uniform = numbers(1000 * step as u64 + name.len() as u64, count);
    let mut found: Vec<f32> = uniform.iter().map(|x| x * x * x * 1e-2).collect();
    if step < 5 {
        found[..256].fill(0.0);
    }
    found
}

#[test]
fn twenty_steps_equal_those_of_bitsandbytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures");
    let reference = Reference::read(&path.join("adamw_8bit.safetensors"));
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    for device in devices() {
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [count]), &device)
        };
        println!("20 steps of AdamW8bit against bitsandbytes on {device:?}");
        let mut holds = true;
        let [mut large, mut small] = [("large", 2 * 4133), ("small", 1100)]
            .map(|(name, count)| tensor(numbers(name.len() as u64, count)));
        let (mut moments, mut state) = (None, None);
        for step in 1..=20 {
            let gradients = [("large", 2 * 4133), ("small", 1100)]
                .map(|(name, count)| tensor(gradient(name, step, count)));
            let [of_large, of_small] = gradients;
            let updated = adamw.update_8bit(1e-2, large, of_large, 1.0, moments.take());
            (large, moments) = (updated.0, Some(updated.1));
            let updated = adamw.update(1e-2, small, of_small, 1.0, state.take());
            (small, state) = (updated.0, Some(updated.1));
            if ![1, 2, 10, 20].contains(&step) {
                continue;
            }
            let stored = moments.as_ref().map(|moments: &Moments8Bit| moments.stored().unwrap());
            let mut differing = 0;
            for (moment, part) in stored.unwrap().iter().zip(["exp_avg", "exp_avg_sq"]) {
                let codes = reference.bytes(&format!("{step}.large.{part}"));
                let scales = reference.floats(&format!("{step}.large.{part}.absmax"));
                differing += codes.iter().zip(&moment.codes).filter(|(a, b)| a != b).count();
                let furthest = codes.iter().zip(&moment.codes).map(|(a, b)| a.abs_diff(*b)).max();
                holds &= line(
                    &format!("step {step}, {part}: code, largest difference"),
                    furthest.unwrap().into(),
                    1.0,
                );
                let relative = scales.iter().zip(&moment.scales).map(|(a, b)| match a {
                    0.0 => b.abs(),
                    _ => (a - b).abs() / a,
                });
                let relative = relative.fold(0.0, f32::max);
                holds &=
                    line(&format!("step {step}, {part}: scale, relative"), relative.into(), 1e-6);
            }
            holds &= line(&format!("step {step}: codes that differ"), differing as f64, 0.0);
            let values = |tensor: &Tensor<1>| tensor.clone().try_into_vec_as::<f32>().unwrap();
            for (name, tensor) in [("large", &large), ("small", &small)] {
                let theirs = reference.floats(&format!("{step}.{name}"));
                let difference = largest_difference(&values(tensor), &theirs);
                holds &= line(&format!("step {step}: parameters of `{name}`"), difference, 1e-6);
            }
        }
        assert!(holds, "see the table above");
    }
}
