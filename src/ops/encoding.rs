//! How quantized matrices are stored: codes, one scale per block of codes, and the values of codes.

use super::dynamic_map::{BLOCK as SCALES_PER_BLOCK, SIGNED};
use rayon::prelude::*;

/// The NF4 values: quantiles of a normal distribution between -1 and 1 (QLoRA, arXiv 2305.14314; the table of
/// bitsandbytes).
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The values of ggml's q4_0.
pub(crate) const INTEGERS: [f32; 16] =
    [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// The value of a code, before its block's scale is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CodeType {
    /// 8 bits: a signed integer times `unit`.
    Integer8 {
        /// The value of 1. If it is 1 / 127 and the scales are the blocks' largest values, the largest code,
        /// 127, stands for the largest value.
        unit: f32,
    },
    /// 4 bits: an index into a table. The first of two codes in a byte is in the upper half.
    Table4(&'static [f32; 16]),
}

/// How the scales of blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleType {
    /// Numbers, in the type of the tensor that holds them.
    Numbers,
    /// 8 bits each, by the dynamic map of bitsandbytes, in blocks of 256 with their own scale; the difference
    /// from the mean is stored (double quantization).
    Dynamic8,
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Encoding {
    pub codes: CodeType,
    /// Values per scale: consecutive values of the matrix row by row. The last block may be shorter.
    pub block: usize,
    pub scales: ScaleType,
}

impl Encoding {
    /// Returns NF4 as in bitsandbytes: blocks of 64, scaled by their largest value.
    pub(crate) fn nf4(double_quantization: bool) -> Self {
        let scales = if double_quantization { ScaleType::Dynamic8 } else { ScaleType::Numbers };
        Self { codes: CodeType::Table4(&NF4), block: 64, scales }
    }

    /// Returns 8-bit integers as in LLM.int8() of bitsandbytes: one scale per row, its largest value.
    pub(crate) fn int8(columns: usize) -> Self {
        let codes = CodeType::Integer8 { unit: 1.0 / 127.0 };
        Self { codes, block: columns.max(1), scales: ScaleType::Numbers }
    }

    /// Returns ggml's q8_0: blocks of 32 within rows, scaled by the value of 1.
    pub(crate) fn q8_0() -> Self {
        let codes = CodeType::Integer8 { unit: 1.0 };
        Self { codes, block: 32, scales: ScaleType::Numbers }
    }

    /// Returns ggml's q4_0: like q8_0 with 4 bits.
    pub(crate) fn q4_0() -> Self {
        Self { codes: CodeType::Table4(&INTEGERS), block: 32, scales: ScaleType::Numbers }
    }

    /// Bits per code.
    pub(crate) fn bits(&self) -> usize {
        match self.codes {
            CodeType::Integer8 { .. } => 8,
            CodeType::Table4(_) => 4,
        }
    }

    /// Returns whether each row of `columns` values has one numeric scale and a whole number of words of
    /// 8-bit codes.
    pub(crate) fn is_by_row(&self, columns: usize) -> bool {
        self.block == columns
            && self.bits() == 8
            && self.scales != ScaleType::Dynamic8
            && columns.is_multiple_of(4)
    }

    /// Returns the number of 32-bit words for the codes of `values` values, up to the end of their last
    /// block.
    pub(crate) fn words(&self, values: usize) -> usize {
        (values.div_ceil(self.block) * self.block * self.bits()).div_ceil(32)
    }
}

/// A quantized matrix in host memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncodedValues {
    /// The bytes of the codes, in words.
    pub codes: Vec<i32>,
    /// With [`ScaleType::Dynamic8`], the codes of the scales; otherwise empty.
    pub scale_codes: Vec<i32>,
    /// One scale per block. With [`ScaleType::Dynamic8`], one per 256 blocks, followed by the mean.
    pub scales: Vec<f32>,
}

