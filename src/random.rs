//! Named random streams. Every random choice of the crate is a pure function of (seed, purpose, index), so no
//! choice depends on the number of earlier draws.
//!
//! Draws use ChaCha8's raw output instead of `rand`'s distributions, whose results may change between
//! releases.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// One stream of random numbers.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// Returns the stream of `purpose` and `index` under `seed`.
    pub(crate) fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(index.to_le_bytes());
        hash.update(purpose.as_bytes());
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws uniformly from `0..bound` (`bound` > 0). The bias is below 2^-32 for every bound used here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Draws uniformly from `low..=high`.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low) as u64 + 1) as i64
    }

    /// Draws uniformly from `[0, 1)`, with 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Draws two independent standard normal numbers (Box-Muller).
    pub(crate) fn normal_pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.unit();
        [radius * angle.cos(), radius * angle.sin()]
    }

    /// Draws one of the items.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Draws a uniform permutation of `0..len` (Fisher-Yates).
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut items: Vec<u32> = (0..len as u32).collect();
        for last in (1..len).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
        items
    }
}
