//! Vectorized loops: functions compiled for several instruction sets, `exp`, and reductions in a fixed order.

/// Defines a function whose body is compiled for AVX-512, for AVX2, and for neither. The version is chosen at
/// run time.
///
/// Only multiplications and additions are used, so all versions give the same bits. Without hardware support,
/// a fused multiply-add would be a slow library call.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn body_avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx2")]
                fn body_avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    // SAFETY: the feature was detected on this machine and implies AVX2.
                    return unsafe { body_avx512($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was detected on this machine.
                    return unsafe { body_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// Computes `e^x` to about 2 units in the last place, without branches or calls, so that loops vectorize.
///
/// The polynomial is from Cephes' `expf`. NaN stays NaN. Results below the smallest normal number become
/// about `1e-38`, and those above the largest number about `2e38`.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the constants as Cephes prints them
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_40e-4; // ln 2 in two parts
    let p = 1.987_569_15e-4 * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_9e-3;
    let p = p * r + 4.166_579_59e-2;
    let p = p * r + 1.666_666_55e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let two_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * two_n
}

/// Number of partial sums in a reduction, so that it vectorizes and has a fixed order.
const LANES: usize = 16;

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut half = [0.0; LANES / 2];
    for i in 0..LANES / 2 {
        half[i] = lanes[i] + lanes[i + LANES / 2];
    }
    half.iter().sum()
}

/// Returns the sum of `a[i] * b[i]`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_tail, b_tail) = (a.chunks_exact(LANES).remainder(), b.chunks_exact(LANES).remainder());
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    sum_lanes(lanes) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
}

/// Returns the largest element. NaN is not reported here, but in [`exp_sum`].
#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = *x;
    }
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces every element by `exp(x - shift)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *x = exp(*x - shift);
        *lane += *x;
    }
    sum_lanes(lanes)
}