impl EncodedValues {
    /// Encodes values, row by row, as their nearest codes.
    pub(crate) fn of(values: &[f32], encoding: Encoding) -> Self {
        /// Blocks per task; enough of them fill whole words.
        const BLOCKS: usize = 8;
        let Encoding { block, .. } = encoding;
        let mut codes = vec![0; encoding.words(values.len())];
        let of_task = codes.par_chunks_mut(BLOCKS * block * encoding.bits() / 32);
        let scales: Vec<f32> = of_task
            .zip(values.par_chunks(BLOCKS * block))
            .flat_map_iter(|(codes, values)| {
                values
                    .chunks(block)
                    .enumerate()
                    .map(|(index, values)| match encoding.codes {
                        CodeType::Integer8 { unit } => {
                            encode_integers(values, index * block, unit, codes)
                        }
                        CodeType::Table4(table) => {
                            encode_by_table(values, index * block, table, codes)
                        }
                    })
                    .collect::<Vec<f32>>()
            })
            .collect();
        let (scale_codes, scales) = match encoding.scales {
            ScaleType::Numbers => (vec![], scales),
            ScaleType::Dynamic8 => encode_scales(&scales),
        };
        Self { codes, scale_codes, scales }
    }
}

/// Sets a byte in words that are 0 there.
fn put(words: &mut [i32], place: usize, byte: u8) {
    words[place / 4] |= i32::from(byte) << (8 * (place % 4));
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |most, value| most.max(value.abs()))
}

/// Writes a block's codes starting at index `start`. Returns its scale.
fn encode_integers(block: &[f32], start: usize, unit: f32, words: &mut [i32]) -> f32 {
    let largest = largest(block);
    let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    /// Adding it rounds a small number to an integer, with ties to even.
    const ROUND: f32 = 12_582_912.0;
    for (place, value) in (start..).zip(block) {
        // Exceeds 127 only if the factor overflows.
        let code = (value * factor).clamp(-127.0, 127.0) + ROUND - ROUND;
        put(words, place, code as i8 as u8);
    }
    // If `unit` is 1 / 127, the scale is the largest value, as in bitsandbytes.
    if unit == 1.0 / 127.0 { largest } else { largest / 127.0 / unit }
}

/// Like [`encode_integers`], with the nearest value of an ascending table; ties go to the lower value.
fn encode_by_table(block: &[f32], start: usize, table: &[f32; 16], words: &mut [i32]) -> f32 {
    let largest = largest(block);
    let midpoints: [f32; 15] = std::array::from_fn(|i| (table[i] + table[i + 1]) / 2.0);
    let factor = 1.0 / largest.max(1e-38);
    for (place, value) in (start..).zip(block) {
        let value = (value * factor).clamp(-1.0, 1.0);
        let code = midpoints.iter().map(|midpoint| u8::from(value > *midpoint)).sum::<u8>();
        put(words, place / 2, if place.is_multiple_of(2) { code << 4 } else { code });
    }
    largest
}

/// Quantizes scales (double quantization). Returns their codes in words, and the scales of these followed by
/// the mean.
fn encode_scales(scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let mean =
        scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64;
    let mean = mean as f32;
    let distances: Vec<f32> = scales.iter().map(|scale| scale - mean).collect();
    let mut of_blocks = vec![];
    let mut codes = Vec::with_capacity(scales.len());
    for block in distances.chunks(SCALES_PER_BLOCK) {
        let largest = largest(block);
        of_blocks.push(largest);
        codes.extend(block.iter().map(|value| SIGNED.code(value / largest)));
    }
    of_blocks.push(mean);
    codes.resize(codes.len().next_multiple_of(SCALES_PER_BLOCK), 0);
    let mut words = vec![0; codes.len() / 4];
    codes.iter().enumerate().for_each(|(place, code)| put(&mut words, place, *code));
    (words, of_blocks)
}

#[cfg(test)]
mod tests {
    use super::super::dynamic_map::UNSIGNED;
    use super::*;
    use safetensors::SafeTensors;

    /// Results of bitsandbytes 0.50, generated by tests/parity/make_quantized.py.
    struct Fixture(Vec<u8>);

    impl Fixture {
        fn read() -> Option<Self> {
            let path = "tests/parity/fixtures/quantized.safetensors";
            // The published package has no tests/.
            std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
                .ok()
                .map(Self)
        }

