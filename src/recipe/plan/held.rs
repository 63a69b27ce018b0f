//! Bytes in use, separated by how the kernels keep them for reuse, and the sizes of tensors by type.

use crate::model::{BaseType, BaseWeights};
use crate::train::{LEAST_8BIT, MomentType};
use serde::Serialize;
use std::ops::{Add, AddAssign, Mul, Sub};

/// Bytes in use at a time. On a CPU, the kernels keep freed memory for reuse, separately for large blocks and
/// small pieces (`src/ops/kernel/buffer.rs`). A process therefore holds the peak of each, and the two peaks
/// may occur at different times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Held {
    /// Tensors of at least 8 MiB.
    pub large: f64,
    /// Smaller tensors, which are pieces of slabs.
    pub small: f64,
}

/// Minimum size in bytes of a tensor with its own memory: `LARGE` of the buffers.
const LARGE: f64 = (8 << 20) as f64;

/// Slab memory per byte in use: sizes are rounded up, and there are free pieces between others.
const SLAB_OVERHEAD: f64 = 1.05;

impl Held {
    /// Returns a tensor of `bytes` bytes.
    pub fn tensor(bytes: f64) -> Self {
        match bytes >= LARGE {
            true => Self { large: bytes, small: 0.0 },
            false => Self { large: 0.0, small: bytes * SLAB_OVERHEAD },
        }
    }

    /// Returns a tensor of `count` f32 values.
    pub fn values(count: usize) -> Self {
        Self::tensor(4.0 * count as f64)
    }

    /// Returns the elementwise maximum.
    pub fn max(self, other: Self) -> Self {
        Self { large: self.large.max(other.large), small: self.small.max(other.small) }
    }

    /// Returns the sum.
    pub fn bytes(self) -> f64 {
        self.large + self.small
    }
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { large: self.large + other.large, small: self.small + other.small }
    }
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Held {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { large: self.large - other.large, small: self.small - other.small }
    }
}

impl Mul<f64> for Held {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self { large: self.large * factor, small: self.small * factor }
    }
}

/// Returns the size in bytes of a frozen matrix with `rows` outputs and `columns` inputs in a storage type.
pub(super) fn matrix_bytes(kind: BaseType, rows: usize, columns: usize, base: BaseWeights) -> f64 {
    let count = (rows * columns) as f64;
    match kind {
        BaseType::F32 => 4.0 * count,
        BaseType::Bf16 => 2.0 * count,
        // One code per weight and one f32 scale per output.
        BaseType::Int8 => count + 4.0 * rows as f64,
        BaseType::Nf4 => {
            let blocks = (count / 64.0).ceil();
            let scales = match base.double_quantization {
                true => blocks + 4.0 * (blocks / 256.0).ceil(),
                false => 4.0 * blocks,
            };
            count / 2.0 + scales
        }
    }
}

/// Returns the size in bytes of both moments of a trained tensor. Must match how the optimizer stores them.
pub(super) fn moment_bytes(elements: usize, moments: MomentType) -> f64 {
    let elements = elements as f64;
    if moments == MomentType::F32 || elements < LEAST_8BIT as f64 {
        // `exp_avg` and `exp_avg_sq` in f32.
        return 8.0 * elements;
    }
    // One code per value and moment, and one f32 scale per block of 256.
    2.0 * elements + 8.0 * (elements / 256.0).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_take_what_their_type_takes() {
        let usual = BaseWeights::default();
        let double = BaseWeights { double_quantization: true, ..usual };
        let bytes = |kind, base| matrix_bytes(kind, 128, 256, base);
        assert_eq!(bytes(BaseType::F32, usual), 131_072.0);
        assert_eq!(bytes(BaseType::Bf16, usual), 65_536.0);
        assert_eq!(bytes(BaseType::Int8, usual), 32_768.0 + 512.0);
        assert_eq!(bytes(BaseType::Nf4, usual), 16_384.0 + 2_048.0);
        assert_eq!(bytes(BaseType::Nf4, double), 16_384.0 + 512.0 + 8.0);
    }

    #[test]
    fn the_most_of_large_and_of_small_tensors_are_held_apart() {
        let (large, small) = (Held::tensor(LARGE), Held::tensor(1000.0));
        assert_eq!(large.max(small).bytes(), large.bytes() + small.bytes());
        assert_eq!((large + large).max(large * 2.0), large * 2.0);
    }
}
