//! GPU kernels: one cube per row finds the token at the row's point of the distribution.
//!
//! Tokens are not sorted. Every question about their order (the `k` most probable tokens, the tokens with the
//! share `p`, the token at a point) is answered by the largest score such that the tokens with at least that
//! score have a given count or weight. It is found bit by bit. Sums are in f32 and have the same order in
//! every run, so a point within a few millionths of the border between two tokens may fall on either side.

use super::super::cube::{
    CubeBackend, CubeTensor, cube_max, cube_sum, cubecl, cubes, in_rows, units, units_of,
    unwritten, writable,
};
use super::{Draws, Sampling, SamplingKernel, portable};
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{DType, IntDType, TensorData};
use burn_cubecl::cubecl::prelude::*;

/// Below any score. Finite, because WGSL has no infinity.
const LEAST: f32 = -1e30;

/// Returns an integer with the same order as the score.
#[cube]
fn key_of(score: f32) -> u32 {
    let bits = u32::reinterpret(score);
    let mut key = bits | 2_147_483_648u32;
    if bits >= 2_147_483_648u32 {
        key = !bits;
    }
    key
}

/// A row's scores, and the weight of a score.
#[derive(CubeType, Clone)]
struct Row {
    first: usize,
    vocabulary: usize,
    most: f32,
    inverse_temperature: f32,
    #[cube(comptime)]
    units: usize,
}

#[cube]
impl Row {
    fn weight(&self, score: f32) -> f32 {
        ((score - self.most) * self.inverse_temperature).exp()
    }

    /// Returns the weight, or with `counted` the number, of tokens whose score is at least that of a key.
    fn tally(
        &self,
        least: u32,
        scores: &Tensor<f32>,
        scratch: &mut Shared<[f32]>,
        #[comptime] counted: bool,
    ) -> f32 {
        let mut sum = 0.0f32;
        for i in range_stepped(UNIT_POS as usize, self.vocabulary, self.units) {
            let score = scores[self.first + i];
            if key_of(score) >= least {
                if comptime!(counted) {
                    sum += 1.0;
                } else {
                    sum += self.weight(score);
                }
            }
        }
        cube_sum(sum, scratch, self.units)
    }

    /// Returns the largest key such that the tokens from it on have at least the weight, or with `counted`
    /// the number, `wanted`; with `beyond` more than that.
    fn key_with(
        &self,
        wanted: f32,
        scores: &Tensor<f32>,
        scratch: &mut Shared<[f32]>,
        #[comptime] counted: bool,
        #[comptime] beyond: bool,
    ) -> u32 {
        let mut key = 0u32;
        let mut bit = 2_147_483_648u32.runtime();
        while bit > 0 {
            let there = self.tally(key | bit, scores, scratch, counted);
            let mut fits = there >= wanted;
            if comptime!(beyond) {
                fits = there > wanted;
            }
            if fits {
                key |= bit;
            }
            bit /= 2;
        }
        // If almost nothing is wanted, the most probable token suffices.
        min(key, key_of(self.most))
    }

    /// Returns the weight of the tokens with this key. At least one must exist.
    fn weight_of(&self, key: u32, scores: &Tensor<f32>, scratch: &mut Shared<[f32]>) -> f32 {
        let mut weight = 0.0f32;
        for i in range_stepped(UNIT_POS as usize, self.vocabulary, self.units) {
            let score = scores[self.first + i];
            if key_of(score) == key {
                weight = self.weight(score);
            }
        }
        cube_max(weight, scratch, self.units)
    }

    /// Returns the token with this key that is preceded by `before` tokens with the same key.
    fn token_of(
        &self,
        key: u32,
        before: f32,
        scores: &Tensor<f32>,
        scratch: &mut Shared<[f32]>,
    ) -> usize {
        let mut token = 0usize;
        let mut bit = 1_073_741_824usize.runtime();
        while bit > 0 {
            let end = token + bit;
            if end < self.vocabulary {
                let mut count = 0.0f32;
                for i in range_stepped(UNIT_POS as usize, end, self.units) {
                    if key_of(scores[self.first + i]) == key {
                        count += 1.0;
                    }
                }
                if cube_sum(count, scratch, self.units) <= before {
                    token = end;
                }
            }
            bit /= 2;
        }
        token
    }
}

