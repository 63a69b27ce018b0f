//! Vectorized decoding of codes.

use super::simd::simd_fn;
use std::ops::Range;

/// Codes to decode: those of the values from `start` on.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// The codes of the whole matrix.
    pub codes: &'a [u8],
    /// Values per block, which share a scale.
    pub block: usize,
    pub start: usize,
}

impl Run<'_> {
    /// Calls `with` for each part of `count` values that is in one block, with the block and the part's range
    /// among the values.
    #[inline(always)]
    fn for_blocks(&self, count: usize, mut with: impl FnMut(usize, Range<usize>)) {
        let mut done = 0;
        while done < count {
            let place = self.start + done;
            let block = place / self.block;
            let end = ((block + 1) * self.block - self.start).min(count);
            with(block, done..end);
            done = end;
        }
    }
}

simd_fn! {
    /// Converts 16-bit floats (bf16), of two bytes each, to f32.
    pub(super) fn decode_short_floats(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = f32::from_bits(u32::from(u16::from_ne_bytes(*bytes)) << 16);
        }
    }
}

simd_fn! {
    /// Multiplies signed bytes by a scale.
    fn integers(codes: &[u8], scale: f32, out: &mut [f32]) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(*code as i8) * scale;
        }
    }
}

/// Decodes 8-bit integers and multiplies them by the scale of their block.
pub(super) fn decode_integers(run: Run, out: &mut [f32], scale: impl Fn(usize) -> f32) {
    run.for_blocks(out.len(), |block, part| {
        let codes = &run.codes[run.start + part.start..][..part.len()];
        integers(codes, scale(block), &mut out[part]);
    });
}

/// Returns the value of the 4-bit code at an index.
#[inline(always)]
fn table_value(codes: &[u8], place: usize, table: &[f32; 16]) -> f32 {
    let byte = codes[place / 2];
    let code = if place.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
    table[usize::from(code)]
}

/// Decodes 4-bit codes by a table and multiplies them by the scale of their block.
pub(super) fn decode_by_table(
    run: Run,
    out: &mut [f32],
    table: &[f32; 16],
    scale: impl Fn(usize) -> f32,
) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx2") {
            // SAFETY: the features were detected on this machine.
            return unsafe { x86::by_table_avx512(run, out, table, scale) };
        }
        if has!("avx2") {
            // SAFETY: the feature was detected on this machine.
            return unsafe { x86::by_table_avx2(run, out, table, scale) };
        }
    }
    by_table(run, out, table, scale);
}

fn by_table(run: Run, out: &mut [f32], table: &[f32; 16], scale: impl Fn(usize) -> f32) {
    run.for_blocks(out.len(), |block, part| {
        let scale = scale(block);
        let first = run.start + part.start;
        for (i, out) in out[part].iter_mut().enumerate() {
            *out = table_value(run.codes, first + i, table) * scale;
        }
    });
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{Run, table_value};
    use std::arch::x86_64::*;

    /// Looks up the sixteen codes in eight bytes.
    ///
    /// # Safety
    /// The eight bytes must be readable.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in super::super) unsafe fn sixteen_values(codes: *const u8, table: __m512) -> __m512 {
        // SAFETY: the caller guarantees eight bytes.
        let bytes = unsafe { _mm_loadl_epi64(codes.cast()) };
        // Puts each byte in two positions and shifts its upper half down in the first.
        let bytes = _mm512_castsi512_ps(_mm512_cvtepu8_epi64(bytes));
        let twice = _mm512_castps_si512(_mm512_moveldup_ps(bytes));
        // Only the lower four bits of an index count.
        _mm512_permutexvar_ps(_mm512_srlv_epi32(twice, _mm512_set1_epi64(4)), table)
    }

    /// Returns the two codes of each of the first eight bytes, the upper half first.
    #[inline(always)]
    pub(in super::super) unsafe fn in_order(bytes: __m128i) -> __m128i {
        // SAFETY: every x86-64 CPU has SSE2.
        unsafe {
            let low = _mm_set1_epi8(15);
            let upper = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low);
            _mm_unpacklo_epi8(upper, _mm_and_si128(bytes, low))
        }
    }

    /// Looks up eight codes in the halves of a table.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(in super::super) fn eight_values(codes: __m128i, table: [__m256; 2]) -> __m256 {
        let codes = _mm256_cvtepu8_epi32(codes);
        let lower = _mm256_permutevar8x32_ps(table[0], codes);
        let upper = _mm256_permutevar8x32_ps(table[1], codes);
        // Selects the upper half of the table if bit 3 is set.
        _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
    }

    macro_rules! by_table {
        ($name:ident, $features:literal, |$codes:ident, $table:ident, $scale:ident, $out:ident| $store:block, $load:expr, $splat:ident) => {
            /// See `decode_by_table`.
            #[target_feature(enable = $features)]
            pub(super) fn $name(
                run: Run,
                out: &mut [f32],
                table: &[f32; 16],
                scale: impl Fn(usize) -> f32,
            ) {
                // SAFETY: the table has sixteen values.
                let $table = unsafe { $load(table.as_ptr()) };
                run.for_blocks(out.len(), |block, part| {
                    let scale = scale(block);
                    let $scale = $splat(scale);
                    let first = run.start + part.start;
                    let out = &mut out[part];
                    // Processes whole bytes: at an odd index, the first code is half a byte.
                    let odd = (first % 2).min(out.len());
                    let whole = (out.len() - odd) / 16 * 16;
                    let codes = &run.codes[(first + odd) / 2..][..whole / 2];
                    for i in (0..whole).step_by(16) {
                        // SAFETY: eight bytes of codes and sixteen values exist from here on.
                        unsafe {
                            let $codes = codes.as_ptr().add(i / 2);
                            let $out = out.as_mut_ptr().add(odd + i);
                            $store
                        }
                    }
                    for i in (0..odd).chain(odd + whole..out.len()) {
                        out[i] = table_value(run.codes, first + i, table) * scale;
                    }
                });
            }
        };
    }

    by_table!(
        by_table_avx512,
        "avx512f,avx2",
        |codes, table, scale, out| {
            _mm512_storeu_ps(out, _mm512_mul_ps(sixteen_values(codes, table), scale));
        },
        |table: *const f32| _mm512_loadu_ps(table),
        _mm512_set1_ps
    );
    by_table!(
        by_table_avx2,
        "avx2",
        |codes, table, scale, out| {
            let codes = in_order(_mm_loadl_epi64(codes.cast()));
            let halves = [codes, _mm_srli_si128::<8>(codes)];
            for (half, codes) in halves.into_iter().enumerate() {
                let values = eight_values(codes, table);
                _mm256_storeu_ps(out.add(8 * half), _mm256_mul_ps(values, scale));
            }
        },
        |table: *const f32| [_mm256_loadu_ps(table), _mm256_loadu_ps(table.add(8))],
        _mm256_set1_ps
    );
}