        fn bytes(&self, name: &str) -> Vec<u8> {
            let file = SafeTensors::deserialize(&self.0).unwrap();
            file.tensor(name).unwrap().data().to_vec()
        }

        fn floats(&self, name: &str) -> Vec<f32> {
            let bytes = self.bytes(name);
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        }

        fn size(&self, name: &str) -> [usize; 2] {
            let file = SafeTensors::deserialize(&self.0).unwrap();
            file.tensor(name).unwrap().shape().try_into().unwrap()
        }
    }

    fn bytes(words: &[i32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance * expected.abs(), "{found} {expected}");
        }
    }

    /// Checks double quantization: scales of scales, their mean, and the codes of the scales.
    fn check_double(fixture: &Fixture, name: &str, weight: &[f32]) {
        let (map, nf4) = (&SIGNED.values, EncodedValues::of(weight, Encoding::nf4(false)));
        let double = EncodedValues::of(weight, Encoding::nf4(true));
        close(&double.scales, &fixture.floats(&format!("{name}.double.scales")), 1e-6);
        let codes = fixture.bytes(&format!("{name}.double.scale_codes"));
        let groups = double.scales.len() - 1;
        for (block, (found, expected)) in bytes(&double.scale_codes).iter().zip(&codes).enumerate()
        {
            let of_group = double.scales[block / SCALES_PER_BLOCK];
            let scaled = (nf4.scales[block] - double.scales[groups]) / of_group;
            let between = map[usize::from(*found)] + map[usize::from(*expected)];
            assert!(
                found == expected || (scaled - between / 2.0).abs() < 1e-6,
                "{name} {block}: {found} {expected}, {scaled}"
            );
        }
    }

    #[test]
    fn codes_and_scales_are_those_of_bitsandbytes() {
        let Some(fixture) = Fixture::read() else { return };
        let map = fixture.floats("map");
        assert_eq!(map, SIGNED.values);
        check_double(&fixture, "many", &fixture.floats("many.weight"));
        assert_eq!(fixture.floats("unsigned_map"), UNSIGNED.values);
        for name in ["plain", "ragged", "odd"] {
            let weight = fixture.floats(&format!("{name}.weight"));
            let [rows, columns] = fixture.size(&format!("{name}.weight"));
            let nf4 = EncodedValues::of(&weight, Encoding::nf4(false));
            // Scales match the input bit for bit. For a block of zeros, bitsandbytes has 0, or 1e-38 at the
            // end.
            assert_eq!(nf4.scales, fixture.floats(&format!("{name}.nf4.scales")));
            let (found, expected) =
                (bytes(&nf4.codes), fixture.bytes(&format!("{name}.nf4.codes")));
            for (place, value) in weight.iter().enumerate() {
                let code = |bytes: &[u8]| bytes[place / 2] >> (4 - 4 * (place % 2)) & 15;
                let (found, expected) = (code(&found), code(&expected));
                let scaled = value / nf4.scales[place / 64];
                let between = NF4[usize::from(found.min(15))] + NF4[usize::from(expected.min(15))];
                assert!(
                    found == expected || (scaled - between / 2.0).abs() < 1e-6,
                    "{name} {place}: {found} {expected}, {scaled}"
                );
            }
            check_double(&fixture, name, &weight);
            let int8 = EncodedValues::of(&weight, Encoding::int8(columns));
            assert_eq!(int8.scales, fixture.floats(&format!("{name}.int8.scales")));
            let (found, expected) =
                (bytes(&int8.codes), fixture.bytes(&format!("{name}.int8.codes")));
            for place in 0..rows * columns {
                let scale = int8.scales[place / columns];
                let scaled = weight[place] * 127.0 / scale;
                let [found, expected] = [found[place], expected[place]].map(|code| code as i8);
                let between = f32::from(found) + f32::from(expected);
                assert!(
                    found == expected || scale == 0.0 || (scaled - between / 2.0).abs() < 127e-6,
                    "{name} {place}: {found} {expected}, {scaled}"
                );
            }
        }
    }
}