#[cube(launch_unchecked)]
fn draw_kernel(
    scores: &Tensor<f32>,
    points: &Tensor<f32>,
    tokens: &mut Tensor<i32>,
    rows: usize,
    vocabulary: usize,
    inverse_temperature: f32,
    top_k: f32,
    top_p: f32,
    min_p: f32,
    #[comptime] cuts_k: bool,
    #[comptime] cuts_p: bool,
    #[comptime] units: usize,
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let first = CUBE_POS * vocabulary;
    let mut most = f32::new(LEAST);
    for i in range_stepped(UNIT_POS as usize, vocabulary, units) {
        most = max(most, scores[first + i]);
    }
    let most = cube_max(most, &mut scratch, units);
    let row = Row { first, vocabulary, most, inverse_temperature, units };

    // The kept weight: that of all tokens above a key and of some tokens with that key.
    let mut kept = row.tally(0, scores, &mut scratch, false);
    let mut last = 0u32;
    if comptime!(cuts_k) {
        last = row.key_with(top_k, scores, &mut scratch, true, false);
        let above = row.tally(last + 1, scores, &mut scratch, true);
        let weight = row.weight_of(last, scores, &mut scratch);
        kept = row.tally(last + 1, scores, &mut scratch, false) + (top_k - above) * weight;
    }
    if comptime!(cuts_p) {
        let share = top_p * kept;
        last = max(last, row.key_with(share, scores, &mut scratch, false, false));
        let above = row.tally(last + 1, scores, &mut scratch, false);
        let weight = row.weight_of(last, scores, &mut scratch);
        kept = min(kept, above + max((share - above) / weight, 1.0).ceil() * weight);
    }
    if min_p > 0.0 {
        let mut sum = 0.0f32;
        for i in range_stepped(UNIT_POS as usize, vocabulary, units) {
            let weight = row.weight(scores[first + i]);
            if weight >= min_p {
                sum += weight;
            }
        }
        kept = min(kept, cube_sum(sum, &mut scratch, units));
    }
    let point = points[CUBE_POS] * kept;
    // Even if sums round differently, an excluded token is never drawn.
    let key = max(last, row.key_with(point, scores, &mut scratch, false, true));
    let above = row.tally(key + 1, scores, &mut scratch, false);
    let weight = row.weight_of(key, scores, &mut scratch);
    let count = row.tally(key, scores, &mut scratch, true);
    let count = count - row.tally(key + 1, scores, &mut scratch, true);
    let before = min(max((point - above) / weight, 0.0).floor(), count - 1.0);
    let token = row.token_of(key, before, scores, &mut scratch);
    if UNIT_POS == 0 {
        tokens[CUBE_POS] = i32::cast_from(token);
    }
}

#[cube(launch_unchecked)]
fn penalize_kernel(
    scores: &mut Tensor<f32>,
    // `[rows, width]`, each token once per row, padded with the size of the vocabulary.
    earlier: &Tensor<i32>,
    count: usize,
    width: usize,
    vocabulary: usize,
    penalty: f32,
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let token = usize::cast_from(earlier[ABSOLUTE_POS]);
    if token < vocabulary {
        let place = ABSOLUTE_POS / width * vocabulary + token;
        let score = scores[place];
        if score > 0.0 {
            scores[place] = score / penalty;
        } else {
            scores[place] = score * penalty;
        }
    }
}

/// Lowers the scores of earlier tokens.
fn penalized(scores: CubeTensor, earlier: &[Vec<u32>], penalty: f64) -> CubeTensor {
    let vocabulary = scores.meta.shape()[1];
    let width = earlier.iter().map(Vec::len).max().unwrap_or(0);
    if width == 0 {
        return scores;
    }
    let padded = |row: &Vec<u32>| {
        let mut row: Vec<i32> = row.iter().map(|token| *token as i32).collect();
        row.resize(width, vocabulary as i32);
        row
    };
    let all: Vec<i32> = earlier.iter().flat_map(padded).collect();
    let count = all.len();
    // One row, which has no gaps.
    let all = TensorData::new(all, [count]);
    let all = CubeBackend::int_from_data(all, &scores.device);
    let scores = writable(scores);
    let (cube_count, cube_dim) = units(count, &scores);
    // SAFETY: each unit changes the score of its own token, which occurs once in its row.
    unsafe {
        penalize_kernel::launch_unchecked(
            &scores.client.clone(),
            cube_count,
            cube_dim,
            scores.clone().into_tensor_arg(),
            all.into_tensor_arg(),
            count,
            width,
            vocabulary,
            penalty as f32,
        );
    }
    scores
}

impl SamplingKernel for CubeBackend {
    fn draw(logits: CubeTensor, draws: Draws) -> CubeTensor {
        if logits.dtype != DType::F32 {
            return portable::<Self>(logits, draws);
        }
        let Draws { sampling, points, earlier } = draws;
        let Sampling { repetition_penalty, temperature, top_k, top_p, min_p } = sampling;
        let [scores] = in_rows([logits]);
        let [rows, vocabulary] = [scores.meta.shape()[0], scores.meta.shape()[1]];
        let scores = penalized(scores, &earlier, repetition_penalty);
        if temperature == 0.0 {
            let best = Self::float_argmax(scores, 1, IntDType::I32);
            return Self::int_reshape(best, [rows].into());
        }
        // Below 1 also in f32.
        let points = points.iter().map(|point| (*point as f32).min(1.0 - f32::EPSILON / 2.0));
        let points = TensorData::new(points.collect::<Vec<f32>>(), [rows]);
        let points = Self::float_from_data(points, &scores.device);
        let tokens = unwritten(&scores, [rows], DType::I32);
        let units = units_of(vocabulary, &scores);
        let (cube_count, cube_dim) = cubes(rows, units, &scores);
        // SAFETY: each cube reads its own row and point, and writes its own token.
        unsafe {
            draw_kernel::launch_unchecked(
                &scores.client.clone(),
                cube_count,
                cube_dim,
                scores.into_tensor_arg(),
                points.into_tensor_arg(),
                tokens.clone().into_tensor_arg(),
                rows,
                vocabulary,
                // Finite, so that the largest score's distance of 0 remains 0.
                temperature.recip().min(1e30) as f32,
                top_k as f32,
                (top_p as f32).max(1e-30),
                min_p as f32,
                top_k > 0 && top_k < vocabulary,
                top_p < 1.0,
                units,
            );
        }
        tokens
    }
}
