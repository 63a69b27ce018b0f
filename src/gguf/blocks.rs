//! Decoders for blocks of 32 values.

use half::f16;

/// Lookup table of `iq4_nl` and `iq4_xs`.
pub(super) const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of FP4 (E2M1), doubled.
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Reads the `f16` at byte `at`.
pub(super) fn number(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Returns code `at` of 32 codes of 4 bits: the low nibbles of 16 bytes, then their high nibbles.
fn halves(bytes: &[u8], at: usize) -> u8 {
    if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 }
}

/// Returns the fifth bit of code `at`, shifted into position.
fn fifth(bits: &[u8], at: usize) -> u8 {
    (bits[at / 8] >> (at % 8) & 1) << 4
}

pub(super) fn q4_0(block: &[u8], values: &mut [f32]) {
    let scale = number(block, 0);
    for (at, value) in values.iter_mut().enumerate() {
        *value = scale * (f32::from(halves(&block[2..], at)) - 8.0);
    }
}

pub(super) fn q4_1(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (number(block, 0), number(block, 2));
    for (at, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(halves(&block[4..], at)) + least;
    }
}

pub(super) fn q5_0(block: &[u8], values: &mut [f32]) {
    let scale = number(block, 0);
    for (at, value) in values.iter_mut().enumerate() {
        let code = halves(&block[6..], at) | fifth(&block[2..6], at);
        *value = scale * (f32::from(code) - 16.0);
    }
}

pub(super) fn q5_1(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (number(block, 0), number(block, 2));
    for (at, value) in values.iter_mut().enumerate() {
        let code = halves(&block[8..], at) | fifth(&block[4..8], at);
        *value = scale * f32::from(code) + least;
    }
}

pub(super) fn q8_0(block: &[u8], values: &mut [f32]) {
    let scale = number(block, 0);
    for (value, code) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(*code as i8);
    }
}

pub(super) fn iq4_nl(block: &[u8], values: &mut [f32]) {
    let scale = number(block, 0);
    for (at, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(IQ4[usize::from(halves(&block[2..], at))]);
    }
}

pub(super) fn mxfp4(block: &[u8], values: &mut [f32]) {
    // Half the power of two, because the table's values are doubled.
    let exponent = u32::from(block[0]);
    let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
    let scale = f32::from_bits(bits);
    for (at, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(FP4[usize::from(halves(&block[1..], at))]);
    }
}
