//! Decoders for super-blocks of 256 values, whose parts have quantized scales.

use super::blocks::{IQ4, number};

/// Returns the `width` bits of code `at`. Each byte holds bits of `8 / width` runs of `run_bytes` codes; the
/// first run is in the lowest bits.
fn bits(bytes: &[u8], at: usize, width: usize, run_bytes: usize) -> u8 {
    let per_byte = 8 / width;
    let (group, rest) = (at / (run_bytes * per_byte), at % (run_bytes * per_byte));
    let (run, place) = (rest / run_bytes, rest % run_bytes);
    bytes[group * run_bytes + place] >> (width * run) & ((1u16 << width) - 1) as u8
}

pub(super) fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, least) = (number(block, 80), number(block, 82));
    for (at, value) in values.iter_mut().enumerate() {
        let of_part = scales[at / 16];
        let (scale, least) = (scale * f32::from(of_part & 15), least * f32::from(of_part >> 4));
        *value = scale * f32::from(bits(codes, at, 2, 32)) - least;
    }
}

pub(super) fn q3_k(block: &[u8], values: &mut [f32]) {
    let (upper, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = number(block, 108);
    // Six bits per scale: the low four in the first eight bytes, the high two in the last four.
    let of_part = |part: usize| {
        let low = packed[part % 8] >> (4 * (part / 8)) & 15;
        let high = packed[8 + part % 4] >> (2 * (part / 4)) & 3;
        f32::from(low | high << 4) - 32.0
    };
    let scales: [f32; 16] = std::array::from_fn(|part| scale * of_part(part));
    for (at, value) in values.iter_mut().enumerate() {
        // A clear bit subtracts 4.
        let low = f32::from(bits(codes, at, 2, 32));
        let lacks = f32::from(bits(upper, at, 1, 32) ^ 1);
        *value = scales[at / 16] * (low - 4.0 * lacks);
    }
}

/// Unpacks the 6-bit scales and minimums of eight parts.
fn scales_and_least(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|part| {
        let (scale, least) = if part < 4 {
            (packed[part] & 63, packed[part + 4] & 63)
        } else {
            let rest = packed[part + 4];
            (rest & 15 | packed[part - 4] >> 2 & 48, rest >> 4 | packed[part] >> 2 & 48)
        };
        (f32::from(scale), f32::from(least))
    })
}

pub(super) fn q4_k(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (number(block, 0), number(block, 2));
    let (parts, codes) = (scales_and_least(&block[4..16]), &block[16..]);
    for (at, value) in values.iter_mut().enumerate() {
        let (of_scale, of_least) = parts[at / 32];
        *value = scale * of_scale * f32::from(bits(codes, at, 4, 32)) - least * of_least;
    }
}

pub(super) fn q5_k(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (number(block, 0), number(block, 2));
    let parts = scales_and_least(&block[4..16]);
    let (upper, codes) = (&block[16..48], &block[48..]);
    for (at, value) in values.iter_mut().enumerate() {
        let (of_scale, of_least) = parts[at / 32];
        let code = bits(codes, at, 4, 32) | bits(upper, at, 1, 32) << 4;
        *value = scale * of_scale * f32::from(code) - least * of_least;
    }
}

pub(super) fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = number(block, 208);
    for (at, value) in values.iter_mut().enumerate() {
        let code = bits(low, at, 4, 64) | bits(upper, at, 2, 32) << 4;
        *value = scale * f32::from(scales[at / 16] as i8) * (f32::from(code) - 32.0);
    }
}

pub(super) fn iq4_xs(block: &[u8], values: &mut [f32]) {
    let scale = number(block, 0);
    let (high, low, codes) = (&block[2..4], &block[4..8], &block[8..]);
    for (at, value) in values.iter_mut().enumerate() {
        let part = at / 32;
        let low = low[part / 2] >> (4 * (part % 2)) & 15;
        let high = high[part / 4] >> (2 * (part % 4)) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        *value = scale * f32::from(IQ4[usize::from(bits(&codes[16 * part..], at % 32, 4, 16))]);
    }
}
