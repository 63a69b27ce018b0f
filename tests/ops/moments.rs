//! 8-bit moments of AdamW, compared with a scalar model in f64, step by step.

use crate::support::{Case, cases, numbers, values};
use burn::tensor::DType;
use mixdistill::ops::{AdamW, Moments8Bit, StoredMoment};

/// The dynamic map, from its formula.
fn map(signed: bool) -> Vec<f64> {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7 {
        let items = if signed { 1 << exponent } else { 2 << exponent };
        for i in 0..items {
            let mean = 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(items);
            values.push(mean * 10f64.powi(exponent - 6));
            if signed {
                values.push(-mean * 10f64.powi(exponent - 6));
            }
        }
    }
    values.sort_by(f64::total_cmp);
    values
}

/// Whether a code is that of a share of a block's scale, or of one that is 1e-6 away: the nearest of
/// 65,536 steps over -1..1 has it nearest.
fn is_code(found: u8, map: &[f64], share: f64) -> bool {
    [-1e-6, 0.0, 1e-6].into_iter().any(|shift| {
        let step = (((share + shift).clamp(-1.0, 1.0) + 1.0) * 32767.5 + 0.5).floor();
        let distance = |value: f64| (value - (step / 32767.5 - 1.0)).abs();
        let least = map.iter().map(|value| distance(*value)).fold(f64::MAX, f64::min);
        distance(map[usize::from(found)]) <= least + 1e-7
    })
}

fn values_of(moment: &StoredMoment, map: &[f64]) -> Vec<f64> {
    let scaled =
        |(i, code): (usize, &u8)| map[usize::from(*code)] * f64::from(moment.scales[i / 256]);
    moment.codes.iter().enumerate().map(scaled).collect()
}

/// Holds codes and scales to values.
fn check(case: &Case, moment: &StoredMoment, expected: &[f64], map: &[f64]) {
    assert_eq!(moment.codes.len(), expected.len());
    for (block, scale) in expected.chunks(256).zip(&moment.scales) {
        let largest = block.iter().fold(0f64, |max, x| max.max(x.abs()));
        let difference = (largest - f64::from(*scale)).abs();
        assert!(difference <= case.tolerance * largest, "{}: scale {scale}, {largest}", case.name);
    }
    for (i, (found, x)) in moment.codes.iter().zip(expected).enumerate() {
        let scale = f64::from(moment.scales[i / 256]);
        if scale == 0.0 {
            assert_eq!(*found, 0, "{}, element {i}", case.name);
            continue;
        }
        assert!(is_code(*found, map, x / scale), "{}: {i}: {found} for {x} of {scale}", case.name);
    }
}

/// Gradients over some powers of ten; those of the second block are 0 in the first steps.
fn gradient(step: u64, len: usize) -> Vec<f64> {
    let mut gradient: Vec<f64> =
        numbers(100 + step, len).iter().map(|x| x * x * x * 0.01).collect();
    if step < 2 {
        gradient[256..512].fill(0.0);
    }
    gradient.iter().map(|x| f64::from(*x as f32)).collect()
}

#[test]
fn adamw_of_8_bits_takes_the_steps_of_a_scalar_model() {
    let (signed, unsigned) = (map(true), map(false));
    assert!(signed.len() == 256 && unsigned.len() == 256);
    let (rate, scale) = (1e-2, 0.7);
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    for mut case in cases() {
        // What the model reads back of a step is f32.
        case.tolerance = case.tolerance.max(1e-7);
        let len = 4096 + 77;
        let mut param = case.tensor(&numbers(1, len), [len]);
        let mut moments: Option<Moments8Bit> = None;
        for step in 0..4 {
            let gradient = gradient(step, len);
            // Each step from where the last one ended, so that a code on an edge is that alone.
            let before = values(param.clone());
            let [m, v] = match &moments {
                None => [vec![0.0; len], vec![0.0; len]],
                Some(moments) => {
                    let [first, second] = moments.stored().unwrap();
                    [values_of(&first, &signed), values_of(&second, &unsigned)]
                }
            };
            let both = |old: &[f64], beta: f64, power: i32| -> Vec<f64> {
                let new =
                    |(old, g): (&f64, &f64)| beta * old + (1.0 - beta) * (g * scale).powi(power);
                old.iter().zip(&gradient).map(new).collect()
            };
            let (m, v) = (both(&m, 0.9, 1), both(&v, 0.999, 2));
            let time = step as i32 + 1;
            let expected: Vec<f64> = (0..len)
                .map(|i| {
                    let m = m[i] / (1.0 - 0.9f64.powi(time));
                    let v = v[i] / (1.0 - 0.999f64.powi(time));
                    before[i] * (1.0 - rate * 0.1) - rate * m / (v.sqrt() + 1e-8)
                })
                .collect();
            let grad = case.tensor(&gradient, [len]);
            let (new, after) = adamw.update_8bit(rate, param, grad, scale, moments.take());
            case.assert_close("adamw, 8 bits", &values(new.clone()), &expected);
            let [first, second] = after.stored().unwrap();
            check(&case, &first, &m, &signed);
            check(&case, &second, &v, &unsigned);
            assert_eq!(after.time, step as usize + 1);
            (param, moments) = (new, Some(after));
        }
        let moments = moments.unwrap();
        let per_scale = if case.dtype == DType::F64 { 8 } else { 4 };
        assert_eq!(moments.bytes(), 2 * 17 * (256 + per_scale), "two bytes an element, and scales");
    }
}

#[test]
fn moments_of_8_bits_survive_the_way_out_and_back() {
    for case in cases().into_iter().filter(|case| case.dtype == DType::F32) {
        let len = 5000;
        let param = case.tensor(&numbers(1, len), [len]);
        let grad = || case.tensor(&gradient(5, len), [len]);
        let adamw = AdamW::default();
        let (param, moments) = adamw.update_8bit(1e-2, param, grad(), 1.0, None);
        let again = Moments8Bit::new(moments.time, moments.stored().unwrap(), &case.device);
        let step = |moments: Moments8Bit| {
            let (param, moments) =
                adamw.update_8bit(1e-2, param.clone(), grad(), 1.0, Some(moments));
            (values(param), moments.stored().unwrap())
        };
        let before = moments.stored().unwrap();
        assert!(step(moments.clone()) == step(again), "{}", case.name);
        assert!(moments.stored().unwrap() == before, "{}: what others hold stays", case.name);
    }
}

#[cfg(feature = "flex")]
#[test]
fn threads_do_not_change_moments_of_8_bits() {
    let case = cases().remove(0);
    let len = 200_000;
    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut param, mut moments) = (case.tensor(&numbers(1, len), [len]), None);
            for step in 0..3 {
                let grad = case.tensor(&gradient(step, len), [len]);
                let updated = AdamW::default().update_8bit(1e-2, param, grad, 1.0, moments.take());
                (param, moments) = (updated.0, Some(updated.1));
            }
            (values(param), moments.unwrap().stored().unwrap())
        })
    };
    let one = train(1);
    assert!(train(2) == one && train(3) == one);
}
