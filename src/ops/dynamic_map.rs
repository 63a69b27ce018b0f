//! The 8-bit dynamic map: 256 values with magnitudes from 1 down to 5.5e-7, whose steps grow with the
//! magnitude. The map and the codes are those of bitsandbytes 0.50 on the CPU.
//!
//! A code has a run of zeros that gives the magnitude in powers of ten, and a linear fraction in the
//! remaining bits. Source: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv
//! 1511.04561; Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.

use std::sync::LazyLock;

/// Values per scale.
pub(crate) const BLOCK: usize = 256;

/// Steps over -1..1 to which a number is rounded before the code lookup.
pub(crate) const STEPS: usize = 65_535;

/// The values of the codes, in ascending order, and the code of each step.
pub(crate) struct DynamicMap {
    pub(crate) values: [f32; 256],
    /// For steps `0..=STEPS` from -1 to 1. Ties use the lower code.
    pub(crate) codes: Box<[u8; STEPS + 1]>,
}

/// For numbers from -1 to 1: first moments.
pub(crate) static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));

/// For numbers from 0 to 1, with one more bit of fraction: second moments.
pub(crate) static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

/// Returns the step of a fraction of a block's scale; 0 for NaN, such as 0 divided by a scale of 0.
///
/// # Safety
/// The fraction must be in -1..=1 or NaN.
#[inline(always)]
pub(crate) unsafe fn step_of(share: f32) -> u16 {
    // The same two roundings as in bitsandbytes. `max` with NaN returns the other number.
    let step = ((share + 1.0) * (STEPS as f32 / 2.0) + 0.5).max(0.0);
    // SAFETY: the value is from 0 to 65,535.5. Without the checks of `as`, a loop takes half the time.
    unsafe { step.to_int_unchecked::<i32>() as u16 }
}

impl DynamicMap {
    /// Returns the code of a fraction of a block's scale.
    pub(crate) fn code(&self, share: f32) -> u8 {
        // SAFETY: the fraction is within bounds or NaN.
        self.codes[usize::from(unsafe { step_of(share.clamp(-1.0, 1.0)) })]
    }

    fn new(signed: bool) -> Self {
        let values = values(signed);
        let code = |step: usize| {
            let x = step as f32 / (STEPS as f32 / 2.0) - 1.0;
            let above = values.partition_point(|value| *value < x).clamp(1, 255);
            let lower = x - values[above - 1] <= values[above] - x;
            (above - usize::from(lower)) as u8
        };
        let codes: Box<[u8]> = (0..=STEPS).map(code).collect();
        let codes = codes.try_into().unwrap_or_else(|_| unreachable!("as many as steps"));
        Self { values, codes }
    }
}

/// Computes `create_dynamic_map(signed, 7, 8)` of bitsandbytes, with its rounding.
fn values(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7 {
        let items = if signed { 1 << exponent } else { 2 << exponent };
        let scale = 10f64.powi(exponent - 6) as f32;
        let step = (1.0 - 0.1f32) / items as f32;
        // PyTorch's `linspace` counts from both ends and rounds once.
        let bound = |i: i32| match i < (items + 1) / 2 {
            true => step.mul_add(i as f32, 0.1),
            false => step.mul_add((i - items) as f32, 1.0),
        };
        for i in 0..items {
            let mean = (bound(i) + bound(i + 1)) / 2.0 * scale;
            values.push(mean);
            if signed {
                values.push(-mean);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().unwrap_or_else(|_| unreachable!("254 means, 0 and 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_the_code_of_the_nearest_value() {
        for map in [&*SIGNED, &*UNSIGNED] {
            assert!(map.values.is_sorted() && map.values[255] == 1.0);
            for step in (0..=STEPS).step_by(7) {
                let x = step as f64 / STEPS as f64 * 2.0 - 1.0;
                let distance = |value: f32| (f64::from(value) - x).abs();
                let least = map.values.iter().map(|v| distance(*v)).fold(f64::MAX, f64::min);
                let found = distance(map.values[usize::from(map.codes[step])]);
                assert!(found - least < 1e-7, "step {step}: {found} and {least}");
            }
        }
    }

    #[test]
    fn steps_count_from_minus_one_to_one() {
        // SAFETY: the arguments are fractions or NaN.
        let step_of = |share| usize::from(unsafe { step_of(share) });
        assert_eq!([-1.0, 1.0, f32::NAN].map(step_of), [0, STEPS, 0]);
        // A value halfway between two steps rounds up.
        assert_eq!(step_of(0.0), STEPS.div_ceil(2));
    }
}
